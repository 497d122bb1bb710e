"""The loop's side to the store: what the lease keeper's slot has, taken in slice by slice.

A new generation is planned aside, in an overlay of its own, which takes the former one's place when it is whole; if
that fails, it is tried again with growing pauses. Until then, and after, the leases that change are planned in the
overlay that holds. A slice is so small that the rest of a turn has its turn between two of them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import length_hint
from typing import Final

from pyflannel.daemon.calls import Calls
from pyflannel.errors import PyflannelError
from pyflannel.kernel.model import KernelObject
from pyflannel.membership.slot import Generation, Slot
from pyflannel.planning.overlay import OfLinks, Overlay
from pyflannel.small.retry import Backoff

__all__ = ["Adopted", "StoreSide"]

log = logging.getLogger(__name__)

SLICE: Final = 1000
"""Leases that are taken in before the rest of a turn has its turn."""

REPLAN_PAUSE: Final = 1.0
LONGEST_REPLAN_PAUSE: Final = 60.0
"""The first and the longest pause in seconds until the backend is asked again to plan for a peer that it failed for."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A generation that is in, and its overlay, which has all of its leases."""

    generation: Generation
    overlay: Overlay


@dataclass(slots=True)
class _Adoption:
    """A generation on its way in. Its overlay is filled aside, and takes the former one's place when it has all."""

    generation: Generation
    backoff: Backoff
    due: float = 0.0
    trouble: str = ""
    overlay: Overlay | None = None
    remaining: Iterator[tuple[str, str]] = field(default_factory=lambda: iter(()))
    later: dict[str, str | None] = field(default_factory=dict)
    """What has changed since its records were read."""


class StoreSide:
    """See the module's docstring.

    :param calls: where it is said that a backend plans.
    """

    def __init__(self, slot: Slot, calls: Calls, clock: Callable[[], float], rng: random.Random) -> None:
        self._slot, self._calls, self._clock, self._rng = slot, calls, clock, rng
        self.generation: Generation | None = None
        """The newest one that was read."""
        self._adoption: _Adoption | None = None
        """How that one comes in, until it holds."""
        self._dirty: dict[str, str | None] = {}
        self._replan_due: float | None = None
        self._replan_pause = Backoff(rng, REPLAN_PAUSE, LONGEST_REPLAN_PAUSE)

    @property
    def adopting(self) -> bool:
        """Whether a generation is on its way in."""
        return self._adoption is not None

    @property
    def trouble(self) -> str:
        """Why that one does not come in."""
        return self._adoption.trouble if self._adoption is not None else ""

    @property
    def begun(self) -> bool:
        """Whether a part of it is in."""
        return self._adoption is not None and self._adoption.overlay is not None

    @property
    def settled(self) -> bool:
        """Whether all that was read is in."""
        return self._adoption is None and not self._dirty

    def read(self, now: float) -> bool:
        """Take what is new in the slot; whether leases have changed."""
        drained, adoption = self._slot.drain(), self._adoption
        if drained.generation is not None and drained.generation is not self.generation:
            self.generation = drained.generation
            self._dirty.clear()  # a generation comes with all leases
            backoff = adoption.backoff if adoption is not None else Backoff(self._rng)
            self._adoption = _Adoption(drained.generation, backoff, now)
        if drained.dirty:
            self._dirty.update(drained.dirty)
            if self._adoption is not None:
                self._adoption.later.update(drained.dirty)
        return bool(drained.dirty)

    def again(self, generation: Generation, now: float) -> None:
        """Have a generation come in, which is the newest one but further in a change of the network."""
        self._adoption = _Adoption(generation, Backoff(self._rng), now)

    def next(self, now: float) -> Generation | None:
        """The generation that is about to come in, if it is time to go on with it."""
        return self._adoption.generation if self._adoption is not None and now >= self._adoption.due else None

    def adopt(self, generation: Generation, extras: Iterable[KernelObject], of_links: OfLinks) -> Adopted | None:
        """Bring a generation in by one more slice.

        :param generation: what :meth:`next` has said; while nothing of it is in, as far in a change as this node is.
        :param extras: what the node needs in the kernel besides what the backend plans; read while nothing is in yet.
        :param of_links: the same for the devices of single peers.
        :returns: the whole of it, once it is.
        """
        adoption = self._adoption
        assert adoption is not None
        adoption.generation = generation
        try:
            with self._calls.calling(generation.backend, "planning"):
                if adoption.overlay is None:
                    adoption.later.clear()
                    adoption.overlay = Overlay(generation.backend, generation.node, extras, generation.last, of_links)
                    adoption.remaining = iter(self._slot.records().items())
                for key, value in islice(adoption.remaining, SLICE):
                    adoption.overlay.put(key, value, self._slot.created(key))
                    self._calls.beat()
        except PyflannelError as error:
            adoption.overlay = None
            adoption.due = self._clock() + adoption.backoff.next()
            if str(error) != adoption.trouble:
                adoption.trouble = str(error)
                log.error("%s", error)
            return None
        if length_hint(adoption.remaining):
            return None
        self._adoption, self._dirty = None, dict(adoption.later)
        return Adopted(generation, adoption.overlay)

    def take_in(self, overlay: Overlay | None, now: float) -> None:
        """Plan a slice of the leases that have changed, and anew what the backend has failed at.

        :param overlay: the one that holds; ``None``: none does, and the one that comes will have it all.
        """
        if overlay is not None:
            self._plan(overlay)
            self._try_again(overlay, now)
        elif self._adoption is not None:
            self._dirty.clear()

    def _plan(self, overlay: Overlay) -> None:
        if not self._dirty:
            return
        with self._calls.calling(overlay.backend, "planning"):
            for key in list(islice(self._dirty, SLICE)):
                value = self._dirty.pop(key)
                if value is None:
                    overlay.remove(key)
                else:
                    overlay.put(key, value, self._slot.created(key))
                self._calls.beat()

    def _try_again(self, overlay: Overlay, now: float) -> None:
        """Plan anew for peers for which the backend has failed to."""
        if not overlay.faulty:
            self._replan_due = None
            self._replan_pause.reset()
        elif self._replan_due is None:
            self._replan_due = now + self._replan_pause.next()
        elif now >= self._replan_due:
            self._replan_due = now + self._replan_pause.next()
            with self._calls.calling(overlay.backend, "planning"):
                for key in list(islice(overlay.faulty, SLICE)):
                    overlay.retry(key)
                    self._calls.beat()

    @property
    def busy(self) -> bool:
        """Whether there is more to take in at once."""
        return bool(self._dirty) or self.begun

    @property
    def due(self) -> list[float]:
        """When something that failed is to be tried again."""
        adoption = [self._adoption.due] if self._adoption is not None else []
        return [*adoption, *([self._replan_due] if self._replan_due is not None else [])]
