"""Waking a thread that sleeps in ``select``: from any other thread, and from a signal handler.

The descriptor lives as long as anybody can still write to it: it is closed when the last reference goes.
"""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["Wake"]


class Wake:
    """An event that stays set until it is drained (``eventfd(2)``)."""

    def __init__(self) -> None:
        self._fd = -1
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """For ``select``: readable while set."""
        return self._fd

    def set(self) -> None:
        """Wake the sleeper. Never blocks, takes no lock."""
        with suppress(BlockingIOError):  # set 2**64 - 2 times: it is awake
            os.eventfd_write(self._fd, 1)

    def drain(self) -> None:
        """Sleep again until the next :meth:`set`."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
