"""The port's picture of its namespace: the links, and what of a row that the kernel names is ours.

It is as the last look had it and as was told since, and what has to be said of that to others waits here, too
(:class:`~pyflannel.kernel.port.Notice`). Nothing here asks the kernel for anything.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Final

from pyflannel.kernel import wire
from pyflannel.kernel.links import LinkRow, LinkTable
from pyflannel.kernel.model import (
    DISCARDING,
    OWNER,
    ROUTE_PROTOCOL,
    FdbEntry,
    ForeignInfo,
    Kind,
    Link,
    Neighbour,
    Qdisc,
    Route,
)
from pyflannel.kernel.port import SEVERAL, Notice, Scope, Write
from pyflannel.kernel.qdiscs import QdiscRow
from pyflannel.kernel.refusal import foreign_link, refusal
from pyflannel.kernel.wire import FdbRow, NeighbourRow, RouteRow

__all__ = ["KERNEL_MADE", "Picture", "fdb_entry", "neighbour"]

KERNEL_MADE: Final = frozenset({wire.RTPROT_REDIRECT, wire.RTPROT_KERNEL, wire.RTPROT_RA})
"""Who makes routes that nobody has asked for."""

_MAC_LENGTH = len("xx:xx:xx:xx:xx:xx")
_IP_LENGTHS = (len("xx:xx:xx:xx"), len(":".join(["xx"] * 16)))
"""Of the link-layer addresses that are IPv4 or IPv6 ones, as text."""

_NO_MAC = "00:00:00:00:00:00"
"""What a permanent neighbour is reported with that somebody gave no MAC address, or one of another length."""


class Picture:
    """Links and scope, and answers to whose a row is; changed by dumps and notifications alone."""

    def __init__(self) -> None:
        self.scope = Scope()
        self.table = LinkTable()
        self.ours: dict[int, Link] = {}
        """The links in scope, by index."""
        self.route_links: set[int] = set()
        """The indexes of links that routes of ours lead to."""
        self.foreign_tables: set[int] = set()
        """The routing tables that others' rules look up for packets that may be the overlay's, 0 where they end them;
        empty if there are no such rules.
        """
        self.pending = Notice()

    def take_links(self, table: LinkTable) -> None:
        """Take in all links that there are."""
        before, self.table = self.table, table
        if before.by_index:
            for index in before.by_index.keys() | table.by_index.keys():
                self.note_interface(before.by_index.get(index), table.by_index.get(index))
        self.ours = {index: table.link(row) for index, row in table.by_index.items() if self.in_scope(row)}

    def wireguard_links(self) -> dict[str, int]:
        """The WireGuard devices that are ours to set up, and their indexes."""
        return {
            link.name: index
            for index, link in self.ours.items()
            if link.name in self.scope.wireguard and link.info.kind == "wireguard" and self.owns(index)
        }

    def in_scope(self, row: LinkRow) -> bool:
        """Whether a link is ours, or has a name that we want."""
        return row.name in self.scope.links or row.alias == OWNER

    def note_interface(self, before: LinkRow | None, after: LinkRow | None) -> None:
        """Tell of a link that came, went or changed its shape."""
        if before is None or after is None or before.shape != after.shape:
            self.pending.interfaces.update(row.name for row in (before, after) if row is not None)

    def forget(self, index: int) -> None:
        """Tell of a link that is not ours any more, if it was."""
        gone = self.ours.pop(index, None)
        if gone is not None:
            self.pending.changes[gone.key] = None
        if gone is not None or index in self.route_links:
            self.route_links.discard(index)
            self.pending.resync = True

    def owns(self, index: int) -> bool:
        """Whether what is on a link is ours to see and change."""
        link = self.ours.get(index)
        return link is not None and not isinstance(link.info, ForeignInfo)

    def index(self, write: Write, name: str) -> int:
        """The index of a link to write to.

        :raises KernelError: there is none, or it is not ours though it has our name.
        """
        index = self.table.index(name)
        if index is None:
            raise refusal(write, errno.ENODEV, f"no interface {name}")
        link = self.ours.get(index)
        if link is not None and isinstance(link.info, ForeignInfo):
            raise foreign_link(write, link)
        return index

    def plainly_on(self, name: str, kind: Kind) -> int | None:
        """The index of a link on which entries of packed plans can be made as they are, if it is one."""
        index = self.table.index(name)
        link = self.ours.get(index) if index is not None else None
        if index is None or (link is not None and isinstance(link.info, ForeignInfo)):
            return None
        if kind is Kind.NEIGHBOUR and len(self.table.by_index[index].mac) != _MAC_LENGTH:
            return None
        return index

    def is_ours(self, row: RouteRow) -> bool:
        """Whether a route is ours, or flanneld left it on a device of ours."""
        if row.flags & wire.RTM_F_CLONED:
            return False
        if row.protocol == ROUTE_PROTOCOL:
            return True
        if row.protocol in KERNEL_MADE or row.table != wire.RT_TABLE_MAIN:
            return False
        # flanneld marks nothing: its routes are known by their link, and by a gateway that only it takes to be there.
        ways = row.nexthops or (wire.Nexthop(row.link, row.gateway, row.onlink),)
        return all(way.onlink and self.owns(way.link) for way in ways)

    def route(self, row: RouteRow) -> Route:
        """A row as a value. Of a multipath route the last way, which is not ours: we write none with several."""
        link, gateway, onlink = row.nexthops[-1] if row.nexthops else (row.link, row.gateway, row.onlink)
        name = (self.table.name(link) or f"if{link}") if link else None
        metric = row.metric if row.metric != (0 if row.destination.version == 4 else 1024) else None
        route = Route(row.destination, name, gateway, onlink, row.source, metric)
        return route if row.is_plain(link) else self._with_details(route, row)

    @staticmethod
    def _with_details(route: Route, row: RouteRow) -> Route:
        """What most routes don't have."""
        leads = (row.type in DISCARDING) is (route.link is None)
        return replace(
            route,
            type=row.type if leads else "",
            table=row.table,
            metrics=row.metrics,
            encapsulation=row.encapsulation if route.link is not None else None,
        )

    def seen_qdisc(self, row: QdiscRow) -> Qdisc | None:
        """A queueing discipline on a link of ours as a value; see :meth:`QdiscRow.seen`."""
        name = self.ours[row.link].name
        return row.seen(name, self.scope.qdiscs.get(name))


def neighbour(link: str, row: NeighbourRow) -> Neighbour:
    """A row as a value."""
    if len(row.mac) in _IP_LENGTHS:
        return Neighbour(link, row.address, wire.address_of(bytes.fromhex(row.mac.replace(":", ""))))
    return Neighbour(link, row.address, row.mac if len(row.mac) == _MAC_LENGTH else _NO_MAC)


def fdb_entry(link: str, row: FdbRow) -> FdbEntry:
    """A row as a value; it equals no wanted one where the row says more than that can."""
    return FdbEntry(link, row.mac, row.remote, row.port, row.vni) if row.plain else FdbEntry(link, row.mac, SEVERAL)
