"""The build's own programs: what failed in company is tried alone, and is told either way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"

STEADY = "def test_steady(): pass\n"
WRONG = "def test_wrong(): assert False\n"
UNSTEADY = """
import pathlib, pytest
@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("text", ["a@b", "c::d"])
def test_unsteady(text):
    seen = pathlib.Path("seen-" + text)
    seen.touch(exist_ok=True)
    before = seen.read_text()
    seen.write_text("x")
    assert before
"""


def run(path: Path, *tests: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """The tests' exit code, and the summary's code and line."""
    (path / "test_it.py").write_text("".join(tests))
    (path / "pytest.ini").write_text("[pytest]\n")
    arguments: list[str | Path] = [sys.executable, TOOLS / "run_tests.py", path / "junit", "it", "test_it.py", *options]
    done = subprocess.run(arguments, cwd=path, check=False, capture_output=True, text=True)
    summary: list[str | Path] = [sys.executable, TOOLS / "summary.py", path / "junit"]
    told = subprocess.run(summary, cwd=path, check=False, capture_output=True, text=True)
    assert (done.returncode != 0) == (told.returncode != 0), done.stdout + done.stderr + told.stdout
    return done.returncode, done.stdout, told.stdout


@pytest.mark.parametrize("options", [(), ("-n", "2", "--dist", "loadgroup")])
def test_what_passes_alone_is_unsteady(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, said, told = run(tmp_path, STEADY, UNSTEADY, options=options)
    assert code == 0
    assert "2 unsteady, 1 passed" in told
    unsteady = said.partition("UNSTEADY")[2].splitlines()
    assert sorted(line.strip() for line in unsteady[1:]) == [
        "test_it.py::test_unsteady[a@b]",
        "test_it.py::test_unsteady[c::d]",
    ]


def test_what_fails_alone_has_failed(tmp_path: Path) -> None:
    code, said, told = run(tmp_path, STEADY, UNSTEADY, WRONG)
    assert code == 1
    assert "1 failed, 2 unsteady, 1 passed" in told
    assert "UNSTEADY" not in said


def test_many_failures_are_a_fault(tmp_path: Path) -> None:
    code, said, told = run(tmp_path, *(WRONG.replace("wrong", f"wrong_{number}") for number in range(6)))
    assert code == 1
    assert "alone" not in said
    assert "6 failed" in told


def test_nothing_is_tried_again_where_nothing_failed(tmp_path: Path) -> None:
    assert run(tmp_path, STEADY)[0] == 0
    assert not (tmp_path / "junit" / "it.alone.xml").exists()


def test_what_is_no_test_has_failed(tmp_path: Path) -> None:
    (tmp_path / "junit").mkdir()
    assert run(tmp_path, "import nothing_of_that_name\n")[0] == 2
