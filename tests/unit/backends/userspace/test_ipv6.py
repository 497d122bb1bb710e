"""Headers and ICMPv6 errors of single IPv6 packets."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.reference import Packet

from pyflannel_backends.userspace import ipv6
from pyflannel_backends.userspace.packet import IcmpError

OURS = IPv6Address("fd00:5:1::").packed
ENDS = {"source": IPv6Address("fd00:5:1::2").packed, "destination": IPv6Address("fd00:5:2::2").packed}


@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_none(data: bytes) -> None:
    header = ipv6.parse(data)
    if header is not None:
        assert header.header_length == 40 <= header.length <= len(data)
        assert data[0] >> 4 == header.version == 6
        ipv6.icmp_error(data, header, IcmpError.NO_ROUTE, OURS)


def test_a_header_is_read() -> None:
    data = Packet(b"abc", ttl=9, tos=3, flow_label=0x54321, **ENDS).build()  # type: ignore[arg-type]
    header = ipv6.parse(data + b"more")
    assert header is not None
    assert (header.length, header.ttl, header.protocol) == (len(data), 9, reference.TCP)
    assert (header.source, header.destination) == (ENDS["source"], ENDS["destination"])
    assert ipv6.parse(data[:-1]) is None
    assert ipv6.parse(b"\x45" + data[1:]) is None


def test_a_hop_less() -> None:
    packet = Packet(b"abc", ttl=9, **ENDS)  # type: ignore[arg-type]
    data = bytearray(packet.build())
    ipv6.decrement_hop_limit(data)
    packet.ttl = 8
    assert bytes(data) == packet.build()


@pytest.mark.parametrize("error", IcmpError)
@pytest.mark.parametrize("size", [1, 2000])
def test_an_error_quotes_the_packet_and_names_the_mtu(error: IcmpError, size: int) -> None:
    data = Packet(b"x" * size, **ENDS).build()  # type: ignore[arg-type]
    header = ipv6.parse(data)
    assert header is not None
    message = ipv6.icmp_error(data, header, error, OURS, 1420)
    assert message is not None
    assert reference.is_valid(message)
    assert len(message) == min(1280, 48 + len(data))
    assert (message[6], message[8:24], message[24:40]) == (58, OURS, ENDS["source"])
    assert tuple(message[40:42]) == {"NO_ROUTE": (1, 0), "TOO_BIG": (2, 0), "TIME_EXCEEDED": (3, 0)}[error.name]
    assert message[44:48] == struct.pack("!I", 1420)
    assert data.startswith(message[48:])


def with_payload(first: int, payload: bytes) -> bytes:
    """A packet with this next header."""
    return struct.pack("!IHBB", 6 << 28, len(payload), first, 64) + ENDS["source"] + ENDS["destination"] + payload


def icmpv6(kind: int) -> bytes:
    return bytes([kind, 0, 0, 0, 0, 0, 0, 0])


def extension(following: int, units: int = 0) -> bytes:
    return bytes([following, units]) + bytes(6 + 8 * units)


@pytest.mark.parametrize(
    ("data", "answered"),
    [
        (with_payload(58, icmpv6(128)), True),
        (with_payload(58, icmpv6(1)), False),
        (with_payload(58, icmpv6(137)), False),
        (with_payload(58, b""), False),
        (with_payload(0, extension(58) + icmpv6(3)), False),
        (with_payload(0, extension(60, 2) + extension(58) + icmpv6(3)), False),
        (with_payload(0, extension(60, 2) + extension(58) + icmpv6(129)), True),
        (with_payload(0, extension(43, 9)[:8]), False),
        (with_payload(44, extension(58) + icmpv6(2)), False),
        (with_payload(44, extension(58) + icmpv6(128)), True),
        (with_payload(44, bytes([58, 0, 0, 8, 0, 0, 0, 0]) + icmpv6(128)), False),
        (with_payload(59, b""), True),
    ],
)
def test_no_error_is_sent_about_an_error(data: bytes, answered: bool) -> None:
    header = ipv6.parse(data)
    assert header is not None
    assert (ipv6.icmp_error(data, header, IcmpError.NO_ROUTE, OURS) is not None) == answered


@pytest.mark.parametrize("address", ["::", "::1", "ff02::1", "fe80::1", "febf::1"])
@pytest.mark.parametrize("end", ["source", "destination"])
def test_what_stays_on_its_link_is_not_answered(address: str, end: str) -> None:
    packed = IPv6Address(address).packed
    assert not ipv6.is_routable(packed)
    data = Packet(b"x", **{**ENDS, end: packed}).build()  # type: ignore[arg-type]
    header = ipv6.parse(data)
    assert header is not None
    assert ipv6.icmp_error(data, header, IcmpError.TIME_EXCEEDED, OURS) is None


@pytest.mark.parametrize("address", ["fd00::", "2001:db8::1", "fec0::1", "fe7f::1", "1::"])
def test_what_may_leave_its_link(address: str) -> None:
    assert ipv6.is_routable(IPv6Address(address).packed)
