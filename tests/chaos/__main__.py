"""Chaos on real parts: ``python -m tests.chaos --store etcd --seed 1 --minutes 10 --report DIRECTORY``.

A lab of nodes on a real store, traffic between all pairs all the time, and faults that follow from one seed. At the end
stands a verdict, and a page with what happened (docs/reliability.md). Needs root.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tests.chaos import faults, looks
from tests.chaos.cluster import Cluster, Member
from tests.chaos.judge import Violation, judge
from tests.chaos.plan import Fault, Plan, draw
from tests.chaos.record import History, Look
from tests.chaos.report import write

from pyflannel.errors import PyflannelError

__all__ = ["main"]

TURN: Final = 0.1
"""Seconds between two turns of the loop."""

LOOKS: Final = 3
LOOK_AGAIN: Final = 2.0
"""How often something must be seen to count, and seconds in between."""

STORES: Final = ("etcd", "consul", "file")
BACKENDS: Final = ("vxlan", "udp", "wireguard", "host-gw", "ipip", "gre")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, judge, report; the exit status says whether anything was violated."""
    options = _parser().parse_args(arguments)
    plans = [
        draw(options.seed, store, options.backend, options.nodes, options.minutes * 60, options.only)
        for store in options.store or STORES
    ]
    if options.plan:
        print(*plans, sep="\n\n")
        return 0
    wrong = 0
    for plan in plans:
        print(f"{plan}\n", flush=True)
        history, logs = run(plan)
        violations = judge(history)
        directory = Path(options.report) / f"{plan.store}-{plan.backend}-{plan.seed}"
        write(directory, history, violations)
        for name, text in logs.items():
            (directory / f"{name}.log").write_text(text, encoding="utf-8")
        _tell(history, violations, directory)
        wrong += len(violations)
    return 1 if wrong else 0


def run(plan: Plan) -> tuple[History, dict[str, str]]:
    """One run; what was seen, and the daemons' logs."""
    begin, used = time.monotonic(), time.process_time()
    with Cluster(plan, lambda text: print(text, flush=True)) as cluster:
        agenda = _agenda(cluster, plan)
        loads = []
        while agenda or cluster.planned < plan.seconds:
            while agenda and agenda[0][0] <= cluster.planned:
                _, _, what = heapq.heappop(agenda)
                try:
                    what()
                except (PyflannelError, OSError) as error:
                    cluster.say(f"could not be done: {error}")
            cluster.turn()
            loads.append(os.getloadavg()[0])
            time.sleep(TURN)
        history = cluster.finish()
        logs = {member.name: member.node.daemon.log() for member in cluster.members if member.joined}
    history.figures |= {
        "load": sum(loads) / len(loads),
        "cpus": os.cpu_count(),
        "kernel": os.uname().release,
        "own": (time.process_time() - used) / (time.monotonic() - begin),
    }
    return history, logs


_Agenda = list[tuple[float, int, Callable[[], None]]]


def _agenda(cluster: Cluster, plan: Plan) -> _Agenda:
    """What is to be done when; what ends a fault joins it as the fault begins."""
    agenda: _Agenda = []
    numbers = itertools.count()

    def at(when: float, what: Callable[[], None]) -> None:
        heapq.heappush(agenda, (when, next(numbers), what))

    def begin(fault: Fault) -> None:
        undo = faults.begin(cluster, fault)
        if undo is not None:
            at(max(fault.at + fault.lasts, cluster.planned + 0.5), undo)

    for fault in plan.faults:
        at(fault.at, lambda fault=fault: begin(fault))  # type: ignore[misc]
    for number, when in plan.joins:
        at(when, lambda number=number: _join(cluster, number))  # type: ignore[misc]
    for when in plan.looks:
        at(when - 1.0, lambda: _look(cluster))
    return agenda


def _join(cluster: Cluster, number: int) -> None:
    member = cluster.members[number]
    hindered = cluster.hinder(member, "join", "path")
    cluster.join(member)
    cluster.say(f"{member.name} joins")
    cluster.over(hindered)


def _look(cluster: Cluster) -> None:
    """Look at every node closely; the plan waits meanwhile."""
    history, begin = cluster.history, cluster.now
    joined = [member for member in cluster.members if member.joined]
    found = 0
    for member, wrong in _closely(cluster, joined).items():
        for promise, what in wrong:
            cluster.say(f"{member.name}: {promise}: {what}")
            history.looks.append(Look(cluster.now, member.name, promise, what))
            found += 1
    history.looked += [(cluster.now, member.name) for member in joined]
    history.stored.append(cluster.stored())
    history.samples += cluster.samples()
    cluster.say(f"looked at {len(joined)} nodes: {found} things are wrong")
    cluster.behind += cluster.now - begin


def _closely(cluster: Cluster, joined: Sequence[Member]) -> dict[Member, list[tuple[str, str]]]:
    """What is wrong and stays so: a lease that ends just now is known to one side before the other."""
    left = list(joined)
    wrong: dict[Member, list[tuple[str, str]]] = {}
    for attempt in range(LOOKS):
        time.sleep(attempt and LOOK_AGAIN)
        cluster.hear_store()
        found = cluster.pool.map(partial(_once, cluster), left)
        wrong = {member: seen for member, seen in zip(left, found, strict=True) if seen}
        left = list(wrong)
        if not left:
            break
    return wrong


def _once(cluster: Cluster, member: Member) -> list[tuple[str, str]]:
    try:
        return list(looks.closely(cluster, member))
    except (PyflannelError, OSError) as error:
        return [("quiet", f"it can't be looked at: {error}")]


def _tell(history: History, violations: Sequence[Violation], directory: Path) -> None:
    for violation in violations[:40]:
        print(violation)
    plan = history.plan
    print(
        f"{plan.store}, seed {plan.seed}: {len(plan.faults)} faults in {history.ended:.0f} s, "
        f"{len(violations)} violations; {directory}/index.html",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--store", action="append", choices=STORES, help="may be repeated; default: one after the other"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="vxlan")
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each store")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=(), metavar="KIND", help="draw faults of these kinds alone")
    parser.add_argument("--plan", action="store_true", help="print what would happen, and do nothing")
    parser.add_argument("--report", default="chaos-report", help="directory for the pages (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
