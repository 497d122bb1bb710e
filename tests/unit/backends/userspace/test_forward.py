"""The router between two edges in memory: what goes where, what is answered, what is dropped and why.

All of it three times: alone; behind a fast path between real descriptors that every packet comes to first; and behind
one that knows already what it may carry.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.edges import Edges
from tests.unit.backends.userspace.memory import MemoryTun, MemoryUnderlay
from tests.unit.backends.userspace.reference import ACK, PSH, UDP, Packet

from pyflannel_backends.userspace import packet as ip
from pyflannel_backends.userspace import vnet
from pyflannel_backends.userspace.forward import Forwarder, QueueLimits, RateLimit
from pyflannel_backends.userspace.table import Peer, PeerTable

if TYPE_CHECKING:
    from pyflannel_backends.userspace._fastpath import FastPath

pytest.importorskip("numpy")
from pyflannel_backends.userspace.offload import Joiner, Splitter

PEER, OTHER = "127.0.1.2", "127.0.1.3"
OUT = {"source": bytes([10, 5, 1, 2]), "destination": bytes([10, 5, 2, 2])}
IN = {"source": bytes([10, 5, 2, 2]), "destination": bytes([10, 5, 1, 2])}
OUT6 = {"source": ip_address("fd00:5:1::2").packed, "destination": ip_address("fd00:5:2::2").packed}
IN6 = {"source": OUT6["destination"], "destination": OUT6["source"]}


class Bench:
    """A forwarder of node 10.5.1.0/24, fd00:5:1::/64 with peers 10.5.2.0/24, fd00:5:2::/64 and, on another node, .3.

    Where there are ``edges``, a fast path between them gets every packet first, alone.
    """

    edges: ClassVar[Edges | None] = None
    taught: ClassVar[bool] = False

    def __init__(self, *, offload: bool = True, mtu: int = 1472, ipv6: bool = True, faults: bool = False) -> None:
        """A fast path is taught nothing where there are to be ``faults`` of our edges: it has edges of its own."""
        self.tun, self.underlay = MemoryTun(), MemoryUnderlay(mtu)
        table = PeerTable([ip_network("10.5.1.0/24"), ip_network("fd00:5:1::/64")][: 1 + ipv6])
        table.put(Peer(ip_network("10.5.2.0/24"), PEER))
        table.put(Peer(ip_network("10.5.3.0/24"), OTHER))
        if ipv6:
            table.put(Peer(ip_network("fd00:5:2::/64"), PEER))
            table.put(Peer(ip_network("fd00:5:3::/64"), OTHER))
        addresses = {4: bytes([10, 5, 1, 0]), 6: ip_address("fd00:5:1::").packed}
        self.now = 0.0
        self.forwarder = Forwarder(
            self.tun,
            self.underlay,
            table,
            QueueLimits(1472, addresses if ipv6 else {4: addresses[4]}),
            RateLimit(10.0, 3.0, lambda: self.now),
            Splitter() if offload else None,
            Joiner() if offload else None,
        )
        self.fast_path = self.edges.attach(self.forwarder) if self.edges else None
        if self.edges and self.fast_path:
            self.underlay.port = self.edges.number
            if self.taught and mtu == 1472 and not faults:
                self._teach(self.fast_path, ipv6)

    def _teach(self, fast_path: FastPath, ipv6: bool) -> None:
        """As if a packet had been seen of every flow."""
        for number, peer in (2, PEER), (3, OTHER):
            for host in range(10):
                addresses = [(bytes([10, 5, number, host]), bytes([10, 5, 1, 2]))]
                addresses += [(ip_address(f"fd00:5:{number}::{host}").packed, OUT6["source"])] * ipv6
                for theirs, ours in addresses:
                    fast_path.learn_route(theirs, peer, 1472, (peer, self.underlay.port))
                    fast_path.learn_path(peer, theirs + ours)

    def from_tun(self, *packets: bytes, header: bytes = vnet.PLAIN) -> list[bytes]:
        if self.edges and self.fast_path:
            for packet in packets:
                self.edges.rest(self.fast_path)
                self.edges.give(header + packet)
                for _, read in self.fast_path.poll(0.0):
                    self.forwarder.from_tun(read)  # type: ignore[arg-type] # from the device
                self._count(self.fast_path)
                self.underlay.outgoing += self.edges.sent()
        else:
            self.tun.incoming.extend(header + packet for packet in packets)
            while self.tun.incoming:
                self.forwarder.from_tun()
            self.forwarder.from_tun()
        sent, self.underlay.outgoing = self.underlay.outgoing, []
        return [packet for packet, _ in sent]

    def from_underlay(
        self, data: bytes, size: int | None = None, sender: str | None = PEER
    ) -> list[tuple[bytes, bytes]]:
        size = size or len(data)
        if self.edges and self.fast_path and sender is not None and len(data) <= 64 * size:
            self.edges.rest(self.fast_path)
            self.edges.send(data, sender, size=size)
            for _, received in self.fast_path.poll(0.0):
                self.forwarder.from_underlay(self.underlay, received)  # type: ignore[arg-type] # of a datagram
            self._count(self.fast_path)
            self.tun.outgoing += self.edges.given()
        else:
            self.underlay.incoming.append((data, size, sender))
            while self.underlay.incoming:
                self.forwarder.from_underlay(self.underlay)
            self.forwarder.from_underlay(self.underlay)
        written, self.tun.outgoing = self.tun.outgoing, []
        return written

    def _count(self, fast_path: FastPath) -> None:
        for name, count in fast_path.take_counters().items():
            if name in self.forwarder.counters:
                self.forwarder.counters[name] += count

    @property
    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.forwarder.counters.items() if name.startswith("drop_") and count}


@pytest.fixture(scope="module", params=["python", "fast-path", "taught"], autouse=True)
def _edges(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "python":
        yield
        return
    pytest.importorskip(
        "pyflannel_backends.userspace._fastpath", reason="the extension was not compiled", exc_type=ImportError
    )
    Bench.edges = Edges()
    Bench.taught = request.param == "taught"
    yield
    Bench.edges.close()
    Bench.edges, Bench.taught = None, False


def super_packet(packet: Packet, size: int) -> tuple[bytes, bytes]:
    tcp = vnet.GSO_TCPV6 if packet.ip_length == 40 else vnet.GSO_TCPV4
    kind, offset = (vnet.GSO_UDP_L4, 6) if packet.protocol == UDP else (tcp, 16)
    header = vnet.VnetHeader(vnet.NEEDS_CSUM, kind, packet.header_length, size, packet.ip_length, offset)
    return header.pack(), packet.build_partial()


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("ends", [OUT, OUT6])
def test_packets_go_to_the_peer_that_holds_their_destination_one_hop_on(offload: bool, ends: dict[str, Any]) -> None:
    bench = Bench(offload=offload)
    packet = Packet(b"hello", **ends)
    sent = bench.from_tun(*[packet.build()] * 3)
    packet.ttl -= 1
    assert sent == [packet.build()] * 3
    assert not any(bench.drops.values())


@pytest.mark.parametrize("ends", [OUT, OUT6])
def test_a_packet_that_grew_or_shrank_behind_its_header_is_cut_or_dropped(ends: dict[str, Any]) -> None:
    bench = Bench()
    packet = Packet(b"hello", **ends)
    data = packet.build()
    sent = bench.from_tun(data, data + b"more", data[:-1], data)
    packet.ttl -= 1
    assert sent == [packet.build()] * 3
    assert bench.drops == {"drop_malformed": 1}


def test_packets_for_several_nodes_keep_their_order_and_share_calls_but_for_the_first() -> None:
    bench = Bench()
    packets = [Packet(b"x" * 100, destination=bytes([10, 5, 2 + n // 5 % 2, 2]), identification=n) for n in range(20)]
    bench.tun.incoming.extend(vnet.PLAIN + packet.build() for packet in packets)
    bench.forwarder.from_tun()
    assert bench.underlay.calls == [(140, 1)]
    while bench.tun.incoming:
        bench.forwarder.from_tun()
    for packet in packets:
        packet.ttl -= 1
    assert [data for data, _ in bench.underlay.outgoing] == [packet.build() for packet in packets]
    assert [peer for _, peer in bench.underlay.outgoing] == ([PEER] * 5 + [OTHER] * 5) * 2
    assert bench.underlay.calls == [(140, count) for count in (1, 4, 4, 1, 3, 2, 2, 3)]


@pytest.mark.parametrize("protocol", [reference.TCP, UDP])
@pytest.mark.parametrize("size", [1, 7, 536, 1400, 1412])
@pytest.mark.parametrize("ends", [OUT, OUT6])
def test_a_super_packet_leaves_as_the_reference_cuts_it(protocol: int, size: int, ends: dict[str, Any]) -> None:
    packet = Packet((bytes(range(256)) * 40)[: 150 * size], protocol, flags=ACK | PSH, **ends)
    header, data = super_packet(packet, size)
    assert Bench().from_tun(data, data, header=header) == reference.segments(packet, size) * 2


@pytest.mark.parametrize("ends", [OUT, OUT6])
def test_a_packet_without_its_checksum_gets_it(ends: dict[str, Any]) -> None:
    packet = Packet(b"data", UDP, **ends)
    header = vnet.VnetHeader(vnet.NEEDS_CSUM, vnet.GSO_NONE, 0, 0, packet.ip_length, 6).pack()
    (sent,) = Bench().from_tun(packet.build_partial(), header=header)
    packet.ttl -= 1
    assert sent == packet.build()


@pytest.mark.parametrize(
    ("packet", "kind", "reason"),
    [
        (Packet(b"x", ttl=1, **OUT), (11, 0), "drop_ttl_exceeded"),  # type: ignore[arg-type]
        (Packet(b"x", ttl=0, **OUT), (11, 0), "drop_ttl_exceeded"),  # type: ignore[arg-type]
        (Packet(b"x", destination=bytes([10, 5, 9, 9])), (3, 1), "drop_no_route"),
        (Packet(b"x" * 1433, **OUT), (3, 4), "drop_too_big"),  # type: ignore[arg-type]
        (Packet(b"x", ttl=1, **OUT6), (3, 0), "drop_ttl_exceeded"),  # type: ignore[arg-type]
        (Packet(b"x", ttl=0, **OUT6), (3, 0), "drop_ttl_exceeded"),  # type: ignore[arg-type]
        (Packet(b"x", source=OUT6["source"], destination=ip_address("fd00:5:9::9").packed), (1, 0), "drop_no_route"),
        (Packet(b"x" * 1413, **OUT6), (2, 0), "drop_too_big"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_what_cannot_go_on_is_answered_and_counted(
    packet: Packet, kind: tuple[int, int], reason: str, known: bool
) -> None:
    bench = Bench()
    if known:  # a route that was asked for before is remembered
        bench.from_tun(Packet(b"x", **OUT).build(), Packet(b"x", **OUT6).build())  # type: ignore[arg-type]
    assert bench.from_tun(packet.build()) == []
    ((header, answer),) = bench.tun.outgoing
    assert header == vnet.PLAIN
    assert reference.is_valid(answer)
    size = packet.ip_length
    assert size == 40 or reference.internet_checksum(answer[20:]) == 0
    assert (answer[size], answer[size + 1]) == kind
    assert answer[size - len(packet.source) : size] == packet.source
    assert bench.drops == {reason: 1}


def test_errors_are_limited_in_number() -> None:
    bench = Bench()
    lost = Packet(b"x", destination=bytes([10, 5, 9, 9])).build()
    bench.from_tun(*[lost] * 10)
    assert len(bench.tun.outgoing) == 3
    assert bench.forwarder.counters["icmp_suppressed"] == 7
    bench.now = 0.2
    bench.from_tun(*[lost] * 10)
    assert len(bench.tun.outgoing) == 5


def test_a_large_packet_that_may_be_cut_leaves_in_fragments() -> None:
    packet = Packet(b"x" * 3000, fragment=0, **OUT)  # type: ignore[arg-type]
    sent = Bench().from_tun(packet.build())
    assert [len(piece) for piece in sent] == [1468, 1468, 144]
    assert all(reference.internet_checksum(piece[:20]) == 0 and piece[8] == 63 for piece in sent)


def test_an_ipv6_super_packet_that_is_too_big_is_answered() -> None:
    bench = Bench(mtu=1300)
    header, data = super_packet(Packet(b"x" * 5000, **OUT6), 1400)  # type: ignore[arg-type]
    bench.from_tun(data, header=header)  # the path's MTU is learnt from this one
    assert bench.from_tun(data, header=header) == []
    answer = bench.tun.outgoing[-1][1]
    assert reference.is_valid(answer)
    assert answer[40:42] == bytes([2, 0])
    assert answer[44:48] == (1300).to_bytes(4, "big")


@pytest.mark.parametrize("offload", [True, False])
def test_what_ipv6_need_not_make_smaller_goes_over_every_path(offload: bool) -> None:
    """Senders take no word of an MTU below 1280: RFC 8200 section 5, RFC 2473 section 7.1."""
    bench = Bench(offload=offload, mtu=1200)
    whole, small, large = (Packet(b"x" * size, **OUT6) for size in (1220, 1140, 1221))  # type: ignore[arg-type]
    for _ in range(2):
        assert list(map(len, bench.from_tun(whole.build(), small.build(), whole.build()))) == [1280, 1200, 1280]
        assert bench.from_tun(large.build()) == []
        answer = bench.tun.outgoing[-1][1]
        assert answer[40:42] + answer[44:48] == bytes([2, 0]) + (1280).to_bytes(4, "big")
    assert bench.underlay.fragmented.count(1280) == bench.forwarder.counters["fragmented"] == 4
    if offload:
        header, data = super_packet(Packet(b"x" * 3000, **OUT6), 1220)  # type: ignore[arg-type]
        sent = bench.from_tun(data, header=header)
        assert list(map(len, sent)) == [1280, 1280, 620]
        assert all(map(reference.is_valid, sent))
    assert bench.drops == {"drop_too_big": 2}
    bench.underlay.errors.append(errno.EMSGSIZE)
    bench.from_tun(whole.build())
    assert bench.drops == {"drop_too_big": 2, "drop_send_failed": 1}


def test_what_was_under_way_when_its_path_shrank_is_cut_or_answered() -> None:
    """A fast path may have read more for the same peer before it can be told."""
    bench = Bench(mtu=1272, faults=True)
    bench.from_tun(Packet(b"x" * 1400, **OUT).build())  # type: ignore[arg-type]
    bench.tun.outgoing.clear()
    for fragment, sent in (0, 2), (0x4000, 0):
        packet = Packet(b"x" * 1400, fragment=fragment, **OUT).build()  # type: ignore[arg-type]
        bench.forwarder.from_tun((packet, len(packet), PEER))
        assert len(bench.underlay.outgoing) == sent
        bench.underlay.outgoing.clear()
    assert [answer[20:22] for _, answer in bench.tun.outgoing] == [bytes([3, 4])]
    assert bench.drops == {"drop_too_big": 2}
    assert bench.forwarder.failures == {}


@pytest.mark.parametrize("fragment", [0, 0x4000])
@pytest.mark.parametrize("size", [None, 1400])
def test_a_path_that_shrank_is_learnt(fragment: int, size: int | None) -> None:
    bench = Bench(mtu=1272)
    if size:
        packet = Packet(b"x" * 5000, fragment=fragment, **OUT)  # type: ignore[arg-type]
        header, data = super_packet(packet, size)
    else:
        packet = Packet(b"x" * 1400, fragment=fragment, **OUT)  # type: ignore[arg-type]
        header, data = vnet.PLAIN, packet.build()
    for _ in range(2):
        sent = bench.from_tun(data, header=header)
        assert all(len(piece) <= 1272 for piece in sent)
        if fragment:
            assert sum(map(len, sent)) < 1000
            assert bench.tun.outgoing[-1][1][20:22] == bytes([3, 4])
            assert bench.tun.outgoing[-1][1][26:28] == (1272).to_bytes(2, "big")
        else:
            headers = [ip.parse(piece) for piece in sent]
            assert sum(h.length - h.header_length for h in headers if h) == (5080 if size else 1420)
            assert bench.tun.outgoing == []
    small = Packet(b"x" * 100, **OUT)  # type: ignore[arg-type]
    assert len(bench.from_tun(small.build())) == 1


def test_a_peer_that_cannot_be_reached_is_told_apart_until_it_can() -> None:
    bench = Bench(faults=True)
    bench.underlay.errors.append(errno.ENETUNREACH)
    packet = Packet(b"x", **OUT).build()  # type: ignore[arg-type]
    assert bench.from_tun(packet) == []
    assert bench.drops == {"drop_send_failed": 1}
    assert bench.forwarder.failures == {PEER: "can't send to 127.0.1.2: Network is unreachable"}
    assert len(bench.from_tun(packet)) == 1
    assert bench.forwarder.failures == {}


@pytest.mark.parametrize("options", [b"", bytes(4)], ids=["fast", "slow"])
@pytest.mark.parametrize("before", [1, 2])
def test_a_peer_that_failed_once_in_a_flow_is_well_again_with_its_next_packet(before: int, options: bytes) -> None:
    bench = Bench()
    packet, other = Packet(b"x", **OUT), Packet(b"x", ip_options=options, **OUT)  # type: ignore[arg-type]
    assert len(bench.from_tun(*[packet.build()] * before)) == before
    bench.underlay.errors.append(errno.ENETUNREACH)
    sent = bench.from_tun(other.build())
    assert len(sent) == bench.underlay.errors.count(errno.ENETUNREACH)  # the fast path has a socket of its own
    bench.underlay.errors.clear()
    assert (PEER in bench.forwarder.failures) == (sent == [])
    assert len(bench.from_tun(packet.build())) == 1
    assert bench.forwarder.failures == {}
    assert len(bench.from_tun(packet.build())) == 1


def test_what_is_remembered_of_one_family_says_nothing_of_the_other() -> None:
    """Where IPv4 has its addresses, an IPv6 packet has other bytes of its own."""
    bench = Bench()
    out = Packet(b"x", source=ip_address("fd00:5:1:0:a05:909::").packed, destination=OUT6["destination"])
    come = Packet(b"x", source=ip_address("fd00:5:2:0:a05:102::").packed, destination=OUT6["source"])
    for _ in range(3):
        assert len(bench.from_tun(out.build())) == 1
        assert len(bench.from_underlay(come.build())) == 1
    assert bench.from_tun(Packet(b"x", destination=bytes([10, 5, 9, 9])).build()) == []
    bench.tun.outgoing.clear()
    alike = Packet(b"x", source=bytes([0, 2, 0, 0]), destination=bytes([10, 5, 1, 2]))
    assert alike.source + alike.destination == come.build()[12:20]
    assert bench.from_underlay(alike.build()) == []
    assert bench.drops == {"drop_no_route": 1, "drop_spoofed_source": 1}


def test_a_path_that_shrank_in_a_flow_is_learnt_for_all_its_packets() -> None:
    bench = Bench()
    packet, other = Packet(b"x" * 1400, **OUT), Packet(b"x" * 1400, ip_options=bytes(4), **OUT)  # type: ignore[arg-type]
    assert len(bench.from_tun(packet.build(), packet.build())) == 2
    bench.underlay.mtu = 1272
    assert bench.from_tun(other.build(), packet.build()) == []
    assert [answer[20:22] + answer[26:28] for _, answer in bench.tun.outgoing] == 2 * [
        b"\3\4" + (1272).to_bytes(2, "big")
    ]
    bench.underlay.mtu = 1472
    bench.forwarder.forget_path_mtus()
    assert len(bench.from_tun(packet.build(), packet.build())) == 2


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("ends", [IN, IN6])
def test_a_train_of_one_stream_reaches_the_kernel(offload: bool, ends: dict[str, Any]) -> None:
    bench = Bench(offload=offload)
    packet = Packet(b"x" * 10000, **ends)
    wire = reference.segments(packet, 1000)
    written = bench.from_underlay(b"".join(wire), len(wire[0]))
    if offload:
        ((header, data),) = written
        packet.ttl -= 1
        assert data == packet.build_partial()
        assert vnet.unpack(header).gso_size == 1000
    else:
        assert written == [(vnet.PLAIN, segment) for segment in wire]


def test_trains_of_several_calls_are_joined_and_do_not_overwrite_each_other() -> None:
    bench = Bench()
    one = reference.segments(Packet(b"a" * 20000, **IN), 1000)  # type: ignore[arg-type]
    two = reference.segments(Packet(b"b" * 5555, ports=(7, 7), **IN), 1000)  # type: ignore[arg-type]
    other = Packet(b"c" * 333, **IN).build()  # type: ignore[arg-type]
    bench.forwarder.from_underlay(bench.underlay)  # finds nothing; the next look is for more than one
    for data, size in [(one[:8], 1040), (one[8:], 1040), (two, 1040), ([other], 373), (two, 1040)]:
        bench.underlay.incoming.append((b"".join(data), size, PEER))
    while bench.underlay.incoming:
        bench.forwarder.from_underlay(bench.underlay)
    assert [len(data) for _, data in bench.tun.outgoing] == [20040, 5595, 373, 5595]
    assert [data[-1:] for _, data in bench.tun.outgoing] == [b"a", b"b", b"c", b"b"]


@pytest.mark.parametrize(
    ("packet", "sender", "reason"),
    [
        (Packet(b"x", **IN), OTHER, "drop_spoofed_source"),  # type: ignore[arg-type]
        (Packet(b"x", source=bytes([10, 5, 1, 7]), destination=bytes([10, 5, 1, 2])), PEER, "drop_spoofed_source"),
        (Packet(b"x", source=bytes([8, 8, 8, 8]), destination=bytes([10, 5, 1, 2])), PEER, "drop_spoofed_source"),
        (Packet(b"x", source=bytes([10, 5, 2, 7]), destination=bytes([10, 5, 3, 2])), PEER, "drop_not_for_us"),
        (Packet(b"x", source=bytes([10, 5, 2, 7]), destination=b"\xff" * 4), PEER, "drop_not_for_us"),
        (Packet(b"x", **IN6), OTHER, "drop_spoofed_source"),  # type: ignore[arg-type]
        (Packet(b"x", source=OUT6["source"], destination=OUT6["source"]), PEER, "drop_spoofed_source"),
        (Packet(b"x", source=IN6["source"], destination=OUT6["destination"]), PEER, "drop_not_for_us"),
        (Packet(b"x", source=IN6["source"], destination=ip_address("ff02::1").packed), PEER, "drop_not_for_us"),
    ],
)
def test_only_a_peer_s_own_packets_for_our_subnet_are_accepted(packet: Packet, sender: str, reason: str) -> None:
    bench = Bench()
    assert bench.from_underlay(packet.build(), sender=sender) == []
    assert bench.drops == {reason: 1}
    for ends in (IN, IN6):
        good = Packet(b"x", **ends).build()  # type: ignore[arg-type]
        assert bench.from_underlay(good) == [(vnet.PLAIN, good)]
        assert bench.from_underlay(good) == [(vnet.PLAIN, good)]  # remembered
    assert bench.from_underlay(packet.build(), sender=sender) == []


def test_what_the_port_keeps_to_itself_goes_nowhere_and_holds_nothing_up() -> None:
    bench = Bench()
    good = Packet(b"x", **IN).build()  # type: ignore[arg-type]
    bench.underlay.incoming.append((good, len(good), None))
    assert bench.from_underlay(good) == [(vnet.PLAIN, good)]
    assert bench.forwarder.counters["received_packets"] == 1


def test_a_spoofed_packet_within_a_train_is_dropped_alone() -> None:
    bench = Bench()
    wire = reference.segments(Packet(b"x" * 5000, **IN), 1000)  # type: ignore[arg-type]
    wire[2] = Packet(b"y" * 1000, source=bytes([10, 5, 3, 3]), destination=bytes([10, 5, 1, 2])).build()
    written = bench.from_underlay(b"".join(wire), 1040)
    assert [len(data) for _, data in written] == [2040, 2040]
    assert bench.drops == {"drop_spoofed_source": 1}


def test_a_table_that_changed_is_asked_again() -> None:
    bench = Bench()
    good = Packet(b"x", **IN).build()  # type: ignore[arg-type]
    bench.from_underlay(good)
    bench.forwarder.table.put(Peer(ip_network("10.5.2.0/24"), OTHER))
    bench.forwarder.table.put(Peer(ip_network("10.5.4.0/24"), PEER))
    bench.forwarder.table_changed()
    assert bench.from_underlay(good) == []
    assert bench.drops == {"drop_spoofed_source": 1}


def test_what_stays_on_the_host_s_own_link_is_not_answered() -> None:
    bench = Bench()
    solicitation = Packet(b"x", source=ip_address("fe80::1").packed, destination=ip_address("ff02::2").packed).build()
    assert bench.from_tun(solicitation) == []
    assert bench.tun.outgoing == []
    assert bench.drops == {"drop_link_local": 1}


def test_other_families_and_nonsense_from_the_device_are_counted() -> None:
    bench = Bench(ipv6=False)
    assert bench.from_tun(b"\x60" + bytes(60), b"\x45", b"", Packet(b"x").build()[:25]) == []
    assert bench.drops == {"drop_other_family": 1, "drop_malformed": 3}


def test_a_super_packet_without_the_vectorised_path_is_counted() -> None:
    bench = Bench(offload=False)
    header, data = super_packet(Packet(b"x" * 3000, **OUT), 1000)  # type: ignore[arg-type]
    assert bench.from_tun(data, header=header) == []
    assert bench.drops == {"drop_super_packet": 1}


def test_what_the_device_refuses_is_counted() -> None:
    bench = Bench(faults=True)
    bench.tun.error = errno.EIO
    wire = reference.segments(Packet(b"x" * 3000, **IN), 1000)  # type: ignore[arg-type]
    bench.from_underlay(b"".join(wire), 1040)
    assert bench.drops == {"drop_tun_failed": 3}


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """A good packet with a few bytes changed and perhaps cut, or any bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=100))
    protocol = draw(st.sampled_from([reference.TCP, UDP]))
    addresses = draw(st.sampled_from([IN, OUT, IN6, OUT6]))
    data = bytearray(Packet(draw(st.binary(max_size=60)), protocol, **addresses).build())  # type: ignore[arg-type]
    for position, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)):
        data[position] = value
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def length_of(packet: bytes) -> int:
    """What the IP header says."""
    return 40 + int.from_bytes(packet[4:6], "big") if packet[0] >> 4 == 6 else int.from_bytes(packet[2:4], "big")


@given(st.lists(st.tuples(hostile(), st.binary(min_size=10, max_size=10) | st.just(vnet.PLAIN))), st.booleans())
def test_nothing_from_the_device_ends_the_worker_or_leaves_malformed(
    packets: list[tuple[bytes, bytes]], offload: bool
) -> None:
    bench = Bench(offload=offload)
    for packet, header in packets:
        for sent in bench.from_tun(packet, header=header):
            assert length_of(sent) == len(sent) <= 1472


@given(st.lists(hostile(), min_size=1), st.integers(1, 120), st.booleans())
def test_nothing_from_the_underlay_ends_the_worker_or_reaches_the_kernel_malformed(
    packets: list[bytes], size: int, offload: bool
) -> None:
    bench = Bench(offload=offload)
    for data in (*packets, b"".join(packets)):
        for header, written in bench.from_underlay(data, size):
            assert length_of(written) == len(written)
            if written[0] >> 4 == 6:
                assert (written[8:16], written[24:32]) == (IN6["source"][:8], IN6["destination"][:8])
            else:
                assert reference.internet_checksum(written[: (written[0] & 15) * 4]) == 0
                assert (written[12:15], written[16:19]) == (IN["source"][:3], IN["destination"][:3])
            if header != vnet.PLAIN:
                gso = vnet.unpack(header)
                assert gso.csum_start + gso.csum_offset + 2 <= gso.header_length < len(written)
                assert gso.gso_size > 0
