"""A trial's report as people read it: the network as a tree, who reaches whom as a table, and one line of verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pyflannel.lab.topology import SEGMENTS, SWITCH
from pyflannel.lab.trial import NodeReport, Report
from pyflannel.small.text import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

Cells: TypeAlias = "Mapping[tuple[str, str], float | None]"
"""(source, target) to milliseconds, ``None`` for no answer."""

__all__ = ["render"]

_WIDEST_MATRIX: Final = 12
"""Containers up to which the matrix is shown cell by cell."""

_SILENT_SHOWN: Final = 5
_NODES_SHOWN: Final = 20
_FAILURES_SHOWN: Final = 10
_LOGS_SHOWN: Final = 3


def render(report: Report) -> Iterator[RenderableType]:
    """The whole report, top to bottom."""
    yield _network(report)
    for version in report.reachability.versions:
        yield ""
        yield from _matrix(report, version)
    if report.throughput is not None:
        rate = report.throughput
        yield ""
        yield Text(f"TCP {rate.source} -> {rate.target}: {rate.bits_per_second / 1e9:.2f} Gbit/s")
    if report.changed is not None:
        done = report.changed
        yield ""
        yield Text(
            f"changed to {done.backend} in {done.seconds:.1f} s: {done.lost} of {done.sent} pings lost meanwhile"
        )
    yield from _failures(report)
    yield ""
    yield Text(report.verdict, style="bold green" if report.ok else "bold red")


def _network(report: Report) -> Tree:
    tree = Tree(f"[bold]{SWITCH}[/] underlay, {report.overlay.backend} over it, store {escape(report.overlay.store)}")
    shown = report.nodes[:_NODES_SHOWN]
    for segment in SEGMENTS:
        nodes = [node for node in shown if node.segment == segment.bridge]
        if nodes:
            branch = tree.add(f"[bold]{segment.bridge}[/] {segment.ipv4}, {segment.ipv6}, router .254")
            for node in nodes:
                _node(branch, node)
    if len(shown) < len(report.nodes):
        tree.add(f"and {counted(len(report.nodes) - len(shown), 'node')} more")
    return tree


def _node(tree: Tree, node: NodeReport) -> None:
    subnets = f"subnet {' '.join(node.subnets)}, MTU {node.mtu}" if node.subnets else "[red]no subnet[/]"
    state = f"[green]{node.state}[/]" if node.state == "ready" else f"[red]{escape(node.state)}[/]"
    branch = tree.add(f"[bold]{node.name}[/] {' '.join(node.underlay)}: {subnets}, {state}")
    for name, addresses in node.containers.items():
        branch.add(f"[bold]{name}[/] {' '.join(addresses) or '[red]no address[/]'}")


def _matrix(report: Report, version: int) -> Iterator[RenderableType]:
    matrix = report.reachability
    names = [name for name in matrix.names if any(name in (pair.source, pair.target) for pair in matrix.pairs)]
    cells = matrix.of(version)
    if len(names) <= _WIDEST_MATRIX:
        yield Text(f"IPv{version} ping from row to column, milliseconds")
        yield _cell_by_cell(names, cells)
    else:
        yield Text(f"IPv{version} ping from each container to all others")
        yield _row_by_row(names, cells)


def _cell_by_cell(names: Sequence[str], cells: Cells) -> Table:
    table = Table("from")
    for target in names:
        table.add_column(target, justify="right")
    for source in names:
        table.add_row(source, *(_cell(cells, source, target) for target in names))
    return table


def _row_by_row(names: Sequence[str], cells: Cells) -> Table:
    table = Table("from")
    for title in ("answered", "slowest ms"):
        table.add_column(title, justify="right")
    table.add_column("silent")
    for source in names:
        row = {target: cells[source, target] for target in names if (source, target) in cells}
        answers = [answer for answer in row.values() if answer is not None]
        silent = [target for target, answer in row.items() if answer is None]
        more = f" and {len(silent) - _SILENT_SHOWN} more" if len(silent) > _SILENT_SHOWN else ""
        table.add_row(
            source,
            f"{len(answers)}/{len(row)}",
            f"{max(answers):.2f}" if answers else "-",
            f"[red]{' '.join(silent[:_SILENT_SHOWN])}{more}[/]",
        )
    return table


def _cell(cells: Cells, source: str, target: str) -> str:
    if (source, target) not in cells:
        return "."
    answer = cells[source, target]
    return "[bold red]lost[/]" if answer is None else f"[green]{answer:.2f}[/]"


def _failures(report: Report) -> Iterator[RenderableType]:
    if report.failures:
        yield ""
    for failure in report.failures[:_FAILURES_SHOWN]:
        yield Text(f"failed: {failure.what}", style="red")
    if len(report.failures) > _FAILURES_SHOWN:
        yield Text(f"and {len(report.failures) - _FAILURES_SHOWN} failures more", style="red")
    for name, text in list(report.logs.items())[:_LOGS_SHOWN]:
        yield Text(f"\nthe end of {name}'s log:", style="bold")
        yield Text(text or "(empty)")
