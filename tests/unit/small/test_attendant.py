"""A thread that looks after something ends in time, and never dies without a word."""

from __future__ import annotations

import gc
import selectors
import threading
import weakref

import pytest
from tests.waiting import until

from pyflannel.small.attendant import Attendant


class Clerk:
    """Counts how often it was woken, until it has to fail."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.woken = 0
        self.left = threading.Event()
        self.attendant = Attendant("clerk", self.work, self.left.set)

    def work(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.attendant.wake, selectors.EVENT_READ)
            while not self.attendant.stopping.is_set():
                selector.select()
                self.attendant.wake.drain()
                self.woken += 1
                if self.error is not None:
                    raise self.error


def test_it_sleeps_until_it_is_woken_and_ends_when_it_is_told_to() -> None:
    clerk = Clerk()
    clerk.attendant.start()
    clerk.attendant.wake.set()
    until(lambda: clerk.woken == 1)
    clerk.attendant.check()
    clerk.attendant.stop(60)
    clerk.attendant.join()
    assert clerk.left.is_set()
    clerk.attendant.stop(60)
    clerk.attendant.check()


@pytest.mark.parametrize("error", [RuntimeError("oops"), SystemExit(3)], ids=lambda error: type(error).__name__)
def test_what_it_died_of_is_raised_to_whoever_asks(error: BaseException) -> None:
    clerk = Clerk(error)
    clerk.attendant.start()
    clerk.attendant.wake.set()
    clerk.attendant.join()
    assert clerk.left.is_set()
    for _ in range(2):
        with pytest.raises(type(error)):
            clerk.attendant.check()
    clerk.attendant.stop(60)


def test_what_it_held_is_closed_with_its_owner_and_no_collection_is_waited_for() -> None:
    gc.disable()
    try:
        clerk = Clerk()
        clerk.attendant.start()
        clerk.attendant.stop(60)
        clerk.attendant.join()
        gone = weakref.ref(clerk.attendant.wake)
        del clerk
        assert gone() is None
    finally:
        gc.enable()


def test_a_stop_waits_no_longer_than_it_may() -> None:
    held = threading.Event()
    attendant = Attendant("held", held.wait)  # type: ignore[arg-type]
    attendant.start()
    attendant.stop(0.01)
    assert attendant.stopping.is_set()
    held.set()
    attendant.join()
