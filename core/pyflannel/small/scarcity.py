"""What the system has too little of when a call fails for want of it, and what gives more.

Descriptors, memory and threads run out anywhere, and Python says so in several ways. None of them is a fault of the
code that meets it.
"""

from __future__ import annotations

import errno
from typing import Final

__all__ = ["lacking"]

_MORE_DESCRIPTORS: Final = "raise LimitNOFILE= in the unit, 'ulimit -n', or fs.file-max"
_MORE_MEMORY: Final = "raise MemoryMax= or LimitAS= in the unit, or 'ulimit -v'"
_MORE_THREADS: Final = f"raise TasksMax= in the unit or 'ulimit -u', or for its memory {_MORE_MEMORY}"

_NO_THREAD: Final = "can't start new thread"
"""What Python says, whatever pthread_create(3) has failed for."""

_NO_LIBRARY: Final = ("failed to map segment", "cannot allocate memory", "cannot create shared object descriptor")
"""What the dynamic loader says, of which Python makes an ImportError."""


def lacking(error: BaseException) -> str | None:
    """What there was too little of and what to do, if it was that."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error}: {_MORE_DESCRIPTORS}"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"not enough memory: {_MORE_MEMORY}"
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return f"{error}: {_MORE_THREADS}"
    if isinstance(error, ImportError) and any(text in str(error).lower() for text in _NO_LIBRARY):
        return f"not enough memory to load a library ({error}): {_MORE_MEMORY}"
    return None
