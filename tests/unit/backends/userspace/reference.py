"""What offloads mean, one packet at a time and as plainly as can be: the reference that the vectorised path must match.

Nothing here is shared with the code under test: headers are read and written with :mod:`struct`, sums are loops.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
TCP, UDP, ICMPV6 = 6, 17, 58


def internet_checksum(data: bytes) -> int:
    total = 0
    for position in range(0, len(data) - 1, 2):
        total += data[position] << 8 | data[position + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """Of either family, by the addresses' length; RFC 9293 3.1, RFC 8200 8.1."""
    if len(source) == 16:
        return source + destination + struct.pack("!II", length, protocol)
    return source + destination + bytes([0, protocol]) + struct.pack("!H", length)


@dataclass(repr=False)
class Packet:
    """A TCP or UDP packet taken apart; ``build`` puts it together with right lengths and checksums.

    With addresses of sixteen bytes it is an IPv6 packet: ``tos`` is the traffic class then, ``ttl`` the hop limit.
    """

    payload: bytes
    protocol: int = TCP
    source: bytes = bytes([10, 5, 1, 2])
    destination: bytes = bytes([10, 5, 2, 2])
    ports: tuple[int, int] = (40000, 80)
    identification: int = 0
    ttl: int = 64
    tos: int = 0
    fragment: int = 0x4000
    ip_options: bytes = b""
    sequence: int = 0
    acknowledgement: int = 0
    flags: int = ACK
    window: int = 1000
    tcp_options: bytes = b""
    flow_label: int = 0

    def __repr__(self) -> str:
        fields = {**vars(self), "payload": self.payload[:8].hex() + f"... ({len(self.payload)} bytes)"}
        return f"Packet({fields})"

    def build(self) -> bytes:
        transport = bytearray(self._transport())
        pseudo = pseudo_header(self.source, self.destination, self.protocol, len(transport))
        value = internet_checksum(pseudo + transport)
        if self.protocol == UDP and value == 0:
            value = 0xFFFF
        struct.pack_into("!H", transport, 16 if self.protocol == TCP else 6, value)
        return self._ip_header(len(transport)) + bytes(transport)

    def build_partial(self) -> bytes:
        """With the pseudo-header's sum, not inverted, where the transport checksum goes: as for NEEDS_CSUM."""
        transport = bytearray(self._transport())
        pseudo = pseudo_header(self.source, self.destination, self.protocol, len(transport))
        value = ~internet_checksum(pseudo) & 0xFFFF
        struct.pack_into("!H", transport, 16 if self.protocol == TCP else 6, value)
        return self._ip_header(len(transport)) + bytes(transport)

    @property
    def ip_length(self) -> int:
        return 40 if len(self.source) == 16 else 20 + len(self.ip_options)

    @property
    def header_length(self) -> int:
        return self.ip_length + (20 + len(self.tcp_options) if self.protocol == TCP else 8)

    def _transport(self) -> bytes:
        if self.protocol == UDP:
            return struct.pack("!HHHH", *self.ports, 8 + len(self.payload), 0) + self.payload
        offset = (20 + len(self.tcp_options)) // 4 << 4
        head = struct.pack(
            "!HHIIBBHHH", *self.ports, self.sequence, self.acknowledgement, offset, self.flags, self.window, 0, 0
        )
        return head + self.tcp_options + self.payload

    def _ip_header(self, length: int) -> bytes:
        if len(self.source) == 16:
            first = 6 << 28 | self.tos << 20 | self.flow_label
            return struct.pack("!IHBB", first, length, self.protocol, self.ttl) + self.source + self.destination
        size = 20 + len(self.ip_options)
        head = bytearray(
            struct.pack(
                "!BBHHHBBH4s4s",
                0x40 | size // 4,
                self.tos,
                size + length,
                self.identification,
                self.fragment,
                self.ttl,
                self.protocol,
                0,
                self.source,
                self.destination,
            )
            + self.ip_options
        )
        struct.pack_into("!H", head, 10, internet_checksum(bytes(head)))
        return bytes(head)


def segments(packet: Packet, size: int, hops: int = 1) -> list[bytes]:
    """The wire packets that a super-packet stands for, so many hops on."""
    result = []
    count = -(-len(packet.payload) // size)
    for number in range(count):
        flags = packet.flags
        if number > 0:
            flags &= ~CWR
        if number < count - 1:
            flags &= ~(FIN | PSH)
        piece = replace(packet)
        piece.payload = packet.payload[number * size : (number + 1) * size]
        piece.identification = packet.identification + number & 0xFFFF
        piece.sequence = packet.sequence + number * size & 0xFFFFFFFF
        piece.flags = flags
        piece.ttl = packet.ttl - hops
        result.append(piece.build())
    return result


def is_valid(packet: bytes) -> bool:
    """Whether an independent receiver would take this packet: lengths and all checksums are right."""
    if packet[:1] and packet[0] >> 4 == 6:
        return _is_valid6(packet)
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return False
    size = (packet[0] & 15) * 4
    (length,) = struct.unpack_from("!H", packet, 2)
    if size < 20 or length != len(packet) or size > length or internet_checksum(packet[:size]) != 0:
        return False
    protocol, transport = packet[9], packet[size:]
    if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF or protocol not in (TCP, UDP):
        return True
    if protocol == UDP and transport[6:8] == b"\0\0":
        return True
    return internet_checksum(pseudo_header(packet[12:16], packet[16:20], protocol, len(transport)) + transport) == 0


def _is_valid6(packet: bytes) -> bool:
    if len(packet) < 40 or 40 + struct.unpack_from("!H", packet, 4)[0] != len(packet):
        return False
    protocol, transport = packet[6], packet[40:]
    if protocol not in (TCP, UDP, ICMPV6):
        return True
    return internet_checksum(pseudo_header(packet[8:24], packet[24:40], protocol, len(transport)) + transport) == 0
