"""A backend that says what no in-tree one does: its routes have a table of their own, which policy rules ask.

Packets for the overlay are looked up in the table; those of them for which it has no route are unreachable, and don't
leave by a default route. A bridge stands for a device of the backend's own that queues as it is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pyflannel.backend import (
    Backend,
    Capabilities,
    DesiredState,
    GenericInfo,
    KernelObject,
    Lease,
    Link,
    Node,
    PeerRejected,
    Qdisc,
    Rule,
    Underlay,
    forwarding,
    option,
    route_via_underlay,
)

DEVICE = "detour0"


@dataclass(frozen=True)
class Options:
    table: int = option("Table", 4711, "routing table of the overlay", minimum=256, maximum=2**32 - 1)
    limit: int = option("Limit", 100, "packets that wait at most", minimum=1, maximum=1000)


class Detour(Backend[Options]):
    """host-gw, by way of a table of its own."""

    api_version = 1
    name = "detour"
    Options = Options
    capabilities = Capabilities(ipv4=True, ipv6=True, interface_public_ip=True)

    def mtu(self, underlay: Underlay) -> int:
        """The underlay's: nothing is added to a packet."""
        return underlay.mtu

    def plan_node(self, node: Node) -> DesiredState:
        """Two rules a family, and the device."""
        return DesiredState(self._own(node))

    def _own(self, node: Node) -> Iterator[KernelObject]:
        yield Link(DEVICE, GenericInfo("bridge"), node.underlay.mtu)
        yield Qdisc(DEVICE, "pfifo", (("limit", self.options.limit),))
        for version in node.network.versions:
            family = node.network.family(version)
            assert family is not None
            yield forwarding(version)
            yield Rule(version, 1000, destination=family.network, table=254, suppress_prefixlength=0)
            yield Rule(version, 1001, destination=family.network, table=self.options.table)
            yield Rule(version, 1002, destination=family.network, action="unreachable")

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """A route a family."""
        return DesiredState(self._routes(node, peer))

    def _routes(self, node: Node, peer: Lease) -> Iterator[KernelObject]:
        for version in node.network.versions:
            subnet, gateway = peer.subnets.of(version), peer.attributes.public(version)
            if subnet is None or gateway is None:
                continue
            if not node.underlay.is_onlink(gateway):
                raise PeerRejected(f"{gateway} is not on the link of {node.underlay.interface}")
            yield replace(route_via_underlay(node, subnet, gateway), table=self.options.table)
