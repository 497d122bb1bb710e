"""Say in one line, as pytest would, how the test runs of all environments went; fail if none ran.

Each environment leaves a JUnit file ``<environment>.xml`` in the directory that is the one argument, and beside it
``<environment>.alone.xml`` where tests failed and were tried once more (tools/run_tests.py): those that passed then are
unsteady.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

_ALONE: Final = ".alone.xml"


def main(directory: Path) -> int:
    """Print the line; return the exit code."""
    total: Counter[str] = Counter()
    files = sorted(file for file in directory.glob("*.xml") if not file.name.endswith(_ALONE))
    for file in files:
        first, alone = _counted(file), file.with_name(file.stem + _ALONE)
        if alone.exists():
            again = _counted(alone)
            first["unsteady"] = first["failed"] - again["failed"]
            first["failed"] = again["failed"]
            first["ms"] += again["ms"]
        total += first
    bad = total["failed"]
    total["passed"] = total["tests"] - sum(total[name] for name in ("failed", "skipped", "unsteady"))
    words = [f"{total[name]} {name}" for name in ("failed", "unsteady", "passed", "skipped") if total[name]]
    said = ", ".join(words) or "no tests ran"
    environments = ", ".join(file.stem for file in files)
    print(f" {said} in {total['ms'] / 1000:.2f}s ({environments}) ".center(100, "="))
    return 0 if files and not bad else 1


def _counted(file: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for suite in ElementTree.parse(file).iter("testsuite"):
        counts["tests"] += int(suite.get("tests", 0))
        counts["failed"] += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        counts["skipped"] += int(suite.get("skipped", 0))
        counts["ms"] += round(1000 * float(suite.get("time", 0)))
    return counts


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
