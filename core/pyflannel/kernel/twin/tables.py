"""What the twin holds, who sees what of it, and what goes along when something goes: the kernel's own rules.

Whatever changes is told as the real kernel tells it: as a change of what is in the port's scope, as an interface that
somebody may have to look at, or as the need of a new dump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

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
    Notice,
    Scope,
)
from pyflannel.kernel.qdiscs import FOREIGN
from pyflannel.network.lease import lies_in
from pyflannel.small.wake import Wake

__all__ = ["FOREIGN_PROTOCOL", "RouteEntry", "Tables", "other_end", "unowned"]

FOREIGN_PROTOCOL = 4
"""The protocol number of a route that somebody else adds (``RTPROT_STATIC``)."""

_T = TypeVar("_T")


@dataclass(slots=True)
class RouteEntry:
    """A route, and who says that it is theirs: a protocol number."""

    route: Route
    protocol: int


class Tables:
    """See the module's docstring.

    :param links: the devices that are there from the start, all up unless they say otherwise.
    :param addresses: their addresses.
    :param sysctls: the kernel parameters that exist.
    """

    def __init__(
        self,
        links: Iterable[Link] = (),
        addresses: Iterable[Address] = (),
        sysctls: Mapping[str, str] | None = None,
    ) -> None:
        self.links: dict[str, Link] = {link.name: unowned(link) for link in links}
        self.addresses: dict[Key, Address] = {address.key: address for address in addresses}
        self.neighbours: dict[Key, Neighbour] = {}
        self.fdb: dict[Key, tuple[FdbEntry, ...]] = {}
        self.routes: dict[Key, RouteEntry] = {}
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
        self._scope = Scope()
        self._pending = Notice()
        self._wakeup = Wake()

    # what is told

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
        master = None if wanted is not None and wanted.master is None else link.master or ""
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

    def _is_ours(self, entry: RouteEntry) -> bool:
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

    def _in_a_space(self, route: Route) -> bool:
        return route.table == MAIN_TABLE and any(lies_in(route.destination, space) for space in self._scope.spaces)

    def _put_wireguard(self, item: WireguardDevice | WireguardPeer, old: KernelObject | None = None) -> None:
        if isinstance(item, WireguardPeer):
            for key, other in list(self.wireguard.items()):
                if isinstance(other, WireguardPeer) and other.link == item.link and key != item.key:
                    left = tuple(ip for ip in other.allowed_ips if ip not in item.allowed_ips)
                    self.wireguard[key] = replace(other, allowed_ips=left)
            if not isinstance(old, WireguardPeer) or old.endpoint != item.endpoint:
                self.learned.pop(item.key, None)
        self.wireguard[item.key] = item

    # what changes, and what goes along

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
            if name == other_end(other) or other.name == other_end(link):
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
        self._pending.resync |= self._in_scope(self.links[name])
        if gone.interface.version == 4:
            self._pending.resync |= self._carries_routes(name)
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


def other_end(link: Link) -> str | None:
    """The name of a veth's other end."""
    return link.info.other_end if isinstance(link.info, GenericInfo) else None


def _named(wanted: Attributes, found: Attributes) -> Attributes:
    """What was found under the wanted names, nested as these are."""
    there = dict(found)
    return tuple((name, _value(value, there[name])) for name, value in wanted if name in there)


def _value(wanted: AttributeValue, found: AttributeValue) -> AttributeValue:
    return _named(wanted, found) if isinstance(wanted, tuple) and isinstance(found, tuple) else found


def unowned(link: Link) -> Link:
    """A device as it is; one of a foreign kind never carries our mark."""
    return replace(link, marked=False) if isinstance(link.info, ForeignInfo) else link


def _drop(table: dict[Key, _T], gone: Callable[[_T], bool]) -> list[Key]:
    keys = [key for key, item in table.items() if gone(item)]
    for key in keys:
        del table[key]
    return keys
