"""Who takes packets of the overlay away: the overlay's address space is ours to watch.

A route of somebody else's that is more specific than ours, or has a lower metric, wins, and the packets for which we
have made a way go another one: nowhere, or out in plaintext past a backend that encrypts. Some of these are what an
earlier daemon left behind: flanneld's devices, known by their names and by addresses in this network, and its routes,
known by leading to just the subnet of a lease through just that lease's public address. These are ours to sweep. All
others are somebody's, and are named.

A policy rule of somebody else's that is asked before the main table may end such packets or look up another table. What
becomes of them the kernel alone can say, so it is asked about packets of the overlay that such rules select; whether an
answer is a rule's doing is judged here. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from pyflannel.errors import MalformedError
from pyflannel.kernel.model import MAIN_TABLE, KernelObject, Key, Route, Rule
from pyflannel.kernel.port import ForeignLink, ForeignRoute, ForeignRule
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPAddress, IPNetwork, Lease, Subnets
from pyflannel.network.underlay import Question, Way
from pyflannel.planning.overlay import Peer

__all__ = ["SAMPLE", "diverting", "leftovers", "packets", "to_blame"]

_BOOT: Final = 3
"""``RTPROT_BOOT`` (linux/rtnetlink.h): of routes whose maker names no protocol, such as flanneld's."""

SAMPLE: Final = 500
"""Peers for which one rule is tried; the kernel answers some 50,000 questions a second."""

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
    return subnet is not None and _leads_into(net, subnet)


def _leads_into(net: IPNetwork, space: IPNetwork) -> bool:
    return net.prefixlen >= space.prefixlen and _leading(net, space.prefixlen) == _leading(space, space.prefixlen)


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


def packets(
    rules: Iterable[ForeignRule], peers: Iterable[Subnets], own: Subnets, bridges: Mapping[int, str]
) -> list[Question]:
    """For each rule of others' packets of the overlay that it selects: to at most :data:`SAMPLE` peers, evenly spread,
    from this node itself and from a container, as they are asked of the kernel.

    :param bridges: the device that containers' packets come by, by address family, where there is one.
    """
    theirs = tuple(peers)
    found: dict[Question, None] = {}
    for foreign in rules:
        rule = foreign.rule
        subnets = [subnet for each in theirs for subnet in each.each if subnet.version == rule.version]
        near = [subnet for subnet in subnets if _may_go_to(rule, subnet)]
        for subnet in near[:: -(-len(near) // SAMPLE) or 1]:
            for packet in _between(rule, own, subnet, bridges.get(rule.version, "")):
                if _selects(rule, packet):
                    found[packet] = None
    return list(found)


def _between(rule: Rule, own: Subnets, subnet: IPNetwork, bridge: str) -> Iterator[Question]:
    """The packets of this node and of a container of it to a peer's subnet."""
    destination = _one_of(subnet, None if rule.inverted else rule.destination, subnet.network_address + 1)
    yield Question(destination)
    mine = own.of(rule.version)
    if mine is not None and bridge:
        # The bridge has the first address, and nobody sends to himself.
        source = _one_of(mine, None if rule.inverted else rule.source, mine.broadcast_address - 1)
        yield Question(destination, source, bridge)


def _one_of(subnet: IPNetwork, selected: IPNetwork | None, usual: IPAddress) -> IPAddress:
    """An address of a subnet that a rule selects, if it selects a part of it."""
    if selected is None or selected.prefixlen <= subnet.prefixlen or not _leads_into(selected, subnet):
        return usual
    return selected.network_address + (1 if selected.prefixlen < selected.max_prefixlen - 1 else 0)


def _may_go_to(rule: Rule, subnet: IPNetwork) -> bool:
    there = rule.destination
    return rule.inverted or there is None or there.overlaps(subnet)


def _selects(rule: Rule, packet: Question) -> bool:
    """As the kernel does (``fib_rule_match`` in ``net/core/fib_rules.c``). Packets of the overlay have no mark; those
    of the node itself have no source yet, and come by ``lo``.
    """
    hit = (
        (rule.source is None or (packet.source is not None and packet.source in rule.source))
        and (rule.destination is None or packet.address in rule.destination)
        and rule.iif in ("", packet.entrance or "lo")
        and not rule.oif
        and (rule.mark is None or not rule.mark & rule.mask)
    )
    return hit != rule.inverted


def to_blame(
    rules: Iterable[ForeignRule], answers: Iterable[tuple[Question, Way | str]], ours: Collection[str]
) -> tuple[ForeignRule, ...]:
    """The rules by which packets of the overlay go elsewhere or nowhere, in the order in which the kernel asks them.

    :param answers: what the kernel said of each packet.
    :param ours: the devices by which such packets may leave.
    """
    asked = tuple(rules)
    found = set()
    for packet, way in answers:
        for foreign in asked:
            rule = foreign.rule
            if rule.version == packet.address.version and _selects(rule, packet) and _explains(rule, way, ours):
                found.add(foreign)
                break
    return tuple(foreign for foreign in asked if foreign in found)


def _explains(rule: Rule, way: Way | str, ours: Collection[str]) -> bool:
    """Whether an answer may be a rule's doing. That there is no route (``unreachable``) is not a table's that is looked
    up: then the next rule is asked."""
    if isinstance(way, Way):
        return rule.action == "lookup" and way.table == rule.table and way.interface not in ours
    return rule.action != "lookup" or way in ("blackhole", "prohibit")
