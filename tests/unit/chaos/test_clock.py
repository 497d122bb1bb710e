"""The wall clock of a process and of what it starts jumps at once, and its monotonic clock and its waits don't."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

import pytest
from tests.chaos.clock import Clock, build

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

CHILD = "import time; print(time.time())"
ASKED = f"""
import subprocess, sys, threading, time
for line in sys.stdin:
    before = time.monotonic()
    threading.Event().wait(0.05)
    time.sleep(0.05)
    child = subprocess.run([sys.executable, "-S", "-c", {CHILD!r}], capture_output=True, text=True).stdout
    print(time.time(), float(child), time.monotonic() - before, flush=True)
"""


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    build(tmp_path / "clock.so")
    clock = Clock(PurePosixPath(tmp_path / "clock.so"), PurePosixPath(tmp_path / "shift"), tmp_path / "shift")
    clock.set(0.0)
    return clock


@contextmanager
def process(clock: Clock) -> Iterator[subprocess.Popen[str]]:
    words = [*clock.wrapper, sys.executable, "-S", "-c", ASKED]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdin is not None
        with closing(one.stdin):
            yield one


def test_a_running_process_and_its_children_see_the_jump_and_wait_as_before(clock: Clock) -> None:
    with process(clock) as asked:
        assert asked.stdin is not None
        assert asked.stdout is not None
        for shift in (0.0, 7200.0, -32400.0, 0.0):
            clock.set(shift)
            begin, wall = time.monotonic(), time.time()
            asked.stdin.write("now\n")
            asked.stdin.flush()
            own, child, waited = map(float, asked.stdout.readline().split())
            took = time.monotonic() - begin
            assert 0.1 <= waited <= took
            assert -1.0 <= child - wall - shift <= took + 1.0
            assert -1.0 <= own - wall - shift <= took + 1.0


def test_a_kernel_s_clock_goes_on_where_no_file_says_otherwise(clock: Clock) -> None:
    clock.outside.unlink()
    words = [*clock.wrapper, sys.executable, "-S", "-c", CHILD]
    wall = time.time()
    said = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert wall - 1.0 <= said <= time.time() + 1.0
