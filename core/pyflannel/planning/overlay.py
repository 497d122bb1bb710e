"""The overlay as this node sees it: every other lease in the store, as a peer with a plan or with a reason why not.

Feed it leases as they come from the store; it parses, checks and plans each on its own, and hands out the changes of
the desired state. One changed lease costs the planning of one peer.

The checks here hold for every backend: a lease is used only if it is readable, lies inside the network, overlaps
neither our subnet nor another peer's, and names an address that a node can have. Two leases that claim one thing (an
address range, a kernel key) are settled the same way on every node, whatever the order of arrival: a lease that fits
the network's layout beats one that does not, then the lower subnet wins; the other waits until the winner is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pyflannel.backend import Backend, Node, PeerRejected
from pyflannel.errors import MalformedError
from pyflannel.kernel.model import KernelObject, Key, Link
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPNetwork, Lease, Subnets
from pyflannel.planning.guard import examined

__all__ = ["Overlay", "Peer", "Ranges", "placement_problem", "type_problem"]

_NODE = ""
"""Owner of the kernel keys that the node needs for itself; no lease has this key."""

_Rank: TypeAlias = tuple[bool, int, int, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """One lease of the store other than ours. ``reason`` says why it is skipped; empty if it is used.

    ``value`` is the lease's text: with thousands of peers the parsed form is too large to keep. :meth:`Overlay.lease`
    reads it again.
    """

    key: str
    value: str
    reason: str = ""
    objects: tuple[KernelObject, ...] = ()


class Overlay:
    """The peers and the desired state that follows from them, for one node with one lease and one backend."""

    def __init__(self, backend: Backend[Any], node: Node, extras: Iterable[KernelObject] = ()) -> None:
        self.backend = backend
        self.node = node
        self._extras = tuple(extras)
        planned = examined(backend.plan_node(node), node, _networks(node))
        self._links = frozenset(item.name for item in planned if isinstance(item, Link))
        self.own_objects = (*planned, *self._extras)
        """What the node needs for itself: what the backend plans, and ``extras``."""
        self._desired: dict[Key, KernelObject] = {item.key: item for item in self.own_objects}
        self._owners: dict[Key, str] = dict.fromkeys(self._desired, _NODE)
        self._peers: dict[str, Peer] = {}
        self.skipped = 0
        """How many of the peers can't be used."""
        self._ranges = Ranges()
        self._waiting: dict[str, set[str]] = {}
        self._changed: set[Key] = set()
        self._touched: set[str] = set()

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Lease key to peer, for all leases but our own."""
        return self._peers

    @property
    def desired(self) -> Mapping[Key, KernelObject]:
        """The whole desired state, live: it changes with the leases."""
        return self._desired

    def lease(self, key: str) -> Lease | None:
        """A peer's lease, without the families that this network does not use; ``None`` if it can't be read."""
        try:
            return self._usable(Lease.from_record(key, self._peers[key].value))
        except MalformedError:
            return None

    def drain_changed(self) -> set[Key]:
        """The keys under which the desired state changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def drain_touched(self) -> set[str]:
        """The keys of leases whose peer came, went, changed or was judged anew since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def put(self, key: str, value: str) -> None:
        """Take in a new or changed lease."""
        known = self._peers.get(key)
        if key != self.node.subnets.key and (known is None or known.value != value):
            self._settle([(key, value)])

    def remove(self, key: str) -> None:
        """Forget a lease that was deleted or has expired."""
        if key in self._peers:
            self._settle(self._release(key))

    def moved(self, node: Node) -> Overlay:
        """The same leases as ``node`` sees them: our place in the network has changed."""
        overlay = Overlay(self.backend, node, self._extras)
        for peer in self._peers.values():
            overlay.put(peer.key, peer.value)
        return overlay

    # Settling claims

    def _release(self, key: str) -> list[tuple[str, str]]:
        """Take a peer out, with its plan and claims; returns the leases that waited for it."""
        self._touched.add(key)
        peer = self._peers.pop(key, None)
        if peer is not None and peer.reason:
            self.skipped -= 1
        elif peer is not None:
            for item in peer.objects:
                item_key = item.key
                del self._owners[item_key]
                del self._desired[item_key]
                self._changed.add(item_key)
            self._ranges.remove(Subnets.from_key(key))
        waiting = [self._peers[other] for other in sorted(self._waiting.pop(key, ())) if other in self._peers]
        return [(other.key, other.value) for other in waiting]

    def _settle(self, leases: Iterable[tuple[str, str]]) -> None:
        queue = list(leases)
        while queue:
            key, value = queue.pop()
            queue.extend(self._release(key))
            peer, subnets = self._judge(key, value)
            if subnets is not None:
                rivals = self._rivals(peer, subnets)
                winner = min((rival for rival in rivals if self._rank(rival) < self._rank(key)), default=None)
                if winner is None:
                    for rival in rivals:
                        queue.append((rival, self._peers[rival].value))
                        queue.extend(self._release(rival))
                    self._claim(peer, subnets)
                else:
                    self._waiting.setdefault(winner, set()).add(key)
                    what = "this node itself" if winner == _NODE else f"lease {winner}"
                    peer = replace(peer, objects=(), reason=f"claims what {what} has")
            self._peers[key] = peer
            self.skipped += bool(peer.reason)

    def _claim(self, peer: Peer, subnets: Subnets) -> None:
        self._ranges.add(subnets, peer.key)
        for item in peer.objects:
            item_key = item.key
            self._owners[item_key] = peer.key
            self._desired[item_key] = item
            self._changed.add(item_key)

    def _rivals(self, peer: Peer, subnets: Subnets) -> set[str]:
        owners = {self._owners.get(item.key) for item in peer.objects}
        owners |= self._ranges.overlapping(subnets)
        return {owner for owner in owners if owner is not None}

    def _rank(self, key: str) -> _Rank:
        if key == _NODE:
            return (False, -1, -1, key)
        subnets = Subnets.from_key(key)
        return (
            not self.node.network.fits(self._usable_subnets(subnets)),
            int(subnets.ipv4.network_address) if subnets.ipv4 else 0,
            int(subnets.ipv6.network_address) if subnets.ipv6 else 0,
            key,
        )

    # Judging one lease

    def _judge(self, key: str, value: str) -> tuple[Peer, Subnets | None]:
        """The peer, and the subnets that it claims if it is to be used."""
        try:
            lease = Lease.from_record(key, value)
        except MalformedError as error:
            return Peer(key, value, str(error)), None
        reason = self._problem(lease)
        if reason:
            return Peer(key, value, reason), None
        try:
            usable = self._usable(lease)
            plan = self.backend.plan_peer(self.node, usable)
            return Peer(key, value, "", examined(plan, self.node, usable.subnets.each, self._links)), lease.subnets
        except PeerRejected as error:
            return Peer(key, value, str(error)), None
        except Exception as error:  # a plugin's fault with one peer must stay with that peer
            reason = f"backend {self.backend.name} failed on it: {type(error).__name__}: {error}"
            return Peer(key, value, reason), None

    def _usable(self, lease: Lease) -> Lease:
        """The lease without the families that this network does not use."""
        subnets = self._usable_subnets(lease.subnets)
        return lease if subnets == lease.subnets else Lease(subnets, lease.attributes)

    def _usable_subnets(self, subnets: Subnets) -> Subnets:
        ipv4 = subnets.ipv4 if self.node.network.ipv4 else None
        ipv6 = subnets.ipv6 if self.node.network.ipv6 else None
        return Subnets(ipv4, ipv6) if ipv4 or ipv6 else subnets

    def _problem(self, lease: Lease) -> str:
        reason = placement_problem(self.node.network, lease)
        if reason:
            return reason
        for version in self.node.network.versions:
            public = lease.attributes.public(version)
            leased = lease.subnets.of(version) is not None
            if leased and public is not None and public == self.node.underlay.public(version):
                return f"{_public_name(version)} {public} is this node's own"
        if lease.subnets.overlaps(self.node.subnets):
            return f"overlaps this node's own subnet {self.node.subnets}"
        return type_problem(lease, self.backend.name, self.backend.capabilities.untyped_leases)


def placement_problem(network: NetworkConfig, lease: Lease) -> str:
    """Why no node of ``network`` can use where ``lease`` lies or where it leads to; empty if nothing is wrong."""
    used = [version for version in network.versions if lease.subnets.of(version) is not None]
    if not used:
        return "has no subnet of a family that this network uses"
    return next(filter(None, (_family_problem(network, lease, version) for version in used)), "")


def type_problem(lease: Lease, backend: str, untyped_leases: bool) -> str:
    """Why ``lease`` is not one of a network with this backend; empty if it is."""
    backend_type = lease.attributes.backend_type
    if backend_type == backend or (backend_type is None and untyped_leases):
        return ""
    found = "none" if backend_type is None else repr(backend_type)
    return f"BackendType is {found}, this network's is {backend!r}"


def _family_problem(network: NetworkConfig, lease: Lease, version: int) -> str:
    family, subnet = network.family(version), lease.subnets.of(version)
    if family is None or subnet is None:
        return ""
    whole = family.network
    if subnet.prefixlen < whole.prefixlen or subnet.network_address not in whole:
        return f"{subnet} lies outside the network {whole}"
    name, public = _public_name(version), lease.attributes.public(version)
    if public is None:
        return f"has no {name}"
    if public.is_unspecified or public.is_loopback or public.is_multicast or int(public) == 0xFFFFFFFF:
        return f"{name} {public} is no address that a node can have"
    if public in whole:
        return f"{name} {public} lies inside the overlay {whole}, which it should carry"
    return ""


def _public_name(version: int) -> str:
    return f"PublicIP{'' if version == 4 else 'v6'}"


def _networks(node: Node) -> list[IPNetwork]:
    families = (node.network.family(version) for version in node.network.versions)
    return [family.network for family in families if family is not None]


class Ranges:
    """Which lease holds which addresses, answering "who overlaps this?" without looking at every lease.

    Nearly all subnets have one length, so a look-up per length in use is enough; only a range shorter than some
    other needs a scan. Subnets are kept as numbers, which are small and quick to look up.
    """

    def __init__(self) -> None:
        self._holders: dict[tuple[int, int], dict[int, str]] = {}
        """IP version and prefix length to: the prefix's leading bits to the lease's key."""

    def add(self, subnets: Subnets, key: str) -> None:
        """Note that the lease ``key`` holds ``subnets``."""
        for subnet in subnets.each:
            length = (subnet.version, subnet.prefixlen)
            self._holders.setdefault(length, {})[_leading(subnet, subnet.prefixlen)] = key

    def remove(self, subnets: Subnets) -> None:
        """Nobody holds ``subnets`` any more."""
        for subnet in subnets.each:
            self._holders[subnet.version, subnet.prefixlen].pop(_leading(subnet, subnet.prefixlen), None)

    def overlapping(self, subnets: Subnets) -> set[str]:
        """The keys of leases that hold any address of ``subnets``."""
        found = set()
        for subnet in subnets.each:
            for (version, length), holders in self._holders.items():
                if version != subnet.version:
                    continue
                if length <= subnet.prefixlen:
                    holder = holders.get(_leading(subnet, length))
                    if holder is not None:
                        found.add(holder)
                else:
                    shift, wanted = length - subnet.prefixlen, _leading(subnet, subnet.prefixlen)
                    found.update(holder for leading, holder in holders.items() if leading >> shift == wanted)
        return found


def _leading(subnet: IPNetwork, length: int) -> int:
    return int(subnet.network_address) >> (subnet.max_prefixlen - length)
