"""What the kernel tells about its firewall without any program being started.

For nftables, and so for iptables-nft, it sends a message for each change (group ``NFNLGRP_NFTABLES``). Most of them,
such as kube-proxy's rules for services, are no concern of ours: only tables, base chains and the chains that
:meth:`Notices.watch` names count. iptables-legacy sends nothing, but gives its tables out as one block of memory, which
:func:`legacy_fingerprint` compares at the price of a system call.

Sources: linux/netfilter/nf_tables.h, linux/netfilter_ipv4/ip_tables.h and linux/netfilter_ipv6/ip6_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path
from typing import Final

from pyflannel.errors import KernelError
from pyflannel.firewall import nfnetlink
from pyflannel.firewall.nfnetlink import (
    DELCHAIN,
    DELTABLE,
    FAMILIES,
    NEWCHAIN,
    NEWTABLE,
    SUBSYSTEM,
    attributes,
    messages,
    number,
    open_socket,
    text,
)
from pyflannel.firewall.nftables import ChainId
from pyflannel.small import files as smallfile

__all__ = ["HIDDEN", "Notices", "legacy_fingerprint", "legacy_tables", "sees_forward_chains"]

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_NFNLGRP_NFTABLES: Final = 7
_NEWRULE, _DELRULE = 6, 8
_HOOK_FORWARD: Final = 2  # NF_INET_FORWARD


class Notices:
    """Hears of changes of nftables in the network namespace of the calling thread.

    :raises KernelError: the kernel has no nftables, or won't tell.
    """

    def __init__(self) -> None:
        self._watched: frozenset[ChainId] = frozenset()
        self._socket = open_socket()
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
                self._counts(kind, datagram, start, end) for kind, start, end in messages(datagram)
            )

    def _counts(self, kind: int, datagram: bytes, start: int, end: int) -> bool:
        if kind & 0xFF00 != SUBSYSTEM:
            return False
        action, family = kind & 0xFF, FAMILIES.get(datagram[start], "")
        if not family:
            return False
        if action in (NEWTABLE, DELTABLE):
            return True
        if action in (_NEWRULE, _DELRULE):
            names = dict(attributes(datagram, start + 4, end))
            return (family, text(names.get(1)), text(names.get(2))) in self._watched
        if action in (NEWCHAIN, DELCHAIN):
            names = dict(attributes(datagram, start + 4, end))
            table, name = text(names.get(1)), text(names.get(3))
            return 4 in names or name.startswith("FLANNEL-") or (family, table, name) in self._watched
        return False

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def sees_forward_chains() -> bool:
    """Whether any chain of nftables sees forwarded IP packets; asked over netlink, for want of programs."""
    try:
        return any(_is_forward(chain) for _, chain in nfnetlink.dump(nfnetlink.GETCHAIN))
    except KernelError:
        return False


def _is_forward(chain: dict[int, bytes]) -> bool:
    hook = dict(attributes(chain[4], 0, len(chain[4]))) if 4 in chain else {}
    return 1 in hook and number(hook[1]) == _HOOK_FORWARD


# iptables-legacy -----------------------------------------------------------------------------------------------------

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
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
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
