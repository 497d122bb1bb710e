"""The port itself: it opens the sockets, joins the parts, and has the orders in which things are read and written.

Order of work in :meth:`NetlinkPort.apply`: deletions of IPsec policies, routes, forwarding entries, neighbours and
links; then links, sysctls, addresses; then deletions of addresses; then neighbours, forwarding entries, WireGuard's
devices and peers and deletions of such peers; then routes, rules and deletions of rules, IPsec policies, labels;
then the deletion of routes whose destination has got another one, so that no packet is without one in between; last
queueing disciplines. Addresses are deleted after others were added because the kernel drops all IPv4 routes of a link
together with its last address. WireGuard and IPsec have protocols of their own: :mod:`~pyflannel.kernel.wireguard`,
:mod:`~pyflannel.kernel.xfrm`.
"""

from __future__ import annotations

import select
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pyflannel.errors import KernelError
from pyflannel.kernel import wire
from pyflannel.kernel.creations import Creations
from pyflannel.kernel.inventory import answer
from pyflannel.kernel.links import in_order
from pyflannel.kernel.model import (
    ROUTE_PROTOCOL,
    Address,
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
from pyflannel.kernel.mpls import Labels
from pyflannel.kernel.netlink.batch import GONE, Batches, Encoded
from pyflannel.kernel.netlink.devices import Devices
from pyflannel.kernel.netlink.dumps import Dumps
from pyflannel.kernel.netlink.entries import Entries
from pyflannel.kernel.netlink.found import Different, Found
from pyflannel.kernel.netlink.listener import GROUPS, Listener
from pyflannel.kernel.netlink.picture import Picture
from pyflannel.kernel.netlink.surroundings import look_around
from pyflannel.kernel.netlink.sysctls import Sysctls
from pyflannel.kernel.netns import call_in
from pyflannel.kernel.port import (
    NOTHING,
    ForeignLink,
    ForeignRoute,
    KernelPort,
    Notice,
    Scope,
    Surroundings,
    Write,
    apart,
    following,
)
from pyflannel.kernel.rtsocket import NETLINK_GENERIC, NETLINK_XFRM, NotificationSocket, RequestSocket
from pyflannel.kernel.wireguard import Wireguard
from pyflannel.kernel.xfrm import POLICY_GROUP, Xfrm, ours
from pyflannel.network.underlay import Question, Way
from pyflannel.small.wake import Wake

__all__ = ["NetlinkPort"]

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
    MplsRoute: Kind.MPLS_ROUTE,
}

T = TypeVar("T")


class NetlinkPort(KernelPort):
    """The kernel of the network namespace that the calling thread is in, or of the one at ``netns``.

    :raises KernelError: no netlink, no such namespace, or no right to enter it.
    """

    def __init__(self, netns: Path | None = None) -> None:
        self._netns = netns
        self._picture = Picture()
        self._closed = False
        self._request, self._notified = self._inside(lambda: (RequestSocket(), NotificationSocket(GROUPS)))
        self._wireguard = Wireguard(lambda: self._inside(lambda: RequestSocket(NETLINK_GENERIC)))
        self._xfrm = Xfrm(lambda: self._inside(_open_xfrm))
        self._listener = Listener(self._picture, self._notified, self._request.port_id, self._xfrm)
        self._dumps = Dumps(self._picture, self._request)
        self._sysctls = Sysctls(self._inside)
        batches = self._batches = Batches(self._request, self._notified, self._between)
        self._devices = Devices(self._picture, self._dumps, self._listener, batches, self._inside)
        self._entries = Entries(self._picture, self._dumps, self._listener, batches)
        self._labels = Labels(self._request, self._inside)
        self._wakeup = Wake()
        self._epoll = select.epoll()
        self._epoll.register(self._notified.fileno(), select.EPOLLIN)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._dumps.links()

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
        found = Found(known)
        self._read(scope, found, known)
        return found.objects

    def differing(
        self, scope: Scope, wanted: Mapping[Key, KernelObject], lacking: list[bytes] | None = None
    ) -> dict[Key, KernelObject | None]:
        found = Different(wanted, lambda name: self._picture.table.index(name))
        self._read(scope, found, wanted)
        return found.differences(lacking)

    def _read(self, scope: Scope, found: Found, known: Mapping[Key, KernelObject]) -> None:
        """Bring together all that is there."""
        self._listener.drain()
        pending = self._picture.pending
        pending.changes.clear()
        pending.resync = False
        self._picture.scope = scope
        self._picture.route_links.clear()
        self._dumps.links()
        found.update(self._picture.ours.values())
        found.update(self._sysctls.read(scope))
        self._dumps.entries(found)
        found.update(self._wireguard.read(self._picture.wireguard_links(), known))
        self._read_policies(found, known)
        self._dumps.routes(found)
        found.update(self._dumps.rules())
        found.update(self._dumps.qdiscs().values())
        self._read_labels(found)
        self._announce()

    def _read_labels(self, found: Found) -> None:
        for row in self._labels.read():
            if row.protocol == ROUTE_PROTOCOL:
                self._picture.route_links.add(row.link)
                found.add(row.route(self._picture.table.name(row.link)))

    def _read_policies(self, found: Found, known: Mapping[Key, KernelObject]) -> None:
        if self._picture.scope.xfrm or any(link.info.kind == "xfrm" for link in self._picture.ours.values()):
            self._follow_policies()
        found.update(ours(self._xfrm.read(), known))

    def _follow_policies(self) -> None:
        if self._xfrm.is_open:
            return
        try:
            self._epoll.register(self._xfrm.open(), select.EPOLLIN)
        except KernelError:
            return  # a kernel without any has none of ours, and refuses those that are written

    def look_around(self) -> Surroundings:
        return look_around(self._picture, self._request, self._xfrm.read())

    def ask_ways(self, questions: Sequence[Question]) -> list[Way | str]:
        return [answer(self._request, self._picture.table, question) for question in questions]

    def clear(self, found: Iterable[ForeignRoute | ForeignLink]) -> tuple[KernelError, ...]:
        errors: dict[Key, KernelError] = {}
        steps = []
        for item in found:
            if isinstance(item, ForeignLink):
                _each(Write(item.link, None), self._devices.delete, errors)
                continue
            write = Write(item.route, None)
            index = self._picture.table.index(item.route.link) if item.route.link is not None else 0
            if index is not None:
                message = wire.encode_route(wire.RTM_DELROUTE, item.route, index, protocol=item.protocol)
                steps.append(Encoded(write, (message,), GONE))
        self._batches.send(steps, errors)
        return tuple(errors.values())

    # what others change

    def fileno(self) -> int:
        """See :meth:`KernelPort.fileno`: an epoll descriptor over the socket and what was read from it meanwhile."""
        return self._epoll.fileno()

    def poll(self) -> Notice:
        self._listener.drain()
        if self._listener.reread or self._sysctls.silent_changed(self._picture.scope):
            self._listener.reread = False
            self._picture.pending.changes.update(self._sysctls.changes(self._picture.scope))
        self._reread_wireguard()
        self._wakeup.drain()
        notice, self._picture.pending = self._picture.pending, Notice()
        return notice

    def _reread_wireguard(self) -> None:
        try:
            self._picture.pending.changes.update(self._wireguard.reread(self._picture.wireguard_links()))
        except KernelError:
            self._picture.pending.resync = True  # the dump that this asks for says what is wrong, to those who can wait

    def _announce(self) -> None:
        pending = self._picture.pending
        if pending.changes or pending.interfaces or pending.resync or pending.diversions or self._listener.reread:
            self._wakeup.set()

    def _between(self) -> None:
        self._listener.drain()
        self.progress()

    # what we change

    def apply(self, writes: Sequence[Write]) -> Mapping[Key, KernelError]:
        return self.fill(writes, ())

    def fill(self, writes: Sequence[Write], plans: Sequence[bytes]) -> Mapping[Key, KernelError]:
        self._listener.drain()
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
            self._entries.delete(deleted[kind], failures)
        for write in deleted[Kind.LINK]:
            _each(write, self._devices.delete, failures)
        for write in in_order(put[Kind.LINK], _wanted_link):
            _each(write, self._devices.put, failures)
        # On a node that begins to forward the kernel forgets a router's advertisements, unless accept_ra said before.
        for write in sorted(
            put[Kind.SYSCTL], key=lambda write: not str(write.new).partition("=")[0].endswith("/accept_ra")
        ):
            _each(write, self._sysctls.put, failures)
        self._entries.put(put[Kind.ADDRESS], failures)
        self._entries.delete(deleted[Kind.ADDRESS], failures)
        made = Creations(plans, self._picture.plainly_on)
        for kind in (Kind.NEIGHBOUR, Kind.FDB):
            self._entries.put([*put[kind], *self._entries.make(made, kind)], failures)
        wireguard = [*put[Kind.WIREGUARD], *put[Kind.WIREGUARD_PEER], *deleted[Kind.WIREGUARD_PEER]]
        self._wireguard.put(wireguard, self._picture.index, failures)
        put[Kind.ROUTE] += self._entries.make(made, Kind.ROUTE)
        self._entries.put_routes(put[Kind.ROUTE], failures)
        self._entries.put_rules([*put[Kind.RULE], *deleted[Kind.RULE]], failures)
        self._put_policies(put[Kind.XFRM_POLICY], failures)
        self._put_labels([*deleted[Kind.MPLS_ROUTE], *put[Kind.MPLS_ROUTE]], failures)
        self._listener.echoes.clear()
        succeeded = following(succeeded, put[Kind.ROUTE], failures)
        self._entries.delete(succeeded, failures)
        for write in (*put[Kind.QDISC], *deleted[Kind.QDISC]):
            _each(write, self._devices.put_qdisc, failures)
        self._announce()
        return failures

    def _put_policies(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        if writes:
            self._follow_policies()
            self._xfrm.put(writes, failures, self._between)

    def _put_labels(self, writes: list[Write], failures: dict[Key, KernelError]) -> None:
        if not writes:
            return
        links = (write.new.link for write in writes if isinstance(write.new, MplsRoute))
        self._picture.route_links.update(self._picture.table.index(link) or 0 for link in links)
        encoded = self._labels.encoded(writes, self._picture.index, failures)
        self._batches.send((Encoded(write, (message,), done) for write, message, done in encoded), failures)


def _each(write: Write, do: Callable[[Write], None], failures: dict[Key, KernelError]) -> None:
    try:
        do(write)
    except KernelError as error:
        failures[write.key] = error


def _wanted_link(write: Write) -> Link:
    assert isinstance(write.new, Link)
    return write.new


def _open_xfrm() -> tuple[RequestSocket, NotificationSocket]:
    return RequestSocket(NETLINK_XFRM), NotificationSocket([POLICY_GROUP], NETLINK_XFRM)
