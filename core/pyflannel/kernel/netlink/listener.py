"""What others change: each notification heard, and noted where it is about something of ours.

What we can't know from a notification is not guessed. A link of ours that goes takes its routes along without a word,
and so does an IPv4 address that was its last; then a new dump is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import AF_INET
from struct import Struct
from typing import Final

from pyflannel.kernel import mpls, qdiscs, rules, wire
from pyflannel.kernel.links import address_index, decode_address, parse_link
from pyflannel.kernel.model import ROUTE_PROTOCOL, Kind, route_key
from pyflannel.kernel.netlink.picture import Picture, fdb_entry, neighbour
from pyflannel.kernel.rtsocket import NotificationSocket
from pyflannel.kernel.xfrm import Xfrm
from pyflannel.network.lease import lies_in, meets

__all__ = ["GROUPS", "Listener"]

GROUPS: Final = (1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25, mpls.ROUTE_GROUP)
"""``RTNLGRP_``: LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF,
IPV6_NETCONF, MPLS_ROUTE."""

_ECHOED = frozenset(
    {
        *(wire.RTM_NEWROUTE, wire.RTM_DELROUTE, wire.RTM_NEWNEIGH, wire.RTM_DELNEIGH),
        *(rules.RTM_NEWRULE, rules.RTM_DELRULE, qdiscs.RTM_NEWQDISC, qdiscs.RTM_DELQDISC),
    }
)
"""Notifications that name their cause and tell us nothing new when that is our own request socket."""

_NETCONFA_IFINDEX = 1
_NETCONF_ALL = -1

_I32 = Struct("=i")


class Listener:
    """Takes what was told into the picture.

    :param own: the port id of the socket that our own changes are made by.
    """

    def __init__(self, picture: Picture, notified: NotificationSocket, own: int, policies: Xfrm) -> None:
        self._picture = picture
        self._notified = notified
        self._own = own
        self._xfrm = policies
        self._rewritten: set[int] = set()
        self.reread = False
        """Whether kernel parameters have to be read again."""
        self.echoes: set[bytes] = set()
        """What the kernel is about to tell of forwarding entries that are being written, under nobody's port."""
        self._hear: Final[dict[int, Callable[[int, int, bytes, int, int], None]]] = {
            wire.RTM_NEWLINK: self._hear_link,
            wire.RTM_DELLINK: self._hear_link,
            wire.RTM_NEWADDR: self._hear_address,
            wire.RTM_DELADDR: self._hear_address,
            wire.RTM_NEWROUTE: self._hear_route,
            wire.RTM_DELROUTE: self._hear_route,
            wire.RTM_NEWNEIGH: self._hear_neighbour,
            wire.RTM_DELNEIGH: self._hear_neighbour,
            wire.RTM_NEWNETCONF: self._hear_netconf,
            rules.RTM_NEWRULE: self._hear_rule,
            rules.RTM_DELRULE: self._hear_rule,
            qdiscs.RTM_NEWQDISC: self._hear_qdisc,
            qdiscs.RTM_DELQDISC: self._hear_qdisc,
        }
        notified.ignore(own, _ECHOED)

    def drain(self) -> None:
        """Hear all that was told; never blocks."""
        own = self._own
        for datagram in self._notified.read():
            if datagram is None:
                self._lose()
                continue
            for kind, flags, _, port, start, end in wire.messages(datagram):
                hear = self._hear.get(kind)
                if hear is not None and not (port == own and kind in _ECHOED):
                    hear(kind, flags, datagram, start, end)
        policies, lost, others = self._xfrm.hear()
        self._picture.pending.changes.update(policies)
        self._picture.pending.resync |= lost
        self._picture.pending.diversions |= others

    def overhear(self, index: int) -> None:
        """Hear all that was told, but for a link that we are writing to."""
        self._rewritten.add(index)
        self.drain()
        self._rewritten.discard(index)

    def _lose(self) -> None:
        self._picture.pending.resync = True
        self._picture.pending.interfaces.update(row.name for row in self._picture.table.by_index.values())
        self.reread = True

    def _hear_neighbour(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        family, index, state, entry_flags = wire.neighbour_header(datagram, start)
        if not self._picture.owns(index) or entry_flags & wire.NTF_PROXY:
            return
        name = self._picture.ours[index].name
        there = bool(kind == wire.RTM_NEWNEIGH and state & wire.NUD_PERMANENT)
        if family == wire.AF_BRIDGE:
            said = datagram[start : start + wire.PLAIN_FDB_BODY]
            if kind == wire.RTM_NEWNEIGH and said in self.echoes:  # as we have just written it
                self.echoes.discard(said)
                return
            entry = wire.parse_fdb(datagram, start, end)
            if entry is not None:
                item = fdb_entry(name, entry)
                self._picture.pending.changes[item.key] = item if there else None
        elif kind == wire.RTM_NEWNEIGH or state & wire.NUD_PERMANENT:
            # A deleted neighbour is first told as failed, under its deleter's port, and then as deleted, under none.
            # The second message may come late, after we have written the neighbour anew, and is left out.
            row = wire.parse_neighbour(datagram, start, end)
            if row is not None and not row.address.is_multicast:
                beside = neighbour(name, row)
                self._picture.pending.changes[beside.key] = beside if there else None

    def _hear_route(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        if datagram[start] == mpls.AF_MPLS:
            self._hear_label(kind, datagram, start, end)
            return
        row = wire.parse_route(datagram, start, end)
        if row.flags & wire.RTM_F_CLONED:
            return
        if self._picture.is_ours(row):
            item = self._picture.route(row)
            self._picture.pending.changes[item.key] = item if kind == wire.RTM_NEWROUTE else None
        elif row.table != wire.RT_TABLE_MAIN:
            if flags & wire.NLM_F_REPLACE:
                self._picture.pending.changes[route_key(row.destination, row.metric, row.table)] = None
            if row.table in self._picture.foreign_tables:
                self._picture.pending.diversions |= any(
                    meets(row.destination, each) for each in self._picture.scope.spaces
                )
        else:
            if flags & wire.NLM_F_REPLACE:  # of what it replaced, nothing is told
                self._picture.pending.changes[self._picture.route(row).key] = None
            self._picture.pending.diversions |= any(
                lies_in(row.destination, space) for space in self._picture.scope.spaces
            )
            links = [hop.link for hop in row.nexthops] or [row.link]
            self._picture.pending.interfaces.update(name for name in map(self._picture.table.name, links) if name)
            if row.names_its_way:  # by which interface is not told
                self._picture.pending.interfaces.add("")
        if row.nexthops and flags & wire.NLM_F_APPEND:  # it joined another route, perhaps one of ours
            self._picture.pending.resync = True

    def _hear_label(self, kind: int, datagram: bytes, start: int, end: int) -> None:
        row = mpls.parse_label(datagram, start, end)
        if row is not None:
            route = row.route(self._picture.table.name(row.link))
            there = kind == wire.RTM_NEWROUTE and row.protocol == ROUTE_PROTOCOL
            self._picture.pending.changes[route.key] = route if there else None

    def _hear_rule(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        rule = rules.parse_rule(datagram, start, end)
        if rule is not None:
            self._picture.pending.changes[rule.key] = rule if kind == rules.RTM_NEWRULE else None
            return
        foreign = rules.parse_foreign_rule(datagram, start, end)
        if foreign is not None and rules.may_divert(foreign, self._picture.scope.spaces):
            self._picture.foreign_tables.add(foreign.table)
        self._picture.pending.diversions |= bool(self._picture.foreign_tables)  # any rule may come before such a one

    def _hear_qdisc(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        row = qdiscs.parse_qdisc(datagram, start, end)
        if row is not None and self._picture.owns(row.link):
            key = (Kind.QDISC, self._picture.ours[row.link].name, None)
            self._picture.pending.changes[key] = self._picture.seen_qdisc(row) if kind == qdiscs.RTM_NEWQDISC else None

    def _hear_link(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        row = parse_link(datagram, start, end)
        if row is None or row.index in self._rewritten:
            return
        before = self._picture.table.by_index.get(row.index)
        if kind == wire.RTM_DELLINK:
            self._picture.note_interface(before, None)
            self._picture.table.remove(row.index)
            self._picture.forget(row.index)
            return
        self._picture.note_interface(before, row)
        self._picture.table.put(row)
        was = self._picture.ours.get(row.index)
        if was is not None and was.name != row.name:
            self._picture.forget(row.index)
            was = None
        if before is not None and before.up and not row.up and row.index in self._picture.route_links:
            self._picture.pending.resync = True
        if self._picture.in_scope(row):
            link = self._picture.ours[row.index] = self._picture.table.link(row)
            if was is None or (was.up and not link.up):
                self._picture.pending.resync = True
            if was != link:
                self._picture.pending.changes[link.key] = link
        elif was is not None:
            self._picture.forget(row.index)

    def _hear_address(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        index = address_index(datagram, start)
        name = self._picture.table.name(index)
        if name is None:
            return
        self._picture.pending.interfaces.add(name)
        if self._picture.owns(index):
            item = decode_address(name, datagram, start, end)
            if item is not None:
                self._picture.pending.changes[item.key] = item if kind == wire.RTM_NEWADDR else None
        # An IPv6 address is on a device once, with one length of its prefix: what we added beside it never was there.
        used = index in self._picture.ours or (datagram[start] == AF_INET and index in self._picture.route_links)
        if kind == wire.RTM_DELADDR and used:
            self._picture.pending.resync = True

    def _hear_netconf(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        raw = wire.attributes(datagram, start + 4, end).get(_NETCONFA_IFINDEX)
        if raw is not None:
            (index,) = _I32.unpack(raw)
            about = f"/conf/{self._picture.table.name(index)}/"
            self.reread |= index == _NETCONF_ALL or any(about in path for path in self._picture.scope.sysctls)
