"""Consul as a store: keys locked by sessions, transactions, and one blocking query on the prefix.

How leases are kept, with ``<prefix>`` from the URL:

* ``<prefix>/config`` is the network document, ``<prefix>/subnets/<key>`` a lease, with the same text as in etcd;
* a lease's key is locked by a session of its own, with a TTL, behaviour *delete* and no lock delay: when the session
  ends, Consul deletes the key. A reservation's key is locked by nobody;
* every write is one transaction that checks the key's ``ModifyIndex`` (or absence) and locks it, so that "unchanged"
  and "mine" hold together. Acquiring alone would take an unlocked reservation;
* a session's TTL can't be changed. To renew with another one, a new session takes the key over, which moves
  ``ModifyIndex`` though the value is the same; the key's ``Flags`` then keep the index that belongs to the value;
* sessions are bound to a node of Consul's catalog that is nobody's machine (option ``node``) and has no checks. Bound
  to an agent, as is Consul's default, they would end, and the leases with them, when that agent fails or is restarted.

How changes are followed: a blocking query waits for the index of the prefix to move. It asks for the names of the
prefix's direct children, a few bytes, where the leases themselves may be megabytes. When the index moved, all is read
and compared with what was known: so nothing can be missed, and what an index means across a reset hardly matters.
"""

from __future__ import annotations

import base64
import itertools
import math
import random
import re
import threading
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias
from weakref import WeakSet

from pyflannel.errors import (
    ConfigError,
    ConflictError,
    HistoryGoneError,
    StoreError,
    StoreUnavailableError,
)
from pyflannel.store import (
    CALL_TIMEOUT,
    CONFIG_KEY,
    Batch,
    Change,
    Record,
    Snapshot,
    Store,
    StoreLocation,
    StoreTime,
    Watch,
)
from pyflannel_stores._consul_access import DEFAULT_HOST, DEFAULT_PORT, parse_access, parse_host, parse_prefix
from pyflannel_stores._deadline import Deadline

if TYPE_CHECKING:
    from pyflannel_stores._consul_http import Addresses

__all__ = ["ConsulStore"]

DEFAULT_NODE: Final = "pyflannel"

SHORTEST_TTL, LONGEST_TTL = 10, 24 * 3600
"""Seconds; Consul's limits for a session's TTL (https://developer.hashicorp.com/consul/api-docs/session)."""

_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

_Operation: TypeAlias = dict[str, dict[str, Any]]
"""One step of a transaction (https://developer.hashicorp.com/consul/api-docs/txn)."""

_SEED: Final = 0x7079666C  # so that nobody's flags are taken for ours

_BUDGET: Final = CALL_TIMEOUT - 0.5
"""Seconds for a call and all its steps; the rest is for what a loaded machine adds."""

_RESERVE: Final = 1.2
"""Seconds of them that are kept for finding out what became of a write."""

_LATE: Final = 10.0
"""Seconds for which a request without an answer may still be done: servers without a leader hold it for 7."""

# A query that blocks for long keeps servers idle and finds out late that one is frozen. Answering it costs a server
# time in proportion to the leases, and so it is asked the less often the more there are.
_WAIT_SHORTEST, _WAIT_LONGEST, _WAIT_PER_LEASE = 10.0, 60.0, 0.01
_WAIT_GRACE: Final = 2.0

# On a change all nodes read everything at once: spread over this many seconds per lease.
_SPREAD_PER_LEASE: Final = 0.0001
_BUSY_SHARE: Final = 0.25
"""The share of its time that a watch spends on reading at most, when changes pour in or the servers are slow."""

_PAUSE_LONGEST: Final = 10.0

_REMEMBERED_RECORDS: Final = 50_000
_REMEMBERED_STATES: Final = 64


class ConsulStore(Store):
    """The driver for ``consul://host:port,host:port/prefix``; needs py-consul."""

    scheme = "consul"
    exact_ttl = False  # Consul tells a session's TTL, not what is left of it
    options: ClassVar[Mapping[str, str]] = {
        "token_file": "file with the ACL token; default: the environment's PYFLANNEL_CONSUL_TOKEN or CONSUL_HTTP_TOKEN",
        "tls": "speak HTTPS (true or false); implied by the files below",
        "cafile": "certificates of the authorities to trust; default: the system's",
        "certfile": "client certificate, with keyfile",
        "keyfile": "the client certificate's key",
        "datacenter": "Consul datacenter; default: the server's own",
        "namespace": "namespace (Consul Enterprise)",
        "node": f"catalog node that sessions are bound to, registered if it is not there; default: {DEFAULT_NODE}",
    }

    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location)
        try:
            from pyflannel_stores import _consul_http as http  # py-consul and requests: only for those who use them
        except ImportError as error:
            raise ConfigError(f"store {location}: {error}; install it with: pip install 'pyflannel[consul]'") from error
        self._http = http
        self._hosts = [parse_host(location, host) for host in location.hosts] or [(DEFAULT_HOST, DEFAULT_PORT)]
        self._prefix = parse_prefix(location)
        self._node = location.options.get("node") or DEFAULT_NODE
        self._access = parse_access(location)
        self._consul: Addresses = self.addresses()
        self._history = _History()
        self._watches: WeakSet[ConsulWatch] = WeakSet()
        # Sessions of ours that must not live on: by id, and by name where creating one got no answer (then the id
        # that is wanted, or ""). They are ended before anything else is asked of Consul.
        self._doomed: set[str] = set()
        self._lost: dict[str, _Doubtful] = {}

    def addresses(self) -> Addresses:
        """Connections of one's own to the servers; a thread needs its own."""
        return self._http.Addresses(self._hosts, self._access, str(self.location))

    def read_config(self) -> Record | None:
        found = self._find(CONFIG_KEY, self._begin())
        return found.record if found else None

    def write_config(self, value: str, expected: Record | None) -> Record:
        write = partial(_cas, self._path(CONFIG_KEY), value)
        version, _ = self._commit(CONFIG_KEY, expected, write, _Ours(value, "", expected), self._begin())
        return Record(CONFIG_KEY, value, version, permanent=True, created=_creation(version))

    def snapshot(self) -> Snapshot:
        state = self.read_all(self._consul, self._begin(), consistent=True)
        leases = tuple(record for key, record in state.records.items() if key != CONFIG_KEY)
        return Snapshot(self._history.add(state), state.records.get(CONFIG_KEY), leases)

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        """See :class:`~pyflannel.store.Store`. A TTL outside Consul's limits becomes the nearest one inside."""
        deadline, path = self._begin(), self._path(key)
        if ttl is None:
            version, _ = self._commit(key, None, partial(_cas, path, value), _Ours(value, "", None), deadline)
            return Record(key, value, version, permanent=True, created=_creation(version))
        granted = _grant(ttl)
        session = self._open_session(key, granted, deadline)
        write = partial(_lock, path, value, session)
        version, _ = self._commit(key, None, write, _Ours(value, session, None), deadline, session)
        return Record(key, value, version, False, float(granted), session, _creation(version))

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        deadline, path = self._begin(record.handle), self._path(record.key)
        if record.permanent:
            write = partial(_cas, path, value)
            version, _ = self._commit(record.key, record, write, _Ours(value, "", record), deadline)
            return replace(record, value=value, version=version)
        if ttl is None:
            write = partial(_unlock, path, value)
            version, before = self._commit(record.key, record, write, _Ours(value, "", record), deadline)
            self._end_session(before, deadline)
            return Record(record.key, value, version, permanent=True, created=record.created)
        granted = _grant(ttl)
        record, held = self._renew_session(record, deadline)
        if held != granted:
            return self._change_session(record, value, granted, deadline)
        write, ours = partial(_lock, path, value, record.handle), _Ours(value, record.handle, record)
        version, _ = self._commit(record.key, record, write, ours, deadline)
        return replace(record, value=value, version=version, ttl=float(granted))

    def renew(self, record: Record, ttl: float) -> Record:
        if record.permanent:
            return record
        deadline = self._begin(record.handle)
        found = self._find(record.key, deadline.part(_RESERVE))
        if found is None or (found.record.handle != record.handle and not _same(found.record, record)):
            self._end_session(record.handle, deadline)  # it outlived what it was for
            raise self._conflict(record.key, found, record)
        granted = _grant(ttl)
        current, held = self._renew_session(found.record, deadline)
        if held != granted:
            return self._change_session(current, None, granted, deadline)
        return replace(current, ttl=float(granted))

    def delete(self, record: Record) -> None:
        deadline = self._begin()
        write = partial(_delete, self._path(record.key))
        _, session = self._commit(record.key, record, write, lambda found: found is None, deadline)
        self._end_session(session, deadline)

    def watch(self, revision: str) -> Watch:
        """See :class:`~pyflannel.store.Store`. Only revisions of this object are known, and of those the latest."""
        watch = ConsulWatch(self, self._history, revision)
        self._watches.add(watch)
        return watch

    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        """See :class:`~pyflannel.store.Store`. Consul tells no remaining time: what is given is the session's TTL."""
        deadline = self._begin()

        def request(client: Any) -> dict[str, float | None]:
            _, sessions = client.session.list(consistency="consistent")
            return {session["ID"]: _parse_ttl(session["TTL"]) for session in sessions}

        ttls = self._consul.call(deadline, request)
        return {record.key: ttls.get(record.handle) for record in records}

    def clock(self) -> StoreTime:
        """See :class:`~pyflannel.store.Store`. The ``Date`` (RFC 9110, 6.6.1) of an answer that needs no token."""
        from email.utils import parsedate_to_datetime

        def request(client: Any) -> StoreTime:
            headers = client.http.get(lambda answer: answer.headers, "/v1/status/leader")
            earliest = parsedate_to_datetime(headers["Date"]).timestamp()
            return StoreTime(earliest, earliest + 1, f"Consul {client.http.base_uri}")

        return self._consul.call(Deadline(_BUDGET), request)

    def close(self) -> None:
        for watch in list(self._watches):
            watch.close()
        self._consul.close()

    def read_index(self, consul: Addresses, after: int | None, wait: float = 0.0) -> int:
        """The index of the prefix: at once, or when it is not ``after`` any more or ``wait`` seconds have passed."""

        def request(client: Any) -> int:
            blocking = {"index": after, "wait": f"{wait:.0f}s"} if after else {}
            return _sane(client.kv.get(f"{self._prefix}/", keys=True, separator="/", **blocking)[0])

        if after is None:
            return consul.call(Deadline(_BUDGET), request)
        # Consul adds up to a sixteenth to the wait (https://developer.hashicorp.com/consul/api-docs/features/blocking).
        return consul.once(Deadline(wait * 17 / 16 + _WAIT_GRACE), request)

    def read_all(self, consul: Addresses, deadline: Deadline | None = None, *, consistent: bool = False) -> _State:
        """Everything below the prefix that is ours, and its index."""
        deadline = deadline or Deadline(_BUDGET)
        mode = "consistent" if consistent else "default"
        below = f"{self._prefix}/"

        def request(client: Any) -> _State:
            index, items = client.kv.get(below, recurse=True, consistency=mode)
            return _State(_sane(index), dict(self._records(items or ())))

        state = consul.call(deadline, request)
        # What a token may not read, Consul leaves out of a listing without a word; asked for one key, it says so.
        if CONFIG_KEY not in state.records:
            consul.call(deadline, lambda client: client.kv.get(f"{below}config", consistency=mode))
        if len(state.records) <= (CONFIG_KEY in state.records):
            consul.call(deadline, lambda client: client.kv.get(f"{below}subnets/", consistency=mode))
        return state

    def _records(self, items: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, Record]]:
        leases = f"{self._prefix}/subnets/"
        config = self._path(CONFIG_KEY)
        for item in items:
            path: str = item["Key"]
            if path == config:
                yield CONFIG_KEY, _record(CONFIG_KEY, item)
            elif path.startswith(leases):
                key = path[len(leases) :]
                # "" is the marker that makes a folder in Consul's web interface.
                if key and key != CONFIG_KEY:
                    yield key, _record(key, item)

    def _find(self, key: str, deadline: Deadline) -> _Entry | None:
        def request(client: Any) -> _Entry | None:
            _, item = client.kv.get(self._path(key), consistency="consistent")
            return None if item is None else _Entry(_record(key, item), item["ModifyIndex"])

        return self._consul.call(deadline, request)

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key}" if key == CONFIG_KEY else f"{self._prefix}/subnets/{key}"

    def _begin(self, wanted: str = "") -> Deadline:
        """The deadline of a call; sessions that were to end are ended first, all but the one that is ``wanted``."""
        deadline = Deadline(_BUDGET)
        self._doomed.discard(wanted)
        if self._doomed or self._lost:
            self._end_doomed(deadline.part(_BUDGET / 2))
        return deadline

    def _commit(
        self,
        key: str,
        expected: Record | None,
        write: Callable[[_Entry | None], list[_Operation]],
        ours: Callable[[Record | None], bool],
        deadline: Deadline,
        new_session: str = "",
    ) -> tuple[str, str]:
        """Write a key if it is as ``expected``; returns its version afterwards, and the session that held it before.

        :param write: the operations of the transaction, from what the key is checked to be.
        :param ours: whether a record, or its absence, is what the transaction makes of it.
        :param new_session: a session that is ended if nothing came of the transaction. Where that is unknown and the
            key was there before, it is left to its TTL.
        """
        entry = None if expected is None else _Entry(expected, _index_of(expected))
        try:
            while True:
                outcome = self._transact(key, entry, write, ours, deadline)
                if isinstance(outcome, str):
                    return outcome, entry.record.handle if entry else ""
                found = outcome.found
                if not _same(found.record if found else None, expected):
                    raise self._conflict(key, found, expected)
                if _alike(found, entry):  # all is as it should be: the session ended, or the lock is delayed
                    raise StoreUnavailableError(f"{self.location}: {key}: {outcome.reason}; try again")
                entry = found  # the value is as expected, but another session holds it now
        except StoreError as error:
            unknown = isinstance(error, StoreUnavailableError)
            # A lease that may have gone over to the new session would be deleted with it; one that was to be created
            # is better not there than there without anybody who knows.
            if new_session and (expected is None or not unknown):
                self._end_session(new_session, deadline)
            raise

    def _transact(
        self,
        key: str,
        entry: _Entry | None,
        write: Callable[[_Entry | None], list[_Operation]],
        ours: Callable[[Record | None], bool],
        deadline: Deadline,
    ) -> str | _Refusal:
        """One transaction. Its answer may get lost: what is found at the key then tells what became of it."""

        def request(client: Any) -> str:
            results = client.txn.put(write(entry))["Results"]
            return _version(results[-1]["KV"]) if results else ""

        try:
            return self._consul.call(deadline.part(_RESERVE), request)
        except self._http.RolledBack as refusal:
            doubtful = self._consul.doubtful
            found = self._find(key, deadline)
            if (doubtful or found is None) and ours(found.record if found else None):
                return found.record.version if found else ""
            return _Refusal(found, str(refusal))
        except StoreUnavailableError:
            found = self._find(key, deadline)
            if ours(found.record if found else None):
                return found.record.version if found else ""
            raise

    def _conflict(self, key: str, found: _Entry | None, expected: Record | None) -> ConflictError:
        what = "is there already" if expected is None else "was changed" if found else "was deleted or has expired"
        return ConflictError(f"{self.location}: {key} {what}; somebody else was first")

    def _open_session(self, key: str, ttl: int, deadline: Deadline) -> str:
        """A new session. Its name is unique, so that one whose creation got no answer can be found and ended."""
        name = f"pyflannel {key} {uuid.uuid4().hex}"

        def create(client: Any) -> str:
            session: str = client.session.create(name, self._node, [], lock_delay=0, behavior="delete", ttl=ttl)
            return session

        share = deadline.part(deadline.left / 2)
        session = ""
        try:
            try:
                session = self._consul.call(share, create)
            except self._http.NoSuchNode:
                self._consul.call(share, lambda client: client.catalog.register(self._node, DEFAULT_HOST))
                session = self._consul.call(share, create)
        finally:
            if self._consul.doubtful:
                self._lost[name] = _Doubtful(session, time.monotonic() + _LATE)
        return session

    def _renew_session(self, record: Record, deadline: Deadline) -> tuple[Record, float | None]:
        """Renew a record's session and return its TTL, and the record as it is if another session took it over.

        :raises ConflictError: it has ended, and the key with it.
        """
        try:
            ttl = self._consul.call(
                deadline.part(2 * _RESERVE), lambda client: _parse_ttl(client.session.renew(record.handle)["TTL"])
            )
        except self._http.NoSuchSession:
            found = self._find(record.key, deadline)
            if found is None or not found.record.handle or not _same(found.record, record):
                raise self._conflict(record.key, found, record) from None
            if found.record.handle == record.handle:
                raise StoreUnavailableError(f"{self.location}: {record.key} is about to expire; try again") from None
            return self._renew_session(found.record, deadline)
        return record, ttl

    def _change_session(self, record: Record, value: str | None, ttl: int, deadline: Deadline) -> Record:
        """Give a record's key to a new session, with a new value or (``None``) the one it has."""
        session = self._open_session(record.key, ttl, deadline)
        text = record.value if value is None else value
        flags = _stamp(record) if value is None else 0
        write, ours = partial(_take_over, self._path(record.key), text, session, flags), _Ours(text, session, record)
        version, before = self._commit(record.key, record, write, ours, deadline, session)
        self._end_session(before, deadline)
        version = record.version if value is None else version
        return Record(record.key, text, version, False, float(ttl), session, record.created)

    def _end_session(self, session: str, deadline: Deadline) -> None:
        """End a session now if Consul answers, else before the next call: what was asked for is done either way."""
        if session:
            self._doomed.add(session)
        try:
            self._end_doomed(deadline)
        except StoreError:
            return  # it stays doomed

    def _end_doomed(self, deadline: Deadline) -> None:
        if self._lost:
            lost, now = self._lost, time.monotonic()

            def unwanted(client: Any) -> set[str]:
                pairs = [(each["ID"], each["Name"]) for each in client.session.list(consistency="consistent")[1]]
                return {session for session, name in pairs if name in lost and lost[name].session != session}

            self._doomed |= self._consul.call(deadline, unwanted)
            self._lost = {name: each for name, each in lost.items() if each.until > now}
        for session in sorted(self._doomed):
            self._consul.call(deadline, partial(_destroy, session))
            self._doomed.discard(session)


class ConsulWatch(Watch):
    """Changes below the prefix, by a blocking query and comparison."""

    def __init__(self, store: ConsulStore, history: _History, revision: str) -> None:
        self._store = store
        self._history = history
        self._revision = revision
        self._state = history.get(revision)
        self._consul = store.addresses()
        self._connected = False
        self._closed = threading.Event()
        self._resume_at = 0.0

    def __next__(self) -> Batch:
        while not self._closed.is_set():
            try:
                batch = self._follow()
            except StoreUnavailableError:
                if self._closed.is_set():
                    break
                raise
            if batch is not None:
                return batch
        raise StopIteration

    def close(self) -> None:
        self._closed.set()
        self._consul.close()

    def _follow(self) -> Batch | None:
        if self._state is None:
            raise HistoryGoneError(
                f"{self._store.location}: revision {self._revision!r} is not known here (any more); take a new snapshot"
            )
        index = self._next_index(self._state)
        if index == self._state.index:
            return None
        self._closed.wait(self._pause(self._state))
        return None if self._closed.is_set() else self._catch_up(self._state)

    def _next_index(self, state: _State) -> int:
        """Wait for the index to move, but come back now and then; and after a break ask before waiting.

        What lies behind an address may be another store after a break, whose index stands below ours.
        """
        if not self._connected:
            index = self._store.read_index(self._consul, None)
            self._connected = True
            return index
        wait = min(_WAIT_LONGEST, max(_WAIT_SHORTEST, _WAIT_PER_LEASE * len(state.records)))
        try:
            return self._store.read_index(self._consul, state.index, wait)
        except StoreUnavailableError:
            self._connected = False
            return state.index

    def _pause(self, state: _State) -> float:
        spread = random.random() * _SPREAD_PER_LEASE * len(state.records)  # noqa: S311 - load, not secrets
        return max(spread, self._resume_at - time.monotonic())

    def _catch_up(self, before: _State) -> Batch | None:
        began = time.monotonic()
        state = self._store.read_all(self._consul)
        if state.index < before.index:
            state = self._store.read_all(self._consul, consistent=True)
        done = time.monotonic()
        self._resume_at = done + min(_PAUSE_LONGEST, (done - began) * (1 - _BUSY_SHARE) / _BUSY_SHARE)
        changes = _differences(before.records, state.records)
        # An index may fall: Consul forgets deletions after a while. But nothing new can come with an old index, unless
        # the store was replaced or set back; then versions mean something else too.
        if state.index < before.index and any(
            each.record and _index_of(each.record) <= before.index for each in changes
        ):
            self._state = None
            self._revision = "before a reset"
            raise HistoryGoneError(f"{self._store.location}: the store was set back or replaced; take a new snapshot")
        self._state = state.sharing(before)
        if not changes:
            return None
        return Batch(self._history.add(self._state), changes)


@dataclass(frozen=True, slots=True)
class _State:
    """All records by key, and the index of the prefix at that time."""

    index: int
    records: Mapping[str, Record]

    def sharing(self, before: _State) -> _State:
        """The same, made of the objects of the state before where they are equal: thousands, of which few change."""
        old = before.records
        return _State(
            self.index, {key: old[key] if old.get(key) == record else record for key, record in self.records.items()}
        )


class _History:
    """The states behind the revisions that were handed out lately. For any thread."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._lock = threading.Lock()
        self._name = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)

    def add(self, state: _State) -> str:
        """Keep a state and return its revision."""
        with self._lock:
            revision = f"{self._name}.{next(self._numbers)}"
            self._states[revision] = state
            while len(self._states) > 2 and self._too_much():
                self._states.popitem(last=False)
        return revision

    def get(self, revision: str) -> _State | None:
        """The state of a revision, if it is still kept."""
        with self._lock:
            return self._states.get(revision)

    def _too_much(self) -> bool:
        return len(self._states) > _REMEMBERED_STATES or (
            sum(len(state.records) for state in self._states.values()) > _REMEMBERED_RECORDS
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record and the ``ModifyIndex`` its key has."""

    record: Record
    index: int


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A transaction was rolled back: what is at the key instead, and Consul's reason."""

    found: _Entry | None
    reason: str


@dataclass(frozen=True, slots=True)
class _Ours:
    """Whether a record is what a write of ours, whose answer got lost, has made of ``expected``."""

    value: str
    session: str
    expected: Record | None

    def __call__(self, found: Record | None) -> bool:
        if found is None or found.value != self.value or found.handle != self.session:
            return False
        # A session is nobody else's. Without one, it is the version that shows a write.
        return self.expected is None or self.expected.handle != self.session or not _same(found, self.expected)


class _Doubtful(NamedTuple):
    """A creation of sessions without an answer: the one that is used, if any, and until when others may come of it."""

    session: str
    until: float


def _destroy(session: str, client: Any) -> None:
    client.session.destroy(session)


def _same(found: Record | None, expected: Record | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return found.version == expected.version


def _alike(one: _Entry | None, other: _Entry | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.index, one.record.handle) == (other.index, other.record.handle)


def _differences(before: Mapping[str, Record], after: Mapping[str, Record]) -> tuple[Change, ...]:
    """What happened in between: deletions, whose order Consul doesn't tell, then the rest in its order.

    A renewal touches the session alone, and so is no difference.
    """
    gone = [Change(key, None) for key in before if key not in after]
    new = [record for key, record in after.items() if key not in before or _changed(before[key], record)]
    return (*gone, *(Change(record.key, record) for record in sorted(new, key=_index_of)))


def _changed(before: Record, after: Record) -> bool:
    # The value counts too: after a reset, the same index may stand for another one.
    return before.version != after.version or before.value != after.value


def _record(key: str, item: Mapping[str, Any]) -> Record:
    session = item.get("Session") or ""
    value = (item["Value"] or b"").decode("utf-8", "replace")
    return Record(key, value, _version(item), not session, None, session, item["CreateIndex"])


def _version(item: Mapping[str, Any]) -> str:
    """The index of the key's creation and that of its value, which is its ``ModifyIndex`` but for :func:`_stamp`."""
    checksum, index = divmod(item["Flags"], 1 << 32)
    kept = index and checksum == zlib.crc32(item["Value"] or b"", _SEED)
    return f"{item['CreateIndex']}.{index if kept else item['ModifyIndex']}"


def _stamp(record: Record) -> int:
    """Flags that keep a value's index while a new session takes its key over.

    They hold for this value alone: whoever changes it may keep the flags, but not the checksum.
    """
    return zlib.crc32(record.value.encode(), _SEED) << 32 | _index_of(record) & 0xFFFFFFFF


def _creation(version: str) -> int:
    """The index of the key's creation; see :func:`_version`."""
    return int(version.partition(".")[0])


def _index_of(record: Record) -> int:
    return int(record.version.partition(".")[2])


def _operation(verb: str, path: str, **details: Any) -> _Operation:
    return {"KV": {"Verb": verb, "Key": path, **details}}


def _check(path: str, entry: _Entry | None) -> _Operation:
    if entry is None:
        return _operation("check-not-exists", path)
    return _operation("check-index", path, Index=entry.index)


def _cas(path: str, value: str, entry: _Entry | None) -> list[_Operation]:
    """Set a key that nobody locks; index 0 is Consul's word for absence."""
    return [_operation("cas", path, Value=_encode(value), Index=entry.index if entry else 0)]


def _lock(path: str, value: str, session: str, entry: _Entry | None) -> list[_Operation]:
    """Set a key that is absent, or locked by ``session`` already."""
    return [_check(path, entry), _operation("lock", path, Value=_encode(value), Session=session)]


def _unlock(path: str, value: str, entry: _Entry | None) -> list[_Operation]:
    """Set a key and make it permanent."""
    session = entry.record.handle if entry else ""
    return [_check(path, entry), _operation("unlock", path, Value=_encode(value), Session=session)]


def _take_over(path: str, value: str, session: str, flags: int, entry: _Entry | None) -> list[_Operation]:
    """Set a key and give it from the session that locks it to another."""
    lock = _operation("lock", path, Value=_encode(value), Session=session, Flags=flags)
    return [*_unlock(path, value, entry), lock]


def _delete(path: str, entry: _Entry | None) -> list[_Operation]:
    return [_operation("delete-cas", path, Index=entry.index if entry else 0)]


def _encode(value: str) -> str:
    return base64.b64encode(value.encode()).decode("ascii")


def _sane(index: str | int) -> int:
    """An index as Consul's documentation wants it used: never below 1, which would not block."""
    return max(1, int(index))


def _grant(ttl: float) -> int:
    return min(LONGEST_TTL, max(SHORTEST_TTL, math.ceil(ttl)))


def _parse_ttl(text: str) -> float | None:
    """Seconds of a Go duration such as ``86400s`` or ``1h30m``; Consul keeps it as it was given. ``None`` if empty."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", text)) or None
