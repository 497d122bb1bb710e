"""Who else has routes in the overlay's address space: looked at again when routes or interfaces have changed.

What flanneld has left in this network goes; anything else is somebody's, and is named. Two looks have a pause between
them, as routes come and go all the time.
"""

from __future__ import annotations

import logging
from typing import Final

from pyflannel.errors import KernelError
from pyflannel.kernel.port import ForeignLink, ForeignPolicy, ForeignRoute, KernelPort
from pyflannel.kernel.tracker import Tracker
from pyflannel.planning.diversion import diverting, leftovers
from pyflannel.planning.overlay import Overlay

__all__ = ["CHECK_INTERVAL", "DiversionWatch"]

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds between two looks, at least."""

CHECK_INTERVAL: Final = 1.0
"""Seconds between two tries at a kernel that can't be read."""


class DiversionWatch:
    """See the module's docstring.

    :param now: when it begins; nothing is due until :meth:`look_soon`.
    """

    def __init__(self, port: KernelPort, tracker: Tracker, now: float) -> None:
        self._port, self._tracker = port, tracker
        self.found: tuple[ForeignRoute | ForeignPolicy, ...] = ()
        """What diverts the overlay's packets."""
        self.due: float | None = None
        self._seen = now - PAUSE

    def look_soon(self, now: float) -> None:
        """Something may have changed."""
        if self.due is None:
            self.due = max(now, self._seen + PAUSE)

    def look_if_due(self, overlay: Overlay, now: float) -> None:
        """See what there is now, if it is time to."""
        if self.due is not None and now >= self.due:
            self._look(overlay, now)

    def _look(self, overlay: Overlay, now: float) -> None:
        self._seen, self.due = now, None
        own, network = overlay.node.subnets, overlay.node.network
        try:
            around = self._port.look_around()
            routes = diverting(around.routes, overlay.desired, own, network)
            old = leftovers(routes, around.links, overlay.peers.values(), self._tracker.spaces)
            if old:
                names = [each.link.name if isinstance(each, ForeignLink) else str(each) for each in old]
                log.warning("removing what flanneld has left in this network: %s", ", ".join(names))
                for error in self._port.clear(old):
                    log.error("%s", error)
                routes = diverting(self._port.look_around().routes, overlay.desired, own, network)
        except KernelError as error:
            log.debug("can't look for routes of others: %s", error)
            self.due = now + CHECK_INTERVAL
            return
        found: tuple[ForeignRoute | ForeignPolicy, ...] = (*routes, *around.policies)
        for each in found:
            if each not in self.found:
                what = "a route" if isinstance(each, ForeignRoute) else "an IPsec policy"
                log.warning("%s that is not ours diverts the overlay's packets: %s", what, each)
        self.found = found
