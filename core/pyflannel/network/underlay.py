"""The underlay: which interface and addresses of this node carry the overlay.

:class:`Underlay` is the frozen answer that planners work with. :func:`choose` finds it in an :class:`Inventory` of this
node's interfaces and routes as flannel does: by ``--iface``, then ``--iface-regex``, then ``--iface-can-reach``, else
by the default route. It is a pure function; reading the inventory is the kernel package's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from pyflannel.errors import UnderlayError
from pyflannel.network.lease import IPAddress, IPNetwork

__all__ = ["Interface", "InterfaceRoute", "Inventory", "Selection", "Underlay", "UnderlayRoute", "choose"]

A = TypeVar("A", IPv4Address, IPv6Address)


@dataclass(frozen=True, slots=True)
class UnderlayRoute:
    """A route by which the underlay interface reaches ``destination``; on-link if it has no ``gateway``."""

    destination: IPNetwork
    gateway: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Underlay:
    """An interface and the addresses by which other nodes reach this one through it.

    ``ipv4`` and ``ipv6`` are addresses of the interface, the source of encapsulated packets; the public ones are what
    the lease says, and differ from them behind a 1:1 NAT. ``mtu`` in bytes.
    """

    interface: str
    mtu: int
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    public_ipv4: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    routes: tuple[UnderlayRoute, ...] = ()

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
    """A network interface of this node, with its usable addresses in the kernel's order."""

    name: str
    mtu: int
    up: bool
    addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class InterfaceRoute:
    """A unicast route of the main table that is not ours."""

    destination: IPNetwork
    interface: str
    gateway: IPAddress | None = None
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Inventory:
    """What this node has to choose an underlay from."""

    interfaces: tuple[Interface, ...]
    routes: tuple[InterfaceRoute, ...]

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


def choose(inventory: Inventory, selection: Selection) -> Underlay:
    """Find the underlay.

    :raises UnderlayError: no interface answers to the selection, or the one that does can't be used at present.
    """
    interface, wanted = _interface(inventory, selection)
    if not interface.up:
        raise UnderlayError(f"underlay interface {interface.name} is down: ip link set {interface.name} up")
    ipv4 = _first(IPv4Address, wanted, interface.addresses)
    ipv6 = _first(IPv6Address, wanted, interface.addresses)
    if ipv4 is None and ipv6 is None:
        raise UnderlayError(f"underlay interface {interface.name} has no usable address; add one, or use --iface")
    return Underlay(
        interface=interface.name,
        mtu=interface.mtu,
        ipv4=ipv4,
        ipv6=ipv6,
        public_ipv4=selection.public_ip or ipv4,
        public_ipv6=selection.public_ipv6 or ipv6,
        routes=_relevant(route for route in inventory.routes if route.interface == interface.name),
    )


def _relevant(routes: Iterable[InterfaceRoute]) -> tuple[UnderlayRoute, ...]:
    """What decides who is on the link: the networks on it, and the exceptions within them. Other routes come and go
    without a meaning for us."""
    found = tuple(UnderlayRoute(route.destination, route.gateway) for route in routes)
    onlink = [route.destination for route in found if route.gateway is None]
    return tuple(
        route
        for route in found
        if route.gateway is None
        or any(
            route.destination.version == network.version and route.destination.subnet_of(network)  # type: ignore[arg-type]
            for network in onlink
        )
    )


def _interface(inventory: Inventory, selection: Selection) -> tuple[Interface, IPAddress | None]:
    """The interface, and the address by which the operator named it."""
    for text in selection.iface:
        found = _by_name_or_address(inventory.interfaces, text)
        if found is not None:
            return found
    for pattern in selection.iface_regex:
        for interface in inventory.interfaces:
            if pattern.search(interface.name) or any(pattern.search(str(address)) for address in interface.addresses):
                return interface, None
    if selection.iface_can_reach is not None:
        return _towards(inventory, selection.iface_can_reach, "--iface-can-reach"), None
    if selection.iface or selection.iface_regex:
        asked = [*selection.iface, *(pattern.pattern for pattern in selection.iface_regex)]
        names = ", ".join(interface.name for interface in inventory.interfaces)
        raise UnderlayError(f"no interface is, has or matches {', '.join(asked)}; there are: {names or 'none'}")
    for unspecified in ("0.0.0.0", "::"):  # noqa: S104 - the address that only a default route matches
        if inventory.route_to(ip_address(unspecified)) is not None:
            return _towards(inventory, ip_address(unspecified), "the default route"), None
    raise UnderlayError("no default route, which names the underlay interface; add one, or use --iface")


def _by_name_or_address(interfaces: Iterable[Interface], text: str) -> tuple[Interface, IPAddress | None] | None:
    try:
        address: IPAddress | None = ip_address(text)
    except ValueError:
        address = None
    for interface in interfaces:
        if interface.name == text or (address is not None and address in interface.addresses):
            return interface, address
    return None


def _towards(inventory: Inventory, address: IPAddress, what: str) -> Interface:
    route = inventory.route_to(address)
    interface = inventory.interface(route.interface) if route is not None else None
    if interface is None:
        raise UnderlayError(f"{what}: no route to {address}; use --iface")
    return interface


def _first(kind: type[A], wanted: IPAddress | None, addresses: Sequence[IPAddress]) -> A | None:
    """The wanted address if it is of this family, else the interface's first."""
    return next((address for address in (wanted, *addresses) if isinstance(address, kind)), None)
