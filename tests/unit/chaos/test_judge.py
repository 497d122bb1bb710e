"""The judge of a run finds what was planted into a history that is sound without it, and nothing else."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.chaos.judge import FEW, LAG, MENDED, PROMISES, RENEWED, judge, unhindered
from tests.chaos.plan import DAEMON, PATH, PROMISE, STORE
from tests.chaos.record import ALL, Change, Claim, Death, Hindrance, History, Look, Sample
from tests.unit.chaos.histories import END, key, lease, outage, sound

from pyflannel.errors import ExitCode

Spoil = Callable[[History], None]


def _lost(history: History) -> None:
    history.outages.append(outage(100.0, 110.0))


def _lost_while_the_store_is_down(history: History) -> None:
    history.hindrances.append(Hindrance(ALL, "outage", STORE, 95.0, 120.0))
    _lost(history)


def _lost_while_a_daemon_is_down(history: History) -> None:
    history.hindrances.append(Hindrance("n3", "kill", DAEMON, 95.0, 120.0))
    _lost(history)


def _lost_long_after(history: History) -> None:
    history.outages.append(outage(40.0 + MENDED + 5.0, 120.0, "n1"))


def _lost_when_another_lease_went(history: History) -> None:
    history.changes += [Change(90.0, "10.244.77.0-24", lease("hostile-1")), Change(95.0, "10.244.77.0-24", None)]
    _lost_while_the_store_is_down(history)


def _never_again(history: History) -> None:
    history.outages[0] = replace(history.outages[0], end=40.0 + PROMISE + 5.0)


def _two_with_one_subnet(history: History) -> None:
    history.changes.append(Change(100.0, key(1), lease("n1") + lease("n2")))
    history.claims += [Claim(at, "n2", "n2", key(1)) for at in (200.0, 202.0, 204.0)]


def _overlapping(history: History) -> None:
    history.changes.append(Change(100.0, "10.244.0.0-20", lease("n4")))
    history.claims += [Claim(at, "n4", "n4", "10.244.0.0-20") for at in (200.0, 202.0, 204.0)]


def _unknown_to_the_store(history: History) -> None:
    history.claims += [Claim(at, "n4", "n4", "10.244.99.0-24") for at in (200.0, 202.0)]


def _written_over(history: History) -> None:
    """And the node goes on as if nothing had been."""
    history.changes.append(Change(200.0, key(4), lease("somebody")))


def _expired(history: History) -> None:
    history.changes += [Change(200.0, key(4), None), Change(201.0, key(4), lease("n4"))]


def _ended(history: History) -> None:
    history.deaths.append(Death(100.0, "n2", 1))


def _ended_for_want_of_descriptors(history: History) -> None:
    history.hindrances.append(Hindrance("n2", "descriptors", DAEMON, 95.0, 105.0))
    history.deaths.append(Death(100.0, "n2", 1))


def _ended_in_a_small_cgroup(history: History) -> None:
    history.hindrances.append(Hindrance("n2", "cgroup", DAEMON, 95.0, 105.0))
    history.deaths.append(Death(100.0, "n2", 1))


def _more(**values: Any) -> Spoil:
    def spoil(history: History) -> None:
        history.samples.append(replace(history.samples[-1], **values))

    return spoil


def _looked(promise: str) -> Spoil:
    return lambda history: history.looks.append(Look(END, "n1", promise, "it is so"))


PLANTED: dict[str, tuple[str, Spoil]] = {
    "packets are lost though nothing befell anybody": ("forwarding", _lost),
    "packets are lost because the store is down": ("forwarding", _lost_while_the_store_is_down),
    "packets are lost because a daemon is down": ("forwarding", _lost_while_a_daemon_is_down),
    "packets are lost long after a fault": ("forwarding", _lost_long_after),
    "packets are lost when a lease goes that is neither's": ("forwarding", _lost_when_another_lease_went),
    "a pair is not connected again": ("cut", _never_again),
    "two nodes have one subnet": ("shared", _two_with_one_subnet),
    "two nodes have subnets that overlap": ("shared", _overlapping),
    "a node has what the store doesn't know": ("held", _unknown_to_the_store),
    "a node has what somebody else has": ("held", _written_over),
    "a lease expires": ("expired", _expired),
    "a daemon ends": ("alive", _ended),
    "a daemon ends for want of descriptors": ("alive", _ended_for_want_of_descriptors),
    "a daemon ends by itself in a cgroup with little memory": ("alive", _ended_in_a_small_cgroup),
    "memory grows": ("busy", _more(memory=80 << 20)),
    "descriptors grow": ("busy", _more(descriptors=40)),
    "leases are left behind": ("busy", lambda history: history.stored.append((END, 60, 2 << 20))),
    "the store's disk fills": ("busy", lambda history: history.stored.append((END, 5, 200 << 20))),
    "threads grow": ("busy", _more(threads=20)),
    **{f"a look finds {name}": (name, _looked(name)) for name in ("drift", "quiet", "foreign", "hostile")},
}


def test_nothing_is_found_in_a_sound_history() -> None:
    assert judge(sound()) == []


def test_every_promise_is_checked() -> None:
    assert {promise for promise, _ in PLANTED.values()} == PROMISES.keys()


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str) -> None:
    promise, spoil = PLANTED[name]
    history = sound()
    spoil(history)
    assert {violation.promise for violation in judge(history)} == {promise}
    assert {violation.promise for violation in judge(History.from_json(history.to_json()))} == {promise}


def _few(history: History) -> None:
    history.outages.append(outage(100.0, 100.6, lost=FEW))


def _on_its_way(history: History) -> None:
    history.hindrances.append(Hindrance("n4", "delete", PATH, 99.0, 99.0))
    _lost(history)


def _mended_late(history: History) -> None:
    """Who has to mend it is down meanwhile."""
    history.hindrances += [Hindrance("n4", "delete", PATH, 99.0, 99.0), Hindrance("n4", "kill", DAEMON, 98.0, 190.0)]
    history.outages.append(outage(195.0, 200.0))


def _lapsed(history: History) -> None:
    """A node that the store could not be reached from was forgotten."""
    history.hindrances.append(Hindrance("n4", "partition", DAEMON, 80.0, 220.0))
    history.claims = [claim for claim in history.claims if claim.node != "n4" or not 190.0 < claim.at < 232.0]
    history.changes += [Change(200.0, key(4), None), Change(230.0, key(4), lease("n4"))]
    history.outages.append(outage(200.0, 232.0))


def _robbed(history: History) -> None:
    history.hindrances.append(Hindrance("n4", "rob", PATH, 99.9, 99.9))
    history.changes += [Change(100.0, key(4), None), Change(115.0, key(4), lease("n4"))]


def _hindered_until_its_end(history: History) -> None:
    history.hindrances.append(Hindrance("n4", "partition", DAEMON, 200.0 - RENEWED + 5.0, 200.0 - RENEWED + 10.0))
    history.changes += [Change(200.0, key(4), None), Change(201.0, key(4), lease("n4"))]


def _starved(history: History) -> None:
    history.hindrances.append(Hindrance("n2", "memory", DAEMON, 95.0, 105.0))
    history.deaths.append(Death(100.0, "n2", 1))


def _killed_by_the_kernel(history: History) -> None:
    history.hindrances.append(Hindrance("n2", "cgroup", DAEMON, 95.0, 105.0))
    history.deaths.append(Death(100.0, "n2", -signal.SIGKILL))


def _nothing_to_go_by(history: History) -> None:
    history.hindrances.append(Hindrance(ALL, "document", STORE, 95.0, 105.0))
    history.deaths.append(Death(100.0, "n2", ExitCode.CONFIG))


def _one_after_the_other(history: History) -> None:
    """A subnet that was n4's and is n3's."""
    history.claims = [claim for claim in history.claims if claim.node != "n4" or claim.at < 200.0]
    history.changes.append(Change(200.0 + LAG, key(4), lease("n3")))
    history.claims += [Claim(at, "n3", "n3", key(4)) for at in (215.0, 217.0)]


FORGIVEN: dict[str, Spoil] = {
    "few packets": _few,
    "a fault on the packets' way": _on_its_way,
    "mended as soon as somebody was there to do it": _mended_late,
    "a lease that could not be renewed": _lapsed,
    "a lease that was deleted": _robbed,
    "renewed as soon as that could be done": _hindered_until_its_end,
    "a daemon without memory": _starved,
    "a daemon that the kernel kills in a cgroup with little memory": _killed_by_the_kernel,
    "a daemon that starts when the document can't be read": _nothing_to_go_by,
    "a subnet that somebody else had before": _one_after_the_other,
}


@pytest.mark.parametrize("name", FORGIVEN)
def test_what_nobody_could_help_is_forgiven(name: str) -> None:
    history = sound()
    FORGIVEN[name](history)
    assert judge(history) == []


def test_a_new_life_is_measured_by_the_first_ones() -> None:
    history = sound()
    history.samples.append(Sample(END, "n2", 2, 40 << 20, 22, 9))
    assert judge(history) == []


def test_unhindered_is_what_lies_between_hindrances() -> None:
    history = sound()
    history.hindrances += [Hindrance(ALL, "outage", STORE, 35.0, 50.0), Hindrance("n2", "kill", DAEMON, 60.0, 70.0)]
    assert unhindered(history, ["n1"], 20.0, 80.0) == [(20.0, 30.0), (50.0, 80.0)]
    assert unhindered(history, ["n1", "n2"], 20.0, 65.0) == [(20.0, 30.0), (50.0, 60.0)]
    assert unhindered(history, ["n4"], 36.0, 49.0) == []
