"""A store in this process's memory, as small as the contract allows: what the kit's mutants are made from.

A place is a path; all stores of a path are one server. Every step that a mutant may get wrong is a method of its own.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar

from pyflannel.errors import ConfigError, ConflictError, HistoryGoneError, StoreUnavailableError
from pyflannel.store import CONFIG_KEY, Batch, Change, Record, Snapshot, Store, StoreLocation, StoreTime, Watch

TICK = 0.02


@dataclass
class Row:
    record: Record
    ends: float | None


@dataclass
class Server:
    """What a place holds; ``log`` has every change as revision, key and new state."""

    rows: dict[str, Row] = field(default_factory=dict)
    log: list[tuple[int, Change]] = field(default_factory=list)
    revision: int = 0
    forgotten: int = 0
    up: bool = True
    outages: int = 0
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))


SERVERS: defaultdict[str, Server] = defaultdict(Server)


class MemoryStore(Store):
    """Keeps every promise."""

    api_version: ClassVar[int] = 1
    scheme: ClassVar[str] = "memory"
    options: ClassVar[Mapping[str, str]] = {"note": "anything", "password": "what nobody may see"}
    secret_options: ClassVar[frozenset[str]] = frozenset({"password"})
    stream: ClassVar[type[MemoryWatch]]

    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location)
        if not location.path:
            raise ConfigError(f"store {location}: expected a path")
        self.server = SERVERS[location.path]
        self.watches: list[MemoryWatch] = []

    # the contract

    def read_config(self) -> Record | None:
        with self.reached():
            row = self.server.rows.get(CONFIG_KEY)
            return None if row is None else row.record

    def write_config(self, value: str, expected: Record | None) -> Record:
        return self.create(CONFIG_KEY, value, None) if expected is None else self.update(expected, value, None)

    def snapshot(self) -> Snapshot:
        with self.reached():
            records = [self.show(row) for row in self.server.rows.values()]
            config = next((record for record in records if record.key == CONFIG_KEY), None)
            leases = tuple(record for record in records if record.key != CONFIG_KEY)
            return Snapshot(str(self.server.revision), config, leases)

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        with self.reached():
            if key in self.server.rows:
                raise ConflictError(f"{key} exists")
            return self.put(key, value, ttl)

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        with self.reached():
            self.check(record)
            return self.put(record.key, value, None if record.permanent else ttl)

    def renew(self, record: Record, ttl: float) -> Record:
        with self.reached():
            self.check(record)
            if not record.permanent:
                self.server.rows[record.key].ends = self.end(ttl)
            return record

    def delete(self, record: Record) -> None:
        with self.reached():
            if record.key in self.server.rows:
                self.check(record)
                self.drop(record.key)

    def watch(self, revision: str) -> Watch:
        watch = self.stream(self, int(revision))
        self.watches.append(watch)
        return watch

    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        with self.reached():
            rows = self.server.rows
            ends = {record.key: rows[record.key].ends for record in records if record.key in rows}
            return {key: None if end is None else end - time.monotonic() for key, end in ends.items()}

    def clock(self) -> StoreTime | None:
        with self.reached():
            return StoreTime(time.time() - 0.01, time.time() + 0.01, "this process")

    def close(self) -> None:
        for watch in list(self.watches):
            watch.close()

    # its steps

    def reached(self) -> threading.Condition:
        """The server, if it is up; what has expired is gone."""
        with self.server.changed:
            if not self.server.up:
                raise StoreUnavailableError("the server is down")
            self.expire()
        return self.server.changed

    def expire(self) -> None:
        for key, row in list(self.server.rows.items()):
            if row.ends is not None and row.ends <= time.monotonic():
                self.drop(key)

    def end(self, ttl: float | None) -> float | None:
        return None if ttl is None else time.monotonic() + ttl

    def check(self, record: Record) -> None:
        row = self.server.rows.get(record.key)
        if row is None or row.record.version != record.version:
            raise ConflictError(f"{record.key} was changed")

    def put(self, key: str, value: str, ttl: float | None) -> Record:
        record = Record(key, value, self.version(key, value), ttl is None, ttl, created=self.creation(key))
        self.server.rows[key] = Row(record, self.end(ttl))
        self.log(Change(key, record))
        return record

    def creation(self, key: str) -> int:
        row = self.server.rows.get(key)
        return self.server.revision + 1 if row is None else row.record.created

    def version(self, key: str, value: str) -> str:
        return str(self.server.revision + 1)

    def drop(self, key: str) -> None:
        del self.server.rows[key]
        self.log(Change(key, None))

    def log(self, change: Change) -> None:
        self.server.revision += 1
        self.server.log.append((self.server.revision, change))
        self.server.changed.notify_all()

    def show(self, row: Row) -> Record:
        return row.record if row.ends is None else replace(row.record, ttl=max(0.001, row.ends - time.monotonic()))

    def since(self, revision: int) -> list[tuple[int, Change]]:
        """What a watch is told next."""
        if revision < self.server.forgotten:
            raise HistoryGoneError(f"revision {revision} is forgotten")
        return list(itertools.dropwhile(lambda entry: entry[0] <= revision, self.server.log))


class MemoryWatch(Watch):
    def __init__(self, store: MemoryStore, revision: int) -> None:
        self.store, self.revision = store, revision
        self.closed = threading.Event()

    def __next__(self) -> Batch:
        changed = self.store.server.changed
        with changed:
            while not self.closed.is_set():
                if self.store.server.up:
                    self.store.expire()
                    entries = self.store.since(self.revision)
                    if entries:
                        self.revision = entries[-1][0]
                        return Batch(str(self.revision), tuple(change for _, change in entries))
                changed.wait(TICK)
        raise StopIteration

    def close(self) -> None:
        self.closed.set()
        with suppress(ValueError):
            self.store.watches.remove(self)
        with self.store.server.changed:
            self.store.server.changed.notify_all()


MemoryStore.stream = MemoryWatch
