"""Say in one line, as pytest would, how the test runs of all environments went; fail if none ran.

Each environment leaves a JUnit file ``<environment>.xml`` in the directory that is the one argument.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def main(directory: Path) -> int:
    """Print the line; return the exit code."""
    total: Counter[str] = Counter()
    seconds = 0.0
    files = sorted(directory.glob("*.xml"))
    for file in files:
        for suite in ElementTree.parse(file).iter("testsuite"):
            total.update({name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")})
            seconds += float(suite.get("time", 0))
    bad = total["failures"] + total["errors"]
    counts = {"failed": bad, "passed": total["tests"] - bad - total["skipped"], "skipped": total["skipped"]}
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no tests ran"
    environments = ", ".join(file.stem for file in files)
    print(f" {words} in {seconds:.2f}s ({environments}) ".center(100, "="))
    return 0 if files and not bad else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
