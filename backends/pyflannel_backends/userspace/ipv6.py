"""IPv6 packets as bytes: what :mod:`.packet` does for IPv4. Pure, one packet at a time.

A router looks at the fixed header alone: there is no checksum to keep right and nothing to fragment. Extension headers
are only walked to see whether a packet is an ICMPv6 error itself, which must not be answered by another.

Sources: RFC 8200 (IPv6), RFC 4443 (ICMPv6), RFC 4291 (addresses).
"""

from __future__ import annotations

import struct
from typing import Final

from .packet import DONT_FRAGMENT, Bytes, Header, IcmpError, checksum

__all__ = ["IPV6_HEADER", "SMALLEST_MTU", "decrement_hop_limit", "icmp_error", "is_routable", "parse"]

IPV6_HEADER: Final = 40
ICMPV6: Final = 58
SMALLEST_MTU: Final = 1280
"""Packets of so many bytes get everywhere (RFC 8200 section 5), and senders take no word of less. An error quotes as
much as fits into one; RFC 4443 3.1."""
_FRAGMENT: Final = 44
_EXTENSIONS: Final = frozenset({0, 43, 60})
"""Headers that say their own length: hop-by-hop options, routing, destination options."""
_REDIRECT: Final = 137
_LINK_LOCAL: Final = frozenset(bytes([0xFE, second]) for second in range(0x80, 0xC0))

_IPV6 = struct.Struct("!IHBB16s16s")


def parse(packet: Bytes) -> Header | None:
    """Read an IPv6 header; ``None`` unless version and payload length make sense for these bytes.

    Bytes beyond the payload are allowed and no part of the packet.
    """
    if len(packet) < IPV6_HEADER:
        return None
    first, payload, protocol, hops, source, destination = _IPV6.unpack_from(packet)
    length = IPV6_HEADER + payload
    if first >> 28 != 6 or length > len(packet):
        return None
    return Header(IPV6_HEADER, length, 0, DONT_FRAGMENT, hops, protocol, source, destination, 6)


def is_routable(address: bytes) -> bool:
    """Whether packets from or to ``address`` (sixteen bytes) may leave their link.

    It is one host's then: not multicast, link-local, unspecified or loopback.
    """
    return address[0] != 0xFF and address[:2] not in _LINK_LOCAL and address[:15] != bytes(15)


def decrement_hop_limit(packet: bytearray | memoryview) -> None:
    """One hop less. The hop limit must not be 0."""
    packet[7] -= 1


def icmp_error(packet: Bytes, header: Header, error: IcmpError, source: bytes, mtu: int = 0) -> bytes | None:
    """An ICMPv6 error about ``packet``, addressed to its sender.

    :param source: our address, sixteen bytes.
    :param mtu: the next hop's MTU, for :attr:`IcmpError.TOO_BIG`.
    :returns: an IPv6 packet, or ``None`` where RFC 4443 2.4 forbids an answer: to ICMPv6 errors and redirects, and
        where sender or destination is not one host.
    """
    if not is_routable(header.source) or not is_routable(header.destination) or _is_error(packet, header):
        return None
    quoted = bytes(packet[: min(header.length, SMALLEST_MTU - IPV6_HEADER - 8)])
    message = bytearray(struct.pack("!BBHI", *error.ipv6, 0, mtu) + quoted)
    pseudo = source + header.source + struct.pack("!II", len(message), ICMPV6)
    struct.pack_into("!H", message, 2, checksum(pseudo + message))
    return _IPV6.pack(6 << 28, len(message), ICMPV6, 64, source, header.source) + bytes(message)


def _is_error(packet: Bytes, header: Header) -> bool:
    """Whether a packet carries an ICMPv6 error or redirect, or can't be told to carry none."""
    protocol, at = header.protocol, IPV6_HEADER
    while protocol in _EXTENSIONS or protocol == _FRAGMENT:
        if at + 8 > header.length:
            return True
        if protocol == _FRAGMENT and int.from_bytes(packet[at + 2 : at + 4], "big") >> 3:
            return True
        size = 8 if protocol == _FRAGMENT else 8 + 8 * packet[at + 1]
        protocol, at = packet[at], at + size
    if protocol != ICMPV6:
        return False
    return at >= header.length or packet[at] < 128 or packet[at] == _REDIRECT
