"""The conformance kit for stores: the contract of :mod:`pyflannel.store`, checked on a live store.

Subclass it in a test module of your own distribution, name your driver, and give every test an empty place::

    class TestMyStore(StoreConformance):
        store_class = MyStore

        @pytest.fixture
        def location(self, my_server):
            return StoreLocation.parse(f"mystore://127.0.0.1:{my_server.port}/{uuid.uuid4()}")

What your server can't do is said in class attributes (its shortest TTL, how late it notices an expiry); what only you
can do to it, such as stopping it, in hook methods. A test whose hook is missing skips and names the hook. Several
processes take part, so the location must be reachable from all of them and the driver importable by name.

No test hangs with its driver: each call has :data:`~pyflannel.store.CALL_TIMEOUT` (and a little more, for a busy
machine), and whatever is waited for is named when it does not come. How soon a watch tells of a change is nobody's
promise, so it is told in the summary, with a warning from :data:`SLOW_WATCH` on.
"""

# A test's name is its docstring:
# ruff: noqa: D102

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import ClassVar, Final

import pytest

from pyflannel.errors import ConfigError, ConflictError, HistoryGoneError, StoreError, StoreUnavailableError
from pyflannel.store import (
    API_VERSION,
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
from pyflannel.testing import _calls
from pyflannel.testing import _store_workers as workers
from pyflannel.testing._calls import Caller, close_watch
from pyflannel.testing._purity import connections
from pyflannel.testing._store_workers import Opening
from pyflannel.testing.clauses import Judged, clause, not_applicable, tell

__all__ = ["Follower", "Opening", "StoreConformance", "contents", "eventually", "same_value"]

PATIENCE = 120.0
"""Seconds after which the kit takes a thing for not happening at all. Nothing is judged by how long it took."""

SLOW_WATCH: Final = 0.25
"""Seconds from a change to its batch from which on the summary warns: so long other nodes send to where nobody is."""

CLOCK_SLACK = 600.0
"""Seconds by which the clocks of a test's server and of this host may differ: less than two time zones do."""

KEY = "10.5.34.0-24"
VALUE = (
    '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"82:97:93:af:72:bf"}}'
)
OTHER = VALUE.replace("192.0.2.1", "192.0.2.2")
CONFIG = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'


def eventually(condition: Callable[[], bool], what: str | Callable[[], str], patience: float | None = None) -> None:
    """Wait for ``condition``; fail with ``what`` if it does not come true within ``patience`` (:data:`PATIENCE`).

    :param what: what is waited for, or a function that says it at the end, with what there is instead.
    """
    patience = PATIENCE if patience is None else patience
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {patience:g} s in vain for: {what() if callable(what) else what}")
        time.sleep(0.01)


def same_value(left: str, right: str) -> bool:
    """Whether two texts are one value: equal, or the same JSON object, which a store may lay out anew."""
    if left == right:
        return True
    try:
        documents = json.loads(left), json.loads(right)
    except ValueError:
        return False
    return isinstance(documents[0], dict) and documents[0] == documents[1]


def _facts(record: Record) -> tuple[str, str, bool]:
    return record.value, record.version, record.permanent


def contents(snapshot: Snapshot) -> dict[str, tuple[str, str, bool]]:
    """Key to value, version and permanence, the network document included."""
    records = snapshot.leases if snapshot.config is None else (snapshot.config, *snapshot.leases)
    return {record.key: _facts(record) for record in records}


class Follower:
    """Follows a store from a snapshot on, in a thread, as the core does.

    ``state`` is the snapshot with all batches applied, ``changes`` what came, in order. A broken stream is reopened at
    the last revision, lost history is answered by a new snapshot; ``interruptions`` holds the errors that said so.

    :param state: what to begin with in place of the snapshot's contents.
    """

    def __init__(self, store: Store, snapshot: Snapshot, state: dict[str, tuple[str, str, bool]] | None = None) -> None:
        self.state = contents(snapshot) if state is None else dict(state)
        self.changes: list[Change] = []
        self.revision = snapshot.revision
        self.interruptions: list[StoreError] = []
        self.error: BaseException | None = None
        self._store = store
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watch = store.watch(snapshot.revision)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """End the watch, and the thread with it."""
        with self._lock:
            self._closed.set()
            close_watch(self._watch)
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), f"close() of a watch did not end its iteration within {PATIENCE:g} s"

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                try:
                    self._follow()
                    return
                except (StoreUnavailableError, HistoryGoneError) as error:
                    self.interruptions.append(error)
                    self._reopen(isinstance(error, HistoryGoneError))
        except BaseException as error:
            self.error = error

    def _follow(self) -> None:
        for batch in self._watch:
            for change in batch.changes:
                self.changes.append(change)
                if change.record is None:
                    self.state.pop(change.key, None)
                else:
                    assert change.record.key == change.key
                    self.state[change.key] = _facts(change.record)
            self.revision = batch.revision

    def _reopen(self, anew: bool) -> None:
        close_watch(self._watch)
        if anew:
            snapshot = self._store.snapshot()
            self.state, self.revision = contents(snapshot), snapshot.revision
        self._closed.wait(0.05)
        with self._lock:
            if not self._closed.is_set():
                self._watch = self._store.watch(self.revision)

    def until(self, condition: Callable[[], bool], what: str, patience: float | None = None) -> None:
        """Wait for ``condition``, or for the error that makes it impossible."""
        try:
            eventually(lambda: self.error is not None or condition(), f"{what}, in a watch", patience)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last changes that came: {self.changes[-5:] or 'none'}") from None
        if self.error is not None:
            raise self.error

    def of(self, key: str) -> list[Record | None]:
        """The states of one key, in the order they came."""
        return [change.record for change in self.changes if change.key == key]


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Reader:
    """Reads a watch in the test's own thread, which does not hang if nothing comes. A context manager."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._caller = Caller(type(watch).__name__)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        close_watch(self._watch)
        self._caller.end()

    def __call__(self, what: str) -> Batch:
        """The next batch, which brings ``what``."""
        clause = "iterating blocks until there is a batch, an error or close(): pyflannel.store.Watch"
        return self._caller(f"the next batch, with {what},", lambda: next(self._watch), PATIENCE, clause)

    def to_the_end(self) -> list[Batch]:
        """All batches until the watch ends or raises."""
        batches = []
        while True:
            try:
                batches.append(self("the end of the watch"))
            except StopIteration:
                return batches


class StoreConformance(Judged):
    """The tests. Set the class attributes, provide ``location``, override the hooks your server allows."""

    store_class: ClassVar[type[Store]]
    """The driver."""

    call_timeout: ClassVar[float] = CALL_TIMEOUT
    """Seconds that a call may take; less, if you promise more than the contract."""

    minimum_ttl: ClassVar[float] = 1.0
    """The shortest TTL, in seconds, that the server keeps to."""

    expiry_slack: ClassVar[float] = 5.0
    """Seconds by which the server may be late to let a record expire."""

    keeps_history: ClassVar[bool] = False
    """Whether ``watch`` takes a revision that another object of the driver has handed out; it must refuse it else."""

    largest_value: ClassVar[int] = 256 * 1024
    """Bytes of a value that the server must hold."""

    many: ClassVar[int] = 5000
    """How many records a large cluster has."""

    racers: ClassVar[int] = 32
    """Processes that fight over one key."""

    odd_keys: ClassVar[tuple[str, ...]] = (
        "10.5.34.0-24&fd00:10:5:34::-64",
        "fd00:10:5:34::-64",
        "not a subnet",
        "a/b",
        "100%",
        "%2F",
        "a?b#c",
        "a=b&c+d;e",
        ".hidden",
        "grün-サブネット-🌐",
        "config.json",
        "quote'\"back\\slash",
        "UPPER",
        "upper",
        "x" * 200,
    )
    """Keys that must come back as they are, whoever made them."""

    odd_values: ClassVar[tuple[str, ...]] = (
        "",
        "not json",
        "[1, 2]",
        "null",
        '"text"',
        "{",
        '{"BackendData": "ünïcödé 🌐 \\u0000", "deep": {"a": [1, 2.5, null, true]}}',
        '{"Expires":"2001-01-01T00:00:00Z"}',
        " leading and trailing \n",
        "line\r\nline\n\n\ttab",
    )
    """Values that must come back as they are: a driver does not judge them."""

    # what a subclass provides

    @pytest.fixture
    def location(self) -> StoreLocation:
        """An empty place in the store, for one test."""
        raise NotImplementedError(f"{type(self).__name__} must provide a fixture 'location'; see {__name__}")

    def stop_server(self) -> None:
        """Make the server unreachable, keeping its data."""
        pytest.skip(f"{type(self).__name__} has no stop_server()")

    def start_server(self) -> None:
        """Make it reachable again."""
        pytest.skip(f"{type(self).__name__} has no start_server()")

    def lose_history(self, store: Store, revision: str) -> str:
        """Make the server forget what came after ``revision``; returns the revision to ask for now."""
        pytest.skip(f"{type(self).__name__} has no lose_history()")

    def fill(self, pool: ProcessPoolExecutor, opening: Opening, items: Sequence[tuple[str, str]]) -> None:
        """Put many reservations into the store; override it where the server has a faster way."""
        shares = [items[start::8] for start in range(8)]
        jobs = [pool.submit(workers.create_all, opening, share) for share in shares]
        workers.results(pool, jobs, 300, f"{len(items)} records are created")

    # what the tests use

    @pytest.fixture
    def opening(self, location: StoreLocation) -> Opening:
        """How any process opens the store."""
        return Opening(self.store_class, location, self.call_timeout)

    @pytest.fixture
    def store(self, opening: Opening) -> Iterator[Store]:
        """A store on an empty place."""
        with opening.open() as store:
            yield store

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls) -> Iterator[ProcessPoolExecutor]:
        """Other processes, shared by the tests of a class. As many tasks as ``racers`` start at one line."""
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(cls.racers, spawn, workers.join, (spawn.Barrier(cls.racers),))
        try:
            yield pool
        finally:
            workers.dismiss(pool, PATIENCE)

    # the driver's face

    @clause(
        "pyflannel.store.Store",
        "api_version is the one it was built for, scheme its URL's, and secret options are among the options",
    )
    def test_the_driver_states_its_api_version_and_scheme(self, store: Store, location: StoreLocation) -> None:
        assert store.api_version == API_VERSION
        assert store.scheme == location.scheme
        assert store.secret_options <= store.options.keys()

    @clause("pyflannel.store.Store", "constructing a driver validates the location and may not touch the network")
    def test_constructing_touches_no_server(self, location: StoreLocation) -> None:
        """Not even one that is there and never answers."""
        with closing(socket.create_server(("127.0.0.1", 0))) as silent:
            host = f"127.0.0.1:{silent.getsockname()[1]}"
            place = dataclasses.replace(location, hosts=tuple(host for _ in location.hosts))
            with connections() as made:
                store = Opening(self.store_class, place, self.call_timeout).open()
            store.close()
            assert not made, f"the constructor of {self.store_class.__name__} did: {made}"
            silent.settimeout(0.05)
            with pytest.raises(TimeoutError):  # else somebody has connected
                silent.accept()

    @clause("pyflannel.store.Store", "an option that the driver does not know is a ConfigError that names it")
    def test_an_unknown_option_is_refused(self, location: StoreLocation) -> None:
        odd = StoreLocation(location.scheme, location.hosts, location.path, {**location.options, "no-such-option": "1"})
        with pytest.raises(ConfigError, match="no-such-option"):
            Opening(self.store_class, odd, self.call_timeout).open()

    @clause("pyflannel.store.Store.close", "idempotent")
    def test_closing_twice_is_harmless(self, opening: Opening) -> None:
        store = opening.open()
        store.snapshot()
        store.close()
        store.close()

    # the network document

    @clause("pyflannel.store.Store.read_config", "None if there is no network document; a snapshot of nothing is empty")
    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        assert store.read_config() is None
        snapshot = store.snapshot()
        assert snapshot.config is None
        assert snapshot.leases == ()

    @clause(
        "pyflannel.store.Store.write_config",
        "written if it is still the expected one (None: absent), else a ConflictError",
    )
    def test_the_config_is_written_only_over_what_is_expected(self, store: Store) -> None:
        first = store.write_config(CONFIG, None)
        assert (first.key, first.permanent) == (CONFIG_KEY, True)
        with pytest.raises(ConflictError):
            store.write_config(CONFIG, None)
        changed = CONFIG.replace("vxlan", "host-gw")
        second = store.write_config(changed, first)
        assert second.version != first.version
        with pytest.raises(ConflictError):
            store.write_config(CONFIG, first)
        found = store.read_config()
        assert found is not None
        assert same_value(found.value, changed)
        assert _facts(found) == _facts(second)
        assert store.snapshot().config == found
        assert store.snapshot().leases == ()

    @clause("pyflannel.store.Record", "value is the text as stored; the driver never parses it")
    def test_the_config_keeps_the_text_a_person_wrote(self, store: Store) -> None:
        text = '{\n  "Network": "10.5.0.0/16",\n  "Expires": "never",\n  "Backend": {"Type": "vxlan"}\n}\n'
        store.write_config(text, None)
        found = store.read_config()
        assert found is not None
        assert same_value(found.value, text)

    @clause("pyflannel.store.Store.watch", "the network document is watched, too")
    def test_a_config_change_is_seen_by_a_watch(self, store: Store, opening: Opening) -> None:
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            first = other.write_config(CONFIG, None)
            follower.until(lambda: CONFIG_KEY in follower.state, "the config")
            second = other.write_config(CONFIG.replace("vxlan", "udp"), first)
            follower.until(lambda: follower.state[CONFIG_KEY] == _facts(second), "the changed config")

    # records: create, update, delete

    @clause("pyflannel.store.Store.create", "a record is there for everybody when the call is back")
    def test_a_created_record_is_there(self, store: Store, opening: Opening) -> None:
        created = store.create(KEY, VALUE, 3600.0)
        assert created.key == KEY
        assert same_value(created.value, VALUE)
        assert not created.permanent
        with opening.open() as other:
            assert contents(other.snapshot()) == {KEY: _facts(created)}

    @clause("pyflannel.store.Store.create", "a ConflictError if the key exists, which is left alone")
    def test_create_meets_an_existing_key(self, store: Store, opening: Opening) -> None:
        created = store.create(KEY, VALUE, 3600.0)
        with opening.open() as other, pytest.raises(ConflictError):
            other.create(KEY, OTHER, None)
        with pytest.raises(ConflictError):
            store.create(KEY, VALUE, 3600.0)
        assert contents(store.snapshot()) == {KEY: _facts(created)}

    @clause(
        "pyflannel.store.Store.update",
        "replaces the record if it is unchanged, else a ConflictError; a version never comes back",
    )
    def test_update_is_a_compare_and_swap(self, store: Store, opening: Opening) -> None:
        first = store.create(KEY, VALUE, 3600.0)
        with opening.open() as other:
            second = other.update(next(iter(other.snapshot().leases)), OTHER, 3600.0)
        assert second.version != first.version
        assert same_value(second.value, OTHER)
        with pytest.raises(ConflictError):
            store.update(first, VALUE, 3600.0)
        third = store.update(second, VALUE, 3600.0)
        with pytest.raises(ConflictError):  # the old value is back, and still somebody has changed it
            store.update(first, OTHER, 3600.0)
        assert contents(store.snapshot()) == {KEY: _facts(third)}

    @clause("pyflannel.store.Store.update", "a ConflictError if the record was deleted; renew likewise")
    def test_update_of_a_deleted_record_is_a_conflict(self, store: Store) -> None:
        record = store.create(KEY, VALUE, 3600.0)
        store.delete(record)
        with pytest.raises(ConflictError):
            store.update(record, OTHER, 3600.0)
        with pytest.raises(ConflictError):
            store.renew(record, 3600.0)
        assert contents(store.snapshot()) == {}

    @clause("pyflannel.store.Record", "version differs after every change of the value, deletion and creation included")
    def test_a_record_created_anew_is_another_one(self, store: Store, opening: Opening) -> None:
        old = store.create(KEY, VALUE, 3600.0)
        store.delete(old)
        with opening.open() as other:
            new = other.create(KEY, VALUE, 3600.0)
            for attempt in (
                lambda: store.update(old, OTHER, 3600.0),
                lambda: store.renew(old, 3600.0),
                lambda: store.delete(old),
            ):
                with pytest.raises(ConflictError):
                    attempt()
            assert contents(other.snapshot()) == {KEY: _facts(new)}

    @clause("pyflannel.store.Record", "created orders records as they came into being, whatever was changed since")
    def test_an_older_record_stays_older(self, store: Store, opening: Opening) -> None:
        first = store.create(KEY, VALUE, 3600.0)
        if not first.created:
            not_applicable("the driver does not tell which of two records is older")
        second = store.create("10.5.35.0-24", VALUE, 3600.0)
        assert first.created < second.created
        with opening.open() as other:
            changed = store.renew(store.update(first, OTHER, 3600.0), 3600.0)
            assert changed.created == first.created
            shown = {record.key: record.created for record in other.snapshot().leases}
            assert shown == {KEY: first.created, second.key: second.created}
            store.delete(changed)
            assert other.create(KEY, VALUE, 3600.0).created > second.created

    @clause(
        "pyflannel.store.Store.delete",
        "deletes the record if it is unchanged, else a ConflictError; no error if it is gone",
    )
    def test_delete_is_a_compare_and_swap_and_repeatable(self, store: Store) -> None:
        first = store.create(KEY, VALUE, 3600.0)
        second = store.update(first, OTHER, 3600.0)
        with pytest.raises(ConflictError):
            store.delete(first)
        assert contents(store.snapshot()) == {KEY: _facts(second)}
        store.delete(second)
        store.delete(second)
        assert contents(store.snapshot()) == {}

    @clause("pyflannel.store.Store", "a call changes the record it names and no other")
    def test_the_rest_is_untouched(self, store: Store) -> None:
        records = [store.create(f"10.5.{number}.0-24", VALUE, 3600.0) for number in range(5)]
        changed = store.update(records[1], OTHER, 3600.0)
        store.delete(records[3])
        expected = {record.key: _facts(record) for record in (records[0], changed, records[2], records[4])}
        assert contents(store.snapshot()) == expected

    # contention

    @clause("pyflannel.store.Store.create", "of all that create a key at the same moment one succeeds")
    def test_exactly_one_of_many_creates_a_key(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        keys = [f"10.5.{number}.0-24" for number in range(5)]
        jobs = [pool.submit(workers.race, opening, keys, number) for number in range(self.racers)]
        won = [record for each in workers.results(pool, jobs, workers.TIMEOUT, "the race is over") for record in each]
        assert sorted(record.key for record in won) == sorted(keys)
        assert contents(store.snapshot()) == {record.key: _facts(record) for record in won}

    @clause("pyflannel.store.Store.update", "of all that update one version one succeeds")
    def test_no_update_is_lost(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        store.create(KEY, '{"count":0}', None)
        jobs = [pool.submit(workers.count_up, opening, KEY, 10) for _ in range(6)]
        workers.results(pool, jobs, workers.TIMEOUT, "all have counted")
        assert json.loads(store.snapshot().leases[0].value) == {"count": 60}

    @clause("pyflannel.store.Store", "nodes that start at once get a subnet each")
    def test_nodes_that_start_at_once_get_a_subnet_each(
        self, store: Store, opening: Opening, pool: ProcessPoolExecutor
    ) -> None:
        network, nodes = '{"Network":"10.5.0.0/16"}', 224 // self.racers
        jobs = [pool.submit(workers.allocate_nodes, opening, network, nodes, number) for number in range(self.racers)]
        keys = [
            key
            for tally in workers.results(pool, jobs, workers.TIMEOUT, "all nodes have subnets")
            for key in tally.keys
        ]
        assert len(set(keys)) == len(keys) == nodes * self.racers
        assert set(contents(store.snapshot())) == set(keys)

    # expiry

    @clause(
        "pyflannel.store.Store.create",
        "a record is gone after its ttl, not earlier, for everybody and in the watch",
    )
    def test_a_record_expires(self, store: Store, opening: Opening) -> None:
        began = time.monotonic()
        record = store.create(KEY, VALUE, self.minimum_ttl)
        kept = store.create("10.5.1.0-24", VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            follower.until(
                lambda: KEY not in follower.state, "the expiry", PATIENCE + self.minimum_ttl + self.expiry_slack
            )
            assert time.monotonic() - began >= self.minimum_ttl, "expired too early"
            for looking in (store, other):
                assert contents(looking.snapshot()) == {kept.key: _facts(kept)}
            with pytest.raises(ConflictError):
                store.update(record, OTHER, 3600.0)
            with pytest.raises(ConflictError):
                store.renew(record, 3600.0)
            store.delete(record)
            again = other.create(KEY, VALUE, 3600.0)
            follower.until(lambda: follower.state.get(KEY) == _facts(again), "the new record")
            with pytest.raises(ConflictError):
                store.renew(record, 3600.0)
            assert [found is None for found in follower.of(KEY)] == [True, False]

    @clause(
        "pyflannel.store.Store.renew",
        "puts off the expiry and leaves the value and version alone; a permanent record stays one",
    )
    def test_what_is_renewed_or_reserved_stays_and_nobody_notices(self, store: Store, opening: Opening) -> None:
        patience = PATIENCE + self.minimum_ttl + self.expiry_slack
        left_alone = store.create("10.5.1.0-24", VALUE, self.minimum_ttl)
        renewed = first = store.create(KEY, VALUE, self.minimum_ttl)
        reserved = store.create("10.5.2.0-24", VALUE, None)
        assert reserved.permanent
        with Follower(store, store.snapshot()) as follower:
            deadline = time.monotonic() + patience
            while left_alone.key in follower.state:
                assert time.monotonic() < deadline, "the record that nobody renews does not expire"
                renewed = store.renew(renewed, self.minimum_ttl)
                assert _facts(renewed) == _facts(first)
                reserved = store.renew(reserved, self.minimum_ttl)
                assert reserved.permanent
                follower.thread.join(self.minimum_ttl / 5)
            assert follower.of(KEY) == []
            assert follower.of(reserved.key) == []
        expected = {record.key: _facts(record) for record in (first, reserved)}
        assert contents(store.snapshot()) == expected
        with opening.open() as other:
            changed = other.update(reserved, OTHER, self.minimum_ttl)
            assert changed.permanent, "a reservation stays one"
            other.delete(first)  # renewing has not changed the version
        assert contents(store.snapshot()) == {reserved.key: _facts(changed)}

    @clause("pyflannel.store.Store.create", "of all that want an expired key one gets it")
    def test_exactly_one_gets_an_expired_key(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        store.create(KEY, VALUE, self.minimum_ttl)
        jobs = [pool.submit(workers.win_after_expiry, opening, KEY, number) for number in range(self.racers)]
        found = workers.results(pool, jobs, workers.TIMEOUT, "the expired key has a new owner")
        winners = [record for record in found if record is not None]
        assert len(winners) == 1
        assert contents(store.snapshot()) == {KEY: _facts(winners[0])}

    @clause("pyflannel.store.Store.update", "replaces the expiry, too")
    def test_an_update_sets_the_expiry_anew(self, store: Store) -> None:
        short = store.create(KEY, VALUE, self.minimum_ttl)
        longer = store.update(short, OTHER, 3600.0)
        shorter = store.create("10.5.1.0-24", VALUE, 3600.0)
        shorter = store.update(shorter, OTHER, self.minimum_ttl)
        patience = PATIENCE + self.minimum_ttl + self.expiry_slack
        eventually(lambda: shorter.key not in contents(store.snapshot()), "the shortened life ends", patience)
        assert contents(store.snapshot()) == {KEY: _facts(longer)}

    @clause("pyflannel.store.Store.time_to_live", "remaining seconds, None where there is no end or none is known")
    def test_time_to_live_of_records(self, store: Store) -> None:
        leased = store.create(KEY, VALUE, 3600.0)
        reserved = store.create("10.5.1.0-24", VALUE, None)
        left = store.time_to_live(store.snapshot().leases)
        assert left[reserved.key] is None
        seconds = left[leased.key]
        assert seconds is None or 0 < seconds <= 3600
        assert leased.ttl is None or 0 < leased.ttl <= 3600

    # the clock

    @clause(
        "pyflannel.store.Store.clock",
        "seconds since 1970, asked without a trace, or None; an error is a StoreError that says why",
    )
    def test_the_clock_tells_the_time_of_day_or_nothing(self, store: Store) -> None:
        """In seconds since 1970, in time, and without a trace; a driver without one inherits ``None``."""
        assert isinstance(store.node_clocks, bool)
        self._ask_clock(store)
        record = store.create(KEY, VALUE, 3600.0)
        self._ask_clock(store)
        assert contents(store.snapshot()) == {KEY: _facts(record)}

    @staticmethod
    def _ask_clock(store: Store) -> None:
        began, said, refusal = time.monotonic(), None, "none"
        try:
            said = store.clock()
        except StoreError as error:
            refusal = str(error)
        assert refusal, "the message says why"
        assert time.monotonic() - began < CALL_TIMEOUT + _calls.grace(), "the contract allows CALL_TIMEOUT"
        if said is None:
            return
        assert isinstance(said, StoreTime)
        assert said.source, "nobody is told whose clock it is"
        assert isinstance(said.earliest, float)
        assert said.earliest <= time.time() + CLOCK_SLACK
        if said.latest is not None:
            assert isinstance(said.latest, float)
            assert said.earliest <= said.latest
            assert said.latest >= time.time() - CLOCK_SLACK

    # the watch

    @clause("pyflannel.store.Batch", "changes in the order they happened")
    def test_changes_come_in_order_once_each(self, store: Store, opening: Opening) -> None:
        keys = [f"10.5.{number}.0-24" for number in range(100)]
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            records = [other.create(key, VALUE, 3600.0) for key in keys]
            follower.until(lambda: len(follower.changes) >= len(keys), "all creations")
            assert [change.key for change in follower.changes] == keys
            assert [change.record and _facts(change.record) for change in follower.changes] == [*map(_facts, records)]
            for record in reversed(records):
                other.delete(record)
            follower.until(lambda: not follower.state, "all deletions")
            gone = follower.changes[len(keys) :]
            assert sorted(change.key for change in gone) == sorted(keys)
            assert all(change.record is None for change in gone)

    @clause("pyflannel.store.Store.watch", "changes after the revision, none from before")
    def test_a_watch_does_not_repeat_the_snapshot(self, store: Store, opening: Opening) -> None:
        store.write_config(CONFIG, None)
        store.create(KEY, VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            last = other.create("10.5.1.0-24", VALUE, 3600.0)
            follower.until(lambda: last.key in follower.state, "the change after the snapshot")
            assert [change.key for change in follower.changes] == [last.key]

    @clause(
        "pyflannel.store.Store.watch",
        "goes on from a revision that a batch of this object carried, more than once",
    )
    def test_a_watch_resumes_from_a_revision(self, store: Store, opening: Opening) -> None:
        with opening.open() as other:
            gone = other.create("10.5.1.0-24", VALUE, 3600.0)
            changed = other.create("10.5.2.0-24", VALUE, 3600.0)
            with Follower(store, store.snapshot()) as follower:
                other.create("10.5.3.0-24", VALUE, 3600.0)
                follower.until(lambda: "10.5.3.0-24" in follower.state, "the first change")
            revision, state = follower.revision, dict(follower.state)
            other.delete(gone)
            changed = other.update(changed, OTHER, 3600.0)
            brief = other.create("10.5.4.0-24", VALUE, 3600.0)
            other.delete(brief)
            new = other.create("10.5.5.0-24", VALUE, 3600.0)
            for _ in range(2):  # a revision can be resumed from more than once
                with Follower(store, Snapshot(revision, None, ()), state) as resumed:
                    final = contents(other.snapshot())
                    resumed.until(lambda: resumed.state == final, f"the state {final}")  # noqa: B023
                    assert not resumed.interruptions
                    seen = [change.key for change in resumed.changes if change.key != brief.key]
                    assert sorted(seen) == sorted([gone.key, changed.key, new.key])
                    assert seen.index(changed.key) < seen.index(new.key)

    @clause(
        "pyflannel.store.Store.watch",
        "goes on from another object's revision where the server keeps history (keeps_history), else HistoryGoneError",
    )
    def test_another_objects_revision_is_resumed_or_refused(self, store: Store, opening: Opening) -> None:
        with opening.open() as other:
            revision = other.snapshot().revision
            record = other.create(KEY, VALUE, 3600.0)
        with Follower(store, Snapshot(revision, None, ())) as follower:
            follower.until(lambda: follower.state.get(KEY) == _facts(record), "the change since")
            refusals = [type(error) for error in follower.interruptions]
            assert refusals == ([] if self.keeps_history else [HistoryGoneError])

    @clause("pyflannel.store.Snapshot", "watch(revision) goes on without a gap, whoever writes meanwhile")
    def test_no_gap_between_snapshot_and_watch_while_others_write(
        self, store: Store, opening: Opening, pool: ProcessPoolExecutor
    ) -> None:
        keys = [[f"10.{writer}.{number}.0-24" for number in range(8)] for writer in range(4)]
        jobs = [pool.submit(workers.hammer, opening, keys[writer], 150, writer) for writer in range(4)]
        followers: list[Follower] = []
        try:
            while len(followers) < 6 and not all(job.done() for job in jobs):
                followers.append(Follower(store, store.snapshot()))
                wanted = len(followers[-1].changes) + 1
                eventually(
                    lambda: len(followers[-1].changes) >= wanted or all(job.done() for job in jobs),  # noqa: B023
                    "a change, or the end of all changes",
                )
            workers.results(pool, jobs, workers.TIMEOUT, "all changes are made")
            final = contents(store.snapshot())
            for follower in followers:
                follower.until(lambda: follower.state == final, "the final state")  # noqa: B023
                assert not follower.interruptions
                self._check_order(follower)
        finally:
            for follower in followers:
                follower.close()

    @staticmethod
    def _check_order(follower: Follower) -> None:
        """No change came twice, none after a later one: the values of each key count up.

        A renewal for another TTL may show as a change of the version alone.
        """
        last: dict[str, int] = {}
        seen: set[tuple[str, str]] = set()
        for change in follower.changes:
            if change.record is not None:
                count = json.loads(change.record.value)["count"]
                assert count >= last.get(change.key, 0), f"{change.key}: {count} after {last[change.key]}"
                assert (change.key, change.record.version) not in seen, f"{change.key}: {count} came twice"
                last[change.key] = count
                seen.add((change.key, change.record.version))

    @clause("pyflannel.store.Watch", "a reader that was slow gets all that it missed, or HistoryGoneError")
    def test_a_slow_reader_catches_up(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        """Or is told that history is gone."""
        keys = [f"10.5.{number}.0-24" for number in range(20)]
        with Reader(store.watch(store.snapshot().revision)) as read:
            with opening.open() as other:
                first = other.create(KEY, VALUE, 3600.0)
            assert KEY in self._changed(read, "the first change")
            workers.results(pool, [pool.submit(workers.hammer, opening, keys, 600, 1)], workers.TIMEOUT, "600 changes")
            final = contents(store.snapshot())
            with suppress(HistoryGoneError):  # allowed: the reader is told to take a new snapshot
                self._catch_up(read, {KEY: _facts(first)}, final)

    @staticmethod
    def _changed(read: Reader, what: str) -> list[str]:
        while not (batch := read(what)).changes:
            pass
        return [change.key for change in batch.changes]

    @staticmethod
    def _catch_up(read: Reader, state: dict[str, tuple[str, str, bool]], final: object) -> None:
        deadline = time.monotonic() + PATIENCE
        while state != final:
            assert time.monotonic() < deadline, f"after {PATIENCE:g} s the watch has led to {state}, not to {final}"
            for change in read(f"what is missing to {final}").changes:
                if change.record is None:
                    state.pop(change.key, None)
                else:
                    state[change.key] = _facts(change.record)

    @clause("pyflannel.store.Store.watch", "a change comes (how soon is told below)")
    def test_a_change_comes_soon(self, request: pytest.FixtureRequest, store: Store, opening: Opening) -> None:
        """How soon is told, not judged."""
        took = []
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            for number in range(9):
                key = other.create(f"10.5.{number}.0-24", VALUE, 3600.0).key
                began = time.monotonic()
                follower.until(lambda: key in follower.state, f"the creation of {key}")  # noqa: B023
                took.append(time.monotonic() - began)
        median = statistics.median(took)
        slow = "warning: a change is late; from 250 ms on nodes send to where nobody is: " * (median >= SLOW_WATCH)
        tell(request, f"{slow}watch latency: median {median * 1000:.0f} ms, worst {max(took) * 1000:.0f} ms")

    @clause("pyflannel.store.Watch.close", "ends the stream, and what it was made of")
    def test_a_watch_leaves_nothing_behind(self, store: Store) -> None:
        """No thread and no connection, however many watches there were."""
        self._watch_once(store, 0)  # what is made once for all
        threads, files = set(threading.enumerate()), _open_files()
        for number in range(1, 7):
            self._watch_once(store, number)
        left: list[str] = []

        def gone() -> bool:
            left[:] = [thread.name for thread in threading.enumerate() if thread not in threads]
            left.extend(["a file"] * (_open_files() - files))
            return len(left) < 5

        try:
            eventually(gone, "what six closed watches had is gone")
        except AssertionError as error:
            raise AssertionError(f"{error}; left are: {', '.join(left)}") from None

    @staticmethod
    def _watch_once(store: Store, number: int) -> None:
        with Follower(store, store.snapshot()) as follower:
            key = store.create(f"10.5.{number}.0-24", VALUE, 3600.0).key
            follower.until(lambda: key in follower.state, f"the creation of {key}")

    @clause("pyflannel.store.Watch.close", "ends a blocked iteration, from any thread; idempotent")
    def test_close_ends_a_waiting_watch(self, store: Store) -> None:
        follower = Follower(store, store.snapshot())
        store.create(KEY, VALUE, 3600.0)
        follower.until(lambda: KEY in follower.state, "the first change")
        follower.close()
        follower.close()
        assert follower.error is None
        assert not follower.interruptions

    @clause("pyflannel.store.Watch", "iterating over a closed watch ends at once")
    def test_a_closed_watch_has_ended(self, store: Store) -> None:
        watch = store.watch(store.snapshot().revision)
        close_watch(watch)
        close_watch(watch)
        with Reader(watch) as read:
            assert read.to_the_end() == []

    @clause("pyflannel.store.Store.close", "ends all watches")
    def test_closing_the_store_ends_its_watches(self, opening: Opening) -> None:
        store = opening.open()
        watch = store.watch(store.snapshot().revision)
        ended: list[str] = []

        def follow() -> None:
            try:
                for _ in watch:
                    pass
                ended.append("")
            except StoreUnavailableError:
                ended.append("")  # the stream broke: true as well
            except BaseException as error:
                ended.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        store.close()
        thread.join(PATIENCE)
        assert ended == [""], f"the watch of a closed store must end, or raise StoreUnavailableError; it: {ended}"

    @clause("pyflannel.store.Store.watch", "each of several watches tells everything")
    def test_many_watches_of_one_store(self, store: Store, opening: Opening) -> None:
        snapshot = store.snapshot()
        followers = [Follower(store, snapshot) for _ in range(4)]
        try:
            with opening.open() as other:
                for number in range(20):
                    other.delete(other.create(f"10.5.{number}.0-24", VALUE, 3600.0))
                last = other.create(KEY, VALUE, 3600.0)
            for follower in followers:
                follower.until(lambda: follower.state == {KEY: _facts(last)}, "the last record alone")  # noqa: B023
        finally:
            for follower in followers:
                follower.close()

    @clause("pyflannel.store.Watch.__next__", "HistoryGoneError if changes were missed")
    def test_lost_history_is_said_when_iterating(self, store: Store) -> None:
        revision = store.snapshot().revision
        store.delete(store.create(KEY, VALUE, 3600.0))
        with Reader(store.watch(self.lose_history(store, revision))) as read, pytest.raises(HistoryGoneError):
            read.to_the_end()

    # outages

    @clause(
        "pyflannel.store.Store",
        "a server that does not answer is a StoreUnavailableError within CALL_TIMEOUT, and all goes on when it is back",
    )
    def test_an_outage_is_said_and_survived(self, store: Store, opening: Opening) -> None:
        config = store.write_config(CONFIG, None)
        kept = store.create(KEY, VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower:
            self.stop_server()
            try:
                self._check_outage(store, config, kept)
            finally:
                self.start_server()
            eventually(lambda: self._answers(store), "the store answers again")
            expected = {config.key: _facts(config), kept.key: _facts(kept)}
            assert contents(store.snapshot()) == expected
            with opening.open() as other:
                new = other.create("10.5.1.0-24", VALUE, 3600.0)
            expected[new.key] = _facts(new)
            follower.until(lambda: follower.state == expected, f"the state {expected}")
            assert [change.key for change in follower.changes if change.key == kept.key] == []
            store.renew(kept, 3600.0)

    @staticmethod
    def _check_outage(store: Store, config: Record, kept: Record) -> None:
        calls: tuple[Callable[[], object], ...] = (
            store.read_config,
            store.snapshot,
            lambda: store.write_config(CONFIG, config),
            lambda: store.create("10.5.9.0-24", VALUE, 3600.0),
            lambda: store.update(kept, OTHER, 3600.0),
            lambda: store.renew(kept, 3600.0),
            lambda: store.delete(kept),
        )
        for call in calls:
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                call()
            assert time.monotonic() - began < CALL_TIMEOUT + _calls.grace(), "the contract allows CALL_TIMEOUT"
        StoreConformance._ask_clock(store)

    @staticmethod
    def _answers(store: Store) -> bool:
        try:
            store.snapshot()
        except StoreUnavailableError:
            return False
        return True

    # what is stored

    @clause("pyflannel.store.Store", "never drops a record because its key looks odd")
    def test_odd_keys_come_back(self, store: Store, opening: Opening) -> None:
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            records = {key: other.create(key, VALUE, 3600.0) for key in self.odd_keys}
            expected = {key: _facts(record) for key, record in records.items()}
            assert contents(store.snapshot()) == expected
            follower.until(lambda: follower.state == expected, "all of them in the watch")
            for key, record in records.items():
                records[key] = other.renew(other.update(record, OTHER, 3600.0), 3600.0)
            assert contents(store.snapshot()) == {key: _facts(record) for key, record in records.items()}
            for record in records.values():
                other.delete(record)
            assert contents(store.snapshot()) == {}
            follower.until(lambda: not follower.state, "their deletion in the watch")

    @clause("pyflannel.store.Store", "never drops a record because its text looks odd")
    @pytest.mark.parametrize("ttl", [None, 3600.0], ids=["reserved", "leased"])
    def test_odd_values_come_back(self, store: Store, opening: Opening, ttl: float | None) -> None:
        expected = {}
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            for number, value in enumerate(self.odd_values):
                record = other.create(f"10.5.{number}.0-24", value, ttl)
                if ttl is not None:
                    record = other.renew(record, 2 * ttl)
                expected[record.key] = _facts(record)
                assert same_value(record.value, value), f"{record.value!r} instead of {value!r}"
            assert contents(store.snapshot()) == expected
            follower.until(lambda: follower.state == expected, "all of them in the watch")

    @clause("pyflannel.store.Record", "value is the text as stored, however long")
    def test_a_large_value_comes_back(self, store: Store) -> None:
        value = json.dumps({"BackendData": "x" * (self.largest_value - 100)}, separators=(",", ":"))
        record = store.create(KEY, value, 3600.0)
        assert same_value(record.value, value)
        assert contents(store.snapshot()) == {KEY: _facts(record)}

    @clause("pyflannel.store.Store.snapshot", "everything")
    def test_a_large_cluster(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        items = [(f"10.{number >> 8}.{number & 255}.0-24", VALUE) for number in range(self.many)]
        self.fill(pool, opening, items)
        snapshot = store.snapshot()
        assert sorted(record.key for record in snapshot.leases) == sorted(key for key, _ in items)
        assert all(same_value(record.value, VALUE) and record.permanent for record in snapshot.leases)
        with Follower(store, snapshot) as follower, opening.open() as other:
            changed = other.update(snapshot.leases[self.many // 2], OTHER, None)
            follower.until(lambda: follower.state[changed.key] == _facts(changed), "the one change")
            assert [change.key for change in follower.changes] == [changed.key]
