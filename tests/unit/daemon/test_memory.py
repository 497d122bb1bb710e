"""What a start gives back, in a process of its own: this one's memory is full of tests."""

from __future__ import annotations

import subprocess
import sys

from tests.starving import without_descriptors

from pyflannel.daemon.memory import settle

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


def test_a_process_without_descriptors_goes_on() -> None:
    with without_descriptors():
        settle()
