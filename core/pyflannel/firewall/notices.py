"""What the kernel tells about its firewall without any program being started.

For nftables, and so for iptables-nft, it sends a message for each change (group ``NFNLGRP_NFTABLES``). Most of them,
such as kube-proxy's rules for services, are no concern of ours: only tables, base chains and the chains that
:meth:`Notices.watch` names count. iptables-legacy sends nothing, but gives its tables out as one block of memory, which
:func:`legacy_fingerprint` compares at the price of a system call.

Sources: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/netfilter_ipv4/ip_tables.h and
linux/netfilter_ipv6/ip6_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Final

from pyflannel.digest import sha256
from pyflannel.errors import KernelError
from pyflannel.firewall.nftables import ChainId

__all__ = ["Notices", "legacy_fingerprint", "legacy_tables", "sees_forward_chains"]

_NETLINK_NETFILTER: Final = 12
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_NFNLGRP_NFTABLES: Final = 7
_SUBSYSTEM: Final = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN, _NEWRULE, _DELRULE = 0, 2, 3, 4, 5, 6, 8
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST_DUMP: Final = 0x1 | 0x300
_FAMILIES: Final = {1: "inet", 2: "ip", 10: "ip6"}
_HOOK_FORWARD: Final = 2  # NF_INET_FORWARD

_HEADER = Struct("=IHHII")
_ATTRIBUTE = Struct("=HH")
_BIG32 = Struct(">I")


class Notices:
    """Hears of changes of nftables in the network namespace of the calling thread.

    :raises KernelError: the kernel has no nftables, or won't tell.
    """

    def __init__(self) -> None:
        self._watched: frozenset[ChainId] = frozenset()
        self._socket = _netlink()
        self._socket.setblocking(False)
        try:
            self._socket.bind((0, 0))  # a socket without an address of its own gets no broadcasts
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError as error:
            self._socket.close()
            raise KernelError(f"the kernel tells nothing of nftables: {error.strerror}") from error

    def fileno(self) -> int:
        """Readable when :meth:`changed` has something to read."""
        return self._socket.fileno()

    def watch(self, chains: frozenset[ChainId]) -> None:
        """From now on, rules of these chains count."""
        self._watched = chains

    def changed(self) -> bool:
        """Read all that was told and say whether any of it counts; a lost message does."""
        relevant = False
        while True:
            try:
                datagram = self._socket.recv(1 << 16)
            except BlockingIOError:
                return relevant
            except OSError:  # ENOBUFS: more than the buffer holds
                relevant = True
                continue
            relevant = relevant or any(
                self._counts(kind, datagram, start, end) for kind, start, end in _messages(datagram)
            )

    def _counts(self, kind: int, datagram: bytes, start: int, end: int) -> bool:
        if kind & 0xFF00 != _SUBSYSTEM:
            return False
        action, family = kind & 0xFF, _FAMILIES.get(datagram[start], "")
        if not family:
            return False
        if action in (_NEWTABLE, _DELTABLE):
            return True
        if action in (_NEWRULE, _DELRULE):
            names = dict(_attributes(datagram, start + 4, end))
            return (family, _text(names.get(1)), _text(names.get(2))) in self._watched
        if action in (_NEWCHAIN, _DELCHAIN):
            names = dict(_attributes(datagram, start + 4, end))
            table, name = _text(names.get(1)), _text(names.get(3))
            return 4 in names or name.startswith("FLANNEL-") or (family, table, name) in self._watched
        return False

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _netlink() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise KernelError(f"no netfilter netlink in this kernel: {error.strerror}") from error


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, and where the payload begins and ends, of each message."""
    at = 0
    while at + 16 <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, at)
        if length < 16:
            return
        yield kind, at + 16, at + length
        at += (length + 3) & ~3


def _attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            return
        yield kind & 0x3FFF, data[start + 4 : start + length]
        start += (length + 3) & ~3


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def sees_forward_chains() -> bool:
    """Whether any chain of nftables sees forwarded IP packets; asked over netlink, for want of programs."""
    try:
        channel = _netlink()
    except KernelError:
        return False
    with channel:
        channel.settimeout(5.0)
        channel.send(_HEADER.pack(20, _SUBSYSTEM | _GETCHAIN, _REQUEST_DUMP, 1, 0) + bytes(4))
        found = False
        while True:
            datagram = channel.recv(1 << 16)
            for kind, start, end in _messages(datagram):
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    return found
                found = found or (datagram[start] in _FAMILIES and _is_forward(datagram, start, end))


def _is_forward(datagram: bytes, start: int, end: int) -> bool:
    hook = dict(_attributes(datagram, start + 4, end)).get(4)
    if hook is None:
        return False
    number = dict(_attributes(hook, 0, len(hook))).get(1)
    return number is not None and _BIG32.unpack(number)[0] == _HOOK_FORWARD


# iptables-legacy -----------------------------------------------------------------------------------------------------

_GET_INFO: Final = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_GET_ENTRIES: Final = 65
_INFO_SIZE: Final = 84
_ENTRIES_HEADER: Final = 40
_LEVEL: Final = {4: (socket.AF_INET, socket.IPPROTO_IP), 6: (socket.AF_INET6, socket.IPPROTO_IPV6)}
_NEXT_OFFSET: Final = {4: 90, 6: 142}
_COUNTERS: Final = {4: 96, 6: 152}


def legacy_tables(version: int) -> tuple[str, ...]:
    """The tables of iptables-legacy that exist; asking any other way would create them."""
    path = Path("/proc/thread-self/net/ip_tables_names" if version == 4 else "/proc/thread-self/net/ip6_tables_names")
    try:
        return tuple(sorted(path.read_text(encoding="ascii").split()))
    except OSError:
        return ()


def legacy_fingerprint(version: int) -> bytes:
    """A value that changes when a rule, a chain or a policy of iptables-legacy does; empty if there are no tables."""
    tables = legacy_tables(version)
    if not tables:
        return b""
    family, level = _LEVEL[version]
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        rules = [table.encode() + b"\0" + _entries(channel.fileno(), level, version, table) for table in tables]
    return sha256(b"".join(rules))


def _entries(descriptor: int, level: int, version: int, table: str) -> bytes:
    """The rules of one table as the kernel keeps them, counters left out."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ask(option: int, content: bytes, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(content, size)
        length = ctypes.c_uint32(size)
        if libc.getsockopt(descriptor, level, option, buffer, ctypes.byref(length)) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise KernelError(f"the kernel does not show table {table} of iptables-legacy: {reason}")
        return buffer.raw

    name = table.encode().ljust(32, b"\0")
    info = ask(_GET_INFO, name, _INFO_SIZE)
    size = int.from_bytes(info[80:84], sys.byteorder)
    request = name + size.to_bytes(4, sys.byteorder)
    block = bytearray(ask(_GET_ENTRIES, request, _ENTRIES_HEADER + size)[_ENTRIES_HEADER:])
    at = 0
    while at < len(block):
        block[at + _COUNTERS[version] : at + _COUNTERS[version] + 16] = bytes(16)
        step = int.from_bytes(block[at + _NEXT_OFFSET[version] : at + _NEXT_OFFSET[version] + 2], sys.byteorder)
        if step == 0:
            break
        at += step
    return info[32:80] + bytes(block)
