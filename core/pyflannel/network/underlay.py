"""The underlay: which interface and addresses of this node carry the overlay.

:class:`Underlay` is the frozen answer that planners work with. :func:`choose` finds it in an :class:`Inventory` of this
node's interfaces and routes as flannel does: by ``--iface``, then ``--iface-regex``, then ``--iface-can-reach``, else
by the address that ``--public-ip`` names, else by the default route. A running daemon goes on with what it has for as
long as that works (:func:`keep_or_choose`). Pure functions; reading the inventory is the kernel package's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from pyflannel.errors import UnderlayError
from pyflannel.network.lease import IPAddress, IPNetwork, lies_in

__all__ = [
    "Interface",
    "InterfaceRoute",
    "Inventory",
    "Selection",
    "Underlay",
    "UnderlayRoute",
    "Way",
    "choose",
    "keep_or_choose",
]

A = TypeVar("A", IPv4Address, IPv6Address)

LOOPBACK = "lo"

_KEPT: Final = " (when it was chosen; it is kept for as long as it works)"

MOST_OTHERS: Final = 5
"""How many of those that would have been chosen, too, are named."""


@dataclass(frozen=True, slots=True)
class UnderlayRoute:
    """A route by which the underlay interface reaches ``destination``; on-link if it has no ``gateway``.

    ``connected``: an address of the interface lies in it. Of such a network alone the first and the last address are
    nobody's; somebody's route to a part of the link says nothing about them.
    """

    destination: IPNetwork
    gateway: IPAddress | None = None
    connected: bool = True


@dataclass(frozen=True, slots=True)
class Underlay:
    """An interface and the addresses by which other nodes reach this one through it.

    ``ipv4`` and ``ipv6`` are addresses of the interface, the source of encapsulated packets; the public ones are what
    the lease says, and differ from them behind a 1:1 NAT. ``mtu`` in bytes. ``why`` says what chose it, for people, and
    ``others`` what would have been chosen without it. ``also_own`` are this node's addresses besides, on all interfaces
    but its containers', as of when this underlay was made: they come and go with bridges, and are no reason to plan
    anew.
    """

    interface: str
    mtu: int
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    public_ipv4: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    routes: tuple[UnderlayRoute, ...] = ()
    why: str = field(default="", compare=False)
    others: tuple[str, ...] = field(default=(), compare=False)
    also_own: frozenset[IPAddress] = field(default=frozenset(), compare=False)

    def public(self, version: int) -> IPAddress | None:
        """The public address of IP version 4 or 6."""
        return self.public_ipv4 if version == 4 else self.public_ipv6

    def local(self, version: int) -> IPAddress | None:
        """The interface's own address of IP version 4 or 6."""
        return self.ipv4 if version == 4 else self.ipv6

    def is_onlink(self, address: IPAddress) -> bool:
        """Whether ``address`` is a neighbour on the underlay: its most specific route has no gateway."""
        matching = [
            route
            for route in self.routes
            if route.destination.version == address.version and address in route.destination
        ]
        return bool(matching) and max(matching, key=lambda route: route.destination.prefixlen).gateway is None


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of this node, with its usable addresses in the kernel's order.

    ``hosts`` are those of them that come alone, as /32 or /128: often a virtual one that moves between machines.
    ``fading`` are there too, but deprecated: they are kept and not chosen.
    """

    name: str
    mtu: int
    up: bool
    addresses: tuple[IPAddress, ...] = ()
    hosts: frozenset[IPAddress] = frozenset()
    fading: frozenset[IPAddress] = frozenset()


class Way(NamedTuple):
    """What the kernel answers when asked how it would send to an address."""

    interface: str
    source: IPAddress | None
    table: int = 0
    """The routing table that the answer is from; 0 if that is not known."""


class Question(NamedTuple):
    """How would the kernel send to ``address``? With an ``entrance``: what came by that link, from ``source``."""

    address: IPAddress
    source: IPAddress | None = None
    entrance: str = ""


@dataclass(frozen=True, slots=True)
class InterfaceRoute:
    """A unicast route of the main table that is not ours; ``source`` if it prefers one."""

    destination: IPNetwork
    interface: str
    gateway: IPAddress | None = None
    metric: int = 0
    source: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """What this node has to choose an underlay from.

    ``ways`` are the kernel's own answers, policy rules included; ``None``: it sends nowhere. ``advertised`` are the
    links where the kernel itself takes routes from a router's advertisements (``accept_ra``), and has some.
    """

    interfaces: tuple[Interface, ...]
    routes: tuple[InterfaceRoute, ...]
    ways: tuple[tuple[IPAddress, Way | None], ...] = ()
    advertised: frozenset[str] = frozenset()

    def without(self, subnets: Sequence[IPNetwork]) -> Inventory:
        """The same without the addresses in ``subnets``, those of the containers."""
        if not subnets:
            return self
        kept = []
        for interface in self.interfaces:
            addresses = tuple(
                address
                for address in interface.addresses
                if not any(address.version == subnet.version and address in subnet for subnet in subnets)
            )
            if addresses or not interface.addresses:
                kept.append(replace(interface, addresses=addresses))
        return replace(self, interfaces=tuple(kept))

    def default_routes(self, version: int) -> list[InterfaceRoute]:
        """The routes for everything, the one in use first; two halves of everything (a VPN's way) are none."""
        routes = [route for route in self.routes if route.destination.prefixlen == 0]
        routes = [route for route in routes if route.destination.version == version]
        return sorted(routes, key=lambda route: route.metric)

    def default_route(self, version: int) -> InterfaceRoute | None:
        """The one in use."""
        return next(iter(self.default_routes(version)), None)

    def interface(self, name: str) -> Interface | None:
        """The interface of that name."""
        return next((interface for interface in self.interfaces if interface.name == name), None)

    def route_to(self, address: IPAddress) -> InterfaceRoute | None:
        """The route that packets to ``address`` take: the longest prefix, then the lowest metric."""
        matching = [
            route
            for route in self.routes
            if route.destination.version == address.version and address in route.destination
        ]
        return min(matching, key=lambda route: (-route.destination.prefixlen, route.metric), default=None)


@dataclass(frozen=True, slots=True)
class Selection:
    """What the operator says about the underlay; see the flags of these names."""

    iface: tuple[str, ...] = ()
    iface_regex: tuple[re.Pattern[str], ...] = ()
    iface_can_reach: IPAddress | None = None
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None

    @property
    def asks(self) -> bool:
        """Whether it asks for an interface by its name, its address or where it leads."""
        return bool(self.iface or self.iface_regex or self.iface_can_reach)


def choose(inventory: Inventory, selection: Selection) -> Underlay:
    """Find the underlay.

    :raises UnderlayError: no interface answers to the selection, or the one that does can't be used at present.
    """
    return _made(inventory, selection, _choice(inventory, selection), ())


def keep_or_choose(
    inventory: Inventory, selection: Selection, current: Underlay | None, own: Sequence[IPNetwork] = ()
) -> Underlay:
    """The underlay in use for as long as it can carry packets, else a new one.

    :param own: the subnets of this node's containers, whose addresses are never the underlay's; an address of a family
        that they are not of carries nothing, and may go.
    :raises UnderlayError: see :func:`choose`.
    """
    inventory = inventory.without(own)
    if current is None:
        return choose(inventory, selection)
    versions = {subnet.version for subnet in own} or {4, 6}
    used = tuple(address for address in (current.ipv4, current.ipv6) if address is not None)
    needed = [address for address in used if address.version in versions]
    interface = inventory.interface(current.interface)
    if interface is not None and interface.up and all(_works(inventory, interface, address) for address in needed):
        return _made(inventory, selection, _Choice(interface, None, _why_kept(inventory, selection, current)), used)
    choice = interface and _renumbered(inventory, selection, interface, needed)
    return _made(inventory, selection, choice or _choice(inventory, selection), used)


def _renumbered(
    inventory: Inventory, selection: Selection, interface: Interface, lost: Iterable[IPAddress]
) -> _Choice | None:
    """The interface in use, if it has got addresses instead of those it has lost, and a default route chose it that is
    still there: another default route that has come in the meantime is no reason to leave it."""
    there = {address.version for address in interface.addresses if address not in interface.hosts}
    if selection.asks or not interface.up or not {address.version for address in lost} <= there:
        return None
    if next(_having_public(inventory, selection), None) is not None:
        return None
    return next((each for each in _by_default_route(inventory) if each.interface == interface), None)


def _why_kept(inventory: Inventory, selection: Selection, current: Underlay) -> str:
    """What speaks for the interface in use at present: what chose it, or something else, or that it works."""
    reasons = [each.why for each in _candidates(inventory, selection) if each.interface.name == current.interface]
    chosen = current.why.removesuffix(_KEPT)
    return chosen if chosen in reasons else next(iter(reasons), f"{chosen}{_KEPT}")


def _works(inventory: Inventory, interface: Interface, address: IPAddress) -> bool:
    """Whether an address may stay in use: it is there, and did not only stand in for a better one.

    None is better if the default route's gateway is in none of their networks: some clouds give each machine a /32.
    """
    if address in interface.fading:
        return True
    better = {
        other for other in interface.addresses if other.version == address.version and other not in interface.hosts
    }
    if address not in interface.addresses or address not in interface.hosts or not better:
        return address in interface.addresses
    gateways = [
        route.gateway for route in inventory.default_routes(address.version) if route.interface == interface.name
    ]
    connected = [
        route.destination
        for route in inventory.routes
        if route.interface == interface.name and route.gateway is None and _is_network(route.destination)
    ]
    return bool(gateways) and not any(
        gateway is None or gateway.is_link_local or any(gateway in network for network in connected)
        for gateway in gateways
    )


def _is_network(destination: IPNetwork) -> bool:
    """Whether it is neither everything nor a single address."""
    return 0 < destination.prefixlen < destination.max_prefixlen


class _Choice(NamedTuple):
    """An interface, the address of it that was meant, if one was, and what chose it."""

    interface: Interface
    wanted: IPAddress | None
    why: str


def _made(inventory: Inventory, selection: Selection, choice: _Choice, used: Sequence[IPAddress]) -> Underlay:
    interface = choice.interface
    if not interface.up:
        raise UnderlayError(f"underlay interface {interface.name} is down: ip link set {interface.name} up")
    there = (*interface.addresses, *interface.fading)
    wanted = (choice.wanted, selection.public_ip, selection.public_ipv6)
    order = (
        *(address for address in used if _works(inventory, interface, address)),
        *(address for address in wanted if address in there),
        *(address for address in interface.addresses if address not in interface.hosts),
        *interface.addresses,
    )
    ipv4, ipv6 = _first(IPv4Address, order), _first(IPv6Address, order)
    if ipv4 is None and ipv6 is None:
        moved = next(
            (
                f"{address} is on {each.name} now: --iface {each.name}"
                for address in used
                for each in inventory.interfaces
                if address in each.addresses
            ),
            "add one, or use --iface",
        )
        raise UnderlayError(f"underlay interface {interface.name} has no usable address; {moved}")
    made = Underlay(
        interface=interface.name,
        mtu=_mtu(inventory, interface),
        ipv4=ipv4,
        ipv6=ipv6,
        public_ipv4=selection.public_ip or ipv4,
        public_ipv6=selection.public_ipv6 or ipv6,
        routes=_relevant((route for route in inventory.routes if route.interface == interface.name), there),
        also_own=frozenset(
            address
            for each in inventory.interfaces
            if each.up
            for address in (*each.addresses, *each.fading)
            if address not in (ipv4, ipv6)
        ),
        why=choice.why,
    )
    return replace(made, others=tuple(islice(_others(inventory, selection, made), MOST_OTHERS)))


def _mtu(inventory: Inventory, interface: Interface) -> int:
    """The interface's; of a loopback address the one of the way out, for no packet between nodes leaves by lo."""
    if interface.name != LOOPBACK:
        return interface.mtu
    for version in (4, 6):
        route = inventory.default_route(version)
        out = inventory.interface(route.interface) if route is not None else None
        if out is not None:
            return out.mtu
    others = [other.mtu for other in inventory.interfaces if other.up and other.name != LOOPBACK and other.addresses]
    return min([interface.mtu, *others])


def _relevant(routes: Iterable[InterfaceRoute], addresses: Iterable[IPAddress]) -> tuple[UnderlayRoute, ...]:
    """What decides who is on the link: the networks on it, and the exceptions within them. Other routes come and go
    without a meaning for us.

    :param addresses: the interface's.
    """
    own = tuple(addresses)
    found = tuple(
        UnderlayRoute(
            route.destination,
            route.gateway,
            any(each.version == route.destination.version and each in route.destination for each in own),
        )
        for route in routes
    )
    onlink = [route.destination for route in found if route.gateway is None]
    return tuple(
        route
        for route in found
        if route.gateway is None or any(lies_in(route.destination, network) for network in onlink)
    )


def _choice(inventory: Inventory, selection: Selection) -> _Choice:
    """The first candidate that has an address, as flanneld goes on to the next one; else the first.

    :raises UnderlayError: there is none; the message says what was looked for.
    """
    found = list(_candidates(inventory, selection))
    if found:
        return next((each for each in found if each.interface.addresses or each.interface.fading), found[0])
    if selection.iface_can_reach is not None:
        raise UnderlayError(f"--iface-can-reach: no route to {selection.iface_can_reach}; use --iface")
    if selection.iface or selection.iface_regex:
        asked = [*selection.iface, *(pattern.pattern for pattern in selection.iface_regex)]
        names = ", ".join(interface.name for interface in inventory.interfaces)
        raise UnderlayError(f"no interface is, has or matches {', '.join(asked)}; there are: {names or 'none'}")
    raise UnderlayError("no default route, which names the underlay interface; add one, or use --iface")


def _candidates(inventory: Inventory, selection: Selection) -> Iterator[_Choice]:
    """All that answer to the selection, the one to take first."""
    for text in selection.iface:
        yield from _by_name_or_address(inventory.interfaces, text)
    for pattern in selection.iface_regex:
        yield from _matching(inventory.interfaces, pattern)
    if selection.iface_can_reach is not None:
        yield from _towards(inventory, selection.iface_can_reach)
    elif not selection.asks:
        yield from _unasked(inventory, selection)


def _others(inventory: Inventory, selection: Selection, chosen: Underlay) -> Iterator[str]:
    """What else answers to the selection, in the order in which it would be taken."""
    named = {chosen.interface}
    for choice in _candidates(inventory, selection):
        there = choice.wanted if choice.wanted not in (None, chosen.ipv4, chosen.ipv6) else None
        if choice.interface.name not in named or (choice.interface.name == chosen.interface and there is not None):
            named.add(choice.interface.name)
            yield f"{choice.interface.name}{'' if choice.wanted is None else f' {choice.wanted}'}: {choice.why}"


def _unasked(inventory: Inventory, selection: Selection) -> Iterator[_Choice]:
    """Without a flag that names an interface: who has our public address, else the default route's."""
    yield from _having_public(inventory, selection)
    yield from _by_default_route(inventory)


def _having_public(inventory: Inventory, selection: Selection) -> Iterator[_Choice]:
    for public in (selection.public_ip, selection.public_ipv6):
        for interface in inventory.interfaces:
            if public is not None and public in interface.addresses:
                yield _Choice(interface, public, f"--public-ip {public} is its address")


def _by_default_route(inventory: Inventory) -> Iterator[_Choice]:
    for version in (4, 6):
        for route in inventory.default_routes(version):
            through = inventory.interface(route.interface)
            if through is not None:
                yield _Choice(through, route.source, f"the default route {route.destination} leads through it")


def _matching(interfaces: Iterable[Interface], pattern: re.Pattern[str]) -> Iterator[_Choice]:
    """As flanneld looks: an IPv4 address that matches, on whatever interface, comes before any name that does.

    IPv6 addresses come last: in a network of IPv4 alone flanneld does not look at them, and a name is rarely meant to
    match one.
    """
    found = [interface for interface in interfaces if interface.name != LOOPBACK]

    def by_address(version: int) -> Iterator[_Choice]:
        for interface in found:
            for address in interface.addresses:
                if address.version == version and pattern.search(str(address)):
                    yield _Choice(interface, address, f"its address {address} matches --iface-regex {pattern.pattern}")

    yield from by_address(4)
    for interface in found:
        if pattern.search(interface.name):
            yield _Choice(interface, None, f"its name matches --iface-regex {pattern.pattern}")
    yield from by_address(6)


def _by_name_or_address(interfaces: Iterable[Interface], text: str) -> Iterator[_Choice]:
    try:
        address: IPAddress | None = ip_address(text)
    except ValueError:
        address = None
    for interface in interfaces:
        if interface.name == text or (address is not None and address in interface.addresses):
            yield _Choice(interface, address, f"--iface {text}")


def _towards(inventory: Inventory, address: IPAddress) -> Iterator[_Choice]:
    asked = dict(inventory.ways)
    way = asked.get(address)
    if address not in asked:
        route = inventory.route_to(address)
        way = Way(route.interface, route.source) if route is not None else None
    interface = inventory.interface(way.interface) if way is not None else None
    if way is not None and interface is not None:
        yield _Choice(interface, way.source, f"--iface-can-reach {address}: the kernel sends through it")


def _first(kind: type[A], addresses: Iterable[IPAddress]) -> A | None:
    return next((address for address in addresses if isinstance(address, kind)), None)
