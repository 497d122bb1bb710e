"""What we write into the twin's kernel: done, or refused with the error that the real one has for it."""

from __future__ import annotations

import errno
from dataclasses import replace

from pyflannel.kernel.links import can_become
from pyflannel.kernel.model import (
    ROUTE_PROTOCOL,
    Address,
    FdbEntry,
    ForeignInfo,
    GenericInfo,
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
    Write,
)
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
from pyflannel.kernel.twin.tables import RouteEntry, Tables, other_end
from pyflannel.network.lease import IPAddress

__all__ = ["Ours"]

_MASTERS = frozenset({"bond", "bridge", "team", "vrf"})
"""The kinds of devices that others can be a part of."""


class Ours(Tables):
    """The tables, with what we do to them."""

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
        end = other_end(kept)
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
        self.routes[route.key] = RouteEntry(route, ROUTE_PROTOCOL)

    def _is_neighbour(self, name: str, gateway: IPAddress) -> bool:
        return any(item.link == name and gateway in item.interface.network for item in self.addresses.values())


def _does(route: Route) -> tuple[object, ...]:
    return (route.type, route.link, route.gateway, route.encapsulation)
