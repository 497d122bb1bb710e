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


def test_what_can_t_be_set_up_has_failed_and_was_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not ends", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    told = done.stdout.partition("the contract, as TestIt shows it ")[2].splitlines()[1:]
    assert told[:5] == [
        "1 shown, 2 failed, 1 not applicable, 1 not tried",
        "failed: There: it answers",
        "failed: There: it answers twice",
        "not applicable: There: it flies (it has no wings)",
        "not tried: 1 clause whose tests were left out of this run",
    ], done.stdout
