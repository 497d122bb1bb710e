"""The kits find what they are for: a plugin that breaks one clause fails the clause's test, and only such tests.

The mutants are in :mod:`store_mutants` and :mod:`backend_mutants`. One run of pytest tries all of a kind, several at a
time, since most of them are waited for; here stands what must come out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree as ET

import pytest
from tests.plugins import backend_mutants, store_mutants

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("mutants")]


Mutants: TypeAlias = Mapping[str, tuple[type, tuple[str, ...]]]


def run(module: str, mutants: Mapping[str, object], work: Path, at_once: int) -> tuple[dict[str, set[str]], str]:
    """Mutant to failed tests, and what pytest said."""
    report = work / "report.xml"
    words = ["-q", "-n", str(at_once), "--dist", "loadscope", "-p", "no:cacheprovider"]
    words += ["-p", "pyflannel.testing.clauses", "-o", "python_files=*_mutants.py", "--tb=short", "--timeout=90"]
    words += ["--junitxml", str(report), *(f"{HERE / module}.py::Test{name}" for name in mutants)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CI"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert report.exists(), done.stdout
    failed: dict[str, set[str]] = defaultdict(set)
    for case in ET.parse(report).iter("testcase"):
        name = (case.get("classname") or "").rpartition(".Test")[2]
        failed[name] |= {
            re.sub(r"^test_|\[.*", "", case.get("name") or "") for part in case if part.tag in ("failure", "error")
        }
    return failed, done.stdout


def try_all(module: str, mutants: Mutants, work: Path) -> tuple[dict[str, set[str]], str]:
    """Whoever is not judged as expected gets a second try, alone: the machine may have been too busy, a fault stays."""
    failed, said = run(module, mutants, work, 6)
    again = {name: None for name, (_, tests) in mutants.items() if not fits(failed[name], tests)}
    if again:
        found, more = run(module, again, work, 1)
        failed |= found
        said += more
    return failed, said


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, set[str]], str]:
    return try_all("store_mutants", store_mutants.MUTANTS, tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, set[str]], str]:
    return try_all("backend_mutants", backend_mutants.MUTANTS, tmp_path_factory.mktemp("backends"))


def fits(found: set[str], tests: tuple[str, ...]) -> bool:
    return set(tests[:1]) <= found <= set(tests)


def judge(name: str, failed: dict[str, set[str]], expected: tuple[str, ...]) -> None:
    found = failed[name]
    assert found >= set(expected[:1]), f"{expected[0]} did not fail"
    assert found <= set(expected), "a test failed that is about something else"


@pytest.mark.parametrize("name", store_mutants.MUTANTS)
def test_a_store_fails_for_what_it_breaks(name: str, stores: tuple[dict[str, set[str]], str]) -> None:
    judge(name, stores[0], store_mutants.MUTANTS[name][1])


@pytest.mark.parametrize("name", backend_mutants.MUTANTS)
def test_a_backend_fails_for_what_it_breaks(name: str, backends: tuple[dict[str, set[str]], str]) -> None:
    judge(name, backends[0], backend_mutants.MUTANTS[name][1])


@pytest.mark.parametrize(
    ("kit", "mutants"),
    [
        (store_mutants.OnMemory, store_mutants.MUTANTS),
        (backend_mutants.Planned, backend_mutants.MUTANTS),
    ],
    ids=["stores", "backends"],
)
def test_every_clause_has_a_mutant(kit: type, mutants: Mutants) -> None:
    """But for those that judge nobody, and what is between the clauses: that nodes get a subnet each."""
    judged = {name.removeprefix("test_") for name in dir(kit) if name.startswith("test_")}
    tried = {test for _, tests in mutants.values() for test in tests[:1]}
    assert judged - tried <= {"a_change_comes_soon", "nodes_that_start_at_once_get_a_subnet_each"}


def test_the_end_of_a_run_counts_the_clauses_and_a_failure_repeats_its_own(
    stores: tuple[dict[str, set[str]], str],
) -> None:
    said = stores[1]
    sound = re.findall(r"the contract, as TestSound shows it =+\n(.*)\n(.*)", said)[-1]
    assert sound[0] == "50 shown, 0 failed, 0 not applicable, 0 not tried"
    assert re.match(r"(warning: .*)?watch latency: median \d+ ms, worst \d+ ms", sound[1])
    late = re.findall(r"the contract, as TestTellsLate shows it =+\n(.*)\n(.*)", said)[-1]
    assert late[0] == sound[0]
    assert late[1].startswith("warning: a change is late; from 250 ms on nodes send to where nobody is: watch latency:")
    assert "failed: pyflannel.store.Store.time_to_live: remaining seconds" in said
    assert "Written in pyflannel.store.Store.time_to_live" in said


def test_a_call_that_hangs_is_named_with_its_limit_and_where_it_stands(
    stores: tuple[dict[str, set[str]], str],
) -> None:
    assert "ClockThatNeverComes: clock() has not come back after" in stores[1]
    assert "threading.Event().wait()" in stores[1]


def test_assertions_in_the_kits_show_what_they_compared(stores: tuple[dict[str, set[str]], str]) -> None:
    """As pytest's rewriting does it."""
    assert re.search(r"E +assert \(?\d{4,}", stores[1]), "the milliseconds of TellsMilliseconds"
