"""What the log says of a daemon's state, and how often."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from pyflannel.daemon import announcing
from pyflannel.daemon.announcing import STEADY_AFTER, Announcements
from pyflannel.daemon.notify import Notifier
from pyflannel.show.status import State

BROKEN = "store 'acme' failed in watch: ValueError: oops"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, announcing.__name__)
    return lambda: [record.getMessage() for record in caplog.records]


def test_what_comes_and_goes_is_said_twice(said: Callable[[], list[str]]) -> None:
    """A watch that opens and breaks, again and again; then it holds."""
    now = 0.0
    announcements = Announcements(Notifier({}), lambda ready: None, now)
    for _ in range(100):
        announcements.say(State.DEGRADED, BROKEN, now := now + 1)
        announcements.say(State.READY, "1 peer", now := now + STEADY_AFTER / 2)
    assert said() == [
        f"degraded: {BROKEN}",
        "ready: 1 peer",
        f"degraded: {BROKEN} (it comes and goes; not said again until it has been gone for a while)",
    ]
    assert announcements.due == now + STEADY_AFTER / 2
    announcements.say(State.READY, "2 peers", announcements.due)
    assert said()[3:] == ["ready: 2 peers"]
    assert announcements.due is None


def test_what_comes_back_after_a_while_or_is_another_thing_is_said(said: Callable[[], list[str]]) -> None:
    announcements = Announcements(Notifier({}), lambda ready: None, 0.0)
    expected = []
    for now, trouble in ((1.0, BROKEN), (2.0 + STEADY_AFTER, BROKEN), (3.0 + STEADY_AFTER, "another")):
        announcements.say(State.DEGRADED, trouble, now)
        announcements.say(State.READY, "1 peer", now)
        expected += [f"degraded: {trouble}", "ready: 1 peer"]
    assert said() == expected


def test_a_trouble_that_grows_older_is_said_once(said: Callable[[], list[str]]) -> None:
    announcements = Announcements(Notifier({}), lambda ready: None, 0.0)
    for age in range(5, 100, 5):
        announcements.say(State.WAITING, f"store 'acme' has not come back from renew for {age} s", float(age))
    assert said() == ["waiting: store 'acme' has not come back from renew for 5 s"]
