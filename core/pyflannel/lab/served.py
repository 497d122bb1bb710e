"""What whoever starts :mod:`pyflannel.lab.serve` as a process hears of it: the store's URL, or why there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

__all__ = ["url_of", "why_not"]

START_TIMEOUT = 120.0
"""Seconds after which servers that have not come up are given up."""

_LINES: Final = 20
"""Of what servers said before they failed."""


def url_of(said: IO[str], log: Path, kill: Callable[[], None]) -> str:
    """The URL that the process prints when its servers answer; empty if it ends without one, or takes too long.

    :param said: its standard output; ``log`` has its standard error.
    :param kill: ends it.
    """

    def give_up() -> None:
        with log.open("a", encoding="utf-8") as last:
            last.write(f"given up: no answer within {START_TIMEOUT:g} s\n")
        kill()

    limit = threading.Timer(START_TIMEOUT, give_up)
    limit.daemon = True
    limit.start()
    try:
        return said.readline().strip()
    finally:
        limit.cancel()


def why_not(log: Path) -> str:
    """Why there is no URL, or no good end: what the process said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
    return "\n".join(lines) or "it said nothing"
