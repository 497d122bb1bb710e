"""The Consul driver on three real servers, killed, frozen and brought back while leases are held and followed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from tests.servers.consul import MISSING, consul, put, sessions

from pyflannel.errors import ConflictError, StoreUnavailableError
from pyflannel.lab.servers.consul import ConsulCluster, ConsulServer
from pyflannel.store import Record, Store, StoreLocation
from pyflannel.testing.stores import CONFIG, KEY, OTHER, VALUE, Follower, contents, eventually
from pyflannel_stores import consul as driver
from pyflannel_stores.consul import ConsulStore

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def three() -> Iterator[ConsulCluster]:
    with consul(3) as cluster:
        yield cluster


@pytest.fixture
def cluster(three: ConsulCluster) -> Iterator[ConsulCluster]:
    """Three healthy servers, and healthy again afterwards."""
    yield three
    for server in three.servers:
        if server.running:
            server.resume()
    three.start()


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4()}/network"


def open_store(servers: list[ConsulServer], prefix: str) -> ConsulStore:
    return ConsulStore(StoreLocation.parse(f"consul://{','.join(server.host for server in servers)}/{prefix}"))


def patiently(call: Callable[[], Record]) -> Record:
    """What the core does with an outage: try again. A write that was settled late shows as a conflict."""
    found: list[Record] = []

    def done() -> bool:
        try:
            found.append(call())
        except StoreUnavailableError:
            return False
        return True

    eventually(done, "an answer")
    return found[0]


def ordered(cluster: ConsulCluster, leader_first: bool) -> list[ConsulServer]:
    """All servers, the leader first or last."""
    leader = cluster.leader()
    assert leader is not None
    return sorted(cluster.servers, key=lambda server: (server is leader) != leader_first)


def check_that_all_goes_on(store: Store, follower: Follower, held: Record) -> None:
    """The held lease can be renewed, a new one made, and a watch sees it."""
    renewed = patiently(lambda: store.renew(held, 60.0))
    assert (renewed.version, renewed.handle) == (held.version, held.handle)
    key = f"10.{uuid.uuid4().int % 65536}.0-24"

    def create() -> Record:
        try:
            return store.create(key, VALUE, 60.0)
        except ConflictError:  # an attempt that was given up came through later
            return next(record for record in store.snapshot().leases if record.key == key)

    created = patiently(create)
    follower.until(lambda: key in follower.state, "the new lease")
    patiently(lambda: store.update(created, OTHER, 60.0))
    follower.until(lambda: follower.state[key][0] == OTHER, "its change")
    assert [change for change in follower.changes if change.key == held.key] == []


@pytest.mark.parametrize("fault", [ConsulServer.kill, ConsulServer.pause], ids=["killed", "frozen"])
@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
def test_a_server_that_is_lost_is_replaced_by_another(
    cluster: ConsulCluster,
    prefix: str,
    leads: bool,
    fault: Callable[[ConsulServer], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "_WAIT_SHORTEST", 1.0)  # within this time a frozen server is noticed
    monkeypatch.setattr(driver, "_WAIT_GRACE", 1.0)
    servers = ordered(cluster, leads)
    with open_store(servers, prefix) as store:
        held = store.create(KEY, VALUE, 60.0)
        with Follower(store, store.snapshot()) as follower:
            fault(servers[0])
            check_that_all_goes_on(store, follower, held)
        cluster.wait_healthy(servers[1:])
        assert held.handle in {session["ID"] for session in servers[1].get("/v1/session/list?consistent")}


def test_without_a_majority_nothing_is_answered_and_nothing_is_lost(cluster: ConsulCluster, prefix: str) -> None:
    servers = ordered(cluster, leader_first=True)
    with open_store(servers, prefix) as store:
        config = store.write_config(CONFIG, None)
        held = store.create(KEY, VALUE, 60.0)
        with Follower(store, store.snapshot()) as follower:
            servers[0].kill()
            servers[1].kill()
            for call in (store.snapshot, store.read_config):
                with pytest.raises(StoreUnavailableError):
                    call()
            with pytest.raises(StoreUnavailableError):
                store.create("10.5.9.0-24", VALUE, 60.0)
            with pytest.raises(StoreUnavailableError):
                store.renew(held, 60.0)
            cluster.start()
            check_that_all_goes_on(store, follower, held)
        assert store.read_config() == config


def test_the_whole_cluster_goes_down_and_comes_back(cluster: ConsulCluster, prefix: str) -> None:
    servers = list(cluster.servers)
    with open_store(servers, prefix) as store:
        held = store.create(KEY, VALUE, 60.0)
        before = contents(store.snapshot())
        with Follower(store, store.snapshot()) as follower:
            for server in servers:
                server.kill()
            with pytest.raises(StoreUnavailableError):
                store.renew(held, 60.0)
            follower.until(lambda: len(follower.interruptions) > 0, "the watch's own word of it")
            cluster.start()
            assert contents(store.snapshot()) == before
            check_that_all_goes_on(store, follower, held)


def test_a_creation_that_was_given_up_leaves_nothing(cluster: ConsulCluster, prefix: str) -> None:
    """The answer is that it is unknown; before anything else is asked, what may have come of it is ended."""
    servers = ordered(cluster, leader_first=False)
    key = f"10.{uuid.uuid4().int % 65536}.0-24"
    with open_store(servers[:1], prefix) as store:
        store.snapshot()
        for server in servers[1:]:
            server.pause()
        with pytest.raises(StoreUnavailableError):
            store.create(key, VALUE, 60.0)
        for server in servers[1:]:
            server.resume()
        cluster.wait_healthy()
        created = patiently(lambda: store.create(key, VALUE, 60.0))

        def nothing_else() -> bool:
            """A server may have done it after the next call, too; then the one after that ends it."""
            assert [record.handle for record in store.snapshot().leases] == [created.handle]
            return [name for name, each in sessions(cluster).items() if f" {key} " in each["Name"]] == [created.handle]

        eventually(nothing_else, "the end of what came of it")


def test_what_a_server_does_late_of_a_creation_that_was_given_up_is_ended(
    cluster: ConsulCluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_LATE", 600.0)
    servers = ordered(cluster, leader_first=False)
    store = open_store(servers[:1], prefix)
    with store:
        for server in servers[1:]:
            server.pause()
        with pytest.raises(StoreUnavailableError):
            store.create(KEY, VALUE, 60.0)
        (name,) = store._lost
        for server in servers[1:]:
            server.resume()
        cluster.wait_healthy()
        patiently(lambda: store.create(KEY, VALUE, 60.0))
        late = put(cluster, "/v1/session/create", {"Name": name, "TTL": "600s", "Checks": []}, servers[0])["ID"]
        assert late in sessions(cluster)
        store.snapshot()
        assert late not in sessions(cluster)


def test_leases_outlive_the_server_they_were_made_through(cluster: ConsulCluster, prefix: str) -> None:
    """Even when it leaves the cluster for good, which ends the sessions that are bound to it."""
    servers = ordered(cluster, leader_first=False)
    with open_store(servers[:1], prefix) as store, open_store(servers[1:], prefix) as other:
        bound = put(cluster, "/v1/session/create", {"Checks": []}, servers[0])["ID"]
        held = store.create(KEY, VALUE, 60.0)
        with Follower(other, other.snapshot()) as follower:
            put(cluster, "/v1/agent/leave", server=servers[0])

            def alive() -> set[str]:
                return {session["ID"] for session in servers[1].get("/v1/session/list?consistent") or [{"ID": bound}]}

            eventually(lambda: bound not in alive(), "the end of the session that was bound to the server")
            assert held.handle in alive()
            assert follower.changes == []
        assert servers[0].process is not None
        servers[0].process.wait(20)
        assert patiently(lambda: other.renew(held, 60.0)).handle == held.handle


def test_two_stores_on_different_servers_never_both_win(cluster: ConsulCluster, prefix: str) -> None:
    with open_store(list(cluster.servers[:1]), prefix) as one, open_store(list(cluster.servers[1:2]), prefix) as two:
        for number in range(20):
            key = f"10.5.{number}.0-24"
            record = one.create(key, VALUE, 60.0)
            with pytest.raises(ConflictError):
                two.create(key, VALUE, 60.0)
            changed = two.update(record, OTHER, 60.0)
            with pytest.raises(ConflictError):
                one.update(record, VALUE, 60.0)
            one.delete(changed)
        assert one.snapshot().leases == two.snapshot().leases == ()
