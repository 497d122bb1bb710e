"""What the daemon counts and times about itself: a few numbers that the loop and the lease keeper bump."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pyflannel.errors import StoreDeniedError, StoreUnavailableError

__all__ = ["Histogram", "Measures"]

_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets, in seconds: from one changed lease to a cold start with thousands."""

_CALLS: Final = (
    "snapshot",
    "read_config",
    "write_config",
    "create",
    "update",
    "renew",
    "delete",
    "assigned",
    "announce",
)


class Histogram:
    """Durations in buckets. Written by one thread, readable by any."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self.total = 0.0

    def copy(self) -> Histogram:
        """One that nobody writes to."""
        copied = Histogram()
        copied._counts, copied.total = list(self._counts), self.total
        return copied

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound, as Prometheus writes it, to how many durations were not longer."""
        result, count = [], 0
        for bound, added in zip((*map(str, _BOUNDS), "+Inf"), list(self._counts), strict=True):
            count += added
            result.append((bound, float(count)))
        return result


@dataclass(slots=True)
class Measures:
    """The daemon's own numbers, since it started."""

    reconcile: Histogram = field(default_factory=Histogram)
    """Reconciliations that had something to write."""
    written: int = 0
    refused: int = 0
    reloads: int = 0
    store_calls: Mapping[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in _CALLS})
    store_failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_CALLS, 0))

    def called(self, name: str, seconds: float, error: BaseException | None) -> None:
        """Count a call of the store, under its method's name, and what it raised."""
        histogram = self.store_calls.get(name)
        if histogram is not None:
            histogram.observe(seconds)
            self.store_failures[name] += isinstance(error, (StoreUnavailableError, StoreDeniedError))

    def copy(self) -> Measures:
        """The numbers as they are now."""
        return replace(
            self,
            reconcile=self.reconcile.copy(),
            store_calls={name: histogram.copy() for name, histogram in self.store_calls.items()},
            store_failures=dict(self.store_failures),
        )
