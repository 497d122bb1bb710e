"""A backend whose packets carry an MPLS label from node to node, made with the public API alone.

Each node says by which label it wants its packets. Peers put that one on (a route's encapsulation), and the node takes
it off (a route of its label table, to ``lo``): both halves are planned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pyflannel.backend import (
    Backend,
    Capabilities,
    DesiredState,
    KernelObject,
    Lease,
    MplsEncapsulation,
    MplsRoute,
    Node,
    PeerRejected,
    Published,
    Underlay,
    forwarding,
    mpls_input,
    option,
    route_via_underlay,
)

HIGHEST = (1 << 20) - 1


@dataclass(frozen=True)
class Options:
    label: int = option("Label", 4711, "by which this network's nodes want their packets", minimum=16, maximum=HIGHEST)


class Switched(Backend[Options]):
    """Packets switched by labels."""

    api_version = 1
    name = "switched"
    Options = Options
    capabilities = Capabilities(ipv4=True, ipv6=True, interface_public_ip=True)

    def mtu(self, underlay: Underlay) -> int:
        """A label has 4 bytes (RFC 3032, 2.1)."""
        return underlay.mtu - 4

    def publish(self, node: Node) -> Published:
        """By which label to send to us."""
        return Published({"Label": self.options.label})

    def plan_node(self, node: Node) -> DesiredState:
        """Labels are let in, and ours is taken off."""
        return DesiredState(
            [
                *map(forwarding, node.network.versions),
                mpls_input(node.underlay.interface),
                MplsRoute(self.options.label, "lo"),
            ]
        )

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """A route a family, which puts the peer's label on."""
        return DesiredState(self._routes(node, peer, MplsEncapsulation((_label(peer),))))

    def _routes(self, node: Node, peer: Lease, labels: MplsEncapsulation) -> Iterator[KernelObject]:
        for version in node.network.versions:
            subnet, gateway = peer.subnets.of(version), peer.attributes.public(version)
            if subnet is None or gateway is None:
                continue
            if not node.underlay.is_onlink(gateway):
                raise PeerRejected(f"{gateway} is not on the link of {node.underlay.interface}")
            yield replace(route_via_underlay(node, subnet, gateway), encapsulation=labels)


def _label(peer: Lease) -> int:
    data = peer.attributes.backend_data or peer.attributes.backend_v6_data
    label = data.get("Label") if isinstance(data, dict) else None
    if type(label) is not int or not 16 <= label <= HIGHEST:
        raise PeerRejected(f"BackendData.Label is {label!r}, expected 16 to {HIGHEST}")
    return label
