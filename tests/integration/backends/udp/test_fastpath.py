"""Packets that come alone, between two nodes on real kernels: the same becomes of them with and without a fast path."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from tests.integration.backends.udp.conftest import MakeOverlay, Node, Overlay
from tests.unit.backends.userspace.reference import UDP, Packet
from tests.waiting import until

pytestmark = pytest.mark.root

COUNT = 20
LENGTH = 84
_SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
    end.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK: as those that the kernel may deliver by itself
    end.bind((sys.argv[1], 8285))
    end.sendto(bytes.fromhex(sys.argv[2]), ("192.0.2.1", 8285))
"""


@pytest.mark.parametrize("extensions", [True, False], ids=["fast-path", "python"])
def test_packets_that_come_alone_pass_python_by_where_there_is_a_fast_path(
    make_overlay: MakeOverlay, extensions: bool
) -> None:
    overlay = make_overlay(observed=True, extensions=extensions, KernelPath=False)
    first, second = overlay.nodes
    assert first.ping(count=5)
    until(lambda: settled(first) and settled(second), "the counters of the first packets")
    before = [node.counters() for node in overlay.nodes]
    assert first.ping(count=COUNT)
    until(lambda: settled(first) and settled(second), "the counters of all packets")
    for node, former in zip(overlay.nodes, before, strict=True):
        for direction in ("sent", "received"):
            assert _grown(node, former, f"{direction}_packets") == COUNT
            assert _grown(node, former, f"{direction}_calls") == COUNT
            assert _grown(node, former, f"{direction}_bytes") == COUNT * LENGTH
        for name in ("python_sends", "python_receives"):
            if extensions:  # some may not have come alone
                assert _grown(node, former, name) < COUNT / 2
            else:
                assert _grown(node, former, name) == COUNT


def settled(node: Node) -> bool:
    """Whether a node has told of as many packets as the device has seen."""
    sent, received = _seen(node)
    counters = node.counters()
    return (counters["sent_packets"], counters["received_packets"]) == (sent, received)


def _grown(node: Node, former: Mapping[str, int], name: str) -> int:
    return node.counters()[name] - former[name]


def _seen(node: Node) -> tuple[int, int]:
    """IPv4 packets that the device gave, less those of no peer, and that it took."""
    (device,) = json.loads(node.ip("-json", "-statistics", "link", "show", "flannel0"))
    drops = sum(count for name, count in node.counters().items() if name.startswith("drop_"))
    return int(device["stats64"]["tx"]["packets"]) - drops, int(device["stats64"]["rx"]["packets"])


def _taken(node: Node) -> int:
    """Packets that the node's device took from the data plane, or that passed it by."""
    return _seen(node)[1] + node.counters()["lone_received_packets"]


@contextmanager
def pings(node: Node) -> Iterator[None]:
    """All the time, and far enough from each other to come alone."""
    with node.start("ping", "-n", "-q", "-i", "0.02", "10.5.2.1", stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def test_a_peer_that_is_removed_gets_no_packet_more(either_overlay: Overlay) -> None:
    first, _ = either_overlay.nodes
    with pings(first):
        begun = _datagrams(first)
        until(lambda: _datagrams(first) > begun + COUNT, "packets that go by what is known")
        first.tell("remove", "10.5.2.0-24")
        until(lambda: first.counters()["drop_no_route"], "packets without a route")
        sent = _datagrams(first)
        dropped = first.counters()["drop_no_route"]
        until(lambda: first.counters()["drop_no_route"] > dropped + COUNT, "more of them")
        assert _datagrams(first) == sent
        first.put_peer()
        until(lambda: _datagrams(first) > sent + COUNT, "packets to the peer that is there again")
    assert first.ping()


def _datagrams(node: Node) -> int:
    """Sent by sockets in the node's namespace, and past them."""
    names, numbers = (line.split() for line in _snmp(node).splitlines() if line.startswith("Udp:"))
    return int(dict(zip(names, numbers, strict=True))["OutDatagrams"]) + node.counters()["lone_sent_packets"]


def _snmp(node: Node) -> str:
    return subprocess.run(node.command("cat", "/proc/net/snmp"), capture_output=True, text=True, check=True).stdout


class Forger:
    """Whoever has 192.0.2.3, and sends packets of his own making from there to node 1."""

    def __init__(self, overlay: Overlay) -> None:
        self._target, self._home = overlay.nodes
        self._home.ip("addr", "add", "192.0.2.3/24", "dev", "under")

    def send(self) -> None:
        packet = Packet(b"from a container", UDP, bytes([10, 5, 3, 7]), bytes([10, 5, 1, 1])).build()
        words = self._home.command(sys.executable, "-c", _SEND, "192.0.2.3", packet.hex())
        subprocess.run(words, check=True)

    def send_alone(self) -> bool:
        """Whether it was taken."""
        before = self._fates()
        self.send()
        until(lambda: sum(self._fates()) > sum(before), "the packet to be taken or refused")
        return self._fates()[0] > before[0]

    def _fates(self) -> tuple[int, int]:
        """Packets taken and packets refused."""
        counters = self._target.counters()
        return _taken(self._target), sum(counters[reason] for reason in ("drop_unknown_sender", "drop_spoofed_source"))

    def gets_through(self) -> None:
        """As soon as the worker has heard of it, and five times."""
        until(self.send_alone, "the peer to be let in")
        assert all(self.send_alone() for _ in range(5))

    def is_refused(self, reason: str) -> None:
        """As soon as the worker has heard of it, and then for ever."""
        until(lambda: not self.send_alone(), "the peer to be refused")
        taken, counted = _taken(self._target), self._target.counters()[reason]
        for _ in range(5):
            self.send()
        until(lambda: self._target.counters()[reason] == counted + 5, f"five counted as {reason}")
        assert _taken(self._target) == taken


def test_a_peer_that_lost_its_lease_may_send_no_more(either_overlay: Overlay) -> None:
    first, _ = either_overlay.nodes
    forger = Forger(either_overlay)
    forger.is_refused("drop_unknown_sender")
    first.tell("put", "10.5.4.0-24", "192.0.2.3")
    forger.is_refused("drop_spoofed_source")
    for holder in ("192.0.2.2", "192.0.2.9"):
        first.tell("put", "10.5.3.0-24", "192.0.2.3")
        forger.gets_through()
        first.tell("put", "10.5.3.0-24", holder)
        forger.is_refused("drop_spoofed_source")
    first.tell("put", "10.5.3.0-24", "192.0.2.3")
    forger.gets_through()
    first.tell("remove", "10.5.3.0-24")
    first.tell("remove", "10.5.4.0-24")
    forger.is_refused("drop_unknown_sender")
    assert first.ping(count=3)
