"""A kernel in memory that behaves, and fails, like the real one: for tests of whatever works on a kernel port.

It keeps the rules that matter to a reconciler. Routes need a link that is up and a gateway that can be reached. A
link that goes takes its addresses, neighbours, forwarding entries and routes along, and a veth its other end; what was
part of it stays and is part of none. One that is set down loses its
routes, neighbours and IPv6 addresses; a changed MAC costs the neighbours; the last IPv4 address of a link that goes
takes the IPv4 neighbours and routes along. Of the routes nothing is said but that a new dump is needed. Foreign routes
and devices are never replaced. A WireGuard peer takes its allowed-ips from whoever had them, learns endpoints
(``roam``) and vanishes without a word: :meth:`TwinPort.poll` reports that as if it had read the peers again. The suite
in ``tests/integration/kernel`` runs on the twin and on a real kernel.

Besides the port there is what *others* do to the kernel (``put``, ``remove``, ``set_link``, ``append_remote``), which
is notified like on the real one, and there are switches for what goes wrong::

    eth0 = Link("eth0", ForeignInfo("veth"), 1500)
    twin = TwinPort([eth0], addresses=[Address("eth0", ip_interface("192.0.2.1/24"))])
    twin.fail_next(Kind.ROUTE, errno.ENOBUFS)   # the next write of a route is refused
    twin.lose_notifications()                   # what was not polled is lost; the next notice asks for a resync
    twin.keeps[link.key] = other                # what is written as link becomes another, as where a kernel rounds
    twin.interrupt_dumps(1)                     # the next dump fails: the tables change too fast
    twin.dead = "no netlink here"               # every call fails until it is set to None again
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pyflannel.errors import KernelError
from pyflannel.kernel.links import can_become, in_order
from pyflannel.kernel.model import (
    MAIN_TABLE,
    ROUTE_PROTOCOL,
    Address,
    Attributes,
    AttributeValue,
    Endpoint,
    FdbEntry,
    ForeignInfo,
    GenericInfo,
    KernelObject,
    Key,
    Kind,
    Link,
    MplsRoute,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    Sysctl,
    VxlanInfo,
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
)
from pyflannel.kernel.port import (
    NOTHING,
    SEVERAL,
    ForeignLink,
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
from pyflannel.kernel.qdiscs import FOREIGN
from pyflannel.kernel.refusal import (
    NO_MASTER,
    check_link_layer,
    check_way,
    foreign_label,
    foreign_link,
    foreign_route,
    no_member,
    not_kept,
    refusal,
)
from pyflannel.kernel.wire import is_flooded
from pyflannel.network.lease import IPAddress
from pyflannel.small.wake import Wake

__all__ = ["FOREIGN_PROTOCOL", "TwinPort"]

_MASTERS = frozenset({"bond", "bridge", "team", "vrf"})
"""The kinds of devices that others can be a part of."""

FOREIGN_PROTOCOL = 4
"""The protocol number of a route that somebody else adds (``RTPROT_STATIC``)."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _RouteEntry:
    route: Route
    protocol: int


class TwinPort(KernelPort):
    """A kernel port without a kernel; see the module's docstring.

    :param links: the devices that are there from the start, all up unless they say otherwise.
    :param addresses: their addresses.
    :param sysctls: the kernel parameters that exist; writing another fails.
    """

    def __init__(
        self,
        links: Iterable[Link] = (),
        addresses: Iterable[Address] = (),
        sysctls: Mapping[str, str] | None = None,
    ) -> None:
        self.links: dict[str, Link] = {link.name: _unowned(link) for link in links}
        self.addresses: dict[Key, Address] = {address.key: address for address in addresses}
        self.neighbours: dict[Key, Neighbour] = {}
        self.fdb: dict[Key, tuple[FdbEntry, ...]] = {}
        self.routes: dict[Key, _RouteEntry] = {}
        self.rules: dict[tuple[Key, int], Rule] = {}
        """By their key and protocol number: those of others are in nobody's way."""
        self.labels: dict[Key, tuple[MplsRoute, int]] = {}
        """Each with its protocol number."""
        self.qdiscs: dict[Key, tuple[Qdisc, bool]] = {}
        """Each with whether it is ours."""
        self.wireguard: dict[Key, WireguardDevice | WireguardPeer] = {}
        self.policies: dict[Key, XfrmPolicy] = {}
        self._lying: Mapping[Kind, dict[Key, Any]] = {
            Kind.NEIGHBOUR: self.neighbours,
            Kind.FDB: self.fdb,
            Kind.WIREGUARD_PEER: self.wireguard,
            Kind.XFRM_POLICY: self.policies,
        }
        """What just lies there: when it goes, nothing goes along."""
        self.learned: dict[Key, Endpoint] = {}
        """Where peers have roamed to."""
        self.sysctls: dict[str, str] = dict(sysctls or {})
        self.keeps: dict[Key, Link | Sysctl] = {}
        """What becomes of a link or a parameter that is written, where that is something else."""
        self.dead: str | None = None
        self.dumps = 0
        """How many dumps were asked for."""
        self.writes: list[Write] = []
        """Every write that was asked for, in the order of the calls."""
        self.refused = 0
        """How many of them were refused because :meth:`fail_next` said so."""
        self._scope = Scope()
        self._pending = Notice()
        self._failing: dict[Kind | Key, list[int]] = defaultdict(list)
        self._interrupts = 0
        self._wakeup = Wake()
        self._closed = False

    # the port

    def dump(self, scope: Scope, known: Mapping[Key, KernelObject] = NOTHING) -> dict[Key, KernelObject]:
        self._require_life()
        self.dumps += 1
        self._scope = scope
        if self._interrupts:
            self._interrupts -= 1
            raise KernelError("the kernel's tables changed during each attempt to read them")
        self._pending.changes.clear()
        self._pending.resync = False
        found: dict[Key, KernelObject] = {
            link.key: self._reported(link) for link in self.links.values() if self._in_scope(link)
        }
        found.update((key, item) for key, item in self.addresses.items() if self._owns(item.link))
        found.update((key, item) for key, item in self.neighbours.items() if self._owns(item.link))
        found.update((key, _seen(ways)) for key, ways in self.fdb.items() if self._owns(ways[0].link))
        found.update((key, entry.route) for key, entry in self.routes.items() if self._is_ours(entry))
        found.update((key, rule) for (key, protocol), rule in self.rules.items() if protocol == ROUTE_PROTOCOL)
        found.update((key, route) for key, (route, protocol) in self.labels.items() if protocol == ROUTE_PROTOCOL)
        found.update((key, seen) for key in self.qdiscs if (seen := self._seen_qdisc(key)) is not None)
        found.update((key, item) for key, item in self.wireguard.items() if self._sets(item.link))
        found.update(self.policies)
        for path in scope.sysctls & self.sysctls.keys():
            item = Sysctl(path, self.sysctls[path])
            found[item.key] = item
        return found

    def apply(self, writes: Sequence[Write]) -> Mapping[Key, KernelError]:
        self.writes.extend(writes)
        failures: dict[Key, KernelError] = {}
        creations = [write for write in writes if write.new is not None]
        deletions, last = apart((write for write in writes if write.new is None), creations)
        self._each(_sorted([*deletions, *creations]), failures)
        last = following(last, creations, failures)
        self._each(last, failures)
        self._pending.resync |= bool(last)
        self._announce()
        return failures

    def _each(self, writes: Iterable[Write], failures: dict[Key, KernelError]) -> None:
        for write in writes:
            try:
                self._require_life()
                self._fail_on_request(write)
                self._write(write)
            except KernelError as error:
                failures[write.key] = error
            self.progress()

    def look_around(self) -> Surroundings:
        self._require_life()
        routes = tuple(
            ForeignRoute(entry.route, entry.protocol)
            for entry in self.routes.values()
            if not self._is_ours(entry) and self._in_a_space(entry.route)
        )
        links = []
        for link in self.links.values():
            addresses = tuple(item.interface for item in self.addresses.values() if item.link == link.name)
            near = any(address.ip in space for address in addresses for space in self._scope.spaces)
            if near and not self._in_scope(link):
                links.append(ForeignLink(link, addresses))
        return Surroundings(routes, tuple(links))

    def _in_a_space(self, route: Route) -> bool:
        destination = route.destination
        if route.table != MAIN_TABLE:
            return False
        spaces = [space for space in self._scope.spaces if space.version == destination.version]
        return any(destination.subnet_of(space) for space in spaces)  # type: ignore[arg-type]

    def clear(self, found: Iterable[ForeignRoute | ForeignLink]) -> tuple[KernelError, ...]:
        for item in found:
            if isinstance(item, ForeignLink):
                self._lose_link(item.link.name)
            else:
                self.routes.pop(item.route.key, None)
        self._announce()
        return ()

    def fileno(self) -> int:
        return self._wakeup.fileno()

    def poll(self) -> Notice:
        self._require_life()
        self._wakeup.drain()
        notice, self._pending = self._pending, Notice()
        return notice

    def close(self) -> None:
        if not self._closed:
            self._closed = True

    # what goes wrong

    def fail_next(self, what: Kind | Key, number: int, times: int = 1) -> None:
        """Refuse the next writes of a kind, or under a key, with this errno."""
        self._failing[what].extend([number] * times)

    def lose_notifications(self) -> None:
        """Lose what was not polled yet, as a full socket buffer does; a new dump is asked for."""
        self._pending = Notice(interfaces=set(self.links), resync=True)
        self._announce()

    def interrupt_dumps(self, times: int) -> None:
        """Have the next dumps fail."""
        self._interrupts += times

    def _require_life(self) -> None:
        if self.dead is not None:
            raise KernelError(self.dead)

    def _fail_on_request(self, write: Write) -> None:
        for what in (write.key, write.key[0]):
            numbers = self._failing.get(what)
            if numbers:
                self.refused += 1
                raise refusal(write, numbers.pop(0))

    # what others do

    def put(self, item: KernelObject, protocol: int = FOREIGN_PROTOCOL) -> None:
        """Somebody adds or replaces an object; a route with this protocol number."""
        if isinstance(item, Link):
            self._put_foreign_link(item)
        elif isinstance(item, Route):
            self._put_foreign_route(item, protocol)
        elif isinstance(item, Sysctl):
            self.sysctls[item.path] = item.value
            self._tell(item.key, item, item.path in self._scope.sysctls)
        elif isinstance(item, FdbEntry | Neighbour | XfrmPolicy):
            self._lying[item.key[0]][item.key] = (item,) if isinstance(item, FdbEntry) else item
            self._tell(item.key, item, self._sees(item))
        elif isinstance(item, WireguardDevice | WireguardPeer):
            self._put_wireguard(item)
            self._tell(item.key, item, self._sets(item.link))
        elif isinstance(item, Rule):
            self.rules[item.key, protocol] = item
            self._tell(item.key, item, protocol == ROUTE_PROTOCOL)
        elif isinstance(item, Qdisc):
            self.qdiscs[item.key] = (item, False)
            self._tell(item.key, self._seen_qdisc(item.key), self._owns(item.link))
        elif isinstance(item, MplsRoute):
            self.labels[item.key] = (item, protocol)
            self._tell(item.key, item if protocol == ROUTE_PROTOCOL else None, True)
        else:
            self.addresses[item.key] = item
            self._pending.interfaces.add(item.link)
            self._tell(item.key, item, self._owns(item.link))
        self._announce()

    def remove(self, key: Key) -> None:
        """Somebody deletes an object. Without effect if it is not there."""
        if key[0] is Kind.LINK:
            self._lose_link(str(key[1]))
        elif key[0] is Kind.ADDRESS:
            self._lose_address(key)
        elif key[0] is Kind.ROUTE:
            self._lose_route(key)
        elif key[0] in self._lying:
            gone = self._lying[key[0]].pop(key, None)
            self._tell(key, None, gone is not None and self._sees(gone[0] if isinstance(gone, tuple) else gone))
        elif key[0] is Kind.RULE:
            self._tell(key, None, self.rules.pop((key, ROUTE_PROTOCOL), None) is not None)
        elif key[0] is Kind.MPLS_ROUTE:
            self._tell(key, None, self.labels.pop(key, None) is not None)
        elif key[0] is Kind.QDISC:
            self._tell(key, None, self.qdiscs.pop(key, None) is not None and self._owns(str(key[1])))
        self._announce()

    def roam(self, key: Key, endpoint: Endpoint) -> None:
        """A WireGuard peer's packets come from another place now; nobody is told."""
        self.learned[key] = endpoint

    def set_link(
        self,
        name: str,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        mac: str | None = None,
        master: str | None = None,
        group: int | None = None,
    ) -> None:
        """Somebody sets a link up or down, or changes its MTU, MAC, master (empty: none) or group.

        :raises KeyError: there is no such link.
        """
        before = self.links[name]
        after = replace(
            before,
            up=before.up if up is None else up,
            mtu=mtu or before.mtu,
            mac=mac or before.mac,
            master=before.master if master is None else master,
            group=before.group if group is None else group,
        )
        if before.up and not after.up:
            self._pending.resync |= self._in_scope(after) or self._carries_routes(name)
        self._change_link(before, after)
        if after != before:
            self._pending.interfaces.add(name)
            self._tell(after.key, self._reported(after), self._in_scope(after))
        self._announce()

    def append_remote(self, entry: FdbEntry) -> None:
        """Somebody appends a remote to a MAC address (``bridge fdb append``).

        The kernel takes several only for multicast and for the zero address, to which unknown frames are flooded; for
        others it silently keeps the one it has.
        """
        if entry.key in self.fdb and not is_flooded(entry.mac):
            return
        self.fdb[entry.key] = (*self.fdb.get(entry.key, ()), entry)
        self._tell(entry.key, entry, self._owns(entry.link))
        self._announce()

    def _put_foreign_link(self, link: Link) -> None:
        before = self.links.get(link.name)
        if before is not None:
            self._lose_link(link.name)
        link = self.links[link.name] = _unowned(link)
        self._pending.interfaces.add(link.name)
        if self._in_scope(link):
            self._tell(link.key, self._reported(link), True)
            self._pending.resync = True

    def _put_foreign_route(self, route: Route, protocol: int) -> None:
        before = self.routes.get(route.key)
        entry = self.routes[route.key] = _RouteEntry(route, protocol)
        if self._is_ours(entry):
            self._tell(route.key, route, True)
            return
        self._tell(route.key, None, before is not None and self._is_ours(before))
        if route.table != MAIN_TABLE:
            return
        self._pending.diversions |= self._in_a_space(route)
        if route.link is not None:
            self._pending.interfaces.add(route.link)

    def _tell(self, key: Key, item: KernelObject | None, seen: bool) -> None:
        if seen:
            self._pending.changes[key] = item

    def _announce(self) -> None:
        pending = self._pending
        if pending.changes or pending.interfaces or pending.resync or pending.diversions:
            self._wakeup.set()

    # what is ours

    def _in_scope(self, link: Link) -> bool:
        return link.name in self._scope.links or link.marked

    def _reported(self, link: Link) -> Link:
        """Of a generic device, what the wanted one says something about."""
        wanted = self._scope.generic.get(link.name)
        have = link.info
        master = None if wanted is None or wanted.master is None else link.master or ""
        link = replace(link, master=master, group=None if wanted is None or wanted.group is None else link.group or 0)
        if not isinstance(have, GenericInfo):
            return link if wanted is None or wanted.mac else replace(link, mac=None)
        if wanted is None or not isinstance(wanted.info, GenericInfo) or have.kind != wanted.info.kind:
            return replace(link, info=GenericInfo(have.kind) if link.marked else ForeignInfo(have.kind))
        info = GenericInfo(
            have.kind,
            None if wanted.info.underlay is None else have.underlay,
            _named(wanted.info.data, have.data),
        )
        return replace(link, info=info, mac=link.mac if wanted.mac else None)

    def _owns(self, name: str | None) -> bool:
        link = self.links.get(name) if name is not None else None
        return link is not None and self._in_scope(link) and not isinstance(link.info, ForeignInfo)

    def _sets(self, name: str) -> bool:
        return name in self._scope.wireguard and self._owns(name)

    def _sees(self, item: KernelObject) -> bool:
        """Whether something that is not a link is reported."""
        if isinstance(item, XfrmPolicy):
            return True
        if isinstance(item, WireguardDevice | WireguardPeer):
            return self._sets(item.link)
        return self._owns(getattr(item, "link", None))

    def _is_ours(self, entry: _RouteEntry) -> bool:
        route = entry.route
        if entry.protocol == ROUTE_PROTOCOL:
            return True
        return route.onlink and route.table == MAIN_TABLE and self._owns(route.link)

    def _seen_qdisc(self, key: Key) -> Qdisc | None:
        """One as the port reports it: what the wanted one says something about."""
        there, ours = self.qdiscs[key]
        wanted = self._scope.qdiscs.get(there.link)
        if not self._owns(there.link) or (wanted is None and not ours):
            return None
        if not ours:
            return Qdisc(there.link, FOREIGN)
        return there if wanted is not None and wanted.kind == there.kind else Qdisc(there.link, there.kind)

    def _carries_routes(self, name: str) -> bool:
        return any(entry.route.link == name and self._is_ours(entry) for entry in self.routes.values())

    # what goes along

    def _lose_link(self, name: str) -> None:
        link = self.links.get(name)
        if link is None:
            return
        for other in list(self.links.values()):
            if isinstance(other.info, VxlanInfo | GenericInfo) and other.info.underlay == name:
                self._lose_link(other.name)
            elif other.master == name:
                self.set_link(other.name, master="")
        ours = self._in_scope(link)
        self._pending.resync |= ours or self._carries_routes(name)
        self._pending.interfaces.add(name)
        self._tell(link.key, None, ours)
        _drop(self.addresses, lambda item: item.link == name)
        _drop(self.neighbours, lambda item: item.link == name)
        _drop(self.fdb, lambda ways: ways[0].link == name)
        _drop(self.routes, lambda entry: entry.route.link == name)
        _drop(self.qdiscs, lambda entry: entry[0].link == name)
        for key in _drop(self.labels, lambda entry: entry[0].link == name):
            self._tell(key, None, True)
        for key in _drop(self.wireguard, lambda item: item.link == name):
            self.learned.pop(key, None)
        del self.links[name]
        for other in list(self.links.values()):
            if name == _other_end(other) or other.name == _other_end(link):
                self._lose_link(other.name)

    def _lose_route(self, key: Key) -> None:
        entry = self.routes.pop(key, None)
        if entry is not None:
            if entry.route.link is not None and not self._is_ours(entry):
                self._pending.interfaces.add(entry.route.link)
            self._pending.diversions |= not self._is_ours(entry) and self._in_a_space(entry.route)
            self._tell(key, None, self._is_ours(entry))

    def _lose_address(self, key: Key) -> None:
        gone = self.addresses.pop(key, None)
        if gone is None:
            return
        name = gone.link
        self._pending.interfaces.add(name)
        self._tell(key, None, self._owns(name))
        if gone.interface.version == 4:
            self._pending.resync |= self._in_scope(self.links[name]) or self._carries_routes(name)
            if not any(item.link == name and item.interface.version == 4 for item in self.addresses.values()):
                for lost in _drop(self.neighbours, lambda item: item.link == name and item.address.version == 4):
                    self._tell(lost, None, self._owns(name))
                _drop(self.routes, lambda entry: entry.route.link == name and entry.route.destination.version == 4)

    def _change_link(self, before: Link, after: Link) -> None:
        name = after.name
        self.links[name] = after
        if before.up and not after.up:
            _drop(self.routes, lambda entry: entry.route.link == name)
            _drop(self.addresses, lambda item: item.link == name and item.interface.version == 6)
        if (before.up and not after.up) or before.mac != after.mac:
            for key in _drop(self.neighbours, lambda item: item.link == name):
                self._tell(key, None, self._owns(name))

    # what we do

    def _write(self, write: Write) -> None:
        if write.new is None:
            self._delete(write)
        elif isinstance(write.new, Link):
            self._put_link(write, write.new)
        elif isinstance(write.new, Sysctl):
            self._put_sysctl(write, write.new)
        elif isinstance(write.new, Route):
            self._put_route(write, write.new)
        elif isinstance(write.new, Rule):
            self.rules[write.new.key, ROUTE_PROTOCOL] = write.new
        elif isinstance(write.new, XfrmPolicy):
            self.policies[write.new.key] = write.new
        elif isinstance(write.new, MplsRoute):
            self._put_label(write, write.new)
        else:
            self._put_on_link(write, write.new)

    def _put_on_link(
        self, write: Write, item: Address | Neighbour | FdbEntry | WireguardDevice | WireguardPeer | Qdisc
    ) -> None:
        self._require_link(write, item.link)
        if isinstance(item, Address):
            self.addresses[item.key] = item
        elif isinstance(item, Neighbour):
            check_link_layer(write, item, self.links[item.link].mac)
            self.neighbours[item.key] = item
        elif isinstance(item, FdbEntry):
            self._put_fdb(write, item)
        elif isinstance(item, Qdisc):
            self.qdiscs[item.key] = (item, True)
        else:
            self._require_wireguard(write, item.link)
            self._put_wireguard(item, write.old)

    def _put_sysctl(self, write: Write, item: Sysctl) -> None:
        if item.path not in self.sysctls:
            raise refusal(write, errno.ENOENT)
        kept = self.keeps.get(item.key, item)
        assert isinstance(kept, Sysctl)
        self.sysctls[kept.path] = kept.value
        if kept != item:
            raise not_kept(item, kept)

    def _delete(self, write: Write) -> None:
        item = write.old
        if isinstance(item, Link):
            self._delete_link(write, item)
        elif isinstance(item, Address):
            self._lose_address(item.key)
        elif isinstance(item, Route):
            entry = self.routes.get(item.key)
            if entry is not None and entry.route == item and self._is_ours(entry):
                del self.routes[item.key]
        elif isinstance(item, Rule):
            self.rules.pop((item.key, ROUTE_PROTOCOL), None)
        elif isinstance(item, MplsRoute | Qdisc):
            self._delete_ours(item)
        elif item is not None:
            self._lying.get(item.key[0], {}).pop(item.key, None)
            self.learned.pop(item.key, None)

    def _delete_ours(self, item: MplsRoute | Qdisc) -> None:
        """Of what has one place for everybody, only what is ours goes."""
        label = self.labels.get(item.key)
        if label is not None and label[1] == ROUTE_PROTOCOL:
            del self.labels[item.key]
        if self.qdiscs.get(item.key, (item, False))[1]:
            del self.qdiscs[item.key]

    def _delete_link(self, write: Write, item: Link) -> None:
        actual = self.links.get(item.name)
        if actual is not None:
            if actual.info.kind != item.info.kind:
                raise foreign_link(write, actual)
            self._lose_link(item.name)

    def _require_link(self, write: Write, name: str) -> Link:
        link = self.links.get(name)
        if link is None:
            raise refusal(write, errno.ENODEV, f"no interface {name}")
        if self._in_scope(link) and isinstance(link.info, ForeignInfo):
            raise foreign_link(write, link)
        return link

    def _check_master(self, write: Write, wanted: Link) -> None:
        if wanted.master and wanted.master not in self.links:
            raise refusal(write, errno.ENODEV, f"no interface {wanted.master}", NO_MASTER)
        if wanted.master and self.links[wanted.master].info.kind not in _MASTERS:
            raise no_member(write, wanted)

    def _put_link(self, write: Write, wanted: Link) -> None:
        there = actual = self.links.get(wanted.name)
        if actual is not None:
            actual = self._reported(actual)
        if actual is not None and isinstance(actual.info, ForeignInfo):
            raise foreign_link(write, actual)
        kept = self.keeps.get(wanted.key, wanted)
        assert isinstance(kept, Link)
        self._check_master(write, wanted)
        if there is not None and actual is not None and can_become(actual, wanted):
            master = there.master if kept.master is None else kept.master
            group = there.group if kept.group is None else kept.group
            self._change_link(there, replace(kept, mac=kept.mac or there.mac, master=master, group=group))
            if actual.up and not wanted.up:
                self._pending.resync = True
            return
        if actual is not None:
            self._lose_link(wanted.name)
        if isinstance(wanted.info, VxlanInfo):
            self._check_vxlan(write, wanted.info)
        if isinstance(wanted.info, GenericInfo) and wanted.info.underlay not in (None, *self.links):
            raise refusal(write, errno.ENODEV, f"no interface {wanted.info.underlay}")
        self.links[wanted.name] = kept
        end = _other_end(kept)
        if end is not None:
            self.links[end] = Link(end, GenericInfo(kept.info.kind), kept.mtu, up=False, marked=False)
            self._pending.interfaces.add(end)
        if isinstance(wanted.info, GenericInfo) and kept.info != wanted.info:
            self._pending.interfaces.add(wanted.name)
            self._pending.resync = True
            self._tell(kept.key, self._reported(kept), True)
            raise not_kept(wanted, kept)

    def _check_vxlan(self, write: Write, info: VxlanInfo) -> None:
        if info.underlay not in self.links:
            raise refusal(write, errno.ENODEV, f"no interface {info.underlay}")
        for other in self.links.values():
            theirs = other.info
            if isinstance(theirs, VxlanInfo) and (theirs.vni, theirs.port, theirs.local.version) == (
                info.vni,
                info.port,
                info.local.version,
            ):
                raise refusal(
                    write, errno.EEXIST, "", f"{other.name} has VNI {info.vni} on UDP port {info.port} already"
                )

    def _put_label(self, write: Write, route: MplsRoute) -> None:
        if route.link != "lo":  # which is everywhere, and not among the links that are told of
            self._require_link(write, route.link)
        _, protocol = self.labels.get(route.key, (route, ROUTE_PROTOCOL))
        if protocol != ROUTE_PROTOCOL:
            raise foreign_label(write, protocol)
        self.labels[route.key] = (route, ROUTE_PROTOCOL)

    def _put_fdb(self, write: Write, entry: FdbEntry) -> None:
        if not isinstance(self.links[entry.link].info, VxlanInfo):
            raise refusal(write, errno.EOPNOTSUPP)
        check_way(write, entry, self.links[entry.link])
        self.fdb[entry.key] = (entry,)

    def _require_wireguard(self, write: Write, name: str) -> None:
        if self.links[name].info.kind != "wireguard":
            raise refusal(write, errno.EOPNOTSUPP)

    def _put_wireguard(self, item: WireguardDevice | WireguardPeer, old: KernelObject | None = None) -> None:
        if isinstance(item, WireguardPeer):
            for key, other in list(self.wireguard.items()):
                if isinstance(other, WireguardPeer) and other.link == item.link and key != item.key:
                    left = tuple(ip for ip in other.allowed_ips if ip not in item.allowed_ips)
                    self.wireguard[key] = replace(other, allowed_ips=left)
            if not isinstance(old, WireguardPeer) or old.endpoint != item.endpoint:
                self.learned.pop(item.key, None)
        self.wireguard[item.key] = item

    def _put_route(self, write: Write, route: Route) -> None:
        if route.link is not None:
            link = self._require_link(write, route.link)
            if not link.up:
                raise refusal(write, errno.ENETDOWN)
            if route.gateway is not None and not route.onlink and not self._is_neighbour(route.link, route.gateway):
                raise refusal(write, errno.ENETUNREACH)
        entry = self.routes.get(route.key)
        if entry is not None and not self._is_ours(entry):
            theirs = entry.route
            if _does(theirs) != _does(route):
                raise foreign_route(write, theirs, entry.protocol)
        self.routes[route.key] = _RouteEntry(route, ROUTE_PROTOCOL)

    def _is_neighbour(self, name: str, gateway: IPAddress) -> bool:
        return any(item.link == name and gateway in item.interface.network for item in self.addresses.values())


def _sorted(writes: Sequence[Write]) -> Iterator[Write]:
    links = in_order([write for write in writes if isinstance(write.new, Link)], _wanted_link)
    rules = sorted((write for write in writes if write.key[0] is Kind.RULE), key=rule_order)
    others = [write for write in writes if not isinstance(write.new, Link) and write.key[0] is not Kind.RULE]
    yield from sorted([*links, *others, *rules], key=_order)


def _wanted_link(write: Write) -> Link:
    assert isinstance(write.new, Link)
    return write.new


def _other_end(link: Link) -> str | None:
    return link.info.other_end if isinstance(link.info, GenericInfo) else None


def _named(wanted: Attributes, found: Attributes) -> Attributes:
    """What was found under the wanted names, nested as these are."""
    there = dict(found)
    return tuple((name, _value(value, there[name])) for name, value in wanted if name in there)


def _value(wanted: AttributeValue, found: AttributeValue) -> AttributeValue:
    return _named(wanted, found) if isinstance(wanted, tuple) and isinstance(found, tuple) else found


def _does(route: Route) -> tuple[object, ...]:
    return (route.type, route.link, route.gateway, route.encapsulation)


def _order(write: Write) -> tuple[int, int]:
    """Deletions backwards, then creations; addresses, WireGuard's peers and rules go only after others were added."""
    kind = write.key[0]
    if write.new is None and kind not in (Kind.ADDRESS, Kind.WIREGUARD_PEER, Kind.RULE):
        return (0, -kind)
    return (1, 2 * kind + (1 if write.new is None else 0))


def _unowned(link: Link) -> Link:
    """A device as it is; one of a foreign kind never carries our mark."""
    return replace(link, marked=False) if isinstance(link.info, ForeignInfo) else link


def _seen(ways: tuple[FdbEntry, ...]) -> FdbEntry:
    return ways[0] if len(ways) == 1 else replace(ways[0], remote=SEVERAL)


def _drop(table: dict[Key, _T], gone: Callable[[_T], bool]) -> list[Key]:
    keys = [key for key, item in table.items() if gone(item)]
    for key in keys:
        del table[key]
    return keys
