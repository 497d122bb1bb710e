"""Calls into plugins that are looked after while they last."""

from __future__ import annotations

import logging
import os
import threading

import pytest
from tests.waiting import until

from pyflannel.small import guarded
from pyflannel.small.guarded import HangingCall, PluginCall, named_if_it_hangs


def test_a_call_is_named_once_and_again_when_it_has_come_back(caplog: pytest.LogCaptureFixture) -> None:
    said, call = HangingCall(), PluginCall("acme", "publish", 100.0)
    assert said.look(call, 100.0) == said.look(call, 104.9) == 105.0
    assert not caplog.messages
    assert [said.look(call, now) for now in (105.0, 110.0)] == [None, None]
    assert said.look(None, 112.0) is None
    assert caplog.messages == [
        "backend 'acme' has not come back from publish for 5 s",
        "backend 'acme' has come back from publish after 12 s",
    ]


def test_a_row_of_calls_hangs_where_one_of_them_does(caplog: pytest.LogCaptureFixture) -> None:
    said, call = HangingCall(), PluginCall("acme", "planning", 100.0)
    for moment in (104.0, 108.0, 112.0):
        call.since = moment
        assert said.look(call, moment + 1) == moment + 5
    assert not caplog.messages
    assert said.look(call, 119.0) is None
    call.since = 130.0
    assert said.look(call, 131.0) == 135.0
    assert said.look(None, 134.0) is None
    assert caplog.messages == [
        "backend 'acme' has not come back from planning for 7 s",
        "backend 'acme' has come back from planning after 18 s",
    ]


def test_the_calls_of_a_command_cost_one_thread() -> None:
    """A migration makes tens of thousands."""
    for _ in range(50):
        with named_if_it_hangs("acme", "create", "store"), named_if_it_hangs("acme", "its import"):
            pass
    assert [thread.name for thread in threading.enumerate()].count("pyflannel-hanging") == 1


def test_each_of_the_calls_that_hang_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "PATIENCE", 0.05)
    monkeypatch.setattr(guarded, "_watcher", guarded._Watcher())
    with named_if_it_hangs("one", "snapshot", "store"), named_if_it_hangs("other", "publish"):
        until(lambda: len(caplog.messages) == 2, lambda: caplog.messages)
    assert [" ".join(line.split()[:3]) for line in caplog.messages] == [
        "store 'one' has",
        "backend 'other' has",
        "backend 'other' has",
        "store 'one' has",
    ]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_child_of_a_process_that_has_looked_after_calls_does_so_itself() -> None:
    with named_if_it_hangs("acme", "snapshot", "store"):
        pass
    child = os.fork()
    if child == 0:  # no thread of the parent's is here
        with named_if_it_hangs("acme", "snapshot", "store"):
            running = any(thread.name == "pyflannel-hanging" for thread in threading.enumerate())
        os._exit(0 if running else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
