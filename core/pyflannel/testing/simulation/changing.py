"""A change of a simulated network: an operator who drives it from outside, and is a weak spot like all others.

What moves the change on is the code that ``pyflannel network change`` runs. There may be two operators at a time; each
looks at the store every second or so, may be away for long, and goes on where the other one has stopped. One may turn
the change round. It waits for all nodes that there are: leases of nodes that are gone, or never were, an operator names
as those not to wait for; so does he with that of a copy of a machine that has left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final, Protocol

from pyflannel.errors import ConfigError, ConflictError, StoreError
from pyflannel.network.change import NetworkChange, Phase, read
from pyflannel.network.document import NetworkConfig
from pyflannel.store import CONFIG_KEY
from pyflannel.storetools.change import Drive, NodeStanding, abandon, note, standings
from pyflannel.testing.simulation.judge import Evidence, Judge

__all__ = ["BACKENDS", "Changed", "begin"]

BACKENDS: Final = ("vxlan", "host-gw", "memory", "secret")
"""What a network may be changed to."""

PAUSE: Final = 1.0
"""Seconds between two looks of an operator."""

OPERATOR: Final = "operator"


class Changed(Evidence, Protocol):
    """Whose network is changed."""

    judge: Judge
    document: str
    change: str

    def note(self, who: str, what: str) -> None:
        """Remember that something happened."""


def begin(cluster: Changed, lasts: float, rng: random.Random) -> None:
    """Begin a change, if none is under way and the store lets an operator do so."""
    model = cluster.model
    if cluster.change or cluster.broken_documents or cluster.store_is_down or model.assigns_subnets:
        return
    written = read(cluster.document)
    target = rng.choice([name for name in BACKENDS if name != cluster.network.backend_type])
    identity = f"{rng.getrandbits(64):016x}"
    settings = {**written.settings, "Backend": {"Type": target}}
    change = NetworkChange(identity, Phase.PREPARE, settings, _clock(cluster), (), _clock(cluster))
    store = model.open(OPERATOR)
    try:
        store.write_config(written.with_change(change), store.read_config())
    except StoreError:
        return
    cluster.change = identity
    cluster.judge.change_begins()
    cluster.note(OPERATOR, f"changes the network to {target}")
    for _ in range(rng.choice((1, 1, 2))):
        _Operator(cluster, identity, target, rng).work()
    if rng.random() < 0.3:
        cluster.agenda.after(rng.random() ** 3 * (lasts + 10), lambda: _turn_round(cluster, identity))


def _clock(cluster: Changed) -> str:
    return note(_moment(cluster))


def _moment(cluster: Changed) -> datetime:
    return datetime.fromtimestamp(cluster.agenda.now, timezone.utc)


def _turn_round(cluster: Changed, identity: str) -> None:
    if cluster.change != identity or cluster.store_is_down:
        return
    store = cluster.model.open(OPERATOR)
    record = store.read_config()
    try:
        if record is not None:
            abandon(store, record, _clock(cluster))
            cluster.note(OPERATOR, "turns the change round")
    except (ConfigError, StoreError):  # it is too late, or somebody was quicker
        return


class _Operator:
    """Drives a change until it is over; in between he may be away."""

    def __init__(self, cluster: Changed, change: str, target: str, rng: random.Random) -> None:
        self._cluster, self._change, self._target, self._rng = cluster, change, target, rng

    def work(self) -> None:
        """Look, and come back."""
        if self._cluster.change == self._change:
            self._look()
            away = self._rng.random() * 60 if self._rng.random() < 0.03 else 0.0
            self._later(PAUSE * (0.5 + self._rng.random()) + away, self.work)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._cluster.agenda.after(seconds, what)

    def _look(self) -> None:
        cluster = self._cluster
        if cluster.store_is_down:
            return
        cluster.model.advance(cluster.agenda.now)
        store = cluster.model.open(OPERATOR)
        drive = Drive(store, self._change, lambda: _moment(cluster), self._nobodys())
        try:
            progress = drive.look()
        except (StoreError, ConflictError):
            return
        if progress.over:
            document = cluster.model.records()[CONFIG_KEY].value
            cluster.document = document
            cluster.network = NetworkConfig.from_json(read(document).text)
            cluster.change = ""
            cluster.judge.change_ends(self._target if progress.phase == "done" else "")
            cluster.note(OPERATOR, f"the change is over: {progress.phase}")

    def _nobodys(self) -> tuple[str, ...]:
        """The leases of nodes that are gone, or never were."""
        cluster = self._cluster
        records = [record for key, record in cluster.model.records().items() if key != CONFIG_KEY]
        nodes = standings(cluster.network, records, self._change)
        return tuple(node.key for node in nodes if self._is_nobodys(node))

    def _is_nobodys(self, lease: NodeStanding) -> bool:
        """Whether a lease names no node that lives, or one that holds another lease: its copy, which has left."""
        named = [node for node in self._cluster.everybody if node.node_id == lease.node_id]
        held = [node.state.lease.key for node in self._cluster.everybody if node.state.lease is not None]
        elsewhere = all(node.running and node.state.lease is not None for node in named)
        addresses = {str(address) for node in named for address in node.addresses}
        return lease.key not in held and elsewhere and lease.address not in addresses
