"""Simulated clusters: a budget of histories in which all must hold, and bugs that must show."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.testing.simulation.planted import BUGS, swap

from pyflannel.errors import HistoryGoneError, StoreUnavailableError
from pyflannel.network.lease import Subnets
from pyflannel.planning.overlay import Overlay
from pyflannel.testing import simulation
from pyflannel.testing.simulation import (
    DOCUMENTS,
    FAULTS,
    INVARIANTS,
    ConsulModel,
    EtcdModel,
    Fault,
    FileModel,
    KubernetesModel,
    Plan,
    StoreModel,
    draw_plan,
    run,
    shrink,
)
from pyflannel.testing.simulation.agenda import Agenda

ROOT = Path(__file__).parents[4]
BUDGET = 10.0
"""Seconds for histories in which all holds; where a machine is slow there are fewer of them."""


def python(*arguments: str) -> str:
    """What a module of ours prints when it is run with hashes that are always the same."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": path}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_holds_in_a_budget_of_histories() -> None:
    said = python("pyflannel.testing.simulation", "0-99", "--seconds", str(BUDGET))
    assert " 0 violations" in said


def test_a_seed_makes_one_history() -> None:
    seeds = ("pyflannel.testing.simulation", "3", "10", "--digests")
    one, other = (python(*seeds).splitlines()[:2] for _ in range(2))
    assert one == other
    assert len(set(one)) == 2


def test_every_planted_bug_is_found() -> None:
    lines = [line.split("\t") for line in python("tests.unit.testing.simulation.table", "--known").splitlines()]
    assert [what for what, *_ in lines] == list(BUGS)
    assert len(BUGS) >= 20
    assert {what: name for what, _, name in lines if name not in INVARIANTS} == {}


def failing() -> Plan:
    """A plan in which a store that deletes too much shows it."""
    plan = draw_plan(0, stores=["etcd"], storms=1, calm=600.0)
    kinds = ("slow", "lossy", "rob", "cut", "delete", "crash")
    faults = tuple(Fault(60.0 + 7 * number, kind, number, 5.0, number) for number, kind in enumerate(kinds))
    return replace(plan, nodes=3, ttl=600.0, margin=120.0, faults=faults, calm=((300.0, 600.0),))


class Forgetful(EtcdModel):
    """A store where deleting one lease deletes them all."""

    def remove(self, key: str) -> None:
        for each in [each for each in self.records() if each != "config"]:
            super().remove(each)


def forgetful(plan: Plan, rng: random.Random) -> StoreModel:
    return Forgetful(rng)


def test_a_failing_history_is_shrunk_to_the_fault_that_matters() -> None:
    outcome = run(failing(), forgetful)
    assert outcome.violation is not None
    shortest = shrink(outcome, forgetful)
    assert [fault.kind for fault in shortest.plan.faults] == ["rob"]
    assert shortest.violation is not None
    assert shortest.violation.name == outcome.violation.name
    assert run(shortest.plan, forgetful).digest == shortest.digest
    assert "rob" in shortest.report()


CROSSING = {380: 263955581, 739: 336435245}
"""Seeds, and the number from which a fault of theirs drew a lease that crosses a living node's in one family."""


@pytest.mark.parametrize("seed", CROSSING)
def test_a_lease_that_somebody_writes_takes_nothing_from_a_living_node(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = Fault(30.0, "hostile", 0, 40.0, CROSSING[seed])
    [node] = {fault.node for fault in draw_plan(seed).faults if fault.draw == hostile.draw}
    plan = replace(draw_plan(seed), faults=(replace(hostile, node=node),), calm=((200.0, 260.0),))
    assert run(plan).violation is None
    swap(monkeypatch, Overlay, "put", lambda right: lambda self, key, value, created: right(self, key, value))
    by_address = run(plan).violation
    assert by_address is not None
    assert by_address.name == "forwarding"


@pytest.mark.parametrize("draw", range(4))
def test_who_hears_late_of_what_was_done_to_a_lease_is_forgiven(draw: int) -> None:
    """Somebody writes into a lease in the last minutes of an outage, and so all hear of it at its end."""
    faults = (Fault(60.0, "outage", 0, 180.0, 1), Fault(62.0, "scribble", 2, 0.5, draw))
    plan = draw_plan(0, stores=["etcd"], documents=DOCUMENTS[:1])
    assert (
        run(replace(plan, nodes=3, ttl=3600.0, margin=600.0, faults=faults, calm=((420.0, 600.0),))).violation is None
    )


def test_a_node_in_whose_place_a_lease_was_written_has_time_from_when_that_is_gone() -> None:
    """A lease claims a node's address, and the node is robbed of its own: until the other one goes, it waits."""
    plan = draw_plan(29, stores=["file"])
    faults = (Fault(60.0, "hostile", 1, 164.1, 684260450), Fault(110.0, "rob", 1, 0.1, 1))
    outcome = run(replace(plan, nodes=3, faults=faults, calm=((400.0, 460.0),)))
    assert outcome.violation is None
    said = [line for line in outcome.lines if "node-2: create" in line]
    assert float(said[-1].split()[0]) > 200.0


def test_an_operator_does_not_wait_for_a_copy_of_a_machine_that_has_left() -> None:
    plan = draw_plan(5579, stores=["file"])
    kept = tuple(fault for fault in plan.faults if fault.draw in (1030235851, 116709073))
    assert [fault.kind for fault in kept] == ["clone", "change"]
    outcome = run(replace(plan, faults=kept))
    assert outcome.violation is None
    assert any("the change is over: done" in line for line in outcome.lines)


def test_a_node_that_a_peer_has_not_heard_of_yet_has_no_connection_that_a_change_could_take_away() -> None:
    """It joins in the middle, and goes over to a backend that takes nothing from strangers."""
    plan = draw_plan(20159, stores=["file"])
    kept = tuple(fault for fault in plan.faults if fault.draw in (788682446, 579119925))
    assert [fault.kind for fault in kept] == ["link-down", "change"]
    assert run(replace(plan, faults=kept, calm=((240.0, 300.0),))).violation is None


def test_a_node_whose_kernel_refuses_has_time_from_when_it_did_so_last() -> None:
    """Up to ten times, each after a longer pause; the fault itself was over before the node could write anything."""
    plan = draw_plan(60022, stores=["etcd"])
    kept = tuple(fault for fault in plan.faults if fault.draw in (510270328, 45786652, 176764330))
    assert [fault.kind for fault in kept] == ["freeze", "refuse", "refuse"]
    assert run(replace(plan, faults=kept, calm=((4200.0, 4260.0),))).violation is None


def test_a_node_may_still_know_of_a_lease_that_has_expired_just_now() -> None:
    """A directory is looked at every second; this lease ended 0.6 s before all was compared."""
    plan = draw_plan(900760, stores=["file"])
    kept = tuple(fault for fault in plan.faults if fault.draw in (218495278, 515936554, 959130312))
    assert [fault.kind for fault in kept] == ["change", "scribble", "replace"]
    assert run(replace(plan, faults=kept, calm=((2280.0, 2340.0),))).violation is None


def test_a_kernel_that_refuses_long_after_the_fault_is_tried_again() -> None:
    """Nothing was written for an hour; the next write, which removes a node that is gone, came just before the look."""
    plan = draw_plan(3100427, stores=["file"])
    kept = tuple(fault for fault in plan.faults if fault.draw in (365795397, 247991892))
    assert [fault.kind for fault in kept] == ["replace", "refuse"]
    assert run(replace(plan, faults=kept, calm=plan.calm[:2])).violation is None


def test_a_daemon_that_starts_has_the_nodes_that_have_just_come() -> None:
    """Its predecessor led to a node that came 0.8 s before."""
    plan = draw_plan(6000389, stores=["kubernetes"])
    kept = tuple(fault for fault in plan.faults if fault.draw in (379072604, 903220282))
    assert [fault.kind for fault in kept] == ["cut", "crash"]
    assert run(replace(plan, faults=kept, calm=plan.calm[:1])).violation is None


@pytest.mark.parametrize("store", ["consul", "etcd", "file"])
def test_a_node_whose_subnet_went_to_another_one_while_it_was_frozen_is_started_anew(store: str) -> None:
    """Of three subnets all are leased; the node that joins gets the one whose lease ends first (seed 1100133)."""
    document = '{"Network": "10.5.0.0/22", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}'
    faults = Fault(30.0, "freeze", 0, 130.0, 1), Fault(60.0, "replace", 1, 0.1, 2)
    plan = draw_plan(1, stores=[store], documents=[document])
    outcome = run(replace(plan, nodes=3, ttl=60.0, margin=20.0, faults=faults, calm=((400.0, 460.0),)))
    assert outcome.violation is None
    assert any("operator: starts node-1 anew: our subnet 10.5.1.0/24 was lost" in line for line in outcome.lines)


def test_a_network_is_changed_while_it_runs_and_some_changes_are_turned_round() -> None:
    plan = replace(draw_plan(0, stores=["etcd"], documents=DOCUMENTS[:1]), nodes=3, ttl=3600.0, margin=600.0)
    outcomes = set()
    for draw in range(10):
        outcome = run(replace(plan, faults=(Fault(30.0, "change", 0, 0.0, draw),), calm=((200.0, 260.0),)))
        assert outcome.violation is None
        said = [line.rpartition(" ")[2] for line in outcome.lines if "operator: " in line]
        outcomes.add((said[0], said[-1]))
    assert outcomes >= {("host-gw", "done"), ("memory", "done"), ("secret", "done")}
    assert "back" in {end for _, end in outcomes}


def test_plans_have_all_kinds_of_faults_and_stores() -> None:
    plans = [draw_plan(seed) for seed in range(200)]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(FAULTS)
    assert {plan.store for plan in plans} == {"etcd", "consul", "file", "kubernetes"}
    assert all(fault.at + fault.lasts < plan.seconds for plan in plans for fault in plan.faults)


def test_time_stands_still_while_something_happens() -> None:
    agenda = Agenda()
    seen: list[tuple[float, str]] = []
    agenda.after(3600.0, lambda: seen.append((agenda.now, "later")))
    agenda.after(0.0, lambda: agenda.after(0.0, lambda: seen.append((agenda.now, "at once"))))
    begin = agenda.now
    while agenda.step(begin + 3600.0):
        pass
    assert seen == [(begin, "at once"), (begin + 3600.0, "later")]


def test_an_etcd_of_the_model_forgets_history_and_gives_leases_time_again() -> None:
    model = EtcdModel(random.Random(1))
    store = model.open("one")
    revision = store.snapshot().revision
    store.create("10.5.1.0-24", "{}", 60.0)
    assert [change.key for change in store.told(revision).changes] == ["10.5.1.0-24"]
    model.advance(50.0)
    model.change_leader(random.Random(1))
    model.advance(100.0)
    assert len(store.snapshot().leases) == 1
    model.advance(112.0)
    assert store.snapshot().leases == ()
    model.compact(random.Random(1))
    with pytest.raises(HistoryGoneError):
        store.told(revision)


def test_a_consul_of_the_model_ends_sessions_late_and_delays_locks_if_told_to() -> None:
    model = ConsulModel(random.Random(1), lock_delay=15.0)
    store = model.open("one")
    store.create("10.5.1.0-24", "{}", 60.0)
    model.advance(60.0)
    assert len(store.snapshot().leases) == 1
    model.advance(120.0)
    assert store.snapshot().leases == ()
    with pytest.raises(StoreUnavailableError):
        store.create("10.5.1.0-24", "{}", 60.0)
    model.advance(136.0)
    store.create("10.5.1.0-24", "{}", 60.0)


def test_a_node_of_the_file_model_sees_late_what_others_write_but_not_under_the_lock() -> None:
    model = FileModel(random.Random(1), lag=3.0)
    store, other = model.open("one"), model.open("other")
    revision = store.snapshot().revision
    other.create("10.5.1.0-24", "{}", 60.0)
    assert store.told(revision).changes == ()
    assert len(store.snapshot().leases) == 1
    model.advance(3.0)
    assert [change.key for change in store.told(revision).changes] == ["10.5.1.0-24"]


def test_a_driver_of_the_kubernetes_model_is_first_told_what_there_is_and_may_go_on_with_an_old_list_later() -> None:
    """The driver asks for the most recent state, and goes on with a list that takes longer than a call."""
    model = KubernetesModel(random.Random(1), [Subnets.from_key("10.5.1.0-24"), Subnets.from_key("10.5.2.0-24")])
    model.admit("one")
    model.advance(10.0)
    model.admit("other")
    for _ in range(20):
        assert len(model.open("one").snapshot().leases) == 2
    store = model.open("one")
    assert {len(store.snapshot().leases) for _ in range(20)} == {1, 2}


def test_an_ending_has_its_former_name_too() -> None:
    assert simulation.Outcome is simulation.Ending
