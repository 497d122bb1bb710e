"""Objects of a small overlay, and the links around it, that the suite writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface
from typing import Any

from pyflannel.kernel.model import (
    Address,
    FdbEntry,
    GenericInfo,
    KernelObject,
    Key,
    Link,
    Neighbour,
    Route,
    VxlanInfo,
)
from pyflannel.kernel.port import Notice, Scope


@dataclass(frozen=True)
class Family:
    """The objects of a small overlay in one address family."""

    version: int

    @property
    def name(self) -> str:
        return "flannel.1" if self.version == 4 else "flannel-v6.1"

    @property
    def local(self) -> Any:
        return ip_address("192.0.2.1" if self.version == 4 else "2001:db8::1")

    @property
    def link(self) -> Link:
        mtu = 1450 if self.version == 4 else 1430
        return Link(self.name, self.info, mtu, "02:00:00:00:01:01")

    @property
    def info(self) -> VxlanInfo:
        return VxlanInfo(1, 8472, self.local, "eth0")

    @property
    def address(self) -> Address:
        return Address(self.name, ip_interface("10.1.0.0/32" if self.version == 4 else "fd00:1::/128"))

    def subnet(self, number: int) -> IPv4Network | IPv6Network:
        if self.version == 4:
            return IPv4Network((0x0A020000 + (number << 8), 24))
        return IPv6Network((0xFD02 << 112 | number << 64, 64))

    def remote(self, number: int) -> Any:
        return self.local + 1 + number

    def mac(self, number: int) -> str:
        return f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}"

    def neighbour(self, number: int) -> Neighbour:
        return Neighbour(self.name, self.subnet(number).network_address, self.mac(number))

    def fdb(self, number: int) -> FdbEntry:
        return FdbEntry(self.name, self.mac(number), self.remote(number))

    def route(self, number: int) -> Route:
        return Route(self.subnet(number), self.name, self.subnet(number).network_address, onlink=True)

    def gateway_route(self, number: int, **changes: Any) -> Route:
        """As host-gw writes it: over the underlay itself."""
        return replace(Route(self.subnet(number), "eth0", self.remote(number)), **changes)

    def peer(self, number: int) -> list[KernelObject]:
        return [self.neighbour(number), self.fdb(number), self.route(number)]

    def overlay(self, peers: range = range(3)) -> list[KernelObject]:
        return [self.link, self.address, *(item for number in peers for item in self.peer(number))]

    def drift(self, told: Notice) -> dict[Key, KernelObject | None]:
        """What was told, without the late echo of the overlay (IPv6 addresses are told from the kernel's workqueue)."""
        overlay = self.overlay()
        return {key: item for key, item in told.changes.items() if item not in overlay}


def bridge(name: str = "br0") -> Link:
    """Larger than its members, whose MTU it must not take on."""
    return Link(name, GenericInfo("bridge"), 1500)


def wanting(world: Any, *links: Link) -> Any:
    """A world whose port looks for these links."""
    world.scope = Scope(frozenset(link.name for link in links), frozenset(), {link.name: link for link in links})
    return world
