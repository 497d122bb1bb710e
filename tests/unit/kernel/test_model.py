"""A value that no kernel could hold is refused where it is made, and the error names the field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.kernel import wire
from pyflannel.kernel.model import (
    XFRM_INTERFACES,
    Address,
    Endpoint,
    FdbEntry,
    GenericInfo,
    IpEncapsulation,
    Link,
    MplsEncapsulation,
    MplsRoute,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    Seg6Encapsulation,
    Sysctl,
    TunInfo,
    VxlanInfo,
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
)
from pyflannel.small.secret import Secret

MAC = "02:00:00:00:00:01"
PUBLIC_KEY = "A" * 43 + "="
ADDRESS, NETWORK, INTERFACE = ip_address("192.0.2.1"), ip_network("10.5.2.0/24"), ip_interface("10.5.1.0/32")
ADDRESS6, NETWORK6, INTERFACE6 = ip_address("2001:db8::1"), ip_network("fd00::/64"), ip_interface("fd00::/128")

GOOD: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "vxlan": (VxlanInfo, {"vni": 1, "port": 8472, "local": ADDRESS, "underlay": "eth0"}),
    "vxlan6": (VxlanInfo, {"vni": 1, "port": 8472, "local": ADDRESS6, "underlay": "eth0"}),
    "tun": (TunInfo, {}),
    "generic": (GenericInfo, {"kind": "macvlan", "underlay": "eth0", "data": (("IFLA_MACVLAN_MODE", "bridge"),)}),
    "nested": (GenericInfo, {"kind": "veth", "data": (("VETH_INFO_PEER", (("IFLA_IFNAME", "wire0"),)),)}),
    "numbered": (GenericInfo, {"kind": "ip6gre", "data": ((18, b""), ("IFLA_IP6GRE_TTL", 64))}),
    "link": (Link, {"name": "flannel.1", "info": TunInfo(), "mtu": 1450, "mac": MAC, "master": "br0", "group": 7}),
    "sysctl": (Sysctl, {"path": "net/ipv4/conf/eth0.100/rp_filter", "value": "1"}),
    "address": (Address, {"link": "flannel.1", "interface": INTERFACE}),
    "address6": (Address, {"link": "flannel.1", "interface": INTERFACE6}),
    "neighbour": (Neighbour, {"link": "flannel.1", "address": ADDRESS, "mac": MAC}),
    "neighbour6": (Neighbour, {"link": "flannel.1", "address": ADDRESS6, "mac": MAC}),
    "multipoint": (Neighbour, {"link": "flannel.1", "address": ADDRESS6, "mac": ADDRESS}),
    "multipoint6": (Neighbour, {"link": "flannel.1", "address": ADDRESS, "mac": ADDRESS6}),
    "fdb": (FdbEntry, {"link": "flannel.1", "mac": MAC, "remote": ADDRESS, "port": 4789, "vni": 5}),
    "fdb6": (FdbEntry, {"link": "flannel.1", "mac": MAC, "remote": ADDRESS6}),
    "device": (WireguardDevice, {"link": "wg", "private_key": Secret(bytes(32)), "listen_port": 51820}),
    "peer": (WireguardPeer, {"link": "wg", "public_key": PUBLIC_KEY, "allowed_ips": (NETWORK, NETWORK6)}),
    "policy": (
        XfrmPolicy,
        {
            "source": NETWORK,
            "destination": NETWORK,
            "direction": "fwd",
            "if_id": XFRM_INTERFACES[-1],
            "tunnel_source": ADDRESS6,
            "tunnel_destination": ADDRESS6,
            "reqid": 11,
        },
    ),
    "route": (Route, {"destination": NETWORK, "link": "flannel.1", "gateway": ADDRESS, "metric": 7}),
    "route6": (Route, {"destination": NETWORK6, "link": "flannel.1", "gateway": ADDRESS6, "source": ADDRESS6}),
    "blackhole": (Route, {"destination": NETWORK, "link": None}),
    "prohibit": (Route, {"destination": NETWORK6, "link": None, "type": "prohibit", "table": 1000}),
    "detailed": (
        Route,
        {
            "destination": NETWORK,
            "link": "eth0",
            "metrics": (("mtu", 1400),),
            "encapsulation": IpEncapsulation(ADDRESS),
        },
    ),
    "tunnel": (IpEncapsulation, {"destination": ADDRESS, "id": 1, "source": ADDRESS, "ttl": 64, "tos": 1, "key": True}),
    "tunnel6": (IpEncapsulation, {"destination": ADDRESS6, "source": ADDRESS6}),
    "labels": (MplsEncapsulation, {"labels": (16, (1 << 20) - 1), "ttl": 64}),
    "label": (MplsRoute, {"label": (1 << 20) - 1, "link": "lo", "gateway": ADDRESS6, "labels": (16, 0)}),
    "rule": (
        Rule,
        {"version": 4, "priority": 100, "source": NETWORK, "destination": NETWORK, "iif": "eth0", "oif": "lo"}
        | {"mark": 1, "mask": 255, "inverted": True, "table": 1000, "suppress_prefixlength": 0},
    ),
    "unmarked": (Rule, {"version": 6, "priority": (1 << 32) - 1, "source": NETWORK6, "action": "prohibit"}),
    "qdisc": (Qdisc, {"link": "flannel.1", "kind": "fq_codel", "options": (("limit", 100), ("ecn", 0))}),
    "noqueue": (Qdisc, {"link": "flannel.1", "kind": "noqueue"}),
    "segments": (Seg6Encapsulation, {"segments": (ADDRESS6,), "inline": True}),
}

TEXTS = [None, 7, b"eth0", ""]
NOT_ADDRESSES = ["192.0.2.1", "2001:db8::1", 7, INTERFACE, NETWORK, IPv6Address("fe80::1%eth0")]
NOT_MACS = [None, "02:zz:00:00:00:01", "02:00:00:00:00", "02-00-00-00-00-01", MAC + ":01", "02:00:00:00:00:0A", 2]
NOT_PORTS = [-1, 1 << 16, 1 << 40, "8472", 8472.0, True, None]
NOT_U32 = [-1, 1 << 32, 1 << 40, "7", 7.0, False]
NOT_KEYS = [b"x" * 32, "x" * 32, Secret(b"short")]

BAD: dict[tuple[str, str], list[Any]] = {
    ("vxlan", "vni"): [-1, 1 << 24, 1 << 40, "1", None, True],
    ("vxlan", "port"): NOT_PORTS,
    ("vxlan", "local"): [None, *NOT_ADDRESSES],
    ("vxlan", "underlay"): [None, 7],
    ("vxlan", "gbp"): [None, 1],
    ("tun", "queue_length"): NOT_U32,
    ("tun", "vnet_hdr"): [None, 1],
    ("generic", "kind"): TEXTS,
    ("generic", "underlay"): [7, b"eth0"],
    ("generic", "data"): [None, {}, ["x"], ("x",), (("IFLA_X",),), ((7, 7),), (("a", "b"), None), (("a", ("b",)),)],
    ("nested", "data"): [(("a", (("b", ("c",)),)),), (("a", ((7, "b"),)),)],
    ("numbered", "data"): [((0, b""),), ((1 << 14, b""),), ((18, True),), ((18, "x"),), ((True, b""),)],
    ("link", "name"): [*TEXTS, "x" * 16, "ä" * 8, "a/b", "a b", "a:b", ".", "..", "a\0", "a\n"],
    ("link", "info"): [None, "vxlan", TunInfo],
    ("link", "mtu"): [*NOT_U32, None],
    ("link", "mac"): [*NOT_MACS[1:2], "02-00-00-00-00-01", "", 2],
    ("link", "up"): [None, "yes"],
    ("link", "master"): [7, b"br0", "flannel.1"],
    ("link", "group"): NOT_U32,
    ("sysctl", "path"): [None, "", "/tmp/x", "net/../../../tmp/x", "..", "net//x", "net/./x", "net/x/", "net\0"],
    ("sysctl", "value"): [None, 1, True, "ä", "1\0"],
    ("address", "link"): TEXTS,
    ("address", "peer"): ["10.5.1.1", INTERFACE, ADDRESS6],
    ("address6", "peer"): [NETWORK6, ADDRESS, IPv6Address("fe80::1%eth0")],
    ("address", "interface"): [None, ADDRESS, NETWORK, "10.5.1.0/32", ip_interface("fe80::1%eth0/64")],
    ("neighbour", "link"): TEXTS,
    ("neighbour", "address"): [None, *NOT_ADDRESSES],
    ("neighbour", "mac"): [*NOT_MACS, "", *NOT_ADDRESSES],
    ("fdb", "link"): TEXTS,
    ("fdb", "mac"): [*NOT_MACS, ""],
    ("fdb", "remote"): [None, *NOT_ADDRESSES],
    ("fdb", "port"): [0, *NOT_PORTS[:-1]],
    ("fdb", "vni"): [-1, 1 << 24, "1", 1.0, True],
    ("tunnel", "destination"): [None, *NOT_ADDRESSES],
    ("tunnel", "id"): [-1, 1 << 64, "1", 1.0, None, True],
    ("tunnel", "source"): [*NOT_ADDRESSES, ADDRESS6, ip_address("0.0.0.0")],
    ("tunnel6", "source"): [ADDRESS, ip_address("::")],
    ("tunnel", "ttl"): [-1, 256, "64", None],
    ("tunnel", "tos"): [-1, 256, "64", None],
    ("tunnel", "key"): [None, 1],
    ("segments", "segments"): [None, (), [ADDRESS6], (ADDRESS,), ("fd00::1",), (ADDRESS6,) * 127, NOT_ADDRESSES[-1:]],
    ("segments", "inline"): [None, 1],
    ("labels", "labels"): [None, (), [16], (16.0,), ("16",), (True,), (3,), (-1,), (1 << 20,), (16,) * 31],
    ("labels", "ttl"): [-1, 256, "64", None],
    ("label", "label"): [None, 15, 3, -1, 1 << 20, "16", 16.0, True],
    ("label", "link"): TEXTS,
    ("label", "gateway"): NOT_ADDRESSES,
    ("label", "labels"): [None, [16], (16.0,), (3,), (1 << 20,), (16,) * 31],
    ("label", "plain"): [None, 1],
    ("rule", "version"): [None, 5, "4", 4.0, True],
    ("rule", "priority"): [None, 0, -1, 1 << 32, "100", True],
    ("rule", "source"): [ADDRESS, INTERFACE, "10.5.2.0/24", NETWORK6],
    ("unmarked", "destination"): [NETWORK, ADDRESS6],
    ("rule", "iif"): [None, 7, b"eth0", "x" * 16, "a/b", "a b"],
    ("rule", "oif"): [None, 7, ".."],
    ("rule", "mark"): NOT_U32,
    ("rule", "mask"): [None, 0, *NOT_U32],
    ("unmarked", "mask"): [255],
    ("rule", "inverted"): [None, 1],
    ("rule", "action"): [None, 1, "goto", "nop", "Lookup"],
    ("rule", "table"): [None, 0, 255, -1, 1 << 32, "main", True],
    ("unmarked", "table"): [254, None, False],
    ("rule", "suppress_prefixlength"): [-1, 33, "0", True],
    ("unmarked", "suppress_prefixlength"): [0],
    ("qdisc", "link"): TEXTS,
    ("qdisc", "kind"): [*TEXTS, "x" * 16, "f q", "fä"],
    ("qdisc", "options"): [
        *[None, [], {"limit": 1}, "limit", ("limit", 1), (("limit",),), (("rate", 1),), (("ecn", 0), ("ecn", 0))],
        *[(("limit", value),) for value in (-1, 1 << 32, "100", 1.0, True, None)],
    ],
    ("noqueue", "options"): [(("limit", 100),)],
    ("route", "type"): [None, 0, "nat", "Unicast", "blackhole", "throw"],
    ("prohibit", "type"): ["unicast", "local", b"blackhole"],
    ("route", "table"): [None, 0, 255, -1, 1 << 32, "main", 254.0, True],
    ("route", "metrics"): [
        *[None, [], {"mtu": 1400}, "mtu", ("mtu", 1400), (("mtu",),), (("rtt", 1),), (("mtu", 1400), ("mtu", 1400))],
        *[(("mtu", value),) for value in (0, -1, 65521, "1400", 1400.0, True, None)],
    ],
    ("route", "encapsulation"): [0, "ip", ADDRESS, (), Seg6Encapsulation((IPv6Address("fd00::1"),), inline=True)],
    ("prohibit", "encapsulation"): [IpEncapsulation(ADDRESS)],
    ("device", "link"): TEXTS,
    ("device", "private_key"): NOT_KEYS,
    ("device", "listen_port"): NOT_PORTS,
    ("device", "fwmark"): [*NOT_U32, None],
    ("peer", "link"): TEXTS,
    ("peer", "public_key"): [None, "", "A" * 44, "A" * 42 + "B=", bytes(44)],
    ("peer", "allowed_ips"): [None, NETWORK, [NETWORK], ("10.5.2.0/24",), (ADDRESS,)],
    ("peer", "endpoint"): [
        ("192.0.2.1", 51820),
        Endpoint("192.0.2.1", 51820),  # type: ignore[arg-type]
        Endpoint(ADDRESS, 1 << 16),
        Endpoint(ADDRESS, None),  # type: ignore[arg-type]
    ],
    ("peer", "preshared_key"): NOT_KEYS,
    ("peer", "keepalive"): NOT_PORTS,
    ("policy", "source"): [None, ADDRESS, INTERFACE, "10.5.2.0/24"],
    ("policy", "destination"): [None, ADDRESS, NETWORK6, "10.5.2.0/24"],
    ("policy", "direction"): [None, 0, "", "forward", b"out"],
    ("policy", "if_id"): [0, 1, XFRM_INTERFACES[0] - 1, XFRM_INTERFACES[-1] + 1, float(XFRM_INTERFACES[0]), None],
    ("policy", "tunnel_source"): [None, *NOT_ADDRESSES],
    ("policy", "tunnel_destination"): [None, ADDRESS, *NOT_ADDRESSES],
    ("policy", "reqid"): [*NOT_U32, None],
    ("policy", "priority"): [*NOT_U32, None],
    ("policy", "plain"): [None, 1],
    ("route", "destination"): [None, ADDRESS, INTERFACE, "10.5.2.0/24"],
    ("route", "link"): ["", 7],
    ("route", "gateway"): NOT_ADDRESSES,
    ("route", "source"): NOT_ADDRESSES,
    ("route", "metric"): NOT_U32,
    ("route", "onlink"): [None, 1],
}
CASES = [(name, field, value) for (name, field), values in BAD.items() for value in values]


def make(of: str, /, **changes: Any) -> Any:
    kind, arguments = GOOD[of]
    return kind(**{**arguments, **changes})


@pytest.mark.parametrize("name", GOOD)
def test_what_a_kernel_can_hold_is_taken(name: str) -> None:
    item = make(name)
    assert replace(item) == item


@pytest.mark.parametrize(("name", "field", "value"), CASES)
def test_what_it_can_not_is_refused_by_the_fields_name(name: str, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{GOOD[name][0].__name__}: {field} is .*must "):
        make(name, **{field: value})


def test_a_key_given_as_bytes_is_not_told() -> None:
    with pytest.raises(ValueError, match="private_key is hidden"):
        make("device", private_key=b"x" * 32)


def test_a_parameter_that_has_several_values_equals_what_is_read_of_it() -> None:
    assert Sysctl("net/ipv4/tcp_rmem", "4096\t131072  6291456\n") == Sysctl("net/ipv4/tcp_rmem", "4096 131072 6291456")


def test_what_is_said_in_two_ways_is_one_value() -> None:
    assert make("route", type="unicast") == make("route")
    assert make("blackhole", type="blackhole") == make("blackhole")
    several = (("mtu", 1400), ("advmss", 1360))
    assert make("route", metrics=several) == make("route", metrics=several[::-1])


def test_a_rule_about_all_addresses_names_none() -> None:
    for name, network in (("rule", "0.0.0.0/0"), ("unmarked", "::/0")):
        assert make(name, source=ip_network(network)) == make(name, source=None)


def test_a_rule_turned_round_is_the_same_one_to_the_kernel() -> None:
    assert make("rule").key == make("rule", inverted=False).key
    others = {"source": None, "priority": 7, "iif": "", "mark": 2, "mask": 1, "table": 7, "suppress_prefixlength": None}
    assert not [name for name, value in others.items() if make("rule", **{name: value}).key == make("rule").key]


def test_a_route_in_another_table_is_another_one() -> None:
    tables = [make("route", table=table) for table in (254, 7, 1000)]
    assert len({item.key for item in tables if isinstance(item, Route)}) == 3


@given(st.integers() | st.none() | st.text(), st.integers() | st.text())
def test_whatever_is_taken_can_be_encoded(metric: Any, mac: Any) -> None:
    for family in (NETWORK, NETWORK6):
        try:
            route = Route(family, "eth0", family.network_address, metric=metric)
            entry = FdbEntry("eth0", mac, family.network_address)
        except ValueError:
            continue
        assert wire.encode_route(wire.RTM_NEWROUTE, route, 1)
        assert wire.encode_fdb(wire.RTM_NEWNEIGH, entry, 1)
