"""ipip: containers' packets inside packets between the nodes, with nothing but a second IPv4 header (RFC 2003).

One device takes all peers: it has no remote address, so the kernel sends what is routed into it to the *gateway* of the
route, and that is the peer's public address. A peer is therefore one route and nothing else, and with ``DirectRouting``
a peer on the same link gets a plain route through the underlay in its place.

The module also makes a device ``tunl0`` in every network namespace. It takes what no other device wants, is the
module's own, and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Final

from pyflannel.backend import (
    Address,
    Backend,
    Capabilities,
    DesiredState,
    GenericInfo,
    KernelObject,
    Lease,
    Link,
    Node,
    Route,
    Underlay,
    forwarding,
    option,
    route_via_underlay,
)

DEVICE: Final = "flannel.ipip"

OVERHEAD: Final = 20
"""Bytes of the outer IPv4 header, which has no options; RFC 2003, 3.1."""


@dataclass(frozen=True, slots=True)
class IpipOptions:
    """The keys of ``Backend`` in the network document."""

    direct_routing: bool = option("DirectRouting", False, "route to peers on the same link without encapsulation")


class IpipBackend(Backend[IpipOptions]):
    """IPv4 in IPv4, as flannel's backend of this name sends it."""

    name = "ipip"
    Options = IpipOptions
    capabilities = Capabilities(ipv4=True)

    @property
    def tunnelled(self) -> bool:
        """Unless some peers are reached without a tunnel."""
        return not self.options.direct_routing

    def mtu(self, underlay: Underlay) -> int:
        """The underlay's without the outer header."""
        return underlay.mtu - OVERHEAD

    def plan_node(self, node: Node) -> DesiredState:
        """The device with the subnet's network address, and forwarding."""
        return DesiredState(self._own(node))

    def _own(self, node: Node) -> Iterator[KernelObject]:
        subnet, local = node.subnets.ipv4, node.underlay.ipv4
        if subnet is None or local is None:
            return
        # As flanneld sets it up, so that its device is taken over as it is: the outer header inherits TTL, TOS and
        # "don't fragment" from the inner one.
        inherited = ("TTL", "TOS", "PMTUDISC")
        yield Link(
            name=DEVICE,
            info=GenericInfo(
                "ipip",
                data=(
                    ("IFLA_IPIP_LOCAL", str(local)),
                    ("IFLA_IPIP_REMOTE", "0.0.0.0"),  # noqa: S104 - none
                    *((f"IFLA_IPIP_{name}", 0) for name in inherited),
                ),
            ),
            mtu=self.mtu(node.underlay),
        )
        yield Address(DEVICE, ip_interface(f"{subnet.network_address}/32"))
        yield forwarding(4)

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """A route, through the device or direct."""
        subnet, remote = peer.subnets.ipv4, peer.attributes.public_ip
        if subnet is None or remote is None:
            return DesiredState()
        if self.options.direct_routing and node.underlay.is_onlink(remote):
            return DesiredState([route_via_underlay(node, subnet, remote)])
        return DesiredState([Route(subnet, DEVICE, remote, onlink=True)])
