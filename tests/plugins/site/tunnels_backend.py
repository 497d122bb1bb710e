"""One VXLAN device for both families, which asks each packet for its tunnel; the routes say it.

The core has no field for such a device: all that makes it one is said by the kernel's attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface

from pyflannel.backend import (
    Address,
    Backend,
    Capabilities,
    DesiredState,
    GenericInfo,
    IpEncapsulation,
    KernelObject,
    Lease,
    Link,
    Neighbour,
    Node,
    PeerRejected,
    Published,
    Route,
    Underlay,
    forwarding,
    option,
    stable_mac,
)

DEVICE = "tunnels0"


@dataclass(frozen=True)
class Options:
    vni: int = option("VNI", 7, "number of the network", minimum=1, maximum=2**24 - 1)
    port: int = option("Port", 4790, "UDP port of all nodes", minimum=1, maximum=65535)


class Tunnels(Backend[Options]):
    """Packets of both families go from node to node over IPv4."""

    api_version = 1
    name = "tunnels"
    Options = Options
    capabilities = Capabilities(ipv4=True, ipv6=True)

    @property
    def tunnelled(self) -> bool:
        """All come in by the device."""
        return True

    def mtu(self, underlay: Underlay) -> int:
        """Room for Ethernet, VXLAN, UDP and IPv6."""
        return max(1280, underlay.mtu - 70)

    def _mac(self, node: Node) -> str:
        return stable_mac(f"{node.node_id} {node.subnets} {DEVICE}")

    def publish(self, node: Node) -> Published:
        """The device's address."""
        return Published({"MAC": self._mac(node)})

    def plan_node(self, node: Node) -> DesiredState:
        """The device, with the subnets' own addresses."""
        return DesiredState(self._own(node))

    def _own(self, node: Node) -> Iterator[KernelObject]:
        data = (("IFLA_VXLAN_COLLECT_METADATA", 1), ("IFLA_VXLAN_PORT", self.options.port))
        yield Link(DEVICE, GenericInfo("vxlan", None, data), self.mtu(node.underlay), self._mac(node))
        for version in node.network.versions:
            subnet = node.subnets.of(version)
            assert subnet is not None
            yield forwarding(version)
            yield Address(DEVICE, ip_interface((subnet.network_address, subnet.max_prefixlen)))

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """Who is behind the gateway, and the route with its tunnel."""
        return DesiredState(self._peer(node, peer))

    def _peer(self, node: Node, peer: Lease) -> Iterator[KernelObject]:
        data = peer.attributes.backend_data
        mac = data.get("MAC") if isinstance(data, dict) else None
        if not isinstance(mac, str) or not re.fullmatch("[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac) or int(mac[:2], 16) & 1:
            raise PeerRejected(f"BackendData.MAC is {mac!r}: must be a unicast MAC address")
        end = peer.attributes.public_ip or peer.attributes.public_ipv6
        if end is None:
            raise PeerRejected("it has no public address")
        for version in node.network.versions:
            subnet = peer.subnets.of(version)
            if subnet is not None:
                gateway = subnet.network_address
                yield Neighbour(DEVICE, gateway, mac)
                tunnel = IpEncapsulation(end, self.options.vni)
                yield Route(subnet, DEVICE, gateway, onlink=True, encapsulation=tunnel)


class Snug(Tunnels):
    """The same, with no room for what is put around a packet."""

    name = "snug"

    def mtu(self, underlay: Underlay) -> int:
        """Too much."""
        return underlay.mtu
