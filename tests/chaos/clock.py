"""Wall clocks that jump: of a daemon and whatever it starts, while the monotonic clock goes on.

A namespace has no wall clock of its own, so a small library between a process and the C library (``clock.c``) moves
the kernel's by as much as a file says. It is built when a run begins.
"""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

__all__ = ["Clock", "build"]

SOURCE: Final = Path(__file__).with_name("clock.c")


def build(library: Path) -> None:
    """Compile what is preloaded."""
    words = ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(words, check=True)


@dataclass(frozen=True, slots=True)
class Clock:
    """One wall clock, of as many processes as are started with :attr:`wrapper`.

    :param library: what :func:`build` made, as those processes see it. ``shift``: the file, likewise.
    :param outside: the file as it is seen here.
    """

    library: PurePosixPath
    shift: PurePosixPath
    outside: Path

    @property
    def wrapper(self) -> tuple[str, ...]:
        """Words before a command line that give it this clock."""
        return ("env", f"LD_PRELOAD={self.library}", f"CHAOS_CLOCK={self.shift}")

    def set(self, seconds: float) -> None:
        """Let it be so far ahead of the kernel's from now on; negative: behind."""
        self.outside.touch()
        with self.outside.open("r+b") as file:
            file.write(struct.pack("=q", round(seconds * 1e9)))
