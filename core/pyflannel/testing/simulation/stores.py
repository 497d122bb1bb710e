"""Stores for a simulation: the contract on a clock that is told, with each kind's real weaknesses.

A :class:`StoreModel` is the server, or what stands for one; :meth:`StoreModel.open` gives a node its driver, a
:class:`SimulatedStore`, which is the contract of :mod:`pyflannel.store` except that a watch is asked for its changes
instead of blocking. Between driver and server is the simulation's network: it delays, loses and repeats nothing by
itself, but a request or an answer may get lost, so every call may have taken effect although it failed.

What a server does of its own accord (expire, compact, change its leader) happens in :meth:`StoreModel.advance` and in
the :attr:`StoreModel.misfortunes`, so that a history consists of the seed's events and nothing else. To simulate a
store of your own, subclass :class:`StoreModel`, and hold it against your real server with the conformance kit of
:mod:`pyflannel.testing.stores` or with histories of your own, as ``tests/integration/stores/test_models.py`` does.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, NoReturn, TypeAlias

from pyflannel.errors import ConflictError, HistoryGoneError, StoreDeniedError, StoreUnavailableError
from pyflannel.network.lease import Subnets
from pyflannel.store import CONFIG_KEY, Batch, Change, Record, Snapshot, Store, StoreLocation, Unassigned, Watch

__all__ = [
    "MODELS",
    "ConsulModel",
    "Entry",
    "EtcdModel",
    "Expired",
    "FileModel",
    "KubernetesModel",
    "Misfortune",
    "SimulatedStore",
    "StoreModel",
]

Misfortune: TypeAlias = Callable[[random.Random], float]
"""Something that befalls a server; returns for how many seconds it answers nobody."""


@dataclass(slots=True)
class Entry:
    """A record as the server has it. ``ends`` is its lease's end, ``gone_at`` when the server will notice that."""

    record: Record
    ttl: float | None = None
    ends: float | None = None
    gone_at: float | None = None


@dataclass(frozen=True, slots=True)
class Expired:
    """A record that a server has let expire: when, and what it was at the end."""

    at: float
    key: str
    record: Record


class StoreModel(ABC):
    """A server, or what stands for one. The state is one table with a history; subclasses say how it misbehaves.

    :param rng: for what a server decides by chance.
    """

    scheme: ClassVar[str]
    assigns_subnets: ClassVar[bool] = False
    misfortunes: ClassVar[Sequence[str]] = ()
    """The names of methods, each a :data:`Misfortune`, that the simulation calls at random."""
    early: float = 0.0
    """Seconds by which a lease may end before its time."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.changes = 0
        """How many changes there were: a watch has something to tell when this has moved."""
        self.expired: list[Expired] = []
        """What has expired; whoever reads it takes it out."""
        self._entries: dict[str, Entry] = {}
        self._history: list[Change] = []
        self._times: list[float] = []
        self._oldest = 0
        self._numbers = 0
        self._drivers = 0

    def number_driver(self) -> int:
        """A number that no other driver has."""
        self._drivers += 1
        return self._drivers

    # Time

    def advance(self, now: float) -> None:
        """Time has passed: let expire what has ended."""
        self.now = max(now, self.now)
        for key, entry in [(key, entry) for key, entry in self._entries.items() if entry.gone_at is not None]:
            if entry.gone_at is not None and entry.gone_at <= self.now:
                self.expired.append(Expired(self.now, key, entry.record))
                self._forget(key)

    @property
    def due(self) -> float | None:
        """When the server does something by itself next."""
        return min((entry.gone_at for entry in self._entries.values() if entry.gone_at is not None), default=None)

    @abstractmethod
    def lag(self, ttl: float) -> float:
        """Seconds after a lease's end until the server notices it."""

    # What operators do, and what the simulation looks at

    def records(self) -> Mapping[str, Record]:
        """All records as they really are, the document among them under its key."""
        return {key: entry.record for key, entry in self._entries.items()}

    def put(self, key: str, value: str, ttl: float | None = None) -> Record:
        """Write as an operator would, whatever is there."""
        before = self._entries.get(key)
        permanent = ttl is None if before is None else before.record.permanent
        return self._write(key, value, None if permanent else (ttl or (before.ttl if before else None)))

    def remove(self, key: str) -> None:
        """Delete as an operator would."""
        if key in self._entries:
            self._forget(key)

    @abstractmethod
    def open(self, node: str) -> SimulatedStore:
        """A driver for a node."""

    # The table

    def entry(self, key: str) -> Entry | None:
        """What is there under a key."""
        return self._entries.get(key)

    def _tell(self, change: Change) -> None:
        self._history.append(change)
        self._times.append(self.now)
        self.changes += 1

    def _forget(self, key: str) -> None:
        del self._entries[key]
        self._tell(Change(key, None))

    def _write(self, key: str, value: str, ttl: float | None, handle: str = "") -> Record:
        self._numbers += 1
        name = handle or (f"lease-{self._numbers}" if ttl is not None else "")
        before = self._entries.get(key)
        created = before.record.created if before is not None else self._numbers
        record = Record(key, value, self._version(), ttl is None, ttl, name, created)
        self._entries[key] = Entry(record)
        self._keep(self._entries[key], ttl)
        self._tell(Change(key, record))
        return record

    def _version(self) -> str:
        return str(len(self._history) + 1)

    def _keep(self, entry: Entry, ttl: float | None) -> None:
        """A lease lives ``ttl`` seconds from now."""
        entry.ttl = ttl
        entry.ends = None if ttl is None else self.now + ttl
        entry.gone_at = None if entry.ends is None or ttl is None else entry.ends + self.lag(ttl)

    def _since(self, revision: int) -> tuple[Change, ...]:
        if revision < self._oldest or revision > len(self._history):
            raise HistoryGoneError(f"{self.scheme}: changes after {revision} are not known (any more)")
        return tuple(self._history[revision:])

    def _state_at(self, moment: float) -> tuple[int, dict[str, Record]]:
        """The number of changes there were at a moment that has passed, and the table then."""
        position = bisect_right(self._times, moment)
        table = {key: entry.record for key, entry in self._entries.items()}
        before: dict[str, Record] = {}
        for change in self._history[:position]:
            if change.record is None:
                before.pop(change.key, None)
            else:
                before[change.key] = change.record
        return (position, before) if position < len(self._history) else (position, table)


class SimulatedStore(Store):
    """A node's driver for a :class:`StoreModel`.

    :param node: whose it is.
    """

    scheme = "simulated"
    late: float = 0.0
    """Seconds after a change until this node can be told of it."""

    def __init__(self, model: StoreModel, node: str) -> None:
        super().__init__(StoreLocation.parse(f"simulated://{model.scheme}/{node}"))
        self.model, self.node = model, node

    @abstractmethod
    def told(self, revision: str) -> Batch:
        """The changes after ``revision`` that this node can see now.

        :raises HistoryGoneError: they are not known any more.
        """

    @property
    def behind(self) -> bool:
        """Whether there is more than this node can see yet."""
        return False

    def watch(self, revision: str) -> Watch:
        """Nothing that blocks can run in a simulation; it asks :meth:`told`."""
        raise NotImplementedError("a simulation asks told() for changes")

    # What most servers do alike

    def read_config(self) -> Record | None:
        entry = self.model.entry(CONFIG_KEY)
        return entry.record if entry is not None else None

    def write_config(self, value: str, expected: Record | None) -> Record:
        self._require(CONFIG_KEY, expected)
        return self.model._write(CONFIG_KEY, value, None)

    def snapshot(self) -> Snapshot:
        return self._shown(len(self.model._history), self.model.records())

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        self._require(key, None)
        return self.model._write(key, value, ttl)

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        entry = self._require(record.key, record)
        if entry is None or entry.record.permanent:
            return self.model._write(record.key, value, None)
        return self.model._write(record.key, value, ttl, entry.record.handle)

    def renew(self, record: Record, ttl: float) -> Record:
        """See :class:`~pyflannel.store.Store`. Of a permanent record the server is not asked."""
        return record if record.permanent else self._renewed(record, ttl)

    def _renewed(self, record: Record, ttl: float) -> Record:
        entry = self._require(record.key, record)
        assert entry is not None
        if not entry.record.permanent:
            self.model._keep(entry, ttl)
        return entry.record

    def delete(self, record: Record) -> None:
        if self.model.entry(record.key) is not None:
            self._require(record.key, record)
            self.model._forget(record.key)

    def _shown(self, number: int, records: Mapping[str, Record]) -> Snapshot:
        leases = tuple(record for key, record in records.items() if key != CONFIG_KEY)
        return Snapshot(str(number), records.get(CONFIG_KEY), leases)

    def _require(self, key: str, expected: Record | None) -> Entry | None:
        entry = self.model.entry(key)
        found = entry.record if entry is not None else None
        if (found is None) is not (expected is None) or (found and expected and found.version != expected.version):
            raise ConflictError(f"{self.model.scheme}: {key} is not as expected")
        return entry


# etcd -----------------------------------------------------------------------------------------------------------------

_LESSOR: Final = 1.0
"""Seconds until etcd looks for leases that have ended (``server/lease/lessor.go`` looks twice a second, and revoking
one is a request like any other)."""

_ELECTION: Final = 5.0
"""Seconds without a leader at most."""


class EtcdModel(StoreModel):
    """etcd v3: one history with numbers, compaction, leases that a new leader gives all their time again."""

    scheme = "etcd"
    misfortunes = ("compact", "change_leader")

    def lag(self, ttl: float) -> float:
        """Up to a second."""
        return self.rng.random() * _LESSOR

    def open(self, node: str) -> SimulatedStore:
        """A driver: its watches go on from any revision that is not compacted, whoever got it."""
        return _EtcdStore(self, node)

    def compact(self, rng: random.Random) -> float:
        """Forget the history so far."""
        self._oldest = len(self._history)
        return 0.0

    def change_leader(self, rng: random.Random) -> float:
        """The new leader extends every lease to its full time, as it can't know when the last renewal was."""
        for entry in self._entries.values():
            if entry.ttl is not None:
                self._keep(entry, entry.ttl)
        return rng.random() * _ELECTION


class _EtcdStore(SimulatedStore):
    def told(self, revision: str) -> Batch:
        changes = self.model._since(int(revision))
        return Batch(str(len(self.model._history)), changes)


# Consul ---------------------------------------------------------------------------------------------------------------

_REMEMBERED: Final = 64
"""Revisions that a driver remembers, as the real one does."""


class ConsulModel(StoreModel):
    """Consul: sessions that end up to twice as late, comparison of states instead of a history, index resets.

    :param lock_delay: seconds for which a key whose session was ended by Consul can't be locked; the driver that ships
        with pyflannel asks for none.
    """

    scheme = "consul"
    misfortunes = ("change_leader", "reset_index")

    def __init__(self, rng: random.Random, lock_delay: float = 0.0) -> None:
        super().__init__(rng)
        self.era = 0
        self.lock_delay = lock_delay
        self._delayed: dict[str, float] = {}

    def lag(self, ttl: float) -> float:
        """Consul promises not to end a session before its TTL, and to do it within twice that."""
        return self.rng.random() * ttl

    def advance(self, now: float) -> None:
        """See :class:`StoreModel`; a key whose session has ended can't be locked again at once."""
        known = len(self.expired)
        super().advance(now)
        for gone in self.expired[known:]:
            self._delayed[gone.key] = self.now + self.lock_delay

    def delayed(self, key: str) -> bool:
        """Whether a key can't be locked yet."""
        return self._delayed.get(key, 0.0) > self.now

    def open(self, node: str) -> SimulatedStore:
        """A driver: a revision is known to nobody else, and only for a while."""
        return _ConsulStore(self, node)

    def change_leader(self, rng: random.Random) -> float:
        """The new leader starts all sessions' timers anew."""
        for entry in self._entries.values():
            if entry.ttl is not None:
                self._keep(entry, entry.ttl)
        return rng.random() * _ELECTION

    def reset_index(self, rng: random.Random) -> float:
        """The index begins anew, as after a restored snapshot: what a driver knew is worth nothing."""
        self.era += 1
        return 0.0


class _ConsulStore(SimulatedStore):
    exact_ttl = False

    def __init__(self, model: ConsulModel, node: str) -> None:
        super().__init__(model, node)
        self._consul = model
        self._name = f"{node}.{model.number_driver()}"
        self._states: dict[str, tuple[int, Mapping[str, Record]]] = {}
        self._named = 0

    def snapshot(self) -> Snapshot:
        records = self.model.records()
        leases = tuple(record for key, record in records.items() if key != CONFIG_KEY)
        return Snapshot(self._remember(records), records.get(CONFIG_KEY), leases)

    def told(self, revision: str) -> Batch:
        era, before = self._states.get(revision, (-1, {}))
        if era != self._consul.era:
            raise HistoryGoneError(f"consul: revision {revision} is not known here")
        after = self.model.records()
        changes = tuple(_differences(before, after))
        return Batch(self._remember(after) if changes else revision, changes)

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        if self.model.entry(key) is None and self._consul.delayed(key):
            raise StoreUnavailableError(f"consul: {key}: the lock is delayed; try again")
        return super().create(key, value, ttl)

    def _renewed(self, record: Record, ttl: float) -> Record:
        """Whoever has the session may renew it, whatever the value is by now."""
        entry = self.model.entry(record.key)
        current = entry.record if entry is not None and entry.record.handle == record.handle else record
        return super()._renewed(current, ttl)

    def _remember(self, records: Mapping[str, Record]) -> str:
        self._named += 1
        revision = f"{self._name}.{self._named}"
        self._states[revision] = (self._consul.era, records)
        while len(self._states) > _REMEMBERED:
            del self._states[next(iter(self._states))]
        return revision


def _differences(before: Mapping[str, Record], after: Mapping[str, Record]) -> Iterator[Change]:
    """What two looks differ in: deletions first, since nothing tells when they were."""
    yield from (Change(key, None) for key in before if key not in after)
    for key, record in after.items():
        if key not in before or before[key].version != record.version:
            yield Change(key, record)


# Files ----------------------------------------------------------------------------------------------------------------


class FileModel(StoreModel):
    """A shared directory: nodes' own clocks, a lock that a stopped process keeps, changes that are seen late.

    :param skew: how far the nodes' clocks are from the true time at most, in seconds.
    :param lag: how late a node sees what another one has written, in seconds.
    """

    scheme = "file"
    misfortunes = ("fill_disk", "keep_lock")

    def __init__(self, rng: random.Random, skew: float = 0.5, lag: float = 3.0) -> None:
        super().__init__(rng)
        self._skew, self._late = skew, lag
        self.early = 2 * skew  # of two clocks, one is ahead and the other behind
        self.clocks: dict[str, float] = {}
        self._full_until = 0.0

    def lag(self, ttl: float) -> float:
        """A file stays until somebody's clock says that it is over."""
        return self._skew

    def open(self, node: str) -> SimulatedStore:
        """A driver. What it reads under the lock is true, what its watch sees may be old."""
        self.clocks.setdefault(node, (2 * self.rng.random() - 1) * self._skew)
        return _FileStore(self, node, self.rng.random() * self._late)

    def fill_disk(self, rng: random.Random) -> float:
        """Nothing can be written for a while; reading goes on."""
        self._full_until = self.now + rng.random() * 60
        return 0.0

    def keep_lock(self, rng: random.Random) -> float:
        """A process that was stopped within the lock keeps everybody out."""
        return rng.random() * 30

    @property
    def full(self) -> bool:
        """Whether the disk is."""
        return self.now < self._full_until


class _FileStore(SimulatedStore):
    node_clocks = True

    def __init__(self, model: FileModel, node: str, late: float) -> None:
        super().__init__(model, node)
        self._files, self.late = model, late
        self._first = f"{node}.{model.number_driver()}"
        self._seen = 0

    def snapshot(self) -> Snapshot:
        """Under the lock, which makes a file server tell the truth."""
        found = super().snapshot()
        now = self._clock()
        leases = tuple(record for record in found.leases if not self._over(record.key, now))
        self._seen = max(self._seen, int(found.revision))
        return Snapshot(f"{self._first}.{found.revision}", found.config, leases)

    def told(self, revision: str) -> Batch:
        first, _, number = revision.rpartition(".")
        if first != self._first:
            raise HistoryGoneError(f"file: revision {revision} is another driver's")
        position = bisect_right(self.model._times, self.model.now - self.late)
        self._seen = max(self._seen, position)
        changes = self.model._since(int(number))[: max(0, self._seen - int(number))]
        return Batch(f"{self._first}.{int(number) + len(changes)}", changes)

    @property
    def behind(self) -> bool:
        return self._seen < len(self.model._history)

    def write_config(self, value: str, expected: Record | None) -> Record:
        self._write_fails()
        return super().write_config(value, expected)

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        self._write_fails()
        if self._over(key, self._clock()):  # by this node's clock it is free
            entry = self.model.entry(key)
            assert entry is not None
            self.model.expired.append(Expired(self.model.now, key, entry.record))
            self.model._forget(key)
        return super().create(key, value, ttl)

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        self._refuse_what_is_over(record)
        return super().update(record, value, ttl)

    def renew(self, record: Record, ttl: float) -> Record:
        self._refuse_what_is_over(record)
        return self._renewed(record, ttl)

    def delete(self, record: Record) -> None:
        self._write_fails()
        super().delete(record)

    def _refuse_what_is_over(self, record: Record) -> None:
        self._write_fails()
        if self._over(record.key, self._clock()):
            raise ConflictError(f"file: {record.key} has expired")

    def _clock(self) -> float:
        return self.model.now + self._files.clocks[self.node]

    def _over(self, key: str, now: float) -> bool:
        entry = self.model.entry(key)
        return entry is not None and entry.ends is not None and entry.ends <= now

    def _write_fails(self) -> None:
        if self._files.full:
            raise StoreUnavailableError("file: no space left on device")


# Kubernetes -----------------------------------------------------------------------------------------------------------


class KubernetesModel(StoreModel):
    """A kube-apiserver: subnets that the cluster assigns, permanent records, histories that end with 410, old lists.

    :param pools: the subnets that nodes are given, in this order; a node that comes back gets the next one.
    """

    scheme = "kubernetes"
    assigns_subnets = True
    misfortunes = ("compact", "restart")

    def __init__(self, rng: random.Random, pools: Sequence[Subnets] = ()) -> None:
        super().__init__(rng)
        self._free = list(pools)
        self._given: dict[str, str] = {}
        self._behind: dict[str, float] = {}

    def lag(self, ttl: float) -> float:
        """Nothing expires."""
        return 0.0

    def admit(self, node: str) -> None:
        """A node registers, and the controller gives it a subnet."""
        if node not in self._given and self._free:
            key = self._given[node] = self._free.pop(0).key
            self._write(key, "{}", None)

    def dismiss(self, node: str) -> None:
        """A node is deleted from the cluster; its subnet may go to another one."""
        key = self._given.pop(node, None)
        if key is not None:
            self.remove(key)
            self._free.append(Subnets.from_key(key))

    def given(self, node: str) -> str | None:
        """The key of a node's record."""
        return self._given.get(node)

    def open(self, node: str) -> SimulatedStore:
        """A driver, whose later lists may be old."""
        return _KubernetesStore(self, node)

    def compact(self, rng: random.Random) -> float:
        """Old resource versions are gone: 410 for whoever watches from one."""
        self._oldest = len(self._history)
        return 0.0

    def restart(self, rng: random.Random) -> float:
        """The API server is restarted."""
        return rng.random() * 20


class _KubernetesStore(SimulatedStore):
    assigns_subnets = True

    def __init__(self, model: KubernetesModel, node: str) -> None:
        super().__init__(model, node)
        self._cluster = model
        self._listed = False

    def snapshot(self) -> Snapshot:
        """What there is, the first time, since the driver asks for the most recent state.

        A list that goes on where another call left off may be some seconds old: what it says is of one moment all the
        same.
        """
        age = self.model.rng.choice((0.0, 0.0, 1.0, 3.0)) if self._listed else 0.0
        self._listed = True
        number, records = self.model._state_at(self.model.now - age)
        return self._shown(max(number, self.model._oldest), records) if number >= self.model._oldest else self._now()

    def _now(self) -> Snapshot:
        return self._shown(len(self.model._history), self.model.records())

    def told(self, revision: str) -> Batch:
        changes = self.model._since(int(revision))
        return Batch(str(len(self.model._history)), changes)

    def assigned(self, families: Sequence[int]) -> Record | Unassigned:
        key = self._cluster.given(self.node)
        entry = self.model.entry(key) if key is not None else None
        if entry is None:
            return Unassigned(f"kubernetes: node {self.node} has no subnet yet")
        subnets = Subnets.from_key(entry.record.key)
        if any(subnets.of(version) is None for version in families):
            return Unassigned(f"kubernetes: node {self.node} lacks a subnet of a family")
        return entry.record

    def create(self, key: str, value: str, ttl: float | None) -> NoReturn:
        raise StoreDeniedError("kubernetes: the cluster gives subnets")

    def delete(self, record: Record) -> NoReturn:
        raise StoreDeniedError("kubernetes: the cluster takes subnets")

    def renew(self, record: Record, ttl: float) -> Record:
        return self._renewed(record, ttl)

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        return replace(super().update(record, value, None), permanent=True)


MODELS: Final[Mapping[str, type[StoreModel]]] = {
    model.scheme: model for model in (EtcdModel, ConsulModel, FileModel, KubernetesModel)
}
"""The models that there are, by the scheme of the store that they stand for."""
