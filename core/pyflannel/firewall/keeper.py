"""The thread that keeps the rules in place: it sleeps until the kernel tells of a change, then checks.

A thread of its own, because a check may start a program, and iptables may wait for its lock; neither must hold up the
daemon's loop, and what a check needs is imported beside the loop's start. What the loop wants is a frozen value put
into a slot; what it learns is one taken out.

A program may hang, too. The state then says so, and nothing else waits for it but our rules.

Somebody who removes our rules as fast as we write them gets at most :data:`BURST` answers in :data:`BURST_TIME`
seconds; after that only the resync period's, and the state says so. What the loop wants is done at once in any case.
"""

from __future__ import annotations

import logging
import select
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pyflannel.errors import KernelError
from pyflannel.firewall.model import Rules
from pyflannel.firewall.state import FirewallState
from pyflannel.small.scarcity import lacking
from pyflannel.small.wake import Wake

if TYPE_CHECKING:
    from pyflannel.firewall.monitor import Monitor
    from pyflannel.firewall.sync import Firewall

__all__ = ["FirewallKeeper"]

log = logging.getLogger(__name__)

PAUSE: Final = 0.2
"""Seconds between two checks at least: a restore by somebody else is many changes, and one look."""

STUMBLE_PAUSE: Final = 5.0
"""Seconds until the thread begins anew after something that it was not prepared for."""

SLOW: Final = 5.0
"""Seconds after which a check counts as one that hangs."""

HANGING: Final = f"nft or iptables has hung for more than {SLOW:g} s; no rules can be checked or written meanwhile"

LONGEST: Final = 86400.0
"""Seconds to sleep at most: epoll takes milliseconds, of which an int holds less than 25 days."""

JOIN: Final = 0.5
"""Seconds that a program may go on when the daemon stops."""

BURST: Final = 20
BURST_TIME: Final = 20.0


class FirewallKeeper:
    """Keeps :attr:`state` up to date. ``want`` and ``state`` may be used from any thread.

    :param make: makes the firewall, in our thread: it looks for programs.
    :param resync: seconds between looks at what sends no notifications.
    :param changed: called in our thread when :attr:`state` is another one.
    """

    def __init__(self, make: Callable[[], Firewall], resync: float, changed: Callable[[], None]) -> None:
        self._known = FirewallState()
        self._since: float | None = None
        """When the work began that is under way."""
        self._make = make
        self._resync = resync
        self._changed = changed
        self._wanted: deque[tuple[Rules, bool, int]] = deque(maxlen=1)
        self._asked = self._heard = self._seen_to = 0
        """How often :meth:`want` was called, up to which call we have heard, and have seen to."""
        self._made = self._begun = False
        self._anew = False
        self._stopping = False
        self._wake = Wake()
        self._not_before = 0.0
        self._repairs: deque[float] = deque(maxlen=BURST)
        self._thread = threading.Thread(target=self._run, name="firewall", daemon=True)

    def start(self) -> None:
        """Begin to listen. Nothing is touched before the first :meth:`want`."""
        self._thread.start()

    def want(self, rules: Rules, force_nftables: bool = False) -> None:
        """Say what should be in place."""
        self._asked += 1
        self._wanted.append((rules, force_nftables, self._asked))
        self._wake.set()

    @property
    def state(self) -> FirewallState:
        """How the rules stand, as the last check found it; and that the present one hangs, if it does."""
        known, since = self._known, self._since
        if since is None or time.monotonic() - since < SLOW:
            return known
        return replace(known, in_place=False, errors=(*known.errors, HANGING))

    @property
    def settled(self) -> bool:
        """Whether what was wanted last is in place, or nothing here could carry it."""
        if self._seen_to != self._asked:
            return False
        return self.state.port == "none" or (self.state.in_place and not self.state.errors)

    def reload(self, resync: float) -> None:
        """Take another resync period, and choose anew which port carries the rules."""
        self._resync = resync
        self._anew = True
        self._wake.set()

    def stop(self, timeout: float) -> bool:
        """End the thread, waiting so many seconds at most; the rules stay. Whether it has ended."""
        self._stopping = True
        self._wake.set()
        deadline = time.monotonic() + timeout
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            self._thread.join(min(left, JOIN))
            programs = sys.modules.get(f"{__package__}.programs")
            if programs is not None:  # else none was started
                programs.interrupt()  # again and again, for a check may start several
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            try:
                if not self._made:
                    with self._at_work():
                        self._firewall, self._made = self._make(), True
                self._listen()
            except Exception as error:  # no descriptor even to import something, or a fault; the daemon goes on
                scarce = lacking(error)
                told = (scarce or f"internal error: {type(error).__name__}: {error}",)
                if told != self._known.errors:
                    text = "the firewall's thread met an error and starts over: %s"
                    log.error(text, told[0], exc_info=None if scarce else error)
                self._tell(replace(self._known, in_place=False, errors=told))
                self._anew = True
                self._pause()

    def _pause(self) -> None:
        until_woken = select.poll()
        until_woken.register(self._wake, select.POLLIN)
        self._wake.drain()
        if not self._stopping:
            until_woken.poll(STUMBLE_PAUSE * 1000)

    def _listen(self) -> None:
        self._wake.set()  # for what was wanted before
        monitor = _monitor()
        try:
            self._work(monitor)
        finally:
            if monitor is not None:
                monitor.close()

    def _work(self, monitor: Monitor | None) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            if monitor is not None:
                selector.register(monitor.fileno(), selectors.EVENT_READ)
            due: float | None = None
            period = time.monotonic() + self._resync
            while not self._stopping:
                selector.select(max(0.0, min(due or period, period, time.monotonic() + LONGEST) - time.monotonic()))
                now = time.monotonic()
                period = min(period, now + self._resync)
                dirty = self._hear(monitor)
                if now >= period:
                    period = now + self._resync
                    dirty |= self._period_ended(monitor)
                if dirty and self._begun:
                    due = min(due or self._soon(now), self._soon(now))
                if due is not None and now >= due:
                    due = None
                    self._check(monitor)
                    self._not_before = time.monotonic() + PAUSE

    def _hear(self, monitor: Monitor | None) -> bool:
        """Take in what was wanted and told; whether that asks for a check."""
        dirty = False
        self._wake.drain()
        while self._wanted:
            rules, force_nftables, self._heard = self._wanted.popleft()
            self._firewall.want(rules, force_nftables)
            self._repairs.clear()
            self._begun = dirty = True
        if self._anew:
            self._anew = False
            self._firewall.reconsider()
            dirty = True
        if monitor is not None and monitor.changed():
            self._firewall.forget()
            dirty = True
        return dirty

    def _soon(self, now: float) -> float:
        """When the next check may be."""
        if len(self._repairs) == BURST and self._repairs[0] > now - BURST_TIME:
            if self._known.in_place:
                error = f"something else removes our rules again and again; the next try is in {self._resync:g} s"
                self._tell(replace(self._known, in_place=False, errors=(error,)))
            return now + self._resync
        return max(now, self._not_before)

    def _period_ended(self, monitor: Monitor | None) -> bool:
        """Look at what sends no notifications, without a program if possible; whether to check."""
        if monitor is None:
            self._firewall.forget()
        legacy = self._firewall.legacy_changed()
        return legacy or monitor is None or not self._firewall.state.in_place

    def _check(self, monitor: Monitor | None) -> None:
        with self._at_work():
            self._look_and_write(monitor)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Programs are run meanwhile, of which one may hang."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _look_and_write(self, monitor: Monitor | None) -> None:
        before = self._firewall.state
        if monitor is not None:
            monitor.changed()  # what happened up to now is seen by the look that follows
        try:
            state = self._firewall.check()
        except KernelError as error:
            self._firewall.forget()
            state = self._firewall.state = replace(before, in_place=False, errors=(str(error),))
        if monitor is not None:
            monitor.watch(self._firewall.watched)
        if state.repaired != before.repaired:
            self._repairs.append(time.monotonic())
            log.warning("restored the firewall rules after something else had changed the firewall")
        late, self._seen_to = self._seen_to != self._heard, self._heard
        if late and state == self._known:
            self._changed()
        self._tell(state)

    def _tell(self, state: FirewallState) -> None:
        if state != self._known:
            self._known = state
            self._changed()


def _monitor() -> Monitor | None:
    from pyflannel.firewall.monitor import Monitor

    try:
        return Monitor()
    except KernelError as error:
        log.debug("%s", error)
        return None
