"""Who takes packets of the overlay away: the overlay's address space is ours to watch.

A route of somebody else's that is more specific than ours, or has a lower metric, wins, and the packets for which we
have made a way go another one: nowhere, or out in plaintext past a backend that encrypts. Some of these are what an
earlier daemon left behind: flanneld's devices, known by their names and by addresses in this network, and its routes,
known by leading to just the subnet of a lease through just that lease's public address. These are ours to sweep. All
others are somebody's, and are named. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from pyflannel.errors import MalformedError
from pyflannel.kernel.model import MAIN_TABLE, KernelObject, Key, Route
from pyflannel.kernel.port import ForeignLink, ForeignRoute
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPAddress, IPNetwork, Lease, Subnets
from pyflannel.planning.overlay import Peer

__all__ = ["diverting", "leftovers"]

_BOOT: Final = 3
"""``RTPROT_BOOT`` (linux/rtnetlink.h): of routes whose maker names no protocol, such as flanneld's."""

_FLANNELD: Final = re.compile(r"flannel(\.\d+|-v6\.\d+|-wg(-v6)?|\.ipip|\d+)")
"""The names that flanneld gives its devices."""


def diverting(
    routes: Iterable[ForeignRoute], desired: Mapping[Key, KernelObject], own: Subnets, network: NetworkConfig
) -> tuple[ForeignRoute, ...]:
    """The routes among ``routes`` that win against a route that we want in the main table, where they are all from;
    whether one in another table is asked before is for rules to say. Inside our own subnet containers live. Where no
    subnet may be leased, the underlay does, in a network that covers the nodes: there only a peer's own route counts.
    """
    wanted: dict[tuple[int, int], dict[int, int]] = {}
    found = []
    for item in desired.values() if routes else ():
        if isinstance(item, Route) and item.table == MAIN_TABLE:
            net = item.destination
            metrics = wanted.setdefault((net.version, net.prefixlen), {})
            bits = _leading(net, net.prefixlen)
            metrics[bits] = min(item.effective_metric, metrics.get(bits, 1 << 32))
    for foreign in routes:
        elsewhere = not _inside(foreign.route.destination, own)
        if foreign.route.key not in desired and elsewhere and _wins(foreign, wanted, network):
            found.append(foreign)
    return tuple(sorted(found, key=str))


def _wins(foreign: ForeignRoute, wanted: Mapping[tuple[int, int], Mapping[int, int]], network: NetworkConfig) -> bool:
    net = foreign.route.destination
    family = network.family(net.version)
    shortest = 0 if family is None or family.index_range(net) else family.network.prefixlen + 1
    for length in range(net.prefixlen, shortest - 1, -1):
        metric = wanted.get((net.version, length), {}).get(_leading(net, length))
        if metric is not None:
            return length < net.prefixlen or foreign.route.effective_metric < metric
    return False


def _inside(net: IPNetwork, own: Subnets) -> bool:
    subnet = own.of(net.version)
    if subnet is None or net.prefixlen < subnet.prefixlen:
        return False
    return _leading(net, subnet.prefixlen) == _leading(subnet, subnet.prefixlen)


def _leading(net: IPNetwork, length: int) -> int:
    return int(net.network_address) >> (net.max_prefixlen - length)


def leftovers(
    diversions: Iterable[ForeignRoute], links: Iterable[ForeignLink], peers: Iterable[Peer], spaces: Iterable[IPNetwork]
) -> tuple[ForeignRoute | ForeignLink, ...]:
    """What an earlier flanneld of this network has left on this node, as far as it is in our way.

    :param diversions: see :func:`diverting`; what takes nothing away may be a backend's own doing (``extension``).
    :param peers: all leases of other nodes, those of another backend too.
    """
    stray = tuple(diversions)
    used = {each.route.link for each in stray}
    ranges = tuple(spaces)
    devices = [
        each
        for each in links
        if each.link.name in used
        and _FLANNELD.fullmatch(each.link.name)
        and all(any(address.ip in space for space in ranges) or address.ip.is_link_local for address in each.addresses)
    ]
    gone = {each.link.name for each in devices}
    candidates = [
        each for each in stray if each.protocol == _BOOT and each.route.gateway and each.route.link not in gone
    ]
    holders = _gateways(peers) if candidates else {}
    routes = [each for each in candidates if each.route.gateway in holders.get(each.route.destination, ())]
    return (*routes, *devices)


def _gateways(peers: Iterable[Peer]) -> dict[IPNetwork, set[IPAddress]]:
    """Each leased subnet to the public addresses by which its node is reached."""
    found: dict[IPNetwork, set[IPAddress]] = {}
    for peer in peers:
        try:
            lease = Lease.from_record(peer.key, peer.value)
        except MalformedError:
            continue
        for subnet in lease.subnets.each:
            address = lease.attributes.public(subnet.version)
            if address is not None:
                found.setdefault(subnet, set()).add(address)
    return found
