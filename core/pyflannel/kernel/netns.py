"""Calls inside another network namespace: made by a thread that lives just for the call.

``setns(2)`` changes the calling thread only, and a thread that has ended needs no way back, so the caller's namespace
is never touched and can't be left wrong by an error.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyflannel.errors import KernelError
from pyflannel.small.scarcity import lacking

__all__ = ["call_in"]

CLONE_NEWNET = 0x40000000

T = TypeVar("T")


def call_in(netns: Path, function: Callable[[], T]) -> T:
    """Call ``function`` in the network namespace at ``netns`` (``/run/netns/...``, ``/proc/<pid>/ns/net``).

    :raises KernelError: there is no such namespace, or the right to enter it (CAP_SYS_ADMIN) is missing.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            _enter(netns)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"netns {netns.name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _enter(netns: Path) -> None:
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        unknown = f"{error.strerror}; 'ip netns list' shows those there are"
        raise KernelError(f"network namespace {netns}: {lacking(error) or unknown}") from None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise KernelError(f"can't enter network namespace {netns}: {os.strerror(number)}; this needs CAP_SYS_ADMIN")
    finally:
        os.close(descriptor)
