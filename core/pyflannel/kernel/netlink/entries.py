"""Addresses, neighbours, forwarding entries, routes and rules of ours: what the writes of them are as messages.

Nothing foreign is touched. A route is created with ``NLM_F_EXCL``, which any route of the same key refuses, and
replaced only after a look at what holds its key. A rule goes by our protocol number, after a look at which others that
would hit (:mod:`~pyflannel.kernel.rules`).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Set

from pyflannel.errors import KernelError
from pyflannel.kernel import rules, wire
from pyflannel.kernel.creations import Creations
from pyflannel.kernel.links import encode_address
from pyflannel.kernel.model import ROUTE_PROTOCOL, Address, FdbEntry, Key, Kind, Neighbour, Route, Rule
from pyflannel.kernel.netlink.batch import GONE, Batches, Encoded
from pyflannel.kernel.netlink.dumps import Dumps
from pyflannel.kernel.netlink.listener import Listener
from pyflannel.kernel.netlink.picture import KERNEL_MADE, Picture
from pyflannel.kernel.port import SEVERAL, Write, rule_order
from pyflannel.kernel.refusal import check_link_layer, check_way, foreign_route
from pyflannel.kernel.rtsocket import Refused
from pyflannel.kernel.wire import RouteRow
from pyflannel.network.lease import IPAddress

__all__ = ["Entries"]


class Entries:
    """Each call takes many writes; ``failures`` takes what the kernel refuses of them."""

    def __init__(self, picture: Picture, dumps: Dumps, listener: Listener, batches: Batches) -> None:
        self._picture = picture
        self._dumps = dumps
        self._listener = listener
        self._batches = batches

    def delete(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        """Delete addresses, neighbours, forwarding entries or routes."""
        unnamed = [write for write in writes if _hits_others(write.old)]
        surely = [write for write in writes if not _hits_others(write.old)] if unnamed else writes

        def unsettled(write: Write, refused: Refused) -> bool:
            # Either there is none, or one that leads by a next hop of its own, which the kernel doesn't take ours for.
            if refused.number != errno.ESRCH or not isinstance(write.old, Route):
                return False
            unnamed.append(write)
            return True

        self._batches.send(map(self._deletion, surely), failures, unsettled)
        if unnamed:
            self._delete_seen(unnamed, failures)

    def _delete_seen(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        """Delete routes that are there, each as the kernel has it."""
        there = self._dumps.routes_like([write.old for write in writes if isinstance(write.old, Route)])
        steps = []
        for write in writes:
            rows = [row for row in there.get(write.key, ()) if self._picture.is_ours(row)]
            hit = [row for row in rows if self._picture.route(row) == write.old]
            steps.append(Encoded(write, tuple(map(wire.encode_route_deletion, hit)), GONE))
            # Others of ours under the key were not told of; and what goes before our request has it hit another one.
            self._picture.pending.resync |= len(hit) != len(rows) or (bool(hit) and _hits_others(write.old))
        self._batches.send(steps, failures)

    def put(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        """Create or change addresses, neighbours or forwarding entries."""
        self._batches.send((self._creation(write, failures) for write in writes), failures)

    def make(self, made: Creations, kind: Kind) -> list[Write]:
        """Create the objects of a kind that packed plans hold; the writes of those that go the usual way, be it because
        the kernel has refused them."""
        messages = made.messages[kind]
        if kind is Kind.FDB:
            self._listener.echoes.update(map(wire.told_of, messages))
        elif kind is Kind.ROUTE:
            self._picture.route_links |= made.links[kind]
        items = [*made.others[kind], *(made.item(kind, number) for number in self._batches.refused(messages))]
        return [Write(None, item) for item in items]

    def _deletion(self, write: Write) -> Encoded | None:
        item = write.old
        name = getattr(item, "link", None)
        index = self._picture.table.index(name) if name is not None else 0
        if index is None:
            return None  # gone with its link
        if isinstance(item, Route):
            protocol = wire.RTPROT_UNSPEC if self._picture.owns(index) else ROUTE_PROTOCOL
            message = wire.encode_route(wire.RTM_DELROUTE, item, index, protocol=protocol)
            return Encoded(write, (message,), GONE - {errno.ESRCH})
        if isinstance(item, FdbEntry):
            message = wire.encode_fdb(wire.RTM_DELNEIGH, item, index, every_remote=True)
        elif isinstance(item, Neighbour):
            message = wire.encode_neighbour(wire.RTM_DELNEIGH, item, index)
        else:
            assert isinstance(item, Address)
            message = encode_address(wire.RTM_DELADDR, item, index)
        return Encoded(write, (message,), GONE)

    def _creation(self, write: Write, failures: dict[Key, KernelError]) -> Encoded | None:
        item, old = write.new, write.old
        flags = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
        try:
            if isinstance(item, Address):
                index = self._picture.index(write, item.link)
                return Encoded(write, (encode_address(wire.RTM_NEWADDR, item, index, flags),))
            if isinstance(item, Neighbour):
                index = self._picture.index(write, item.link)
                check_link_layer(write, item, self._picture.table.by_index[index].mac)
                return Encoded(write, (wire.encode_neighbour(wire.RTM_NEWNEIGH, item, index, flags),))
            assert isinstance(item, FdbEntry)
            assert old is None or isinstance(old, FdbEntry)
            index = self._picture.index(write, item.link)
            check_way(write, item, self._picture.ours.get(index))
            return self._replaced_fdb(write, item, old, index, flags)
        except KernelError as error:
            failures[write.key] = error
            return None

    def _replaced_fdb(self, write: Write, item: FdbEntry, old: FdbEntry | None, index: int, flags: int) -> Encoded:
        """Replace moves a lone remote in one fresh, and does nothing if the new one is there already; what may be left
        of the old one is deleted then."""
        if wire.is_flooded(item.mac) or (old is not None and old.remote == SEVERAL):
            clear = wire.encode_fdb(wire.RTM_DELNEIGH, item, index, every_remote=True)
            return Encoded(write, (clear, wire.encode_fdb(wire.RTM_NEWNEIGH, item, index, wire.NLM_F_CREATE)), GONE)
        new = wire.encode_fdb(wire.RTM_NEWNEIGH, item, index, flags)
        if old is None:
            self._listener.echoes.add(wire.told_of(new))
        if old is None or old.way == item.way:
            return Encoded(write, (new,))
        return Encoded(write, (new, wire.encode_fdb(wire.RTM_DELNEIGH, old, index)), GONE)

    def put_routes(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        """Create or replace routes."""
        fresh = [write for write in writes if write.old is None]
        taken: list[Write] = [write for write in writes if write.old is not None]

        def unsettled(write: Write, refused: Refused) -> bool:
            # IPv6 looks at the gateway first, and says EINVAL where a foreign route of our key leads to it elsewhere.
            if refused.number not in (errno.EEXIST, errno.EINVAL):
                return False
            taken.append(write)
            return True

        self._batches.send((self._new_route(write, failures) for write in fresh), failures, unsettled)
        if taken:
            routes = [write.new for write in writes if isinstance(write.new, Route)]
            existing = self._dumps.routes_like([write.new for write in taken if isinstance(write.new, Route)])
            hosts = {(route.destination.network_address, route.link) for route in routes if _is_host(route)}
            self._batches.send((self._replacement(write, existing, hosts, failures) for write in taken), failures)

    def _new_route(
        self, write: Write, failures: dict[Key, KernelError], flags: int = wire.NLM_F_EXCL
    ) -> Encoded | None:
        route = write.new
        assert isinstance(route, Route)
        try:
            index = self._picture.index(write, route.link) if route.link is not None else 0
        except KernelError as error:
            failures[write.key] = error
            return None
        self._picture.route_links.add(index)
        return Encoded(write, (wire.encode_route(wire.RTM_NEWROUTE, route, index, flags | wire.NLM_F_CREATE),))

    def _replacement(
        self,
        write: Write,
        existing: Mapping[Key, list[RouteRow]],
        hosts: Set[tuple[IPAddress, str | None]],
        failures: dict[Key, KernelError],
    ) -> Encoded | None:
        """Create or replace a route, knowing what holds its key; replacing hits the first of several.

        :param hosts: addresses that have a route of their own, and its link.
        """
        rows = existing.get(write.key, [])
        if not rows:
            return self._new_route(write, failures)
        assert isinstance(write.new, Route)
        foreign = [row for row in rows if not self._may_take(row, write.new)]
        if foreign:
            failures[write.key] = foreign_route(write, self._picture.route(foreign[0]), foreign[0].protocol)
            return None
        # IPv6 looks up the way to the gateway. Where the gateway lies in the destination (vxlan's does), the old route
        # answers, and with a link that is another now: it has to go first, unless the gateway has a route of its own.
        wanted = write.new
        in_the_way = wanted.destination.version == 6 and wanted.gateway is not None
        in_the_way = (
            in_the_way and wanted.gateway in wanted.destination and self._picture.route(rows[0]).link != wanted.link
        )
        in_the_way = in_the_way and (wanted.gateway, wanted.link) not in hosts
        fresh = self._new_route(write, failures, wire.NLM_F_EXCL if in_the_way else wire.NLM_F_REPLACE)
        if fresh is None:
            return None
        surplus = map(wire.encode_route_deletion, rows if in_the_way else rows[1:])
        return Encoded(write, (*surplus, *fresh.messages))

    def _may_take(self, row: RouteRow, wanted: Route) -> bool:
        """Whether we may replace a route: it is ours, or does just what the wanted one will (flanneld left it)."""
        if self._picture.is_ours(row):
            return True
        if row.protocol in KERNEL_MADE or row.nexthops:
            return False
        if row.type != wanted.effective_type or row.encapsulation != wanted.encapsulation:
            return False
        if wanted.link is None:
            return True
        return (row.link, row.gateway) == (self._picture.table.index(wanted.link), wanted.gateway)

    def put_rules(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        """Create, turn round or delete rules; the new one is there before the old one goes."""
        if not writes:
            return
        ordered = sorted(writes, key=rule_order)
        asked = rules.requests(map(_both_rules, ordered), self._dumps.rules())
        encoded = (Encoded(write, messages, GONE) for write, messages in zip(ordered, asked, strict=True))
        self._batches.send(encoded, failures)


def _both_rules(write: Write) -> tuple[Rule | None, Rule | None]:
    assert isinstance(write.old, Rule | None)
    assert isinstance(write.new, Rule | None)
    return write.old, write.new


def _hits_others(item: object) -> bool:
    """Whether a request to delete this route, were it gone, would hit another one: metric 0 stands for any."""
    return isinstance(item, Route) and item.destination.version == 4 and not item.effective_metric


def _is_host(route: Route) -> bool:
    return route.destination.prefixlen == route.destination.max_prefixlen
