"""How patient the etcd driver's threads are: the one that waits for the watch's answers is, and no other.

Looked at while the watch is being opened on a member that is frozen, so that all are there: gRPC's own, ours, and the
alarm that gives the opening up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.servers.etcd import MISSING, etcd

from pyflannel.lab.servers.etcd import EtcdCluster

# Another thread's slack is for those with CAP_SYS_NICE to read.
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.timeout(60),
]

# In a process of its own: what gRPC starts once for all was started by another test here.
PROGRAM = """
import json, os, sys, threading, time
from pathlib import Path
from pyflannel.store import StoreLocation
from pyflannel_stores.etcd import EtcdStore

def slack(thread):
    return int(Path(f"/proc/{thread}/timerslack_ns").read_text())

usual = slack(os.getpid())
store = EtcdStore(StoreLocation.parse(sys.argv[1]))
watch = store.watch(store.snapshot().revision)
print("go on", flush=True)
sys.stdin.readline()
threading.Thread(target=lambda: list(watch), name="following").start()
deadline = time.monotonic() + 20
ours = {}
while "alarm" not in ours.values():
    assert time.monotonic() < deadline, "the watch's opening has no alarm"
    time.sleep(0.01)
    for thread in threading.enumerate():
        ours[thread.native_id] = "alarm" if thread.native_id and isinstance(thread, threading.Timer) else thread.name
found = []
for thread in map(int, os.listdir("/proc/self/task")):
    name = ours.get(thread) or Path(f"/proc/self/task/{thread}/comm").read_text().strip()
    found.append((name, slack(thread) / usual))
print(json.dumps(found), flush=True)
store.close()
"""


@pytest.fixture(scope="module")
def threads() -> Iterator[list[tuple[str, float]]]:
    """The name of each thread, and how many times the usual slack it has."""
    with etcd() as alone:
        yield look(alone)


def look(alone: EtcdCluster) -> Any:
    (member,) = alone.members
    words = [sys.executable, "-W", "error", "-c", PROGRAM, f"etcd://{alone.hosts}/threads"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "go on\n"
            member.pause()
            process.stdin.write("now\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        finally:
            member.resume()
            process.kill()


def test_who_waits_for_the_watch_s_answers_is_patient(threads: list[tuple[str, float]]) -> None:
    patient = [name for name, times in threads if times > 1000]
    assert len(patient) == 2, threads  # one sends requests, one waits for answers
    assert all(name.startswith("Thread-") for name in patient), threads


@pytest.mark.parametrize("name", ["MainThread", "following", "alarm", "event_engine", "lifeguard", "grpc_global_tim"])
def test_nobody_else_is(threads: list[tuple[str, float]], name: str) -> None:
    found = [times for called, times in threads if called == name]
    assert found, threads
    assert set(found) == {1.0}
