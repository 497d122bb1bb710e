"""Plans as bytes are the plans that they were, and all that is told from the bytes is told from the objects, too."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.plans import Plans

from pyflannel.kernel import packed
from pyflannel.kernel.model import (
    ROUTE_TYPES,
    FdbEntry,
    KernelObject,
    Kind,
    Neighbour,
    Route,
    Rule,
    Sysctl,
)
from pyflannel.kernel.packed import (
    find,
    index,
    indexes,
    is_neighbours,
    key_of,
    pack,
    parts,
    picked,
    place_of,
    plans_of,
    unpack,
)

links = st.sampled_from(["flannel.1", "flannel-v6.1", "eth0"])
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)
u32 = st.integers(0, 2**32 - 1)
few = st.integers(0, 3)
"""So that keys collide."""


@st.composite
def routes(draw: st.DrawFn) -> Route:
    version = draw(st.sampled_from([4, 6]))
    bits, network, address = (32, IPv4Network, ipv4) if version == 4 else (128, IPv6Network, ipv6)
    length = draw(st.sampled_from([0, 8, bits - 8, bits]))
    number = draw(few | st.integers(0, 2**bits - 1)) >> (bits - length) << (bits - length)
    return Route(
        network((number, length)),
        draw(links),
        draw(st.none() | address | ipv6),  # type: ignore[arg-type]
        draw(st.booleans()),
        draw(st.none() | address),  # type: ignore[arg-type]
        draw(st.none() | few | u32),
        draw(st.sampled_from(["", "local"])),
        draw(st.sampled_from([254, 7, 4711])),
        draw(st.sampled_from([(), (("mtu", 1400),)])),
    )


neighbours = st.builds(Neighbour, links, ipv4 | ipv6 | few.map(IPv4Address) | few.map(IPv6Address), macs | ipv4)
entries = st.builds(
    FdbEntry, links, macs | few.map(lambda n: f"02:00:00:00:00:0{n}"), ipv4 | ipv6, st.none() | st.just(1), st.none()
)
others: st.SearchStrategy[KernelObject] = st.sampled_from(
    [Sysctl("net/ipv4/ip_forward", "1"), Rule(4, 100, table=7), Rule(6, 100, table=7)]
)
objects: st.SearchStrategy[KernelObject] = routes() | neighbours | entries | others
plans = st.lists(objects, max_size=5).map(tuple)


def plain(version: int, number: int = 2) -> tuple[KernelObject, ...]:
    """What vxlan plans for a peer."""
    mac = f"02:00:00:00:00:{number:02x}"
    if version == 4:
        net, remote = IPv4Network((0x0A050000 + number * 256, 24)), IPv4Address("192.0.2.7")
        gateway, link = net.network_address, "flannel.1"
        route = Route(net, link, gateway, onlink=True, metric=number)
        return (Neighbour(link, gateway, mac), FdbEntry(link, mac, remote), route)
    net6, remote6 = IPv6Network((0xFD << 120 | number << 64, 64)), IPv6Address("2001:db8::7")
    gateway6, link = net6.network_address, "flannel-v6.1"
    route = Route(net6, link, gateway6, onlink=True)
    return (Neighbour(link, gateway6, mac), FdbEntry(link, mac, remote6), route)


@given(plans)
def test_what_is_unpacked_is_what_was_packed(plan: tuple[KernelObject, ...]) -> None:
    assert unpack(pack(plan)) == plan


@pytest.mark.parametrize("version", [4, 6])
def test_what_thousands_of_peers_have_is_packed(version: int) -> None:
    kept = pack(plain(version))
    assert isinstance(kept, bytes)
    assert len(kept) <= (50 if version == 4 else 100)


@given(objects, objects)
def test_indexes_are_equal_where_keys_are(one: KernelObject, other: KernelObject) -> None:
    assert (index(one.key) == index(other.key)) is (one.key == other.key)


@given(plans)
def test_keys_are_told_from_the_bytes(plan: tuple[KernelObject, ...]) -> None:
    kept = pack(plan)
    keys = [item.key for item in plan]
    assert indexes(kept) == [index(key) for key in keys]
    assert [is_neighbours(each) for each in indexes(kept)] == [key[0] is Kind.NEIGHBOUR for key in keys]
    if isinstance(kept, bytes):
        assert [key_of(part) for part in parts(kept)] == keys


@given(plans, objects)
def test_an_object_is_found_by_its_key(plan: tuple[KernelObject, ...], other: KernelObject) -> None:
    kept = pack(plan)
    for key in [item.key for item in (*plan, other)]:
        assert find(kept, key) == next((item for item in plan if item.key == key), None)


@given(routes() | neighbours)
def test_the_place_of_a_key_is_its_address(item: Route | Neighbour) -> None:
    address = item.destination.network_address if isinstance(item, Route) else item.address
    assert place_of(item.key) == (address.version, int(address))


def test_what_lies_nowhere_has_no_place() -> None:
    assert place_of(FdbEntry("flannel.1", "02:00:00:00:00:02", IPv4Address("192.0.2.7")).key) is None


def test_one_link_too_many_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_MOST_LINKS", 0)
    assert pack(entry := (Neighbour("surplus", IPv4Address(1), "02:00:00:00:00:02"),)) == entry
    assert index(entry[0].key) == entry[0].key


def test_what_is_wanted_reads_as_a_mapping() -> None:
    all_plans = [plain(version, number) for version in (4, 6) for number in range(4)]
    all_plans.append((Sysctl("net/ipv4/ip_forward", "1"), *plain(4, 9)))
    wanted = Plans(*all_plans)
    expected = {item.key: item for plan in all_plans for item in plan}
    assert dict(wanted) == dict(wanted.items()) == {item.key: item for item in wanted.values()} == expected
    assert list(wanted) == list(expected)
    assert [item for plan in plans_of(wanted) for item in unpack(plan)] == list(expected.values())


@pytest.mark.parametrize("count", [0, 1, 3, 12])
def test_some_are_picked(count: int) -> None:
    wanted = Plans(*(plain(4, number) for number in range(4)))
    keys = list(wanted)[:count]
    wanted.looked_up = 0
    assert picked(wanted, {*keys, Route(IPv4Network("10.9.0.0/16"), "flannel.1").key}) == {k: wanted[k] for k in keys}
    assert wanted.looked_up <= 2 * count + 1


def test_every_type_of_route_but_the_usual_one_stays_as_it_is() -> None:
    for name in ROUTE_TYPES:
        if name not in ("unicast", "blackhole", "unreachable", "prohibit", "throw"):
            route = Route(IPv4Network("10.5.2.0/24"), "flannel.1", IPv4Address("10.5.2.0"), metric=1, type=name)
            assert pack([route]) == (route,)
