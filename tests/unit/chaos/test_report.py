"""The page about a run shows what happened, and needs nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.chaos.judge import judge
from tests.chaos.plan import STORE
from tests.chaos.record import ALL, Hindrance, History
from tests.chaos.report import page, picture, waits, write
from tests.unit.chaos.histories import outage, sound


def drawn(history: History) -> tuple[str, str]:
    violations = judge(history)
    svg = picture(history, violations)
    return svg, page(history, violations, svg)


def test_a_page_without_violations_says_so() -> None:
    svg, whole = drawn(sound())
    assert "nothing was violated" in svg
    assert "class=bad" not in whole
    assert "3 put right" in svg


def test_a_violation_is_named_and_marked() -> None:
    history = sound()
    before = drawn(history)[0].count('stroke="#b71c1c"')
    history.outages.append(outage(100.0, 110.0))
    svg, whole = drawn(history)
    assert svg.count('stroke="#b71c1c"') == before + 1
    assert "n3 does not reach n4" in whole


def test_the_picture_is_one_document_with_a_lane_for_each_node_and_the_store() -> None:
    history = sound()
    history.hindrances.append(Hindrance(ALL, "outage", STORE, 100.0, 180.0))
    root = ElementTree.fromstring(drawn(history)[0])
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"store", "n1", "n2", "n3", "n4", "unplug", "outage"} <= texts


def test_nothing_outside_is_needed() -> None:
    whole = drawn(sound())[1].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|src=|href=|@import|url\(", whole)


def test_a_wait_is_what_nothing_hindered() -> None:
    assert [round(wait, 1) for _, wait in waits(sound())] == [2.0, 0.4]


def test_everything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = sound()
    write(tmp_path / "new", history, judge(history))
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert {"index.html", "history.json"} <= names
    assert "timeline.png" in names or "rsvg-convert" in capsys.readouterr().out
    assert History.from_json((tmp_path / "new" / "history.json").read_text()) == history
