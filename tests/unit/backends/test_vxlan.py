from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import recordings

from pyflannel.backend import (
    FdbEntry,
    Lease,
    LeaseAttributes,
    Link,
    Node,
    PeerRejected,
    Published,
    Route,
    Subnets,
    parse_options,
)
from pyflannel.errors import ConfigError
from pyflannel.kernel.model import KernelObject
from pyflannel.network.underlay import Underlay, UnderlayRoute
from pyflannel_backends.vxlan import VxlanBackend, VxlanOptions

UNDERLAY = Underlay(
    interface="eth0",
    mtu=1500,
    ipv4=ip_address("192.0.2.1"),  # type: ignore[arg-type]
    ipv6=ip_address("2001:db8::1"),  # type: ignore[arg-type]
    public_ipv4=ip_address("192.0.2.1"),  # type: ignore[arg-type]
    public_ipv6=ip_address("2001:db8::1"),  # type: ignore[arg-type]
    routes=(
        UnderlayRoute(ip_network("0.0.0.0/0"), ip_address("192.0.2.254")),
        UnderlayRoute(ip_network("192.0.2.0/24")),
        UnderlayRoute(ip_network("2001:db8::/64")),
    ),
)


def planned(name: str) -> tuple[Node, VxlanBackend, Lease, set[KernelObject]]:
    network = recordings.network(name)
    options, unknown = parse_options(VxlanOptions, network.backend_options)
    assert not unknown
    backend = VxlanBackend(options)
    own = next(lease for lease in recordings.leases(name) if str(lease.attributes.public_ip) == "192.0.2.1")
    node = Node("node-1", network, UNDERLAY, own.subnets)
    objects = set(backend.plan_node(node))
    for lease in recordings.leases(name):
        if lease != own:
            objects |= set(backend.plan_peer(node, lease))
    return node, backend, own, objects


@pytest.mark.parametrize("name", ["vxlan", "vxlan-directrouting", "vxlan-dualstack"])
def test_the_plan_is_what_flanneld_left_in_the_kernel(name: str) -> None:
    node, backend, _, objects = planned(name)
    macs = {backend.device(version): backend.mac(node, version) for version in (4, 6)}
    recorded_links = {
        replace(link, mac=macs[link.name]) for link in recordings.vxlan_links(name) if isinstance(link, Link)
    }
    assert {item for item in objects if isinstance(item, Link)} == recorded_links
    recorded = recordings.neighbours(name) | recordings.fdb(name) | recordings.routes(name) | recordings.addresses(name)
    ours = {item for item in objects if not isinstance(item, Link) and not hasattr(item, "path")}
    assert ours == recorded


@pytest.mark.parametrize("name", ["vxlan", "vxlan-dualstack"])
def test_what_we_publish_has_flanneld_s_form(name: str) -> None:
    node, backend, own, _ = planned(name)
    published = backend.publish(node)
    expected = {"VNI": own.attributes.backend_data["VNI"], "VtepMAC": backend.mac(node, 4)}
    assert published.data == expected
    if own.attributes.backend_v6_data is None:
        assert published.v6_data is None
    else:
        assert published.v6_data == {"VNI": 1, "VtepMAC": backend.mac(node, 6)}


def test_the_mtu_is_flanneld_s() -> None:
    assert VxlanBackend(VxlanOptions()).mtu(UNDERLAY) == 1450
    assert VxlanBackend(VxlanOptions(mtu=9000)).mtu(UNDERLAY) == 8950
    assert VxlanBackend(VxlanOptions()).mtu(replace(UNDERLAY, ipv4=None)) == 1430


@pytest.mark.parametrize("vni", [0, 1, 9999, 10000, 9999999, 10000000, 0xFFFFFF])
def test_every_vni_has_devices(vni: int) -> None:
    """A device's name has 15 characters at most, and flanneld's may be longer."""
    node, *_ = planned("vxlan-dualstack")
    links = [item for item in VxlanBackend(VxlanOptions(vni=vni)).plan_node(node) if isinstance(item, Link)]
    flanneld_s = {f"flannel.{vni}", f"flannel-v6.{vni}"}
    assert len({link.name for link in links}) == 2
    assert {name for name in flanneld_s if len(name) <= 15} <= {link.name for link in links}
    assert all(str(vni) in link.name for link in links)


def node_with(subnet: str, node_id: str = "node-1") -> Node:
    return Node(node_id, recordings.network("vxlan"), UNDERLAY, Subnets(IPv4Network(subnet)))


def test_the_mac_is_stable_and_nobody_else_s() -> None:
    backend = VxlanBackend(VxlanOptions(vni=172))
    mac = backend.mac(node_with("172.16.19.0/24"), 4)
    assert mac == backend.mac(node_with("172.16.19.0/24"), 4)
    assert int(mac[:2], 16) & 3 == 2, "locally administered, unicast"
    others = {
        backend.mac(node_with("172.16.20.0/24"), 4),
        backend.mac(node_with("172.16.19.0/24", "node-2"), 4),
        VxlanBackend(VxlanOptions(vni=1)).mac(node_with("172.16.19.0/24"), 4),
    }
    assert len(others | {mac}) == 4


PEER = LeaseAttributes(
    public_ip=ip_address("192.0.2.2"),  # type: ignore[arg-type]
    backend_type="vxlan",
    backend_data={"VNI": 172, "VtepMAC": "32:fd:9a:65:9b:e5"},
)
HOSTILE = {
    "no data": None,
    "not an object": "32:fd:9a:65:9b:e5",
    "no mac": {"VNI": 172},
    "a number": {"VNI": 172, "VtepMAC": 5},
    "too short": {"VNI": 172, "VtepMAC": "32:fd:9a:65:9b"},
    "not hex": {"VNI": 172, "VtepMAC": "32:fd:9a:65:9b:zz"},
    "multicast": {"VNI": 172, "VtepMAC": "01:00:5e:00:00:01"},
    "broadcast": {"VNI": 172, "VtepMAC": "ff:ff:ff:ff:ff:ff"},
    "zero": {"VNI": 172, "VtepMAC": "00:00:00:00:00:00"},
    "other VNI": {"VNI": 173, "VtepMAC": "32:fd:9a:65:9b:e5"},
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_unusable_peer_is_rejected_with_the_reason(data: object) -> None:
    backend = VxlanBackend(VxlanOptions(vni=172))
    peer = Lease(Subnets(IPv4Network("172.16.32.0/24")), replace(PEER, backend_data=data))
    with pytest.raises(PeerRejected, match="BackendData"):
        backend.plan_peer(node_with("172.16.19.0/24"), peer)


def test_a_peer_with_our_own_mac_is_rejected() -> None:
    backend, node = VxlanBackend(VxlanOptions(vni=172)), node_with("172.16.19.0/24")
    data = {"VNI": 172, "VtepMAC": backend.mac(node, 4).upper()}
    peer = Lease(Subnets(IPv4Network("172.16.32.0/24")), replace(PEER, backend_data=data))
    with pytest.raises(PeerRejected, match="this node's own"):
        backend.plan_peer(node, peer)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.dictionaries(st.text(), s)))
def test_no_backend_data_can_do_more_than_be_rejected(data: object) -> None:
    backend = VxlanBackend(VxlanOptions(vni=172))
    peer = Lease(Subnets(IPv4Network("172.16.32.0/24")), replace(PEER, backend_data=data))
    with pytest.raises(PeerRejected):
        backend.plan_peer(node_with("172.16.19.0/24"), peer)


def test_direct_routing_only_to_peers_on_the_link() -> None:
    backend = VxlanBackend(VxlanOptions(vni=172, direct_routing=True))
    node = node_with("172.16.19.0/24")
    near = Lease(Subnets(IPv4Network("172.16.32.0/24")), PEER)
    assert list(backend.plan_peer(node, near)) == [
        Route(IPv4Network("172.16.32.0/24"), "eth0", ip_address("192.0.2.2"))
    ]
    far = near.with_attributes(replace(PEER, public_ip=ip_address("198.51.100.3")))  # type: ignore[arg-type]
    assert FdbEntry("flannel.172", "32:fd:9a:65:9b:e5", ip_address("198.51.100.3")) in list(
        backend.plan_peer(node, far)
    )


def test_the_options_are_flannel_s() -> None:
    options, unknown = parse_options(
        VxlanOptions, {"vni": 5, "PORT": 4789, "gbp": True, "Learning": True, "directrouting": True, "MTU": 1400}
    )
    assert options == VxlanOptions(vni=5, port=4789, gbp=True, learning=True, direct_routing=True, mtu=1400)
    assert unknown == ()
    for values in ({"VNI": 1 << 24}, {"VNI": -1}, {"Port": 70000}, {"GBP": 1}, {"VNI": "1"}, {"VNI": True}):
        with pytest.raises(ConfigError, match=f"Backend.{next(iter(values))}"):
            parse_options(VxlanOptions, values)


def test_ipv6_alone_makes_one_device() -> None:
    network = replace(recordings.network("vxlan-dualstack"), ipv4=None)
    node = Node("node-1", network, UNDERLAY, Subnets(None, IPv6Network("2001:db8:42:2d::/64")))
    links = [item for item in VxlanBackend(VxlanOptions()).plan_node(node) if isinstance(item, Link)]
    assert [link.name for link in links] == ["flannel-v6.1"]
    assert links[0].mtu == 1430


def test_port_0_is_the_kernels_own() -> None:
    """What it is asked for is what it reports, or the device would never be as it should."""
    options, _ = parse_options(VxlanBackend.Options, {"Port": 0})
    assert options == VxlanBackend.Options()
    assert options.port == 8472


@pytest.mark.parametrize(
    ("said", "goes_on"),
    [
        ({"VNI": 1, "VtepMAC": "86:F1:10:af:f8:a9"}, True),
        ({"vni": 1, "vtepmac": "86:f1:10:af:f8:a9"}, True),
        ({"VNI": 2, "VtepMAC": "86:f1:10:af:f8:a9"}, False),
        ({"VNI": 1, "VtepMAC": "87:f1:10:af:f8:a9"}, False),
        ({"VNI": 1, "VtepMAC": "00:00:00:00:00:00"}, False),
        ({"VNI": 1, "VtepMAC": "86:f1:10:af:f8"}, False),
        ({"VNI": 1, "VtepMAC": 7}, False),
        ({"VtepMAC": "86:f1:10:af:f8:a9"}, False),
        (["VtepMAC"], False),
        (None, False),
    ],
)
def test_the_mac_address_that_our_lease_says_goes_on(said: Any, goes_on: bool) -> None:
    """Whatever a store says, it is one that a device can have, and that of this very device."""
    node, backend, _, _ = planned("vxlan-dualstack")
    own = backend.mac(node, 4)
    for version, published in ((4, Published(said)), (6, Published(None, said))):
        taken = replace(node, said=published)
        assert (backend.mac(taken, version) == "86:f1:10:af:f8:a9") == goes_on
        assert (backend.mac(taken, 4) == own) == (version == 6 or not goes_on)
        data = backend.publish(taken)
        assert (data.data if version == 4 else data.v6_data) == {"VNI": 1, "VtepMAC": backend.mac(taken, version)}
