"""Waiting for what comes true in its own time, with a patience that a busy machine stretches.

No test says how long something takes. What never comes true must end a test all the same, so there is a limit: what an
idle machine would never need, and on a busy one as many times that as there are programs for each CPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

import pytest

__all__ = ["LONG", "PATIENCE", "SLOWNESS", "crowd", "until"]

SLOWNESS: Final = float(os.environ.get("PYFLANNEL_SLOWNESS", 1))
"""How many times as long as usual everything takes in this machine (:mod:`tests.kernels.guest`)."""

PATIENCE: Final = 60.0 * SLOWNESS
"""Seconds, on an idle machine; as many times as many on a slow one."""

LONG: Final = 10 * PATIENCE
"""Seconds, for what is told beforehand how long it may wait, and so can't be stretched: the end of a command."""

_PAUSES: Final = 0.01, 0.5
"""Seconds between two looks, at least and at most."""

T = TypeVar("T")


def crowd() -> float:
    """How many programs want each CPU at present; at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def until(condition: Callable[[], T], what: object = "", patience: float = PATIENCE) -> T:
    """Wait until ``condition`` returns something true, and return that.

    It sleeps twice as long as a look took, half a second at most: others need the processors to get there.

    :param what: said if it does not, or what it returns then.
    """
    begin = looked = time.monotonic()
    while not (found := condition()):
        now = time.monotonic()
        if now - begin > patience * crowd():
            said = what() if callable(what) else what
            pytest.fail(f"not within {now - begin:.0f} s: {said or condition}")
        time.sleep(min(_PAUSES[1], max(_PAUSES[0], 2 * (now - looked))))
        looked = time.monotonic()
    return found
