"""What the kernel tells of this node's interfaces, and the underlay that is chosen from it."""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from pyflannel.errors import UnderlayError
from pyflannel.kernel.inventory import read_cards, read_inventory
from pyflannel.network.underlay import Selection, choose, keep_or_choose

Ip = Callable[..., None]


@pytest.fixture
def netns() -> Iterator[Path]:
    """A namespace with two interfaces that lead nowhere."""
    name = f"pfl-inv-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield Path("/run/netns", name)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def ip(netns: Path) -> Ip:
    def run(*words: str) -> None:
        subprocess.run(["ip", "-n", netns.name, *words], check=True)

    for name, address in (("eth0", "192.0.2.1/24"), ("eth1", "198.51.100.1/24")):
        run("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        run("address", "add", address, "dev", name)
        run("link", "set", f"{name}-far", "up")
        run("link", "set", name, "up")
    run("route", "add", "default", "via", "192.0.2.254")
    return run


def test_what_can_be_reached_is_asked_of_the_kernel_with_its_rules(netns: Path, ip: Ip) -> None:
    target = ip_address("203.0.113.9")
    selection = Selection(iface_can_reach=target)
    assert choose(read_inventory(netns, (target,)), selection).interface == "eth0"
    ip("address", "add", "198.51.100.77/24", "dev", "eth1")
    ip("route", "add", "203.0.113.0/24", "via", "198.51.100.254", "src", "198.51.100.77", "table", "100")
    ip("rule", "add", "to", "203.0.113.0/24", "lookup", "100")
    found = choose(read_inventory(netns, (target,)), selection)
    assert (found.interface, str(found.ipv4)) == ("eth1", "198.51.100.77")


@pytest.mark.parametrize("told", ["0", "1"])
def test_routes_by_next_hops_that_are_objects_lead_where_these_do(netns: Path, ip: Ip, told: str) -> None:
    """As FRR makes them; whether the kernel tells of the way besides the object depends on a switch."""
    switch = f"net.ipv4.nexthop_compat_mode={told}"
    subprocess.run(["ip", "netns", "exec", netns.name, "sysctl", "-q", "-w", switch], check=True)
    ip("address", "add", "2001:db8::1/64", "dev", "eth1", "nodad")
    ip("route", "delete", "default")
    ip("link", "set", "lo", "up")
    for way in ("7 via 192.0.2.254 dev eth0", "8 via 198.51.100.254 dev eth1", "9 via 2001:db8::9 dev eth1"):
        ip("nexthop", "add", "id", *way.split())
    for other in ("20 group 7/8", "30 blackhole"):
        ip("nexthop", "add", "id", *other.split())
    for route in ("default nhid 7", "203.0.113.0/25 nhid 20", "203.0.113.128/25 nhid 30", "2001:db8:7::/48 nhid 9"):
        ip("route", "add", *route.split())
    found = {(str(each.destination), each.interface, str(each.gateway)) for each in read_inventory(netns).routes}
    assert found >= {
        ("0.0.0.0/0", "eth0", "192.0.2.254"),
        ("203.0.113.0/25", "eth0", "192.0.2.254"),
        ("203.0.113.0/25", "eth1", "198.51.100.254"),
        ("2001:db8:7::/48", "eth1", "2001:db8::9"),
    }
    assert "203.0.113.128/25" not in {destination for destination, _, _ in found}
    assert choose(read_inventory(netns), Selection()).interface == "eth0"


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
@pytest.mark.parametrize(
    ("address", "network"), [("203.0.113.9", "203.0.113.0/24"), ("2001:db8:9::9", "2001:db8:9::/48")]
)
def test_a_route_that_leads_nowhere_is_no_way(netns: Path, ip: Ip, kind: str, address: str, network: str) -> None:
    """Whether the kernel answers with such a route or with an error."""
    ip("link", "set", "lo", "up")
    ip("route", "add", kind, network)
    target = ip_address(address)
    inventory = read_inventory(netns, (target,))
    assert inventory.ways == ((target, None),)
    if target.version == 4:
        assert inventory.route_to(target) is not None, "there is a route for everything besides"
    with pytest.raises(UnderlayError, match=f"--iface-can-reach: no route to {address}"):
        choose(inventory, Selection(iface_can_reach=target))


def test_a_vpn_and_a_virtual_address_change_nothing(netns: Path, ip: Ip) -> None:
    current = choose(read_inventory(netns), Selection())
    assert (current.interface, str(current.ipv4)) == ("eth0", "192.0.2.1")
    for half in ("0.0.0.0/1", "128.0.0.0/1"):
        ip("route", "add", half, "dev", "eth1")
    ip("address", "add", "192.0.2.199/32", "dev", "eth0")
    after = read_inventory(netns)
    assert choose(after, Selection()) == keep_or_choose(after, Selection(), current) == current
    ip("address", "del", "192.0.2.1/24", "dev", "eth0")
    ip("address", "add", "192.0.2.1/24", "dev", "eth0")  # behind the virtual one now
    assert str(keep_or_choose(read_inventory(netns), Selection(), current).ipv4) == "192.0.2.1"
    ip("link", "set", "eth0", "down")
    ip("route", "add", "default", "via", "198.51.100.254")
    assert keep_or_choose(read_inventory(netns), Selection(), current).interface == "eth1"


def test_the_address_that_matched_and_the_route_s_own_source(netns: Path, ip: Ip) -> None:
    ip("address", "add", "203.0.113.1/24", "dev", "eth0")
    by_regex = choose(read_inventory(netns), Selection(iface_regex=(re.compile(r"^203\.0\."),)))
    assert str(by_regex.public_ipv4) == "203.0.113.1"
    ip("route", "replace", "default", "via", "192.0.2.254", "src", "203.0.113.1")
    assert str(choose(read_inventory(netns), Selection()).ipv4) == "203.0.113.1"


def test_a_machine_s_cards_are_what_lasts_and_no_copy_has(netns: Path, ip: Ip) -> None:
    """Where there is no card, the ends of cables stand for them; a bridge's, or the overlay's device, are no mark."""
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "add", "flannel.1", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "8472")
    ip("link", "add", "veth1", "type", "veth", "peer", "name", "veth1-far")
    ip("link", "set", "veth1", "master", "br0")

    def address(name: str) -> str:
        words = ["ip", "-n", netns.name, "-br", "link", "show", name]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[2]

    cards = read_cards(netns)
    assert cards == {address(name) for name in ("eth0", "eth1", "eth0-far", "eth1-far", "veth1-far")}
    ip("address", "flush", "dev", "eth0")
    ip("address", "add", "192.0.2.9/24", "dev", "eth0")
    assert read_cards(netns) == cards
