"""Cutting and joining, against the reference: same packets, same order, nothing legitimised."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.reference import ACK, CWR, ECE, FIN, PSH, RST, SYN, TCP, UDP, URG, Packet

from pyflannel_backends.userspace import ipv6, vnet
from pyflannel_backends.userspace import packet as ipv4
from pyflannel_backends.userspace.packet import Header

pytest.importorskip("numpy")
from pyflannel_backends.userspace.offload import Joiner, Splitter, plan_split

SIX: dict[str, Any] = {
    "source": bytes.fromhex("fd000005000200000000000000000002"),
    "destination": bytes.fromhex("fd" + "00" * 14 + "01"),
}
FLAGS = st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | FIN | PSH, ACK | CWR, ACK | CWR | PSH | ECE])


class Payload(bytes):
    """Random bytes, all zeros (seed -1) or all ones (-2); shown by what they were made of."""

    def __new__(cls, size: int, seed: int) -> Payload:
        data = bytes([0xFF if seed == -2 else 0]) * size if seed < 0 else random.Random(seed).randbytes(size)
        made = super().__new__(cls, data)
        made.seed = seed
        return made

    seed: int

    def __repr__(self) -> str:
        return f"Payload({len(self)}, {self.seed})"


def payload(size: int, seed: int) -> bytes:
    return Payload(size, seed)


def parse(data: bytes) -> Header | None:
    return ipv6.parse(data) if data[:1] and data[0] >> 4 == 6 else ipv4.parse(data)


def ipv6_addresses() -> st.SearchStrategy[bytes]:
    return st.binary(min_size=16, max_size=16) | st.sampled_from([bytes(16), b"\xff" * 16])


@st.composite
def super_packets(draw: st.DrawFn) -> tuple[Packet, int]:
    """A packet and its segment size."""
    protocol = draw(st.sampled_from([TCP, UDP]))
    tcp_options = draw(st.sampled_from([b"", bytes(12), bytes(40)])) if protocol == TCP else b""
    ipv6_inside = draw(st.booleans())
    ip_options = b"" if ipv6_inside else draw(st.sampled_from([b"", b"\x01\x01\x01\x00", bytes(40)]))
    ends: dict[str, Any] = (
        {"source": draw(ipv6_addresses()), "destination": draw(ipv6_addresses())} if ipv6_inside else {}
    )
    size = draw(st.one_of(st.sampled_from([1, 2, 535, 536, 1408, 1420, 1444]), st.integers(1, 9000)))
    most = 0xFFFF - 128
    length = draw(st.one_of(st.integers(1, min(most, 100 * size)), st.just(min(most, 44 * size))))
    return (
        Packet(
            payload=draw(st.builds(Payload, st.just(length), st.integers(-2, 1 << 30))),
            protocol=protocol,
            identification=0 if ipv6_inside else draw(st.one_of(st.integers(0, 0xFFFF), st.integers(0xFFF0, 0xFFFF))),
            flow_label=draw(st.integers(0, 0xFFFFF)) if ipv6_inside else 0,
            ttl=draw(st.integers(2, 255)),
            tos=draw(st.integers(0, 255)),
            fragment=draw(st.sampled_from([0, 0x4000])),
            ip_options=ip_options,
            sequence=draw(st.one_of(st.integers(0, 0xFFFFFFFF), st.just(0xFFFFFF00))),
            acknowledgement=draw(st.integers(0, 0xFFFFFFFF)),
            flags=draw(FLAGS),
            tcp_options=tcp_options,
            **ends,
        ),
        size,
    )


def gso(packet: Packet, size: int) -> vnet.VnetHeader:
    tcp = vnet.GSO_TCPV6 if len(packet.source) == 16 else vnet.GSO_TCPV4
    kind, offset = (tcp, 16) if packet.protocol == TCP else (vnet.GSO_UDP_L4, 6)
    return vnet.VnetHeader(vnet.NEEDS_CSUM, kind, packet.header_length, size, packet.ip_length, offset)


def split(packet: Packet, size: int, splitter: Splitter | None = None) -> list[bytes]:
    splitter = splitter or Splitter()
    data = packet.build_partial()
    header = parse(data)
    assert header is not None
    plan = plan_split(data, header, gso(packet, size))
    assert plan is not None
    source = splitter.array(memoryview(data))
    result: list[bytes] = []
    first = 0
    while first < plan.segments:
        count = min(plan.segments - first, splitter.room(plan.wire) - 3)
        splitter.split(plan, source, first, count, 3)
        for number in range(first, first + count):
            start = (3 + number - first) * plan.wire
            length = plan.last if number == plan.segments - 1 else plan.wire
            result.append(bytes(splitter.buffer[start : start + length]))
        first += count
    return result


def join(packets: list[bytes], joiner: Joiner | None = None) -> list[tuple[vnet.VnetHeader | None, bytes]]:
    """Load packets of one size (the last may be shorter) and join what can be joined."""
    joiner = joiner or Joiner()
    size = len(packets[0])
    data = b"".join(packets)
    joiner.buffer[: len(data)] = data
    joiner.load(0, len(data), size)
    result: list[tuple[vnet.VnetHeader | None, bytes]] = []
    row = 0
    while row < len(packets):
        header = parse(packets[row])
        count = 1
        if header is not None and (
            header.version == 6 or reference.internet_checksum(packets[row][: header.header_length]) == 0
        ):
            count = joiner.run(row, packets[row], header)
        if count == 1:
            result.append((None, packets[row]))
        else:
            assert header is not None
            whole = bytes(joiner.join(row, count, header))
            result.append((vnet.unpack(whole), whole[vnet.LENGTH :]))
        row += count
    return result


def chunks(packets: list[bytes]) -> list[list[bytes]]:
    """As they would be received: as many as 256 KB hold."""
    most = (1 << 18) // len(packets[0])
    return [packets[start : start + most] for start in range(0, len(packets), most)]


@given(super_packets())
@example((Packet(b"x" * 20000, identification=0xFFFE, sequence=0xFFFFFFFF, flags=ACK | PSH | CWR), 1000))
@example((Packet(b"\0" * 3000, protocol=UDP, source=bytes(4), destination=bytes(4), ports=(0, 0)), 1000))
def test_split_makes_what_the_reference_makes(case: tuple[Packet, int]) -> None:
    packet, size = case
    assert split(packet, size) == reference.segments(packet, size)


@given(super_packets())
def test_every_segment_is_valid(case: tuple[Packet, int]) -> None:
    assert all(reference.is_valid(segment) for segment in split(*case))


@given(st.lists(super_packets(), min_size=2, max_size=4))
def test_a_splitter_keeps_nothing_of_earlier_packets(cases: list[tuple[Packet, int]]) -> None:
    splitter = Splitter()
    for packet, size in cases:
        assert split(packet, size, splitter) == reference.segments(packet, size)


@given(super_packets())
def test_split_then_join_is_the_identity(case: tuple[Packet, int]) -> None:
    packet, size = case
    wire = split(packet, size)
    packet.ttl -= 1
    if len(wire) == 1:
        assert join(wire) == [(None, packet.build())]
        return
    if len(chunks(wire)) > 1:
        return
    ((header, whole),) = join(wire)
    kind = gso(packet, size)
    if packet.protocol == TCP and packet.flags & CWR:
        kind = kind._replace(gso_type=kind.gso_type | vnet.GSO_ECN)
    assert (header, whole) == (kind, packet.build_partial())


@given(st.lists(super_packets(), min_size=1, max_size=4), st.data())
def test_what_is_joined_stands_for_the_packets_that_came(cases: list[tuple[Packet, int]], data: st.DataObject) -> None:
    """Any mixture, order and damage: cutting what was joined gives back exactly the packets that came, in order."""
    size = cases[0][0].header_length + cases[0][1]
    wire = [segment for packet, payload_size in cases for segment in split(packet, payload_size)[:50]]
    wire = [segment for segment in wire if len(segment) == size] or [wire[0]]
    wire = data.draw(st.one_of(st.just(wire), st.permutations(wire)))
    for _ in range(data.draw(st.integers(0, 3))):
        number = data.draw(st.integers(0, len(wire) - 1))
        position = data.draw(st.integers(0, min(79, len(wire[number]) - 1)))
        damaged = bytearray(wire[number])
        damaged[position] ^= data.draw(st.integers(1, 255))
        wire[number] = bytes(damaged)
    if data.draw(st.booleans()) and len(wire[-1]) > 30:
        wire[-1] = wire[-1][: data.draw(st.integers(1, len(wire[-1])))]
    for received in chunks(wire):
        assert [piece for header, packet in join(received) for piece in take_apart(header, packet)] == received


def take_apart(header: vnet.VnetHeader | None, packet: bytes) -> list[bytes]:
    """What the kernel makes of a super-packet."""
    if header is None:
        return [packet]
    start, size = header.csum_start, header.header_length
    own = parse(packet)
    assert own is not None
    tcp = own.protocol == TCP
    ip_fields: dict[str, Any]
    if own.version == 6:
        first = int.from_bytes(packet[:4], "big")
        ip_fields = {"tos": first >> 20 & 0xFF, "flow_label": first & 0xFFFFF}
    else:
        ip_fields = {
            "tos": packet[1],
            "identification": own.identification,
            "fragment": own.fragment,
            "ip_options": packet[20:start],
        }
    whole = Packet(
        payload=packet[size:],
        protocol=own.protocol,
        source=own.source,
        destination=own.destination,
        ports=(int.from_bytes(packet[start : start + 2], "big"), int.from_bytes(packet[start + 2 : start + 4], "big")),
        ttl=own.ttl,
        sequence=int.from_bytes(packet[start + 4 : start + 8], "big") if tcp else 0,
        acknowledgement=int.from_bytes(packet[start + 8 : start + 12], "big") if tcp else 0,
        flags=packet[start + 13] if tcp else 0,
        window=int.from_bytes(packet[start + 14 : start + 16], "big") if tcp else 0,
        tcp_options=packet[start + 20 : size] if tcp else b"",
        **ip_fields,
    )
    assert header.flags == vnet.NEEDS_CSUM
    assert whole.build_partial() == packet
    return reference.segments(whole, header.gso_size, hops=0)


@pytest.mark.parametrize("flag", [SYN, RST, URG, 0])
def test_packets_with_other_flags_stay_single(flag: int) -> None:
    wire = reference.segments(Packet(b"x" * 3000, flags=(ACK | flag) if flag else 0), 1000)
    assert [header for header, _ in join(wire)] == [None, None, None]


@pytest.mark.parametrize("ends", [{}, SIX])
def test_push_ends_a_run(ends: dict[str, Any]) -> None:
    first = Packet(b"a" * 3000, flags=ACK | PSH, **ends)
    one = reference.segments(first, 1000)
    two = reference.segments(Packet(b"b" * 3000, sequence=3000, identification=3, **ends), 1000)
    assert [len(packet) - first.ip_length for _, packet in join(one + two)] == [3020, 3020]


def test_a_damaged_packet_reaches_the_kernel_alone_and_as_it_came() -> None:
    wire = reference.segments(Packet(payload(5000, 1)), 1000)
    damaged = bytearray(wire[2])
    damaged[500] ^= 1
    wire[2] = bytes(damaged)
    assert [(header is None, len(packet)) for header, packet in join(wire)] == [
        (False, 2040),
        (True, 1040),
        (False, 2040),
    ]
    assert join(wire)[1][1] == wire[2]


def test_udp_without_checksum_stays_single() -> None:
    wire = [segment[:26] + bytes(2) + segment[28:] for segment in reference.segments(Packet(b"x" * 99, UDP), 33)]
    assert [header for header, _ in join(wire)] == [None, None, None]


def test_extension_headers_stay_single() -> None:
    wire = []
    for segment in reference.segments(Packet(b"x" * 3000, **SIX), 1000):
        length = int.from_bytes(segment[4:6], "big") + 8
        extension = bytes([segment[6], 0, 1, 4, 0, 0, 0, 0])
        wire.append(segment[:4] + length.to_bytes(2, "big") + bytes([60]) + segment[7:40] + extension + segment[40:])
    assert [header for header, _ in join(wire)] == [None, None, None]


def test_pure_acknowledgements_stay_single() -> None:
    wire = [Packet(b"", acknowledgement=number, identification=number).build() for number in range(5)]
    assert join(wire) == [(None, packet) for packet in wire]


def test_a_super_packet_never_exceeds_sixteen_bits() -> None:
    wire = reference.segments(Packet(payload(65000, 2)), 1448)
    more = reference.segments(Packet(payload(65000, 3), sequence=45 * 1448, identification=45), 1448)
    wire = [segment for segment in wire if len(segment) == 1488] + [s for s in more if len(s) == 1488]
    for header, packet in join(wire):
        assert header is not None
        assert len(packet) <= 0xFFFF


@pytest.mark.parametrize("protocol", [UDP, 255])
def test_a_joiner_leaves_protocols_alone_that_the_device_takes_no_super_packets_of(protocol: int) -> None:
    wire = reference.segments(Packet(b"x" * 3000, UDP), 1000)
    assert [header for header, _ in join(wire, Joiner(frozenset({TCP})))] == [None] * 3


@given(st.binary(max_size=200), st.binary(min_size=10, max_size=10))
def test_no_super_packet_that_makes_no_sense_is_planned(data: bytes, virtio: bytes) -> None:
    six = Packet(data, source=b"\1" * 16, destination=b"\2" * 16)
    for bytes_ in (data, Packet(data).build(), six.build()):
        header = parse(bytes_)
        if header is None:
            continue
        plan = plan_split(bytes_[: header.length], header, vnet.unpack(virtio))
        if plan is not None:
            splitter = Splitter()
            source = splitter.array(memoryview(bytes_))[: header.length]
            count = min(plan.segments, splitter.room(plan.wire))
            splitter.split(plan, source, 0, count, 0)


@given(st.binary(min_size=2, max_size=4000), st.integers(1, 200))
def test_no_datagrams_upset_a_joiner(data: bytes, size: int) -> None:
    size = min(size, len(data))
    packets = [data[start : start + size] for start in range(0, len(data), size)]
    assert [packet for _, packet in join(packets)] == packets
