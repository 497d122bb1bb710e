"""A network that is changed while its nodes run: what drives it, and pings that must not be lost meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from tests.servers import consul, etcd
from tests.waiting import LONG, PATIENCE, until

from pyflannel.errors import ExitCode
from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.measure import Ping
from pyflannel.lab.sandbox import Process

__all__ = [
    "DUAL",
    "HOST_GW",
    "STORES",
    "UDP",
    "USERSPACE",
    "VXLAN",
    "WIREGUARD",
    "Document",
    "Overlay",
    "Pings",
    "Streams",
    "go_round",
    "network",
    "options",
    "overlay",
    "pinging",
    "streaming",
    "tour",
]

Document = Mapping[str, Any]

VXLAN: Document = {"Type": "vxlan"}
HOST_GW: Document = {"Type": "host-gw"}
UDP: Document = {"Type": "udp"}
WIREGUARD: Document = {"Type": "wireguard"}
USERSPACE: Document = {**WIREGUARD, "Implementation": "userspace"}

STORES = [
    pytest.param(name, marks=pytest.mark.skipif(missing is not None, reason=str(missing)))
    for name, missing in (("file", None), ("etcd", etcd.MISSING), ("consul", consul.MISSING))
]


def options(backend: Document) -> list[str]:
    """The command line's words for a backend."""
    given = [f"{key}={value}" for key, value in backend.items() if key != "Type"]
    return ["--backend", str(backend["Type"]), *(word for option in given for word in ("--backend-option", option))]


def network(backend: Document, **more: Any) -> Document:
    return {"Network": "10.244.0.0/16", **more, "Backend": backend}


def tour(backends: Sequence[Document], apart: Sequence[Sequence[Document]] = ()) -> Iterator[Document]:
    """Every ordered pair once, and back where it began (Hierholzer).

    :param apart: pairs within one of these groups are left out.
    """
    everyone = range(len(backends))
    groups = [{n for n in everyone if backends[n] in group} for group in apart]
    ways = {
        one: [two for two in everyone if two != one and not any({one, two} <= group for group in groups)]
        for one in everyone
    }
    open_ends, closed = [0], []
    while open_ends:
        here = open_ends[-1]
        if ways[here]:
            open_ends.append(ways[here].pop())
        else:
            closed.append(open_ends.pop())
    return (backends[n] for n in reversed(closed))


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
        done = self.nodes[node].run(self.command(*words), check=False, timeout=LONG)
        assert done.returncode == ExitCode.OK, (done.stdout[-2000:], done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def refused(self, *words: str) -> str:
        done = self.nodes[0].run(self.command(*words), check=False, timeout=LONG)
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
        """The network document in the store."""
        if self.store.startswith("file:"):
            text = self.path("config.json").read_text(encoding="utf-8")
        else:
            text = self.nodes[0].run(pyflannel_command("config", "get", "--store", self.store)).stdout
        document: dict[str, Any] = json.loads(text)
        return document

    def path(self, name: str) -> Path:
        """A file of the file store."""
        return self.lab.sandbox.outside(PurePosixPath(self.store.removeprefix("file://")) / name)

    def phase(self) -> str:
        return str(self.document().get("Change", {}).get("Phase", ""))

    def come_to(self, *phases: str) -> None:
        """Wait until the change is in one of these phases, of which the empty one is its end."""
        until(lambda: self.phase() in phases, lambda: f"the change is in phase {self.phase()!r}", PATIENCE)

    def write(self, document: Document) -> None:
        """Put a document into the store, whatever is there."""
        words = pyflannel_command("config", "set", "--force", "-", "--store", self.store)
        self.nodes[0].run(words, input=json.dumps(document), timeout=LONG)

    def overheard(self, version: int = 4) -> tuple[list[bytes], list[bytes]]:
        """What leaves the nodes while each container pings each other one, and those of it that can be read."""
        pattern = os.urandom(8)
        captures = [node.capture() for node in self.nodes]
        for source, target in itertools.permutations(self.lab.containers, 2):
            words = ["ping", "-c3", "-i0.2", "-p", pattern.hex(), target.address(version)]
            source.run(words, timeout=LONG)
        frames = [frame for capture in captures for frame in capture.stop()]
        return frames, [frame for frame in frames if pattern in frame]

    def all_are(self, step: str) -> None:
        """Wait until every node says that it is so far."""
        for node in self.nodes:
            node.daemon.wait_status(lambda it: it["change"] is not None and it["change"]["step"] == step, step, LONG)

    def run_on(self, backend: str) -> None:
        """All nodes run this backend, and nothing else."""
        for node in self.nodes:
            node.daemon.wait_status(
                lambda status: status["ready"] and status["backend"]["name"] == backend and status["change"] is None,
                f"{backend} alone",
                LONG,
            )


@contextmanager
def overlay(document: Document, nodes: int = 3, kind: str = "file", without: Sequence[int] = ()) -> Iterator[Overlay]:
    """Nodes that run by a document, and have their containers. Those in ``without`` have no daemon yet.

    :param kind: of the store.
    """
    with Lab(nodes=nodes) as lab:
        made = Overlay(lab, lab.file_store if kind == "file" else lab.start_store(kind, 1))
        words = pyflannel_command("config", "set", "-", "--store", made.store)
        lab.nodes[0].run(words, input=json.dumps(document), timeout=LONG)
        there = [node for number, node in enumerate(lab.nodes) if number not in without]
        for node in lab.nodes:
            node.run(["sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1"])
        for node in there:
            node.start_daemon(made.store, str(document["Backend"]["Type"]))
        for node in there:
            node.daemon.wait_ready(peers=len(there) - 1, timeout=LONG)
            node.attach_containers()
        yield made
        for node in there:
            print(node.name, node.daemon.log(), sep="\n")


class Pings:
    """Pings that are under way, and what happened meanwhile."""

    def __init__(self) -> None:
        self.all: list[Ping] = []
        self._noted: list[tuple[str, list[int]]] = []

    def note(self, what: str) -> None:
        """Something has come to its end."""
        self._noted.append((what, [ping.replies for ping in self.all]))
        print(f"{what}: {sum(self._noted[-1][1])} answers so far", flush=True)

    def account(self) -> None:
        """None may be lost."""
        losses = [ping.stop() for ping in self.all]
        print(
            f"{len(self.all)} pings: {sum(loss.sent for loss in losses)} sent, {sum(loss.lost for loss in losses)} lost"
        )
        lost = [
            (ping.source.name, ping.address, loss.lost, loss.longest_gap, self._when(number))
            for number, (ping, loss) in enumerate(zip(self.all, losses, strict=True))
            if loss.lost
        ]
        assert not lost, f"packets were lost: {lost}"

    def _when(self, number: int) -> dict[str, int]:
        """What came to its end after packets that were lost, about, and after how many of them."""
        ends = [(replies[number], f"{at}: {what}") for at, (what, replies) in enumerate(self._noted, 1)]
        missing = self.all[number].missing
        return dict(Counter(next((what for replies, what in ends if replies >= at), "the end") for at in missing))


@contextmanager
def pinging(
    lab: Lab, versions: Sequence[int] = (4,), only: Sequence[int] | None = None, interval: float = 0.01
) -> Iterator[Pings]:
    """Pings between all containers; at the end none may be lost."""
    chosen = [container for n, container in enumerate(lab.containers) if only is None or n in only]
    pings = Pings()
    with ExitStack() as stack:
        for one, two in itertools.permutations(chosen, 2):
            for version in versions:
                until(lambda: reaches(one, two.address(version)), "containers reach each other", PATIENCE)  # noqa: B023
                pings.all.append(stack.enter_context(one.ping(two.address(version), interval)))
        for ping in pings.all:
            ping.wait_replies(10, LONG)
        yield pings
        for ping in pings.all:
            ping.wait_replies(10, LONG)
        pings.account()


def reaches(container: Any, address: str) -> bool:
    return bool(container.run(["ping", "-c1", "-W1", address], check=False).returncode == 0)


class Streams:
    """TCP connections by iperf3, each with the file into which its client says every tenth of a second what it sent."""

    def __init__(self) -> None:
        self.all: list[tuple[Process, Path]] = []

    def go_on(self) -> None:
        """Wait until every one of them has carried something more."""
        for client, told in self.all:
            before = self._carried(told)
            until(
                lambda client=client, told=told, before=before: not client.running or self._carried(told) > before,  # type: ignore[misc]
                "the stream goes on",
                PATIENCE,
            )
            assert client.running, told.read_text()

    @staticmethod
    def _carried(told: Path) -> int:
        """In how many intervals something was sent."""
        lines = told.read_text().splitlines()
        return sum("bits/sec" in line and " 0.00 " not in line for line in lines)


@contextmanager
def streaming(lab: Lab, versions: Sequence[int] = (4,)) -> Iterator[Streams]:
    """TCP streams from each container to the next one, 2 Mbit/s each."""
    streams = Streams()
    with ExitStack() as stack:
        for number, source in enumerate(lab.containers):
            target = lab.containers[(number + 1) % len(lab.containers)]
            for version in versions:
                port = str(5200 + version)
                server = target.start(["iperf3", "-s", "-1", "-p", port], stdout=subprocess.DEVNULL)
                stack.callback(server.kill)
                address = target.address(version)
                until(lambda: reaches(source, address), "containers reach each other", PATIENCE)  # noqa: B023
                log = lab.sandbox.outside(lab.nodes[0].directory).parent / f"iperf3-{number}-{version}"
                words = ["iperf3", "-c", address, "-p", port, "-t", "0", "-i", "0.1", "-b", "2M", "--forceflush"]
                streams.all.append((_connected(source, words, log), log))
                stack.callback(streams.all[-1][0].kill)
        streams.go_on()
        yield streams
        streams.go_on()


def _connected(source: Any, words: Sequence[str], log: Path) -> Process:
    """The client, once its server listens."""
    while True:
        with log.open("w") as output:
            client: Process = source.start(words, stdout=output, stderr=subprocess.STDOUT)
        until(lambda: not client.running or "connected to" in log.read_text(), "it is connected", PATIENCE)  # noqa: B023
        if client.running:
            return client
        assert "refused" in log.read_text(), log.read_text()


def go_round(
    backends: Iterable[Document],
    store: str,
    versions: Sequence[int],
    streams: bool = True,
    interval: float = 0.01,
    nodes: int = 3,
) -> None:
    """Change the network of these nodes from each of these backends to the next, and lose nothing.

    :param streams: whether TCP streams go on meanwhile. ``interval``: seconds between two pings of a pair.
    """
    first, *following = backends
    more = DUAL if len(versions) > 1 else {}
    with ExitStack() as stack:
        made = stack.enter_context(overlay(network(first, **more), nodes, store))
        flows = stack.enter_context(streaming(made.lab, versions)) if streams else None
        pings = stack.enter_context(pinging(made.lab, versions, interval=interval))
        for backend in following:
            try:
                made.change(*options(backend))
                made.run_on(str(backend["Type"]))
                if flows is not None:
                    flows.go_on()
            finally:
                pings.note(json.dumps(backend))
