"""What ``pyflannel network change`` shows: what is going to happen, and how far it is.

The same to everybody: a table that is drawn anew on a terminal, lines where there is none, and with ``--json`` one
document per line, each only if something has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final

import click

from pyflannel.cli.output import say
from pyflannel.errors import PyflannelError
from pyflannel.network.lease import JSON
from pyflannel.small.streams import answers
from pyflannel.small.text import inert

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from pyflannel.storetools.change import NodeStanding, Progress

__all__ = ["Shown", "outlook"]

_PHASES: Final = {
    "prepare": "preparing",
    "switch": "switching over",
    "retire": "taking the former settings away",
    "back": "going back",
    "done": "done",
}


class Shown:
    """Tells people or programs; the same thing only once. A context manager, for the terminal's sake."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._said: JSON = None
        self._live: Live | None = None

    def __enter__(self) -> Shown:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def plan(self, document: JSON, lines: Sequence[str]) -> None:
        """What is going to happen."""
        if self.as_json:
            say(json.dumps(document))
        else:
            for line in lines:
                say(line)

    def progress(self, progress: Progress) -> None:
        """How far it is, if that is new."""
        document = progress.to_json()
        if document == self._said:
            return
        self._said = document
        if self.as_json:
            say(json.dumps(document))
        elif answers().isatty():
            self._draw(progress)
        else:
            for line in _lines(progress):
                say(line)

    def trouble(self, error: PyflannelError) -> None:
        """The store can't be reached now."""
        if self.as_json:
            say(json.dumps({"trouble": str(error)}))
        else:
            click.echo(inert(f"{error}; trying again"), err=True)

    def interrupted(self) -> None:
        """Nobody drives it any more."""
        told = "interrupted: nodes stay where they are. 'pyflannel network change' goes on, with --abort it goes back"
        click.echo(f"\n{told}", err=True)

    def _draw(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=Console(file=answers()), auto_refresh=False)
            self._live.start()
        self._live.update(_table(progress), refresh=True)


def _title(progress: Progress) -> str:
    there = len(progress.nodes) - len(progress.waiting)
    since = f" (since {progress.since})" if progress.since else ""
    return f"{_PHASES[progress.phase]}: {there} of {len(progress.nodes)} nodes{since}"


def _lines(progress: Progress) -> Iterator[str]:
    yield _title(progress)
    for node in progress.nodes:
        if node.key in progress.waiting:
            yield f"  {inert(node.name)}: {inert(_missing(node, progress))}"


_ROWS: Final = 30
"""Nodes that are drawn: those that keep the others waiting come first."""


def _table(progress: Progress) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=inert(_title(progress)), title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("node", "address", "is"):
        table.add_column(column)
    nodes = sorted(progress.nodes, key=lambda node: (node.key not in progress.waiting, node.key))
    for node in nodes[:_ROWS]:
        waits = node.key in progress.waiting
        told = _missing(node, progress) if waits else node.step.value if node.step is not None else "there"
        style = ("red" if node.trouble or not node.answered else "yellow") if waits else "green"
        table.add_row(*(Text(inert(text)) for text in (node.name, node.address)), Text(inert(told), style))
    if len(nodes) > _ROWS:
        table.add_row(f"and {len(nodes) - _ROWS} more", "", "")
    return table


def _missing(node: NodeStanding, progress: Progress) -> str:
    if node.trouble:
        return node.trouble
    if not node.answered and node.key in progress.away:
        return f"has not answered, and has been gone since {progress.away[node.key]} (--without leaves it)"
    if not node.answered and not progress.over:
        return "has not answered: is it down, or does flanneld or an older pyflannel run there? (--without leaves it)"
    return node.step.value if node.step is not None else "on its way"


def outlook(nodes: Sequence[NodeStanding], away: Mapping[str, float], without: Sequence[str]) -> dict[str, str]:
    """Who can't take part, as far as the store tells: name to reason.

    :param away: seconds for which nodes have been gone.
    """
    found = {}
    for node in nodes:
        reason = ""
        if node.flanneld:
            reason = "flanneld runs there, which can't take part"
        elif node.older:
            reason = "an older pyflannel seems to run there, which can't take part"
        elif node.key in away:
            reason = f"it seems to be down, for {away[node.key] / 60:.0f} min or longer"
        if reason and not node.named(without):
            found[node.name] = reason
    return found
