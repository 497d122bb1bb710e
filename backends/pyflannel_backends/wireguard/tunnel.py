"""The port on which the router sends packets encrypted: a state machine and UDP sockets, and whole batches between.

What is sent in one call is encrypted in one go: a block of numbers is claimed, all headers are written by one call of
:mod:`struct`, and the cipher is mapped over the rows. What one call receives is decrypted the same way, into the buffer
of whoever asks. So per packet there is one call of the cipher and next to nothing else. A row that is not as the others
(forged, replayed, of another session) costs the batch this advantage, and only that.

Packets are padded to sixteen bytes, but never beyond the MTU. Decrypted rows are laid out as long as the packets in
them, so that padding costs the router nothing.

Where there is a fast path, it does all that for sessions that it was told of here, and says afterwards how much it was.
What it was told it has to forget when the machine changes its mind. That it is told of late, by a second at most, moves
the machine's timers by as much.

A peer is named by its public key in base64. Behind it stands a lease, and when a lease comes with another key, it is
the same peer that has changed its key: its sessions go on.
"""

from __future__ import annotations

import errno
import heapq
import struct
import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidTag

from pyflannel_backends.userspace.fastpath import DeviceSide, load_fast_path, load_transport
from pyflannel_backends.userspace.ports import Inlet, Received, UdpSocket, UnderlayPort

from . import messages
from .messages import HEADER, OVERHEAD, TRANSPORT

if TYPE_CHECKING:
    from pyflannel_backends.userspace._fastpath import FastPath, Transport
    from pyflannel_backends.userspace.control import WorkerConfig
    from pyflannel_backends.userspace.table import PeerId

    from .machine import Endpoint, Peer, WireguardMachine
    from .noise import TransportCipher
    from .session import Session

__all__ = ["PADDING", "Tunnel", "padded"]

PADDING: Final = 16
_ROWS: Final = 64
"""Messages that are sealed or opened in one go; a call may bring more, from a sender on this very machine."""
_BUFFER: Final = 1 << 16
_LARGEST: Final = 0xFFFF - 48
"""Bytes of one call's datagrams together, over IPv6 as over IPv4."""
_SHOWN: Final = 100
"""Peers in the status, which is told every second."""
_NONCE: Final = 12
_RECEIVER_SHIFT: Final = 32
"""A header's first eight bytes as one number: the type, and above it the receiver's index."""

Clock = Callable[[], float]
OpenSocket = Callable[[], UdpSocket]


def padded(size: int, mtu: int) -> int:
    """How many bytes a packet of ``size`` bytes is encrypted as."""
    return max(size, min(-(-size // PADDING) * PADDING, mtu))


@lru_cache(maxsize=512)
def _headers(wire: int, rows: int) -> struct.Struct:
    """The headers of ``rows`` messages that lie ``wire`` bytes apart: first eight bytes and number of each."""
    return struct.Struct("<" + f"QQ{wire - HEADER}x" * (rows - 1) + "QQ")


@lru_cache(maxsize=_ROWS)
def _nonces(rows: int) -> struct.Struct:
    return struct.Struct("<" + "4xQ" * rows)


class Tunnel(UnderlayPort):
    """See the module's docstring.

    :param machine: with our key; its peers are this port's to put.
    :param sockets: open our sockets, of one family or of both.
    :param mtu: of packets inside.
    :param psk: of all peers, 32 bytes; zeros for none.
    :param keepalive: seconds between keepalives to every peer; 0 for none.
    """

    def __init__(
        self,
        machine: WireguardMachine,
        sockets: Sequence[OpenSocket],
        mtu: int,
        *,
        psk: bytes = bytes(32),
        keepalive: float = 0.0,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__()
        self.machine = machine
        self._open_sockets = sockets
        self._mtu = mtu
        self._psk = psk
        self._keepalive = keepalive
        self._clock = clock
        self._sockets: dict[bool, UdpSocket] = {}
        """By whether it is for IPv6."""
        self._names: dict[PeerId, str] = {}
        """The machine's name for the holder of a public key."""
        self._ids: dict[str, PeerId] = {}
        self._out = memoryview(bytearray(_BUFFER))
        self._plain = memoryview(bytearray(_BUFFER))
        self._nonce_bytes = memoryview(bytearray(_NONCE * _ROWS))
        self._nonce_views = [self._nonce_bytes[at : at + _NONCE] for at in range(0, _NONCE * _ROWS, _NONCE)]
        self._views: dict[int, list[memoryview]] = {}
        self._fast_path: FastPath | None = None
        self._taught = 0
        """The machine's changes that the fast path knows of."""
        self.counters.update(
            handshakes=0,
            drop_unauthentic=0,
            drop_replayed=0,
            drop_unknown_session=0,
            drop_no_message=0,
            drop_other_peer=0,
        )

    # Life

    @property
    def deadline(self) -> float:
        return self.machine.deadline

    def open(self) -> Sequence[Inlet]:
        inlets = []
        try:
            for open_socket in self._open_sockets:
                opened = open_socket()
                self._sockets[opened.overhead == 48] = opened
                inlets.append(_TunnelInlet(self, opened))
        except BaseException:
            self.close()
            raise
        return inlets

    def close(self) -> None:
        self._hear()
        self._fast_path = None
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()

    def expire(self, now: float) -> None:
        self._hear()
        self.machine.tick(now)
        self._flush()

    def _flush(self) -> None:
        """Send what the machine wants to be sent; what fails is lost, as anything on the underlay may be.

        A packet that has waited for its session, and is sealed, can't be made smaller any more.
        """
        outgoing, self.machine.outgoing = self.machine.outgoing, []
        for endpoint, data in outgoing:
            message = memoryview(data)
            if self._transmit(message, len(message), endpoint) == errno.EMSGSIZE:
                self._transmit(message, len(message), endpoint, in_fragments=True)

    def _transmit(self, data: memoryview, size: int, endpoint: Endpoint, *, in_fragments: bool = False) -> int:
        socket = self._sockets.get(":" in endpoint[0])
        if socket is None:
            return errno.EAFNOSUPPORT
        return (socket.send_in_fragments if in_fragments else socket.send)(data, size, endpoint)

    def tune(self, config: WorkerConfig) -> None:
        self._hear()
        self._mtu = self.machine.mtu = config.mtu

    def set_keepalive(self, seconds: float) -> None:
        """Have this long between two keepalives to every peer, from now on."""
        self._keepalive = seconds
        for peer in self.machine.peers.values():
            self.machine.set_keepalive(peer, seconds, self._clock())
        self._flush()

    # The fast path

    def fast_path(self, device: DeviceSide) -> FastPath | None:
        made = load_fast_path()
        if made is None or load_transport() is None:
            return None
        received, plain = bytearray(2 * _BUFFER), memoryview(device.buffer)
        sealed = memoryview(received)

        def judge(length: int, size: int, sender: Endpoint) -> Received:
            return self.take(sealed, length, size, sender, plain)

        self._taught = self.machine.changes
        self._fast_path = made(
            epoll=device.epoll,
            tun=device.tun,
            sockets=tuple(socket.fileno() for socket in self._sockets.values()),
            packet=device.packet,
            received=received,
            opened=device.buffer,
            judge=judge,
            port=1,
            any_port=True,
            sealed=True,
            mtu=self._mtu,
            segments=all(socket.segments for socket in self._sockets.values()),
            cuts=device.cuts,
            joins_tcp=device.joins_tcp,
            joins_udp=device.joins_udp,
        )
        return self._fast_path

    def way(self, peer: PeerId) -> Transport | None:
        known = self._peer(peer)
        session = self.machine.sending(known, self._clock()) if known is not None else None
        return session.transport if session is not None and self._teach(session) else None

    def _teach(self, session: Session) -> bool:
        """Tell the fast path of a session; whether it can use it. One that waits for a confirmation is ours."""
        peer, transport = session.peer, session.transport
        endpoint = peer.endpoint
        if (
            self._fast_path is None
            or transport is None
            or endpoint is None
            or session is peer.next
            or (":" in endpoint[0]) not in self._sockets
        ):
            return False
        name = self._ids[peer.id]
        self._fast_path.learn_session(transport, session.index, session.remote_index, name, endpoint, session.expires)
        return True

    def settle(self) -> None:
        if self._fast_path is not None and self._taught != self.machine.changes:
            self._taught = self.machine.changes
            self._fast_path.forget()

    def _hear(self) -> None:
        """Tell the machine what the fast path has done, in the order of time."""
        notes = self._fast_path.take_notes() if self._fast_path is not None else ()
        for index, sent, received in notes:
            session = self.machine.sessions.get(index)
            if session is None:
                continue
            for (packets, size, at), is_sent in sorted(((sent, True), (received, False)), key=_time_of):
                if size and is_sent:
                    self.machine.sent(session, packets, size, at)
                elif size and session.peer.endpoint is not None:
                    self.machine.received(session, session.peer.endpoint, packets, size, at)
        if notes and self.machine.outgoing:
            self._flush()

    # Peers

    def put(self, peer: PeerId, details: Sequence[Any]) -> None:
        """See :class:`UnderlayPort`. Who has our own key is nobody that could be reached.

        The planner refuses such a lease, but may not know yet which key is in the file.

        :param details: name of the peer's lease, address and port.
        """
        name, address, port = details
        public_key = b64decode(peer)
        if public_key == self.machine.public_key:
            return
        name = self._names.setdefault(peer, name)
        former = self._ids.get(name)
        if former is not None and former != peer:
            del self._names[former]
        self._ids[name] = peer
        self.machine.put(name, public_key, (address, port), self._clock(), psk=self._psk, keepalive=self._keepalive)
        self._flush()

    def remove(self, peer: PeerId) -> None:
        """See :class:`UnderlayPort`. A key that its peer has given up names nobody any more."""
        self._hear()
        name = self._names.pop(peer, None)
        if name is not None:
            del self._ids[name]
            self.machine.remove(name)

    def status(self) -> Mapping[str, Any]:
        """See :class:`UnderlayPort`: what ``wg show`` would say of the peers that we had a handshake with last."""
        self._hear()
        now = self._clock()
        self.counters["handshakes"] = self.machine.handshakes
        met = (
            (peer.handshaken, name, peer) for name, peer in self.machine.peers.items() if peer.handshaken is not None
        )
        return {
            "peers": {
                self._ids[name]: {
                    "endpoint": peer.endpoint,
                    "handshake_age": round(now - handshaken, 1),
                    "received_bytes": peer.received_bytes,
                    "sent_bytes": peer.sent_bytes,
                }
                for handshaken, name, peer in heapq.nlargest(_SHOWN, met, key=itemgetter(0))
            }
        }

    def failures(self) -> Mapping[PeerId, str]:
        return {self._ids[name]: why for name, why in self.machine.failures()}

    def path_mtu(self, peer: PeerId) -> int:
        """See :class:`UnderlayPort`. What is left when the largest padding is taken off."""
        known = self._peer(peer)
        endpoint = known.endpoint if known is not None else None
        socket = self._sockets.get(":" in endpoint[0]) if endpoint is not None else None
        if endpoint is None or socket is None:
            return self._mtu
        return (socket.path_mtu(endpoint) - OVERHEAD) // PADDING * PADDING

    def _peer(self, peer: PeerId) -> Peer | None:
        return self.machine.peers.get(self._names.get(peer, ""))

    # Sending

    def rows(self, size: int) -> int:
        return max(1, min(_ROWS, _LARGEST // (padded(size, self._mtu) + OVERHEAD)))

    def send(self, data: memoryview, size: int, peer: PeerId) -> int:
        """See :class:`UnderlayPort`. Without a session packets wait for one."""
        return self._send(data, size, peer, in_fragments=False)

    def send_in_fragments(self, data: memoryview, size: int, peer: PeerId) -> int:
        return self._send(data, size, peer, in_fragments=True)

    def _send(self, data: memoryview, size: int, peer: PeerId, *, in_fragments: bool) -> int:
        self._hear()
        known = self._peer(peer)
        if known is None:
            return errno.EHOSTUNREACH
        now, rows = self._clock(), -(-len(data) // size)
        session = self.machine.sending(known, now)
        first = session.claim(rows) if session is not None else None
        if session is None or first is None or known.endpoint is None:
            return self._wait(known, data, size, now)
        wire, total = self._encrypt(session, first, rows, data, size)
        error = self._transmit(self._out[:total], wire, known.endpoint, in_fragments=in_fragments)
        self.machine.sent(session, rows, total, now)
        if self.machine.outgoing:
            self._flush()
        return error

    def _wait(self, peer: Peer, data: memoryview, size: int, now: float) -> int:
        self.machine.send(peer, [bytes(data[at : at + size]) for at in range(0, len(data), size)], now)
        self._flush()
        return 0

    def _encrypt(self, session: Session, first: int, rows: int, data: memoryview, size: int) -> tuple[int, int]:
        """Fill the outgoing buffer; returns how far messages lie apart, and how many bytes all of them have."""
        mtu = self._mtu
        full = padded(size, mtu)
        wire = full + OVERHEAD
        plain = (
            self._pad(data, size, full) if full != size else [data[at : at + size] for at in range(0, len(data), size)]
        )
        last = len(data) - (rows - 1) * size
        tail = padded(last, mtu)
        if len(plain[-1]) != tail:
            plain[-1] = memoryview(bytes(data[-last:]) + bytes(tail - last))
        fields = [TRANSPORT | session.remote_index << _RECEIVER_SHIFT] * (2 * rows)
        fields[1::2] = range(first, first + rows)
        _headers(wire, rows).pack_into(self._out, 0, *fields)
        _nonces(rows).pack_into(self._nonce_bytes, 0, *fields[1::2])
        sealed = self._sealed_views(wire)[:rows]
        total = (rows - 1) * wire + tail + OVERHEAD
        if tail != full:
            sealed[-1] = self._out[(rows - 1) * wire + HEADER : total]
        deque(map(session.send_key.encrypt_into, self._nonce_views, plain, repeat(None), sealed), maxlen=0)
        return wire, total

    def _pad(self, data: memoryview, size: int, full: int) -> list[memoryview]:
        rows = -(-len(data) // size)
        self._plain[: rows * full] = bytes(rows * full)
        views = []
        for row in range(rows):
            view = self._plain[row * full : (row + 1) * full]
            packet = data[row * size : (row + 1) * size]
            view[: len(packet)] = packet
            views.append(view)
        return views

    def _sealed_views(self, wire: int) -> list[memoryview]:
        """Where the ciphertexts of messages that lie ``wire`` bytes apart are in the outgoing buffer."""
        views = self._views.get(wire)
        if views is None:
            if len(self._views) >= 64:
                self._views.clear()
            starts = range(0, min(_ROWS * wire, _BUFFER - wire + 1), wire)
            views = self._views[wire] = [self._out[at + HEADER : at + wire] for at in starts]
        return views

    # Receiving

    def take(
        self, sealed: memoryview, length: int, size: int, sender: Endpoint, plain: memoryview
    ) -> tuple[int, int, PeerId | None]:
        """Open what one call received: ``length`` bytes in ``sealed``, datagrams of ``size`` bytes each.

        :returns: as :meth:`Inlet.receive`, packets in ``plain``.
        """
        self._hear()
        now = self._clock()
        rows = -(-length // size) if size else 0
        tail = length - (rows - 1) * size
        if not sender[1]:  # nothing can be sent there (RFC 768), so whoever is heard from there can't be answered
            self.counters["drop_no_message"] += max(rows, 1)
            return length, size, None
        result = None
        if 0 < rows <= _ROWS and size >= OVERHEAD and tail >= OVERHEAD:
            fields = _headers(size, rows).unpack_from(sealed)
            prefix = fields[0]
            session = self.machine.sessions.get(prefix >> _RECEIVER_SHIFT)
            if (
                prefix & 0xFFFFFFFF == TRANSPORT
                and fields[::2].count(prefix) == rows
                and session is not None
                and session.is_alive(now)
            ):
                result = self._open(session, fields[1::2], sealed, length, size, sender, plain, now)
        if result is None:
            result = self._take_singly(sealed, length, size, sender, plain, now)
        if self.machine.outgoing:
            self._flush()
        return result

    def _open(
        self,
        session: Session,
        counters: Sequence[int],
        sealed: memoryview,
        length: int,
        size: int,
        sender: Endpoint,
        plain: memoryview,
        now: float,
    ) -> tuple[int, int, PeerId | None]:
        """Messages of one session: decrypt all, then take those that are authentic and new."""
        rows = len(counters)
        _nonces(rows).pack_into(self._nonce_bytes, 0, *counters)
        ciphertexts = [sealed[at + HEADER : at + size] for at in range(0, (rows - 1) * size, size)]
        ciphertexts.append(sealed[(rows - 1) * size + HEADER : length])
        sizes, stride = self._decrypt(session.receive_key, ciphertexts, plain)
        kept = self._accept(session, counters, sizes)
        if kept is None:
            bytes_taken, packets = length, rows - sizes.count(0)
        else:
            bytes_taken = sum(sizes[row] + OVERHEAD for row in kept)
            packets = sum(sizes[row] > 0 for row in kept)
            for at, row in enumerate(kept):
                plain[at * stride : at * stride + sizes[row]] = bytes(plain[row * stride : row * stride + sizes[row]])
            sizes = [sizes[row] for row in kept]
        if not sizes:
            return length, size, None
        self.machine.received(session, sender, packets, bytes_taken, now)
        self._teach(session)
        if packets == 0:
            return length, size, None
        if sizes[-1] == 0:  # a keepalive behind packets
            sizes.pop()
        last = (len(sizes) - 1) * stride
        end = last + min(sizes[-1], stride, _length(plain[last : last + sizes[-1]]))
        return end, stride if last else end, self._ids[session.peer.id]

    def _accept(self, session: Session, counters: Sequence[int], sizes: Sequence[int]) -> list[int] | None:
        """Which rows are authentic and new; ``None`` if all are."""
        first, rows, bad = counters[0], len(counters), sizes.count(-1)
        consecutive = counters == tuple(range(first, first + rows))
        if not bad and consecutive and session.numbers.accept_run(first, rows):
            return None
        authentic = [row for row in range(rows) if sizes[row] >= 0]
        kept = [row for row in authentic if session.numbers.accept(counters[row])]
        self.counters["drop_unauthentic"] += bad
        self.counters["drop_replayed"] += len(authentic) - len(kept)
        return kept if len(kept) != rows else None

    def _decrypt(
        self, key: TransportCipher, ciphertexts: Sequence[memoryview], plain: memoryview
    ) -> tuple[list[int], int]:
        """Decrypt into rows; returns the size of each, -1 for a forged one, and how far they lie apart.

        The first packet says how long the others probably are. Rows lie as far apart, and what padding spills into the
        next row is overwritten by that. If a packet turns out to be longer, all is done again with more room.
        """
        full = len(ciphertexts[0]) - messages.TAG
        sizes = list(_open_each(key, self._nonce_views, ciphertexts[:1], [plain[:full]]))
        if len(ciphertexts) == 1:
            return sizes, full
        length = _length(plain[:full]) if sizes[0] > 0 else full
        for stride in (length, full) if full - PADDING < length < full else (full,):
            views = [
                plain[row * stride : row * stride + len(ciphertexts[row]) - messages.TAG]
                for row in range(1, len(ciphertexts))
            ]
            sizes[1:] = _open_each(key, self._nonce_views[1:], ciphertexts[1:], views)
            if stride == full or all(
                _length(view) <= stride for view, size in zip(views, sizes[1:], strict=True) if size > 0
            ):
                return sizes, stride
        raise AssertionError("unreachable: the full stride fits")

    def _take_singly(
        self, sealed: memoryview, length: int, size: int, sender: Endpoint, plain: memoryview, now: float
    ) -> tuple[int, int, PeerId | None]:
        """Datagrams that are not all packets of one session: a handshake, most of the time."""
        stride = max(size - OVERHEAD, 1)
        owner: Peer | None = None
        end = kept = 0
        for at in range(0, length, max(size, 1)):
            data = bytes(sealed[at : min(at + size, length)])
            peer, packet = self._take_one(data, sender, now)
            if peer is None or not packet:
                continue
            if owner is None:
                owner = peer
            if peer is not owner:
                self.counters["drop_other_peer"] += 1
                continue
            end = kept * stride + len(packet)
            plain[kept * stride : end] = packet
            kept += 1
        if owner is None:
            return length, size, None
        return end, stride if kept > 1 else end, self._ids[owner.id]

    def _take_one(self, data: bytes, sender: Endpoint, now: float) -> tuple[Peer | None, bytes]:
        header = messages.parse_transport(data)
        if header is None:
            if messages.parse_handshake(data) is None:
                self.counters["drop_no_message"] += 1
            self.machine.receive(data, sender, now)
            return None, b""
        opened = self.machine.open(data, sender, now)
        if opened is None:
            known = header.receiver in self.machine.sessions
            self.counters["drop_unauthentic" if known else "drop_unknown_session"] += 1
            return None, b""
        session = self.machine.sessions.get(header.receiver)
        if session is not None:
            self._teach(session)
        return opened


class _TunnelInlet:
    """One socket's packets, decrypted."""

    def __init__(self, tunnel: Tunnel, socket: UdpSocket) -> None:
        self._tunnel, self._socket = tunnel, socket
        self._sealed = memoryview(bytearray(2 * _BUFFER))
        """Larger than what one call brings, so that a last header can be read even if the datagram is shorter."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, buffer: memoryview) -> tuple[int, int, PeerId | None] | None:
        received = self._socket.receive(self._sealed[:_BUFFER])
        if received is None:
            return None
        length, size, sender = received
        return self._tunnel.take(self._sealed, length, size, sender, buffer)


def _time_of(note: tuple[tuple[int, int, float], bool]) -> float:
    return note[0][2]


def _open_each(
    key: TransportCipher,
    nonces: Sequence[memoryview],
    ciphertexts: Sequence[memoryview],
    plain: Sequence[memoryview],
) -> list[int]:
    """Decrypt rows; returns the size of each, -1 for a forged one."""
    sizes: list[int] = []
    rows = map(key.decrypt_into, nonces, ciphertexts, repeat(None), plain)
    while True:
        try:
            sizes.extend(rows)
            return sizes
        except InvalidTag:  # the rows before it have been added, and those behind it follow
            sizes.append(-1)


def _length(packet: memoryview) -> int:
    """How long the IP header says that a packet is; as long as it is if that can't be."""
    size = len(packet)
    if size < 20:
        return size
    version = packet[0] >> 4
    length = packet[2] << 8 | packet[3] if version == 4 else 40 + (packet[4] << 8 | packet[5]) if version == 6 else size
    return length if size - PADDING < length <= size else size
