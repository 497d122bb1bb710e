"""Before ordinary programs while it has to wait for them, and only then."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from pyflannel_backends.userspace.precedence import Lingering, Load, Precedence, read_load


class Machine:
    """A machine of two processors, and what was asked of its scheduler."""

    def __init__(self) -> None:
        self.load = Load(100.0, 3.0, 1.0, 50.0)
        self.carried = 5_000_000
        self.asked: list[bool] = []
        self.grants = True
        self.is_readable = True

    def take(self, first: bool) -> bool:
        self.asked.append(first)
        return first and self.grants

    def read(self) -> Load:
        if not self.is_readable:
            raise OSError("no descriptor is left")
        return self.load

    def made(self, wanted: bool = True) -> Precedence:
        held = Precedence(wanted, self.read, self.take, processors=2)
        held.look(self.carried)
        return held

    def second(self, ran: float, waited: float, idle: float, carried: int = 1000) -> None:
        before = self.load
        self.load = Load(before.now + 1, before.ran + ran, before.waited + waited, before.idle + idle)
        self.carried += carried

    def competing(self, held: Precedence, carried: int = 1000) -> bool:
        """Two seconds beside many others; whether it is held."""
        for _ in range(2):
            self.second(0.1, 0.5, 0.0, carried)
            held.look(self.carried)
        return held.is_held


@pytest.mark.parametrize(
    ("ran", "waited", "idle", "taken"),
    [
        (0.0, 0.0, 2.0, False),
        (0.4, 0.22, 0.0, False),  # a stream whose programs and workers share two processors with nobody
        (0.23, 0.31, 0.0, False),
        (0.13, 0.45, 0.0, True),
        (0.1, 0.61, 0.0, True),
        (0.001, 0.14, 0.0, True),  # pings beside many others
        (0.0001, 0.0009, 1.9, False),  # a few packets: nothing to win
    ],
)
def test_it_is_taken_by_who_waits_for_most_of_its_time(ran: float, waited: float, idle: float, taken: bool) -> None:
    machine = Machine()
    held = machine.made()
    seen = []
    for _ in range(2):
        machine.second(ran, waited, idle)
        seen.append(held.look(machine.carried))
    assert seen == [False, taken]
    assert machine.asked == [True] * taken


def test_one_second_of_waiting_is_no_reason() -> None:
    machine = Machine()
    held = machine.made()
    for waited in (0.5, 0.0, 0.5, 0.0):
        machine.second(0.1, waited, 0.0)
        assert not held.look(machine.carried)
    assert machine.asked == []


def test_it_is_given_up_when_a_processor_is_idle() -> None:
    machine = Machine()
    held = machine.made()
    assert machine.competing(held)
    machine.second(0.7, 0.0, 0.4)
    assert held.look(machine.carried)
    machine.second(0.7, 0.0, 0.6)
    assert not held.look(machine.carried)
    assert machine.competing(held)
    assert machine.asked == [True, False, True]


def test_it_is_found_out_afresh_every_minute() -> None:
    machine = Machine()
    held = machine.made()
    seen = [machine.competing(held)]
    for _ in range(60):
        machine.second(0.7, 0.0, 0.0)
        seen.append(held.look(machine.carried))
    assert seen == [True] * 60 + [False]
    assert machine.competing(held)


@pytest.mark.parametrize(
    ("before", "since", "kept"),
    [
        (8_000_000, 6_000_000, False),  # four streams that have the machine to themselves
        (3_800_000, 5_200_000, True),  # a stream beside four busy programs
        (1000, 1000, True),  # pings
        (8_000_000, 7_500_000, True),  # no more than from one second to the next
        (8_000_000, 100_000, True),  # the stream has ended
        (0, 0, True),
    ],
)
def test_it_is_given_up_by_who_carries_less_with_it(before: int, since: int, kept: bool) -> None:
    machine = Machine()
    held = machine.made()
    assert machine.competing(held, before)
    machine.second(0.7, 0.0, 0.0, since)
    assert held.look(machine.carried) is kept
    machine.second(0.7, 0.0, 0.0, since * 3 // 4)  # it is judged once
    assert held.look(machine.carried) is kept


def seconds_until_taken(machine: Machine, held: Precedence, carried: int) -> int:
    for number in range(1, 200):
        machine.second(0.1, 0.5, 0.0, carried)
        if held.look(machine.carried):
            return number
    raise AssertionError("never")


def test_who_has_lost_by_it_tries_again_later_and_later() -> None:
    machine = Machine()
    held = machine.made()
    rests = []
    for _ in range(5):
        rests.append(seconds_until_taken(machine, held, 8_000_000))
        machine.second(0.7, 0.0, 0.0, 6_000_000)
        assert not held.look(machine.carried)
    assert rests == [2, 10, 20, 40, 60]


def test_who_has_won_by_it_begins_with_a_short_rest_again() -> None:
    machine = Machine()
    held = machine.made()
    for carried in (6_000_000, 9_000_000):
        seconds_until_taken(machine, held, 8_000_000)
        machine.second(0.7, 0.0, 0.0, carried)
        held.look(machine.carried)
    assert held.is_held
    machine.second(0.0, 0.0, 2.0)
    assert not held.look(machine.carried)
    seconds_until_taken(machine, held, 8_000_000)
    machine.second(0.7, 0.0, 0.0, 6_000_000)
    assert not held.look(machine.carried)
    assert seconds_until_taken(machine, held, 8_000_000) == 10


def test_who_does_not_want_it_never_asks() -> None:
    machine = Machine()
    held = machine.made(wanted=False)
    assert not machine.competing(held)
    assert machine.asked == []


QUIETLY, NOWHERE = Lingering(0.005, True), Lingering(math.inf, True)


@pytest.mark.parametrize("wanted", [True, False])
def test_it_lingers_on_a_quiet_machine(wanted: bool) -> None:
    machine = Machine()
    held = machine.made(wanted)
    seen = [held.lingering]
    for idle in (2.0, 1.5, 1.4, 0.0, 1.9):
        machine.second(0.01, 0.0, idle)
        held.look(machine.carried)
        seen.append(held.lingering)
    assert seen == [NOWHERE, QUIETLY, QUIETLY, NOWHERE, NOWHERE, QUIETLY]


def test_with_the_precedence_it_lingers_and_yields_to_nobody() -> None:
    machine = Machine()
    held = machine.made()
    assert machine.competing(held)
    assert held.lingering == Lingering(0.001, False)


def test_where_the_load_can_not_be_read_it_does_not_linger() -> None:
    machine = Machine()
    held = machine.made()
    machine.second(0.0, 0.0, 2.0)
    held.look(machine.carried)
    machine.is_readable = False
    held.look(machine.carried)
    assert held.lingering == NOWHERE


def test_without_the_right_it_is_not_held() -> None:
    machine = Machine()
    machine.grants = False
    held = machine.made()
    assert not machine.competing(held)
    assert machine.asked == [True]


def test_what_can_not_be_read_changes_nothing() -> None:
    machine = Machine()
    held = machine.made()
    assert machine.competing(held)
    machine.is_readable = False
    machine.second(0.0, 0.0, 2.0)
    assert held.look(machine.carried)
    machine.is_readable = True
    machine.second(0.0, 0.0, 2.0)
    assert held.look(machine.carried)
    machine.second(0.0, 0.0, 2.0)
    assert not held.look(machine.carried)


def test_the_kernel_is_asked() -> None:
    """In a child, since the scheduling of the tests is not this test's."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        machine = Machine()
        held = Precedence(True, machine.read)
        policies = []
        for seconds in ((0.1, 0.9, 0.0), (0.1, 0.9, 0.0), (0.1, 0.9, 0.0), (0.0, 0.0, 2.0)):
            machine.second(*seconds)
            held.look(machine.carried)
            policies.append(os.sched_getscheduler(0))
        os.write(writer, repr(policies).encode())
        os._exit(0)
    os.waitpid(child, 0)
    first = os.SCHED_RR if os.geteuid() == 0 else os.SCHED_OTHER
    assert os.read(reader, 100).decode() == repr([os.SCHED_OTHER, os.SCHED_OTHER, first, os.SCHED_OTHER])
    os.close(reader)
    os.close(writer)


def test_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("2500000000 1250000000 77\n")
    (tmp_path / "uptime").write_text("35.50 61.25\n")
    assert read_load(tmp_path / "schedstat", tmp_path / "uptime") == Load(35.5, 2.5, 1.25, 61.25)
    assert read_load().ran > 0
