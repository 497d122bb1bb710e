"""What this node is part of since it adopted a generation: an overlay, its planner, and what carries its packets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyflannel.backend import Backend
from pyflannel.daemon.crossing import Crossing
from pyflannel.daemon.planes import Planes
from pyflannel.kernel.model import KernelObject
from pyflannel.planning.overlay import Overlay
from pyflannel.planning.transition import Transition

__all__ = ["Joined", "shown"]


@dataclass(slots=True)
class Joined:
    """See the module's docstring. ``crossing``: a change of the network is under way."""

    backend: Backend[Any]
    overlay: Overlay
    planes: Planes
    crossing: Crossing | None = None

    @property
    def shown(self) -> Backend[Any]:
        """The backend that is in force: during a change the former one."""
        return shown(self.backend)

    @property
    def essential(self) -> tuple[KernelObject, ...]:
        """What the node itself can't do without."""
        if isinstance(self.backend, Transition):
            return self.backend.essential(self.overlay.node)
        return self.overlay.own_objects

    def end(self) -> None:
        """The daemon stops. What the kernel has goes on."""
        self.planes.stop()
        if self.crossing is not None:
            self.crossing.close()


def shown(backend: Backend[Any]) -> Backend[Any]:
    """The backend that a node is said to use; while the network changes, still the former one."""
    return backend.former.backend if isinstance(backend, Transition) else backend
