"""The page about a run: a picture of it along time, and its figures. Nothing outside the page is needed to show it.

The picture is drawn once, as SVG: it stands in the page, and a program makes a PNG of it where there is one.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final

from tests.chaos.judge import PROMISES, Violation, unhindered
from tests.chaos.plan import DAEMON, KINDS, ONE_FAMILY, PATH, PROMISE, SETTLED, STORE
from tests.chaos.record import ALL, Hindrance, History, Mood, Outage

__all__ = ["page", "picture", "waits", "write"]

WIDTH: Final = 1500
"""Of the picture of a short run; a long one's is wider."""

_LEFT: Final = 64
_RIGHT: Final = 16
_HEAD: Final = 128
_LANE: Final = 44
_LETTER: Final = 5.4

_REPAIR: Final = "#1b7f3b"
_COLOURS: Final[Mapping[str, str]] = {PATH: "#d9822b", DAEMON: "#3b73b9", STORE: "#7e57c2", "": "#8a8a8a"}
_LEGEND: Final = (
    ("#d9822b", "fault on the packets' way"),
    ("#3b73b9", "fault of a daemon"),
    ("#7e57c2", "fault of the store"),
    ("#8a8a8a", "harmless, if all is well"),
    ("#a9d3a0", "node is ready"),
    ("#ecc94b", "says what is wrong"),
    ("#b8b8b8", "says nothing"),
    (_REPAIR, "puts right what was changed"),
    ("#c62828", "packets of the node are lost"),
)
_MOODS: Final[Mapping[str, str]] = {"ready": "#a9d3a0", "silent": "#b8b8b8"}

_STYLE: Final = (
    "text{font-family:'DejaVu Sans',Verdana,sans-serif;font-size:11px;fill:#222}"
    ".t{font-size:19px;font-weight:bold}.s{fill:#555}.l{font-size:8.5px;fill:#fff}.n{font-weight:bold}"
)


def write(directory: Path, history: History, violations: Sequence[Violation]) -> None:
    """The page, the picture and all that was seen, into a directory that is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = picture(history, violations)
    (directory / "history.json").write_text(history.to_json(), encoding="utf-8")
    (directory / "index.html").write_text(page(history, violations, drawn), encoding="utf-8")
    renderer = shutil.which("rsvg-convert")
    if renderer is None:
        print("no PNG: rsvg-convert is not installed (apt-get install librsvg2-bin)")
        return
    subprocess.run(
        [renderer, "--background-color=white", "--output", directory / "timeline.png"],
        input=drawn.encode(),
        check=True,
    )


# Figures


def waits(history: History) -> Iterator[tuple[Outage, float]]:
    """Outages, and how many seconds of each nothing hindered either end."""
    for outage in history.outages:
        free = unhindered(history, (outage.source, outage.target), outage.begin, outage.end)
        yield outage, max((end - begin for begin, end in free), default=0.0)


def _figures(history: History, violations: Sequence[Violation]) -> list[tuple[str, str]]:
    plan, outages = history.plan, history.outages
    longest = max((wait for _, wait in waits(history)), default=0.0)
    lost = sum(outage.lost for outage in outages)
    sent = history.figures.get("packets", 0)
    nodes = {name for _, name in history.looked}
    pairs = len(nodes) * (len(nodes) - 1)
    used = history.figures
    return [
        ("verdict", f"{len(violations)} violations" if violations else "nothing was violated"),
        (
            "run",
            f"{history.ended / 60:.1f} minutes, {len(nodes)} nodes, {plan.backend} on {plan.store}, seed {plan.seed}",
        ),
        ("faults", f"{len(history.hindrances)} that may hinder, {len(plan.faults)} planned"),
        ("packets", f"{sent} between {pairs} ordered pairs; {lost} lost ({100 * lost / max(sent, 1):.2f} %)"),
        ("gaps", f"{len(outages)}, of which {sum(outage.lost > 3 for outage in outages)} of more than 3 packets"),
        ("longest wait", f"{longest:.1f} s for a pair that nothing hindered any more (promised: {PROMISE:.0f} s)"),
        ("repairs", f"{sum(count for _, _, count in history.repairs)} objects put right that something else changed"),
        ("close looks", f"{len(history.looked)}, with {len(history.looks)} findings"),
        ("changes of the store", f"{len(history.changes)}"),
        ("the store holds", "; ".join(f"{keys} keys, {size / (1 << 20):.1f} MB" for _, keys, size in history.stored)),
        ("a daemon needs", _needs(history)),
        ("machine", _machine(used)),
    ]


def _machine(used: Mapping[str, Any]) -> str:
    return (
        f"{used.get('cpus')} CPUs, Linux {used.get('kernel')}, load {used.get('load', 0):.1f} on average; the traffic "
        f"took {100 * used.get('pinging', 0):.0f} % of a CPU, watching {100 * used.get('own', 0):.0f} %"
    )


def _needs(history: History) -> str:
    if not history.samples:
        return "?"
    last = max(sample.at for sample in history.samples)
    parts = []
    for name, unit in (("memory", 1 << 20), ("descriptors", 1), ("threads", 1)):
        first = [getattr(sample, name) / unit for sample in history.samples if sample.at < 20]
        after = [getattr(sample, name) / unit for sample in history.samples if sample.at > last - 5]
        what = "MB" if name == "memory" else name
        parts.append(f"{statistics.median(first or [0]):.0f} {what} (at the end {statistics.median(after or [0]):.0f})")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class _Kind:
    number: int
    lost: int
    waits: tuple[float, ...]


def _by_kind(history: History) -> dict[str, _Kind]:
    """Per kind: how often, and of the gaps that began after it, packets and unhindered waits."""
    number = Counter(hindrance.kind for hindrance in history.hindrances)
    lost: Counter[str] = Counter()
    waited: dict[str, list[float]] = {}
    for outage, wait in waits(history):
        cause = _cause(history, outage)
        if cause is not None:
            lost[cause.kind] += outage.lost
            waited.setdefault(cause.kind, []).append(wait)
    return {kind: _Kind(count, lost[kind], tuple(waited.get(kind, ()))) for kind, count in sorted(number.items())}


def _cause(history: History, outage: Outage) -> Hindrance | None:
    """What befell one of the ends last before a gap."""
    ends = (outage.source, outage.target)
    before = [h for h in history.hindrances if h.node in ends and h.what == PATH and h.begin <= outage.begin + 1.0]
    return max(before, key=lambda hindrance: hindrance.begin, default=None)


# The picture


class _Scale:
    def __init__(self, seconds: float) -> None:
        self.width = round(min(max(WIDTH, seconds), 1.6 * WIDTH))
        self.bin = max(1.0, seconds / 900)
        """Seconds of which losses are drawn as one."""
        self._each = (self.width - _LEFT - _RIGHT) / max(seconds, 1.0)
        self.seconds = seconds

    def x(self, at: float) -> float:
        return round(_LEFT + self._each * min(max(at, 0.0), self.seconds), 1)

    def wide(self, begin: float, end: float, least: float = 0.0) -> float:
        return round(max(self.x(end) - self.x(begin), least), 1)


def picture(history: History, violations: Sequence[Violation]) -> str:
    """The run along time, as SVG: the store above, then the nodes, each with its faults, moods and losses."""
    scale = _Scale(history.ended)
    names = [f"n{number + 1}" for number in range(history.plan.nodes)]
    height = _HEAD + _LANE * (len(names) + 1) + 12
    size = f'viewBox="0 0 {scale.width} {height}" width="{scale.width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<style>{_STYLE}</style>",
        f'<rect width="{scale.width}" height="{height}" fill="#fff"/>',
        *_heading(history, violations, scale.width),
        *_storms(history, scale, height),
        *_axis(scale, height),
        *_lane(history, scale, ALL, "store", _HEAD),
    ]
    for number, name in enumerate(names):
        parts += _lane(history, scale, name, name, _HEAD + _LANE * (number + 1))
    places = {name: _HEAD + _LANE * (number + 1) for number, name in enumerate(names)}
    parts += _crosses(violations, scale, places)
    return "\n".join([*parts, "</svg>"])


def _heading(history: History, violations: Sequence[Violation], width: int) -> Iterator[str]:
    figures = dict(_figures(history, violations))
    plan = history.plan
    colour = "#b71c1c" if violations else "#2e7d32"
    yield f'<text x="16" y="30" class="t">Chaos: {plan.nodes} nodes of {plan.backend} on {plan.store}</text>'
    yield f'<text x="{width - 16}" y="30" text-anchor="end" class="t" style="fill:{colour}">{figures["verdict"]}</text>'
    line = (
        f"seed {plan.seed}, {figures['faults']}; packets: {figures['packets']}; longest wait {figures['longest wait']}"
    )
    yield f'<text x="16" y="52" class="s">{escape(line)}</text>'
    yield f'<text x="16" y="69" class="s">{escape(figures["machine"])}</text>'
    x = 16
    for colour, text in _LEGEND:
        yield f'<rect x="{x}" y="82" width="12" height="12" fill="{colour}"/><text x="{x + 17}" y="92">{text}</text>'
        x += 32 + round(6.7 * len(text))


def _storms(history: History, scale: _Scale, height: int) -> Iterator[str]:
    begin = 0.0
    for look in history.plan.looks:
        storm = look - SETTLED
        first = min((fault.at for fault in history.plan.faults if begin <= fault.at <= storm), default=storm)
        x, wide = scale.x(first), scale.wide(first, storm)
        yield f'<rect x="{x}" y="{_HEAD - 4}" width="{wide}" height="{height - _HEAD}" fill="#f6f1e7"/>'
        yield f'<path d="M{scale.x(look - 1)} {_HEAD - 4}V{height - 8}" stroke="#2e7d32" stroke-dasharray="4 3"/>'
        begin = look


def _axis(scale: _Scale, height: int) -> Iterator[str]:
    step = next(step for step in (10, 20, 30, 60, 120, 300, 600) if scale.seconds / step <= 24)
    for at in range(0, int(scale.seconds) + 1, step):
        x = scale.x(at)
        yield f'<path d="M{x} {_HEAD - 6}V{height - 8}" stroke="#0001"/>'
        yield f'<text x="{x}" y="{_HEAD - 10}" text-anchor="middle" class="s">{at // 60}:{at % 60:02}</text>'


def _lane(history: History, scale: _Scale, node: str, label: str, y: int) -> Iterator[str]:
    yield f'<path d="M{_LEFT} {y + _LANE - 2}H{scale.width - _RIGHT}" stroke="#ddd"/>'
    yield f'<text x="{_LEFT - 8}" y="{y + 22}" text-anchor="end" class="n">{label}</text>'
    if node != ALL:
        yield from _moods([mood for mood in history.moods if mood.node == node], scale, history.ended, y + 1)
        yield from _repairs(history, scale, node, y)
    rows = list(_rows([one for one in history.hindrances if one.node == node]))
    for index, (row, hindrance) in enumerate(rows):
        after = next((other.begin for other_row, other in rows[index + 1 :] if other_row == row), history.ended)
        yield from _bar(hindrance, scale, y + 8 + 12 * row, scale.x(after))
    if node == ALL:
        yield from _harmless(history, scale, y + 32)
    else:
        yield from _losses(history, scale, node, y + 33)


def _moods(moods: Sequence[Mood], scale: _Scale, ended: float, y: int) -> Iterator[str]:
    ends = [mood.at for mood in moods[1:]] + [ended]
    spans = [(_MOODS.get(mood.state, "#ecc94b"), mood.at, end) for mood, end in zip(moods, ends, strict=False)]
    for colour, group in groupby(spans, key=lambda span: span[0]):
        same = list(group)
        x, wide = scale.x(same[0][1]), scale.wide(same[0][1], same[-1][2], 0.5)
        yield f'<rect x="{x}" y="{y}" width="{wide}" height="4" fill="{colour}"/>'


def _repairs(history: History, scale: _Scale, node: str, y: int) -> Iterator[str]:
    for at, name, count in history.repairs:
        if name == node:
            x, title = scale.x(at), f"<title>{count} put right by {at:.0f} s</title>"
            yield f'<path d="M{x} {y - 1}V{y + 7}" stroke="{_REPAIR}" stroke-width="2.5">{title}</path>'


def _rows(hindrances: Sequence[Hindrance]) -> Iterator[tuple[int, Hindrance]]:
    """In which of two rows each stands, so that few cover each other."""
    until = [0.0, 0.0]
    for one in sorted(hindrances, key=lambda hindrance: hindrance.begin):
        row = 0 if until[0] <= one.begin else 1
        until[row] = max(until[row], one.end, one.begin + 3.0)
        yield row, one


def _bar(one: Hindrance, scale: _Scale, y: int, room: float) -> Iterator[str]:
    """A fault, with its name in it, or behind it up to ``room``."""
    x, wide, colour = scale.x(one.begin), scale.wide(one.begin, one.end, 2.5), _COLOURS[one.what]
    title = f"<title>{one.kind} at {one.begin:.1f} s for {one.end - one.begin:.1f} s</title>"
    yield f'<rect x="{x}" y="{y}" width="{wide}" height="11" rx="1.5" fill="{colour}" opacity=".9">{title}</rect>'
    text = _LETTER * len(one.kind) + 4
    if wide > text:
        yield f'<text x="{x + 2}" y="{y + 8.5}" class="l">{one.kind}</text>'
    elif x + wide + text < room:
        yield f'<text x="{x + wide + 2}" y="{y + 8.5}" class="l" style="fill:{colour}">{one.kind}</text>'


def _harmless(history: History, scale: _Scale, y: int) -> Iterator[str]:
    for fault in history.plan.faults:
        if not KINDS[fault.kind].hinders:
            x, wide = scale.x(fault.at), scale.wide(fault.at, fault.at + fault.lasts, 2.5)
            title = f"<title>{fault.kind} at {fault.at:.1f} s</title>"
            yield f'<rect x="{x}" y="{y}" width="{wide}" height="3" fill="#8a8a8a" opacity=".6">{title}</rect>'


def _losses(history: History, scale: _Scale, node: str, y: int) -> Iterator[str]:
    bins: Counter[int] = Counter()
    for outage in history.outages:
        if node in (outage.source, outage.target):
            bins.update(range(int(outage.begin / scale.bin), int(outage.end / scale.bin) + 1))
    streams = 2 * (history.plan.nodes - 1) * (1 if history.plan.backend in ONE_FAMILY else 2)
    levels = {number: min(4, 1 + int(4 * count / streams)) for number, count in bins.items()}
    numbers = sorted(levels)
    begin = 0
    for index, (number, after) in enumerate(pairwise([*numbers, -1])):
        if after != number + 1 or levels[after] != levels[number]:
            first = numbers[begin]
            x, wide = scale.x(first * scale.bin), scale.wide(first * scale.bin, (number + 1) * scale.bin, 1.0)
            opacity = 0.25 * levels[number]
            yield f'<rect x="{x}" y="{y}" width="{wide}" height="7" fill="#c62828" opacity="{opacity:g}"/>'
            begin = index + 1


def _crosses(violations: Iterable[Violation], scale: _Scale, places: Mapping[str, int]) -> Iterator[str]:
    for violation in violations:
        x, y = scale.x(violation.at), places.get(violation.node, _HEAD) + 14
        title = f"<title>{escape(str(violation))}</title>"
        path = f"M{x - 6} {y - 6}L{x + 6} {y + 6}M{x - 6} {y + 6}L{x + 6} {y - 6}"
        yield f'<path d="{path}" stroke="#b71c1c" stroke-width="3">{title}</path>'


# The page

_PAGE_STYLE: Final = (
    "body{font:15px/1.45 'DejaVu Sans',Verdana,sans-serif;color:#222;margin:24px;max-width:1540px}"
    "svg{width:100%;height:auto;border:1px solid #ddd}table{border-collapse:collapse;margin:12px 0 24px}"
    "td,th{padding:3px 14px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid #eee}"
    "td.r{text-align:right}.bad{color:#b71c1c}code{font-size:13px}"
)


_LOSSES: Final = (
    "Losses belong to what befell one of both ends last, on the packets' way. The wait is the longest stretch of a gap "
    "in which nothing hindered either end."
)


def page(history: History, violations: Sequence[Violation], drawn: str) -> str:
    """The whole page."""
    plan = history.plan
    title = f"Chaos: {plan.nodes} nodes of {plan.backend} on {plan.store}, seed {plan.seed}"
    again = (
        f"python -m tests.chaos --store {plan.store} --backend {plan.backend} --seed {plan.seed} "
        f"--nodes {plan.nodes} --minutes {plan.seconds / 60:g}"
    )
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_PAGE_STYLE}</style></head><body>',
        drawn,
        "<h2>Figures</h2>",
        _table(_figures(history, violations)),
        "<h2>What was violated</h2>",
        _violations(violations),
        "<h2>Faults, and what came of them</h2>",
        f"<p>{_LOSSES}</p>",
        _kinds(history),
        f"<p>The same plan again: <code>{again}</code></p>",
        "</body></html>",
    ]
    return "\n".join(parts)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows) + "</table>"


def _violations(violations: Sequence[Violation]) -> str:
    if not violations:
        return f"<p>Nothing. Checked were: {escape('; '.join(PROMISES.values()))}.</p>"
    return "<ul class=bad>" + "".join(f"<li>{escape(str(one))}</li>" for one in violations) + "</ul>"


def _kinds(history: History) -> str:
    rows = []
    for kind, found in _by_kind(history).items():
        what = KINDS[kind].says if kind in KINDS else "a node joins"
        middle = f"{statistics.median(found.waits):.1f} s" if found.waits else "-"
        longest = f"{max(found.waits):.1f} s" if found.waits else "-"
        cells: tuple[object, ...] = (found.number, found.lost or "-", middle, longest)
        numbers = "".join(f'<td class="r">{cell}</td>' for cell in cells)
        rows.append(f"<tr><td>{kind}</td><td>{escape(what)}</td>{numbers}</tr>")
    head = "<tr><th>kind</th><th></th><th>how often</th><th>packets lost</th><th>median wait</th><th>longest</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"
