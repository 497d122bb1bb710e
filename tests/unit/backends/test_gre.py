from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.backend import (
    Address,
    DesiredState,
    GenericInfo,
    IpEncapsulation,
    Lease,
    LeaseAttributes,
    Link,
    Neighbour,
    NetworkConfig,
    Node,
    Published,
    Route,
    Subnets,
    Underlay,
    forwarding,
)
from pyflannel.kernel.links import LinkTable, encode_new_link, parse_link
from pyflannel.kernel.model import ForeignInfo, KernelObject, Kind
from pyflannel.kernel.port import Scope
from pyflannel.kernel.tracker import Tracker
from pyflannel.kernel.twin import TwinPort
from pyflannel.network.underlay import UnderlayRoute
from pyflannel.testing.backends import BackendPlanning
from pyflannel_backends.gre import GreBackend, GreOptions
from pyflannel_backends.host_gw import HostGatewayBackend

UNDERLAY = Underlay(
    interface="eth0",
    mtu=1500,
    ipv4=IPv4Address("192.0.2.1"),
    ipv6=IPv6Address("2001:db8::1"),
    public_ipv4=IPv4Address("192.0.2.1"),
    public_ipv6=IPv6Address("2001:db8::1"),
    routes=(
        UnderlayRoute(ip_network("0.0.0.0/0"), ip_address("192.0.2.254")),
        UnderlayRoute(ip_network("192.0.2.0/24")),
        UnderlayRoute(ip_network("2001:db8::/64")),
    ),
)
NETWORK = NetworkConfig.from_json(
    '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "gre"}}'
)
SUBNETS = Subnets(IPv4Network("10.244.1.0/24"), IPv6Network("fd00:0:0:1::/64"))
NODE = Node("node-1", NETWORK, UNDERLAY, SUBNETS)
BACKEND = GreBackend(GreOptions())
DIRECT = GreBackend(GreOptions(direct_routing=True))


class TestPlanning(BackendPlanning):
    backend = "gre"
    variants = ({}, {"Key": 4294967295, "TTL": 1}, {"DirectRouting": True})


def peer(number: int = 2, near: bool = True) -> Lease:
    ends = (f"192.0.2.{number}", f"2001:db8::{number}") if near else (f"198.51.100.{number}", f"2001:db8:1::{number}")
    subnets = Subnets(IPv4Network(f"10.244.{number}.0/24"), IPv6Network(f"fd00:0:0:{number}::/64"))
    return Lease(subnets, LeaseAttributes(IPv4Address(ends[0]), IPv6Address(ends[1]), backend_type="gre"))


def link(version: int, backend: GreBackend = BACKEND) -> Link:
    (found,) = (
        item for item in backend.plan_node(NODE) if isinstance(item, Link) and ("v6" in item.name) == (version == 6)
    )
    return found


def test_a_node_has_a_device_in_each_family_with_the_subnet_s_network_address() -> None:
    assert set(BACKEND.plan_node(NODE)) == {
        link(4),
        link(6),
        Address("flannel.gre", ip_interface("10.244.1.0/32")),
        Address("flannel-v6.gre", ip_interface("fd00:0:0:1::/128")),
        forwarding(4),
        forwarding(6),
    }
    assert [(item.name, item.mtu, item.mac) for item in (link(4), link(6))] == [
        ("flannel.gre", 1472, None),
        ("flannel-v6.gre", 1452, None),
    ]
    assert BACKEND.publish(NODE) == Published()


@pytest.mark.parametrize(
    ("version", "kind", "data"),
    [
        (
            4,
            "gre",
            {
                "IFLA_GRE_LOCAL": "192.0.2.1",
                "IFLA_GRE_REMOTE": "0.0.0.0",
                "IFLA_GRE_IKEY": 7,
                "IFLA_GRE_OKEY": 7,
                "IFLA_GRE_IFLAGS": 0x2000,
                "IFLA_GRE_OFLAGS": 0x2000,
                "IFLA_GRE_TTL": 9,
            },
        ),
        (6, "ip6gre", {18: b""}),
    ],
)
def test_what_the_kernel_is_asked_for_is_what_it_is_read_as(version: int, kind: str, data: dict[str, Any]) -> None:
    wanted = link(version, GreBackend(GreOptions(key=7, ttl=9)))
    encoded = encode_new_link(wanted, 0)
    row = parse_link(encoded, 16, len(encoded))
    assert row is not None
    assert row.kind == kind
    info = LinkTable({wanted.name: wanted}).link(row).info
    assert isinstance(info, GenericInfo)
    assert dict(info.data) == data


def test_the_tunnel_ends_at_the_interface_whatever_the_public_address() -> None:
    behind_nat = replace(NODE, underlay=replace(UNDERLAY, public_ipv4=IPv4Address("198.51.100.9")))
    assert set(BACKEND.plan_node(behind_nat)) == set(BACKEND.plan_node(NODE))


@pytest.mark.parametrize("near", [True, False])
def test_a_peer_is_behind_its_gateway_s_address_or_in_its_route(near: bool) -> None:
    lease = peer(near=near)
    ipv4, ipv6 = lease.attributes.public_ip, lease.attributes.public_ipv6
    assert ipv4 is not None
    assert ipv6 is not None
    backend = GreBackend(GreOptions(key=7, ttl=9))
    tunnel = IpEncapsulation(ipv6, 7, IPv6Address("2001:db8::1"), ttl=9, key=True)
    assert backend.plan_peer(NODE, lease) == DesiredState(
        [
            Neighbour("flannel.gre", IPv4Address("10.244.2.0"), ipv4),
            Route(IPv4Network("10.244.2.0/24"), "flannel.gre", IPv4Address("10.244.2.0"), onlink=True),
            Route(IPv6Network("fd00:0:0:2::/64"), "flannel-v6.gre", encapsulation=tunnel),
        ]
    )


def test_direct_routing_is_host_gw_on_the_link_and_the_tunnel_elsewhere() -> None:
    gateway = HostGatewayBackend(HostGatewayBackend.Options())
    assert DIRECT.plan_peer(NODE, peer()) == gateway.plan_peer(NODE, peer())
    far = peer(near=False)
    off_link = replace(UNDERLAY, routes=(UnderlayRoute(ip_network("0.0.0.0/0"), ip_address("192.0.2.254")),))
    node = replace(NODE, underlay=off_link)
    assert DIRECT.plan_peer(node, far) == BACKEND.plan_peer(node, far)


def test_what_comes_in_beside_the_tunnel_is_nobody_s_unless_there_are_direct_routes() -> None:
    assert BACKEND.tunnelled
    assert not DIRECT.tunnelled


@pytest.mark.parametrize("version", [4, 6])
def test_a_lease_without_a_family_is_no_peer_in_it(version: int) -> None:
    lease = peer()
    there = lease.attributes
    lacking = replace(there, public_ip=None) if version == 6 else replace(there, public_ipv6=None)
    plan = BACKEND.plan_peer(NODE, lease.with_attributes(lacking))
    assert {item.destination.version for item in plan if isinstance(item, Route)} == {version}


@given(st.integers(1500, 65535))
def test_the_mtu_leaves_room_for_the_outer_headers(mtu: int) -> None:
    assert BACKEND.mtu(replace(UNDERLAY, mtu=mtu)) == mtu - 28
    assert BACKEND.mtu(replace(UNDERLAY, mtu=mtu, ipv4=None)) == mtu - 48


class Kernel:
    """The twin of a node's kernel, kept by a tracker as gre plans it."""

    def __init__(self) -> None:
        self.twin = TwinPort(
            [Link("eth0", ForeignInfo("veth"), 1500)],
            addresses=[Address("eth0", ip_interface("192.0.2.1/24")), Address("eth0", ip_interface("2001:db8::1/64"))],
            sysctls={"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"},
        )
        self.tracker = Tracker(self.twin, lambda: 0.0)
        self.tracker.sweep = True

    def follow(self, backend: GreBackend, *peers: Lease) -> set[KernelObject]:
        plans = [backend.plan_node(NODE), *(backend.plan_peer(NODE, lease) for lease in peers)]
        objects = {item.key: item for plan in plans for item in plan}
        self.tracker.follow(objects)
        self.scope = Scope.of(objects.values())
        self.settle()
        return set(objects.values())

    def settle(self) -> None:
        for _ in range(5):
            self.tracker.observe(self.twin.poll())
            self.tracker.reconcile()

    def ours(self) -> set[KernelObject]:
        return set(self.twin.dump(self.scope).values())


def test_drift_is_put_right() -> None:
    kernel = Kernel()
    wanted = kernel.follow(BACKEND, peer(2), peer(3, near=False))
    assert kernel.ours() == wanted
    for item in wanted:
        if item.key[0] is not Kind.SYSCTL:
            kernel.twin.remove(item.key)
            kernel.settle()
            assert kernel.ours() == wanted


def test_another_key_makes_what_carries_it_anew() -> None:
    kernel = Kernel()
    kernel.follow(BACKEND, peer())
    kernel.twin.writes.clear()
    wanted = kernel.follow(GreBackend(GreOptions(key=8)), peer())
    assert kernel.ours() == wanted
    assert [write.new.name for write in kernel.twin.writes if isinstance(write.new, Link)] == ["flannel.gre"]


def test_a_kernel_without_gre_is_told_which_module() -> None:
    kernel = Kernel()
    kernel.twin.fail_next(Kind.LINK, errno.EOPNOTSUPP, 10)
    kernel.follow(BACKEND)
    said = " ".join(str(failure.error) for failure in kernel.tracker.failures.values())
    assert "this kernel has no gre devices: load its module ('modprobe ip_gre')" in said
    assert "this kernel has no ip6gre devices: load its module ('modprobe ip6_gre')" in said
