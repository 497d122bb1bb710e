"""A node's daemon: a real pyflannel process in the node's namespace, its files and its log inside the lab."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Final, Protocol

from pyflannel.errors import DaemonError
from pyflannel.lab.topology import UPLINK, ContainerNetwork
from pyflannel.network.lease import JSON
from pyflannel.show.status import query
from pyflannel.small.interpreter import module_command
from pyflannel.small.text import counted

if TYPE_CHECKING:
    from pyflannel.lab.sandbox import Process, Sandbox

__all__ = ["Daemon", "DaemonOptions", "peers_in", "pyflannel_command", "read_container_network"]

_POLL: Final = 0.02
_TAIL: Final = 20


def pyflannel_command(*words: str) -> list[str]:
    """The command line that runs this very pyflannel with the same interpreter."""
    return module_command("pyflannel", *words)


def read_container_network(text: str) -> ContainerNetwork:
    """What a subnet.env gives to containers.

    :raises DaemonError: the text lacks the MTU or names no subnet.
    """
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    ipv4, ipv6, mtu = (values.get(f"FLANNEL_{key}") for key in ("SUBNET", "IPV6_SUBNET", "MTU"))
    if mtu is None or (ipv4 is None and ipv6 is None):
        raise DaemonError(f"subnet.env lacks FLANNEL_MTU or a subnet: {text!r}")
    return ContainerNetwork(
        int(mtu), IPv4Interface(ipv4) if ipv4 is not None else None, IPv6Interface(ipv6) if ipv6 is not None else None
    )


def peers_in(status: Mapping[str, JSON], *states: str) -> list[Mapping[str, JSON]]:
    """The peers of a status document that are in one of ``states`` (see :class:`pyflannel.show.status.PeerState`)."""
    return [peer for peer in status.get("peers", ()) if peer["state"] in states]


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How a daemon is started; ``node_id`` is the node's name if empty, and not given at all if ``None``.

    ``interface`` is not given if ``None``. ``wrapper`` are words before its command line: of a program that starts it.
    """

    store: str
    backend: str | None
    network: str | None = None
    arguments: tuple[str, ...] = ()
    node_id: str | None = ""
    interface: str | None = UPLINK
    wrapper: tuple[str, ...] = ()


class Home(Protocol):
    """Where a daemon runs: a :class:`~pyflannel.lab.lab.Node`."""

    @property
    def name(self) -> str:
        """The node's."""

    @property
    def sandbox(self) -> Sandbox:
        """The lab's."""

    @property
    def directory(self) -> PurePosixPath:
        """For its files."""

    @property
    def subnet_file(self) -> PurePosixPath:
        """What it writes for container runtimes."""

    def start(self, words: Sequence[str], *, stdout: IO[str], stderr: int) -> Process:
        """Start a command there."""


class Daemon:
    """One node's daemon over several lives: started, killed, started again with the same files."""

    def __init__(self, node: Home, options: DaemonOptions) -> None:
        self.node = node
        self.options = options
        self.log_file = node.directory / "daemon.log"
        self._process: Process | None = None

    @property
    def run_directory(self) -> PurePosixPath:
        """Its ``--run-dir``."""
        return self.node.directory / "run"

    @property
    def state_directory(self) -> PurePosixPath:
        """Its ``--state-dir``."""
        return self.node.directory / "state"

    @property
    def command(self) -> list[str]:
        """Its command line."""
        options = self.options
        words = {
            "--store": options.store,
            "--backend": options.backend,
            "--network": options.network,
            "--iface": options.interface,
            "--subnet-file": str(self.node.subnet_file),
            "--run-dir": str(self.run_directory),
            "--state-dir": str(self.state_directory),
            "--node-id": self.node.name if options.node_id == "" else options.node_id,
        }
        pairs = [word for name, value in words.items() if value is not None for word in (name, value)]
        return [*options.wrapper, *pyflannel_command(*pairs, *options.arguments)]

    @property
    def process(self) -> Process:
        """The process of its present or last life.

        :raises DaemonError: it was never started.
        """
        if self._process is None:
            raise DaemonError(f"{self.node.name}: the daemon was not started")
        return self._process

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start it; the log goes on where an earlier life left it.

        :raises DaemonError: it runs already.
        """
        if self.running:
            raise DaemonError(f"{self.node.name}: the daemon runs already")
        with self.node.sandbox.outside(self.log_file).open("a", encoding="utf-8") as log:
            self._process = self.node.start(self.command, stdout=log, stderr=subprocess.STDOUT)

    def stop(self, timeout: float = 10.0) -> int:
        """Ask it to end (SIGTERM), insist after ``timeout`` seconds, and return its exit status."""
        return self.process.stop(timeout)

    def kill(self) -> None:
        """Kill it on the spot (SIGKILL)."""
        self.process.kill()

    def pause(self) -> None:
        """Make it stand still (SIGSTOP)."""
        self.process.pause()

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self.process.resume()

    def restart(self) -> None:
        """Stop it if it runs, and start it again."""
        if self.running:
            self.stop()
        self.start()

    def status(self) -> Mapping[str, JSON]:
        """What ``pyflannel status --json`` says.

        :raises DaemonError: no daemon answers.
        """
        return query(self.node.sandbox.outside(self.run_directory))

    def container_network(self) -> ContainerNetwork:
        """What subnet.env says now.

        :raises DaemonError: there is none, or it can't be read.
        """
        try:
            text = self.node.sandbox.outside(self.node.subnet_file).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DaemonError(f"{self.node.name}: no {self.node.subnet_file} yet") from None
        return read_container_network(text)

    def log(self, lines: int | None = None) -> str:
        """The log of all its lives, or its last lines."""
        text = self.node.sandbox.outside(self.log_file).read_text(encoding="utf-8", errors="replace")
        return text if lines is None else "\n".join(text.splitlines()[-lines:])

    def wait_ready(self, peers: int = 0, timeout: float = 30.0) -> Mapping[str, JSON]:
        """Wait until it is ready and serves so many peers; returns its status then.

        :raises DaemonError: it ended, or is not that far after ``timeout`` seconds; carries the log's tail.
        """
        return self.wait_status(
            lambda status: bool(status["ready"]) and len(peers_in(status, "ok")) >= peers,
            f"ready with {counted(peers, 'peer')}",
            timeout,
        )

    def wait_status(
        self, condition: Callable[[Mapping[str, JSON]], bool], what: str, timeout: float = 30.0
    ) -> Mapping[str, JSON]:
        """Wait until its status meets ``condition``, which is ``what``; returns the status then.

        :raises DaemonError: it ended, or is not that far after ``timeout`` seconds; carries the log's tail.
        """
        deadline = time.monotonic() + timeout
        while True:
            status = self._status_or_nothing()
            if status is not None and condition(status):
                return status
            if not self.running:
                raise self._failed(f"the daemon ended with exit status {self.process.returncode}")
            if time.monotonic() > deadline:
                state = "it is silent" if status is None else f"{status['state']} ({status['message']})"
                skipped = [str(peer["reason"]) for peer in peers_in(status or {}, "skipped")]
                raise self._failed(f"not {what} after {timeout:g} s: {', '.join([state, *skipped[:1]])}")
            time.sleep(_POLL)

    def _status_or_nothing(self) -> Mapping[str, JSON] | None:
        try:
            return self.status()
        except DaemonError:
            return None

    def _failed(self, reason: str) -> DaemonError:
        return DaemonError(f"{self.node.name}: {reason}; the end of its log:\n{self.log(_TAIL)}")
