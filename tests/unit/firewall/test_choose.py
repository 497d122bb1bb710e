"""Which port, for what a host has."""

from __future__ import annotations

import pytest

from pyflannel.firewall.choose import Tools, choose
from pyflannel.firewall.iptables import Variant, parse
from pyflannel.firewall.model import Mode
from pyflannel.firewall.nftables import Ruleset
from pyflannel.firewall.nftables import parse as parse_nft

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
