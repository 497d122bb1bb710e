"""What an author says about a backend: the attributes that both halves of its kit share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pyflannel.backend import Backend
from pyflannel.network.lease import JSON
from pyflannel.testing.clauses import Judged

__all__ = ["Subject"]


class Subject(Judged):
    """What a subclass of either kit says about its backend."""

    backend: ClassVar[str | type[Backend[Any]]]
    """The backend: the name it is installed under, or its class."""

    variants: ClassVar[Sequence[Mapping[str, JSON]]] = ({},)
    """``Backend`` dictionaries (without ``Type``) worth trying; the lab runs the first, and changes to the second."""

    carries_traffic: ClassVar[bool] = True
    """Whether containers reach each other; false for a backend that only leases subnets."""

    plans_routes: ClassVar[bool] = True
    """Whether the plan holds the routes to peers; false where commands or somebody else make them."""

    extra_sysctls: ClassVar[frozenset[str]] = frozenset()
    """Kernel parameters that the plan may set beyond forwarding and those of its own links."""

    keeps_forwarding: ClassVar[bool] = True
    """Whether packets flow while the daemon is restarted."""

    @property
    def kind(self) -> type[Backend[Any]]:
        """The backend's class."""
        from pyflannel.plugins import load_backend

        return load_backend(self.backend) if isinstance(self.backend, str) else self.backend

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that the backend says it carries."""
        able = self.kind.capabilities
        return tuple(version for version, can in ((4, able.ipv4), (6, able.ipv6)) if can)
