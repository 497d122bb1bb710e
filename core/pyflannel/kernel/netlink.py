"""The kernel port over netlink: what the tracker wants, as messages, and what the kernel says, as model values.

Three rules make it fast and safe:

* Writes of one kind go out as one batch; only refusals come back (:mod:`~pyflannel.kernel.rtsocket`).
* Nothing foreign is touched. A route is created with ``NLM_F_EXCL``, which any route of the same key refuses, and
  replaced only after a look at what holds its key. A rule goes by our protocol number, after a look at which others
  that would hit (:mod:`~pyflannel.kernel.rules`). A device of another kind under our name stays as it is.
* What we can't know from a notification is not guessed: a link of ours that goes takes its routes along without a
  word, and so does an IPv4 address that was its last. Then the notice asks for a new dump.

Order of work in :meth:`NetlinkPort.apply`: deletions of IPsec policies, routes, forwarding entries, neighbours and
links; then links, sysctls, addresses; then deletions of addresses; then neighbours, forwarding entries, WireGuard's
devices and peers and deletions of such peers; then routes, rules and deletions of rules, IPsec policies; then the
deletion of routes whose destination has got another one, so that no packet is without one in between; last queueing
disciplines. Addresses are deleted after others were added because the kernel drops all IPv4 routes of a link together
with its last address. WireGuard and IPsec have protocols of their own: :mod:`~pyflannel.kernel.wireguard`,
:mod:`~pyflannel.kernel.xfrm`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import Final, TypeVar

from pyflannel.errors import KernelError
from pyflannel.kernel import qdiscs, rules, wire
from pyflannel.kernel.expected import Expected
from pyflannel.kernel.links import (
    LinkRow,
    LinkTable,
    address_index,
    can_become,
    decode_address,
    encode_address,
    encode_address_dump,
    encode_link,
    encode_link_deletion,
    encode_link_query,
    encode_new_link,
    encode_vxlan_change,
    in_order,
    parse_link,
)
from pyflannel.kernel.model import (
    DISCARDING,
    OWNER,
    QDISC_HANDLE,
    ROUTE_PROTOCOL,
    Address,
    FdbEntry,
    ForeignInfo,
    GenericInfo,
    KernelObject,
    Key,
    Kind,
    Link,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    Sysctl,
    TunInfo,
    VxlanInfo,
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
    route_key,
)
from pyflannel.kernel.netns import call_in
from pyflannel.kernel.packed import plans_of
from pyflannel.kernel.port import (
    NOTHING,
    SEVERAL,
    ForeignLink,
    ForeignPolicy,
    ForeignRoute,
    KernelPort,
    Notice,
    Scope,
    Surroundings,
    Write,
    apart,
    following,
    rule_order,
)
from pyflannel.kernel.qdiscs import QdiscRow
from pyflannel.kernel.refusal import (
    NO_MASTER,
    check_link_layer,
    check_way,
    foreign_link,
    foreign_route,
    no_member,
    not_kept,
    refusal,
)
from pyflannel.kernel.rtsocket import (
    NETLINK_GENERIC,
    NETLINK_XFRM,
    Answer,
    NotificationSocket,
    Refused,
    RequestSocket,
)
from pyflannel.kernel.wire import FdbRow, NeighbourRow, RouteRow
from pyflannel.kernel.wireguard import Wireguard
from pyflannel.kernel.xfrm import POLICY_GROUP, Xfrm, ours
from pyflannel.network.lease import IPAddress, IPNetwork
from pyflannel.small import files as smallfile
from pyflannel.small.wake import Wake

__all__ = ["NetlinkPort"]

_GROUPS = (1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25)
"""``RTNLGRP_``: LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF,
IPV6_NETCONF."""

_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL})
_UNKNOWN = frozenset({errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EAFNOSUPPORT})
_ECHOED = frozenset(
    {
        *(wire.RTM_NEWROUTE, wire.RTM_DELROUTE, wire.RTM_NEWNEIGH, wire.RTM_DELNEIGH),
        *(rules.RTM_NEWRULE, rules.RTM_DELRULE, qdiscs.RTM_NEWQDISC, qdiscs.RTM_DELQDISC),
    }
)
"""Notifications that name their cause and tell us nothing new when that is our own request socket."""

_KERNEL_MADE = frozenset({wire.RTPROT_REDIRECT, wire.RTPROT_KERNEL, wire.RTPROT_RA})
_TOLD = frozenset({"forwarding", "ip_forward", "rp_filter"})
"""The sysctls of which the kernel tells (``NETCONFA_*`` in linux/netconf.h), among those that plans set."""

_SILENT_PERIOD = 1.0
"""Seconds between two looks at the other sysctls, at least."""

_MAC_LENGTH = len("xx:xx:xx:xx:xx:xx")
_IP_LENGTHS = (len("xx:xx:xx:xx"), len(":".join(["xx"] * 16)))
"""Of the link-layer addresses that are IPv4 or IPv6 ones, as text."""

_KINDS: Final[Mapping[type, Kind]] = {
    Link: Kind.LINK,
    Sysctl: Kind.SYSCTL,
    Address: Kind.ADDRESS,
    Neighbour: Kind.NEIGHBOUR,
    FdbEntry: Kind.FDB,
    WireguardDevice: Kind.WIREGUARD,
    WireguardPeer: Kind.WIREGUARD_PEER,
    Route: Kind.ROUTE,
    Rule: Kind.RULE,
    Qdisc: Kind.QDISC,
    XfrmPolicy: Kind.XFRM_POLICY,
}

_ETHERNET_MTU = 1500
_NO_MAC = "00:00:00:00:00:00"
"""What a permanent neighbour is reported with that somebody gave no MAC address, or one of another length."""

_NETCONFA_IFINDEX = 1
_NETCONF_ALL = -1
_FEW = 8
"""Up to how many routes are looked for by their bytes in a dump that is otherwise left unread."""

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TUN = 0x0001
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_IFREQ = Struct("=16sH22x")
_I32 = Struct("=i")

T = TypeVar("T")


class _Found:
    """What a dump brings together; values that are known already are not kept twice."""

    def __init__(self, known: Mapping[Key, KernelObject]) -> None:
        self.objects: dict[Key, KernelObject] = {}
        self._known = known

    def add(self, item: KernelObject) -> None:
        """Of several under one key, the first counts."""
        key = item.key
        known = self._known.get(key)
        self.objects.setdefault(key, known if known is not None and known == item else item)

    def add_fdb(self, item: FdbEntry) -> None:
        """Of several under one key, none does."""
        if item.key in self.objects:
            self.objects[item.key] = FdbEntry(item.link, item.mac, SEVERAL)
        else:
            self.add(item)

    def take(self, datagram: bytes, start: int, end: int) -> bool:
        """Whether this message, of the kind that is being read, need not be looked into."""
        return False

    def begin(self, kind: Kind) -> None:
        """What follows, up to :meth:`end`, is of this kind."""

    def end(self) -> None:
        """That was all of a kind."""

    @property
    def links(self) -> Set[int]:
        """The indexes of the links of what was taken, and maybe others."""
        return frozenset()


class _Different(_Found):
    """What of a dump is not as wanted. What is, is not taken apart."""

    def __init__(self, wanted: Mapping[Key, KernelObject], index: Callable[[str], int | None]) -> None:
        super().__init__(wanted)
        self._index = index
        self._expected: Expected | None = None
        self._missing: list[Key] = []

    def begin(self, kind: Kind) -> None:
        self._expected = Expected(kind, self._known, self._index)

    def take(self, datagram: bytes, start: int, end: int) -> bool:
        return self._expected is not None and self._expected.take(datagram, start, end)

    def add(self, item: KernelObject) -> None:
        if not (isinstance(item, Route) and self._expected is not None and self._expected.told(item.key)):
            super().add(item)

    def end(self) -> None:
        assert self._expected is not None
        for key, item in self.objects.items():
            if isinstance(item, FdbEntry) and self._expected.told(key):
                self.objects[key] = FdbEntry(item.link, item.mac, SEVERAL)
        self._missing += self._expected.untold()
        self._expected = None

    @property
    def links(self) -> Set[int]:
        return self._expected.links if self._expected is not None else frozenset()

    def differences(self) -> dict[Key, KernelObject | None]:
        """Under each key what is there, ``None`` for nothing."""
        found, wanted = self.objects, self._known
        others = (item.key for plan in plans_of(wanted) if not isinstance(plan, bytes) for item in plan)
        differing: dict[Key, KernelObject | None] = {key: None for key in (*others, *self._missing) if key not in found}
        differing.update((key, item) for key, item in found.items() if wanted.get(key) != item)
        return differing


class NetlinkPort(KernelPort):
    """The kernel of the network namespace that the calling thread is in, or of the one at ``netns``.

    :raises KernelError: no netlink, no such namespace, or no right to enter it.
    """

    def __init__(self, netns: Path | None = None) -> None:
        self._netns = netns
        self._scope = Scope()
        self._table = LinkTable()
        self._ours: dict[int, Link] = {}
        self._route_links: set[int] = set()
        self._sysctls: dict[str, str] = {}
        self._reread = False
        self._silent_due = 0.0
        self._rewritten: set[int] = set()
        self._echoes: set[bytes] = set()
        """What the kernel is about to tell of forwarding entries that are being written, under nobody's port."""
        self._pending = Notice()
        self._closed = False
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
        self._request, self._notified = self._inside(lambda: (RequestSocket(), NotificationSocket(_GROUPS)))
        self._notified.ignore(self._request.port_id, _ECHOED)
        self._wireguard = Wireguard(lambda: self._inside(lambda: RequestSocket(NETLINK_GENERIC)))
        self._xfrm = Xfrm(lambda: self._inside(_open_xfrm))
        self._wakeup = Wake()
        self._epoll = select.epoll()
        self._epoll.register(self._notified.fileno(), select.EPOLLIN)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._read_links()

    def _inside(self, function: Callable[[], T]) -> T:
        return function() if self._netns is None else call_in(self._netns, function)

    def close(self) -> None:
        """Close the sockets; the kernel keeps what it has."""
        if not self._closed:
            self._closed = True
            self._epoll.close()
            self._request.close()
            self._notified.close()
            self._wireguard.close()
            self._xfrm.close()

    # what is there

    def dump(self, scope: Scope, known: Mapping[Key, KernelObject] = NOTHING) -> dict[Key, KernelObject]:
        found = _Found(known)
        self._read(scope, found, known)
        return found.objects

    def differing(self, scope: Scope, wanted: Mapping[Key, KernelObject]) -> dict[Key, KernelObject | None]:
        found = _Different(wanted, lambda name: self._table.index(name))
        self._read(scope, found, wanted)
        return found.differences()

    def _read(self, scope: Scope, found: _Found, known: Mapping[Key, KernelObject]) -> None:
        """Bring together all that is there."""
        self._drain()
        self._pending.changes.clear()
        self._pending.resync = False
        self._scope = scope
        self._route_links.clear()
        self._read_links()
        for link in self._ours.values():
            found.add(link)
        self._read_sysctls(found)
        own = {index: link for index, link in self._ours.items() if not isinstance(link.info, ForeignInfo)}
        for index, link in own.items():
            self._read_addresses(index, link.name, found)
        found.begin(Kind.NEIGHBOUR)
        for index, link in own.items():
            self._read_neighbours(index, link.name, found)
        found.end()
        found.begin(Kind.FDB)
        for index, link in own.items():
            if isinstance(link.info, VxlanInfo):
                self._read_fdb(index, link.name, found)
        found.end()
        for item in self._wireguard.read(self._wireguard_links(), known):
            found.add(item)
        self._read_policies(found, known)
        found.begin(Kind.ROUTE)
        for family in (AF_INET, AF_INET6):
            self._read_routes(family, found)
        self._route_links |= found.links
        found.end()
        for rule in self._rules():
            found.add(rule)
        for qdisc in self._qdiscs().values():
            found.add(qdisc)
        self._announce()

    def _read_links(self) -> None:
        table = LinkTable(self._scope.generic)
        for answer in self._request.dump(encode_link_query(None)):
            row = parse_link(answer.datagram, answer.start, answer.end)
            if row is not None:
                table.put(row)
        before, self._table = self._table, table
        if before.by_index:
            for index in before.by_index.keys() | table.by_index.keys():
                self._note_interface(before.by_index.get(index), table.by_index.get(index))
        self._ours = {index: table.link(row) for index, row in table.by_index.items() if self._in_scope(row)}

    def _read_policies(self, found: _Found, known: Mapping[Key, KernelObject]) -> None:
        if self._scope.xfrm or any(link.info.kind == "xfrm" for link in self._ours.values()):
            self._follow_policies()
        for policy in ours(self._xfrm.read(), known):
            found.add(policy)

    def _follow_policies(self) -> None:
        if self._xfrm.is_open:
            return
        try:
            self._epoll.register(self._xfrm.open(), select.EPOLLIN)
        except KernelError:
            return  # a kernel without any has none of ours, and refuses those that are written

    def _wireguard_links(self) -> dict[str, int]:
        return {
            link.name: index
            for index, link in self._ours.items()
            if link.name in self._scope.wireguard and link.info.kind == "wireguard" and self._owns(index)
        }

    def _in_scope(self, row: LinkRow) -> bool:
        return row.name in self._scope.links or row.alias == OWNER

    def _note_interface(self, before: LinkRow | None, after: LinkRow | None) -> None:
        if before is None or after is None or before.shape != after.shape:
            self._pending.interfaces.update(row.name for row in (before, after) if row is not None)

    def _read_sysctls(self, found: _Found) -> None:
        self._sysctls = self._inside(lambda: _read_sysctls(self._scope.sysctls, self._scope.optional))
        for path, value in self._sysctls.items():
            item = Sysctl(path, value)
            found.add(item)

    def _read_addresses(self, index: int, name: str, found: _Found) -> None:
        for _, datagram, start, end in self._request.dump(encode_address_dump(index, self._request.strict), _UNKNOWN):
            if address_index(datagram, start) == index:
                item = decode_address(name, datagram, start, end)
                if item is not None:
                    found.add(item)

    def _read_neighbours(self, index: int, name: str, found: _Found) -> None:
        parse, permanent, proxy = wire.parse_neighbour, wire.NUD_PERMANENT, wire.NTF_PROXY
        link = _I32.pack(index)
        for family in (AF_INET, AF_INET6):
            for _, datagram, start, end in self._request.dump(wire.encode_neighbour_dump(family, index), _UNKNOWN):
                if wire.neighbour_link(datagram, start) != link or found.take(datagram, start, end):
                    continue
                row = parse(datagram, start, end)
                if row is not None and row.state & permanent and not row.flags & proxy:
                    found.add(_neighbour(name, row))

    def _read_fdb(self, index: int, name: str, found: _Found) -> None:
        request, link = wire.encode_fdb_dump(index if self._request.strict else 0), _I32.pack(index)
        for _, datagram, start, end in self._request.dump(request, _UNKNOWN):
            if wire.neighbour_link(datagram, start) != link or found.take(datagram, start, end):
                continue
            row = wire.parse_fdb(datagram, start, end)
            if row is not None and row.state & wire.NUD_PERMANENT:
                found.add_fdb(_fdb_entry(name, row))

    def _read_routes(self, family: int, found: _Found) -> None:
        links = [index for index, link in self._ours.items() if not isinstance(link.info, ForeignInfo)]
        requests = [wire.encode_route_dump(family, protocol=ROUTE_PROTOCOL, table=0)]
        requests += [wire.encode_route_dump(family, link=index) for index in links]
        if not self._request.strict:
            requests = [wire.encode_route_dump(family)]
        for number, request in enumerate(requests):
            for _, datagram, start, end in self._request.dump(request, _UNKNOWN):
                if (number and datagram[start + 5] == ROUTE_PROTOCOL) or found.take(datagram, start, end):
                    continue
                row = wire.parse_route(datagram, start, end)
                if self._is_ours(row):
                    self._route_links.add(row.link)
                    found.add(self._route(row))

    def _rules(self) -> list[Rule]:
        """All rules of ours, in the kernel's order."""
        requests = (rules.encode_rule_dump(family) for family in (AF_INET, AF_INET6))
        answers = (answer for request in requests for answer in self._request.dump(request, _UNKNOWN))
        parsed = (rules.parse_rule(datagram, start, end) for _, datagram, start, end in answers)
        return [rule for rule in parsed if rule is not None]

    def _qdisc_rows(self) -> Iterator[QdiscRow]:
        """The root queueing discipline of each device."""
        for _, datagram, start, end in self._request.dump(qdiscs.encode_qdisc_dump(), _UNKNOWN):
            row = qdiscs.parse_qdisc(datagram, start, end)
            if row is not None:
                yield row

    def _qdiscs(self) -> dict[int, Qdisc]:
        """Those on links of ours, by the links' indexes."""
        seen = {row.link: self._seen_qdisc(row) for row in self._qdisc_rows() if self._owns(row.link)}
        return {index: qdisc for index, qdisc in seen.items() if qdisc is not None}

    def _seen_qdisc(self, row: QdiscRow) -> Qdisc | None:
        name = self._ours[row.link].name
        return row.seen(name, self._scope.qdiscs.get(name))

    def _is_ours(self, row: RouteRow) -> bool:
        if row.flags & wire.RTM_F_CLONED:
            return False
        if row.protocol == ROUTE_PROTOCOL:
            return True
        if row.protocol in _KERNEL_MADE or row.table != wire.RT_TABLE_MAIN:
            return False
        # flanneld marks nothing: its routes are known by their link, and by a gateway that only it takes to be there.
        ways = row.nexthops or (wire.Nexthop(row.link, row.gateway, row.onlink),)
        return all(way.onlink and self._owns(way.link) for way in ways)

    def _owns(self, index: int) -> bool:
        link = self._ours.get(index)
        return link is not None and not isinstance(link.info, ForeignInfo)

    def _route(self, row: RouteRow) -> Route:
        """A row as a value. Of a multipath route the last way, which is not ours: we write none with several."""
        link, gateway, onlink = row.nexthops[-1] if row.nexthops else (row.link, row.gateway, row.onlink)
        name = (self._table.name(link) or f"if{link}") if link else None
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

    # what others have in our spaces

    def look_around(self) -> Surroundings:
        spaces = self._scope.spaces
        routes = []
        for version, family in ((4, AF_INET), (6, AF_INET6)):
            if not any(space.version == version for space in spaces):
                continue
            for _, datagram, start, end in self._request.dump(wire.encode_route_dump(family), _UNKNOWN):
                if datagram[start + 5] == ROUTE_PROTOCOL:
                    continue
                row = wire.parse_route(datagram, start, end)
                if self._is_stray(row):
                    routes.append(ForeignRoute(self._route(row), row.protocol))
        policies = (
            ForeignPolicy(row.source, row.destination)
            for row in self._xfrm.read()
            if row.diverts and row.direction == "out" and any(_meets(row.destination, space) for space in spaces)
        )
        return Surroundings(tuple(routes), tuple(self._strangers(spaces)), tuple(policies))

    def _is_stray(self, row: RouteRow) -> bool:
        """Whether a foreign route leads into the scope's spaces, and to no more than them."""
        if row.table != wire.RT_TABLE_MAIN or row.flags & wire.RTM_F_CLONED or self._is_ours(row):
            return False
        return any(_lies_in(row.destination, space) for space in self._scope.spaces)

    def _strangers(self, spaces: Sequence[IPNetwork]) -> Iterator[ForeignLink]:
        """The devices that are not ours and have addresses in some ranges."""
        addresses: dict[int, list[IPv4Interface | IPv6Interface]] = defaultdict(list)
        for _, datagram, start, end in self._request.dump(encode_address_dump(0, self._request.strict), _UNKNOWN):
            index = address_index(datagram, start)
            row = self._table.by_index.get(index)
            if row is not None and not self._in_scope(row):
                item = decode_address(row.name, datagram, start, end)
                if item is not None:
                    addresses[index].append(item.interface)
        for index, found in addresses.items():
            if any(address.ip in space for address in found for space in spaces):
                yield ForeignLink(self._table.link(self._table.by_index[index]), tuple(found))

    def clear(self, found: Iterable[ForeignRoute | ForeignLink]) -> tuple[KernelError, ...]:
        errors: dict[Key, KernelError] = {}
        steps = []
        for item in found:
            if isinstance(item, ForeignLink):
                self._each(Write(item.link, None), self._delete_link, errors)
                continue
            write = Write(item.route, None)
            index = self._table.index(item.route.link) if item.route.link is not None else 0
            if index is not None:
                message = wire.encode_route(wire.RTM_DELROUTE, item.route, index, protocol=item.protocol)
                steps.append(_Step(write, (message,), _GONE))
        self._send(steps, errors)
        return tuple(errors.values())

    # what others change

    def fileno(self) -> int:
        """See :meth:`KernelPort.fileno`: an epoll descriptor over the socket and what was read from it meanwhile."""
        return self._epoll.fileno()

    def poll(self) -> Notice:
        self._drain()
        if self._reread or self._silent_changed():
            self._reread = False
            self._compare_sysctls()
        self._reread_wireguard()
        self._wakeup.drain()
        notice, self._pending = self._pending, Notice()
        return notice

    def _reread_wireguard(self) -> None:
        try:
            self._pending.changes.update(self._wireguard.reread(self._wireguard_links()))
        except KernelError:
            self._pending.resync = True  # the dump that this asks for says what is wrong, to those who can wait

    def _announce(self) -> None:
        pending = self._pending
        if pending.changes or pending.interfaces or pending.resync or pending.diversions or self._reread:
            self._wakeup.set()

    def _between(self) -> None:
        self._drain()
        self.progress()

    def _drain(self) -> None:
        own = self._request.port_id
        for datagram in self._notified.read():
            if datagram is None:
                self._lose()
                continue
            for kind, flags, _, port, start, end in wire.messages(datagram):
                hear = self._hear.get(kind)
                if hear is not None and not (port == own and kind in _ECHOED):
                    hear(kind, flags, datagram, start, end)
        policies, lost, others = self._xfrm.hear()
        self._pending.changes.update(policies)
        self._pending.resync |= lost
        self._pending.diversions |= others

    def _lose(self) -> None:
        self._pending.resync = True
        self._pending.interfaces.update(row.name for row in self._table.by_index.values())
        self._reread = True

    def _hear_neighbour(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        family, index, state, entry_flags = wire.neighbour_header(datagram, start)
        if not self._owns(index) or entry_flags & wire.NTF_PROXY:
            return
        name = self._ours[index].name
        there = bool(kind == wire.RTM_NEWNEIGH and state & wire.NUD_PERMANENT)
        if family == wire.AF_BRIDGE:
            said = datagram[start : start + wire.PLAIN_FDB_BODY]
            if kind == wire.RTM_NEWNEIGH and said in self._echoes:  # as we have just written it
                self._echoes.discard(said)
                return
            entry = wire.parse_fdb(datagram, start, end)
            if entry is not None:
                item = _fdb_entry(name, entry)
                self._pending.changes[item.key] = item if there else None
        elif kind == wire.RTM_NEWNEIGH or state & wire.NUD_PERMANENT:
            # A deleted neighbour is first told as failed, under its deleter's port, and then as deleted, under none.
            # The second message may come late, after we have written the neighbour anew, and is left out.
            row = wire.parse_neighbour(datagram, start, end)
            if row is not None and not row.address.is_multicast:
                neighbour = _neighbour(name, row)
                self._pending.changes[neighbour.key] = neighbour if there else None

    def _hear_route(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        row = wire.parse_route(datagram, start, end)
        if row.flags & wire.RTM_F_CLONED:
            return
        if self._is_ours(row):
            item = self._route(row)
            self._pending.changes[item.key] = item if kind == wire.RTM_NEWROUTE else None
        elif row.table != wire.RT_TABLE_MAIN:
            if flags & wire.NLM_F_REPLACE:
                self._pending.changes[route_key(row.destination, row.metric, row.table)] = None
        else:
            if flags & wire.NLM_F_REPLACE:  # of what it replaced, nothing is told
                self._pending.changes[self._route(row).key] = None
            self._pending.diversions |= any(_lies_in(row.destination, space) for space in self._scope.spaces)
            links = [hop.link for hop in row.nexthops] or [row.link]
            self._pending.interfaces.update(name for name in map(self._table.name, links) if name)
        if row.nexthops and flags & wire.NLM_F_APPEND:  # it joined another route, perhaps one of ours
            self._pending.resync = True

    def _hear_rule(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        rule = rules.parse_rule(datagram, start, end)
        if rule is not None:
            self._pending.changes[rule.key] = rule if kind == rules.RTM_NEWRULE else None

    def _hear_qdisc(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        row = qdiscs.parse_qdisc(datagram, start, end)
        if row is not None and self._owns(row.link):
            key = (Kind.QDISC, self._ours[row.link].name, None)
            self._pending.changes[key] = self._seen_qdisc(row) if kind == qdiscs.RTM_NEWQDISC else None

    def _hear_link(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        row = parse_link(datagram, start, end)
        if row is None or row.index in self._rewritten:
            return
        before = self._table.by_index.get(row.index)
        if kind == wire.RTM_DELLINK:
            self._note_interface(before, None)
            self._table.remove(row.index)
            self._forget(row.index)
            return
        self._note_interface(before, row)
        self._table.put(row)
        was = self._ours.get(row.index)
        if was is not None and was.name != row.name:
            self._forget(row.index)
            was = None
        if before is not None and before.up and not row.up and row.index in self._route_links:
            self._pending.resync = True
        if self._in_scope(row):
            link = self._ours[row.index] = self._table.link(row)
            if was is None or (was.up and not link.up):
                self._pending.resync = True
            if was != link:
                self._pending.changes[link.key] = link
        elif was is not None:
            self._forget(row.index)

    def _forget(self, index: int) -> None:
        gone = self._ours.pop(index, None)
        if gone is not None:
            self._pending.changes[gone.key] = None
        if gone is not None or index in self._route_links:
            self._route_links.discard(index)
            self._pending.resync = True

    def _hear_address(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        index = address_index(datagram, start)
        name = self._table.name(index)
        if name is None:
            return
        self._pending.interfaces.add(name)
        if self._owns(index):
            item = decode_address(name, datagram, start, end)
            if item is not None:
                self._pending.changes[item.key] = item if kind == wire.RTM_NEWADDR else None
        if kind == wire.RTM_DELADDR and datagram[start] == AF_INET and index in self._ours.keys() | self._route_links:
            self._pending.resync = True

    def _hear_netconf(self, kind: int, flags: int, datagram: bytes, start: int, end: int) -> None:
        raw = wire.attributes(datagram, start + 4, end).get(_NETCONFA_IFINDEX)
        if raw is not None:
            (index,) = _I32.unpack(raw)
            self._reread |= index == _NETCONF_ALL or index in self._ours

    def _silent_changed(self) -> bool:
        """Whether a sysctl differs of which the kernel does not tell."""
        silent = [path for path in self._scope.sysctls if path.rpartition("/")[2] not in _TOLD]
        if not silent or time.monotonic() < self._silent_due:
            return False
        self._silent_due = time.monotonic() + _SILENT_PERIOD
        now = self._inside(lambda: _read_sysctls(silent, self._scope.optional))
        return any(now.get(path) != self._sysctls.get(path) for path in silent)

    def _compare_sysctls(self) -> None:
        now = self._inside(lambda: _read_sysctls(self._scope.sysctls, self._scope.optional))
        for path in self._scope.sysctls:
            if now.get(path) != self._sysctls.get(path):
                self._pending.changes[(Kind.SYSCTL, path, None)] = Sysctl(path, now[path]) if path in now else None
        self._sysctls = now

    # what we change

    def apply(self, writes: Sequence[Write]) -> Mapping[Key, KernelError]:
        self._drain()
        failures: dict[Key, KernelError] = {}
        deleted: dict[Kind, list[Write]] = defaultdict(list)
        put: dict[Kind, list[Write]] = defaultdict(list)
        for write in writes:
            item = write.new
            if item is not None:
                put[_KINDS[type(item)]].append(write)
            else:
                deleted[write.key[0]].append(write)
        deleted[Kind.ROUTE], succeeded = apart(deleted[Kind.ROUTE], put[Kind.ROUTE])
        self._put_policies(deleted[Kind.XFRM_POLICY], failures)
        for kind in (Kind.ROUTE, Kind.FDB, Kind.NEIGHBOUR):
            self._send(map(self._deletion, deleted[kind]), failures)
        for write in deleted[Kind.LINK]:
            self._each(write, self._delete_link, failures)
        for write in in_order(put[Kind.LINK], _wanted_link):
            self._each(write, self._put_link, failures)
        # On a node that begins to forward the kernel forgets a router's advertisements, unless accept_ra said before.
        for write in sorted(
            put[Kind.SYSCTL], key=lambda write: not str(write.new).partition("=")[0].endswith("/accept_ra")
        ):
            self._each(write, self._put_sysctl, failures)
        self._send((self._creation(write, failures) for write in put[Kind.ADDRESS]), failures)
        self._send(map(self._deletion, deleted[Kind.ADDRESS]), failures)
        self._send((self._creation(write, failures) for write in put[Kind.NEIGHBOUR]), failures)
        self._send((self._creation(write, failures) for write in put[Kind.FDB]), failures)
        wireguard = [*put[Kind.WIREGUARD], *put[Kind.WIREGUARD_PEER], *deleted[Kind.WIREGUARD_PEER]]
        self._wireguard.put(wireguard, self._index, failures)
        self._put_routes(put[Kind.ROUTE], failures)
        self._put_rules([*put[Kind.RULE], *deleted[Kind.RULE]], failures)
        self._put_policies(put[Kind.XFRM_POLICY], failures)
        self._echoes.clear()
        succeeded = following(succeeded, put[Kind.ROUTE], failures)
        if succeeded:
            self._send(map(self._deletion, succeeded), failures)
            self._pending.resync = True  # metric 0 matches any: had somebody deleted the old one, it was the new one
        for write in (*put[Kind.QDISC], *deleted[Kind.QDISC]):
            self._each(write, self._put_qdisc, failures)
        self._announce()
        return failures

    def _put_policies(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        if writes:
            self._follow_policies()
            self._xfrm.put(writes, failures, self._between)

    def _send(
        self,
        steps: Iterable[_Step | None],
        failures: dict[Key, KernelError],
        unsettled: Callable[[Write, Refused], bool] = lambda write, refused: False,
    ) -> None:
        """Send steps as one batch; note in ``failures`` what the kernel refused, unless ``unsettled`` takes it."""
        batch: list[bytes] = []
        origin: list[_Step] = []
        for step in steps:
            if step is not None:
                batch.extend(step.messages)
                origin.extend([step] * len(step.messages))
        if not batch:
            return
        for number, refused in self._request.send(batch, self._notified.most, self._between).items():
            step = origin[number]
            if refused.number not in step.forgiven and not unsettled(step.write, refused):
                failures.setdefault(step.write.key, refusal(step.write, *refused))

    @staticmethod
    def _each(write: Write, do: Callable[[Write], None], failures: dict[Key, KernelError]) -> None:
        try:
            do(write)
        except KernelError as error:
            failures[write.key] = error

    def _index(self, write: Write, name: str) -> int:
        """The index of a link to write to.

        :raises KernelError: there is none, or it is not ours though it has our name.
        """
        index = self._table.index(name)
        if index is None:
            raise refusal(write, errno.ENODEV, f"no interface {name}")
        link = self._ours.get(index)
        if link is not None and isinstance(link.info, ForeignInfo):
            raise foreign_link(write, link)
        return index

    def _deletion(self, write: Write) -> _Step | None:
        item = write.old
        name = getattr(item, "link", None)
        index = self._table.index(name) if name is not None else 0
        if index is None:
            return None  # gone with its link
        if isinstance(item, Route):
            protocol = wire.RTPROT_UNSPEC if self._owns(index) else ROUTE_PROTOCOL
            message = wire.encode_route(wire.RTM_DELROUTE, item, index, protocol=protocol)
        elif isinstance(item, FdbEntry):
            message = wire.encode_fdb(wire.RTM_DELNEIGH, item, index, every_remote=True)
        elif isinstance(item, Neighbour):
            message = wire.encode_neighbour(wire.RTM_DELNEIGH, item, index)
        else:
            assert isinstance(item, Address)
            message = encode_address(wire.RTM_DELADDR, item, index)
        return _Step(write, (message,), _GONE)

    def _creation(self, write: Write, failures: dict[Key, KernelError]) -> _Step | None:
        item, old = write.new, write.old
        flags = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
        try:
            if isinstance(item, Address):
                return _Step(write, (encode_address(wire.RTM_NEWADDR, item, self._index(write, item.link), flags),))
            if isinstance(item, Neighbour):
                index = self._index(write, item.link)
                check_link_layer(write, item, self._table.by_index[index].mac)
                return _Step(write, (wire.encode_neighbour(wire.RTM_NEWNEIGH, item, index, flags),))
            assert isinstance(item, FdbEntry)
            assert old is None or isinstance(old, FdbEntry)
            index = self._index(write, item.link)
            check_way(write, item, self._ours.get(index))
            return self._fdb_step(write, item, old, index, flags)
        except KernelError as error:
            failures[write.key] = error
            return None

    def _fdb_step(self, write: Write, item: FdbEntry, old: FdbEntry | None, index: int, flags: int) -> _Step:
        """Replace moves a lone remote in one step, and does nothing if the new one is there already; what may be left
        of the old one is deleted then."""
        if wire.is_flooded(item.mac) or (old is not None and old.remote == SEVERAL):
            clear = wire.encode_fdb(wire.RTM_DELNEIGH, item, index, every_remote=True)
            return _Step(write, (clear, wire.encode_fdb(wire.RTM_NEWNEIGH, item, index, wire.NLM_F_CREATE)), _GONE)
        new = wire.encode_fdb(wire.RTM_NEWNEIGH, item, index, flags)
        if old is None:
            self._echoes.add(wire.told_of(new))
        if old is None or old.way == item.way:
            return _Step(write, (new,))
        return _Step(write, (new, wire.encode_fdb(wire.RTM_DELNEIGH, old, index)), _GONE)

    # routes

    def _put_routes(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        fresh = [write for write in writes if write.old is None]
        taken: list[Write] = [write for write in writes if write.old is not None]

        def unsettled(write: Write, refused: Refused) -> bool:
            # IPv6 looks at the gateway first, and says EINVAL where a foreign route of our key leads to it elsewhere.
            if refused.number not in (errno.EEXIST, errno.EINVAL):
                return False
            taken.append(write)
            return True

        self._send((self._new_route(write, failures) for write in fresh), failures, unsettled)
        if taken:
            routes = [write.new for write in writes if isinstance(write.new, Route)]
            existing = self._existing_routes([write.new for write in taken if isinstance(write.new, Route)])
            hosts = {(route.destination.network_address, route.link) for route in routes if _is_host(route)}
            self._send((self._replacement(write, existing, hosts, failures) for write in taken), failures)

    def _new_route(self, write: Write, failures: dict[Key, KernelError], flags: int = wire.NLM_F_EXCL) -> _Step | None:
        route = write.new
        assert isinstance(route, Route)
        try:
            index = self._index(write, route.link) if route.link is not None else 0
        except KernelError as error:
            failures[write.key] = error
            return None
        self._route_links.add(index)
        return _Step(write, (wire.encode_route(wire.RTM_NEWROUTE, route, index, flags | wire.NLM_F_CREATE),))

    def _replacement(
        self,
        write: Write,
        existing: Mapping[Key, list[RouteRow]],
        hosts: Set[tuple[IPAddress, str | None]],
        failures: dict[Key, KernelError],
    ) -> _Step | None:
        """Create or replace a route, knowing what holds its key; replacing hits the first of several.

        :param hosts: addresses that have a route of their own, and its link.
        """
        rows = existing.get(write.key, [])
        if not rows:
            return self._new_route(write, failures)
        assert isinstance(write.new, Route)
        foreign = [row for row in rows if not self._may_take(row, write.new)]
        if foreign:
            failures[write.key] = foreign_route(write, self._route(foreign[0]), foreign[0].protocol)
            return None
        # IPv6 looks up the way to the gateway. Where the gateway lies in the destination (vxlan's does), the old route
        # answers, and with a link that is another now: it has to go first, unless the gateway has a route of its own.
        wanted = write.new
        in_the_way = wanted.destination.version == 6 and wanted.gateway is not None
        in_the_way = in_the_way and wanted.gateway in wanted.destination and self._route(rows[0]).link != wanted.link
        in_the_way = in_the_way and (wanted.gateway, wanted.link) not in hosts
        step = self._new_route(write, failures, wire.NLM_F_EXCL if in_the_way else wire.NLM_F_REPLACE)
        if step is None:
            return None
        surplus = [
            wire.encode_route(wire.RTM_DELROUTE, self._route(row), row.link, protocol=row.protocol)
            for row in (rows if in_the_way else rows[1:])
        ]
        return _Step(write, (*surplus, *step.messages))

    def _may_take(self, row: RouteRow, wanted: Route) -> bool:
        """Whether we may replace a route: it is ours, or does just what the wanted one will (flanneld left it)."""
        if self._is_ours(row):
            return True
        if row.protocol in _KERNEL_MADE or row.nexthops:
            return False
        if row.type != wanted.effective_type or row.encapsulation != wanted.encapsulation:
            return False
        if wanted.link is None:
            return True
        return (row.link, row.gateway) == (self._table.index(wanted.link), wanted.gateway)

    def _existing_routes(self, routes: Iterable[Route]) -> Mapping[Key, list[RouteRow]]:
        """The routes that have the keys of ``routes``, in the kernel's order."""
        wanted: dict[tuple[int, int], dict[Key, bytes]] = defaultdict(dict)
        for route in routes:
            destination = route.destination
            of = (AF_INET if destination.version == 4 else AF_INET6, route.table)
            wanted[of][route.key] = destination.network_address.packed
        found: dict[Key, list[RouteRow]] = defaultdict(list)
        for (family, table), these in wanted.items():
            packed = list(these.values())
            answers: Iterable[Answer] = self._request.dump(wire.encode_route_dump(family, table=table), _UNKNOWN)
            if len(packed) <= _FEW and all(map(any, packed)):  # a default route may leave its zeros out
                answers = _mentioning(packed, answers)
            for _, datagram, start, end in answers:
                row = wire.parse_route(datagram, start, end)
                key = route_key(row.destination, row.metric, row.table)
                if key in these and not row.flags & wire.RTM_F_CLONED:
                    found[key].append(row)
        return found

    # rules and queueing disciplines

    def _put_rules(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        """Create, turn round or delete rules; the new one is there before the old one goes."""
        if not writes:
            return
        ordered = sorted(writes, key=rule_order)
        asked = rules.requests(map(_both_rules, ordered), self._rules())
        self._send((_Step(write, messages, _GONE) for write, messages in zip(ordered, asked, strict=True)), failures)

    def _put_qdisc(self, write: Write) -> None:
        item = write.new or write.old
        assert isinstance(item, Qdisc)
        index = self._index(write, item.link) if write.new is not None else self._table.index(item.link)
        if index is None:
            return  # gone with its link
        there = next((row for row in self._qdisc_rows() if row.link == index and row.handle), None)
        if there is not None and (write.new is not None or there.handle == QDISC_HANDLE):
            self._send_link(write, qdiscs.deletion(there), _GONE)
        if write.new is None:
            return
        assert isinstance(write.new, Qdisc)
        self._send_link(write, qdiscs.creation(write.new, index))
        kept = next((row.seen(item.link, write.new) for row in self._qdisc_rows() if row.link == index), None)
        if kept != item:
            raise not_kept(item, kept or Qdisc(item.link, "the kernel's choice"))

    # links

    def _delete_link(self, write: Write) -> None:
        assert isinstance(write.old, Link)
        row = self._fetch(write.old.name)
        if row is None:
            return
        actual = self._table.link(row)
        if actual.info.kind != write.old.info.kind:
            raise foreign_link(write, actual)
        self._send_link(write, encode_link_deletion(row.index), _GONE)
        self._drain()

    def _put_link(self, write: Write) -> None:
        wanted = write.new
        assert isinstance(wanted, Link)
        row = self._fetch(wanted.name)
        if row is not None:
            actual = self._table.link(row)
            if isinstance(actual.info, ForeignInfo):
                raise foreign_link(write, actual)
            if not can_become(actual, wanted):
                self._send_link(write, encode_link_deletion(row.index), _GONE)
                self._drain()
                row = None
        if row is None:
            self._create_link(write, wanted)
            row = self._fetch(wanted.name)
            if row is None:
                raise refusal(write, errno.ENODEV, "it is gone again")
            self._overhear(row.index)  # a veth's other end is told with it
            actual = self._table.link(row)
            if isinstance(wanted.info, GenericInfo) and actual.info != wanted.info:
                raise not_kept(wanted, replace(wanted, info=actual.info))
        elif isinstance(wanted.info, VxlanInfo) and actual.info != wanted.info:
            self._send_link(write, encode_vxlan_change(wanted.info, row.index))
        self._place_link(write, actual, wanted, row.index)
        self._settle_link(write, wanted, row.index)

    def _place_link(self, write: Write, actual: Link, wanted: Link, index: int) -> None:
        """Give a device all that can be set in place."""
        master = self._table.index(wanted.master) if wanted.master else 0
        if master is None:
            raise refusal(write, errno.ENODEV, f"no interface {wanted.master}", NO_MASTER)
        joins = bool(master) and actual.master != wanted.master
        refused = self._request.send(
            [encode_link(actual, wanted, index, master)], self._notified.most, lambda: None
        ).get(0)
        if refused is not None:
            raise no_member(write, wanted) if joins and refused.number == errno.EOPNOTSUPP else refusal(write, *refused)

    def _create_link(self, write: Write, wanted: Link) -> None:
        if isinstance(wanted.info, TunInfo):
            self._create_tun(write, wanted.name, wanted.info)
            return
        info = wanted.info
        assert not isinstance(info, ForeignInfo)
        underlay = 0 if info.underlay is None else self._table.index(info.underlay)
        if underlay is None:
            raise refusal(write, errno.ENODEV, f"no interface {info.underlay}")
        try:
            message = encode_new_link(_made_as(wanted), underlay)
        except ValueError as error:
            raise refusal(write, errno.EINVAL, str(error)) from None
        refused = self._request.send([message], self._notified.most, lambda: None).get(0)
        if refused is not None:
            taken = refused.number == errno.EEXIST and isinstance(info, VxlanInfo)
            raise refusal(write, *refused, self._vni_holder(info) if taken else "")  # type: ignore[arg-type]

    def _vni_holder(self, info: VxlanInfo) -> str:
        """Advice for a VNI that is taken: by whom."""
        self._read_links()
        for row in self._table.by_index.values():
            if row.kind == "vxlan":
                other = self._table.link(row).info
                if isinstance(other, VxlanInfo) and (other.vni, other.port) == (info.vni, info.port):
                    return (
                        f"{row.name} has VNI {info.vni} on UDP port {info.port} already: choose another VNI or Port, "
                        f"or, if nobody needs that device, 'ip link delete {row.name}'"
                    )
        return "another device has the VNI: 'ip -d link show type vxlan' lists them"

    def _create_tun(self, write: Write, name: str, info: TunInfo) -> None:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL
        flags |= (_IFF_VNET_HDR if info.vnet_hdr else 0) | (_IFF_MULTI_QUEUE if info.multi_queue else 0)
        try:
            self._inside(lambda: _create_tun(name, flags))
        except FileNotFoundError:
            raise refusal(write, errno.ENOENT, "no /dev/net/tun", "load the module: 'modprobe tun'") from None
        except OSError as error:
            raise refusal(write, error.errno or errno.EIO) from error

    def _settle_link(self, write: Write, wanted: Link, index: int) -> None:
        """Take what the kernel has told about our own changes for said, and look at what they led to."""
        self._overhear(index)
        self._pending.changes.pop(wanted.key, None)
        row = self._fetch(wanted.name)
        if row is None or row.index != index:
            raise refusal(write, errno.ENODEV, "it is gone again")
        before = self._table.by_index.get(index)
        self._note_interface(before, row)
        self._table.put(row)
        if self._in_scope(row):
            self._ours[index] = self._table.link(row)

    def _overhear(self, index: int) -> None:
        """Take in what was told, but for a link that we are writing to."""
        self._rewritten.add(index)
        self._drain()
        self._rewritten.discard(index)

    def _send_link(self, write: Write, message: bytes, forgiven: frozenset[int] = frozenset()) -> None:
        refused = self._request.send([message], self._notified.most, lambda: None).get(0)
        if refused is not None and refused.number not in forgiven:
            raise refusal(write, *refused)

    def _fetch(self, name: str) -> LinkRow | None:
        """The link of that name, as it is now.

        :raises KernelError: the kernel does not answer.
        """
        answer = self._request.ask(encode_link_query(name))
        if isinstance(answer, Refused):
            if answer.number == errno.ENODEV:
                return None
            raise KernelError(f"can't look up link {name}: {answer.text or os.strerror(answer.number)}")
        return parse_link(answer.datagram, answer.start, answer.end)

    def _put_sysctl(self, write: Write) -> None:
        item = write.new
        assert isinstance(item, Sysctl)
        try:
            self._inside(lambda: Path("/proc/sys", item.path).write_text(f"{item.value}\n", encoding="ascii"))
        except OSError as error:
            raise refusal(write, error.errno or errno.EIO) from None
        self._sysctls.update(self._inside(lambda: {item.path: item.value, **_read_sysctls([item.path])}))
        if self._sysctls[item.path] != item.value:
            raise not_kept(item, replace(item, value=self._sysctls[item.path]))


class _Step:
    """One write as messages, and the errors that mean it was done already."""

    __slots__ = ("forgiven", "messages", "write")

    def __init__(self, write: Write, messages: tuple[bytes, ...], forgiven: frozenset[int] = frozenset()) -> None:
        self.write = write
        self.messages = messages
        self.forgiven = forgiven


def _neighbour(link: str, row: NeighbourRow) -> Neighbour:
    if len(row.mac) in _IP_LENGTHS:
        return Neighbour(link, row.address, wire.address_of(bytes.fromhex(row.mac.replace(":", ""))))
    return Neighbour(link, row.address, row.mac if len(row.mac) == _MAC_LENGTH else _NO_MAC)


def _fdb_entry(link: str, row: FdbRow) -> FdbEntry:
    return FdbEntry(link, row.mac, row.remote, row.port, row.vni) if row.plain else FdbEntry(link, row.mac, SEVERAL)


def _made_as(wanted: Link) -> Link:
    """What to make, to become what is wanted: a bridge takes on its members' MTU unless its own has been changed since
    (``br_mtu_auto_adjust`` in ``net/bridge/br_if.c``)."""
    if wanted.info.kind != "bridge":
        return wanted
    return replace(wanted, mtu=wanted.mtu + (1 if wanted.mtu < _ETHERNET_MTU else -1))


def _both_rules(write: Write) -> tuple[Rule | None, Rule | None]:
    assert isinstance(write.old, Rule | None)
    assert isinstance(write.new, Rule | None)
    return write.old, write.new


def _wanted_link(write: Write) -> Link:
    assert isinstance(write.new, Link)
    return write.new


def _lies_in(destination: IPNetwork, space: IPNetwork) -> bool:
    """Whether a network is part of a space, or all of it."""
    if destination.version != space.version or destination.prefixlen < space.prefixlen:
        return False
    shift = space.max_prefixlen - space.prefixlen
    return int(destination.network_address) >> shift == int(space.network_address) >> shift


def _meets(one: IPNetwork, other: IPNetwork) -> bool:
    """Whether two networks have addresses in common."""
    return _lies_in(one, other) or _lies_in(other, one)


def _mentioning(needles: Sequence[bytes], answers: Iterable[Answer]) -> Iterator[Answer]:
    """The answers in datagrams that hold any of some bytes; the others are not even looked into."""
    datagram, mentions = b"", False
    for answer in answers:
        if answer.datagram is not datagram:
            datagram = answer.datagram
            mentions = any(needle in datagram for needle in needles)
        if mentions:
            yield answer


def _open_xfrm() -> tuple[RequestSocket, NotificationSocket]:
    return RequestSocket(NETLINK_XFRM), NotificationSocket([POLICY_GROUP], NETLINK_XFRM)


def _read_sysctls(paths: Iterable[str], settable: Container[str] = ()) -> dict[str, str]:
    """The readable ones among ``paths``, blanks normalised; of those in ``settable`` the ones that can be set."""
    found = {}
    for path in paths:
        if path in settable and not os.access(f"/proc/sys/{path}", os.W_OK):
            continue
        try:
            found[path] = " ".join(smallfile.read(f"/proc/sys/{path}").decode("ascii", "backslashreplace").split())
        except OSError:
            continue  # not there, or not for us: absent from a dump, and refused when it is written
    return found


def _create_tun(name: str, flags: int) -> None:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    finally:
        os.close(descriptor)


def _is_host(route: Route) -> bool:
    return route.destination.prefixlen == route.destination.max_prefixlen
