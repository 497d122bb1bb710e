"""Leases in a PostgreSQL database: ``postgresql://db.example:5432/DATABASE/NETWORK``.

The idea: every change is one transaction, and every transaction of a network first locks the network's one row. So
there is an order of all changes, the row counts them (the *revision*), and whoever looks sees whole changes only. The
same transaction removes what has expired by the server's own clock, writes what it changed into ``changes`` for those
who watch, and notifies them. A watch that hears nothing looks when the next record is due to expire.

A network's id is made with it: after a restore from a backup or a new database, a revision from before is refused.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final

import psycopg

from pyflannel.errors import ConfigError, ConflictError, StoreAbsentError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import CONFIG_KEY, Batch, Change, Record, Snapshot, Store, StoreLocation, StoreTime, Watch
from pyflannel_postgresql.sql import SCHEMA, SCHEMA_LOCK, Statements

__all__ = ["PostgresqlStore"]

DEADLINE: Final = 4.0
"""Seconds for a transaction, or to connect; less than a call may take."""

LOOK: Final = 30.0
"""Seconds after which a watch looks though it heard nothing: a notification may be lost with a failed-over server."""

Cursor = psycopg.Cursor[tuple[Any, ...]]
Connection = psycopg.Connection[tuple[Any, ...]]

_LIBPQ: Final = ("user", "password", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey")


class PostgresqlStore(Store):
    """A store in one database, which any number of networks may share."""

    api_version = 1
    scheme = "postgresql"
    options: ClassVar[Mapping[str, str]] = {
        "user": "the database's role (default: as libpq finds it, PGUSER or the system's user)",
        "password": "its password; in the config file or as PGPASSWORD, or better in a passfile",
        "passfile": "a file of passwords (default: ~/.pgpass)",
        "socket": "the directory of the server's Unix socket, in place of hosts",
        "sslmode": "disable, prefer, require, verify-ca or verify-full (default: libpq's prefer)",
        "sslrootcert": "the authorities that may have signed the server's certificate",
        "sslcert": "a certificate of ours",
        "sslkey": "its key",
    }
    secret_options = frozenset({"password"})

    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location)
        database, _, network = location.path.strip("/").partition("/")
        if not database or "/" in network:
            raise ConfigError(f"store {location}: expected postgresql://host:port/DATABASE/NETWORK")
        socket_directory = location.options.get("socket")
        if bool(location.hosts) == bool(socket_directory):
            raise ConfigError(f"store {location}: needs hosts, or the option socket")
        self._parameters = _parameters(location, database, socket_directory)
        self._link = _Link(self._parameters, str(location))
        self._sql = Statements(network or "default")
        self._watches: set[_Watch] = set()
        self._existing = False

    def expect_existing(self) -> None:
        """Make neither tables nor the network's row, and read in transactions that can't write."""
        self._existing = True
        self._link.expect_existing()

    def read_config(self) -> Record | None:
        """The row of the network document."""
        with self._link.reading(self._sql) as cursor:
            return self._sql.read(cursor, CONFIG_KEY)

    def write_config(self, value: str, expected: Record | None) -> Record:
        """Insert it or replace it."""
        if expected is None:
            return self.create(CONFIG_KEY, value, None)
        return self.update(expected, value, None)

    def snapshot(self) -> Snapshot:
        """All rows and the revision, in one transaction."""
        with self._link.reading(self._sql) as cursor:
            records = self._sql.read_all(cursor)
            revision = self._sql.revision(cursor)
        config = next((record for record in records if record.key == CONFIG_KEY), None)
        return Snapshot(revision, config, tuple(record for record in records if record.key != CONFIG_KEY))

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        """Insert a row if there is none."""
        try:
            with self._link.transaction(self._sql) as cursor:
                if self._sql.read(cursor, key) is not None:
                    raise ConflictError(f"{self.location}: {key} exists already")
                return self._sql.write(cursor, key, value, ttl)
        except _AnswerLostError:
            with self._link.transaction(self._sql) as cursor:
                found = self._sql.read(cursor, key)
            if found is None or found.value != value:
                raise
            return found

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        """Replace a row if it has the record's version."""
        with self._link.transaction(self._sql) as cursor:
            self._check(cursor, record)
            return self._sql.write(cursor, record.key, value, None if record.permanent else ttl)

    def renew(self, record: Record, ttl: float) -> Record:
        """Extend a row's expiry; watches report no change."""
        with self._link.transaction(self._sql) as cursor:
            self._check(cursor, record)
            if not record.permanent:
                self._sql.put_off(cursor, record.key, ttl)
            return record

    def delete(self, record: Record) -> None:
        """Delete a row if it has the record's version."""
        with self._link.transaction(self._sql) as cursor:
            if self._sql.read(cursor, record.key) is not None:
                self._check(cursor, record)
                self._sql.remove(cursor, record.key)

    def _check(self, cursor: Cursor, record: Record) -> None:
        found = self._sql.read(cursor, record.key)
        if found is None or found.version != record.version:
            raise ConflictError(f"{self.location}: {record.key} was changed, deleted, or has expired")

    def watch(self, revision: str) -> Watch:
        """The changes after ``revision``, on a connection of its own."""
        link = _Link(self._parameters, str(self.location))
        if self._existing:
            link.expect_existing()
        watch = _Watch(link, self._sql, revision, self._watches.discard)
        self._watches.add(watch)
        return watch

    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        """As the server's clock has it, in one question for all."""
        with self._link.reading(self._sql) as cursor:
            left = {record.key: record.ttl for record in self._sql.read_all(cursor)}
        return {record.key: left.get(record.key) for record in records}

    def clock(self) -> StoreTime | None:
        """The server's, by which records expire; it lay somewhere in the time that the question took."""
        with self._link.connected() as connection:
            began = time.monotonic()
            row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
            assert row is not None
        return StoreTime(row[0] - (time.monotonic() - began), row[0], f"PostgreSQL at {self.location}")

    def close(self) -> None:
        """End all watches and the connection."""
        for watch in list(self._watches):
            watch.close()
        self._link.close()


def _parameters(location: StoreLocation, database: str, socket_directory: str | None) -> dict[str, Any]:
    """What libpq wants to know."""
    hosts, ports = [], []
    for host in location.hosts:
        name, colon, port = host.rpartition(":")
        if host.endswith("]") or not colon:
            name, port = host, "5432"
        hosts.append(name.strip("[]"))
        ports.append(port)
    given = {name: location.options[name] for name in _LIBPQ if name in location.options}
    return given | {
        "dbname": database,
        "host": ",".join(hosts) or str(socket_directory),
        **({"port": ",".join(ports)} if ports else {}),
        "target_session_attrs": "read-write",
        "connect_timeout": str(int(DEADLINE)),
        "application_name": "pyflannel",
    }


class _AnswerLostError(StoreUnavailableError):
    """The connection broke after something was asked: it may have been done."""


class _Link:
    """A connection that is made when it is needed, and made anew when it broke. One transaction at a time."""

    def __init__(self, parameters: Mapping[str, Any], name: str) -> None:
        self._parameters, self._name = dict(parameters), name
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._existing = False

    def expect_existing(self) -> None:
        """See :meth:`PostgresqlStore.expect_existing`."""
        self._existing = True

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """The connection, which is broken off if this takes longer than :data:`DEADLINE`.

        :raises StoreUnavailableError: there is none, or it broke.
        :raises StoreAbsentError: the database has no tables of ours, and none are to be made.
        :raises StoreDeniedError: the server refused.
        """
        with self._lock:
            asked = False
            try:
                connection = self._open()
                asked = True
                with _deadline(connection):
                    yield connection
            except psycopg.OperationalError as error:
                self._drop()
                raise self._failure(error, asked) from error
            except StoreAbsentError:
                self._drop()  # the next call looks for the tables again
                raise
            except psycopg.Error as error:
                self._drop()
                raise StoreDeniedError(f"{self._name}: {error}") from error

    @contextmanager
    def transaction(self, sql: Statements) -> Iterator[Cursor]:
        """A transaction that no other one of the network overlaps; what has expired is gone in it."""
        with self.connected() as connection, connection.transaction(), connection.cursor() as cursor:
            if not sql.lock(cursor):
                if self._existing:
                    raise self._absent(f"no network {sql.network!r}")
                sql.found(cursor)
            sql.expire(cursor)
            yield cursor

    @contextmanager
    def reading(self, sql: Statements) -> Iterator[Cursor]:
        """A transaction that sees what is there. Of one who expects a store it writes nothing, and needs no right to:
        there it sees one moment, without waiting for others, and leaves out what has expired.
        """
        if not self._existing:
            with self.transaction(sql) as cursor:
                yield cursor
            return
        with self.connected() as connection, connection.transaction(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            if not sql.exists(cursor):
                raise self._absent(f"no network {sql.network!r}")
            yield cursor

    def _absent(self, what: str) -> StoreAbsentError:
        return StoreAbsentError(
            f"{self._name}: the database holds {what}; correct --store, or let 'pyflannel config set' or a first "
            "daemon make one there"
        )

    def _failure(self, error: psycopg.OperationalError, asked: bool) -> StoreUnavailableError | StoreDeniedError:
        text = str(error).strip().replace("\n", "; ")
        if error.sqlstate is not None and error.sqlstate[:2] in ("28", "3D", "42"):
            return StoreDeniedError(f"{self._name}: {text}")
        if not asked and any(word in text for word in ("password", "pg_hba.conf", "does not exist", "certificate")):
            return StoreDeniedError(f"{self._name}: {text}")
        return (_AnswerLostError if asked else StoreUnavailableError)(f"{self._name}: {text}")

    def _open(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self._connection = connection = psycopg.connect(**self._parameters, autocommit=True)
        with _deadline(connection), connection.transaction():
            if self._existing:
                row = connection.execute("SELECT to_regclass('pyflannel.networks')").fetchone()
                if row == (None,):
                    raise self._absent("nothing of pyflannel's")
            else:
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
                connection.execute(SCHEMA)
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Let go of the connection, also while it is in use. Idempotent."""
        connection = self._connection
        if connection is not None and not self._lock.acquire(timeout=0):
            _break_off(connection)
            self._lock.acquire()
        elif connection is None:
            return
        try:
            self._drop()
        finally:
            self._lock.release()


def _break_off(connection: Connection) -> None:
    """End a connection's stream under whoever waits for an answer; closing it is theirs."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=socket.dup(connection.fileno())) as stream:
        stream.shutdown(socket.SHUT_RDWR)


@contextmanager
def _deadline(connection: Connection) -> Iterator[None]:
    """libpq waits for an answer for ever."""
    timer = threading.Timer(DEADLINE, _break_off, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Watch(Watch):
    """Reads ``changes`` after its revision, and waits for a notification, an expiry or its end."""

    def __init__(self, link: _Link, sql: Statements, revision: str, forget: Callable[[_Watch], None]) -> None:
        self._link, self._sql, self._forget = link, sql, forget
        self._revision = revision
        self._closed = threading.Event()
        self._waker, self._wakened = socket.socketpair()
        self._waiting = threading.Lock()
        self._listening: Connection | None = None
        self._heard = False

    def __next__(self) -> Batch:
        while not self._closed.is_set():
            try:
                batch, pause = self._look()
                if batch is not None:
                    self._revision = batch.revision
                    return batch
                self._wait(pause)
            except StoreUnavailableError:
                if not self._closed.is_set():
                    raise
        self._link.close()
        raise StopIteration

    def _look(self) -> tuple[Batch | None, float]:
        """What is new, and else how long to wait for it."""
        with self._link.connected() as connection:
            if connection is not self._listening:
                connection.add_notify_handler(self._hear)  # what comes along with other answers
                connection.execute("LISTEN pyflannel")
                self._listening = connection
        self._heard = False
        with self._link.transaction(self._sql) as cursor:
            rows = self._sql.changes(cursor, self._revision)
            revision = self._sql.revision(cursor)
            pause = min(LOOK, self._sql.next_expiry(cursor))
        if not rows:
            return None, pause
        changes = (
            Change(key, None if value is None else Record(key, value, str(version), permanent))
            for version, key, value, permanent in rows
        )
        return Batch(revision, tuple(changes)), 0.0

    def _wait(self, pause: float) -> None:
        connection = self._listening
        if self._heard or connection is None or connection.closed:
            return
        try:
            with self._waiting:
                if self._closed.is_set():
                    return
                select.select([connection.fileno(), self._wakened.fileno()], [], [], pause)
            connection.pgconn.consume_input()
            while connection.pgconn.notifies() is not None:
                pass  # whatever it was, the next look sees it
        except (psycopg.Error, OSError, ValueError) as error:
            raise StoreUnavailableError(f"the watch's connection broke: {error}") from error

    def _hear(self, _: psycopg.Notify) -> None:
        self._heard = True

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._waker.send(b"x")
        with self._waiting:  # nobody waits any more
            self._waker.close()
            self._wakened.close()
        self._forget(self)
        self._link.close()
