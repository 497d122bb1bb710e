"""Telling others how this node is: systemd, the log, and the store, for those who would start work here.

The loop says at each turn how things stand. What has been said already is not said again, also where it goes and comes
back, as with a watch that opens and breaks. The store is not bothered with what passes by itself, such as a restart.
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

STEADY_AFTER: Final = 30.0
"""Seconds for which what was wrong must be gone for good: sooner, what comes back is the same trouble."""

_AGE: Final = re.compile(r"(?<= for )\d+ s\b")
"""How long something has lasted. What only grows older has been said."""

_CARRIES: Final = (State.READY, State.DEGRADED)
_TROUBLED: Final = (State.WAITING, State.DEGRADED, State.CONFLICT)
_AGAIN: Final = "it comes and goes; not said again until it has been gone for a while"


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
        self._trouble, self._trouble_seen = "", now
        self._comes_and_goes = False
        self._alive_due = now

    @property
    def due(self) -> float | None:
        """When there is something to say although nothing happens: that we live, or that a trouble is over."""
        alive = [] if self._notifier.watchdog_interval is None else [self._alive_due]
        over = [self._trouble_seen + STEADY_AFTER] if self._comes_and_goes and self._last[0] is State.READY else []
        return min(alive + over, default=None)

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
        last_message = self._last[1]
        if _AGE.sub("", message) == _AGE.sub("", last_message):
            message = last_message
        if state in _TROUBLED and message != last_message:
            self.last_error = (time.time(), message)
        if state not in (State.STARTING, State.STOPPING):
            self._log(state, message, now)
            self._last = state, message
        if self._notifier.watchdog_interval is not None and now >= self._alive_due:
            self._alive_due = now + self._notifier.watchdog_interval
            self._notifier.alive()

    def _log(self, state: State, message: str, now: float) -> None:
        (last_state, last_message), plain = self._last, _AGE.sub("", message)
        seen = self._trouble_seen
        if state in _TROUBLED:
            back = plain == self._trouble and last_state is State.READY and now - seen < STEADY_AFTER
            if back and not self._comes_and_goes:
                log.warning("%s: %s (%s)", state.value, message, _AGAIN)
            elif not back and (state, message) != (last_state, last_message):
                log.warning("%s: %s", state.value, message)
            self._comes_and_goes = back or (self._comes_and_goes and plain == self._trouble)
            self._trouble, self._trouble_seen = plain, now
        elif self._comes_and_goes and now - seen >= STEADY_AFTER:
            self._comes_and_goes = False
            log.info("%s: %s", state.value, message)
        elif not self._comes_and_goes and state is not last_state:
            log.info("%s: %s", state.value, message)

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
