"""Where a packet would go: the tables of a sender's kernel read as a kernel reads them, up to the receiver's.

Independent of planners and trackers on purpose: the one question is whether what the kernels hold moves a packet.
"""

from __future__ import annotations

from pyflannel.kernel.model import Kind, Link, Route, VxlanInfo, neighbour_key
from pyflannel.kernel.twin import TwinPort
from pyflannel.network.lease import IPAddress, IPNetwork, Subnets
from pyflannel.testing.simulation.node import SimulatedNode
from pyflannel.testing.simulation.plane import SECRET_DEVICE, MemoryBackend

__all__ = ["way"]


def way(sender: SimulatedNode, receiver: SimulatedNode, subnets: Subnets) -> frozenset[str]:
    """The sender's links by which its packets get to every one of another's ``subnets``; empty if one doesn't."""
    if not (sender.up and receiver.up):
        return frozenset()
    links = [_link(sender, receiver, subnet) for subnet in subnets.each]
    return frozenset(links) if all(links) else frozenset()


def _link(sender: SimulatedNode, receiver: SimulatedNode, subnet: IPNetwork) -> str:
    """The link by which a packet gets there; empty if it doesn't."""
    destination = subnet[1]
    route = _route(sender.kernel, destination)
    link = sender.kernel.links.get(route.link) if route is not None and route.link is not None else None
    if route is None or link is None or not link.up:
        return ""
    if link.name == "eth0":
        there = route.gateway in receiver.addresses
    elif isinstance(link.info, VxlanInfo):
        there = _through_vxlan(sender, receiver, link, link.info, route.gateway or destination)
    else:
        known = link.name in (MemoryBackend.device, SECRET_DEVICE)
        there = known and _through_table(sender, receiver, link.name, destination)
    return link.name if there else ""


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


def _through_table(sender: SimulatedNode, receiver: SimulatedNode, device: str, destination: IPAddress) -> bool:
    table, theirs = sender.table.of(device), receiver.table.of(device)
    other = receiver.kernel.links.get(device)
    if not table.alive or not theirs.alive or other is None or not other.up:
        return False
    if device == SECRET_DEVICE and not any(
        lease.attributes.public(destination.version) in sender.addresses for lease in theirs.peers.values()
    ):
        return False  # it does not take what a stranger sends
    for subnets, lease in table.peers.items():
        subnet = subnets.of(destination.version)
        if subnet is not None and destination in subnet:
            return lease.attributes.public(destination.version) in receiver.addresses
    return False
