"""A model of a network change: every state that nodes can get into, in every order of events.

A state of the model is the document, and for each node what it has seen of it, what its kernel receives on, by which
settings it sends to each other node, what its lease says, and what it has seen of the others' leases. Every step that
any of them can take, in any order, is taken; so a node may be arbitrarily late in everything. What decides in each
step are the functions under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, TypeAlias

from pyflannel.network import change as rules
from pyflannel.network.change import NetworkChange, Phase, Step

__all__ = ["ABORTED", "DONE", "explore", "node_moves"]

DONE, ABORTED = "done", "aborted"
"""The document after the change: with the new settings, or with the former ones again."""

ABSENT = "absent"
"""What a node without a lease has seen and said."""

View: TypeAlias = Phase | str
Said: TypeAlias = Step | str | None
CHANGE = NetworkChange("0123456789abcdef", Phase.PREPARE, {})


class Node(NamedTuple):
    """One node. ``sends`` and ``seen`` have an item per node, of which the own one means nothing.

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


@dataclass(frozen=True)
class World:
    document: View
    nodes: tuple[Node, ...]

    def with_node(self, number: int, node: Node) -> World:
        return replace(self, nodes=(*self.nodes[:number], node, *self.nodes[number + 1 :]))


def first(size: int, joiners: int) -> World:
    """Nodes that run by the former settings, and others that have no lease yet."""
    steps = (None,) * (size - joiners) + (ABSENT,) * joiners
    sends = tuple(None if step == ABSENT else False for step in steps)
    here = Node(ABORTED, True, False, sends, None, steps, False, True)
    absent = Node(ABSENT, False, False, (None,) * size, ABSENT, (ABSENT,) * size, False, False)
    return World(Phase.PREPARE, (here,) * (size - joiners) + (absent,) * joiners)


def others_of(node: Node, number: int) -> list[int]:
    """The peers that a node knows of."""
    return [n for n, step in enumerate(node.seen) if n != number and step != ABSENT]


def step_of(said: Said) -> Step | None:
    return said if isinstance(said, Step) else None


def wanted(node: Node, number: int) -> tuple[bool, bool, dict[int, bool]]:
    """What follows from a node's view: receive by the former settings, by the new, and how to send to its peers."""
    others = others_of(node, number)
    if not isinstance(node.view, Phase):
        return node.view == ABORTED, node.view == DONE, dict.fromkeys(others, node.view == DONE)
    old, new = rules.receives(node.view, node.graced)
    return (
        old,
        new,
        {other: rules.sends_new(node.view, step_of(node.seen[other]), step_of(node.step)) for other in others},
    )


def set_item(items: tuple[bool | None, ...], number: int, value: bool) -> tuple[bool | None, ...]:
    return (*items[:number], value, *items[number + 1 :])


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
        yield node._replace(sends=tuple(sends.get(n, side) for n, side in enumerate(node.sends)))
        return
    for other in different:
        yield node._replace(sends=set_item(node.sends, other, sends[other]))


@cache
def node_moves(node: Node, number: int, coarse: bool) -> tuple[Node, ...]:
    """See :func:`_node_moves`; asked for again and again."""
    return tuple(_node_moves(node, number, coarse))


def _node_moves(node: Node, number: int, coarse: bool) -> Iterator[Node]:
    """What a node may do next: receive more, then send otherwise, then receive less, then say so.

    ``coarse``: what its kernel gets at one time is one step.
    """
    old, new, sends = wanted(node, number)
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
    steps = [step_of(node.seen[other]) for other in sends]
    if node.view is Phase.RETIRE and not node.graced and rules.all_switched(steps):
        yield node._replace(graced=True)
    now = step_of(node.step)
    step = rules.due_step(node.view, in_place=True, all_new=all(sends.values()), graced=node.graced, now=now)
    if step != node.step:
        yield node._replace(step=step, here=True)


def sightings(world: World, number: int) -> Iterator[Node]:
    """What a node may get to see next: the document, or another node's lease."""
    node = world.nodes[number]
    if node.view != world.document:
        yield node._replace(view=world.document, graced=False)
    for other, peer in enumerate(world.nodes):
        if other != number and node.seen[other] != peer.step:
            seen = tuple(peer.step if n == other else step for n, step in enumerate(node.seen))
            yield node._replace(seen=seen, graced=False)


def joined(world: World, number: int) -> Node:
    """A new node: it has read the whole store, and its lease is there."""
    steps = tuple(node.step for node in world.nodes)
    return world.nodes[number]._replace(view=world.document, step=None, seen=steps)


def moves(world: World, may_abort: bool, coarse: bool) -> Iterator[World]:
    for number, node in enumerate(world.nodes):
        if node.view == ABSENT:
            yield world.with_node(number, joined(world, number))
            continue
        for following in (*sightings(world, number), *node_moves(node, number, coarse)):
            yield world.with_node(number, following)
    if not isinstance(world.document, Phase):
        return
    steps = {str(n): step_of(node.step) for n, node in enumerate(world.nodes) if node.step != ABSENT}
    if not rules.finished(CHANGE.at(world.document), steps):
        yield replace(world, document=AFTER[world.document])
    if may_abort and world.document in (Phase.PREPARE, Phase.SWITCH):
        yield replace(world, document=Phase.BACK)


AFTER: dict[Phase, View] = {
    Phase.PREPARE: Phase.SWITCH,
    Phase.SWITCH: Phase.RETIRE,
    Phase.RETIRE: DONE,
    Phase.BACK: ABORTED,
}


def fault(world: World) -> str:
    """What is wrong with a state, if anything."""
    for number, node in enumerate(world.nodes):
        for other, peer in enumerate(world.nodes):
            side = node.sends[other]
            if other == number or side is None:
                continue
            received = peer.new if side else peer.old
            if not received and peer.here:
                return f"node {number} sends to {other} where that does not receive"
            if world.document in (Phase.RETIRE, DONE) and not side and isinstance(node.step, Step):
                return f"node {number} still sends to {other} by the former settings"
    return ""


def explore(size: int, joiners: int = 0, may_abort: bool = True, coarse: bool = False) -> tuple[int, set[View], str]:
    """Every reachable state: how many, the documents that the change can end with, and the first fault."""
    begin = first(size, joiners)
    known, queue = {begin}, [begin]
    ends: set[View] = set()
    while queue:
        world = queue.pop()
        found = fault(world)
        if found:
            return len(known), ends, f"{found}: {world}"
        following = [_canonical(after) for after in moves(world, may_abort, coarse)]
        fresh = [after for after in following if after not in known]
        known.update(fresh)
        queue += fresh
        if not following:
            ends.add(world.document)
            done = world.document == DONE
            if any((node.old, node.new) != (not done, done) for node in world.nodes):
                return len(known), ends, f"the change is over, but a node holds what it should not: {world}"
    return len(known), ends, ""


def _canonical(world: World) -> World:
    """One of all the states that differ only in which node is which."""
    size = len(world.nodes)
    ranks = [_rank(node, number) for number, node in enumerate(world.nodes)]
    order = sorted(range(size), key=ranks.__getitem__)
    if order == list(range(size)):
        return world
    nodes = tuple(
        world.nodes[n]._replace(
            sends=tuple(world.nodes[n].sends[m] for m in order), seen=tuple(world.nodes[n].seen[m] for m in order)
        )
        for n in order
    )
    return replace(world, nodes=nodes)


@cache
def _rank(node: Node, number: int) -> tuple[object, ...]:
    rest = sorted((_SIDES[node.sends[n]], _CODES[node.seen[n]]) for n in range(len(node.sends)) if n != number)
    return (_CODES[node.view], node.old, node.new, _CODES[node.step], node.graced, rest)


_SIDES = {None: 0, False: 1, True: 2}
_CODES = {said: code for code, said in enumerate((*Phase, *Step, DONE, ABORTED, ABSENT, None))}
