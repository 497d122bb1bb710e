"""pyflannel's own kit for stores, on a real PostgreSQL."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from pyflannel_postgresql import PostgresqlStore
from pyflannel_postgresql.lab import Postgresql, find_postgresql

from pyflannel.errors import ConfigError, StoreAbsentError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import Record, Store, StoreLocation
from pyflannel.testing.stores import StoreConformance

KEY = "10.5.34.0-24"
VALUE = '{"PublicIP": "192.0.2.1"}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgresql]:
    if find_postgresql() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with Postgresql(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


def place(server: Postgresql, network: str | None = None) -> StoreLocation:
    return StoreLocation.parse(server.url.replace("?", f"/{network or uuid.uuid4().hex}?"))


class TestPostgresql(StoreConformance):
    """The whole contract."""

    store_class = PostgresqlStore
    keeps_history = True
    minimum_ttl = 1.0
    expiry_slack = 1.0
    server: Postgresql

    @pytest.fixture
    def location(self, server: Postgresql) -> StoreLocation:
        self.server = server
        return place(server)

    def stop_server(self) -> None:
        self.server.stop()

    def start_server(self) -> None:
        self.server.start()

    def lose_history(self, store: Store, revision: str) -> str:
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            connection.execute("DELETE FROM pyflannel.changes")
            connection.execute("UPDATE pyflannel.networks SET forgotten = revision")
        return revision


def test_networks_share_a_database_and_nothing_else(server: Postgresql) -> None:
    with PostgresqlStore(place(server)) as one, PostgresqlStore(place(server)) as other:
        one.create(KEY, VALUE, 3600.0)
        assert other.snapshot().leases == ()
        other.create(KEY, VALUE, None)
        assert len(one.snapshot().leases) == 1


@pytest.fixture
def database(server: Postgresql) -> str:
    """The location of a database in which pyflannel has never been, without a network's name."""
    name = f"d{uuid.uuid4().hex}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url.replace("/pyflannel?", f"/{name}/NETWORK?")


def tables(database: str) -> list[tuple[object, ...]]:
    """All rows of ours, and those of the catalogue that tell of tables."""
    with psycopg.connect(database.replace("/NETWORK", "")) as connection:
        there = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'pyflannel' ORDER BY 1"
        ).fetchall()
        rows = [connection.execute(f"SELECT * FROM pyflannel.{name} ORDER BY 1, 2").fetchall() for (name,) in there]
    return [*there, *(row for found in rows for row in found)]


def looking(database: str, network: str) -> PostgresqlStore:
    store = PostgresqlStore(StoreLocation.parse(database.replace("NETWORK", network)))
    store.expect_existing()
    return store


LOOKS: dict[str, Callable[[Store], object]] = {
    "read_config": lambda store: store.read_config(),
    "snapshot": lambda store: store.snapshot(),
    "time_to_live": lambda store: store.time_to_live(()),
    "clock": lambda store: store.clock(),
    "delete": lambda store: store.delete(Record(KEY, VALUE, "1", False, 60.0)),
    "watch": lambda store: next(store.watch("1.1")),
}


@pytest.mark.parametrize("name", LOOKS)
def test_who_only_looks_at_a_database_without_a_store_makes_none(database: str, name: str) -> None:
    with looking(database, "a") as store:
        for _ in range(2):
            with pytest.raises(StoreAbsentError, match="config set"):
                LOOKS[name](store)
    assert tables(database) == []


@pytest.mark.parametrize("name", LOOKS.keys() - {"clock"})
def test_who_only_looks_at_a_network_that_is_not_there_makes_none(database: str, name: str) -> None:
    with PostgresqlStore(StoreLocation.parse(database.replace("NETWORK", "a"))) as store:
        store.create(KEY, VALUE, None)
    before = tables(database)
    with looking(database, "b") as store, pytest.raises(StoreAbsentError, match="no network 'b'"):
        LOOKS[name](store)
    assert tables(database) == before


def test_who_only_looks_sees_what_is_there_and_leaves_no_trace(database: str) -> None:
    """Not even of what has expired."""
    with PostgresqlStore(StoreLocation.parse(database.replace("NETWORK", "a"))) as store:
        store.write_config("{}", None)
        store.create(KEY, VALUE, None)
        store.create(KEY.replace("-", "0-"), VALUE, 0.001)
    before = tables(database)
    with looking(database, "a") as store:
        assert [record.key for record in store.snapshot().leases] == [KEY]
        assert store.read_config() is not None
        assert tables(database) == before
        store.create("10.9.9.0-24", VALUE, None)  # and may write, if it wants to
        assert len(store.snapshot().leases) == 2


def test_who_only_looks_needs_no_right_to_write(database: str) -> None:
    with PostgresqlStore(StoreLocation.parse(database.replace("NETWORK", "a"))) as store:
        store.create(KEY, VALUE, None)
    with psycopg.connect(database.replace("/NETWORK", ""), autocommit=True) as connection:
        role = f"r{uuid.uuid4().hex}"
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"GRANT USAGE ON SCHEMA pyflannel TO {role}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA pyflannel TO {role}")
    with looking(database.replace("user=postgres", f"user={role}"), "a") as store:
        assert len(store.snapshot().leases) == 1


def test_a_store_that_comes_later_is_seen(database: str) -> None:
    with looking(database, "a") as store:
        with pytest.raises(StoreAbsentError):
            store.snapshot()
        with PostgresqlStore(StoreLocation.parse(database.replace("NETWORK", "a"))) as maker:
            maker.create(KEY, VALUE, None)
        assert len(store.snapshot().leases) == 1


def test_a_frozen_server_is_unavailable_in_time(server: Postgresql) -> None:
    """Connections stay open, and nothing is answered."""
    with PostgresqlStore(place(server)) as store:
        store.snapshot()
        (backend,) = _backends(server)
        try:
            _signal(backend, "STOP")
            with pytest.raises(StoreUnavailableError):
                store.snapshot()
        finally:
            _signal(backend, "CONT")
        assert store.snapshot().leases == ()


def _backends(server: Postgresql) -> list[int]:
    with psycopg.connect(server.url) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'pyflannel' AND state = 'idle'"
        ).fetchall()
    return [pid for (pid,) in found]


def _signal(pid: int, name: str) -> None:
    os.kill(pid, getattr(signal, f"SIG{name}"))


def test_a_database_that_is_not_there_is_refused(server: Postgresql) -> None:
    location = StoreLocation.parse(server.url.replace("/pyflannel?", "/no-such?"))
    with PostgresqlStore(location) as store, pytest.raises(StoreDeniedError, match="no-such"):
        store.snapshot()


@pytest.mark.parametrize("url", ["postgresql:///db", "postgresql://h:1/", "postgresql://h:1/a/b/c"])
def test_a_location_that_can_not_be_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="postgresql"):
        PostgresqlStore(StoreLocation.parse(url))
