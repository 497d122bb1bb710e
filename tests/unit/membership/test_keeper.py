"""The lease keeper on a real file store, which needs no server; its clock is the real one, its leases short."""

from __future__ import annotations

import json
import queue
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pyflannel.daemon.loop import make_backend
from pyflannel.errors import ConfigError, PluginError, StoreUnavailableError
from pyflannel.membership.allocation import ConflictPolicy
from pyflannel.membership.keeper import Backoff, Event, Fatal, Joined, KeeperOptions, LeaseKeeper, Moved, PeersChanged
from pyflannel.network.lease import Lease, LeaseAttributes, Subnets
from pyflannel.network.underlay import Underlay
from pyflannel.settings.settings import NetworkSeed
from pyflannel.store import Record, Snapshot, Store, StoreLocation, Watch
from pyflannel_stores.file import FileStore

DOCUMENT = '{"Network": "10.5.0.0/16"}'
PATIENCE = 60.0
E = TypeVar("E")


def underlay(host: int = 1) -> Underlay:
    ipv4, ipv6 = IPv4Address(f"192.0.2.{host}"), IPv6Address(f"2001:db8::{host:x}")
    return Underlay("eth0", 1500, ipv4, ipv6, public_ipv4=ipv4, public_ipv6=ipv6)


class Keeper:
    """A keeper and what it said."""

    def __init__(self, path: Path, host: int = 1, store: Store | None = None, **options: Any) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.store = store or FileStore(StoreLocation.parse(f"file://{path}/store"))
        made_by = options.pop("make_backend", make_backend)
        defaults: dict[str, Any] = {
            "node_id": f"node-{host}",
            "subnet_file": path / f"subnet-{host}.env",
            "state_dir": path,
            "ttl": 60.0,
            "margin": 20.0,
            "seed": NetworkSeed(DOCUMENT, "the test", False),
        }
        self.keeper = LeaseKeeper(
            self.store,
            KeeperOptions(**{**defaults, **options}),
            made_by,
            self.events.put,
            time.monotonic,
            random.Random(host),
        )
        self.keeper.start(underlay(host))

    def next(self, kind: type[E]) -> E:
        """The next event of a kind; the others are passed over."""
        deadline = time.monotonic() + PATIENCE
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            if isinstance(event, kind):
                return event

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.keeper.state
            time.sleep(0.01)

    def close(self) -> None:
        self.keeper.stop(PATIENCE)
        self.store.close()


@contextmanager
def keeping(path: Path, host: int = 1, **options: Any) -> Iterator[Keeper]:
    keeper = Keeper(path, host, **options)
    try:
        yield keeper
    finally:
        keeper.close()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Store]:
    """The same store as seen by somebody else."""
    with FileStore(StoreLocation.parse(f"file://{tmp_path}/store")) as store:
        yield store


def record_of(store: Store, key: str) -> Record | None:
    return next((record for record in store.snapshot().leases if record.key == key), None)


def test_the_first_node_creates_network_and_lease(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path) as keeper:
        joined = keeper.next(Joined)
    config = outside.read_config()
    assert config is not None
    assert json.loads(config.value) == json.loads(DOCUMENT)
    record = record_of(outside, joined.lease.key)
    assert record is not None
    assert not record.permanent
    document = json.loads(record.value)
    assert document["PublicIP"] == "192.0.2.1"
    assert document["BackendType"] == "vxlan"
    assert document["BackendData"]["VNI"] == 1
    assert document["NodeID"] == "node-1"
    assert IPv4Network("10.5.0.0/16").supernet_of(joined.node.subnets.ipv4 or IPv4Network("0.0.0.0/0"))


def test_a_restart_keeps_the_lease_and_changes_nothing_for_others(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path) as keeper:
        first = keeper.next(Joined)
    before = record_of(outside, first.lease.key)
    with keeping(tmp_path) as keeper:
        second = keeper.next(Joined)
    after = record_of(outside, first.lease.key)
    assert second.lease == first.lease
    assert before is not None
    assert after is not None
    assert before.version == after.version


def test_nodes_hear_of_each_other(tmp_path: Path) -> None:
    with keeping(tmp_path, 1) as one:
        first = one.next(Joined)
        with keeping(tmp_path, 2) as two:
            assert [record.key for record in two.next(Joined).records] == [first.lease.key]
            (change,) = one.next(PeersChanged).changes
            assert change.record is not None
            assert change.key == two.keeper.state.lease.key  # type: ignore[union-attr]


def test_the_lease_of_subnet_env_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "subnet-1.env").write_text("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.77.1/24\n")
    with keeping(tmp_path) as keeper:
        assert keeper.next(Joined).lease.key == "10.5.77.0-24"


def test_a_lease_is_renewed_before_it_expires(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path, ttl=1.5, margin=1.0) as keeper:
        joined = keeper.next(Joined)
        first = keeper.keeper.state.renewed_at
        keeper.until(lambda: (keeper.keeper.state.renewed_at or 0) > (first or 0) + 1.5)
        assert record_of(outside, joined.lease.key) is not None


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("node_id", ["a", "N", "Büro 7", 'the "first"', "back\\slash"])
def test_a_lease_is_found_again_however_its_text_spells_our_id(
    tmp_path: Path, outside: Store, node_id: str, ascii_only: bool
) -> None:
    with keeping(tmp_path, node_id=node_id) as keeper:
        first = keeper.next(Joined)
    (tmp_path / "subnet-1.env").unlink(missing_ok=True)
    record = record_of(outside, first.lease.key)
    assert record is not None
    document = {**json.loads(record.value), "PublicIP": "192.0.2.77"}
    outside.update(record, json.dumps(document, ensure_ascii=ascii_only), 60.0)
    with keeping(tmp_path, node_id=node_id) as keeper:
        assert keeper.next(Joined).lease.subnets == first.lease.subnets


def test_a_reservation_stays_one(tmp_path: Path, outside: Store) -> None:
    outside.write_config(DOCUMENT, None)
    outside.create("10.5.9.0-24", LeaseAttributes(IPv4Address("192.0.2.1")).to_json(), None)
    with keeping(tmp_path) as keeper:
        assert keeper.next(Joined).lease.key == "10.5.9.0-24"
        assert keeper.keeper.state.expires_at is None
    record = record_of(outside, "10.5.9.0-24")
    assert record is not None
    assert record.permanent
    assert json.loads(record.value)["NodeID"] == "node-1"


def test_a_deleted_lease_is_taken_again(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path) as keeper:
        key = keeper.next(Joined).lease.key
        record = record_of(outside, key)
        assert record is not None
        outside.delete(record)
        assert keeper.next(Joined).lease.key == key
        assert record_of(outside, key) is not None


def foreign(host: int, node_id: str) -> str:
    attributes = LeaseAttributes(
        IPv4Address(f"192.0.2.{host}"),
        backend_type="vxlan",
        backend_data={"VNI": 1, "VtepMAC": "02:00:00:00:00:07"},
        node_id=node_id,
    )
    return attributes.to_json()


class _MirroredStore(FileStore):
    """Somebody puts a deleted lease back a moment before its node can."""

    lost: Record | None = None

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        if self.lost is not None:
            lost, self.lost = self.lost, None
            super().create(lost.key, lost.value, ttl)
        return super().create(key, value, ttl)


def test_a_lease_that_was_put_back_before_we_could_is_ours_all_the_same(tmp_path: Path, outside: Store) -> None:
    store = _MirroredStore(StoreLocation.parse(f"file://{tmp_path}/store"))
    with keeping(tmp_path, store=store) as keeper:
        first = keeper.next(Joined)
        store.lost = record_of(outside, first.lease.key)
        assert store.lost is not None
        outside.delete(store.lost)
        assert keeper.next(Joined).lease == first.lease
    assert [record.key for record in outside.snapshot().leases] == [first.lease.key]


def test_a_subnet_that_another_node_got_meanwhile_is_a_loud_conflict(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path) as keeper:
        key = keeper.next(Joined).lease.key
        record = record_of(outside, key)
        assert record is not None
        outside.update(record, foreign(7, "thief"), 60)
        keeper.until(lambda: keeper.keeper.state.conflict)
        stolen = record_of(outside, key)
        assert stolen is not None
        assert "thief" in stolen.value, "the later one does not fight back"
        outside.delete(stolen)
        assert keeper.next(Joined).lease.key == key
        assert not keeper.keeper.state.conflict


def test_a_second_node_with_our_address_is_refused(tmp_path: Path) -> None:
    with keeping(tmp_path, 1) as one:
        held = one.next(Joined).lease
        with keeping(tmp_path, 1, node_id="impostor") as two:
            two.until(lambda: two.keeper.state.conflict)
            assert "node-1" in two.keeper.state.trouble
            assert two.keeper.state.lease is None
        assert one.keeper.state.lease == held


def test_take_over_takes_over(tmp_path: Path) -> None:
    with keeping(tmp_path, 1) as one:
        held = one.next(Joined).lease
    with keeping(tmp_path, 1, node_id="replacement", policy=ConflictPolicy.TAKE_OVER) as two:
        assert two.next(Joined).lease.key == held.key


def test_a_new_public_address_keeps_the_subnet(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path) as keeper:
        key = keeper.next(Joined).lease.key
        keeper.keeper.move(underlay(9))
        assert keeper.next(Moved).node.underlay == underlay(9)
        keeper.until(lambda: "192.0.2.9" in getattr(record_of(outside, key), "value", ""))


def test_another_network_document_begins_a_new_session(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path) as keeper:
        old = keeper.next(Joined)
        outside.write_config('{"Network": "10.6.0.0/16"}', outside.read_config())
        new = keeper.next(Joined)
        assert new.node.network.ipv4 != old.node.network.ipv4
        assert IPv4Network("10.6.0.0/16").supernet_of(new.node.subnets.ipv4 or IPv4Network("0.0.0.0/0"))
        assert record_of(outside, old.lease.key) is None, "a lease that no longer fits is given back"


def test_an_invalid_new_document_is_reported_and_the_old_one_kept(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path) as keeper:
        keeper.next(Joined)
        outside.write_config('{"Network": "10.6.0.0/99"}', outside.read_config())
        keeper.until(lambda: "Network" in keeper.keeper.state.trouble)
        assert keeper.keeper.state.lease is not None


@pytest.mark.parametrize(
    ("options", "document", "named"),
    [
        ({"backend": "vxlan"}, '{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}', "--backend"),
        ({"seed": NetworkSeed(DOCUMENT, "f", True)}, '{"Network": "10.7.0.0/16"}', "something else than f"),
    ],
)
def test_what_the_node_insists_on_outlives_another_document(
    tmp_path: Path, outside: Store, options: dict[str, Any], document: str, named: str
) -> None:
    with keeping(tmp_path, **options) as keeper:
        key = keeper.next(Joined).lease.key
        outside.write_config(document, outside.read_config())
        keeper.until(lambda: named in keeper.keeper.state.trouble)
        assert record_of(outside, key) is not None
        outside.create("10.5.77.0-24", LeaseAttributes(IPv4Address("192.0.2.77")).to_json(), None)
        news = keeper.next(PeersChanged)
        assert [change.key for change in news.changes] == ["10.5.77.0-24"], "peers are still followed"
        assert named in keeper.keeper.state.trouble


def test_without_a_document_we_wait_and_say_so(tmp_path: Path, outside: Store) -> None:
    with keeping(tmp_path, seed=None) as keeper:
        keeper.until(lambda: "no network config" in keeper.keeper.state.trouble)
        outside.write_config(DOCUMENT, None)
        assert keeper.next(Joined).lease.key


@pytest.mark.parametrize(
    ("document", "options", "error"),
    [
        ('{"Network": "10.5.0.0"}', {}, ConfigError),
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "nonsense"}}', {}, PluginError),
        ('{"Network": "10.5.0.0/16", "Backend": {"VNI": "x"}}', {}, ConfigError),
        ('{"Network": "10.5.0.0/16"}', {"backend": "host-gw"}, ConfigError),
        ('{"Network": "10.5.0.0/16"}', {"seed": NetworkSeed('{"Network": "10.7.0.0/16"}', "f", True)}, ConfigError),
    ],
)
def test_what_can_never_work_is_fatal_at_the_start(
    tmp_path: Path, outside: Store, document: str, options: dict[str, Any], error: type[Exception]
) -> None:
    outside.write_config(document, None)
    with keeping(tmp_path, **options) as keeper:
        assert isinstance(keeper.next(Fatal).error, error)


class Flaky(FileStore):
    """A store that can be out of reach: every call, and the open watches."""

    down = False

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailableError("out of reach")

    def snapshot(self) -> Snapshot:
        self._check()
        return super().snapshot()

    def read_config(self) -> Record | None:
        self._check()
        return super().read_config()

    def renew(self, record: Record, ttl: float) -> Record:
        self._check()
        return super().renew(record, ttl)

    def watch(self, revision: str) -> Watch:
        self._check()
        return super().watch(revision)

    def cut(self) -> None:
        self.down = True
        for watch in list(self._watches):
            watch.close()


TWO_FAMILIES = (
    '{"Network": "10.5.0.0/24", "SubnetLen": 28, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", '
    '"Backend": {"Type": "alloc"}}'
)


class Overtaken(FileStore):
    """A store in which somebody else leases the same IPv4 subnet in the moment in which we do."""

    overtaken = ""

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        record = super().create(key, value, ttl)
        if not self.overtaken:
            self.overtaken = f"{key.split('&')[0]}&fd00:5:0:7777::-64"
            super().create(self.overtaken, foreign(7, "node-7"), None)
        return record


def test_two_leases_never_share_a_subnet_of_one_family_alone(tmp_path: Path, outside: Store) -> None:
    outside.write_config(TWO_FAMILIES, None)
    store = Overtaken(StoreLocation.parse(f"file://{tmp_path}/store"))
    with keeping(tmp_path, store=store) as keeper:
        joined = keeper.next(Joined)
        assert store.overtaken
        assert not joined.lease.subnets.overlaps(Subnets.from_key(store.overtaken))
        assert {record.key for record in outside.snapshot().leases} == {joined.lease.key, store.overtaken}


def test_many_nodes_that_start_at_once_get_subnets_of_their_own_in_both_families(
    tmp_path: Path, outside: Store
) -> None:
    outside.write_config(TWO_FAMILIES, None)
    keepers = [Keeper(tmp_path, host) for host in range(1, 13)]
    try:
        held = [keeper.next(Joined).lease.subnets for keeper in keepers]
    finally:
        for keeper in keepers:
            keeper.close()
    assert len({subnets.ipv4 for subnets in held}) == len({subnets.ipv6 for subnets in held}) == len(keepers)


def test_an_outage_at_the_start_is_waited_out(tmp_path: Path) -> None:
    store = Flaky(StoreLocation.parse(f"file://{tmp_path}/store"))
    store.down = True
    with keeping(tmp_path, store=store) as keeper:
        keeper.until(lambda: keeper.keeper.state.trouble == "out of reach")
        store.down = False
        keeper.next(Joined)
        assert keeper.keeper.state.trouble == ""


def test_an_outage_while_running_resumes_without_a_gap_and_without_a_new_session(
    tmp_path: Path, outside: Store
) -> None:
    store = Flaky(StoreLocation.parse(f"file://{tmp_path}/store"))
    with keeping(tmp_path, store=store) as keeper:
        keeper.next(Joined)
        keeper.until(lambda: bool(store._watches))
        store.cut()
        keeper.until(lambda: keeper.keeper.state.trouble != "")
        outside.create("10.5.200.0-24", foreign(7, "node-7"), 60)
        store.down = False
        change = keeper.next(PeersChanged).changes[0]
        assert change.key == "10.5.200.0-24"
        keeper.until(lambda: keeper.keeper.state.trouble == "")


def test_a_lease_that_expired_during_an_outage_is_taken_again(tmp_path: Path, outside: Store) -> None:
    store = Flaky(StoreLocation.parse(f"file://{tmp_path}/store"))
    with keeping(tmp_path, store=store, ttl=1.5, margin=1.0) as keeper:
        key = keeper.next(Joined).lease.key
        keeper.until(lambda: bool(store._watches))
        store.cut()
        keeper.until(lambda: record_of(outside, key) is None)
        store.down = False
        assert keeper.next(Joined).lease.key == key


def test_a_lease_of_flanneld_s_with_our_address_is_adopted(tmp_path: Path, outside: Store) -> None:
    outside.write_config(DOCUMENT, None)
    theirs = Lease(
        Subnets(IPv4Network("10.5.33.0/24")), LeaseAttributes(IPv4Address("192.0.2.1"), backend_type="vxlan")
    )
    outside.create(theirs.key, theirs.attributes.to_json(), 60)
    with keeping(tmp_path) as keeper:
        lease = keeper.next(Joined).lease
    assert lease.key == theirs.key
    assert lease == lease.with_attributes(replace(lease.attributes, node_id="node-1"))


@pytest.mark.parametrize("key", ["0.0.0.0-0", "10.0.0.0-8", "10.5.0.0-16", "nonsense"])
def test_a_hostile_lease_does_not_shut_the_others_out(tmp_path: Path, outside: Store, key: str) -> None:
    outside.write_config(DOCUMENT, None)
    outside.create(key, foreign(7, "hostile"), 60)
    with keeping(tmp_path) as keeper:
        assert keeper.next(Joined).lease.key


def test_pauses_grow_and_differ() -> None:
    nodes = [Backoff(random.Random(seed)) for seed in range(100)]
    first = [backoff.next() for backoff in nodes]
    later = [[backoff.next() for _ in range(10)][-1] for backoff in nodes]
    assert all(0.25 <= pause <= 0.5 for pause in first)
    assert all(pause <= 15 for pause in later)
    assert max(later) - min(later) > 10, "spread over the whole range"
    nodes[0].reset()
    assert nodes[0].next() <= 0.5


class Folding(FileStore):
    """A store where somebody deletes the new lease before the watch first looks."""

    victims = 1

    def watch(self, revision: str) -> Watch:
        if self.victims:
            self.victims -= 1
            for record in self.snapshot().leases:
                self.delete(record)
            # As for another process, whose history knows nothing of the lease's short life:
            self._history_made = None
            revision = self.snapshot().revision
        return super().watch(revision)


def test_a_lease_that_was_deleted_before_the_watch_could_see_it_is_missed(tmp_path: Path, outside: Store) -> None:
    """Created and deleted between two looks: nothing has changed, says a store that compares states."""
    store = Folding(StoreLocation.parse(f"file://{tmp_path}/store"))
    with keeping(tmp_path, store=store) as keeper:
        key = keeper.next(Joined).lease.key
        assert keeper.next(Joined).lease.key == key
        assert record_of(outside, key) is not None
