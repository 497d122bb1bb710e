"""What is there: each kind of object asked for in a dump of its own, and brought together."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import Final

from pyflannel.errors import KernelError
from pyflannel.kernel import qdiscs, rules, wire
from pyflannel.kernel.links import (
    LinkRow,
    LinkTable,
    address_index,
    decode_address,
    encode_address_dump,
    encode_link_query,
    parse_link,
)
from pyflannel.kernel.model import (
    ROUTE_PROTOCOL,
    ForeignInfo,
    Key,
    Kind,
    Qdisc,
    Route,
    Rule,
    VxlanInfo,
    route_key,
)
from pyflannel.kernel.netlink.found import Found
from pyflannel.kernel.netlink.picture import Picture, fdb_entry, neighbour
from pyflannel.kernel.qdiscs import QdiscRow
from pyflannel.kernel.rtsocket import Answer, Refused, RequestSocket
from pyflannel.kernel.wire import RouteRow

__all__ = ["UNKNOWN", "Dumps"]

UNKNOWN: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EAFNOSUPPORT})
"""How a kernel answers a question about what it does not have, or has no idea of."""

_FEW = 8
"""Up to how many routes are looked for by their bytes in a dump that is otherwise left unread."""

_I32 = Struct("=i")


class Dumps:
    """The questions about a namespace, which depend on the picture of it, and fill it in."""

    def __init__(self, picture: Picture, requests: RequestSocket) -> None:
        self._picture = picture
        self._request = requests

    def links(self) -> None:
        """Get to know all links that there are."""
        table = LinkTable(self._picture.scope.generic)
        for answer in self._request.dump(encode_link_query(None)):
            row = parse_link(answer.datagram, answer.start, answer.end)
            if row is not None:
                table.put(row)
        self._picture.take_links(table)

    def link(self, name: str) -> LinkRow | None:
        """The link of that name, as it is now.

        :raises KernelError: the kernel does not answer.
        """
        answer = self._request.ask(encode_link_query(name))
        if isinstance(answer, Refused):
            if answer.number == errno.ENODEV:
                return None
            raise KernelError(f"can't look up link {name}: {answer.text or os.strerror(answer.number)}")
        return parse_link(answer.datagram, answer.start, answer.end)

    def entries(self, found: Found) -> None:
        """Bring together the addresses, neighbours and forwarding entries on links of ours."""
        own = {index: link for index, link in self._picture.ours.items() if not isinstance(link.info, ForeignInfo)}
        for index, link in own.items():
            self._read_addresses(index, link.name, found)
        found.begin(Kind.NEIGHBOUR)
        for index, link in own.items():
            self._read_neighbours(index, link.name, found)
        found.end()
        found.begin(Kind.FDB)
        for index, link in own.items():
            if isinstance(link.info, VxlanInfo):
                self._read_fdb(index, link.name, found)
        found.end()

    def _read_addresses(self, index: int, name: str, found: Found) -> None:
        for _, datagram, start, end in self._request.dump(encode_address_dump(index, self._request.strict), UNKNOWN):
            if address_index(datagram, start) == index:
                item = decode_address(name, datagram, start, end)
                if item is not None:
                    found.add(item)

    def _read_neighbours(self, index: int, name: str, found: Found) -> None:
        parse, permanent, proxy = wire.parse_neighbour, wire.NUD_PERMANENT, wire.NTF_PROXY
        link = _I32.pack(index)
        for family in (AF_INET, AF_INET6):
            for _, datagram, start, end in self._request.dump(wire.encode_neighbour_dump(family, index), UNKNOWN):
                if wire.neighbour_link(datagram, start) != link or found.take(datagram, start, end):
                    continue
                row = parse(datagram, start, end)
                if row is not None and row.state & permanent and not row.flags & proxy:
                    found.add(neighbour(name, row))

    def _read_fdb(self, index: int, name: str, found: Found) -> None:
        request, link = wire.encode_fdb_dump(index if self._request.strict else 0), _I32.pack(index)
        for _, datagram, start, end in self._request.dump(request, UNKNOWN):
            if wire.neighbour_link(datagram, start) != link or found.take(datagram, start, end):
                continue
            row = wire.parse_fdb(datagram, start, end)
            if row is not None and row.state & wire.NUD_PERMANENT:
                found.add_fdb(fdb_entry(name, row))

    def routes(self, found: Found) -> None:
        """Bring together the routes of ours."""
        found.begin(Kind.ROUTE)
        for family in (AF_INET, AF_INET6):
            self._read_routes(family, found)
        self._picture.route_links |= found.links
        found.end()

    def _read_routes(self, family: int, found: Found) -> None:
        links = [index for index, link in self._picture.ours.items() if not isinstance(link.info, ForeignInfo)]
        requests = [wire.encode_route_dump(family, protocol=ROUTE_PROTOCOL, table=0)]
        requests += [wire.encode_route_dump(family, link=index) for index in links]
        if not self._request.strict:
            requests = [wire.encode_route_dump(family)]
        for number, request in enumerate(requests):
            for _, datagram, start, end in self._request.dump(request, UNKNOWN):
                if (number and datagram[start + 5] == ROUTE_PROTOCOL) or found.take(datagram, start, end):
                    continue
                row = wire.parse_route(datagram, start, end)
                if self._picture.is_ours(row):
                    self._picture.route_links.add(row.link)
                    found.add(self._picture.route(row))

    def routes_like(self, routes: Iterable[Route]) -> Mapping[Key, list[RouteRow]]:
        """The routes that have the keys of ``routes``, in the kernel's order."""
        wanted: dict[tuple[int, int], dict[Key, bytes]] = defaultdict(dict)
        for route in routes:
            destination = route.destination
            of = (AF_INET if destination.version == 4 else AF_INET6, route.table)
            wanted[of][route.key] = destination.network_address.packed
        found: dict[Key, list[RouteRow]] = defaultdict(list)
        for (family, table), these in wanted.items():
            packed = list(these.values())
            answers: Iterable[Answer] = self._request.dump(wire.encode_route_dump(family, table=table), UNKNOWN)
            if len(packed) <= _FEW and all(map(any, packed)):  # a default route may leave its zeros out
                answers = _mentioning(packed, answers)
            for _, datagram, start, end in answers:
                row = wire.parse_route(datagram, start, end)
                key = route_key(row.destination, row.metric, row.table)
                if key in these and not row.flags & wire.RTM_F_CLONED:
                    found[key].append(row)
        return found

    def rules(self) -> list[Rule]:
        """All rules of ours, in the kernel's order."""
        requests = (rules.encode_rule_dump(family) for family in (AF_INET, AF_INET6))
        answers = (answer for request in requests for answer in self._request.dump(request, UNKNOWN))
        parsed = (rules.parse_rule(datagram, start, end) for _, datagram, start, end in answers)
        return [rule for rule in parsed if rule is not None]

    def qdisc_rows(self) -> Iterator[QdiscRow]:
        """The root queueing discipline of each device."""
        for _, datagram, start, end in self._request.dump(qdiscs.encode_qdisc_dump(), UNKNOWN):
            row = qdiscs.parse_qdisc(datagram, start, end)
            if row is not None:
                yield row

    def qdiscs(self) -> dict[int, Qdisc]:
        """Those on links of ours, by the links' indexes."""
        seen = {row.link: self._picture.seen_qdisc(row) for row in self.qdisc_rows() if self._picture.owns(row.link)}
        return {index: qdisc for index, qdisc in seen.items() if qdisc is not None}


def _mentioning(needles: Sequence[bytes], answers: Iterable[Answer]) -> Iterator[Answer]:
    """The answers in datagrams that hold any of some bytes; the others are not even looked into."""
    datagram, mentions = b"", False
    for answer in answers:
        if answer.datagram is not datagram:
            datagram = answer.datagram
            mentions = any(needle in datagram for needle in needles)
        if mentions:
            yield answer
