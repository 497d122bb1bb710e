"""Plans as bytes: what thousands of peers need is kept in some tens of bytes each, and unpacked when it is looked at.

A neighbour, a forwarding entry and a route through a gateway are each a *part*: a form, the bytes that make the
object's key, and the rest. A plan of nothing but these is their parts one after the other; any other plan stays as it
is. Packing loses nothing: what is unpacked equals what was packed.

A part is also enough to know what the kernel will say of the entry (:mod:`~pyflannel.kernel.expected`), so that
thousands of them are compared with what it says without an object being made of any.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import Struct
from typing import Any, Final, TypeAlias

from pyflannel.kernel.model import (
    MAIN_TABLE,
    FdbEntry,
    KernelObject,
    Key,
    Kind,
    Neighbour,
    Route,
)
from pyflannel.network.lease import IPAddress, IPNetwork

__all__ = [
    "FDB4",
    "FDB6",
    "NEIGHBOUR4",
    "NEIGHBOUR6",
    "PACKED_KINDS",
    "ROUTE4",
    "ROUTE6",
    "SIZES",
    "STRUCTS",
    "USUAL_METRIC6",
    "Index",
    "Plan",
    "Wanted",
    "count_of",
    "find",
    "index",
    "indexes",
    "is_neighbours",
    "key_of",
    "link_name",
    "link_number",
    "pack",
    "part_index",
    "parts",
    "picked",
    "place_of",
    "plans_of",
    "unpack",
]

Plan: TypeAlias = bytes | tuple[KernelObject, ...]
"""The objects of one plan: packed, or as they are."""

Index: TypeAlias = bytes | Key
"""A key as it stands in a part, or as it is where no part could have it."""

NEIGHBOUR4, NEIGHBOUR6, FDB4, FDB6, ROUTE4, ROUTE6 = range(6)
"""The forms: what a part is, and of which IP version; that of a forwarding entry is its remote's."""

STRUCTS: Final = (
    Struct("=BH4s6s"),
    Struct("=BH16s6s"),
    Struct("=BH6s4s"),
    Struct("=BH6s16s"),
    Struct("=B4sBIH4s?"),
    Struct("=B16sBIH16s?"),
)
"""By form: a neighbour's link, address and MAC; a forwarding entry's link, MAC and remote; a route's destination, its
length, metric, link, gateway, and whether the gateway is taken to be on the link."""

SIZES: Final = tuple(struct.size for struct in STRUCTS)
_KEY_ENDS: Final = (7, 19, 9, 9, 10, 22)
"""By form: where the key ends in a part. No two kinds or versions have keys of one length."""

_NEIGHBOURS_KEYS: Final = (_KEY_ENDS[NEIGHBOUR4] - 1, _KEY_ENDS[NEIGHBOUR6] - 1)
_LINKS: Final = (1, 1, 1, 1, 10, 22)
"""By form: where the number of the link is in a part."""

_LINK: Final = Struct("=H")
_LENGTH_AND_METRIC: Final = Struct("=BI")
_ON_LINK: Final = frozenset({Kind.NEIGHBOUR, Kind.FDB})
_MOST_LINKS: Final = 1 << 16
_NUMBERS: Final[dict[str, int]] = {}
_NAMES: Final[list[str]] = []
"""The names of links, each of which is kept once: a part has its number."""

USUAL_METRIC6: Final = 1024
"""What an IPv6 route's metric is if it was not given one."""

PACKED_KINDS: Final = (Kind.NEIGHBOUR, Kind.FDB, Kind.ROUTE)
"""The kinds of what a packed plan holds."""

_IPV6: Final = 1 << 128
"""Beyond all addresses: what tells an IPv6 address's number in a key from an IPv4 one's."""


def _number_of(link: str) -> int | None:
    """A link's number; ``None`` for one too many."""
    number = _NUMBERS.get(link)
    if number is None and len(_NAMES) < _MOST_LINKS:
        number = _NUMBERS[link] = len(_NAMES)
        _NAMES.append(link)
    return number


def pack(objects: Iterable[KernelObject], metric_of: Callable[[IPNetwork], int] | None = None) -> Plan:
    """A plan as it is kept.

    :param metric_of: the metrics that its IPv4 routes get which have none, if it can be packed.
    """
    objects = tuple(objects)
    packed = []
    for item in objects:
        if type(item) is Neighbour:
            part = _packed_neighbour(item)
        elif type(item) is FdbEntry:
            part = _packed_fdb(item)
        else:
            part = _packed_route(item, metric_of) if type(item) is Route else None
        if part is None:
            return objects
        packed.append(part)
    return b"".join(packed) or objects


def unpack(plan: Plan) -> tuple[KernelObject, ...]:
    """The objects of a plan."""
    return tuple([_object(part) for part in parts(plan)]) if isinstance(plan, bytes) else plan


def parts(plan: bytes) -> Iterator[bytes]:
    """What a packed plan consists of."""
    start, end = 0, len(plan)
    while start < end:
        after = start + SIZES[plan[start]]
        yield plan[start:after]
        start = after


def count_of(plan: bytes) -> int:
    """How many objects a packed plan has."""
    count = start = 0
    end = len(plan)
    while start < end:
        start += SIZES[plan[start]]
        count += 1
    return count


def _packed_neighbour(item: Neighbour) -> bytes | None:
    link, address, mac = _number_of(item.link), item.address, item.mac
    if link is None or type(mac) is not str:
        return None
    form = NEIGHBOUR4 if type(address) is IPv4Address else NEIGHBOUR6
    return STRUCTS[form].pack(form, link, address.packed, bytes.fromhex(mac.replace(":", "")))


def _packed_fdb(item: FdbEntry) -> bytes | None:
    link, remote = _number_of(item.link), item.remote
    if link is None or item.port is not None or item.vni is not None:
        return None
    form = FDB4 if type(remote) is IPv4Address else FDB6
    return STRUCTS[form].pack(form, link, bytes.fromhex(item.mac.replace(":", "")), remote.packed)


def _packed_route(item: Route, metric_of: Callable[[IPNetwork], int] | None) -> bytes | None:
    destination, gateway = item.destination, item.gateway
    plain = item.source is None and item.table == MAIN_TABLE and not (item.type or item.metrics or item.encapsulation)
    if not plain or item.link is None or gateway is None or gateway.version != destination.version:
        return None
    link = _number_of(item.link)
    if link is None:
        return None
    first, length = destination.network_address, destination.prefixlen
    address = first.packed
    towards = address if gateway is first else gateway.packed
    metric = item.effective_metric
    if type(destination) is IPv6Network:
        return STRUCTS[ROUTE6].pack(ROUTE6, address, length, metric, link, towards, item.onlink)
    if item.metric is None and metric_of is not None:
        metric = metric_of(destination)
    return STRUCTS[ROUTE4].pack(ROUTE4, address, length, metric, link, towards, item.onlink)


def link_number(part: bytes) -> int:
    """The number of the link that a part's object is on."""
    number: int = _LINK.unpack_from(part, _LINKS[part[0]])[0]
    return number


def link_name(number: int) -> str:
    """The name of the link that has this number in parts."""
    return _NAMES[number]


def _object(part: bytes) -> KernelObject:
    form, *fields = STRUCTS[part[0]].unpack(part)
    item: KernelObject = _UNPACKED[form](*fields)
    return item


def _setters(kind: type) -> list[Callable[[Any, Any], None]]:
    """What sets each field of a frozen class. What a part holds was checked when its object was made: to check it again
    takes longer than all the rest of unpacking."""
    return [kind.__dict__[each.name].__set__ for each in fields(kind)]


_new = object.__new__
_set_neighbour_link, _set_neighbour_address, _set_neighbour_mac = _setters(Neighbour)
_set_fdb_link, _set_fdb_mac, _set_remote, _set_port, _set_vni = _setters(FdbEntry)
_set_destination, _set_route_link, _set_gateway, _set_onlink, _set_source, _set_metric, *_set_details = _setters(Route)
_DETAILS: Final = tuple((each, one.default) for each, one in zip(_set_details, fields(Route)[6:], strict=True))
"""What a packed route has none of."""


def _neighbour(link: int, address: IPAddress, mac: bytes) -> Neighbour:
    item = _new(Neighbour)
    _set_neighbour_link(item, _NAMES[link])
    _set_neighbour_address(item, address)
    _set_neighbour_mac(item, mac.hex(":"))
    return item


def _fdb(link: int, mac: bytes, remote: IPAddress) -> FdbEntry:
    item = _new(FdbEntry)
    _set_fdb_link(item, _NAMES[link])
    _set_fdb_mac(item, mac.hex(":"))
    _set_remote(item, remote)
    _set_port(item, None)
    _set_vni(item, None)
    return item


def _route(destination: IPNetwork, metric: int | None, link: int, gateway: IPAddress, onlink: bool) -> Route:
    item = _new(Route)
    _set_destination(item, destination)
    _set_route_link(item, _NAMES[link])
    _set_gateway(item, gateway)
    _set_onlink(item, onlink)
    _set_source(item, None)
    _set_metric(item, metric)
    for set_detail, usual in _DETAILS:
        set_detail(item, usual)
    return item


def _neighbour4(link: int, address: bytes, mac: bytes) -> Neighbour:
    return _neighbour(link, IPv4Address(address), mac)


def _neighbour6(link: int, address: bytes, mac: bytes) -> Neighbour:
    return _neighbour(link, IPv6Address(address), mac)


def _fdb4(link: int, mac: bytes, remote: bytes) -> FdbEntry:
    return _fdb(link, mac, IPv4Address(remote))


def _fdb6(link: int, mac: bytes, remote: bytes) -> FdbEntry:
    return _fdb(link, mac, IPv6Address(remote))


def _route4(address: bytes, length: int, metric: int, link: int, gateway: bytes, onlink: bool) -> Route:
    net = IPv4Network((address, length))
    towards = net.network_address if gateway == address else IPv4Address(gateway)
    return _route(net, metric or None, link, towards, onlink)


def _route6(address: bytes, length: int, metric: int, link: int, gateway: bytes, onlink: bool) -> Route:
    net = IPv6Network((address, length))
    towards = net.network_address if gateway == address else IPv6Address(gateway)
    return _route(net, None if metric == USUAL_METRIC6 else metric, link, towards, onlink)


_UNPACKED: Final[tuple[Callable[..., KernelObject], ...]] = (
    _neighbour4,
    _neighbour6,
    _fdb4,
    _fdb6,
    _route4,
    _route6,
)


# Keys


def part_index(part: bytes) -> bytes:
    """The key of a part's object, as :func:`index` has it."""
    return part[1 : _KEY_ENDS[part[0]]]


def _whole(part_of_key: object) -> int:
    assert isinstance(part_of_key, int)
    return part_of_key


def index(key: Key) -> Index:
    """A key as it stands in parts: the same for equal keys, another for others."""
    kind, first, second = key
    if kind is Kind.ROUTE and type(second) is int:
        length, number = _whole(first) & 0xFF, _whole(first) >> 8
        size = 4 if number < _IPV6 else 16
        return (number & (1 << 8 * size) - 1).to_bytes(size, "big") + _LENGTH_AND_METRIC.pack(length, second)
    link = _number_of(first) if kind in _ON_LINK and type(first) is str else None
    if link is None:
        return key
    if kind is Kind.FDB:
        return _LINK.pack(link) + bytes.fromhex(str(second).replace(":", ""))
    number = _whole(second)
    size = 4 if number < _IPV6 else 16
    return _LINK.pack(link) + (number & (1 << 8 * size) - 1).to_bytes(size, "big")


def indexes(plan: Plan) -> list[Index]:
    """The keys of a plan's objects, as :func:`index` has them."""
    return [part_index(part) for part in parts(plan)] if isinstance(plan, bytes) else [index(item.key) for item in plan]


def is_neighbours(each: Index) -> bool:
    """Whether this is a neighbour's key."""
    return len(each) in _NEIGHBOURS_KEYS if isinstance(each, bytes) else each[0] is Kind.NEIGHBOUR


def find(plan: Plan, key: Key) -> KernelObject | None:
    """A plan's object under a key."""
    if not isinstance(plan, bytes):
        return next((item for item in plan if item.key == key), None)
    wanted = index(key)
    return next((_object(part) for part in parts(plan) if part_index(part) == wanted), None)


def place_of(key: Key) -> tuple[int, int] | None:
    """Where in the address space a route's or neighbour's key lies: the IP version, and the first address."""
    kind, first, second = key
    if kind is Kind.ROUTE:
        number = _whole(first) >> 8
    elif kind is Kind.NEIGHBOUR:
        number = _whole(second)
    else:
        return None
    return (4, number) if number < _IPV6 else (6, number - _IPV6)


def key_of(part: bytes) -> Key:
    """The key of a part's object."""
    form, *fields = STRUCTS[part[0]].unpack(part)
    if form in (FDB4, FDB6):
        return (Kind.FDB, _NAMES[fields[0]], fields[1].hex(":"))
    if form in (NEIGHBOUR4, NEIGHBOUR6):
        return (Kind.NEIGHBOUR, _NAMES[fields[0]], _as_number(fields[1]))
    return (Kind.ROUTE, _as_number(fields[0]) << 8 | fields[1], fields[2])


def _as_number(address: bytes) -> int:
    number = int.from_bytes(address, "big")
    return number if len(address) == 4 else number | _IPV6


# What is wanted altogether


class Wanted(Mapping[Key, KernelObject]):
    """All that a kernel should hold, kept as plans; live, and read as any mapping is."""

    @abstractmethod
    def plans(self) -> Iterable[Plan]:
        """The plans that it consists of; no key occurs twice."""

    def __iter__(self) -> Iterator[Key]:
        for plan in self.plans():
            if isinstance(plan, bytes):
                yield from map(key_of, parts(plan))
            else:
                yield from (item.key for item in plan)

    def items(self) -> ItemsView[Key, KernelObject]:
        """Key and object, plan by plan."""
        return _Items(self)

    def values(self) -> ValuesView[KernelObject]:
        """The objects, plan by plan."""
        return _Values(self)


class _Items(ItemsView[Key, KernelObject]):
    _mapping: Wanted

    def __iter__(self) -> Iterator[tuple[Key, KernelObject]]:
        for plan in self._mapping.plans():
            for item in unpack(plan):
                yield item.key, item


class _Values(ValuesView[KernelObject]):
    _mapping: Wanted

    def __iter__(self) -> Iterator[KernelObject]:
        for plan in self._mapping.plans():
            yield from unpack(plan)


def plans_of(wanted: Mapping[Key, KernelObject]) -> Iterable[Plan]:
    """The plans that something wanted consists of."""
    return wanted.plans() if isinstance(wanted, Wanted) else (tuple(wanted.values()),)


def picked(wanted: Mapping[Key, KernelObject], keys: Collection[Key]) -> Mapping[Key, KernelObject]:
    """What is wanted under ``keys``: for many of them all is unpacked once, instead of looking up each."""
    if not isinstance(wanted, Wanted):
        return wanted
    if 2 * len(keys) > len(wanted):
        return {key: item for key, item in wanted.items() if key in keys}
    return {key: item for key in keys if (item := wanted.get(key)) is not None}
