"""What others have in the address ranges of the overlay: routes that lead there, devices with addresses, policies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Interface, IPv6Interface
from socket import AF_INET, AF_INET6

from pyflannel.kernel import rules, wire
from pyflannel.kernel.links import address_index, decode_address, encode_address_dump
from pyflannel.kernel.model import ROUTE_PROTOCOL
from pyflannel.kernel.netlink.dumps import UNKNOWN
from pyflannel.kernel.netlink.picture import Picture
from pyflannel.kernel.port import ForeignLink, ForeignPolicy, ForeignRoute, ForeignRule, Surroundings
from pyflannel.kernel.rtsocket import RequestSocket
from pyflannel.kernel.wire import RouteRow
from pyflannel.kernel.xfrm import PolicyRow
from pyflannel.network.lease import IPNetwork, lies_in, meets

__all__ = ["look_around"]


def look_around(picture: Picture, requests: RequestSocket, rows: Iterable[PolicyRow]) -> Surroundings:
    """See :meth:`~pyflannel.kernel.port.KernelPort.look_around`; ``rows`` are all IPsec policies there are."""
    spaces = picture.scope.spaces
    routes = []
    for version, family in ((4, AF_INET), (6, AF_INET6)):
        if not any(space.version == version for space in spaces):
            continue
        for _, datagram, start, end in requests.dump(wire.encode_route_dump(family), UNKNOWN):
            if datagram[start + 5] == ROUTE_PROTOCOL:
                continue
            row = wire.parse_route(datagram, start, end)
            if _is_stray(picture, row):
                routes.append(ForeignRoute(picture.route(row), row.protocol))
    policies = (
        ForeignPolicy(row.source, row.destination)
        for row in rows
        if row.diverts and row.direction == "out" and any(meets(row.destination, space) for space in spaces)
    )
    strangers = tuple(_strangers(picture, requests, spaces))
    return Surroundings(tuple(routes), strangers, tuple(policies), tuple(_rules(picture, requests)))


def _rules(picture: Picture, requests: RequestSocket) -> Iterator[ForeignRule]:
    """Others' rules that may divert packets; from now on it is told when a table changes that they look up."""
    picture.foreign_tables.clear()
    for family in (AF_INET, AF_INET6):
        for _, datagram, start, end in requests.dump(rules.encode_rule_dump(family), UNKNOWN):
            rule = rules.parse_foreign_rule(datagram, start, end)
            if rule is not None and rules.may_divert(rule, picture.scope.spaces):
                picture.foreign_tables.add(rule.table)
                yield ForeignRule(rule)


def _is_stray(picture: Picture, row: RouteRow) -> bool:
    """Whether a foreign route leads into the scope's spaces, and to no more than them."""
    if row.table != wire.RT_TABLE_MAIN or row.flags & wire.RTM_F_CLONED or picture.is_ours(row):
        return False
    return any(lies_in(row.destination, space) for space in picture.scope.spaces)


def _strangers(picture: Picture, requests: RequestSocket, spaces: Sequence[IPNetwork]) -> Iterator[ForeignLink]:
    """The devices that are not ours and have addresses in some ranges."""
    addresses: dict[int, list[IPv4Interface | IPv6Interface]] = defaultdict(list)
    for _, datagram, start, end in requests.dump(encode_address_dump(0, requests.strict), UNKNOWN):
        index = address_index(datagram, start)
        row = picture.table.by_index.get(index)
        if row is not None and not picture.in_scope(row):
            item = decode_address(row.name, datagram, start, end)
            if item is not None:
                addresses[index].append(item.interface)
    for index, found in addresses.items():
        if any(address.ip in space for address in found for space in spaces):
            yield ForeignLink(picture.table.link(picture.table.by_index[index]), tuple(found))
