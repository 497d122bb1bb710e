"""What happens to a packet on its way between the TUN device and the underlay. No system call is made here.

:class:`Forwarder` is a router with two sides. From the TUN device: find the peer that holds the destination, take one
hop off the TTL, put the packet into the batch for that peer; what can't go on is answered by ICMP. From the underlay:
accept only what a peer may send (its lease as source, our subnet as destination) and hand it to the kernel; that the
peer sent it is the underlay port's word. Packets that a fast path can take together are taken together, all others one
by one, and every packet that goes nowhere is counted under a reason.

When a side was found empty, the next packet there is most likely alone, so it goes on before anybody looks for more.
While packets keep coming they are taken in bursts, which are short enough for the other side not to wait.

Where there is a fast path, packets are read by it, and come here only if it can't tell what to do with them. It is told
here what it may do with others like those that were forwarded.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import ipv6, vnet
from . import packet as ip
from .fastpath import DeviceSide
from .packet import Header, IcmpError
from .ports import Inlet, Received, TunPort, UnderlayPort
from .table import Peer, PeerId, PeerTable

if TYPE_CHECKING:
    from ._fastpath import FastPath, Unsent
    from .offload import Joiner, Plan, Splitter

__all__ = ["COUNTERS", "Forwarder", "QueueLimits", "RateLimit"]

COUNTERS: Final = (
    "sent_packets",
    "sent_bytes",
    "sent_calls",
    "received_packets",
    "received_bytes",
    "received_calls",
    "joined_packets",
    "icmp_sent",
    "icmp_suppressed",
    "fragmented",
    "drop_malformed",
    "drop_other_family",
    "drop_link_local",
    "drop_no_route",
    "drop_ttl_exceeded",
    "drop_too_big",
    "drop_super_packet",
    "drop_send_failed",
    "drop_spoofed_source",
    "drop_not_for_us",
    "drop_tun_failed",
)
"""Totals since the start. Packets are packets on the wire, bytes are theirs without the outer headers."""

_BURST: Final = 4
"""Receive calls on one side before the other side gets its turn, where a call may bring 64 KB. What is handed over in
one go should fit into the buffer of a receiver's socket."""
_BURST_OF_SINGLES: Final = 16
"""The same where each call brings one packet."""
_BUFFER: Final = vnet.LENGTH + (1 << 16)
_DATAGRAM_BUFFER: Final = 1 << 16
_DATAGRAM_BUFFERS: Final = 4 * _DATAGRAM_BUFFER
_MAX_PATHS: Final = 1 << 16
_SMALLEST_MTU: Final = 68


_TOO_BIG: Final = frozenset({errno.EMSGSIZE, errno.EINVAL})
"""What the kernel says of datagrams, and of segments, that don't fit into the path's MTU."""


_LEAVING: Final = struct.Struct("!H8xBxH4xHH4x4s")
"""Virtio flags and GSO type, then of an IPv4 header: first byte, length, TTL and protocol, checksum, destination."""
_LEAVING6: Final = struct.Struct("!H12xHxB16s16s")
"""Virtio flags and GSO type, then of an IPv6 header: payload length, hop limit, both addresses."""
_ARRIVING: Final = struct.Struct("!BxH8x8s")
"""Of an IPv4 header: first byte, length, both addresses."""
_ARRIVING6: Final = struct.Struct("!4xH2x32s")
"""Of an IPv6 header: payload length, both addresses."""
_HOPS: Final = struct.Struct("!HH")
_HOPS_AT: Final = vnet.LENGTH + 8
"""Where TTL and protocol, and the checksum, are in what the TUN device gave."""
_HOP_LIMIT_AT: Final = vnet.LENGTH + 7
_NO_OPTIONS: Final = 0x45
"""First byte of an IPv4 packet with a header of twenty bytes."""


class RateLimit:
    """A token bucket: ``rate`` events a second, ``burst`` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()

    def allow(self) -> bool:
        """Whether one more may happen now; counts it if so."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """``mtu``: the overlay's, in bytes.

    ``addresses`` are ours on the TUN device, the sources of our ICMP errors, by IP version. A family without one is not
    carried.
    """

    mtu: int
    addresses: Mapping[int, bytes]


class Forwarder:
    """See the module's docstring.

    :param splitter: cuts super-packets from the TUN device; ``None`` where the device was told to send none.
    :param joiner: makes super-packets for the TUN device; ``None`` where it takes none.
    """

    def __init__(
        self,
        tun: TunPort,
        underlay: UnderlayPort,
        table: PeerTable,
        limits: QueueLimits,
        icmp_limit: RateLimit,
        splitter: Splitter | None = None,
        joiner: Joiner | None = None,
    ) -> None:
        self.tun = tun
        self.underlay = underlay
        self.table = table
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.failures: dict[PeerId, str] = {}
        self._limits = limits
        self._icmp_limit = icmp_limit
        self._splitter = splitter
        self._joiner = joiner
        self.tun_buffer = bytearray(_BUFFER)
        self._input = memoryview(self.tun_buffer)
        self._input_array = splitter.array(self._input) if splitter else None
        self._batch = _Batch(splitter.buffer if splitter else bytearray(1 << 16))
        self.buffer = joiner.buffer if joiner else bytearray(_DATAGRAM_BUFFERS)
        self._datagrams = memoryview(self.buffer)[:_DATAGRAM_BUFFERS]
        self._datagram = self._datagrams[:_DATAGRAM_BUFFER]
        self._burst = _BURST if splitter or joiner else _BURST_OF_SINGLES
        self._tun_rests = self._underlay_rests = True
        self._routes: dict[bytes, Peer | None] = {}
        self._paths: set[tuple[PeerId, bytes]] = set()
        self._path_mtus: dict[PeerId, int] = {}
        self._fast_path: FastPath | None = None

    def device_side(self, epoll: int, tun: int) -> DeviceSide:
        """For a fast path that reads from the device's descriptor."""
        protocols = self._joiner.protocols if self._joiner else ()
        cuts = self._splitter is not None
        return DeviceSide(epoll, tun, self.tun_buffer, self.buffer, cuts, ip.TCP in protocols, ip.UDP in protocols)

    def attach(self, fast_path: FastPath | None) -> None:
        """Work with a fast path, which leaves packets in :attr:`tun_buffer` and :attr:`buffer`."""
        self._fast_path = fast_path

    def table_changed(self) -> None:
        """Forget what was remembered of the table's answers."""
        self._routes.clear()
        self._paths.clear()
        self.failures.clear()
        self._unlearn()

    def forget_path_mtus(self) -> None:
        """Try full-sized packets again; the kernel forgets a path's MTU too, after ten minutes."""
        self._path_mtus.clear()
        self._unlearn()

    def _unlearn(self) -> None:
        """See that the fast path does nothing that we would not do."""
        if self._fast_path is not None:
            self._fast_path.forget()

    # From the TUN device to the underlay

    def from_tun(self, read: int | Unsent | None = None) -> None:
        """Forward what waits, at most a burst.

        :param read: what was read already: one packet of so many bytes, or packets that could not be sent; those alone.
        """
        alone, self._tun_rests = self._tun_rests, False
        if isinstance(read, int):
            self._one_from_tun(read)
        elif read is not None:
            data, wire, peer = read
            self._send(memoryview(data), wire, peer)
        elif alone:
            self._one_from_tun(self.tun.receive(self._input))
        else:
            self._burst_from_tun()

    def _one_from_tun(self, length: int) -> None:
        """Send one packet before looking for more."""
        peer = self._next_hop(length)
        if peer is not None:
            self._send(self._input[vnet.LENGTH : length], length - vnet.LENGTH, peer)
        elif length:
            self._outbound(length)
            self._flush()
        if self._fast_path is not None and length:
            self._teach_route(self._fast_path, length)

    def _teach_route(self, fast_path: FastPath, length: int) -> None:
        """Leave the next packet to this one's destination to the fast path, if all is well there."""
        header = _parse(self._input[vnet.LENGTH : length])
        peer = self._routes.get(header.destination) if header is not None else None
        if header is None or peer is None or peer.id in self.failures:
            return
        way = self.underlay.way(peer.id)
        if way is not None:
            fast_path.learn_route(header.destination, peer.id, self._mtu(peer.id), way)

    def _burst_from_tun(self) -> None:
        receive, buffer = self.tun.receive, self._input
        for _ in range(self._burst):
            length = receive(buffer)
            if length == 0:
                self._tun_rests = True
                break
            peer = self._next_hop(length)
            if peer is not None:
                self._append(buffer[vnet.LENGTH : length], peer)
            else:
                self._outbound(length)
        self._flush()

    def _next_hop(self, length: int) -> PeerId | None:
        """Take one hop off a packet that needs no second look, and say who gets it; all others need :meth:`_outbound`.

        Short on purpose: after some milliseconds of idleness each line of code costs a wait for memory.
        """
        if self._input[vnet.LENGTH] >> 4 == 6:
            return self._next_hop6(length)
        undone, first, total, hops, value, destination = _LEAVING.unpack_from(self._input)
        peer = None if undone or first != _NO_OPTIONS else self._routes.get(destination)
        if (
            peer is None
            or hops < 0x0200
            or total != length - vnet.LENGTH
            or not ip.IPV4_HEADER <= total <= self._mtu(peer.id)
        ):
            return None
        value += 0x0100
        _HOPS.pack_into(self._input, _HOPS_AT, hops - 0x0100, (value + (value >= 0xFFFF)) & 0xFFFF)
        return peer.id

    def _outbound(self, length: int) -> None:
        packet = self._input[vnet.LENGTH : length]
        header = _parse(packet)
        if header is None:
            self.counters["drop_malformed"] += 1
            return
        packet = packet[: header.length]
        reason = self._unroutable(header)
        if reason:
            self.counters[reason] += 1
            return
        peer = self._route(header.destination)
        if peer is None:
            self._refuse(packet, header, IcmpError.NO_ROUTE, "drop_no_route")
        elif header.ttl <= 1:
            self._refuse(packet, header, IcmpError.TIME_EXCEEDED, "drop_ttl_exceeded")
        elif self._input[1] != vnet.GSO_NONE:
            self._send_super_packet(packet, header, peer.id)
        else:
            self._send_packet(packet, header, peer.id)

    def _next_hop6(self, length: int) -> PeerId | None:
        undone, payload, hops, source, destination = _LEAVING6.unpack_from(self._input)
        peer = None if undone else self._routes.get(destination)
        total = ipv6.IPV6_HEADER + payload
        if (
            peer is None
            or hops < 2
            or total != length - vnet.LENGTH
            or total > self._mtu(peer.id)
            or not ipv6.is_routable(source)
        ):
            return None
        self._input[_HOP_LIMIT_AT] = hops - 1
        return peer.id

    def _unroutable(self, header: Header) -> str:
        """The reason why a packet from the host stays here without an answer, if there is one."""
        if header.version not in self._limits.addresses:
            return "drop_other_family"
        if header.version == 6 and not (ipv6.is_routable(header.source) and ipv6.is_routable(header.destination)):
            return "drop_link_local"
        return ""

    def _route(self, destination: bytes) -> Peer | None:
        try:
            return self._routes[destination]
        except KeyError:
            if len(self._routes) >= _MAX_PATHS:
                self._routes.clear()
            peer = self._routes[destination] = self.table.lookup(destination)
            return peer

    def _send_packet(self, packet: memoryview, header: Header, peer: PeerId) -> None:
        if self._input[0] & vnet.NEEDS_CSUM:
            gso = vnet.unpack(self._input)
            udp = header.protocol == ip.UDP
            if not ip.complete_checksum(packet, gso.csum_start, gso.csum_offset, udp=udp):
                self.counters["drop_malformed"] += 1
                return
        if header.version == 6:
            ipv6.decrement_hop_limit(packet)
        else:
            ip.decrement_ttl(packet)
        if header.length <= self._mtu(peer):
            self._append(packet, peer)
            return
        for piece in self._fitting(packet, peer):
            self._append(piece, peer)

    def _append(self, packet: memoryview | bytes, peer: PeerId) -> None:
        batch = self._batch
        if not batch.takes(peer, len(packet)):
            self._flush()
            batch.begin(peer, len(packet))
        batch.append(packet)

    def _send_super_packet(self, packet: memoryview, header: Header, peer: PeerId) -> None:
        splitter, array = self._splitter, self._input_array
        if splitter is None or array is None:
            self.counters["drop_super_packet"] += 1
            return
        plan = splitter.plan(packet, header, vnet.unpack(self._input))
        if plan is None:
            self.counters["drop_malformed"] += 1
        elif plan.wire <= self._mtu(peer):
            self._split(plan, peer)
        elif header.fragment & ip.DONT_FRAGMENT and plan.wire > self._whole(header, peer):
            self._refuse(packet, header, IcmpError.TOO_BIG, "drop_too_big", self._whole(header, peer))
        else:
            self._split_and_fragment(plan, peer)

    def _split(self, plan: Plan, peer: PeerId) -> None:
        splitter, batch = self._splitter, self._batch
        assert splitter is not None
        assert self._input_array is not None
        source = self._input_array[vnet.LENGTH : vnet.LENGTH + plan.header.length]
        first = 0
        while first < plan.segments:
            left = plan.segments - first
            fits = batch.wire == plan.wire and batch.takes(peer, plan.wire)
            if not fits or (batch.room < left <= splitter.room(plan.wire)):
                self._flush()
                batch.begin(peer, plan.wire)
            count = min(left, batch.room)
            splitter.split(plan, source, first, count, batch.rows)
            first += count
            batch.extend(count, plan.last if first == plan.segments else plan.wire)

    def _split_and_fragment(self, plan: Plan, peer: PeerId) -> None:
        """Each packet of this super-packet is too big for the path."""
        splitter = self._splitter
        assert splitter is not None
        assert self._input_array is not None
        self._flush()
        source = self._input_array[vnet.LENGTH : vnet.LENGTH + plan.header.length]
        for number in range(plan.segments):
            splitter.split(plan, source, number, 1, 0)
            size = plan.last if number == plan.segments - 1 else plan.wire
            for piece in self._fitting(bytes(splitter.buffer[:size]), peer):
                self._send(memoryview(piece), len(piece), peer)

    def _mtu(self, peer: PeerId) -> int:
        return self._path_mtus.get(peer, self._limits.mtu) if self._path_mtus else self._limits.mtu

    def _whole(self, header: Header, peer: PeerId) -> int:
        """The largest packet that is sent to ``peer`` as it is: in fragments on the underlay, if IPv6 demands that."""
        return self._mtu(peer) if header.version == 4 else max(self._mtu(peer), ipv6.SMALLEST_MTU)

    def _fitting(self, packet: bytes | memoryview, peer: PeerId) -> Iterable[bytes | memoryview]:
        """What to send for a packet that is ready but for its size: itself, fragments, or nothing but an ICMP error."""
        header = _parse(packet)
        assert header is not None
        mtu = self._whole(header, peer)
        if header.length <= mtu:
            return (packet,)
        if header.fragment & ip.DONT_FRAGMENT:
            self._refuse(packet, header, IcmpError.TOO_BIG, "drop_too_big", mtu)
            return ()
        self.counters["fragmented"] += 1
        return ip.fragment(packet, header, mtu)

    def _refuse(self, packet: memoryview | bytes, header: Header, error: IcmpError, reason: str, mtu: int = 0) -> None:
        """Drop a packet and tell its sender, unless that is forbidden or too often."""
        self.counters[reason] += 1
        answer = ipv6.icmp_error if header.version == 6 else ip.icmp_error
        message = answer(packet, header, error, self._limits.addresses[header.version], mtu)
        if message is None:
            return
        if not self._icmp_limit.allow():
            self.counters["icmp_suppressed"] += 1
            return
        self.counters["icmp_sent"] += 1
        self._to_tun(vnet.PLAIN, message)

    def _flush(self) -> None:
        """Send the batch, in pieces that one call can take."""
        batch = self._batch
        if batch.rows == 0:
            return
        wire, peer = batch.wire, batch.peer
        data = batch.take()
        step = self.underlay.rows(wire) * wire
        if len(data) <= step:
            self._send(data, wire, peer)
            return
        for start in range(0, len(data), step):
            self._send(data[start : start + step], wire, peer)

    def _send(self, data: memoryview, wire: int, peer: PeerId) -> None:
        mtu = self._mtu(peer)
        is_cut = mtu < wire <= ipv6.SMALLEST_MTU and data[0] >> 4 == 6
        error = (self.underlay.send_in_fragments if is_cut else self.underlay.send)(data, wire, peer)
        counters = self.counters
        packets = -(-len(data) // wire)
        if error == 0:
            counters["sent_calls"] += 1
            counters["sent_packets"] += packets
            counters["sent_bytes"] += len(data)
            if is_cut:
                counters["fragmented"] += len(data) // wire + (len(data) % wire > mtu)
            if self.failures:
                self.failures.pop(peer, None)
        elif is_cut or error not in _TOO_BIG or not self._path_shrank(data, wire, peer):
            counters["drop_send_failed"] += packets
            self._unlearn()
            self.failures[peer] = f"can't send to {peer}: {os.strerror(error)}"

    def _path_shrank(self, data: memoryview, wire: int, peer: PeerId) -> bool:
        """If the path's MTU is smaller than these packets' senders knew: learn it, and send again what it allows."""
        known = self._mtu(peer)
        mtu = min(max(_SMALLEST_MTU, self.underlay.path_mtu(peer)), known)
        if mtu == known >= wire:
            return False
        self._path_mtus[peer] = mtu
        self._unlearn()
        for start in range(0, len(data), wire):
            for piece in self._fitting(bytes(data[start : start + wire]), peer):
                self._send(memoryview(piece), len(piece), peer)
        return True

    # From the underlay to the TUN device

    def from_underlay(self, inlet: Inlet, received: Received | None = None) -> None:
        """Deliver what waits, at most a burst of receive calls; or what was received already."""
        alone, self._underlay_rests = self._underlay_rests, False
        if received is not None:
            self._one_from_underlay(received)
        elif alone:
            self._one_from_underlay(inlet.receive(self._datagram) or (0, 0, None))
        else:
            self._burst_from_underlay(inlet)

    def _one_from_underlay(self, received: Received) -> None:
        """Deliver what one call has brought before looking for more."""
        length, size, sender = received
        if sender is None or not self._is_something(length, size):
            return
        if size == length and self._fast_path is None and self._is_expected(self._datagram[:length], sender):
            self._to_tun(vnet.PLAIN, self._datagram[:length])
        else:
            self._inbound(_Train(sender, size, 0, length))

    def _burst_from_underlay(self, inlet: Inlet) -> None:
        """What comes in from one peer in one size is laid out back to back and delivered as one train."""
        receive, buffer = inlet.receive, self._datagrams
        train: _Train | None = None
        at = 0
        for _ in range(self._burst):
            received = receive(buffer[at : at + _DATAGRAM_BUFFER])
            if received is None:
                self._underlay_rests = True
                break
            length, size, sender = received
            if sender is None or not self._is_something(length, size):
                continue
            if train is None or not train.extend(at, length, size, sender):
                if train is not None:
                    self._inbound(train)
                train = _Train(sender, size, at, at + length)
            at = train.stop
            if train.is_closed or at + _DATAGRAM_BUFFER > len(buffer):
                self._inbound(train)
                train = None
                at = 0
        if train is not None:
            self._inbound(train)

    def _is_something(self, length: int, size: int) -> bool:
        """Count what a peer sent; a datagram may be empty."""
        counters = self.counters
        counters["received_calls"] += 1
        counters["received_packets"] += -(-length // size) if length else 1
        counters["received_bytes"] += length
        if length == 0:
            counters["drop_malformed"] += 1
        return length > 0

    def _is_expected(self, packet: memoryview, sender: PeerId) -> bool:
        """Whether a packet is one of many between two addresses, and needs no second look; short on purpose."""
        if len(packet) < ipv6.IPV6_HEADER:
            return False
        if packet[0] >> 4 == 6:
            payload, addresses = _ARRIVING6.unpack_from(packet)
            return payload + ipv6.IPV6_HEADER == len(packet) and (sender, addresses) in self._paths
        first, total, addresses = _ARRIVING.unpack_from(packet)
        return (
            first == _NO_OPTIONS
            and total == len(packet)
            and (sender, addresses) in self._paths
            and ip.checksum(packet[: ip.IPV4_HEADER]) == 0
        )

    def _inbound(self, train: _Train) -> None:
        joiner, start, stop, size, sender = self._joiner, train.start, train.stop, train.size, train.sender
        if joiner is not None and stop - start > size:
            joiner.load(start, stop, size)
        else:
            joiner = None
        row = 0
        while start < stop:
            packet = self._datagrams[start : min(start + size, stop)]
            header = self._accept(packet, sender)
            joined = 1
            if header is not None:
                joined = joiner.run(row, packet, header) if joiner else 1
                if joiner and joined > 1:
                    self.counters["joined_packets"] += joined
                    self._to_tun(b"", joiner.join(row, joined, header), joined)
                else:
                    self._to_tun(vnet.PLAIN, packet[: header.length])
            row += joined
            start += joined * size

    def _accept(self, packet: memoryview, sender: PeerId) -> Header | None:
        """The header of a packet that ``sender`` may send us, else ``None`` and counted."""
        header = _parse(packet)
        if header is None or (header.version == 4 and ip.checksum(packet[: header.header_length]) != 0):
            self.counters["drop_malformed"] += 1
            return None
        path = sender, header.source + header.destination
        if path in self._paths:
            self._teach_path(path)
            return header
        owner = self.table.lookup(header.source)
        if owner is None or owner.id != sender:
            self.counters["drop_spoofed_source"] += 1
            return None
        if not self.table.is_own(header.destination):
            self.counters["drop_not_for_us"] += 1
            return None
        if len(self._paths) >= _MAX_PATHS:
            self._paths.clear()
        self._paths.add(path)
        self._teach_path(path)
        return header

    def _teach_path(self, path: tuple[PeerId, bytes]) -> None:
        """Leave the next packet from this peer between these addresses to the fast path."""
        if self._fast_path is not None:
            self._fast_path.learn_path(*path)

    def _to_tun(self, header: bytes, packet: memoryview | bytes, packets: int = 1) -> None:
        if self.tun.send(header, packet):
            self.counters["drop_tun_failed"] += packets


def _parse(packet: memoryview | bytes) -> Header | None:
    """Read the header of a packet of either family."""
    return ipv6.parse(packet) if len(packet) > 0 and packet[0] >> 4 == 6 else ip.parse(packet)


class _Train:
    """Packets of one size from one peer, back to back in a buffer; the last may be shorter and is the last."""

    __slots__ = ("sender", "size", "start", "stop")

    def __init__(self, sender: PeerId, size: int, start: int, stop: int) -> None:
        self.sender, self.size, self.start, self.stop = sender, size, start, stop

    def extend(self, at: int, length: int, size: int, sender: PeerId) -> bool:
        """Add what was received at ``at``, if it belongs here."""
        fits = at == self.stop and sender == self.sender and size == self.size
        if fits:
            self.stop += length
        return fits

    @property
    def is_closed(self) -> bool:
        """Whether it has to end here: its last packet is shorter, or what follows would begin at an odd address."""
        return (self.stop - self.start) % self.size != 0 or self.size & 1 != 0


class _Batch:
    """Packets of one size for one peer, one after the other in a buffer; the last may be shorter and is the last."""

    __slots__ = ("_buffer", "_limit", "_tail", "peer", "rows", "wire")

    def __init__(self, buffer: bytearray) -> None:
        self._buffer = memoryview(buffer)
        self.peer: PeerId = ""
        self.wire = self.rows = self._limit = self._tail = 0

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return self._limit - self.rows

    def takes(self, peer: PeerId, length: int) -> bool:
        """Whether a packet of ``length`` bytes for ``peer`` can follow."""
        return 0 < self.rows < self._limit and length <= self.wire and self._tail == self.wire and peer == self.peer

    def begin(self, peer: PeerId, wire: int) -> None:
        """Start with packets of ``wire`` bytes; the batch must be empty."""
        self.peer, self.wire, self.rows, self._tail = peer, wire, 0, wire
        self._limit = len(self._buffer) // (wire + (wire & 1))

    def append(self, packet: memoryview | bytes) -> None:
        """Copy one packet behind the others."""
        start = self.rows * self.wire
        self._buffer[start : start + len(packet)] = packet
        self.extend(1, len(packet))

    def extend(self, rows: int, tail: int) -> None:
        """``rows`` more have been written, the last of them ``tail`` bytes long."""
        self.rows += rows
        self._tail = tail

    def take(self) -> memoryview:
        """All of it; it is empty then, and the memory is good until something is added."""
        data = self._buffer[: (self.rows - 1) * self.wire + self._tail]
        self.rows = 0
        return data
