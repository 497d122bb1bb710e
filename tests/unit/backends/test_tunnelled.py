"""By which devices the overlay's packets come in and go out, for each backend: what the firewall goes by."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from pyflannel.backend import NetworkConfig, Node, Subnets, Underlay
from pyflannel.daemon.wiring import make_backend
from pyflannel.planning.overlay import Overlay

FOUR, SIX = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
UNDERLAY = Underlay("eth0", 1500, FOUR, SIX, public_ipv4=FOUR, public_ipv6=SIX)


@pytest.mark.parametrize(
    ("backend", "versions", "entrances"),
    [
        ({"Type": "vxlan", "VNI": 7}, (4, 6), {"flannel.7", "flannel-v6.7"}),
        ({"Type": "vxlan", "DirectRouting": True}, (4, 6), set()),
        ({"Type": "ipip"}, (4,), {"flannel.ipip"}),
        ({"Type": "ipip", "DirectRouting": True}, (4,), set()),
        ({"Type": "udp"}, (4,), {"flannel0"}),
        ({"Type": "wireguard", "Implementation": "userspace"}, (4, 6), {"flannel-wg", "flannel-wg-v6"}),
        ({"Type": "wireguard", "Implementation": "userspace", "Mode": "auto"}, (4, 6), {"flannel-wg"}),
        ({"Type": "ipsec", "PSK": "0123456789abcdef" * 6}, (4, 6), {"flannel-ipsec"}),
        ({"Type": "host-gw"}, (4, 6), set()),
        ({"Type": "alloc"}, (4, 6), set()),
        ({"Type": "extension"}, (4, 6), set()),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_entrances_and_exits(
    tmp_path: Path, backend: dict[str, Any], versions: tuple[int, ...], entrances: set[str]
) -> None:
    document: dict[str, Any] = {"Network": "10.244.0.0/16", "Backend": backend}
    if 6 in versions:
        document |= {"EnableIPv6": True, "IPv6Network": "fd00:10::/48"}
    network = NetworkConfig.from_json(json.dumps(document))
    subnets = Subnets(IPv4Network("10.244.3.0/24"), IPv6Network("fd00:10:0:3::/64") if 6 in versions else None)
    made = make_backend(network)
    node = Node("n", network, UNDERLAY, subnets, tmp_path)
    made.publish(node)  # which makes a key where there has to be one
    overlay = Overlay(made, node)
    assert overlay.entrances == entrances
    encrypts = backend["Type"] in ("wireguard", "ipsec")
    assert overlay.exits == (entrances if encrypts else set()), "where a packet is encrypted"
    assert overlay.ipsec == (backend["Type"] == "ipsec")
