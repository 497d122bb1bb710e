"""How much of an answer a driver reads: a server must not be able to fill this node's memory.

A store of 5,000 leases is some megabytes; what goes beyond :data:`LARGEST_ANSWER` is no answer to what is asked here.
Nor is what is nested so deeply that Python can't read it. Errors repeat no more than :func:`short` leaves of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["LARGEST_ANSWER", "TOO_LARGE", "parsed", "short", "whole"]

LARGEST_ANSWER: Final = 64 << 20
"""Bytes of an answer at most."""

_SHOWN: Final = 300

TOO_LARGE: Final = f"its answer has more than {LARGEST_ANSWER >> 20} MiB; nothing is read of it"


def whole(pieces: Iterable[bytes]) -> bytes:
    """What ``pieces`` make up, reading no more of them than an answer may have.

    :raises ValueError: it is more.
    """
    read, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > LARGEST_ANSWER:
            raise ValueError(TOO_LARGE)
        read.append(piece)
    return b"".join(read)


def parsed(text: str | bytes) -> Any:
    """An answer's JSON.

    :raises ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def short(text: str) -> str:
    """The beginning of what a server said, for an error."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
