"""When to try again: growing, jittered pauses, for everybody who retries.

Pure: a :class:`Backoff` is asked for the next pause and told when all is well. Its caller has the clock.
"""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Growing pauses with full jitter, so that a thousand nodes don't come back in one moment.

    :param first: the ceiling of the first pause in seconds; it doubles with every further one.
    :param last: the highest ceiling in seconds.
    """

    def __init__(self, rng: random.Random, first: float = 0.5, last: float = 15.0) -> None:
        self._rng, self._first, self._last = rng, first, last
        self.attempts = 0
        """How many pauses were taken since all was well."""

    def reset(self) -> None:
        """All is well: the next pause is a short one again."""
        self.attempts = 0

    def next(self) -> float:
        """The next pause in seconds: at least half of the first, at most the current ceiling."""
        ceiling = min(self._last, self._first * 2.0 ** min(self.attempts, 16))
        self.attempts += 1
        return self._first / 2 + self._rng.random() * (ceiling - self._first / 2)
