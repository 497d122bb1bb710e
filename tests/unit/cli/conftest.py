"""Commands run as processes of their own, with nothing of this machine's settings.

Most are forks of one that has imported pyflannel, as a lab's are; those that are given variables for Python are not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.waiting import LONG

from pyflannel.lab.warm import Forked, Warm

_warm = Warm()


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class CommandLine:
    """Runs pyflannel with a store and a run directory of the test's own, unless the test names others."""

    directory: Path

    @property
    def store(self) -> str:
        return f"file://{self.directory}/store"

    def __call__(
        self, *words: str, environ: Mapping[str, str] | None = None, stdin: str = "", bare: bool = False
    ) -> Result:
        own = {
            "PYFLANNEL_STORE": self.store,
            "PYFLANNEL_RUN_DIR": f"{self.directory}/run",
            "PYFLANNEL_STATE_DIR": f"{self.directory}/state",
        }
        environment = {**_outside(), **({} if bare else own), **(environ or {})}
        pipes = (subprocess.PIPE, subprocess.PIPE, subprocess.PIPE)
        process: subprocess.Popen[str] | Forked | None = _warm.start(["pyflannel", *words], environment, [], pipes)
        if process is None:
            line = [sys.executable, "-m", "pyflannel", *words]
            process = subprocess.Popen(line, 0, None, *pipes, env=environment, text=True)
        with process:
            out, err = process.communicate(stdin, LONG)
            return Result(process.wait(), out, err)

    def popen(self, words: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pyflannel", *words],
            env={**_outside(), "PYFLANNEL_STORE": self.store},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def _outside() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYFLANNEL_", "FLANNELD_"))}


@pytest.fixture
def pyflannel(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)
