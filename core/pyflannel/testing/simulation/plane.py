"""A backend with a data plane of its own, in memory: what moves packets is a table that outlives its daemon.

For simulations of what the core does with any such backend. It plans a device and a route per peer, and everything
else is the table: whom it was told of, and where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any, Final

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

__all__ = ["DEVICE", "MemoryBackend", "Table"]

DEVICE: Final = "memory0"
"""The device that leads to the table."""


class Table:
    """What a data plane's process knows: it goes on when the daemon ends."""

    def __init__(self) -> None:
        self.peers: dict[Subnets, Lease] = {}
        self.alive = False
        self.refusing = False
        self.fresh: set[Subnets] = set()
        """What the daemon of now has told."""
        self.complete = False
        self.changes = 0

    def kill(self) -> None:
        """The process ends, and with it what it knew."""
        self.alive = False
        self.peers.clear()
        self.changes += 1


class MemoryBackend(Backend[Any]):
    """See the module's docstring.

    :param table: this node's.
    """

    name = "memory"
    capabilities = Capabilities(ipv4=True, ipv6=True)

    def __init__(self, table: Table) -> None:
        super().__init__(None)
        self.table = table

    def mtu(self, underlay: Underlay) -> int:
        """Like a tunnel's."""
        return underlay.mtu - 60

    def plan_node(self, node: Node) -> DesiredState:
        """The device with an address per family."""
        addresses = [
            Address(DEVICE, ip_interface(f"{subnet.network_address}/{subnet.max_prefixlen}"))
            for subnet in node.subnets.each
        ]
        switches = [forwarding(version) for version in node.network.versions]
        return DesiredState([*switches, Link(DEVICE, GenericInfo("dummy"), self.mtu(node.underlay)), *addresses])

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """A route per family."""
        if any(peer.attributes.public(subnet.version) is None for subnet in peer.subnets.each):
            raise PeerRejected("has no address")
        return DesiredState([Route(subnet, DEVICE) for subnet in peer.subnets.each])

    def start(self, node: Node) -> DataPlane:
        """Take over the table, or begin with an empty one."""
        return _Plane(self.table)


class _Plane(DataPlane):
    def __init__(self, table: Table) -> None:
        self._table = table
        table.alive = True
        table.fresh, table.complete = set(), False

    def put(self, peer: Lease) -> None:
        if self._table.refusing:
            raise KernelError("the table takes nobody now")
        self._table.peers[peer.subnets] = peer
        self._table.fresh.add(peer.subnets)
        self._table.changes += 1

    def remove(self, subnets: Subnets) -> None:
        self._table.peers.pop(subnets, None)
        self._table.fresh.discard(subnets)
        self._table.changes += 1

    def check(self) -> Mapping[str, str]:
        if not self._table.alive:
            raise KernelError("the process has ended")
        if not self._table.complete:
            self._table.complete = True
            self._table.changes += 1
            self._table.peers = {key: peer for key, peer in self._table.peers.items() if key in self._table.fresh}
        return {}

    def stop(self) -> None:
        return
