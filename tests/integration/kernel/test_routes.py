"""Routes on the kernel in memory and on a real one: over the underlay, of others, in any table, of any kind."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from tests.integration.kernel.objects import Family, wanting

from pyflannel.kernel.model import (
    ROUTE_PROTOCOL,
    GenericInfo,
    IpEncapsulation,
    KernelObject,
    Kind,
    Link,
    MplsEncapsulation,
    Route,
    Seg6Encapsulation,
    Sysctl,
)
from pyflannel.kernel.port import Write


def test_routes_over_the_underlay(world: Any, family: Family) -> None:
    wanted = [
        family.gateway_route(1),
        family.gateway_route(2, metric=50),
        family.gateway_route(3, source=family.local),
        Route(family.subnet(4), None),
        Route(family.subnet(5), "eth0"),
    ]
    assert world.write(*wanted) == {}
    found = world.dump()
    assert {key: item for key, item in found.items() if key[0] is Kind.ROUTE} == {item.key: item for item in wanted}
    assert world.become(wanted) == 0
    detour = replace(wanted[0], gateway=family.remote(99))
    assert world.write(detour) == {}
    assert world.dump()[detour.key] == detour
    assert world.become([]) == len(wanted)
    assert world.routes(family.version) == set()


def test_a_default_route_and_a_metric_of_the_defaults_number(world: Any, family: Family) -> None:
    everything = ip_network("0.0.0.0/0" if family.version == 4 else "::/0")
    wanted = Route(everything, "eth0", family.remote(1), metric=0 if family.version == 4 else 1024)
    assert world.write(wanted) == {}
    assert world.dump()[wanted.key] == wanted
    detour = replace(wanted, gateway=family.remote(2))
    assert world.write(detour) == {}
    assert world.dump()[wanted.key] == detour


def test_a_foreign_route_is_never_replaced(world: Any, family: Family) -> None:
    foreign = family.gateway_route(1, gateway=family.remote(80))
    world.put(foreign)
    world.become([family.link])
    before = world.routes(family.version)
    for wanted in (family.route(1), family.gateway_route(1), Route(family.subnet(1), None)):
        failures = world.write(wanted, family.route(2))
        assert failures.keys() == {wanted.key}
        assert str(foreign.gateway) in str(failures[wanted.key])
        assert "route delete" in str(failures[wanted.key])
        assert world.port.apply([Write(wanted, None)]) == {}
    assert world.routes(family.version) == before | {(str(family.subnet(2)), family.name, ROUTE_PROTOCOL)}


def test_a_foreign_route_in_place_of_ours_is_told_and_kept(world: Any, family: Family) -> None:
    ours = family.gateway_route(1)
    world.write(ours)
    world.quiet()
    foreign = family.gateway_route(1, gateway=family.remote(80))
    world.put(foreign)
    told = world.until(lambda notice: ours.key in notice.changes)
    assert told.changes == {ours.key: None}
    assert told.interfaces - {"wire0"} == {"eth0"}, "the other end may still be getting its own IPv6 address"
    assert world.port.apply([Write(ours, ours)]).keys() == {ours.key}
    assert world.port.apply([Write(None, ours)]).keys() == {ours.key}


def test_a_route_that_flanneld_left_is_taken_over(world: Any, family: Family) -> None:
    world.become([family.link])
    left = [family.route(1), family.gateway_route(2), Route(family.subnet(3), None)]
    for route in left:
        world.put(route, protocol=3)
    assert family.route(1).key in world.dump()
    assert family.gateway_route(2).key not in world.dump()
    assert world.port.apply([Write(None, route) for route in left]) == {}
    protocols = {(destination, protocol) for destination, _, protocol in world.routes(family.version)}
    assert protocols == {(str(route.destination), ROUTE_PROTOCOL) for route in left}


def test_somebody_s_own_route_through_our_device_is_not_ours(world: Any, family: Family) -> None:
    world.become([family.link])
    own = Route(family.subnet(5), family.name)
    world.put(own, protocol=4)
    world.quiet()
    assert own.key not in world.dump()
    assert world.become([family.link]) == 0
    assert (str(own.destination), family.name, 4) in world.routes(family.version)


def test_the_underlay_going_down_asks_for_a_dump_where_it_carries_routes(world: Any, family: Family) -> None:
    world.write(family.gateway_route(1))
    world.quiet()
    world.set_link("eth0", up=False)
    assert world.until(lambda notice: "eth0" in notice.interfaces).resync
    assert family.gateway_route(1).key not in world.dump()
    failures = world.port.apply([Write(None, family.gateway_route(1))])
    assert failures.keys() == {family.gateway_route(1).key}


def ways(family: Family) -> list[Route]:
    """Routes of one destination, each with something else to it; none is changed into another by its metric."""
    over = family.gateway_route(1)
    tunnel = IpEncapsulation(family.remote(5), 42, ttl=64)
    return [
        over,
        replace(over, metrics=(("mtu", 1400),)),
        replace(over, metrics=(("advmss", 1360), ("initcwnd", 20), ("mtu", 1300))),
        Route(over.destination, None),
        Route(over.destination, None, type="unreachable"),
        Route(over.destination, None, type="prohibit"),
        Route(over.destination, None, type="throw"),
        replace(over, encapsulation=tunnel),
        replace(over, encapsulation=replace(tunnel, source=family.local, tos=16, key=True, id=2**40)),
        replace(over, encapsulation=Seg6Encapsulation((IPv6Address("fd00::1"), IPv6Address("fd00::2")))),
    ]


@pytest.mark.parametrize("table", [254, 100, 100000])
def test_a_route_becomes_any_other_one(world: Any, family: Family, table: int) -> None:
    routes = [replace(way, table=table) for way in ways(family)]
    if family.version == 6:
        inline = Seg6Encapsulation((IPv6Address("fd00::1"),), inline=True)
        routes.append(replace(routes[0], encapsulation=inline))
    for wanted in (*routes, *reversed(routes)):
        assert world.write(wanted) == {}
        assert world.dump()[wanted.key] == wanted
        assert world.become([wanted]) == 0
    assert world.become([]) == 1


@pytest.mark.parametrize("number", range(1, 10))
def test_a_route_that_somebody_bends_is_told_and_put_right(world: Any, family: Family, number: int) -> None:
    for table in (254, 100):
        straight, *bent = (replace(way, table=table) for way in ways(family))
        world.become([straight])
        world.quiet()
        drift = bent[number - 1]
        world.put(drift, protocol=ROUTE_PROTOCOL)
        told = world.until(lambda notice, drift=drift: notice.changes.get(drift.key) == drift)
        assert not told.resync
        assert world.become([straight]) == 1
        world.remove(straight)
        world.until(lambda notice, key=straight.key: notice.changes.get(key, key) is None)
        assert world.become([straight]) == 1
        assert world.become([]) == 1


@pytest.mark.parametrize("table", [254, 100])
def test_a_route_puts_labels_on(world: Any, family: Family, table: int) -> None:
    plain = family.gateway_route(1, table=table)
    labels = [MplsEncapsulation((16,)), MplsEncapsulation((1048575, 100, 0), ttl=64)]
    routes = [replace(plain, encapsulation=each) for each in labels]
    failed = world.write(routes[0])
    if failed and "this kernel has no encapsulation mpls" in str(failed[plain.key]):
        pytest.skip("not applicable: this kernel has no MPLS")
    assert failed == {}
    for wanted in (*routes, plain, *routes):
        assert world.write(wanted) == {}
        assert world.dump()[plain.key] == wanted
        assert world.become([wanted]) == 0
    world.quiet()
    world.put(routes[0], protocol=ROUTE_PROTOCOL)
    told = world.until(lambda notice: notice.changes.get(plain.key) == routes[0])
    assert not told.resync
    assert world.become(routes[1:]) == 1
    assert world.become([]) == 1


def test_a_routing_table_of_a_vrf(world: Any, family: Family) -> None:
    """The link is a part of the VRF, and what comes in by it is looked up in the VRF's table."""
    vrf = Link("vrf7", GenericInfo("vrf", None, (("IFLA_VRF_TABLE", 4711),)), 65575)
    member = replace(family.link, master="vrf7")
    route = replace(family.route(1), table=4711)
    failed = wanting(world, vrf, member).write(vrf)
    if failed and "this kernel has no vrf devices" in str(failed[vrf.key]):
        pytest.skip("not applicable: this kernel has no VRF")
    assert failed == {}
    wanted: list[KernelObject] = [vrf, member, family.address, family.neighbour(1), route]
    world.become(wanted)
    assert world.become(wanted) == 0
    assert {item for item in world.dump().values() if not isinstance(item, Sysctl)} == set(wanted)
    world.quiet()
    world.set_link(member.name, master="")
    world.until(lambda notice: member.key in notice.changes or notice.resync)
    assert world.become(wanted) > 0
    world.remove(vrf)
    world.until(lambda notice: notice.resync)
    assert world.become(wanted) > 0
    assert world.become(wanted) == 0
    world.become([])
    assert not [key for key in world.dump() if key[0] is not Kind.SYSCTL]


def test_routes_in_other_tables_are_others_and_only_ours_by_their_mark(world: Any, family: Family) -> None:
    everywhere = [family.gateway_route(1, table=table) for table in (254, 100, 1000)]
    world.become([family.link, *everywhere])
    assert world.become([family.link, *everywhere]) == 0
    foreign = replace(family.route(2), table=100)
    world.put(foreign, protocol=3)
    assert foreign.key not in world.dump(), "flanneld writes to the main table"
    (error,) = world.write(Route(foreign.destination, None, table=100)).values()
    assert "table 100" in str(error)
    assert world.become([family.link]) == 3
    assert world.port.apply([Write(foreign, None)]) == {}


def test_somebody_s_route_in_place_of_ours_in_another_table_is_told(world: Any, family: Family) -> None:
    ours = family.gateway_route(1, table=100)
    world.become([ours])
    world.quiet()
    world.put(replace(ours, gateway=family.remote(80)))
    assert world.until(lambda notice: ours.key in notice.changes).changes == {ours.key: None}
    assert world.write(ours).keys() == {ours.key}


def test_an_old_route_stays_where_the_kernel_refuses_the_new_one_with_a_metric(world: Any) -> None:
    """And where it takes it, the old one of another destination goes."""
    family = Family(4)
    old, others = family.gateway_route(1), family.gateway_route(2)
    assert world.write(old, others) == {}
    refused = replace(old, gateway=ip_address("203.0.113.77"), onlink=False, metric=7)  # no neighbour of this node's
    taken = replace(others, metric=7)
    writes = [Write(old, None), Write(None, refused), Write(others, None), Write(None, taken)]
    failures = world.port.apply(writes)
    assert failures.keys() == {old.key, refused.key}
    assert "stays until" in str(failures[old.key])
    world.quiet()
    assert {key: item for key, item in world.dump().items() if key[0] is Kind.ROUTE} == {
        old.key: old,
        taken.key: taken,
    }


def test_an_old_route_and_a_new_one_with_a_metric_change_places(world: Any) -> None:
    family = Family(4)
    old = family.gateway_route(1)
    new = replace(old, metric=7)
    assert world.write(old) == {}
    world.quiet()
    assert world.port.apply([Write(old, None), Write(None, new)]) == {}
    assert world.quiet().resync
    assert {key: item for key, item in world.dump().items() if key[0] is Kind.ROUTE} == {new.key: new}
