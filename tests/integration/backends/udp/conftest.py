"""Two nodes in network namespaces on one wire, each with the udp backend's data plane and nothing else of the daemon.

What the core's planner would put into the kernel is made here with ``ip``; a :class:`Node`'s driver process stands for
the daemon, and may be killed.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import until

from pyflannel_backends.userspace import tun_info

HERE = Path(__file__).parent
_numbers = itertools.count()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return done.stdout


class Node:
    """Number 1 or 2: underlay 192.0.2.<number>, subnet 10.5.<number>.0/24."""

    def __init__(self, overlay: Overlay, number: int) -> None:
        self.number = number
        self.peer = 3 - number
        self.namespace = f"{overlay.name}-{number}"
        self.state_dir = overlay.directory / f"node{number}"
        self.state_dir.mkdir()
        self._options = overlay.options
        self.driver: subprocess.Popen[str] | None = None
        run("ip", "netns", "add", self.namespace)

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.namespace, *words)

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *words]

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*words), text=True, **options)

    def make_device(self) -> None:
        mtu = self._options.get("underlay_mtu", 1500) - 28
        self.ip("tuntap", "add", "flannel0", "mode", "tun", "vnet_hdr", "multi_queue")
        self.ip("addr", "add", f"10.5.{self.number}.0/32", "dev", "flannel0")
        queue = tun_info(offload=self._options.get("offload", True)).queue_length
        self.ip("link", "set", "flannel0", "mtu", str(mtu), "txqueuelen", str(queue), "up")
        self.ip("route", "add", "10.5.0.0/16", "dev", "flannel0")
        run(*self.command("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.flannel0.accept_local=1"))
        if self._options.get("dual_stack"):
            self.ip("addr", "add", f"fd00:5:{self.number}::/128", "dev", "flannel0", "nodad")
            self.ip("route", "add", "fd00:5::/32", "dev", "flannel0")
            run(*self.command("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"))

    def start_driver(self) -> None:
        options = {name: value for name, value in self._options.items() if name not in ("extensions", "under")}
        self.driver = self.start(
            *self._options.get("under", ()),
            sys.executable,
            str(HERE / "driver.py"),
            str(self.state_dir),
            str(self.number),
            json.dumps(options),
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._answer() == "started"

    def _environment(self) -> dict[str, str]:
        """The worker's: with or without extensions, or as it is here."""
        paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(HERE.parents[3])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        match self._options.get("extensions"):
            case True:
                environment.pop("PYFLANNEL_NO_EXTENSIONS", None)
            case False:
                environment["PYFLANNEL_NO_EXTENSIONS"] = "1"
        return environment

    def tell(self, *words: str) -> Any:
        assert self.driver is not None
        assert self.driver.stdin is not None
        self.driver.stdin.write(json.dumps(words) + "\n")
        self.driver.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.driver is not None
        assert self.driver.stdout is not None
        line = self.driver.stdout.readline()
        assert line, "the driver ended"
        return json.loads(line)

    def put_peer(self) -> None:
        self.tell("put", f"10.5.{self.peer}.0-24", f"192.0.2.{self.peer}")

    def counters(self) -> dict[str, int]:
        """The workers', once they have told them."""
        counters: dict[str, int] = until(lambda: self.tell("counters"), "the workers' counters")
        return counters

    def let_lone_packets_pass(self) -> None:
        """Wait until they pass the worker by, both ways; skip where the kernel, or a right, does not allow that."""
        told = until(lambda: self.tell("kernel_path"), "what a worker says of lone packets")
        if "it takes" in told[0]:
            preface = "" if "CAP_BPF" in told[0] else "not applicable: "
            pytest.skip(f"{preface}packets can't pass the worker by here: {told[0]}")
        until(lambda: not any(self.tell("kernel_path")), "workers that packets pass by")
        before = self.counters()
        until(lambda: self._pings_without_worker(before), "pings that pass the worker by")

    def _pings_without_worker(self, before: dict[str, int]) -> bool:
        assert self.ping(count=4)
        after = self.counters()
        return all(after[name] > before[name] for name in ("lone_sent_packets", "lone_received_packets"))

    def kill_driver(self) -> None:
        """As a crash of the daemon."""
        assert self.driver is not None
        self.driver.kill()
        self._close_driver()

    def _close_driver(self) -> None:
        assert self.driver is not None
        self.driver.wait()
        for pipe in (self.driver.stdin, self.driver.stdout):
            assert pipe is not None
            pipe.close()
        self.driver = None

    def workers(self) -> list[int]:
        """The pids of the worker processes in this node's namespace."""
        pids = run("ip", "netns", "pids", self.namespace).split()
        return [int(pid) for pid in pids if b"pyflannel_backends.udp.worker" in _command_line(pid)]

    def ping(self, *, count: int = 1, size: int = 56, options: tuple[str, ...] = ()) -> bool:
        words = ("ping", "-n", "-q", "-c", str(count), "-i", "0.05", "-W", "1", "-s", str(size), *options)
        done = subprocess.run(self.command(*words, f"10.5.{self.peer}.1"), capture_output=True, check=False)
        return done.returncode == 0

    def close(self) -> None:
        if self.driver is not None:
            self.driver.kill()
            self._close_driver()
        for pid in run("ip", "netns", "pids", self.namespace).split():
            with suppress(ProcessLookupError):  # it may end by itself just now
                os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "del", self.namespace)


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Overlay:
    """Both nodes, connected and fed with each other's lease."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        self.directory = directory
        self.name = f"pfudp{os.getpid()}-{next(_numbers)}"
        self.options = options
        self.nodes: list[Node] = []

    def build(self) -> None:
        for number in (1, 2):
            self.nodes.append(Node(self, number))
        first, second = self.nodes
        first.ip("link", "add", "under", "type", "veth", "peer", "name", "under", "netns", second.namespace)
        for node in self.nodes:
            node.ip("link", "set", "lo", "up")
            node.ip("addr", "add", f"192.0.2.{node.number}/24", "dev", "under")
            node.ip("link", "set", "under", "mtu", str(self.options.get("underlay_mtu", 1500)), "up")
            node.ip("link", "add", "cni0", "type", "bridge")
            node.ip("addr", "add", f"10.5.{node.number}.1/24", "dev", "cni0")
            node.ip("link", "set", "cni0", "up")
            if self.options.get("dual_stack"):
                node.ip("addr", "add", f"fd00:5:{node.number}::1/64", "dev", "cni0", "nodad")
            node.make_device()
            node.start_driver()
            node.put_peer()
        until(first.ping, "a ping from node 1 to node 2")

    def close(self) -> None:
        for node in self.nodes:
            node.close()


MakeOverlay = Callable[..., Overlay]


@pytest.fixture
def make_overlay(tmp_path: Path) -> Iterator[MakeOverlay]:
    """Build an overlay; keyword arguments are options of the backend, or of :mod:`.driver`, or these.

    ``extensions`` says whether the workers have them; if it isn't given, that is as everywhere. ``under`` are the words
    of a command that runs the drivers.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    for tool in ("ip", "ping", "sysctl"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (Debian packages iproute2, iputils-ping, procps)")
    overlays: list[Overlay] = []

    def make(**options: Any) -> Overlay:
        if options.get("extensions"):
            pytest.importorskip(
                "pyflannel_backends.userspace._fastpath", reason="the extension was not compiled", exc_type=ImportError
            )
        directory = tmp_path / str(len(overlays))
        directory.mkdir()
        overlay = Overlay(directory, options)
        overlays.append(overlay)
        overlay.build()
        return overlay

    try:
        yield make
    finally:
        for overlay in overlays:
            overlay.close()


@pytest.fixture
def overlay(make_overlay: MakeOverlay) -> Overlay:
    return make_overlay()


@pytest.fixture
def kernel_overlay(make_overlay: MakeOverlay) -> Overlay:
    """One whose nodes' lone packets pass the workers by."""
    overlay = make_overlay(extensions=True)
    for node in overlay.nodes:
        node.let_lone_packets_pass()
    return overlay


@pytest.fixture(params=["kernel", "fast-path", "python"])
def either_overlay(make_overlay: MakeOverlay, request: pytest.FixtureRequest) -> Overlay:
    """With lone packets that pass the worker by, with those that the fast path carries, and with neither."""
    return make_overlay(extensions=request.param != "python", KernelPath=request.param == "kernel")
