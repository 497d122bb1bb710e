"""What every kernel port does, on the kernel in memory and on a real one: what is written, dumped and told."""

from __future__ import annotations

import select
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest
from tests.integration.kernel.objects import Family, wanting
from tests.plans import Plans
from tests.waiting import until

from pyflannel.kernel.model import (
    ROUTE_PROTOCOL,
    Address,
    GenericInfo,
    KernelObject,
    Key,
    Kind,
    Link,
    Neighbour,
    Sysctl,
)
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import SEVERAL, KernelPort, Notice, Write


def test_what_was_written_is_what_is_dumped(world: Any, family: Family) -> None:
    wanted = {item.key: item for item in family.overlay()}
    assert world.write(*wanted.values()) == {}
    found = {key: item for key, item in world.dump().items() if key[0] is not Kind.SYSCTL}
    assert found == wanted
    assert world.become(wanted.values()) == 0


def test_there_and_back_again(world: Any, family: Family) -> None:
    other = ip_address("192.0.2.77" if family.version == 4 else "2001:db8::77")
    moved: list[KernelObject] = [
        replace(family.neighbour(1), mac="02:00:00:00:02:02"),
        replace(family.fdb(1), remote=other),
    ]
    detour = replace(family.route(1), gateway=family.subnet(9).network_address)
    one = family.overlay(range(3))
    two = [family.link, family.address, *family.peer(0), *moved, detour, *family.peer(4)]
    world.become(one)
    before = world.dump()
    assert world.become(two) > 0
    assert {key for key in world.dump() if key[0] is not Kind.SYSCTL} == {item.key for item in two}
    world.become(one)
    assert world.dump() == before


def mapped(*plans: list[KernelObject]) -> dict[Key, KernelObject]:
    return {item.key: item for plan in plans for item in plan}


@pytest.mark.parametrize("kept", [Plans, mapped])
def test_only_what_differs_is_told(world: Any, family: Family, kept: Any) -> None:
    """The same as a dump would show, however what is wanted is kept."""
    flood = replace(family.fdb(6), mac="00:00:00:00:00:00")
    wanted = kept([family.link, family.address], *map(family.peer, range(6)), [flood])

    def differing() -> dict[Key, KernelObject | None]:
        found: dict[Key, KernelObject | None] = world.port.differing(world.scope, wanted)
        assert found == KernelPort.differing(world.port, world.scope, wanted)
        return {key: item for key, item in found.items() if key[0] is not Kind.SYSCTL}

    assert differing() == dict.fromkeys(wanted)
    world.become(wanted.values())
    assert differing() == {}
    changed = replace(family.fdb(1), remote=family.remote(77))
    moved = replace(family.neighbour(2), mac="02:00:00:00:02:02")
    further: list[KernelObject] = [family.neighbour(9), family.fdb(9), replace(family.route(9), metric=4711)]
    by_others: list[KernelObject] = [changed, moved, *further]
    for item in by_others:
        world.put(item, ROUTE_PROTOCOL)
    world.append_remote(replace(flood, remote=family.remote(60)))
    gone: list[KernelObject] = [family.neighbour(0), family.fdb(3), family.route(4)]
    for item in gone:
        world.remove(item)
    others = {item.key: item for item in (*by_others, replace(flood, remote=SEVERAL))}
    assert differing() == {**dict.fromkeys(item.key for item in gone), **others}
    world.become(wanted.values())
    assert differing() == {}


def test_what_lacks_altogether_is_made_from_its_plans(world: Any, family: Family) -> None:
    """As at a first start: no key is told of, and what can't be made is refused alone, and made when it can be."""
    metrics = range(1, 7) if family.version == 4 else [None] * 6
    peers = [[*family.peer(n)[:2], replace(family.route(n), metric=metric)] for n, metric in enumerate(metrics)]
    flood = replace(family.fdb(6), mac="00:00:00:00:00:00")
    wanted = Plans([family.link, family.address], *peers, [flood])
    world.write(family.link)

    def differing() -> tuple[dict[Key, KernelObject | None], list[bytes]]:
        lacking: list[bytes] = []
        found: dict[Key, KernelObject | None] = world.port.differing(world.scope, wanted, lacking)
        return {key: item for key, item in found.items() if key[0] is not Kind.SYSCTL}, lacking

    assert differing() == ({family.address.key: None}, wanted.plans()[1:])
    in_the_way = family.gateway_route(3, metric=4 if family.version == 4 else None)
    world.put(in_the_way)
    refused = world.port.fill([Write(None, family.address)], wanted.plans()[1:])
    assert refused.keys() == {in_the_way.key}
    assert "a foreign route" in str(refused[in_the_way.key])
    world.remove(in_the_way)
    assert differing() == ({in_the_way.key: None}, [])
    world.become(wanted.values())
    assert differing() == ({}, [])
    assert world.quiet().changes == {}


def test_everything_can_be_deleted_twice(world: Any, family: Family) -> None:
    wanted = family.overlay()
    world.become(wanted)
    deletions = [Write(item, None) for item in wanted]
    assert world.port.apply(deletions) == {}
    assert not any(key[0] is not Kind.SYSCTL for key in world.dump())
    assert world.port.apply(deletions) == {}


@pytest.mark.parametrize("kind", ["neighbour", "fdb", "route", "address"])
def test_deleting_one_leaves_the_others(world: Any, family: Family, kind: str) -> None:
    wanted = family.overlay()
    world.become(wanted)
    victim = family.address if kind == "address" else getattr(family, kind)(1)
    world.write(*wanted)
    others = {item.key for item in wanted} - {victim.key}
    assert world.port.apply([Write(victim, None)]) == {}
    # A link's last IPv4 address takes the IPv4 routes and neighbours along.
    if kind == "address" and family.version == 4:
        others = {key for key in others if key[0] not in (Kind.ROUTE, Kind.NEIGHBOUR)}
    assert {key for key in world.dump() if key[0] is not Kind.SYSCTL} == others


def test_a_new_address_before_the_old_one_goes_keeps_the_routes(world: Any, family: Family) -> None:
    world.become(family.overlay())
    new = Address(family.name, ip_interface("10.1.9.0/32" if family.version == 4 else "fd00:9::/128"))
    assert world.port.apply([Write(family.address, None), Write(None, new)]) == {}
    found = world.dump()
    assert family.address.key not in found
    assert found[new.key] == new
    assert all(found.get(family.route(number).key) == family.route(number) for number in range(3))


@pytest.mark.parametrize("kind", ["neighbour", "fdb", "route"])
def test_what_somebody_deletes_is_told(world: Any, family: Family, kind: str) -> None:
    world.become(family.overlay())
    world.quiet()
    victim = getattr(family, kind)(1)
    world.remove(victim)
    told = world.until(lambda notice: victim.key in notice.changes)
    assert family.drift(told) == {victim.key: None}
    assert not told.resync
    assert victim.key not in world.dump()
    assert world.port.apply([Write(None, victim)]) == {}
    assert world.dump()[victim.key] == victim


def test_what_somebody_changes_is_told(world: Any, family: Family) -> None:
    world.become(family.overlay())
    world.quiet()
    changed: list[KernelObject] = [
        replace(family.neighbour(1), mac="02:00:00:00:02:02"),
        replace(family.fdb(1), remote=family.remote(50)),
        replace(family.route(1), gateway=family.subnet(9).network_address),
    ]
    for item in changed:
        world.put(item)
    keys = {item.key for item in changed}
    told = world.until(lambda notice: keys <= notice.changes.keys())
    assert family.drift(told) == {item.key: item for item in changed}
    found = world.dump()
    assert [found[item.key] for item in changed] == changed
    assert world.become(family.overlay()) == 3


def test_a_deleted_address_is_told_and_asks_for_a_dump(world: Any, family: Family) -> None:
    world.become(family.overlay())
    world.quiet()
    world.remove(family.address)
    told = world.until(lambda notice: family.address.key in notice.changes)
    assert told.changes[family.address.key] is None
    assert family.name in told.interfaces
    assert told.resync
    world.become(family.overlay())
    assert world.become(family.overlay()) == 0


def test_an_appended_remote_is_put_right(world: Any, family: Family) -> None:
    """Only the zero address and multicast ones can have several."""
    flood = replace(family.fdb(1), mac="00:00:00:00:00:00")
    another = replace(flood, remote=family.remote(60))
    world.become([*family.overlay(), flood])
    world.quiet()
    world.append_remote(another)
    assert family.drift(world.until(lambda notice: flood.key in notice.changes)) == {flood.key: another}
    found = world.dump()[flood.key]
    assert found == replace(flood, remote=SEVERAL)
    assert world.port.apply([Write(found, flood)]) == {}
    assert world.dump()[flood.key] == flood

    ours = family.fdb(1)
    world.append_remote(replace(ours, remote=family.remote(60)))
    assert world.dump()[ours.key] == ours


def test_an_address_with_a_peer_is_one_of_its_own(world: Any, family: Family) -> None:
    ours = family.address
    point = replace(ours, peer=ours.interface.ip + 1)
    assert world.write(family.link, point) == {}
    assert world.dump()[point.key] == point
    assert ours.key not in world.dump()
    world.quiet()
    world.remove(point)
    assert point.key in world.quiet().changes
    assert point.key not in world.dump()


def test_a_link_that_goes_asks_for_a_dump(world: Any, family: Family) -> None:
    world.become(family.overlay())
    world.quiet()
    world.remove(family.link)
    told = world.until(lambda notice: notice.changes.get(family.link.key, family) is None)
    assert told.resync
    assert family.name in told.interfaces
    assert not any(key[0] is not Kind.SYSCTL for key in world.dump())
    world.become(family.overlay())
    assert world.become(family.overlay()) == 0


def test_a_link_set_down_asks_for_a_dump_and_is_put_right(world: Any, family: Family) -> None:
    world.become(family.overlay())
    before = world.dump()
    world.quiet()
    world.set_link(family.name, up=False)
    told = world.until(lambda notice: family.link.key in notice.changes)
    assert told.resync
    assert told.changes[family.link.key] == replace(family.link, up=False)
    found = world.dump()
    assert not any(key[0] in (Kind.ROUTE, Kind.NEIGHBOUR) for key in found)
    assert family.fdb(0).key in found
    world.become(family.overlay())
    assert world.dump() == before


def test_failures_in_the_middle_of_a_batch_stay_alone(world: Any, family: Family) -> None:
    count = 1500
    world.become([family.link, family.address])
    unreachable = {number: replace(family.route(number), onlink=False) for number in (0, 700, count - 1)}
    foreign = family.gateway_route(333, gateway=family.remote(80))
    world.put(foreign)
    wanted: list[KernelObject] = []
    for number in range(count):
        wanted += [family.neighbour(number), family.fdb(number), unreachable.get(number) or family.route(number)]
    failures = world.write(*wanted)
    expected = {item.key for item in unreachable.values()} | {foreign.key}
    assert failures.keys() == expected
    found = world.dump()
    assert {item.key for item in wanted if found.get(item.key) != item} == expected


def test_own_writes_are_told_as_they_are_or_not_at_all(world: Any, family: Family) -> None:
    wanted = {item.key: item for item in family.overlay()}
    world.become(wanted.values())
    told = world.quiet()
    assert not told.resync
    assert all(wanted[key] == item for key, item in told.changes.items())


def test_the_descriptor_is_readable_while_there_is_something_to_tell(world: Any, family: Family) -> None:
    def readable() -> bool:
        return bool(select.select([world.port], [], [], 0)[0])

    world.become(family.overlay())
    until(lambda: world.quiet() == Notice() and not readable())  # IPv6 addresses have more to tell, in their own time
    world.remove(family.route(1))
    world.port.apply([Write(family.neighbour(2), None)])  # reads what was told meanwhile
    assert readable()
    assert family.route(1).key in world.quiet().changes
    assert not readable()


def test_sysctls(world: Any) -> None:
    wanted = [Sysctl("net/ipv4/ip_forward", "1"), Sysctl("net/ipv6/conf/all/forwarding", "1")]
    unknown = Sysctl("net/ipv4/no_such_parameter", "1")
    failures = world.write(unknown, *wanted)
    assert failures.keys() == {unknown.key}
    found = world.dump()
    assert [found[item.key] for item in wanted] == wanted
    world.quiet()
    for item in wanted:
        off = replace(item, value="0")
        world.put(off)
        told = world.until(lambda notice, key=item.key: key in notice.changes)
        assert told.changes[item.key] == off
    assert world.port.apply([Write(item, None) for item in wanted]) == {}


def test_forwarding_entries_have_ports_and_networks_of_their_own(world: Any, family: Family) -> None:
    plain = family.fdb(1)
    ways = [replace(plain, port=4789), replace(plain, vni=77), replace(plain, port=4790, vni=0), plain]
    world.become([family.link])
    for way in (*ways, *reversed(ways)):
        assert world.write(way) == {}
        assert world.dump()[way.key] == way
        assert world.become([family.link, way]) == 0
    world.become([family.link, plain])
    world.quiet()
    world.put(ways[0])
    told = world.until(lambda notice: plain.key in notice.changes)
    assert told.changes[plain.key] == ways[0]
    assert world.become([family.link, plain]) == 1
    assert world.become([family.link]) == 1


def test_a_forwarding_entry_does_not_repeat_its_device(world: Any, family: Family) -> None:
    world.become([family.link])
    entry = family.fdb(1)
    for name, odd in (("port", replace(entry, port=family.info.port)), ("vni", replace(entry, vni=family.info.vni))):
        (error,) = world.write(odd).values()
        assert f"leave {name} out" in str(error)
    assert family.fdb(1).key not in world.dump()


@pytest.mark.parametrize("mac", [ip_address("192.0.2.2"), ip_address("2001:db8::2")], ids=str)
def test_a_link_layer_address_has_the_length_of_its_link_s(world: Any, family: Family, mac: Any) -> None:
    """Of a longer one, the kernel would take the beginning."""
    world.become([family.link])
    (error,) = world.write(replace(family.neighbour(1), mac=mac)).values()
    assert f"have 6 bytes, not {len(mac.packed)}" in str(error)
    assert family.neighbour(1).key not in world.dump()


def gre() -> Link:
    data = (("IFLA_GRE_LOCAL", "192.0.2.1"), ("IFLA_GRE_REMOTE", "0.0.0.0"))
    return Link("gre7", GenericInfo("gre", None, data), 1400)


def test_neighbours_behind_a_tunnel_with_many_ends(world: Any, family: Family) -> None:
    failed = wanting(world, gre()).write(gre())
    if failed and "this kernel has no gre devices" in str(failed[gre().key]):
        pytest.skip("not applicable: this kernel has no gre")
    assert failed == {}
    near, far = (Neighbour("gre7", family.local + 100, ip_address(end)) for end in ("192.0.2.2", "198.51.100.7"))
    for wanted in (near, far):
        assert world.write(wanted) == {}
        assert world.dump()[near.key] == wanted
        assert world.become([gre(), wanted]) == 0
    world.quiet()
    world.put(near)
    assert world.until(lambda notice: near.key in notice.changes).changes[near.key] == near
    assert world.become([gre(), far]) == 1
    world.remove(far)
    world.until(lambda notice: notice.changes.get(far.key, far) is None)
    assert world.become([gre(), far]) == 1
    if isinstance(world.port, NetlinkPort):
        (error,) = world.write(replace(far, mac="02:00:00:00:00:01")).values()
        assert "have 4 bytes, not 6" in str(error)
    world.become([])


def test_close_leaves_everything_and_may_be_repeated(world: Any, family: Family) -> None:
    world.become(family.overlay())
    world.port.close()
    world.port.close()
    assert len(world.routes(family.version)) == 3
