"""Three nodes with daemons in a lab, and what is looked at there: kernels, processes, sockets, packets."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pyflannel.backend import Backend
from pyflannel.lab import Lab
from pyflannel.lab import Node as LabNode
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.network.lease import JSON
from pyflannel.small.interpreter import module_command
from pyflannel.testing._calls import once
from pyflannel.testing._scenes import document
from pyflannel.testing._waiting import eventually

__all__ = [
    "LiveOverlay",
    "at_rest",
    "data_planes",
    "everything",
    "is_fragment",
]

PATIENCE = 60.0
"""Seconds after which the kit takes a thing for not happening at all. Nothing is judged by how long it took."""

PACE = 0.02
"""Seconds between two pings of those from which none may be lost. A machine that is emulated can't answer so many."""

ENDING = 20.0
"""Seconds after which what is left of a data plane that was told to end is taken for left behind."""

RESYNC: Final = 5
"""Seconds between the daemons' full comparisons: the kernel tells nobody of most of its parameters."""


class _Console:
    """The process of :mod:`pyflannel.testing._kernel_console` in one node."""

    def __init__(self, node: LabNode) -> None:
        words = module_command("pyflannel.testing._kernel_console")
        self.process = node.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process = self.process.proxy

    def ask(self, **request: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        what = f"the answer to {request['do']} {request.get('object', '')}"
        answer = once("the kernel console", what, stdout.readline, PATIENCE, "the kernel shows what the daemon keeps")
        assert answer, "the kernel console ended; see its message above"
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


def is_fragment(frame: bytes) -> bool:
    """Whether an Ethernet frame carries a part of an IP packet (RFC 791, 3.1; RFC 8200, 4.5)."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return int.from_bytes(frame[20:22], "big") & 0x3FFF != 0  # an offset, or more to come
    return kind == b"\x86\xdd" and frame[20] == 44


class LiveOverlay:
    """Three nodes in a lab with daemons, containers and a console each: what the behaviour tests work on."""

    def __init__(
        self, lab: Lab, kind: type[Backend[Any]], versions: Sequence[int], options: Mapping[str, JSON]
    ) -> None:
        self.lab = lab
        self.nodes = lab.nodes
        self.kind = kind
        self.versions = tuple(versions)
        self.options = options
        self.pristine = {node.name: at_rest(node) for node in lab.nodes}
        """What each kernel held before the first daemon."""
        self.any_mac: dict[str, list[str]] = {}
        self.consoles = {node.name: _Console(node) for node in lab.nodes}
        self.configure(options)
        for node in self.nodes:
            node.start_daemon(lab.file_store, None, arguments=["--resync-interval", str(RESYNC)])
        for node in self.nodes:
            node.daemon.wait_ready(peers=2, timeout=PATIENCE)
            node.attach_containers()
        self._note_links()

    def close(self) -> None:
        """End the consoles; the lab ends the rest."""
        for console in self.consoles.values():
            console.close()

    def configure(self, options: Mapping[str, JSON]) -> None:
        """Write the network document with these backend options."""
        text = json.dumps(document(self.kind, options, self.versions))
        self.nodes[0].run(
            pyflannel_command("config", "set", "--force", "-", "--store", self.lab.file_store),
            input=text,
            timeout=PATIENCE,
        )

    def change(self, options: Mapping[str, JSON]) -> None:
        """Change the options of all nodes at once: daemons read a document that was merely written when they start."""
        for node in self.nodes:
            node.daemon.stop()
        self.configure(options)
        for node in self.nodes:
            node.daemon.start()
        for node in self.nodes:
            node.daemon.wait_ready(peers=2, timeout=PATIENCE)
        self._note_links()

    def go_over(self, backend: str, options: Mapping[str, JSON]) -> str:
        """Change the network to another backend while it runs; returns why that is refused, empty if it is done."""
        words = ["network", "change", "--yes", "--backend", backend, "--store", self.lab.file_store]
        for name, value in options.items():
            words += ["--backend-option", f"{name}={json.dumps(value) if not isinstance(value, str) else value}"]
        done = self.nodes[0].run(pyflannel_command(*words), check=False, timeout=2 * PATIENCE)
        return done.stderr if done.returncode else ""

    def sysctls(self, node: LabNode) -> list[str]:
        """The kernel parameters that a node's daemon keeps."""
        items = node.daemon.status()["objects"]["list"]
        return [item["object"].split()[1].partition("=")[0] for item in items if item["kind"] == "sysctl"]

    def _ask(self, node: LabNode, **request: Any) -> Any:
        return self.consoles[node.name].ask(**request, any_mac=self.any_mac.get(node.name, []))

    def _note_links(self) -> None:
        """Note which links of each node have whatever MAC address the kernel gives them."""
        for node in self.nodes:
            self.any_mac[node.name] = [words[1] for words in _links(node) if "address" not in words]

    def free_links(self, node: LabNode) -> list[str]:
        """The planned links that are to be part of no other device."""
        return [words[1] for words in _links(node) if "master" not in words]

    @contextlib.contextmanager
    def enslaved(self, node: LabNode, name: str) -> Iterator[str]:
        """Put a link into a bridge of nobody's, or, where that takes none of its kind, into a VRF.

        Yields the name of what took it; empty if nothing does.
        """

        def ip(*words: str) -> bool:
            return node.run(["ip", "link", *words], check=False).returncode == 0

        for kind in (["bridge"], ["vrf", "table", "77"]):
            master = f"kit-{kind[0]}"
            if not ip("add", master, "type", *kind):
                continue
            try:
                if ip("set", name, "master", master):
                    yield master
                    return
            finally:
                ip("delete", master)
        yield ""

    def dump(self, node: LabNode, sysctls: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Kind and text of every kernel object of ours in a node."""
        found = self._ask(node, do="dump", sysctls=list(sysctls))["objects"]
        return [(kind, text) for kind, text in found]

    def remove(self, node: LabNode, text: str, sysctls: Sequence[str]) -> None:
        """Take one object out of a node's kernel behind its daemon's back."""
        errors = self._ask(node, do="remove", object=text, sysctls=list(sysctls))["errors"]
        assert not errors, f"{text} could not be removed: {errors}"

    def settled(self, node: LabNode, wanted: Callable[[list[tuple[str, str]]], bool], what: str) -> None:
        """Wait until a node's dump is as ``wanted``."""
        try:
            eventually(lambda: wanted(self.dump(node, self.sysctls(node))), what, PATIENCE)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\nkernel: {self.dump(node, self.sysctls(node))}\nlog:\n{node.log_tail()}"
            ) from None

    def reachable(self) -> bool:
        """Whether every container reaches every other one, in every family."""
        matrix = self.lab.reachability()
        return matrix.complete and matrix.versions == self.versions

    def left(self) -> dict[str, list[str]]:
        """What each node holds of a data plane (:func:`data_planes`) that was told to end, and stays all the same."""
        found: dict[str, list[str]] = {}

        def gone() -> bool:
            found.update((node.name, data_planes(node, {self.consoles[node.name].process.pid})) for node in self.nodes)
            return not any(found.values())

        with contextlib.suppress(AssertionError):
            eventually(gone, "all data planes have ended", ENDING)
        return found

    def terms(self, node: LabNode) -> list[str]:
        """The addresses by which a node's objects in other kernels are told: its public ones and its subnets'."""
        subnets = node.daemon.status()["lease"]["subnets"]
        return [str(node.ipv4.ip), str(node.ipv6.ip), *(subnet.partition("/")[0] for subnet in subnets)]

    def forget(self, node: LabNode) -> str:
        """Delete a stopped node's lease from the store; returns its key."""
        subnets = self.lab.outside(node.directory).parent / "store" / "subnets"
        owner = {json.loads(file.read_text()).get("NodeID"): file for file in subnets.glob("*.json")}
        owner[node.name].unlink()
        return owner[node.name].stem


def _links(node: LabNode) -> list[list[str]]:
    """The words in which status shows each planned link."""
    return [item["object"].split() for item in node.daemon.status()["objects"]["list"] if item["kind"] == "link"]


def data_planes(node: LabNode, others: Iterable[int]) -> list[str]:
    """What moves packets in a node's namespace besides the kernel, each in words: processes, and what the daemon holds.

    :param others: processes in it that are known, as seen from outside the lab.
    """
    daemon = node.daemon.process.pid
    place = (Path("/proc") / str(daemon) / "ns/net").readlink()
    known = {*others, *(process.proxy.pid for process in node.sandbox.processes)}
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) in known:
            continue  # that, or what waits for a process of the lab's
        with contextlib.suppress(OSError):  # it may end meanwhile
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if (process / "ns/net").readlink() != place or words[0] == "nsenter" or not words[0]:
                continue  # about to begin, or to be reaped
            if int(process.name) != daemon:
                found.append(f"process {' '.join(words).strip()}")
            found += [f"{held} of {words[0]}" for held in _packet_files(process)]
    return sorted(found)


_PACKETS: Final = ("udp", "udp6", "udplite", "udplite6", "raw", "raw6", "packet")
"""Tables of proc_pid_net(5) with the sockets that a data plane may have; their inode stands in some column."""


def _packet_files(process: Path) -> Iterator[str]:
    """The open files of a process by which packets come and go, in words."""
    sockets = {}
    for table in _PACKETS:
        with contextlib.suppress(FileNotFoundError):
            for line in (process / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
                sockets[line.split()[8 if table == "packet" else 9]] = f"{table} socket {line.split()[1]}"
    for file in (process / "fd").iterdir():
        target = str(file.readlink())
        if target == "/dev/net/tun":
            yield target
        elif target.startswith("socket:[") and target[8:-1] in sockets:
            yield sockets[target[8:-1]]


_STATE: Final = (
    "ip -j -d link show",
    "ip -j address show",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j -4 rule show",
    "ip -j -6 rule show",
    "tc -j qdisc show",
    "ip -j neigh show nud permanent",
    "bridge -j fdb show",
)
_PASSING: Final = frozenset(
    {"linkinfo", "ifindex", "link_index", "stats64", "txqlen", "preferred_life_time", "expires", "refcnt"}
)


def everything(node: LabNode) -> list[str]:
    """A node's whole network configuration as iproute2 shows it, without what passes by itself."""
    script = "\n".join(_STATE)
    lines = node.run(["sh", "-ec", script]).stdout.splitlines()
    documents = json.loads("[" + ",".join(line for line in lines if line.strip()) + "]")
    return sorted(json.dumps(_lasting(item), sort_keys=True) for part in documents for item in part)


def at_rest(node: LabNode) -> list[str]:
    """:func:`everything`, when the node's wire is up and nobody else has its addresses (RFC 4862, 5.4)."""
    passing = ("tentative", "NO-CARRIER")
    eventually(
        lambda: not any(word in item for item in everything(node) for word in passing),
        "its links and addresses are settled",
        PATIENCE,
    )
    return everything(node)


def _lasting(value: JSON) -> JSON:
    if isinstance(value, dict):
        return {name: _lasting(item) for name, item in value.items() if name not in _PASSING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value
