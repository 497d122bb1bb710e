"""etcd's v2 API as a pyflannel store: the keys that flannel used before 0.20, over plain HTTP.

Read this as an example of a whole store driver; it needs nothing but the standard library. Three parts: :mod:`.api` is
the wire (requests, errors, what the contract's errors mean here), :mod:`.text` says how a record is spelled, and this
module is the contract itself.

The one idea: **who holds an index can change safely.** etcd numbers every change, a snapshot comes with the number it
was taken at, a change names the number it expects (``prevIndex``), and a watch asks for what came after a number
(``waitIndex``). So there are no locks, and no gap between snapshot and watch.

Two things of v2 need care:

* A renewal (``refresh``) moves a node's index although the value stays. A lease's version is therefore not the index
  but what :mod:`.text` makes of creation, number of updates and value; a change first reads the index that belongs to
  it. Records without expiry are never renewed: there the index is the version.
* etcd remembers the last 1,000 changes of *all* keys. Who asks for an older one is told so, and takes a new snapshot.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pyflannel.errors import ConfigError, ConflictError, HistoryGoneError, StoreUnavailableError
from pyflannel.store import (
    CONFIG_KEY,
    Batch,
    Change,
    Record,
    Snapshot,
    Store,
    StoreLocation,
    Watch,
)

from .api import Answer, Api, Connections, Exists, Mismatch, Missing
from .text import decode, encode, key_of, name_of, version_of

__all__ = ["EtcdV2Store"]

DEFAULT_HOST: Final = "127.0.0.1:2379"
DEFAULT_PATH: Final = "/coreos.com/network"
SUBNETS: Final = "subnets"

Node = Mapping[str, Any]
"""A key as etcd describes it: ``key``, ``value``, ``createdIndex``, ``modifiedIndex``, perhaps ``ttl``."""


class EtcdV2Store(Store):
    """A store in ``etcd --enable-v2``: ``etcd-v2://host:port,host:port/coreos.com/network``."""

    api_version = 1
    scheme = "etcd-v2"
    options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location)
        path = location.path.rstrip("/") or DEFAULT_PATH
        if "//" in path:
            raise ConfigError(f"store {location}: the path must be like {DEFAULT_PATH}")
        for host in location.hosts:
            _, _, port = host.rpartition(":")
            if port.isdecimal() and int(port) > 65535:
                raise ConfigError(f"store {location}: {port} is no port")
        self._prefix = path
        self._api = Api(location.hosts or (DEFAULT_HOST,))
        self._watches: set[EtcdV2Watch] = set()
        self._lock = threading.Lock()

    # The network document

    def read_config(self) -> Record | None:
        """``GET .../config``."""
        try:
            return self._record(self._api.get(self._path(CONFIG_KEY)).node)
        except Missing:
            return None

    def write_config(self, value: str, expected: Record | None) -> Record:
        """``PUT .../config`` if it is absent, or at the index that ``expected`` was read at."""
        if expected is None:
            return self._create(CONFIG_KEY, value, None)
        return self._swap(expected, value, None)

    # Leases

    def snapshot(self) -> Snapshot:
        """One recursive ``GET``; the header ``X-Etcd-Index`` says as of when."""
        try:
            answer = self._api.get(self._prefix, recursive="true")
        except Missing as missing:
            return Snapshot(str(missing.index), None, ())
        records = [record for node in _leaves(answer.node) if (record := self._record(node)) is not None]
        config = next((record for record in records if record.key == CONFIG_KEY), None)
        return Snapshot(str(answer.index), config, tuple(record for record in records if record.key != CONFIG_KEY))

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        """``PUT`` with ``prevExist=false``."""
        return self._create(key, value, ttl)

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        """``PUT`` with ``prevIndex``."""
        return self._swap(record, value, ttl)

    def renew(self, record: Record, ttl: float) -> Record:
        """``PUT`` with ``refresh=true``, of which no watch is told."""
        if record.permanent:
            return record
        while True:
            index = self._index(record)
            try:
                form = {"refresh": "true", "prevIndex": str(index), "ttl": _seconds(ttl)}
                answer = self._api.put(self._path(record.key), form)
            except Mismatch:  # renewed, or changed, since we looked: look again
                continue
            except Missing:
                raise _gone(record) from None
            return self._certain(answer.node)

    def delete(self, record: Record) -> None:
        """``DELETE`` with ``prevIndex``."""
        while True:
            try:
                index = self._index(record)
            except _Gone:
                return
            try:
                self._api.delete(self._path(record.key), index)
            except Mismatch:
                continue
            except Missing:
                return
            return

    def _create(self, key: str, value: str, ttl: float | None) -> Record:
        form = {"value": encode(value, 0), "prevExist": "false"}
        if ttl is not None:
            form["ttl"] = _seconds(ttl)
        try:
            return self._certain(self._api.put(self._path(key), form).node)
        except Exists:
            raise ConflictError(f"{self._path(key)} exists in {self.location}") from None
        except StoreUnavailableError:
            found = self._look(key)  # the answer may have got lost on its way back
            if found is None or found.get("value") != form["value"]:
                raise
            return self._certain(found)

    def _swap(self, record: Record, value: str, ttl: float | None) -> Record:
        """Replace the value of ``record`` if nobody else did."""
        while True:
            node = self._current(record)
            _, updates = decode(node.get("value", ""))
            form = {"value": value if record.permanent else encode(value, updates + 1)}
            form["prevIndex"] = str(node["modifiedIndex"])
            if ttl is not None and not record.permanent:
                form["ttl"] = _seconds(ttl)
            try:
                return self._certain(self._api.put(self._path(record.key), form).node)
            except Mismatch:
                continue
            except Missing:
                raise _gone(record) from None

    def _current(self, record: Record) -> Node:
        """The node of ``record``, if it is still that record.

        :raises ConflictError: it is not.
        """
        node = self._look(record.key)
        if node is None:
            raise _gone(record)
        if self._certain(node).version != record.version:
            raise ConflictError(f"{record.key} was changed by somebody else")
        return node

    def _index(self, record: Record) -> int:
        return int(self._current(record)["modifiedIndex"])

    def _look(self, key: str) -> Node | None:
        try:
            return self._api.get(self._path(key)).node
        except Missing:
            return None

    # The watch

    def watch(self, revision: str) -> Watch:
        """Ask again and again for the next change after an index."""
        watch = EtcdV2Watch(self, revision)
        with self._lock:
            self._watches.add(watch)
        return watch

    def changes(self, answer: Answer) -> tuple[Change, ...]:
        """What one event says.

        :raises HistoryGoneError: it is about a directory, and does not say which keys went with it.
        """
        node = answer.node
        if node.get("dir") or node["key"] == self._prefix:
            raise HistoryGoneError(f"{node['key']} was {answer.action}d as a whole: a new snapshot is needed")
        key = self._key(node["key"])
        if key is None:
            return ()
        gone = answer.action in ("delete", "expire", "compareAndDelete")
        return (Change(key, None if gone else self._record(node)),)

    def wait(self, index: int, watch: EtcdV2Watch) -> Answer | None:
        """The first change at or after ``index``; ``None`` if there was none for a while."""
        return self._api.wait(self._prefix, index, watch.connections)

    def forget(self, watch: EtcdV2Watch) -> None:
        """A watch has been closed."""
        with self._lock:
            self._watches.discard(watch)

    def close(self) -> None:
        """End all watches. Nothing else is kept open between calls."""
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.close()

    # Nodes and records

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{CONFIG_KEY if key == CONFIG_KEY else f'{SUBNETS}/{name_of(key)}'}"

    def _key(self, path: str) -> str | None:
        """The key of a record, ``None`` if ``path`` is none of ours."""
        name = path.removeprefix(f"{self._prefix}/")
        if name == CONFIG_KEY:
            return CONFIG_KEY
        directory, slash, name = name.partition("/")
        return key_of(name) if directory == SUBNETS and slash and "/" not in name else None

    def _record(self, node: Node) -> Record | None:
        key = self._key(node["key"])
        if key is None or node.get("dir"):
            return None
        # Not "ttl": in the moment between its end and the removal it is 0, and etcd leaves out what is 0.
        stored, permanent = node.get("value", ""), "expiration" not in node
        value = stored if permanent else decode(stored)[0]
        version = str(node["modifiedIndex"]) if permanent else version_of(node["createdIndex"], stored)
        return Record(key, value, version, permanent, None if permanent else max(0, node.get("ttl", 0)))

    def _certain(self, node: Node) -> Record:
        record = self._record(node)
        assert record is not None, f"{node['key']} is a key that we asked for"
        return record


class EtcdV2Watch(Watch):
    """Long polls, one after the other. An event that happens between two of them is in etcd's history."""

    def __init__(self, store: EtcdV2Store, revision: str) -> None:
        self._store = store
        self._revision = revision
        self.connections = Connections()

    def __next__(self) -> Batch:
        """Wait for the next change."""
        while not self.connections.cut():
            try:
                index = int(self._revision)
            except ValueError:
                raise HistoryGoneError(f"{self._revision!r} is no revision of an etcd-v2 store") from None
            try:
                answer = self._store.wait(index + 1, self)
            except StoreUnavailableError:
                if self.connections.cut():
                    break
                raise
            if answer is None:
                continue
            self._revision = str(answer.index)
            return Batch(self._revision, self._store.changes(answer) if answer.node else ())
        raise StopIteration

    def close(self) -> None:
        """End it, also while another thread waits in it."""
        self.connections.close()
        self._store.forget(self)


class _Gone(ConflictError):  # noqa: N818 - a conflict, and for a deletion none
    """A record is not there any more."""


def _gone(record: Record) -> _Gone:
    return _Gone(f"{record.key} was deleted or has expired")


def _leaves(node: Node) -> list[Node]:
    found: list[Node] = []
    for child in node.get("nodes", ()):
        found += _leaves(child) if child.get("dir") else [child]
    return found


def _seconds(ttl: float) -> str:
    return str(max(1, math.ceil(ttl)))
