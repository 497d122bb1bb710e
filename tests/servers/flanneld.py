"""A real flanneld on a lab's nodes, beside our own daemons: ``tools/build-flanneld`` makes it.

What it writes is read as anybody's: its ``subnet.env``, its log, what it answers over HTTP.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from tests.waiting import until

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import read_container_network
from pyflannel.lab.sandbox import Process
from pyflannel.lab.servers.etcd import find_etcd
from pyflannel.lab.topology import ContainerNetwork

__all__ = ["BINARY", "MISSING", "NOT_INSTALLED", "VERSION", "Etcd", "Flanneld"]

VERSION: Final = os.environ.get("PYFLANNEL_FLANNELD_VERSION", "0.28.10")
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyflannel"
BINARY: Final = Path(os.environ.get("PYFLANNEL_CACHE") or _CACHE) / f"flanneld-{VERSION}" / "flanneld"


def _not_installed() -> str | None:
    if not os.access(BINARY, os.X_OK):
        return f"no flanneld {VERSION}: tools/build-flanneld"
    return "etcd is not installed: apt-get install etcd-server etcd-client" if find_etcd() is None else None


NOT_INSTALLED: Final = _not_installed()
"""Which program is not on this machine, or ``None``."""


def _missing() -> str | None:
    if NOT_INSTALLED is not None:
        return NOT_INSTALLED
    if not Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        return "flanneld ends without br_netfilter: modprobe br_netfilter"
    return None


MISSING: Final = _missing()
"""Why there is no real flanneld here, or ``None``."""


class Etcd:
    """A lab's etcd, written to by its own client."""

    def __init__(self, lab: Lab) -> None:
        self.url = lab.start_store("etcd").partition("?")[0]
        self.endpoint = "http://" + self.url.removeprefix("etcd://").partition("/")[0]
        self._node = lab.nodes[0]

    def store(self, prefix: str) -> str:
        """The URL by which pyflannel finds the network below ``prefix``."""
        return f"etcd://{self.endpoint.removeprefix('http://')}{prefix}"

    def put(self, key: str, value: str) -> None:
        """Write a key."""
        self._run("put", "--", key, value)

    def get(self, key: str) -> str:
        """What a key holds, empty if it is not there."""
        return self._run("get", "--print-value-only", "--", key).rstrip("\n")

    def _run(self, *words: str) -> str:
        command = ["etcdctl", f"--endpoints={self.endpoint}", *words]
        return str(self._node.run(command, env={"ETCDCTL_API": "3"}).stdout)


class Flanneld:
    """One node's flanneld, over several lives with the same files. A context manager, which ends it."""

    def __init__(self, node: Node, etcd: Etcd, prefix: str, *flags: str) -> None:
        self.node = node
        self.subnet_file = node.subnet_file
        self._log = node.lab.outside(node.lab.new_file(f"flanneld-{node.name}"))
        self._begin = 0
        self._process: Process | None = None
        self.command: Sequence[str] = (
            str(BINARY),
            f"-etcd-endpoints={etcd.endpoint}",
            f"-etcd-prefix={prefix}",
            "-iface=eth0",
            f"-subnet-file={self.subnet_file}",
            *flags,
        )

    def start(self) -> None:
        """Start it."""
        with self._log.open("a", encoding="utf-8") as log:
            self._begin = log.tell()
            self._process = self._start(log)

    def _start(self, log: IO[str]) -> Process:
        return self.node.start(self.command, stdout=log, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        """End it as systemd does."""
        if self._process is not None and self._process.running:
            self._process.stop()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.running

    def log(self) -> str:
        """All that it has said."""
        return self._said(0)

    def _said(self, since: int) -> str:
        return self._log.read_bytes()[since:].decode("utf-8", "replace")

    def ready(self) -> bool:
        """Whether it says so, in its present life."""
        return "flannel is ready" in self._said(self._begin)

    def wait_ready(self) -> None:
        """Wait until it says that it is."""
        until(lambda: self.ready() or not self.running, self.log)
        assert self.ready(), self.log()

    def environment(self) -> bytes:
        """Its ``subnet.env``, byte for byte."""
        return self.node.lab.outside(self.subnet_file).read_bytes()

    def container_network(self) -> ContainerNetwork:
        """What containers get."""
        return read_container_network(self.environment().decode())

    def __enter__(self) -> Flanneld:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
