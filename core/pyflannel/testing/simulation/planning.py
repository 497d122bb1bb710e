"""From a seed to a plan: which store, network and backend, how many nodes, and what befalls them when.

A plan is storms and calms by turns. In a storm, faults come every few seconds and all end with it; then comes the time
that was promised for repairs, a close look, hours in which nothing happens but renewals, and another look.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from pyflannel.testing.simulation.cluster import Plan
from pyflannel.testing.simulation.faults import FAULTS, Fault
from pyflannel.testing.simulation.judge import PROMISE

__all__ = ["DOCUMENTS", "LONGEST_CALM", "draw_plan"]

_FOUR: Final = '"Network": "10.5.0.0/22", "SubnetLen": 27'
_BOTH: Final = f'{_FOUR}, "EnableIPv6": true, "IPv6Network": "fd00:5::/56", "IPv6SubnetLen": 64'

DOCUMENTS: Final = (
    f'{{{_FOUR}, "Backend": {{"Type": "vxlan"}}}}',
    f'{{{_BOTH}, "Backend": {{"Type": "vxlan"}}}}',
    f'{{{_FOUR}, "Backend": {{"Type": "host-gw"}}}}',
    f'{{{_BOTH}, "Backend": {{"Type": "memory"}}}}',
)
"""The networks that plans are made for; ``memory`` is :class:`~.plane.MemoryBackend`."""

_LIVES: Final = ((60.0, 20.0), (600.0, 120.0), (3600.0, 600.0), (86400.0, 3600.0))
"""A lease's life and its margin, in seconds."""

SETTLED: Final = PROMISE + 30.0
"""Seconds after a storm until all is looked at; stores with lagging views take theirs."""

CHANGED: Final = 90.0
"""Seconds that a change of the network needs at most, once nothing hinders it."""

CHANGES: Final = 0.4
"""How likely a storm has one."""

LONGEST_CALM: Final = 14 * 86400.0
"""Seconds."""
_RENEWALS: Final = 200
"""Lives of a lease, and seconds, that a calm lasts at most."""


def draw_plan(
    seed: int,
    stores: Sequence[str] = ("etcd", "consul", "file", "kubernetes"),
    documents: Sequence[str] = DOCUMENTS,
    storms: int = 4,
    calm: float = LONGEST_CALM,
) -> Plan:
    """The plan of a seed.

    :param stores: the kinds of stores to choose from, ``documents`` the networks.
    :param storms: how many there are at most.
    :param calm: how many seconds may pass between two of them at most.
    """
    rng = random.Random(f"plan {seed}")  # noqa: S311 - a simulation
    changes = random.Random(f"changes {seed}")  # noqa: S311 - a simulation
    nodes = rng.choice((2, 3, 4, 5))
    ttl, margin = rng.choice(_LIVES)
    faults: list[Fault] = []
    calms: list[tuple[float, float]] = []
    at = rng.choice((0.0, 60.0))
    for _ in range(rng.randint(1, storms)):
        lasts = rng.choice((60.0, 300.0, 900.0))
        faults += _storm(rng, at, lasts, nodes)
        begin = at + lasts + SETTLED
        if changes.random() < CHANGES:
            faults.append(_change(changes, at, lasts))
            begin += CHANGED
        end = begin + min(calm, rng.choice((600.0, 3600.0, rng.random() * min(LONGEST_CALM, _RENEWALS * ttl))))
        calms.append((begin, end))
        at = end
    faults.sort(key=lambda fault: fault.at)
    store, document = rng.choice(tuple(stores)), rng.choice(tuple(documents))
    return Plan(f"seed {seed}", store, document, nodes, ttl, margin, tuple(faults), tuple(calms))


def _change(rng: random.Random, begin: float, lasts: float) -> Fault:
    """A change of the network's backend, at any moment of a storm."""
    at = begin + rng.random() * lasts * 0.9
    longest = min(FAULTS["change"].longest, begin + lasts - at)
    return Fault(at, "change", 0, rng.random() * longest, rng.randrange(1 << 30))


def _storm(rng: random.Random, begin: float, lasts: float, nodes: int) -> list[Fault]:
    """Faults between two times, of a few kinds: too many at once hide each other."""
    drawn = sorted(kind for kind, kindred in FAULTS.items() if kindred.weight)
    kinds = rng.sample(drawn, rng.choice((2, 4, 8, len(drawn))))
    weights = [FAULTS[kind].weight for kind in kinds]
    faults = []
    for _ in range(rng.choice((3, 8, 20))):
        kind = rng.choices(kinds, weights)[0]
        at = begin + rng.random() * lasts * 0.9
        longest = min(FAULTS[kind].longest, begin + lasts - at)
        faults.append(Fault(at, kind, rng.randrange(nodes), rng.random() ** 2 * longest, rng.randrange(1 << 30)))
    return sorted(faults, key=lambda fault: fault.at)
