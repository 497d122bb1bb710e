"""Where a packet would go: the tables of a sender's kernel read as a kernel reads them, up to the receiver's.

Independent of planners and trackers on purpose: the one question is whether what the kernels hold moves a packet.
"""

from __future__ import annotations

from pyflannel.kernel.model import Kind, Link, Route, VxlanInfo, neighbour_key
from pyflannel.kernel.twin import TwinPort
from pyflannel.network.lease import IPAddress, IPNetwork, Subnets
from pyflannel.testing.simulation.node import SimulatedNode
from pyflannel.testing.simulation.plane import DEVICE

__all__ = ["delivers"]


def delivers(sender: SimulatedNode, receiver: SimulatedNode, subnets: Subnets) -> bool:
    """Whether packets from one node to every one of another's ``subnets`` get there."""
    return sender.up and receiver.up and all(_delivers(sender, receiver, subnet) for subnet in subnets.each)


def _delivers(sender: SimulatedNode, receiver: SimulatedNode, subnet: IPNetwork) -> bool:
    destination = subnet[1]
    route = _route(sender.kernel, destination)
    if route is None or route.link is None:
        return False
    link = sender.kernel.links.get(route.link)
    if link is None or not link.up:
        return False
    if link.name == "eth0":
        return route.gateway in receiver.addresses
    if isinstance(link.info, VxlanInfo):
        return _through_vxlan(sender, receiver, link, link.info, route.gateway or destination)
    return link.name == DEVICE and _through_table(sender, receiver, destination)


def _route(kernel: TwinPort, destination: IPAddress) -> Route | None:
    """The longest prefix, then the lowest metric."""
    number = int(destination)
    best: Route | None = None
    for entry in kernel.routes.values():
        route, network = entry.route, entry.route.destination
        shift = network.max_prefixlen - network.prefixlen
        if network.version != destination.version or number >> shift != int(network.network_address) >> shift:
            continue
        if best is None or (network.prefixlen, -route.effective_metric) > (
            best.destination.prefixlen,
            -best.effective_metric,
        ):
            best = route
    return best


def _through_vxlan(
    sender: SimulatedNode, receiver: SimulatedNode, link: Link, info: VxlanInfo, gateway: IPAddress
) -> bool:
    neighbour = sender.kernel.neighbours.get(neighbour_key(link.name, gateway))
    if neighbour is None:
        return False
    ways = sender.kernel.fdb.get((Kind.FDB, link.name, neighbour.mac), ())
    if not any(way.remote in receiver.addresses for way in ways):
        return False
    if info.local not in sender.addresses:
        return False
    return any(
        isinstance(other.info, VxlanInfo)
        and other.up
        and (other.info.vni, other.info.port) == (info.vni, info.port)
        and other.mac == neighbour.mac
        for other in receiver.kernel.links.values()
    )


def _through_table(sender: SimulatedNode, receiver: SimulatedNode, destination: IPAddress) -> bool:
    if not sender.table.alive:
        return False
    for subnets, lease in sender.table.peers.items():
        subnet = subnets.of(destination.version)
        if subnet is not None and destination in subnet:
            return lease.attributes.public(destination.version) in receiver.addresses
    return False
