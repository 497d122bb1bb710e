"""Running a plan, and finding the shortest one that still fails."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

from pyflannel.backend import Backend, parse_options
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets
from pyflannel.plugins import load_backend
from pyflannel.testing.simulation.cluster import Plan, SimulatedCluster
from pyflannel.testing.simulation.judge import Violation
from pyflannel.testing.simulation.plane import MemoryBackend, SecretBackend, Table
from pyflannel.testing.simulation.stores import MODELS, KubernetesModel, StoreModel

__all__ = ["Ending", "MakeBackend", "MakeModel", "run", "shrink"]

MakeModel: TypeAlias = Callable[[Plan, random.Random], StoreModel]
"""Makes the store of a plan."""

MakeBackend: TypeAlias = Callable[[NetworkConfig, Table], Backend[Any]]
"""Makes the backend that a network document asks for, on a node with this table."""

POOLS: Final = 40
"""Subnets that a cluster which assigns them has."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a plan has ended.

    :param violation: what did not hold, if something did not.
    :param lines: the last things that happened.
    :param digest: the same for two runs with the same history, and no others.
    :param slowest: the longest time in seconds that a pair which nothing hindered has waited to be connected.
    :param took: real seconds.
    """

    plan: Plan
    violation: Violation | None
    lines: tuple[str, ...]
    digest: str
    seconds: float
    steps: int
    slowest: float
    took: float

    def report(self) -> str:
        """The history: what the plan is, what befell it, how it ended."""
        plan = self.plan
        lease = f"lease {plan.ttl:g} s (margin {plan.margin:g} s)"
        head = f"{plan.seed}: {plan.nodes} nodes on {plan.store}, {lease}, network {plan.document}"
        lines = [head, *map(str, plan.faults)]
        if self.violation is not None:
            lines += ["", *self.lines, "", f"after {self.seconds:.3f} s: {self.violation}"]
        return "\n".join(lines)


def standard_model(plan: Plan, rng: random.Random) -> StoreModel:
    """The model that a plan names."""
    kind = MODELS[plan.store]
    if kind is KubernetesModel:
        return KubernetesModel(rng, _pools(NetworkConfig.from_json(plan.document, "the plan")))
    return kind(rng)


def _pools(network: NetworkConfig) -> list[Subnets]:
    """What a cluster gives its nodes: the network's first subnet too, whatever the document leaves out."""
    four, six = network.ipv4, network.ipv6
    fours = four.network.subnets(new_prefix=four.subnet_len) if four is not None else None
    sixes = six.network.subnets(new_prefix=six.subnet_len) if six is not None else None
    found: list[Subnets] = []
    for _ in range(POOLS):
        one: IPv4Network | None = next(fours, None) if fours is not None else None
        other: IPv6Network | None = next(sixes, None) if sixes is not None else None
        if (four is not None and one is None) or (six is not None and other is None):
            break
        found.append(Subnets(one, other))
    return found


def standard_backend(network: NetworkConfig, table: Table) -> Backend[Any]:
    """The backend that is installed under a document's type; ``memory`` and ``secret`` have a data plane in memory."""
    for own in (MemoryBackend, SecretBackend):
        if network.backend_type == own.name:
            return own(table)
    kind = load_backend(network.backend_type)
    return kind(parse_options(kind.Options, network.backend_options)[0])


def run(plan: Plan, make_model: MakeModel = standard_model, make_backend: MakeBackend = standard_backend) -> Ending:
    """Let a plan happen in a cluster of its own; whatever goes wrong is in the ending."""
    begin = time.perf_counter()
    with _quiet(), TemporaryDirectory(prefix="pyflannel-simulation-", dir=_memory()) as folder:
        cluster = SimulatedCluster(plan, Path(folder), lambda rng: make_model(plan, rng), make_backend)
        violation: Violation | None = None
        try:
            cluster.run()
        except Violation as error:
            violation = error
        except Exception as error:  # a daemon's own fault: that, too, is a finding
            violation = Violation("stumble", f"{type(error).__name__}: {error}")
            violation.__cause__ = error
        finally:
            cluster.close()
    return Ending(
        plan,
        violation,
        tuple(cluster.lines),
        cluster.digest,
        cluster.seconds,
        cluster.agenda.steps,
        cluster.judge.slowest,
        time.perf_counter() - begin,
    )


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a directory of our own in it


@contextmanager
def _quiet() -> Iterator[None]:
    """Daemons log what befalls them, and here that is much."""
    logger = logging.getLogger("pyflannel")
    before = logger.disabled, logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before[1])


def shrink(
    outcome: Ending,
    make_model: MakeModel = standard_model,
    make_backend: MakeBackend = standard_backend,
    patience: float = 120.0,
) -> Ending:
    """The outcome of the shortest plan found that violates the same invariant as ``outcome``'s.

    Leaves out faults, half of them, a quarter, single ones, as long as it still fails.

    :param patience: real seconds after which the best one so far is taken.
    """
    if outcome.violation is None:
        return outcome
    name, best, until = outcome.violation.name, outcome, time.perf_counter() + patience
    size = max(1, len(best.plan.faults) // 2)
    while time.perf_counter() < until:
        shorter = _shorter(best, size, name, make_model, make_backend, until)
        if shorter is not None:
            best = shorter
            size = min(size, max(1, len(best.plan.faults) // 2))
        elif size == 1:
            break
        else:
            size //= 2
    return best


def _shorter(
    best: Ending, size: int, name: str, make_model: MakeModel, make_backend: MakeBackend, until: float
) -> Ending | None:
    faults = best.plan.faults
    for start in range(0, len(faults), size):
        if time.perf_counter() > until:
            return None
        plan = replace(best.plan, faults=faults[:start] + faults[start + size :])
        tried = run(plan, make_model, make_backend)
        if tried.violation is not None and tried.violation.name == name:
            return tried
    return None
