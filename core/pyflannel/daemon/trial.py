"""Whether packets get to the peers by the new settings: tried before the first one that matters is sent that way.

That kernel and data plane hold all that was planned says nothing of what lies between two nodes: a firewall that does
not let the new port through, a session that has yet to be agreed. So while a change is being prepared, each node pings
each peer by the new device, whatever the routes say; the peer answers by the former way, as it sends everything. A
second ping takes the former way: a peer that answers that one alone is not reached by the new settings, and is waited
for. Who answers neither says nothing, and holds nothing up for longer than :data:`MUTE_AFTER`.

Pings go on at long intervals until the phase is over, so that what was agreed holds when the nodes switch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from pyflannel.errors import KernelError
from pyflannel.network.lease import IPAddress

__all__ = ["FAILED_AFTER", "KEPT_EVERY", "MUTE_AFTER", "Pinger", "Trials", "Way"]

log = logging.getLogger(__name__)

FAILED_AFTER: Final = 8.0
"""Seconds until a peer that answers by the former way alone is said not to be reached: by then WireGuard, in the kernel
too, has begun an unanswered handshake again."""
MUTE_AFTER: Final = 10.0
"""Seconds until a peer that has answered nothing is taken for one that answers no pings."""
KEPT_EVERY: Final = 10.0
"""Seconds between two pings of a peer that is reached."""
_PAUSES: Final = (0.1, 0.2, 0.4, 0.8, 1.0)
"""Seconds until the next ping of one that is not: the last of them again and again."""
_LOOK, _LATER_LOOK = 0.05, 0.5
"""Seconds between two looks for answers: at first, and to peers that have been waited for for long."""
_AT_ONCE: Final = 500
"""Pings in one turn of the loop."""

Way = tuple[IPAddress, str]
"""An address of a peer's that should answer, and the device by which the new settings reach it."""


class Pinger(Protocol):
    """Sends pings, as :class:`pyflannel.small.ping.Echoes` does."""

    def ask(self, address: IPAddress, number: int, link: str = "") -> None:
        """Ping once, by a device or by the routes."""

    def answers(self) -> Iterator[int]:
        """The numbers of those that were answered."""

    def close(self) -> None:
        """Ask no more."""


@dataclass(slots=True)
class _Trial:
    """One way of one peer. ``arrived``: an answer to a ping by the new device; ``answers``: to one by the routes."""

    way: Way
    began: float
    due: float
    tries: int = 0
    arrived: bool = False
    answers: bool = False

    def waits(self, now: float) -> bool:
        """Whether it should not be used yet."""
        return not self.arrived and (self.answers or now - self.began < MUTE_AFTER)

    def fails(self, now: float) -> bool:
        """Whether it has been waited for so long that something must be wrong."""
        return not self.arrived and self.answers and now - self.began >= FAILED_AFTER


class Trials:
    """The ways by which the peers are to be reached, and what is known of each.

    :param open_pinger: called when there is something to try.
    """

    def __init__(self, open_pinger: Callable[[], Pinger]) -> None:
        self._open = open_pinger
        self._pinger: Pinger | None = None
        self._by_number: dict[int, _Trial] = {}
        self._by_peer: dict[str, dict[Way, int]] = {}
        self._next = 0
        self._may = True

    def want(self, peer: str, ways: Iterable[Way], now: float) -> None:
        """These are a peer's ways; what is known of those that it had before stays."""
        before = self._by_peer.pop(peer, {})
        found = {way: before.pop(way, None) for way in ways}
        for number in before.values():
            del self._by_number[number]
        if found and self._may:
            self._by_peer[peer] = {
                way: self._begin(way, now) if number is None else number for way, number in found.items()
            }

    def _begin(self, way: Way, now: float) -> int:
        self._next += 1
        self._by_number[self._next] = _Trial(way, now, now)
        return self._next

    def tend(self, now: float) -> None:
        """Take the answers in, and ask who is to be asked."""
        pinger = self._opened()
        if pinger is None:
            return
        for answered in pinger.answers():
            trial = self._by_number.get(answered >> 1)
            if trial is not None:
                trial.arrived |= not answered & 1
                trial.answers |= bool(answered & 1)
        asked = 0
        for number, trial in self._by_number.items():
            if trial.due <= now and asked < _AT_ONCE:
                asked += 1
                self._ask(pinger, number, trial, now)

    def _opened(self) -> Pinger | None:
        """What to ask with; ``None`` if nobody is to be asked, or this process may not."""
        if self._pinger is None and self._by_number:
            try:
                self._pinger = self._open()
            except KernelError as error:
                log.warning("whether peers are reached by the new settings is not tried: %s", error)
                self._may = False
                self._by_number, self._by_peer = {}, {}
        return self._pinger

    def _ask(self, pinger: Pinger, number: int, trial: _Trial, now: float) -> None:
        address, link = trial.way
        pinger.ask(address, number << 1, link)
        if not trial.arrived:
            pinger.ask(address, number << 1 | 1)
        pause = KEPT_EVERY if trial.arrived else _PAUSES[min(trial.tries, len(_PAUSES) - 1)]
        trial.tries, trial.due = trial.tries + 1, now + pause

    def due(self, now: float) -> float:
        """When :meth:`tend` is to be called again; infinite if never."""
        waiting = [trial.began for trial in self._by_number.values() if trial.waits(now)]
        if waiting:
            return now + (_LOOK if now - max(waiting) < MUTE_AFTER else _LATER_LOOK)
        return min((trial.due for trial in self._by_number.values()), default=math.inf)

    def waiting(self, now: float) -> Iterator[str]:
        """Peers that should not be sent to by the new settings yet."""
        for peer, numbers in self._by_peer.items():
            if any(self._by_number[number].waits(now) for number in numbers.values()):
                yield peer

    def failing(self, now: float) -> Iterator[IPAddress]:
        """Addresses that answer, and that the new settings should have reached by now."""
        return (trial.way[0] for trial in self._by_number.values() if trial.fails(now))

    def close(self) -> None:
        """Try no more."""
        if self._pinger is not None:
            self._pinger.close()
        self._pinger = None
        self._by_number, self._by_peer = {}, {}
