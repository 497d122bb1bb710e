"""Many packets at the price of one: cutting super-packets into wire packets, and joining wire packets again.

The idea: the packets of one super-packet are the rows of a matrix whose row is one packet on the wire. A header field
is then a column, a checksum the sum of a row, and numpy works on all packets at once; no object is made per packet.

* :class:`Splitter` fills the matrix. It lies in the buffer that one ``UDP_SEGMENT`` call sends.
* :class:`Joiner` views what ``UDP_GRO`` calls received one after the other as such a matrix, finds the rows that
  continue one TCP stream or one UDP flow, verifies their checksums and makes one super-packet for the TUN device.

A super-packet tells the kernel that its checksums need not be looked at, so only verified rows are ever joined; the
others reach the kernel one by one, with the checksum they came with. What is joined, the kernel (or a
:class:`Splitter`) cuts into the very same packets again.

IPv6 is IPv4 with less to do: no identification that counts up, no header checksum. A packet with extension headers
stays alone.

Sources: RFC 9293 (TCP), RFC 768 (UDP), RFC 3168 (CWR belongs to the first segment), ``segmentation-offloads.rst``.
"""

from __future__ import annotations

import struct
import sys
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from . import vnet
from .packet import TCP, UDP, Bytes, Header, checksum, ones_sum

__all__ = ["Joiner", "Plan", "Splitter", "plan_split"]


_BUFFER: Final = 1 << 16
_BATCH: Final = 4 * _BUFFER
_MATRICES: Final = 64
_FIN, _SYN, _RST, _PSH, _ACK, _URG, _CWR = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x80
_TCP_HEADER: Final = 20
_UDP_HEADER: Final = 8
_CHECKSUM_OFFSET: Final = {TCP: 16, UDP: 6}

U8: TypeAlias = npt.NDArray[np.uint8]
U16: TypeAlias = npt.NDArray[np.uint16]
U32: TypeAlias = npt.NDArray[np.uint32]

_INDEX: Final[U32] = np.arange(_BUFFER, dtype=np.uint32)
_COUNTING: Final[U16] = np.arange(2 * _BUFFER).astype(">u2").view(np.uint16)
"""0, 1, 2 ... 65535, 0, 1 ... in network byte order: the identifications of packets that follow each other."""
_FALLING: Final[U16] = (0xFFFE - np.arange(2 * _BUFFER) % 0xFFFF).astype(">u2").view(np.uint16)
"""Their checksums, in network byte order: one less for each packet, modulo 65535."""


def _native(value: int) -> int:
    """A big-endian 16-bit word as this machine would have read it; sums of words may be taken in either order."""
    return int.from_bytes(value.to_bytes(2, "big"), sys.byteorder)


def _pseudo(header: Header, length: int) -> int:
    """The one's complement sum of the pseudo-header for ``length`` bytes of TCP or UDP."""
    return ones_sum(header.source + header.destination + struct.pack("!HH", header.protocol, length))


def _remainder(head: Bytes, header: Header, length: int) -> int:
    """What the sum of a whole packet lacks to be the sum that its TCP or UDP checksum makes zero.

    That is the pseudo-header less the IP header. A right IPv4 header sums to nothing. Of an IPv6 header the addresses
    and the length are in both.

    :param head: begins with the IP header; :param length: of TCP or UDP with its payload, in bytes.
    """
    if header.version == 6:
        return (header.protocol + 2 * 0xFFFF - ones_sum(head[:4]) - ones_sum(head[6:8])) % 0xFFFF
    return _pseudo(header, length)


def _shortage(header: Header, full: int, short: int) -> int:
    """What to add, in this machine's order of bytes, to :func:`_remainder` for a packet of another length."""
    if header.version == 6:
        return 0
    at = header.header_length
    return 0xFFFF + _native(short - at) - _native(full - at)


def _ip_checksums(header_sum: int, identification: int, count: int) -> U16:
    """The checksums of ``count`` IP headers that differ only in their identification, which counts up.

    :param header_sum: the one's complement sum of a header without identification and checksum.
    """
    start = (header_sum - 1 + identification) % 0xFFFF
    before_wrap = 0x10000 - identification
    if count <= before_wrap:
        return _FALLING[start : start + count]
    start_again = (header_sum - 1) % 0xFFFF
    return np.concatenate(
        (_FALLING[start : start + before_wrap], _FALLING[start_again : start_again + count - before_wrap])
    )


def _transport_header(packet: Bytes, header: Header) -> int:
    """Bytes of the TCP or UDP header; 0 if it is malformed, or of another protocol, or a fragment's."""
    at = header.header_length
    if header.is_fragment:
        return 0
    if header.protocol == TCP and header.length >= at + _TCP_HEADER:
        size = (packet[at + 12] >> 4) * 4
        return size if _TCP_HEADER <= size <= header.length - at else 0
    if header.protocol == UDP and header.length >= at + _UDP_HEADER:
        return _UDP_HEADER
    return 0


def _gso_type(header: Header) -> int:
    """What a super-packet with this header is called."""
    if header.protocol == UDP:
        return vnet.GSO_UDP_L4
    return vnet.GSO_TCPV6 if header.version == 6 else vnet.GSO_TCPV4


class Plan(NamedTuple):
    """How one super-packet will be cut: ``segments`` packets of ``wire`` bytes, the last one of ``last``.

    ``template`` is the header of the middle packets with all checksums zero, ``first_flags`` and ``last_flags`` what
    the first and the last add to its TCP flags.
    """

    header: Header
    header_length: int
    payload: int
    wire: int
    segments: int
    last: int
    template: bytearray
    sequence: int
    first_flags: int
    last_flags: int


def plan_split(packet: Bytes, header: Header, gso: vnet.VnetHeader) -> Plan | None:
    """Read what is needed to cut a super-packet and take one hop off its TTL.

    :param packet: the IP packet, exactly ``header.length`` bytes.
    :returns: ``None`` if packet and virtio header don't make sense together.
    """
    protocol = header.protocol
    transport = _transport_header(packet, header)
    if transport == 0 or gso.gso_type & ~vnet.GSO_ECN != _gso_type(header):
        return None
    length = header.header_length + transport
    total, payload = header.length - length, gso.gso_size
    if total <= 0 or payload == 0 or length + payload > 0xFFFF:
        return None
    count = -(-total // payload)
    wire = length + payload if count > 1 else header.length
    template = bytearray(packet[:length])
    at = header.header_length
    if header.version == 6:
        struct.pack_into("!H", template, 4, wire - at)
        template[7] -= 1
    else:
        struct.pack_into("!HH", template, 2, wire, 0)
        template[8] -= 1
        template[10:12] = bytes(2)
    template[at + _CHECKSUM_OFFSET[protocol] : at + _CHECKSUM_OFFSET[protocol] + 2] = bytes(2)
    sequence = first = last = 0
    if protocol == TCP:
        sequence = int.from_bytes(template[at + 4 : at + 8], "big")
        flags = template[at + 13]
        first, last = flags & _CWR, flags & (_FIN | _PSH)
        template[at + 13] = flags & ~(_CWR | _FIN | _PSH)
    else:
        struct.pack_into("!H", template, at + 4, wire - at)
    return Plan(
        header,
        length,
        wire - length,
        wire,
        count,
        header.length - (count - 1) * (wire - length),
        template,
        sequence,
        first,
        last,
    )


class _Matrix:
    """Views on a buffer whose rows are packets of ``wire`` bytes. Rows of odd length get a padding byte.

    ``words`` and the columns but for ``flags`` hold the bytes as they are on the wire: 16-bit words, whose order of
    bytes does not matter to a sum, and the sequence numbers. ``identifications`` and ``ip_checksums`` are IPv4's.
    """

    __slots__ = ("checksums", "flags", "identifications", "ip_checksums", "rows", "sequences", "steps", "words")

    def __init__(self, buffer: U8, plan: Plan) -> None:
        stride = plan.wire + (plan.wire & 1)
        count = _BATCH // stride
        at = plan.header.header_length
        self.rows: U8 = buffer[: count * stride].reshape(count, stride)
        self.words: U16 = self.rows.view(np.uint16)
        self.identifications = self.words[:, 2]
        self.ip_checksums = self.words[:, 5]
        self.checksums = self.words[:, (at + _CHECKSUM_OFFSET[plan.header.protocol]) // 2]
        self.sequences = self.rows[:, at + 4 : at + 8].view(">u4")[:, 0]
        self.flags: U8 = self.rows[:, at + 13 if plan.header.protocol == TCP else at]
        self.steps: U32 = _INDEX * np.uint32(plan.payload)


class Splitter:
    """Cuts super-packets into rows of :attr:`buffer`.

    The caller counts the rows; those of equal ``wire`` size may follow each other.
    """

    def __init__(self) -> None:
        self.buffer = bytearray(_BATCH)
        self._array: U8 = np.frombuffer(self.buffer, np.uint8)
        self._padded: U8 = np.zeros(_BATCH, np.uint8)
        self._matrices: dict[tuple[int, int, int], _Matrix] = {}

    @staticmethod
    def array(buffer: memoryview) -> U8:
        """The same memory as an array of bytes, to take ``source`` from."""
        return np.frombuffer(buffer, np.uint8)

    plan = staticmethod(plan_split)

    @staticmethod
    def room(wire: int) -> int:
        """How many rows of packets of ``wire`` bytes there are."""
        return _BATCH // (wire + (wire & 1))

    def split(self, plan: Plan, source: U8, first: int, count: int, row: int) -> None:
        """Write segments ``first`` to ``first + count - 1`` of a super-packet as rows ``row`` and following.

        The rows lie ``plan.wire`` bytes apart; the super-packet's last segment may be shorter than its row.

        :param source: the super-packet, shape ``(header.length,)``, dtype uint8.
        """
        matrix = self._matrix(plan)
        header, stop, head, payload, wire = plan.header, row + count, plan.header_length, plan.payload, plan.wire
        rows = matrix.rows[row:stop]
        rows[:, :head] = np.frombuffer(plan.template, np.uint8)
        with_last = first + count == plan.segments
        short = with_last and plan.last != wire
        full = count - short
        begin = head + first * payload
        end = begin + full * payload
        rows[:full, head:wire] = source[begin:end].reshape(full, payload)
        if short:
            rows[full, head : plan.last] = source[end:]
            rows[full, plan.last :] = 0
        if wire & 1:
            rows[:, wire] = 0
        if header.version == 4:
            identification = (header.identification + first) & 0xFFFF
            matrix.identifications[row:stop] = _COUNTING[identification : identification + count]
            header_sum = ones_sum(plan.template[: header.header_length])
            matrix.ip_checksums[row:stop] = _ip_checksums(header_sum, identification, count)
        if header.protocol == TCP:
            matrix.sequences[row:stop] = matrix.steps[first : first + count] + np.uint32(plan.sequence)
        if plan.first_flags and first == 0:
            matrix.flags[row] |= plan.first_flags
        if plan.last_flags and with_last:
            matrix.flags[stop - 1] |= plan.last_flags
        if short:
            self._shorten(plan, rows[full])
        self._sum(plan, matrix, row, stop, short)
        if wire & 1:
            self._array[row * wire : stop * wire].reshape(count, wire)[:] = rows[:, :wire]

    def _matrix(self, plan: Plan) -> _Matrix:
        key = (plan.wire, plan.header_length, plan.header.protocol << 8 | plan.header.header_length)
        matrix = self._matrices.get(key)
        if matrix is None:
            if len(self._matrices) >= _MATRICES:
                self._matrices.clear()
            matrix = self._matrices[key] = _Matrix(self._padded if plan.wire & 1 else self._array, plan)
        return matrix

    @staticmethod
    def _shorten(plan: Plan, row: U8) -> None:
        at = plan.header.header_length
        head = bytearray(row[:at].tobytes())
        if plan.header.version == 6:
            struct.pack_into("!H", head, 4, plan.last - at)
        else:
            struct.pack_into("!H", head, 2, plan.last)
            struct.pack_into("!H", head, 10, 0)
            struct.pack_into("!H", head, 10, 0xFFFF - ones_sum(head))
        row[:at] = np.frombuffer(head, np.uint8)
        if plan.header.protocol == UDP:
            row[at + 4 : at + 6] = np.frombuffer(struct.pack("!H", plan.last - at), np.uint8)

    @staticmethod
    def _sum(plan: Plan, matrix: _Matrix, row: int, stop: int, short: bool) -> None:
        """Sum whole rows; padding sums to nothing."""
        header = plan.header
        sums = matrix.words[row:stop].sum(axis=1, dtype=np.uint32)
        sums += np.uint32(_native(_remainder(plan.template, header, plan.wire - header.header_length)) + 0xFFFE)
        if short:
            sums[-1] += np.uint32(_shortage(header, plan.wire, plan.last))
        sums %= np.uint32(0xFFFF)
        np.subtract(np.uint32(0xFFFE), sums, out=sums)
        if header.protocol == UDP:
            sums[sums == 0] = 0xFFFF
        matrix.checksums[row:stop] = sums


class Joiner:
    """Joins datagrams received into :attr:`buffer`: equal sizes, only the last may be shorter.

    After :meth:`load`, :meth:`run` says how many rows from a given one belong together, and :meth:`join` makes one
    super-packet of them.

    :param protocols: which of TCP and UDP the TUN device takes super-packets of.
    """

    def __init__(self, protocols: frozenset[int] = frozenset({TCP, UDP})) -> None:
        self.protocols = protocols
        self.buffer = bytearray(_BATCH + _BUFFER)
        """Receive into its first 256 KB; the rest is for padding the last row."""
        self._array: U8 = np.frombuffer(self.buffer, np.uint8)
        self._padded: U8 = np.zeros(2 * (_BATCH + _BUFFER), np.uint8)
        self._output = bytearray(vnet.LENGTH + _BUFFER)
        self._output_array: U8 = np.frombuffer(self._output, np.uint8)
        self._output_view = memoryview(self._output)
        self._rows: U8 = np.zeros((0, 2), np.uint8)
        self._words: U16 = self._rows.view(np.uint16)
        self._size = self._count = self._last = 0

    def load(self, start: int, stop: int, size: int) -> None:
        """Take bytes ``start`` (even) to ``stop`` of the buffer, datagrams of ``size`` bytes each, as a matrix.

        A last row that is shorter is padded with zeros, over what follows in the buffer.
        """
        total = stop - start
        count = -(-total // size)
        self._size, self._count, self._last = size, count, total - (count - 1) * size
        end = start + count * size
        self._array[stop:end] = 0
        rows = self._array[start:end].reshape(count, size)
        if size & 1:
            padded = self._padded[: count * (size + 1)].reshape(count, size + 1)
            padded[:, :size] = rows
            padded[:, size:] = 0
            rows = padded
        self._rows = rows
        self._words = rows.view(np.uint16)

    def run(self, first: int, packet: Bytes, header: Header) -> int:
        """How many rows from ``first`` continue one flow and carry right checksums; 1 if none follows.

        :param packet: row ``first``, whose header is ``header`` and has a right checksum.
        """
        if first + 1 >= self._count or header.length != self._size or header.protocol not in self.protocols:
            return 1
        transport = _transport_header(packet, header)
        at = header.header_length
        head = at + transport
        if transport == 0 or head == header.length:
            return 1
        template = bytearray(packet[:head])
        if header.protocol == TCP:
            if template[at + 13] & (_SYN | _RST | _URG | _ACK | _FIN | _PSH) != _ACK:
                return 1
            template[at + 13] &= ~_CWR
        joined = self._same_flow(first, template, header)
        return self._verified(first, joined, header) if joined > 1 else 1

    def join(self, first: int, count: int, header: Header) -> memoryview:
        """One super-packet of ``count`` rows that :meth:`run` found, with its virtio header before it.

        The memory is reused by the next call.
        """
        rows = self._rows[first : first + count]
        at = header.header_length
        transport = (int(rows[0, at + 12]) >> 4) * 4 if header.protocol == TCP else _UDP_HEADER
        length = at + transport
        payload = header.length - length
        short = first + count == self._count and self._last != self._size
        full = count - short
        start = vnet.LENGTH + length
        end = start + full * payload
        output = self._output_array
        output[start:end].reshape(full, payload)[:] = rows[:full, length : header.length]
        if short:
            output[end : end + self._last - length] = rows[full, length : self._last]
            end += self._last - length
        head = bytearray(rows[0, :length].tobytes())
        kind = self._seal(head, header, end - vnet.LENGTH, int(rows[-1, at + 13]) if header.protocol == TCP else 0)
        gso = vnet.VnetHeader(vnet.NEEDS_CSUM, kind, length, payload, at, _CHECKSUM_OFFSET[header.protocol])
        self._output_view[:start] = gso.pack() + head
        return self._output_view[:end]

    @staticmethod
    def _seal(head: bytearray, header: Header, total: int, last_flags: int) -> int:
        """Make the first packet's header the super-packet's; returns the GSO type."""
        at = header.header_length
        if header.version == 6:
            struct.pack_into("!H", head, 4, total - at)
        else:
            struct.pack_into("!H", head, 2, total)
            struct.pack_into("!H", head, 10, 0)
            struct.pack_into("!H", head, 10, 0xFFFF - ones_sum(head[:at]))
        kind = _gso_type(header)
        if header.protocol == TCP:
            kind |= vnet.GSO_ECN if head[at + 13] & _CWR else 0
            head[at + 13] |= last_flags & (_FIN | _PSH)
        else:
            struct.pack_into("!H", head, at + 4, total - at)
        struct.pack_into("!H", head, at + _CHECKSUM_OFFSET[header.protocol], _pseudo(header, total - at))
        return kind

    def _same_flow(self, first: int, template: bytearray, header: Header) -> int:
        """How many rows are consecutive packets of one flow, as far as the headers tell.

        A row that is shorter (the last one) or has PSH or FIN set may still end a run.

        :param template: the first row's TCP/IP or UDP/IP header, without CWR.
        """
        payload = header.length - len(template)
        count = min(self._count - first - (self._last != self._size), (0xFFFF - len(template)) // payload)
        joined = 1
        if count > 1:
            words = self._words[first + 1 : first + count, : len(template) // 2]
            expected = self._expected(words, template, header, payload)
            different = (words != expected).ravel()
            first_one = int(different.argmax())
            joined += first_one // words.shape[1] if different[first_one] else len(words)
        if first + joined < self._count and self._ends(first, joined, template, header):
            joined += 1
        return joined

    @staticmethod
    def _expected(words: U16, template: bytearray, header: Header, payload: int) -> U16:
        """The headers of the packets that would follow, with the transport checksums that came."""
        at = header.header_length
        count = len(words)
        expected = np.empty(words.shape, np.uint16)
        expected[:] = np.frombuffer(template, np.uint16)
        if header.version == 4:
            following = header.identification + 1 & 0xFFFF
            expected[:, 2] = _COUNTING[following : following + count]
            fixed = bytearray(template[:at])
            fixed[4:6] = fixed[10:12] = bytes(2)
            expected[:, 5] = _ip_checksums(ones_sum(fixed), following, count)
        column = (at + _CHECKSUM_OFFSET[header.protocol]) // 2
        expected[:, column] = words[:, column]
        if header.protocol == TCP:
            sequence = int.from_bytes(template[at + 4 : at + 8], "big")
            sequences = expected[:, at // 2 + 2 : at // 2 + 4].view(">u4")[:, 0]
            sequences[:] = _INDEX[1 : count + 1] * np.uint32(payload) + np.uint32(sequence)
        else:
            expected[words[:, column] == 0, column] = 0xFFFF  # what came without a checksum stays alone
        return expected

    def _ends(self, first: int, number: int, template: bytearray, header: Header) -> bool:
        """Whether row ``first + number`` may be the last of the run that begins at ``first``: looked at alone."""
        at, head = header.header_length, len(template)
        length = self._last if first + number == self._count - 1 else self._size
        if length <= head or number * (header.length - head) + length > 0xFFFF:
            return False
        actual = self._rows[first + number, :head].tobytes()
        expected = bytearray(template)
        if header.version == 6:
            struct.pack_into("!H", expected, 4, length - at)
        else:
            struct.pack_into("!HH", expected, 2, length, header.identification + number & 0xFFFF)
            expected[10:12] = actual[10:12]
        field = at + _CHECKSUM_OFFSET[header.protocol]
        expected[field : field + 2] = actual[field : field + 2]
        if header.protocol == TCP:
            sequence = int.from_bytes(template[at + 4 : at + 8], "big") + number * (header.length - head)
            struct.pack_into("!I", expected, at + 4, sequence & 0xFFFFFFFF)
            expected[at + 13] |= actual[at + 13] & (_FIN | _PSH)
        else:
            if actual[field : field + 2] == bytes(2):
                return False
            struct.pack_into("!H", expected, at + 4, length - at)
        return actual == expected and (header.version == 6 or checksum(actual[:at]) == 0)

    def _verified(self, first: int, count: int, header: Header) -> int:
        """How many of ``count`` rows have a right TCP or UDP checksum before one has not; at least 1."""
        remainder = _remainder(self._rows[first, :8].tobytes(), header, header.length - header.header_length)
        sums = self._words[first : first + count].sum(axis=1, dtype=np.uint32)
        sums += np.uint32(_native(remainder))
        if first + count == self._count and self._last != self._size:
            sums[-1] += np.uint32(_shortage(header, header.length, self._last))
        sums %= np.uint32(0xFFFF)
        return max(1, int((sums != 0).argmax())) if sums.any() else count
