"""``python -m pyflannel.testing.simulation SEEDS``: simulate clusters, one history per seed.

Sets and hashes must come out alike for a seed to make one history, so the process starts itself anew with a fixed
``PYTHONHASHSEED`` where it has none.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from pyflannel.small.interpreter import module_command
from pyflannel.testing.simulation.planning import DOCUMENTS, draw_plan
from pyflannel.testing.simulation.running import Ending, run, shrink
from pyflannel.testing.simulation.stores import MODELS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds; returns 1 if something did not hold."""
    options = _parser().parse_args(arguments)
    begin = time.perf_counter()
    totals: Counter[str] = Counter()
    failed: list[int] = []
    slowest = simulated = 0.0
    for seed in _seeds(options.seeds):
        if options.seconds and time.perf_counter() - begin > options.seconds:
            break
        ending = run(draw_plan(seed, options.store or sorted(MODELS), DOCUMENTS))
        simulated += ending.seconds
        slowest = max(slowest, ending.slowest)
        totals.update(seeds=1, steps=ending.steps, faults=len(ending.plan.faults))
        totals[f"on {ending.plan.store}"] += 1
        if options.digests:
            print(seed, ending.digest)
        if ending.violation is not None:
            failed.append(seed)
            _tell(seed, ending, options.patience)
            if len(failed) >= options.most:
                break
        if options.progress and totals["seeds"] % options.progress == 0:
            print(_summary(totals, simulated, slowest, failed, begin), flush=True)
    print(_summary(totals, simulated, slowest, failed, begin))
    return 1 if failed else 0


def _tell(seed: int, ending: Ending, patience: float) -> None:
    print(f"\nSEED {seed}: {ending.violation}", flush=True)
    shortest = shrink(ending, patience=patience)
    left = f"{len(shortest.plan.faults)} of {len(ending.plan.faults)} faults"
    print(f"the shortest history found ({left}):\n{shortest.report()}\n", flush=True)


def _summary(totals: Counter[str], simulated: float, slowest: float, failed: list[int], begin: float) -> str:
    stores = ", ".join(f"{count} {name}" for name, count in sorted(totals.items()) if name.startswith("on "))
    took = time.perf_counter() - begin
    return (
        f"{totals['seeds']} seeds ({stores}), {simulated / 3600:.1f} cluster-hours, {totals['faults']} faults, "
        f"{totals['steps']} steps in {took:.1f} s; the slowest connection took {slowest:.1f} s; "
        f"{len(failed)} violations{': seeds ' + ', '.join(map(str, failed)) if failed else ''}"
    )


def _seeds(texts: Sequence[str]) -> Iterator[int]:
    for text in texts:
        first, _, last = text.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyflannel.testing.simulation", description=__doc__)
    parser.add_argument("seeds", nargs="+", help="numbers, or ranges such as 0-999")
    parser.add_argument("--store", action="append", choices=sorted(MODELS), help="only this kind; may be repeated")
    parser.add_argument("--seconds", type=float, default=0.0, help="begin no further seed after so many")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to shrink each failing history")
    parser.add_argument("--most", type=int, default=5, help="end after so many failing seeds")
    parser.add_argument("--progress", type=int, default=0, help="say how it goes every so many seeds")
    parser.add_argument("--digests", action="store_true", help="print what tells each seed's history from another")
    return parser


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        command = module_command("pyflannel.testing.simulation", *sys.argv[1:])
        os.execv(command[0], command)  # noqa: S606 - this program again
    sys.exit(main())
