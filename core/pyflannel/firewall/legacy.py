"""iptables-legacy's tables, read from the kernel without any program being started.

The kernel tells nobody when they change, but gives each of them out as one block of memory, which
:func:`legacy_fingerprint` compares at the price of a system call. Which rules there are is read by the program
(:mod:`~pyflannel.firewall.iptables`).

Sources: linux/netfilter_ipv4/ip_tables.h and linux/netfilter_ipv6/ip6_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path
from typing import Final

from pyflannel.errors import KernelError
from pyflannel.small import files as smallfile

__all__ = ["HIDDEN", "legacy_fingerprint", "legacy_tables"]

_GET_INFO: Final = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_GET_ENTRIES: Final = 65
_INFO_SIZE: Final = 84
_ENTRIES_HEADER: Final = 40
_LEVEL: Final = {4: (socket.AF_INET, socket.IPPROTO_IP), 6: (socket.AF_INET6, socket.IPPROTO_IPV6)}
_NEXT_OFFSET: Final = {4: 90, 6: 142}
_COUNTERS: Final = {4: 96, 6: 152}
_INFIX: Final = {4: "", 6: "6"}
# In what _entries returns: where FORWARD's first entry and its policy are, and where the entries begin. In an entry:
# where it says where its target is, the verdict behind the target's header, and what that is for accept.
_FORWARD: Final = (12, 32)
_BLOCK: Final = 48
_TARGET: Final = {4: 88, 6: 140}
_VERDICT: Final = 32
_ACCEPTS: Final = (1 << 32) - 2

HIDDEN: Final = b"hidden"
"""The fingerprint of rules that this user may not look at by name."""


def legacy_tables(version: int) -> tuple[str, ...]:
    """The tables of iptables-legacy that exist, as far as this user may see them."""
    return _table_names(version) or ()


def _table_names(version: int) -> tuple[str, ...] | None:
    """The same; ``None`` if this user may not see them."""
    try:
        names = smallfile.read(f"/proc/thread-self/net/ip{_INFIX[version]}_tables_names")
    except PermissionError:
        return None
    except OSError:
        return ()
    return tuple(sorted(names.decode("ascii").split()))


def legacy_fingerprint(version: int) -> bytes:
    """A value that changes when a rule, a chain or a policy of iptables-legacy does; empty if there are no tables.

    It can be compared with others of this process only: it is Python's own hash, for which nothing has to be loaded.
    """
    tables = _table_names(version)
    if not tables:
        return HIDDEN if tables is None and _drops_unseen(version) else b""
    return hash(tuple((table, _rules(version, table)) for table in tables)).to_bytes(8, sys.byteorder, signed=True)


def _drops_unseen(version: int) -> bool:
    """Whether iptables-legacy has rules or a drop for forwarded packets, for a user who may not look at it by name.

    Only root may read which tables there are, and ``iptables-legacy`` runs for root alone. CAP_NET_ADMIN is enough to
    ask the kernel for one table; but that would make it, empty, so nobody is asked while its module is not there.
    """
    built_in = not Path(f"/sys/module/ip{_INFIX[version]}_tables").exists()
    if not built_in and not Path(f"/sys/module/ip{_INFIX[version]}table_filter").exists():
        return False
    try:
        rules = _rules(version, "filter")
    except KernelError:  # no such table, or no right at all: then nothing can be told
        return False
    first, last = (_word(rules, place) for place in _FORWARD)
    target = int.from_bytes(rules[_BLOCK + last + _TARGET[version] :][:2], sys.byteorder)
    verdict = _word(rules, _BLOCK + last + target + _VERDICT)
    return first != last or verdict != _ACCEPTS


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], sys.byteorder)


def _rules(version: int, table: str) -> bytes:
    family, level = _LEVEL[version]
    try:
        channel = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise KernelError(f"can't ask for table {table} of iptables-legacy: {error.strerror}") from error
    with channel:
        return _entries(channel.fileno(), level, version, table)


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
