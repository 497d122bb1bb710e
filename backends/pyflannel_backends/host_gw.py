"""host-gw: every node is the gateway to its own subnet; no encapsulation, so all nodes must share a link.

One plain route per peer, and nothing else. A peer that is not on the underlay's link is skipped with the reason: a
route through a gateway that the kernel can't reach directly would send packets nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyflannel.backend import (
    Backend,
    Capabilities,
    DesiredState,
    KernelObject,
    Lease,
    Node,
    NoOptions,
    PeerRejected,
    Underlay,
    forwarding,
    route_via_underlay,
)


class HostGatewayBackend(Backend[NoOptions]):
    """Routes through the peers' own addresses, as flannel's backend of this name makes them."""

    name = "host-gw"
    capabilities = Capabilities(ipv4=True, ipv6=True, interface_public_ip=True)

    def mtu(self, underlay: Underlay) -> int:
        """The underlay's: nothing is added to a packet."""
        return underlay.mtu

    def plan_node(self, node: Node) -> DesiredState:
        """Forwarding."""
        return DesiredState(forwarding(version) for version in node.network.versions)

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """A route per family."""
        return DesiredState(self._routes(node, peer))

    def _routes(self, node: Node, peer: Lease) -> Iterator[KernelObject]:
        for version in node.network.versions:
            subnet, gateway = peer.subnets.of(version), peer.attributes.public(version)
            if subnet is None or gateway is None:
                continue
            if not node.underlay.is_onlink(gateway):
                raise PeerRejected(
                    f"{gateway} is not on the link of {node.underlay.interface}: host-gw needs all nodes on one link "
                    "(use vxlan, or its DirectRouting, where some are behind a router)"
                )
            yield route_via_underlay(node, subnet, gateway)
