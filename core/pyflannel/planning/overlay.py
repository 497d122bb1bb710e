"""The overlay as this node sees it: every other lease in the store, as a peer with a plan or with a reason why not.

Feed it leases as they come from the store; it parses, checks and plans each on its own, and hands out the changes of
the desired state. One changed lease costs the planning of one peer.

A lease is used only if it is readable, lies inside the network, overlaps neither our subnet nor another peer's, and
names an address that a node can have (:mod:`~pyflannel.planning.judging`). Two leases that claim one thing (an address
range of a family in use, a kernel key) are settled the same way on every node, whatever the order of arrival: one that
has the network's layout beats one that has not, then the one that was first in the store wins, and where the store
can't say which that was, the lower subnet. The other waits *at the thing*, not for the winner: when a third one takes
that over in the same step, who waits there goes on waiting and costs nothing.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from pyflannel.backend import Backend, Node, forwarding
from pyflannel.errors import MalformedError, PeerRejected, PyflannelError
from pyflannel.kernel.model import Address, GenericInfo, KernelObject, Key, Link, Sysctl
from pyflannel.kernel.model.desired import listed
from pyflannel.kernel.packed import Plan, unpack
from pyflannel.network.change import in_force
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPNetwork, Lease, Subnets
from pyflannel.network.ranges import Ranges
from pyflannel.planning.desired import NODE, Desired, Keys
from pyflannel.planning.guard import examined, guarded
from pyflannel.planning.judging import own_problem, placement_problem, type_problem
from pyflannel.planning.spread import kept
from pyflannel.planning.transition import Transition
from pyflannel.planning.usual import Usual, usual_plans
from pyflannel.small.text import cut

__all__ = ["OfLinks", "Overlay", "Peer", "usable"]

log = logging.getLogger(__name__)

_REASON: Final = 500
"""Characters of the backend's reason to skip a peer, which may repeat what the lease says."""

_UNKNOWN: Final = 1 << 64
"""When a lease came into being of which the store can't say that: after those of which it can."""

_Rank: TypeAlias = tuple[bool, int, int, int, str]

_Claim: TypeAlias = Key | IPNetwork
"""What only one lease can have."""

OfLinks: TypeAlias = Callable[[Collection[str]], Iterable[KernelObject]]
"""What devices of these names need."""


def _nothing(links: Collection[str]) -> tuple[KernelObject, ...]:
    return ()


@dataclass(slots=True)
class _Contest:
    """A claim that several leases have: who has it now, and who waits for it, in order of rank."""

    holder: str
    waiting: list[_Rank] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Peer:
    """One lease of the store other than ours. ``reason`` says why it is skipped; empty if it is used.

    ``value`` is the lease's text: with thousands of peers the parsed form is too large to keep. :meth:`Overlay.lease`
    reads it again.
    """

    key: str
    value: str
    fault: str = ""
    """What is wrong with the lease itself."""
    plan: Plan = ()
    """Its objects, packed if they can be."""
    contest: _Contest | None = field(default=None, compare=False, repr=False)
    """What it lost against another one and waits for."""
    created: int = 0
    """Its lease's place among all in the order in which they came into being; 0 where the store does not know."""

    @property
    def objects(self) -> tuple[KernelObject, ...]:
        """What makes it reachable."""
        return unpack(self.plan)

    @property
    def reason(self) -> str:
        """Why it is skipped; empty if it is used."""
        if self.contest is None:
            return self.fault
        holder = self.contest.holder
        return f"claims what {'this node itself' if holder == NODE else f'lease {holder}'} has"


class _Judged(NamedTuple):
    """A peer as it would be if it were alone, the subnets that it claims, ``None`` if it can't be used, and the keys of
    its plan."""

    peer: Peer
    subnets: Subnets | None
    keys: Keys = Keys()


class Overlay:
    """The peers and the desired state that follows from them, for one node with one lease and one backend.

    :param last: the network's last change, by whose end peers may be late.
    :param of_links: what devices of single peers need besides what the backend plans.
    :raises PyflannelError: the backend can't plan for this node.
    """

    def __init__(
        self,
        backend: Backend[Any],
        node: Node,
        extras: Iterable[KernelObject] = (),
        last: str = "",
        of_links: OfLinks = _nothing,
    ) -> None:
        self.backend = backend
        self.node = node
        self._own_key = node.subnets.key
        self.last = last
        self._extras = tuple(extras)
        self._of_links = of_links
        self._links: frozenset[str] = frozenset()
        planned = unpack(self._planned("plan_node", lambda: backend.plan_node(node), _networks(node)))
        self._links = frozenset(item.name for item in planned if isinstance(item, Link))
        tunnelled = guarded(backend.name, "tunnelled", lambda: bool(backend.tunnelled))
        self.entrances = self._links if tunnelled else frozenset()
        """The devices by which the overlay's packets come in; empty if they may come in by others, too."""
        self.exits = self._exits(tunnelled)
        """The devices by which alone packets leave for the overlay, and nothing readable; empty if it is not so."""
        self.ipsec = any(isinstance(item, Link) and item.name in self.exits and _is_ipsec(item) for item in planned)
        """Whether one of ``exits`` encrypts by IPsec."""
        self._of_two_types = isinstance(backend, Transition)  # which judges them itself
        self._untyped = guarded(backend.name, "capabilities", lambda: bool(backend.capabilities.untyped_leases))
        bare = {node.underlay.interface} if not self.entrances and forwarding(4) in planned else ()
        self.own_objects = (*planned, *self._extras, *self._link_switches({*self._links, *bare}, planned))
        """What the node needs for itself: what the backend plans, ``extras``, and that its devices forward."""
        self._peers: dict[str, Peer] = {}
        self._ranges = Ranges()
        self._desired = Desired(self.own_objects, self._peers, self._ranges)
        self.faulty: set[str] = set()
        """The leases for which the backend failed to plan, other than by rejecting them: :meth:`retry` may help."""
        self.skipped = 0
        """How many of the peers can't be used."""
        self._contests: dict[_Claim, _Contest] = {}
        self._waits_at: dict[str, _Claim] = {}
        self._touched: set[str] = set()
        self._usual = self._find_usual()

    def _find_usual(self) -> Usual | None:
        """The plans of the usual kind, if the backend knows one and plans as it says."""
        backend, node = self.backend, self.node

        def planned(lease: Lease) -> Plan:
            return self._planned("plan_peer", lambda: backend.plan_peer(node, lease), lease.subnets.each)

        if not _is_said_of_its_plans(backend):
            return None
        try:
            usual = guarded(backend.name, "usual", lambda: dict(backend.usual(node)))
            return guarded(backend.name, "usual", lambda: usual_plans(backend.name, node, usual, planned))
        except PyflannelError as error:  # it plans for each by itself, then
            log.debug("%s", error)
            return None

    def _exits(self, tunnelled: bool) -> frozenset[str]:
        backend = self.backend
        if isinstance(backend, Transition):
            return guarded(backend.name, "tunnelled", lambda: backend.exits(self.node))
        hidden = guarded(backend.name, "capabilities", lambda: bool(backend.capabilities.encrypts))
        return self._links if tunnelled and hidden else frozenset()

    def _link_switches(self, links: Collection[str], planned: Iterable[KernelObject]) -> Iterator[Sysctl]:
        """A device may forward nothing although the node does; of IPv6 only the node's own switch counts, but it may be
        off on a device. Where packets of the overlay come in by the underlay's device, that one has to forward, too."""
        if self.node.network.ipv4 is not None:
            for link in sorted(links):
                yield Sysctl(f"net/ipv4/conf/{link}/forwarding", "1", optional=True)
        addressed = {item.link for item in planned if isinstance(item, Address) and item.interface.version == 6}
        for link in sorted(addressed.intersection(links)):
            yield Sysctl(f"net/ipv6/conf/{link}/disable_ipv6", "0", optional=True)

    def _switched(self, plan: Plan) -> Plan:
        """A peer's plan, and what its devices need besides: that they forward. What is packed has none."""
        links = () if isinstance(plan, bytes) else tuple(item.name for item in plan if isinstance(item, Link))
        if isinstance(plan, bytes) or not links:
            return plan
        needed = (*self._link_switches(links, plan), *self._of_links(links))
        return tuple({item.key: item for item in (*plan, *needed)}.values())

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Lease key to peer, for all leases but our own."""
        return self._peers

    @property
    def desired(self) -> Desired:
        """The whole desired state, live: it changes with the leases."""
        return self._desired

    @property
    def links(self) -> Iterator[Link]:
        """The overlay's devices: the node's own, then those of single peers. A plan that is packed has none."""
        for plan in self._desired.plans():
            if not isinstance(plan, bytes):
                yield from (item for item in plan if isinstance(item, Link))

    def lease(self, key: str) -> Lease | None:
        """A peer's lease, without the families that this network does not use; ``None`` if it can't be read."""
        try:
            return self._usable(self._read(key, self._peers[key].value))
        except MalformedError:
            return None

    def drain_changed(self) -> dict[Key, KernelObject | None]:
        """The keys under which the desired state changed since the last call, each with what was desired then.

        The first call begins it: an overlay is filled before anybody goes by it.
        """
        return self._desired.drain_changed()

    def drain_touched(self) -> set[str]:
        """The keys of leases whose peer came, went, changed or was judged anew since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def put(self, key: str, value: str, created: int = 0) -> None:
        """Take in a new or changed lease: the planning of one peer, and of those that lose or win by it.

        :param created: its place in the order of creation (:attr:`pyflannel.store.Record.created`).
        """
        known = self._peers.get(key)
        if key != self._own_key and (known is None or (known.value, known.created) != (value, created)):
            freed = self._release(key)
            if freed or self._contests or not self._use_usual(key, value, created):
                self._settle(self._judge(key, value, created), freed)

    def retry(self, key: str) -> None:
        """Plan anew for one of ``faulty``."""
        peer = self._peers[key]
        self._release(key)
        self._settle(self._judge(key, peer.value, peer.created), [])

    def remove(self, key: str) -> None:
        """Forget a lease that was deleted or has expired."""
        if key in self._peers:
            self._settle(None, self._release(key))

    def moved(self, node: Node, progress: Callable[[], None] = lambda: None) -> Overlay:
        """The same leases planned anew, as ``node`` sees them: our place in the network has changed, or the backend.

        :param progress: called after each lease, for this may take long.
        """
        overlay = Overlay(self.backend, node, self._extras, self.last, self._of_links)
        for peer in self._peers.values():
            overlay.put(peer.key, peer.value, peer.created)
            progress()
        return overlay

    # Settling claims

    def _release(self, key: str) -> list[_Claim]:
        """Take a peer out, with its plan and claims; returns what others wait for of these."""
        self._touched.add(key)
        self.faulty.discard(key)
        peer = self._peers.pop(key, None)
        if peer is None:
            return []
        if peer.reason:
            self.skipped -= 1
            self._leave(peer)
            return []
        subnets = self.node.network.used(Subnets.from_key(key))
        self._desired.remove(peer.plan, Keys.of(peer.plan, subnets))
        self._ranges.remove(subnets)
        return [claim for claim in self._claims(peer, subnets) if claim in self._contests] if self._contests else []

    def _settle(self, judged: _Judged | None, freed: list[_Claim]) -> None:
        """Find a place for a peer and for those that lose by it, then for those who wait for what became free."""
        losers = deque([judged] if judged is not None else [])
        offers = deque(freed)
        while losers or offers:
            each = losers.popleft() if losers else self._next_waiting(offers)
            if each is None:
                continue
            displaced = self._place(each)
            for loser in displaced:
                subnets = self.node.network.used(Subnets.from_key(loser.key))
                losers.append(_Judged(loser, subnets, Keys.of(loser.plan, subnets)))
                offers.extend(self._release(loser.key))
            if displaced:
                self._use(each)

    def _next_waiting(self, offers: deque[_Claim]) -> _Judged | None:
        """The first one in line for the first of ``offers``, out of the line and judged again."""
        contest, holder = self._contests.get(offers[0]), self._holder(offers[0])
        if contest is None or (holder is not None and self._rank_of(holder) < contest.waiting[0]):
            offers.popleft()
            return None
        peer = self._peers[contest.waiting[0][-1]]
        self._release(peer.key)
        return self._judge(peer.key, peer.value, peer.created)

    def _place(self, judged: _Judged) -> list[Peer]:
        """Note what becomes of a peer; returns those that have what it has a better right to."""
        peer, subnets, keys = judged
        rivals = {} if subnets is None else self._rivals(peer.plan, keys, subnets)
        if rivals:
            rank = self._rank(peer)
            better = next((holder for holder in rivals if self._rank_of(holder) < rank), None)
            if better is None:
                return [self._peers[holder] for holder in rivals]
            self._skip(self._wait(peer, rank, rivals[better]))
        elif subnets is None:
            self._skip(peer)
        else:
            self._use(judged)
        return []

    def _skip(self, peer: Peer) -> None:
        self._peers[peer.key] = peer
        self.skipped += 1

    def _use(self, judged: _Judged) -> None:
        peer, subnets, keys = judged
        assert subnets is not None
        key = peer.key
        self._peers[key] = peer
        self._ranges.add(subnets, key)
        self._desired.put(key, peer.plan, keys)
        if self._contests:
            for claim in self._claims(peer, subnets):
                contest = self._contests.get(claim)
                if contest is not None:
                    contest.holder = peer.key

    def _use_usual(self, key: str, value: str, created: int) -> bool:
        """Take in a lease of the usual kind, if it is one and nobody has anything of what it claims."""
        usual = self._usual.plan(key, value) if self._usual is not None else None
        if usual is None or not self._desired.is_free(usual.keys):
            return False
        for subnet in usual.subnets:
            if next(self._ranges.overlapping_leading(*subnet), None) is not None:
                return False
        self._peers[key] = Peer(key, value, "", usual.plan, created=created)
        for subnet in usual.subnets:
            self._ranges.add_leading(*subnet, key)
        self._desired.put(key, usual.plan, usual.keys)
        return True

    def _wait(self, peer: Peer, rank: _Rank, claim: _Claim) -> Peer:
        contest = self._contests.get(claim)
        if contest is None:
            contest = self._contests[claim] = _Contest(self._holder(claim) or NODE)
        insort(contest.waiting, rank)
        self._waits_at[peer.key] = claim
        return Peer(peer.key, peer.value, contest=contest, created=peer.created)

    def _leave(self, peer: Peer) -> None:
        """Take a lease that waits out of the line."""
        claim = self._waits_at.pop(peer.key, None)
        if claim is not None:
            waiting = self._contests[claim].waiting
            del waiting[bisect_left(waiting, self._rank(peer))]
            if not waiting:
                del self._contests[claim]

    @staticmethod
    def _claims(peer: Peer, subnets: Subnets) -> Iterator[_Claim]:
        yield from subnets.each
        for item in peer.objects:
            yield item.key

    def _holder(self, claim: _Claim) -> str | None:
        return self._desired.owner(claim) if isinstance(claim, tuple) else self._ranges.holder(claim)

    def _rivals(self, plan: Plan, keys: Keys, subnets: Subnets) -> dict[str, _Claim]:
        """Who has something of what a peer claims, and what: of an address range, all that they hold."""
        rivals: dict[str, _Claim] = {**self._desired.rivals(plan, keys)}
        for owner in self._ranges.overlapping(subnets):
            rivals[owner] = _common(self.node.network.used(Subnets.from_key(owner)), subnets)
        return rivals

    def _rank_of(self, holder: str) -> _Rank:
        return (False, -1, -1, -1, holder) if holder == NODE else self._rank(self._peers[holder])

    def _rank(self, peer: Peer) -> _Rank:
        subnets = Subnets.from_key(peer.key)
        return (
            not self.node.network.regular(self.node.network.used(subnets)),
            peer.created or _UNKNOWN,
            int(subnets.ipv4.network_address) if subnets.ipv4 else 0,
            int(subnets.ipv6.network_address) if subnets.ipv6 else 0,
            peer.key,
        )

    # Judging one lease

    def _judge(self, key: str, value: str, created: int) -> _Judged:
        """The peer as it would be if it were alone."""
        try:
            lease = self._read(key, value)
        except MalformedError as error:
            return _Judged(Peer(key, value, str(error), created=created), None)
        reason = (
            placement_problem(self.node.network, lease)
            or own_problem(self.node, lease)
            or ("" if self._of_two_types else type_problem(lease, self.backend.name, self._untyped))
        )
        if reason:
            return _Judged(Peer(key, value, reason, created=created), None)
        usable = self._usable(lease)
        try:
            plan = self._planned("plan_peer", lambda: self.backend.plan_peer(self.node, usable), usable.subnets.each)
            plan = self._switched(plan)
        except PyflannelError as error:  # a rejected peer, or a fault of the backend's that must stay with this peer
            if not isinstance(error, PeerRejected):
                self.faulty.add(key)
            fault = cut(str(error), _REASON) or type(error).__name__
            return _Judged(Peer(key, value, fault, created=created), None)
        return _Judged(Peer(key, value, "", plan, created=created), usable.subnets, Keys.of(plan, usable.subnets))

    def _planned(self, what: str, call: Callable[[], Iterable[KernelObject]], subnets: Iterable[IPNetwork]) -> Plan:
        name, within = self.backend.name, tuple(subnets)
        return guarded(name, what, lambda: kept(examined(name, listed(call()), self.node, within, self._links)))

    def _read(self, key: str, value: str) -> Lease:
        return in_force(Lease.from_record(key, value), self.last)

    def _usable(self, lease: Lease) -> Lease:
        return usable(self.node.network, lease)


def _is_said_of_its_plans(backend: Backend[Any]) -> bool:
    """Whether what a backend says of usual leases is about its own plans, and not about those of a class that it has
    taken all but the planning from."""
    for kind in type(backend).__mro__:
        if "usual" in vars(kind):
            return True
        if "plan_peer" in vars(kind):
            return False
    return False


def _is_ipsec(link: Link) -> bool:
    return isinstance(link.info, GenericInfo) and link.info.kind == "xfrm"


def usable(network: NetworkConfig, lease: Lease) -> Lease:
    """The lease without the families that ``network`` does not use."""
    subnets = network.used(lease.subnets)
    return lease if subnets is lease.subnets else Lease(subnets, lease.attributes)


def _networks(node: Node) -> list[IPNetwork]:
    families = (node.network.family(version) for version in node.network.versions)
    return [family.network for family in families if family is not None]


def _common(theirs: Subnets, ours: Subnets) -> IPNetwork:
    """The one of ``theirs`` that overlaps ``ours``; one does."""
    first, *others = theirs.each
    return others[0] if others and not Subnets(theirs.ipv4).overlaps(ours) else first
