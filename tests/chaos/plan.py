"""From a seed to a plan: what befalls which node of a lab, when, and for how long.

Pure: the same seed and the same options give the same plan on every machine. A plan is storms and calms by turns. In a
storm a fault comes every few seconds, and all of them end with it; a calm lasts longer than the time within which all
must be as it should be, and at its end everything is looked at closely.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

__all__ = ["DAEMON", "EVERYBODY", "KINDS", "ONE_FAMILY", "PATH", "PROMISE", "STORE", "Fault", "Kind", "Plan", "draw"]

PROMISE: Final = 120.0
"""Seconds within which all is as it should be again, once nothing hinders it (docs/reliability.md)."""

SETTLED: Final = PROMISE + 15.0
"""Seconds that a calm lasts, before it is looked at."""

WARM: Final = 15.0
"""Seconds between the beginning of a run and its first storm."""

LONGEST_STORM: Final = 120.0
"""Seconds; a longer run has more storms."""

ONE_FAMILY: Final = ("udp", "ipip")
"""Backends that carry IPv4 alone."""

EVERYBODY: Final = -1
"""The node of a fault that befalls no single one."""

PATH: Final = "path"
"""A fault that may take packets of a node away."""

DAEMON: Final = "daemon"
"""A fault that keeps a node's daemon from its work, or from the store. Packets must flow on."""

STORE: Final = "store"
"""A fault that may keep every daemon from its work. Packets must flow on."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    :param hinders: :data:`PATH`, :data:`DAEMON`, :data:`STORE`, or empty: nothing may come of it.
    :param weight: how often it is drawn, next to others.
    :param longest: seconds that it lasts at most; 0: it is over at once.
    :param place: faults of one place are not done to one node at the same time.
    :param stores: those with which it can be done. ``backends``: likewise; empty: all.
    """

    hinders: str
    weight: int
    longest: float
    place: str
    says: str
    stores: tuple[str, ...] = ("etcd", "consul", "file")
    backends: tuple[str, ...] = ()


_SERVERS: Final = ("etcd", "consul")

KINDS: Final[Mapping[str, Kind]] = {
    "kill": Kind(DAEMON, 10, 30.0, "process", "kill -9 of the daemon"),
    "freeze": Kind(DAEMON, 7, 40.0, "process", "SIGSTOP of the daemon"),
    "descriptors": Kind(DAEMON, 4, 30.0, "process", "no descriptor left for the daemon"),
    "memory": Kind(DAEMON, 3, 20.0, "process", "no memory left for the daemon"),
    "cgroup": Kind(DAEMON, 3, 20.0, "process", "a cgroup with little memory left for the daemon"),
    "clock": Kind("", 5, 60.0, "clock", "the node's wall clock jumps, and back", _SERVERS),
    "clocks": Kind(STORE, 3, 60.0, "clock", "all wall clocks jump, and back", ("file",)),
    "partition": Kind(DAEMON, 8, 60.0, "wire", "no way from the node to the store", _SERVERS),
    "unplug": Kind(PATH, 4, 20.0, "wire", "the underlay's cable is pulled"),
    "slow": Kind(PATH, 3, 30.0, "wire", "the underlay is slow: 512 kbit/s"),
    "readdress": Kind(PATH, 3, 0.0, "wire", "another underlay address"),
    "delete": Kind(PATH, 9, 0.0, "kernel", "objects of ours deleted from the kernel"),
    "rules": Kind(PATH, 4, 0.0, "kernel", "our firewall rules deleted"),
    "worker": Kind(PATH, 6, 0.0, "kernel", "kill -9 of the data plane's process", backends=("udp", "wireguard")),
    "replace": Kind(PATH, 1, 0.0, "process", "the machine is replaced by a new one"),
    "rob": Kind(PATH, 2, 0.0, "lease", "the node's lease is deleted by somebody"),
    "scribble": Kind(PATH, 2, 0.0, "lease", "the node's lease is written over by somebody"),
    "member-kill": Kind(STORE, 4, 20.0, "store", "kill -9 of a store's member", _SERVERS),
    "member-freeze": Kind(STORE, 3, 20.0, "store", "SIGSTOP of a store's member", _SERVERS),
    "outage": Kind(STORE, 3, 30.0, "store", "the whole store is down"),
    "disk-full": Kind(STORE, 3, 25.0, "store", "no space left under the store"),
    "lock": Kind(STORE, 3, 25.0, "store", "somebody holds the store's lock", ("file",)),
    "compact": Kind("", 2, 0.0, "store", "the store's history is compacted", ("etcd",)),
    "document": Kind(STORE, 3, 30.0, "document", "the network document can't be read, or says the same in other words"),
    "hostile": Kind("", 8, 40.0, "", "a lease that nobody can have"),
}
"""All kinds of faults by name."""

_GAP: Final = 20.0
"""Seconds between two faults of a storm for one node, on average."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something goes wrong.

    :param at: seconds from the beginning of the run. ``lasts``: seconds until it ends; 0: that is not for us to do.
    :param node: counted from 0, or :data:`EVERYBODY`.
    :param draw: what it decides by chance is drawn from this number.
    """

    at: float
    kind: str
    node: int
    lasts: float
    draw: int

    def __str__(self) -> str:
        whom = "" if self.node == EVERYBODY else f"n{self.node + 1}"
        lasts = f"for {self.lasts:4.1f} s" if self.lasts else ""
        return f"{self.at:7.1f} s  {self.kind:<13} {whom:<4} {lasts:<11} ({self.draw})"


@dataclass(frozen=True, slots=True)
class Plan:
    """A run. ``looks`` are the ends of the calms, ``joins`` the nodes that start late and when, in seconds."""

    seed: int
    store: str
    backend: str
    nodes: int
    seconds: float
    faults: tuple[Fault, ...]
    looks: tuple[float, ...]
    joins: tuple[tuple[int, float], ...]

    def to_json(self) -> dict[str, Any]:
        """As a document, from which :meth:`from_json` makes it again."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """What :meth:`to_json` made, read back from a file."""
        faults = tuple(Fault(**fault) for fault in document["faults"])
        looks, joins = tuple(document["looks"]), tuple((int(node), float(at)) for node, at in document["joins"])
        return cls(**{**document, "faults": faults, "looks": looks, "joins": joins})

    def __str__(self) -> str:
        late = ", ".join(f"n{node + 1} at {at:.0f} s" for node, at in self.joins) or "none"
        head = f"seed {self.seed}: {self.nodes} nodes of {self.backend} on {self.store} for {self.seconds:.0f} s"
        looks = ", ".join(f"{at:.0f}" for at in self.looks)
        return "\n".join([head, f"late nodes: {late}; looks at {looks} s", *map(str, self.faults)])


def draw(
    seed: int, store: str, backend: str = "vxlan", nodes: int = 12, seconds: float = 600.0, kinds: Sequence[str] = ()
) -> Plan:
    """The plan of a seed.

    :param seconds: how long it lasts; a run has time for one storm at least, and a calm after each.
    :param kinds: those to draw from; empty: all that can be done on such a store with such a backend.
    """
    rng = random.Random(f"chaos {seed} {store} {backend} {nodes} {seconds}")
    possible = [name for name in kinds or KINDS if _possible(KINDS[name], store, backend)]
    storms = list(_storms(seconds))
    late = range(nodes - nodes // 6, nodes)
    joins = tuple((node, round(storms[0][0] + rng.random() * (storms[0][1] - storms[0][0]), 1)) for node in late)
    faults: list[Fault] = []
    for begin, end in storms:
        faults += _storm(rng, begin, end, nodes, possible, dict(joins))
    looks = tuple(end + SETTLED for _, end in storms)
    return Plan(seed, store, backend, nodes, max(seconds, looks[-1]), tuple(faults), looks, joins)


def _possible(kind: Kind, store: str, backend: str) -> bool:
    return store in kind.stores and (not kind.backends or backend in kind.backends)


def _storms(seconds: float) -> Iterator[tuple[float, float]]:
    """Begin and end of each storm."""
    number = max(1, round((seconds - WARM) / (LONGEST_STORM + SETTLED)))
    lasts = max(10.0, (seconds - WARM) / number - SETTLED)
    at = WARM
    for _ in range(number):
        yield round(at, 1), round(at + lasts, 1)
        at += lasts + SETTLED


def _storm(
    rng: random.Random, begin: float, end: float, nodes: int, possible: Sequence[str], joins: Mapping[int, float]
) -> Iterator[Fault]:
    weights = [KINDS[name].weight for name in possible]
    busy: dict[tuple[int, str], float] = {}
    at = begin
    while True:
        at += rng.expovariate(nodes / _GAP)
        name, node, draw = rng.choices(possible, weights)[0], rng.randrange(nodes), rng.getrandbits(32)
        kind = KINDS[name]
        lasts = rng.uniform(2.0, kind.longest) if kind.longest else 0.0
        if at >= end:
            return
        if kind.hinders == STORE:
            node = EVERYBODY
        until = min(at + lasts, end)
        place = (node, kind.place)
        late = at < joins.get(node, 0.0) + 5.0 or end - at < 2.0
        if late or (kind.place and busy.get(place, begin) > at):
            continue
        busy[place] = until + 3.0
        yield Fault(round(at, 2), name, node, round(until - at, 2), draw)


def dump(plan: Plan) -> str:
    """A plan as text for a file."""
    return json.dumps(plan.to_json(), indent=1)
