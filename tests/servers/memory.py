"""Where tests keep what need not outlive them: in memory, which no busy disk holds up."""

from __future__ import annotations

import os

__all__ = ["in_memory"]


def in_memory() -> str | None:
    """A directory in memory that anybody may write to (tmpfs(5)); ``None`` where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
