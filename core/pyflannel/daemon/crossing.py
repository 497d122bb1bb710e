"""How far this node is in a change of the network: what it has seen of its peers, and what its lease may say of it.

A :class:`Crossing` belongs to one overlay whose backend is a transition. It looks at a peer when that has changed, and
from all of them says which step is due. That the kernel holds what follows from the phase is asked only when saying so
would be something new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyflannel.network.change import NodeProgress, Phase, Step, all_switched, due_step
from pyflannel.planning.overlay import Overlay
from pyflannel.planning.transition import Standing, Transition
from pyflannel.show.status import ChangeStatus

__all__ = ["GRACE", "Crossing"]

GRACE = 2.0
"""Seconds from when the last peer has said that it sends by the new settings until none of what it sent by the former
ones is on its way any more."""


class Crossing:
    """See the module's docstring."""

    def __init__(self, overlay: Overlay, transition: Transition) -> None:
        self.transition = transition
        self._overlay = overlay
        self._standings: dict[str, Standing] = {}
        self._switched_since: float | None = None
        self.see(overlay.peers)

    def see(self, keys: Iterable[str]) -> None:
        """These peers have come, changed or gone."""
        for key in list(keys):
            peer = self._overlay.peers.get(key)
            lease = self._overlay.lease(key) if peer is not None and not peer.reason else None
            if lease is None:
                self._standings.pop(key, None)
            else:
                self._standings[key] = self.transition.standing(self._overlay.node, lease)

    def graced(self, now: float) -> bool:
        """Whether nothing sent by the former settings can be on its way any more."""
        if self.transition.graced:
            return True
        steps = [each.step for each in self._awaited().values()]
        if self.transition.change.phase is not Phase.RETIRE or not all_switched(steps):
            self._switched_since = None
            return False
        if self._switched_since is None:
            self._switched_since = now
        return now - self._switched_since >= GRACE

    @property
    def due(self) -> float | None:
        """When :meth:`graced` may answer otherwise, though nothing else happens."""
        if self._switched_since is None or self.transition.graced:
            return None
        return self._switched_since + GRACE

    def _awaited(self) -> dict[str, Standing]:
        without = self.transition.change.without
        return {key: each for key, each in self._standings.items() if not {key, each.node_id} & {*without}}

    def progress(self, now: Step | None, in_place: Callable[[], bool], trouble: str) -> NodeProgress:
        """What our lease should say; it says ``now`` at present.

        :param trouble: what goes wrong with the new settings on this node.
        """
        change, awaited = self.transition.change, list(self._awaited().values())
        trouble = trouble or next((each.trouble for each in awaited if each.trouble), "")
        step = due_step(
            change.phase,
            in_place=True,
            all_new=all(each.by_next for each in awaited),
            graced=self.transition.graced,
            now=now,
        )
        if step is Step.PREPARED and (trouble or not all(each.told for each in awaited)):
            step = now if now is Step.PREPARED else None
        if step != now and not in_place():
            step = now
        return NodeProgress(change.id, step, trouble=trouble[:200])

    def standing(self, said: NodeProgress) -> ChangeStatus:
        """For whoever looks at this node."""
        transition = self.transition
        return ChangeStatus(
            transition.change.id,
            transition.change.phase.value,
            transition.former.name,
            transition.following.name,
            said.step.value if said.step is not None else "",
            said.trouble,
            tuple(sorted(key for key, each in self._awaited().items() if self._is_behind(each))),
        )

    def _is_behind(self, peer: Standing) -> bool:
        if self.transition.change.phase is Phase.SWITCH:
            return not peer.by_next
        if self.transition.change.phase is Phase.RETIRE:
            return not all_switched([peer.step])
        return not peer.told
