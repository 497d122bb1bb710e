"""Next hops that are objects of their own, as FRR makes them: where a route leads that names one.

The kernel tells of such a route both the object's id and the way itself, but with ``net.ipv4.nexthop_compat_mode`` at 0
the id alone (``ip-sysctl.rst``).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from pyflannel.kernel import wire
from pyflannel.kernel.rtsocket import RequestSocket

__all__ = ["NexthopTable", "encode_nexthop_dump"]

RTM_GETNEXTHOP: Final = 106
_NHA_ID, _NHA_GROUP, _NHA_OIF, _NHA_GATEWAY = 1, 2, 5, 6

_MESSAGE: Final = Struct("=4BI")
"""``struct nhmsg``: family, scope, protocol, nothing, flags."""

_MEMBER: Final = Struct("=IBBH")
"""``struct nexthop_grp``: id, weight, nothing."""

_U32: Final = Struct("=I")


def encode_nexthop_dump() -> bytes:
    """``RTM_GETNEXTHOP``: all there are."""
    return wire.message(RTM_GETNEXTHOP, wire.NLM_F_DUMP, _MESSAGE.pack(0, 0, 0, 0, 0))


class NexthopTable:
    """The kernel's next hops by their ids, read when one is first asked for."""

    def __init__(self, requests: RequestSocket) -> None:
        self._requests = requests
        self._single: dict[int, wire.Nexthop] | None = None
        self._groups: dict[int, tuple[int, ...]] = {}

    def ways(self, row: wire.RouteRow) -> tuple[wire.Nexthop, ...]:
        """The ways that a route takes: the usual one, several, or what its object says.

        :raises KernelError: the objects can't be read.
        """
        if not row.names_its_way:
            return row.nexthops or (wire.Nexthop(row.link, row.gateway, row.onlink),)
        if self._single is None:
            self._single = self._read()
        members = self._groups.get(row.nexthop_id, (row.nexthop_id,))
        return tuple(self._single[member] for member in members if member in self._single)

    def _read(self) -> dict[int, wire.Nexthop]:
        found = {}
        for answer in self._requests.dump(encode_nexthop_dump()):
            *_, flags = _MESSAGE.unpack_from(answer.datagram, answer.start)
            said = wire.attributes(answer.datagram, answer.start + _MESSAGE.size, answer.end)
            (number,) = _U32.unpack(said[_NHA_ID])
            if _NHA_GROUP in said:
                group = said[_NHA_GROUP]
                whole = len(group) - len(group) % _MEMBER.size
                self._groups[number] = tuple(member for member, *_ in _MEMBER.iter_unpack(group[:whole]))
            elif _NHA_OIF in said:
                gateway = said.get(_NHA_GATEWAY)
                onlink = bool(flags & wire.RTNH_F_ONLINK)
                link = _U32.unpack(said[_NHA_OIF])[0]
                found[number] = wire.Nexthop(link, wire.address_of(gateway) if gateway else None, onlink)
        return found
