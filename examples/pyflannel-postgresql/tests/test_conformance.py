"""pyflannel's own kit for stores, on a real PostgreSQL."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from pyflannel_postgresql import PostgresqlStore
from pyflannel_postgresql.lab import Postgresql, find_postgresql

from pyflannel.errors import ConfigError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import Store, StoreLocation
from pyflannel.testing.stores import KEY, VALUE, StoreConformance


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
