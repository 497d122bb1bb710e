"""Threads of plugins for which the interpreter would wait when it exits."""

from __future__ import annotations

import threading
import time

__all__ = ["strangers"]


def strangers(patience: float = 0.0) -> list[str]:
    """The names of those that have not ended after ``patience`` seconds; all of ours are daemons."""
    deadline = time.monotonic() + patience
    left = []
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                left.append(thread.name)
    return left
