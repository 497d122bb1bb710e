"""A backend under test, asked as the daemon asks it: by one thread, which is not waited for without end.

A planner that hangs is asked no second time for the same thing: hypothesis, which wants to see the failure again with
smaller examples, gets the same answer at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from pyflannel.backend import Backend, Capabilities, DesiredState, Lease, Node, Outcome, Published, Underlay, UsualData
from pyflannel.errors import PeerRejected
from pyflannel.testing._calls import Caller, OverdueError, checked_answer
from pyflannel.testing._purity import watched

__all__ = ["Planner", "look_at_time"]

T = TypeVar("T")

LIMIT = 7.5
"""Seconds that an answer may take. Nothing promises one; for so long the daemon's other work would stand still."""

WORK = 120.0
PATIENCE = 600.0
"""Seconds of a CPU, and of a clock, that the examples of one test may take together. A sound planner's take one or two
in all; on an emulated machine, some twenty times as long."""

_CLAUSE: Final = "planning is a function of values that returns at once: pyflannel.backend"
_callers: list[Caller] = []
_overdue: dict[tuple[type[Backend[Any]], str], str] = {}
_begun: dict[tuple[type[Backend[Any]], str], tuple[float, float]] = {}
_largest: dict[type[Backend[Any]], int] = {}

_CONTRACT: Final = "pyflannel.backend.Backend"


def _checked(kind: type[Backend[Any]], call: str, answer: T, *kinds: type) -> T:
    checked = checked_answer(kind.__name__, call, answer, kinds, _CONTRACT)
    if isinstance(checked, DesiredState):
        _largest[kind] = max(_largest.get(kind, 0), len(checked))
    return checked


def look_at_time(kind: type[Backend[Any]]) -> None:
    """For a test that is about to try another example.

    :raises OverdueError: all that it has tried took too long together, or another test of this backend did so.
    """
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    now = time.process_time(), time.monotonic()
    work, waited = (at - begun for at, begun in zip(now, _begun.setdefault((kind, test), now), strict=True))
    if work > WORK or waited > PATIENCE:
        name = test.rpartition("::")[2].partition(" ")[0]
        _overdue[kind, "examples"] = (
            f"{kind.__name__}: {name} was not done with its examples after {waited:.0f} s, {work:.0f} s of them at "
            f"work; the largest plan has {_largest.get(kind, 0)} objects; {_CLAUSE}"
        )
    if (kind, "examples") in _overdue:
        raise OverdueError(_overdue[kind, "examples"])


def _ask(kind: type[Backend[Any]], what: str, call: Callable[[], T]) -> T:
    if (kind, what) in _overdue:
        raise OverdueError(_overdue[kind, what])
    caller = _callers.pop() if _callers else Caller("planning")
    try:
        answer = caller(f"{kind.__name__}.{what}", call, LIMIT, _CLAUSE)
    except OverdueError as error:
        _overdue[kind, what] = str(error)
        caller.end()
        raise
    except BaseException:
        _callers.append(caller)
        raise
    _callers.append(caller)
    return answer


class Planner:
    """A backend with a time limit on each question."""

    def __init__(self, kind: type[Backend[Any]], options: Any) -> None:
        self.kind = kind
        self._options = options
        self._backend = _ask(kind, "the constructor", lambda: kind(options))

    @property
    def name(self) -> str:
        """As in ``Backend.Type``."""
        return self.kind.name

    @property
    def capabilities(self) -> Capabilities:
        """What it can do and needs."""
        return self.kind.capabilities

    @property
    def options(self) -> Any:
        """What it was made with, as it says itself."""
        return self._backend.options

    @property
    def tunnelled(self) -> bool:
        """See :attr:`Backend.tunnelled`."""
        answer = _ask(self.kind, "tunnelled", lambda: self._backend.tunnelled)
        return _checked(self.kind, "tunnelled", answer, bool)

    def again(self) -> Planner:
        """Another one with the same options, as after a restart."""
        return Planner(self.kind, self._options)

    def plan_node(self, node: Node) -> DesiredState:
        """See :meth:`Backend.plan_node`."""
        answer = _ask(self.kind, "plan_node", lambda: self._backend.plan_node(node))
        return _checked(self.kind, "plan_node", answer, DesiredState)

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """See :meth:`Backend.plan_peer`."""
        answer = _ask(self.kind, "plan_peer", lambda: self._backend.plan_peer(node, peer))
        return _checked(self.kind, "plan_peer", answer, DesiredState)

    def usual(self, node: Node) -> Mapping[int, UsualData]:
        """See :meth:`Backend.usual`."""
        answer = _ask(self.kind, "usual", lambda: self._backend.usual(node))
        return _checked(self.kind, "usual", answer, Mapping)

    def judge(self, node: Node, peer: Lease) -> DesiredState | str:
        """The plan for a peer, or the reason why there is none; any other exception is the test's failure."""
        try:
            return self.plan_peer(node, peer)
        except PeerRejected as rejected:
            return str(rejected)

    def mtu(self, underlay: Underlay) -> int:
        """See :meth:`Backend.mtu`."""
        answer = _ask(self.kind, "mtu", lambda: self._backend.mtu(underlay))
        return _checked(self.kind, "mtu", answer, int)

    def publish(self, node: Node) -> Published:
        """See :meth:`Backend.publish`."""
        answer = _ask(self.kind, "publish", lambda: self._backend.publish(node))
        return _checked(self.kind, "publish", answer, Published)

    def describe(self, node: Node) -> Mapping[str, str]:
        """See :meth:`Backend.describe`."""
        answer = _ask(self.kind, "describe", lambda: self._backend.describe(node))
        return _checked(self.kind, "describe", answer, Mapping)

    def act(self, action: str, node: Node) -> Outcome:
        """See :meth:`Backend.act`."""
        answer = _ask(self.kind, f"act({action!r})", lambda: self._backend.act(action, node))
        return _checked(self.kind, "act", answer, Outcome)

    def watch(self, node: Node, peers: tuple[Lease, ...]) -> tuple[tuple[Any, ...], list[str]]:
        """All that it plans, and what it did to the world meanwhile."""
        with_peers: list[tuple[str, DesiredState | str]] = []

        def plan() -> tuple[DesiredState, int, list[str]]:
            with watched() as done:
                own = _checked(self.kind, "plan_node", self._backend.plan_node(node), DesiredState)
                mtu = _checked(self.kind, "mtu", self._backend.mtu(node.underlay), int)
                for peer in peers:
                    try:
                        plan = self._backend.plan_peer(node, peer)
                        with_peers.append((peer.key, _checked(self.kind, "plan_peer", plan, DesiredState)))
                    except PeerRejected as rejected:
                        with_peers.append((peer.key, str(rejected)))
                return own, mtu, list(done)

        own, mtu, done = _ask(self.kind, "planning", plan)
        return (own, mtu, *sorted(with_peers, key=lambda pair: pair[0])), done
