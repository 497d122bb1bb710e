"""What the kernel says of entries that are as they should be, known beforehand.

In a dump nearly everything is as it was written. How the kernel's word of such an entry begins follows from its part
(:mod:`~pyflannel.kernel.packed`), so what is expected is a table of beginnings, and hearing the expected is one look
into it: no message is taken apart, no object is made. A kernel that puts the same in another order costs time, and is
understood all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import Final

from pyflannel.kernel import wire
from pyflannel.kernel.model import MAIN_TABLE, ROUTE_PROTOCOL, KernelObject, Key, Kind
from pyflannel.kernel.packed import (
    FDB4,
    FDB6,
    NEIGHBOUR4,
    NEIGHBOUR6,
    ROUTE4,
    ROUTE6,
    SIZES,
    STRUCTS,
    key_of,
    link_name,
    link_number,
    pack,
    plans_of,
)

__all__ = ["Expected"]

_STRUCTS: Final = {
    NEIGHBOUR4: Struct("=BxxxiHBB HH4s HH6s2x"),
    NEIGHBOUR6: Struct("=BxxxiHBB HH16s HH6s2x"),
    FDB4: Struct("=BxxxiHBB HH6s2x HH4s"),
    FDB6: Struct("=BxxxiHBB HH6s2x HH16s"),
    ROUTE4: Struct("=8BI HHI HH4s HHI HH4s HHI"),
    ROUTE6: Struct("=8BI HHI HH16s HHI HH16s HHI"),
}
"""By form: a header, and attributes in the order in which the kernel has them."""

_WHOLE: Final = {NEIGHBOUR4: 60, NEIGHBOUR6: 72, FDB4: 52, FDB6: 64, ROUTE4: 52, ROUTE6: 120}
"""By form: the bytes of all that the kernel says. Where there are more, there is more to the entry, or may be."""

_FORMS: Final = {
    Kind.NEIGHBOUR: (NEIGHBOUR4, NEIGHBOUR6),
    Kind.FDB: (FDB4, FDB6),
    Kind.ROUTE: (ROUTE4, ROUTE6),
}


def _neighbour(family: int, form: int, size: int) -> Callable[[bytes, int], bytes]:
    unpack, pack = STRUCTS[form].unpack, _STRUCTS[form].pack

    def told(part: bytes, link: int) -> bytes:
        _, _, address, mac = unpack(part)
        state = (family, link, wire.NUD_PERMANENT, 0, wire.RTN_UNICAST)
        return pack(*state, size, wire.NDA_DST, address, 10, wire.NDA_LLADDR, mac)

    return told


def _fdb(form: int, size: int) -> Callable[[bytes, int], bytes]:
    unpack, pack = STRUCTS[form].unpack, _STRUCTS[form].pack

    def told(part: bytes, link: int) -> bytes:
        _, _, mac, remote = unpack(part)
        state = (wire.AF_BRIDGE, link, wire.NUD_PERMANENT | wire.NUD_NOARP, wire.NTF_SELF, wire.RTN_UNICAST)
        return pack(*state, 10, wire.NDA_LLADDR, mac, size, wire.NDA_DST, remote)

    return told


def _route(family: int, form: int, size: int) -> Callable[[bytes, int], bytes]:
    unpack, pack = STRUCTS[form].unpack, _STRUCTS[form].pack

    def told(part: bytes, link: int) -> bytes:
        _, address, length, metric, _, gateway, onlink = unpack(part)
        kind = (family, length, 0, 0, MAIN_TABLE, ROUTE_PROTOCOL, 0, wire.RTN_UNICAST, wire.RTNH_F_ONLINK * onlink)
        way = (8, wire.RTA_PRIORITY, metric, size, wire.RTA_GATEWAY, gateway, 8, wire.RTA_OIF, link)
        return pack(*kind, 8, wire.RTA_TABLE, MAIN_TABLE, size, wire.RTA_DST, address, *way)

    return told


_TOLD: Final = {
    NEIGHBOUR4: _neighbour(AF_INET, NEIGHBOUR4, 8),
    NEIGHBOUR6: _neighbour(AF_INET6, NEIGHBOUR6, 20),
    FDB4: _fdb(FDB4, 8),
    FDB6: _fdb(FDB6, 20),
    ROUTE4: _route(AF_INET, ROUTE4, 8),
    ROUTE6: _route(AF_INET6, ROUTE6, 20),
}
"""By form: how the kernel's word of an entry begins, from its part and its link's index."""


class Expected:
    """The entries of one kind that are wanted and that can be packed, as long as the kernel has not told of them.

    :param index: a link's index; ``None`` if there is none, so that the kernel can't tell of anything on it.
    """

    def __init__(self, kind: Kind, wanted: Mapping[Key, KernelObject], index: Callable[[str], int | None]) -> None:
        self._wanted, self._index = wanted, index
        self._forms = _FORMS[kind]
        self._sizes = {_WHOLE[form]: _STRUCTS[form].size for form in self._forms}
        self._indexes: dict[int, int | None] = {}
        self.heard = False
        """Whether the kernel has told of any."""
        self._parts: dict[bytes, bytes] | None = None
        """How the kernel's word of each begins, and its part: an empty one once that was heard. ``None`` as long as the
        kernel has told of nothing, as at a first start: then nothing of it is needed."""

    def _each(self) -> Iterator[bytes]:
        """Every part. Thousands come by here."""
        forms = self._forms
        for plan in plans_of(self._wanted):
            if isinstance(plan, bytes):
                start, end = 0, len(plan)
                while start < end:
                    form = plan[start]
                    after = start + SIZES[form]
                    if form in forms:
                        yield plan[start:after]
                    start = after

    def _expected(self) -> dict[bytes, bytes]:
        """All of them; under itself a part of which the kernel can't tell."""
        expected: dict[bytes, bytes] = {}
        for part in self._each():
            link = self._link(part)
            expected[part if link is None else _TOLD[part[0]](part, link)] = part
        return expected

    def _link(self, part: bytes) -> int | None:
        """The index of the link that a part's object is on."""
        number = link_number(part)
        if number not in self._indexes:
            self._indexes[number] = self._index(link_name(number))
        return self._indexes[number]

    def take(self, datagram: bytes, start: int, end: int) -> bool:
        """Whether this message tells of one of them, which is expected no more."""
        size = self._sizes.get(end - start)
        if size is None:
            return False
        if self._parts is None:
            self._parts = self._expected()
        begins = datagram[start : start + size]
        if not self._parts.get(begins):
            return False
        self._parts[begins] = b""
        self.heard = True
        return True

    def told(self, key: Key) -> bool:
        """Whether the entry that is wanted under this key was told of."""
        item = self._wanted.get(key) if self._parts else None
        part = pack((item,)) if item is not None else ()
        if not isinstance(part, bytes) or self._parts is None:
            return False
        link = self._link(part)
        return link is not None and self._parts.get(_TOLD[part[0]](part, link)) == b""

    def untold(self) -> Iterator[Key]:
        """The keys of those that the kernel has not told of."""
        if self._parts is None:
            return map(key_of, self._each())
        return (key_of(part) for part in self._parts.values() if part)

    @property
    def links(self) -> Set[int]:
        """The indexes of the links that they are on, of those that the kernel has told of and some others."""
        return {link for link in self._indexes.values() if link is not None}
