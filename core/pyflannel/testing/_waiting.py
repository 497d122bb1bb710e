"""Waiting for what must come true, such as that nothing is left behind, and naming it when it does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["check_what_is_left", "eventually"]

PATIENCE = 120.0
"""Seconds after which the kit takes a thing for not happening at all. Nothing is judged by how long it took."""


def eventually(condition: Callable[[], bool], what: str | Callable[[], str], patience: float | None = None) -> None:
    """Wait for ``condition``; fail with ``what`` if it does not come true within ``patience`` (:data:`PATIENCE`).

    :param what: what is waited for, or a function that says it at the end, with what there is instead.
    """
    patience = PATIENCE if patience is None else patience
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {patience:g} s in vain for: {what() if callable(what) else what}")
        time.sleep(0.01)


def check_what_is_left(use: Callable[[], object], whose: str) -> None:
    """Fail if six uses of something leave five threads or files of this process behind: one may be kept for all."""
    threads, files = set(threading.enumerate()), _open_files()
    use()
    left: list[str] = []

    def gone() -> bool:
        left[:] = [thread.name for thread in threading.enumerate() if thread not in threads]
        left.extend(["a file"] * (_open_files() - files))
        return len(left) < 5

    eventually(gone, lambda: f"what {whose} had is gone; left are: {', '.join(left)}")


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
