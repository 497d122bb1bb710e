"""In how many simulated histories each planted bug is found: ``python -m tests.unit.testing.simulation.table [SEEDS]``.

With ``--known`` each bug is looked for in the histories that have shown it before, and then in others, until it is
found once. Histories are the same again only with ``PYTHONHASHSEED=0``, and where Python hashes in the same way.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.unit.testing.simulation.planted import BUGS, KNOWN

from pyflannel.testing.simulation import draw_plan, run

SEEDS = 20
"""Histories for the table."""

PATIENCE = 60
"""Histories in which a bug is looked for that its known one does not show."""


def found(what: str, seed: int) -> str:
    """The invariant that a history with this bug violates, if it violates one."""
    with pytest.MonkeyPatch.context() as patch:
        BUGS[what](patch)
        outcome = run(draw_plan(seed, storms=2, calm=900.0))
    return outcome.violation.name if outcome.violation is not None else ""


def first(what: str) -> tuple[int, str]:
    """The first history that shows a bug, the known one tried first; -1 if none does."""
    for seed in (KNOWN.get(what, 0), *range(PATIENCE)):
        name = found(what, seed)
        if name:
            return seed, name
    return -1, ""


def rows(seeds: int) -> Iterator[str]:
    """The table."""
    yield f"| planted bug | found in ... of {seeds} histories | by |"
    yield "|---|---|---|"
    for what in BUGS:
        names = Counter(name for seed in range(seeds) if (name := found(what, seed)))
        by = ", ".join(f"{name} {count}" for name, count in names.most_common())
        if not names:
            seed, name = first(what)
            by = f"{name}, first in seed {seed}" if name else "not found"
        yield f"| {what} | {names.total()} | {by} |"


def main() -> None:
    """Print the table, or a line per bug: what it is, the seed, the invariant."""
    if "--known" in sys.argv:
        for what in BUGS:
            seed, name = first(what)
            print(what, seed, name, sep="\t", flush=True)
        return
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS):
        print(row, flush=True)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.unit.testing.simulation.table", *sys.argv[1:]])
    main()
