"""The underlay: which interface and addresses of this node carry the overlay.

:class:`Underlay` is the frozen answer that planners work with; finding it (default route, ``--iface``,
``--iface-regex``, ``--iface-can-reach``, ``--public-ip``) reads the kernel once and is the second half of the module.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pyflannel.lease import IPAddress, IPNetwork

__all__ = ["Underlay", "UnderlayRoute"]


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
