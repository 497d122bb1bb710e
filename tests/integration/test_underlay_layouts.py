"""Nodes whose interfaces are not one with one address: which of them a real daemon takes, and what it says of why.

And what becomes of that when interfaces change while it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.integration.asking import PATIENCE

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

BY_DEFAULT = "the default route 0.0.0.0/0 leads through it"
BY_DEFAULT_6 = "the default route ::/0 leads through it"
KEPT = " (when it was chosen; it is kept for as long as it works)"

FOUR = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
SIX = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}}

POINT_TO_POINT = """
ip address flush dev eth0
ip address add 192.0.2.1 peer 192.0.2.254/32 dev eth0
ip route add default via 192.0.2.254 dev eth0
"""
HOST_ADDRESSES = """
ip address flush dev eth0
ip address add 192.0.2.99/32 dev eth0
ip address add 192.0.2.1/32 dev eth0
ip route add 192.0.2.254 dev eth0
ip route add default via 192.0.2.254 dev eth0 src 192.0.2.1
"""
ALONE_IN_IPV6 = "ip -4 address flush dev eth0"
INTO_A_BRIDGE = """
ip link add br0 type bridge
ip link set br0 up
ip link set eth0 master br0
ip address flush dev eth0
ip address add 192.0.2.1/24 dev br0
ip route add default via 192.0.2.254
"""
OTHER_NAME = """
ip link set eth0 down
ip link set eth0 name wan0
ip link set wan0 up
ip route replace default via 192.0.2.254
"""
SECOND = """
ip -6 route delete default
ip link add eth1 type veth peer name far1
ip link set far1 up
ip link set eth1 up
ip address add 198.51.100.1/24 dev eth1
"""
OTHER_DEFAULT = """
ip route add default via 198.51.100.254 metric 50
ip route delete default via 192.0.2.254
ip address add 203.0.113.7/24 dev eth1
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(nodes=1, containers=0) as made:
        yield made


def begun(lab: Lab, document: dict[str, Any], before: str, *flags: str) -> Node:
    """A node whose daemon has found it like this."""
    (node,) = lab.nodes
    words = pyflannel_command("config", "set", "-", "--store", lab.file_store)
    node.run(words, input=json.dumps(document), timeout=PATIENCE)
    node.run(["sh", "-ec", before])
    node.start_daemon(lab.file_store, None, None, flags, interface=None)
    return node


def comes_to(node: Node, interface: str, address: str, why: str, mtu: int = 1500) -> None:
    """Wait until it is ready over this interface and address."""
    key = "ipv6" if ":" in address else "ipv4"
    wanted = {"interface": interface, key: address, f"public_{key}": address, "why": why, "mtu": mtu}

    def is_there(status: Mapping[str, Any]) -> bool:
        underlay = status["underlay"] or {}
        return status["state"] == "ready" and all(underlay.get(name) == value for name, value in wanted.items())

    node.daemon.wait_status(is_there, f"ready over {wanted}", PATIENCE)


@pytest.mark.parametrize(
    ("document", "before", "flags", "address", "why"),
    [
        (FOUR, POINT_TO_POINT, (), "192.0.2.1", BY_DEFAULT),
        (FOUR, HOST_ADDRESSES, (), "192.0.2.1", BY_DEFAULT),
        (SIX, ALONE_IN_IPV6, (), "2001:db8::1", BY_DEFAULT_6),
        (SIX, ALONE_IN_IPV6, ("--iface", "2001:0DB8:0:0::0001"), "2001:db8::1", "--iface 2001:0DB8:0:0::0001"),
    ],
    ids=["point to point", "host addresses", "IPv6 alone", "another spelling"],
)
def test_what_is_taken_at_the_start_stays_when_other_addresses_come(
    lab: Lab, document: dict[str, Any], before: str, flags: tuple[str, ...], address: str, why: str
) -> None:
    node = begun(lab, document, before, *flags)
    comes_to(node, "eth0", address, why)
    more = ("2001:db8::9/128", "2001:db8::77/64") if ":" in address else ("203.0.113.5/32",)
    for each in more:
        node.run(["ip", "address", "add", each, "dev", "eth0", *(["nodad"] if ":" in each else [])])
    node.run(["ip", "link", "set", "eth0", "mtu", "1400"])  # by which one sees that the addresses were looked at
    comes_to(node, "eth0", address, why, mtu=1400)


@pytest.mark.parametrize(("change", "interface"), [(INTO_A_BRIDGE, "br0"), (OTHER_NAME, "wan0")])
def test_an_address_is_followed_to_where_it_has_gone(lab: Lab, change: str, interface: str) -> None:
    node = begun(lab, FOUR, "true")
    comes_to(node, "eth0", "192.0.2.1", BY_DEFAULT)
    subnets = node.daemon.status()["lease"]["subnets"]
    node.run(["sh", "-ec", change])
    comes_to(node, interface, "192.0.2.1", BY_DEFAULT)
    assert node.daemon.status()["lease"]["subnets"] == subnets


def test_another_default_route_moves_nothing_and_what_is_said_stays_true(lab: Lab) -> None:
    node = begun(lab, FOUR, SECOND)
    comes_to(node, "eth0", "192.0.2.1", BY_DEFAULT)
    node.run(["sh", "-ec", OTHER_DEFAULT])
    comes_to(node, "eth0", "192.0.2.1", f"{BY_DEFAULT}{KEPT}")
    assert node.daemon.status()["underlay"]["others"] == [f"eth1: {BY_DEFAULT}"]
    node.run(["ip", "address", "delete", "192.0.2.1/24", "dev", "eth0"])
    node.run(["ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"])
    comes_to(node, "eth1", "198.51.100.1", BY_DEFAULT)


def test_what_can_not_be_reached_is_waited_for(lab: Lab) -> None:
    node = begun(lab, FOUR, "ip route add unreachable 203.0.113.0/24", "--iface-can-reach", "203.0.113.9")
    says = "--iface-can-reach: no route to 203.0.113.9"
    node.daemon.wait_status(lambda it: it["state"] == "waiting" and says in it["message"], "it says so", PATIENCE)
    node.run(["ip", "route", "delete", "unreachable", "203.0.113.0/24"])
    comes_to(node, "eth0", "192.0.2.1", "--iface-can-reach 203.0.113.9: the kernel sends through it")
