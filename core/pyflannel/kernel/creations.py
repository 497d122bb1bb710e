"""The messages that make what packed plans hold, straight from their bytes: a first start writes three for each peer.

All messages of one form for one link differ in a few bytes, and these stand in the plan as they stand in the message.
So a form is encoded once (:mod:`~pyflannel.kernel.wire`), cut up where they go, and each message is its pieces and the
plan's put together: no object is made, and no number packed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

from pyflannel.kernel import wire
from pyflannel.kernel.model import FdbEntry, KernelObject, Kind, Neighbour, Route
from pyflannel.kernel.packed import (
    FDB4,
    FDB6,
    NEIGHBOUR4,
    NEIGHBOUR6,
    PACKED_KINDS,
    ROUTE4,
    ROUTE6,
    SIZES,
    USUAL_METRIC6,
    link_name,
    link_number,
    parts,
    unpack,
)

__all__ = ["Creations"]

_CREATE: Final = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
_CREATE_ROUTE: Final = wire.NLM_F_CREATE | wire.NLM_F_EXCL

_KINDS: Final[Mapping[int, Kind]] = {
    NEIGHBOUR4: Kind.NEIGHBOUR,
    NEIGHBOUR6: Kind.NEIGHBOUR,
    FDB4: Kind.FDB,
    FDB6: Kind.FDB,
    ROUTE4: Kind.ROUTE,
    ROUTE6: Kind.ROUTE,
}

_SPLITS: Final = {NEIGHBOUR4: 7, NEIGHBOUR6: 19, FDB4: 9, FDB6: 9}
"""Where the first value of a neighbour or forwarding entry ends in its part."""

_FDB: Final = (FDB4, FDB6)
_ZERO_MAC: Final = bytes(6)
_NO_METRIC: Final = bytes(4)
_METRIC6: Final = USUAL_METRIC6.to_bytes(4, sys.byteorder)
"""The metric of which a message says nothing."""

_ADDRESS: Final = {ROUTE4: 4, ROUTE6: 16}
"""The bytes of a route's addresses."""

_FIRST: Final = 16 + 12 + 4
"""Where the first attribute's value begins in a message: behind the headers of netlink, of its kind, and its own."""

_Template: TypeAlias = tuple[bytes, bytes, bytes]
"""What comes before the first value, before the second one, and after it."""


class Creations:
    """The messages for ``plans``, by kind, and for each the plan that it is of.

    :param index: the index of a link on which entries of a kind can be made; ``None`` if there is more to be said.
    """

    def __init__(self, plans: Iterable[bytes], index: Callable[[str, Kind], int | None]) -> None:
        self._index = index
        self._templates: dict[bytes, _Template | None] = {}
        self.messages: dict[Kind, list[bytes]] = {kind: [] for kind in PACKED_KINDS}
        self.origins: dict[Kind, list[bytes]] = {kind: [] for kind in PACKED_KINDS}
        self.others: dict[Kind, list[KernelObject]] = {kind: [] for kind in PACKED_KINDS}
        """What has no template: to be encoded by itself."""
        self.links: dict[Kind, set[int]] = {kind: set() for kind in PACKED_KINDS}
        """The indexes of the links that they are for."""
        for plan in plans:
            self._add(plan)

    def _add(self, plan: bytes) -> None:
        start, end = 0, len(plan)
        while start < end:
            form = plan[start]
            after = start + SIZES[form]
            message = self._message(plan, form, start, after)
            kind = _KINDS[form]
            if message is None:
                self.others[kind] += unpack(plan[start:after])
            else:
                self.messages[kind].append(message)
                self.origins[kind].append(plan)
            start = after

    def _message(self, plan: bytes, form: int, start: int, after: int) -> bytes | None:
        """The message for the part between two places of a plan. Thousands come by here."""
        templates = self._templates
        if form in _SPLITS:
            first, split = start + 3, start + _SPLITS[form]
            if form in _FDB and (plan[first] & 1 or plan[first:split] == _ZERO_MAC):
                return None  # flooded: it takes more than one message
            like = plan[start:first]
            template = templates[like] if like in templates else self._find(like, plan[start:after])
            if template is None:
                return None
            return b"".join((template[0], plan[first:split], template[1], plan[split:after], template[2]))
        first = start + 1
        split = first + _ADDRESS[form]
        metric = plan[split + 1 : split + 5]
        if (metric != _METRIC6) if form == ROUTE6 else (metric == _NO_METRIC):
            return None
        like = plan[start:first] + plan[split : split + 1] + plan[split + 5 : split + 7] + plan[after - 1 : after]
        template = templates[like] if like in templates else self._find(like, plan[start:after])
        if template is None:
            return None
        said = metric if form == ROUTE4 else b""
        return b"".join((template[0], plan[first:split], template[1], plan[split + 7 : after - 1], template[2], said))

    def _find(self, like: bytes, part: bytes) -> _Template | None:
        """The template for a part and all that are like it; ``None`` if they have to be encoded one by one."""
        form = part[0]
        index = self._index(link_name(link_number(part)), _KINDS[form])
        template = None
        if index is not None:
            self.links[_KINDS[form]].add(index)
            template = _cut(form, part, index)
        self._templates[like] = template
        return template

    def item(self, kind: Kind, number: int) -> KernelObject:
        """The object that a message makes."""
        message, plan = self.messages[kind][number], self.origins[kind][number]
        part = next(part for part in parts(plan) if self._message(part, part[0], 0, len(part)) == message)
        return unpack(part)[0]


def _cut(form: int, part: bytes, index: int) -> _Template:
    """Encode what a part holds, and cut it up."""
    (item,) = unpack(part)
    if isinstance(item, Neighbour):
        whole, sizes = wire.encode_neighbour(wire.RTM_NEWNEIGH, item, index, _CREATE), (_SPLITS[form] - 3, 6)
        gap = 4
    elif isinstance(item, FdbEntry):
        whole, sizes = wire.encode_fdb(wire.RTM_NEWNEIGH, item, index, _CREATE), (6, SIZES[form] - 9)
        gap = 6
    else:
        assert isinstance(item, Route)
        whole, sizes = wire.encode_route(wire.RTM_NEWROUTE, item, index, _CREATE_ROUTE), (_ADDRESS[form],) * 2
        gap = 4
    second = _FIRST + sizes[0] + gap
    end = len(whole) - (4 if form == ROUTE4 else 0)
    return whole[:_FIRST], whole[_FIRST + sizes[0] : second], whole[second + sizes[1] : end]
