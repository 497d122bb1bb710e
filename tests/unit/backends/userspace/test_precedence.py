"""Before ordinary programs while the machine is busy, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyflannel_backends.userspace.precedence import Precedence, idle_seconds


class Machine:
    """Time, how much of it processors were idle, and what was asked of the scheduler."""

    def __init__(self, processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.cpu_count", lambda: processors)
        self.now, self.idle = 100.0, 5000.0
        self.asked: list[bool] = []
        self.grants = True
        self.fails = False

    def take(self, first: bool) -> bool:
        self.asked.append(first)
        return first and self.grants

    def idle_seconds(self) -> float:
        if self.fails:
            raise OSError("no descriptor is left")
        return self.idle

    def made(self, wanted: bool = True) -> Precedence:
        return Precedence(wanted, lambda: self.now, self.idle_seconds, self.take)

    def second(self, idle: float) -> None:
        """A second in which so many processors were idle."""
        self.now += 1
        self.idle += idle


@pytest.mark.parametrize(
    ("processors", "busy", "calm"), [(2, 0.4, 0.6), (4, 0.4, 0.6), (64, 6.3, 6.5)], ids=["two", "four", "sixty-four"]
)
def test_it_is_held_while_the_machine_is_busy(
    processors: int, busy: float, calm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(processors, monkeypatch)
    held = machine.made()
    assert held.is_held
    seen = [held.look()]
    for idle in (busy, calm, calm, calm, calm, busy, calm, calm, busy, calm, calm, calm):
        machine.second(idle)
        seen.append(held.look())
    assert seen == [True, True, True, True, False, False, True, True, True, True, True, True, False]
    assert machine.asked == [True, False, True, False]


def test_who_does_not_want_it_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(2, monkeypatch)
    held = machine.made(wanted=False)
    for _ in range(3):
        machine.second(0.0)
        assert not held.look()
    assert machine.asked == []


def test_without_the_right_it_is_not_held_and_asked_for_again_only_when_the_machine_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(2, monkeypatch)
    machine.grants = False
    held = machine.made()
    assert not held.is_held
    for idle in (2.0, 2.0, 2.0, 2.0, 2.0):
        held.look()
        machine.second(idle)
    assert machine.asked == [True]
    machine.second(-6.0)
    assert not held.look()
    assert machine.asked == [True, True]


def test_what_can_not_be_read_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(2, monkeypatch)
    held = machine.made()
    machine.fails = True
    for _ in range(5):
        machine.second(2.0)
        assert held.look()
    machine.fails = False
    for _ in range(4):
        machine.second(2.0)
        held.look()
    assert not held.is_held


def test_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child, which may not get its priority back."""
    machine = Machine(2, monkeypatch)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        held = Precedence(True, lambda: machine.now, machine.idle_seconds)
        policies = [os.sched_getscheduler(0)]
        for _ in range(4):
            held.look()
            machine.second(2.0)
        policies.append(os.sched_getscheduler(0))
        os.write(writer, repr(policies).encode())
        os._exit(0)
    os.waitpid(child, 0)
    first = os.SCHED_RR if os.geteuid() == 0 else os.SCHED_OTHER
    assert os.read(reader, 100).decode() == repr([first, os.SCHED_OTHER])
    os.close(reader)
    os.close(writer)


def test_idle_seconds(tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("35.50 61.25\n")
    assert idle_seconds(tmp_path / "uptime") == 61.25
    assert idle_seconds() > 0
