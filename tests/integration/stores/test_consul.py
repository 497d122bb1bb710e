"""The Consul driver on one real server: what it leaves there, what others do behind its back, lost answers."""

from __future__ import annotations

import re
import socket
import threading
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from tests.servers.consul import MISSING, LossyWire, consul, put, send, sessions

from pyflannel.errors import ConflictError, HistoryGoneError, StoreUnavailableError
from pyflannel.lab.servers.consul import ConsulCluster
from pyflannel.store import CONFIG_KEY, Record, Store, StoreLocation
from pyflannel.testing.stores import CONFIG, KEY, OTHER, VALUE, Follower, contents, eventually
from pyflannel_stores import consul as driver
from pyflannel_stores.consul import ConsulStore

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def cluster() -> Iterator[ConsulCluster]:
    with consul() as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4()}/network"


@pytest.fixture
def store(cluster: ConsulCluster, prefix: str) -> Iterator[Store]:
    with open_store(cluster.hosts, prefix) as store:
        yield store


def open_store(hosts: str, prefix: str, **options: str) -> ConsulStore:
    return ConsulStore(StoreLocation.parse(f"consul://{hosts}/{prefix}", options))


def path(prefix: str, key: str) -> str:
    return f"/v1/kv/{prefix}/subnets/{quote(key, safe='/')}"


def sessions_for(cluster: ConsulCluster, key: str) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in sessions(cluster).items() if f" {key} " in each["Name"]}


@pytest.fixture
def key() -> str:
    """A key of this test's own, by which its sessions are known."""
    return f"10.{uuid.uuid4().int % 65536}.0-24"


# what is left in Consul


def test_a_lease_is_a_key_locked_by_a_session_of_its_own(cluster: ConsulCluster, prefix: str, key: str) -> None:
    with open_store(cluster.hosts, prefix) as store:
        record = store.create(key, VALUE, 24 * 3600.0)
    (entry,) = cluster.servers[0].get(path(prefix, key))
    assert entry["Value"] == b64encode(VALUE.encode()).decode()
    ((session, facts),) = sessions_for(cluster, key).items()
    assert entry["Session"] == session == record.handle
    assert (facts["Behavior"], facts["LockDelay"], facts["TTL"]) == ("delete", 0, "86400s")
    assert (facts["Node"], facts["NodeChecks"], facts["ServiceChecks"]) == ("pyflannel", [], None)


@pytest.mark.parametrize(("asked", "granted"), [(1.0, 10), (10.2, 11), (60.0, 60), (10 * 86400.0, 86400)])
def test_the_ttl_is_the_nearest_one_that_consul_takes(
    cluster: ConsulCluster, store: Store, key: str, asked: float, granted: int
) -> None:
    record = store.create(key, VALUE, asked)
    assert sessions(cluster)[record.handle]["TTL"] == f"{granted}s"
    assert record.ttl == granted
    assert store.renew(record, asked).handle == record.handle
    assert store.time_to_live([record]) == {key: granted}


def test_no_session_is_left_behind(cluster: ConsulCluster, store: Store, key: str) -> None:
    first = store.create(key, VALUE, 60.0)
    with pytest.raises(ConflictError):
        store.create(key, VALUE, 60.0)
    assert sessions_for(cluster, key).keys() == {first.handle}
    second = store.update(first, OTHER, 120.0)
    assert sessions_for(cluster, key).keys() == {second.handle}
    third = store.renew(second, 60.0)
    assert sessions_for(cluster, key).keys() == {third.handle}
    reserved = store.update(third, OTHER, None)
    assert reserved.permanent
    assert sessions_for(cluster, key) == {}
    store.delete(reserved)
    store.delete(store.create(key, VALUE, 60.0))
    assert sessions_for(cluster, key) == {}


def test_a_reservation_is_not_taken_for_being_unlocked(cluster: ConsulCluster, store: Store, key: str) -> None:
    reserved = store.create(key, VALUE, None)
    for ttl in (60.0, None):
        with pytest.raises(ConflictError):
            store.create(key, VALUE, ttl)
    assert store.snapshot().leases == (reserved,)
    assert sessions_for(cluster, key) == {}


def test_a_lease_outlives_the_store_object(cluster: ConsulCluster, prefix: str, key: str) -> None:
    with open_store(cluster.hosts, prefix) as store:
        record = store.create(key, VALUE, 60.0)
    with open_store(cluster.hosts, prefix) as again:
        (found,) = again.snapshot().leases
        assert (found.version, found.handle) == (record.version, record.handle)
        assert again.update(found, OTHER, 60.0).handle == record.handle


def test_a_version_survives_a_renewal_with_another_ttl(store: Store, key: str) -> None:
    first = store.create(key, VALUE, 60.0)
    renewed = store.renew(first, 120.0)
    assert (renewed.version, renewed.handle == first.handle) == (first.version, False)
    changed = store.update(first, OTHER, 120.0)  # with the old session in hand
    assert changed.handle == renewed.handle
    twice = store.renew(store.renew(changed, 60.0), 120.0)
    assert twice.version == changed.version
    store.delete(changed)
    assert store.snapshot().leases == ()


def test_flags_of_others_are_not_taken_for_ours(cluster: ConsulCluster, store: Store, prefix: str, key: str) -> None:
    record = store.renew(store.create(key, VALUE, 60.0), 120.0)
    (entry,) = cluster.servers[0].get(path(prefix, key))
    assert entry["Flags"]
    put(cluster, f"{path(prefix, key)}?flags={entry['Flags']}", OTHER.encode())  # as Consul's web interface does
    with pytest.raises(ConflictError):
        store.update(record, VALUE, 120.0)


# what others do


def test_keys_of_others_are_left_alone_and_odd_ones_shown(cluster: ConsulCluster, store: Store, prefix: str) -> None:
    with Follower(store, store.snapshot()) as follower:
        put(cluster, f"/v1/kv/{prefix}/subnets/")  # a folder, as the web interface makes one
        put(cluster, f"/v1/kv/{prefix}/subnets/config", b"not the network document")
        put(cluster, f"/v1/kv/{prefix}/other/thing", b"x")
        put(cluster, f"/v1/kv/{prefix}-2/subnets/{KEY}", b"another network")
        put(cluster, path(prefix, "a folder/in it"), b"x")
        put(cluster, path(prefix, KEY), b"\xff\xfe\x00")
        follower.until(lambda: len(follower.state) == 2, "the odd ones")
        snapshot = store.snapshot()
        assert snapshot.config is None
        values = {record.key: record.value for record in snapshot.leases}
        assert values == {"a folder/in it": "x", KEY: "\ufffd\ufffd\0"}
        assert contents(snapshot) == follower.state
    for record in snapshot.leases:
        store.delete(record)
    assert store.snapshot().leases == ()


def test_a_session_that_is_ended_by_somebody_takes_the_lease_along(cluster: ConsulCluster, store: Store) -> None:
    record = store.create(KEY, VALUE, 60.0)
    with Follower(store, store.snapshot()) as follower:
        put(cluster, f"/v1/session/destroy/{record.handle}")
        follower.until(lambda: follower.of(KEY) == [None], "the end of the lease")
    with pytest.raises(ConflictError):
        store.renew(record, 60.0)
    with pytest.raises(ConflictError):
        store.update(record, OTHER, 60.0)
    store.delete(record)
    assert store.create(KEY, VALUE, 60.0).handle != record.handle  # at once: there is no lock delay


def test_a_key_that_is_deleted_by_somebody(cluster: ConsulCluster, store: Store, prefix: str, key: str) -> None:
    record = store.create(key, VALUE, 60.0)
    send(cluster, "DELETE", path(prefix, key))
    assert sessions_for(cluster, key).keys() == {record.handle}
    with pytest.raises(ConflictError):
        store.renew(record, 60.0)
    assert sessions_for(cluster, key) == {}, "the session has nothing to hold any more"


def test_a_key_that_somebody_else_locks(cluster: ConsulCluster, store: Store, prefix: str) -> None:
    session = put(cluster, "/v1/session/create", {"LockDelay": "0s", "Behavior": "release"})["ID"]
    assert put(cluster, f"{path(prefix, KEY)}?acquire={session}", VALUE.encode()) is True
    with pytest.raises(ConflictError):
        store.create(KEY, VALUE, 60.0)
    (found,) = store.snapshot().leases
    assert (found.handle, found.permanent) == (session, False)
    put(cluster, f"/v1/session/destroy/{session}")
    (released,) = store.snapshot().leases
    assert released.permanent
    with pytest.raises(ConflictError):
        store.renew(found, 60.0)


def test_a_lock_delay_that_somebody_else_caused_passes(cluster: ConsulCluster, store: Store, prefix: str) -> None:
    session = put(cluster, "/v1/session/create", {"LockDelay": "2s", "Behavior": "delete"})["ID"]
    put(cluster, f"{path(prefix, KEY)}?acquire={session}", VALUE.encode())
    put(cluster, f"/v1/session/destroy/{session}")

    def created() -> bool:
        try:
            store.create(KEY, VALUE, 60.0)
        except StoreUnavailableError as error:
            reasons.append(str(error))
            return False
        return True

    reasons: list[str] = []
    eventually(created, "the end of the lock delay")
    assert reasons
    assert "lock delay" in reasons[0]
    assert len(sessions_for(cluster, KEY)) >= 1


def test_a_change_of_its_own_ttl_alone_is_not_a_change(store: Store, key: str) -> None:
    record = store.create(key, VALUE, 60.0)
    with Follower(store, store.snapshot()) as follower:
        record = store.renew(store.renew(record, 120.0), 120.0)
        store.update(record, OTHER, 120.0)
        follower.until(lambda: follower.of(key) != [], "the update")
        assert [found and found.value for found in follower.of(key)] == [OTHER]


# another store behind the same address


def test_a_store_that_lost_everything_is_followed(prefix: str) -> None:
    with consul() as cluster, open_store(cluster.hosts, prefix) as store:
        for number in range(20):
            store.create(f"10.0.{number}.0-24", VALUE, None)
        store.write_config(CONFIG, None)
        with Follower(store, store.snapshot()) as follower:
            server = cluster.servers[0]
            server.kill()
            server.wipe()
            cluster.start()
            with open_store(cluster.hosts, prefix) as other:
                new = other.create(KEY, VALUE, 60.0)
                follower.until(lambda: list(follower.state) == [KEY], "the new content alone")
                assert contents(other.snapshot()) == follower.state
        assert new.key in contents(store.snapshot())


def test_a_store_that_was_set_back_ends_the_history(prefix: str) -> None:
    with consul() as cluster, open_store(cluster.hosts, prefix) as store:
        old = store.create(KEY, VALUE, None)
        saved = send(cluster, "GET", "/v1/snapshot")
        record = old
        for number in range(20):
            record = store.update(record, f"{OTHER} {number}", None)
        with Follower(store, store.snapshot()) as follower:
            send(cluster, "PUT", "/v1/snapshot", saved)
            follower.until(lambda: follower.state == contents(store.snapshot()), "the old content")
            assert follower.state == {KEY: (VALUE, old.version, True)}
            assert any(isinstance(error, HistoryGoneError) for error in follower.interruptions)
        with pytest.raises(ConflictError):
            store.update(record, VALUE, None)


# answers that get lost


@pytest.fixture
def wire(cluster: ConsulCluster) -> Iterator[LossyWire]:
    with LossyWire(cluster.servers[0]) as wire:
        yield wire


def _update(store: Store, record: Record) -> Record:
    return store.update(record, OTHER, 60.0)


def _update_for_longer(store: Store, record: Record) -> Record:
    return store.update(record, OTHER, 120.0)


def _reserve(store: Store, record: Record) -> Record:
    return store.update(record, OTHER, None)


def _renew_for_longer(store: Store, record: Record) -> Record:
    return store.renew(record, 120.0)


LOSSES = [
    pytest.param("PUT /v1/session/create", 1, id="session"),
    pytest.param("PUT /v1/txn", 1, id="transaction"),
    pytest.param("PUT /v1/txn", 2, id="transaction twice"),
    pytest.param("PUT /v1/session/destroy", 1, id="end of session"),
]


@pytest.mark.parametrize(("request_", "times"), LOSSES)
@pytest.mark.parametrize("change", [_update, _update_for_longer, _reserve, _renew_for_longer])
def test_a_change_whose_answer_got_lost_is_settled(
    cluster: ConsulCluster,
    wire: LossyWire,
    prefix: str,
    key: str,
    request_: str,
    times: int,
    change: Callable[[Store, Record], Record],
) -> None:
    with open_store(wire.host, prefix) as store:
        record = store.create(key, VALUE, 60.0)
        wire.lose(request_, times)
        changed = change(store, record)
        (found,) = store.snapshot().leases
        assert (found.value, found.version, found.handle) == (changed.value, changed.version, changed.handle)
        assert sessions_for(cluster, key).keys() == {changed.handle} - {""}


@pytest.mark.parametrize(("request_", "times"), LOSSES[:3])
def test_a_creation_whose_answer_got_lost_is_settled(
    cluster: ConsulCluster, wire: LossyWire, prefix: str, key: str, request_: str, times: int
) -> None:
    with open_store(wire.host, prefix) as store:
        store.snapshot()
        wire.lose(request_, times)
        record = store.create(key, VALUE, 60.0)
        assert wire.lost == times
        (found,) = store.snapshot().leases
        assert (found.version, found.handle) == (record.version, record.handle)
        assert sessions_for(cluster, key).keys() == {record.handle}
        with pytest.raises(ConflictError):
            store.create(key, VALUE, 60.0)


def test_a_reservation_config_and_deletion_whose_answer_got_lost(
    wire: LossyWire, prefix: str, key: str, cluster: ConsulCluster
) -> None:
    with open_store(wire.host, prefix) as store:
        leased = store.create("leased", VALUE, 60.0)
        wire.lose("PUT /v1/txn")
        reserved = store.create(key, VALUE, None)
        wire.lose("PUT /v1/txn")
        config = store.write_config(CONFIG, None)
        wire.lose("PUT /v1/txn")
        store.delete(leased)
        assert wire.lost == 3
        snapshot = store.snapshot()
        assert (snapshot.config, snapshot.leases) == (config, (reserved,))
        assert leased.handle not in sessions(cluster)


@pytest.mark.parametrize(("request_", "times"), [("PUT /v1/session/create", 2), ("PUT /v1/txn", 2)])
def test_a_creation_that_nothing_is_known_about_is_undone(
    cluster: ConsulCluster, wire: LossyWire, prefix: str, key: str, request_: str, times: int
) -> None:
    """It can't be settled, since nothing answers any more; so it is undone before anything else is asked."""
    with open_store(wire.host, prefix) as store:
        store.snapshot()
        wire.lose(request_, times, cut=True)
        with pytest.raises(StoreUnavailableError):
            store.create(key, VALUE, 60.0)
        assert sessions_for(cluster, key) != {}
        with pytest.raises(StoreUnavailableError):
            store.snapshot()
        wire.mend()
        assert store.snapshot().leases == ()
        assert sessions_for(cluster, key) == {}
        created = store.create(key, VALUE, 60.0)
        assert store.snapshot().leases == (replace(created, ttl=None),)


@pytest.mark.parametrize("change", [_update, _update_for_longer, _renew_for_longer])
def test_a_lease_is_kept_when_nothing_is_known_about_its_change(
    cluster: ConsulCluster, wire: LossyWire, prefix: str, key: str, change: Callable[[Store, Record], Record]
) -> None:
    with open_store(wire.host, prefix) as store:
        record = store.create(key, VALUE, 60.0)
        wire.lose("PUT /v1/txn", 2, cut=True)
        with pytest.raises(StoreUnavailableError):
            change(store, record)
        wire.mend()
        (found,) = store.snapshot().leases
        again = change(store, found)
        if found.version == record.version:
            assert change(store, record).version == record.version
        assert [each.version for each in store.snapshot().leases] == [again.version]


def test_a_session_that_is_to_end_may_be_taken_up_again(
    cluster: ConsulCluster, wire: LossyWire, prefix: str, key: str
) -> None:
    """A node that found its lease in another way, and goes on with it, keeps it."""
    with open_store(wire.host, prefix) as store, open_store(cluster.hosts, prefix) as other:
        wire.lose("PUT /v1/txn", 2, cut=True)
        with pytest.raises(StoreUnavailableError):
            store.create(key, VALUE, 60.0)
        (found,) = other.snapshot().leases
        wire.mend()
        assert store.renew(found, 60.0).handle == found.handle
        assert other.snapshot().leases == (found,)


def test_losing_a_race_is_no_lost_answer(cluster: ConsulCluster, wire: LossyWire, prefix: str) -> None:
    with open_store(wire.host, prefix) as store, open_store(cluster.hosts, prefix) as other:
        theirs = other.create(KEY, VALUE, None)
        wire.lose("PUT /v1/txn")
        with pytest.raises(ConflictError):
            store.create(KEY, VALUE, 60.0)
        assert store.snapshot().leases == (theirs,)


# servers that are none


@contextmanager
def impostor(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something that listens and treats every connection so; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(1 << 16)
                        answer(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def _send(text: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(text)

    return answer


NOT_CONSUL = "what answers there is not Consul: "


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n<html>welcome</html>", NOT_CONSUL + "<html>welcome"),
        (b'HTTP/1.0 200 OK\r\nX-Consul-Index: 7\r\n\r\n{"not": "a list"}', NOT_CONSUL),
        (b'HTTP/1.0 200 OK\r\nX-Consul-Index: x\r\n\r\n[{"Key": 1, "Value": "%"}]', NOT_CONSUL),
        (b"HTTP/1.0 200 OK\r\nX-Consul-Index: 7\r\n\r\n\xff\xfe", NOT_CONSUL),
        (b"HTTP/1.0 409 Conflict\r\n\r\n<html>", NOT_CONSUL),
        (b"HTTP/1.0 301 Moved\r\nLocation: http://192.0.2.1/\r\n\r\n", NOT_CONSUL),
        (b"HTTP/1.0 500 Oops\r\n\r\nNo cluster leader", "answered 500 No cluster leader"),
        (b"HTTP/1.0 429 Too Many Requests\r\n\r\n", "answered 429"),
        (b"SSH-2.0-OpenSSH\r\n", "; check that a Consul agent runs there"),
        (b"", "; check that a Consul agent runs there"),
    ],
)
def test_what_is_not_consul_is_unavailable(answer: bytes, says: str) -> None:
    with impostor(_send(answer)) as host, open_store(host, "p") as store:
        with pytest.raises(StoreUnavailableError, match=f"{host}: .*{re.escape(says)}"):
            store.snapshot()
        with pytest.raises(StoreUnavailableError, match=host):
            store.create(KEY, VALUE, 60.0)


def test_a_server_that_trickles_is_unavailable() -> None:
    ended = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: 100000\r\n\r\n[")
        while not ended.wait(0.1):
            connection.sendall(b" ")

    with impostor(trickle) as host, open_store(host, "p") as store:
        try:
            with pytest.raises(StoreUnavailableError, match="no answer in time"):
                store.snapshot()
        finally:
            ended.set()


def test_an_answer_that_ends_in_its_headers_is_an_error_and_nothing_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def cut(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-T")
        connection.shutdown(socket.SHUT_RDWR)

    with impostor(cut) as host, open_store(host, "p") as store, pytest.raises(StoreUnavailableError):
        store.snapshot()
    assert caplog.records == []


def test_closing_ends_a_call_that_waits() -> None:
    arrived, ended = threading.Event(), threading.Event()

    def wait(_: socket.socket) -> None:
        arrived.set()
        ended.wait(30)

    with impostor(wait) as host, open_store(host, "p") as store:
        outcome: list[BaseException] = []

        def read() -> None:
            try:
                store.read_config()
            except StoreUnavailableError as error:
                outcome.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            assert arrived.wait(10)
            store.close()
            thread.join(10)
            assert [str(error).endswith("closed") for error in outcome] == [True]
        finally:
            ended.set()


def test_an_unreachable_address_is_passed_over(cluster: ConsulCluster, prefix: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    with open_store(f"{nobody},{cluster.hosts}", prefix) as store:
        record = store.create(KEY, VALUE, 60.0)
        with Follower(store, store.snapshot()) as follower:
            store.delete(record)
            follower.until(lambda: not follower.state, "the deletion")
            assert not follower.interruptions


def test_the_token_of_nobody_is_ignored_without_acls(
    cluster: ConsulCluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", str(uuid.uuid4()))
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "192.0.2.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:1")
    with open_store(cluster.hosts, prefix) as store:
        assert store.read_config() is None


def test_a_foreign_datacenter_is_unreachable(cluster: ConsulCluster, prefix: str) -> None:
    with open_store(cluster.hosts, prefix, datacenter="nowhere") as store:
        with pytest.raises(StoreUnavailableError, match="No path to datacenter"):
            store.snapshot()
        with pytest.raises(StoreUnavailableError, match="No path to datacenter"):
            store.create(KEY, VALUE, None)
    with open_store(cluster.hosts, prefix, datacenter="dc1") as store:
        assert store.write_config(CONFIG, None).key == CONFIG_KEY


def test_a_long_watch_asks_again_and_stays_silent(
    cluster: ConsulCluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_WAIT_SHORTEST", 1.0)
    monkeypatch.setattr(driver, "_WAIT_LONGEST", 1.0)
    asked: list[int | None] = []
    read_index = ConsulStore.read_index

    def counted(self: ConsulStore, consul: Any, after: int | None, wait: float = 0.0) -> int:
        asked.append(after)
        return read_index(self, consul, after, wait)

    monkeypatch.setattr(ConsulStore, "read_index", counted)
    store.create(KEY, VALUE, 60.0)
    with Follower(store, store.snapshot()) as follower:
        eventually(lambda: len(asked) > 3, "the third long query")
        assert follower.changes == []
        assert not follower.interruptions
        put(cluster, f"/v1/kv/{uuid.uuid4()}", b"elsewhere")
        store.create("10.5.1.0-24", VALUE, None)
        follower.until(lambda: len(follower.changes) == 1, "the change")
