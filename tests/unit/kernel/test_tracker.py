"""The tracker on the kernel's in-memory twin, which behaves and fails like the real one."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.plans import Plans

from pyflannel.errors import KernelError
from pyflannel.kernel.model import (
    ROUTE_PROTOCOL,
    XFRM_INTERFACES,
    Address,
    FdbEntry,
    ForeignInfo,
    GenericInfo,
    KernelObject,
    Key,
    Kind,
    Link,
    MplsRoute,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    Sysctl,
    VxlanInfo,
    XfrmPolicy,
)
from pyflannel.kernel.port import Scope, Write
from pyflannel.kernel.tracker import FIRST_RETRY, LAST_RETRY, ObjectState, Tracker
from pyflannel.kernel.twin import TwinPort

DEVICE = "flannel.1"
LOCAL = IPv4Address("192.0.2.1")
OWN_SUBNET = IPv4Network("10.5.1.0/24")
OWN: tuple[KernelObject, ...] = (
    Link(DEVICE, VxlanInfo(1, 8472, LOCAL, "eth0"), 1450, "02:00:00:00:00:01"),
    Address(DEVICE, IPv4Interface("10.5.1.0/32")),
    Sysctl("net/ipv4/ip_forward", "1"),
    Sysctl("net/ipv6/conf/flannel.1/accept_ra", "0", optional=True),
    Rule(4, 100, IPv4Network("10.5.0.0/16"), table=4711),
    Rule(6, 100, mark=7, inverted=True, table=4711),
    MplsRoute(4711, "lo"),
    (QDISC := Qdisc(DEVICE, "pfifo", (("limit", 100),))),
)


def peer(number: int, mac: int | None = None) -> tuple[KernelObject, ...]:
    subnet, text = IPv4Network(f"10.5.{number}.0/24"), f"02:00:00:00:00:{mac if mac is not None else number:02x}"
    return (
        Neighbour(DEVICE, subnet.network_address, text),
        FdbEntry(DEVICE, text, IPv4Address(f"192.0.2.{number}")),
        Route(subnet, DEVICE, subnet.network_address, onlink=True),
        XfrmPolicy(OWN_SUBNET, subnet, "out", XFRM_INTERFACES[0], LOCAL, IPv4Address(f"192.0.2.{number}")),
    )


def state(*objects: KernelObject) -> dict[Key, KernelObject]:
    return {item.key: item for item in objects}


class Faulty(TwinPort):
    """A twin that can't encode some objects."""

    unencodable: frozenset[Key] = frozenset()

    def apply(self, writes: Sequence[Write]) -> Mapping[Key, KernelError]:
        if any(write.key in self.unencodable for write in writes):
            raise struct.error("'I' format requires 0 <= number <= 4294967295")
        return super().apply(writes)


class World:
    """A tracker, its twin, and a clock that stands still unless moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.twin = Faulty(
            [Link("eth0", ForeignInfo("veth"), 1500)],
            addresses=[Address("eth0", IPv4Interface("192.0.2.1/24"))],
            sysctls={"net/ipv4/ip_forward": "0"},
        )
        self.tracker = Tracker(self.twin, lambda: self.now, random.Random(7))
        self.tracker.sweep = True

    def turn(self) -> int:
        """One turn of the agent's loop; returns how many writes were done."""
        self.tracker.observe(self.twin.poll())
        return self.tracker.reconcile().written

    def settle(self) -> None:
        """Turn until nothing is due any more, as time goes by; a kernel that can't be read is read again."""
        for _ in range(40):
            try:
                self.turn()
            except KernelError:
                self.tracker.request_resync()
            self.now = max(self.now, self.tracker.retry_at or 0)

    def kernel(self) -> dict[Key, KernelObject]:
        return self.twin.dump(Scope(frozenset({DEVICE}), frozenset({"net/ipv4/ip_forward"}), qdiscs={DEVICE: QDISC}))


@pytest.fixture
def world() -> World:
    world = World()
    world.tracker.follow(state(*OWN, *peer(2), *peer(3)))
    world.settle()
    return world


def required(*objects: KernelObject) -> dict[Key, KernelObject]:
    """What must be there: the twin has no parameters of a device of its own."""
    return state(*(item for item in objects if not (isinstance(item, Sysctl) and item.optional)))


def test_everything_wanted_is_written(world: World) -> None:
    assert world.kernel() == required(*OWN, *peer(2), *peer(3))
    assert {item.state for item in world.tracker.status()} == {ObjectState.DONE}


def test_a_second_reconciliation_writes_nothing(world: World) -> None:
    world.tracker.request_resync()
    assert world.turn() == 0


def test_a_then_b_then_a_is_a(world: World) -> None:
    before = world.kernel()
    world.tracker.follow(state(*OWN, *peer(2, mac=9), *peer(4)))
    world.settle()
    assert world.kernel() == required(*OWN, *peer(2, mac=9), *peer(4))
    world.tracker.follow(state(*OWN, *peer(2), *peer(3)))
    world.settle()
    assert world.kernel() == before


def test_one_changed_peer_costs_its_own_writes(world: World) -> None:
    wanted = state(*OWN, *peer(2), *peer(3))
    world.tracker.follow(wanted)
    wanted.update(state(*peer(4)))
    world.tracker.changed(dict.fromkeys(item.key for item in peer(4)))
    assert world.turn() == 4


@pytest.mark.parametrize("index", range(1, 3))
@pytest.mark.parametrize("part", range(4))
def test_what_others_remove_is_back_after_one_turn(world: World, index: int, part: int) -> None:
    before = world.kernel()
    world.twin.remove(peer(index + 1)[part].key)
    world.tracker.observe(world.twin.poll())
    outcome = world.tracker.reconcile()
    world.settle()
    assert world.kernel() == before
    assert [write.new for write in outcome.repaired] == [peer(index + 1)[part]]


def test_a_deleted_device_is_back_with_all_that_was_on_it(world: World) -> None:
    before = world.kernel()
    world.twin.remove(OWN[0].key)
    world.settle()
    assert world.kernel() == before


def test_what_goes_with_a_device_that_we_make_anew_is_nobody_s_doing(world: World) -> None:
    """A new VNI takes a new device; that all on it has to be written again is no drift."""
    other = Link(DEVICE, VxlanInfo(2, 8472, LOCAL, "eth0"), 1450, "02:00:00:00:00:01")
    plan = [other, *OWN[1:], *peer(2), *peer(3)]
    world.tracker.follow(state(*plan))
    repaired: list[Write] = []
    for _ in range(3):
        world.tracker.observe(world.twin.poll())
        repaired += world.tracker.reconcile().repaired
    assert world.kernel() == required(*plan)
    assert repaired == []


def test_lost_notifications_are_made_up_for(world: World) -> None:
    before = world.kernel()
    world.twin.remove(peer(2)[2].key)
    world.twin.lose_notifications()
    world.settle()
    assert world.kernel() == before


def test_nothing_is_swept_before_the_first_snapshot() -> None:
    world = World()
    world.tracker.follow(state(*OWN, *peer(2)))
    world.settle()
    later = Tracker(world.twin, lambda: world.now)
    later.follow(state(*OWN))
    later.reconcile()
    assert world.kernel() == required(*OWN, *peer(2))
    later.sweep = True
    later.reconcile()
    assert world.kernel() == required(*OWN)


@pytest.mark.parametrize("item", [*peer(3), OWN[1]], ids=lambda item: item.key[0].name)
def test_a_passing_refusal_is_made_up_for_at_once(item: KernelObject) -> None:
    world = World()
    world.tracker.follow(state(*OWN, *peer(2), *peer(3)))
    world.turn()
    world.twin.remove(item.key)
    world.twin.fail_next(item.key, errno.ENOBUFS)
    world.settle()
    assert world.kernel() == required(*OWN, *peer(2), *peer(3))


def test_what_is_refused_again_and_again_fails_alone_and_is_tried_less_often(world: World) -> None:
    route = peer(3)[2]
    world.twin.remove(route.key)
    for _ in range(2):
        world.twin.fail_next(route.key, errno.EACCES)
        world.turn()
    (status,) = [item for item in world.tracker.status() if item.state is ObjectState.FAILED]
    assert status.item == route
    assert "10.5.3.0/24" in status.error
    pauses = []
    for _ in range(9):
        due = world.tracker.retry_at
        assert due is not None
        pauses.append(due - world.now)
        assert world.turn() == 0, "not before it is due"
        world.now = due
        world.twin.fail_next(route.key, errno.EACCES)
        world.turn()
    assert all(FIRST_RETRY / 2 <= pause <= LAST_RETRY for pause in pauses)
    assert pauses[0] <= FIRST_RETRY
    assert sum(pauses) > 9 * FIRST_RETRY, "they grow"
    world.now = world.tracker.retry_at or 0
    world.settle()
    assert world.kernel() == required(*OWN, *peer(2), *peer(3))
    assert not world.tracker.failures


def test_what_waits_for_its_link_is_not_due_itself(world: World) -> None:
    route = peer(3)[2]
    world.twin.remove(route.key)
    for _ in range(2):
        world.twin.fail_next(route.key, errno.EACCES)
        world.turn()
    world.twin.remove(OWN[0].key)
    world.twin.fail_next(Kind.LINK, errno.EPERM, times=2)
    for _ in range(3):
        world.turn()
    assert list(world.tracker.failures) == [OWN[0].key]
    assert (world.tracker.retry_at or 0) > world.now, "else the loop would turn without a pause"
    world.now = world.tracker.retry_at or 0
    world.settle()
    assert world.kernel() == required(*OWN, *peer(2), *peer(3))


@pytest.mark.parametrize("hindrance", ["refused", "no device"])
def test_a_route_that_goes_waits_for_the_one_that_takes_its_place(world: World, hindrance: str) -> None:
    """Also where the two are not tried at the same time: each refusal has a pause of its own."""
    old, device = peer(3)[2], Link("other.1", GenericInfo("dummy"), 1450)
    assert isinstance(old, Route)
    new = Route(old.destination, device.name, metric=7)
    wanted = state(*OWN, *peer(2), *peer(3)[:2], peer(3)[3], device, new)
    kind = Kind.LINK if hindrance == "no device" else new.key
    world.twin.fail_next(kind, errno.EACCES, times=12)
    world.tracker.follow(wanted)
    for _ in range(8):
        world.turn()
        world.turn()  # a first refusal is tried again at once
        assert world.twin.routes.keys() >= {old.key}
        assert (world.tracker.retry_at or 0) > world.now, "or the loop would turn without a pause"
        world.tracker.changed({old.key: None})  # whatever was refused of it before counts no more
        world.turn()
        assert world.twin.routes.keys() >= {old.key}
        world.now = world.tracker.retry_at or 0
    world.settle()
    assert world.twin.routes.keys() & {old.key, new.key} == {new.key}
    assert not world.tracker.failures


def test_what_is_in_the_way_is_noticed_when_it_goes(world: World) -> None:
    route = peer(4)[2]
    foreign = Route(IPv4Network("10.5.4.0/24"), "eth0", IPv4Address("192.0.2.77"))
    world.twin.put(foreign)
    world.tracker.follow(state(*OWN, *peer(2), *peer(3), *peer(4)))
    for _ in range(3):
        world.turn()
    assert list(world.tracker.failures) == [route.key]
    world.twin.remove(foreign.key)
    world.turn()
    assert world.kernel()[route.key] == route


def test_a_dead_kernel_is_an_error_and_nothing_is_forgotten() -> None:
    world = World()
    world.tracker.follow(state(*OWN, *peer(2)))
    world.twin.dead = "no netlink here"
    with pytest.raises(KernelError, match="no netlink here"):
        world.tracker.reconcile()
    world.twin.dead = None
    world.settle()
    assert world.kernel() == required(*OWN, *peer(2))


CALLS = ["dump", *(kind for kind in Kind if kind not in (Kind.WIREGUARD, Kind.WIREGUARD_PEER))]


@pytest.fixture(params=[1, 2, 7], ids=["once", "twice", "for a while"])
def times(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=CALLS, ids=lambda call: getattr(call, "name", call))
def faulty(request: pytest.FixtureRequest, world: World, times: int) -> World:
    """A settled world in which the next calls of one kind fail."""
    if request.param == "dump":
        world.twin.interrupt_dumps(times)
    else:
        world.twin.fail_next(request.param, errno.EIO, times)
    return world


def test_changes_arrive_whatever_fails_meanwhile(faulty: World) -> None:
    link = Link(DEVICE, VxlanInfo(1, 8472, LOCAL, "eth0"), 1400, "02:00:00:00:00:01")
    wanted = (link, Address(DEVICE, IPv4Interface("10.5.1.1/32")), *OWN[2:], *peer(2, mac=9), *peer(4))
    faulty.twin.put(Sysctl("net/ipv4/ip_forward", "0"))
    faulty.tracker.follow(state(*wanted))
    faulty.settle()
    assert faulty.kernel() == required(*wanted)
    assert not faulty.tracker.failures
    assert faulty.turn() == 0


def test_a_deleted_device_comes_back_whatever_fails_meanwhile(faulty: World) -> None:
    before = required(*OWN, *peer(2), *peer(3))
    faulty.twin.remove(OWN[0].key)
    faulty.settle()
    assert faulty.kernel() == before
    assert not faulty.tracker.failures


def test_lost_notifications_are_made_up_for_whatever_fails_meanwhile(faulty: World) -> None:
    for item in peer(2):
        faulty.twin.remove(item.key)
    faulty.twin.lose_notifications()
    faulty.settle()
    assert faulty.kernel() == required(*OWN, *peer(2), *peer(3))


def always(world: World, minutes: float) -> int:
    """Turn with every notice and whenever something is due; how many turns wrote or tried something."""
    busy, end = 0, world.now + 60 * minutes
    while world.now < end and busy < 1000:
        before = len(world.twin.writes)
        world.turn()
        if len(world.twin.writes) == before:
            world.now = world.tracker.retry_at or end
        else:
            busy += 1
    return busy


@pytest.mark.parametrize("kind", CALLS[1:], ids=lambda kind: kind.name)
def test_what_always_fails_fails_alone_and_ever_less_often(kind: Kind) -> None:
    world = World()
    world.twin.fail_next(kind, errno.EIO, 10_000)
    world.tracker.follow(state(*OWN, *peer(2)))
    assert always(world, minutes=10) < 60
    assert {key[0] for key in world.tracker.failures} == {kind}
    on_it = {DEVICE} if kind is Kind.LINK else set()
    assert world.kernel() == {
        key: item
        for key, item in {**required(*OWN, *peer(2)), **state(Sysctl("net/ipv4/ip_forward", "0"))}.items()
        if key[0] is not kind and getattr(item, "link", None) not in on_it
    } | (state(Sysctl("net/ipv4/ip_forward", "0")) if kind is Kind.SYSCTL else state(OWN[2]))


VLAN = Link("vlan7", GenericInfo("vlan", "eth0", (("IFLA_VLAN_ID", 7),)), 1500)
ROUNDED: dict[str, tuple[Link | Sysctl, Link | Sysctl, str]] = {
    "an attribute of a generic device": (
        VLAN,
        replace(VLAN, info=GenericInfo("vlan", "eth0", (("IFLA_VLAN_ID", 8),))),
        "the kernel keeps data (('IFLA_VLAN_ID', 7),) as (('IFLA_VLAN_ID', 8),)",
    ),
    "an MTU": (replace(VLAN, mtu=1499), VLAN, "the kernel keeps mtu 1499 as 1500"),
    "a parameter": (
        Sysctl("net/ipv4/ip_forward", "1"),
        Sysctl("net/ipv4/ip_forward", "2"),
        "the kernel keeps value '1' as '2'",
    ),
}


@pytest.mark.parametrize(("wanted", "kept", "reason"), ROUNDED.values(), ids=ROUNDED.keys())
def test_what_the_kernel_keeps_in_another_way_is_named_and_not_made_again_and_again(
    wanted: Link | Sysctl, kept: Link | Sysctl, reason: str
) -> None:
    world = World()
    world.twin.keeps[wanted.key] = kept
    world.tracker.follow(state(wanted))
    assert always(world, minutes=10) < 40
    (failure,) = world.tracker.failures.values()
    assert reason in str(failure.error)
    assert failure.attempts < 40
    before = len(world.twin.writes)
    for _ in range(50):
        world.turn()
    assert len(world.twin.writes) <= before + 1, "its own notices don't end the pause"
    del world.twin.keeps[wanted.key]
    world.settle()
    assert not world.tracker.failures


def packed(*plans: tuple[KernelObject, ...]) -> Plans:
    """The node's own objects, and plans that are kept as bytes."""
    return Plans(OWN, *plans)


def as_objects(*plans: tuple[KernelObject, ...]) -> dict[Key, KernelObject]:
    return state(*OWN, *(item for plan in plans for item in plan))


@pytest.mark.parametrize("kept", [packed, as_objects])
def test_an_object_that_can_not_be_encoded_is_refused_alone(kept: Callable[..., Mapping[Key, KernelObject]]) -> None:
    world = World()
    bad = peer(3)[2]
    world.twin.unencodable = frozenset({bad.key})
    world.tracker.follow(kept(peer(2)[:3], peer(3)[:3], peer(4)[:3]))
    assert always(world, minutes=1) < 20
    wanted = required(*OWN, *peer(2)[:3], *peer(3)[:3], *peer(4)[:3])
    del wanted[bad.key]
    assert world.kernel() == wanted
    ((key, failure),) = world.tracker.failures.items()
    assert key == bad.key
    assert "can't encode route 10.5.3.0/24" in str(failure.error)


def test_a_foreign_device_that_goes_ends_the_pause() -> None:
    world = World()
    world.twin.put(Link(DEVICE, ForeignInfo("veth"), 1500))
    world.tracker.follow(state(*OWN))
    always(world, minutes=5)
    assert OWN[0].key in world.tracker.failures
    world.now += FIRST_RETRY
    world.twin.remove(OWN[0].key)
    world.turn()
    assert world.kernel()[OWN[0].key] == OWN[0]


def test_a_foreign_route_on_our_own_device_ends_the_pause_when_it_goes(world: World) -> None:
    foreign = Route(IPv4Network("10.5.4.0/24"), DEVICE)
    world.twin.put(foreign)
    world.tracker.follow(state(*OWN, *peer(4)))
    always(world, minutes=5)
    assert list(world.tracker.failures) == [peer(4)[2].key]
    world.now += FIRST_RETRY
    world.twin.remove(foreign.key)
    world.turn()
    assert world.kernel()[peer(4)[2].key] == peer(4)[2]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: getattr(call, "name", call))
def test_a_first_start_gets_there_whatever_fails_meanwhile(call: Kind | str, times: int) -> None:
    world, wanted = World(), packed(peer(2)[:3], peer(3)[:3])
    if isinstance(call, Kind):
        world.twin.fail_next(call, errno.EIO, times)
    else:
        world.twin.interrupt_dumps(times)
    world.tracker.follow(wanted)
    world.settle()
    assert world.kernel() == required(*wanted.values())
    assert not world.tracker.failures
    assert {item.state for item in world.tracker.status()} == {ObjectState.DONE}
    world.tracker.request_resync()
    assert world.turn() == 0


START = st.lists(st.tuples(st.integers(2, 6), st.integers(2, 6), st.integers(0, 2)), max_size=6)


@given(st.sets(st.integers(2, 5), max_size=3), START, st.none() | st.sampled_from(Kind), st.booleans())
def test_a_first_start_from_plans_is_one_from_objects(
    numbers: set[int], there: list[tuple[int, int, int]], fails: Kind | None, device: bool
) -> None:
    """Whatever is in the kernel already, of ours or otherwise."""
    outcomes = []
    for kept in (packed, as_objects):
        world = World()
        if device:
            world.twin.put(OWN[0])
            for number, mac, which in there:
                world.twin.put(peer(number, mac)[which], ROUTE_PROTOCOL)
        if fails is not None:
            world.twin.fail_next(fails, errno.EIO)
        world.tracker.follow(kept(*(peer(number)[:3] for number in sorted(numbers))))
        first = world.tracker.reconcile()
        # Of several of a kind, which one fails depends on the order.
        after = (world.kernel(), sorted(map(str, world.tracker.status()))) if fails is None else None
        outcomes.append((first, after, world.turn(), world.kernel()))
    assert outcomes[0] == outcomes[1]


PEERS = st.dictionaries(st.integers(2, 6), st.integers(2, 6), max_size=5).map(
    lambda macs: {number: mac for mac, number in {mac: number for number, mac in macs.items()}.items()}
)
STEPS = st.lists(st.tuples(PEERS, st.sampled_from(["", "drift", "fail", "lose"]), st.integers(0, 20)), max_size=8)


@given(STEPS)
def test_whatever_happens_the_kernel_ends_as_wanted(steps: list[tuple[dict[int, int], str, int]]) -> None:
    world = World()
    wanted = state(*OWN)
    world.tracker.follow(wanted)
    for peers, fault, pick in steps:
        wanted = state(*OWN, *(item for number, mac in peers.items() for item in peer(number, mac)))
        world.tracker.follow(wanted)
        keys = [key for key in world.kernel() if key[0] is not Kind.SYSCTL]
        if keys and fault == "drift":
            world.twin.remove(keys[pick % len(keys)])
        elif fault == "fail":
            world.twin.fail_next(list(Kind)[pick % len(Kind)], errno.EIO)
        elif fault == "lose":
            if keys:
                world.twin.remove(keys[pick % len(keys)])
            world.twin.lose_notifications()
        world.turn()
    for _ in range(6):
        world.now += LAST_RETRY
        world.turn()
    assert world.kernel() == required(*wanted.values())
    assert world.turn() == 0
