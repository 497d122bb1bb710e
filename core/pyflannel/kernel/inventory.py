"""What this node has to choose an underlay from, read from the kernel in four dumps.

Only foreign things count: our own routes and whatever cannot carry packets between nodes (loopback, link-local,
tentative and deprecated addresses) is left out.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Final

from pyflannel.kernel import wire
from pyflannel.kernel.links import LinkRow, LinkTable, encode_address_dump, encode_link_query, parse_link
from pyflannel.kernel.model import DISCARDING, OWNER, ROUTE_PROTOCOL, ROUTE_TYPES
from pyflannel.kernel.netns import call_in
from pyflannel.kernel.nexthops import NexthopTable
from pyflannel.kernel.rtnl import messages
from pyflannel.kernel.rtsocket import Refused, RequestSocket
from pyflannel.network.lease import IPAddress
from pyflannel.network.underlay import Interface, InterfaceRoute, Inventory, Question, Way

__all__ = ["answer", "ask_ways", "read_cards", "read_inventory"]

_RTPROT_RA = 9
_RT_SCOPE_UNIVERSE = 0
_IFA_F_DEPRECATED = 0x20
_IFA_F_TENTATIVE = 0x40
_IFA_F_DADFAILED = 0x08
_IFA_F_TEMPORARY = 0x01
_NO_MAC = "00:00:00:00:00:00"
_CABLES = frozenset({"veth", "macvlan"})
_ERRORS: Final = {errno.EACCES: "prohibit", errno.EINVAL: "blackhole", errno.ENETUNREACH: "unreachable"}
"""What the types of IPv4's routes and rules that lead nowhere come out as."""

_NOWHERE: Final = {number: name for name, number in ROUTE_TYPES.items() if name in DISCARDING}
_UNUSABLE = _IFA_F_TENTATIVE | _IFA_F_DADFAILED | _IFA_F_TEMPORARY


@dataclass(slots=True)
class _Addresses:
    usable: list[IPAddress] = field(default_factory=list)
    hosts: set[IPAddress] = field(default_factory=set)
    fading: set[IPAddress] = field(default_factory=set)


def read_inventory(netns: Path | None = None, towards: Iterable[IPAddress] = ()) -> Inventory:
    """The interfaces and routes of the current network namespace, or of another.

    :param towards: addresses of which the kernel is to say how it sends to them.
    :raises KernelError: they can't be read.
    """
    requests = RequestSocket() if netns is None else call_in(netns, RequestSocket)
    try:
        links = _links(requests)
        addresses = _addresses(requests)
        advertised: set[str] = set()
        routes = tuple(
            route for family in (AF_INET, AF_INET6) for route in _routes(requests, family, links, advertised)
        )
        asked = ((address, answer(requests, links, Question(address))) for address in towards)
        ways = tuple((address, way if isinstance(way, Way) else None) for address, way in asked)
    finally:
        requests.close()
    return Inventory(
        tuple(_interface(row, addresses[row.index]) for row in links.by_index.values() if row.alias != OWNER),
        routes,
        ways,
        frozenset(name for name in advertised if _takes_advertisements(name, netns)),
    )


def read_cards(netns: Path | None = None) -> frozenset[str]:
    """The lasting hardware addresses of this machine's network cards.

    Where a container or a network namespace has no card, the ends of the cables that it hangs on stand for them.

    :raises KernelError: they can't be read.
    """
    requests = RequestSocket() if netns is None else call_in(netns, RequestSocket)
    try:
        rows = [row for row in _links(requests).by_index.values() if _has_address(row) and row.alias != OWNER]
    finally:
        requests.close()
    cards = frozenset(row.lasting_mac or row.mac for row in rows if not row.kind)
    return cards or frozenset(row.mac for row in rows if row.kind in _CABLES and not row.master)


def _has_address(row: LinkRow) -> bool:
    """Whether it has a hardware address of Ethernet's form; that of ``lo`` is nobody's."""
    return len(row.mac) == len(_NO_MAC) and row.mac != _NO_MAC


def _takes_advertisements(link: str, netns: Path | None) -> bool:
    """Whether the kernel takes them; with 0 nobody does, or a program such as systemd-networkd."""
    path = Path("/proc/sys/net/ipv6/conf", link, "accept_ra")
    try:
        return (path.read_bytes() if netns is None else call_in(netns, path.read_bytes)).strip() != b"0"
    except OSError:
        return False


def _interface(row: LinkRow, found: _Addresses) -> Interface:
    return Interface(row.name, row.mtu, row.up, tuple(found.usable), frozenset(found.hosts), frozenset(found.fading))


def ask_ways(questions: Sequence[Question]) -> list[Way | str]:
    """The kernel's answers, or why it would send nowhere: the type of the route or rule, or its error.

    A question with an entrance that is not there is asked without.

    :raises KernelError: it can't be asked.
    """
    requests = RequestSocket()
    try:
        links = _links(requests)
        return [answer(requests, links, question) for question in questions]
    finally:
        requests.close()


def answer(requests: RequestSocket, links: LinkTable, question: Question) -> Way | str:
    """One of :func:`ask_ways`, on a socket that is there; ``links`` are the devices by their indexes."""
    entrance = next((row.index for row in links.by_index.values() if row.name == question.entrance), 0)
    said = requests.ask(wire.encode_route_query(question.address, question.source, entrance))
    if isinstance(said, Refused):
        return _ERRORS.get(said.number, os.strerror(said.number).lower())
    row = wire.parse_route(said.datagram, said.start, said.end)
    name = links.name(row.link)
    if row.kind in _NOWHERE or name is None:  # IPv6's answer is such a route, IPv4's an error
        return _NOWHERE.get(row.kind, "no device")
    return Way(name, row.source, row.table)


def _links(requests: RequestSocket) -> LinkTable:
    table = LinkTable()
    for answer in requests.dump(encode_link_query(None)):
        row = parse_link(answer.datagram, answer.start, answer.end)
        if row is not None:
            table.put(row)
    return table


def _addresses(requests: RequestSocket) -> dict[int, _Addresses]:
    found: dict[int, _Addresses] = defaultdict(_Addresses)
    for answer in requests.dump(encode_address_dump(0, strict=False)):
        message = messages().address(answer.datagram[answer.start - 16 : answer.end])
        message.decode()
        attributes = dict(message["attrs"])
        text = attributes.get("IFA_LOCAL") or attributes.get("IFA_ADDRESS")
        flags = attributes.get("IFA_FLAGS", message["flags"])
        if text is None or message["scope"] != _RT_SCOPE_UNIVERSE:
            continue
        address = ip_address(text)
        if address.version == 4 or not flags & _UNUSABLE:  # IFA_F_TEMPORARY means "secondary" for IPv4
            there = found[message["index"]]
            if address.version == 6 and flags & _IFA_F_DEPRECATED:
                there.fading.add(address)
                continue
            there.usable.append(address)
            if message["prefixlen"] == address.max_prefixlen:
                there.hosts.add(address)
    return found


def _routes(requests: RequestSocket, family: int, links: LinkTable, advertised: set[str]) -> list[InterfaceRoute]:
    """The routes of one family; notes in ``advertised`` which links have some by a router's advertisement."""
    found, nexthops = [], NexthopTable(requests)
    for answer in requests.dump(wire.encode_route_dump(family)):
        row = wire.parse_route(answer.datagram, answer.start, answer.end)
        if row.table != wire.RT_TABLE_MAIN or row.kind != wire.RTN_UNICAST or row.protocol == ROUTE_PROTOCOL:
            continue
        if row.flags & wire.RTM_F_CLONED or row.destination.is_link_local or row.destination.is_multicast:
            continue
        for way in nexthops.ways(row):
            name = links.name(way.link)
            if name is not None:
                if row.protocol == _RTPROT_RA:
                    advertised.add(name)
                found.append(InterfaceRoute(row.destination, name, way.gateway, row.metric, row.source))
    return found
