"""A whole cluster in one process: nodes, a store, faults, and a judge who looks at it after every step."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pyflannel.backend import Backend
from pyflannel.network.document import NetworkConfig
from pyflannel.store import CONFIG_KEY
from pyflannel.testing.simulation import faults
from pyflannel.testing.simulation.agenda import Agenda
from pyflannel.testing.simulation.faults import Fault
from pyflannel.testing.simulation.judge import PROMISE, Judge
from pyflannel.testing.simulation.node import Shared, SimulatedNode
from pyflannel.testing.simulation.plane import Table
from pyflannel.testing.simulation.stores import KubernetesModel, StoreModel

__all__ = ["Plan", "SimulatedCluster"]

REMEMBERED: Final = 60
"""Lines of what has happened that are kept for the report of a violation."""

NAP: Final = 6 * 3600.0
"""Seconds between two turns that nothing asks for, while all is quiet: a daemon looks around more often, and finds as
little; a simulated hour would consist of little else."""

LAST_HOST: Final = 90


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens in one simulated history; :mod:`~pyflannel.testing.simulation.planning` draws it from a seed.

    :param seed: names the chances that no fault decides.
    :param document: the network document.
    :param nodes: how many there are at first.
    :param ttl: a lease's life in seconds; ``margin``: how long before its end it is renewed.
    :param faults: in order of time.
    :param calm: pairs of times in seconds between which nothing goes wrong.
    """

    seed: str
    store: str
    document: str
    nodes: int
    ttl: float
    margin: float
    faults: tuple[Fault, ...]
    calm: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        """How long it takes, in simulated time."""
        return self.calm[-1][1]


class SimulatedCluster:
    """See the module's docstring.

    :param folder: an empty directory for the nodes' files.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        make_model: Callable[[random.Random], StoreModel],
        make_backend: Callable[[NetworkConfig, Table], Backend[Any]],
    ) -> None:
        self.plan, self.document = plan, plan.document
        self.network = NetworkConfig.from_json(plan.document, "the plan")
        self.agenda = Agenda()
        self.model = make_model(random.Random(f"{plan.seed} store"))  # noqa: S311 - a simulation
        self.broken_documents = 0
        self.change = ""
        self.lines: deque[str] = deque(maxlen=REMEMBERED)
        self._digest = sha256()
        self._folder = folder
        self._around = Shared(self.agenda, self.model, plan.seed, plan.ttl, plan.margin, make_backend, self.note)
        self._store_due = float("inf")
        self._told = 0
        self._hosts = 0
        self._began = self.agenda.now
        self.nodes: list[SimulatedNode] = []
        self.clones: list[SimulatedNode] = []
        self.former: list[SimulatedNode] = []
        self.judge = Judge(self)
        self.model.put(CONFIG_KEY, plan.document)
        for _ in range(plan.nodes):
            self.nodes.append(self._new_node())

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self.agenda.now - self._began

    @property
    def digest(self) -> str:
        """What tells one history from another."""
        return self._digest.hexdigest()[:16]

    @property
    def everybody(self) -> Sequence[SimulatedNode]:
        """All nodes with a daemon or a kernel that others may know."""
        return [*self.nodes, *self.clones]

    @property
    def store_is_down(self) -> bool:
        """Whether the store answers nobody at present."""
        return self.agenda.now < self._around.down_until

    def note(self, who: str, what: str) -> None:
        """Remember that something happened."""
        line = f"{self.seconds:9.3f} s  {who}: {what}"
        self._digest.update(line.encode())
        self.lines.append(line)

    # Running

    def run(self) -> None:
        """Let all of the plan happen.

        :raises Violation: what must hold does not.
        """
        rng = random.Random(f"{self.plan.seed} start")  # noqa: S311 - a simulation
        for node in self.nodes:
            self.agenda.after(rng.choice((0.0, rng.random() * 10)), lambda node=node: self._boot_first(node))  # type: ignore[misc]
        for fault in self.plan.faults:
            self.agenda.at(self._began + fault.at, lambda fault=fault: self._befall(fault))  # type: ignore[misc]
        self.states_changed()
        for begin, end in self.plan.calm:
            self._run_until(begin - PROMISE)
            self._obey()
            self._run_until(begin)
            self.judge.look_closely()
            self._around.nap = NAP
            self._run_until(end)
            self.judge.look_closely()
            self._around.nap = 0.0

    def _boot_first(self, node: SimulatedNode) -> None:
        if not node.life:
            node.boot()
            self.states_changed()

    def _befall(self, fault: Fault) -> None:
        faults.apply(self, fault)
        self.states_changed()

    def _run_until(self, seconds: float) -> None:
        end = self._began + seconds
        while self.agenda.step(end):
            self._after_step()

    def _after_step(self) -> None:
        if self.model.changes != self._told:
            self.store_changed()
        self._wake_store()
        self.judge.step()

    # The store

    def store_changed(self) -> None:
        """Have everybody look who watches."""
        self._told = self.model.changes
        for node in self.everybody:
            node.look()

    def _wake_store(self) -> None:
        """See that the store gets its turn when something ends there."""
        due = self.model.due
        if due is not None and due < self._store_due:
            self._store_due = due
            self.agenda.at(due, self._advance_store)

    def _advance_store(self) -> None:
        self._store_due = float("inf")
        self.model.advance(self.agenda.now)

    def store_down(self, lasts: float, rng: random.Random) -> None:
        """The store answers nobody for a while."""
        self._around.down_until = max(self._around.down_until, self.agenda.now + lasts)
        for node in self.everybody:
            node.notice_break(rng.random() * 3)
        self.agenda.after(lasts, self._store_up)

    def _store_up(self) -> None:
        if not self.store_is_down:
            self.states_changed()
            for node in self.everybody:
                node.look()

    def store_troubled(self, lasts: float) -> None:
        """For a while nobody can count on the store."""
        self.judge.store_troubled_until = max(self.judge.store_troubled_until, self.agenda.now + lasts)
        self.agenda.after(lasts, self.states_changed)

    # Nodes

    def _new_node(self, node_id: str = "", name: str = "", hardware: str = "") -> SimulatedNode:
        self._hosts += 1
        host = self._hosts
        folder = self._folder / str(host)
        folder.mkdir()
        node = SimulatedNode(self._around, host, node_id or f"node-{host}", folder, name, hardware)
        if isinstance(self.model, KubernetesModel):
            self.model.admit(node.name)
        return node

    def replace(self, node: SimulatedNode) -> None:
        """A machine is gone for good; a new one, with another id and address, takes its place."""
        if self._hosts >= LAST_HOST:
            return
        node.crash()
        node.gone = True
        if isinstance(self.model, KubernetesModel):
            self.model.dismiss(node.name)
        new = self._new_node()
        self.nodes[self.nodes.index(node)] = new
        self.former.append(node)
        node.kernel.close()
        self.judge.forget(node)
        new.boot()

    def clone(self, node: SimulatedNode, alike: bool) -> SimulatedNode | None:
        """A copy of a machine is started, with its id and another address."""
        if self._hosts >= LAST_HOST or isinstance(self.model, KubernetesModel):
            return None
        clone = self._new_node(node.node_id, f"{node.name}-clone-{self._hosts}", node.hardware if alike else "")
        self.clones.append(clone)
        if alike:  # nothing tells the two apart
            self.judge.contested(node)
        clone.boot()
        return clone

    def dismiss(self, clone: SimulatedNode) -> None:
        """The copy is switched off; the original is restarted, as its operator is told to."""
        clone.crash()
        clone.gone = True
        self.clones.remove(clone)
        self.judge.forget(clone)
        clone.kernel.close()
        self.former.append(clone)
        for node in self.nodes:
            if node.hardware == clone.hardware:
                self.judge.contested(node)
                node.crash()
                node.boot()

    def _obey(self) -> None:
        """Start anew, as its trouble asks of the operator, who lost the subnet for good: it had ended, for want of the
        store or of a turn, and somebody who joined just then drew it."""
        for node in self.nodes:
            if node.running and "restart this daemon" in node.state.trouble:
                self.note("operator", f"starts {node.name} anew: {node.state.trouble}")
                node.crash()
                node.boot()

    def states_changed(self) -> None:
        """A fault began or ended: who can do what is another question now."""
        self.judge.reconsider()

    def close(self) -> None:
        """Let go of all descriptors."""
        for node in [*self.everybody, *self.former]:
            node.close()
