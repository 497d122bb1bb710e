"""Changing a running network: how far it has got, and what follows from that. Pure rules over frozen values.

The idea is *make before break, by state in the store*. While a change is under way, the network document carries it in
a key of its own (:data:`DOCUMENT_KEY`), which flanneld ignores, beside the settings that hold until its end. Every
node's lease says how far that node is (:data:`LEASE_KEY`). Nobody calls anybody: each node looks at the document and at
its peers' leases, and does what the rules below say, whatever it did before. So it does not matter who was late, who
was restarted and in which order anybody learned of anything.

======== =====================================================================================================
phase    what a node does
======== =====================================================================================================
PREPARE  runs both settings and receives on both; sends by the former; says ``prepared`` once its kernel holds both
SWITCH   sends to each peer by the new settings as soon as that peer receives there; says ``switched`` once it does so
         to all
RETIRE   sends by the new settings; stops receiving on the former when every peer it knows of has switched, and a
         grace for what is still on its way has passed; says ``retired``
BACK     sends by the former settings again (everybody still receives there); says ``reverted`` when it has done so to
         all for as long as that grace
======== =====================================================================================================

The document moves on from PREPARE, SWITCH and RETIRE when every node has said so, and then holds the new settings only
(or, after BACK, the former). That is all that two nodes have to agree on: nobody ever sends where the other does not
receive. ``tests/change_model.py`` goes through every order of events.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from pyflannel.errors import ConfigError
from pyflannel.network.lease import JSON, Lease
from pyflannel.network.parsing import json_object
from pyflannel.small.text import inert

__all__ = [
    "DOCUMENT_KEY",
    "LAST_KEY",
    "LEASE_KEY",
    "Ending",
    "NetworkChange",
    "NodeProgress",
    "Phase",
    "Sides",
    "Step",
    "Written",
    "all_switched",
    "due_step",
    "finished",
    "in_force",
    "read",
    "receives",
    "sends_new",
    "sides",
    "step_apart",
]

DOCUMENT_KEY: Final = "Change"
"""The key of the network document under which a change that is under way stands."""

LAST_KEY: Final = "LastChange"
"""The key of the network document that names the last change that came to its end, or that was made by force."""

LEASE_KEY: Final = "Change"
"""The key of a lease's attributes under which its node says how far it is."""

_ID: Final = re.compile(r"[0-9a-f]{16}")

MOST_EARLIER: Final = 16
"""Changes before the last one that the document names."""


class Phase(str, Enum):
    """How far the change is, as the document says it; see the table in the module's docstring."""

    PREPARE = "prepare"
    SWITCH = "switch"
    RETIRE = "retire"
    BACK = "back"


class Step(str, Enum):
    """How far one node is, as its lease says it. ``DONE``: what the lease says besides is of the new settings."""

    PREPARED = "prepared"
    SWITCHED = "switched"
    RETIRED = "retired"
    REVERTED = "reverted"
    DONE = "done"


class Ending(str, Enum):
    """How the last change ended. ``FORCED``: somebody wrote the document for all nodes to follow when they start."""

    MOVED = "done"
    BACK = "back"
    FORCED = "forced"


_FINISHED: Final = {
    Phase.PREPARE: frozenset({Step.PREPARED, Step.SWITCHED}),
    Phase.SWITCH: frozenset({Step.SWITCHED, Step.RETIRED}),
    Phase.RETIRE: frozenset({Step.RETIRED, Step.DONE}),
    Phase.BACK: frozenset({Step.REVERTED}),
}
"""What every node must have said before the document may leave a phase."""


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """A change that is under way.

    :param id: 16 hexadecimal digits; tells this change from every other one.
    :param target: the document that holds after the change, as it would stand alone.
    :param began: when it was begun, RFC 3339, for people; ``since``: when this phase was.
    :param without: node ids, or keys of leases, that the operator decided not to wait for.
    """

    id: str
    phase: Phase
    target: Mapping[str, JSON]
    began: str = ""
    without: tuple[str, ...] = ()
    since: str = ""

    def at(self, phase: Phase, since: str = "") -> NetworkChange:
        """The same change in another phase."""
        return replace(self, phase=phase, since=since)

    def to_json(self) -> JSON:
        """What stands under :data:`DOCUMENT_KEY`."""
        return {
            "Id": self.id,
            "Phase": self.phase.value,
            "To": dict(self.target),
            "Began": self.began,
            "Since": self.since,
            "Without": list(self.without),
        }

    @classmethod
    def from_json(cls, value: JSON, source: str) -> NetworkChange:
        """Read what stands under :data:`DOCUMENT_KEY`.

        :raises ConfigError: it is not what :meth:`to_json` writes.
        """
        if not isinstance(value, dict):
            raise ConfigError(f"{source}: {DOCUMENT_KEY} is {type(value).__name__}: must be an object")
        identity, target, without = value.get("Id"), value.get("To"), value.get("Without", [])
        if not isinstance(identity, str) or not _is_id(identity):
            raise ConfigError(f"{source}: {DOCUMENT_KEY}.Id is {identity!r:.60}: must be 16 hexadecimal digits")
        if not isinstance(target, dict):
            raise ConfigError(f"{source}: {DOCUMENT_KEY}.To must be the network document that is to hold")
        if not isinstance(without, list) or not all(isinstance(node, str) for node in without):
            raise ConfigError(f"{source}: {DOCUMENT_KEY}.Without must be a list of node ids")
        try:
            phase = Phase(value.get("Phase"))
        except ValueError:
            known = ", ".join(phase.value for phase in Phase)
            raise ConfigError(
                f"{source}: {DOCUMENT_KEY}.Phase is {value.get('Phase')!r:.60}: must be one of {known}"
            ) from None
        began, since = (_moment(value.get(name)) for name in ("Began", "Since"))
        return cls(identity, phase, target, began, tuple(without), since)


def _moment(value: JSON) -> str:
    """A time as it is shown to people; empty if what stands there is no such text."""
    return inert(value[:40]) if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Written:
    """A network document, taken apart.

    :param settings: what holds: the document without what this module keeps in it.
    :param change: the change that is under way, if one is.
    :param last: the last change that came to an end, empty if there was none; ``outcome``: which one.
    :param earlier: those that had ended before that one, the newest first.
    """

    settings: Mapping[str, JSON]
    change: NetworkChange | None = None
    last: str = ""
    outcome: Ending | None = None
    earlier: tuple[str, ...] = ()

    def precedes(self, other: Written) -> bool:
        """Whether this is what the store held before ``other``, as one does that was restored from a backup."""
        over = {other.last, *other.earlier} - {""}
        return self.last in other.earlier or (self.change is not None and self.change.id in over)

    @property
    def moved(self) -> bool:
        """Whether the last change ended with its new settings."""
        return self.outcome is Ending.MOVED

    @property
    def agreed(self) -> bool:
        """Whether these settings are what all nodes have gone over to together, or are about to leave together."""
        return self.change is not None or self.outcome in (Ending.MOVED, Ending.BACK)

    @property
    def text(self) -> str:
        """The settings alone, as a document."""
        return json.dumps(self.settings)

    def with_change(self, change: NetworkChange) -> str:
        """The document with a change under way."""
        return json.dumps({**self._noted(), DOCUMENT_KEY: change.to_json()})

    def ended(self, change: NetworkChange, at: str) -> str:
        """The document after a change: with its new settings, or after BACK with those that it had."""
        outcome = Ending.BACK if change.phase is Phase.BACK else Ending.MOVED
        settings = self.settings if outcome is Ending.BACK else change.target
        return json.dumps({**settings, **_note(change.id, outcome, self._over, at)})

    def forced(self, identity: str, at: str) -> str:
        """The document as one that nodes are to follow when they start, whomever they reach by it."""
        return json.dumps({**self.settings, **_note(identity, Ending.FORCED, self._over, at)})

    def noting(self, before: Written) -> str:
        """The document with the note that ``before`` has; empty if that has none."""
        return "" if before.outcome is None else json.dumps({**self.settings, **before._last_noted()})

    @property
    def _over(self) -> tuple[str, ...]:
        """The changes that have come to their end, the newest first."""
        return (self.last, *self.earlier) if self.last else ()

    def _noted(self) -> dict[str, JSON]:
        return {**self.settings, **self._last_noted()}

    def _last_noted(self) -> dict[str, JSON]:
        return {} if self.outcome is None else _note(self.last, self.outcome, self.earlier)


def _note(identity: str, outcome: Ending, earlier: Sequence[str], at: str = "") -> dict[str, JSON]:
    before = [*earlier[:MOST_EARLIER]]
    times, ids = ({"Ended": at} if at else {}), ({"Before": before} if before else {})
    return {LAST_KEY: {"Id": identity, "Outcome": outcome.value, **times, **ids}}


def read(text: str, source: str = "network config") -> Written:
    """Take a network document apart; whether its settings can be followed is not looked at.

    :raises ConfigError: it is too long or no JSON object, or the change can't be read.
    """
    document = json_object(text, source)
    value, last = document.pop(DOCUMENT_KEY, None), document.pop(LAST_KEY, None)
    change = None if value is None else NetworkChange.from_json(value, source)
    return Written(document, change, *_read_note(last))


def _read_note(note: JSON) -> tuple[str, Ending | None, tuple[str, ...]]:
    """Id and outcome of the last change, and the ids of those before it; nothing if it can't be read."""
    if not isinstance(note, dict) or not _is_id(note.get("Id")):
        return "", None, ()
    before = note.get("Before")
    earlier = tuple(filter(_is_id, before[:MOST_EARLIER])) if isinstance(before, list) else ()
    try:
        return note["Id"], Ending(note.get("Outcome")), earlier
    except ValueError:
        return "", None, ()


def _is_id(value: JSON) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


LONGEST_TROUBLE: Final = 400
"""Characters of what a lease says that keeps its node."""


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """What one node's lease says of a change.

    ``step`` is ``None`` while the node is not yet prepared. ``trouble`` says what keeps it from going on.
    ``backend_type`` names the new settings' backend once ``data`` and ``v6_data`` are what that publishes; until then
    it is ``None``.
    """

    id: str
    step: Step | None = None
    backend_type: str | None = None
    data: JSON = None
    v6_data: JSON = None
    trouble: str = ""

    def __post_init__(self) -> None:
        if len(self.trouble) > LONGEST_TROUBLE:
            object.__setattr__(self, "trouble", f"{self.trouble[: LONGEST_TROUBLE - 3]}...")

    def to_json(self) -> JSON:
        """What stands under :data:`LEASE_KEY`."""
        fields = {
            "Id": self.id,
            "Step": self.step.value if self.step else None,
            "BackendType": self.backend_type,
            "BackendData": self.data,
            "BackendV6Data": self.v6_data,
            "Trouble": self.trouble or None,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_json(cls, value: JSON) -> NodeProgress | None:
        """What stands under :data:`LEASE_KEY`; ``None`` if nothing that can be read does."""
        if not isinstance(value, dict) or not isinstance(value.get("Id"), str):
            return None
        kind, step, trouble = value.get("BackendType"), value.get("Step"), value.get("Trouble")
        try:
            known = None if step is None else Step(step)
        except ValueError:
            known = None
        return cls(
            value["Id"],
            known,
            kind if isinstance(kind, str) else None,
            value.get("BackendData"),
            value.get("BackendV6Data"),
            trouble if isinstance(trouble, str) else "",
        )


# The rules


def receives(phase: Phase, graced: bool) -> tuple[bool, bool]:
    """Whether a node receives by the former settings, and by the new ones.

    :param graced: every peer has switched, so long ago that nothing sent by the former settings is on its way any more.
    """
    return (not (phase is Phase.RETIRE and graced), True)


def all_switched(steps: Iterable[Step | None]) -> bool:
    """Whether every peer sends by the new settings, by what their leases say."""
    return all(step in (Step.SWITCHED, Step.RETIRED, Step.DONE) for step in steps)


def sends_new(phase: Phase, peer: Step | None, own: Step | None) -> bool:
    """Whether a node sends to a peer by the new settings, by how far both leases say that they are.

    A node that has said ``switched`` is believed to send to nobody by the former settings any more. So whoever comes
    after that is sent to by the new ones from the beginning. It goes on with that also where a store that was restored
    from a backup has brought PREPARE back: perhaps nobody receives by the former ones any more.
    """
    if phase is Phase.RETIRE:
        return True
    there = peer in (Step.PREPARED, Step.SWITCHED, Step.RETIRED, Step.DONE)
    switched = own in (Step.SWITCHED, Step.RETIRED)
    return (there or switched) if phase is Phase.SWITCH else phase is Phase.PREPARE and there and switched


def due_step(phase: Phase, *, in_place: bool, all_new: bool, graced: bool, now: Step | None) -> Step | None:
    """What a node's lease should say.

    :param in_place: the kernel holds all that follows from the phase.
    :param all_new: every peer is sent to by the new settings.
    :param graced: nothing sent by the settings that go is on its way any more: by the peers (see :func:`receives`), or,
        in BACK, by this node.
    :param now: what the lease says.
    """
    if not in_place:
        return now
    if phase is Phase.PREPARE:
        return Step.SWITCHED if all_new and now in (Step.SWITCHED, Step.RETIRED) else Step.PREPARED
    if phase is Phase.SWITCH:
        return Step.SWITCHED if all_new else Step.PREPARED if now in (None, Step.REVERTED) else now
    if phase is Phase.RETIRE:
        return Step.RETIRED if graced or now is Step.RETIRED else Step.SWITCHED
    return Step.REVERTED if graced else now


def step_apart(phase: Phase) -> Step | None:
    """What a node's lease should say that can't have the new settings: it sends by the former ones, whatever comes."""
    return Step.REVERTED if phase is Phase.BACK else None


def finished(change: NetworkChange, steps: Mapping[str, Step | None], without: Collection[str] = ()) -> tuple[str, ...]:
    """Who keeps the change in its phase: the lease keys of ``steps`` (key to what the lease says) that are not there.

    Empty when the document may move on.
    """
    wanted = _FINISHED[change.phase]
    return tuple(sorted(key for key, step in steps.items() if step not in wanted and key not in without))


@dataclass(frozen=True, slots=True)
class Sides:
    """A peer's lease, taken apart: as it is under the former settings and under the new ones.

    ``new`` is ``None`` while the peer has not said how it is reached there; ``old`` when it has no former side any
    more.
    """

    old: Lease | None
    new: Lease | None
    step: Step | None


def sides(lease: Lease, change_id: str) -> Sides:
    """What a lease says of the change ``change_id``."""
    progress = NodeProgress.from_json(lease.attributes.extra.get(LEASE_KEY))
    if progress is None or progress.id != change_id:
        return Sides(lease, None, None)
    if progress.step is Step.DONE:
        return Sides(None, lease, progress.step)
    if progress.backend_type is None:
        return Sides(lease, None, None)
    attributes = replace(
        lease.attributes,
        backend_type=progress.backend_type,
        backend_data=progress.data,
        backend_v6_data=progress.v6_data,
    )
    return Sides(lease, lease.with_attributes(attributes), progress.step)


def in_force(lease: Lease, last: str) -> Lease:
    """A lease as it is under the settings that hold since the change ``last`` has ended with them.

    A node that is late still says them beside the former ones.
    """
    return (sides(lease, last).new or lease) if last else lease
