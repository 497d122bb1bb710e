"""What is named when the system has too little of something, whatever way it is found out."""

from __future__ import annotations

import errno
import os

import pytest

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
