"""What is named when the system has too little of something, whatever way it is found out."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from pyflannel.daemon import cni, subnet_env
from pyflannel.daemon.runlock import hold
from pyflannel.membership.nodeid import identify
from pyflannel.small.scarcity import lacking


@pytest.mark.parametrize(
    ("error", "limits"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), ["LimitNOFILE=", "Too many open files"]),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), ["fs.file-max", "Too many open files in system"]),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), ["not enough memory", "MemoryMax="]),
        (MemoryError(), ["not enough memory", "LimitAS="]),
        (RuntimeError("can't start new thread"), ["can't start new thread", "TasksMax=", "MemoryMax="]),
        (ImportError("libc.so: failed to map segment from shared object"), ["libc.so", "MemoryMax="]),
    ],
    ids=repr,
)
def test_it_is_named_with_what_gives_more(error: Exception, limits: list[str]) -> None:
    said = lacking(error)
    assert said is not None
    assert all(limit in said for limit in limits)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "no space"), RuntimeError("something else"), ImportError("No module named 'x'"), KeyError()],
    ids=repr,
)
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert lacking(error) is None


def lock(place: Path) -> None:
    with hold(place):
        pass


@pytest.mark.parametrize(
    "call",
    [
        lambda place: identify(place, machine_id=place / "none"),
        lambda place: subnet_env.write(place / "subnet.env", "ours"),
        lambda place: cni.write(place / "10-ours.conflist", "ours"),
        lock,
    ],
    ids=["node id", "subnet.env", "CNI network", "lock"],
)
def test_no_place_is_blamed_for_it(tmp_path: Path, call: Callable[[Path], object]) -> None:
    """Nobody gets a descriptor by naming another directory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(Exception, match="Too many open files") as caught:
            call(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    said = lacking(caught.value) or str(caught.value)
    assert "LimitNOFILE=" in said
    assert "another" not in said
    assert "--state-dir" not in said
