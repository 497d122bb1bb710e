"""A plan of faults follows from its seed, and stays in its storms."""

from __future__ import annotations

import json

import pytest
from tests.chaos.plan import DAEMON, EVERYBODY, KINDS, PATH, PROMISE, STORE, Fault, Plan, draw

SEEDS = range(20)
STORES = ("etcd", "consul", "file")


@pytest.mark.parametrize("store", STORES)
def test_a_plan_follows_from_its_seed(store: str) -> None:
    plans = [draw(seed, store) for seed in SEEDS]
    assert plans == [draw(seed, store) for seed in SEEDS]
    assert len({plan.faults for plan in plans}) == len(plans)


@pytest.mark.parametrize("store", STORES)
def test_a_plan_comes_back_from_a_file(store: str) -> None:
    plan = draw(7, store, "udp", 6, 900)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize("minutes", [1, 3, 10, 60])
def test_before_every_look_is_a_calm_as_long_as_promised(minutes: int) -> None:
    for seed in SEEDS:
        plan = draw(seed, "file", seconds=60.0 * minutes)
        assert plan.seconds >= plan.looks[-1] >= plan.seconds - 1
        for begin, end in zip((0.0, *plan.looks), plan.looks, strict=False):
            between = [fault for fault in plan.faults if begin <= fault.at < end]
            assert minutes < 3 or between
            assert all(fault.at + fault.lasts <= end - PROMISE for fault in between)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("backend", ["vxlan", "udp", "wireguard"])
def test_every_kind_that_can_be_done_is_drawn_and_no_other(store: str, backend: str) -> None:
    drawn = {fault.kind for seed in range(5) for fault in draw(seed, store, backend, seconds=3600.0).faults}
    possible = {
        name for name, kind in KINDS.items() if store in kind.stores and (not kind.backends or backend in kind.backends)
    }
    assert drawn == possible


def test_only_what_was_asked_for_is_drawn() -> None:
    assert {fault.kind for fault in draw(1, "etcd", seconds=3600.0, kinds=["kill", "lock"]).faults} == {"kill"}


def test_two_faults_of_one_place_are_not_done_to_a_node_at_once() -> None:
    for seed in SEEDS:
        until: dict[tuple[int, str], float] = {}
        for fault in draw(seed, "etcd").faults:
            place = (fault.node, KINDS[fault.kind].place)
            assert not place[1] or until.get(place, 0.0) <= fault.at
            until[place] = fault.at + fault.lasts


def test_what_befalls_the_store_befalls_nobody_alone_and_late_nodes_are_left_until_they_are_there() -> None:
    for seed in SEEDS:
        plan = draw(seed, "consul")
        joined = dict(plan.joins)
        assert len(joined) == 2
        for fault in plan.faults:
            assert (KINDS[fault.kind].hinders == STORE) == (fault.node == EVERYBODY)
            assert fault.at > joined.get(fault.node, 0.0)


def test_a_kind_says_what_it_hinders() -> None:
    assert {kind.hinders for kind in KINDS.values()} == {PATH, DAEMON, STORE, ""}
    assert "for" in str(Fault(1.0, "kill", 0, 2.0, 3))
