"""gre: containers' packets in GRE (RFC 2784, RFC 2890) between the nodes, one device per address family for all peers.

Such a device has no other end of its own, so each packet must bring one along, and the families differ in how. Over
IPv4, the device's *link-layer addresses* are underlay addresses: a peer is a route to its subnet's network address as
gateway, and a permanent neighbour that gives this gateway the peer's public address. Over IPv6 the kernel does not look
there; its device is ``external``, and the *route itself* says what tunnel its packets go into.

Both put the same key into each header. Packets with another one, or none, are not this device's over IPv4; over IPv6
the one external device takes them all.
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
    IPAddress,
    IpEncapsulation,
    KernelObject,
    Lease,
    Link,
    Neighbour,
    Node,
    Route,
    Underlay,
    forwarding,
    option,
    route_via_underlay,
)

DEVICES: Final = {4: "flannel.gre", 6: "flannel-v6.gre"}

OVERHEAD: Final = {4: 28, 6: 48}
"""Bytes of the outer IP header and of GRE's with a key: 4 (RFC 2784, 2.1) and 4 (RFC 2890, 2.1)."""

GRE_KEY: Final = 0x2000
"""The flag that says that a header has a key, ``linux/if_tunnel.h``."""

COLLECT_METADATA: Final = 18
"""``IFLA_GRE_COLLECT_METADATA``, ``linux/if_tunnel.h``: each packet says what tunnel it goes into."""


@dataclass(frozen=True, slots=True)
class GreOptions:
    """The keys of ``Backend`` in the network document."""

    key: int = option("Key", 1, "what tells this overlay's packets from other GRE", minimum=0, maximum=0xFFFFFFFF)
    ttl: int = option("TTL", 64, "TTL or hop limit of the outer packets", minimum=1, maximum=255, local=True)
    direct_routing: bool = option("DirectRouting", False, "route to peers on the same link without encapsulation")


class GreBackend(Backend[GreOptions]):
    """IP in GRE, without an Ethernet header in between."""

    name = "gre"
    Options = GreOptions
    capabilities = Capabilities(ipv4=True, ipv6=True)

    @property
    def tunnelled(self) -> bool:
        """Unless some peers are reached without a tunnel."""
        return not self.options.direct_routing

    def mtu(self, underlay: Underlay) -> int:
        """Of the device that a container's packets meet first: IPv4's where there is one."""
        return underlay.mtu - OVERHEAD[4 if underlay.ipv4 is not None else 6]

    def plan_node(self, node: Node) -> DesiredState:
        """The devices, each with the subnet's network address, and forwarding."""
        return DesiredState(item for version in node.network.versions for item in self._own(node, version))

    def _own(self, node: Node, version: int) -> Iterator[KernelObject]:
        subnet, local = node.subnets.of(version), node.underlay.local(version)
        if subnet is None or local is None:
            return
        device = DEVICES[version]
        info = self._to_many(local) if version == 4 else GenericInfo("ip6gre", None, ((COLLECT_METADATA, b""),))
        yield Link(device, info, mtu=node.underlay.mtu - OVERHEAD[version])
        yield Address(device, ip_interface(f"{subnet.network_address}/{subnet.max_prefixlen}"))
        yield forwarding(version)

    def _to_many(self, local: IPAddress) -> GenericInfo:
        options = self.options
        keys = ((f"IFLA_GRE_{way}KEY", options.key) for way in "IO")
        flags = ((f"IFLA_GRE_{way}FLAGS", GRE_KEY) for way in "IO")
        ends = (("IFLA_GRE_LOCAL", str(local)), ("IFLA_GRE_REMOTE", "0.0.0.0"))  # noqa: S104 - none
        return GenericInfo("gre", None, (*ends, *keys, *flags, ("IFLA_GRE_TTL", options.ttl)))

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """A route with a neighbour or an encapsulation, or one direct route."""
        return DesiredState(item for version in node.network.versions for item in self._peer(node, peer, version))

    def _peer(self, node: Node, peer: Lease, version: int) -> Iterator[KernelObject]:
        subnet, remote = peer.subnets.of(version), peer.attributes.public(version)
        if subnet is None or remote is None:
            return
        device, gateway = DEVICES[version], subnet.network_address
        if self.options.direct_routing and node.underlay.is_onlink(remote):
            yield route_via_underlay(node, subnet, remote)
        elif version == 4:
            yield Neighbour(device, gateway, remote)
            yield Route(subnet, device, gateway, onlink=True)
        else:
            source, options = node.underlay.local(6), self.options
            tunnel = IpEncapsulation(remote, options.key, source, ttl=options.ttl, key=True)
            yield Route(subnet, device, encapsulation=tunnel)
