"""nfnetlink, the kernel's own interface to nftables: messages taken apart and put together.

``nft`` and ``iptables`` write the rules. What is here serves where no program will do: to hear of changes, to ask
without starting one, and to change something only if nothing else has changed meanwhile (:func:`transact`).

Sources: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final

from pyflannel.errors import KernelError

__all__ = [
    "DELCHAIN",
    "DELTABLE",
    "FAMILIES",
    "GETCHAIN",
    "GETTABLE",
    "NEWCHAIN",
    "NEWTABLE",
    "ONLY_EMPTY",
    "ONLY_NEW",
    "SUBSYSTEM",
    "attribute",
    "attributes",
    "big32",
    "dump",
    "generation",
    "message",
    "messages",
    "number",
    "open_socket",
    "string",
    "text",
    "transact",
]

SUBSYSTEM: Final = 10 << 8  # NFNL_SUBSYS_NFTABLES
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN = range(6)
FAMILIES: Final = {1: "inet", 2: "ip", 10: "ip6"}
"""The kernel's number of each family of tables that see IP packets, and its name."""

ONLY_NEW: Final = 0x400 | 0x200  # NLM_F_CREATE, NLM_F_EXCL
ONLY_EMPTY: Final = 0x100  # NLM_F_NONREC

_NETLINK_NETFILTER: Final = 12
_GETGEN: Final = 16
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_NESTED: Final = 0x8000
_TIMEOUT: Final = 5.0
_BUFFER: Final = 1 << 16

_HEADER = Struct("=IHHII")
_GENERIC = Struct(">BBH")  # struct nfgenmsg; its last field is in network order
_ATTRIBUTE = Struct("=HH")
_BIG32 = Struct(">I")
_STATUS = Struct("=i")


def open_socket() -> socket.socket:
    """A netlink socket of the network namespace of the calling thread.

    :raises KernelError: this kernel has none.
    """
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise KernelError(f"no netfilter netlink in this kernel: {error.strerror}") from error


# Taking apart --------------------------------------------------------------------------------------------------------


def messages(datagram: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, and where the payload begins and ends, of each message."""
    at = 0
    while at + 16 <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, at)
        if length < 16:
            return
        yield kind, at + 16, at + length
        at += (length + 3) & ~3


def attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Number and value of each attribute."""
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            return
        yield kind & 0x3FFF, data[start + 4 : start + length]
        start += (length + 3) & ~3


def text(value: bytes | None) -> str:
    """A string attribute; empty if it is not there."""
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def number(value: bytes | None) -> int:
    """A 32-bit attribute; 0 if it is not there."""
    return int(_BIG32.unpack(value)[0]) if value is not None and len(value) == 4 else 0


# Putting together ----------------------------------------------------------------------------------------------------


def attribute(kind: int, value: bytes | Sequence[bytes]) -> bytes:
    """One attribute, padded; a sequence is a nested one."""
    if not isinstance(value, bytes):
        kind, value = kind | _NESTED, b"".join(value)
    return (_ATTRIBUTE.pack(4 + len(value), kind) + value).ljust((len(value) + 7) & ~3, b"\0")


def string(value: str) -> bytes:
    """The value of a string attribute."""
    return value.encode() + b"\0"


def big32(value: int) -> bytes:
    """The value of a 32-bit attribute."""
    return _BIG32.pack(value)


def message(action: int, family: int, body: Sequence[bytes] = (), flags: int = 0) -> bytes:
    """A message to nftables."""
    return _message(SUBSYSTEM | action, _GENERIC.pack(family, 0, 0) + b"".join(body), flags | _ACK)


def _message(kind: int, payload: bytes, flags: int) -> bytes:
    return _HEADER.pack(16 + len(payload), kind, flags | _REQUEST, 0, 0) + payload


# Asking and changing -------------------------------------------------------------------------------------------------


def dump(action: int) -> Iterator[tuple[str, dict[int, bytes]]]:
    """Family and attributes of every table or chain that sees IP packets.

    :raises KernelError: the kernel refuses, or has no nftables.
    """
    with open_socket() as channel:
        channel.settimeout(_TIMEOUT)
        channel.send(_message(SUBSYSTEM | action, _GENERIC.pack(0, 0, 0), _DUMP))
        while True:
            datagram = _receive(channel)
            for kind, start, end in messages(datagram):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    _check(_status(datagram, start), "does not list")
                    return
                if datagram[start] in FAMILIES:
                    yield FAMILIES[datagram[start]], dict(attributes(datagram, start + 4, end))


def generation() -> bytes:
    """What differs after every change of nftables, for :func:`transact`.

    :raises KernelError: the kernel has no nftables.
    """
    with open_socket() as channel:
        channel.settimeout(_TIMEOUT)
        channel.send(_message(SUBSYSTEM | _GETGEN, _GENERIC.pack(0, 0, 0), 0))
        datagram = _receive(channel)
        ((kind, start, end),) = messages(datagram)
        if kind == _ERROR:
            _check(_status(datagram, start), "tells no generation of")
        return dict(attributes(datagram, start + 4, end)).get(1, b"")


def transact(changes: Sequence[bytes], since: bytes) -> bool:
    """Make all these changes if nothing has changed ``since`` a :func:`generation`; whether they were made.

    :raises KernelError: the kernel refused one, and so all.
    """
    whole = _GENERIC.pack(0, 0, SUBSYSTEM >> 8)
    begin = _message(_BATCH_BEGIN, whole + attribute(1, since), 0)
    with open_socket() as channel:
        channel.settimeout(_TIMEOUT)
        channel.send(b"".join([begin, *changes, _message(_BATCH_END, whole, 0)]))
        answers = 0
        while answers < len(changes):
            datagram = _receive(channel)
            for kind, start, _ in messages(datagram):
                status = _status(datagram, start) if kind == _ERROR else 0
                if status in (-errno.ERESTART, -errno.EEXIST, -errno.ENOENT, -errno.EBUSY):
                    return False
                _check(status, "does not change")
                answers += 1
    return True


def _receive(channel: socket.socket) -> bytes:
    try:
        return channel.recv(_BUFFER)
    except OSError as error:
        raise KernelError(f"no answer about nftables from the kernel: {error.strerror or error}") from error


def _status(datagram: bytes, start: int) -> int:
    return int(_STATUS.unpack_from(datagram, start)[0])


def _check(status: int, verb: str) -> None:
    if status:
        raise KernelError(f"the kernel {verb} nftables: {os.strerror(-status)}")
