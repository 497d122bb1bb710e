"""Reading a file of a few lines by the system calls that it takes.

Kernel parameters and small files of ours are looked at every few seconds. What :meth:`pathlib.Path.read_text` goes
through, three layers of buffers and questions about seeking and terminals, is most of what such a look costs a
processor that has slept.
"""

from __future__ import annotations

import os

__all__ = ["read"]

_PIECE = 4096


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
