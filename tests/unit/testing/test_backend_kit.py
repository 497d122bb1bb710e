"""What the kit's watch over planners sees."""

from __future__ import annotations

import atexit
import gc
import importlib
import re
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from pyflannel.backend import forwarding
from pyflannel.testing._elsewhere import planned_elsewhere
from pyflannel.testing._purity import watched


def test_the_watch_sees_the_world_and_lets_it_be() -> None:
    with watched() as done:
        assert time.time() > 0
        Path("/proc/self/status").read_text()
    assert any(entry == "time.time" for entry in done)
    assert any(entry.startswith("open /proc/self/status") for entry in done)
    seen = len(done)
    time.time()
    Path("/proc/self/status").read_text()
    assert len(done) == seen


def test_the_watch_sees_threads_and_what_is_printed() -> None:
    with watched() as done:
        thread = threading.Thread(target=lambda: print("not this thread's"))
        thread.start()
        thread.join()
        print("planned", file=sys.stderr)
    assert "sys.stderr: planned" in done
    assert any("Thread.start" in entry for entry in done)
    assert not any("not this" in entry for entry in done)


def test_a_thread_that_still_prints_finds_its_stream() -> None:
    """CPython's ``print`` has no reference of its own to the stream that it writes to."""
    with watched():
        stream = weakref.ref(sys.stdout)
    gc.collect()
    assert stream() is not None


LOUD = """
import atexit, os
from pyflannel.backend import Backend, DesiredState, NoOptions, forwarding

def noise():
    os.system("echo NOISE")
    print("NOISE")

class Loud(Backend[NoOptions]):
    name = "loud"

    def mtu(self, underlay):
        return underlay.mtu

    def plan_node(self, node):
        noise()
        return DesiredState([forwarding(4)])

    def plan_peer(self, node, peer):
        return DesiredState()

noise()
atexit.register(noise)
"""


def test_what_another_process_plans_is_read_whatever_else_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud_backend.py").write_text(LOUD)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("loud_backend")
    try:
        assert planned_elsewhere(module.Loud, (4,), {}, tmp_path) == [f"node: {forwarding(4)!r}"]
    finally:
        atexit.unregister(module.noise)
        del sys.modules["loud_backend"]


VAST = """
from pyflannel.backend import Backend, DesiredState, NoOptions, Route, forwarding
from pyflannel.testing import _planner
from pyflannel.testing.backends import BackendPlanning

_planner.WORK = 1.0

class Vast(Backend[NoOptions]):
    name = "vast"

    def mtu(self, underlay):
        return underlay.mtu

    def plan_node(self, node):
        return DesiredState([forwarding(4)])

    def plan_peer(self, node, peer):
        link, gateway = node.underlay.interface, peer.attributes.public_ip
        return DesiredState([Route(peer.subnets.ipv4, link, gateway, metric=number + 1) for number in range(9000)])

class TestVast(BackendPlanning):
    backend = Vast
"""


def test_plans_too_vast_to_be_looked_at_end_the_test_and_are_named(tmp_path: Path) -> None:
    """Each call comes back in time, and yet all examples together would take hours."""
    (tmp_path / "test_vast.py").write_text(VAST)
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "own_objects or is_pure"]
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "2 failed" in done.stdout, done.stdout
    named = re.findall(r"OverdueError: Vast: (test_\w+) was not done with its examples after", done.stdout)
    assert len(set(named)) == 1, "the second test does not try again what the first has found"
    assert "the largest plan has 9000 objects; planning is a function of values that returns at once" in done.stdout
