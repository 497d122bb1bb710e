"""What others do to the twin's kernel: people with ``ip``, network managers, a router's advertisement, a roaming peer.

They may put and remove anything at any time; the port hears of it as of the real kernel's changes.
"""

from __future__ import annotations

from pyflannel.kernel.model import (
    MAIN_TABLE,
    ROUTE_PROTOCOL,
    Endpoint,
    FdbEntry,
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
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
)
from pyflannel.kernel.twin.tables import FOREIGN_PROTOCOL, RouteEntry, Tables, unowned
from pyflannel.kernel.wire import is_flooded

__all__ = ["Others"]


class Others(Tables):
    """The tables, with what others do to them."""

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
        link = self.links[link.name] = unowned(link)
        self._pending.interfaces.add(link.name)
        if self._in_scope(link):
            self._tell(link.key, self._reported(link), True)
            self._pending.resync = True

    def _put_foreign_route(self, route: Route, protocol: int) -> None:
        before = self.routes.get(route.key)
        entry = self.routes[route.key] = RouteEntry(route, protocol)
        if self._is_ours(entry):
            self._tell(route.key, route, True)
            return
        self._tell(route.key, None, before is not None and self._is_ours(before))
        if route.table != MAIN_TABLE:
            return
        self._pending.diversions |= self._in_a_space(route)
        if route.link is not None:
            self._pending.interfaces.add(route.link)
