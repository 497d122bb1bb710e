"""Feeding a backend's own data plane: the peers it should reach, and nothing of what went before.

Level-triggered like everything else: :meth:`Feed.tend` compares the overlay with what the data plane was told and tells
it the difference. A data plane that can't be started, or that raises, is the backend's fault and is named so; it is
tried again while the rest of the daemon goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from pyflannel.backend import Backend, DataPlane, Node, Subnets
from pyflannel.planning.overlay import Overlay

__all__ = ["Feed"]

log = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 1.0
"""Seconds between two checks of a data plane, and between two tries at one that failed."""


class Feed:
    """One backend's data plane, if it has one, for as long as backend and node stay what they are."""

    def __init__(self, backend: Backend[Any], node: Node) -> None:
        self.backend = backend
        self.node = node
        self.plane: DataPlane | None = None
        self.problems: Mapping[str, str] = {}
        """Lease key to reason for the peers that the data plane can't serve."""
        self.trouble = ""
        """Why there is no data plane although the backend has one; empty if all is well."""
        self._fed: dict[str, tuple[str, Subnets]] = {}
        self._overlay: Overlay | None = None
        self._started = False
        self.due = 0.0
        """When :meth:`tend` wants to be called again, on the clock of its ``now``."""

    def serves(self, backend: Backend[Any], node: Node) -> bool:
        """Whether this is the right data plane for a backend and node, so that it can go on."""
        return type(backend) is type(self.backend) and (backend.options, node) == (self.backend.options, self.node)

    def tend(self, overlay: Overlay, now: float) -> None:
        """Start the data plane if it is not running, tell it what has changed, and look after it once a second."""
        touched = overlay.drain_touched()
        if self.trouble and now < self.due:
            self._overlay = None  # what is missed now is made up for by a full comparison
            return
        try:
            if not self._started:
                self.plane = self.backend.start(self.node)
                self._started = True
            if self.plane is None:
                self.due = float("inf")
                return
            self._tell(self.plane, overlay, touched)
            if now >= self.due:
                self.due = now + CHECK_INTERVAL
                self.problems = dict(self.plane.check())
            self.trouble = ""
        except Exception as error:  # a plugin's fault must not end the loop
            self._failed(error)
            self.due = now + CHECK_INTERVAL
            self._overlay = None

    def _tell(self, plane: DataPlane, overlay: Overlay, touched: set[str]) -> None:
        keys = touched if overlay is self._overlay else {*self._fed, *overlay.peers}
        for key in sorted(keys):
            peer = overlay.peers.get(key)
            lease = overlay.lease(key) if peer is not None and not peer.reason else None
            if peer is not None and lease is not None:
                if self._fed.get(key, ("", None))[0] != peer.value:
                    plane.put(lease)
                    self._fed[key] = (peer.value, lease.subnets)
            elif key in self._fed:
                plane.remove(self._fed.pop(key)[1])
        self._overlay = overlay

    def counters(self) -> Mapping[str, int]:
        """The data plane's totals."""
        try:
            return {} if self.plane is None else dict(self.plane.counters())
        except Exception as error:  # the rest of the status document does not depend on it
            self._failed(error)
            return {}

    def descriptions(self) -> Mapping[str, str]:
        """What the data plane tells of peers, by lease key."""
        try:
            return {} if self.plane is None else {key: str(text) for key, text in self.plane.describe().items()}
        except Exception as error:  # the rest of the status document does not depend on it
            self._failed(error)
            return {}

    def renew(self) -> None:
        """Tell the data plane that an action has changed what the backend says."""
        if self.plane is not None:
            try:
                self.plane.renew()
            except Exception as error:  # a plugin's fault must not end the loop
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        log.debug("the data plane of backend %s failed", self.backend.name, exc_info=True)
        self.trouble = f"the data plane of backend {self.backend.name!r} failed: {type(error).__name__}: {error}"

    def stop(self) -> None:
        """The daemon, or this use of the data plane, ends."""
        if self.plane is not None:
            try:
                self.plane.stop()
            except Exception:
                log.exception("the data plane of backend %s did not stop cleanly", self.backend.name)
