"""Whole bursts sealed and opened between real descriptors: the fast path and Python do the same, byte by byte.

Twins see the same device and the same peer; one has a fast path. What they send is compared as it is on the wire, so
sessions have fixed keys.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.bursts import HOSTS6, OURS, THEIRS, super_packets, trains
from tests.unit.backends.userspace.edges import SocketTun
from tests.unit.backends.userspace.reference import ACK, PSH, TCP, UDP, Packet
from tests.unit.backends.wireguard.world import WALL

from pyflannel_backends.userspace import vnet
from pyflannel_backends.userspace.fastpath import load_transport
from pyflannel_backends.userspace.forward import Forwarder, QueueLimits, RateLimit
from pyflannel_backends.userspace.ipv6 import parse as parse6
from pyflannel_backends.userspace.packet import parse
from pyflannel_backends.userspace.ports import Endpoint, UdpSocket
from pyflannel_backends.userspace.table import Peer as Lease
from pyflannel_backends.userspace.table import PeerTable
from pyflannel_backends.wireguard.machine import Timestamps, WireguardMachine
from pyflannel_backends.wireguard.messages import OVERHEAD, TransportHeader
from pyflannel_backends.wireguard.noise import StaticKeys, TransportKeys
from pyflannel_backends.wireguard.session import REJECT_AFTER_MESSAGES, Session, nonce
from pyflannel_backends.wireguard.tunnel import Tunnel, padded

pytest.importorskip("numpy")
from pyflannel_backends.userspace.offload import Joiner, Splitter

MTU = 1420
SEND, RECEIVE = b"s" * 32, b"r" * 32
INDEX, REMOTE = 0x11223344, 0x55667788
PEER = b64encode(b"p" * 32).decode()
OTHER = b64encode(b"o" * 32).decode()
_SEGMENT = 103


class Node:
    """10.5.1.0/24 with a session with the holder of 10.5.2.0/24, who is a socket of the test's."""

    def __init__(self, *, native: bool, ipv6: bool = False, clock: float = 0.0) -> None:
        host = "::1" if ipv6 else "127.0.0.1"
        self.kernel, self._queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self._queue.setblocking(False)
        self.peer = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind((host, 0))
        self.peer.setblocking(False)
        self.offset = clock
        timestamps = Timestamps(lambda: WALL, 0, lambda timestamp: None)
        machine = WireguardMachine(StaticKeys(b"i" * 32), timestamps, lambda size: bytes(size), mtu=MTU)
        self.tunnel = Tunnel(machine, [lambda: UdpSocket(host, 0, offload=True)], MTU, clock=self.now)
        (self.inlet,) = self.tunnel.open()
        with socket.socket(fileno=socket.dup(self.inlet.fileno())) as same:
            self.address = same.getsockname()
        self.tunnel.put(PEER, ["lease", *self.endpoint])
        self.tunnel.put(OTHER, ["other lease", host, 9])
        self.taken: list[bytes] = []
        table = PeerTable([ip_network("10.5.1.0/24"), ip_network("fd00:5:1::/48")])
        for subnet, peer in (("10.5.2.0/24", PEER), ("fd00:5:2::/48", PEER), ("10.5.3.0/24", OTHER)):
            table.put(Lease(ip_network(subnet), peer))
        limits = QueueLimits(MTU, {4: bytes([10, 5, 1, 0]), 6: HOSTS6[0][:15] + bytes(1)})
        tun = SocketTun(self._queue.fileno())
        limit = RateLimit(0.0, 1e9, lambda: 0.0)
        self.forwarder = Forwarder(tun, self.tunnel, table, limits, limit, Splitter(), Joiner())
        self.epoll = select.epoll()
        for source in (tun, self.inlet):
            self.epoll.register(source.fileno(), select.EPOLLIN)
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("PYFLANNEL_NO_EXTENSIONS", raising=False)
            if not native:
                environment.setenv("PYFLANNEL_NO_EXTENSIONS", "1")
            self.session = self.begin(INDEX, REMOTE)
            self.path = self.tunnel.fast_path(self.forwarder.device_side(self.epoll.fileno(), tun.fileno()))
        assert (self.path is not None) == native
        self.forwarder.attach(self.path)

    def now(self) -> float:
        return time.monotonic() + self.offset

    @property
    def endpoint(self) -> Endpoint:
        address: Endpoint = self.peer.getsockname()[:2]
        return address

    def begin(self, index: int, remote: int) -> Session:
        """A session as a handshake would have left it."""
        machine = self.tunnel.machine
        peer = machine.peers["lease"]
        keys = TransportKeys(SEND, RECEIVE)
        own = machine.public_key
        session = Session(peer, index, remote, keys, own_key=own, initiator=True, now=self.now())
        machine.sessions[index] = peer_session = session
        peer.current = peer_session
        machine.changes += 1
        return session

    def close(self) -> None:
        self.epoll.close()
        self.tunnel.close()
        for end in (self.kernel, self._queue, self.peer):
            end.close()

    def work(self) -> None:
        """Until there is nothing to do. What is ready is left to settle first, as the worker's loop does it."""
        while True:
            self.tunnel.settle()
            ready = self.path.poll(0.0) if self.path else [(fd, None) for fd, _ in self.epoll.poll(0)]
            for fd, read in ready:
                if fd == self._queue.fileno():
                    self.forwarder.from_tun(read)  # type: ignore[arg-type] # of the device
                else:
                    self.forwarder.from_underlay(self.inlet, read)  # type: ignore[arg-type] # of a socket
            if not ready and not self.epoll.poll(0):
                return

    def out(self, header: bytes, packet: bytes) -> None:
        self.kernel.send(header + packet)
        self.work()

    def come(self, datagrams: Sequence[bytes], sender: socket.socket | None = None) -> None:
        """In one call, if they are of one size."""
        whole, size = b"".join(datagrams), len(datagrams[0])
        segment = [(socket.SOL_UDP, _SEGMENT, size.to_bytes(2, "little"))] if 0 < size < len(whole) else []
        (sender or self.peer).sendmsg([whole], segment, 0, self.address)
        readable, _, _ = select.select([self.inlet], [], [], 10)
        assert readable
        self.work()

    def sent(self) -> list[bytes]:
        """Datagrams that the peer got."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.peer.recv(1 << 16))
        return found

    def given(self) -> list[tuple[bytes, bytes]]:
        """What was written to the device."""
        written = []
        with contextlib.suppress(BlockingIOError):
            while True:
                whole = self.kernel.recv(1 << 17)
                written.append((whole[:10], whole[10:]))
        return written

    def counted(self) -> dict[str, int]:
        """All that was counted, by forwarding, the port, the fast path and the machine."""
        self.tunnel.status()
        counters = {**self.forwarder.counters, **self.tunnel.counters}
        for name, count in self.path.take_counters().items() if self.path else ():
            if name.startswith("lone_"):  # udp's alone
                assert count == 0
                continue
            counters[name] += count
            if name in self.forwarder.counters:
                self.forwarder.counters[name] += count
            else:
                self.tunnel.counters[name] += count
        peer = self.tunnel.machine.peers["lease"]
        told = {"told_sent": peer.sent_bytes, "told_received": peer.received_bytes, "numbers": self.session.sent}
        return {**counters, **told}


class Twins:
    def __init__(self, ipv6: bool) -> None:
        self.nodes = Node(native=True, ipv6=ipv6), Node(native=False, ipv6=ipv6)
        self.number = 0

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def out(self, header: bytes, packet: bytes) -> None:
        for node in self.nodes:
            node.out(header, packet)

    def message(self, plain: bytes) -> bytes:
        """As the peer would send it."""
        self.number += 1
        return sealed(self.number, plain + bytes(padded(len(plain), MTU) - len(plain) if plain else 0))

    def come(self, datagrams: Sequence[bytes]) -> None:
        for node in self.nodes:
            node.come(datagrams)

    def compare(self) -> dict[str, int]:
        """Both have sent and written the same, and tell the same of it."""
        native, python = self.nodes
        assert native.sent() == python.sent()
        assert native.given() == python.given()
        counted = native.counted()
        assert counted == python.counted()
        return counted


def sealed(number: int, plain: bytes, index: int = INDEX) -> bytes:
    return TransportHeader(index, number).pack() + ChaCha20Poly1305(RECEIVE).encrypt(nonce(number), plain, None)


@pytest.fixture(params=[False, True], ids=["over IPv4", "over IPv6"])
def twins(request: pytest.FixtureRequest) -> Iterator[Twins]:
    with made(request.param) as both:
        yield both


@contextlib.contextmanager
def made(ipv6: bool) -> Iterator[Twins]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("PYFLANNEL_NO_EXTENSIONS", raising=False)
        if load_transport() is None:
            pytest.skip("the extension was not compiled, or without OpenSSL")
    try:
        both = Twins(ipv6)
    except OSError as error:
        pytest.skip(f"needs IPv6 on loopback: {error}")
    with contextlib.closing(both):
        yield both


ENDS = [(OURS, THEIRS), (HOSTS6[0], HOSTS6[1])]


def burst(protocol: int, ends: tuple[bytes, bytes]) -> tuple[bytes, bytes, list[bytes]]:
    """A super-packet of the device, and one's packets in the other direction."""
    ours, theirs = ends
    data = bytes(range(256)) * 160
    parts = Packet(data, protocol, ours, theirs, flags=ACK | PSH, identification=0xFFF0)
    tcp = vnet.GSO_TCPV6 if len(ours) == 16 else vnet.GSO_TCPV4
    offset, kind = (6, vnet.GSO_UDP_L4) if protocol == UDP else (16, tcp)
    size = MTU - parts.header_length
    header = vnet.VnetHeader(1, kind, parts.header_length, size, parts.ip_length, offset).pack()
    return header, parts.build_partial(), reference.segments(Packet(data, protocol, theirs, ours), size, hops=0)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("ends", ENDS, ids=["IPv4", "IPv6"])
def test_whole_bursts_without_python(twins: Twins, protocol: int, ends: tuple[bytes, bytes]) -> None:
    header, packet, wire = burst(protocol, ends)
    for _ in range(3):
        twins.out(header, packet)
        twins.come([twins.message(data) for data in wire])
        counted = twins.compare()
    assert counted["sent_packets"] == counted["received_packets"] == 3 * len(wire)
    native, _ = twins.nodes
    assert native.path is not None
    before = native.forwarder.counters["sent_packets"], native.forwarder.counters["received_packets"]
    native.out(header, packet)
    native.come([twins.message(data) for data in wire])
    carried = native.path.take_counters()
    assert carried["sent_packets"] == carried["received_packets"] == len(wire)
    assert before == (native.forwarder.counters["sent_packets"], native.forwarder.counters["received_packets"])


faults = st.sampled_from(
    ["fine"] * 8
    + ["forged", "replayed", "unknown", "noise", "other type", "last numbers", "jump"]
    + ["keepalive", "spoofed"]
)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[bytes], list[str]]:
    """Packets of one size, and what is to become of each."""
    whole, size = draw(trains())
    packets = [whole[at : at + size] for at in range(0, len(whole), size)]
    return packets, draw(st.lists(faults, min_size=len(packets), max_size=len(packets)))


def bend(twins: Twins, plain: bytes, fault: str) -> bytes:
    message = bytearray(twins.message(plain))
    match fault:
        case "forged":
            message[-1] ^= 1
        case "replayed":
            message = bytearray(sealed(max(1, twins.number - 1), bytes(len(message) - OVERHEAD)))
        case "unknown":
            message[4] ^= 1
        case "noise":
            message[:4] = b"\7\7\7\7"
        case "other type":
            message[0] = 1
        case "last numbers":
            message = bytearray(sealed(REJECT_AFTER_MESSAGES, bytes(len(message) - OVERHEAD)))
        case "jump":
            twins.number += 9000
        case "keepalive":
            message = bytearray(twins.message(b""))
        case "spoofed":
            message = bytearray(twins.message(plain[:12] + bytes([10, 5, 3, 9]) + plain[16:]))
    return bytes(message)


steps = (
    super_packets().map(lambda made: ("out", made))
    | st.tuples(st.just(vnet.PLAIN), st.sampled_from([100, 1392, 1393, 1405, 1420])).map(
        lambda made: ("out", (made[0], Packet(bytes(made[1] - 28), UDP, OURS, THEIRS).build()))
    )
    | arrivals().map(lambda made: ("come", made))
    | st.just(("other session", None))
    | st.just(("roam", None))
)


@pytest.mark.parametrize("ipv6", [False, True], ids=["over IPv4", "over IPv6"])
@given(todo=st.lists(steps, min_size=1, max_size=12))
def test_python_alone_would_have_done_the_same(ipv6: bool, todo: list[tuple[str, Any]]) -> None:
    with made(ipv6) as twins:
        index = INDEX
        for name, made_of in todo:
            if name == "out":
                twins.out(*made_of)
            elif name == "come":
                packets, bent = made_of
                wire = [bend(twins, plain, fault) for plain, fault in zip(packets, bent, strict=True)]
                size = len(wire[0])
                whole = [data for data in wire if len(data) == size]
                twins.come(whole + [data for data in wire if len(data) < size][:1])
            elif name == "roam":
                for node in twins.nodes:
                    node.tunnel.put(PEER, ["lease", node.endpoint[0], 9])
                    node.tunnel.put(PEER, ["lease", *node.endpoint])
            else:
                index += 1
                for node in twins.nodes:
                    node.begin(index, REMOTE + 1)
            _same(twins)


def _same(twins: Twins) -> None:
    """Grouped as they may be, it is the same packets that both have sent and written."""
    native, python = twins.nodes
    assert native.sent() == python.sent()
    assert _cut(native.given()) == _cut(python.given())
    one, other = native.counted(), python.counted()
    grouped = {"joined_packets", "received_bytes", "received_calls", "sent_calls", "received_packets"}
    assert {name: count for name, count in one.items() if name not in grouped} == {
        name: count for name, count in other.items() if name not in grouped
    }


def _cut(written: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Single packets, as the kernel would cut them."""
    splitter = Splitter()
    packets = []
    for header, packet in written:
        gso = vnet.unpack(header)
        if gso.gso_type == vnet.GSO_NONE:
            packets.append(packet)
            continue
        whole = bytearray(packet)
        whole[7 if packet[0] >> 4 == 6 else 8] += 1  # a splitter takes a hop
        found = parse6(whole) if packet[0] >> 4 == 6 else parse(whole)
        assert found is not None
        plan = splitter.plan(whole, found, gso)
        assert plan is not None
        splitter.split(plan, splitter.array(memoryview(whole)), 0, plan.segments, 0)
        ends = [*range(plan.wire, plan.segments * plan.wire, plan.wire), (plan.segments - 1) * plan.wire + plan.last]
        packets += [bytes(splitter.buffer[at : max(at, end)]) for at, end in zip([0, *ends], ends, strict=False)]
    return packets


@pytest.mark.parametrize("twins", [False], indirect=True, ids=["over IPv4"])
def test_numbers_are_used_once_whoever_sends_and_whatever_fails(twins: Twins) -> None:
    native, _ = twins.nodes
    header, packet, wire = burst(TCP, ENDS[0])
    seen: set[bytes] = set()
    for round_ in range(4):
        native.out(header, packet)
        if round_ == 1:  # a burst that can't be sent: what was sealed for it goes nowhere
            endpoint = native.endpoint
            native.tunnel.put(PEER, ["lease", "255.255.255.255", 9])  # forbidden without SO_BROADCAST
            native.out(header, packet)
            native.out(header, packet)
            native.tunnel.put(PEER, ["lease", *endpoint])
        native.tunnel.send(memoryview(bytes(100)), 100, PEER)
        messages = [data for data in native.sent() if data[0] == 4]
        headers = {data[:16] for data in messages}
        assert len(headers) == len(messages) == len(wire) + 1
        assert not headers & seen
        seen |= headers
    assert native.session.sent > len(seen)


def test_a_session_that_is_over_is_neither_sent_nor_received_with(twins: Twins) -> None:
    header, packet, wire = burst(TCP, ENDS[0])
    for _ in range(2):
        twins.out(header, packet)
        twins.come([twins.message(data) for data in wire])
    twins.compare()
    for node in twins.nodes:
        node.session.expires = 0.0
        node.tunnel.machine.changes += 1
        node.out(header, packet)
        node.come([sealed(5000, data) for data in wire])
        assert [data[0] for data in node.sent()] == [1], "a handshake, and nothing sealed"
        assert node.given() == []


def test_a_key_of_ours_that_changes_ends_what_the_fast_path_sends(twins: Twins) -> None:
    header, packet, wire = burst(TCP, ENDS[0])
    for node in twins.nodes:
        for _ in range(2):
            node.out(header, packet)
        assert len(node.sent()) == 2 * len(wire)
        node.tunnel.machine.set_identity(StaticKeys(b"n" * 32), node.now())
        node.out(header, packet)
        assert {data[0] for data in node.sent()} == {1}


def test_an_address_is_learned_from_what_opens_alone(twins: Twins) -> None:
    _, _, wire = burst(UDP, ENDS[0])
    for node in twins.nodes:
        number = 1
        for _ in range(2):
            node.come([sealed(number, wire[0])])
            number += 1
        with socket.socket(node.peer.family, socket.SOCK_DGRAM) as elsewhere:
            elsewhere.bind((node.endpoint[0], 0))
            node.come([sealed(number, wire[0])[:-1] + b"x"], elsewhere)
            assert node.tunnel.machine.peers["lease"].endpoint == node.endpoint
            node.come([sealed(number, wire[0])], elsewhere)
            assert node.tunnel.machine.peers["lease"].endpoint == elsewhere.getsockname()[:2]
            node.out(vnet.PLAIN, Packet(b"x", UDP, OURS, THEIRS).build())
            elsewhere.settimeout(10)
            assert elsewhere.recv(1 << 16)[0] == 4
        assert len(node.given()) == 3


def test_what_came_from_port_0_is_lost_and_nothing_else(twins: Twins) -> None:
    _, _, wire = burst(UDP, ENDS[0])
    received, plain = memoryview(bytearray(1 << 17)), memoryview(bytearray(1 << 16))
    for node in twins.nodes:
        data = sealed(1, wire[0])
        received[: len(data)] = data
        host, _ = node.endpoint
        assert node.tunnel.take(received, len(data), len(data), (host, 0), plain) == (len(data), len(data), None)
        node.come([data])
        assert node.tunnel.machine.peers["lease"].endpoint == node.endpoint
        assert len(node.given()) == 1


def test_what_the_machine_hears_late_moves_its_timers_only_by_that(twins: Twins) -> None:
    """Sent and unanswered means a new handshake; answered, none."""
    header, packet, wire = burst(TCP, ENDS[0])
    for node in twins.nodes:
        peer = node.tunnel.machine.peers["lease"]
        for _ in range(2):
            node.out(header, packet)
        node.tunnel.status()
        assert peer.heard_until - node.now() == pytest.approx(15, abs=5)
        for number in range(2):
            node.come([sealed(100 * number + row, data) for row, data in enumerate(wire)])
        node.tunnel.status()
        assert peer.heard_until > node.now() + 1000
        assert peer.keepalive_at - node.now() == pytest.approx(10, abs=5)
