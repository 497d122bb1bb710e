"""The data planes of a backend's own: started, fed, stopped, and handed over from one overlay to the next.

An overlay asks for one, or while the network changes for one of each backend. What runs already for the same node goes
on; a :class:`~pyflannel.planning.feed.Feed` compares what each peer should be told with what it was told.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyflannel.backend import Backend
from pyflannel.daemon.calls import Calls
from pyflannel.planning.feed import Feed, Share
from pyflannel.planning.overlay import Overlay
from pyflannel.planning.transition import Part, Transition

__all__ = ["Planes"]


@dataclass(frozen=True, slots=True)
class _Plane:
    """What is fed, from what, for which backend. ``essential``: this node can't do without it."""

    backend: Backend[Any]
    feed: Feed
    share: Share
    essential: bool


class Planes:
    """The data planes that an overlay asks for.

    :param before: those of the overlay whose place it takes.
    """

    def __init__(
        self, backend: Backend[Any], overlay: Overlay, before: Planes | None, calls: Calls, rng: random.Random
    ) -> None:
        self._calls = calls
        node = overlay.node
        running = before.feeds if before is not None else []
        parts = backend.parts(node) if isinstance(backend, Transition) else [Part(backend, node, lambda lease: lease)]
        planes = []
        for part in parts:
            known = next((feed for feed in running if feed.serves(part.backend, part.node)), None)
            feed = known or Feed(part.backend, part.node, rng)
            planes.append(_Plane(part.backend, feed, Share(overlay, part.lease), part.essential))
        self._planes = tuple(planes)

    @property
    def feeds(self) -> list[Feed]:
        """How each of them is fed."""
        return [plane.feed for plane in self._planes]

    @property
    def troubles(self) -> Iterator[str]:
        """What goes wrong with any of them."""
        return (feed.trouble for feed in self.feeds if feed.trouble)

    @property
    def essential_trouble(self) -> str:
        """What goes wrong with one that this node can't do without."""
        return next((plane.feed.trouble for plane in self._planes if plane.essential and plane.feed.trouble), "")

    @property
    def outage(self) -> str:
        """Why one that this node can't do without serves nobody, although it is there."""
        return next((plane.feed.outage for plane in self._planes if plane.essential and plane.feed.outage), "")

    def outage_of(self, backend: Backend[Any]) -> str:
        """Why that of ``backend`` serves nobody, whether this node needs it or not; empty if all is well."""
        return next((plane.feed.outage for plane in self._planes if plane.backend is backend), "")

    @property
    def settled(self) -> bool:
        """Whether each peer was told what it should be."""
        return all(feed.settled for feed in self.feeds)

    @property
    def essential_settled(self) -> bool:
        """The same of those that this node can't do without."""
        return all(plane.feed.settled for plane in self._planes if plane.essential)

    def tend(self, touched: set[str], now: float) -> None:
        """Tell what has changed, and try again what has failed.

        :param touched: the leases that have changed.
        """
        for plane in self._planes:
            plane.share.touch(touched)
            with self._calls.calling(plane.feed.backend, "its data plane"):
                plane.feed.tend(plane.share, now)

    def renew(self) -> None:
        """Tell everything anew."""
        for feed in self.feeds:
            with self._calls.calling(feed.backend, "its data plane"):
                feed.renew()

    def stop(self) -> None:
        """Stop them all; the next start may take over from them."""
        self._stop(self.feeds)

    def take_over(self, before: Planes) -> None:
        """Stop what goes on no more: for good where the backend does not, else the next one may take over from it."""
        kept, backends = set(map(id, self.feeds)), {type(feed.backend) for feed in self.feeds}
        left = [feed for feed in before.feeds if id(feed) not in kept]
        self._stop(feed for feed in left if type(feed.backend) in backends)
        for feed in left:
            if type(feed.backend) not in backends:
                with self._calls.calling(feed.backend, "end of its data plane"):
                    feed.end()

    def _stop(self, feeds: Iterable[Feed]) -> None:
        for feed in feeds:
            with self._calls.calling(feed.backend, "stop of its data plane"):
                feed.stop()

    def problems(self) -> dict[str, str]:
        """What goes wrong with single peers."""
        return _together(feed.problems for feed in self.feeds)

    def notes(self) -> dict[str, str]:
        """What they tell of peers."""
        return _together(feed.descriptions() for feed in self.feeds)

    def counters(self) -> dict[str, int]:
        """What they count."""
        return {name: count for feed in self.feeds for name, count in feed.counters().items()}


def _together(told: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What data planes tell of peers, as one."""
    found: dict[str, str] = {}
    for each in told:
        for key, text in each.items():
            found[key] = f"{found[key]}; {text}" if key in found else text
    return found
