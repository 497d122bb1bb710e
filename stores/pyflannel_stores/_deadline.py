"""A point in time that a driver's call must not pass, however many steps it takes (:data:`CALL_TIMEOUT`)."""

from __future__ import annotations

import time

__all__ = ["Deadline"]


class Deadline:
    """A point in time that a call must not pass."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that remain, never negative."""
        return max(0.0, self._end - time.monotonic())

    def part(self, reserve: float) -> Deadline:
        """A deadline ``reserve`` seconds before this one, for what comes before the last step."""
        return Deadline(max(0.0, self.left - reserve))

    def share(self, parts: int) -> Deadline:
        """The deadline of the first of ``parts`` equal attempts."""
        return Deadline(self.left / parts)
