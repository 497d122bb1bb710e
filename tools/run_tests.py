"""Run pytest; what failed in company is tried once more, alone, and both are told (docs/decisions/0058).

    python tools/run_tests.py DIRECTORY NAME [PYTEST'S ARGUMENTS ...]

``DIRECTORY`` gets ``NAME.xml``, JUnit's report of the first run, and ``NAME.alone.xml`` where there was a second.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

MOST: Final = 5
"""So many failures may be for want of a processor; more are a fault, and aren't tried again."""

_GROUP: Final = re.compile(r"@[^]@]*$")

_PYTEST: Final = str(Path(sys.executable).with_name("pytest"))

_FAILED: Final = 1
"""Pytest's exit code when tests have failed, and nothing else went wrong."""


def main(directory: Path, name: str, arguments: list[str]) -> int:
    """Return pytest's exit code: the second run's, if there is one."""
    _compile(arguments)
    with tempfile.TemporaryDirectory() as cache:
        code = _pytest(directory / f"{name}.xml", cache, *arguments)
        failed = _failed(Path(cache)) if code == _FAILED else []
        if not 0 < len(failed) <= MOST:
            return code
        print("\nFailed in company, tried once more alone:", *failed, sep="\n  ", flush=True)
        code = _pytest(directory / f"{name}.alone.xml", cache, *failed)
        if code == 0:
            print("\nUNSTEADY, failed in company and passed alone:", *failed, sep="\n  ", flush=True)
        return code


def _compile(arguments: list[str]) -> None:
    """Where nobody ran these tests before, read them once: else each of several workers would compile them all."""
    if sys.dont_write_bytecode or "-n" not in arguments:
        return
    if next(Path(arguments[0]).rglob("*-pytest-*.pyc"), None) is None:
        words = (_PYTEST, "--collect-only", "-q", "-p", "no:cacheprovider", arguments[0])
        subprocess.run(words, check=False, stdout=subprocess.DEVNULL)


def _pytest(report: Path, cache: str, *arguments: str) -> int:
    command = (_PYTEST, f"--junitxml={report}", "-o", f"cache_dir={cache}", *arguments)
    return subprocess.run(command, check=False).returncode


def _failed(cache: Path) -> list[str]:
    """The tests that failed, as pytest's command line takes them: without pytest-xdist's ``@group``."""
    try:
        names = json.loads((cache / "v" / "cache" / "lastfailed").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [_GROUP.sub("", test) for test in names]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
