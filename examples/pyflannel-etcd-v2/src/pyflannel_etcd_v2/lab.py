"""A real etcd for ``pyflannel lab --store etcd-v2``, ``pyflannel plugin-test etcd-v2``, and the tests."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pyflannel.errors import ConfigError, StoreUnavailableError
from pyflannel.lab.servers import HERE, Cluster, Server, free_ports

__all__ = ["Etcd", "find_etcd", "serve"]

START_TIMEOUT: Final = 30.0


def find_etcd() -> str | None:
    """The path of etcd, ``None`` if it is not installed."""
    return shutil.which("etcd")


class _Member(Server):
    """One member: its addresses and its data."""

    def __init__(self, name: str, host: str, directory: Path) -> None:
        super().__init__(f"etcd member {name}", directory / f"{name}.log")
        client, peer = free_ports(2, host)
        self.name = name
        self.data = directory / name
        self.endpoint = f"{host}:{client}"
        self.client_url, self.peer_url = f"http://{self.endpoint}", f"http://{host}:{peer}"

    @property
    def healthy(self) -> bool:
        """Whether it says that there is a leader."""
        try:
            with urllib.request.urlopen(f"{self.client_url}/health", timeout=2) as answer:  # noqa: S310 - our own
                return str(json.load(answer)["health"]) == "true"
        except (OSError, ValueError, KeyError):
            return False


class Etcd(Cluster):
    """Members with the v2 API switched on, one for each of ``hosts``, which are IPv4 addresses.

    :param directory: for data and logs; belongs to the caller, who removes it.
    :raises ConfigError: etcd is not installed.
    """

    def __init__(self, directory: Path, hosts: Sequence[str] = ("127.0.0.1",)) -> None:
        binary = find_etcd()
        if binary is None:
            raise ConfigError("etcd is not installed: apt-get install etcd-server")
        self._binary = binary
        self.members = tuple(_Member(f"m{number}", host, directory) for number, host in enumerate(hosts))

    @property
    def hosts(self) -> str:
        """All members, as they stand in the store's URL."""
        return ",".join(member.endpoint for member in self.members)

    def start(self) -> None:
        """Start every member that does not run, on its data if there are any, and wait until all are healthy."""
        for member in self.members:
            if not member.running:
                member.launch(HERE, self._words(member))
        deadline = time.monotonic() + START_TIMEOUT
        for member in self.members:
            while not member.healthy:
                if not member.running or time.monotonic() > deadline:
                    raise StoreUnavailableError(f"{member.title} does not come up: {member.last_words()}")
                time.sleep(0.05)

    def _words(self, member: _Member) -> list[str]:
        everybody = ",".join(f"{each.name}={each.peer_url}" for each in self.members)
        return [
            self._binary,
            "--enable-v2",
            f"--name={member.name}",
            f"--data-dir={member.data}",
            f"--listen-client-urls={member.client_url}",
            f"--advertise-client-urls={member.client_url}",
            f"--listen-peer-urls={member.peer_url}",
            f"--initial-advertise-peer-urls={member.peer_url}",
            f"--initial-cluster={everybody}",
            "--heartbeat-interval=50",
            "--election-timeout=500",
        ]

    def stop(self) -> None:
        """End all at once."""
        for member in self.members:
            member.stop()


@contextmanager
def serve(directory: Path, addresses: Sequence[str]) -> Iterator[str]:
    """A member at each address, as long as the context lasts; what a lab asks for."""
    with Etcd(directory, addresses) as etcd:
        yield etcd.hosts
