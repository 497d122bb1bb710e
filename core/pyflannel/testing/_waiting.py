"""Waiting for what must come true, and naming it when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["eventually"]

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
