"""What a start gives back, in a process of its own: this one's memory is full of tests."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.starving import without_descriptors

from pyflannel.daemon.memory import MANY, SETTLE_AFTER, TRIM_PAUSE, Tidying, settle
from pyflannel.errors import ExitCode

PROGRAM = """
import gc, re, ssl
from pathlib import Path
from pyflannel.daemon.memory import rush, settle

def resident(rights):
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if re.match("[0-9a-f]+-", line):
            counts = f" {rights} " in line and "/" in line
        elif line.startswith("Rss:") and counts:
            total += int(line.split()[1])
    return total

usual = gc.get_threshold()
with rush():
    assert gc.get_threshold()[0] > usual[0]
    before, relocated = resident("r-xp"), resident("r--p")
    settle()
    after = resident("r-xp")
    assert gc.get_threshold() == usual
assert gc.get_threshold() == usual
with rush():
    pass
assert gc.get_threshold() == usual
ssl.create_default_context()  # what was dropped still runs
print(after < before, resident("r--p") >= relocated)
"""


def test_a_start_gives_back_the_text_it_ran_and_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True", "True"]


EXIT = """
import resource, threading, time
from pyflannel.daemon.memory import or_end

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.5)  # others may run: the thread finds that Python is at its end

slow = Slow()
with or_end():
    threading.Thread(target=lambda: [time.sleep(0.01) for _ in iter(int, 1)], daemon=True).start()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
"""


def test_an_exit_without_descriptors_aborts_for_no_thread_that_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


THREADS = """
import _thread, sys, threading
from pyflannel.daemon.memory import or_end

def fails():
    raise {error}

def telling(hook):
    return lambda told: (hook(told), over.set())

over = threading.Event()
sys.unraisablehook, threading.excepthook = telling(sys.unraisablehook), telling(threading.excepthook)
with or_end():
    if sys.argv[1] == "begun":
        threading.Thread(target=fails).start()
    else:
        _thread.start_new_thread(fails, ())
    over.wait(50)
"""


@pytest.mark.parametrize("when", ["begun", "beginning"])
def test_a_daemon_ends_with_a_thread_that_gets_no_memory(when: str) -> None:
    program = THREADS.format(error="MemoryError")
    done = subprocess.run([sys.executable, "-c", program, when], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (ExitCode.KERNEL, "")
    assert "a thread has ended for want of memory" in done.stderr


STARVED = """
import os, resource, threading
from pathlib import Path
from pyflannel.daemon.memory import or_end

def nothing():
    pass

def threads():
    return len(os.listdir("/proc/self/task"))

with or_end():
    before = threads()
    threading.Thread(target=nothing).start()
    while threads() > before:
        pass
    # The C library has kept its stack, and the next thread gets that: there is room for it, and for nothing else.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
    threading.Thread(target=nothing).start()
    print("begun")
"""


def test_a_daemon_ends_with_a_thread_that_really_gets_no_memory() -> None:
    """It could not even run a hook; and who began it would wait for it for ever. (Python 3.10 may have enough left.)"""
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=60)
    ended = (ExitCode.KERNEL, "", "a thread has ended for want of memory" in done.stderr)
    assert (done.returncode, done.stdout, True) in (ended, (0, "begun\n", sys.version_info < (3, 11)))


@pytest.mark.parametrize("when", ["begun", "beginning"])
def test_a_daemon_goes_on_after_another_failure_of_a_thread(when: str) -> None:
    program = THREADS.format(error="KeyError('lost')")
    done = subprocess.run([sys.executable, "-c", program, when], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert "KeyError: 'lost'" in done.stderr


def test_a_process_without_descriptors_goes_on() -> None:
    with without_descriptors():
        settle()


def test_few_leases_planned_anew_are_no_rush() -> None:
    tidying = Tidying()
    tidying.joined(0.0, 3)
    assert tidying.due == [SETTLE_AFTER]
    tidying.tidy(SETTLE_AFTER)
    assert tidying.due == []
    tidying.joined(10.0, 3)
    assert tidying.due == [10.0 + TRIM_PAUSE]
    tidying.joined(11.0, MANY)
    assert tidying.due == [11.0 + SETTLE_AFTER, 10.0 + TRIM_PAUSE]
