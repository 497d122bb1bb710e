from __future__ import annotations

import re
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from pyflannel.errors import UnderlayError
from pyflannel.network.underlay import Interface, InterfaceRoute, Inventory, Selection, UnderlayRoute, choose

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
