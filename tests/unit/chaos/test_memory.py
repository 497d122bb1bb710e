"""A process in a small cgroup is killed by the kernel when it takes more, and not once it is out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.chaos.memory import Group, own

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or own() is None, reason="no memory cgroup here has room for others"),
]

GREEDY = """
import sys
for line in sys.stdin:
    data = bytearray(b"x") * (64 << 20)
    print(len(data), flush=True)
"""


@pytest.fixture
def greedy() -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-S", "-c", GREEDY]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdin is not None
        with closing(one.stdin):
            yield one


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("more\n")
    process.stdin.flush()
    return process.stdout.readline()


def test_who_takes_more_than_its_group_has_is_killed(greedy: subprocess.Popen[str]) -> None:
    parent = own()
    assert parent is not None
    assert ask(greedy)
    group = Group(parent, f"chaos-test-{os.getpid()}")
    group.take(greedy.pid, 8 << 20)
    assert ask(greedy) == ""
    assert greedy.wait() == -signal.SIGKILL
    group.give_back()
    assert not Path(parent / group.name).exists()


def test_who_is_given_back_takes_what_it_likes(greedy: subprocess.Popen[str]) -> None:
    parent = own()
    assert parent is not None
    group = Group(parent, f"chaos-test-{os.getpid()}")
    group.take(greedy.pid, 8 << 20)
    group.give_back()
    assert not Path(parent / group.name).exists()
    assert ask(greedy) == f"{64 << 20}\n"
