"""Whether this process is scheduled before ordinary programs: while it has to wait for these, and only then.

A worker that competes for a processor waits for its turn at every packet, so it asks for ``SCHED_RR``. Without
competitors that has the opposite effect. Linux wakes an ordinary process where its packet was just handled, and one of
``SCHED_RR`` where it ran before, on a processor that has gone to sleep; and there it interrupts the very programs whose
packets it carries.

How long it waits does not tell these from others: four streams that have the machine to themselves wait as long as one
beside two busy programs. So what it carries with the precedence is compared with what it carried without.

Where it lingers, it waits for the answer to a packet that came alone without sleeping, for a moment: with the
precedence, since its processor would be lost to others, and on a quiet machine, where that would go to sleep and take
long to wake up. There it lets other programs go first meanwhile. Busy ones would keep the processor, so beside them it
sleeps at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Lingering", "Load", "Precedence", "read_load"]

_WAITED: Final = 0.6
"""It competes if it waits for so much of the time in which it could run ..."""
_WORTH: Final = 0.001
"""... and that is more than this share of all time, twice running."""
_IDLE: Final = 0.5
"""It does not if so many processors are idle, and at the latest ..."""
_TERM: Final = 60.0
"""... after so many seconds it is found out afresh."""
_LOST: Final = (0.6, 0.92)
"""It has lost by the precedence if it carries so much of what it carried before; less has another reason."""
_REST: Final = 10.0
"""So many seconds it does not try again then: twice as many each time, up to a term."""
_QUIET: Final = 0.75
"""A machine is quiet if so much of its processors' time was idle in the last second."""


class Lingering(NamedTuple):
    """After how many seconds without a packet to linger, and whether other programs may go first meanwhile."""

    after: float
    yields: bool


_WITH_PRECEDENCE: Final = Lingering(0.001, False)
_QUIETLY: Final = Lingering(0.005, True)
"""Sooner no processor has gone to sleep, and it would cost more: 3 % of one at most, this way."""
_NOWHERE: Final = Lingering(math.inf, True)


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
    :param processors: how many the machine has; by default as many as the kernel says.
    """

    def __init__(
        self,
        wanted: bool,
        load: Callable[[], Load] = read_load,
        take: Callable[[bool], bool] | None = None,
        processors: int | None = None,
    ) -> None:
        self._wanted = wanted
        self._processors = processors or os.cpu_count() or 1
        self._load, self._take = load, take or _schedule
        self._before: Load | None = None
        self._carried = 0
        self._competed = False
        self._without: float | None = None
        """Bytes a second that it carried before it took the precedence, until that is judged."""
        self._term_ends = self._rest_ends = 0.0
        self._rest = 0.0
        self._is_quiet = False
        self.is_held = False

    @property
    def lingering(self) -> Lingering:
        """Where to, by what has been before the last look."""
        return _WITH_PRECEDENCE if self.is_held else _QUIETLY if self._is_quiet else _NOWHERE

    def look(self, carried: int) -> bool:
        """Take it or give it up, by what has been since the last look; whether it is held.

        :param carried: bytes of packets since some beginning.
        """
        before, self._before = self._before, self._read()
        fresh, self._carried = carried - self._carried, carried
        self._is_quiet = False
        if before is None or self._before is None or self._before.now <= before.now:
            return self.is_held
        time = self._before.now
        now, ran, waited, idle = (after - then for after, then in zip(self._before, before, strict=True))
        self._is_quiet = idle >= _QUIET * now * self._processors
        competes = waited >= _WORTH * now and waited >= _WAITED * (ran + waited)
        if self.is_held:
            if self._has_lost(fresh / now, time) or idle >= _IDLE * now or time >= self._term_ends:
                self.is_held = self._take(False)
        elif self._wanted and competes and self._competed and time >= self._rest_ends:
            self.is_held, self._term_ends, self._without = self._take(True), time + _TERM, fresh / now
        self._competed = competes
        return self.is_held

    def _has_lost(self, rate: float, time: float) -> bool:
        """Judge what it has carried since it took the precedence, once."""
        without, self._without = self._without, None
        if without is None:
            return False
        least, most = (share * without for share in _LOST)
        has_lost = least <= rate < most
        self._rest = min(2 * self._rest or _REST, _TERM) if has_lost else 0.0
        self._rest_ends = time + self._rest
        return has_lost

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
