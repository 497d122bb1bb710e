"""Headers, checksums, fragments and ICMP errors of single packets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.reference import UDP, Packet

from pyflannel_backends.userspace import packet as ip


@given(st.binary(max_size=300))
def test_the_sum_is_the_plain_loop_s(data: bytes) -> None:
    assert ip.checksum(data) == reference.internet_checksum(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_none(data: bytes) -> None:
    header = ip.parse(data)
    if header is not None:
        assert 20 <= header.header_length <= header.length <= len(data)
        assert data[0] >> 4 == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:19],
        lambda data: b"\x65" + data[1:],
        lambda data: b"\x44" + data[1:],
        lambda data: b"\x4f" + data[1:],
        lambda data: data[:2] + struct.pack("!H", len(data) + 1) + data[4:],
        lambda data: data[:2] + struct.pack("!H", 19) + data[4:],
    ],
    ids=["truncated", "version 6", "short header", "header beyond the end", "oversized", "shorter than its header"],
)
def test_a_malformed_header_is_none(change: object) -> None:
    data = Packet(b"").build()
    assert ip.parse(data) is not None
    assert ip.parse(change(data)) is None  # type: ignore[operator]


@given(st.integers(1, 255), st.integers(0, 0xFFFF), st.integers(0, 255))
def test_a_hop_less_keeps_the_checksum_right(ttl: int, identification: int, tos: int) -> None:
    data = bytearray(Packet(b"abc", ttl=ttl, identification=identification, tos=tos).build())
    ip.decrement_ttl(data)
    assert data[8] == ttl - 1
    assert reference.is_valid(bytes(data))


@given(st.binary(max_size=200), st.sampled_from([reference.TCP, UDP]))
def test_an_unfinished_checksum_is_completed(payload: bytes, protocol: int) -> None:
    packet = Packet(payload, protocol)
    data = bytearray(packet.build_partial())
    assert ip.complete_checksum(data, 20, 16 if protocol == reference.TCP else 6, udp=protocol == UDP)
    assert bytes(data) == packet.build()


@given(st.binary(max_size=40), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_a_checksum_field_outside_the_packet_is_refused(data: bytes, start: int, offset: int) -> None:
    packet = bytearray(data)
    inside = start + offset + 2 <= len(data)
    assert ip.complete_checksum(packet, start, offset, udp=False) == inside
    assert inside or bytes(packet) == data


@given(
    st.binary(min_size=1, max_size=4000),
    st.integers(68, 1500),
    st.sampled_from([b"", b"\x83\x03\x00\x00", b"\x07\x04\x00\x00", b"\x01\x83\x03\x00", b"\x83\x00\x00\x00"]),
    st.sampled_from([0, 0x2000, 5, 0x2005]),
)
def test_fragments_reassemble_to_the_packet(payload: bytes, mtu: int, options: bytes, field: int) -> None:
    data = Packet(payload, ip_options=options, fragment=field).build()
    header = ip.parse(data)
    assert header is not None
    pieces = list(ip.fragment(data, header, mtu))
    content = bytearray(len(data) - header.header_length)
    covered = 0
    for number, piece in enumerate(pieces):
        assert len(piece) <= mtu
        assert reference.internet_checksum(piece[: (piece[0] & 15) * 4]) == 0
        own = ip.parse(piece)
        assert own is not None
        assert own.length == len(piece)
        assert (own.identification, own.ttl, own.protocol) == (header.identification, header.ttl, header.protocol)
        last = number == len(pieces) - 1
        assert bool(own.fragment & 0x2000) == (not last or bool(field & 0x2000))
        start = ((own.fragment & 0x1FFF) - (field & 0x1FFF)) * 8
        body = piece[own.header_length :]
        content[start : start + len(body)] = body
        covered += len(body)
    assert covered == len(content)
    assert bytes(content) == data[header.header_length :]
    copied = options if options[:1] == b"\x83" and options[1] else b""
    assert all(piece[20 : (piece[0] & 15) * 4] in (copied, b"\x83\x03\x00\x00", b"") for piece in pieces[1:])


def test_an_error_quotes_the_packet_and_names_the_mtu() -> None:
    data = Packet(b"x" * 2000).build()
    header = ip.parse(data)
    assert header is not None
    message = ip.icmp_error(data, header, ip.IcmpError.TOO_BIG, bytes([10, 5, 1, 0]), 1472)
    assert message is not None
    assert len(message) == 576
    assert reference.internet_checksum(message[:20]) == 0
    assert reference.internet_checksum(message[20:]) == 0
    assert (message[12:16], message[16:20]) == (bytes([10, 5, 1, 0]), header.source)
    assert message[20:22] == bytes([3, 4])
    assert message[26:28] == struct.pack("!H", 1472)
    assert message[28:] == data[:548]


def _icmp(kind: int) -> bytes:
    data = bytearray(Packet(b"", UDP).build())
    data[9] = 1
    data[20] = kind
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "answered"),
    [
        (Packet(b"x").build(), True),
        (_icmp(8), True),
        (_icmp(3), False),
        (_icmp(11), False),
        (Packet(b"x", fragment=7).build(), False),
        (Packet(b"x", fragment=0x2000).build(), True),
        (Packet(b"x", destination=bytes([224, 0, 0, 1])).build(), False),
        (Packet(b"x", destination=b"\xff" * 4).build(), False),
        (Packet(b"x", source=bytes(4)).build(), False),
        (Packet(b"x", source=bytes([127, 0, 0, 1])).build(), False),
        (Packet(b"x", source=bytes([239, 1, 1, 1])).build(), False),
    ],
)
def test_errors_are_sent_about_what_may_be_answered(data: bytes, answered: bool) -> None:
    header = ip.parse(data)
    assert header is not None
    message = ip.icmp_error(data, header, ip.IcmpError.NO_ROUTE, bytes([10, 5, 1, 0]))
    assert (message is not None) == answered
