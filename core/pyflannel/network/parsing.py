"""The text of a network document as JSON: bounded, and an object. What its keys say is for others to judge.

A document is taken apart in two places, for its settings and for the change that is under way; both begin here.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from pyflannel.errors import ConfigError

__all__ = ["MAX_DOCUMENT", "json_object"]

MAX_DOCUMENT: Final = 1 << 18
"""Characters of a document at most."""


def json_object(text: str, source: str) -> dict[str, Any]:
    """Parse a document.

    :param source: what the text was read from; every error begins with it.
    :raises ConfigError: it is too long, no JSON, or no object.
    """
    if len(text) > MAX_DOCUMENT:
        raise ConfigError(f"{source}: it has more than {MAX_DOCUMENT} characters, which no network config needs")
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: expected a JSON object, found {type(document).__name__}")
    return document


def _no_constant(name: str) -> NoReturn:
    """Python's parser takes NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name} is no JSON value")
