"""How the daemon's memory is looked after: a start needs more of it than what follows, and gives it back.

A start is a rush: hundreds of modules are imported, thousands of leases read, planned and written to the kernel, and
libraries run code that they will not run again. :func:`rush` prepares for it, :func:`settle` gives back what it took,
and :class:`Tidying` says when. And where there is none to be had, :func:`or_end` sees that the daemon doesn't go on
without a part of itself.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pyflannel.errors import ExitCode

__all__ = ["Tidying", "or_end", "rush", "settle", "trim"]

SETTLE_AFTER: Final = 2.0
"""Seconds from joining until the kernel has told of all that we write then: time to give back what that took."""

MANY: Final = 1000
"""Leases whose planning takes enough for a moment to be worth that work again."""

TRIM_PAUSE: Final = 30.0
"""Seconds from a change of leases until memory is given back: a store may have read them all again to find it."""

_OUT_OF_MEMORY: Final = (
    b"pyflannel: a thread has ended for want of memory, and the daemon with it; forwarding goes on\n"
)

_USUAL_THRESHOLD: Final = gc.get_threshold()

# How many new objects the collector of cycles waits for in a rush. None of what we read and plan is in a cycle, nor is
# what modules are made of ever free; looking at all of it again and again would take a tenth of the time.
_RUSH_THRESHOLD: Final = 50_000


_M_ARENA_MAX: Final = -8
"""Of ``malloc.h``."""


@contextmanager
def or_end() -> Iterator[None]:
    """End the process on the spot when a thread of whomever dies for want of memory.

    A thread that gets no memory to begin with takes along whoever waits for it to have begun: Python's own
    ``Thread.start``, and so a library that was opening a watch, which then never tells anything nor fails. A new
    process is there within a second, and packets don't wait for it.
    """
    _load_unwinder()
    before = sys.unraisablehook, threading.excepthook
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    guard = threading.Thread(target=_look_out, args=(told, *before), name="pyflannel-memory", daemon=True)
    guard.start()
    # A thread that has no memory to begin with has none for a hook in Python either: this is all that it can call.
    sys.unraisablehook = threading.excepthook = told.put
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = before
        told.put(None)
        guard.join()


def _load_unwinder() -> None:
    """Load libgcc_s, while there is a descriptor for it.

    glibc loads it itself when a thread ends in its middle (pthread_exit(3)), as those do that are still there when
    Python exits, and aborts the process where it can't. Another libc does without.
    """
    with suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")


def _look_out(
    told: queue.SimpleQueue[Any], unraisable: Callable[[Any], object], uncaught: Callable[[Any], object]
) -> None:
    while (failure := told.get()) is not None:
        if failure.exc_type is MemoryError:
            try:
                os.write(2, _OUT_OF_MEMORY)
            finally:
                os._exit(ExitCode.KERNEL)
        otherwise = uncaught if isinstance(failure, threading.ExceptHookArgs) else unraisable
        otherwise(failure)
        del failure


@contextmanager
def rush() -> Iterator[None]:
    """Let nothing get in the way until :func:`settle`, or the end of the block."""
    gc.set_threshold(_RUSH_THRESHOLD)
    _share()
    try:
        yield
    finally:
        gc.set_threshold(*_USUAL_THRESHOLD)


def _share() -> None:
    """Have all threads allocate from one heap, where libc would give each its own: mallopt(3), M_ARENA_MAX.

    What the store's thread frees is then there for the loop's. Python allocates in one thread at a time anyway, and
    gRPC's threads do little; with thousands of peers it saves a sixth of the memory.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


def settle() -> None:
    """Give back what a rush took for a moment. Takes some tens of milliseconds."""
    gc.set_threshold(*_USUAL_THRESHOLD)
    gc.collect()
    trim()
    _drop_program_text()


def trim() -> None:
    """Give back what is free, a few milliseconds' work: malloc_trim(3), where libc has it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _drop_program_text() -> None:
    """Unmap the pages of programs and libraries until they run again: half of gRPC's 17 MB are run once, to start it.

    Such pages are never written to: the next to run them finds them in the page cache (madvise(2), MADV_DONTNEED). A
    process that gets no descriptor at present keeps them.
    """
    libc = ctypes.CDLL(None)
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in maps.splitlines():
        addresses, rights, _, _, inode, *_ = line.split()  # proc_pid_maps(5)
        if rights == "r-xp" and inode != "0":
            start, end = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


class Tidying:
    """When the loop gives back memory: a while after what took it for a moment."""

    def __init__(self) -> None:
        self._started = False
        self._settle_due: float | None = None
        self._trim_due: float | None = None

    def joined(self, now: float, leases: int) -> None:
        """A whole overlay of so many leases has been planned, and is on its way into the kernel.

        A network that is changed has a few of them within seconds.
        """
        if not self._started or self._settle_due is not None or leases >= MANY:
            self._settle_due = now + SETTLE_AFTER
        else:
            self.changed(now)

    def changed(self, now: float) -> None:
        """Leases have changed."""
        if self._trim_due is None:
            self._trim_due = now + TRIM_PAUSE

    @property
    def due(self) -> list[float]:
        """When there is something to give back."""
        return [at for at in (self._settle_due, self._trim_due) if at is not None]

    def tidy(self, now: float) -> None:
        """Give it back, if it is time to."""
        if self._settle_due is not None and now >= self._settle_due:
            self._settle_due = self._trim_due = None
            self._started = True
            settle()
        elif self._trim_due is not None and now >= self._trim_due:
            self._trim_due = None
            trim()
