"""What becomes of packets that come with an MPLS label: the label table of a namespace (``ip -f mpls route``).

The idea: it is a routing table like the others, only that a label takes the place of a destination. Our routes have our
protocol number, and somebody else's that has a label of ours stays. Three things differ. The kernel deletes and
replaces by the label alone, whoever made the route, so that we look first. The table has a size, 0 at first, and no
labels above it: it is made larger for a label of ours and never smaller, for what lies above its end is lost. And a
kernel without the module doesn't know what is asked; it loads it when somebody wants a socket of that family.

Messages are those of ``linux/rtnetlink.h`` with the family ``AF_MPLS``, labels as they stand in a packet (RFC 3032,
2.1).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple

from pyflannel.errors import KernelError
from pyflannel.kernel import wire
from pyflannel.kernel.model import ROUTE_PROTOCOL, Key, MplsRoute
from pyflannel.kernel.port import Write
from pyflannel.kernel.refusal import foreign_label, refusal
from pyflannel.kernel.rtsocket import RequestSocket
from pyflannel.network.lease import IPAddress

__all__ = ["AF_MPLS", "ROUTE_GROUP", "LabelRow", "Labels", "encode_label", "encode_label_dump", "load", "parse_label"]

AF_MPLS: Final = 28
ROUTE_GROUP: Final = 27
"""``RTNLGRP_MPLS_ROUTE``: who has joined it is told of every label that comes, changes or goes."""

SIZE: Final = Path("/proc/sys/net/mpls/platform_labels")

_RTA_MULTIPATH = 9
_RTA_VIA = 18
_RTA_NEWDST = 19
_RTA_TTL_PROPAGATE = 26
_LABEL_BITS: Final = 20
_ROUTE = Struct("=8BI")
_U16 = Struct("=H")
_U32 = Struct("=I")
_VIA_SIZES: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}
_NOTHING_THERE: Final = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT})
_GONE: Final = frozenset({errno.ESRCH, errno.ENOENT, errno.EINVAL})
_NO_MPLS: Final = "this kernel routes no MPLS: load its module ('modprobe mpls_router'; CONFIG_MPLS_ROUTING)"


class LabelRow(NamedTuple):
    """A label's route as the kernel has it. ``link`` is an interface index, 0 where there is none; ``plain`` says that
    there is nothing else about it: no second way, no word about TTLs."""

    label: int
    protocol: int
    link: int
    gateway: IPAddress | None
    labels: tuple[int, ...]
    plain: bool

    def route(self, link: str | None) -> MplsRoute:
        """It as a value, with the name of its link."""
        return MplsRoute(self.label, link or f"if{self.link}", self.gateway, self.labels, self.plain)


def encode_label(kind: int, route: MplsRoute, link: int, flags: int = 0) -> bytes:
    """``RTM_NEWROUTE`` or ``RTM_DELROUTE``; the latter goes by the label alone, whoever's it is."""
    header = (AF_MPLS, _LABEL_BITS, 0, 0, wire.RT_TABLE_MAIN, ROUTE_PROTOCOL, 0, wire.RTN_UNICAST, 0)
    body = _ROUTE.pack(*header) + wire.attribute(wire.RTA_DST, wire.label_stack((route.label,)))
    if kind == wire.RTM_NEWROUTE:
        body += wire.attribute(_RTA_NEWDST, wire.label_stack(route.labels)) if route.labels else b""
        body += wire.via_attribute(route.gateway) if route.gateway is not None else b""
        body += wire.attribute(wire.RTA_OIF, _U32.pack(link))
    return wire.message(kind, flags, body)


def encode_label_dump() -> bytes:
    """``RTM_GETROUTE`` for all labels there are."""
    return wire.message(wire.RTM_GETROUTE, wire.NLM_F_DUMP, _ROUTE.pack(AF_MPLS, *(0,) * 8))


def parse_label(datagram: bytes, start: int, end: int) -> LabelRow | None:
    """A label's route from the payload of a route's message; ``None`` for a route of another family."""
    family, _, _, _, _, protocol, *_ = _ROUTE.unpack_from(datagram, start)
    found = wire.attributes(datagram, start + _ROUTE.size, end)
    label = wire.labels_of(found.get(wire.RTA_DST, b""))
    if family != AF_MPLS or len(label) != 1:
        return None
    via = found.get(_RTA_VIA, b"\0\0")
    size = _VIA_SIZES.get(_U16.unpack_from(via)[0], 0)
    odd = (_RTA_VIA in found and not size) or not found.keys().isdisjoint({_RTA_MULTIPATH, _RTA_TTL_PROPAGATE})
    return LabelRow(
        label[0],
        protocol,
        _U32.unpack(found.get(wire.RTA_OIF, bytes(4)))[0],
        wire.address_of(via[2 : 2 + size]) if size else None,
        wire.labels_of(found.get(_RTA_NEWDST, b"")),
        not odd,
    )


def load() -> None:
    """Have the kernel load its module (``net-pf-28`` in modules.alias), where it can."""
    with suppress(OSError):  # there are no such sockets: that somebody asked for one is enough
        socket.socket(AF_MPLS, socket.SOCK_RAW).close()


class Labels:
    """The label table of a port's namespace.

    :param requests: its socket.
    :param inside: calls a function in the namespace.
    """

    def __init__(self, requests: RequestSocket, inside: Callable[[Callable[[], Any]], Any]) -> None:
        self._requests = requests
        self._inside = inside
        self._size = 0

    def read(self) -> list[LabelRow]:
        """All labels that have a route, whoever's it is.

        :raises KernelError: the kernel can't be read.
        """
        with suppress(OSError):  # no descriptor: it is what it was
            self._size = self._inside(_size)
        if not self._size:
            return []  # nothing can be there; and a kernel without MPLS would show all other routes in its place
        answers = self._requests.dump(encode_label_dump(), _NOTHING_THERE)
        rows = (parse_label(answer.datagram, answer.start, answer.end) for answer in answers)
        return [row for row in rows if row is not None]

    def encoded(
        self, writes: Sequence[Write], index: Callable[[Write, str], int], failures: dict[Key, KernelError]
    ) -> Iterator[tuple[Write, bytes, frozenset[int]]]:
        """What to send, and the errors that mean it was done already. Makes room for new labels first.

        :param index: a link's index, or an error.
        :param failures: takes what can't be written.
        """
        highest = max((write.new.label for write in writes if isinstance(write.new, MplsRoute)), default=0)
        lack = self._make_room(highest) if highest else None
        there = {row.label: row for row in self.read()}
        for write in writes:
            item = write.new or write.old
            assert isinstance(item, MplsRoute)
            row = there.get(item.label)
            foreign = row is not None and row.protocol != ROUTE_PROTOCOL
            if write.new is None:
                if row is not None and not foreign:
                    yield write, encode_label(wire.RTM_DELROUTE, item, 0), _GONE
                continue
            try:
                if lack is not None:
                    raise refusal(write, *lack)
                if row is not None and foreign:
                    raise foreign_label(write, row.protocol)
                link = index(write, item.link)
            except KernelError as error:
                failures[write.key] = error
                continue
            flags = wire.NLM_F_CREATE | (wire.NLM_F_EXCL if row is None else wire.NLM_F_REPLACE)
            yield write, encode_label(wire.RTM_NEWROUTE, item, link, flags), frozenset()

    def _make_room(self, label: int) -> tuple[int, str, str] | None:
        """See that the table reaches to ``label``; else the error, the kernel's words for it, and what to do."""
        try:
            self._inside(lambda: _reach(label))
        except FileNotFoundError:
            return errno.EOPNOTSUPP, "", _NO_MPLS
        except OSError as error:
            return error.errno or errno.EIO, f"{SIZE} does not reach to {label}", ""
        return None


def _size() -> int:
    """How many labels there can be; 0 without the module, too."""
    try:
        return int(SIZE.read_bytes())
    except FileNotFoundError:
        return 0


def _reach(label: int) -> None:
    if not SIZE.exists():
        load()
    if int(SIZE.read_bytes()) <= label:
        SIZE.write_text(f"{label + 1}\n", encoding="ascii")
