"""Packets that ask for an answer: ICMP echo with and without fragmentation, and UDP to a port that nobody listens on.

Nothing here needs a right where ``net.ipv4.ping_group_range`` lets the user ping (``icmp(7)``); with CAP_NET_RAW a raw
socket does the same. A closed UDP port answers with an ICMP error, which a connected socket sees as a refusal: that is
how a packet's arrival, checksum and all, shows without anybody listening. Linux limits such errors to about one per
second and destination, after a first few (``icmp_ratelimit`` in ``ip-sysctl.rst``), so there are few tries.
"""

from __future__ import annotations

import errno
import os
import random
import select
import selectors
import socket
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from pyflannel.errors import KernelError

__all__ = ["HEADERS", "Echoes", "echo", "echo_all", "knock_all", "knock_tcp", "knock_udp", "largest_echo"]

IPAddress: TypeAlias = IPv4Address | IPv6Address

HEADERS: Final = {4: 28, 6: 48}
"""Bytes of IP and ICMP header before an echo's payload."""

_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 23, 3  # linux/in.h, linux/in6.h
_SO_NO_CHECK = 11  # asm-generic/socket.h
_IP_PKTINFO, _IPV6_PKTINFO = 8, 50  # linux/in.h, linux/in6.h
_TOKEN = struct.Struct("!QQ")
_EPHEMERAL = (33434, 65000)
_PACE = 0.0001  # seconds between two pings of many, at least


@contextmanager
def _icmp(version: int) -> Iterator[tuple[socket.socket, bool]]:
    """An ICMP socket, and whether it is a raw one.

    :raises KernelError: neither kind is allowed.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            channel = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        except PermissionError:
            continue
        with channel:
            yield channel, kind == socket.SOCK_RAW
            return
    raise KernelError("may not ping: run as root, or allow it with sysctl net.ipv4.ping_group_range")


def echo(address: IPAddress, size: int = 64, timeout: float = 1.0, tries: int = 3, whole: bool = False) -> float | None:
    """Ping, and return the round-trip time in seconds, or ``None`` if nothing came back.

    :param size: the packet's, in bytes, with its IP header.
    :param timeout: seconds in all, spread over ``tries``.
    :param whole: forbid fragmentation, here and on the way.
    :raises KernelError: this process may not ping.
    """
    with _icmp(address.version) as (channel, raw):
        if whole:
            level = socket.IPPROTO_IP if address.version == 4 else socket.IPPROTO_IPV6
            name = _IP_MTU_DISCOVER if address.version == 4 else _IPV6_MTU_DISCOVER
            channel.setsockopt(level, name, _IP_PMTUDISC_PROBE)
        token = random.getrandbits(64)
        payload = max(_TOKEN.size, size - HEADERS[address.version])
        sent: dict[int, float] = {}
        for attempt in range(tries):
            packet = _request(address.version, attempt, _TOKEN.pack(token, attempt).ljust(payload, b"\0"))
            sent[attempt] = time.monotonic()
            try:
                channel.sendto(packet, (str(address), 0))
            except OSError as error:
                if error.errno == errno.EMSGSIZE:  # larger than the device's MTU
                    return None
            answer = _await(channel, raw and address.version == 4, token, time.monotonic() + timeout / tries)
            if answer is not None:
                return time.monotonic() - sent[answer]
    return None


def echo_all(addresses: Collection[IPAddress], timeout: float = 1.0) -> dict[IPAddress, float]:
    """Ping many at once, once each; those that answered within ``timeout`` seconds, with their round-trip times.

    :raises KernelError: this process may not ping.
    """
    found: dict[IPAddress, float] = {}
    until = time.monotonic() + timeout
    for version in (4, 6):
        asked = [address for address in addresses if address.version == version]
        if asked:
            with _icmp(version) as (channel, raw):
                found.update(_echo_each(asked, version, channel, raw and version == 4, until))
    return found


def _echo_each(
    asked: Sequence[IPAddress], version: int, channel: socket.socket, has_ip_header: bool, until: float
) -> Iterator[tuple[IPAddress, float]]:
    token = random.getrandbits(64)
    sent: dict[int, float] = {}

    def answered(until: float) -> Iterator[tuple[IPAddress, float]]:
        while sent and (number := _await(channel, has_ip_header, token, until)) is not None:
            if number in sent:
                yield asked[number], time.monotonic() - sent.pop(number)

    for number, address in enumerate(asked):
        with suppress(OSError):  # no way there: no answer either
            sent[number] = time.monotonic()
            channel.sendto(_request(version, number & 0xFFFF, _TOKEN.pack(token, number)), (str(address), 0))
        yield from answered(time.monotonic() + _PACE)  # as it comes: what waits to be read seems to have come late
    yield from answered(until)


class Echoes:
    """Pings whose answers are fetched later, by the device that the routes name or by another one.

    :raises KernelError: this process may not ping.
    """

    def __init__(self) -> None:
        self._token = random.getrandbits(64)
        self._channels: dict[int, tuple[socket.socket, bool]] = {}
        with ExitStack() as stack:
            for version in (4, 6):
                with suppress(OSError):  # a kernel without this family
                    self._channels[version] = stack.enter_context(_icmp(version))
            for channel, _ in self._channels.values():
                channel.setblocking(False)
            self._stack = stack.pop_all()
        if not self._channels:
            raise KernelError("can't ping: the system has no socket for it")

    def ask(self, address: IPAddress, number: int, link: str = "") -> None:
        """Ping once; what can't be sent stays without an answer.

        :param number: what :meth:`answers` will say. ``link``: the device by which it is sent, whatever the routes say;
            its answer may come by any.
        """
        channel, _ = self._channels.get(address.version, (None, False))
        if channel is None:
            return
        packet = _request(address.version, number & 0xFFFF, _TOKEN.pack(self._token, number))
        with suppress(OSError):  # no such device, no way there
            channel.sendmsg([packet], _by(address.version, link), 0, (str(address), 0))

    def answers(self) -> Iterator[int]:
        """The numbers of those that were answered since the last call."""
        for version, (channel, raw) in self._channels.items():
            while True:
                try:
                    packet = channel.recv(1 << 16)
                except BlockingIOError:
                    break
                except OSError:  # an ICMP error about a request
                    continue
                number = _number(packet, raw and version == 4, self._token)
                if number is not None:
                    yield number

    def close(self) -> None:
        """Ask no more."""
        self._stack.close()


def _by(version: int, link: str) -> list[tuple[int, int, bytes]]:
    """Ancillary data that has a packet sent by a device (``ip(7)``, ``ipv6(7)``).

    :raises OSError: there is no such device.
    """
    if not link:
        return []
    index = socket.if_nametoindex(link)
    if version == 4:
        return [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=i8x", index))]
    return [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, struct.pack("=16xi", index))]


def _request(version: int, sequence: int, payload: bytes) -> bytes:
    kind = 8 if version == 4 else 128
    packet = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, sequence) + payload
    if version == 6:
        return packet  # the kernel fills in the checksum, which covers the addresses (RFC 4443, 2.3)
    return packet[:2] + struct.pack("!H", _checksum(packet)) + packet[4:]


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _await(channel: socket.socket, has_ip_header: bool, token: int, until: float) -> int | None:
    """The number of the request of ours that was answered before ``until``."""
    while (left := until - time.monotonic()) > 0:
        if not select.select([channel], [], [], left)[0]:
            return None
        try:
            packet = channel.recv(1 << 16)
        except OSError:  # an ICMP error about a request; the answer may still come
            continue
        number = _number(packet, has_ip_header, token)
        if number is not None:
            return number
    return None


def _number(packet: bytes, has_ip_header: bool, token: int) -> int | None:
    """The number of the request of ours that this answers; ``None`` if it answers none."""
    if has_ip_header:
        packet = packet[(packet[0] & 15) * 4 :]
    if len(packet) < 8 + _TOKEN.size or packet[0] not in (0, 129):
        return None
    found, number = _TOKEN.unpack_from(packet, 8)
    return int(number) if found == token else None


def largest_echo(address: IPAddress, low: int, high: int, timeout: float = 0.6) -> int:
    """The size of the largest whole packet that is answered, between ``low``, which is, and ``high``, which isn't.

    A binary search: some ten pings, of which those too large cost ``timeout`` seconds each.
    """
    while high - low > 1:
        middle = (low + high) // 2
        if echo(address, middle, timeout, tries=2, whole=True) is not None:
            low = middle
        else:
            high = middle
    return low


def knock_udp(address: IPAddress, checksum: bool = True, timeout: float = 1.0, tries: int = 3) -> bool:
    """Whether a datagram to a closed port is refused, and so has arrived.

    :param checksum: without one the receiver has nothing to check (RFC 768), and no device computes one; IPv4 only.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    for _ in range(tries):
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            if not checksum:
                channel.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
            channel.settimeout(timeout / tries)
            try:
                channel.connect((str(address), random.randint(*_EPHEMERAL)))  # noqa: S311 - any port nobody uses
                channel.send(b"pyflannel doctor")
                channel.recv(1)
            except ConnectionRefusedError:
                return True
            except OSError:  # no answer in time, or no route: another try
                continue
    return False


def knock_all(addresses: Collection[IPAddress], timeout: float = 1.0, port: int = 9) -> dict[IPAddress, float]:
    """As :func:`echo_all` by attempts at a TCP connection, which need no right: a refusal is an answer."""
    found: dict[IPAddress, float] = {}
    until = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for address in addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            channel = stack.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
            channel.setblocking(False)
            begin = time.monotonic()
            if channel.connect_ex((str(address), port)) == errno.EINPROGRESS:
                selector.register(channel, selectors.EVENT_WRITE, (address, begin))
        while selector.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                address, begin = key.data
                error = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # type: ignore[union-attr]
                if error in (0, errno.ECONNREFUSED):
                    found[address] = time.monotonic() - begin
    return found


def knock_tcp(address: IPAddress, port: int = 9, timeout: float = 1.0) -> bool:
    """Whether a host answers a connection attempt, with whatever: a refusal is an answer, too."""
    try:
        with socket.create_connection((str(address), port), timeout):
            return True
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
