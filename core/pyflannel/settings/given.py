"""A setting as it was given: its value, which source it is from, and what messages call that."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Given", "GivenValues", "Level", "nearest"]


class Level(IntEnum):
    """The sources, weakest first; the daemon that runs is one for commands that look at it."""

    FILE = 0
    DAEMON = 1
    ENVIRONMENT = 2
    FLAG = 3


class Given(NamedTuple):
    """A value and where it came from: ``origin`` begins every message about it."""

    value: Any
    level: Level
    origin: str
    texts: tuple[str, ...] = ()


GivenValues: TypeAlias = Mapping[str, Given]


def nearest(key: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """The end of a message about an unknown key: the one that was probably meant, or all that there are."""
    folded = {name.lower().replace("_", "-"): name for name in known}
    near = difflib.get_close_matches(key.lower().replace("_", "-"), folded, 1)
    return f"; did you mean {folded[near[0]]!r}?" if near else f"; known are: {', '.join(sorted(known))}"
