"""What is wrong with a lease, whatever the backend: above all, addresses that no node can have."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from pyflannel.backend import Node
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPAddress, Lease, LeaseAttributes, Subnets
from pyflannel.network.underlay import Underlay, UnderlayRoute
from pyflannel.planning.judging import displaced, own_problem, own_public_problem, placement_problem


def network(**document: Any) -> NetworkConfig:
    return NetworkConfig.from_json(json.dumps({"Backend": {"Type": "vxlan"}, **document}))


BOTH = network(Network="10.5.0.0/16", EnableIPv6=True, IPv6Network="fd00:5::/48")


def lease(ipv4: str = "192.0.2.2", ipv6: str = "2001:db8::2", key: str = "10.5.2.0-24&fd00:5:0:2::-64") -> Lease:
    return Lease(Subnets.from_key(key), LeaseAttributes(IPv4Address(ipv4), IPv6Address(ipv6)))


def node() -> Node:
    onlink = (
        UnderlayRoute(ip_network("192.0.2.0/24")),
        UnderlayRoute(ip_network("192.0.2.64/26"), connected=False),
        UnderlayRoute(ip_network("2001:db8::/64")),
    )
    besides: frozenset[IPAddress] = frozenset({IPv4Address("198.51.100.5"), IPv6Address("2001:db8:7::5")})
    own4, own6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
    outside = IPv4Address("203.0.113.1")  # a 1:1 NAT's
    underlay = Underlay(
        "eth0", 1500, own4, own6, public_ipv4=outside, public_ipv6=own6, routes=onlink, also_own=besides
    )
    return Node("me", BOTH, underlay, Subnets.from_key("10.5.1.0-24&fd00:5:0:1::-64"), Path("/nowhere"))


def test_a_lease_like_any_other_has_no_problem() -> None:
    assert placement_problem(BOTH, lease()) == own_problem(node(), lease()) == ""
    for first_or_last in ("192.0.2.64", "192.0.2.127"):
        assert own_problem(node(), lease(first_or_last)) == "", (
            "no address of the interface is in that part of the link"
        )


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ({"ipv4": "0.1.2.3"}, "means this network"),
        ({"ipv4": "240.0.0.1"}, "reserved"),
        ({"ipv4": "255.255.255.255"}, "reserved"),
        ({"ipv4": "127.0.0.1"}, "loopback"),
        ({"ipv4": "224.0.0.1"}, "multicast"),
        ({"ipv4": "169.254.1.1"}, "link-local"),
        ({"ipv6": "fe80::1"}, "link-local"),
        ({"ipv6": "::ffff:127.0.0.1"}, "IPv4-mapped"),
        ({"ipv6": "::1"}, "loopback"),
        ({"ipv6": "ff02::1"}, "multicast"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_with_the_reason(address: dict[str, str], why: str) -> None:
    assert why in placement_problem(BOTH, lease(**address))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ({"ipv4": "192.0.2.255"}, "broadcast address of 192.0.2.0/24"),
        ({"ipv4": "192.0.2.0"}, "network address of 192.0.2.0/24"),
        ({"ipv6": "2001:db8::"}, "network address of 2001:db8::/64"),
        ({"ipv4": "192.0.2.1"}, "this node's own"),
        ({"ipv4": "203.0.113.1"}, "this node's own"),
        ({"ipv6": "2001:db8::1"}, "this node's own"),
        ({"ipv4": "198.51.100.5"}, "this node's own"),
        ({"ipv6": "2001:db8:7::5"}, "this node's own"),
    ],
)
def test_an_address_that_no_other_node_here_can_have_is_refused(address: dict[str, str], why: str) -> None:
    assert why in own_problem(node(), lease(**address))


@pytest.mark.parametrize(
    ("public", "why"),
    [
        ("192.0.2.1", ""),
        ("203.0.113.1", ""),
        ("0.0.0.0", "means this network"),
        ("127.0.0.1", "loopback"),
        ("224.0.0.5", "multicast"),
        ("192.0.2.255", "broadcast address of 192.0.2.0/24"),
        ("10.5.9.9", "lies in subnets that the overlay 10.5.0.0/16 may lease"),
        ("10.5.0.9", ""),  # the first subnet is nobody's
        ("2001:db8::1", ""),
        ("fe80::1", "link-local"),
        ("2001:db8::", "network address of 2001:db8::/64"),
        ("fd00:5:0:9::1", "lies in subnets that the overlay fd00:5::/48 may lease"),
    ],
)
def test_a_public_address_of_our_own_that_peers_would_skip_is_known(public: str, why: str) -> None:
    address = ip_address(public)
    of_family = {"public_ipv4": address} if address.version == 4 else {"public_ipv6": address}
    underlay = replace(node().underlay, **of_family)
    problem = own_public_problem(BOTH, underlay, address.version)
    assert (why in problem) if why else problem == ""


def test_an_underlay_inside_the_overlay_s_range_works_where_no_subnet_can_be_leased() -> None:
    """flannel's documented example, with nodes in 10.0.0.0/16."""
    wide = network(Network="10.0.0.0/8", SubnetLen=20, SubnetMin="10.10.0.0", SubnetMax="10.99.0.0")
    assert placement_problem(wide, lease("10.0.1.2", key="10.20.0.0-20")) == ""
    assert "lies inside the overlay" in placement_problem(wide, lease("10.30.1.2", key="10.20.0.0-20"))
    assert "lies inside the overlay" in placement_problem(wide, lease("10.5.0.7", key="10.5.0.0-20"))


WIDE = network(
    Network="192.0.0.0/8",
    SubnetLen=20,
    SubnetMin="192.10.0.0",
    SubnetMax="192.99.0.0",
    EnableIPv6=True,
    IPv6Network="2001:db8::/32",
    IPv6SubnetLen=48,
    IPv6SubnetMin="2001:db8:10::",
    IPv6SubnetMax="2001:db8:99::",
)
"""A network with bounds that covers the nodes, as flannel's documented example does."""


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("192.10.0.0-20", ""),
        ("192.99.15.0-24", ""),
        ("192.50.0.0-16", ""),
        ("192.0.2.0-25", "192.0.2.0/25 lies outside SubnetMin to SubnetMax"),
        ("192.0.2.201-32", "such as 192.0.2.1"),
        ("192.9.240.0-20", "lies outside"),
        ("192.99.16.0-24", "lies outside"),
        ("192.96.0.0-11", "lies outside"),
        ("2001:db8:10::-48", ""),
        ("2001:db8::-112", "2001:db8::/112 lies outside IPv6SubnetMin to IPv6SubnetMax"),
        ("192.10.0.0-20&2001:db8:9::-48", "lies outside IPv6"),
    ],
)
def test_a_network_that_covers_the_nodes_is_the_overlay_s_within_its_bounds_alone(key: str, why: str) -> None:
    """Wherever the lease leads, and whether or not it is this node that lies in the network."""
    here = replace(node(), network=WIDE, subnets=Subnets.from_key("192.20.0.0-20&2001:db8:20::-48"))
    problem = own_problem(here, lease("198.51.100.2", "2001:db9::2", key))
    assert (why in problem) if why else problem == ""
    elsewhere = Underlay("eth0", 1500, IPv4Address("198.51.100.1"), IPv6Address("2001:db9::1"))
    assert own_problem(replace(here, underlay=elsewhere), lease("198.51.100.2", "2001:db9::2", key)) == ""
    assert bool(placement_problem(WIDE, lease("192.0.2.2", "2001:db8::2", key))) == bool(why)


def test_new_bounds_displace_leases_in_a_network_that_covers_nodes_and_nowhere_else() -> None:
    narrower = network(Network="192.0.0.0/8", SubnetLen=20, SubnetMin="192.50.0.0", SubnetMax="192.99.0.0")
    wider = network(Network="192.0.0.0/8", SubnetLen=20, SubnetMin="192.10.0.0", SubnetMax="192.99.0.0")
    far = {"192.20.0.0-20": '{"PublicIP":"198.51.100.2"}', "192.60.0.0-20": '{"PublicIP":"198.51.100.3"}'}
    assert list(displaced(wider, narrower, far.items())) == []
    near = {**far, "192.61.0.0-20": '{"PublicIP":"192.0.2.4"}'}
    found = list(displaced(wider, narrower, near.items()))
    assert [key for key, _ in found] == ["192.20.0.0-20"]
    assert found[0][1].startswith("198.51.100.2: 192.20.0.0/20 lies outside SubnetMin to SubnetMax")
    assert list(displaced(narrower, narrower, near.items())) == []
