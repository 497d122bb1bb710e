"""Who holds which subnet and where to send its packets: longest-prefix lookup over the peers' leases.

A dictionary per prefix length, asked from the longest down; a network has one length in practice, so that is one
lookup. Addresses are bytes in network order, four or sixteen of them: nothing here depends on the family.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias

__all__ = ["Peer", "PeerId", "PeerTable", "Subnet"]

Subnet: TypeAlias = IPv4Network | IPv6Network
PeerId: TypeAlias = str
"""Who a peer is: what packets are sent to and what they come from. Only the underlay port knows what it means; udp
takes the peer's public address, wireguard its public key."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One subnet of the overlay and the node that holds it."""

    subnet: Subnet
    id: PeerId

    @classmethod
    def from_text(cls, subnet: str, peer: PeerId) -> Peer:
        """From a subnet in CIDR form.

        :raises ValueError: it is none.
        """
        return cls(ip_network(subnet), peer)


class PeerTable:
    """The peers of one node, and the node's own subnets."""

    def __init__(self, own: Iterable[Subnet] = ()) -> None:
        self.own = tuple(own)
        self._peers: dict[Subnet, Peer] = {}
        self._by_prefix: dict[tuple[int, int], dict[int, Peer]] = {}
        self._order: list[tuple[int, int, dict[int, Peer]]] = []
        self._held: dict[PeerId, int] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def put(self, peer: Peer) -> Peer | None:
        """Add a peer, or replace who held its subnet; returns that one."""
        former = self.remove(peer.subnet)
        subnet = peer.subnet
        host_bits = subnet.max_prefixlen - subnet.prefixlen
        group = self._by_prefix.get((subnet.version, host_bits))
        if group is None:
            group = self._by_prefix[subnet.version, host_bits] = {}
            self._sort()
        group[int(subnet.network_address) >> host_bits] = peer
        self._peers[subnet] = peer
        self._held[peer.id] = self._held.get(peer.id, 0) + 1
        return former

    def remove(self, subnet: Subnet) -> Peer | None:
        """Forget who held ``subnet``, if anybody; returns that one."""
        peer = self._peers.pop(subnet, None)
        if peer is None:
            return None
        key = subnet.version, subnet.max_prefixlen - subnet.prefixlen
        del self._by_prefix[key][int(subnet.network_address) >> key[1]]
        if not self._by_prefix[key]:
            del self._by_prefix[key]
            self._sort()
        self._held[peer.id] -= 1
        if not self._held[peer.id]:
            del self._held[peer.id]
        return peer

    def lookup(self, address: bytes) -> Peer | None:
        """The peer whose subnet is the most specific one around ``address``."""
        number = int.from_bytes(address, "big")
        for size, host_bits, group in self._order:
            if size == len(address):
                peer = group.get(number >> host_bits)
                if peer is not None:
                    return peer
        return None

    def is_own(self, address: bytes) -> bool:
        """Whether ``address`` is in one of this node's subnets."""
        number = int.from_bytes(address, "big")
        return any(
            len(address) * 8 == subnet.max_prefixlen
            and number >> (subnet.max_prefixlen - subnet.prefixlen)
            == int(subnet.network_address) >> (subnet.max_prefixlen - subnet.prefixlen)
            for subnet in self.own
        )

    def is_peer(self, peer: PeerId) -> bool:
        """Whether ``peer`` holds any subnet."""
        return peer in self._held

    def _sort(self) -> None:
        self._order = [
            (4 if version == 4 else 16, host_bits, self._by_prefix[version, host_bits])
            for version, host_bits in sorted(self._by_prefix)
        ]
