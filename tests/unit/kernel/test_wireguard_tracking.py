"""WireGuard's device and peers under the tracker, on the kernel's in-memory twin."""

from __future__ import annotations

import errno
from base64 import b64encode
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.kernel.model import (
    Address,
    Endpoint,
    ForeignInfo,
    GenericInfo,
    KernelObject,
    Key,
    Kind,
    Link,
    Route,
    WireguardDevice,
    WireguardPeer,
)
from pyflannel.kernel.port import Scope
from pyflannel.kernel.tracker import Tracker
from pyflannel.kernel.twin import TwinPort
from pyflannel.small.secret import Secret

DEVICE = "flannel-wg"
LINK = Link(DEVICE, GenericInfo("wireguard"), 1420)
ELSEWHERE = Endpoint(IPv4Address("198.51.100.9"), 4444)


def device(key: int = 1, port: int = 51820) -> WireguardDevice:
    return WireguardDevice(DEVICE, Secret(bytes([key * 8] * 31 + [64])), port)


def own(**changes: Any) -> tuple[KernelObject, ...]:
    network = IPv4Network("10.5.0.0/16")
    return (LINK, device(**changes), Address(DEVICE, IPv4Interface("10.5.1.0/32")), Route(network, DEVICE))


def peer(number: int, key: int | None = None, **changes: Any) -> WireguardPeer:
    text = b64encode((key or number).to_bytes(32, "big")).decode()
    values: dict[str, Any] = {
        "allowed_ips": (IPv4Network(f"10.5.{number}.0/24"),),
        "endpoint": Endpoint(IPv4Address(f"192.0.2.{number}"), 51820),
        **changes,
    }
    return WireguardPeer(DEVICE, text, **values)


def state(*objects: KernelObject) -> dict[Key, KernelObject]:
    return {item.key: item for item in objects}


class World:
    """A tracker on a twin, with a clock that stands still."""

    def __init__(self, *wanted: KernelObject) -> None:
        self.twin = TwinPort(
            [Link("eth0", ForeignInfo("veth"), 1500)], [Address("eth0", IPv4Interface("192.0.2.1/24"))]
        )
        self.tracker = Tracker(self.twin, lambda: 100.0)
        self.tracker.sweep = True
        self.want(*wanted)

    def want(self, *objects: KernelObject) -> None:
        self.tracker.follow(state(*objects))
        self.settle()

    def turn(self) -> int:
        self.tracker.observe(self.twin.poll())
        return self.tracker.reconcile().written

    def settle(self) -> None:
        for _ in range(5):
            self.turn()

    def kernel(self) -> dict[Key, KernelObject]:
        return self.twin.dump(Scope(frozenset({DEVICE}), generic={DEVICE: LINK}, wireguard=frozenset({DEVICE})))


@pytest.fixture
def world() -> World:
    return World(*own(), peer(2), peer(3))


def test_device_and_peers_are_written_once(world: World) -> None:
    assert world.kernel() == state(*own(), peer(2), peer(3))
    world.tracker.request_resync()
    assert world.turn() == 0


def test_peers_come_before_the_routes_to_them(world: World) -> None:
    kinds = [write.key[0] for write in world.twin.writes]
    assert kinds[0] is Kind.LINK
    assert sorted(kinds) == sorted(kinds, key=int)
    assert Kind.WIREGUARD < Kind.WIREGUARD_PEER < Kind.ROUTE


@pytest.mark.parametrize("item", [peer(2), *own()], ids=lambda item: item.key[0].name)
def test_what_others_remove_comes_back(world: World, item: KernelObject) -> None:
    before = world.kernel()
    world.twin.remove(item.key)
    world.settle()
    assert world.kernel() == before


@pytest.mark.parametrize(
    "other",
    [
        device(key=5),
        device(port=1),
        peer(2, keepalive=7),
        peer(2, preshared_key=Secret(bytes(range(32)))),
        peer(2, allowed_ips=()),
    ],
    ids=["key", "port", "keepalive", "psk", "allowed-ips"],
)
def test_what_others_change_is_put_right(world: World, other: WireguardDevice | WireguardPeer) -> None:
    before = world.kernel()
    world.twin.put(other)
    assert world.twin.wireguard[other.key] != before[other.key]
    world.settle()
    assert world.kernel() == before


def test_a_stranger_among_the_peers_is_swept(world: World) -> None:
    before = world.kernel()
    world.twin.put(peer(9))
    world.settle()
    assert world.kernel() == before


def test_a_roamed_peer_stays_where_it_is_until_its_lease_changes(world: World) -> None:
    world.twin.roam(peer(2).key, ELSEWHERE)
    world.tracker.request_resync()
    assert world.turn() == 0
    assert world.twin.learned == {peer(2).key: ELSEWHERE}
    world.want(*own(), peer(2, keepalive=5), peer(3))
    assert world.twin.learned == {peer(2).key: ELSEWHERE}, "another change is no reason"
    moved = peer(2, keepalive=5, endpoint=Endpoint(IPv4Address("192.0.2.77"), 51820))
    world.want(*own(), moved, peer(3))
    assert not world.twin.learned


def test_a_refused_peer_fails_alone(world: World) -> None:
    for _ in range(9):
        world.twin.fail_next(peer(4).key, errno.EINVAL)
    world.want(*own(), peer(2), peer(3), peer(4), peer(5))
    assert world.tracker.failures.keys() == {peer(4).key}
    assert peer(5).key in world.kernel()


def test_a_new_key_takes_over_the_subnet_without_a_gap(world: World) -> None:
    world.twin.writes.clear()
    world.want(*own(), peer(2, key=77), peer(3))
    assert world.kernel() == state(*own(), peer(2, key=77), peer(3))
    assert world.tracker.failures == {}


def test_of_a_wireguard_device_that_is_not_ours_to_set_nothing_is_reported() -> None:
    world = World(LINK)
    world.twin.put(device())
    world.twin.put(peer(2))
    world.settle()
    assert world.twin.wireguard, "a plugin that plans the link alone sets it up by itself"


def test_a_kernel_without_wireguard_names_the_way_out() -> None:
    world = World()
    world.twin.fail_next(LINK.key, errno.EOPNOTSUPP, times=9)
    world.want(*own())
    (failure,) = world.tracker.failures.values()
    assert "userspace" in str(failure.error)
    assert "modprobe wireguard" in str(failure.error)


plans = st.dictionaries(
    st.integers(2, 6),
    st.builds(
        lambda key, keepalive, port: {
            "key": key,
            "keepalive": keepalive,
            "endpoint": Endpoint(IPv4Address("192.0.2.9"), port),
        },
        st.integers(10, 14),
        st.sampled_from([0, 25]),
        st.integers(1, 3),
    ),
    max_size=5,
)


def planned(plan: dict[int, dict[str, Any]], device_key: int) -> tuple[KernelObject, ...]:
    """Of peers with one key, which no overlay lets through, the first."""
    found: dict[Key, KernelObject] = {}
    for number, values in plan.items():
        item = peer(number, **values)
        found.setdefault(item.key, item)
    return (*own(key=device_key), *found.values())


@given(st.lists(st.tuples(plans, st.integers(1, 3)), min_size=2, max_size=4), st.data())
def test_any_plan_after_any_other_is_reached_whatever_fails(
    steps: list[tuple[dict[int, dict[str, Any]], int]], data: st.DataObject
) -> None:
    world = World()
    try:
        for plan, key in [*steps, steps[0]]:
            wanted = planned(plan, key)
            failing = data.draw(st.sampled_from([None, *Kind]))
            if failing is not None:
                world.twin.fail_next(failing, errno.ENOBUFS)
            world.want(*wanted)
            assert world.kernel() == state(*wanted)
            world.tracker.request_resync()
            assert world.turn() == 0
            world.twin._failing.clear()
    finally:
        world.twin.close()
