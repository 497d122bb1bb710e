"""The lock that makes one daemon per run directory: held for a process's life, gone with it, however it ends.

It is ``flock(2)`` on a file that stays; the file's text is the holder's pid, for people. A child that is forked without
exec shares the lock, so data planes are started with exec. Should somebody remove the file, the lock is still ours but
keeps nobody out: :meth:`RunLock.restore` takes a new one.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyflannel.errors import DaemonError
from pyflannel.small.scarcity import lacking

__all__ = ["HeldByAnotherError", "RunLock", "hold", "path"]

_NAME = "lock"


def path(run_dir: Path) -> Path:
    """The lock's file."""
    return run_dir / _NAME


class RunLock:
    """Holds ``run_dir`` until :meth:`close`, creating it if need be.

    :raises DaemonError: another process holds it, or the directory can't be used.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._descriptor = _locked(run_dir)

    @property
    def held(self) -> bool:
        """Whether the next daemon would find it held: not if somebody has removed the file, or the directory."""
        ours = os.fstat(self._descriptor)
        try:
            there = path(self._run_dir).lstat()
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def restore(self) -> None:
        """Hold it again, whatever has become of the file.

        :raises DaemonError: another process has come to hold it, or the directory can't be used.
        """
        if not self.held:
            before, self._descriptor = self._descriptor, _locked(self._run_dir)
            os.close(before)

    def close(self) -> None:
        """Hold it no more."""
        os.close(self._descriptor)


class HeldByAnotherError(DaemonError):
    """Another daemon holds the directory."""


@contextmanager
def hold(run_dir: Path) -> Iterator[RunLock]:
    """Hold ``run_dir``, creating it if need be.

    :raises DaemonError: another process holds it, or the directory can't be used.
    """
    lock = RunLock(run_dir)
    try:
        yield lock
    finally:
        lock.close()


def _locked(run_dir: Path) -> int:
    """The lock's file, opened and locked."""
    file = path(run_dir)
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DaemonError(f"{file} is a link, and nothing is written through it; remove it: rm {file}") from None
        if isinstance(error, FileExistsError):
            raise DaemonError(f"{run_dir} is not a directory; choose another --run-dir") from None
        mend = f"{'run as root, or ' * isinstance(error, PermissionError)}choose another --run-dir"
        raise DaemonError(f"{file}: {lacking(error) or f'{error.strerror}; {mend}'}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        pid = _pid(descriptor)
        os.close(descriptor)
        raise HeldByAnotherError(
            f"a pyflannel daemon ({f'pid {pid}' if pid else 'pid unknown'}) already holds {run_dir}; "
            "stop it, or choose another --run-dir"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise DaemonError(f"{file}: {error.strerror}; make room there, or choose another --run-dir") from None
    return descriptor


def _pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0
