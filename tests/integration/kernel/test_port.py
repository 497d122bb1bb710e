"""What every kernel port does, on the kernel in memory and on a real one."""

from __future__ import annotations

import select
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from tests.plans import Plans
from tests.waiting import until

from pyflannel.kernel.model import (
    ROUTE_PROTOCOL,
    Address,
    FdbEntry,
    ForeignInfo,
    GenericInfo,
    IpEncapsulation,
    KernelObject,
    Key,
    Kind,
    Link,
    MplsEncapsulation,
    Neighbour,
    Route,
    Seg6Encapsulation,
    Sysctl,
    TunInfo,
    VxlanInfo,
)
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import SEVERAL, KernelPort, Notice, Scope, Write


@dataclass(frozen=True)
class Family:
    """The objects of a small overlay in one address family."""

    version: int

    @property
    def name(self) -> str:
        return "flannel.1" if self.version == 4 else "flannel-v6.1"

    @property
    def local(self) -> Any:
        return ip_address("192.0.2.1" if self.version == 4 else "2001:db8::1")

    @property
    def link(self) -> Link:
        mtu = 1450 if self.version == 4 else 1430
        return Link(self.name, self.info, mtu, "02:00:00:00:01:01")

    @property
    def info(self) -> VxlanInfo:
        return VxlanInfo(1, 8472, self.local, "eth0")

    @property
    def address(self) -> Address:
        return Address(self.name, ip_interface("10.1.0.0/32" if self.version == 4 else "fd00:1::/128"))

    def subnet(self, number: int) -> IPv4Network | IPv6Network:
        if self.version == 4:
            return IPv4Network((0x0A020000 + (number << 8), 24))
        return IPv6Network((0xFD02 << 112 | number << 64, 64))

    def remote(self, number: int) -> Any:
        return self.local + 1 + number

    def mac(self, number: int) -> str:
        return f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}"

    def neighbour(self, number: int) -> Neighbour:
        return Neighbour(self.name, self.subnet(number).network_address, self.mac(number))

    def fdb(self, number: int) -> FdbEntry:
        return FdbEntry(self.name, self.mac(number), self.remote(number))

    def route(self, number: int) -> Route:
        return Route(self.subnet(number), self.name, self.subnet(number).network_address, onlink=True)

    def gateway_route(self, number: int, **changes: Any) -> Route:
        """As host-gw writes it: over the underlay itself."""
        return replace(Route(self.subnet(number), "eth0", self.remote(number)), **changes)

    def peer(self, number: int) -> list[KernelObject]:
        return [self.neighbour(number), self.fdb(number), self.route(number)]

    def overlay(self, peers: range = range(3)) -> list[KernelObject]:
        return [self.link, self.address, *(item for number in peers for item in self.peer(number))]

    def drift(self, told: Notice) -> dict[Key, KernelObject | None]:
        """What was told, without the late echo of the overlay (IPv6 addresses are told from the kernel's workqueue)."""
        overlay = self.overlay()
        return {key: item for key, item in told.changes.items() if item not in overlay}


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


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
    assert "somebody else's" in str(refused[in_the_way.key])
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


def test_a_deleted_address_is_told_and_asks_for_a_dump_with_ipv4(world: Any, family: Family) -> None:
    world.become(family.overlay())
    world.quiet()
    world.remove(family.address)
    told = world.until(lambda notice: family.address.key in notice.changes)
    assert told.changes[family.address.key] is None
    assert family.name in told.interfaces
    assert told.resync == (family.version == 4)
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


@pytest.mark.parametrize("change", [{"mtu": 1400}, {"mac": "02:00:00:00:03:03"}])
def test_a_changed_link_is_put_right_in_place(world: Any, family: Family, change: dict[str, Any]) -> None:
    world.become(family.overlay())
    world.quiet()
    world.set_link(family.name, **change)
    told = world.until(lambda notice: family.link.key in notice.changes)
    assert told.changes[family.link.key] == replace(family.link, **change)
    assert family.name in told.interfaces
    assert world.write(family.link) == {}
    found = world.dump()
    assert found[family.link.key] == family.link
    assert found[family.fdb(0).key] == family.fdb(0), "the device was made anew"
    world.become(family.overlay())
    assert world.become(family.overlay()) == 0


@pytest.mark.parametrize("change", [{"local": 1}, {"learning": True}])
def test_local_address_and_learning_change_in_place(world: Any, family: Family, change: dict[str, Any]) -> None:
    world.become(family.overlay())
    changes = {"local": family.remote(70)} if "local" in change else change
    wanted = replace(family.link, info=replace(family.info, **changes))
    assert world.write(wanted) == {}
    found = world.dump()
    assert found[wanted.key] == wanted
    assert [item for item in family.overlay()[1:] if found.get(item.key) != item] == []


@pytest.mark.parametrize("change", [{"vni": 2}, {"port": 8473}, {"gbp": True}])
def test_another_vni_port_or_gbp_makes_a_new_device(world: Any, family: Family, change: dict[str, Any]) -> None:
    world.become(family.overlay())
    world.quiet()
    wanted = replace(family.link, info=replace(family.info, **change))
    assert world.write(wanted) == {}
    assert world.until(lambda notice: notice.resync).resync
    found = world.dump()
    assert found[wanted.key] == wanted
    assert family.fdb(0).key not in found
    goal = [wanted, *family.overlay()[1:]]
    world.become(goal)
    assert world.become(goal) == 0


def test_an_unmarked_device_is_adopted_as_it_is(world: Any, family: Family) -> None:
    world.put(replace(family.link, marked=False))
    world.put(family.fdb(5))
    assert world.dump()[family.link.key] == replace(family.link, marked=False)
    assert world.write(family.link) == {}
    found = world.dump()
    assert found[family.link.key] == family.link
    assert found[family.fdb(5).key] == family.fdb(5)


def test_a_foreign_device_under_our_name_is_left_alone(world: Any, family: Family) -> None:
    foreign = Link(family.name, ForeignInfo("bridge"), 1500, "02:00:00:00:04:04", marked=False)
    world.put(foreign)
    world.put(Address(family.name, family.address.interface))
    found = world.dump()
    assert found[foreign.key] == foreign
    assert family.address.key not in found
    failures = world.port.apply(
        [Write(found[foreign.key], family.link), *(Write(None, i) for i in family.overlay()[1:])]
    )
    assert failures.keys() == {item.key for item in family.overlay()}
    assert "bridge" in str(failures[family.link.key])
    assert world.port.apply([Write(family.link, None)]).keys() == {family.link.key}
    assert world.dump() == found


def test_a_vni_in_use_is_named_and_the_rest_is_done(world: Any, family: Family) -> None:
    world.put(replace(family.link, name="other1", marked=False))
    forward = Sysctl("net/ipv4/ip_forward", "1")
    failures = world.write(forward, family.link)
    assert failures.keys() == {family.link.key}
    assert "other1" in str(failures[family.link.key])
    assert world.dump()[forward.key] == forward


def test_a_missing_underlay_fails_that_link_only(world: Any, family: Family) -> None:
    lost = replace(family.link, info=replace(family.info, underlay="eth9"))
    other = Route(family.subnet(1), "eth0", family.remote(1))
    failures = world.write(lost, family.address, other)
    assert failures.keys() == {lost.key, family.address.key}
    assert "eth9" in str(failures[lost.key])
    assert world.dump()[other.key] == other


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


def test_links_of_others_are_told(world: Any) -> None:
    world.dump()
    world.quiet()
    world.set_link("eth0", mtu=1400)
    assert world.until(lambda notice: "eth0" in notice.interfaces).changes == {}
    world.put(Link("br0", ForeignInfo("bridge"), 1500, "02:00:00:00:05:05"))
    world.until(lambda notice: "br0" in notice.interfaces)
    world.remove(Link("br0", ForeignInfo("bridge"), 1500))
    told = world.until(lambda notice: "br0" in notice.interfaces)
    assert not told.resync
    world.put(Address("eth0", ip_interface("192.0.2.9/24")))
    world.until(lambda notice: "eth0" in notice.interfaces)


def test_the_underlay_going_down_asks_for_a_dump_where_it_carries_routes(world: Any, family: Family) -> None:
    world.write(family.gateway_route(1))
    world.quiet()
    world.set_link("eth0", up=False)
    assert world.until(lambda notice: "eth0" in notice.interfaces).resync
    assert family.gateway_route(1).key not in world.dump()
    failures = world.port.apply([Write(None, family.gateway_route(1))])
    assert failures.keys() == {family.gateway_route(1).key}


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


@pytest.mark.parametrize("info", [TunInfo(), TunInfo(vnet_hdr=True), TunInfo(multi_queue=True, queue_length=2000)])
def test_tun_devices(world: Any, info: TunInfo) -> None:
    device = Link("flannel0", info, 1472)
    wanted: list[KernelObject] = [
        device,
        Address("flannel0", ip_interface("10.1.0.0/32")),
        Route(ip_network("10.0.0.0/8"), "flannel0"),
    ]
    world.become(wanted)
    assert world.become(wanted) == 0
    other = replace(device, info=TunInfo(not info.vnet_hdr, not info.multi_queue))
    assert world.write(other) == {}
    assert world.dump()[other.key] == other
    world.become([])
    assert not any(key[0] is not Kind.SYSCTL for key in world.dump())


def test_a_tun_device_s_queue_grows_in_place(world: Any) -> None:
    device = Link("flannel0", TunInfo(multi_queue=True, queue_length=1000), 1472)
    address = Address("flannel0", ip_interface("10.1.0.0/32"))
    world.become([device, address])
    longer = replace(device, info=TunInfo(multi_queue=True, queue_length=3000))
    assert world.write(longer) == {}
    found = world.dump()
    assert found[device.key] == longer
    assert found[address.key] == address  # a device that was made anew would have lost it


def macvlan(mode: str = "bridge", **changes: Any) -> Link:
    link = Link("mv0", GenericInfo("macvlan", "eth0", (("IFLA_MACVLAN_MODE", mode),)), 1500, "02:00:00:00:03:01")
    return replace(link, **changes)


def wanting(world: Any, *links: Link) -> Any:
    """A world whose port looks for these links."""
    world.scope = Scope(frozenset(link.name for link in links), frozenset(), {link.name: link for link in links})
    return world


def test_a_device_of_any_kind(world: Any) -> None:
    device = macvlan()
    wanted: list[KernelObject] = [
        device,
        Address("mv0", ip_interface("10.1.0.0/32")),
        Neighbour("mv0", ip_address("10.2.0.0"), "02:00:00:00:03:02"),
        Route(ip_network("10.2.0.0/24"), "mv0", ip_address("10.2.0.0"), onlink=True),
    ]
    wanting(world, device).become(wanted)
    assert world.dump() == {item.key: item for item in wanted}
    assert world.become(wanted) == 0
    world.become([])
    assert world.dump() == {}


@pytest.mark.parametrize(
    "other", [macvlan("private"), macvlan(mac="02:00:00:00:03:09"), macvlan(mtu=1400), macvlan(up=False)], ids=str
)
def test_a_generic_device_becomes_another_one(world: Any, other: Link) -> None:
    for wanted in (macvlan(), other, macvlan()):
        assert wanting(world, wanted).write(wanted) == {}
        assert world.dump()[wanted.key] == wanted
        assert world.become([wanted]) == 0


@pytest.mark.parametrize("drift", [macvlan("private", marked=False), macvlan(mtu=1400, marked=False)], ids=str)
def test_what_others_make_of_a_generic_device_is_told_and_put_right(world: Any, drift: Link) -> None:
    device = macvlan()
    wanting(world, device).become([device])
    world.quiet()
    world.remove(device)
    world.put(drift)
    told = world.until(lambda notice: getattr(notice.changes.get(device.key), "mtu", 0) == drift.mtu)
    assert told.resync
    assert world.dump()[device.key] == drift
    assert world.become([device]) == 1
    assert world.dump()[device.key] == device


def test_what_a_generic_link_does_not_name_is_the_kernels_choice(world: Any) -> None:
    device = Link("mv0", GenericInfo("macvlan", "eth0"), 1500)
    wanting(world, device).become([device])
    assert world.dump() == {device.key: device}
    world.set_link("mv0", mac="02:00:00:00:03:07")
    assert world.become([device]) == 0


def test_a_leftover_of_any_kind_is_ours_to_delete_and_an_unmarked_one_is_not(world: Any) -> None:
    device = macvlan()
    wanting(world, device).become([device])
    leftover = wanting(world).dump()
    assert leftover == {device.key: replace(device, info=GenericInfo("macvlan"))}
    assert world.port.apply([Write(leftover[device.key], None)]) == {}
    assert world.dump() == {}
    world.put(macvlan(marked=False))
    assert world.dump() == {}


@pytest.mark.parametrize("attribute", ["IFLA_VXLAN_COLLECT_METADATA", "IFLA_VXLAN_GROUP"])
def test_a_device_of_a_kind_with_fields_may_be_said_by_its_attributes(world: Any, attribute: str) -> None:
    """Whoever looks without wanting it, as a cleanup does, sees it and what is on it as ours; and it makes room."""
    said = (attribute, 1 if attribute.endswith("METADATA") else "192.0.2.9"), ("IFLA_VXLAN_PORT", 4790)
    ours = Link("flannel.1", GenericInfo("vxlan", None, (*said, ("IFLA_VXLAN_ID", 1))), 1400, "02:00:00:00:03:01")
    plan: list[KernelObject] = [ours, Address("flannel.1", ip_interface("10.1.0.0/32"))]
    plan.append(Neighbour("flannel.1", ip_address("10.2.0.0"), "02:00:00:00:03:02"))
    wanting(world, ours).become(plan)
    assert world.become(plan) == 0
    world.scope = Scope()
    assert world.dump() == {item.key: item for item in (replace(ours, info=GenericInfo("vxlan")), *plan[1:])}
    world.scope = Scope(frozenset({"flannel.1"}))
    assert world.write(Family(4).link) == {}
    assert world.dump()[ours.key] == Family(4).link
    world.become([])


def test_our_device_of_another_kind_makes_room_and_a_foreign_one_does_not(world: Any) -> None:
    tap = replace(macvlan(), info=GenericInfo("macvtap", "eth0", (("IFLA_MACVTAP_MODE", "bridge"),)))
    wanting(world, tap).become([tap])
    assert wanting(world, macvlan()).write(macvlan()) == {}
    assert world.dump() == {macvlan().key: macvlan()}
    world.become([])
    world.put(replace(tap, info=GenericInfo("macvtap", "eth0"), marked=False))
    (error,) = world.write(macvlan()).values()
    assert "mv0 is a macvtap device that is not ours" in str(error)


def test_a_generic_device_goes_with_what_it_sits_on_and_needs_it(world: Any) -> None:
    lost = macvlan(info=GenericInfo("macvlan", "eth9"))
    (error,) = wanting(world, lost).write(lost).values()
    assert "no interface eth9" in str(error)
    wanting(world, macvlan()).become([macvlan()])
    world.remove(Link("eth0", ForeignInfo("veth"), 1500))
    world.until(lambda notice: notice.changes.get(macvlan().key, 0) is None)
    assert world.dump() == {}


# what few backends say: places of links, tunnels, tables


def bridge(name: str = "br0") -> Link:
    """Larger than its members, whose MTU it must not take on."""
    return Link(name, GenericInfo("bridge"), 1500)


def test_a_link_joins_another_one_that_the_plan_makes(world: Any, family: Family) -> None:
    """In whatever order they are planned, and leaves it again for another or none."""
    one, other = bridge("br0"), bridge("br1")
    member = replace(family.link, master="br0", group=7)
    for wanted in (member, replace(member, master="br1"), replace(member, master="", group=0), member):
        plan = [wanted, other, one]
        wanting(world, *plan)
        assert world.write(*plan) == {}
        assert world.dump()[wanted.key] == wanted
        assert world.become(plan) == 0
    assert world.become([]) == 3


def test_what_a_link_is_part_of_is_not_our_business_unless_we_say_so(world: Any, family: Family) -> None:
    wanting(world, family.link, bridge()).become([family.link, bridge()])
    world.set_link(family.name, master="br0", group=7)
    assert world.dump()[family.link.key] == family.link
    assert world.become([family.link, bridge()]) == 0


@pytest.mark.parametrize("change", [{"master": ""}, {"master": "br1"}, {"group": 3}])
def test_a_link_that_somebody_moves_is_told_and_put_back(world: Any, family: Family, change: dict[str, Any]) -> None:
    plan = [replace(family.link, master="br0", group=7), bridge("br0"), bridge("br1")]
    wanting(world, *plan).become(plan)
    world.quiet()
    world.set_link(family.name, **change)
    moved = replace(plan[0], **change)
    told = world.until(lambda notice: notice.changes.get(moved.key) == moved)
    assert family.name in told.changes[moved.key].name
    assert world.become(plan) == 1
    assert world.dump()[plan[0].key] == plan[0]


def test_a_master_that_goes_sets_its_links_free_and_they_are_put_back(world: Any, family: Family) -> None:
    member = replace(family.link, master="br0")
    plan: list[KernelObject] = [member, bridge(), family.fdb(0)]
    wanting(world, member, bridge()).become(plan)
    world.quiet()
    world.remove(bridge())
    free = replace(member, master="")
    world.until(lambda notice: notice.changes.get(free.key) == free and bridge().key in notice.changes)
    assert world.become(plan) == 2
    assert world.dump() == {item.key: item for item in plan}, "the device was made anew"


def test_a_master_that_is_none_or_not_there_is_named(world: Any, family: Family) -> None:
    for master, reason in (("br9", "no interface br9"), ("eth0", "eth0 takes no other devices")):
        link = replace(family.link, master=master)
        (error,) = wanting(world, link).write(link).values()
        assert reason in str(error)
        world.become([])


def veth(name: str, end: str = "") -> Link:
    data = (("VETH_INFO_PEER", (("IFLA_IFNAME", end),)),) if end else ()
    return Link(name, GenericInfo("veth", None, data), 1400)


def test_a_pair_of_devices_comes_and_goes_together(world: Any) -> None:
    """Planned in either order, its ends in a bridge and with an address; a pair with another end is another one."""
    one, other = veth("v0", "v1"), replace(veth("v1"), master="br0")
    plan = [other, Address("v0", ip_interface("10.1.0.0/32")), bridge(), one]
    wanting(world, one, other, bridge())
    assert world.write(*plan) == {}
    assert world.become(plan) == 0
    assert {key: item for key, item in world.dump().items() if key[0] is Kind.LINK} == {
        item.key: item for item in (one, other, bridge())
    }
    world.quiet()
    world.remove(other)
    world.until(lambda notice: {notice.changes.get(item.key, item) for item in (one, other)} == {None})
    assert world.write(*plan) == {}
    assert world.become(plan) == 0
    longer = veth("v0", "v2")
    wanting(world, longer, bridge())
    assert world.become([longer, bridge()]) > 0
    assert world.dump() == {item.key: item for item in (longer, bridge())}


def test_a_kind_that_no_kernel_has_is_named(world: Any) -> None:
    if isinstance(world.port, NetlinkPort):
        link = Link("odd0", GenericInfo("no-such-kind"), 1400)
        (error,) = wanting(world, link).write(link).values()
        assert "this kernel has no no-such-kind devices" in str(error)


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


def test_close_leaves_everything_and_may_be_repeated(world: Any, family: Family) -> None:
    world.become(family.overlay())
    world.port.close()
    world.port.close()
    assert len(world.routes(family.version)) == 3


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
