"""Devices on the kernel in memory and on a real one: made, changed in place or anew, and whose they are."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from tests.integration.kernel.objects import Family, bridge, wanting

from pyflannel.kernel.model import (
    Address,
    ForeignInfo,
    GenericInfo,
    KernelObject,
    Kind,
    Link,
    Neighbour,
    Route,
    Sysctl,
    TunInfo,
)
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import Scope, Write


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


def test_what_a_link_is_part_of_is_not_our_business_if_the_plan_says_so(world: Any, family: Family) -> None:
    link = replace(family.link, master=None)
    wanting(world, link, bridge()).become([link, bridge()])
    world.set_link(family.name, master="br0", group=7)
    assert world.dump()[link.key] == link
    assert world.become([link, bridge()]) == 0


def test_a_device_that_somebody_puts_into_a_bridge_is_told_and_comes_out(world: Any, family: Family) -> None:
    """Where it stays, the bridge takes what arrives there. Nobody has to say so in a plan."""
    plan: list[KernelObject] = [family.link, *family.peer(0)]
    world.become(plan)
    world.put(replace(bridge(), marked=False))
    world.quiet()
    world.set_link(family.name, master="br0")
    moved = replace(family.link, master="br0")
    world.until(lambda notice: notice.changes.get(moved.key) == moved)
    assert world.dump()[moved.key] == moved
    assert world.become(plan) == 1
    found = world.dump()
    assert [found[item.key] for item in plan] == plan, "the device was made anew"
    assert world.become(plan) == 0


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
