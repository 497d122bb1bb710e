"""The plan, which needs neither root nor network: it is values in, values out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network
from typing import Any

import pytest
from pyflannel_example_macvlan import MacvlanBackend, MacvlanOptions

from pyflannel.backend import (
    Address,
    DesiredState,
    GenericInfo,
    Lease,
    LeaseAttributes,
    Link,
    Neighbour,
    NetworkConfig,
    Node,
    PeerRejected,
    Route,
    Subnets,
    Underlay,
    UnderlayRoute,
    parse_options,
)

UNDERLAY = Underlay(
    "eth0",
    1500,
    ipv4=IPv4Address("192.0.2.1"),
    ipv6=IPv6Address("2001:db8::1"),
    public_ipv4=IPv4Address("192.0.2.1"),
    public_ipv6=IPv6Address("2001:db8::1"),
    routes=(UnderlayRoute(ip_network("192.0.2.0/24")), UnderlayRoute(ip_network("2001:db8::/64"))),
)
NODE = Node(
    "node-1",
    NetworkConfig.from_json(
        '{"Network": "10.1.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:1::/48", "Backend": {"Type": "macvlan"}}'
    ),
    UNDERLAY,
    Subnets(IPv4Network("10.1.5.0/24"), IPv6Network("fd00:1:0:5::/64")),
)
OTHER = replace(NODE, node_id="node-2", subnets=Subnets(IPv4Network("10.1.7.0/24"), IPv6Network("fd00:1:0:7::/64")))
BACKEND = MacvlanBackend(MacvlanOptions())


def lease(data: Any, public: str = "192.0.2.2") -> Lease:
    attributes = LeaseAttributes(IPv4Address(public), IPv6Address("2001:db8::2"), "macvlan", data)
    return Lease(OTHER.subnets, attributes)


def test_a_node_has_a_device_with_an_address_per_family() -> None:
    plan = set(BACKEND.plan_node(NODE))
    info = GenericInfo("macvlan", "eth0", (("IFLA_MACVLAN_MODE", "private"),))
    assert Link("flannel-mv", info, 1500, BACKEND.mac(NODE)) in plan
    assert {item for item in plan if isinstance(item, Address)} == {
        Address("flannel-mv", ip_interface("10.1.5.0/32")),
        Address("flannel-mv", ip_interface("fd00:1:0:5::/128")),
    }


def test_a_peer_is_reached_by_what_it_published() -> None:
    published = BACKEND.publish(OTHER)
    mac = published.data["MAC"]
    assert set(BACKEND.plan_peer(NODE, lease(published.data))) == {
        Neighbour("flannel-mv", IPv4Address("10.1.7.0"), mac),
        Route(IPv4Network("10.1.7.0/24"), "flannel-mv", IPv4Address("10.1.7.0"), onlink=True),
        Neighbour("flannel-mv", IPv6Address("fd00:1:0:7::"), mac),
        Route(IPv6Network("fd00:1:0:7::/64"), "flannel-mv", IPv6Address("fd00:1:0:7::"), onlink=True),
    }


def test_mac_addresses_are_unicast_ours_and_stay() -> None:
    one, two = BACKEND.mac(NODE), BACKEND.mac(OTHER)
    assert one != two
    assert one == MacvlanBackend(MacvlanOptions()).mac(NODE)
    assert int(one[:2], 16) & 3 == 2


def test_nothing_is_added_to_a_packet() -> None:
    assert BACKEND.mtu(UNDERLAY) == 1500


def test_the_device_s_name_is_an_option() -> None:
    options, unknown = parse_options(MacvlanOptions, {"device": "mv7", "Nonsense": 1})
    assert unknown == ("Nonsense",)
    plan = MacvlanBackend(options).plan_peer(NODE, lease({"MAC": "02:00:00:00:00:02"}))
    assert {item.link for item in plan if isinstance(item, Neighbour | Route)} == {"mv7"}


@pytest.mark.parametrize(
    "data",
    [
        None,
        "02:00:00:00:00:02",
        {},
        {"MAC": 7},
        {"MAC": "02:00:00:00:00"},
        {"MAC": "02:00:00:00:00:02; reboot"},
        {"MAC": "ff:ff:ff:ff:ff:ff"},
        {"MAC": "00:00:00:00:00:00"},
        {"MAC": BACKEND.mac(NODE)},
    ],
    ids=str,
)
def test_a_lease_that_can_t_be_used_is_refused_with_a_reason(data: Any) -> None:
    with pytest.raises(PeerRejected, match="BackendData"):
        BACKEND.plan_peer(NODE, lease(data))


def test_a_peer_behind_a_router_is_refused() -> None:
    with pytest.raises(PeerRejected, match="one Ethernet"):
        BACKEND.plan_peer(NODE, lease({"MAC": "02:00:00:00:00:02"}, "198.51.100.2"))


def test_planning_is_pure() -> None:
    data = BACKEND.publish(OTHER).data
    assert BACKEND.plan_peer(NODE, lease(data)) == BACKEND.plan_peer(NODE, lease(data)) != DesiredState()
