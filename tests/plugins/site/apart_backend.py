"""A tunnel for each peer: its device, and all that is on it, are the peer's plan."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface

from pyflannel.backend import (
    Address,
    Backend,
    Capabilities,
    DesiredState,
    GenericInfo,
    KernelObject,
    Lease,
    Link,
    Neighbour,
    Node,
    NoOptions,
    PeerRejected,
    Route,
    Subnets,
    Underlay,
    forwarding,
    stable_mac,
)

PORT = 4790


class Apart(Backend[NoOptions]):
    """VXLAN over IPv4 between two nodes, whose number both of them get from their subnets."""

    api_version = 1
    name = "apart"
    capabilities = Capabilities(ipv4=True)

    def mtu(self, underlay: Underlay) -> int:
        """Room for Ethernet, VXLAN, UDP and IPv4."""
        return underlay.mtu - 50

    def plan_node(self, node: Node) -> DesiredState:
        """No device."""
        return DesiredState([forwarding(4)])

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """The tunnel, with the far end as a gateway."""
        return DesiredState(self._peer(node, peer))

    def _peer(self, node: Node, peer: Lease) -> Iterator[KernelObject]:
        near, far, end = node.subnets.ipv4, peer.subnets.ipv4, peer.attributes.public_ip
        if near is None or far is None or end is None:
            raise PeerRejected("its lease has no PublicIP")
        name = f"apart-{int(far.network_address):08x}"
        number = (int(near.network_address) ^ int(far.network_address)) >> 4 & 0xFFFFFF
        data = (
            ("IFLA_VXLAN_ID", number),
            ("IFLA_VXLAN_PORT", PORT),
            ("IFLA_VXLAN_LOCAL", str(node.underlay.ipv4)),
            ("IFLA_VXLAN_GROUP", str(end)),
        )
        yield Link(name, GenericInfo("vxlan", data=data), self.mtu(node.underlay), _mac(node.subnets, peer.subnets))
        yield Address(name, ip_interface((near.network_address, 32)))
        yield Neighbour(name, far.network_address, _mac(peer.subnets, node.subnets))
        yield Route(far, name, far.network_address, onlink=True)


def _mac(of: Subnets, towards: Subnets) -> str:
    return stable_mac(f"apart {of} {towards}")
