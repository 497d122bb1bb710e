"""The overlay as this node sees it: every other lease in the store, as a peer with a plan or with a reason why not.

Feed it leases as they come from the store; it parses, checks and plans each on its own, and hands out the changes of
the desired state. One changed lease costs the planning of one peer.

The checks here hold for every backend: a lease is used only if it is readable, lies inside the network, overlaps
neither our subnet nor another peer's, and names an address that a node can have. Two leases that claim one thing (an
address range, a kernel key) are settled the same way on every node, whatever the order of arrival: a lease that fits
the network's layout beats one that does not, then the lower subnet wins; the other waits until the winner is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pyflannel.backend import Backend, Node, PeerRejected
from pyflannel.errors import MalformedError
from pyflannel.kernel.model import KernelObject, Key
from pyflannel.lease import IPNetwork, Lease, Subnets

__all__ = ["Overlay", "Peer"]

_NODE = ""
"""Owner of the kernel keys that the node needs for itself; no lease has this key."""

_Rank: TypeAlias = tuple[bool, int, int, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """One lease of the store other than ours. ``reason`` says why it is skipped; empty if it is used.

    ``lease`` is ``None`` where the record could not be read.
    """

    key: str
    lease: Lease | None
    reason: str = ""
    objects: tuple[KernelObject, ...] = ()


class Overlay:
    """The peers and the desired state that follows from them, for one node with one lease and one backend."""

    def __init__(self, backend: Backend[Any], node: Node) -> None:
        self.backend = backend
        self.node = node
        self._peers: dict[str, Peer] = {}
        self._texts: dict[str, str] = {}
        self._owners: dict[Key, str] = {}
        self._ranges = _Ranges()
        self._waiting: dict[str, set[str]] = {}
        self._changes: dict[Key, KernelObject | None] = {}
        self._touched: set[str] = set()
        own = tuple(backend.plan_node(node))
        for item in own:
            self._owners[item.key] = _NODE
            self._changes[item.key] = item
        self._own_objects = own

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Lease key to peer, for all leases but our own."""
        return self._peers

    @property
    def own_objects(self) -> tuple[KernelObject, ...]:
        """What the node needs for itself."""
        return self._own_objects

    def objects(self) -> Iterator[KernelObject]:
        """The whole desired state."""
        yield from self._own_objects
        for peer in self._peers.values():
            yield from peer.objects

    def drain(self) -> dict[Key, KernelObject | None]:
        """The changes of the desired state since the last call."""
        changes, self._changes = self._changes, {}
        return changes

    def drain_touched(self) -> set[str]:
        """The keys of leases whose peer came, went, changed or was judged anew since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def put(self, key: str, value: str) -> None:
        """Take in a new or changed lease."""
        if key == self.node.subnets.key or self._texts.get(key) == value:
            return
        self._texts[key] = value
        self._settle([key])

    def remove(self, key: str) -> None:
        """Forget a lease that was deleted or has expired."""
        if self._texts.pop(key, None) is not None:
            self._settle(self._release(key))

    def moved(self, node: Node) -> Overlay:
        """The same leases as ``node`` sees them: our place in the network has changed."""
        overlay = Overlay(self.backend, node)
        for key, value in self._texts.items():
            overlay.put(key, value)
        return overlay

    # settling claims

    def _release(self, key: str) -> list[str]:
        """Withdraw ``key``'s plan and claims; returns the leases that waited for it."""
        self._touched.add(key)
        peer = self._peers.pop(key, None)
        if peer is not None:
            for item in peer.objects:
                del self._owners[item.key]
                self._changes[item.key] = None
            if peer.lease is not None and not peer.reason:
                self._ranges.remove(peer.lease.subnets)
        return sorted(self._waiting.pop(key, ()))

    def _settle(self, keys: Iterable[str]) -> None:
        queue = list(keys)
        while queue:
            key = queue.pop()
            if key not in self._texts:
                continue
            queue.extend(self._release(key))
            peer = self._judge(key)
            rivals = self._rivals(peer) if not peer.reason else set()
            stronger = {rival for rival in rivals if rival == _NODE or self._rank(rival) < self._rank_of(peer)}
            if stronger:
                winner = min(stronger)
                self._waiting.setdefault(winner, set()).add(key)
                what = "this node itself" if winner == _NODE else f"lease {winner}"
                self._peers[key] = replace(peer, objects=(), reason=f"claims what {what} has")
                continue
            for rival in rivals:
                queue.extend(self._release(rival))
                queue.append(rival)
            self._peers[key] = peer
            if peer.lease is not None and not peer.reason:
                self._ranges.add(peer.lease.subnets, key)
            for item in peer.objects:
                self._owners[item.key] = key
                self._changes[item.key] = item

    def _rivals(self, peer: Peer) -> set[str]:
        rivals = {self._owners[item.key] for item in peer.objects if item.key in self._owners}
        if peer.lease is not None:
            rivals |= self._ranges.overlapping(peer.lease.subnets)
        return rivals

    def _rank(self, key: str) -> _Rank:
        return self._rank_of(self._peers[key])

    def _rank_of(self, peer: Peer) -> _Rank:
        subnets = peer.lease.subnets if peer.lease is not None else Subnets.from_key(peer.key)
        return (
            not self.node.network.fits(subnets),
            int(subnets.ipv4.network_address) if subnets.ipv4 else 0,
            int(subnets.ipv6.network_address) if subnets.ipv6 else 0,
            peer.key,
        )

    # judging one lease

    def _judge(self, key: str) -> Peer:
        try:
            lease = Lease.from_record(key, self._texts[key])
        except MalformedError as error:
            return Peer(key, None, str(error))
        reason = self._problem(lease)
        if reason:
            return Peer(key, lease, reason)
        usable = self._usable(lease)
        try:
            planned = self.backend.plan_peer(self.node, usable)
            return Peer(key, usable, "", tuple(planned))
        except PeerRejected as error:
            return Peer(key, lease, str(error))
        except Exception as error:  # a plugin's fault with one peer must stay with that peer
            return Peer(key, lease, f"backend {self.backend.name} failed on it: {type(error).__name__}: {error}")

    def _usable(self, lease: Lease) -> Lease:
        """The lease without the families that this network does not use."""
        network, subnets = self.node.network, lease.subnets
        if (network.ipv4 or not subnets.ipv4) and (network.ipv6 or not subnets.ipv6):
            return lease
        return Lease(
            Subnets(subnets.ipv4 if network.ipv4 else None, subnets.ipv6 if network.ipv6 else None), lease.attributes
        )

    def _problem(self, lease: Lease) -> str:
        used = [version for version in self.node.network.versions if lease.subnets.of(version) is not None]
        if not used:
            return "has no subnet of a family that this network uses"
        for version in used:
            reason = self._family_problem(lease, version)
            if reason:
                return reason
        if lease.subnets.overlaps(self.node.subnets):
            return f"overlaps this node's own subnet {self.node.subnets}"
        return self._type_problem(lease.attributes.backend_type)

    def _family_problem(self, lease: Lease, version: int) -> str:
        family, subnet = self.node.network.family(version), lease.subnets.of(version)
        if family is None or subnet is None:
            return ""
        whole = family.network
        if subnet.prefixlen < whole.prefixlen or subnet.network_address not in whole:
            return f"{subnet} lies outside the network {whole}"
        name, public = f"PublicIP{'' if version == 4 else 'v6'}", lease.attributes.public(version)
        if public is None:
            return f"has no {name}"
        if public == self.node.underlay.public(version):
            return f"{name} {public} is this node's own"
        if public.is_unspecified or public.is_loopback or public.is_multicast or int(public) == 0xFFFFFFFF:
            return f"{name} {public} is no address that a node can have"
        if public in whole:
            return f"{name} {public} lies inside the overlay {whole}, which it should carry"
        return ""

    def _type_problem(self, backend_type: str | None) -> str:
        if backend_type == self.backend.name or (backend_type is None and self.backend.capabilities.untyped_leases):
            return ""
        found = "none" if backend_type is None else repr(backend_type)
        return f"BackendType is {found}, this network's is {self.backend.name!r}"


class _Ranges:
    """Which lease holds which addresses, answering "who overlaps this?" without looking at every lease.

    Nearly all subnets have one length, so a look-up per length in use is enough; only a range shorter than some
    other needs a scan.
    """

    def __init__(self) -> None:
        self._holders: dict[IPNetwork, str] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()

    def add(self, subnets: Subnets, key: str) -> None:
        for subnet in subnets.each:
            self._holders[subnet] = key
            self._lengths[subnet.version, subnet.prefixlen] += 1

    def remove(self, subnets: Subnets) -> None:
        for subnet in subnets.each:
            if self._holders.pop(subnet, None) is not None:
                self._lengths[subnet.version, subnet.prefixlen] -= 1

    def overlapping(self, subnets: Subnets) -> set[str]:
        found = set()
        for subnet in subnets.each:
            lengths = [
                length for (version, length), count in self._lengths.items() if count and version == subnet.version
            ]
            for length in lengths:
                if length <= subnet.prefixlen:
                    found.add(self._holders.get(subnet.supernet(new_prefix=length), ""))
            if any(length > subnet.prefixlen for length in lengths):
                found.update(
                    holder
                    for other, holder in self._holders.items()
                    if other.version == subnet.version and subnet.prefixlen < other.prefixlen and other.overlaps(subnet)
                )
        return found - {""}
