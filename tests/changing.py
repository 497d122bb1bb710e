"""A network that is changed while its nodes run: what drives it, and pings that must not be lost meanwhile."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from tests.waiting import PATIENCE, until

from pyflannel.errors import ExitCode
from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.measure import Ping
from pyflannel.lab.sandbox import Process

__all__ = ["DUAL", "HOST_GW", "UDP", "VXLAN", "WIREGUARD", "Document", "Overlay", "network", "overlay", "pinging"]

Document = Mapping[str, Any]

VXLAN: Document = {"Type": "vxlan"}
HOST_GW: Document = {"Type": "host-gw"}
UDP: Document = {"Type": "udp"}
WIREGUARD: Document = {"Type": "wireguard"}


def network(backend: Document, **more: Any) -> Document:
    return {"Network": "10.244.0.0/16", **more, "Backend": backend}


DUAL = {"EnableIPv6": True, "IPv6Network": "fd00:244::/48"}


class Overlay:
    """Nodes whose daemons were started with the backend that the network had, and what is asked of them."""

    def __init__(self, lab: Lab, store: str) -> None:
        self.lab, self.store = lab, store

    @property
    def nodes(self) -> Sequence[Node]:
        return self.lab.nodes

    def command(self, *words: str) -> list[str]:
        return pyflannel_command("network", "change", "--json", "--yes", *words, "--store", self.store)

    def change(self, *words: str, node: int = 0) -> list[dict[str, Any]]:
        """Run the command to its end; what it told."""
        done = self.nodes[node].run(self.command(*words), check=False, timeout=120)
        assert done.returncode == ExitCode.OK, (done.stdout[-2000:], done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def refused(self, *words: str) -> str:
        done = self.nodes[0].run(self.command(*words), check=False, timeout=60)
        assert done.returncode == ExitCode.CONFIG, (done.stdout, done.stderr)
        return done.stderr

    @contextmanager
    def driven(self, *words: str) -> Iterator[Process]:
        """The command, while it runs; it is killed at the end."""
        process = self.nodes[0].start(self.command(*words), stdout=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.signal(signal.SIGKILL)
            until(lambda: not process.running, "the command has ended", PATIENCE)

    def document(self) -> dict[str, Any]:
        """The network document in the file store."""
        document: dict[str, Any] = json.loads(self.path("config.json").read_text(encoding="utf-8"))
        return document

    def path(self, name: str) -> Path:
        """A file of the file store."""
        return self.lab.sandbox.outside(PurePosixPath(self.store.removeprefix("file://")) / name)

    def phase(self) -> str:
        return str(self.document().get("Change", {}).get("Phase", ""))

    def come_to(self, *phases: str) -> None:
        """Wait until the change is in one of these phases, of which the empty one is its end."""
        until(lambda: self.phase() in phases, lambda: f"the change is in phase {self.phase()!r}", PATIENCE)

    def run_on(self, backend: str) -> None:
        """All nodes run this backend, and nothing else."""
        for node in self.nodes:
            node.daemon.wait_status(
                lambda status: status["ready"] and status["backend"]["name"] == backend and status["change"] is None,
                f"{backend} alone",
                PATIENCE,
            )


@contextmanager
def overlay(document: Document, nodes: int = 3, kind: str = "file", without: Sequence[int] = ()) -> Iterator[Overlay]:
    """Nodes that run by a document, and have their containers. Those in ``without`` have no daemon yet.

    :param kind: of the store.
    """
    with Lab(nodes=nodes) as lab:
        made = Overlay(lab, lab.file_store if kind == "file" else lab.start_store(kind, 1))
        words = pyflannel_command("config", "set", "-", "--store", made.store)
        lab.nodes[0].run(words, input=json.dumps(document))
        there = [node for number, node in enumerate(lab.nodes) if number not in without]
        for node in lab.nodes:
            node.run(["sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1"])
        for node in there:
            node.start_daemon(made.store, str(document["Backend"]["Type"]))
        for node in there:
            node.daemon.wait_ready(peers=len(there) - 1, timeout=PATIENCE)
            node.attach_containers()
        yield made
        for node in there:
            print(node.name, node.daemon.log(), sep="\n")


@contextmanager
def pinging(lab: Lab, versions: Sequence[int] = (4,), only: Sequence[int] | None = None) -> Iterator[None]:
    """Pings between all containers; at the end none may be lost."""
    chosen = [container for n, container in enumerate(lab.containers) if only is None or n in only]
    with ExitStack() as stack:
        pings: list[Ping] = []
        for one, two in itertools.permutations(chosen, 2):
            for version in versions:
                until(lambda: reaches(one, two.address(version)), "containers reach each other", PATIENCE)  # noqa: B023
                pings.append(stack.enter_context(one.ping(two.address(version), 0.01)))
        for ping in pings:
            ping.wait_replies(10)
        yield
        for ping in pings:
            ping.wait_replies(10)
        losses = [(ping.source.name, ping.address, ping.stop()) for ping in pings]
        lost = [(name, address, loss.lost, loss.longest_gap) for name, address, loss in losses if loss.lost]
        assert not lost, f"packets were lost: {lost}"


def reaches(container: Any, address: str) -> bool:
    return bool(container.run(["ping", "-c1", "-W1", address], check=False).returncode == 0)
