"""A real PostgreSQL for ``pyflannel lab --store postgresql``, ``pyflannel plugin-test postgresql``, and the tests.

PostgreSQL refuses to run as root, and a lab's user is root, if only in a user namespace. So it runs in one more: to
itself, and to the kernel's eyes inside, it is user 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from pyflannel.errors import ConfigError, StoreUnavailableError
from pyflannel.lab.servers import HERE, Cluster, Place, Server, free_ports

__all__ = ["Postgresql", "find_postgresql", "serve"]

START_TIMEOUT: Final = 60.0

_SETTINGS: Final = {
    "fsync": "off",  # what is in a lab may be lost with the machine
    "unix_socket_directories": "",
    "max_connections": "300",
}


def find_postgresql() -> Path | None:
    """The directory of the newest server's programs, ``None`` if there is none."""
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).parent
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "postgres").exists()]
    return max(versions, key=lambda path: float(path.parent.name), default=None)


class Postgresql(Cluster):
    """One server with a database ``pyflannel``, to which everybody who reaches it is welcome.

    :param directory: for data and log; belongs to the caller, who removes it.
    :raises ConfigError: PostgreSQL is not installed.
    """

    def __init__(self, directory: Path, host: str = "127.0.0.1", place: Place = HERE) -> None:
        programs = find_postgresql()
        if programs is None:
            raise ConfigError("PostgreSQL is not installed: apt-get install postgresql")
        self._programs, self._place, self._host = programs, place, host
        self.data = directory / "data"
        (self._port,) = free_ports(1, host)
        self.server = Server("PostgreSQL", directory / "postgresql.log")

    @property
    def url(self) -> str:
        """The store's URL, without the name of a network."""
        return f"postgresql://{self._host}:{self._port}/pyflannel?user=postgres"

    def start(self) -> None:
        """Start it, on its data if there are any, and wait until it answers."""
        if not (self.data / "PG_VERSION").exists():
            self._make()
        words = [*_unprivileged(), str(self._programs / "postgres"), "-D", str(self.data)]
        words += [f"--listen_addresses={self._host}", f"--port={self._port}"]
        self.server.launch(self._place, [*words, *(f"--{name}={value}" for name, value in _SETTINGS.items())])
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if not self.server.running or time.monotonic() > deadline:
                raise StoreUnavailableError(f"PostgreSQL does not come up: {self.server.last_words()}")
            time.sleep(0.05)

    def _make(self) -> None:
        words = [*_unprivileged(), str(self._programs / "initdb"), "-D", str(self.data), "-U", "postgres"]
        words += ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StoreUnavailableError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")
        with (self.data / "pg_hba.conf").open("a", encoding="utf-8") as rules:
            rules.write("host all all all trust\n")

    def _answers(self) -> bool:
        try:
            with psycopg.connect(
                host=self._host, port=self._port, user="postgres", dbname="postgres", connect_timeout=2, autocommit=True
            ) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'pyflannel'").fetchone()
                if found is None:
                    connection.execute("CREATE DATABASE pyflannel")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End it at once; its children see it and go, too."""
        if self.server.running:
            self.server.resume()
            self.server.kill()


def _unprivileged() -> list[str]:
    return ["unshare", "--user", "--map-user=1", "--map-group=1"] if os.geteuid() == 0 else []


@contextmanager
def serve(directory: Path, addresses: Sequence[str]) -> Iterator[str]:
    """One server, at the first address; what a lab asks for."""
    if len(addresses) > 1:
        raise ConfigError("PostgreSQL has one server here: --store-members 1")
    with Postgresql(directory, addresses[0]) as server:
        yield server.url
