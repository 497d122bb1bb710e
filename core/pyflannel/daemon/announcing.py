"""Telling others how this node is: systemd, the log, and the store, for those who would start work here.

The loop says at each turn how things stand. What has been said already is not said again, and the store is not bothered
with what passes by itself, such as a restart.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Final

from pyflannel.daemon.notify import Notifier
from pyflannel.show.status import State

__all__ = ["Announcements"]

log = logging.getLogger(__name__)

UNREADY_AFTER: Final = 30.0
"""Seconds without an overlay after which the store is told so: a restart passes unnoticed."""

_AGE: Final = re.compile(r"(?<= for )\d+ s\b")
"""How long something has lasted. What only grows older has been said."""

_CARRIES: Final = (State.READY, State.DEGRADED)


class Announcements:
    """See the module's docstring.

    :param tell_store: told whether this node's overlay carries packets.
    """

    def __init__(self, notifier: Notifier, tell_store: Callable[[bool], None], now: float) -> None:
        self._notifier, self._tell_store = notifier, tell_store
        self.last_error: tuple[float, str] | None = None
        """What was wrong last, and when by the wall clock."""
        self._ready_said = False
        self._told_store: bool | None = None
        self._unready_since: float | None = None
        self._last = State.STARTING, ""
        self._alive_due = now

    @property
    def due(self) -> float | None:
        """When the watchdog is to hear of us, if there is one."""
        return None if self._notifier.watchdog_interval is None else self._alive_due

    def reloading(self) -> None:
        """The settings are about to be read anew."""
        if self._ready_said:
            self._notifier.reloading()

    def reloaded(self) -> None:
        """They have been."""
        if self._ready_said:
            self._notifier.ready()

    def stopping(self) -> None:
        """The daemon ends."""
        log.info("stopping; forwarding goes on")
        self._notifier.stopping()

    def say(self, state: State, message: str, now: float) -> None:
        """How things stand now."""
        if state is not State.CONFLICT:  # then it is another node that speaks for our lease
            self._say_to_store(state in _CARRIES, now)
        if state in _CARRIES and not self._ready_said:
            self._ready_said = True
            self._notifier.ready()
        self._notifier.status(f"{state.value}: {message}")
        last_state, last_message = self._last
        if _AGE.sub("", message) == _AGE.sub("", last_message):
            message = last_message
        if state in (State.WAITING, State.DEGRADED, State.CONFLICT) and message != last_message:
            self.last_error = (time.time(), message)
        if (state, message) != self._last and state not in (State.STARTING, State.STOPPING):
            if state is not State.READY:
                log.warning("%s: %s", state.value, message)
            elif state is not last_state:
                log.info("%s: %s", state.value, message)
            self._last = state, message
        if self._notifier.watchdog_interval is not None and now >= self._alive_due:
            self._alive_due = now + self._notifier.watchdog_interval
            self._notifier.alive()

    def _say_to_store(self, ready: bool, now: float) -> None:
        """That we are ready, or that we have not been for a while."""
        if ready:
            self._unready_since = None
        elif self._unready_since is None:
            self._unready_since = now
        lasting = self._unready_since is not None and now - self._unready_since >= UNREADY_AFTER
        if ready is not self._told_store and (ready or lasting):
            self._told_store = ready
            self._tell_store(ready)
