"""What the kit's watch over planners sees."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from pathlib import Path

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
