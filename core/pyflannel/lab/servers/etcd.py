"""A real etcd of one or more members, started for a lab, a test or a benchmark.

The idea: an :class:`EtcdCluster` is a directory, some ports, and one process per member, started in a *place*. Healthy
means what etcd itself says at ``/health``, on a plain loopback port of its own, so that neither TLS nor authentication
stands in the way of asking.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyflannel.errors import ConfigError, StoreUnavailableError
from pyflannel.lab.servers.process import HERE, Cluster, Place, Server, free_ports

__all__ = ["EtcdCluster", "EtcdMember", "find_etcd"]

START_TIMEOUT: Final = 20.0
"""Seconds a cluster gets to become healthy."""

# Runs where the members run. Asks until every address in the arguments says it is healthy, or is killed.
_ASK_HEALTH: Final = """
import json, sys, time, urllib.request
waiting = sys.argv[1:]
while waiting:
    try:
        with urllib.request.urlopen(waiting[0] + "/health", timeout=1) as answer:
            healthy = json.load(answer)["health"] == "true"
    except (OSError, ValueError, KeyError):
        healthy = False
    if healthy:
        waiting.pop(0)
    else:
        time.sleep(0.02)
"""


def find_etcd() -> str | None:
    """The path of the etcd server, or ``None`` if it is not installed."""
    return shutil.which(
        "etcd", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/bin", "/usr/sbin"])
    )


class EtcdMember(Server):
    """One member: its addresses and its data."""

    def __init__(self, name: str, host: str, ports: Sequence[int], directory: Path, scheme: str) -> None:
        super().__init__(f"etcd member {name}", directory / f"{name}.log")
        bracketed = f"[{host}]" if ":" in host else host
        client, peer, metrics = ports
        self.name = name
        self.endpoint = f"{bracketed}:{client}"
        """``host:port`` for clients, as it stands in a store's URL."""
        self.client_url = f"{scheme}://{self.endpoint}"
        self.peer_url = f"http://{bracketed}:{peer}"
        self.metrics_url = f"http://{bracketed}:{metrics}"
        self.data = directory / name


class EtcdCluster(Cluster):
    """An etcd cluster of our own. A context manager; :meth:`stop` leaves no process behind.

    :param directory: for data and logs; belongs to the caller, who removes it.
    :param members: how many; one or three are usual.
    :param place: where the processes run.
    :param host: the loopback address to listen on; one of the place itself.
    :param ports: three per member (client, peer, metrics); chosen where ``None`` is given.
    :param arguments: more flags for every member, such as ``--auth-token-ttl=1``.
    :param tls: whether clients must speak TLS; ``arguments`` then name the certificates.
    :raises ConfigError: etcd is not installed.
    """

    def __init__(
        self,
        directory: Path,
        members: int = 1,
        *,
        place: Place = HERE,
        host: str = "127.0.0.1",
        ports: Sequence[int] | None = None,
        arguments: Sequence[str] = (),
        tls: bool = False,
    ) -> None:
        binary = find_etcd()
        if binary is None:
            raise ConfigError("etcd is not installed (no program etcd in PATH): apt-get install etcd-server")
        self._binary = binary
        self._place = place
        self._arguments = tuple(arguments)
        chosen = list(ports) if ports is not None else free_ports(3 * members, host)
        if len(chosen) != 3 * members:
            raise ConfigError(f"etcd: {members} members need {3 * members} ports, {len(chosen)} given")
        scheme = "https" if tls else "http"
        self.members = tuple(
            EtcdMember(f"m{number}", host, chosen[3 * number : 3 * number + 3], directory, scheme)
            for number in range(members)
        )

    @property
    def hosts(self) -> str:
        """All members as the host part of a store's URL: ``127.0.0.1:20001,127.0.0.1:20004``."""
        return ",".join(member.endpoint for member in self.members)

    def start(self) -> None:
        """Start every member that does not run, and wait until all are healthy.

        :raises StoreUnavailableError: a member ended or is not healthy in time; the message has the end of its log.
        """
        for member in self.members:
            if not member.running:
                self.launch(member)
        self.wait_healthy()

    def launch(self, member: EtcdMember) -> None:
        """Start one member, on its data if it has any, without waiting."""
        member.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        words = [
            self._binary,
            f"--name={member.name}",
            f"--data-dir={member.data}",
            f"--listen-client-urls={member.client_url}",
            f"--advertise-client-urls={member.client_url}",
            f"--listen-peer-urls={member.peer_url}",
            f"--initial-advertise-peer-urls={member.peer_url}",
            f"--listen-metrics-urls={member.metrics_url}",
            f"--initial-cluster={','.join(f'{each.name}={each.peer_url}' for each in self.members)}",
            "--initial-cluster-state=new",
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--logger=zap",
            *self._arguments,
        ]
        member.launch(self._place, words)

    def wait_healthy(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until every member that runs says it is healthy: there is a leader, and no alarm.

        :raises StoreUnavailableError: one ended or is not healthy in time.
        """
        running = [member for member in self.members if member.running]
        words = [sys.executable, "-I", "-S", "-c", _ASK_HEALTH, *(member.metrics_url for member in running)]
        asking = self._place.start(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + timeout
            while asking.running and time.monotonic() < deadline:
                if ended := next((member for member in running if not member.running), None):
                    raise StoreUnavailableError(f"etcd member {ended.name} ended: {ended.last_words()}")
                time.sleep(0.02)
            if asking.running:
                raise StoreUnavailableError(
                    f"etcd at {self.hosts} is not healthy after {timeout:g} s: {running[0].last_words()}"
                )
        finally:
            asking.kill()

    def stop(self) -> None:
        """End all members. Idempotent."""
        for member in self.members:
            if member.running:
                member.kill()
