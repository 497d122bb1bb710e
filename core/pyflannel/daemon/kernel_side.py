"""The loop's side to the kernel: what is heard from it, and what is written to it, again and again.

What is heard only says what to look at: the tracker, the underlay, or who else has routes in the overlay. What can't be
read or written stays due.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pyflannel.daemon.diversion_watch import CHECK_INTERVAL, DiversionWatch
from pyflannel.daemon.underlay_watch import UnderlayWatch
from pyflannel.errors import KernelError
from pyflannel.kernel.model import Kind
from pyflannel.kernel.port import KernelPort, Notice, Write
from pyflannel.kernel.refusal import changed
from pyflannel.kernel.tracker import Tracker
from pyflannel.network.underlay import Inventory
from pyflannel.settings.settings import Settings
from pyflannel.show.measures import Measures

__all__ = ["KernelSide"]

log = logging.getLogger(__name__)

SAID_AT_ONCE = 5
"""Lines about repairs in :data:`SAID_WITHIN` seconds: whoever changes a thing back as fast as it is repaired does so
hundreds of times a second."""

SAID_WITHIN = 10.0


class KernelSide:
    """See the module's docstring.

    :param tracker: what should be in the kernel, and what is.
    """

    def __init__(
        self,
        settings: Settings,
        port: KernelPort,
        tracker: Tracker,
        read_inventory: Callable[[], Inventory],
        measures: Measures,
        clock: Callable[[], float],
    ) -> None:
        now = clock()
        self._port, self._measures, self._clock = port, measures, clock
        self.tracker = tracker
        self.underlay = UnderlayWatch(settings, read_inventory, now)
        self.diversions = DiversionWatch(port, tracker, now)
        self.trouble = ""
        """Why the kernel can't be read."""
        self.repaired = 0
        """How often something was put right that somebody else had changed."""
        self.resync_due = now + settings.resync_interval
        self._repairs = _RepairLog()

    def hear(self, now: float, joined: bool) -> None:
        """Take in what the kernel has told.

        :param joined: there is an overlay, from which somebody's route could take packets away.
        """
        self._repairs.sum_up(now)
        try:
            notice = self._port.poll()
        except KernelError:
            notice = Notice(resync=True)  # the dump that this asks for says what is wrong
        self.tracker.observe(notice)
        theirs = notice.interfaces - self.tracker.link_names
        # The kernel tells of no IPv4 route that goes with its device.
        doubtful = self.diversions.found or self.diversions.suspects
        if joined and (notice.diversions or notice.resync or (doubtful and theirs)):
            self.diversions.look_soon(now)
        if notice.resync or theirs:
            self.underlay.look_soon(now)

    def resync(self, now: float, interval: float, joined: bool) -> None:
        """Have everything read anew, if it is time to; the next time in ``interval`` seconds."""
        if now >= self.resync_due:
            self.tracker.request_resync()
            if joined:
                self.diversions.look_soon(now)
            self.resync_due = now + interval

    def reconcile(self) -> None:
        """Write what differs."""
        begin = self._clock()
        try:
            done = self.tracker.reconcile()
        except KernelError as error:
            self.trouble = str(error)
            self.tracker.request_resync()
            self.resync_due = min(self.resync_due, self._clock() + CHECK_INTERVAL)
            return
        self.trouble = ""
        if done.written or done.refused:
            self._measures.reconcile.observe(self._clock() - begin)
            self._measures.written += done.written
            self._measures.refused += done.refused
        if done.repaired:
            self.repaired += len(done.repaired)
            self._repairs.say(done.repaired, begin)

    @property
    def refusals(self) -> list[str]:
        """What the kernel does not take, and why; links first, for what is on one that fails does so, too."""
        failures = self.tracker.failures
        return [str(failures[key].error) for key in sorted(failures, key=lambda key: key[0] is not Kind.LINK)]

    @property
    def due(self) -> list[float]:
        """When something is to be looked at or written again."""
        maybe = (self.underlay.due, self.diversions.due, self.tracker.retry_at, self._repairs.due)
        return [self.resync_due, *(at for at in maybe if at is not None)]


class _RepairLog:
    """Says what was repaired: the first few times each time, then how often."""

    def __init__(self) -> None:
        self._until = 0.0
        self._said = 0
        self._unsaid = 0
        self._last = ""

    @property
    def due(self) -> float | None:
        """When there is something to be summed up."""
        return self._until if self._unsaid else None

    def say(self, repaired: Sequence[Write], now: float) -> None:
        """Say it, or count it."""
        self.sum_up(now)
        if now >= self._until:
            self._until, self._said = now + SAID_WITHIN, 0
        others = len(repaired) - 1
        text = f"{changed(repaired[0])}{f' and {others} more' if others else ''}"
        if self._said < SAID_AT_ONCE:
            self._said += 1
            log.warning("repaired what something else had changed: %s", text)
        else:
            self._unsaid, self._last = self._unsaid + 1, text

    def sum_up(self, now: float) -> None:
        """Say how often it was, once the time is over."""
        if self._unsaid and now >= self._until:
            log.warning(
                "repaired what something else had changed, %d times more in %g s; the last time: %s",
                self._unsaid,
                SAID_WITHIN,
                self._last,
            )
            self._unsaid = 0
