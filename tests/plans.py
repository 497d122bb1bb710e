"""What is wanted, kept as plans the way the overlay keeps it."""

from __future__ import annotations

from collections.abc import Iterable

from pyflannel.kernel.model import KernelObject, Key
from pyflannel.kernel.packed import Plan, Wanted, find, indexes, pack


class Plans(Wanted):
    """Some plans. ``looked_up`` counts the look-ups of single objects."""

    def __init__(self, *plans: Iterable[KernelObject]) -> None:
        self._plans = [pack(plan) for plan in plans]
        self.looked_up = 0

    def plans(self) -> list[Plan]:
        return self._plans

    def __len__(self) -> int:
        return sum(len(indexes(plan)) for plan in self._plans)

    def __getitem__(self, key: Key) -> KernelObject:
        self.looked_up += 1
        for plan in self._plans:
            item = find(plan, key)
            if item is not None:
                return item
        raise KeyError(key)
