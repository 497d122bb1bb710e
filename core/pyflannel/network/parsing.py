"""JSON that others wrote: what is read can be written again, and is JSON then. Of a network document also bounded, and
an object. What its keys say is for others to judge.

A document is taken apart in two places, for its settings and for the change that is under way; both begin here.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any, Final, NoReturn

from pyflannel.errors import ConfigError
from pyflannel.small.text import cut

__all__ = ["DECODER", "MAX_DOCUMENT", "deeper", "json_object", "overridden"]

MAX_DOCUMENT: Final = 1 << 18
"""Characters of a document at most."""

MAX_NESTING: Final = 100
"""How deep a document may go: Python can read one that it can't write again, if only just."""

_TOO_DEEP: Final = f"it is nested more than {MAX_NESTING} deep, which no network config needs"

MAX_DIGITS: Final = 1000
"""Digits of a whole number at most; none that means something has more than 20."""


def json_object(text: str, source: str) -> dict[str, Any]:
    """Parse a document.

    :param source: what the text was read from; every error begins with it.
    :raises ConfigError: it is too long, no JSON, or no object.
    """
    if len(text) > MAX_DOCUMENT:
        raise ConfigError(f"{source}: it has more than {MAX_DOCUMENT} characters, which no network config needs")
    if not text.strip():
        raise ConfigError(f"{source}: it is empty; a network config is a JSON object")
    if text.startswith("\ufeff"):
        raise ConfigError(f"{source}: it begins with a byte order mark, which JSON has not; save it without one")
    try:
        document = json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole_number,
            object_pairs_hook=_last_of_each,
        )
    except RecursionError:
        raise ConfigError(f"{source}: {_TOO_DEEP}") from None
    except ValueError as error:
        raise ConfigError(f"{source}: not valid JSON: {error}") from None
    if deeper(document, MAX_NESTING):
        raise ConfigError(f"{source}: {_TOO_DEEP}")
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: expected a JSON object, found {cut(json.dumps(document))}")
    return document


def deeper(value: Any, depth: int) -> bool:
    """Whether what JSON makes is nested more than ``depth`` deep."""
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(deeper(each, depth - 1) for each in inner)


def overridden(before: Any, value: Any) -> bool:
    """Whether a later value of the same key takes the place of an earlier one, as to Go's decoder: null may not."""
    return value is not None or before is None or isinstance(before, dict)


def _last_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The keys in the order in which they were said last."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if overridden(found.get(name), value):
            found.pop(name, None)
            found[name] = value
    return found


def _whole_number(digits: str) -> int:
    """Python's parser would refuse a number of thousands of digits with words of its own."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    """Python's parser takes NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    """A number beyond what a float can be would become infinite, and then be written as what is no JSON."""
    value = float(text)
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)


DECODER: Final = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
"""Reads a lease's text."""
