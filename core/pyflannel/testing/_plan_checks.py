"""Whether what a backend plans is the overlay's and nothing else: one check for each kind of kernel object.

The core's guard refuses what would do harm. The kit asks for more: that a plan is about the very peer whose lease asked
for it, reaches it by its own addresses, and touches no parameter or link but its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, TypeAlias

from pyflannel.backend import Lease, Node, Underlay, mpls_input
from pyflannel.kernel.model import (
    Address,
    FdbEntry,
    IpEncapsulation,
    KernelObject,
    Link,
    MplsRoute,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    Sysctl,
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
)
from pyflannel.network.lease import lies_in
from pyflannel.planning.guard import about_the_overlay

__all__ = ["check_object"]

NODE_WIDE: Final = frozenset({"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"})
"""Kernel parameters of the whole node that every backend may set."""

_FAMILIES: Final = ("ipv4", "ipv6", "mpls")
"""What the kernel has parameters of each link for."""


OnLink: TypeAlias = Address | Neighbour | FdbEntry | WireguardDevice | WireguardPeer | Qdisc
"""What is on a link of its plan, wherever it leads."""


def check_object(
    item: KernelObject, node: Node, peer: Lease | None, links: Collection[str], extra_sysctls: frozenset[str]
) -> None:
    """Fail if ``item`` is not the overlay's: planned for ``peer``, or for the node itself."""
    if isinstance(item, Link):
        _check_link(item, node.underlay)
    elif isinstance(item, Sysctl):
        _check_sysctl(item, node.underlay, links, extra_sysctls)
    elif isinstance(item, XfrmPolicy):
        _check_policy(item, node, peer)
    elif isinstance(item, Route):
        _check_route(item, node, peer, links)
    elif isinstance(item, Rule):
        _check_rule(item, node, peer, links)
    elif isinstance(item, MplsRoute):
        _check_label(item, node, peer, links)
    else:
        assert item.link in links, f"{item}: {item.link} is not a link of this plan"
        _check_on_link(item, node, peer)


def _check_on_link(item: OnLink, node: Node, peer: Lease | None) -> None:
    if isinstance(item, Address):
        network = node.network.family(item.interface.version)
        inside = network is not None and item.interface.ip in network.network
        subnet = node.subnets.of(item.interface.version)
        assert not inside or (subnet is not None and item.interface.ip in subnet), f"{item}: in another node's subnet"
    if isinstance(item, FdbEntry) and peer is not None:
        assert item.remote in (peer.attributes.public_ip, peer.attributes.public_ipv6), f"{item}: not the peer"
    if isinstance(item, WireguardPeer):
        _check_wireguard_peer(item, peer)
    if isinstance(item, FdbEntry | Neighbour):
        _check_link_layer(item, peer)


def _check_sysctl(item: Sysctl, underlay: Underlay, links: Collection[str], extra: frozenset[str]) -> None:
    own = any(item.path.startswith(f"net/{family}/conf/{name}/") for family in _FAMILIES for name in links)
    allowed = own or item == mpls_input(underlay.interface) or item.path in NODE_WIDE | extra
    assert allowed, f"{item}: not a parameter of a link of ours"


def _check_link_layer(item: FdbEntry | Neighbour, peer: Lease | None) -> None:
    if isinstance(item.mac, str):
        assert int(item.mac[:2], 16) & 1 == 0, f"{item}: not a unicast MAC address"
        assert item.mac == item.mac.lower(), f"{item}: the kernel says MAC addresses in lower case"
    else:
        public = () if peer is None else (peer.attributes.public_ip, peer.attributes.public_ipv6)
        assert item.mac in public, f"{item}: not the peer"


def _check_wireguard_peer(item: WireguardPeer, peer: Lease | None) -> None:
    assert peer is not None, f"{item}: whose is it?"
    for network in item.allowed_ips:
        subnet = peer.subnets.of(network.version)
        assert subnet is not None, f"{item}: the peer has no {network}"
        assert lies_in(network, subnet), f"{item}: the peer may speak for {subnet} only"
    if item.endpoint is not None:
        public = (peer.attributes.public_ip, peer.attributes.public_ipv6)
        assert item.endpoint.address in public, f"{item}: not the peer"


def _check_policy(item: XfrmPolicy, node: Node, peer: Lease | None) -> None:
    assert item.plain, f"{item}: only the kernel's can be more than we can say"
    assert peer is not None, f"{item}: whose is it?"
    subnet = peer.subnets.of(item.far_end.version)
    assert subnet is not None, f"{item}: the peer has no {item.far_end}"
    assert lies_in(item.far_end, subnet), f"{item}: the peer may speak for {subnet} only"
    ends = (item.tunnel_source, item.tunnel_destination)
    there, here = reversed(ends) if item.direction == "out" else ends
    assert there in (peer.attributes.public_ip, peer.attributes.public_ipv6), f"{item}: not the peer"
    assert here in (node.underlay.ipv4, node.underlay.ipv6), f"{item}: not this node"


def _check_label(route: MplsRoute, node: Node, peer: Lease | None, links: Collection[str]) -> None:
    assert route.plain, f"{route}: only the kernel's can be more than we can say"
    if route.link == node.underlay.interface:
        public = () if peer is None else (peer.attributes.public_ip, peer.attributes.public_ipv6)
        assert route.gateway in public, f"{route}: not through the peer"
    else:
        assert route.link == "lo" or route.link in links, (
            f"{route}: {route.link} is neither ours, lo nor the underlay's"
        )


def _check_link(link: Link, underlay: Underlay) -> None:
    assert link.name != underlay.interface, f"{link}: that is the underlay's interface"
    assert 0 < len(link.name.encode()) < 16, f"{link}: a name has 1 to 15 bytes (IFNAMSIZ)"
    assert link.name not in (".", ".."), f"{link}: no name for a link"
    assert not set(link.name) & set("/: \t\n"), f"{link}: no name for a link"
    assert link.marked, f"{link}: an unmarked link is nobody's"
    assert link.mtu > 0, f"{link}: no MTU"
    if link.mac is not None:
        assert int(link.mac[:2], 16) & 1 == 0, f"{link}: not a unicast MAC address"


def _check_route(route: Route, node: Node, peer: Lease | None, links: Collection[str]) -> None:
    version = route.destination.version
    network = node.network.family(version)
    assert network is not None, f"{route}: the network has no IPv{version}"
    if peer is not None:
        subnet = peer.subnets.of(version)
        assert subnet is not None, f"{route}: the peer has no IPv{version}"
        assert lies_in(route.destination, subnet), f"{route}: reaches beyond the peer's {subnet}"
    else:
        assert lies_in(route.destination, network.network), f"{route}: reaches beyond the network"
    if isinstance(route.encapsulation, IpEncapsulation):
        public = () if peer is None else (peer.attributes.public_ip, peer.attributes.public_ipv6)
        assert route.encapsulation.destination in public, f"{route}: not the peer"
    if route.link == node.underlay.interface:
        assert peer is not None, f"{route}: the underlay's link leads to peers only"
        assert route.gateway == peer.attributes.public(version), f"{route}: not through the peer"
        assert route.onlink or node.underlay.is_onlink(route.gateway), f"{route}: the gateway is not on the link"  # type: ignore[arg-type]
    elif route.link is not None:
        assert route.link in links, f"{route}: {route.link} is neither ours nor the underlay's"


def _check_rule(rule: Rule, node: Node, peer: Lease | None, links: Collection[str]) -> None:
    assert rule.version in node.network.versions, f"{rule}: the network has no IPv{rule.version}"
    ranges = [family.network for version in node.network.versions if (family := node.network.family(version))]
    assert about_the_overlay(rule, ranges if peer is None else peer.subnets.each, links), (
        f"{rule}: selects more than what is the {'overlay' if peer is None else 'peer'}'s; say where from or to, or by "
        "which link of ours, or look up a table of your own"
    )
