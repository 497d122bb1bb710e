"""Who else takes packets of the overlay away: looked at again when routes, rules or interfaces have changed.

What flanneld has left in this network goes; anything else is somebody's, and is named. Two looks have a pause between
them, as routes come and go all the time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from pyflannel.errors import KernelError, MalformedError
from pyflannel.kernel.port import ForeignLink, ForeignPolicy, ForeignRoute, ForeignRule, KernelPort, Surroundings
from pyflannel.kernel.tracker import Tracker
from pyflannel.network.lease import Subnets
from pyflannel.planning.diversion import diverting, leftovers, packets, to_blame
from pyflannel.planning.overlay import Overlay

__all__ = ["CHECK_INTERVAL", "DiversionWatch"]

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds between two looks, at least."""

CHECK_INTERVAL: Final = 1.0
"""Seconds between two tries at a kernel that can't be read."""


Foreign: TypeAlias = ForeignRoute | ForeignPolicy | ForeignRule

_WHAT: Final[Mapping[type, str]] = {
    ForeignRoute: "a route",
    ForeignPolicy: "an IPsec policy",
    ForeignRule: "a policy rule",
}


class DiversionWatch:
    """See the module's docstring.

    :param now: when it begins; nothing is due until :meth:`look_soon`.
    """

    def __init__(self, port: KernelPort, tracker: Tracker, now: float) -> None:
        self._port, self._tracker = port, tracker
        self.found: tuple[Foreign, ...] = ()
        """What diverts the overlay's packets."""
        self.suspects: tuple[ForeignRule, ...] = ()
        """Others' rules that may; what they do depends on routes and on the containers' bridge, too."""
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
            rules = self._at_fault(around, overlay)
        except KernelError as error:
            log.debug("can't look for routes of others: %s", error)
            self.due = now + CHECK_INTERVAL
            return
        found: tuple[Foreign, ...] = (*routes, *around.policies, *rules)
        for each in found:
            if each not in self.found:
                what = _WHAT[type(each)]
                log.warning("%s that is not ours diverts the overlay's packets: %s", what, each)
        self.found = found

    def _at_fault(self, around: Surroundings, overlay: Overlay) -> tuple[ForeignRule, ...]:
        """Others' rules by which packets of the overlay go astray: the kernel is asked where it would send some."""
        self.suspects = around.rules
        if not around.rules:
            return ()
        own = overlay.node.subnets
        bridges: dict[int, str] = {
            subnet.version: each.link.name
            for subnet in own.each
            for each in around.links
            if each.link.up and any(address.ip in subnet for address in each.addresses)
        }
        asked = packets(around.rules, _subnets(overlay), own, bridges)
        answers = self._port.ask_ways(asked)
        ours = {overlay.node.underlay.interface, *(link.name for link in overlay.links)}
        return to_blame(around.rules, zip(asked, answers, strict=True), ours)


def _subnets(overlay: Overlay) -> Iterator[Subnets]:
    """The peers'; of a key that is none nothing is routed."""
    for key in overlay.peers:
        try:
            yield Subnets.from_key(key)
        except MalformedError:
            continue
