"""WireGuard devices of a namespace over generic netlink: how they are set up, and their peers.

The messages are those of the kernel's ``linux/wireguard.h``; peers come by the thousand, so they are encoded and parsed
here with :mod:`struct` (``docs/decisions/0002-slim-pyroute2.md``), many peers to a message. Three things differ from
the rest of the kernel:

* Nothing is notified. What differs is found by reading again, at most every :data:`REREAD_AFTER` seconds and never so
  often that it costs more than a two-hundredth of a CPU.
* A peer's endpoint changes by itself: the kernel sends to where the last authentic packet came from. So an endpoint is
  written when its peer is made and when the wanted one changes, and what the kernel has learned is taken for the one
  that was written last. After a restart nobody knows which that was: a peer with a recent handshake is believed to be
  where it should.
* The kernel stops at the first peer of a message that it refuses; the peers of such a message are sent again alone, so
  that one refused peer is one peer.
"""

from __future__ import annotations

import errno
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from pyflannel.errors import KernelError
from pyflannel.kernel import wire
from pyflannel.kernel.generic import HEADER_SIZE, attribute, encode, family_number
from pyflannel.kernel.model import Endpoint, KernelObject, Key, Kind, WireguardDevice, WireguardPeer
from pyflannel.kernel.port import NOTHING, Write
from pyflannel.kernel.refusal import NO_WIREGUARD, refusal
from pyflannel.kernel.rtsocket import Refused, RequestSocket
from pyflannel.network.lease import IPNetwork
from pyflannel.small.secret import Secret

__all__ = [
    "FAMILY",
    "DeviceRow",
    "PeerRow",
    "Wireguard",
    "encode_device",
    "encode_peer",
    "encode_peers",
    "encode_query",
    "parse",
]

FAMILY: Final = "wireguard"
"""The name under which the kernel's module is found in generic netlink."""

REREAD_AFTER: Final = 5.0
"""Seconds after which peers are read again."""

READING_SHARE: Final = 200
"""How many times as long as reading takes the pause after it is, at least."""

SESSION_SECONDS: Final = 180
"""How long after a handshake a peer is where it was then: REJECT_AFTER_TIME of WireGuard's white paper, 6.1."""

MESSAGE_SIZE: Final = 32 << 10
"""The most bytes of peers in one message; an attribute's length is a number of 16 bits."""

_AT_A_TIME = 16  # messages in one system call, at most

_GET_DEVICE = 0
_SET_DEVICE = 1

_DEVICE_IFINDEX = 1
_DEVICE_PRIVATE_KEY = 3
_DEVICE_PUBLIC_KEY = 4
_DEVICE_LISTEN_PORT = 6
_DEVICE_FWMARK = 7
_DEVICE_PEERS = 8

_PEER_PUBLIC_KEY = 1
_PEER_PRESHARED_KEY = 2
_PEER_FLAGS = 3
_PEER_ENDPOINT = 4
_PEER_KEEPALIVE = 5
_PEER_LAST_HANDSHAKE = 6
_PEER_RX_BYTES = 7
_PEER_TX_BYTES = 8
_PEER_ALLOWEDIPS = 9
_REMOVE_ME = 1
_REPLACE_ALLOWEDIPS = 2
_UPDATE_ONLY = 4

_IP_FAMILY = 1
_IP_ADDRESS = 2
_IP_LENGTH = 3

_NO_KEY = bytes(32)
_U16 = Struct("=H")
_U32 = Struct("=I")
_U64 = Struct("=Q")
_ATTRIBUTE = Struct("=HH")
_TIMESPEC = Struct("=qq")
_SOCKADDR_IN = Struct("=H2s4s8x")
_SOCKADDR_IN6 = Struct("=H2sI16sI")

WireguardObject: TypeAlias = WireguardDevice | WireguardPeer


class DeviceRow(NamedTuple):
    """A device as the kernel has it. Keys are 32 bytes, empty where there is none."""

    private_key: bytes
    public_key: bytes
    listen_port: int
    fwmark: int


class PeerRow(NamedTuple):
    """A peer as the kernel has it. ``last_handshake`` is in seconds since the epoch, 0 for never."""

    public_key: str
    preshared_key: bytes
    endpoint: Endpoint | None
    keepalive: int
    last_handshake: float
    received: int
    sent: int
    allowed_ips: tuple[IPNetwork, ...]


# encoding


def _nest(kind: int, body: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(body), kind | wire.NLA_F_NESTED) + body


def encode_query(family: int, index: int) -> bytes:
    """``WG_CMD_GET_DEVICE`` for the device with an interface index; it is answered like a dump."""
    return encode(family, _GET_DEVICE, wire.NLM_F_DUMP, attribute(_DEVICE_IFINDEX, _U32.pack(index)))


def encode_device(family: int, index: int, device: WireguardDevice, old: WireguardDevice | None = None) -> bytes:
    """``WG_CMD_SET_DEVICE`` for what differs from ``old``: a port that is set again costs the peers their routes."""
    body = attribute(_DEVICE_IFINDEX, _U32.pack(index))
    if old is None or old.listen_port != device.listen_port:
        body += attribute(_DEVICE_LISTEN_PORT, _U16.pack(device.listen_port))
    if old is None or old.fwmark != device.fwmark:
        body += attribute(_DEVICE_FWMARK, _U32.pack(device.fwmark))
    if old is None or old.private_key != device.private_key:
        body += attribute(_DEVICE_PRIVATE_KEY, device.private_key.reveal() if device.private_key else _NO_KEY)
    return encode(family, _SET_DEVICE, 0, body)


def encode_peer(peer: WireguardPeer, old: WireguardPeer | None = None) -> bytes:
    """One peer for :func:`encode_peers`: all of it but an endpoint that is ``old``'s already."""
    secret = peer.preshared_key
    body = (
        _key(peer)
        + attribute(_PEER_PRESHARED_KEY, secret.reveal() if secret else _NO_KEY)
        + attribute(_PEER_FLAGS, _U32.pack(_REPLACE_ALLOWEDIPS))
        + attribute(_PEER_KEEPALIVE, _U16.pack(peer.keepalive))
    )
    if peer.endpoint is not None and (old is None or old.endpoint != peer.endpoint):
        body += attribute(_PEER_ENDPOINT, _sockaddr(peer.endpoint))
    return _nest(0, body + _nest(_PEER_ALLOWEDIPS, b"".join(map(_allowed_ip, peer.allowed_ips))))


def encode_peer_deletion(peer: WireguardPeer) -> bytes:
    """The end of a peer, for :func:`encode_peers`."""
    return _nest(0, _key(peer) + attribute(_PEER_FLAGS, _U32.pack(_REMOVE_ME)))


def encode_peer_keepalive(peer: WireguardPeer, seconds: int) -> bytes:
    """A peer's keepalive interval, for :func:`encode_peers`. From none to some, the kernel sends one at once."""
    flags = attribute(_PEER_FLAGS, _U32.pack(_UPDATE_ONLY))
    return _nest(0, _key(peer) + flags + attribute(_PEER_KEEPALIVE, _U16.pack(seconds)))


def encode_peers(family: int, index: int, peers: Sequence[bytes]) -> bytes:
    """``WG_CMD_SET_DEVICE`` for these peers, in this order; together at most :data:`MESSAGE_SIZE` bytes."""
    body = attribute(_DEVICE_IFINDEX, _U32.pack(index)) + _nest(_DEVICE_PEERS, b"".join(peers))
    return encode(family, _SET_DEVICE, 0, body)


def _key(peer: WireguardPeer) -> bytes:
    return attribute(_PEER_PUBLIC_KEY, b64decode(peer.public_key))


def _sockaddr(endpoint: Endpoint) -> bytes:
    address, port = endpoint
    network_order = port.to_bytes(2, "big")
    if address.version == 4:
        return _SOCKADDR_IN.pack(AF_INET, network_order, address.packed)
    return _SOCKADDR_IN6.pack(AF_INET6, network_order, 0, address.packed, 0)


def _allowed_ip(network: IPNetwork) -> bytes:
    return _nest(
        0,
        attribute(_IP_FAMILY, _U16.pack(AF_INET if network.version == 4 else AF_INET6))
        + attribute(_IP_ADDRESS, network.network_address.packed)
        + attribute(_IP_LENGTH, bytes((network.prefixlen,))),
    )


# parsing


def parse(datagram: bytes, start: int, end: int) -> tuple[DeviceRow | None, list[PeerRow]]:
    """A message of an answer to :func:`encode_query`: the device, which only the first of them has, and some peers.

    A peer with many allowed-ips may go on in the next message, under the same key and with nothing else.
    """
    found = wire.attributes(datagram, start + HEADER_SIZE, end)
    device = None
    if _DEVICE_LISTEN_PORT in found:
        device = DeviceRow(
            found.get(_DEVICE_PRIVATE_KEY, b""),
            found.get(_DEVICE_PUBLIC_KEY, b""),
            _U16.unpack(found[_DEVICE_LISTEN_PORT])[0],
            _U32.unpack(found.get(_DEVICE_FWMARK, b"\0\0\0\0"))[0],
        )
    peers = found.get(_DEVICE_PEERS, b"")
    return device, [_peer(peers, begin, stop) for begin, stop in _nested(peers, 0, len(peers))]


def _nested(datagram: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the attributes of an array begin and end."""
    while start + 4 <= end:
        length, _ = _ATTRIBUTE.unpack_from(datagram, start)
        if length < 4:
            return
        yield start + 4, start + length
        start += (length + 3) & ~3


def _peer(datagram: bytes, start: int, end: int) -> PeerRow:
    found = wire.attributes(datagram, start, end)
    seconds, nanoseconds = _TIMESPEC.unpack(found.get(_PEER_LAST_HANDSHAKE, bytes(16)))
    ips = found.get(_PEER_ALLOWEDIPS, b"")
    return PeerRow(
        b64encode(found.get(_PEER_PUBLIC_KEY, b"")).decode("ascii"),
        found.get(_PEER_PRESHARED_KEY, _NO_KEY),
        _endpoint(found.get(_PEER_ENDPOINT, b"")),
        _U16.unpack(found.get(_PEER_KEEPALIVE, b"\0\0"))[0],
        seconds + nanoseconds / 1e9,
        _U64.unpack(found.get(_PEER_RX_BYTES, bytes(8)))[0],
        _U64.unpack(found.get(_PEER_TX_BYTES, bytes(8)))[0],
        tuple(_network(ips, begin, stop) for begin, stop in _nested(ips, 0, len(ips))),
    )


def _endpoint(raw: bytes) -> Endpoint | None:
    if len(raw) < 16:
        return None
    (family,) = _U16.unpack_from(raw)
    port = int.from_bytes(raw[2:4], "big")
    if family == AF_INET:
        return Endpoint(IPv4Address(raw[4:8]), port)
    return Endpoint(IPv6Address(raw[8:24]), port) if family == AF_INET6 else None


def _network(datagram: bytes, start: int, end: int) -> IPNetwork:
    found = wire.attributes(datagram, start, end)
    packed, length = found[_IP_ADDRESS], found[_IP_LENGTH][0]
    return IPv4Network((packed, length)) if len(packed) == 4 else IPv6Network((packed, length))


# the devices


class Wireguard:
    """What is known of the WireGuard devices that are ours to set, and how they are read and written.

    :param open_socket: opens a socket in the namespace; called at the first need.
    """

    def __init__(
        self,
        open_socket: Callable[[], RequestSocket],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._open_socket, self._clock, self._wall_clock = open_socket, clock, wall_clock
        self._requests: RequestSocket | None = None
        self._family: int | None = None
        self._endpoints: dict[Key, Endpoint] = {}
        """What was written last; the kernel may have learned another one since."""
        self._seen: dict[Key, WireguardObject] = {}
        self._due = 0.0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    def _channel(self) -> tuple[RequestSocket, int | None]:
        if self._requests is None:
            self._requests = self._open_socket()
        if self._family is None:
            self._family = family_number(self._requests, FAMILY)
        return self._requests, self._family

    # reading

    def rows(self, index: int) -> tuple[DeviceRow | None, list[PeerRow]]:
        """A device and its peers; no device where there is none with this interface index.

        :raises KernelError: the kernel can't be read.
        """
        requests, family = self._channel()
        if family is None:
            return None, []
        device: DeviceRow | None = None
        peers: dict[str, PeerRow] = {}
        for answer in requests.dump(encode_query(family, index), _NO_DEVICE):
            first, some = parse(answer.datagram, answer.start, answer.end)
            device = first or device
            for peer in some:
                before = peers.get(peer.public_key)
                if before is not None:
                    peer = before._replace(allowed_ips=before.allowed_ips + peer.allowed_ips)
                peers[peer.public_key] = peer
        return device, list(peers.values())

    def read(self, links: Mapping[str, int], known: Mapping[Key, KernelObject] = NOTHING) -> list[WireguardObject]:
        """The devices under these names and indexes, and their peers.

        :param known: what is expected; see :meth:`KernelPort.dump`.
        """
        begin = self._clock()
        seen: dict[Key, WireguardObject] = {}
        for name, index in links.items():
            device, peers = self.rows(index)
            if device is not None:
                secret = Secret(device.private_key) if device.private_key else None
                found = WireguardDevice(name, secret, device.listen_port, device.fwmark)
                seen[found.key] = found
                for row in peers:
                    peer = self._believed(name, row, known)
                    seen[peer.key] = peer
        self._seen = seen
        self._endpoints = {key: endpoint for key, endpoint in self._endpoints.items() if key in seen}
        end = self._clock()
        self._due = end + max(REREAD_AFTER, READING_SHARE * (end - begin))
        return list(seen.values())

    def _believed(self, link: str, row: PeerRow, known: Mapping[Key, KernelObject]) -> WireguardPeer:
        """A peer, with the endpoint that was written instead of one that was learned."""
        key = (Kind.WIREGUARD_PEER, link, row.public_key)
        expected, endpoint = known.get(key), row.endpoint
        written = self._endpoints.get(key)
        if written is None and isinstance(expected, WireguardPeer):
            recent = self._wall_clock() - row.last_handshake < SESSION_SECONDS
            written = expected.endpoint if recent else None
        if endpoint is not None and written is not None:
            self._endpoints[key] = endpoint = written
        secret = Secret(row.preshared_key) if row.preshared_key != _NO_KEY else None
        peer = WireguardPeer(link, row.public_key, row.allowed_ips, endpoint, secret, row.keepalive)
        return expected if isinstance(expected, WireguardPeer) and expected == peer else peer

    def reread(self, links: Mapping[str, int]) -> dict[Key, WireguardObject | None]:
        """What others have changed since the last look, if it is time for one."""
        if not links or self._clock() < self._due:
            return {}
        before = self._seen
        self.read(links, before)
        changes: dict[Key, WireguardObject | None] = {key: None for key in before if key not in self._seen}
        changes.update((key, item) for key, item in self._seen.items() if before.get(key) != item)
        return changes

    # writing

    def put(
        self, writes: Iterable[Write], index: Callable[[Write, str], int], failures: dict[Key, KernelError]
    ) -> None:
        """Set devices up, then create and change peers, then delete peers.

        :param index: the interface index of a write's link; raises :class:`KernelError`.
        :param failures: takes what the kernel refuses.
        """
        peers: dict[str, list[Write]] = {}
        for write in writes:
            item = write.new or write.old
            if isinstance(item, WireguardPeer):
                peers.setdefault(item.link, []).append(write)
            elif write.new is not None:
                _noting(failures, write, lambda write=write: self._put_device(write, index))  # type: ignore[misc]
        for name, some in peers.items():
            try:
                where = index(some[0], name)
            except KernelError as error:
                failures.update((write.key, error) for write in some if write.new is not None)
                continue
            self._put_peers(some, where, failures)

    def _put_device(self, write: Write, index: Callable[[Write, str], int]) -> None:
        new, old = write.new, write.old
        assert isinstance(new, WireguardDevice)
        assert old is None or isinstance(old, WireguardDevice)
        requests, family = self._required(write)
        message = encode_device(family, index(write, new.link), new, old)
        refused = requests.send([message], 1, lambda: None).get(0)
        if refused is not None:
            raise refusal(write, *refused)
        self._seen[new.key] = new

    def _required(self, write: Write) -> tuple[RequestSocket, int]:
        requests, family = self._channel()
        if family is None:
            raise refusal(write, errno.EOPNOTSUPP, "", NO_WIREGUARD)
        return requests, family

    def _put_peers(self, writes: list[Write], index: int, failures: dict[Key, KernelError]) -> None:
        ordered = [write for write in writes if write.new is not None]
        ordered += [write for write in writes if write.new is None]
        try:
            requests, family = self._required(ordered[0])
        except KernelError as error:
            failures.update((write.key, error) for write in writes)
            return
        batches = list(_batches([(write, _encoded(write)) for write in ordered]))
        refused = requests.send(
            [encode_peers(family, index, [raw for _, raw in each]) for each in batches], _AT_A_TIME, _pass
        )
        for number, batch in enumerate(batches):
            again: Mapping[int, Refused] = {}
            if number in refused:  # some of it may be done, and all of it can be repeated
                again = requests.send([encode_peers(family, index, [raw]) for _, raw in batch], _AT_A_TIME, _pass)
            for place, (write, _) in enumerate(batch):
                self._settle(write, again.get(place), failures)
        self._greet(writes, requests, family, index, failures)

    def _settle(self, write: Write, refused: Refused | None, failures: dict[Key, KernelError]) -> None:
        key, new = write.key, write.new
        if refused is not None:
            failures[key] = refusal(write, *refused)
        elif new is None:
            self._seen.pop(key, None)
            self._endpoints.pop(key, None)
        else:
            assert isinstance(new, WireguardPeer)
            self._seen[key] = new
            if new.endpoint is not None:
                self._endpoints[key] = new.endpoint

    @staticmethod
    def _greet(
        writes: list[Write], requests: RequestSocket, family: int, index: int, failures: Mapping[Key, KernelError]
    ) -> None:
        """Begin a handshake with peers that took over another's allowed-ips: a node has another key now, its packets
        wait for a session under it, and it may have none to send that would begin one."""
        left = {ip for write in writes if write.new is None for ip in write.old.allowed_ips}  # type: ignore[union-attr]
        fresh = [write.new for write in writes if write.old is None and write.key not in failures]
        greetings = [
            encode_peers(family, index, [encode_peer_keepalive(peer, 1), encode_peer_keepalive(peer, 0)])
            for peer in fresh
            if isinstance(peer, WireguardPeer) and not (peer.keepalive or left.isdisjoint(peer.allowed_ips))
        ]
        # A greeting that fails is not repeated: the next packet begins a handshake just as well.
        requests.send(greetings, _AT_A_TIME, _pass)


_NO_DEVICE = frozenset({errno.ENODEV, errno.EOPNOTSUPP})


def _pass() -> None:
    """Generic netlink has no notifications to be drained between two messages."""


def _noting(failures: dict[Key, KernelError], write: Write, do: Callable[[], None]) -> None:
    try:
        do()
    except KernelError as error:
        failures[write.key] = error


def _encoded(write: Write) -> bytes:
    old, new = write.old, write.new
    assert old is None or isinstance(old, WireguardPeer)
    if new is None:
        assert old is not None
        return encode_peer_deletion(old)
    assert isinstance(new, WireguardPeer)
    return encode_peer(new, old)


def _batches(encoded: Iterable[tuple[Write, bytes]]) -> Iterator[list[tuple[Write, bytes]]]:
    batch: list[tuple[Write, bytes]] = []
    size = 0
    for item in encoded:
        if batch and size + len(item[1]) > MESSAGE_SIZE:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item[1])
    if batch:
        yield batch
