"""A root file system for the first moments of a kernel: a cpio archive in the "newc" format.

Described in Documentation/driver-api/early-userspace/buffer-format.rst of the kernel: for every file a header of
hexadecimal numbers, its path and its contents, each padded to four bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Final

__all__ = ["archive"]

_DIRECTORY: Final = 0o040755
_FILE: Final = 0o100644
_LINK: Final = 0o120777
_PROGRAM: Final = 0o100755


def archive(
    directories: Iterable[str], programs: Mapping[str, bytes], links: Mapping[str, str], files: Mapping[str, bytes]
) -> bytes:
    """Pack paths, which are relative to the root; directories that they lie in come by themselves."""
    contents = [
        *((path, _PROGRAM, data) for path, data in programs.items()),
        *((path, _LINK, target.encode()) for path, target in links.items()),
        *((path, _FILE, data) for path, data in files.items()),
    ]
    parents = {str(parent) for path, *_ in contents for parent in PurePosixPath(path).parents} - {"."}
    number = itertools.count(1)
    return b"".join(
        [
            *(_entry(next(number), path, _DIRECTORY, b"") for path in sorted({*directories, *parents})),
            *(_entry(next(number), path, mode, data) for path, mode, data in contents),
            _entry(0, "TRAILER!!!", 0, b""),
        ]
    )


def _entry(number: int, path: str, mode: int, data: bytes) -> bytes:
    name = path.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in fields) + name
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)
