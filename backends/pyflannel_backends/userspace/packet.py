"""IPv4 packets as bytes: reading headers, checksums, TTL, fragments and ICMP errors. Pure, one packet at a time.

Everything a router must know of a packet is here and, for the other family, in :mod:`.ipv6`, without numpy and without
a socket. The vectorised path (:mod:`.offload`) handles trains of equal packets; whatever is unusual ends up here.

Sources: RFC 791 (IP), RFC 792 and RFC 1812 section 4.3 (ICMP errors), RFC 1071 and RFC 1624 (checksums),
RFC 1191 (fragmentation needed).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

__all__ = [
    "DONT_FRAGMENT",
    "IPV4_HEADER",
    "TCP",
    "UDP",
    "Bytes",
    "Header",
    "IcmpError",
    "checksum",
    "complete_checksum",
    "decrement_ttl",
    "fragment",
    "icmp_error",
    "ones_sum",
    "parse",
]

Bytes: TypeAlias = bytes | bytearray | memoryview

IPV4_HEADER: Final = 20
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17

DONT_FRAGMENT: Final = 0x4000
MORE_FRAGMENTS: Final = 0x2000
_OFFSET: Final = 0x1FFF
_QUOTED: Final = 576
"""An ICMP error is at most this long; RFC 1812 4.3.2.3."""
_ICMP_ERRORS: Final = frozenset({3, 4, 5, 11, 12})

_IPV4 = struct.Struct("!BBHHHBBH4s4s")


class IcmpError(Enum):
    """Why a packet doesn't go on: type and code of the ICMP message, for IPv4 and for IPv6."""

    NO_ROUTE = (3, 1), (1, 0)
    TOO_BIG = (3, 4), (2, 0)
    TIME_EXCEEDED = (11, 0), (3, 0)

    @property
    def ipv4(self) -> tuple[int, int]:
        """For ICMP: host unreachable, fragmentation needed, time exceeded."""
        return self.value[0]

    @property
    def ipv6(self) -> tuple[int, int]:
        """For ICMPv6: no route to destination, packet too big, time exceeded."""
        return self.value[1]


class Header(NamedTuple):
    """An IP header's fields that forwarding needs. ``length`` is the whole packet's, all lengths in bytes.

    Of IPv6, ``ttl`` is the hop limit, ``protocol`` the next header, ``header_length`` without extension headers, and
    ``fragment`` says what holds for all packets: routers must not fragment them.
    """

    header_length: int
    length: int
    identification: int
    fragment: int
    ttl: int
    protocol: int
    source: bytes
    destination: bytes
    version: int = 4

    @property
    def is_fragment(self) -> bool:
        """Part of a larger packet: a non-zero offset, or more to come."""
        return self.fragment & (MORE_FRAGMENTS | _OFFSET) != 0


def parse(packet: Bytes) -> Header | None:
    """Read an IPv4 header; ``None`` unless version, header length and total length make sense for these bytes.

    Bytes beyond the total length are allowed and no part of the packet.
    """
    if len(packet) < IPV4_HEADER:
        return None
    first, _, length, identification, fragment_, ttl, protocol, _, source, destination = _IPV4.unpack_from(packet)
    header_length = (first & 0x0F) * 4
    if first >> 4 != 4 or not IPV4_HEADER <= header_length <= length <= len(packet):
        return None
    return Header(header_length, length, identification, fragment_, ttl, protocol, source, destination)


def ones_sum(data: Bytes) -> int:
    """The one's complement sum of big-endian 16-bit words, an odd last byte padded with zero: 0 only for all zeros.

    2**16 is 1 modulo 65535, so the bytes taken as one large number, modulo 65535, are the sum of their words.
    """
    total = int.from_bytes(data, "big") << ((len(data) & 1) * 8)
    return total % 0xFFFF or (0xFFFF if total else 0)


def checksum(data: Bytes) -> int:
    """The Internet checksum of ``data`` (RFC 1071); 0 over data that contains its own right checksum."""
    return 0xFFFF - ones_sum(data)


def complete_checksum(packet: bytearray | memoryview, start: int, offset: int, *, udp: bool) -> bool:
    """Finish a checksum that the kernel left partial: the field holds the pseudo-header's sum.

    :param start: where the summed bytes begin; ``offset``: where, counted from there, the field is (virtio_net.h).
    :returns: whether the field lies inside the packet; nothing is written otherwise.
    """
    field = start + offset
    if field + 2 > len(packet):
        return False
    value = checksum(packet[start:])
    if value == 0 and udp:
        value = 0xFFFF
    packet[field : field + 2] = value.to_bytes(2, "big")
    return True


def decrement_ttl(packet: bytearray | memoryview) -> None:
    """One hop less, and the header checksum moved along (RFC 1624). The TTL must not be 0."""
    packet[8] -= 1
    value = (packet[10] << 8 | packet[11]) + 0x0100
    value += value >= 0xFFFF
    packet[10] = value >> 8 & 0xFF
    packet[11] = value & 0xFF


def fragment(packet: Bytes, header: Header, mtu: int) -> Iterator[bytes]:
    """Cut a packet that may be fragmented into pieces of at most ``mtu`` bytes (RFC 791 section 3.2).

    Options are repeated where their copy bit says so. ``mtu`` must leave room for a header and eight bytes.
    """
    first = bytes(packet[: header.header_length])
    rest = first[:IPV4_HEADER] + _copied_options(first[IPV4_HEADER:])
    position, end = header.header_length, header.length
    offset = header.fragment & _OFFSET
    head = first
    while position < end:
        room = (mtu - len(head)) // 8 * 8
        last = end - position <= mtu - len(head)
        piece = bytes(packet[position : end if last else position + room])
        more = 0 if last else MORE_FRAGMENTS
        field = header.fragment & ~(_OFFSET | MORE_FRAGMENTS) | (header.fragment & MORE_FRAGMENTS | more) | offset
        yield _with_header(head, piece, field)
        position += len(piece)
        offset += len(piece) // 8
        head = rest


def _with_header(header: bytes, payload: bytes, fragment_field: int) -> bytes:
    head = bytearray(header)
    head[0] = 0x40 | len(head) // 4
    struct.pack_into("!H", head, 2, len(head) + len(payload))
    struct.pack_into("!H", head, 6, fragment_field)
    struct.pack_into("!H", head, 10, 0)
    struct.pack_into("!H", head, 10, checksum(head))
    return bytes(head) + payload


def _copied_options(options: bytes) -> bytes:
    """The options that every fragment repeats, padded to a multiple of four bytes; nothing where they are malformed."""
    copied = bytearray()
    position = 0
    while position < len(options) and options[position] != 0:
        size = 1 if options[position] == 1 else options[position + 1] if position + 1 < len(options) else 0
        if size == 0 or position + size > len(options):
            return b""
        if options[position] & 0x80:
            copied += options[position : position + size]
        position += size
    return bytes(copied) + bytes(-len(copied) % 4)


def icmp_error(packet: Bytes, header: Header, error: IcmpError, source: bytes, mtu: int = 0) -> bytes | None:
    """An ICMP error about ``packet``, addressed to its sender.

    :param source: our address, four bytes.
    :param mtu: the next hop's MTU, for :attr:`IcmpError.TOO_BIG`.
    :returns: an IPv4 packet, or ``None`` where RFC 1812 4.3.2.7 forbids an answer: to ICMP errors, to fragments but
        the first, and to senders or destinations that are not one host.
    """
    if header.fragment & _OFFSET or not _is_host(header.source) or header.destination[0] >= 224:
        return None
    if header.protocol == ICMP and (
        header.length <= header.header_length or packet[header.header_length] in _ICMP_ERRORS
    ):
        return None
    quoted = bytes(packet[: min(header.length, _QUOTED - IPV4_HEADER - 8)])
    message = bytearray(struct.pack("!BBHHH", *error.ipv4, 0, 0, mtu) + quoted)
    struct.pack_into("!H", message, 2, checksum(message))
    head = bytearray(_IPV4.pack(0x45, 0xC0, IPV4_HEADER + len(message), 0, 0, 64, ICMP, 0, source, header.source))
    struct.pack_into("!H", head, 10, checksum(head))
    return bytes(head + message)


def _is_host(address: bytes) -> bool:
    return address[0] not in (0, 127) and address[0] < 224
