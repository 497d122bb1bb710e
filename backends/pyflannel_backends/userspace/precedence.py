"""Whether this process is scheduled before ordinary programs: while these use up the processors, and only then.

A worker that competes for a processor waits for its turn at every packet, so it asks for ``SCHED_RR``. On a machine
with idle processors that has the opposite effect. There Linux runs an ordinary process where the packet came from, on a
processor that is awake, and a process of ``SCHED_RR`` where it ran before, on one that has gone to sleep.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["Precedence", "idle_seconds"]

_NARROW: Final = 0.5
_SHARE: Final = 0.1
"""A machine is busy if fewer processors are idle than this, or than this share of all."""
_CALM: Final = 3
"""So many looks in a row must find a machine that is not, before the precedence is given up."""


def idle_seconds(path: Path = Path("/proc/uptime")) -> float:
    """Seconds that this machine's processors have been idle since it started, all together."""
    return float(path.read_text(encoding="ascii").split()[1])


class Precedence:
    """See the module's docstring. It is taken at the start, since nothing is known of the machine yet.

    :param wanted: false if it is never to be taken.
    :param clock: seconds that pass on the wall; :param idle: see :func:`idle_seconds`; :param take: take the precedence
        or give it up, and say whether it is held now.
    """

    def __init__(
        self,
        wanted: bool,
        clock: Callable[[], float],
        idle: Callable[[], float] = idle_seconds,
        take: Callable[[bool], bool] | None = None,
    ) -> None:
        self._wanted = wanted
        self._clock, self._idle, self._take = clock, idle, take or _schedule
        self._processors = os.cpu_count() or 1
        self._calm = 0
        self._seen: tuple[float, float] | None = None
        self.is_held = wanted and self._take(True)

    def look(self) -> bool:
        """Take it or give it up, by how busy the machine was since the last look; whether it is held."""
        if not self._wanted:
            return False
        before, self._seen = self._seen, self._measured()
        if before is None or self._seen is None or self._seen[0] <= before[0]:
            return self.is_held
        idle = (self._seen[1] - before[1]) / (self._seen[0] - before[0])
        is_busy = idle < max(_NARROW, _SHARE * self._processors)
        self._calm = 0 if is_busy else self._calm + 1
        if is_busy != self.is_held and (is_busy or self._calm >= _CALM):
            self.is_held = self._take(is_busy)
        return self.is_held

    def _measured(self) -> tuple[float, float] | None:
        try:
            return self._clock(), self._idle()
        except (OSError, ValueError, IndexError):  # no descriptor is left, or no /proc
            return None


def _schedule(first: bool) -> bool:
    """Before ordinary programs, or among them. Without CAP_SYS_NICE packets wait with everybody else."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR if first else os.SCHED_OTHER, os.sched_param(1 if first else 0))
        return first
    return False
