"""What the kits tell at the end of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUITE = """
import pytest
from pyflannel.testing.clauses import Judged, clause, not_applicable

class Kit(Judged):
    @pytest.fixture(scope="module")
    @staticmethod
    def server():
        raise OSError("it does not start")

    @clause("There", "it answers")
    def test_answers(self, server):
        pass

    @clause("There", "it answers twice")
    def test_answers_twice(self, server):
        pass

    @clause("There", "it is there")
    def test_is_there(self):
        pass

    @clause("There", "it flies")
    def test_flies(self):
        not_applicable("it has no wings")

    @clause("There", "it ends")
    def test_ends(self):
        pass

class TestIt(Kit):
    pass
"""


def run(directory: Path, suite: str, *words: str) -> tuple[list[str], str]:
    """What pytest says of the contract of a suite's ``TestIt``, line by line, and all that it says."""
    (directory / "test_suite.py").write_text(suite)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)
    return done.stdout.partition("the contract, as TestIt shows it ")[2].splitlines()[1:], done.stdout


def test_what_can_t_be_set_up_has_failed_and_was_not_left_out(tmp_path: Path) -> None:
    told, output = run(tmp_path, SUITE, "-k", "not ends")
    assert told[:5] == [
        "1 shown, 2 failed, 1 not applicable, 1 not tried",
        "failed: There: it answers",
        "failed: There: it answers twice",
        "not applicable: There: it flies (it has no wings)",
        "not tried: 1 clause whose tests were left out of this run",
    ], output


LEAVING = """
import socket
from pyflannel.testing.clauses import Judged, clause

class Kit(Judged):
    @clause("There", "it answers")
    def test_answers(self):
        socket.socket(socket.AF_UNIX)

    @clause("There", "it ends")
    def test_ends(self):
        assert 1 > 2

class TestIt(Kit):
    pass
"""


def test_what_python_tells_of_is_not_laid_to_the_clause_that_is_tried_just_then(tmp_path: Path) -> None:
    """A socket that nobody has closed is told of in whatever test runs when it is collected."""
    told, output = run(tmp_path, LEAVING, "-W", "error")
    assert told[0] == "0 shown, 2 failed, 0 not applicable, 0 not tried", output
    assert told[1].startswith("failed: There: it answers (not for what it tries: ResourceWarning: unclosed <socket")
    assert told[2] == "failed: There: it ends"
    assert "it answers.\nWritten in There" not in output
    assert "close() has to close what was opened" in output
    assert "it ends.\nWritten in There" in output
