"""A virtual clock and what is to happen when: the scheduler of a simulation.

Time stands still while something happens and jumps to the next thing afterwards, so that an hour in which nothing is
due costs nothing. Things that are due at one moment happen in the order in which they were put down.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["Agenda"]


class Agenda:
    """See the module's docstring. :attr:`now` is in seconds and begins above 0, as a machine's clock does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.steps = 0
        """How many things have happened."""
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Have something happen at a time; at once, after all else that is due, if that has passed."""
        self._number += 1
        heapq.heappush(self._waiting, (max(time, self.now), self._number, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something happen so many seconds from now."""
        self.at(self.now + seconds, action)

    def step(self, end: float) -> bool:
        """Let the next thing happen if that is before ``end``, else the time until then pass; whether something did."""
        if not self._waiting or self._waiting[0][0] > end:
            self.now = max(self.now, end)
            return False
        self.now, _, action = heapq.heappop(self._waiting)
        self.steps += 1
        action()
        return True
