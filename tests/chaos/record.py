"""What was seen in a run, as values: all that the judge and the report know. Times are seconds from the beginning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tests.chaos.plan import Plan

__all__ = ["ALL", "Change", "Claim", "Death", "Hindrance", "History", "Look", "Mood", "Outage", "Sample"]

ALL: Final = ""
"""The node of what hinders everybody."""


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Something that kept a node, or everybody, from what it has to do; ``what`` is as in :class:`~.plan.Kind`."""

    node: str
    kind: str
    what: str
    begin: float
    end: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Outage:
    """Packets of one stream that did not arrive, ``lost`` of them one after the other."""

    source: str
    target: str
    version: int
    begin: float
    end: float
    lost: int


@dataclass(frozen=True, slots=True)
class Change:
    """One key of the store and its new value, ``None`` when it is gone."""

    at: float
    key: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A node said that a lease is its own, and valid."""

    at: float
    node: str
    node_id: str
    key: str


@dataclass(frozen=True, slots=True)
class Mood:
    """How a node said it was, until it said something else. ``state`` is ``silent`` if it said nothing."""

    at: float
    node: str
    state: str
    message: str


@dataclass(frozen=True, slots=True)
class Look:
    """Something found wrong by a close look at a node that nothing had befallen for the promised time.

    :param promise: its name in docs/reliability.md.
    """

    at: float
    node: str
    promise: str
    what: str


@dataclass(frozen=True, slots=True)
class Death:
    """A daemon ended though nobody had killed it."""

    at: float
    node: str
    status: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What a daemon needed: bytes of memory, descriptors, threads."""

    at: float
    node: str
    life: int
    memory: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class History:
    """A whole run.

    :param looked: node and time of each close look, whatever it found.
    :param repairs: time, node, and how many objects a node has put right that something else had changed.
    :param stored: time, keys of the store, and bytes in use on its disk, at the beginning and at each close look.
    :param figures: whatever the report shows besides.
    """

    plan: Plan
    ended: float = 0.0
    hindrances: list[Hindrance] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    moods: list[Mood] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    looked: list[tuple[float, str]] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    repairs: list[tuple[float, str, int]] = field(default_factory=list)
    stored: list[tuple[float, int, int]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The whole of it as one document."""
        return json.dumps({**asdict(self), "plan": self.plan.to_json()})

    @classmethod
    def from_json(cls, text: str) -> History:
        """Read what :meth:`to_json` made."""
        document: Mapping[str, Any] = json.loads(text)
        kinds: dict[str, Any] = {
            "hindrances": Hindrance,
            "outages": Outage,
            "changes": Change,
            "claims": Claim,
            "moods": Mood,
            "looks": Look,
            "deaths": Death,
            "samples": Sample,
        }
        fields: dict[str, Any] = {name: [kind(**one) for one in document[name]] for name, kind in kinds.items()}
        pairs = ("looked", "repairs", "stored")
        fields |= {name: [tuple(one) for one in document.get(name, ())] for name in pairs}
        return cls(Plan.from_json(document["plan"]), document["ended"], figures=document["figures"], **fields)
