"""The netlink messages that come by the thousand (routes, neighbours, forwarding entries), as bytes and back.

Pure functions over :mod:`struct`: model values and an interface index in, one message out; one message in, a row out.
Numbers and layouts are those of the kernel's ``linux/netlink.h``, ``linux/rtnetlink.h`` and ``linux/neighbour.h``; all
of it is in host byte order, addresses in network byte order, attributes aligned to four bytes. Encoded messages carry
sequence number 0, which :mod:`~pyflannel.kernel.rtsocket` fills in when it sends them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import Final, NamedTuple

from pyflannel.kernel.model import (
    MAIN_TABLE,
    ROUTE_METRICS,
    ROUTE_PROTOCOL,
    ROUTE_TYPES,
    Encapsulation,
    FdbEntry,
    ForeignEncapsulation,
    IpEncapsulation,
    MplsEncapsulation,
    Neighbour,
    Route,
    Seg6Encapsulation,
)
from pyflannel.network.lease import IPAddress, IPNetwork

__all__ = [
    "FdbRow",
    "NeighbourRow",
    "Nexthop",
    "RouteRow",
    "attribute",
    "attributes",
    "encode_fdb",
    "encode_fdb_dump",
    "encode_neighbour",
    "encode_neighbour_dump",
    "encode_route",
    "encode_route_dump",
    "encode_route_query",
    "is_flooded",
    "label_stack",
    "labels_of",
    "messages",
    "parse_fdb",
    "parse_neighbour",
    "parse_route",
    "via_attribute",
]

AF_BRIDGE: Final = 7

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30
RTM_NEWNETCONF: Final = 80

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_REPLACE: Final = 0x100
NLM_F_DUMP: Final = 0x300
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800

RT_TABLE_MAIN: Final = MAIN_TABLE
RTN_UNICAST: Final = 1
_RTN_MULTICAST: Final = 5
"""The last type of routes that lead somewhere."""
RTPROT_UNSPEC: Final = 0
RTPROT_REDIRECT: Final = 1
RTPROT_KERNEL: Final = 2
RTPROT_RA: Final = 9
_RTM_F_LOOKUP_TABLE: Final = 0x1000
"""In a question: say which table the answer is from. IPv6's says so always, and refuses a question with this."""
RTM_F_CLONED: Final = 0x200
_RT_SCOPE_UNIVERSE = 0
_RT_SCOPE_LINK = 253
_RT_SCOPE_NOWHERE = 255
RTNH_F_ONLINK: Final = 4
RTA_DST: Final = 1
_RTA_SRC = 2
_RTA_IIF = 3
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
_RTA_PREFSRC = 7
_RTA_METRICS = 8
_RTA_MULTIPATH = 9
RTA_TABLE: Final = 15
_RTA_VIA = 18
_RTA_ENCAP_TYPE = 21
_RTA_ENCAP = 22
_RTA_NH_ID = 30

NLA_F_NESTED = 0x8000
_ENCAPSULATIONS: Final = {
    1: "mpls",
    2: "ip",
    3: "ila",
    4: "ip6",
    5: "seg6",
    6: "bpf",
    7: "seg6local",
    8: "rpl",
    9: "ioam6",
}
"""``LWTUNNEL_ENCAP_`` in linux/lwtunnel.h."""

_ENCAPSULATION_TYPES: Final = {name: number for number, name in _ENCAPSULATIONS.items()}
_IP_ID, _IP_DST, _IP_SRC, _IP_TTL, _IP_TOS, _IP_FLAGS, _IP_OPTS = 1, 2, 3, 4, 5, 6, 8
"""``LWTUNNEL_IP_`` and ``LWTUNNEL_IP6_`` in linux/lwtunnel.h."""

_TUNNEL_KEY = 0x04
_MPLS_IPTUNNEL_DST, _MPLS_IPTUNNEL_TTL = 1, 2
_SEG6_IPTUNNEL_SRH = 1
_SEG6_MODES: Final = {False: 1, True: 0}
"""``SEG6_IPTUN_MODE_`` in linux/seg6_iptunnel.h, by whether it is inline."""

_ROUTING_TYPE_SEGMENTS = 4
_TYPE_NAMES: Final = {number: name for name, number in ROUTE_TYPES.items()}
_METRIC_NAMES: Final = {number: name for name, (number, _) in ROUTE_METRICS.items()}

NUD_NOARP: Final = 0x40
NUD_PERMANENT: Final = 0x80
NTF_SELF: Final = 0x02
NTF_PROXY: Final = 0x08
NDA_DST: Final = 1
NDA_LLADDR: Final = 2
_NDA_PORT = 6
_NDA_VNI = 7
_NDA_IFINDEX = 8
_NDA_SRC_VNI = 11
_NDA_NH_ID = 13

HEADER: Final = Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence number, port id."""

_ATTRIBUTE = Struct("=HH")
_ROUTE = Struct("=8BI")
_NEIGHBOUR = Struct("=BxxxiHBB")
_NEXTHOP = Struct("=HBBi")
_SEGMENT_HEADER = Struct("=i8B")
"""``struct seg6_iptunnel_encap`` up to the segments: the mode, and a routing header without them (RFC 8754, 2)."""

_U8 = Struct("=B")
_U16 = Struct("=H")
_BE16 = Struct("!H")
_BE32 = Struct("!I")
_BE64 = Struct("!Q")
_U32 = Struct("=I")
_ATTRIBUTE_U32 = Struct("=HHI")
_ATTRIBUTE_MAC = Struct("=HH6s2x")
_ATTRIBUTE_IPV4 = Struct("=HH4s")
_ATTRIBUTE_IPV6 = Struct("=HH16s")

_PLAIN_ROUTE = Struct("=IHHII 8BI HH4s HH4s HHI HHI")
_PLAIN_NEIGHBOUR = Struct("=IHHII BxxxiHBB HH4s HH6s2x")
_PLAIN_FDB = Struct("=IHHII BxxxiHBB HH6s2x HH4s")
"""Whole messages with their header, of the IPv4 entries that a start writes by the thousand."""

PLAIN_FDB_BODY: Final = _PLAIN_FDB.size - 16
"""Bytes behind the header of the last one."""

_TYPE_AT = 11
"""Where ``struct ndmsg`` has a type, which the kernel fills in."""


def messages(datagram: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Every message of a datagram: type, flags, sequence number, port id, and where its payload begins and ends."""
    offset, size = 0, len(datagram)
    unpack = HEADER.unpack_from
    while offset + 16 <= size:
        length, kind, flags, sequence, port = unpack(datagram, offset)
        if length < 16 or offset + length > size:
            return
        yield kind, flags, sequence, port, offset + 16, offset + length
        offset += (length + 3) & ~3


def attributes(datagram: bytes, start: int, end: int) -> dict[int, bytes]:
    """The attributes between two offsets, by type without its flag bits; of equal ones the last."""
    found = {}
    unpack = _ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = unpack(datagram, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = datagram[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A message with its header; ``body`` is aligned by those who make it."""
    return HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, aligned."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _address_attribute(kind: int, address: IPAddress) -> bytes:
    if address.version == 4:
        return _ATTRIBUTE_IPV4.pack(8, kind, address.packed)
    return _ATTRIBUTE_IPV6.pack(20, kind, address.packed)


def address_of(packed: bytes) -> IPAddress:
    """An address from its 4 or 16 bytes."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


# routes


class Nexthop(NamedTuple):
    """One way out of a multipath route."""

    link: int
    gateway: IPAddress | None
    onlink: bool


class RouteRow(NamedTuple):
    """A route as the kernel has it. ``link`` is an interface index, 0 where there is none or several ``nexthops``."""

    destination: IPNetwork
    metric: int
    kind: int
    protocol: int
    table: int
    flags: int
    link: int
    gateway: IPAddress | None
    source: IPAddress | None
    nexthops: tuple[Nexthop, ...]
    metrics: tuple[tuple[str, int], ...] = ()
    encapsulation: Encapsulation | None = None
    nexthop_id: int = 0
    """The object that says where it leads (:mod:`pyflannel.kernel.nexthops`); the kernel may say the way, too."""
    tos: int = 0

    @property
    def names_its_way(self) -> bool:
        """Whether nothing but an object says where it leads."""
        return bool(self.nexthop_id) and not self.link and not self.nexthops

    @property
    def onlink(self) -> bool:
        """Whether the gateway is taken to be on the link."""
        return bool(self.flags & RTNH_F_ONLINK)

    def is_plain(self, link: int) -> bool:
        """Whether its destination, way and metric say all of it, if it leads to ``link``."""
        usual = self.kind == (RTN_UNICAST if link else ROUTE_TYPES["blackhole"]) and self.table == RT_TABLE_MAIN
        return usual and not self.metrics and self.encapsulation is None

    @property
    def type(self) -> str:
        """The name of its type; empty for one that has none here."""
        return _TYPE_NAMES.get(self.kind, "")


def encode_route(kind: int, route: Route, link: int, flags: int = 0, protocol: int = ROUTE_PROTOCOL) -> bytes:
    """``RTM_NEWROUTE`` or ``RTM_DELROUTE``.

    :param link: the interface's index; 0 where packets go nowhere.
    :param flags: ``NLM_F_CREATE`` and the like.
    :param protocol: when deleting, the protocol number a route must have; ``RTPROT_UNSPEC`` for any.
    """
    destination, gateway = route.destination, route.gateway
    if type(destination) is IPv4Network and type(gateway) is IPv4Address and link and _is_plain(route):
        return _encode_plain_route(kind, route, gateway, link, flags, protocol)
    if kind == RTM_DELROUTE:
        scope = _RT_SCOPE_NOWHERE
    elif gateway is None and link and destination.version == 4:
        scope = _RT_SCOPE_LINK
    else:
        scope = _RT_SCOPE_UNIVERSE
    body = _ROUTE.pack(
        AF_INET if destination.version == 4 else AF_INET6,
        destination.prefixlen,
        0,
        0,
        route.table if route.table < 256 else 0,
        protocol,
        scope,
        ROUTE_TYPES[route.effective_type],
        RTNH_F_ONLINK if route.onlink else 0,
    ) + _address_attribute(RTA_DST, destination.network_address)
    if gateway is not None:
        body += _gateway_attribute(gateway, destination.version)
    if link:
        body += _ATTRIBUTE_U32.pack(8, RTA_OIF, link)
    if route.metric is not None:
        body += _ATTRIBUTE_U32.pack(8, RTA_PRIORITY, route.metric)
    if route.source is not None:
        body += _address_attribute(_RTA_PREFSRC, route.source)
    if route.table != RT_TABLE_MAIN:
        body += _ATTRIBUTE_U32.pack(8, RTA_TABLE, route.table)
    if kind == RTM_NEWROUTE:  # a deletion needs no more than what tells it from others
        body += _properties(route)
    return message(kind, flags, body)


def encode_route_deletion(row: RouteRow) -> bytes:
    """``RTM_DELROUTE`` of just this route, which was seen: an IPv4 route of metric 0 is told by its way alone from
    others to its destination, and no way that a request may say is that of a next hop of its own."""
    version = row.destination.version
    body = _ROUTE.pack(
        AF_INET if version == 4 else AF_INET6,
        row.destination.prefixlen,
        0,
        row.tos if version == 4 else 0,
        row.table if row.table < 256 else 0,
        row.protocol,
        _RT_SCOPE_NOWHERE,
        row.kind,
        0,
    ) + _address_attribute(RTA_DST, row.destination.network_address)
    if row.nexthop_id:
        body += _ATTRIBUTE_U32.pack(8, _RTA_NH_ID, row.nexthop_id)
    elif row.nexthops:
        body += attribute(_RTA_MULTIPATH, b"".join(map(_encode_nexthop, row.nexthops)))
    elif row.link:
        body += (_gateway_attribute(row.gateway, version) if row.gateway is not None else b"") + _ATTRIBUTE_U32.pack(
            8, RTA_OIF, row.link
        )
    body += _ATTRIBUTE_U32.pack(8, RTA_PRIORITY, row.metric) + _ATTRIBUTE_U32.pack(8, RTA_TABLE, row.table)
    return message(RTM_DELROUTE, 0, body)


def _encode_nexthop(way: Nexthop) -> bytes:
    gateway = _gateway_attribute(way.gateway, way.gateway.version) if way.gateway is not None else b""
    return _NEXTHOP.pack(_NEXTHOP.size + len(gateway), RTNH_F_ONLINK if way.onlink else 0, 0, way.link) + gateway


def _gateway_attribute(gateway: IPAddress, version: int) -> bytes:
    return _address_attribute(RTA_GATEWAY, gateway) if gateway.version == version else via_attribute(gateway)


def _encode_plain_route(kind: int, route: Route, gateway: IPv4Address, link: int, flags: int, protocol: int) -> bytes:
    """The same bytes, for what most routes are."""
    return _PLAIN_ROUTE.pack(
        _PLAIN_ROUTE.size,
        kind,
        flags | NLM_F_REQUEST,
        0,
        0,
        AF_INET,
        route.destination.prefixlen,
        0,
        0,
        RT_TABLE_MAIN,
        protocol,
        _RT_SCOPE_NOWHERE if kind == RTM_DELROUTE else _RT_SCOPE_UNIVERSE,
        RTN_UNICAST,
        RTNH_F_ONLINK if route.onlink else 0,
        8,
        RTA_DST,
        route.destination.network_address.packed,
        8,
        RTA_GATEWAY,
        gateway.packed,
        8,
        RTA_OIF,
        link,
        8,
        RTA_PRIORITY,
        route.metric,
    )


def _is_plain(route: Route) -> bool:
    """Whether a route with a link and a gateway has a metric, and nothing else: as thousands of ours do."""
    return (
        route.metric is not None
        and route.source is None
        and route.table == RT_TABLE_MAIN
        and not route.type
        and not route.metrics
        and route.encapsulation is None
    )


def _properties(route: Route) -> bytes:
    """What a route says of its packets."""
    body = b""
    if route.metrics:
        said = (_ATTRIBUTE_U32.pack(8, ROUTE_METRICS[name][0], value) for name, value in route.metrics)
        body += attribute(_RTA_METRICS | NLA_F_NESTED, b"".join(said))
    if route.encapsulation is not None:
        kind = _ENCAPSULATION_TYPES[route.encapsulation.kind]
        body += attribute(_RTA_ENCAP | NLA_F_NESTED, _encapsulation(route.encapsulation))
        body += attribute(_RTA_ENCAP_TYPE, _U16.pack(kind))
    return body


def _encapsulation(said: Encapsulation) -> bytes:
    """The attributes below ``RTA_ENCAP``."""
    if isinstance(said, Seg6Encapsulation):
        # In reverse, the last to visit first; an inline header ends with the packet's own destination (zeros here).
        segments = [*(b"\0" * 16 for _ in range(said.inline)), *(each.packed for each in reversed(said.segments))]
        last = len(segments) - 1
        header = _SEGMENT_HEADER.pack(
            _SEG6_MODES[said.inline], 0, 2 * len(segments), _ROUTING_TYPE_SEGMENTS, last, last, 0, 0, 0
        )
        return attribute(_SEG6_IPTUNNEL_SRH, header + b"".join(segments))
    if isinstance(said, MplsEncapsulation):
        ttl = attribute(_MPLS_IPTUNNEL_TTL, _U8.pack(said.ttl)) if said.ttl else b""
        return attribute(_MPLS_IPTUNNEL_DST, label_stack(said.labels)) + ttl
    assert isinstance(said, IpEncapsulation)
    return b"".join(
        [
            attribute(_IP_ID, _BE64.pack(said.id)),
            attribute(_IP_DST, said.destination.packed),
            attribute(_IP_SRC, said.source.packed) if said.source is not None else b"",
            attribute(_IP_TTL, _U8.pack(said.ttl)),
            attribute(_IP_TOS, _U8.pack(said.tos)),
            attribute(_IP_FLAGS, _BE16.pack(_TUNNEL_KEY if said.key else 0)),
        ]
    )


def label_stack(labels: Sequence[int]) -> bytes:
    """Labels as they stand in a packet (RFC 3032, 2.1); the last has the bit that says so."""
    return b"".join(_BE32.pack(label << 12 | (number == len(labels)) << 8) for number, label in enumerate(labels, 1))


def labels_of(raw: bytes) -> tuple[int, ...]:
    """The labels of a stack."""
    return tuple(entry >> 12 for (entry,) in _BE32.iter_unpack(raw[: len(raw) & ~3]))


def _parse_labels(said: dict[int, bytes]) -> Encapsulation:
    raw = said.get(_MPLS_IPTUNNEL_DST, b"")
    labels = labels_of(raw)
    try:
        found = MplsEncapsulation(labels, said.get(_MPLS_IPTUNNEL_TTL, b"\0")[0])
    except ValueError:
        return ForeignEncapsulation("mpls")
    return found if label_stack(labels) == raw else ForeignEncapsulation("mpls")


def encode_route_dump(family: int, protocol: int = 0, link: int = 0, table: int = RT_TABLE_MAIN) -> bytes:
    """``RTM_GETROUTE``; the kernel selects by protocol, link and table (0: all) on a strict socket."""
    body = _ROUTE.pack(family, 0, 0, 0, table if table < 256 else 0, protocol, 0, 0, 0)
    if table > 255:
        body += _ATTRIBUTE_U32.pack(8, RTA_TABLE, table)
    if link:
        body += _ATTRIBUTE_U32.pack(8, RTA_OIF, link)
    return message(RTM_GETROUTE, NLM_F_DUMP, body)


def encode_route_query(address: IPAddress, source: IPAddress | None = None, entrance: int = 0) -> bytes:
    """``RTM_GETROUTE``: how would a packet to ``address`` be sent, by rules and all tables?

    :param source: its source address; ``entrance`` is the index of the link that it came by, 0: from this node itself.
    """
    family = AF_INET if address.version == 4 else AF_INET6
    bits = address.max_prefixlen
    flags = _RTM_F_LOOKUP_TABLE if family == AF_INET else 0
    body = _ROUTE.pack(family, bits, bits if source is not None else 0, 0, 0, 0, 0, 0, flags)
    body += _address_attribute(RTA_DST, address)
    if source is not None:
        body += _address_attribute(_RTA_SRC, source)
    if entrance:
        body += _ATTRIBUTE_U32.pack(8, _RTA_IIF, entrance)
    return message(RTM_GETROUTE, 0, body)


def parse_route(datagram: bytes, start: int, end: int) -> RouteRow:
    """A route from the payload of ``RTM_NEWROUTE`` or ``RTM_DELROUTE``."""
    family, length, _, tos, table, protocol, _, kind, flags = _ROUTE.unpack_from(datagram, start)
    found = attributes(datagram, start + 12, end)
    packed = found.get(RTA_DST)
    if family == AF_INET:
        destination: IPNetwork = IPv4Network((packed or bytes(4), length))
    else:
        destination = IPv6Network((packed or bytes(16), length))
    link, metric, wide_table = found.get(RTA_OIF), found.get(RTA_PRIORITY), found.get(RTA_TABLE)
    source, paths, named = found.get(_RTA_PREFSRC), found.get(_RTA_MULTIPATH), found.get(_RTA_NH_ID)
    return RouteRow(
        destination,
        _U32.unpack(metric)[0] if metric else 0,
        kind,
        protocol,
        _U32.unpack(wide_table)[0] if wide_table else table,
        flags,
        _U32.unpack(link)[0] if link and kind <= _RTN_MULTICAST else 0,
        _gateway(found),
        address_of(source) if source else None,
        tuple(_nexthops(paths)) if paths else (),
        _metrics(found[_RTA_METRICS]) if _RTA_METRICS in found else (),
        _parse_encapsulation(found) if _RTA_ENCAP_TYPE in found else None,
        _U32.unpack(named)[0] if named else 0,
        tos,
    )


def _metrics(nested: bytes) -> tuple[tuple[str, int], ...]:
    """Those that a route of ours can have; a congestion control or a lock is not looked at."""
    found = attributes(nested, 0, len(nested))
    said = ((_METRIC_NAMES[kind], _U32.unpack(value)[0]) for kind, value in found.items() if kind in _METRIC_NAMES)
    return tuple(sorted(item for item in said if item[1]))


def _parse_encapsulation(found: dict[int, bytes]) -> Encapsulation:
    (number,) = _U16.unpack(found[_RTA_ENCAP_TYPE])
    kind = _ENCAPSULATIONS.get(number, str(number))
    nested = found.get(_RTA_ENCAP, b"")
    said = attributes(nested, 0, len(nested))
    if kind == "seg6":
        return _parse_segments(said.get(_SEG6_IPTUNNEL_SRH, b""))
    if kind == "mpls":
        return _parse_labels(said)
    if kind not in ("ip", "ip6") or len(said.get(_IP_DST, b"")) not in (4, 16) or _IP_OPTS in said:
        return ForeignEncapsulation(kind)
    source = address_of(said[_IP_SRC]) if _IP_SRC in said else None
    (flags,) = _BE16.unpack(said.get(_IP_FLAGS, b"\0\0"))
    if flags & ~_TUNNEL_KEY:
        return ForeignEncapsulation(kind)
    return IpEncapsulation(
        address_of(said[_IP_DST]),
        _BE64.unpack(said[_IP_ID])[0] if _IP_ID in said else 0,
        source if source is not None and int(source) else None,
        said.get(_IP_TTL, b"\0")[0],
        said.get(_IP_TOS, b"\0")[0],
        bool(flags),
    )


def _parse_segments(raw: bytes) -> Encapsulation:
    size = _SEGMENT_HEADER.size
    if len(raw) < size + 16:
        return ForeignEncapsulation("seg6")
    mode, _, length, _, _, last, flags, *tag = _SEGMENT_HEADER.unpack_from(raw)
    inline = mode == _SEG6_MODES[True]
    usual = mode in _SEG6_MODES.values() and length == 2 * (last + 1) and not flags and not any(tag)
    if not usual or not last >= inline or len(raw) != size + 16 * (last + 1):
        return ForeignEncapsulation("seg6")
    places = range(size + 16 * last, size + 16 * inline - 1, -16)
    return Seg6Encapsulation(tuple(IPv6Address(raw[place : place + 16]) for place in places), inline)


def via_attribute(gateway: IPAddress) -> bytes:
    """``RTA_VIA``: a gateway that says of which family it is."""
    family = AF_INET if gateway.version == 4 else AF_INET6
    packed = gateway.packed
    return _ATTRIBUTE.pack(6 + len(packed), _RTA_VIA) + _U16.pack(family) + packed + b"\0\0"


def _gateway(found: dict[int, bytes]) -> IPAddress | None:
    packed = found.get(RTA_GATEWAY)
    if packed:
        return address_of(packed)
    via = found.get(_RTA_VIA)
    return address_of(via[2:]) if via else None


def _nexthops(paths: bytes) -> Iterator[Nexthop]:
    offset = 0
    while offset + 8 <= len(paths):
        length, flags, _, link = _NEXTHOP.unpack_from(paths, offset)
        if length < 8:
            return
        yield Nexthop(link, _gateway(attributes(paths, offset + 8, offset + length)), bool(flags & RTNH_F_ONLINK))
        offset += (length + 3) & ~3


# neighbours and forwarding entries


class NeighbourRow(NamedTuple):
    """A neighbour as the kernel has it; ``mac``, in hexadecimal, is empty while it is unresolved."""

    link: int
    state: int
    flags: int
    address: IPAddress
    mac: str


class FdbRow(NamedTuple):
    """A forwarding entry as the kernel has it. ``port`` and ``vni`` are ``None`` where they are the device's own.
    ``plain`` says that there is nothing else about it: no device or group of next hops that the packets must take."""

    link: int
    state: int
    flags: int
    mac: str
    remote: IPAddress
    port: int | None
    vni: int | None
    plain: bool


def is_flooded(mac: str) -> bool:
    """Whether a VXLAN device may send frames to ``mac`` to several remotes: the zero address, which stands for all
    unknown ones, and multicast. For these the kernel appends and never replaces, for others it is the reverse."""
    return mac == "00:00:00:00:00:00" or bool(int(mac[:2], 16) & 1)


def _mac_attribute(mac: str) -> bytes:
    return _ATTRIBUTE_MAC.pack(10, NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))


def encode_neighbour(kind: int, neighbour: Neighbour, link: int, flags: int = 0) -> bytes:
    """``RTM_NEWNEIGH`` or ``RTM_DELNEIGH`` for the ARP or NDP table, state permanent."""
    address, mac = neighbour.address, neighbour.mac
    if type(address) is IPv4Address and type(mac) is str and kind == RTM_NEWNEIGH:
        return _PLAIN_NEIGHBOUR.pack(
            _PLAIN_NEIGHBOUR.size,
            kind,
            flags | NLM_F_REQUEST,
            0,
            0,
            AF_INET,
            link,
            NUD_PERMANENT,
            0,
            0,
            8,
            NDA_DST,
            address.packed,
            10,
            NDA_LLADDR,
            bytes.fromhex(mac.replace(":", "")),
        )
    family = AF_INET if neighbour.address.version == 4 else AF_INET6
    body = _NEIGHBOUR.pack(family, link, NUD_PERMANENT, 0, 0) + _address_attribute(NDA_DST, neighbour.address)
    if kind == RTM_NEWNEIGH:
        body += (
            _mac_attribute(neighbour.mac)
            if isinstance(neighbour.mac, str)
            else _address_attribute(NDA_LLADDR, neighbour.mac)
        )
    return message(kind, flags, body)


def encode_fdb(kind: int, entry: FdbEntry, link: int, flags: int = 0, *, every_remote: bool = False) -> bytes:
    """``RTM_NEWNEIGH`` or ``RTM_DELNEIGH`` for a VXLAN device's own table, state permanent.

    :param every_remote: when deleting, the whole entry and not only its way to ``entry.remote``.
    """
    remote = entry.remote
    if type(remote) is IPv4Address and entry.port is None and entry.vni is None and not every_remote:
        return _PLAIN_FDB.pack(
            _PLAIN_FDB.size,
            kind,
            flags | NLM_F_REQUEST,
            0,
            0,
            AF_BRIDGE,
            link,
            NUD_PERMANENT | NUD_NOARP,
            NTF_SELF,
            0,
            10,
            NDA_LLADDR,
            bytes.fromhex(entry.mac.replace(":", "")),
            8,
            NDA_DST,
            remote.packed,
        )
    body = _NEIGHBOUR.pack(AF_BRIDGE, link, NUD_PERMANENT | NUD_NOARP, NTF_SELF, 0) + _mac_attribute(entry.mac)
    if not every_remote:
        body += _address_attribute(NDA_DST, entry.remote)
        if entry.port is not None:
            body += attribute(_NDA_PORT, _BE16.pack(entry.port))
        if entry.vni is not None:
            body += _ATTRIBUTE_U32.pack(8, _NDA_VNI, entry.vni)
    return message(kind, flags, body)


def told_of(new: bytes) -> bytes:
    """How the kernel's word of a new forwarding entry begins, if it is a plain one (:data:`PLAIN_FDB_BODY`)."""
    return new[16 : 16 + _TYPE_AT] + bytes([RTN_UNICAST]) + new[16 + _TYPE_AT + 1 :]


def encode_neighbour_dump(family: int, link: int) -> bytes:
    """``RTM_GETNEIGH`` for one link's ARP or NDP table."""
    return message(
        RTM_GETNEIGH, NLM_F_DUMP, _NEIGHBOUR.pack(family, 0, 0, 0, 0) + _ATTRIBUTE_U32.pack(8, _NDA_IFINDEX, link)
    )


def encode_fdb_dump(link: int) -> bytes:
    """``RTM_GETNEIGH`` for one link's forwarding entries, or for all with 0 where the kernel can't select."""
    return message(RTM_GETNEIGH, NLM_F_DUMP, _NEIGHBOUR.pack(AF_BRIDGE, link, 0, 0, 0))


def neighbour_header(datagram: bytes, start: int) -> tuple[int, int, int, int]:
    """Family, interface index, state and flags of a neighbour or forwarding entry."""
    family, link, state, flags, _ = _NEIGHBOUR.unpack_from(datagram, start)
    return family, link, state, flags


def neighbour_link(datagram: bytes, start: int) -> bytes:
    """The interface index of a neighbour or forwarding entry, as its four bytes."""
    return datagram[start + 4 : start + 8]


def parse_neighbour(datagram: bytes, start: int, end: int) -> NeighbourRow | None:
    """A neighbour from the payload of ``RTM_NEWNEIGH`` or ``RTM_DELNEIGH``; ``None`` for one without an IP address."""
    _, link, state, flags, _ = _NEIGHBOUR.unpack_from(datagram, start)
    found = attributes(datagram, start + 12, end)
    address = found.get(NDA_DST, b"")
    if len(address) not in (4, 16):
        return None
    return NeighbourRow(link, state, flags, address_of(address), found.get(NDA_LLADDR, b"").hex(":"))


_UNUSUAL = frozenset({_NDA_IFINDEX, _NDA_SRC_VNI, _NDA_NH_ID})


def parse_fdb(datagram: bytes, start: int, end: int) -> FdbRow | None:
    """A forwarding entry from such a payload of family ``AF_BRIDGE``; ``None`` for one without a MAC or a remote."""
    _, link, state, flags, _ = _NEIGHBOUR.unpack_from(datagram, start)
    found = attributes(datagram, start + 12, end)
    mac, remote = found.get(NDA_LLADDR, b""), found.get(NDA_DST, b"")
    if len(mac) != 6 or len(remote) not in (4, 16):
        return None
    port, vni = found.get(_NDA_PORT), found.get(_NDA_VNI)
    return FdbRow(
        link,
        state,
        flags,
        mac.hex(":"),
        address_of(remote),
        _BE16.unpack(port)[0] if port else None,
        _U32.unpack(vni)[0] if vni else None,
        _UNUSUAL.isdisjoint(found),
    )
