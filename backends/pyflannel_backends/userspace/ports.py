"""The two edges of a data plane: a queue of the TUN device, and UDP sockets on the underlay.

:class:`TunPort` and :class:`UnderlayPort` say what forwarding needs of them. :class:`TunQueue` and :class:`UdpSocket`
are the kernel's; what a data plane does to packets on the wire is its own :class:`UnderlayPort`, on top of a
:class:`UdpSocket`. All take and give whole batches where the kernel has the offload, and do the same one packet at a
time where it has not. None raises for what a packet may cause: sends return the error number.

Sources: ``linux/if_tun.h``, ``linux/udp.h``, ``tun.rst``, ``udp(7)``, ``ip(7)``.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import socket
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from . import vnet
from .table import PeerId

if TYPE_CHECKING:
    from ._fastpath import FastPath, Transport
    from .control import WorkerConfig
    from .fastpath import DeviceSide

__all__ = [
    "DeviceGone",
    "Endpoint",
    "Inlet",
    "Received",
    "TunPort",
    "TunQueue",
    "UdpSocket",
    "UnderlayPort",
]

Endpoint: TypeAlias = tuple[str, int]
"""Address in its usual text form, and UDP port: as :mod:`socket` has it."""
Received: TypeAlias = tuple[int, int, PeerId | None]
"""How many bytes, the size of each packet in them (the last may be shorter), and the peer that certainly sent them:
``None`` if there is nothing to deliver, be it refused (and counted) or a message for the port itself."""

_TUNSETIFF: Final = 0x400454CA
_TUNGETIFF: Final = 0x800454D2
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TUN, _IFF_MULTI_QUEUE, _IFF_PERSIST, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x0100, 0x0800, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN, _TUN_F_USO4, _TUN_F_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
_TSO: Final = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN

_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_WANT: Final = 1
_PMTUDISC_DO: Final = 2
_IP_MTU: Final = 14
_IPV6_MTU: Final = 24
_MAX_SEGMENTS: Final = 64
"""Datagrams in one ``UDP_SEGMENT`` call (``UDP_MAX_SEGMENTS`` of older kernels)."""
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SOCKET_BUFFER: Final = 16 << 20
"""Bytes that may wait in the socket while this process is busy elsewhere; the kernel takes them only as needed."""
_SEND_TIMEOUT: Final = struct.pack("ll", 0, 100_000)
"""A send waits for room at most this long (seconds, microseconds), which slows the TUN device's senders down."""


class DeviceGone(Exception):  # noqa: N818 - a state of the device, answered by attaching again
    """The TUN device isn't there, or not as we need it; the message says which."""


class TunPort(Protocol):
    """The side of the containers: packets with a virtio header before each."""

    def receive(self, buffer: memoryview) -> int:
        """Read one packet, header included; 0 if none waits. Raises :class:`DeviceGone`."""

    def send(self, header: bytes, packet: memoryview | bytes) -> int:
        """Write one packet; an empty ``header`` if ``packet`` begins with its own. Returns 0 or the error number."""


class Inlet(Protocol):
    """A socket that packets of peers come in by."""

    def fileno(self) -> int:
        """For polling."""

    def receive(self, buffer: memoryview) -> Received | None:
        """One receive call's worth of packets, back to back in ``buffer``, which has room for 64 KB.

        Nothing if nothing waits.
        """


class UnderlayPort(ABC):
    """The side of the peers: packets, many of one size to or from one peer in a call, as one data plane carries them.

    Sends, receives and questions of :meth:`rows` and :meth:`path_mtu` come only while it is open.

    The port knows who a peer is and where; forwarding only hands its name through. A port lives as long as its worker;
    :meth:`open` and :meth:`close` follow the TUN device, since a worker without a device must leave its packets to the
    others on the same port.
    """

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        """Totals of the port's own, shown next to those of forwarding."""

    @abstractmethod
    def open(self) -> Sequence[Inlet]:
        """Begin to send and receive.

        :raises OSError: a socket can't be had; its ``filename`` says which.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the sockets; what is known of peers is kept."""

    @abstractmethod
    def send(self, data: memoryview, size: int, peer: PeerId) -> int:
        """Send packets of ``size`` bytes, the last may be shorter, at most :meth:`rows` of them.

        :returns: 0 or the error number.
        """

    def send_in_fragments(self, data: memoryview, size: int, peer: PeerId) -> int:
        """The same of packets that are larger than :meth:`path_mtu`, and may not be smaller: IPv6 of up to 1280 bytes.

        Their datagrams are fragmented on the underlay (RFC 2473 section 7.1). A port that has no way to do that leaves
        them where they are.
        """
        return errno.EMSGSIZE

    @abstractmethod
    def rows(self, size: int) -> int:
        """How many packets of ``size`` bytes one :meth:`send` takes; at least 1."""

    @abstractmethod
    def path_mtu(self, peer: PeerId) -> int:
        """The largest packet, in bytes, that the kernel believes can reach ``peer`` in one datagram."""

    @abstractmethod
    def put(self, peer: PeerId, details: Sequence[Any]) -> None:
        """A peer holds a subnet now. Called again for each of its subnets, and whenever ``details`` change.

        :param details: what follows the peer in its rows of the table, of JSON's types.
        """

    @abstractmethod
    def remove(self, peer: PeerId) -> None:
        """A peer holds no subnet any more."""

    def tune(self, config: WorkerConfig) -> None:  # noqa: B027 - many ports know none of these values
        """The configuration has other values of those that it calls ``tuned``; a new :meth:`fast_path` is asked for."""

    def fast_path(self, device: DeviceSide) -> FastPath | None:
        """Machine code that waits for packets and carries those that need no second look, if there is such code.

        The device's descriptor and the inlets are registered with the epoll's.
        """
        return None

    def way(self, peer: PeerId) -> Endpoint | Transport | None:
        """What the fast path needs to know of the way to ``peer``; ``None`` if packets to it aren't the fast path's."""
        return None

    def settle(self) -> None:  # noqa: B027 - what most ports have told a fast path stays right
        """Called before every wait: see that the fast path doesn't act on what isn't so any more."""

    @property
    def deadline(self) -> float:
        """When (:func:`time.monotonic`) :meth:`expire` wants to be called next; infinite if never."""
        return math.inf

    def expire(self, now: float) -> None:  # noqa: B027 - most ports have nothing to do
        """Do what is due at ``now``; the :attr:`deadline` lies behind it then."""

    def failures(self) -> Mapping[PeerId, str]:
        """Peers that can't be reached as things are, and why, besides those that a send failed for."""
        return {}

    def status(self) -> Mapping[str, Any]:
        """What to tell the daemon every second, besides the counters; of JSON's types."""
        return {}


class TunQueue:
    """One queue of an existing, persistent TUN device.

    :param offload: take super-packets and unfinished checksums from the kernel.
    :raises DeviceGone: the device doesn't exist or is of another shape.
    """

    def __init__(self, name: str, *, offload: bool) -> None:
        self._name = name
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._attach(name)
            fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, struct.pack("i", vnet.LENGTH))
            self.tso, self.uso = self._set_offload(offload)
        except BaseException:
            os.close(self._fd)
            raise

    def _attach(self, name: str) -> None:
        """Attach without ever making a device: that one would lack the core's mark and die with us."""
        try:
            self._index = socket.if_nametoindex(name)
            flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_MULTI_QUEUE
            fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            answer = fcntl.ioctl(self._fd, _TUNGETIFF, bytes(40))
        except OSError as error:
            raise DeviceGone(f"can't attach to TUN device {name}: {error.strerror}") from None
        if not struct.unpack_from("16xH", answer)[0] & _IFF_PERSIST:
            raise DeviceGone(f"TUN device {name} was deleted while attaching to it, or isn't persistent")

    def _set_offload(self, wanted: bool) -> tuple[bool, bool]:
        """Ask for the most the kernel has; returns whether TCP and UDP super-packets may pass."""
        levels = (_TSO | _TUN_F_USO4 | _TUN_F_USO6, _TSO) if wanted else ()
        for level in (*levels, 0):
            try:
                fcntl.ioctl(self._fd, _TUNSETOFFLOAD, level)
            except OSError:
                if level == 0:
                    raise
                continue
            return level != 0, bool(level & _TUN_F_USO4)
        raise AssertionError("unreachable: level 0 returns or raises")

    @property
    def displaced(self) -> bool:
        """Whether another device has the name now: this one was moved to another network namespace, or renamed.

        Its descriptor works on as if nothing had happened.
        """
        try:
            return socket.if_nametoindex(self._name) != self._index
        except OSError:
            return False  # no device is better than this one

    def fileno(self) -> int:
        """For polling."""
        return self._fd

    def close(self) -> None:
        """Detach; the device stays."""
        os.close(self._fd)

    def receive(self, buffer: memoryview) -> int:
        try:
            return os.readv(self._fd, [buffer])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise DeviceGone(f"TUN device: {error.strerror}") from None

    def send(self, header: bytes, packet: memoryview | bytes) -> int:
        try:
            if header:
                os.writev(self._fd, (header, packet))
            else:
                os.write(self._fd, packet)
        except OSError as error:
            return error.errno or errno.EIO
        return 0


class UdpSocket:
    """A UDP socket bound to ``address``, of either family, with segmentation offloads where the kernel has them.

    Its port may be bound again by the same user (``SO_REUSEPORT``): by further workers, and by a successor.

    :raises OSError: it can't be opened or bound; ``filename`` says where.
    """

    def __init__(self, address: str, port: int, *, offload: bool) -> None:
        self._ipv6 = ":" in address
        self._family = socket.AF_INET6 if self._ipv6 else socket.AF_INET
        self.overhead = 48 if self._ipv6 else 28
        """Bytes of an outer IP and UDP header."""
        self.largest = 0xFFFF - self.overhead
        """Bytes that one datagram, or one call's datagrams together, may have."""
        self._ancillary_size = socket.CMSG_SPACE(4)
        self._socket = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._prepare(offload)
            self._socket.bind((address, port))
        except OSError as error:
            self._socket.close()
            error.filename = f"UDP port {f'[{address}]' if self._ipv6 else address}:{port}"
            raise

    def _prepare(self, offload: bool) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        if self._ipv6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._discover(_PMTUDISC_DO)
        for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            self._enlarge(forced, plain)
        self.segments = offload and self._switch_on(_UDP_SEGMENT, 0)
        if offload:
            self._switch_on(_UDP_GRO, 1)

    def _discover(self, how: int) -> None:
        """Fragment nothing, or what is larger than the path's MTU is known to be."""
        if self._ipv6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, how)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, how)

    def _enlarge(self, forced: int, plain: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BUFFER)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BUFFER)

    def _switch_on(self, option: int, value: int) -> bool:
        try:
            self._socket.setsockopt(socket.SOL_UDP, option, value)
        except OSError:
            return False
        return True

    def fileno(self) -> int:
        """For polling."""
        return self._socket.fileno()

    def close(self) -> None:
        """Leave the port."""
        self._socket.close()

    def receive(self, buffer: memoryview) -> tuple[int, int, Endpoint] | None:
        """Bytes received, the size of each datagram in them (the last may be shorter), and who sent them.

        Nothing if nothing waits.
        """
        try:
            length, ancillary, _, sender = self._socket.recvmsg_into(
                (buffer,), self._ancillary_size, socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None
        except OSError:
            return None  # a pending ICMP error; it is about a datagram of the past
        size = length
        for level, kind, data in ancillary:
            if level == socket.SOL_UDP and kind == _UDP_GRO:
                size = int.from_bytes(data[:4], sys.byteorder)
        return length, size, sender[:2] if self._ipv6 else sender

    def rows(self, size: int) -> int:
        """How many datagrams of ``size`` bytes go into one call; at least 1."""
        return max(1, min(_MAX_SEGMENTS, self.largest // size))

    def send(self, data: memoryview, size: int, endpoint: Endpoint) -> int:
        """Send ``data`` as datagrams of ``size`` bytes, the last may be shorter. Returns 0 or the error number."""
        try:
            if len(data) <= size:
                self._socket.sendto(data, endpoint)
            elif self.segments:
                segment = (socket.SOL_UDP, _UDP_SEGMENT, struct.pack("=H", size))
                self._socket.sendmsg((data,), (segment,), 0, endpoint)
            else:
                for start in range(0, len(data), size):
                    self._socket.sendto(data[start : start + size], endpoint)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def send_in_fragments(self, data: memoryview, size: int, endpoint: Endpoint) -> int:
        """The same for datagrams that are larger than the path's MTU. One by one: no device cuts into fragments."""
        self._discover(_PMTUDISC_WANT)
        try:
            for start in range(0, len(data), size):
                self._socket.sendto(data[start : start + size], endpoint)
        except OSError as error:
            return error.errno or errno.EIO
        finally:
            self._discover(_PMTUDISC_DO)
        return 0

    def path_mtu(self, endpoint: Endpoint) -> int:
        """The largest datagram's payload, in bytes, that the kernel believes can reach ``endpoint``."""
        with socket.socket(self._family, socket.SOCK_DGRAM) as probe:
            level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if self._ipv6 else (socket.IPPROTO_IP, _IP_MTU)
            try:
                probe.connect(endpoint)
                return probe.getsockopt(level, option) - self.overhead
            except OSError:
                return self.largest  # no route just now: not a question of size
