"""Regular expressions as flanneld's users write them: Go's syntax (RE2), read by Python's engine.

The two agree on nearly everything. What Python would read as something else without a word is translated (bracket
classes such as ``[[:digit:]]``, ``\\z``, ``\\x{41}``, ``(?<name>...)``, a brace that begins no repetition) or refused:
what only Go's engine can do (``\\p``, ``\\Q``, ``(?U)``, flags further on), and what only Python's can (looking ahead
and behind, references to groups, possessive repetitions). Classes such as ``\\d`` are ASCII in Go.
"""

from __future__ import annotations

import re
import sys
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

_POSIX_CLASS: Final = re.compile(r"\[:(?P<not>\^?)(?P<name>[a-z]+):\]|\\.", re.DOTALL)

_TOKEN: Final = re.compile(
    r"(?P<set>\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^\\\]])*\])"
    r"|\\(?P<escaped>x\{[0-9A-Fa-f]{1,6}\}|[1-7][0-7]{2}|.)"
    r"|\(\?(?P<flags>[A-Za-z]*(?:-[A-Za-z]+)?)(?P<end>[:)])"
    r"|\(\?(?P<group>P?<[A-Za-z_]\w*>|.?)"
    r"|(?P<repetition>[*+?]|\{[0-9]+(?:,[0-9]*)?\})(?P<possessive>\+?)"
    r"|.",
    re.DOTALL | re.ASCII,
)


def compile_pattern(text: str) -> re.Pattern[str]:
    """Read a regular expression.

    :raises ValueError: it is none, or means something that only one of the two engines can do.
    """
    try:
        return re.compile("".join(_translated(match) for match in _TOKEN.finditer(text)), re.ASCII)
    except (re.error, OverflowError) as error:
        raise ValueError(f"must be a regular expression: {error}") from None


def _translated(match: re.Match[str]) -> str:
    if match["set"] is not None:
        return "[" + _POSIX_CLASS.sub(_translated_in_set, match["set"][1:])
    if match["escaped"] is not None:
        return _translated_escape(match["escaped"])
    if match["group"] is not None:
        if not match["group"].endswith(">") or len(match["group"]) == 1:
            raise _unknown(match[0])
        return f"(?P{match['group'].removeprefix('P')}"
    if match["flags"] and (set(match["flags"]) - set("ims-") or (match["end"] == ")" and match.start())):
        raise ValueError(f"must be a regular expression; write flags such as (?i) at its start, not {match[0]}")
    if match["possessive"]:
        raise _unknown(match[0])
    return r"\{" if match[0] == "{" else match[0]


def _translated_in_set(match: re.Match[str]) -> str:
    if match["name"] is None:
        return match[0]
    if match["name"] not in _POSIX or match["not"]:
        raise _unknown(match[0])
    return _POSIX[match["name"]]


def _translated_escape(escaped: str) -> str:
    if escaped.startswith("x{") and int(escaped[2:-1], 16) <= sys.maxunicode:
        return re.escape(chr(int(escaped[2:-1], 16)))
    if escaped in "pPQECZNuU" or (escaped.isdecimal() and escaped != "0" and len(escaped) == 1):
        raise _unknown(f"\\{escaped}")
    return r"\Z" if escaped == "z" else f"\\{escaped}"


def _unknown(part: str) -> ValueError:
    return ValueError(f"must be a regular expression; {part} is not known here")
