"""Memory that the kernel reckons: a cgroup for one process, with little room for what it takes from now on.

Pages that a process has already stay with the group that it comes from. Over the limit the kernel first takes back what
it can, then kills.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Group", "own"]

_MOUNTED: Final = Path("/sys/fs/cgroup")


def own() -> Path | None:
    """The memory cgroup that this process is in, where it may have others below; ``None`` if there is none."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            found = _MOUNTED / "memory" / path.lstrip("/")
            return found if (found / _limit(found)).exists() else None
        if not controllers and "memory" in _delegated(_MOUNTED / path.lstrip("/")):
            return _MOUNTED / path.lstrip("/")
    return None


def _delegated(group: Path) -> list[str]:
    with suppress(OSError):
        return (group / "cgroup.subtree_control").read_text(encoding="utf-8").split()
    return []


def _limit(parent: Path) -> str:
    return "memory.limit_in_bytes" if (parent / "memory.limit_in_bytes").exists() else "memory.max"


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup below another one, for one process."""

    parent: Path
    name: str

    @property
    def _path(self) -> Path:
        return self.parent / self.name

    def take(self, pid: int, most: int) -> None:
        """Make it, and put a process into it, which may take so many bytes."""
        self._path.mkdir(exist_ok=True)
        (self._path / _limit(self.parent)).write_text(str(most), encoding="ascii")
        (self._path / "cgroup.procs").write_text(str(pid), encoding="ascii")

    def give_back(self) -> None:
        """Let its process be where it came from, if it lives, and take the group away."""
        with suppress(FileNotFoundError):
            for pid in (self._path / "cgroup.procs").read_text(encoding="ascii").split():
                with suppress(ProcessLookupError):
                    (self.parent / "cgroup.procs").write_text(pid, encoding="ascii")
        with suppress(OSError):  # a process that is dying is still in it: see Cluster.close
            self._path.rmdir()
