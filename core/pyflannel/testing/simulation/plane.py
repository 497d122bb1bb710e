"""Backends with a data plane of their own, in memory: what moves packets is a table that outlives its daemon.

For simulations of what the core does with any such backend. It plans a device and a route per peer, and everything
else is the table: whom it was told of, and where they are. One of the two says that it encrypts, and takes a packet
only from whom it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any, ClassVar, Final

from pyflannel.backend import (
    Address,
    Backend,
    Capabilities,
    DataPlane,
    DesiredState,
    GenericInfo,
    Lease,
    Link,
    Node,
    PeerRejected,
    Route,
    Subnets,
    Underlay,
    forwarding,
)
from pyflannel.errors import KernelError

__all__ = ["SECRET_DEVICE", "MemoryBackend", "SecretBackend", "Table"]

SECRET_DEVICE: Final = "secret0"  # noqa: S105 - a name
"""The device of the backend that encrypts."""


class Table:
    """What a data plane's process knows: it goes on when the daemon ends.

    :param node: the table that stands for the whole node, if this is another one of it.
    """

    def __init__(self, node: Table | None = None) -> None:
        self.peers: dict[Subnets, Lease] = {}
        self.alive = False
        self.refusing = False
        self.fresh: set[Subnets] = set()
        """What the daemon of now has told."""
        self.complete = False
        self.changes = 0
        """How often something has changed, here or in one of :attr:`others`."""
        self.others: dict[str, Table] = {}
        """The tables of the node's other devices, by their names."""
        self._node = node

    def of(self, device: str) -> Table:
        """The table that a device leads to; a node's own is that of :attr:`MemoryBackend.device`."""
        if device == MemoryBackend.device:
            return self
        if device not in self.others:
            self.others[device] = Table(self)
        return self.others[device]

    @property
    def refuses(self) -> bool:
        """Whether it takes nobody now."""
        return self.refusing or (self._node is not None and self._node.refusing)

    def changed(self) -> None:
        """Something is different now."""
        self.changes += 1
        if self._node is not None:
            self._node.changes += 1

    def kill(self) -> None:
        """The process ends, and with it what it knew; so do the others of the node."""
        self.alive = False
        self.peers.clear()
        self.changed()
        for other in self.others.values():
            other.kill()


class MemoryBackend(Backend[Any]):
    """See the module's docstring.

    :param table: this node's.
    """

    name = "memory"
    capabilities = Capabilities(ipv4=True, ipv6=True)
    device: ClassVar[str] = "memory0"
    """What leads to the table."""

    def __init__(self, table: Table) -> None:
        super().__init__(None)
        self.table = table.of(self.device)

    def mtu(self, underlay: Underlay) -> int:
        """Like a tunnel's."""
        return underlay.mtu - 60

    def plan_node(self, node: Node) -> DesiredState:
        """The device with an address per family."""
        addresses = [
            Address(self.device, ip_interface(f"{subnet.network_address}/{subnet.max_prefixlen}"))
            for subnet in node.subnets.each
        ]
        switches = [forwarding(version) for version in node.network.versions]
        return DesiredState([*switches, Link(self.device, GenericInfo("dummy"), self.mtu(node.underlay)), *addresses])

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """A route per family."""
        if any(peer.attributes.public(subnet.version) is None for subnet in peer.subnets.each):
            raise PeerRejected("has no address")
        return DesiredState([Route(subnet, self.device) for subnet in peer.subnets.each])

    def start(self, node: Node) -> DataPlane:
        """Take over the table, or begin with an empty one."""
        return _Plane(self.table)


class SecretBackend(MemoryBackend):
    """One that says that it encrypts: nobody hears what a plain one sends."""

    name = "secret"
    capabilities = Capabilities(ipv4=True, ipv6=True, encrypts=True)
    device = SECRET_DEVICE


class _Plane(DataPlane):
    def __init__(self, table: Table) -> None:
        self._table = table
        table.alive = True
        table.fresh, table.complete = set(), False
        table.changed()

    def put(self, peer: Lease) -> None:
        if self._table.refuses:
            raise KernelError("the table takes nobody now")
        self._table.peers[peer.subnets] = peer
        self._table.fresh.add(peer.subnets)
        self._table.changed()

    def remove(self, subnets: Subnets) -> None:
        self._table.peers.pop(subnets, None)
        self._table.fresh.discard(subnets)
        self._table.changed()

    def check(self) -> Mapping[str, str]:
        if not self._table.alive:
            raise KernelError("the process has ended")
        if not self._table.complete:
            self._table.complete = True
            self._table.changed()
            self._table.peers = {key: peer for key, peer in self._table.peers.items() if key in self._table.fresh}
        return {}

    def stop(self) -> None:
        return
