"""The lock that makes one daemon per run directory: held for a process's life, gone with it, however it ends.

It is ``flock(2)`` on a file that stays; the file's text is the holder's pid, for people. A child that is forked without
exec shares the lock, so data planes are started with exec.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyflannel.errors import DaemonError

__all__ = ["hold", "path"]

_NAME = "lock"


def path(run_dir: Path) -> Path:
    """The lock's file."""
    return run_dir / _NAME


@contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Hold ``run_dir``, creating it if need be.

    :raises DaemonError: another process holds it, or the directory can't be used.
    """
    file = path(run_dir)
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DaemonError(f"{file} is a link, and nothing is written through it; remove it: rm {file}") from None
        raise DaemonError(f"{file}: {error.strerror}; run as root, or choose another --run-dir") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _pid(descriptor)
            raise DaemonError(
                f"a pyflannel daemon ({f'pid {pid}' if pid else 'pid unknown'}) already holds {run_dir}; "
                "stop it, or choose another --run-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0
