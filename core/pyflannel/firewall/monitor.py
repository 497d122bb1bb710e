"""What the kernel tells of changes in nftables, without any program being started.

It sends a message for each change (group ``NFNLGRP_NFTABLES``), for iptables-nft's rules, too. Most of them, such as
kube-proxy's rules for services, are no concern of ours: only tables, base chains and the chains that
:meth:`Monitor.watch` names count.

Source: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

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

__all__ = ["Monitor", "sees_forward_chains"]

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_NFNLGRP_NFTABLES: Final = 7
_NEWRULE, _DELRULE = 6, 8
_HOOK_FORWARD: Final = 2  # NF_INET_FORWARD


class Monitor:
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
