"""How far this node is in a change of the network: what it has seen of its peers, and what its lease may say of it.

A :class:`Crossing` belongs to one overlay whose backend is a transition. It looks at a peer when that has changed. That
costs as much as planning for it, so of many peers some have their turn at a time. From what it has seen of all of them
it says which step is due. That the kernel holds what follows from the phase is asked only when saying so would be
something new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

from pyflannel.daemon.trial import Trials
from pyflannel.membership.slot import Generation, LeaseState
from pyflannel.network.change import LEASE_KEY, NodeProgress, Phase, Step, all_switched, due_step
from pyflannel.planning.overlay import Overlay
from pyflannel.planning.transition import Transition
from pyflannel.show.status import ChangeStatus

__all__ = ["GRACE", "Crossing", "as_far", "own_progress"]

GRACE = 2.0
"""Seconds from when the last peer has said that it sends by the new settings until none of what it sent by the former
ones is on its way any more. On the way back: from when this node sends by the former ones until what it sent by the new
ones has arrived."""


AT_ONCE = 500
"""Peers that are looked at in one turn of the loop."""


class Crossing:
    """This node's part in one change of the network.

    :param trials: finds out whether peers are reached by the new settings; ``None`` where nobody can.
    """

    def __init__(self, overlay: Overlay, transition: Transition, trials: Trials | None = None) -> None:
        self.transition = transition
        self._overlay = overlay
        self._trials = trials
        self._unseen: dict[str, None] = dict.fromkeys(overlay.peers)
        """Peers that have changed since they were looked at."""
        self._silent: set[str] = set()
        self._by_former: set[str] = set()
        self._unswitched: set[str] = set()
        """Peers that have not said how they are reached by the new settings; that are not sent to by them; that may
        send by the former ones."""
        self._untried: set[str] = set()
        """Peers of which it is not known yet whether packets get to them by the new settings."""
        self._troubles: dict[str, str] = {}
        self._switched_since: float | None = None
        self._back_since: float | None = None

    def see(self, keys: Iterable[str]) -> None:
        """These peers have come, changed or gone."""
        self._unseen.update(dict.fromkeys(keys))

    @property
    def complete(self) -> bool:
        """Whether all peers have been looked at as they are."""
        return not self._unseen

    def look(self, now: float) -> None:
        """Look at some of the peers that have changed, and try to reach those that are to be tried."""
        for key in list(islice(self._unseen, AT_ONCE)):
            del self._unseen[key]
            self._look_at(key, now)
        if self._trials is not None:
            self._trials.tend(now)

    def _look_at(self, key: str, now: float) -> None:
        peer = self._overlay.peers.get(key)
        lease = self._overlay.lease(key) if peer is not None and not peer.reason else None
        seen = None if lease is None else self.transition.standing(self._overlay.node, lease)
        if seen is not None and {key, seen.node_id} & {*self.transition.change.without}:
            seen = None
        for keys, behind in (
            (self._silent, seen is not None and not seen.told),
            (self._by_former, seen is not None and not seen.by_next),
            (self._unswitched, seen is not None and not all_switched([seen.step])),
        ):
            (keys.add if behind else keys.discard)(key)
        if self._trials is not None:
            self._trials.want(key, seen.ways if seen is not None else (), now)
        self._troubles.pop(key, None)
        if seen is not None and seen.trouble:
            self._troubles[key] = seen.trouble

    def graced(self, now: float) -> bool:
        """Whether nothing sent by the former settings can be on its way any more."""
        if self.transition.graced:
            return True
        if self.transition.change.phase is not Phase.RETIRE or self._unswitched or not self.complete:
            self._switched_since = None
            return False
        if self._switched_since is None:
            self._switched_since = now
        return now - self._switched_since >= GRACE

    def _returned(self, now: float, in_place: Callable[[], bool]) -> bool:
        """Whether this node sends by the former settings again, and nothing that it sent by the new ones is on its way:
        until then the peers have to receive it.
        """
        if self.transition.change.phase is not Phase.BACK:
            return False
        if self._back_since is None and in_place():
            self._back_since = now
        return self._back_since is not None and now - self._back_since >= GRACE

    def due(self, now: float) -> float:
        """When one of the others or the trials may answer otherwise, though nothing else happens; infinite if never."""
        if self._back_since is not None:
            end = self._back_since + GRACE
            return end if end > now else math.inf
        if self._trials is not None and self.transition.change.phase is Phase.PREPARE:
            return self._trials.due(now)
        if self._switched_since is None or self.transition.graced:
            return math.inf
        return self._switched_since + GRACE

    def progress(self, now: Step | None, in_place: Callable[[], bool], trouble: str, at: float = 0.0) -> NodeProgress:
        """What our lease should say; it says ``now`` at present.

        :param trouble: what goes wrong with the new settings on this node.
        :param at: the time.
        """
        change = self.transition.change
        if not self.complete:
            return NodeProgress(change.id, now, trouble=trouble)
        trouble = trouble or next(iter(self._troubles.values()), "") or self._unreached(at)
        step = due_step(
            change.phase,
            in_place=True,
            all_new=not self._by_former,
            graced=self.transition.graced or self._returned(at, in_place),
            now=now,
        )
        self._untried = set(self._trials.waiting(at)) if self._trials is not None else set()
        if step is Step.PREPARED and (trouble or self._silent or self._untried):
            step = now if now is Step.PREPARED else None
        if step != now and not in_place():
            step = now
        return NodeProgress(change.id, step, trouble=trouble)

    def _unreached(self, now: float) -> str:
        """What to say of a peer that answers by the former settings and not by the new ones."""
        address = next(self._trials.failing(now), None) if self._trials is not None else None
        if address is None:
            return ""
        former, following = self.transition.former.name, self.transition.following.name
        return f"{address} answers pings by {former}, and not by {following}: is its port closed on the way?"

    def close(self) -> None:
        """This part of the change is over."""
        if self._trials is not None:
            self._trials.close()

    def status(self, said: NodeProgress) -> ChangeStatus:
        """For whoever looks at this node."""
        transition = self.transition
        return ChangeStatus(
            transition.change.id,
            transition.change.phase.value,
            transition.former.name,
            transition.following.name,
            said.step.value if said.step is not None else "",
            said.trouble,
            tuple(sorted(self._behind)),
        )

    @property
    def _behind(self) -> set[str]:
        """Whom this node waits for."""
        if self.transition.change.phase is Phase.SWITCH:
            return self._by_former
        return self._unswitched if self.transition.change.phase is Phase.RETIRE else self._silent | self._untried


def own_progress(state: LeaseState, change_id: str) -> NodeProgress:
    """What our lease says of a change."""
    said = None if state.lease is None else NodeProgress.from_json(state.lease.attributes.extra.get(LEASE_KEY))
    return said if said is not None and said.id == change_id else NodeProgress(change_id)


def as_far(generation: Generation, state: LeaseState, known: Crossing | None) -> Generation:
    """A generation that is in a change, as far in it as this node is.

    :param known: the change in which the node is already, which may be this one.
    """
    backend = generation.backend
    if not isinstance(backend, Transition):
        return generation
    graced = backend.graced or (
        known is not None and known.transition.change == backend.change and known.transition.graced
    )
    return replace(generation, backend=backend.at(own_progress(state, backend.change.id).step, graced))
