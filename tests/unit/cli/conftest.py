"""Commands run as processes of their own, with nothing of this machine's settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest


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
        result = subprocess.run(
            [sys.executable, "-m", "pyflannel", *words],
            env={**_outside(), **({} if bare else own), **(environ or {})},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return Result(result.returncode, result.stdout, result.stderr)

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
