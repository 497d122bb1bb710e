"""vxlan, the reference backend: one VXLAN device per address family, all peers in its forwarding table.

A node is its own VTEP. For every peer the kernel gets three entries, and never has to ask anybody: the *route* sends
the peer's subnet to the subnet's own network address as a gateway on the device; a permanent *neighbour* says which
MAC address that gateway has; a permanent *FDB* entry says behind which underlay address that MAC lives. With
``DirectRouting`` a peer on the same link needs none of this, only a route through its public address.

The MAC address of our VTEP is computed from the node's identity and subnet: it survives restarts and reboots without
being written down anywhere, and no two nodes share it, not even clones with one machine id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_interface
from typing import Final

from pyflannel.backend import (
    Address,
    Backend,
    Capabilities,
    DesiredState,
    FdbEntry,
    KernelObject,
    Lease,
    Link,
    Neighbour,
    Node,
    PeerRejected,
    Published,
    Route,
    Sysctl,
    Underlay,
    UsualData,
    VxlanInfo,
    forwarding,
    option,
    route_via_underlay,
    stable_mac,
)

OVERHEAD: Final = {4: 50, 6: 70}
"""Bytes that VXLAN adds: outer IP header, UDP (8), VXLAN (8) and the inner Ethernet header (14); RFC 7348, 5."""

PORT: Final = 8472
"""The kernel's own (``vxlan.rst``), and so flannel's: older than the one that was registered, 4789."""

LONGEST_NAME: Final = 15
"""Characters of a device's name (``IFNAMSIZ``, ``linux/if.h``)."""


@dataclass(frozen=True, slots=True)
class VxlanOptions:
    """The keys of ``Backend`` in the network document."""

    vni: int = option("VNI", 1, "VXLAN network identifier", minimum=0, maximum=0xFFFFFF)
    port: int = option("Port", PORT, "UDP port of the encapsulated packets; 0: the usual one", minimum=0, maximum=65535)
    gbp: bool = option("GBP", False, "carry VXLAN group-based policy marks")
    learning: bool = option("Learning", False, "let the device learn MAC addresses from traffic", local=True)
    direct_routing: bool = option("DirectRouting", False, "route to peers on the same link without encapsulation")
    mtu: int | None = option(
        "MTU",
        None,
        "largest underlay packet to use, instead of the interface's",
        minimum=576,
        maximum=65535,
        local=True,
    )

    def __post_init__(self) -> None:
        if self.port == 0:  # flanneld lets the kernel choose then, which keeps and reports its own
            object.__setattr__(self, "port", PORT)


class VxlanBackend(Backend[VxlanOptions]):
    """Containers' packets in VXLAN (RFC 7348), as flannel's backend of this name sends them."""

    name = "vxlan"
    Options = VxlanOptions
    capabilities = Capabilities(ipv4=True, ipv6=True)

    def __init__(self, options: VxlanOptions) -> None:
        super().__init__(options)
        self._found: tuple[Node | None, Mapping[int, str]] = (None, {})

    def device(self, version: int) -> str:
        """The device's name for IP version 4 or 6."""
        return _device(self.options.vni, version)

    @property
    def tunnelled(self) -> bool:
        """Unless some peers are reached without a tunnel."""
        return not self.options.direct_routing

    def mac(self, node: Node, version: int) -> str:
        """The MAC address of this node's VTEP: locally administered, unicast (IEEE 802).

        Peers send to the one that our lease says; so that of a flanneld whose lease we took over goes on.
        """
        said = _fields(node.said.data if version == 4 else node.said.v6_data)
        mac = said.get("vtepmac")
        if said.get("vni") == self.options.vni and isinstance(mac, str) and _MAC.fullmatch(mac) and _is_unicast(mac):
            return mac.lower()
        subnet = node.subnets.of(version)
        if subnet is None:
            return stable_mac(f"pyflannel vtep {node.node_id} {self.device(version)} None")
        return _own_mac(node.node_id, self.device(version), version, int(subnet.network_address), subnet.prefixlen)

    def _own_mac(self, node: Node, version: int) -> str:
        """The same, found once for a node: each of thousands of peers is compared with it."""
        known, macs = self._found
        if known is not node:
            macs = {each: self.mac(node, each) for each in (4, 6)}
            self._found = node, macs
        return macs[version]

    def mtu(self, underlay: Underlay) -> int:
        """Of the device that a container's packets meet first: IPv4's where there is one."""
        return self._device_mtu(underlay, 4 if underlay.ipv4 is not None else 6)

    def _device_mtu(self, underlay: Underlay, version: int) -> int:
        return (self.options.mtu or underlay.mtu) - OVERHEAD[version]

    def publish(self, node: Node) -> Published:
        """Our VNI and VTEP MAC, for each family in use."""
        data = {
            version: {"VNI": self.options.vni, "VtepMAC": self.mac(node, version)}
            for version in node.network.versions
            if node.subnets.of(version) is not None
        }
        return Published(data.get(4), data.get(6))

    def plan_node(self, node: Node) -> DesiredState:
        """The devices, each with the subnet's network address, and forwarding."""
        return DesiredState(item for version in node.network.versions for item in self._own(node, version))

    def _own(self, node: Node, version: int) -> Iterator[KernelObject]:
        subnet, local = node.subnets.of(version), node.underlay.local(version)
        if subnet is None or local is None:
            return
        device = self.device(version)
        yield Link(
            name=device,
            info=VxlanInfo(
                vni=self.options.vni,
                port=self.options.port,
                local=local,
                underlay=node.underlay.interface,
                gbp=self.options.gbp,
                learning=self.options.learning,
            ),
            mtu=self._device_mtu(node.underlay, version),
            mac=self.mac(node, version),
        )
        yield Address(device, ip_interface(f"{subnet.network_address}/{subnet.max_prefixlen}"))
        yield forwarding(version)
        yield Sysctl(f"net/ipv6/conf/{device}/accept_ra", "0", optional=True)

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """Route, neighbour and FDB entry, or one direct route."""
        objects: list[KernelObject] = []
        for version in node.network.versions:
            objects += self._peer(node, peer, version)
        return DesiredState(objects)

    def usual(self, node: Node) -> Mapping[int, UsualData]:
        """Those with our VNI and a MAC address, unless how a peer is reached depends on where it is."""
        if self.options.direct_routing:
            return {}
        said = {"VNI": self.options.vni}
        return {each: UsualData(said, "VtepMAC", frozenset({self.mac(node, each)})) for each in node.network.versions}

    def _peer(self, node: Node, peer: Lease, version: int) -> tuple[KernelObject, ...]:
        subnet, remote = peer.subnets.of(version), peer.attributes.public(version)
        if subnet is None or remote is None:
            return ()
        mac = self._vtep_mac(node, peer, version)
        if self.options.direct_routing and node.underlay.is_onlink(remote):
            return (route_via_underlay(node, subnet, remote),)
        device, gateway = self.device(version), subnet.network_address
        return (
            Neighbour(device, gateway, mac),
            FdbEntry(device, mac, remote),
            Route(subnet, device, gateway, onlink=True),
        )

    def _vtep_mac(self, node: Node, peer: Lease, version: int) -> str:
        key, data = ("BackendData" if version == 4 else "BackendV6Data"), peer.attributes.data(version)
        if not isinstance(data, dict):
            raise PeerRejected(f"{key} is {data!r}, expected an object with VtepMAC")
        if len(data) == 2 and "VtepMAC" in data and "VNI" in data:  # thousands of peers say it so
            mac, vni = data["VtepMAC"], data["VNI"]
        else:
            fields = _fields(data)
            mac, vni = fields.get("vtepmac"), fields.get("vni", self.options.vni)
        if not isinstance(mac, str) or not _MAC.fullmatch(mac):
            raise PeerRejected(f"{key}.VtepMAC is {mac!r}, expected xx:xx:xx:xx:xx:xx")
        mac = mac.lower()
        if not _is_unicast(mac):
            raise PeerRejected(f"{key}.VtepMAC {mac} is not a unicast address")
        if mac == self._own_mac(node, version):
            raise PeerRejected(f"{key}.VtepMAC {mac} is this node's own")
        if vni != self.options.vni:
            raise PeerRejected(f"{key}.VNI is {vni!r}, this network's is {self.options.vni}")
        return mac


@lru_cache(maxsize=16)  # asked for again with every peer, whose objects all hold the same text
def _device(vni: int, version: int) -> str:
    """Flannel's name; another one where that is too long for a device, which flanneld can't make then."""
    name = f"flannel.{vni}" if version == 4 else f"flannel-v6.{vni}"
    return name if len(name) <= LONGEST_NAME else f"fl-v{version}.{vni}"


@lru_cache(maxsize=16)  # this, too
def _own_mac(node_id: str, device: str, version: int, number: int, length: int) -> str:
    subnet = (IPv4Network if version == 4 else IPv6Network)((number, length))
    return stable_mac(f"pyflannel vtep {node_id} {device} {subnet}")


_GROUP: Final = frozenset("13579bdfBDF")
"""What the second digit of a group's address is."""

_MAC: Final = re.compile("[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")


def _fields(data: object) -> dict[str, object]:
    """What a lease's data says, by names in any case, as Go reads them; nothing if it is no object."""
    return {str(name).lower(): value for name, value in data.items()} if isinstance(data, dict) else {}


def _is_unicast(mac: str) -> bool:
    return mac[1] not in _GROUP and mac != "00:00:00:00:00:00"
