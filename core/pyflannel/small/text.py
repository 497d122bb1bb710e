"""Texts made fit to be shown. Of what others wrote: nothing that moves a cursor, and not without an end.

What comes from a store may hold anything: escapes that rewrite a terminal, line ends that fake a log line, marks that
turn the direction of reading, megabytes.
"""

from __future__ import annotations

from typing import Final

__all__ = ["counted", "cut", "inert"]

_SHOWN: Final = 200


def inert(text: str) -> str:
    """``text`` with every character that is not simply seen written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def cut(text: str, limit: int = _SHOWN) -> str:
    """``text``, and of a longer one its beginning and its length."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def counted(number: int, noun: str) -> str:
    """``number`` and its noun, given in the singular; its plural takes an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
