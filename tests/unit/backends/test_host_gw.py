from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from tests import recordings

from pyflannel.backend import Lease, LeaseAttributes, Node, NoOptions, PeerRejected, Published, Route, Subnets, Sysctl
from pyflannel.kernel.model import KernelObject
from pyflannel.network.underlay import Underlay, UnderlayRoute
from pyflannel_backends.host_gw import HostGatewayBackend
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
BACKEND = HostGatewayBackend(NoOptions())


def recorded() -> tuple[Node, list[Lease]]:
    leases = recordings.leases("host-gw")
    (own,) = [lease for lease in leases if lease.attributes.public_ip == UNDERLAY.ipv4]
    leases.remove(own)
    return Node("node-1", recordings.network("host-gw"), UNDERLAY, own.subnets), leases


def test_the_plan_is_what_flanneld_left_in_the_kernel() -> None:
    node, leases = recorded()
    objects: set[KernelObject] = set(BACKEND.plan_node(node))
    rejected = []
    for lease in leases:
        try:
            objects |= set(BACKEND.plan_peer(node, lease))
        except PeerRejected as error:
            rejected.append((lease.key, str(error)))
    assert {item for item in objects if not isinstance(item, Sysctl)} == recordings.routes("host-gw")
    ((key, reason),) = rejected
    assert key == "172.16.113.0-24", "flanneld has no route to the one behind the router either"
    assert "198.51.100.3 is not on the link of eth0" in reason


def test_the_mtu_is_the_underlay_s_and_nothing_is_published() -> None:
    node, _ = recorded()
    assert BACKEND.mtu(UNDERLAY) == 1500
    assert BACKEND.mtu(replace(UNDERLAY, mtu=9000)) == 9000
    assert BACKEND.publish(node) == Published()


PEER = LeaseAttributes(
    public_ip=ip_address("192.0.2.2"),  # type: ignore[arg-type]
    public_ipv6=ip_address("2001:db8::2"),  # type: ignore[arg-type]
    backend_type="host-gw",
)


def test_a_route_per_family() -> None:
    network = recordings.network("vxlan-dualstack")
    own = Subnets(IPv4Network("172.16.19.0/24"), IPv6Network("2001:db8:42:1::/64"))
    its = Subnets(IPv4Network("172.16.20.0/24"), IPv6Network("2001:db8:42:2::/64"))
    assert set(BACKEND.plan_peer(Node("node-1", network, UNDERLAY, own), Lease(its, PEER))) == {
        Route(its.ipv4, "eth0", ip_address("192.0.2.2")),  # type: ignore[arg-type]
        Route(its.ipv6, "eth0", ip_address("2001:db8::2")),  # type: ignore[arg-type]
    }


def test_direct_routing_of_vxlan_makes_the_same_routes() -> None:
    node, _ = recorded()
    vxlan = VxlanBackend(VxlanOptions(direct_routing=True))
    data = {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"}
    subnets = Subnets(IPv4Network("172.16.20.0/24"))
    direct = vxlan.plan_peer(node, Lease(subnets, replace(PEER, backend_type="vxlan", backend_data=data)))
    assert set(direct) == set(BACKEND.plan_peer(node, Lease(subnets, PEER)))


@pytest.mark.parametrize("gateway", ["198.51.100.3", "192.0.3.1"])
def test_no_route_through_a_gateway_behind_a_router(gateway: str) -> None:
    node, _ = recorded()
    peer = Lease(Subnets(IPv4Network("172.16.20.0/24")), replace(PEER, public_ip=ip_address(gateway)))  # type: ignore[arg-type]
    with pytest.raises(PeerRejected, match=f"{gateway} is not on the link"):
        BACKEND.plan_peer(node, peer)
