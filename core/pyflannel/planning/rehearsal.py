"""A change of the network tried out on a node and a peer that nobody has, before any node hears of it.

Both backends plan for them, as they would on every node, and the plans are looked at together. So whatever two backends
can't both have is found for those of third parties as well.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import TypeVar

from pyflannel.backend import Node, Published
from pyflannel.errors import ConfigError, PluginError, PyflannelError
from pyflannel.kernel.model import KernelObject
from pyflannel.network.document import FamilyConfig, NetworkConfig
from pyflannel.network.lease import Lease, LeaseAttributes, Subnets
from pyflannel.network.underlay import Underlay, UnderlayRoute
from pyflannel.planning.clashes import clash, clashing
from pyflannel.planning.guard import guarded
from pyflannel.planning.transition import Side, leads_to, unroutable

__all__ = ["obstacle", "sample_underlay"]

N = TypeVar("N", IPv4Network, IPv6Network)


def sample_underlay(host: int = 1) -> Underlay:
    """A node's underlay as most have it: both families, 1500 bytes, and all nodes on one link."""
    four, six = IPv4Address(f"192.0.2.{host}"), IPv6Address(f"2001:db8::{host}")
    routes = (UnderlayRoute(ip_network("192.0.2.0/24"), None), UnderlayRoute(ip_network("2001:db8::/64"), None))
    return Underlay("eth0", 1500, four, six, public_ipv4=four, public_ipv6=six, routes=routes)


def obstacle(former: Side, following: Side, directory: Path) -> str:
    """Why no node could go over from one setting to the other; empty if nothing speaks against it.

    :param directory: an empty one, for what the backends keep.
    :raises PyflannelError: a backend plans nothing for a node like this; nodes themselves will find out.
    """
    one = _Rehearsed(former, former.network, directory)
    try:
        other = _Rehearsed(following, former.network, directory)
    except ConfigError as error:  # a plan follows from nothing but the config, and what the backend itself has made
        return str(error)
    plans = (one, other)
    found = clash(former.backend, following.backend, one.for_node, other.for_node)
    found = found or clashing([*one.for_node, *one.for_peer], [*other.for_node, *other.for_peer])
    return found or next((unroutable(plan.side) for plan in plans if not plan.leads_to_peer), "")


class _Rehearsed:
    """What one of the two settings plans.

    A backend is asked what it publishes only if it plans nothing before: that may run a command, or make a key.
    """

    def __init__(self, side: Side, network: NetworkConfig, directory: Path) -> None:
        self.side = side
        self._here = _node("here", network, 1, directory)
        self._there = _node("there", network, 2, directory)
        try:
            self.for_node = side.plan_node(self._here)
        except PyflannelError:
            self._publish(self._here)
            self.for_node = side.plan_node(self._here)
        self.for_peer = self._plan_peer()

    def _plan_peer(self) -> tuple[KernelObject, ...]:
        underlay = self._there.underlay
        attributes = LeaseAttributes(underlay.public_ipv4, underlay.public_ipv6, self.side.name, node_id="there")
        try:
            return self.side.plan_peer(self._here, Lease(self._there.subnets, attributes))
        except PyflannelError:
            self._publish(self._here)
            said = self._publish(self._there)
            attributes = replace(attributes, backend_data=said.data, backend_v6_data=said.v6_data)
            return self.side.plan_peer(self._here, Lease(self._there.subnets, attributes))

    def _publish(self, node: Node) -> Published:
        """What the backend publishes.

        :raises PluginError: it can't say it, which may be this machine's fault.
        """
        try:
            said: Published = guarded(
                self.side.name, "publish", lambda: self.side.backend.publish(self.side.node(node))
            )
            return said
        except ConfigError as error:
            raise PluginError(str(error)) from error

    @property
    def leads_to_peer(self) -> bool:
        """Whether packets to the peer have a route."""
        return leads_to(self.for_node, self.for_peer, self._there.subnets)


def _node(name: str, network: NetworkConfig, host: int, directory: Path) -> Node:
    """A node with the first or the last subnet of a network."""
    state = directory / name
    state.mkdir(exist_ok=True)

    def subnet(family: FamilyConfig[N] | None) -> N | None:
        return None if family is None else family.subnet_min if host == 1 else family.subnet_max

    return Node(name, network, sample_underlay(host), Subnets(subnet(network.ipv4), subnet(network.ipv6)), state)
