"""The threads of the lease keeper on a real file store; what it decides is the machine's, and tested there."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from tests.unit.membership.modelled import DOCUMENT, TWO_FAMILIES, Saying, agreed, foreign, made, underlay
from tests.waiting import LONG, PATIENCE, until

from pyflannel.backend import Backend, Published
from pyflannel.errors import PluginError
from pyflannel.membership import machine
from pyflannel.membership.keeper import AHEAD, KeeperOptions, LeaseKeeper, _Watcher
from pyflannel.membership.slot import Generation, LeaseState, Slot
from pyflannel.network.document import NetworkConfig, NetworkSeed
from pyflannel.network.lease import Subnets
from pyflannel.store import Batch, Record, Store, StoreLocation, Watch
from pyflannel_stores.file import FileStore


class Keeper:
    """A keeper with its slot."""

    def __init__(self, path: Path, host: int = 1, kind: type[FileStore] = FileStore, **options: Any) -> None:
        location = StoreLocation.parse(f"file://{path}/store")
        self.opened: list[FileStore] = []
        make: Callable[[NetworkConfig], Backend[Any]] = options.pop("make_backend", made)
        previous: Subnets | None = options.pop("previous", None)

        def open_store() -> Store:
            self.opened.append(kind(location))
            return self.opened[-1]

        defaults: dict[str, Any] = {
            "node_id": f"node-{host}",
            "state_dir": path,
            "ttl": 60.0,
            "margin": 20.0,
            "seed": NetworkSeed(DOCUMENT, "the test", False),
        }
        self.slot = Slot(lambda: None)
        self.keeper = LeaseKeeper(
            location,
            open_store,
            KeeperOptions(**{**defaults, **options}),
            make,
            self.slot,
            time.monotonic,
            random.Random(host),
            previous,
        )
        self.keeper.start(underlay(host))

    @property
    def state(self) -> LeaseState:
        return self.slot.state

    def until(self, condition: Callable[[], Any]) -> None:
        until(condition, lambda: self.state)

    def joined(self, number: int = 1) -> Generation:
        """The generation, as soon as it is this one or a later one."""
        found: list[Generation] = []

        def there() -> bool:
            generation = self.slot.drain().generation
            found[:] = [generation] if generation is not None else []
            return generation is not None and generation.number >= number

        self.until(there)
        return found[0]

    def renewed(self) -> None:
        """Wait for one more renewal."""
        before = self.state.renewed_at
        self.until(lambda: self.state.renewed_at != before)


@contextmanager
def keeping(path: Path, host: int = 1, **options: Any) -> Iterator[Keeper]:
    keeper = Keeper(path, host, **options)
    try:
        yield keeper
    finally:
        keeper.keeper.stop(PATIENCE)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Store]:
    """The same store as seen by somebody else."""
    with FileStore(StoreLocation.parse(f"file://{tmp_path}/store")) as store:
        yield store


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds whoever waits for it, until the test ends at the latest."""
    event = threading.Event()
    yield event
    event.set()


def record_of(store: Store, key: str) -> Record | None:
    return next((record for record in store.snapshot().leases if record.key == key), None)


def test_a_node_joins_and_hears_of_others(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path) as keeper:
        lease = keeper.joined().lease
        assert record_of(outside, lease.key) is not None
        outside.create("10.5.200.0-24", foreign(7, "node-7"), 60)
        keeper.until(lambda: "10.5.200.0-24" in keeper.slot.records())
    assert not keeper.keeper.alive
    assert record_of(outside, lease.key) is not None, "the lease stays for the next start"


def test_the_subnet_held_before_is_asked_for_again(tmp_path: Path) -> None:
    with keeping(tmp_path, previous=Subnets(IPv4Network("10.5.77.0/24"))) as keeper:
        assert keeper.joined().lease.key == "10.5.77.0-24"


def test_many_nodes_that_start_at_once_get_subnets_of_their_own_in_both_families(
    tmp_path: Path, outside: Store
) -> None:
    outside.write_config(TWO_FAMILIES, None)
    keepers = [Keeper(tmp_path, host) for host in range(1, 13)]
    try:
        held = [keeper.joined().lease.subnets for keeper in keepers]
    finally:
        for keeper in keepers:
            keeper.keeper.stop(PATIENCE)
    assert len({subnets.ipv4 for subnets in held}) == len({subnets.ipv6 for subnets in held}) == len(keepers)


def test_an_underlay_and_a_document_are_followed(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path) as keeper:
        key = keeper.joined().lease.key
        keeper.keeper.move(underlay(9))
        assert keeper.joined(2).node.underlay == underlay(9)
        keeper.until(lambda: "192.0.2.9" in getattr(record_of(outside, key), "value", ""))
        outside.write_config(agreed('{"Network": "10.6.0.0/16"}'), outside.read_config())
        subnet = keeper.joined(3).node.subnets.ipv4
        assert subnet is not None
        assert IPv4Network("10.6.0.0/16").supernet_of(subnet)


def test_a_request_to_publish_has_a_number(tmp_path: Path, outside: Store) -> None:
    says = ["one"]
    with keeping(tmp_path, make_backend=lambda network: Saying(lambda: Published(says[0]))) as keeper:
        key = keeper.joined().lease.key
        says[0] = "two"
        number = keeper.keeper.publish()
        keeper.until(lambda: keeper.state.published == number)
        assert keeper.state.publish_error is None
        assert '"two"' in getattr(record_of(outside, key), "value", "")
        assert keeper.keeper.publish() == number + 1


@pytest.mark.parametrize("fault", ["hangs", "raises", "exits", "nonsense"])
def test_a_lease_is_renewed_whatever_publish_does(
    tmp_path: Path, outside: Store, gate: threading.Event, fault: str
) -> None:
    """After a good start the backend goes bad; the underlay moves, so that it is asked again."""
    good = [True]

    def publish() -> Any:
        if good[0]:
            return Published("good")
        if fault == "raises":
            raise ZeroDivisionError("oops")
        if fault == "exits":
            raise SystemExit(3)
        return gate.wait(PATIENCE) if fault == "hangs" else 7

    options: dict[str, Any] = {"ttl": 0.9, "margin": 0.6, "publish_timeout": 0.05}
    with keeping(tmp_path, make_backend=lambda network: Saying(publish), **options) as keeper:
        key = keeper.joined().lease.key
        good[0] = False
        keeper.keeper.move(underlay(2))
        keeper.joined(2)
        keeper.until(lambda: "backend 'saying'" in keeper.state.trouble)
        for _ in range(4):
            keeper.renewed()
        assert '"good"' in getattr(record_of(outside, key), "value", ""), "what it said last stays"
        good[0] = True
        gate.set()
        keeper.until(lambda: not keeper.state.trouble)
        assert "192.0.2.2" in getattr(record_of(outside, key), "value", ""), "and is made up for"


def test_a_lease_is_renewed_although_the_next_backend_never_loads(
    tmp_path: Path, outside: Store, gate: threading.Event
) -> None:
    def make_backend(network: NetworkConfig) -> Saying:
        if network.backend_type == "stuck":
            gate.wait(PATIENCE)
        return Saying()

    with keeping(tmp_path, ttl=0.9, margin=0.6, load_timeout=0.2, make_backend=make_backend) as keeper:
        key = keeper.joined().lease.key
        outside.write_config('{"Network": "10.5.0.0/16", "Backend": {"Type": "stuck"}}', outside.read_config())
        keeper.until(lambda: "'stuck' has not come back from loading" in keeper.state.trouble)
        for _ in range(3):
            keeper.renewed()
        assert record_of(outside, key) is not None


def test_a_backend_that_is_missing_after_a_change_leaves_the_network_in_force(tmp_path: Path, outside: Store) -> None:
    def make_backend(network: NetworkConfig) -> Saying:
        if network.backend_type == "gone":
            raise PluginError("backend 'gone' is not installed")
        return Saying()

    with keeping(tmp_path, ttl=0.9, margin=0.6, make_backend=make_backend) as keeper:
        before = keeper.joined()
        outside.write_config('{"Network": "10.5.0.0/16", "Backend": {"Type": "gone"}}', outside.read_config())
        keeper.until(lambda: "'gone' is not installed" in keeper.state.trouble)
        for _ in range(3):
            keeper.renewed()
        after = keeper.joined()
        assert (after.backend, after.node) == (before.backend, before.node)
        assert record_of(outside, before.lease.key) is not None
        outside.write_config('{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}', outside.read_config())
        keeper.until(lambda: not keeper.state.trouble)


class Faulty(FileStore):
    """A store whose next renewal or batch is a fault of the test's making."""

    renewal: Callable[[], Any] | None = None
    batch: Callable[[], Any] | None = None

    def renew(self, record: Record, ttl: float) -> Record:
        fault, Faulty.renewal = Faulty.renewal, None
        if fault is not None:
            answer: Record = fault()
            return answer
        return super().renew(record, ttl)

    def watch(self, revision: str) -> Watch:
        return _FaultyWatch(super().watch(revision))


class _FaultyWatch(Watch):
    def __init__(self, inner: Watch) -> None:
        self.inner = inner

    def __next__(self) -> Batch:
        batch = next(self.inner)
        fault, Faulty.batch = Faulty.batch, None
        if fault is not None:
            answer: Batch = fault()
            return answer
        return batch

    def close(self) -> None:
        self.inner.close()


def leaves() -> Any:
    raise SystemExit(3)


@pytest.fixture
def faulty() -> Iterator[type[Faulty]]:
    yield Faulty
    Faulty.renewal = Faulty.batch = None


@pytest.mark.parametrize("fault", [leaves, lambda: 7], ids=["exits", "nonsense"])
@pytest.mark.parametrize("call", ["renewal", "batch"])
def test_what_a_driver_raises_is_named_and_ends_nothing(
    tmp_path: Path, outside: Store, faulty: type[Faulty], call: str, fault: Callable[[], Any]
) -> None:
    said: list[str] = []
    with keeping(tmp_path, kind=faulty, ttl=1.5, margin=1.0) as keeper:
        keeper.joined()
        report = keeper.slot.report

        def listen(state: LeaseState) -> None:
            said.append(state.trouble)
            report(state)

        keeper.slot.report = listen  # type: ignore[method-assign]
        setattr(faulty, call, fault)
        outside.create("10.5.200.0-24", foreign(7, "node-7"), 60)
        keeper.until(lambda: any("store 'file'" in trouble for trouble in said))
        keeper.until(lambda: not keeper.state.trouble)
        keeper.renewed()
        keeper.until(lambda: "10.5.200.0-24" in keeper.slot.records())


class Watchless(FileStore):
    """What its watches are to be is the test's to say."""

    answer: Any = None

    def watch(self, revision: str) -> Watch:
        watch: Watch = Watchless.answer
        return watch


@pytest.mark.parametrize("answer", [None, iter(())], ids=["nothing", "an iterator"])
def test_what_is_no_watch_is_named_and_costs_no_lease(
    tmp_path: Path, outside: Store, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watchless, "answer", answer)
    with keeping(tmp_path, kind=Watchless, ttl=1.5, margin=1.0) as keeper:
        keeper.joined()
        kind = type(answer).__name__
        keeper.until(lambda: f"answered watch with a value of type {kind}: must be" in keeper.state.trouble)
        for _ in range(2):
            keeper.renewed()


def test_a_watch_that_can_not_be_closed_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    inbox: queue.SimpleQueue[Callable[[Any, float], None]] = queue.SimpleQueue()
    watcher = _Watcher(7, object(), "odd", inbox)  # type: ignore[arg-type] # it has no close()
    caplog.set_level(logging.DEBUG)
    watcher.close()
    until(lambda: "store 'odd' failed in close of a watch: AttributeError" in caplog.text)


class Endless(Watch):
    """Tells without a pause that nothing has changed."""

    def __init__(self) -> None:
        self.told = 0
        self.closed = False

    def __next__(self) -> Batch:
        if self.closed:
            raise StopIteration
        self.told += 1
        return Batch("1")

    def close(self) -> None:
        self.closed = True


def test_a_watch_without_a_pause_is_read_no_further_than_it_is_taken_in() -> None:
    inbox: queue.SimpleQueue[Callable[[Any, float], None]] = queue.SimpleQueue()
    machine, watch = Mock(), Endless()
    watcher = _Watcher(7, watch, "endless", inbox)
    watcher.start()
    until(lambda: inbox.qsize() >= AHEAD)
    for _ in range(AHEAD):
        inbox.get(timeout=LONG)(machine, 1.0)
    until(lambda: inbox.qsize() >= AHEAD)
    machine.batch.assert_called_with(7, Batch("1"), 1.0)
    assert inbox.qsize() == AHEAD
    assert watch.told <= 2 * AHEAD + 1
    watcher.close()
    until(lambda: watch.closed)
    while not machine.broke.called:
        inbox.get(timeout=LONG)(machine, 1.0)


def test_a_store_that_hangs_is_named_and_given_up_for_another(
    tmp_path: Path,
    outside: Store,
    faulty: type[Faulty],
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "NAMED_AFTER", 0.2)
    monkeypatch.setattr(machine, "GIVEN_UP_AFTER", 3.0)
    monkeypatch.setattr(machine, "CALL_TIMEOUT", 0.1)
    faulty.renewal = lambda: gate.wait(PATIENCE)
    named: list[str] = []
    with keeping(tmp_path, kind=faulty, ttl=3.0, margin=2.0) as keeper:
        keeper.joined()

        def given_up() -> bool:
            named.extend([keeper.state.trouble] if "has not come back from renew" in keeper.state.trouble else [])
            return len(keeper.opened) > 1

        keeper.until(given_up)
        assert named
        assert named[0].startswith("store 'file' has")
        keeper.until(lambda: not keeper.state.trouble)
        keeper.renewed()
        outside.create("10.5.200.0-24", foreign(7, "node-7"), 60)
        keeper.until(lambda: "10.5.200.0-24" in keeper.slot.records())


def test_a_keeper_ends_although_its_store_hangs(tmp_path: Path, faulty: type[Faulty], gate: threading.Event) -> None:
    hanging = threading.Event()

    def hang() -> Any:
        hanging.set()
        return gate.wait(PATIENCE)

    faulty.renewal = hang
    with keeping(tmp_path, kind=faulty, ttl=0.9, margin=0.6) as keeper:
        keeper.until(hanging.is_set)
        keeper.keeper.stop(PATIENCE)
        assert not gate.is_set()
        assert not keeper.keeper.alive


class Counting(FileStore):
    """Knows how many of its watches are open."""

    @property
    def open_watches(self) -> int:
        return len(self._watches)


@pytest.mark.parametrize("thread", ["pyflannel-loading", "pyflannel-publish", "pyflannel-watch"])
def test_a_thread_that_can_t_begin_is_begun_later(
    tmp_path: Path, outside: Store, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no memory for its stack, for a while."""
    refused: list[str] = []
    begin = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == thread and len(refused) < 2:
            refused.append(self.name)
            raise RuntimeError("can't start new thread")
        begin(self)

    with keeping(tmp_path, kind=Counting) as keeper:
        keeper.joined()
        monkeypatch.setattr(threading.Thread, "start", start)
        outside.write_config(DOCUMENT.replace("10.5.0.0/16", "10.5.0.0/15"), outside.read_config())
        keeper.joined(2)
        keeper.until(lambda: not keeper.state.trouble)
        outside.create("10.5.200.0-24", foreign(7, "node-7"), 60)
        keeper.until(lambda: "10.5.200.0-24" in keeper.slot.records())
        [store] = keeper.opened
        assert isinstance(store, Counting)
        keeper.until(lambda: store.open_watches == 1)
    assert refused


def test_a_backend_that_is_unknown_is_fatal_at_the_start(tmp_path: Path, outside: Store) -> None:
    outside.write_config('{"Network": "10.5.0.0/16", "Backend": {"Type": "nonsense"}}', None)
    with keeping(tmp_path) as keeper:
        keeper.until(lambda: keeper.state.fatal is not None)
        assert "nonsense" in str(keeper.state.fatal)
        keeper.until(lambda: not keeper.keeper.alive)
