"""Who holds which subnet and where to send its packets: longest-prefix lookup over the peers' leases.

A dictionary per prefix length, asked from the longest down; a network has one length in practice, so that is one
lookup. Addresses are bytes in network order, four or sixteen of them: nothing here depends on the family.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias

__all__ = ["Endpoint", "Peer", "PeerTable", "Subnet"]

Subnet: TypeAlias = IPv4Network | IPv6Network
Endpoint: TypeAlias = tuple[str, int]
"""Address in its usual text form, and UDP port: as :mod:`socket` has it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One subnet of the overlay and the node that holds it."""

    subnet: Subnet
    endpoint: Endpoint

    @classmethod
    def from_text(cls, subnet: str, address: str, port: int) -> Peer:
        """From a subnet in CIDR form.

        :raises ValueError: it is none.
        """
        return cls(ip_network(subnet), (address, port))


class PeerTable:
    """The peers of one node, and the node's own subnets."""

    def __init__(self, own: Iterable[Subnet] = ()) -> None:
        self.own = tuple(own)
        self._peers: dict[Subnet, Peer] = {}
        self._by_prefix: dict[tuple[int, int], dict[int, Peer]] = {}
        self._order: list[tuple[int, int, dict[int, Peer]]] = []
        self._senders: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def put(self, peer: Peer) -> None:
        """Add a peer, or replace who held its subnet."""
        self.remove(peer.subnet)
        subnet = peer.subnet
        host_bits = subnet.max_prefixlen - subnet.prefixlen
        group = self._by_prefix.get((subnet.version, host_bits))
        if group is None:
            group = self._by_prefix[subnet.version, host_bits] = {}
            self._sort()
        group[int(subnet.network_address) >> host_bits] = peer
        self._peers[subnet] = peer
        address = peer.endpoint[0]
        self._senders[address] = self._senders.get(address, 0) + 1

    def remove(self, subnet: Subnet) -> None:
        """Forget who held ``subnet``, if anybody."""
        peer = self._peers.pop(subnet, None)
        if peer is None:
            return
        key = subnet.version, subnet.max_prefixlen - subnet.prefixlen
        del self._by_prefix[key][int(subnet.network_address) >> key[1]]
        if not self._by_prefix[key]:
            del self._by_prefix[key]
            self._sort()
        address = peer.endpoint[0]
        self._senders[address] -= 1
        if not self._senders[address]:
            del self._senders[address]

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

    def is_sender(self, address: str) -> bool:
        """Whether any peer has this public address."""
        return address in self._senders

    def _sort(self) -> None:
        self._order = [
            (4 if version == 4 else 16, host_bits, self._by_prefix[version, host_bits])
            for version, host_bits in sorted(self._by_prefix)
        ]
