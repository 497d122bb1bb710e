"""Texts made fit to be shown. Of what others wrote: nothing that moves a cursor, and not without an end.

What comes from a store may hold anything: escapes that rewrite a terminal, line ends that fake a log line, marks that
turn the direction of reading, megabytes.
"""

from __future__ import annotations

from typing import Final

__all__ = ["counted", "cut", "inert"]

_SHOWN: Final = 200

# What takes no room or shows nothing although Python calls it printable: Unicode's Default_Ignorable_Code_Point
# (DerivedCoreProperties.txt), as far as it is of letters and marks. A name with one of them reads as one without.
_UNSEEN: Final = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)


def inert(text: str) -> str:
    """``text`` with every character that is not simply seen written as an escape."""
    if text.isprintable() and (text.isascii() or _UNSEEN.isdisjoint(text)):
        return text
    return "".join(char if char.isprintable() and char not in _UNSEEN else ascii(char)[1:-1] for char in text)


def cut(text: str, limit: int = _SHOWN) -> str:
    """``text``, and of a longer one its beginning and its length."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def counted(number: int, noun: str) -> str:
    """``number`` and its noun, given in the singular; its plural takes an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
