"""Signals that a main thread asleep in ``select`` hears for certain.

Python runs a handler when the main thread next comes to its bytecode. A signal that the kernel hands to another thread,
or that comes just before the main thread goes to sleep, interrupts no sleep: its handler would wait for whatever wakes
the thread next. So the part of Python that runs at once also writes to a descriptor, on which the sleeper waits too
(:func:`signal.set_wakeup_fd`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

__all__ = ["Bell", "heard"]


class Bell:
    """Rung by each signal of :func:`heard`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """For ``select``: readable while rung."""
        return self._fd

    def drain(self) -> None:
        """Be quiet until the next signal."""
        with suppress(BlockingIOError):
            while os.read(self._fd, 64):
                pass


@contextmanager
def heard(reactions: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[Bell]:
    """Let these signals have these reactions, in the main thread; afterwards they are ignored.

    :param reactions: what each signal calls, whatever the main thread is at.
    :returns: what the main thread must wait for as well, wherever it sleeps without a limit.
    """

    def handle(number: int, _: object) -> None:
        reactions[signal.Signals(number)]()

    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # a full pipe rings, too
        for number in reactions:
            signal.signal(number, handle)
        yield Bell(reading)
    finally:
        for number in reactions:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(reading)
        os.close(writing)
