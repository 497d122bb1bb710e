"""A node that is on its way from one setting to another: two backends, planned side by side as one.

The idea: whatever either backend needs for receiving is there, and of two ways to a peer exactly one is routed into,
the one that the rules of :mod:`pyflannel.network.change` name. What differs between the two ways is therefore one
route, which the kernel replaces in one step. Where a backend routes the whole network into its device, the peer's
subnet gets a route of its own there. Backends know nothing of this, so that those of third parties take part as they
are.

Where both can't be on one node (:mod:`pyflannel.planning.clashes`) the node goes on with the former backend alone, and
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network
from typing import Any, ClassVar

from pyflannel.backend import Backend, Capabilities, DesiredState, Node
from pyflannel.errors import PeerRejected, PluginError, PyflannelError
from pyflannel.kernel.model import KernelObject, Key, Link, Route
from pyflannel.network.change import NetworkChange, Phase, Sides, Step, receives, sends_new, sides
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPAddress, IPNetwork, Lease, Subnets, lies_in
from pyflannel.network.underlay import Underlay
from pyflannel.planning.clashes import clash, clashing, softened
from pyflannel.planning.guard import checked_mtu, guarded
from pyflannel.planning.judging import type_problem

__all__ = ["Part", "Side", "Standing", "Transition", "encrypts", "leads_to", "unroutable"]

_Objects = tuple[KernelObject, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two settings: its backend, and the network as its document has it."""

    backend: Backend[Any]
    network: NetworkConfig

    @property
    def name(self) -> str:
        """The backend's."""
        return self.backend.name

    def node(self, node: Node) -> Node:
        """This node's place under these settings."""
        return replace(node, network=self.network)

    def plan_node(self, node: Node) -> _Objects:
        """What the node needs."""
        return guarded(self.name, "plan_node", lambda: tuple(self.backend.plan_node(self.node(node))))

    def plan_peer(self, node: Node, peer: Lease) -> _Objects:
        """What it needs for a peer.

        :raises PeerRejected: the lease is none of these settings', or the backend can't use it.
        """
        untyped = guarded(self.name, "capabilities", lambda: bool(self.backend.capabilities.untyped_leases))
        reason = type_problem(peer, self.name, untyped)
        if reason:
            raise PeerRejected(reason)
        return guarded(self.name, "plan_peer", lambda: tuple(self.backend.plan_peer(self.node(node), peer)))

    def mtu(self, underlay: Underlay) -> int:
        """What containers may send."""
        return checked_mtu(self.name, guarded(self.name, "mtu", lambda: self.backend.mtu(underlay)))


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a peer stands in the change, as this node sees it.

    :param told: its node has said how it is reached by the new settings. ``by_next``: this node sends to it that way.
    :param trouble: why this node can't use what it says.
    :param ways: addresses of the peer that may answer a ping by one of the new settings' devices, before anything else
        is sent that way.
    """

    step: Step | None
    told: bool
    by_next: bool
    trouble: str = ""
    node_id: str | None = None
    ways: tuple[tuple[IPAddress, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A data plane's share of a transition: the backend that has it, and its peers as that side knows them."""

    backend: Backend[Any]
    node: Node
    lease: Callable[[Lease], Lease | None]
    essential: bool = True
    """Whether this node can't do without it at present."""


@dataclass(frozen=True, slots=True)
class _Ways:
    """What a peer's lease comes to. A side's plan is ``None`` where it has none, and then the reason says why."""

    former: _Objects | None
    next: _Objects | None
    reasons: tuple[str, str]
    told: Sides
    by_next: bool


class Transition(Backend[None]):
    """See the module's docstring. Frozen: another phase is another transition.

    :param own: how far this node has said that it is.
    :param graced: nothing that peers sent by the former settings is on its way any more.
    """

    name: ClassVar[str] = "transition"
    capabilities: ClassVar[Capabilities] = Capabilities(ipv6=True)

    def __init__(
        self, former: Side, following: Side, change: NetworkChange, own: Step | None = None, graced: bool = False
    ) -> None:
        super().__init__(None)
        self.former, self.following, self.change = former, following, change
        self.own, self.graced = own, graced
        self._planned: tuple[Node, tuple[_Objects, _Objects, str]] | None = None

    def at(self, own: Step | None, graced: bool) -> Transition:
        """The same, seen from a node that is further on, or less far; itself if that is where it is."""
        plans_by = (_counts(own), graced)
        if plans_by == (_counts(self.own), self.graced):
            return self
        return Transition(self.former, self.following, self.change, own, graced)

    @property
    def encrypts(self) -> bool:
        """Whether nothing that this node sends is readable on the underlay."""
        return all(side.backend.capabilities.encrypts for side in self._senders)

    @property
    def _senders(self) -> tuple[Side, ...]:
        """The sides by which this node may send."""
        return (self.following,) if self.change.phase is Phase.RETIRE else (self.former, self.following)

    @property
    def _receives(self) -> tuple[bool, bool]:
        return receives(self.change.phase, self.graced)

    @property
    def tunnelled(self) -> bool:
        """Whether packets come in by the devices of either alone."""
        old, _ = self._receives
        return self.following.backend.tunnelled and (not old or self.former.backend.tunnelled)

    def exits(self, node: Node) -> frozenset[str]:
        """The devices by which alone this node sends, and nothing readable; empty if it may send by others, too."""
        if not self.encrypts or not all(side.backend.tunnelled for side in self._senders):
            return frozenset()
        former, following, _ = self._node_plans(node)
        return _links(following if self.change.phase is Phase.RETIRE else (*former, *following))

    def mtu(self, underlay: Underlay) -> int:
        """What fits either way, until the change is over."""
        former = self.former.mtu(underlay)
        try:
            return min(former, self.following.mtu(underlay))
        except PyflannelError:
            if self.change.phase in (Phase.PREPARE, Phase.BACK):
                return former
            raise

    # The node

    def plan_node(self, node: Node) -> DesiredState:
        """What both need; the former alone where the other can't be."""
        former, following, trouble = self._node_plans(node)
        if trouble:
            if self.change.phase is Phase.RETIRE:
                raise PluginError(trouble)
            return DesiredState(former)
        if not self._receives[0]:
            return DesiredState(following)
        merged = list(_merged(former, following, prefer_second=self.change.phase is Phase.RETIRE))
        return DesiredState([*merged, *self._routes_to_try_by(former, following)])

    def _routes_to_try_by(self, former: _Objects, following: _Objects) -> Iterator[Route]:
        """Routes by which the new settings are tried where both have the whole network behind their device.

        The kernel sends an IPv6 packet by the device that it is told only if a route leads there. These come behind all
        that lead to the same place: no packet takes them that is not told to. Should what comes before them vanish, it
        is as good to be sent by the new settings, unless these alone don't encrypt.
        """
        if self.change.phase is not Phase.PREPARE or (
            self.former.backend.capabilities.encrypts and not self.following.backend.capabilities.encrypts
        ):
            return
        taken = {item.key: item for item in former if isinstance(item, Route)}
        for item in following:
            if isinstance(item, Route) and item.destination.version == 6 and item.link is not None:
                known = taken.get(item.key)
                if known is not None and known.link != item.link:
                    yield replace(item, metric=_last_metric((*former, *following), item) + 1)

    def trouble(self, node: Node) -> str:
        """What keeps this node from having the new settings beside the former ones; empty if nothing does."""
        return self._node_plans(node)[2]

    def essential(self, node: Node) -> _Objects:
        """What this node can't do without: all that it may send by in this phase."""
        former, following, _ = self._node_plans(node)
        if self.change.phase in (Phase.PREPARE, Phase.BACK):
            return former
        return (*former, *following)

    def leaving(self, node: Node) -> frozenset[str]:
        """The devices that go when this node has gone back."""
        former, following, _ = self._node_plans(node)
        return _links(following) - _links(former)

    def describe(self, node: Node) -> Mapping[str, str]:
        """What both tell of themselves."""
        return {
            **self.former.backend.describe(self.former.node(node)),
            **{
                f"next {name}": text
                for name, text in self.following.backend.describe(self.following.node(node)).items()
            },
        }

    def links(self, node: Node) -> frozenset[str]:
        """The devices of both."""
        former, following, _ = self._node_plans(node)
        return _links((*former, *following))

    def _node_plans(self, node: Node) -> tuple[_Objects, _Objects, str]:
        """What :meth:`_plan_sides` says, which is asked for again with every peer."""
        if self._planned is None or (self._planned[0] is not node and self._planned[0] != node):
            self._planned = node, self._plan_sides(node)
        return self._planned[1]

    def _plan_sides(self, node: Node) -> tuple[_Objects, _Objects, str]:
        """Both plans, and why there can't be the second; the first may only fail where nothing depends on it."""
        former: _Objects = ()
        if self._receives[0]:
            former = self.former.plan_node(node)
        try:
            following = self.following.plan_node(node)
        except PyflannelError as error:
            return former, (), str(error)
        found = clash(self.former.backend, self.following.backend, former, following) if former else ""
        return former, () if found else following, found

    # A peer

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """What both need to receive from it, and the one route by which it is sent to."""
        ways = self._ways(node, peer)
        number = self._routed(ways)
        plans = (ways.former or (), ways.next or ())
        objects = [item for n, plan in enumerate(plans) for item in plan if not isinstance(item, Route) or n == number]
        if (ways.former, ways.next)[number] is not None:
            objects += _own_routes(self._node_plans(node)[:2][number], plans[number], peer.subnets)
        elif not objects:
            raise PeerRejected(ways.reasons[number])
        return DesiredState(_merged([*_ways_to_gateways(objects), *objects], (), prefer_second=False))

    def _routed(self, ways: _Ways) -> int:
        """Whose routes are taken: 0 the former's, 1 the new one's. A peer that should be sent to by the new settings,
        and can't be yet, is sent to by the former ones as long as everybody receives them.
        """
        return int(ways.by_next and (ways.next is not None or self.change.phase is Phase.RETIRE))

    def _ways(self, node: Node, peer: Lease) -> _Ways:
        old, new = self._receives
        told = sides(peer, self.change.id)
        by_next = sends_new(self.change.phase, told.step, self.own)
        former, not_former = self._side_plan(self.former, node, told.old if old else None)
        following, not_next = self._side_plan(self.following, node, told.new if new else None)
        trouble = self.trouble(node)
        if trouble:
            following, not_next = None, trouble
        if former is not None and following is not None:
            found = clashing(former, following)
            if found:
                following, not_next = None, found
        return _Ways(former, following, (not_former, not_next), told, by_next)

    def _side_plan(self, side: Side, node: Node, peer: Lease | None) -> tuple[_Objects | None, str]:
        if peer is None:
            return None, f"its node has not said how it is reached by {side.name}"
        try:
            return side.plan_peer(node, peer), ""
        except PyflannelError as error:
            return None, str(error) or type(error).__name__

    def standing(self, node: Node, peer: Lease) -> Standing:
        """Where a peer stands. Costs as much as planning for it."""
        ways = self._ways(node, peer)
        trouble = ""
        if ways.told.new is not None and ways.next is None:
            trouble = f"{peer.subnets} can't be reached by {self.following.name}: {ways.reasons[1]}"
        else:
            trouble = self._unrouted(node, peer, ways)
        return Standing(
            ways.told.step,
            ways.told.new is not None,
            ways.by_next and ways.next is not None,
            trouble,
            peer.attributes.node_id,
            tuple(self._trials(node, peer, ways)),
        )

    def _trials(self, node: Node, peer: Lease, ways: _Ways) -> Iterator[tuple[IPAddress, str]]:
        """What can be tried before the switch: devices that have the whole network behind them, of one side alone.

        Such a device finds the peer by the packet's destination. Elsewhere the route says who the peer is, and that is
        not there yet; nor does such a device agree on anything with anybody.
        """
        if self.change.phase is not Phase.PREPARE or ways.next is None or ways.former is None:
            return
        former, following, _ = self._node_plans(node)
        links = _links(following) - _links(former)
        routed = {item.destination for item in ways.next if isinstance(item, Route)}
        for subnet in peer.subnets.each:
            covering = _covering(following, subnet) if subnet not in routed else None
            if covering is not None and covering.gateway is None and covering.link in links:
                yield subnet.network_address, covering.link

    def _unrouted(self, node: Node, peer: Lease, ways: _Ways) -> str:
        former, following, _ = self._node_plans(node)
        for side, around, plan in ((self.former, former, ways.former), (self.following, following, ways.next)):
            if plan is not None and not leads_to(around, plan, peer.subnets):
                return unroutable(side)
        return ""

    # Data planes

    def parts(self, node: Node) -> list[Part]:
        """The data planes that there are, each with its share of the peers."""
        old, new = self._receives
        found = []
        if old:
            found.append(Part(self.former.backend, self.former.node(node), lambda peer: self._share(node, peer, False)))
        if new and not self.trouble(node):
            used = self.change.phase in (Phase.SWITCH, Phase.RETIRE)
            place = self.following.node(node)
            found.append(Part(self.following.backend, place, lambda peer: self._share(node, peer, True), used))
        return found

    def _share(self, node: Node, peer: Lease, following: bool) -> Lease | None:
        ways = self._ways(node, peer)
        if following:
            return ways.told.new if ways.next is not None else None
        return ways.told.old if ways.former is not None else None


def _counts(own: Step | None) -> bool:
    """Whether what a node has said makes a difference to whom it sends to."""
    return own in (Step.SWITCHED, Step.RETIRED)


def _links(objects: Iterable[KernelObject]) -> frozenset[str]:
    return frozenset(item.name for item in objects if isinstance(item, Link))


def encrypts(backend: Backend[Any]) -> bool:
    """Whether nothing that a node sends with this backend is readable on the underlay."""
    return backend.encrypts if isinstance(backend, Transition) else backend.capabilities.encrypts


# Two plans at a time


def unroutable(side: Side) -> str:
    """What to say of a backend that leaves the routes to others."""
    return (
        f"backend {side.name} plans no routes to peers, so nothing can be switched from one way to the other; stop the "
        "daemons, write the new document with 'pyflannel config set --force', and start them"
    )


def _merged(one: Iterable[KernelObject], other: Iterable[KernelObject], prefer_second: bool) -> Iterator[KernelObject]:
    """Both plans as one. Of two routes with one key, one is taken: peers have routes of their own then."""
    found: dict[Key, KernelObject] = {}
    for second, item in [*((False, item) for item in one), *((True, item) for item in other)]:
        known = found.get(item.key)
        if known is None or known == item:
            found[item.key] = item
        elif isinstance(item, Route):
            found[item.key] = item if second and prefer_second else known
        else:
            found[item.key] = softened(known, item) or known
    yield from found.values()


def _own_routes(around: Iterable[KernelObject], plan: _Objects, subnets: Subnets) -> Iterator[Route]:
    """Routes to a peer's subnets that its plan lacks, made of the node's own route that leads there."""
    there = {item.destination for item in plan if isinstance(item, Route)}
    for subnet in subnets.each:
        if subnet not in there:
            covering = _covering(around, subnet)
            if covering is not None:
                yield replace(covering, destination=subnet)


def _ways_to_gateways(objects: Iterable[KernelObject]) -> Iterator[Route]:
    """Routes to IPv6 gateways that lie in what is routed through them, as vxlan's do.

    The kernel asks by which device the gateway is reached, and would hear of the other backend's, which has the whole
    network routed into it.
    """
    for item in objects:
        if isinstance(item, Route) and isinstance(item.gateway, IPv6Address) and item.gateway in item.destination:
            yield Route(IPv6Network(item.gateway), item.link)


def _covering(around: Iterable[KernelObject], subnet: IPNetwork) -> Route | None:
    """The node's own route that packets to ``subnet`` take."""
    routes = [
        item
        for item in around
        if isinstance(item, Route) and item.link is not None and lies_in(subnet, item.destination)
    ]
    return min(routes, key=lambda route: (-route.destination.prefixlen, route.effective_metric), default=None)


def _last_metric(objects: Iterable[KernelObject], like: Route) -> int:
    """The worst one of all routes to the same place."""
    places = (item for item in objects if isinstance(item, Route))
    return max(
        item.effective_metric for item in places if (item.destination, item.table) == (like.destination, like.table)
    )


def leads_to(around: Iterable[KernelObject], plan: Iterable[KernelObject], subnets: Subnets) -> bool:
    """Whether a plan has routes to all of these subnets; ``around`` is what the node has whoever its peers are."""
    there = {item.destination for item in plan if isinstance(item, Route)}
    return all(subnet in there or _covering(around, subnet) is not None for subnet in subnets.each)
