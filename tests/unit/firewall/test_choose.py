"""Which port, for what a host has."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from pyflannel.firewall.choose import Tools, choose
from pyflannel.firewall.iptables import Variant, parse
from pyflannel.firewall.model import Mode, plan
from pyflannel.firewall.nftables import Ruleset
from pyflannel.firewall.nftables import parse as parse_nft
from pyflannel.firewall.sync import Firewall
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets

NFT, LEGACY = Variant("nft", {}), Variant("legacy", {})
EVERYTHING = Tools("/sbin/nft", {"nft": NFT, "legacy": LEGACY})
BARE = Ruleset()
DOCKER = parse_nft(
    '{"nftables": [{"table": {"family": "ip", "name": "filter"}},'
    '{"chain": {"family": "ip", "table": "filter", "name": "FORWARD"}}]}'
)
OWN_TABLE = parse_nft(
    '{"nftables": [{"table": {"family": "inet", "name": "filter"}},'
    '{"chain": {"family": "inet", "table": "filter", "name": "forward"}}]}'
)
USED = {4: parse("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n")}


@pytest.mark.parametrize(
    ("mode", "tools", "ruleset", "legacy", "current", "port"),
    [
        (Mode.AUTO, EVERYTHING, BARE, {}, "", "nftables"),
        (Mode.AUTO, EVERYTHING, OWN_TABLE, {}, "", "nftables"),
        (Mode.AUTO, EVERYTHING, DOCKER, {}, "", "iptables-nft"),
        (Mode.AUTO, EVERYTHING, BARE, USED, "", "iptables-legacy"),
        (Mode.AUTO, EVERYTHING, DOCKER, USED, "", "iptables-nft"),
        (Mode.AUTO, EVERYTHING, DOCKER, {}, "nftables", "iptables-nft"),
        (Mode.AUTO, EVERYTHING, BARE, {}, "iptables-nft", "iptables-nft"),
        (Mode.AUTO, EVERYTHING, BARE, USED, "iptables-nft", "iptables-legacy"),
        (Mode.AUTO, Tools("/sbin/nft", {}), DOCKER, {}, "", "nftables"),
        (Mode.AUTO, Tools(None, {"legacy": LEGACY}), None, {}, "", "iptables-legacy"),
        (Mode.AUTO, Tools(None, {}), None, {}, "", ""),
        (Mode.NFTABLES, EVERYTHING, DOCKER, USED, "iptables-nft", "nftables"),
        (Mode.NFTABLES, Tools(None, {"nft": NFT}), None, {}, "", ""),
        (Mode.IPTABLES, EVERYTHING, BARE, {}, "nftables", "iptables-nft"),
        (Mode.IPTABLES, EVERYTHING, BARE, USED, "", "iptables-legacy"),
        (Mode.NONE, EVERYTHING, DOCKER, USED, "", "none"),
    ],
)
def test_the_port(mode: Mode, tools: Tools, ruleset: Ruleset | None, legacy: dict, current: str, port: str) -> None:  # type: ignore[type-arg]
    assert choose(mode, tools, ruleset, legacy, current) == port


@pytest.mark.parametrize(
    ("mode", "forced", "lacks"),
    [
        (Mode.AUTO, False, "neither nft nor iptables is installed (apt-get install nftables)"),
        (Mode.AUTO, True, "there is no nft that can be used (apt-get install nftables)"),
        (Mode.NFTABLES, False, "there is no nft that can be used (apt-get install nftables)"),
        (Mode.IPTABLES, True, "iptables was asked for, and is not installed (apt-get install iptables)"),
    ],
)
def test_what_is_missing_is_what_was_asked_for(mode: Mode, forced: bool, lacks: str) -> None:
    firewall = Firewall(Tools(None, {}), mode)
    network = NetworkConfig.from_json('{"Network": "10.244.0.0/16"}')
    rules = plan(network, Subnets(IPv4Network("10.244.3.0/24")), forward=False, masquerade=True)
    firewall.want(rules, forced)
    (error,) = firewall.check().errors
    assert error.startswith("no masquerade: ")
    assert error.endswith(lacks)
