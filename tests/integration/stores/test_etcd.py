"""The etcd driver on one real member: the contract, flannel's schema, and what a watch sees."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count

import pytest
from tests.recordings import GOLDEN
from tests.servers.etcd import MISSING, etcd, etcdctl, leases, stored
from tests.servers.following import Follower
from tests.servers.lossy import LossyProxy

from pyflannel.errors import ConflictError, HistoryGoneError, StoreUnavailableError
from pyflannel.lab.servers.etcd import EtcdCluster
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Lease
from pyflannel.store import CONFIG_KEY, Change, Record, StoreLocation
from pyflannel_stores.etcd import EtcdStore

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

DAY = 86400.0
KEY = "172.16.68.0-24"
VALUE = '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":172}}'

_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdCluster]:
    with etcd() as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"/test/{next(_numbers)}"


@pytest.fixture
def store(server: EtcdCluster, prefix: str) -> Iterator[EtcdStore]:
    with closing(open_store(server, prefix)) as opened:
        yield opened


def open_store(server: EtcdCluster, prefix: str, hosts: str = "") -> EtcdStore:
    return EtcdStore(StoreLocation.parse(f"etcd://{hosts or server.hosts}{prefix}"))


# --- the network document -------------------------------------------------------------------------------------------


def test_document_put_with_etcdctl_is_read_back(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    document = (
        '{"Network":"172.16.0.0/12","SubnetLen":24,"SubnetMin":"172.16.16.0","SubnetMax":"172.31.247.0",'
        '"Backend":{"Type":"vxlan","VNI":172,"Port":8889}}'
    )
    etcdctl(server, "put", f"{prefix}/config", document)
    record = store.read_config()
    assert record is not None
    assert (record.key, record.value, record.permanent) == (CONFIG_KEY, document, True)
    assert NetworkConfig.from_json(record.value).backend_options["VNI"] == 172
    assert store.snapshot().config == record


def test_document_is_created_once_and_replaced_only_by_who_has_read_it(
    server: EtcdCluster, store: EtcdStore, prefix: str
) -> None:
    assert store.read_config() is None
    first = store.write_config("{}", None)
    with pytest.raises(ConflictError):
        store.write_config("{}", None)
    second = store.write_config('{"a":1}', first)
    with pytest.raises(ConflictError):
        store.write_config('{"a":2}', first)
    assert store.read_config() == second
    assert stored(server, prefix)[f"{prefix}/config"]["lease"] == 0


@pytest.mark.parametrize(
    ("written", "first"), [("letter/network", "letter/network"), ("/", ""), ("a/../letter//b/", "letter/b")]
)
def test_the_prefix_is_flannels_to_the_letter(server: EtcdCluster, written: str, first: str) -> None:
    etcdctl(server, "put", f"{first}/config", "{}")
    etcdctl(server, "put", f"{first}/dancing", "no business of ours")
    with closing(EtcdStore(StoreLocation("etcd", (server.hosts,), "", {"prefix": written}))) as store:
        before = store.snapshot()
        assert before.config is not None
        assert not before.leases
        with closing(store.watch(before.revision)) as watch:
            record = store.create(KEY, VALUE, DAY)
            assert [change.key for change in next(watch).changes] == [KEY]
        assert f"{first}/subnets/{KEY}" in stored(server, first or "/")
        assert [lease.key for lease in store.snapshot().leases] == [KEY]
        store.delete(record)
    etcdctl(server, "del", f"{first}/config")


# --- leases ---------------------------------------------------------------------------------------------------------


def test_lease_is_kept_as_flannel_keeps_it(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    record = store.create(KEY, VALUE, DAY)
    [(path, kept)] = stored(server, prefix).items()
    assert path == f"{prefix}/subnets/{KEY}"
    assert kept["value"].decode() == VALUE
    assert f"{kept['lease']:x}" == record.handle
    assert "granted with TTL(86400s" in etcdctl(server, "lease", "timetolive", record.handle)
    assert record.ttl == DAY


def test_create_conflicts_and_leaves_no_etcd_lease_behind(server: EtcdCluster, store: EtcdStore) -> None:
    store.create(KEY, VALUE, DAY)
    before = leases(server)
    with pytest.raises(ConflictError, match=KEY):
        store.create(KEY, VALUE, DAY)
    assert leases(server) == before


def test_reservation_has_no_etcd_lease_and_stays_one(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    record = store.create(KEY, VALUE, None)
    assert record.permanent
    with pytest.raises(ConflictError):
        store.create(KEY, VALUE, None)
    changed = store.update(record, "{}", 60)
    assert changed.permanent
    assert store.renew(changed, 60) == changed
    assert stored(server, prefix)[f"{prefix}/subnets/{KEY}"]["lease"] == 0


def test_update_keeps_the_etcd_lease_and_wants_the_version(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    record = store.create(KEY, VALUE, DAY)
    before = leases(server)
    updated = store.update(record, "{}", DAY)
    assert updated.version != record.version
    assert updated.handle == record.handle
    assert leases(server) == before
    with pytest.raises(ConflictError):
        store.update(record, VALUE, DAY)
    with pytest.raises(ConflictError):
        store.update(record, VALUE, 2 * DAY)
    assert leases(server) == before
    assert stored(server, prefix)[f"{prefix}/subnets/{KEY}"]["value"] == b"{}"


def test_update_without_ttl_makes_a_reservation_and_frees_the_etcd_lease(server: EtcdCluster, store: EtcdStore) -> None:
    before = leases(server)
    assert store.update(store.create(KEY, VALUE, DAY), VALUE, None).permanent
    assert leases(server) == before


def test_renewal_leaves_the_key_alone(server: EtcdCluster, store: EtcdStore) -> None:
    record = store.create(KEY, VALUE, DAY)
    assert store.renew(record, DAY) == record
    assert store.snapshot().leases[0].version == record.version


def test_renewal_with_another_ttl_takes_effect(server: EtcdCluster, store: EtcdStore) -> None:
    record = store.create(KEY, VALUE, 60)
    before = leases(server)
    renewed = store.renew(record, DAY)
    assert DAY - 10 < store.time_to_live([renewed])[KEY] <= DAY  # type: ignore[operator]
    assert renewed.value == VALUE
    assert len(leases(server)) == len(before), "the old etcd lease stays behind"
    with pytest.raises(ConflictError):
        store.renew(record, DAY)


def test_renewal_extends_the_life(server: EtcdCluster, store: EtcdStore) -> None:
    record = store.create(KEY, VALUE, 60)
    for _ in range(200):
        left = store.time_to_live([record])[KEY]
        assert left is not None
        if left < 60:
            break
        threading.Event().wait(0.02)
    else:
        pytest.fail("time does not pass")
    store.renew(record, 60)
    assert store.time_to_live([record])[KEY] == 60 or store.time_to_live([record])[KEY] == 59


def test_ttl_below_what_etcd_grants_is_not_granted_anew_at_every_renewal(server: EtcdCluster, store: EtcdStore) -> None:
    record = store.create(KEY, VALUE, 0.1)
    assert record.ttl is not None
    assert store.renew(record, 0.1) == record


def test_expiry_and_renewal_after_it(server: EtcdCluster, store: EtcdStore) -> None:
    with Follower(store) as follower:
        record = store.create(KEY, VALUE, 1)
        changes = follower.until(lambda changes: len(changes) == 2)
        assert changes[-1] == Change(KEY, None)
    with pytest.raises(ConflictError):
        store.renew(record, 1)
    with pytest.raises(ConflictError):
        store.update(record, VALUE, 1)
    assert store.time_to_live([record]) == {KEY: 0.0}
    store.delete(record)


@pytest.mark.parametrize("by", ["deleting", "writing"])
def test_renewal_notices_that_the_key_is_no_longer_ours(
    server: EtcdCluster, store: EtcdStore, prefix: str, by: str
) -> None:
    record = store.create(KEY, VALUE, DAY)
    path = f"{prefix}/subnets/{KEY}"
    etcdctl(server, *(["del", path] if by == "deleting" else ["put", path, VALUE]))
    for ttl in (DAY, 2 * DAY):
        with pytest.raises(ConflictError, match=KEY):
            store.renew(record, ttl)


def test_delete(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    before = leases(server)
    record = store.create(KEY, VALUE, DAY)
    newer = store.update(record, "{}", DAY)
    with pytest.raises(ConflictError):
        store.delete(record)
    store.delete(newer)
    store.delete(newer)
    assert stored(server, prefix) == {}
    assert leases(server) == before


def test_delete_spares_an_etcd_lease_that_holds_other_keys(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    record = store.create(KEY, VALUE, DAY)
    etcdctl(server, "put", f"{prefix}/subnets/172.16.69.0-24", VALUE, f"--lease={record.handle}")
    store.delete(record)
    assert [kept.key for kept in store.snapshot().leases] == ["172.16.69.0-24"]


def test_time_to_live_of_many(server: EtcdCluster, store: EtcdStore) -> None:
    records = [store.create(f"10.0.{number}.0-24", VALUE, 100 + number) for number in range(70)]
    records.append(store.create(KEY, VALUE, None))
    left = dict(store.time_to_live(store.snapshot().leases))
    assert left.pop(KEY) is None
    assert len(left) == 70
    for number in range(70):
        assert 90 + number < left[f"10.0.{number}.0-24"] <= 100 + number  # type: ignore[operator]


# --- one cluster with flanneld --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", sorted(path.parent.name for path in GOLDEN.glob("*/leases.txt")))
def test_what_flanneld_left_is_read(server: EtcdCluster, store: EtcdStore, prefix: str, network: str) -> None:
    config = (GOLDEN / network / "config.json").read_text()
    lines = (GOLDEN / network / "leases.txt").read_text().splitlines()
    recorded = {key.rpartition("/")[2]: value for key, value in zip(lines[0::2], lines[1::2], strict=True)}
    etcdctl(server, "put", f"{prefix}/config", config)
    granted = etcdctl(server, "lease", "grant", "86400").split()[1]
    for key, value in recorded.items():
        etcdctl(server, "put", f"{prefix}/subnets/{key}", value, f"--lease={granted}")
    snapshot = store.snapshot()
    assert snapshot.config is not None
    assert snapshot.config.value == config
    assert {record.key: record.value for record in snapshot.leases} == recorded
    for record in snapshot.leases:
        assert Lease.from_record(record.key, record.value).key == record.key
        assert (record.handle, record.permanent) == (granted.lstrip("0"), False)


def test_lease_of_flanneld_is_taken_over(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    granted = etcdctl(server, "lease", "grant", "86400").split()[1]
    etcdctl(server, "put", f"{prefix}/subnets/{KEY}", VALUE, f"--lease={granted}")
    [theirs] = store.snapshot().leases
    assert store.renew(theirs, DAY).version == theirs.version
    ours = store.update(theirs, "{}", DAY)
    assert store.snapshot().leases == (Record(KEY, "{}", ours.version, False, None, ours.handle, ours.created),)
    assert int(ours.handle, 16) in leases(server)


def test_foreign_keys_are_passed_over(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    revision = store.snapshot().revision
    foreign = ["other", "configs", "config/x", "subnets", "subnets/", "subnets/config", "nodes/n1"]
    for name in foreign:
        etcdctl(server, "put", f"{prefix}/{name}", "x")
    etcdctl(server, "put", f"{prefix}-other/subnets/{KEY}", "x")
    etcdctl(server, "put", f"{prefix}0", "x")
    store.create(KEY, VALUE, DAY)
    snapshot = store.snapshot()
    assert snapshot.config is None
    assert [record.key for record in snapshot.leases] == [KEY]
    with Follower(store, revision) as follower:
        assert [change.key for change in follower.until(bool)] == [KEY]


def test_garbage_passes_through_untouched(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    garbage = {
        b"not-a-subnet": b"",
        b"a/b": b"[]",
        b"0.0.0.0-0": b'{"PublicIP": 7',
        b"\xff\xfe-24": b"\x00\xff\xfe\x80 not utf-8 \xe2\x82",
        "ключ &%\n".encode(): b"\x00" * 5,
    }
    for name, value in garbage.items():
        path = (f"{prefix}/subnets/".encode() + name).decode(errors="surrogateescape")
        etcdctl(server, "put", "--", path, text=value) if value else etcdctl(server, "put", "--", path, "")
    found = {record.key.encode(errors="surrogateescape"): record for record in store.snapshot().leases}
    assert {name: record.value.encode(errors="surrogateescape") for name, record in found.items()} == garbage
    for name, record in found.items():
        written = store.update(record, record.value, None)
        assert {kv["value"] for kv in _raw(server, prefix, name)} == {garbage[name]}
        store.delete(written)
    assert store.snapshot().leases == ()


def _raw(server: EtcdCluster, prefix: str, name: bytes) -> list[dict[str, bytes]]:
    import base64
    import json

    path = (f"{prefix}/subnets/".encode() + name).decode(errors="surrogateescape")
    answer = json.loads(etcdctl(server, "get", "-w", "json", "--", path))
    return [{"value": base64.b64decode(kv.get("value", ""))} for kv in answer["kvs"]]


# --- the watch ------------------------------------------------------------------------------------------------------


def test_watch_sees_everything_after_the_snapshot_in_order(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    revision = store.snapshot().revision
    first = store.create(KEY, VALUE, DAY)
    config = store.write_config("{}", None)
    with Follower(store, revision) as follower:
        second = store.update(first, "{}", DAY)
        store.renew(second, DAY)
        store.delete(second)
        reserved = store.create("10.1.0.0-24", VALUE, None)
        changes = follower.until(lambda changes: len(changes) >= 5)
    assert changes == [
        Change(KEY, Record(KEY, VALUE, first.version, False, None, first.handle, first.created)),
        Change(CONFIG_KEY, config),
        Change(KEY, Record(KEY, "{}", second.version, False, None, first.handle, first.created)),
        Change(KEY, None),
        Change("10.1.0.0-24", reserved),
    ]


def test_watch_goes_on_from_a_revision_of_another_store_object(
    server: EtcdCluster, store: EtcdStore, prefix: str
) -> None:
    revision = store.snapshot().revision
    store.create(KEY, VALUE, DAY)
    with open_store(server, prefix) as other, Follower(other, revision) as follower:
        assert [change.key for change in follower.until(bool)] == [KEY]


def test_batches_carry_a_revision_that_loses_and_repeats_nothing(server: EtcdCluster, store: EtcdStore) -> None:
    revision = store.snapshot().revision
    keys = [f"10.0.{number}.0-24" for number in range(20)]
    for key in keys:
        store.create(key, VALUE, None)
    seen: list[str] = []
    while len(seen) < len(keys):
        with store.watch(revision) as watch:
            batch = next(watch)
        seen += [change.key for change in batch.changes]
        revision = batch.revision
    assert seen == keys
    store.create(KEY, VALUE, None)
    with store.watch(revision) as watch:
        assert [change.key for change in next(watch).changes] == [KEY]


def test_replies_may_be_big(server: EtcdCluster, store: EtcdStore) -> None:
    revision = store.snapshot().revision
    for number in range(6):
        store.create(f"10.0.{number}.0-24", "x" * 1_000_000, None)
    assert sum(len(record.value) for record in store.snapshot().leases) == 6_000_000
    with Follower(store, revision) as follower:
        follower.until(lambda changes: len(changes) == 6)


def test_compaction_behind_our_back(server: EtcdCluster, store: EtcdStore) -> None:
    old = store.snapshot().revision
    record = store.create(KEY, VALUE, None)
    record = store.update(record, "{}", None)
    etcdctl(server, "compact", store.snapshot().revision)
    with store.watch(old) as watch, pytest.raises(HistoryGoneError, match="compacted"):
        next(watch)
    snapshot = store.snapshot()
    with Follower(store, snapshot.revision) as follower:
        store.delete(record)
        assert follower.until(bool) == [Change(KEY, None)]


@pytest.mark.parametrize("revision", ["", "latest", "-1", "12.5"])
def test_revision_that_is_none_of_etcds(server: EtcdCluster, store: EtcdStore, revision: str) -> None:
    with store.watch(revision) as watch, pytest.raises(HistoryGoneError):
        next(watch)


def test_revision_the_cluster_never_reached(server: EtcdCluster, store: EtcdStore) -> None:
    with store.watch(str(int(store.snapshot().revision) + 1000)) as watch, pytest.raises(HistoryGoneError):
        next(watch)


def test_slow_consumer_gets_everything(server: EtcdCluster, store: EtcdStore) -> None:
    record = store.create(KEY, "0", None)
    with store.watch(store.snapshot().revision) as watch:
        record = store.update(record, "first", None)
        seen = [change.record.value for change in next(watch).changes if change.record]
        for number in range(500):
            record = store.update(record, str(number), None)
        while seen[-1] != "499":
            seen += [change.record.value for change in next(watch).changes if change.record]
    assert seen == ["first", *map(str, range(500))]


# --- closing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["watch", "store"])
def test_close_from_another_thread_ends_a_blocked_watch(server: EtcdCluster, prefix: str, what: str) -> None:
    before = set(threading.enumerate())
    with open_store(server, prefix) as store:
        watch = store.watch(store.snapshot().revision)
        store.create(KEY, VALUE, None)
        assert next(watch).changes
        ended = threading.Event()

        def iterate() -> None:
            list(watch)
            ended.set()

        thread = threading.Thread(target=iterate)
        thread.start()
        (watch if what == "watch" else store).close()
        assert ended.wait(10)
        thread.join()
        watch.close()
        with pytest.raises(StopIteration):
            next(watch)
    _wait_for_threads(before)


def test_nothing_is_left_running(server: EtcdCluster, prefix: str) -> None:
    before = set(threading.enumerate())
    for _ in range(5):
        with open_store(server, prefix) as store, Follower(store) as follower:
            store.renew(store.create(KEY, VALUE, DAY), DAY)
            follower.until(bool)
            store.delete(store.snapshot().leases[0])
    _wait_for_threads(before)


def _wait_for_threads(before: set[threading.Thread]) -> None:
    for _ in range(500):
        left = set(threading.enumerate()) - before
        if not left:
            return
        threading.Event().wait(0.02)
    pytest.fail(f"threads left: {left}")


def test_closed_store_says_so(server: EtcdCluster, prefix: str) -> None:
    store = open_store(server, prefix)
    store.snapshot()
    store.close()
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.snapshot()
    with pytest.raises(StopIteration):
        next(store.watch("1"))


def test_exit_with_open_watches_is_silent(server: EtcdCluster, prefix: str) -> None:
    program = f"""
import sys, threading
from pyflannel.store import StoreLocation
from pyflannel_stores.etcd import EtcdStore
store = EtcdStore(StoreLocation.parse("etcd://{server.hosts}{prefix}"))
watch = store.watch(store.snapshot().revision)
threading.Thread(target=lambda: list(watch), daemon=True).start()
store.renew(store.create("{KEY}", "{{}}", 60), 60)
print("done")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# --- ambiguous writes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["create", "reserve", "update", "change ttl", "delete", "config"])
def test_answer_that_got_lost_is_settled_by_reading_back(
    server: EtcdCluster, store: EtcdStore, prefix: str, write: str
) -> None:
    before = leases(server)
    path = f"{prefix}/config" if write == "config" else f"{prefix}/subnets/{KEY}"
    existing = store.create(KEY, VALUE, DAY) if write in {"update", "change ttl", "delete"} else None
    with LossyProxy(server.hosts) as proxy, open_store(server, prefix, proxy.endpoint) as cut_off:
        cut_off.snapshot()
        proxy.lose_answer(path.encode())
        if write == "create":
            record = cut_off.create(KEY, VALUE, DAY)
        elif write == "reserve":
            record = cut_off.create(KEY, VALUE, None)
        elif write == "config":
            record = cut_off.write_config(VALUE, None)
        elif write == "delete":
            assert existing is not None
            cut_off.delete(existing)
        else:
            assert existing is not None
            record = cut_off.update(existing, "{}", DAY if write == "update" else 60)
        assert proxy.lost.is_set()
    found = stored(server, prefix)
    if write == "delete":
        assert found == {}
        assert leases(server) == before
        return
    [kept] = found.values()
    assert (str(kept["mod_revision"]), kept["value"].decode()) == (record.version, record.value)
    assert f"{kept['lease']:x}".replace("0", "", not kept["lease"]) == record.handle
    assert leases(server) - before == ({kept["lease"]} - {0})


@pytest.mark.parametrize("write", ["create", "update", "delete", "config"])
def test_request_that_got_lost_is_no_licence_to_overwrite(
    server: EtcdCluster, store: EtcdStore, prefix: str, write: str
) -> None:
    existing = store.create(KEY, VALUE, DAY) if write in {"update", "delete"} else None
    path = f"{prefix}/config" if write == "config" else f"{prefix}/subnets/{KEY}"

    def somebody_else() -> None:
        if existing is not None:
            store.update(existing, "theirs", DAY)
        elif write == "config":
            store.write_config("theirs", None)
        else:
            store.create(KEY, "theirs", DAY)

    with LossyProxy(server.hosts) as proxy, open_store(server, prefix, proxy.endpoint) as cut_off:
        cut_off.snapshot()
        proxy.lose_request(path.encode(), somebody_else)
        ours: dict[str, Callable[[], object]] = {
            "config": lambda: cut_off.write_config(VALUE, None),
            "create": lambda: cut_off.create(KEY, VALUE, DAY),
            "update": lambda: cut_off.update(existing, VALUE, DAY),  # type: ignore[arg-type]
            "delete": lambda: cut_off.delete(existing),  # type: ignore[arg-type]
        }
        with pytest.raises(ConflictError):
            ours[write]()
    [kept] = stored(server, prefix).values()
    assert kept["value"] == b"theirs"


def test_grant_whose_answer_got_lost_is_not_made_twice(server: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    before = leases(server)
    with LossyProxy(server.hosts) as proxy, open_store(server, prefix, proxy.endpoint) as cut_off:
        cut_off.snapshot()
        proxy.lose_answer(b"/etcdserverpb.Lease/LeaseGrant")
        record = cut_off.create(KEY, VALUE, DAY)
        assert proxy.lost.is_set()
    assert leases(server) - before == {int(record.handle, 16)}
