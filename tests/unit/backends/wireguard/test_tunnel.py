"""The tunnel between sockets in memory: batches come out as they went in, whatever is mixed into them on the way."""

from __future__ import annotations

import errno
import functools
import os
import random
from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.wireguard.world import WALL

from pyflannel_backends.userspace.ports import Endpoint, Inlet, UdpSocket
from pyflannel_backends.wireguard.machine import Timestamps, WireguardMachine
from pyflannel_backends.wireguard.messages import OVERHEAD, TRANSPORT, TransportHeader, kind
from pyflannel_backends.wireguard.noise import StaticKeys
from pyflannel_backends.wireguard.session import REJECT_AFTER_MESSAGES, nonce
from pyflannel_backends.wireguard.tunnel import Tunnel, padded

pytestmark = pytest.mark.usefixtures("path")

MTU = 1420
PSK = bytes(range(32))


class MemorySocket:
    """Takes what is sent, and gives what the test puts in: datagrams back to back, as GRO would."""

    overhead = 28

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.sent: list[tuple[Endpoint, bytes]] = []
        self.largest = 65507
        self.incoming: deque[tuple[list[bytes], Endpoint]] = deque()
        self.is_open = True

    def send(self, data: memoryview, size: int, endpoint: Endpoint) -> int:
        assert len(data) <= 65507
        assert -(-len(data) // size) <= 64
        if size > self.largest:
            return errno.EMSGSIZE
        return self.send_in_fragments(data, size, endpoint)

    def send_in_fragments(self, data: memoryview, size: int, endpoint: Endpoint) -> int:
        self.sent += [(endpoint, bytes(data[at : at + size])) for at in range(0, len(data), size)]
        return 0

    def receive(self, buffer: memoryview) -> tuple[int, int, Endpoint] | None:
        if not self.incoming:
            return None
        datagrams, sender = self.incoming.popleft()
        whole = b"".join(datagrams)
        buffer[: len(whole)] = whole
        return len(whole), len(datagrams[0]), sender

    def path_mtu(self, endpoint: Endpoint) -> int:
        return 1472

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.is_open = False


class Node:
    """One end: a tunnel, its socket, and the clock that it shares with the other."""

    def __init__(self, number: int, clock: list[float], ipv6: bool = False) -> None:
        self.random = random.Random(number)
        self.identity = StaticKeys(self.random.randbytes(32))
        self.id = b64encode(self.identity.public).decode()
        self.endpoint: Endpoint = (f"2001:db8::{number}" if ipv6 else f"192.0.2.{number}", 51820)
        self.socket = MemorySocket(self.endpoint)
        self.socket.overhead = 48 if ipv6 else 28
        timestamps = Timestamps(lambda: WALL + int(clock[0] * 1e9), 0, lambda timestamp: None)
        machine = WireguardMachine(self.identity, timestamps, self.random.randbytes, mtu=MTU)
        self.tunnel = Tunnel(machine, [lambda: cast(UdpSocket, self.socket)], MTU, psk=PSK, clock=lambda: clock[0])
        (self.inlet,) = self.tunnel.open()
        self.buffer = memoryview(bytearray(1 << 16))

    def know(self, other: Node, name: str = "lease") -> None:
        self.tunnel.put(other.id, [name, *other.endpoint])

    def send(self, packets: Sequence[bytes], other: Node) -> None:
        size = len(packets[0])
        step = self.tunnel.rows(size)
        for first in range(0, len(packets), step):
            data = memoryview(b"".join(packets[first : first + step]))
            assert self.tunnel.send(data, size, other.id) == 0

    def take(self) -> list[bytes]:
        """What one node sent, removed from the wire."""
        sent, self.socket.sent = self.socket.sent, []
        return [data for _, data in sent]

    def receive(self, datagrams: Sequence[bytes], sender: Endpoint) -> tuple[list[bytes], str | None]:
        """The packets in what one receive call brings, each as long as its IP header says."""
        self.socket.incoming.append((list(datagrams), sender))
        inlet: Inlet = self.inlet
        received = inlet.receive(self.buffer)
        assert received is not None
        length, size, peer = received
        if peer is None:
            return [], None
        rows = [bytes(self.buffer[at : min(at + size, length)]) for at in range(0, length, size)]
        return [row[: int.from_bytes(row[2:4], "big")] for row in rows], peer


class Pair:
    """Two ends that have a session."""

    def __init__(self, ipv6: bool = False) -> None:
        self.clock = [100.0]
        self.one, self.two = Node(1, self.clock, ipv6), Node(2, self.clock, ipv6)
        self.one.know(self.two)
        self.two.know(self.one)
        self.one.send([packet(20)], self.two)
        self.settle()

    def settle(self) -> list[bytes]:
        """Deliver one by one until nothing is under way; returns the packets that arrived at two."""
        arrived: list[bytes] = []
        while self.one.socket.sent or self.two.socket.sent:
            for data in self.one.take():
                arrived += self.two.receive([data], self.one.endpoint)[0]
            for data in self.two.take():
                self.one.receive([data], self.two.endpoint)
        return arrived


def packet(length: int, fill: int = 0) -> bytes:
    """IPv4 as far as the tunnel looks."""
    return bytes([0x45, 0, length >> 8, length & 0xFF]) + bytes([fill & 0xFF]) * (length - 4)


def test_padding() -> None:
    assert [padded(size, 1420) for size in (1, 16, 17, 1408, 1409, 1420, 1500)] == [16, 16, 32, 1408, 1420, 1420, 1500]


@pytest.mark.parametrize("ipv6", [False, True], ids=["over IPv4", "over IPv6"])
def test_a_first_packet_waits_for_the_handshake(ipv6: bool) -> None:
    clock = [100.0]
    pair = Pair.__new__(Pair)
    pair.clock, pair.one, pair.two = clock, Node(1, clock, ipv6), Node(2, clock, ipv6)
    pair.one.know(pair.two)
    pair.two.know(pair.one)
    pair.one.send([packet(100, 1), packet(100, 2)], pair.two)
    assert pair.settle() == [packet(100, 1), packet(100, 2)]
    assert pair.one.socket.sent == []


def test_packets_that_are_too_big_for_the_path_go_in_fragments_if_they_must_or_have_waited() -> None:
    pair = Pair()
    pair.one.socket.largest = 1000
    plain = memoryview(packet(1280, 1) + packet(1280, 2))
    assert pair.one.tunnel.send(plain, 1280, pair.two.id) == errno.EMSGSIZE
    assert pair.settle() == []
    assert pair.one.tunnel.send_in_fragments(plain, 1280, pair.two.id) == 0
    assert pair.settle() == [packet(1280, 1), packet(1280, 2)]
    pair.clock[0] += 200
    pair.one.send([packet(1280, 3)], pair.two)
    assert pair.settle() == [packet(1280, 3)]


@given(st.integers(20, MTU), st.integers(1, 64), st.integers(20, MTU))
def test_a_batch_comes_out_as_it_went_in(size: int, rows: int, last: int) -> None:
    pair = Pair()
    packets = [packet(size, number) for number in range(rows - 1)] + [packet(min(last, size), 99)]
    pair.one.send(packets, pair.two)
    wire = pair.one.take()
    assert len(wire) == rows
    assert all(len(data) == padded(len(plain), MTU) + OVERHEAD for data, plain in zip(wire, packets, strict=True))
    arrived: list[bytes] = []
    step = pair.one.tunnel.rows(size)
    for first in range(0, rows, step):
        got, peer = pair.two.receive(wire[first : first + step], pair.one.endpoint)
        assert peer == pair.one.id
        arrived += got
    assert arrived == packets
    assert not any(pair.two.tunnel.counters.values())


@given(st.lists(st.integers(1393, 1408), min_size=1, max_size=20), st.integers(20, 1393))
def test_packets_of_different_lengths_that_padding_made_equal(lengths: list[int], last: int) -> None:
    """Each in a batch of its own when sent, all in one when received."""
    pair = Pair()
    packets = [packet(length, number) for number, length in enumerate([*lengths, last])]
    for plain in packets:
        pair.one.send([plain], pair.two)
    got, _ = pair.two.receive(pair.one.take(), pair.one.endpoint)
    assert got == packets


faults = st.sampled_from(["fine", "fine", "fine", "forged", "replayed", "unknown", "noise", "keepalive", "cut"])


@given(st.lists(faults, min_size=1, max_size=20), st.booleans(), st.sampled_from([1420, 1400, 40]))
def test_what_is_mixed_in_is_taken_out(kinds: list[str], reverse: bool, size: int) -> None:
    pair = Pair()
    pair.one.send([packet(size, 200)], pair.two)
    (old,) = pair.one.take()
    pair.two.receive([old], pair.one.endpoint)
    pair.one.send([packet(size, number) for number in range(len(kinds))], pair.two)
    wire = pair.one.take()
    expected = []
    datagrams = []
    for number, (fault, data) in enumerate(zip(kinds, wire, strict=True)):
        changed = bytearray(data)
        if fault == "forged":
            changed[20] ^= 1
        elif fault == "replayed":
            changed[:] = old
        elif fault == "unknown":
            changed[4] ^= 1
        elif fault == "noise":
            changed[0] ^= 0xFF
        else:
            expected.append(packet(size, number))
        datagrams.append(bytes(changed))
    if kinds[-1] in ("cut", "keepalive"):
        expected.pop()
        if kinds[-1] == "keepalive":
            session = pair.one.tunnel.machine.peers["lease"].current
            assert session is not None
            datagrams[-1] = session.seal(b"") or b""
        else:
            datagrams[-1] = datagrams[-1][:20]
    if reverse and kinds[-1] not in ("cut", "keepalive"):
        datagrams.reverse()
        expected.reverse()
    got, peer = pair.two.receive(datagrams, pair.one.endpoint)
    assert got == expected
    assert peer == (pair.one.id if expected else None)
    counters = pair.two.tunnel.counters
    refused = counters["drop_unauthentic"] + counters["drop_replayed"]
    assert refused == kinds.count("forged") + kinds.count("replayed")
    assert counters["drop_unknown_session"] == kinds.count("unknown")
    assert pair.two.receive(datagrams, pair.one.endpoint) == ([], None), "a second time nothing is new"


def test_two_sessions_in_one_call() -> None:
    pair = Pair()
    pair.clock[0] += 121
    pair.one.send([packet(100, 1)], pair.two)
    first, initiation = pair.one.take()
    pair.two.receive([initiation], pair.one.endpoint)
    (response,) = pair.two.take()
    pair.one.receive([response], pair.two.endpoint)
    pair.one.take()
    pair.one.send([packet(100, 2), packet(100, 3)], pair.two)
    got, peer = pair.two.receive([first, *pair.one.take()], pair.one.endpoint)
    assert got == [packet(100, 1), packet(100, 2), packet(100, 3)]
    assert peer == pair.one.id


def test_a_session_that_was_promised_is_confirmed_by_a_batch() -> None:
    pair = Pair()
    pair.clock[0] += 121
    pair.one.send([packet(100, 1)], pair.two)
    pair.settle()
    assert pair.two.tunnel.machine.peers["lease"].next is None
    pair.two.send([packet(100, 1)] * 3, pair.one)
    got, _ = pair.one.receive(pair.two.take(), pair.two.endpoint)
    assert len(got) == 3


def test_a_peer_that_changed_its_key_is_the_same_peer() -> None:
    """Its packets under the old sessions count as sent by the new name."""
    pair = Pair()
    former, one, two = pair.one.id, pair.one, pair.two
    one.send([packet(100, 1)], two)
    (before,) = one.take()
    one.identity = StaticKeys(one.random.randbytes(32))
    one.tunnel.machine.set_identity(one.identity, pair.clock[0])
    one.id = b64encode(one.identity.public).decode()
    two.know(one)
    two.tunnel.remove(former)
    assert two.receive([before], one.endpoint) == ([packet(100, 1)], one.id)
    two.send([packet(100, 2)], one)
    got = [one.receive([data], two.endpoint)[0] for data in two.take()]
    assert [packet(100, 2)] in got
    pair.settle()
    two.tunnel.remove(one.id)
    one.send([packet(100, 3)], two)
    assert pair.settle() == []
    assert not two.tunnel.machine.peers


def test_two_leases_with_one_key_are_one_peer() -> None:
    pair = Pair()
    pair.two.know(pair.one, "another lease")
    pair.one.send([packet(100, 1)], pair.two)
    assert pair.settle() == [packet(100, 1)]
    assert list(pair.two.tunnel.machine.peers) == ["lease"]
    assert not pair.two.tunnel.failures()


def test_nobody_can_be_sent_to_who_is_no_peer() -> None:
    pair = Pair()
    assert pair.one.tunnel.send(memoryview(packet(100)), 100, "x") != 0


def test_whoever_has_our_own_key_is_nobody_and_others_stay() -> None:
    """As when the key file was replaced, and the daemon has not looked at it yet."""
    pair = Pair()
    pair.one.tunnel.put(pair.one.id, ["another lease", "192.0.2.9", 51820])
    assert pair.one.tunnel.send(memoryview(packet(20)), 20, pair.one.id) == errno.EHOSTUNREACH
    assert pair.one.take() == []
    pair.one.send([packet(20)], pair.two)
    assert pair.settle() == [packet(20)]
    pair.one.tunnel.remove(pair.one.id)


def test_what_is_told_of_peers() -> None:
    pair = Pair()
    pair.clock[0] += 5
    status = pair.two.tunnel.status()["peers"][pair.one.id]
    assert status["endpoint"] == pair.one.endpoint
    assert status["handshake_age"] == 5
    assert status["received_bytes"] > status["sent_bytes"] > 0
    pair.one.tunnel.close()
    assert not pair.one.socket.is_open


def test_a_silent_peer_is_told_of() -> None:
    clock = [0.0]
    one, two = Node(1, clock), Node(2, clock)
    one.know(two)
    one.send([packet(100)], two)
    while clock[0] < 100:
        clock[0] = one.tunnel.deadline
        one.tunnel.expire(clock[0])
    assert "no answer to handshakes at 192.0.2.2:51820" in one.tunnel.failures()[two.id]


def test_no_number_is_used_twice_over_batches_and_single_packets() -> None:
    pair = Pair()
    seen: set[bytes] = set()
    for rows in (1, 46, 2, 64, 1):
        pair.one.send([packet(1420, 1)] * rows, pair.two)
        wire = pair.one.take()
        headers = {data[:16] for data in wire if kind(data) == TRANSPORT}
        assert len(headers) == rows
        assert not headers & seen
        seen |= headers


@pytest.mark.parametrize("rows", [1, 3])
def test_the_last_numbers_of_a_key_are_not_taken(rows: int) -> None:
    """Not even from a peer that has the key."""
    pair = Pair()
    session = pair.one.tunnel.machine.peers["lease"].current
    assert session is not None

    def message(counter: int) -> bytes:
        header = TransportHeader(session.remote_index, counter).pack()
        return header + session.send_key.encrypt(nonce(counter), packet(32), None)

    first = REJECT_AFTER_MESSAGES - rows + 1
    wire = [message(counter) for counter in range(first, first + rows)]
    got, _ = pair.two.receive(wire, pair.one.endpoint)
    assert got == [packet(32)] * (rows - 1)
    assert pair.two.tunnel.counters["drop_replayed"] + pair.two.tunnel.counters["drop_unauthentic"] == 1


@given(st.binary(max_size=1500), st.integers(1, 1500))
def test_anything_may_come(data: bytes, size: int) -> None:
    pair = shared(os.environ.get("PYFLANNEL_NO_EXTENSIONS"))
    datagrams = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    assert pair.two.receive(datagrams, ("203.0.113.1", 1)) == ([], None)
    assert pair.two.socket.sent == []


def test_nobody_moves_to_where_nothing_can_be_sent() -> None:
    """Whoever is on the way may write port 0 into a datagram that opens: it is as if it had been lost."""
    pair = Pair()
    pair.one.send([packet(100)], pair.two)
    (data,) = pair.one.take()
    before = pair.two.tunnel.counters["drop_no_message"]
    assert pair.two.receive([data, data], (pair.one.endpoint[0], 0)) == ([], None)
    assert pair.two.receive([b""], (pair.one.endpoint[0], 0)) == ([], None)
    assert pair.two.tunnel.counters["drop_no_message"] == before + 3
    assert pair.two.receive([data], pair.one.endpoint) == ([packet(100)], pair.one.id)
    pair.two.send([packet(50)], pair.one)
    assert [endpoint for endpoint, _ in pair.two.socket.sent] == [pair.one.endpoint]


@pytest.mark.parametrize("rows", [64, 65, 128])
def test_more_messages_in_a_call_than_a_peer_sends_in_one(rows: int) -> None:
    """Linux from 6.9 on takes 128 from a sender on the same machine, and gives them as they are."""
    pair = Pair()
    pair.one.send([packet(100, number) for number in range(rows)], pair.two)
    assert pair.two.receive(pair.one.take(), pair.one.endpoint) == (
        [packet(100, number) for number in range(rows)],
        pair.one.id,
    )


@functools.cache
def shared(_: str | None) -> Pair:
    """One for each path."""
    return Pair()
