"""Moving an overlay from one store to another while its nodes go on forwarding.

For as long as the move takes, nodes of both stores must see each other. So this is a mirror: it brings two stores to
the same content, again and again, from what both hold at the moment; a change only says that it is time to look. Each
lease has a *home*, the store that its node works on, and is copied from there to the other one. The home is found
without a mark in the text, which stays exactly as it is:

* a copy lives :data:`HANDICAP` seconds less than its original, so the copy of a node that renews in one place is the
  one that expires first, and the first renewal by a node of what was a copy shows: it outlives what we wrote;
* what we did not write at the other place (another version, another handle, a later expiry) its node did: it has moved.

Nothing is kept but in memory, since all of it follows from the stores. A run that was killed at any point is taken up
by the next one.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pyflannel.errors import ConfigError, ConflictError, MalformedError, StoreError, StoreUnavailableError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON, Lease
from pyflannel.network.ranges import Ranges
from pyflannel.store import Record, Snapshot, Store, Watch

__all__ = [
    "SOURCE",
    "TARGET",
    "Decision",
    "Done",
    "Known",
    "Migration",
    "Move",
    "Seen",
    "contradictions",
    "settle",
]

log = logging.getLogger(__name__)

SOURCE, TARGET = 0, 1

HANDICAP: Final = 5.0
"""Seconds that a copy lives less than its original."""

TOLERANCE: Final = 2.5
"""Seconds by which two readings of one expiry may differ: stores count in whole seconds, and calls take time."""

LAG: Final = 0.1
"""The share of its original's remaining life that a copy may lack before it is renewed."""

LOOK_INTERVAL, _REST = 30.0, 50
"""Seconds at most between two looks, and how many times as long as a look the rest after it is where that is less: a
renewal that leaves the text alone is no change that a watch tells."""

_FIRST_PAUSE, _LAST_PAUSE = 0.5, 10.0
"""Seconds between two attempts while a store is away."""

_COALESCE: Final = 0.05
"""Seconds after a look in which changes gather, since nodes that start write several times."""

_CHUNK: Final = 1000
"""Leases whose remaining life is asked for in one call, which has a time limit."""

_LIFE: Final = 24 * 3600.0
"""What is taken for the life of a lease whose store tells nothing at all: flannel's."""


class Move(Enum):
    """What one lease needs at the store that is not its home."""

    NOTHING = "nothing"
    COPY = "copy"
    UPDATE = "update"
    RENEW = "renew"
    DELETE = "delete"
    CONTRADICTION = "contradiction"


_LISTED: Final = {
    Move.COPY: "copied",
    Move.UPDATE: "updated",
    Move.RENEW: "renewed",
    Move.DELETE: "deleted",
}


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
    wanted = {record.key: lease for record in source.leases if (lease := _readable(record)) is not None}
    originals = {record.key: record for record in source.leases}
    ranges = Ranges()
    for key, lease in wanted.items():
        ranges.add(lease.subnets, key)
    nodes = {lease.attributes.node_id: key for key, lease in wanted.items() if lease.attributes.node_id is not None}
    present = {record.key for record in target.leases}
    reasons, in_the_way = [], []
    for record in sorted(target.leases, key=lambda record: record.key):
        reason = ""
        found = _readable(record)
        if record.key in wanted:
            if not _same_node(originals[record.key], record):
                reason = f"{record.key} is {_owner(record)} there, and {_owner(originals[record.key])} in the source"
        elif found is not None:
            overlapping = sorted(ranges.overlapping(found.subnets))
            held = nodes.get(found.attributes.node_id or "")
            if overlapping:
                reason = f"{record.key} of {_owner(record)} overlaps {overlapping[0]} of the source"
            elif held is not None and held not in present:
                reason = f"{_owner(record)} has {record.key} there, and {held} in the source"
        if reason:
            reasons.append(reason)
            in_the_way.append(record)
    return reasons, in_the_way


def _owner(record: Record) -> str:
    lease = _readable(record)
    if lease is None:
        return "no lease"
    attributes = lease.attributes
    address = attributes.public_ip or attributes.public_ipv6
    return f"node {attributes.node_id!r} at {address}" if attributes.node_id else f"the node at {address}"


def _readable(record: Record) -> Lease | None:
    try:
        return Lease.from_record(record.key, record.value)
    except MalformedError:
        return None


@dataclass(slots=True)
class Done:
    """What a migration did or, when it was only asked, would do. All lists hold keys; ``document`` is what became of
    the network document: ``copied``, ``updated``, ``the same``."""

    document: str = "the same"
    copied: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)

    @property
    def changes(self) -> int:
        """How many records were written or deleted."""
        return (self.document != "the same") + sum(map(len, (self.copied, self.updated, self.renewed, self.deleted)))

    def to_json(self) -> dict[str, JSON]:
        """For ``--json``."""
        return {
            "document": self.document,
            "copied": self.copied,
            "updated": self.updated,
            "renewed": self.renewed,
            "deleted": self.deleted,
            "left_behind": self.left_behind,
        }


class Migration:
    """Brings two stores to the same content. All calls come from one thread.

    :param clock: seconds that go on evenly.
    :param say: told, in a line each, what an operator should know while it goes on.
    """

    def __init__(
        self, source: Store, target: Store, clock: Callable[[], float], say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.stores = (source, target)
        self.known: dict[str, Known] = {}
        self.revisions = ("", "")
        self._clock, self._say = clock, say
        self._documents: tuple[str, str] | None = None
        self._said: set[str] = set()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = threading.Event()

    @property
    def moved(self) -> tuple[int, int]:
        """How many nodes' leases are at home in the target for certain, and how many leases there are."""
        leases = [known for known in self.known.values() if not self._reserved(known)]
        return sum(known.certain and known.home == TARGET for known in leases), len(leases)

    @staticmethod
    def _reserved(known: Known) -> bool:
        noted = known.noted[known.home]
        return noted is not None and noted.record.permanent

    # One way, once

    def prepare(self, *, force: bool = False, dry: bool = False) -> Done:
        """See that the target can take what the source holds; with ``force`` clear what stands in the way.

        :raises ConfigError: the source holds no network, or an invalid one.
        :raises ConflictError: the target holds another network, or leases that contradict; names them.
        """
        source, target = (store.snapshot() for store in self.stores)
        done = Done(left_behind=[record.key for record in source.leases if _readable(record) is None])
        if source.config is None:
            raise ConfigError(f"{self.stores[SOURCE].location} holds no network config, so there is nothing to move")
        wanted = NetworkConfig.from_json(source.config.value, f"network config in {self.stores[SOURCE].location}")
        self._check_document(wanted, target, force)
        reasons, in_the_way = contradictions(source, target)
        if reasons and not force:
            shown = "; ".join(reasons[:5]) + (f"; and {len(reasons) - 5} more" if len(reasons) > 5 else "")
            raise ConflictError(
                f"{self.stores[TARGET].location} holds leases that contradict {self.stores[SOURCE].location}: {shown}. "
                "Nothing was written. Delete those that are leftovers, or let the source win with --force"
            )
        for record in in_the_way:
            done.deleted.append(record.key)
            if not dry:
                self.stores[TARGET].delete(record)
        return done

    def _check_document(self, wanted: NetworkConfig, target: Snapshot, force: bool) -> None:
        where = self.stores[TARGET].location
        if target.config is None:
            return
        try:
            found = NetworkConfig.from_json(target.config.value)
        except ConfigError as error:
            if not force:
                raise ConflictError(f"{where} holds an invalid network config ({error}); --force replaces it") from None
            return
        if found == wanted:
            return
        if found.families != wanted.families:
            raise ConflictError(
                f"{where} holds another network, {_networks(found)}, and the source {_networks(wanted)}: two overlays "
                "can't share one place. Choose another prefix or directory as the target"
            )
        if not force:
            raise ConflictError(
                f"the network config in {where} differs from the source's in its backend or options; make them agree "
                "with 'pyflannel config set', or replace the target's with --force"
            )

    def copy(self, *, force: bool = False, dry: bool = False) -> Done:
        """Bring the target to what the source holds. Done again, it changes nothing.

        :param dry: only say what would be done.
        :raises ConfigError: as for :meth:`prepare`.
        :raises ConflictError: as for :meth:`prepare`.
        """
        done = self.prepare(force=force, dry=dry)
        self.look(done, sides=(TARGET,), dry=dry, document_wins=SOURCE)
        return done

    # A look at both, and what follows from it

    def look(
        self,
        done: Done,
        sides: Iterable[int] = (SOURCE, TARGET),
        *,
        dry: bool = False,
        document_wins: int | None = None,
    ) -> None:
        """Compare the two stores and write what is missing or old in either of ``sides``."""
        snapshots = (self.stores[SOURCE].snapshot(), self.stores[TARGET].snapshot())
        self._look_at_document(snapshots, done, sides, dry, document_wins)
        self.revisions = (snapshots[SOURCE].revision, snapshots[TARGET].revision)
        records = tuple({record.key: record for record in snapshot.leases} for snapshot in snapshots)
        if dry:
            for key in done.deleted:
                records[TARGET].pop(key, None)
        seen = (self._see(SOURCE, records[SOURCE]), self._see(TARGET, records[TARGET]))
        for key in sorted({*records[SOURCE], *records[TARGET], *self.known}):
            both = seen[SOURCE].get(key), seen[TARGET].get(key)
            if any(each is not None and _readable(each.record) is None for each in both):
                self._once(f"{key}: not a lease, left where it is")
            else:
                self._tend(key, both, done, sides, dry)

    def _see(self, side: int, records: Mapping[str, Record]) -> dict[str, Seen]:
        store, exact = self.stores[side], self.stores[side].exact_ttl
        items, left = list(records.values()), dict[str, float | None]()
        for start in range(0, len(items), _CHUNK):
            left.update(store.time_to_live(items[start : start + _CHUNK]))
        now = self._clock()
        seen = {}
        for key, record in records.items():
            seconds = left.get(key)
            if record.permanent:
                seen[key] = Seen(record, exact=exact)
            elif seconds is None:
                seen[key] = Seen(record, now + _LIFE, _LIFE, exact=False)
            elif seconds > 0:
                seen[key] = Seen(record, now + seconds, seconds, exact)
        return seen

    def _tend(
        self, key: str, seen: tuple[Seen | None, Seen | None], done: Done, sides: Iterable[int], dry: bool
    ) -> None:
        before = self.known.get(key)
        decision = settle(seen, before)
        if decision is None:
            self.known.pop(key, None)
            return
        if decision.step is Move.CONTRADICTION:
            holders = " and ".join(_owner(each.record) for each in seen if each is not None)
            self._once(f"{key}: {holders} both hold it, one in each store; left alone. Stop one of them")
            return
        if before is not None and before.home == SOURCE and decision.home == TARGET and decision.certain:
            self._say(f"{key}: its node works on {self.stores[TARGET].location} now")
        away = 1 - decision.home
        noted = list(seen)
        if decision.step is not Move.NOTHING and away in sides:
            try:
                noted[away] = self._write(decision, key, seen, done, dry)
            except ConflictError:
                return  # somebody was quicker; the next look sees what they did
        if noted[SOURCE] is None and noted[TARGET] is None:
            self.known.pop(key, None)
        elif not dry:
            self.known[key] = Known(decision.home, decision.certain, (noted[SOURCE], noted[TARGET]))

    def _write(
        self, decision: Decision, key: str, seen: tuple[Seen | None, Seen | None], done: Done, dry: bool
    ) -> Seen | None:
        """Do one step at the side that is not the lease's home; returns what is there then."""
        away = 1 - decision.home
        store, original, copy = self.stores[away], seen[decision.home], seen[away]
        getattr(done, _LISTED[decision.step]).append(key)
        if dry:
            return copy
        if original is None:
            assert copy is not None
            store.delete(copy.record)
            return None
        ttl = self._ttl(original)
        if copy is None:
            written = store.create(key, original.record.value, ttl)
        elif decision.step is Move.RENEW and ttl is not None:
            written = store.renew(copy.record, ttl)
        else:
            written = store.update(copy.record, original.record.value, ttl)
        lives = written.ttl if written.ttl is not None else ttl
        if written.permanent or lives is None:
            return Seen(written, exact=store.exact_ttl)
        return Seen(written, self._clock() + lives, lives, store.exact_ttl)

    def _ttl(self, original: Seen) -> float | None:
        """What a copy lives: less than its original by the handicap, in whole seconds, as stores count."""
        if original.expires_at is None:
            return None
        return float(max(1, math.floor(original.expires_at - self._clock() - HANDICAP)))

    def _look_at_document(
        self,
        snapshots: tuple[Snapshot, Snapshot],
        done: Done,
        sides: Iterable[int],
        dry: bool,
        wins: int | None,
    ) -> None:
        """Carry the network document to where it is missing or has not changed while the other has."""
        texts = [each.config.value if each.config is not None else None for each in snapshots]
        before = self._documents
        if before is not None and None in texts:
            self._say("a store has lost its network config and is filled again from the other; nothing is deleted")
            self.known.clear()
        if texts[SOURCE] is None or texts[TARGET] is None or wins is not None:
            home = SOURCE if wins is SOURCE or texts[SOURCE] is not None else TARGET
        elif before is None or (texts[SOURCE] != before[SOURCE]) == (texts[TARGET] != before[TARGET]):
            if not _same_document(texts[SOURCE], texts[TARGET]):
                self._once("the network config differs in the two stores; make them agree with 'pyflannel config set'")
                return
            home = SOURCE
        else:
            home = SOURCE if texts[SOURCE] != before[SOURCE] else TARGET
        text, away = texts[home], 1 - home
        if text is not None and away in sides and not _same_document(text, texts[away]):
            done.document = "copied" if texts[away] is None else "updated"
            if not dry:
                self.stores[away].write_config(text, snapshots[away].config)
            texts[away] = text
        if (source := texts[SOURCE]) is not None and (target := texts[TARGET]) is not None:
            self._documents = (source, target)

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    # Until told to end

    def stop(self) -> None:
        """Make :meth:`follow` return when the look it is at is done. Safe in a signal handler."""
        self._stopping.set()
        self._wake.put(None)

    def follow(self, done: Done, until_moved: bool = False) -> None:
        """Keep both stores alike until :meth:`stop` or, if asked for, until all nodes have moved.

        A store that is away is waited for.
        """
        bells = (_Bell(self.stores[SOURCE], self._wake), _Bell(self.stores[TARGET], self._wake))
        pause, away = _FIRST_PAUSE, False
        try:
            while not self._stopping.is_set():
                began = self._clock()
                try:
                    self.look(done)
                    for bell, revision in zip(bells, self.revisions, strict=True):
                        bell.hang(revision)
                except StoreUnavailableError as error:
                    if not away:
                        self._say(f"{error}; trying again")
                    away = True
                    self._stopping.wait(pause)
                    pause = min(2 * pause, _LAST_PAUSE)
                    continue
                if away:
                    self._say("both stores answer again")
                pause, away = _FIRST_PAUSE, False
                moved, total = self.moved
                if until_moved and moved == total:
                    return
                # At most a fifth of the time is spent on looking, however busy the stores are.
                took = self._clock() - began
                self._stopping.wait(max(_COALESCE, 4 * took))
                self._sit(min(self._interval(), max(1.0, _REST * took)))
        finally:
            for bell in bells:
                bell.close()

    def _interval(self) -> float:
        """Seconds until the next look at the latest: well before the first copy can end."""
        copies = (known.noted[1 - known.home] for known in self.known.values())
        ends = [copy.expires_at for copy in copies if copy is not None and copy.expires_at is not None]
        return max(1.0, min(LOOK_INTERVAL, (min(ends) - self._clock()) / 4 if ends else LOOK_INTERVAL))

    def _sit(self, seconds: float) -> None:
        """Wait for a change, or so long; what has gathered until then is one reason to look."""
        with suppress(queue.Empty):
            self._wake.get(timeout=seconds)
            while True:
                self._wake.get_nowait()

    def verify(self) -> list[str]:
        """What differs between the two stores: nothing, if the target can take over."""
        source, target = (store.snapshot() for store in self.stores)
        problems = []
        if (
            source.config is None
            or target.config is None
            or not _same_document(source.config.value, target.config.value)
        ):
            problems.append("the network config is not the same")
        records = ({r.key: r for r in source.leases}, {r.key: r for r in target.leases})
        seen = (self._see(SOURCE, records[SOURCE]), self._see(TARGET, records[TARGET]))
        for key, original in sorted(seen[SOURCE].items()):
            copy = seen[TARGET].get(key)
            if _readable(original.record) is None:
                continue
            if copy is None:
                problems.append(f"{key} is missing")
            elif copy.record.value != original.record.value:
                problems.append(f"{key} has another text")
            elif original.record.permanent and not copy.record.permanent:
                problems.append(f"{key} is a reservation in the source alone")
            elif _ends_early(original, copy):
                problems.append(f"{key} ends much earlier than in the source")
        return problems


class _Bell:
    """Rings when a store has changed. What has changed is for a look to find out."""

    def __init__(self, store: Store, wake: queue.SimpleQueue[None]) -> None:
        self._store, self._wake = store, wake
        self._watch: Watch | None = None
        self._broken = True

    def hang(self, revision: str) -> None:
        """Listen from ``revision`` on, unless it listens already."""
        if self._broken:
            self.close()
            self._broken = False
            self._watch = self._store.watch(revision)
            threading.Thread(target=self._listen, args=(self._watch,), name="pyflannel-watch", daemon=True).start()

    def _listen(self, watch: Watch) -> None:
        try:
            for batch in watch:
                if batch.changes:
                    self._wake.put(None)
        except StoreError as error:  # the next look meets it too, or opens another watch
            log.debug("watch broke: %s", error)
        self._broken = watch is self._watch

    def close(self) -> None:
        """End it. Idempotent."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def _ends_early(original: Seen, copy: Seen) -> bool:
    if original.expires_at is None or copy.expires_at is None:
        return False
    return original.exact and copy.exact and original.expires_at - copy.expires_at > original.slack + HANDICAP


def _same_document(one: str | None, other: str | None) -> bool:
    if one is None or other is None or one == other:
        return one == other
    try:
        return NetworkConfig.from_json(one) == NetworkConfig.from_json(other)
    except ConfigError:
        return False


def _networks(network: NetworkConfig) -> str:
    return " and ".join(str(family.network) for family in network.families)
