"""The hot messages: what is encoded is what is parsed, and what pyroute2 reads in them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pyflannel.kernel import wire
from pyflannel.kernel.model import (
    DISCARDING,
    ROUTE_METRICS,
    ROUTE_TYPES,
    FdbEntry,
    ForeignEncapsulation,
    IpEncapsulation,
    MplsEncapsulation,
    Neighbour,
    Route,
    Seg6Encapsulation,
)

indexes = st.integers(1, 2**31 - 1)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)
addresses = ipv4 | ipv6


u8 = st.integers(0, 255)
tunnels: st.SearchStrategy[IpEncapsulation] = st.sampled_from([ipv4, ipv6]).flatmap(
    lambda address: st.builds(
        IpEncapsulation, address, st.integers(0, 2**64 - 1), st.none() | address.filter(int), u8, u8, st.booleans()
    )
)
segments = st.lists(ipv6, min_size=1, max_size=5).map(tuple)
labelled = st.builds(
    MplsEncapsulation,
    st.lists(st.integers(0, 2**20 - 1).filter(lambda label: label != 3), min_size=1, max_size=5).map(tuple),
    u8,
)
metrics = st.dictionaries(st.sampled_from(sorted(ROUTE_METRICS)), st.just(1) | st.just(0)).map(
    lambda most: tuple((name, 1 if least else ROUTE_METRICS[name][1]) for name, least in most.items())
)
tables = st.just(254) | st.integers(1, 254) | st.integers(256, 2**32 - 1)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    version = draw(st.sampled_from([4, 6]))
    bits = 32 if version == 4 else 128
    length = draw(st.integers(0, bits))
    number = draw(st.integers(0, 2**bits - 1)) >> (bits - length) << (bits - length)
    network = IPv4Network if version == 4 else IPv6Network
    address: st.SearchStrategy[Any] = ipv4 if version == 4 else ipv6
    blackhole = draw(st.booleans())
    inline = st.just(False) if version == 4 else st.booleans()
    encapsulation = st.none() | tunnels | st.builds(Seg6Encapsulation, segments, inline) | labelled
    return Route(
        network((number, length)),
        None if blackhole else "eth0",
        None if blackhole else draw(st.none() | address | (ipv6 if version == 4 else st.none())),
        not blackhole and draw(st.booleans()),
        draw(st.none() | address),
        draw(st.none() | st.integers(0, 2**32 - 1)),
        draw(st.sampled_from(["", *sorted(name for name in ROUTE_TYPES if (name in DISCARDING) is blackhole)])),
        draw(tables),
        draw(st.just(()) | metrics),
        None if blackhole else draw(encapsulation),
    )


def only(message: bytes) -> tuple[int, int, int, int]:
    """Type, flags, and where the payload of the only message lies."""
    ((kind, flags, sequence, port, start, end),) = wire.messages(message)
    assert (sequence, port, end) == (0, 0, len(message))
    assert len(message) % 4 == 0
    return kind, flags, start, end


def decoded(message_class: Any, message: bytes) -> tuple[Any, dict[str, Any]]:
    found = message_class(message)
    found.decode()
    return found, dict(found["attrs"])


@given(routes(), indexes)
def test_routes_come_back(route: Route, index: int) -> None:
    link = 0 if route.link is None else index
    kind, flags, start, end = only(message := wire.encode_route(wire.RTM_NEWROUTE, route, link, wire.NLM_F_CREATE))
    assert (kind, flags) == (wire.RTM_NEWROUTE, wire.NLM_F_REQUEST | wire.NLM_F_CREATE)
    row = wire.parse_route(message, start, end)
    name = "eth0" if row.link else None
    way = (row.destination, name, row.gateway, row.onlink, row.source, row.metric or route.metric)
    assert Route(*way, row.type, row.table, row.metrics, row.encapsulation) == route
    assert (row.link, row.protocol, row.nexthops) == (link, 241, ())
    assert row.is_plain(link) == (replace(route, type="", table=254, metrics=(), encapsulation=None) == route)


@given(routes(), indexes)
def test_routes_as_pyroute2_reads_them(route: Route, index: int) -> None:
    link = 0 if route.link is None else index
    fields, attrs = decoded(rtmsg, wire.encode_route(wire.RTM_NEWROUTE, route, link))
    assert fields["family"] == (2 if route.destination.version == 4 else 10)
    assert (fields["proto"], fields["dst_len"]) == (241, route.destination.prefixlen)
    assert attrs.get("RTA_TABLE", fields["table"]) == route.table
    assert fields["type"] == ROUTE_TYPES[route.effective_type]
    said = {
        name.removeprefix("RTAX_").lower(): value for name, value in dict(attrs.get("RTA_METRICS", {})).get("attrs", [])
    }
    assert said == dict(route.metrics)
    assert attrs.get("RTA_ENCAP_TYPE") == (
        route.encapsulation and {"mpls": 1, "ip": 2, "ip6": 4, "seg6": 5}[route.encapsulation.kind]
    )
    assert bool(fields["flags"] & 4) == route.onlink
    assert ip_address(attrs["RTA_DST"]) == route.destination.network_address
    if route.gateway is not None and route.gateway.version == route.destination.version:
        assert ip_address(attrs["RTA_GATEWAY"]) == route.gateway
    assert attrs.get("RTA_OIF") == (link or None)
    assert attrs.get("RTA_PRIORITY") == route.metric
    assert ("RTA_PREFSRC" in attrs) == (route.source is not None)


@pytest.mark.parametrize("kind", [wire.RTM_NEWROUTE, wire.RTM_DELROUTE])
@pytest.mark.parametrize("onlink", [True, False])
def test_the_short_way_to_a_usual_route_leads_to_the_same_message(
    kind: int, onlink: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = Route(IPv4Network("10.1.2.0/24"), "flannel.1", IPv4Address("10.1.2.0"), onlink, metric=77)
    short = wire.encode_route(kind, route, 9, wire.NLM_F_CREATE, 11)
    monkeypatch.setattr(wire, "_is_plain", lambda route: False)
    assert short == wire.encode_route(kind, route, 9, wire.NLM_F_CREATE, 11)


def test_the_scope_of_a_route() -> None:
    """Link without a gateway, universe with one, any when deleting (``ip-route(8)``)."""
    direct = Route(IPv4Network("10.0.0.0/24"), "eth0")
    via = replace(direct, gateway=IPv4Address("192.0.2.2"))
    scopes = [decoded(rtmsg, wire.encode_route(wire.RTM_NEWROUTE, route, 2))[0]["scope"] for route in (direct, via)]
    assert scopes == [253, 0]
    assert decoded(rtmsg, wire.encode_route(wire.RTM_DELROUTE, via, 2))[0]["scope"] == 255


def test_a_route_is_deleted_by_what_tells_it_from_others() -> None:
    """A changed MTU or tunnel must not keep it: the kernel compares what is said."""
    tunnel = IpEncapsulation(IPv4Address("192.0.2.2"), 7)
    route = Route(IPv4Network("10.0.0.0/24"), "eth0", table=1000, metrics=(("mtu", 1400),), encapsulation=tunnel)
    _, attrs = decoded(rtmsg, wire.encode_route(wire.RTM_DELROUTE, route, 2))
    assert attrs.keys() == {"RTA_DST", "RTA_OIF", "RTA_TABLE"}


@pytest.mark.parametrize(
    ("kind", "nested"),
    [
        (1, b""),
        (77, b""),
        (2, b""),
        (1, wire.attribute(1, bytes(4))),
        (1, wire.attribute(1, b"\0\x01\x03\0")),
        (1, wire.attribute(1, b"\0\x01\x01")),
        (2, wire.attribute(2, bytes(4)) + wire.attribute(6, b"\0\x08")),
        (2, wire.attribute(2, bytes(4)) + wire.attribute(8, bytes(4))),
        (5, b""),
        (5, wire.attribute(1, wire._SEGMENT_HEADER.pack(2, 0, 2, 4, 0, 0, 0, 0, 0) + bytes(16))),
        (5, wire.attribute(1, wire._SEGMENT_HEADER.pack(1, 0, 2, 4, 0, 9, 0, 0, 0) + bytes(16))),
        (5, wire.attribute(1, wire._SEGMENT_HEADER.pack(0, 0, 2, 4, 0, 0, 0, 0, 0) + bytes(16))),
    ],
    ids=[
        "mpls",
        "unknown",
        "no end",
        "no last label",
        "a traffic class",
        "half a label",
        "a flag",
        "options",
        "empty",
        "another mode",
        "too short",
        "no segment",
    ],
)
def test_an_encapsulation_that_we_do_not_write_is_somebody_s(kind: int, nested: bytes) -> None:
    plain = wire.encode_route(wire.RTM_NEWROUTE, Route(IPv4Network("10.0.0.0/24"), "eth0"), 3)
    message = plain + wire.attribute(22, nested) + wire.attribute(21, kind.to_bytes(2, "little"))
    assert isinstance(wire.parse_route(message, 16, len(message)).encapsulation, ForeignEncapsulation)


@given(addresses, macs | addresses, indexes)
def test_neighbours_come_back_and_pyroute2_reads_them(address: Any, mac: Any, index: int) -> None:
    neighbour = Neighbour("flannel.1", address, mac)
    kind, _, start, end = only(message := wire.encode_neighbour(wire.RTM_NEWNEIGH, neighbour, index))
    assert kind == wire.RTM_NEWNEIGH
    raw = mac if isinstance(mac, str) else mac.packed.hex(":")
    assert wire.parse_neighbour(message, start, end) == (index, wire.NUD_PERMANENT, 0, address, raw)
    fields, attrs = decoded(ndmsg, message)
    assert (fields["family"], fields["ifindex"], fields["state"]) == (2 if address.version == 4 else 10, index, 0x80)
    if isinstance(mac, str):
        assert attrs["NDA_LLADDR"] == mac
    assert type(address)(attrs["NDA_DST"]) == address


@given(
    addresses,
    macs,
    indexes,
    st.booleans(),
    st.none() | st.integers(1, 2**16 - 1),
    st.none() | st.integers(0, 2**24 - 1),
)
def test_fdb_entries_come_back_and_pyroute2_reads_them(
    remote: Any, mac: str, index: int, every: bool, port: int | None, vni: int | None
) -> None:
    entry = FdbEntry("flannel.1", mac, remote, port, vni)
    _, _, start, end = only(message := wire.encode_fdb(wire.RTM_NEWNEIGH, entry, index, every_remote=every))
    row = wire.parse_fdb(message, start, end)
    state = wire.NUD_PERMANENT | wire.NUD_NOARP
    assert row == (None if every else (index, state, wire.NTF_SELF, mac, remote, port, vni, True))
    fields, attrs = decoded(ndmsg, message)
    assert (fields["family"], fields["ifindex"], fields["state"], fields["flags"]) == (7, index, state, wire.NTF_SELF)
    assert attrs["NDA_LLADDR"] == mac
    assert ("NDA_DST" in attrs) != every
    if not every:
        assert (attrs.get("NDA_PORT"), attrs.get("NDA_VNI")) == (port, vni)


def test_an_entry_with_a_device_of_its_own_is_not_plain() -> None:
    entry = FdbEntry("flannel.1", "02:00:00:00:00:01", IPv4Address("192.0.2.2"))
    message = wire.encode_fdb(wire.RTM_NEWNEIGH, entry, 5) + b"\x08\x00\x08\x00\x07\x00\x00\x00"
    row = wire.parse_fdb(message, 16, len(message))
    assert row is not None
    assert not row.plain


def test_the_ways_of_a_multipath_route() -> None:
    paths = b"".join(
        wire._NEXTHOP.pack(16, 0, 0, link) + wire._ATTRIBUTE_IPV4.pack(8, 5, IPv4Address(gateway).packed)
        for link, gateway in ((3, "192.0.2.2"), (4, "192.0.2.3"))
    )
    body = wire.encode_route(wire.RTM_NEWROUTE, Route(IPv4Network("10.0.0.0/24"), "eth0"), 3)[16:]
    datagram = body[:20] + wire._ATTRIBUTE.pack(4 + len(paths), 9) + paths
    row = wire.parse_route(datagram, 0, len(datagram))
    assert row.link == 0
    assert row.nexthops == ((3, IPv4Address("192.0.2.2"), False), (4, IPv4Address("192.0.2.3"), False))


@given(st.lists(st.binary(max_size=20), max_size=5), st.binary(max_size=15))
def test_a_datagram_is_split_at_its_lengths(bodies: list[bytes], rest: bytes) -> None:
    datagram = b"".join(
        wire.HEADER.pack(16 + len(body), 24, 0, number, 7) + body + bytes(-len(body) % 4)
        for number, body in enumerate(bodies)
    )
    found = [(sequence, datagram[start:end]) for _, _, sequence, _, start, end in wire.messages(datagram + rest)]
    assert found == list(enumerate(bodies))


@given(st.binary(max_size=200))
def test_no_bytes_make_the_splitting_hang_or_fail(noise: bytes) -> None:
    for *_, start, end in wire.messages(noise):
        wire.attributes(noise, start, end)


@pytest.mark.parametrize(
    ("mac", "flooded"),
    [
        ("00:00:00:00:00:00", True),
        ("01:00:5e:00:00:01", True),
        ("ff:ff:ff:ff:ff:ff", True),
        ("02:00:00:00:00:00", False),
    ],
)
def test_flooded_addresses(mac: str, flooded: bool) -> None:
    assert wire.is_flooded(mac) is flooded
