"""macvlan: a second Ethernet address on the underlay that carries the overlay, and nothing around the packets.

Read this as an example of a whole backend. A node gets a macvlan device, which is a station of its own on the
underlay's Ethernet. For every peer the kernel is told two things: the *route* sends the peer's subnet to the subnet's
first address as a gateway on that device, and a permanent *neighbour* says which MAC address that gateway has. So
packets travel from device to device as they are, in one Ethernet frame, without ARP and without encapsulation.

What you can learn from it:

* :meth:`~MacvlanBackend.publish` writes into our lease what peers need to reach us, here a MAC address;
* :meth:`~MacvlanBackend.plan_node` and :meth:`~MacvlanBackend.plan_peer` say what the kernel should hold, as values.
  They do nothing: creating, repairing and sweeping is the core's work;
* a lease is text from another machine, so everything in it is checked, and a bad one is refused with a reason;
* :class:`~pyflannel.backend.GenericInfo` makes a device of a kind that pyflannel itself knows nothing about.

Compared with host-gw, whose routes lead to the peers' own addresses, the overlay's frames have addresses of their own
here: a switch can filter and count them, and the host's firewall sees them arrive on another interface.
"""

from __future__ import annotations

import hashlib
import re
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
    Neighbour,
    Node,
    PeerRejected,
    Published,
    Route,
    Sysctl,
    Underlay,
    forwarding,
    option,
)

__all__ = ["MacvlanBackend", "MacvlanOptions"]

_MAC: Final = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class MacvlanOptions:
    """The keys of ``Backend`` in the network document.

    The device's name is an option so that two overlays can live on one node.
    """

    device: str = option("Device", "flannel-mv", "name of the macvlan device")


class MacvlanBackend(Backend[MacvlanOptions]):
    """Containers' packets straight onto the underlay's Ethernet, from addresses of the overlay's own."""

    api_version = 1
    name = "macvlan"
    Options = MacvlanOptions
    capabilities = Capabilities(ipv4=True, ipv6=True)

    def mac(self, node: Node) -> str:
        """Our device's MAC address: unicast and locally administered (IEEE 802), the same after every restart."""
        digest = bytearray(hashlib.sha256(f"macvlan {node.node_id} {node.subnets}".encode()).digest()[:6])
        digest[0] = digest[0] & 0xFC | 0x02
        return digest.hex(":")

    def publish(self, node: Node) -> Published:
        """Our MAC address. One for both families, so it stands in ``BackendData`` alone."""
        return Published({"MAC": self.mac(node)})

    def mtu(self, underlay: Underlay) -> int:
        """The underlay's: nothing is added to a packet."""
        return underlay.mtu

    def plan_node(self, node: Node) -> DesiredState:
        """The device, an address of our subnet for each family, and forwarding."""
        return DesiredState(self._own(node))

    def _own(self, node: Node) -> Iterator[KernelObject]:
        device = self.options.device
        # Mode private: stations on one host don't talk to each other through the device; ours is alone there.
        info = GenericInfo("macvlan", node.underlay.interface, (("IFLA_MACVLAN_MODE", "private"),))
        yield Link(device, info, node.underlay.mtu, self.mac(node))
        yield Sysctl(f"net/ipv6/conf/{device}/accept_ra", "0", optional=True)
        for subnet in node.subnets.each:
            yield Address(device, ip_interface(f"{subnet.network_address}/{subnet.max_prefixlen}"))
            yield forwarding(subnet.version)

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """A neighbour and a route per family."""
        return DesiredState(self._peer(node, peer))

    def _peer(self, node: Node, peer: Lease) -> Iterator[KernelObject]:
        mac = self._mac_of(node, peer)
        for subnet in peer.subnets.each:
            public = peer.attributes.public(subnet.version)
            if public is not None and not node.underlay.is_onlink(public):
                raise PeerRejected(
                    f"{public} is not on the link of {node.underlay.interface}: macvlan needs all nodes on one "
                    "Ethernet (use vxlan where some are behind a router)"
                )
            gateway = subnet.network_address
            yield Neighbour(self.options.device, gateway, mac)
            yield Route(subnet, self.options.device, gateway, onlink=True)

    def _mac_of(self, node: Node, peer: Lease) -> str:
        """The MAC address in a peer's lease, which anybody with access to the store may have written."""
        data = peer.attributes.backend_data
        mac = data.get("MAC") if isinstance(data, dict) else None
        if not isinstance(mac, str) or not _MAC.fullmatch(mac.lower()):
            raise PeerRejected(f"BackendData is {data!r}, expected an object with MAC: xx:xx:xx:xx:xx:xx")
        mac = mac.lower()
        if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
            raise PeerRejected(f"BackendData.MAC {mac} is not a unicast address")
        if mac == self.mac(node):
            raise PeerRejected(f"BackendData.MAC {mac} is this node's own")
        return mac
