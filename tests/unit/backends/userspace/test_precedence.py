"""Before ordinary programs while it has to wait for them, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyflannel_backends.userspace.precedence import Load, Precedence, read_load


class Machine:
    """A machine of two processors, and what was asked of its scheduler."""

    def __init__(self) -> None:
        self.load = Load(100.0, 3.0, 1.0, 50.0)
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
        held = Precedence(wanted, self.read, self.take)
        held.look()
        return held

    def second(self, ran: float, waited: float, idle: float) -> None:
        before = self.load
        self.load = Load(before.now + 1, before.ran + ran, before.waited + waited, before.idle + idle)


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
    machine.second(ran, waited, idle)
    assert held.look() is taken
    assert machine.asked == [True] * taken


def test_it_is_given_up_when_a_processor_is_idle() -> None:
    machine = Machine()
    held = machine.made()
    machine.second(0.1, 0.5, 0.0)
    assert held.look()
    machine.second(0.7, 0.0, 0.4)
    assert held.look()
    machine.second(0.7, 0.0, 0.6)
    assert not held.look()
    machine.second(0.1, 0.5, 0.0)
    assert held.look()
    assert machine.asked == [True, False, True]


def test_it_is_found_out_afresh_every_minute() -> None:
    machine = Machine()
    held = machine.made()
    machine.second(0.1, 0.5, 0.0)
    seen = [held.look()]
    for _ in range(60):
        machine.second(0.7, 0.0, 0.0)
        seen.append(held.look())
    assert seen == [True] * 60 + [False]
    machine.second(0.1, 0.5, 0.0)
    assert held.look()


def test_who_does_not_want_it_never_asks() -> None:
    machine = Machine()
    held = machine.made(wanted=False)
    machine.second(0.1, 0.9, 0.0)
    assert not held.look()
    assert machine.asked == []


def test_without_the_right_it_is_not_held() -> None:
    machine = Machine()
    machine.grants = False
    held = machine.made()
    machine.second(0.1, 0.9, 0.0)
    assert not held.look()


def test_what_can_not_be_read_changes_nothing() -> None:
    machine = Machine()
    held = machine.made()
    machine.second(0.1, 0.9, 0.0)
    assert held.look()
    machine.is_readable = False
    machine.second(0.0, 0.0, 2.0)
    assert held.look()
    machine.is_readable = True
    machine.second(0.0, 0.0, 2.0)
    assert held.look()
    machine.second(0.0, 0.0, 2.0)
    assert not held.look()


def test_the_kernel_is_asked() -> None:
    """In a child, since the scheduling of the tests is not this test's."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        machine = Machine()
        held = Precedence(True, machine.read)
        policies = []
        for seconds in ((0.1, 0.9, 0.0), (0.1, 0.9, 0.0), (0.0, 0.0, 2.0)):
            machine.second(*seconds)
            held.look()
            policies.append(os.sched_getscheduler(0))
        os.write(writer, repr(policies).encode())
        os._exit(0)
    os.waitpid(child, 0)
    first = os.SCHED_RR if os.geteuid() == 0 else os.SCHED_OTHER
    assert os.read(reader, 100).decode() == repr([os.SCHED_OTHER, first, os.SCHED_OTHER])
    os.close(reader)
    os.close(writer)


def test_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("2500000000 1250000000 77\n")
    (tmp_path / "uptime").write_text("35.50 61.25\n")
    assert read_load(tmp_path / "schedstat", tmp_path / "uptime") == Load(35.5, 2.5, 1.25, 61.25)
    assert read_load().ran > 0
