"""What the commands print: aligned columns for people, stable JSON for programs.

Texts from a store or a peer may hold anything, so control characters are made visible before a terminal sees them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from pyflannel.network.lease import JSON
from pyflannel.small.streams import answers
from pyflannel.small.text import inert

__all__ = ["duration", "say", "show_json", "show_table"]


def say(line: str) -> None:
    """A line of the command's answer."""
    click.echo(line, file=answers())


def show_json(document: JSON) -> None:
    """One document, indented."""
    say(json.dumps(document, indent=2))


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows in aligned columns below ``header``; an empty cell shows as ``-``."""
    table = [list(header), *([inert(cell) or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def duration(seconds: float) -> str:
    """``seconds`` in the two units that matter: ``23 h 59 min``, ``4 min 10 s``, ``12 s``."""
    whole = max(0, round(seconds))
    for size, name, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {name}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
