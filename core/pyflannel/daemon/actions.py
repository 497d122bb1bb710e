"""Actions of the backend that an operator asks for: the kernel first, the lease last, and back again if either fails.

Somebody asks in whatever thread and waits; the loop looks at what was asked in each turn. One action is under way at a
time. That the lease was written is read from the lease's state, by the number of the request to publish. Whoever waits
is answered, also when the daemon stops.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from pyflannel.backend import Backend, Node, Outcome
from pyflannel.daemon.control import ACTION_TIMEOUT
from pyflannel.errors import DaemonError, PluginError, PyflannelError
from pyflannel.membership.slot import LeaseState
from pyflannel.planning.guard import exclusive, guarded

__all__ = ["Actions", "Stage"]

log = logging.getLogger(__name__)

BUSY_PATIENCE: Final = 1.0
"""Seconds that an action waits for a ``publish`` of the same backend that is under way."""


class Stage(Protocol):
    """What actions need of the loop; called in its thread."""

    def acting(self, action: str) -> tuple[Backend[Any], Node]:
        """The backend that runs, and for which node.

        :raises DaemonError: nothing can be done now; the message says why.
        """

    def calling(self, backend: Backend[Any], what: str) -> AbstractContextManager[None]:
        """Say that the backend is being called, should it not come back."""

    def replan(self) -> None:
        """Plan anew what the node needs for itself, and have the kernel hold it.

        :raises PyflannelError: that can't be; the message says why.
        """

    def publish(self) -> int:
        """Have our lease say what the backend publishes; the request's number."""


@dataclass(slots=True)
class _Asked:
    backend: str
    action: str
    answer: SimpleQueue[str | PyflannelError] = field(default_factory=SimpleQueue)


@dataclass(slots=True)
class _UnderWay:
    """The kernel has taken it; the lease is on its way."""

    asked: _Asked
    backend: Backend[Any]
    outcome: Outcome
    request: int


class Actions:
    """The actions that wait, and the one that is under way."""

    def __init__(self, stage: Stage, wake: Callable[[], None]) -> None:
        self._stage, self._wake = stage, wake
        self._asked: deque[_Asked] = deque()
        self._begun: _Asked | None = None
        """What the backend or the kernel is at."""
        self._under_way: _UnderWay | None = None
        self._lock = threading.Lock()
        self._over = False

    def ask(self, backend: str, action: str) -> str:
        """Do an action of the backend ``backend`` and return what was done. For any thread.

        :raises PyflannelError: it did not come about, or is not done in time.
        """
        asked = _Asked(backend, action)
        with self._lock:
            if self._over:
                raise DaemonError(f"{action} was not done: the daemon is stopping")
            self._asked.append(asked)
        self._wake()
        try:
            said = asked.answer.get(timeout=ACTION_TIMEOUT)
        except Empty:
            raise DaemonError(
                f"{action} is not done after {ACTION_TIMEOUT:.0f} s and goes on; see 'pyflannel status'"
            ) from None
        if isinstance(said, PyflannelError):
            raise said
        return said

    def turn(self, state: LeaseState) -> None:
        """Begin what was asked for, and end what has come to its end. In the loop's thread."""
        ahead = self._under_way
        if ahead is not None:
            if state.published < ahead.request:
                return
            self._under_way = None
            if state.publish_error is None:
                log.info("%s", ahead.outcome.done)
                ahead.asked.answer.put(ahead.outcome.done)
            else:
                self._take_back(ahead.asked, ahead.backend, ahead.outcome, state.publish_error)
        while (asked := self._next()) is not None:
            self._begin(asked)

    def _next(self) -> _Asked | None:
        with self._lock:
            self._begun = self._asked.popleft() if self._asked and self._under_way is None else None
            return self._begun

    def end(self) -> None:
        """The daemon stops: nothing is begun any more, and whoever waits is told. For any thread. Idempotent."""
        with self._lock:
            self._over = True
            waiting = [asked.action for asked in self._asked]
            while self._asked:
                asked = self._asked.popleft()
                asked.answer.put(DaemonError(f"{asked.action} was not done: the daemon is stopping"))
            begun, self._begun = self._begun, None
        if begun is not None:
            waiting.append(begun.action)
            text = "the daemon is stopping before the backend has come to its end with it"
            begun.answer.put(DaemonError(f"{begun.action} may be half done: {text}"))
        ahead, self._under_way = self._under_way, None
        if ahead is not None:
            waiting.append(ahead.asked.action)
            text = "the daemon is stopping: this node has changed, and its next start writes that into the lease"
            ahead.asked.answer.put(DaemonError(f"{ahead.asked.action} is not done: {text}"))
        if waiting:
            log.warning("stopped before the end of: %s", ", ".join(waiting))

    def _begin(self, asked: _Asked) -> None:
        """Have the backend change what it says of this node, and bring the kernel there; then the lease is written.

        The kernel first: peers that read the new lease must not find us as we were.
        """
        try:
            backend, node = self._stage.acting(asked.action)
            if backend.name != asked.backend:
                raise DaemonError(f"this node runs backend {backend.name!r}, not {asked.backend!r}")
            if asked.action not in guarded(backend.name, "actions", lambda: dict(backend.actions)):
                raise PluginError(f"backend {backend.name!r} has no action {asked.action!r}")
            with exclusive(backend, asked.action, BUSY_PATIENCE), self._stage.calling(backend, asked.action):
                outcome = guarded(backend.name, asked.action, lambda: backend.act(asked.action, node))
            if not isinstance(outcome, Outcome):
                raise PluginError(f"backend {backend.name!r} answered {asked.action} with something that is no Outcome")
        except PyflannelError as error:
            asked.answer.put(error)
            return
        try:
            self._stage.replan()
        except PyflannelError as error:
            self._take_back(asked, backend, outcome, error)
            return
        self._under_way = _UnderWay(asked, backend, outcome, self._stage.publish())

    def _take_back(self, asked: _Asked, backend: Backend[Any], outcome: Outcome, error: PyflannelError) -> None:
        log.error("%s is taken back: %s", asked.action, error)
        try:
            with exclusive(backend, asked.action, BUSY_PATIENCE), self._stage.calling(backend, asked.action):
                guarded(backend.name, f"undoing {asked.action}", outcome.undo)
            self._stage.replan()
        except PyflannelError as failure:
            text = f"{asked.action} failed ({error}) and can't be undone: {failure}"
            log.error("%s", text)
            asked.answer.put(DaemonError(text))
        else:
            asked.answer.put(DaemonError(f"{asked.action} is taken back, all is as before: {error}"))
        finally:
            self._stage.publish()  # the store may have taken it after all
