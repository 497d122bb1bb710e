"""Where a lease's home is, and what is to be done with its copy: decided from what two stores hold, and nothing else.

Each lease has a *home*, the store that its node works on, and is copied from there to the other one. The home is found
without a mark in the text, which stays exactly as it is:

* a copy lives :data:`HANDICAP` seconds less than its original, so the copy of a node that renews in one place is the
  one that expires first, and the first renewal by a node of what was a copy shows: it outlives what we wrote;
* what we did not write at the other place (another version, another handle, a later expiry) its node did: it has moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from pyflannel.errors import MalformedError
from pyflannel.network.lease import Lease
from pyflannel.network.ranges import Ranges
from pyflannel.store import Record, Snapshot

__all__ = [
    "HANDICAP",
    "LAG",
    "SOURCE",
    "TARGET",
    "TOLERANCE",
    "Decision",
    "Known",
    "Move",
    "Seen",
    "contradictions",
    "ends_early",
    "owner",
    "readable",
    "settle",
]

SOURCE, TARGET = 0, 1

HANDICAP: Final = 5.0
"""Seconds that a copy lives less than its original."""

TOLERANCE: Final = 2.5
"""Seconds by which two readings of one expiry may differ: stores count in whole seconds, and calls take time."""

LAG: Final = 0.1
"""The share of its original's remaining life that a copy may lack before it is renewed."""


class Move(Enum):
    """What one lease needs at the store that is not its home."""

    NOTHING = "nothing"
    COPY = "copy"
    UPDATE = "update"
    RENEW = "renew"
    DELETE = "delete"
    CONTRADICTION = "contradiction"


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as one store holds it.

    :param expires_at: on the migration's clock; ``None`` for a reservation.
    :param left: the seconds until then.
    :param exact: whether the store tells the remaining life, rather than a limit to it.
    """

    record: Record
    expires_at: float | None = None
    left: float = 0.0
    exact: bool = True

    @property
    def slack(self) -> float:
        """Seconds by which a copy of this one may end earlier than it has to."""
        return max(2 * (HANDICAP + TOLERANCE), LAG * self.left)

    def later_than(self, other: Seen) -> bool:
        """Whether this one expires later by more than readings differ."""
        return (
            self.expires_at is not None
            and other.expires_at is not None
            and self.expires_at > other.expires_at + TOLERANCE
        )

    def touched(self, noted: Seen | None) -> bool:
        """Whether somebody wrote or renewed it since it was ``noted``."""
        if noted is None or (self.record.version, self.record.handle) != (noted.record.version, noted.record.handle):
            return True
        return self.exact and self.later_than(noted)


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of one lease: its home, whether that is certain, and both sides as last left."""

    home: int
    certain: bool
    noted: tuple[Seen | None, Seen | None]


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a lease is at home, and what the other store needs."""

    home: int
    certain: bool
    step: Move


def settle(seen: tuple[Seen | None, Seen | None], known: Known | None) -> Decision | None:
    """Judge one lease from what the two stores hold; ``None`` if neither holds it.

    :param seen: as the source and the target hold it.
    """
    source, target = seen
    if source is None or target is None:
        return _one_sided(seen, known)
    if known is None:
        home, certain = _first_home(source, target)
    else:
        home, certain = _next_home((source, target), known)
    original, copy = (source, target) if home == SOURCE else (target, source)
    if not _same_node(original.record, copy.record):
        return Decision(home, certain, Move.CONTRADICTION)
    return Decision(home, certain, _step(original, copy))


def _one_sided(seen: tuple[Seen | None, Seen | None], known: Known | None) -> Decision | None:
    """It is in one store alone: new there, or gone from the other."""
    side = TARGET if seen[SOURCE] is None else SOURCE
    here = seen[side]
    if here is None:
        return None
    if known is not None and known.certain and known.home != side and not here.touched(known.noted[side]):
        return Decision(known.home, True, Move.DELETE)
    return Decision(side, True, Move.COPY)


def _first_home(source: Seen, target: Seen) -> tuple[int, bool]:
    """Both stores have it and nothing is remembered."""
    if source.exact and target.exact:
        if target.later_than(source):
            return TARGET, True
        return SOURCE, source.later_than(target)
    if source.record.value != target.record.value:
        return SOURCE, False  # if the node has moved, it writes its own text again as soon as it sees this
    # A home is never renewed by us. If this is the wrong guess, the node's next renewal at the other place shows it,
    # and if there is no node, the lease ends.
    return (SOURCE, False) if target.exact else (TARGET, False)


def _next_home(seen: tuple[Seen, Seen], known: Known) -> tuple[int, bool]:
    """Where the node has shown itself since the last look."""
    away = 1 - known.home
    if not seen[away].touched(known.noted[away]):
        return known.home, known.certain or seen[known.home].touched(known.noted[known.home])
    exact = seen[SOURCE].exact and seen[TARGET].exact
    if exact and seen[known.home].touched(known.noted[known.home]) and seen[known.home].later_than(seen[away]):
        return known.home, True
    return away, True


def _step(original: Seen, copy: Seen) -> Move:
    if original.record.value != copy.record.value or (original.record.permanent and not copy.record.permanent):
        return Move.UPDATE
    if original.expires_at is None or copy.expires_at is None:
        return Move.NOTHING  # a reservation at the other place stays one: whoever made it may want it
    return Move.RENEW if original.expires_at - copy.expires_at > original.slack else Move.NOTHING


def _same_node(one: Record, other: Record) -> bool:
    if one.value == other.value:
        return True
    try:
        mine, theirs = (Lease.from_record(record.key, record.value).attributes for record in (one, other))
    except MalformedError:
        return False
    return mine.same_node(theirs)


# Before anything is written


def contradictions(source: Snapshot, target: Snapshot) -> tuple[list[str], list[Record]]:
    """Why the target can't take what the source holds, and its records that stand in the way.

    Another node's lease on the same key or on overlapping addresses, or another subnet of a node that the source knows.
    A record of the target that the source holds too is judged by its key alone.
    """
    wanted = {record.key: lease for record in source.leases if (lease := readable(record)) is not None}
    originals = {record.key: record for record in source.leases}
    ranges = Ranges()
    for key, lease in wanted.items():
        ranges.add(lease.subnets, key)
    nodes = {lease.attributes.node_id: key for key, lease in wanted.items() if lease.attributes.node_id is not None}
    present = {record.key for record in target.leases}
    reasons, in_the_way = [], []
    for record in sorted(target.leases, key=lambda record: record.key):
        reason = ""
        found = readable(record)
        if record.key in wanted:
            if not _same_node(originals[record.key], record):
                reason = f"{record.key} is {owner(record)} there, and {owner(originals[record.key])} in the source"
        elif found is not None:
            overlapping = sorted(ranges.overlapping(found.subnets))
            held = nodes.get(found.attributes.node_id or "")
            if overlapping:
                reason = f"{record.key} of {owner(record)} overlaps {overlapping[0]} of the source"
            elif held is not None and held not in present:
                reason = f"{owner(record)} has {record.key} there, and {held} in the source"
        if reason:
            reasons.append(reason)
            in_the_way.append(record)
    return reasons, in_the_way


def owner(record: Record) -> str:
    """Whose a record is, for people."""
    lease = readable(record)
    return lease.attributes.holder if lease is not None else "no lease"


def readable(record: Record) -> Lease | None:
    """The lease that a record holds, if it holds one."""
    try:
        return Lease.from_record(record.key, record.value)
    except MalformedError:
        return None


def ends_early(original: Seen, copy: Seen) -> bool:
    """Whether a copy ends so much earlier than its original that something is wrong."""
    if original.expires_at is None or copy.expires_at is None:
        return False
    return original.exact and copy.exact and original.expires_at - copy.expires_at > original.slack + HANDICAP
