"""Histories of runs in which nothing is wrong, for tests to spoil."""

from __future__ import annotations

from tests.chaos.plan import PATH, draw
from tests.chaos.record import Change, Claim, Hindrance, History, Mood, Outage, Sample

NODES = 4
END = 300.0


def key(number: int) -> str:
    return f"10.244.{number}.0-24"


def lease(node: str) -> str:
    return f'{{"PublicIP": "192.0.2.1", "NodeID": "{node}"}}'


def outage(begin: float, end: float, source: str = "n3", target: str = "n4", lost: int = 50) -> Outage:
    return Outage(source, target, 4, begin, end, lost)


def sound() -> History:
    """Four nodes, each with a lease; n1 is unplugged for ten seconds, and unreachable for two more."""
    plan = draw(1, "etcd", nodes=NODES, seconds=END)
    history = History(plan, ended=END, figures={"packets": 1000, "load": 1.0, "cpus": 2, "kernel": "6.1"})
    names = [f"n{number}" for number in range(1, NODES + 1)]
    history.changes = [Change(-5.0, key(number), lease(name)) for number, name in enumerate(names, 1)]
    for at in range(0, int(END), 2):
        history.claims += [Claim(at + 0.1, name, name, key(number)) for number, name in enumerate(names, 1)]
    history.moods = [Mood(0.0, name, "ready", "") for name in names]
    history.samples = [Sample(at, name, 1, 30 << 20, 20, 8) for at in (10.0, END) for name in names]
    history.repairs = [(50.0, "n2", 3)]
    history.looked = [(END, name) for name in names]
    history.stored = [(0.0, NODES + 1, 1 << 20), (END, NODES + 1, 2 << 20)]
    history.hindrances = [Hindrance("n1", "unplug", PATH, 30.0, 40.0)]
    history.outages = [Outage("n1", "n2", 4, 30.0, 42.0, 60), Outage("n3", "n4", 6, 80.0, 80.4, 2)]
    return history
