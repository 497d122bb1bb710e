"""Reading a file of a few lines by the system calls that it takes, and replacing one as a whole.

Kernel parameters and small files of ours are looked at every few seconds. What :meth:`pathlib.Path.read_text` goes
through, three layers of buffers and questions about seeking and terminals, is most of what such a look costs a
processor that has slept.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from pyflannel.small.streams import STDIN, given

__all__ = ["create", "read", "read_own", "read_text", "replace", "take_text"]

OWN_LIMIT = 1 << 20
"""Bytes that are read of a file at most."""

LARGEST = 16 << 20
"""Bytes of a file that somebody names to us; a device may have no end."""

_PIECE = 4096
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755


def read(path: str | os.PathLike[str]) -> bytes:
    """The whole content.

    :raises OSError: it can't be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = b""
        while piece := os.read(descriptor, _PIECE):
            content += piece
        return content
    finally:
        os.close(descriptor)


def read_own(path: str | os.PathLike[str], limit: int = OWN_LIMIT) -> bytes:
    """The beginning of a file of a few lines, in a directory in which others may put anything.

    A named pipe in its place would keep whoever reads it waiting, and a device may have no end.

    :raises OSError: it can't be opened or read, or it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.read(descriptor, limit)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """The whole of a text file that somebody names to us, which may also be a pipe or a device.

    :raises OSError: it can't be opened or read, or has more than :data:`LARGEST` bytes.
    :raises UnicodeDecodeError: it is not UTF-8.
    """
    if str(path) in STDIN:
        text = take_text(given().buffer)
    else:
        with path.open("rb") as stream:
            text = take_text(stream)
    return text.replace("\r\n", "\n")


def take_text(stream: BinaryIO) -> str:
    """The same of what is open already, as it is."""
    content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return content.decode("utf-8")


def create(path: Path, text: str) -> None:
    """A new file for our eyes only; what is there, be it a link that somebody planted, is removed and not followed.

    :raises OSError: it can't be made there.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())


def replace(path: Path, text: str, mode: int = _FILE_MODE) -> bool:
    """Make ``path`` hold ``text`` with just that mode whatever the umask, across a crash at any moment.

    Creates missing parent directories, which everybody may read. A file that is right already is left alone, for its
    watchers' sake.

    :returns: whether it was written.
    :raises OSError: it can't be written there.
    """
    if not path.name:  # "/" or "."
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_right(path, text, mode):
        return False
    if _is_everybodys(path):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    _make_directories(path.parent)
    _put(path, text, mode)
    return True


def _is_right(path: Path, text: str, mode: int) -> bool:
    content = text.encode()
    try:
        status = path.lstat()
        looks = stat.S_ISREG(status.st_mode), stat.S_IMODE(status.st_mode), status.st_size
        return looks == (True, mode, len(content)) and read(path) == content
    except FileNotFoundError:
        return False


def _is_everybodys(path: Path) -> bool:
    """Whether it is a device, or a link into a process as /dev/stdout is, which all others would miss."""
    try:
        mode = path.stat().st_mode
        device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return device or (path.is_symlink() and path.readlink().is_relative_to("/proc"))
    except OSError:  # whoever writes there says what is wrong
        return False


def _make_directories(directory: Path) -> None:
    missing = [item for item in (directory, *directory.parents) if not item.exists()]
    for item in reversed(missing):
        item.mkdir(exist_ok=True)
        item.chmod(_DIRECTORY_MODE)


def _put(path: Path, text: str, mode: int) -> None:
    """Write a neighbour of ``path``, put it on disk, and rename it over ``path``.

    The neighbour's name is fixed: what a killed daemon left of it is overwritten, not collected.
    """
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(text.encode())
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
