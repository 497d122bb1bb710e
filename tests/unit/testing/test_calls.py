"""A call is charged for its work and its sleep, and not for a machine that has no CPU for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.timeout(120)

CROWD = 4
"""Programs that want the same CPU as the calls."""

HEAD = """
import threading, time
from pyflannel.testing import _calls

_calls.GRACE, _calls.LONGEST, _calls._LOOK = 0.3, 1e9, 0.05

def compute():
    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        pass

def let_compute():
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()

try:
    _calls.once("plugin", "call()", {call}, 0.3, "in time")
except _calls.OverdueError as error:
    print(str(error).splitlines()[0])
"""


@contextlib.contextmanager
def crowded() -> Iterator[int]:
    """A CPU that others want, too."""
    cpu = min(os.sched_getaffinity(0))
    words = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"]
    others = [subprocess.Popen(words) for _ in range(CROWD)]
    try:
        yield cpu
    finally:
        for each in others:
            each.kill()
            each.wait()


def judged(call: str) -> str:
    """What is said of a call on such a CPU; empty if nothing."""
    with crowded() as cpu:
        code = f"import os; os.sched_setaffinity(0, [{cpu}])\n" + HEAD.format(call=call)
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("call", ["compute", "let_compute"])
def test_a_call_that_has_to_wait_for_a_cpu_is_not_charged_for_it(call: str) -> None:
    """It takes more than twice as long there as it is allowed to."""
    assert judged(call) == ""


@pytest.mark.parametrize("call", ["threading.Event().wait", "lambda: time.sleep(3600)"])
def test_a_call_that_sleeps_is_overdue_however_busy_the_machine_is(call: str) -> None:
    assert judged(call).startswith("plugin: call() has not come back after 0.")


def test_a_call_that_computes_too_much_is_overdue_there() -> None:
    assert judged("lambda: [compute() for _ in range(5)]").startswith("plugin: call() ")
