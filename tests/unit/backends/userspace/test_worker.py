"""The worker's process, before it is told anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOAD = """
import os
from pyflannel_backends.userspace import worker
assert worker._load_offload() is not None
print(*os.listdir("/proc/self/task"))
"""


def test_it_has_one_thread_whatever_numpy_brings() -> None:
    pytest.importorskip("numpy", reason="needs numpy (extra: udp)")
    said = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True).stdout
    assert len(said.split()) == 1
