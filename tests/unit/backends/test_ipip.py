from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import recordings

from pyflannel.backend import (
    Address,
    DesiredState,
    GenericInfo,
    Lease,
    LeaseAttributes,
    Link,
    Node,
    Published,
    Route,
    Subnets,
    forwarding,
)
from pyflannel.daemon.wiring import make_backend
from pyflannel.errors import PluginError
from pyflannel.kernel.links import LinkTable, encode_new_link, parse_link
from pyflannel.kernel.model import ForeignInfo, KernelObject, Kind
from pyflannel.kernel.port import Scope
from pyflannel.kernel.tracker import Tracker
from pyflannel.kernel.twin import TwinPort
from pyflannel.network.document import NetworkConfig
from pyflannel.network.underlay import Underlay, UnderlayRoute
from pyflannel.testing.backends import BackendPlanning
from pyflannel_backends.host_gw import HostGatewayBackend
from pyflannel_backends.ipip import IpipBackend, IpipOptions

UNDERLAY = Underlay(
    interface="eth0",
    mtu=1500,
    ipv4=IPv4Address("192.0.2.1"),
    public_ipv4=IPv4Address("192.0.2.1"),
    routes=(
        UnderlayRoute(ip_network("0.0.0.0/0"), ip_address("192.0.2.254")),
        UnderlayRoute(ip_network("192.0.2.0/24")),
    ),
)
NODE = Node("node-1", recordings.network("host-gw"), UNDERLAY, Subnets(IPv4Network("172.16.20.0/24")))
BACKEND = IpipBackend(IpipOptions())
DIRECT = IpipBackend(IpipOptions(direct_routing=True))


class TestPlanning(BackendPlanning):
    backend = "ipip"
    variants = ({}, {"DirectRouting": True})


def peer(public_ip: str, number: int = 30) -> Lease:
    attributes = LeaseAttributes(public_ip=IPv4Address(public_ip), backend_type="ipip")
    return Lease(Subnets(IPv4Network(f"172.16.{number}.0/24")), attributes)


def link(node: Node = NODE) -> Link:
    (found,) = (item for item in BACKEND.plan_node(node) if isinstance(item, Link))
    return found


def test_a_node_has_one_device_with_the_subnet_s_network_address() -> None:
    assert set(BACKEND.plan_node(NODE)) == {
        link(),
        Address("flannel.ipip", ip_interface("172.16.20.0/32")),
        forwarding(4),
    }
    assert (link().name, link().mtu, link().mac) == ("flannel.ipip", 1480, None)
    assert isinstance(link().info, GenericInfo)
    assert BACKEND.publish(NODE) == Published(), "flanneld's lease has no data either"


def test_the_kernel_is_asked_for_flanneld_s_device() -> None:
    """Encoded, and read as the kernel's own: local address, no remote, everything else from the inner packet."""
    encoded = encode_new_link(link(), 0)
    row = parse_link(encoded, 16, len(encoded))
    assert row is not None
    assert row.kind == "ipip"
    info = LinkTable({"flannel.ipip": link()}).link(row).info
    assert isinstance(info, GenericInfo)
    assert dict(info.data) == {
        "IFLA_IPIP_LOCAL": "192.0.2.1",
        "IFLA_IPIP_REMOTE": "0.0.0.0",
        "IFLA_IPIP_TTL": 0,
        "IFLA_IPIP_TOS": 0,
        "IFLA_IPIP_PMTUDISC": 0,
    }


def test_the_tunnel_ends_at_the_interface_whatever_the_public_address() -> None:
    behind_nat = replace(UNDERLAY, public_ipv4=IPv4Address("198.51.100.9"))
    assert link(replace(NODE, underlay=behind_nat)) == link()


@pytest.mark.parametrize("address", ["192.0.2.2", "198.51.100.3"])
def test_a_peer_is_a_route_to_its_public_address_through_the_device(address: str) -> None:
    lease = peer(address)
    assert BACKEND.plan_peer(NODE, lease) == DesiredState(
        [Route(IPv4Network("172.16.30.0/24"), "flannel.ipip", IPv4Address(address), onlink=True)]
    )


def test_direct_routing_is_host_gw_on_the_link_and_the_tunnel_elsewhere() -> None:
    gateway = HostGatewayBackend(HostGatewayBackend.Options())
    assert DIRECT.plan_peer(NODE, peer("192.0.2.2")) == gateway.plan_peer(NODE, peer("192.0.2.2"))
    assert DIRECT.plan_peer(NODE, peer("198.51.100.3")) == BACKEND.plan_peer(NODE, peer("198.51.100.3"))


def test_a_lease_without_ipv4_is_no_peer() -> None:
    lease = peer("192.0.2.2")
    assert BACKEND.plan_peer(NODE, lease.with_attributes(replace(lease.attributes, public_ip=None))) == DesiredState()


@given(st.integers(576, 65535))
def test_the_mtu_leaves_room_for_the_outer_header(mtu: int) -> None:
    assert BACKEND.mtu(replace(UNDERLAY, mtu=mtu)) == mtu - 20


def test_it_carries_no_ipv6() -> None:
    network = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "ipip"}}'
    with pytest.raises(PluginError, match="backend 'ipip' can't carry IPv6"):
        make_backend(NetworkConfig.from_json(network))


class Kernel:
    """The twin of a node's kernel, kept by a tracker as ipip plans it."""

    def __init__(self) -> None:
        self.twin = TwinPort(
            [Link("eth0", ForeignInfo("veth"), 1500)],
            addresses=[Address("eth0", IPv4Interface("192.0.2.1/24"))],
            sysctls={"net/ipv4/ip_forward": "0"},
        )
        self.tracker = Tracker(self.twin, lambda: 0.0)
        self.tracker.sweep = True

    def follow(self, node: Node, *peers: Lease) -> None:
        objects = [*BACKEND.plan_node(node), *(item for lease in peers for item in BACKEND.plan_peer(node, lease))]
        self.tracker.follow({item.key: item for item in objects})
        self.settle()

    def settle(self) -> None:
        for _ in range(5):
            self.tracker.observe(self.twin.poll())
            self.tracker.reconcile()

    def ours(self) -> set[KernelObject]:
        scope = Scope(frozenset({"flannel.ipip"}), frozenset({"net/ipv4/ip_forward"}), {"flannel.ipip": link()})
        return set(self.twin.dump(scope).values())


def test_drift_is_put_right() -> None:
    kernel = Kernel()
    kernel.follow(NODE, peer("192.0.2.2"), peer("198.51.100.3", 31))
    before = kernel.ours()
    assert len(before) == 5
    for item in before:
        if item.key[0] is not Kind.SYSCTL:
            kernel.twin.remove(item.key)
            kernel.settle()
            assert kernel.ours() == before


def test_flanneld_s_device_is_kept_and_marked() -> None:
    kernel = Kernel()
    kernel.twin.put(replace(link(), marked=False))
    kernel.follow(NODE)
    assert kernel.twin.links["flannel.ipip"].marked
    assert [write.old for write in kernel.twin.writes if write.key[0] is Kind.LINK] == [replace(link(), marked=False)]


def test_another_underlay_address_makes_the_device_anew_with_all_its_routes() -> None:
    kernel = Kernel()
    kernel.follow(NODE, peer("192.0.2.2"))
    moved = replace(NODE, underlay=replace(UNDERLAY, ipv4=IPv4Address("192.0.2.77")))
    kernel.follow(moved, peer("192.0.2.2"))
    assert link(moved) in kernel.ours()
    assert set(BACKEND.plan_peer(NODE, peer("192.0.2.2"))) <= kernel.ours()


def test_a_kernel_without_ipip_is_told_with_what_else_there_is() -> None:
    kernel = Kernel()
    kernel.twin.fail_next(Kind.LINK, errno.EOPNOTSUPP, 5)
    kernel.follow(NODE)
    (failure,) = kernel.tracker.failures.values()
    said = str(failure.error)
    assert "this kernel has no ipip devices: load its module ('modprobe ipip')" in said
    assert "or set another Backend.Type in the network config (host-gw needs no module, udp just tun)" in said
