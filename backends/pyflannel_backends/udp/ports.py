"""The two edges of the data plane: a queue of the TUN device, and the UDP socket on the underlay.

:class:`TunPort` and :class:`UnderlayPort` say what forwarding needs of them; :class:`TunQueue` and :class:`UdpSocket`
are the kernel's. Both take and give whole batches where the kernel has the offload, and do the same one packet at a
time where it has not. Neither raises for what a packet may cause: sends return the error number.

Sources: ``linux/if_tun.h``, ``linux/udp.h``, ``tun.rst``, ``udp(7)``, ``ip(7)``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Final, Protocol

from . import vnet
from .table import Endpoint

__all__ = ["DeviceGone", "TunPort", "TunQueue", "UdpSocket", "UnderlayPort"]

_TUNSETIFF: Final = 0x400454CA
_TUNGETIFF: Final = 0x800454D2
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TUN, _IFF_MULTI_QUEUE, _IFF_PERSIST, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x0100, 0x0800, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO_ECN, _TUN_F_USO4, _TUN_F_USO6 = 0x01, 0x02, 0x08, 0x20, 0x40
_TSO: Final = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO_ECN

_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = 10
_IP_PMTUDISC_DO: Final = 2
_IP_MTU: Final = 14
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


class UnderlayPort(Protocol):
    """The side of the other nodes: datagrams, many of one size to or from one node in a call."""

    def receive(self, buffer: memoryview) -> tuple[int, int, Endpoint] | None:
        """Bytes received, the size of each datagram in them (the last may be shorter), and who sent them."""

    def send(self, data: memoryview, size: int, endpoint: Endpoint) -> int:
        """Send ``data`` as datagrams of ``size`` bytes, the last may be shorter. Returns 0 or the error number."""

    def path_mtu(self, endpoint: Endpoint) -> int:
        """The largest IP packet, in bytes, that the kernel believes can reach ``endpoint``."""


class TunQueue:
    """One queue of an existing, persistent TUN device.

    :param offload: take super-packets and unfinished checksums from the kernel.
    :raises DeviceGone: the device doesn't exist or is of another shape.
    """

    def __init__(self, name: str, *, offload: bool) -> None:
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
            socket.if_nametoindex(name)
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

    def fileno(self) -> int:
        """For polling."""
        return self._fd

    def close(self) -> None:
        """Detach; the device stays."""
        os.close(self._fd)

    def receive(self, buffer: memoryview) -> int:
        """See :class:`TunPort`."""
        try:
            return os.readv(self._fd, [buffer])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise DeviceGone(f"TUN device: {error.strerror}") from None

    def send(self, header: bytes, packet: memoryview | bytes) -> int:
        """See :class:`TunPort`."""
        try:
            if header:
                os.writev(self._fd, (header, packet))
            else:
                os.write(self._fd, packet)
        except OSError as error:
            return error.errno or errno.EIO
        return 0


class UdpSocket:
    """A UDP socket bound to this node's underlay address, with segmentation offloads where the kernel has them.

    Its port may be bound again by the same user (``SO_REUSEPORT``): by further workers, and by a successor.
    """

    def __init__(self, address: str, port: int, *, offload: bool) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
            for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
                self._enlarge(forced, plain)
            self.segments = offload and self._switch_on(_UDP_SEGMENT, 0)
            if offload:
                self._switch_on(_UDP_GRO, 1)
            self._socket.bind((address, port))
        except BaseException:
            self._socket.close()
            raise
        self._ancillary_size = socket.CMSG_SPACE(4)

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
        """See :class:`UnderlayPort`."""
        try:
            length, ancillary, _, endpoint = self._socket.recvmsg_into(
                (buffer,), self._ancillary_size, socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None
        except OSError:
            return None  # a pending ICMP error; it is about a datagram of the past
        size = length
        for level, kind, data in ancillary:
            if level == socket.SOL_UDP and kind == _UDP_GRO:
                size = int.from_bytes(data[:4], "little" if struct.pack("=H", 1)[0] else "big")
        return length, size, endpoint

    def send(self, data: memoryview, size: int, endpoint: Endpoint) -> int:
        """See :class:`UnderlayPort`."""
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

    def path_mtu(self, endpoint: Endpoint) -> int:
        """See :class:`UnderlayPort`."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(endpoint)
                return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
            except OSError:
                return 0xFFFF  # no route just now: not a question of size
