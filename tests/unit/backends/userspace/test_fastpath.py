"""The fast path between real descriptors: it does what Python would do, or leaves a packet to Python as it was."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import select
import signal
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.bursts import HOSTS6, OTHERS, OURS, THEIRS, super_packets, trains
from tests.unit.backends.userspace.edges import OTHER, PEER, STRANGER, Edges
from tests.unit.backends.userspace.memory import MemoryTun, MemoryUnderlay
from tests.unit.backends.userspace.reference import ACK, PSH, TCP, UDP, Packet

from pyflannel_backends.userspace import packet as ip
from pyflannel_backends.userspace import vnet
from pyflannel_backends.userspace.fastpath import load_fast_path
from pyflannel_backends.userspace.forward import Forwarder, QueueLimits, RateLimit
from pyflannel_backends.userspace.ports import Received
from pyflannel_backends.userspace.table import Peer, PeerTable

pytest.importorskip(
    "pyflannel_backends.userspace._fastpath", reason="the extension was not compiled", exc_type=ImportError
)

from pyflannel_backends.userspace._fastpath import FastPath

ROOM = 10 + 0xFFFF
MTU = 1472


class Bench:
    """A fast path without anybody who teaches it. ``judged`` is what it asked about."""

    def __init__(self, edges: Edges, *, any_port: bool = False) -> None:
        self.edges = edges
        self.tun_buffer, self.udp_buffer = bytearray(ROOM), bytearray(ROOM)
        self.judged: list[tuple[int, int, tuple[str, int]]] = []
        self.path = self.make(any_port=any_port)

    def make(self, **changes: Any) -> FastPath:
        arguments = {
            "epoll": self.edges.epoll.fileno(),
            "tun": self.edges.tun.fileno(),
            "sockets": (self.edges.port.fileno(),),
            "packet": self.tun_buffer,
            "received": self.udp_buffer,
            "opened": self.udp_buffer,
            "judge": self._judge,
            "port": self.edges.number,
            "any_port": False,
            "sealed": False,
            "mtu": MTU,
            "segments": True,
            "cuts": True,
            "joins_tcp": True,
            "joins_udp": True,
            **changes,
        }
        path = FastPath(**arguments)
        path.look_for_answers(True)
        return path

    def learn_route(self, destination: bytes, peer: str, mtu: int) -> None:
        self.path.learn_route(destination, peer, mtu, (peer, self.edges.number))

    def counted(self) -> tuple[int, int, int, int]:
        """Packets and bytes sent, packets and bytes received."""
        counters = self.path.take_counters()
        sent, received = (
            (counters["sent_packets"], counters["sent_bytes"]),
            (
                counters["received_packets"],
                counters["received_bytes"],
            ),
        )
        return *sent, *received

    def _judge(self, length: int, size: int, sender: tuple[str, int]) -> Received:
        self.judged.append((length, size, sender))
        return length, size, "judged"

    def from_tun(self, packet: bytes, header: bytes = vnet.PLAIN) -> bytes | None:
        """What was sent for a packet that comes alone; ``None`` if it is Python's, as it was."""
        self.edges.rest(self.path)
        self.edges.give(header + packet)
        left = self.path.poll(0.0)
        sent = self.edges.sent()
        if left:
            assert left == [(self.edges.tun.fileno(), 10 + len(packet))]
            assert self.tun_buffer[: 10 + len(packet)] == header + packet
            assert sent == []
            return None
        ((data, _),) = sent
        return data

    def from_udp(self, packet: bytes, sender: str = PEER, *, right_port: bool = True) -> bytes | None:
        """What was written to the device for a datagram that comes alone; ``None`` if it is Python's, as it was."""
        self.edges.rest(self.path)
        self.edges.send(packet, sender, right_port=right_port)
        left = self.path.poll(0.0)
        given = self.edges.given()
        if left:
            assert left == [(self.edges.port.fileno(), (len(packet), len(packet), "judged"))]
            assert self.udp_buffer[: len(packet)] == packet
            length, size, (address, number) = self.judged.pop()
            assert (length, size, address) == (len(packet), len(packet), sender)
            assert (number == self.edges.number) == right_port
            assert given == []
            return None
        ((header, data),) = given
        assert header == vnet.PLAIN
        return data


@pytest.fixture(scope="module")
def edges() -> Iterator[Edges]:
    edges = Edges()
    yield edges
    edges.close()


@pytest.fixture
def bench(edges: Edges) -> Bench:
    return Bench(edges)


def leaving(**changes: Any) -> bytes:
    ends = {"source": OURS, "destination": THEIRS}
    return Packet(**{"payload": b"hello, peers", "protocol": UDP, **ends, **changes}).build()


def arriving(**changes: Any) -> bytes:
    return leaving(**{"source": THEIRS, "destination": OURS, **changes})


def one_hop_on(packet: bytes) -> bytes:
    after = bytearray(packet)
    ip.decrement_ttl(after)
    return bytes(after)


def with_checksum(packet: bytes, value: int) -> bytes:
    return packet[:10] + value.to_bytes(2, "big") + packet[12:]


# One packet


def test_what_was_learnt_is_carried_and_counted(bench: Bench) -> None:
    assert bench.from_tun(leaving()) is None
    bench.learn_route(THEIRS, PEER, MTU)
    assert bench.from_tun(leaving()) == leaving(ttl=63)
    assert bench.from_udp(arriving()) is None
    bench.path.learn_path(PEER, THEIRS + OURS)
    assert bench.from_udp(arriving(payload=b"longer answer")) == arriving(payload=b"longer answer")
    assert bench.counted() == (1, 40, 1, 41)
    assert bench.counted() == (0, 0, 0, 0)


def test_what_was_forgotten_is_not_carried(bench: Bench) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    bench.path.forget()
    assert bench.from_tun(leaving()) is None
    assert bench.from_udp(arriving()) is None


@pytest.mark.parametrize("ttl", [2, 3, 64, 255])
@pytest.mark.parametrize("checksum", [0, 1, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFE, 0xFFFF])
def test_one_hop_less_changes_the_checksum_as_python_does(bench: Bench, ttl: int, checksum: int) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    packet = with_checksum(leaving(ttl=ttl), checksum)
    assert bench.from_tun(packet) == one_hop_on(packet)


@pytest.mark.parametrize("ttl", [0, 1])
def test_no_packet_goes_on_without_a_hop_left(bench: Bench, ttl: int) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    assert bench.from_tun(leaving(ttl=ttl)) is None


@pytest.mark.parametrize("mtu", [20, 1471, 1472, 0xFFFF])
def test_what_fits_is_carried_and_not_a_byte_more(bench: Bench, mtu: int) -> None:
    bench.learn_route(THEIRS, PEER, mtu)
    for length in {20, mtu - 1, mtu} if mtu < 65507 else {20, 65506, 65507}:
        packet = leaving()[:20]
        packet = packet[:2] + length.to_bytes(2, "big") + packet[4:] + bytes(max(0, length - 20))
        assert (bench.from_tun(packet) is not None) == (length >= 20)
    if mtu < 0xFFFF:
        assert bench.from_tun(leaving(payload=bytes(mtu + 1 - 28) if mtu > 28 else b"")) is None


@pytest.mark.parametrize("checksum", [0, 0x1234, 0xFEFF, 0xFFFF])
def test_a_packet_that_could_not_be_sent_is_python_s(bench: Bench, checksum: int) -> None:
    bench.learn_route(THEIRS, "255.255.255.255", MTU)  # forbidden without SO_BROADCAST
    packet = with_checksum(leaving(), checksum)
    edges = bench.edges
    edges.rest(bench.path)
    edges.give(vnet.PLAIN + packet)
    assert bench.path.poll(0.0) == [(edges.tun.fileno(), (one_hop_on(packet), len(packet), "255.255.255.255"))]
    assert bench.counted() == (0, 0, 0, 0)


def test_a_packet_that_the_device_does_not_take_is_counted(bench: Bench, edges: Edges) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    filling = bytes(40_000)
    while edges.tun.send(b"", filling) == 0:
        pass
    edges.send(arriving())
    assert bench.path.poll(0.0) == []
    assert bench.path.take_counters()["drop_tun_failed"] == 1
    assert {data for header, data in edges.given()} == {filling[10:]}


def test_only_the_peer_whose_path_it_is_may_send(bench: Bench) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    assert bench.from_udp(arriving(), OTHER) is None
    assert bench.from_udp(arriving(), right_port=False) is None
    assert bench.from_udp(arriving(source=OTHERS)) is None
    assert bench.from_udp(arriving(destination=OTHERS)) is None
    assert bench.from_udp(arriving()) == arriving()
    bench.path.learn_path(OTHER, THEIRS + OURS)  # it holds that subnet now
    assert bench.from_udp(arriving()) is None
    assert bench.from_udp(arriving(), OTHER) == arriving()


def test_any_port_of_the_peer_is_good_where_told_so(edges: Edges) -> None:
    bench = Bench(edges, any_port=True)
    bench.path.learn_path(PEER, THEIRS + OURS)
    assert bench.from_udp(arriving(), right_port=False) == arriving()
    assert bench.from_udp(arriving(), OTHER, right_port=False) is None


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        arriving()[:19],
        arriving()[:-1],
        arriving(ip_options=bytes(4)),
        with_checksum(arriving(), 0x1234),
        b"\x65" + arriving()[1:],
        b"\x44" + arriving()[1:],
    ],
    ids=["empty", "a byte", "cut header", "cut", "options", "checksum", "version", "short header"],
)
def test_what_is_unusual_is_python_s(bench: Bench, packet: bytes) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    bench.learn_route(OURS, PEER, MTU)
    assert bench.from_udp(packet) is None
    if packet != with_checksum(arriving(), 0x1234):  # the checksum is the receiver's to look at
        assert bench.from_tun(packet) is None


@pytest.mark.parametrize(
    "header",
    [
        vnet.VnetHeader(1, 0, 0, 0, 20, 16),
        vnet.VnetHeader(1, 0, 0, 0, 0, 6),
        vnet.VnetHeader(0, 1, 40, 1000, 0, 0),
        vnet.VnetHeader(0, 5, 28, 0, 20, 6),
        vnet.VnetHeader(0, 6, 28, 1000, 20, 6),
        vnet.VnetHeader(4, 0, 0, 0, 0, 0),
    ],
)
def test_what_the_kernel_left_undone_in_another_way_is_python_s(bench: Bench, header: vnet.VnetHeader) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    assert bench.from_tun(leaving(), header.pack()) is None


def test_datagrams_that_came_as_one_are_no_packet_even_if_they_say_so(bench: Bench, edges: Edges) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    whole = arriving(payload=bytes(72))
    edges.rest(bench.path)
    edges.send(whole, size=50)
    assert bench.path.poll(0.0) == [(edges.port.fileno(), (len(whole), 50, "judged"))]


# Which slot


def test_the_hosts_of_a_subnet_do_not_crowd_each_other_out(bench: Bench) -> None:
    hosts = [bytes([10, 5, 2, number]) for number in range(1, 255)]
    for host in hosts:
        bench.learn_route(host, PEER, MTU)
        bench.path.learn_path(PEER, host + OURS)
    assert sum(bench.from_tun(leaving(destination=host)) is not None for host in hosts) > 240
    assert sum(bench.from_udp(arriving(source=host)) is not None for host in hosts) > 240


def test_who_shares_a_slot_loses_it_but_takes_nothing_over(bench: Bench) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    for number in range(20_000):
        host = struct.pack("!BBH", 10, 6, number)
        bench.learn_route(host, OTHER, MTU)
        bench.path.learn_path(OTHER, host + OURS)
    assert bench.from_tun(leaving()) is None
    assert bench.from_udp(arriving()) is None
    assert bench.from_udp(arriving(), OTHER) is None
    assert bench.from_udp(arriving(source=host), OTHER) == arriving(source=host)


def test_what_is_in_a_slot_is_good_for_its_own_addresses_alone(bench: Bench) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    for number in range(4_000):
        host = struct.pack("!BBH", 10, 6, number)
        assert bench.from_tun(leaving(destination=host)) is None
        assert bench.from_udp(arriving(source=host)) is None
        assert bench.from_udp(arriving(destination=host)) is None


# Waiting


def test_after_a_pause_the_first_packet_goes_before_anybody_looks_for_more(bench: Bench, edges: Edges) -> None:
    """Those that follow go together."""
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    for _ in range(2):
        edges.rest(bench.path)
        for number in range(5):
            edges.give(vnet.PLAIN + leaving(identification=number))
        assert bench.path.poll(0.0) == []
        assert edges.sent() == [(leaving(identification=number, ttl=63), PEER) for number in range(5)]
        assert bench.path.take_counters()["sent_calls"] == 2
        edges.rest(bench.path)
        for number in range(5):
            edges.send(arriving(identification=number))
        assert bench.path.poll(0.0) == []
        first, *others = edges.given()
        assert first == (vnet.PLAIN, arriving(identification=0))
        assert len(others) == 1


def test_one_side_that_has_no_end_does_not_keep_the_other_waiting(bench: Bench, edges: Edges) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    given = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            edges.give(vnet.PLAIN + leaving(payload=bytes(1400)))
            given += 1
    assert given > 64
    edges.send(arriving())
    assert bench.path.poll(0.0) == []
    assert edges.given() == [(vnet.PLAIN, arriving())]
    sent = bench.path.take_counters()["sent_packets"]
    assert sent < given
    while sent < given:
        assert bench.path.poll(0.0) == []
        sent += bench.path.take_counters()["sent_packets"]
        edges.sent()


def test_what_is_left_to_python_keeps_no_datagram_waiting(bench: Bench, edges: Edges) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    edges.rest(bench.path)
    for _ in range(2):
        edges.give(vnet.PLAIN + b"nonsense")
    edges.send(arriving())
    assert bench.path.poll(0.0) == [(edges.tun.fileno(), 18)]
    assert edges.given() == [(vnet.PLAIN, arriving())]
    assert bench.path.poll(0.0) == [(edges.tun.fileno(), 18)]


def test_other_descriptors_are_reported_beside_a_packet(bench: Bench, edges: Edges) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    reading, writing = os.pipe()
    edges.epoll.register(reading, select.EPOLLIN)
    try:
        edges.rest(bench.path)
        os.write(writing, b"x")
        assert bench.path.poll(math.inf) == [(reading, None)]
        edges.give(vnet.PLAIN + leaving())
        assert bench.path.poll(math.inf) == [(reading, None)]
        assert edges.sent() == [(leaving(ttl=63), PEER)]
    finally:
        edges.epoll.unregister(reading)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("deadline", [0, -1.5, -math.inf, math.nan])
def test_a_deadline_that_is_past_or_no_number_ends_the_wait_at_once(bench: Bench, deadline: float) -> None:
    assert bench.path.poll(deadline) == []


def test_nothing_ends_the_wait_before_the_deadline(bench: Bench) -> None:
    deadline = time.monotonic() + 0.02
    assert bench.path.poll(deadline) == []
    assert time.monotonic() >= deadline


def test_a_carried_packet_does_not_move_the_deadline(bench: Bench, edges: Edges) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    edges.rest(bench.path)
    edges.give(vnet.PLAIN + leaving())
    deadline = time.monotonic() + 0.02
    assert bench.path.poll(deadline) == []
    assert time.monotonic() >= deadline
    assert edges.sent() == [(leaving(ttl=63), PEER)]


@pytest.fixture
def signals() -> Iterator[Callable[[Callable[..., object]], None]]:
    """Have a signal handled by a function, and come again and again."""
    sender: list[subprocess.Popen[bytes]] = []
    former = signal.getsignal(signal.SIGUSR1)

    def begin(handler: Callable[..., object]) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        words = ["sh", "-c", 'while kill -USR1 "$1"; do sleep 0.01; done', "sh", str(os.getpid())]
        sender.append(subprocess.Popen(words))
        signal.signal(signal.SIGUSR1, handler)

    yield begin
    for process in sender:
        process.kill()
        process.wait()
    signal.signal(signal.SIGUSR1, former)


def test_a_signal_ends_the_wait(bench: Bench, signals: Callable[[Callable[..., object]], None]) -> None:
    came: list[int] = []
    signals(lambda number, _frame: came.append(number))
    deadline = time.monotonic() + 50
    assert bench.path.poll(deadline) == []
    assert time.monotonic() < deadline
    assert signal.SIGUSR1 in came


def test_what_a_signal_s_handler_raises_ends_the_wait(
    bench: Bench, signals: Callable[[Callable[..., object]], None]
) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def stop(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise Stop

    with pytest.raises(Stop):  # noqa: PT012 - it may come before the wait does
        signals(stop)
        bench.path.poll(time.monotonic() + 50)


def test_what_judge_raises_is_raised(edges: Edges) -> None:
    def judge(length: int, size: int, sender: tuple[str, int]) -> Received:
        raise LookupError(sender[0])

    path = Bench(edges).make(judge=judge)
    edges.send(b"data", STRANGER)
    with pytest.raises(LookupError, match=STRANGER):
        path.poll(0.0)
    edges.rest(path)


def test_a_closed_epoll_is_told(bench: Bench) -> None:
    epoll = select.epoll()
    path = bench.make(epoll=epoll.fileno())
    epoll.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        path.poll(0.0)


def test_an_edge_that_cannot_be_read_is_python_s_to_find_out(bench: Bench, edges: Edges) -> None:
    """As a device that was deleted."""
    closed = os.open(os.devnull, os.O_WRONLY)
    with select.epoll() as epoll:
        edges.give(b"x")
        epoll.register(edges.tun.fileno(), select.EPOLLIN)
        os.dup2(edges.tun.fileno(), closed)
        duplicate = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)  # read(2) fails with EISDIR
        path = bench.make(epoll=epoll.fileno())
        kept = os.dup(edges.tun.fileno())
        os.dup2(duplicate, edges.tun.fileno())
        try:
            assert path.poll(0.0) == [(edges.tun.fileno(), None)]
        finally:
            os.dup2(kept, edges.tun.fileno())
            for descriptor in (closed, duplicate, kept):
                os.close(descriptor)
    os.read(edges.tun.fileno(), ROOM)


# Arguments


@pytest.mark.parametrize(
    "changes",
    [
        {"epoll": "x"},
        {"epoll": 1 << 40},
        {"tun": -(1 << 40)},
        {"sockets": None},
        {"sockets": ()},
        {"sockets": (1, 2, 3)},
        {"sockets": (None,)},
        {"sockets": (-1,)},
        {"packet": bytes(ROOM)},
        {"received": memoryview(bytearray(ROOM))},
        {"packet": bytearray()},
        {"packet": bytearray(ROOM - 1)},
        {"received": bytearray(100)},
        {"opened": bytearray(0xFFFE)},
        {"mtu": 0},
        {"mtu": 65536},
        {"port": 0},
        {"port": -1},
        {"port": 65536 + 8285},
        {"port": 1 << 40},
        {"port": "8285"},
        {"another": 1},
    ],
)
def test_a_fast_path_is_not_made_of_anything(bench: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        bench.make(**changes)


def test_there_is_no_half_a_fast_path() -> None:
    with pytest.raises(TypeError):
        FastPath.__new__(FastPath)
    with pytest.raises(TypeError):
        FastPath(1, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        type("Descendant", (FastPath,), {})


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("learn_route", (b"abc", PEER, 1, (PEER, 1))),
        ("learn_route", (b"abcde", PEER, 1, (PEER, 1))),
        ("learn_route", (b"", PEER, 1, (PEER, 1))),
        ("learn_route", ("abcd", PEER, 1, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 1, ("a name", 1))),
        ("learn_route", (b"abcd", PEER, 1, ("fd00::1", 1))),
        ("learn_route", (b"abcd", PEER, 1, (PEER + "\0", 1))),
        ("learn_route", (b"abcd", PEER, 1, ("\udc80", 1))),
        ("learn_route", (b"abcd", PEER, 1, (b"\x7f\0\0\1", 1))),
        ("learn_route", (b"abcd", PEER, 1, (PEER, 0))),
        ("learn_route", (b"abcd", PEER, 1, (PEER, 65536))),
        ("learn_route", (b"abcd", PEER, 1, (PEER,))),
        ("learn_route", (b"abcd", PEER, 1, None)),
        ("learn_route", (b"abcd", PEER, 1, PEER)),
        ("learn_route", (b"abcd", 5, 1, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 0, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, -1, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 65536, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 1 << 70, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 1.5, (PEER, 1))),
        ("learn_route", ()),
        ("learn_session", (None, 1, 2, PEER, (PEER, 1), 1.0)),
        ("learn_session", ()),
        ("learn_path", (PEER, b"abcdefg")),
        ("learn_path", (PEER, b"abcdefghi")),
        ("learn_path", (PEER, "abcdefgh")),
        ("learn_path", (PEER, b"abcdefgh" * 2)),
        ("learn_path", ("", b"abcdefgh")),
        ("learn_path", ("fd00::1", b"abcdefgh")),
        ("learn_path", (PEER + "\0", b"abcdefgh")),
        ("learn_path", ("\udc80", b"abcdefgh")),
        ("learn_path", (None, b"abcdefgh")),
        ("learn_path", (PEER,)),
        ("poll", ("soon",)),
        ("poll", ()),
        ("forget", (1,)),
    ],
)
def test_arguments_of_another_form_are_refused_and_nothing_is_learnt(
    bench: Bench, method: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        getattr(bench.path, method)(*arguments)
    assert bench.from_tun(leaving(destination=b"abcd")) is None
    assert bench.from_udp(arriving(source=b"abcd", destination=b"efgh")) is None


def test_the_environment_switches_the_extension_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYFLANNEL_NO_EXTENSIONS", raising=False)
    assert load_fast_path() is FastPath
    monkeypatch.setenv("PYFLANNEL_NO_EXTENSIONS", "1")
    assert load_fast_path() is None


# Memory


def test_the_buffers_stay_where_they_are_while_there_is_a_fast_path(edges: Edges) -> None:
    bench = Bench(edges)
    for buffer in (bench.tun_buffer, bench.udp_buffer):
        with pytest.raises(BufferError):
            buffer.clear()
    with pytest.raises(ValueError, match="buffer"):
        bench.make(received=bytearray())
    del bench.path
    for buffer in (bench.tun_buffer, bench.udp_buffer):
        buffer.clear()


def test_a_cycle_is_collected(edges: Edges) -> None:
    class Judge:
        path: FastPath

        def __call__(self, length: int, size: int, sender: tuple[str, int]) -> Received:
            return length, size, None

    judge = Judge()
    judge.path = Bench(edges).make(judge=judge)
    gone = weakref.ref(judge)
    del judge
    gc.collect()
    assert gone() is None


def test_memory_stays_flat_over_many_polls(bench: Bench, edges: Edges) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    carried, strange = vnet.PLAIN + leaving(), vnet.PLAIN + leaving(ttl=1)

    def rounds(count: int) -> None:
        for _ in range(count):
            for packet in (carried, strange):
                edges.give(packet)
                bench.path.poll(0.0)
                bench.path.poll(0.0)
            edges.peers[PEER].recv(100)
            edges.send(b"nonsense")
            bench.path.poll(0.0)
            bench.path.poll(0.0)
            bench.judged.clear()
            bench.learn_route(THEIRS, PEER, MTU)
            bench.path.learn_path(PEER, THEIRS + OURS)
            bench.learn_route(b"elsewhere, sixte", "255.255.255.255", MTU)
            bench.path.take_notes()
            for _ in range(2):
                with pytest.raises(ValueError, match="bytes of"):
                    bench.path.learn_path(PEER, b"")
                with pytest.raises(ValueError, match="buffer"):
                    bench.make(received=bytearray())
            bench.path.take_counters()

    def held() -> list[int]:
        things = (None, PEER, FastPath, bench.path, bench.tun_buffer, bench.udp_buffer)
        return [sys.getrefcount(thing) for thing in things]

    rounds(100)
    gc.collect()
    before, blocks = held(), sys.getallocatedblocks()
    rounds(2_000)
    gc.collect()
    assert all(abs(after - former) < 100 for after, former in zip(held(), before, strict=True))
    assert sys.getallocatedblocks() < blocks + 500


# Whatever comes


@st.composite
def hostile(draw: st.DrawFn, source: bytes, destination: bytes) -> bytes:
    """A good packet, or one with a few bytes changed and perhaps cut or lengthened, or any bytes."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=60))
    size = draw(st.sampled_from([0, 1, 12, 1443, 1444, 1445]))
    ttl = draw(st.sampled_from([0, 1, 2, 64, 255]))
    options = draw(st.sampled_from([b"", b"", b"", bytes(4)]))
    packet = Packet(
        bytes(size), UDP, source, destination, ttl=ttl, ip_options=options, identification=draw(st.integers(0, 9))
    )
    data = bytearray(packet.build())
    if kind < 3:
        return bytes(data)
    if kind < 6:  # checksums that turn over when a hop is taken
        struct.pack_into("!H", data, 10, draw(st.sampled_from([0, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFF])))
        return bytes(data)
    for position, value in draw(st.lists(st.tuples(st.integers(0, 27), st.integers(0, 255)), max_size=3)):
        data[position] = value
    if kind < 8:  # the checksum is right for what was changed
        data[10:12] = bytes(2)
        struct.pack_into("!H", data, 10, reference.internet_checksum(bytes(data[:20])))
    else:
        data = data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=3))
    return bytes(data)


headers = (
    st.just(vnet.PLAIN) | st.binary(min_size=10, max_size=10) | st.binary(min_size=8, max_size=8).map(b"\0\0".__add__)
)


@given(packet=hostile(OURS, THEIRS), header=headers)
@example(packet=b"", header=vnet.PLAIN)
def test_any_packet_of_the_device_is_sent_as_python_would_or_left_as_it_was(packet: bytes, header: bytes) -> None:
    bench = Bench(shared())
    bench.learn_route(THEIRS, PEER, MTU)
    sent = bench.from_tun(packet, header)
    if sent is not None and not header[1] and not header[0] & vnet.NEEDS_CSUM:
        assert not header[0] & ~3
        assert packet[0] == 0x45
        assert packet[8] >= 2
        assert packet[16:20] == THEIRS
        assert int.from_bytes(packet[2:4], "big") == len(packet) <= MTU
        assert sent == one_hop_on(packet)
    if sent is None:
        assert bench.counted() == (0, 0, 0, 0)


@given(packet=hostile(THEIRS, OURS), sender=st.sampled_from([PEER, PEER, OTHER, STRANGER]), right_port=st.booleans())
def test_any_datagram_is_delivered_as_python_would_or_left_as_it_was(
    packet: bytes, sender: str, right_port: bool
) -> None:
    bench = Bench(shared())
    bench.path.learn_path(PEER, THEIRS + OURS)
    given = bench.from_udp(packet, sender, right_port=right_port)
    if given is not None:
        assert (sender, right_port) == (PEER, True)
        assert packet[12:20] == THEIRS + OURS
        assert packet[0] == 0x45
        assert reference.internet_checksum(packet[:20]) == 0
        assert given == packet[: int.from_bytes(packet[2:4], "big")]
    assert bench.counted() == ((0, 0, 0, 0) if given is None else (0, 0, 1, len(packet)))


_shared: list[Edges] = []


def shared() -> Edges:
    """Edges for properties, which can't have those of a fixture."""
    return _shared[0]


@pytest.fixture(scope="module", autouse=True)
def _share(edges: Edges) -> Iterator[None]:
    _shared.append(edges)
    yield
    _shared.clear()


# Beside Python


class Twins:
    """Two nodes that see the same: one with a fast path between real descriptors, one without between edges in memory.

    Subnet 10.5.1.0/24; 10.5.2.0/24 and 10.5.3.0/24 are peers'.
    """

    def __init__(self, edges: Edges, *, offload: bool) -> None:
        self.edges = edges
        self.tun, self.underlay = MemoryTun(), MemoryUnderlay()
        self.fast = self._forwarder(edges.tun, edges.port, offload)
        self.plain = self._forwarder(self.tun, self.underlay, offload)
        self.path = edges.attach(self.fast)
        self.known: dict[str, set[int]] = {PEER: set(), OTHER: set()}
        edges.port.counters.update(dict.fromkeys(edges.port.counters, 0))
        self.refused = dict.fromkeys(edges.port.counters, 0)
        self.move(2, PEER)
        self.move(3, OTHER)

    @staticmethod
    def _forwarder(tun: Any, underlay: Any, offload: bool) -> Forwarder:
        splitter = joiner = None
        if offload:
            numpy_path = pytest.importorskip("pyflannel_backends.userspace.offload", reason="needs numpy (extra: udp)")
            splitter, joiner = numpy_path.Splitter(), numpy_path.Joiner()
        table = PeerTable([ip_network("10.5.1.0/24"), ip_network("fd00:5:1::/48")])
        limit = RateLimit(0.0, 1e9, lambda: 0.0)
        addresses = {4: bytes([10, 5, 1, 0]), 6: HOSTS6[0][:15] + bytes(1)}
        return Forwarder(tun, underlay, table, QueueLimits(MTU, addresses), limit, splitter, joiner)

    def move(self, number: int, holder: str | None) -> None:
        """A subnet is another peer's, or nobody's, as the worker does it when it is told."""
        for forwarder in (self.fast, self.plain):
            for subnet in ip_network(f"10.5.{number}.0/24"), ip_network(f"fd00:5:{number}::/48"):
                if holder is None:
                    forwarder.table.remove(subnet)
                else:
                    forwarder.table.put(Peer(subnet, holder))
        for peer, subnets in self.known.items():
            subnets.discard(number)
            if peer == holder:
                subnets.add(number)
            (self.edges.port.put(peer, ()) if subnets else self.edges.port.remove(peer))
        for forwarder in (self.fast, self.plain):
            forwarder.table_changed()

    def out(self, header: bytes, packet: bytes) -> None:
        self.tun.incoming.append(header + packet)
        self.plain.from_tun()
        self.plain.from_tun()
        self.edges.rest(self.path)
        self.edges.give(header + packet)
        self._work()

    def come(self, packet: bytes, sender: str, right_port: bool, size: int = 0) -> None:
        """What one call brings: a packet, or several of one size, the last of which may be shorter."""
        size = size or len(packet)
        count = -(-len(packet) // size) if packet else 1
        if not self.known.get(sender):
            self.refused["drop_unknown_sender"] += count
        elif not right_port:
            self.refused["drop_source_port"] += count
        else:
            self.underlay.incoming.append((packet, size, sender))
            self.plain.from_underlay(self.underlay)
            self.plain.from_underlay(self.underlay)
        self.edges.rest(self.path)
        self.edges.send(packet, sender, size=size, right_port=right_port)
        self._work()

    def _work(self) -> None:
        for fd, read in self.path.poll(0.0):
            if fd == self.edges.tun.fileno():
                self.fast.from_tun(read)  # type: ignore[arg-type] # of the device
            else:
                self.fast.from_underlay(self.edges.port, read)  # type: ignore[arg-type] # of a socket

    def compare(self) -> None:
        """Both have sent and written the same."""
        assert self.edges.given() == self.tun.outgoing
        assert sorted(self.edges.sent()) == sorted(self.underlay.outgoing)
        self.tun.outgoing.clear()
        self.underlay.outgoing.clear()

    def compare_counters(self) -> int:
        """Returns how many packets the fast path has carried."""
        carried = self.path.take_counters()
        counters = {name: count + carried.get(name, 0) for name, count in self.fast.counters.items()}
        assert counters == self.plain.counters
        assert self.edges.port.counters == self.refused
        return carried["sent_packets"] + carried["received_packets"]


hosts = st.sampled_from([OURS, THEIRS, OTHERS, bytes([10, 5, 2, 9]), bytes([10, 5, 9, 9])])
steps = (
    super_packets().map(lambda made: ("out", *made))
    | st.tuples(trains(), st.sampled_from([PEER, PEER, PEER, OTHER])).map(
        lambda made: ("come", made[0][0], made[1], True, made[0][1])
    )
    | st.tuples(st.just("out"), st.just(vnet.PLAIN), st.tuples(hosts, hosts).flatmap(lambda ends: hostile(*ends)))
    | st.tuples(st.just("out"), headers, hostile(OURS, THEIRS))
    | st.tuples(
        st.just("come"),
        hosts.flatmap(lambda source: hostile(source, OURS)),
        st.sampled_from([PEER, PEER, OTHER, STRANGER]),
        st.sampled_from([True, True, True, False]),
    )
    | st.tuples(st.just("move"), st.sampled_from([2, 2, 3]), st.sampled_from([PEER, OTHER, None]))
    | st.tuples(st.just("forget"))
)


@pytest.mark.parametrize("offload", [True, False])
@given(todo=st.lists(steps, max_size=30))
def test_python_alone_would_have_done_the_same(offload: bool, todo: list[tuple[Any, ...]]) -> None:
    twins = Twins(shared(), offload=offload)
    for name, *arguments in todo:
        if name == "forget":
            twins.fast.forget_path_mtus()
            twins.plain.forget_path_mtus()
        else:
            getattr(twins, name)(*arguments)
        twins.compare()
    twins.compare_counters()


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("ends", [(OURS, THEIRS), (HOSTS6[0], HOSTS6[1])], ids=["IPv4", "IPv6"])
def test_whole_bursts_are_carried_without_python(edges: Edges, protocol: int, ends: tuple[bytes, bytes]) -> None:
    """Cut and joined as Python does it, byte by byte."""
    twins = Twins(edges, offload=True)
    ours, theirs = ends
    parts = Packet(bytes(range(256)) * 200, protocol, ours, theirs, flags=ACK | PSH, identification=0xFFF0)
    offset, kind = (
        (6, vnet.GSO_UDP_L4) if protocol == UDP else (16, vnet.GSO_TCPV6 if len(ours) == 16 else vnet.GSO_TCPV4)
    )
    header = vnet.VnetHeader(1, kind, parts.header_length, 1400, parts.ip_length, offset).pack()
    wire = reference.segments(Packet(bytes(range(256)) * 200, protocol, theirs, ours), 1400, hops=0)
    for _ in range(3):
        twins.out(header, parts.build_partial())
        twins.come(b"".join(wire), PEER, True, len(wire[0]))
        assert len(twins.tun.outgoing) == 1
        assert len(twins.underlay.outgoing) == len(wire) == 37
        twins.compare()
    assert twins.compare_counters() == 2 * 2 * 37


def test_flows_that_go_on_are_carried_without_python(edges: Edges) -> None:
    twins = Twins(edges, offload=False)
    for _ in range(10):
        twins.out(vnet.PLAIN, leaving())
        twins.come(arriving(), PEER, True)
        twins.compare()
    assert twins.compare_counters() == 2 * 9  # all but the first, which was looked up


def test_a_peer_that_lost_its_subnet_neither_gets_nor_sends_a_packet(edges: Edges) -> None:
    twins = Twins(edges, offload=False)

    def exchange() -> tuple[list[str], int]:
        for _ in range(3):
            twins.out(vnet.PLAIN, leaving())
            twins.come(arriving(), PEER, True)
        sent, given = edges.sent(), edges.given()
        return [peer for _, peer in sent], len([data for _, data in given if data[12:16] == THEIRS])

    assert exchange() == ([PEER] * 3, 3)
    twins.move(2, None)
    assert exchange() == ([], 0)
    twins.move(2, PEER)
    assert exchange() == ([PEER] * 3, 3)
    twins.move(2, OTHER)
    assert exchange() == ([OTHER] * 3, 0)
    twins.move(2, PEER)
    assert exchange() == ([PEER] * 3, 3)
