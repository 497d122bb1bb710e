"""The tables, and every statement on them. Each runs in a transaction that holds the lock on the network's row."""

from __future__ import annotations

import uuid
from typing import Any, Final

import psycopg

from pyflannel.errors import HistoryGoneError
from pyflannel.store import Record

__all__ = ["HISTORY", "SCHEMA", "SCHEMA_LOCK", "Statements"]

Cursor = psycopg.Cursor[tuple[Any, ...]]

SCHEMA_LOCK: Final = 0x70796666
"""Who makes the tables holds this advisory lock."""

HISTORY: Final = 10_000
"""Changes of a network that are remembered. A watch that is further behind takes a new snapshot."""

SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS pyflannel;
CREATE TABLE IF NOT EXISTS pyflannel.networks (
    network text PRIMARY KEY, id text NOT NULL, revision bigint NOT NULL, forgotten bigint NOT NULL);
CREATE TABLE IF NOT EXISTS pyflannel.records (
    network text NOT NULL, key text NOT NULL, value text NOT NULL, version bigint NOT NULL, expires timestamptz,
    PRIMARY KEY (network, key));
CREATE INDEX IF NOT EXISTS records_expires ON pyflannel.records (network, expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS pyflannel.changes (
    network text NOT NULL, revision bigint NOT NULL, key text NOT NULL, value text, permanent boolean NOT NULL,
    PRIMARY KEY (network, revision));
"""

_COLUMNS: Final = "key, value, version, extract(epoch FROM expires - clock_timestamp())::float8"
_THERE: Final = "(expires IS NULL OR expires > clock_timestamp())"


class Statements:
    """What is done to one network's rows."""

    def __init__(self, network: str) -> None:
        self.network = network

    def lock(self, cursor: Cursor) -> bool:
        """Wait for our turn; whether there is such a network."""
        lock = "SELECT 1 FROM pyflannel.networks WHERE network = %s FOR UPDATE"
        return cursor.execute(lock, [self.network]).fetchone() is not None

    def exists(self, cursor: Cursor) -> bool:
        """Whether there is such a network, without waiting for anybody."""
        query = "SELECT 1 FROM pyflannel.networks WHERE network = %s"
        return cursor.execute(query, [self.network]).fetchone() is not None

    def found(self, cursor: Cursor) -> None:
        """Make the network, if nobody else has meanwhile, and wait for our turn."""
        cursor.execute(
            "INSERT INTO pyflannel.networks VALUES (%s, %s, 0, 0) ON CONFLICT DO NOTHING",
            [self.network, uuid.uuid4().hex],
        )
        self.lock(cursor)

    def expire(self, cursor: Cursor) -> None:
        """Remove what has expired by the server's clock."""
        expired = cursor.execute(
            "SELECT key FROM pyflannel.records WHERE network = %s AND expires <= clock_timestamp() ORDER BY expires",
            [self.network],
        ).fetchall()
        for (key,) in expired:
            self.remove(cursor, key)

    def read(self, cursor: Cursor, key: str) -> Record | None:
        """One record."""
        row = cursor.execute(
            f"SELECT {_COLUMNS} FROM pyflannel.records WHERE network = %s AND key = %s AND {_THERE}",  # noqa: S608 - ours
            [self.network, key],
        ).fetchone()
        return None if row is None else _record(*row)

    def read_all(self, cursor: Cursor) -> list[Record]:
        """All records."""
        rows = cursor.execute(
            f"SELECT {_COLUMNS} FROM pyflannel.records WHERE network = %s AND {_THERE} ORDER BY key",  # noqa: S608 - ours
            [self.network],
        )
        return [_record(*row) for row in rows]

    def revision(self, cursor: Cursor) -> str:
        """Where the network stands: its id and number of changes."""
        row = cursor.execute(
            "SELECT id, revision FROM pyflannel.networks WHERE network = %s", [self.network]
        ).fetchone()
        assert row is not None
        return f"{row[0]}.{row[1]}"

    def write(self, cursor: Cursor, key: str, value: str, ttl: float | None) -> Record:
        """Put a record in the place of any that is there."""
        version = self._log(cursor, key, value, ttl is None)
        cursor.execute(
            "INSERT INTO pyflannel.records VALUES (%s, %s, %s, %s, clock_timestamp() + make_interval(secs => %s)) "
            "ON CONFLICT (network, key) DO UPDATE "
            "SET value = excluded.value, version = excluded.version, expires = excluded.expires",
            [self.network, key, value, version, ttl],
        )
        return Record(key, value, str(version), ttl is None, ttl)

    def put_off(self, cursor: Cursor, key: str, ttl: float) -> None:
        """Another expiry, and nothing else."""
        cursor.execute(
            "UPDATE pyflannel.records SET expires = clock_timestamp() + make_interval(secs => %s) "
            "WHERE network = %s AND key = %s",
            [ttl, self.network, key],
        )

    def remove(self, cursor: Cursor, key: str) -> None:
        """Delete a record."""
        self._log(cursor, key, None, permanent=False)
        cursor.execute("DELETE FROM pyflannel.records WHERE network = %s AND key = %s", [self.network, key])

    def changes(self, cursor: Cursor, revision: str) -> list[tuple[int, str, str | None, bool]]:
        """Revision, key, value and permanence of each change after ``revision``.

        :raises HistoryGoneError: they are not all remembered, or it is none of this network's.
        """
        row = cursor.execute(
            "SELECT id, revision, forgotten FROM pyflannel.networks WHERE network = %s", [self.network]
        ).fetchone()
        assert row is not None
        network, _, number = revision.rpartition(".")
        if network != row[0] or not number.isdigit() or not row[2] <= int(number) <= row[1]:
            raise HistoryGoneError(f"revision {revision} is none that network {self.network} remembers")
        found: list[Any] = cursor.execute(
            "SELECT revision, key, value, permanent FROM pyflannel.changes "
            "WHERE network = %s AND revision > %s ORDER BY revision",
            [self.network, int(number)],
        ).fetchall()
        return found

    def next_expiry(self, cursor: Cursor) -> float:
        """Seconds until the next record is due to expire; infinite if none is."""
        row = cursor.execute(
            "SELECT extract(epoch FROM min(expires) - clock_timestamp())::float8 FROM pyflannel.records "
            "WHERE network = %s AND expires IS NOT NULL",
            [self.network],
        ).fetchone()
        return float("inf") if row is None or row[0] is None else max(0.0, row[0])

    def _log(self, cursor: Cursor, key: str, value: str | None, permanent: bool) -> int:
        """Append a change, which is told when the transaction is through; returns its revision."""
        row = cursor.execute(
            "UPDATE pyflannel.networks SET revision = revision + 1 WHERE network = %s RETURNING revision, forgotten",
            [self.network],
        ).fetchone()
        assert row is not None
        revision, forgotten = row
        cursor.execute(
            "INSERT INTO pyflannel.changes VALUES (%s, %s, %s, %s, %s)",
            [self.network, revision, key, value, permanent],
        )
        if revision - forgotten > 2 * HISTORY:
            self.forget(cursor, revision - HISTORY)
        cursor.execute("NOTIFY pyflannel")
        return int(revision)

    def forget(self, cursor: Cursor, revision: int) -> None:
        """Remove the history up to ``revision``."""
        cursor.execute("DELETE FROM pyflannel.changes WHERE network = %s AND revision <= %s", [self.network, revision])
        cursor.execute("UPDATE pyflannel.networks SET forgotten = %s WHERE network = %s", [revision, self.network])


def _record(key: str, value: str, version: int, left: float | None) -> Record:
    return Record(key, value, str(version), left is None, None if left is None else max(0.001, left))
