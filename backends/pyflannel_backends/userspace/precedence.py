"""Whether this process is scheduled before ordinary programs: while it has to wait for these, and only then.

A worker that competes for a processor waits for its turn at every packet, so it asks for ``SCHED_RR``. Without
competitors that has the opposite effect. Linux wakes an ordinary process where its packet was just handled, and one of
``SCHED_RR`` where it ran before, on a processor that has gone to sleep; and there it interrupts the very programs whose
packets it carries.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Load", "Precedence", "read_load"]

_WAITED: Final = 0.6
"""It competes if it waits for so much of the time in which it could run ..."""
_WORTH: Final = 0.001
"""... and that is more than this share of all time."""
_IDLE: Final = 0.5
"""It does not if so many processors are idle, and at the latest ..."""
_TERM: Final = 60.0
"""... after so many seconds it is found out afresh."""


class Load(NamedTuple):
    """Seconds since some beginning: of time, of this thread at work and waiting for a processor, of processors idle."""

    now: float
    ran: float
    waited: float
    idle: float


def read_load(process: Path = Path("/proc/self/schedstat"), machine: Path = Path("/proc/uptime")) -> Load:
    """What the kernel says of this process's main thread and of the machine.

    :raises OSError: :raises ValueError: it can't be read, or the kernel keeps no such account.
    """
    ran, waited, _ = process.read_text(encoding="ascii").split()
    now, idle = machine.read_text(encoding="ascii").split()
    return Load(float(now), int(ran) / 1e9, int(waited) / 1e9, float(idle))


class Precedence:
    """See the module's docstring. Whoever has it calls :meth:`look` about once a second.

    :param wanted: false if it is never to be taken.
    :param load: see :func:`read_load`.
    :param take: take the precedence or give it up, and say whether it is held now.
    """

    def __init__(
        self, wanted: bool, load: Callable[[], Load] = read_load, take: Callable[[bool], bool] | None = None
    ) -> None:
        self._wanted = wanted
        self._load, self._take = load, take or _schedule
        self._before: Load | None = None
        self._since = 0.0
        self.is_held = False

    def look(self) -> bool:
        """Take it or give it up, by what has been since the last look; whether it is held."""
        if not self._wanted:
            return False
        before, self._before = self._before, self._read()
        if before is None or self._before is None or self._before.now <= before.now:
            return self.is_held
        now, ran, waited, idle = (after - then for after, then in zip(self._before, before, strict=True))
        if self.is_held:
            if idle >= _IDLE * now or self._before.now - self._since >= _TERM:
                self.is_held = self._take(False)
        elif waited >= _WORTH * now and waited >= _WAITED * (ran + waited):
            self.is_held, self._since = self._take(True), self._before.now
        return self.is_held

    def _read(self) -> Load | None:
        try:
            return self._load()
        except (OSError, ValueError):
            return None


def _schedule(first: bool) -> bool:
    """Before ordinary programs, or among them. Without CAP_SYS_NICE packets wait with everybody else."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR if first else os.SCHED_OTHER, os.sched_param(1 if first else 0))
    except OSError:
        return False
    return first
