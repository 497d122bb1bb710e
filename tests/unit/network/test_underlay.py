from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from pyflannel.errors import UnderlayError
from pyflannel.network.underlay import (
    Interface,
    InterfaceRoute,
    Inventory,
    Selection,
    UnderlayRoute,
    Way,
    choose,
    keep_or_choose,
)

ETH0 = Interface("eth0", 1500, True, (ip_address("192.0.2.1"), ip_address("192.0.2.7"), ip_address("2001:db8::1")))
ETH1 = Interface("eth1", 9000, True, (ip_address("198.51.100.1"),))
DOWN = Interface("eth2", 1500, False, (ip_address("203.0.113.1"),))
BARE = Interface("veth7", 1500, True)
DEFAULT = InterfaceRoute(ip_network("0.0.0.0/0"), "eth0", ip_address("192.0.2.254"))
ROUTES = (
    DEFAULT,
    InterfaceRoute(ip_network("192.0.2.0/24"), "eth0"),
    InterfaceRoute(ip_network("198.51.100.0/24"), "eth1"),
    InterfaceRoute(ip_network("203.0.113.0/24"), "eth1", ip_address("198.51.100.254")),
    InterfaceRoute(ip_network("2001:db8::/64"), "eth0"),
)
HERE = Inventory((ETH0, ETH1, DOWN, BARE), ROUTES)


@pytest.mark.parametrize(
    ("selection", "interface", "address"),
    [
        (Selection(), "eth0", "192.0.2.1"),
        (Selection(iface=("eth1",)), "eth1", "198.51.100.1"),
        (Selection(iface=("nope", "eth1")), "eth1", "198.51.100.1"),
        (Selection(iface=("192.0.2.7",)), "eth0", "192.0.2.7"),
        (Selection(iface_regex=(re.compile("^eth1$"),)), "eth1", "198.51.100.1"),
        (Selection(iface_regex=(re.compile(r"198\.51"),)), "eth1", "198.51.100.1"),
        (Selection(iface=("nope",), iface_regex=(re.compile("eth1"),)), "eth1", "198.51.100.1"),
        (Selection(iface_can_reach=ip_address("203.0.113.9")), "eth1", "198.51.100.1"),
        (Selection(iface_can_reach=ip_address("8.8.8.8")), "eth0", "192.0.2.1"),
    ],
)
def test_the_interface_is_found_as_flannel_does(selection: Selection, interface: str, address: str) -> None:
    found = choose(HERE, selection)
    assert (found.interface, str(found.ipv4), str(found.public_ipv4)) == (interface, address, address)


def test_the_public_address_may_be_another() -> None:
    found = choose(HERE, Selection(public_ip=IPv4Address("203.0.113.200")))
    assert (str(found.ipv4), str(found.public_ipv4)) == ("192.0.2.1", "203.0.113.200")
    assert str(found.ipv6) == str(found.public_ipv6) == "2001:db8::1"


@pytest.mark.parametrize(
    ("inventory", "selection", "reason"),
    [
        (HERE, Selection(iface=("nope",)), "no interface is, has or matches nope"),
        (HERE, Selection(iface=("eth2",)), "eth2 is down"),
        (HERE, Selection(iface=("veth7",)), "veth7 has no usable address"),
        (Inventory((ETH0,), ()), Selection(), "no default route"),
        (Inventory((ETH0,), ()), Selection(iface_can_reach=ip_address("8.8.8.8")), "no route to 8.8.8.8"),
    ],
)
def test_what_can_t_be_used_is_named(inventory: Inventory, selection: Selection, reason: str) -> None:
    with pytest.raises(UnderlayError, match=reason):
        choose(inventory, selection)


def test_the_default_route_of_lowest_metric_counts() -> None:
    better = InterfaceRoute(ip_network("0.0.0.0/0"), "eth1", ip_address("198.51.100.254"), metric=10)
    worse = InterfaceRoute(ip_network("0.0.0.0/0"), "eth0", ip_address("192.0.2.254"), metric=100)
    assert choose(Inventory((ETH0, ETH1), (worse, better)), Selection()).interface == "eth1"


def test_who_is_on_the_link() -> None:
    exception = InterfaceRoute(ip_network("192.0.2.128/25"), "eth0", ip_address("192.0.2.254"))
    found = choose(Inventory((ETH0,), (*ROUTES, exception)), Selection())
    answers = {
        text: found.is_onlink(ip_address(text)) for text in ("192.0.2.2", "192.0.2.200", "203.0.113.9", "2001:db8::2")
    }
    assert answers == {"192.0.2.2": True, "192.0.2.200": False, "203.0.113.9": False, "2001:db8::2": True}


def test_a_route_that_says_nothing_about_the_link_changes_nothing() -> None:
    before = choose(HERE, Selection())
    container = InterfaceRoute(ip_network("10.5.3.0/24"), "eth0", ip_address("192.0.2.3"))
    assert choose(Inventory(HERE.interfaces, (*ROUTES, container)), Selection()) == before
    assert UnderlayRoute(ip_network("192.0.2.0/24")) in before.routes


def test_which_networks_of_the_link_have_addresses_of_nobody_s_and_what_else_is_this_node_s() -> None:
    """A route to a part of the link, as somebody may have for a range of addresses, says nothing of its first one."""
    part = InterfaceRoute(ip_network("192.0.2.64/26"), "eth0")
    found = choose(Inventory((ETH0, ETH1, DOWN), (*ROUTES, part)), Selection())
    assert {str(route.destination): route.connected for route in found.routes if route.gateway is None} == {
        "192.0.2.0/24": True,
        "192.0.2.64/26": False,
        "2001:db8::/64": True,
    }
    assert found.also_own == {ip_address("192.0.2.7"), ip_address("198.51.100.1")}


# What must not cut a working overlay --------------------------------------------------------------------------------


TUN = Interface("tun0", 1400, True, (ip_address("10.8.0.2"),))
HALVES = tuple(InterfaceRoute(ip_network(half), "tun0") for half in ("0.0.0.0/1", "128.0.0.0/1"))


def test_a_vpn_s_two_halves_are_no_default_route() -> None:
    after = Inventory((*HERE.interfaces, TUN), (*ROUTES, *HALVES))
    assert choose(after, Selection()).interface == "eth0"
    assert keep_or_choose(after, Selection(), choose(HERE, Selection())).interface == "eth0"


@pytest.mark.parametrize("metric", [0, 10])
def test_another_default_route_leaves_an_underlay_that_works(metric: int) -> None:
    worse = replace(DEFAULT, metric=100)
    better = InterfaceRoute(ip_network("0.0.0.0/0"), "eth1", ip_address("198.51.100.254"), metric)
    current = choose(Inventory((ETH0, ETH1), (worse,)), Selection())
    assert choose(Inventory((ETH0, ETH1), (worse, better)), Selection()).interface == "eth1"
    assert keep_or_choose(Inventory((ETH0, ETH1), (worse, better)), Selection(), current).interface == "eth0"
    for gone in ((replace(ETH0, up=False), ETH1), (ETH1,)):
        assert keep_or_choose(Inventory(gone, (better,)), Selection(), current).interface == "eth1"


def test_why_an_underlay_is_kept_is_true_whatever_has_become_of_what_chose_it() -> None:
    before = Inventory((ETH0, ETH1), (DEFAULT,))
    elsewhere = InterfaceRoute(ip_network("0.0.0.0/0"), "eth1", ip_address("198.51.100.254"))
    six = InterfaceRoute(ip_network("::/0"), "eth0", ip_address("2001:db8::fe"))
    first = choose(before, Selection())
    kept = keep_or_choose(Inventory((ETH0, ETH1), (elsewhere,)), Selection(), first)
    assert kept.why == f"{first.why} (when it was chosen; it is kept for as long as it works)"
    assert keep_or_choose(Inventory((ETH0, ETH1), (elsewhere,)), Selection(), kept).why == kept.why
    assert kept.others == ("eth1: the default route 0.0.0.0/0 leads through it",)
    by_six = keep_or_choose(Inventory((ETH0, ETH1), (elsewhere, six)), Selection(), kept)
    assert by_six.why == "the default route ::/0 leads through it"
    assert keep_or_choose(before, Selection(), kept).why == first.why


@pytest.mark.parametrize(("own", "vip"), [("192.0.2.1", "192.0.2.99"), ("2001:db8::1", "fdaa::1")])
def test_a_virtual_address_never_takes_the_place_of_a_node_s_own(own: str, vip: str) -> None:
    address, extra = ip_address(own), ip_address(vip)
    alone = Interface("eth0", 1500, True, (address,))
    both = Interface("eth0", 1500, True, (extra, address), frozenset({extra}))
    virtual = Interface("eth0", 1500, True, (extra,), frozenset({extra}))
    routes = (InterfaceRoute(ip_network("0.0.0.0/0"), "eth0"),)
    assert choose(Inventory((both,), routes), Selection()).local(address.version) == address
    current = choose(Inventory((alone,), routes), Selection())
    assert keep_or_choose(Inventory((both,), routes), Selection(), current) == current
    without = keep_or_choose(Inventory((virtual,), routes), Selection(), current)
    assert without.local(address.version) == extra
    assert keep_or_choose(Inventory((both,), routes), Selection(), without).local(address.version) == address


@pytest.mark.parametrize(
    ("own", "gateway", "network", "added"),
    [
        ("10.128.0.2", "10.128.0.1", "203.0.113.0/24", "203.0.113.5"),
        ("2001:db8::2", "2001:db8:1::1", "fd00:9::/64", "fd00:9::5"),
    ],
)
def test_an_address_that_is_added_takes_nothing_from_one_that_a_cloud_gave_as_a_host_s(
    own: str, gateway: str, network: str, added: str
) -> None:
    """The machine has a /32, and reaches its gateway by a route of its own."""
    address, router = ip_address(own), ip_address(gateway)
    everything = ip_network("0.0.0.0/0" if address.version == 4 else "::/0")
    routes = (InterfaceRoute(everything, "eth0", router), InterfaceRoute(ip_network(gateway), "eth0"))
    alone = Interface("eth0", 1460, True, (address,), frozenset({address}))
    current = choose(Inventory((alone,), routes), Selection())
    both = replace(alone, addresses=(address, ip_address(added)))
    more = (*routes, InterfaceRoute(ip_network(network), "eth0"))
    assert keep_or_choose(Inventory((both,), more), Selection(), current).local(address.version) == address
    better = (*more, InterfaceRoute(everything, "eth0", ip_address(added) + 1, metric=9))
    assert keep_or_choose(Inventory((both,), better), Selection(), current).local(address.version) != address


FOUR, SIX = (ip_network("10.5.7.0/24"),), (ip_network("fd00:5:7::/64"),)


@pytest.mark.parametrize(
    ("addresses", "own", "interface"),
    [
        (("192.0.2.1",), FOUR, "eth0"),
        (("192.0.2.1",), SIX, "tun0"),
        (("192.0.2.1", "2001:db8:9::1"), SIX, "eth0"),
        (("192.0.2.9", "2001:db8::1"), FOUR, "eth0"),
        (("2001:db8::1",), FOUR, "tun0"),
        (("2001:db8::1",), SIX, "eth0"),
    ],
)
def test_an_interface_that_is_renumbered_stays_although_another_default_route_has_come(
    addresses: tuple[str, ...], own: tuple[IPv4Network | IPv6Network, ...], interface: str
) -> None:
    """And a family that carries no containers may go."""
    eth0 = Interface("eth0", 1500, True, (ip_address("192.0.2.1"), ip_address("2001:db8::1")))
    tun0 = Interface("tun0", 1400, True, (ip_address("10.8.0.2"), ip_address("fd00:8::2")))
    routes = (replace(DEFAULT, metric=100), InterfaceRoute(ip_network("0.0.0.0/0"), "tun0", metric=50))
    current = choose(Inventory((eth0,), routes), Selection())
    after = Inventory((replace(eth0, addresses=tuple(map(ip_address, addresses))), tun0), routes)
    assert keep_or_choose(after, Selection(), current, own).interface == interface
    moved = Selection(iface=("tun0",))
    lost = Inventory((replace(eth0, addresses=(ip_address("192.0.2.77"),)), tun0), routes)
    assert keep_or_choose(lost, moved, current, own).interface == "tun0"


def test_a_deprecated_address_is_kept_and_not_chosen() -> None:
    old, new = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    routes = (InterfaceRoute(ip_network("::/0"), "eth0"),)
    current = choose(Inventory((Interface("eth0", 1500, True, (old,)),), routes), Selection())
    fading = Inventory((Interface("eth0", 1500, True, (new,), fading=frozenset({old})),), routes)
    assert keep_or_choose(fading, Selection(), current).ipv6 == old
    assert choose(fading, Selection()).ipv6 == new


def test_the_address_that_matched_is_the_one() -> None:
    eth0 = Interface("eth0", 1500, True, (ip_address("192.0.2.1"), ip_address("10.64.0.1")))
    found = choose(Inventory((eth0,), ()), Selection(iface_regex=(re.compile(r"^10\.64\."),)))
    assert str(found.ipv4) == str(found.public_ipv4) == "10.64.0.1"
    assert "10.64.0.1 matches" in found.why


def test_an_address_that_has_moved_is_said_to_be_where_it_is() -> None:
    """As when an interface becomes a port of a bridge."""
    before = choose(HERE, Selection(iface=("eth0",)))
    bridge = Interface("br0", 1500, True, ETH0.addresses)
    after = Inventory((replace(ETH0, addresses=()), bridge), ROUTES)
    with pytest.raises(UnderlayError, match=r"eth0 has no usable address; 192\.0\.2\.1 is on br0 now: --iface br0"):
        keep_or_choose(after, Selection(iface=("eth0",)), before)


def test_a_pattern_looks_at_ipv4_addresses_before_names_and_at_ipv6_ones_last() -> None:
    """As flanneld does, which looks at all interfaces' addresses first."""
    eth0 = Interface("eth0", 1500, True, (ip_address("10.0.2.15"), ip_address("2001:db8::e")))
    eth1 = Interface("eth1", 1500, True, (ip_address("192.168.56.11"), ip_address("fd00::56")))

    def chosen(pattern: str, *interfaces: Interface) -> str:
        return choose(Inventory(interfaces, ()), Selection(iface_regex=(re.compile(pattern),))).interface

    assert chosen(r"^eth0$|^192\.168\.", eth0, eth1) == "eth1"
    assert chosen("^eth1$|^2001", eth0, eth1) == "eth1"
    assert chosen("^2001", eth1, eth0) == "eth0"


@pytest.mark.parametrize("selection", [Selection(iface=("veth7", "eth1")), Selection(iface_regex=(re.compile("eth"),))])
def test_an_interface_without_addresses_gives_way_to_the_next_that_was_named(selection: Selection) -> None:
    assert choose(Inventory((BARE, ETH1), ()), selection).interface == "eth1"
    with pytest.raises(UnderlayError, match="veth7 has no usable address"):
        choose(Inventory((BARE,), ()), selection)


def test_the_kernel_s_answer_counts_for_what_can_be_reached() -> None:
    target = ip_address("203.0.113.9")
    asked = Inventory(HERE.interfaces, ROUTES, ((target, Way("eth0", ip_address("192.0.2.7"))),))
    found = choose(asked, Selection(iface_can_reach=target))
    assert (found.interface, str(found.ipv4)) == ("eth0", "192.0.2.7")


def test_the_default_route_s_source_is_the_address() -> None:
    routes = (replace(DEFAULT, source=ip_address("192.0.2.7")),)
    assert str(choose(Inventory((ETH0,), routes), Selection()).ipv4) == "192.0.2.7"


def test_a_public_address_picks_the_interface_that_has_it() -> None:
    found = choose(HERE, Selection(public_ip=IPv4Address("198.51.100.1")))
    assert (found.interface, str(found.ipv4), str(found.public_ipv4)) == ("eth1", "198.51.100.1", "198.51.100.1")


def test_what_carries_the_containers_is_no_candidate() -> None:
    bridge = Interface("cni0", 1450, True, (ip_address("10.244.7.1"),))
    lo = Interface("lo", 65536, True, (ip_address("10.9.9.9"),))
    eth0 = Interface("eth0", 1500, True, (ip_address("10.64.0.1"),))
    selection = Selection(iface_regex=(re.compile(r"^10\."),))
    own = (ip_network("10.244.7.0/24"),)
    assert keep_or_choose(Inventory((lo, bridge, eth0), ()), selection, None, own).interface == "eth0"
    with pytest.raises(UnderlayError, match="no interface is, has or matches"):
        keep_or_choose(Inventory((lo, bridge), ()), selection, None, own)


def test_an_address_of_the_loopback_has_the_mtu_of_the_way_out() -> None:
    lo = Interface("lo", 65536, True, (ip_address("203.0.113.77"),))
    selection = Selection(iface=("203.0.113.77",))
    assert choose(Inventory((lo, ETH0, ETH1), ROUTES), selection).mtu == 1500
    assert choose(Inventory((lo, ETH1), ()), selection).mtu == 9000


def test_what_would_have_been_chosen_too_is_named() -> None:
    two = Inventory(
        (
            Interface("eth0", 1500, True, (ip_address("10.0.0.1"),)),
            Interface("eth1", 1500, True, (ip_address("10.1.0.1"),)),
        ),
        (
            InterfaceRoute(ip_network("0.0.0.0/0"), "eth1", ip_address("10.1.0.254"), 200),
            InterfaceRoute(ip_network("0.0.0.0/0"), "eth0", ip_address("10.0.0.254"), 100),
        ),
    )
    unasked = choose(two, Selection())
    assert (unasked.interface, unasked.others) == ("eth0", ("eth1: the default route 0.0.0.0/0 leads through it",))
    matched = choose(two, Selection(iface=("eth1",), iface_regex=(re.compile("^eth"),)))
    assert (matched.interface, matched.others) == ("eth1", ("eth0: its name matches --iface-regex ^eth",))
    kept = keep_or_choose(two, Selection(iface_regex=(re.compile("^10"),)), choose(two, Selection(iface=("eth1",))))
    assert (kept.interface, kept.why) == ("eth1", "its address 10.1.0.1 matches --iface-regex ^10")
    assert kept.others == (r"eth0 10.0.0.1: its address 10.0.0.1 matches --iface-regex ^10",)
    assert choose(two, Selection(iface=("eth0",))).others == ()


def test_another_address_of_the_same_interface_is_named() -> None:
    one = Inventory((Interface("eth0", 1500, True, (ip_address("10.0.0.1"), ip_address("10.0.0.2"))),), ())
    found = choose(one, Selection(iface=("10.0.0.2", "10.0.0.1")))
    assert (found.ipv4, found.others) == (ip_address("10.0.0.2"), ("eth0 10.0.0.1: --iface 10.0.0.1",))
