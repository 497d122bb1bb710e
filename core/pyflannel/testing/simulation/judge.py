"""The judge of a simulation: what must hold, looked at after every step.

It believes no daemon. What a packet would meet it reads from the kernels in memory, whose lease is whose from the
store's own table, and what a kernel should hold from a plan made anew. What it forgives is what nobody could keep: a
node can't know of a deleted lease before it is told, so whoever was robbed, copied or cut off has
:data:`PROMISE` seconds from the moment in which nothing hinders it any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from typing import Final, Protocol

from pyflannel.errors import PyflannelError
from pyflannel.kernel.model import (
    ROUTE_PROTOCOL,
    FdbEntry,
    KernelObject,
    Key,
    Link,
    MplsRoute,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    Sysctl,
    WireguardPeer,
)
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPAddress, Subnets, lies_in
from pyflannel.planning.overlay import Overlay
from pyflannel.store import CONFIG_KEY, Record
from pyflannel.testing.simulation.agenda import Agenda
from pyflannel.testing.simulation.node import FOREIGN, SimulatedNode
from pyflannel.testing.simulation.paths import way
from pyflannel.testing.simulation.plane import SECRET_DEVICE, SecretBackend
from pyflannel.testing.simulation.stores import Expired, StoreModel

__all__ = ["INVARIANTS", "PROMISE", "Evidence", "Judge", "Violation"]

PROMISE: Final = 120.0
"""Seconds within which all is as it should be again, once nothing hinders it."""

CONNECTED: Final = 60.0
"""Seconds within which two nodes are connected that reach the store and each other; most are in ten."""

RENEWED: Final = 45.0
"""Seconds within which a node renews its lease that could not before: the longest pause and a call, twice."""

HEARD: Final = 10.0
"""Seconds within which everybody has heard that a record has expired."""

BUSY: Final = 400
"""Turns of one node within :data:`BUSY_TIME` that are too many."""

BUSY_TIME: Final = 5.0
"""Seconds."""

MOMENT: Final = 2000
"""Steps without any time passing that are too many."""

CALLS: Final = 400
"""Calls to the store of one node within a minute that are too many."""

INVARIANTS: Final[Mapping[str, str]] = {
    "shared": "no two living nodes hold one subnet, or overlapping ones",
    "held": "a lease that a node takes for its own is its own in the store",
    "expired": "a lease that its node can renew never expires",
    "drift": "a quiet node's kernel holds its plan for what is in the store, and nothing else of ours",
    "foreign": "what somebody else has in a kernel stays",
    "hostile": "nothing is programmed for a lease that nobody can have",
    "cut": "two nodes that can reach each other and the store are connected within the promised time",
    "forwarding": "what goes on in the store or in daemons takes no connection away",
    "plain": "once a network has changed to a backend that encrypts, nothing goes by the former one",
    "busy": "no step takes unbounded work",
    "quiet": "a cluster that nothing befalls comes to rest: no trouble, no writes, few calls",
    "stumble": "nothing in a daemon raises what it must not",
}
"""What is checked, by the name under which a violation is reported."""


class Violation(AssertionError):  # noqa: N818 - it is a verdict
    """What must hold does not.

    :param name: a key of :data:`INVARIANTS`.
    """

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {INVARIANTS[name]}; but {what}")
        self.name = name


class Evidence(Protocol):
    """What the judge looks at."""

    agenda: Agenda
    model: StoreModel
    network: NetworkConfig
    nodes: list[SimulatedNode]
    clones: list[SimulatedNode]
    broken_documents: int

    @property
    def everybody(self) -> Sequence[SimulatedNode]:
        """All nodes with a daemon or a kernel that others may know."""

    @property
    def store_is_down(self) -> bool:
        """Whether the store answers nobody at present."""


class Judge:
    """Holds one history against the invariants."""

    def __init__(self, cluster: Evidence) -> None:
        self._cluster = cluster
        self.store_troubled_until = 0.0
        self.slowest = 0.0
        """The longest time in seconds that a pair which nothing hindered has waited to be connected."""
        self._able: dict[str, float] = {}
        """Since when a node has had all that it needs to do what it must."""
        self._renewing: dict[str, float] = {}
        """Since when it has had all that it needs to renew its lease, which is less."""
        self._robbed: dict[str, float] = {}
        """Nodes whose lease somebody else has taken, deleted or written to, and when."""
        self._disturbed: dict[str, float] = {}
        """Nodes whose kernel, table or underlay something else has changed last, and when."""
        self._contested: dict[str, float] = {}
        """Machines of which there was a copy alike in everything, and when that was known last."""
        self._waiting: dict[str, float] = {}
        """Nodes in whose place somebody else's lease was, and when that was last."""
        self._refused: dict[str, tuple[int, float]] = {}
        """How many writes a node's kernel has refused, and when it did so last."""
        self._lapsed: list[Expired] = []
        """What has expired lately."""
        self._wronged: dict[str, float] = {}
        """Nodes whose lease in the store was not what they had made of it, as somebody wrote there or it has expired,
        and when that was last: whoever hears of it, however late, may forget such a node."""
        self._settled: dict[tuple[str, str], float] = {}
        """When a pair has last had time enough to hear of all that was before."""
        self._connected: dict[tuple[str, str], bool] = {}
        self._sealed_since: float | None = None
        """Since when the network has a backend that encrypts, by way of a change."""
        self._changing = False
        self._waited_for: set[str] = set()
        """The nodes whose lease was in the store, as they had written it, since the last change began."""
        self._paths: dict[tuple[str, str], tuple[object, frozenset[str]]] = {}
        """What was found out about a pair, and what it depended on."""
        self._broken_since: dict[tuple[str, str], float] = {}
        self._seen: dict[str, tuple[object, ...]] = {}
        self._written: dict[str, int] = {}
        self._counted: dict[str, tuple[int, int, float]] = {}
        self._next_look = 0.0
        self._changes = 0
        self._moment = (0.0, 0)
        self._subnets: dict[tuple[str, str], Subnets] = {}

    # What is forgiven

    def disturb(self, node: SimulatedNode) -> None:
        """A node's kernel, table or underlay is changed by something else."""
        self._disturbed[node.name] = self._now

    def rob(self, node: SimulatedNode) -> None:
        """A node's lease is deleted or written to by somebody else."""
        self._robbed[node.name] = self._wronged[node.name] = self._now
        self._waited_for.discard(node.name)

    def contested(self, node: SimulatedNode) -> None:
        """There is, or was until now, a copy of a node."""
        self._contested[node.hardware] = self._now

    def change_begins(self) -> None:
        """A change of the network begins: it may end what the last one has led to."""
        self._changing, self._sealed_since = True, None
        self._waited_for = {node.name for node in self._cluster.nodes if self._has_lease(node)}

    def change_ends(self, target: str) -> None:
        """It is over, with this backend; empty if it was turned round."""
        self._changing = False
        self._waited_for &= {node.name for node in self._cluster.nodes if self._has_lease(node)}
        self._sealed_since = self._now if target == SecretBackend.name else None

    def _has_lease(self, node: SimulatedNode) -> bool:
        return any(_names(record.value, node) for record in self._cluster.model.records().values())

    def forget(self, node: SimulatedNode) -> None:
        """A node is gone."""
        marks = (self._able, self._renewing, self._robbed, self._waiting, self._refused, self._wronged)
        for table in (*marks, self._disturbed, self._seen, self._written, self._counted):
            table.pop(node.name, None)
        self._connected = {pair: value for pair, value in self._connected.items() if node.name not in pair}
        self._broken_since = {pair: at for pair, at in self._broken_since.items() if node.name not in pair}

    def reconsider(self) -> None:
        """A fault began or ended: since when is a node able to do what it must?"""
        self._next_look = self._now
        for one, other in combinations(self._cluster.nodes, 2):
            self._settle(one, other)
        for node in self._cluster.everybody:
            for since, able in ((self._able, self._is_able(node)), (self._renewing, self._can_renew(node))):
                if able:
                    since.setdefault(node.name, self._now)
                else:
                    since.pop(node.name, None)

    def _can_renew(self, node: SimulatedNode) -> bool:
        store_answers = not self._cluster.store_is_down and self._now >= self.store_troubled_until
        started = not self._cluster.broken_documents or node.slot.state.lease is not None
        return node.running and node.wire.sound and store_answers and started

    def _is_able(self, node: SimulatedNode) -> bool:
        hindered = node.unpublished or node.table.refusing or self._cluster.broken_documents
        return self._can_renew(node) and node.up and not hindered

    @property
    def _now(self) -> float:
        return self._cluster.agenda.now

    def _able_for(self, node: SimulatedNode) -> float:
        """How many seconds a node has had all that it needs, its kernel left alone, its lease its own."""
        able = self._able.get(node.name)
        if able is None:
            return 0.0
        marks = (
            self._disturbed.get(node.name, 0.0),
            self._robbed.get(node.name, 0.0),
            self._waiting.get(node.name, 0.0),
            self._refused.get(node.name, (0, 0.0))[1],
            self._contested.get(node.hardware, 0.0),
        )
        return self._now - max(able, *marks)

    # After every step

    def step(self) -> None:
        """Look at everything that may have changed.

        :raises Violation: something does not hold.
        """
        self._check_moment()
        self._check_expired()
        changed = [node for node in self._cluster.everybody if self._has_changed(node)]
        if changed or self._cluster.model.changes != self._changes:
            self._changes = self._cluster.model.changes
            self._check_claims()
        for node in changed:
            self._check_foreign(node)
            self._check_writes(node)
        for node in self._cluster.everybody:
            self._check_work(node)
            if node.kernel.refused != self._refused.get(node.name, (0, 0.0))[0]:
                self._refused[node.name] = node.kernel.refused, self._now
        if changed or self._now >= self._next_look:
            self._check_paths()
            self._next_look = self._now + 5.0

    def _check_moment(self) -> None:
        """Whether time goes on at all."""
        moment, steps = self._moment
        self._moment = (self._now, steps + 1 if moment == self._now else 0)
        if self._moment[1] > MOMENT:
            raise Violation("busy", f"{MOMENT} things have happened at one moment")

    def _has_changed(self, node: SimulatedNode) -> bool:
        state = node.state
        now = (node.touched, node.life, state.lease, state.valid(self._now), node.address, node.up, node.table.changes)
        if self._seen.get(node.name) == now:
            return False
        self._seen[node.name] = now
        return True

    def _check_expired(self) -> None:
        expired, self._cluster.model.expired = self._cluster.model.expired, []
        if expired:
            self._lapsed = [gone for gone in (*self._lapsed, *expired) if self._now - gone.at <= HEARD]
        for gone in expired:
            for node in self._cluster.everybody:
                if _names(gone.record.value, node):
                    self._wronged[node.name] = gone.at
                    self._waited_for.discard(node.name)
                    self._check_lapse(node, gone)

    def _check_lapse(self, node: SimulatedNode, gone: Expired) -> None:
        """Whether it is a node's own fault that its lease has expired."""
        since = self._renewing.get(node.name)
        contested = self._contested.get(node.hardware, -1e9)
        if _key(node) == gone.key and since is not None and gone.at - max(since, contested) > RENEWED:
            raise Violation("expired", f"{gone.key} of {node.name} has")

    def _holders(self) -> Iterator[tuple[SimulatedNode, Subnets]]:
        for node in self._cluster.everybody:
            state = node.state
            if not node.alive or state.lease is None or state.conflict or not state.valid(self._now):
                continue
            yield node, state.lease.subnets

    def _check_claims(self) -> None:
        records = self._cluster.model.records()
        for node, subnets in self._holders():
            record, ends = records.get(_key_of(subnets)), node.state.expires_at
            there = record is not None and (node.state.permanent or _names(record.value, node))
            over = ends is not None and ends - self._now <= self._cluster.model.early
            if not there and not over and not self._is_forgiven(node):
                raise Violation("held", f"{node.name} takes {subnets} for its own until {ends}")
        for (one, ours), (other, theirs) in combinations(self._holders(), 2):
            if ours.overlaps(theirs) and not (self._is_forgiven(one) or self._is_forgiven(other)):
                raise Violation("shared", f"{one.name} holds {ours} and {other.name} {theirs}")

    def _is_forgiven(self, node: SimulatedNode) -> bool:
        """Whether a node's claim may be wrong: it was robbed or copied, and could not have learned of it yet."""
        wronged = node.name in self._robbed or node.hardware in self._contested
        if not wronged:
            return False
        if self._able_for(node) <= PROMISE:
            return True
        self._robbed.pop(node.name, None)
        if all(clone.hardware != node.hardware for clone in self._cluster.clones):
            self._contested.pop(node.hardware, None)
            return False
        return True

    def _check_foreign(self, node: SimulatedNode) -> None:
        kernel = node.kernel
        for item in FOREIGN:
            there = _holds(node, item)
            if not there and not (isinstance(item, Route) and item.link == "eth0" and not node.up):
                raise Violation("foreign", f"{item} has gone from the kernel of {node.name}")
        if node.up and any(item.key not in kernel.addresses for item in node.underlay):
            raise Violation("foreign", f"the underlay's addresses have gone from the kernel of {node.name}")

    def _check_writes(self, node: SimulatedNode) -> None:
        writes = node.kernel.writes
        new = writes[self._written.get(node.name, 0) :] if self._written.get(node.name, 0) <= len(writes) else writes
        self._written[node.name] = len(writes)
        for write in new:
            if write.new is not None:
                self._check_write(node, write.new)

    def _check_write(self, node: SimulatedNode, item: KernelObject) -> None:
        wrong = ""
        if isinstance(item, Route):
            wrong = self._wrong_route(node, item)
        elif isinstance(item, FdbEntry):
            wrong = _wrong_address(item.remote)
        elif isinstance(item, Neighbour):
            wrong = _wrong_link_layer(item.mac)
        elif isinstance(item, WireguardPeer) and item.endpoint is not None:
            wrong = _wrong_address(item.endpoint.address)
        if wrong:
            raise Violation("hostile", f"{node.name} programs {item}: {wrong}")

    def _wrong_route(self, node: SimulatedNode, route: Route) -> str:
        if route.gateway is not None and route.link == "eth0" and _wrong_address(route.gateway):
            return _wrong_address(route.gateway)
        family = self._cluster.network.family(route.destination.version)
        if family is None or not lies_in(route.destination, family.network):
            return "outside the network"
        if route.destination.prefixlen <= family.network.prefixlen:
            return "the whole network"
        lease = node.state.lease
        mine = lease.subnets.of(route.destination.version) if lease is not None else None
        if mine is not None and route.link is not None and mine == route.destination and node.loop is not None:
            member = node.loop.joined
            if member is not None and member.overlay.node.subnets.of(mine.version) == mine:
                return "this node's own subnet"
        return ""

    def _check_work(self, node: SimulatedNode) -> None:
        turns, calls, since = self._counted.get(node.name, (node.turns, node.calls, self._now))
        if node.turns - turns > BUSY and self._now - since <= BUSY_TIME:
            raise Violation("busy", f"{node.name} took {node.turns - turns} turns in {self._now - since:.1f} s")
        if node.calls - calls > CALLS:
            raise Violation("busy", f"{node.name} made {node.calls - calls} calls in {self._now - since:.1f} s")
        if self._now - since > BUSY_TIME or node.name not in self._counted:
            self._counted[node.name] = (node.turns, node.calls, self._now)

    # Paths

    def _check_paths(self) -> None:
        holders = {node.name: subnets for node, subnets in self._holders()}
        records = self._cluster.model.records()
        both = {pair for pair, there in self._connected.items() if there and self._connected.get(pair[::-1])}
        for one in self._cluster.nodes:
            for other in self._cluster.nodes:
                subnets = holders.get(other.name)
                if one is other:
                    continue
                if subnets is None:
                    self._connected.pop((one.name, other.name), None)
                    if other.state.conflict:  # somebody else's lease is in its place, and until that goes it waits
                        self._waiting[other.name] = self._now
                        self._broken_since.pop((one.name, other.name), None)
                    continue
                mine = holders.get(one.name)
                in_store = _key_of(subnets) in records and mine is not None and _key_of(mine) in records
                spoke = in_store and (one.name, other.name) in both
                self._check_path(one, other, subnets, spoke)

    def _check_path(self, one: SimulatedNode, other: SimulatedNode, subnets: Subnets, spoke: bool) -> None:
        """Look at one way; ``spoke``: both ways led there before, and both leases are in the store."""
        pair = (one.name, other.name)
        links = self._way(pair, one, other, subnets)
        there = bool(links)
        same = self._subnets.get(pair) == subnets
        self._connected[pair], self._subnets[pair] = there, subnets
        if there:
            since = self._broken_since.pop(pair, None)
            if since is not None:
                able = min(self._able_for(one), self._able_for(other))
                self.slowest = max(self.slowest, min(self._now - since, able))
            self._check_secret(one, other, links)
            return
        self._broken_since.setdefault(pair, self._now)
        able = min(self._able_for(one), self._able_for(other))
        self._settle(one, other)
        wronged = not (self._has_heard(one, other) and self._has_heard(other, one))
        if spoke and same and not wronged and self._undisturbed(one) and self._undisturbed(other):
            raise Violation("forwarding", f"{one.name} does not reach {other.name} ({subnets}) any more")
        if able > CONNECTED and one.name in {node.name for node, _ in self._holders()}:
            raise Violation("cut", f"{one.name} does not reach {other.name} ({subnets}) after {able:.0f} s")

    def _check_secret(self, one: SimulatedNode, other: SimulatedNode, links: frozenset[str]) -> None:
        """Whether packets go by the backend that encrypts, if a change has led to one.

        Nobody has waited for a node whose lease was not there meanwhile; it learns of the change as of all else.
        """
        if self._sealed_since is None or links == {SECRET_DEVICE}:
            return
        if one.name in self._waited_for or self._able_for(one) > PROMISE:
            raise Violation("plain", f"{one.name} sends to {other.name} by {', '.join(sorted(links))}")

    def _way(self, pair: tuple[str, str], one: SimulatedNode, other: SimulatedNode, subnets: Subnets) -> frozenset[str]:
        """See :func:`way`, asked again only when something is different."""
        tables = (one.touched, one.table.changes, one.up, other.touched, other.table.changes, other.up, other.address)
        known = self._paths.get(pair)
        if known is None or known[0] != (subnets, tables):
            known = self._paths[pair] = ((subnets, tables), way(one, other, self._cluster.network.used(subnets)))
        return known[1]

    def _undisturbed(self, node: SimulatedNode) -> bool:
        marks = (
            self._disturbed.get(node.name, -1e9),
            self._wronged.get(node.name, -1e9),
            self._contested.get(node.hardware, -1e9),
        )
        return self._now - max(marks) > PROMISE and node.up

    def _settle(self, one: SimulatedNode, other: SimulatedNode) -> None:
        """Note whether two nodes have had time to hear of all that was before."""
        if min(self._able_for(one), self._able_for(other)) > PROMISE:
            self._settled[one.name, other.name] = self._settled[other.name, one.name] = self._now

    def _has_heard(self, one: SimulatedNode, other: SimulatedNode) -> bool:
        """Whether one node knows of all that others have done to the other's lease; else it hears of it late."""
        wronged = max(self._wronged.get(other.name, -1e9), self._contested.get(other.hardware, -1e9))
        return self._settled.get((one.name, other.name), -1e9 + 1) > wronged

    # When all is quiet

    def look_closely(self) -> None:
        """Nothing has befallen the cluster for a while: compare everything with what it should be.

        :raises Violation: something does not hold.
        """
        if self._changing:
            raise Violation("quiet", "the change of the network has not come to its end")
        for node in self._cluster.everybody:
            self._check_at_rest(node)
        self._check_all_joined()

    def _check_all_joined(self) -> None:
        for node in self._cluster.nodes:
            if node.state.lease is None or not node.state.valid(self._now) or node.state.conflict:
                raise Violation("quiet", f"{node.name} has no lease: {node.state.trouble or node.state}")

    def _check_at_rest(self, node: SimulatedNode) -> None:
        loop, state = node.loop, node.state
        if loop is None or loop.joined is None or not node.running:
            raise Violation("quiet", f"{node.name} has not joined: {state.trouble or state}")
        if state.trouble:
            raise Violation("quiet", f"{node.name} is still in trouble: {state.trouble}")
        member = loop.joined
        records = self._cluster.model.records()
        theirs = {key: record for key, record in records.items() if key not in (CONFIG_KEY, _key(node))}
        theirs |= self._not_heard_yet(node, records)
        others = {key: record.value for key, record in theirs.items()}
        if node.slot.records() != others:
            raise Violation("quiet", f"{node.name} knows {sorted(node.slot.records())} of {sorted(others)}")
        try:
            fresh = Overlay(member.backend, member.overlay.node, last=member.overlay.last)
            for key, record in sorted(theirs.items()):
                fresh.put(key, record.value, record.created)
        except PyflannelError as error:
            raise Violation("quiet", f"{node.name} can't plan: {error}") from error
        if member.overlay.node.underlay.public_ipv4 not in node.addresses:
            raise Violation("quiet", f"{node.name} goes by an address that it does not have")
        self._compare(node, fresh.desired)

    def _not_heard_yet(self, node: SimulatedNode, records: Mapping[str, Record]) -> dict[str, Record]:
        """What a node may still know of: it has expired just now."""
        return {
            gone.key: gone.record
            for gone in self._lapsed
            if self._now - gone.at <= HEARD and gone.key not in records and gone.key in node.slot.records()
        }

    def _compare(self, node: SimulatedNode, desired: Mapping[Key, KernelObject]) -> None:
        for item in desired.values():
            if not _holds(node, item):
                raise Violation("drift", f"{item} is missing in the kernel of {node.name}")
        for key in _ours(node):
            if key not in desired:
                raise Violation("drift", f"{key} should not be in the kernel of {node.name}")


def _names(value: str, node: SimulatedNode) -> bool:
    return f'"{node.node_id}"' in value


def _key(node: SimulatedNode) -> str:
    return _key_of(node.state.lease.subnets) if node.state.lease is not None else ""


@lru_cache(maxsize=1024)
def _key_of(subnets: Subnets) -> str:
    return subnets.key


def _holds(node: SimulatedNode, item: KernelObject) -> bool:
    """Whether a kernel has an object, just like this."""
    kernel = node.kernel
    if isinstance(item, Route):
        entry = kernel.routes.get(item.key)
        return entry is not None and entry.route == item
    if isinstance(item, Sysctl):
        return kernel.sysctls.get(item.path, item.value if item.optional else None) == item.value
    if isinstance(item, FdbEntry):
        return kernel.fdb.get(item.key) == (item,)
    if isinstance(item, Rule):
        return kernel.rules.get((item.key, ROUTE_PROTOCOL)) == item
    if isinstance(item, MplsRoute):
        return kernel.labels.get(item.key) == (item, ROUTE_PROTOCOL)
    if isinstance(item, Qdisc):
        return kernel.qdiscs.get(item.key) == (item, True)
    if isinstance(item, Link):
        link = kernel.links.get(item.name)
        return link is not None and replace(link, mac=item.mac and link.mac, marked=item.marked) == item
    tables: tuple[Mapping[Key, KernelObject], ...] = (kernel.addresses, kernel.neighbours, kernel.wireguard)
    return any(table.get(item.key) == item for table in tables)


def _ours(node: SimulatedNode) -> Iterator[Key]:
    """What a kernel holds on devices with our mark, and routes and rules with our protocol number."""
    kernel = node.kernel
    marked = {link.name for link in kernel.links.values() if link.marked}
    yield from (link.key for link in kernel.links.values() if link.marked)
    yield from (item.key for item in kernel.addresses.values() if item.link in marked)
    yield from (item.key for item in kernel.neighbours.values() if item.link in marked)
    yield from (key for key, ways in kernel.fdb.items() if ways[0].link in marked)
    yield from (key for key, entry in kernel.routes.items() if entry.protocol != 4)
    yield from (key for key, protocol in kernel.rules if protocol == ROUTE_PROTOCOL)
    yield from (key for key, (_, protocol) in kernel.labels.items() if protocol == ROUTE_PROTOCOL)
    yield from (key for key, (_, ours) in kernel.qdiscs.items() if ours)


def _wrong_link_layer(mac: str | IPAddress) -> str:
    if not isinstance(mac, str):
        return _wrong_address(mac)
    return f"a group's address {mac}" if int(mac[:2], 16) & 1 else ""


def _wrong_address(address: IPAddress) -> str:
    special = address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local
    return f"{address} is nobody's address" if special else ""
