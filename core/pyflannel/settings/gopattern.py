"""Regular expressions as flanneld's users write them: Go's syntax (RE2), read by Python's engine.

The two agree on nearly everything. What Python would read as something else without a word is translated (bracket
classes such as ``[[:digit:]]``, ``\\z``, flags at the start) or refused (``\\p``, ``\\Q``, ``(?U)``, flags further on).
Classes such as ``\\d`` are ASCII in Go.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["compile_pattern"]

_POSIX: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}

_TOKEN: Final = re.compile(
    r"\[:(?P<not>\^?)(?P<posix>[a-z]+):\]|\\(?P<escaped>.)|\(\?(?P<flags>[A-Za-z]*(?:-[A-Za-z]+)?)(?P<end>[:)])|.",
    re.DOTALL,
)


def compile_pattern(text: str) -> re.Pattern[str]:
    """Read a regular expression.

    :raises ValueError: it is none, or means something that only Go's engine can do.
    """
    try:
        return re.compile("".join(_translated(match) for match in _TOKEN.finditer(text)), re.ASCII)
    except re.error as error:
        raise ValueError(f"must be a regular expression: {error}") from None


def _translated(match: re.Match[str]) -> str:
    if match["posix"] is not None:
        if match["posix"] not in _POSIX or match["not"]:
            raise ValueError(f"must be a regular expression; {match[0]} is not known here")
        return _POSIX[match["posix"]]
    if match["escaped"] is not None:
        if match["escaped"] in "pPQEC":
            raise ValueError(f"must be a regular expression; {match[0]} is not known here")
        return r"\Z" if match["escaped"] == "z" else match[0]
    if match["flags"] and (set(match["flags"]) - set("ims-") or (match["end"] == ")" and match.start())):
        raise ValueError(f"must be a regular expression; write flags such as (?i) at its start, not {match[0]}")
    return match[0]
