"""A signal that lands in another thread wakes the main thread, which sleeps without a limit."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import select, signal, sys, threading, time
from pyflannel.small.signals import heard

asleep, got = threading.Event(), []
number = signal.Signals[sys.argv[1]]

def send():
    main = threading.main_thread().native_id
    while open(f"/proc/self/task/{main}/stat").read().rpartition(")")[2].split()[0] != "S" or not asleep.is_set():
        time.sleep(0.001)
    signal.pthread_kill(threading.get_ident(), number)  # this thread gets it, and not the main one
    threading.Event().wait()

with heard({number: lambda: got.append(number)}) as bell:
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    threading.Thread(target=send, daemon=True).start()
    asleep.set()
    rung = poll.poll()
    bell.drain()
    assert rung and got == [number], (rung, got)
    assert not poll.poll(0), "quiet until the next one"
    signal.raise_signal(number)
    assert poll.poll(0) and got == [number, number]
signal.raise_signal(number)  # ignored from now on
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_the_main_thread_wakes(name: str) -> None:
    words = [sys.executable, "-c", PROGRAM, name]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
