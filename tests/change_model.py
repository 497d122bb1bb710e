"""A model of a network change: every state that nodes can get into, in every order of events.

A state of the model (a *world*) is the document, and for each node what it has seen of it, what its kernel receives on,
by which settings it sends to each other node, what its lease says, what it has seen of the others' leases, and which of
its packets are still on their way. Every step that any of them can take, in any order, is taken; so a node may be
arbitrarily late in everything. What decides in each step are the functions under test. Of time only one thing is known:
a packet arrives within the grace.

Four nodes that may go back at any moment have tens of millions of worlds. Four things make that a matter of seconds,
and none of them leaves out what could be wrong:

- A node's own state, of which there are some thousands, has a number; what it may do next is worked out once for each
  number and event. A world is those numbers side by side in one integer, and steps are taken for many worlds at a time.
- Nodes have no names: no rule asks which node is which. So of the worlds that differ only in the order of the nodes (24
  of them, with four nodes) the one with the least integer stands for all. Whatever one of them can do, or has wrong,
  the others have too.
- The document never returns to what it was. So worlds are gone through document by document, and those of one document
  are known for new or old among themselves.
- What makes no difference any more is not kept apart: that a packet has arrived, before somebody has waited for it; and
  what a node has seen of the others' leases, when it goes back and heeds nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain, permutations, product
from operator import or_
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyflannel.network import change as rules
from pyflannel.network.change import NetworkChange, Phase, Step

__all__ = ["ABORTED", "DONE", "Explored", "explore"]

DONE, ABORTED = "done", "aborted"
"""The document after the change: with the new settings, or with the former ones again."""

ABSENT = "absent"
"""What a node without a lease has seen and said."""

View: TypeAlias = "Phase | str"
Said: TypeAlias = "Step | str | None"
Worlds: TypeAlias = NDArray[np.uint64]
Numbers: TypeAlias = NDArray[np.int32]

CHANGE: Final = NetworkChange("0123456789abcdef", Phase.PREPARE, {})
AFTER: Final[Mapping[View, View]] = {
    Phase.PREPARE: Phase.SWITCH,
    Phase.SWITCH: Phase.RETIRE,
    Phase.RETIRE: DONE,
    Phase.BACK: ABORTED,
}
DOCUMENTS: Final[tuple[View, ...]] = (Phase.PREPARE, Phase.SWITCH, Phase.RETIRE, DONE, Phase.BACK, ABORTED)
"""No document comes after one that stands behind it here."""
SAID: Final[tuple[Said, ...]] = (ABSENT, None, *Step)


class Node(NamedTuple):
    """One node. ``sends`` and ``seen`` have an item for each other node, in the order in which those stand.

    ``sends``: by the new settings or the former, ``None``: not at all, for its lease was not seen yet.
    """

    view: View
    old: bool
    new: bool
    sends: tuple[bool | None, ...]
    step: Said
    seen: tuple[Said, ...]
    graced: bool
    here: bool
    """Whether it was there before, or has said that it is in place: what is sent to it must arrive."""
    flies: int
    """By which settings packets of its own may be on their way: the sum of ``OLD`` and ``NEW``."""

    def reordered(self, order: tuple[int, ...]) -> Node:
        """The same when the others stand in another order."""
        return self._replace(sends=tuple(self.sends[n] for n in order), seen=tuple(self.seen[n] for n in order))


OLD, NEW, HERE = 1, 2, 4
_SIDES: Final[Mapping[bool | None, int]] = {None: 0, False: OLD, True: NEW}


def ways(sends: Iterable[bool | None]) -> int:
    """By which settings is sent."""
    return reduce(or_, (_SIDES[side] for side in sends), 0)


def step_of(said: Said) -> Step | None:
    return said if isinstance(said, Step) else None


def with_item(items: tuple[Any, ...], number: int, value: object) -> tuple[Any, ...]:
    return (*items[:number], value, *items[number + 1 :])


# What one node does ---------------------------------------------------------------------------------------------------


def wanted(node: Node) -> tuple[bool, bool, dict[int, bool]]:
    """What follows from a node's view: receive by the former settings, by the new, and how to send to its peers."""
    others = [n for n, said in enumerate(node.seen) if said != ABSENT]
    if not isinstance(node.view, Phase):
        return node.view == ABORTED, node.view == DONE, dict.fromkeys(others, node.view == DONE)
    old, new = rules.receives(node.view, node.graced)
    sends = {n: rules.sends_new(node.view, step_of(node.seen[n]), step_of(node.step)) for n in others}
    return old, new, sends


def _receiving_more(node: Node, old: bool, new: bool, coarse: bool) -> Iterator[Node]:
    missing_old, missing_new = old and not node.old, new and not node.new
    if coarse and missing_old and missing_new:
        yield node._replace(old=True, new=True)
        return
    if missing_old:
        yield node._replace(old=True)
    if missing_new:
        yield node._replace(new=True)


def _sending_otherwise(node: Node, sends: dict[int, bool], coarse: bool) -> Iterator[Node]:
    different = [other for other, side in sends.items() if side != node.sends[other]]
    if different and coarse:
        yield _sending(node, tuple(sends.get(n, side) for n, side in enumerate(node.sends)))
        return
    for other in different:
        yield _sending(node, with_item(node.sends, other, sends[other]))


def _sending(node: Node, sends: tuple[bool | None, ...]) -> Node:
    return node._replace(sends=sends, flies=node.flies | ways(sends))


def own_moves(node: Node, coarse: bool) -> Iterator[Node]:
    """What a node may do next: receive more, then send otherwise, then receive less, then say so.

    ``coarse``: what its kernel gets at one time is one step.
    """
    if node.view == ABSENT:
        return
    old, new, sends = wanted(node)
    receiving = list(_receiving_more(node, old, new, coarse))
    sending = list(_sending_otherwise(node, sends, coarse))
    if receiving or sending:
        yield from receiving or sending
        return
    if (node.old, node.new) != (old, new):
        yield node._replace(old=old, new=new)
        return
    if not isinstance(node.view, Phase):
        return
    now = step_of(node.step)
    step = rules.due_step(node.view, in_place=True, all_new=all(sends.values()), graced=node.graced, now=now)
    if step != node.step:
        yield node._replace(step=step, here=True)


def landed(node: Node) -> Node:
    """A node that has switched: what it sent by the former settings before that has arrived."""
    arrived = rules.all_switched([step_of(node.step)]) and not ways(node.sends) & OLD
    return node._replace(flies=node.flies & ~OLD) if arrived else node


def graced(node: Node) -> Node | None:
    """A node for which the grace is over, if it has begun; on the way back what it has sent itself has arrived then."""
    old, new, sends = wanted(node)
    if node.graced or (node.old, node.new) != (old, new) or any(side != node.sends[n] for n, side in sends.items()):
        return None
    if node.view is Phase.RETIRE and rules.all_switched(step_of(said) for said in node.seen if said != ABSENT):
        return node._replace(graced=True)
    return node._replace(graced=True, flies=ways(node.sends)) if node.view is Phase.BACK else None


def forgetting(node: Node) -> Node:
    """A node that has seen how it ends: what it has seen of others' leases matters no more, but that they are there."""
    over = node.view == DONE or (node.view == ABORTED and node.step is Step.REVERTED)
    if over or (node.view is Phase.BACK and _heeds_nobody(Phase.BACK, step_of(node.step))):
        return node._replace(seen=tuple(said if said == ABSENT else None for said in node.seen))
    return node


def _heeds_nobody(phase: Phase, own: Step | None) -> bool:
    """Whether it makes no difference to a node what its peers say, by the rule as it is."""
    return len({rules.sends_new(phase, peer, own) for peer in (None, *Step)}) == 1


def seeing(node: Node, event: tuple[Any, ...]) -> Node | None:
    """A node that gets to see the document, or another node's lease; ``None`` if it has."""
    if node.view == ABSENT:
        return None
    if len(event) == 1:
        (view,) = event
        return None if node.view == view else forgetting(node._replace(view=view, graced=False))
    other, said = event
    found = forgetting(node._replace(seen=with_item(node.seen, other, said)))
    return None if found == node else found


def first(size: int, joiners: int) -> list[Node]:
    """Nodes that run by the former settings, and others that have no lease yet."""
    there = size - joiners
    seen: tuple[Said, ...] = (None,) * there + (ABSENT,) * joiners
    nodes = []
    for number in range(size):
        others = (*seen[:number], *seen[number + 1 :])
        if number < there:
            sends = tuple(None if said == ABSENT else False for said in others)
            nodes.append(Node(ABORTED, True, False, sends, None, others, False, True, OLD))
        else:
            unseen = (ABSENT,) * len(others)
            nodes.append(Node(ABSENT, False, False, (None,) * len(others), ABSENT, unseen, False, False, 0))
    return nodes


# All of them, by number -----------------------------------------------------------------------------------------------


@dataclass
class Table:
    """The states of single nodes, by number, and what each may come to; filled in as it is asked for."""

    size: int
    coarse: bool
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        others = range(self.size - 1)
        self.orders = list(permutations(others))
        self.events: list[tuple[Any, ...]] = [*((view,) for view in DOCUMENTS), *product(others, SAID)]
        self._numbers: dict[Node, int] = {}
        self._known: dict[tuple[object, int], Numbers] = {}
        self._facts: dict[str, list[int]] = {}

    def number(self, node: Node) -> int:
        found = self._numbers.get(node)
        if found is None:
            found = self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return found

    def each(self, what: object, work_out: Callable[[Node], int | None], numbers: Numbers) -> Numbers:
        """For each of these states what ``work_out`` makes of it, -1 for nothing; worked out once.

        :param what: tells one such question from another.
        """
        known = self._known.setdefault((what, 0), np.full(1024, -2, np.int32))
        if len(known) < len(self.nodes):
            known = np.concatenate([known, np.full(len(self.nodes), -2, np.int32)])
            self._known[what, 0] = known
        found = known[numbers]
        if len(found) and found.min() == -2:
            for number in set(numbers[found == -2].tolist()):
                answer = work_out(self.nodes[number])
                known[number] = -1 if answer is None else answer
            found = known[numbers]
        return found

    def moved(self, numbers: Numbers, which: int) -> Numbers:
        """What the states come to by the first, second, third move that is open to them."""

        def move(node: Node) -> int | None:
            open_to_it = list(own_moves(node, self.coarse))
            return self.number(open_to_it[which]) if which < len(open_to_it) else None

        return self.each(("moved", which), move, numbers)

    def seen(self, numbers: Numbers, event: tuple[Any, ...]) -> Numbers:
        def see(node: Node) -> int | None:
            found = seeing(node, event)
            return None if found is None else self.number(found)

        return self.each(("seen", event), see, numbers)

    def reordered(self, numbers: Numbers, order: tuple[int, ...]) -> Numbers:
        return self.each(("reordered", order), lambda node: self.number(node.reordered(order)), numbers)


@dataclass
class Explored:
    """What was found: how many worlds, the documents that the change can end with, and the first fault."""

    worlds: int = 0
    ends: set[View] = field(default_factory=set)
    fault: str = ""


_AT_ONCE: Final = 1 << 18
"""Worlds whose steps are taken in one go."""


class Exploration:
    """Every reachable world.

    :param bits: of a world's integer, for each node.
    """

    def __init__(self, size: int, joiners: int, may_abort: bool, coarse: bool) -> None:
        self.size, self.joiners, self.may_abort = size, joiners, may_abort
        self.bits = 64 // size
        self.table = Table(size, coarse)
        self.found = Explored()
        self._codes: dict[Said, int] = {said: code for code, said in enumerate(SAID)}
        self._orders = [(order, self._within(order)) for order in permutations(range(size))]

    def _within(self, order: tuple[int, ...]) -> list[tuple[int, ...]]:
        """For each node of an order of all nodes: the order in which it has the others then."""
        found = []
        for own in order:
            before = [n for n in range(self.size) if n != own]
            found.append(tuple(before.index(n) for n in order if n != own))
        return found

    def run(self) -> Explored:
        begin = np.array([[self.table.number(node)] for node in first(self.size, self.joiners)], np.int32)
        waiting: dict[View, list[Worlds]] = {document: [] for document in DOCUMENTS}
        waiting[Phase.PREPARE].append(self._canonical(begin))
        for document in DOCUMENTS:
            if waiting[document] and not self.found.fault:
                known = self._closure(document, _distinct(np.concatenate(waiting.pop(document))))
                self.found.worlds += len(known)
                self._leave(document, known, waiting)
        return self.found

    def _leave(self, document: View, worlds: Worlds, waiting: dict[View, list[Worlds]]) -> None:
        """The document that comes next: what stands in a world besides stays as it is.

        Who writes it has read all leases before; what happens in between goes unseen, such as another node that joins.
        """
        if not isinstance(document, Phase):
            return
        if self.may_abort and document in (Phase.PREPARE, Phase.SWITCH):
            waiting[Phase.BACK].append(worlds)
        finished = [some[self._finished(document, self._nodes(some))] for some in self._parts(worlds)]
        if self.joiners:
            finished = [self._closure(document, np.concatenate(finished))]
        waiting[AFTER[document]] += finished

    def _closure(self, document: View, worlds: Worlds) -> Worlds:
        """All that nodes can come to while the document is this one."""
        known, fresh = worlds, worlds
        while len(fresh) and not self.found.fault:
            after = [_distinct(np.concatenate([some[:0], *self._after(document, some)])) for some in self._parts(fresh)]
            fresh = _distinct(np.concatenate(after)) if after else fresh[:0]
            fresh = fresh[~_contained(fresh, known)]
            known = np.sort(np.concatenate([known, fresh]), kind="stable")
        return known

    @staticmethod
    def _parts(worlds: Worlds) -> Iterator[Worlds]:
        for begin in range(0, len(worlds), _AT_ONCE):
            yield worlds[begin : begin + _AT_ONCE]

    def _after(self, document: View, worlds: Worlds) -> Iterator[Worlds]:
        """Where these may be one step later."""
        nodes = self._nodes(worlds)
        self._judge(document, worlds, nodes)
        rests = np.ones(len(worlds), bool)
        for where, moved in chain(self._steps(document, nodes), self._graces(nodes)):
            rests &= ~where
            if where.any():
                yield self._canonical(moved)
        for_good = rests & ~self._finished(document, nodes) if isinstance(document, Phase) else rests
        self._judge_ends(document, nodes[:, for_good])

    def _steps(self, document: View, nodes: Numbers) -> Iterator[tuple[NDArray[np.bool_], Numbers]]:
        """Where a step is open to a node, and what follows."""
        for number, after in self._steps_of_one(document, nodes):
            where = after >= 0
            moved = nodes[:, where]
            moved[number] = after[where]
            yield where, moved

    def _steps_of_one(self, document: View, nodes: Numbers) -> Iterator[tuple[int, Numbers]]:
        """What each node may come to next; -1 where that is not open to it."""
        said = [self._fact("said", lambda node: self._codes[node.step], its) for its in nodes]
        for number, its in enumerate(nodes):
            for which in range(1 if self.table.coarse else self.size):
                yield number, self.table.moved(its, which)
            yield number, self.table.seen(its, (document,))
            for other, codes in enumerate([*said[:number], *said[number + 1 :]]):
                after = np.full(len(its), -1, np.int32)
                for code, what in enumerate(SAID):
                    where = codes == code
                    if where.any():
                        after[where] = self.table.seen(its[where], (other, what))
                yield number, after
            if self.joiners:
                yield number, self._joined(document, its, [*said[:number], *said[number + 1 :]])

    def _graces(self, nodes: Numbers) -> Iterator[tuple[NDArray[np.bool_], Numbers]]:
        """Where the grace may be over for a node, and what follows.

        It is longer than any packet's way. What was sent before RETIRE began has arrived when a node that retires has
        let it pass; who has said that it has switched had sent it before. Until then packets take as long as they like:
        what is on its way for longer can only get lost more often.
        """
        retires = [self._fact("retires", lambda node: int(node.view is Phase.RETIRE), its) == 1 for its in nodes]
        for number, its in enumerate(nodes):
            after = self.table.each("graced", lambda node: self._numbered(graced(node)), its)
            where = after >= 0
            moved = nodes[:, where]
            moved[number] = after[where]
            arrived = np.array(
                [self.table.each("landed", lambda node: self._numbered(landed(node)), row) for row in moved]
            )
            yield where, np.where(retires[number][where], arrived, moved)

    def _numbered(self, node: Node | None) -> int | None:
        return None if node is None else self.table.number(node)

    def _joined(self, document: View, its: Numbers, said: list[Numbers]) -> Numbers:
        """A new node: it has read the whole store, and its lease is there."""
        after = np.full(len(its), -1, np.int32)
        absent = np.flatnonzero(self._fact("absent", lambda node: int(node.view == ABSENT), its))
        if len(absent):
            rows, which = np.unique(np.array(said)[:, absent], axis=1, return_inverse=True)
            made = []
            for row in rows.T.tolist():
                seen = tuple(SAID[code] for code in row)
                node = Node(document, False, False, (None,) * len(seen), None, seen, False, False, 0)
                made.append(self.table.number(node))
            after[absent] = np.array(made, np.int32)[which.reshape(-1)]
        return after

    def _fact(self, what: str, work_out: Callable[[Node], int], numbers: Numbers) -> Numbers:
        return self.table.each(what, work_out, numbers)

    def _finished(self, document: Phase, nodes: Numbers) -> NDArray[np.bool_]:
        """Where the document may move on: no lease keeps it."""
        there = CHANGE.at(document)

        def finished(node: Node) -> int:
            return int(node.step == ABSENT or not rules.finished(there, {"": step_of(node.step)}))

        return all_of([self._fact(f"finished {document}", finished, its) == 1 for its in nodes])

    # What must never be

    def _judge(self, document: View, worlds: Worlds, nodes: Numbers) -> None:
        late = document in (Phase.RETIRE, DONE)
        said = 0 if document == DONE else 2  # who joins is not yet bound
        for number, other in permutations(range(self.size), 2):
            place = other - (other > number)
            side = self._fact(f"sends {place}", lambda node, n=place: _SIDES[node.sends[n]], nodes[number])  # type: ignore[misc]
            flies = self._fact("flies", lambda node: node.flies, nodes[number])
            ears = self._fact("hears", _hears, nodes[other])
            lost = (side > 0) & (ears & HERE > 0) & (flies & ~ears != 0)
            steps = self._fact("said", lambda node: self._codes[node.step], nodes[number])
            plain = (side == OLD) & (steps >= said)
            self._blame(lost, worlds, f"what node {number} sends does not arrive at {other}")
            if late:
                self._blame(plain, worlds, f"node {number} still sends to {other} by the former settings")

    def _judge_ends(self, document: View, nodes: Numbers) -> None:
        """Worlds in which nothing is open to anybody, for good."""
        if nodes.shape[1]:
            self.found.ends.add(document)
            due = {DONE: NEW, ABORTED: OLD}.get(str(document))
            wrong = ~all_of([self._fact("hears", _hears, its) & (OLD | NEW) == due for its in nodes])
            self._blame(wrong, self._packed(nodes), "the change is over, but a node holds what it should not")

    def _blame(self, where: NDArray[np.bool_], worlds: Worlds, what: str) -> None:
        if not self.found.fault and where.any():
            nodes = self._nodes(worlds[where][:1])[:, 0]
            self.found.fault = f"{what}: {[self.table.nodes[n] for n in nodes]}"

    # Worlds as integers

    def _nodes(self, worlds: Worlds) -> Numbers:
        """The numbers of each world's nodes: a row for each node."""
        mask = np.uint64((1 << self.bits) - 1)
        return np.array([worlds >> np.uint64(self.bits * n) & mask for n in range(self.size)]).astype(np.int32)

    def _packed(self, nodes: Numbers) -> Worlds:
        assert len(self.table.nodes) <= 1 << self.bits, "more states of a node than fit"
        found = np.zeros(nodes.shape[1], np.uint64)
        for number, its in enumerate(nodes):
            found |= its.astype(np.uint64) << np.uint64(self.bits * number)
        return found

    def _canonical(self, nodes: Numbers) -> Worlds:
        """Of all the worlds that differ only in which node is which, the one with the least integer."""
        least = self._packed(nodes)
        turned = {
            (own, within): self.table.reordered(nodes[own], within)
            for order, all_within in self._orders
            for own, within in zip(order, all_within, strict=True)
        }
        for order, all_within in self._orders:
            rows = np.array([turned[own, within] for own, within in zip(order, all_within, strict=True)])
            least = np.minimum(least, self._packed(rows))
        return least


def _hears(node: Node) -> int:
    return OLD * node.old | NEW * node.new | HERE * node.here


def _distinct(worlds: Worlds) -> Worlds:
    """Each of them once, sorted."""
    some = np.sort(worlds)
    return some[np.concatenate([[True], some[1:] != some[:-1]])] if len(some) else some


def _contained(some: Worlds, known: Worlds) -> NDArray[np.bool_]:
    """Which of ``some`` are in ``known``, which is sorted."""
    found: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, some), len(known) - 1)] == some
    return found


def all_of(conditions: Iterable[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Where all of them hold."""
    return reduce(np.logical_and, conditions)


def explore(size: int, joiners: int = 0, may_abort: bool = True, coarse: bool = False) -> Explored:
    """Every reachable world of so many nodes, of which some join in the middle."""
    return Exploration(size, joiners, may_abort, coarse).run()
