"""Moving an overlay from one store to another while its nodes go on forwarding.

For as long as the move takes, nodes of both stores must see each other. So this is a mirror: it brings two stores to
the same content, again and again, from what both hold at the moment; a change only says that it is time to look. Which
way each lease goes is decided in :mod:`~pyflannel.storetools.homes`.

Nothing is kept but in memory, since all of it follows from the stores. A run that was killed at any point is taken up
by the next one.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from pyflannel.errors import ConfigError, ConflictError, PyflannelError, StoreAbsentError, StoreUnavailableError
from pyflannel.network.change import Written, read
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON
from pyflannel.small.retry import Backoff
from pyflannel.store import Record, Snapshot, Store, Watch
from pyflannel.storetools.homes import (
    HANDICAP,
    SOURCE,
    TARGET,
    Decision,
    Known,
    Move,
    Seen,
    contradictions,
    ends_early,
    owner,
    readable,
    settle,
)

__all__ = ["Done", "Migration"]

log = logging.getLogger(__name__)

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


_LISTED: Final = {
    Move.COPY: "copied",
    Move.UPDATE: "updated",
    Move.RENEW: "renewed",
    Move.DELETE: "deleted",
}


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
        source, target = self._snapshots(dry)
        done = Done(left_behind=[record.key for record in source.leases if readable(record) is None])
        if source.config is None:
            raise ConfigError(f"{self.stores[SOURCE].location} holds no network config, so there is nothing to move")
        told = f"network config in {self.stores[SOURCE].location}"
        wanted = NetworkConfig.from_json(source.config.value, told)
        self._check_document(wanted, read(source.config.value, told), target, force)
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

    def _snapshots(self, dry: bool) -> tuple[Snapshot, Snapshot]:
        """Both stores; a target that has yet to be made is empty to whoever makes nothing."""
        source = self.stores[SOURCE].snapshot()
        try:
            return source, self.stores[TARGET].snapshot()
        except StoreAbsentError:
            if not dry:
                raise
            return source, Snapshot("", None, ())

    def _check_document(self, wanted: NetworkConfig, written: Written, target: Snapshot, force: bool) -> None:
        old, where = (each.location for each in self.stores)
        if target.config is None:
            return
        try:
            found, there = NetworkConfig.from_json(target.config.value), read(target.config.value)
        except ConfigError as error:
            if not force:
                raise ConflictError(f"{where} holds an invalid network config ({error}); --force replaces it") from None
            return
        if found == wanted:
            if _is_ahead(there, written) and not force:
                raise ConflictError(
                    f"{where} holds a change of the network that {old} does not know of; bring it there with "
                    f"'pyflannel config get --store {where} | pyflannel config set - --store {old}', or undo it with "
                    "--force"
                )
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
        snapshots = self._snapshots(dry)
        self._look_at_document(snapshots, done, sides, dry, document_wins)
        self.revisions = (snapshots[SOURCE].revision, snapshots[TARGET].revision)
        records = tuple({record.key: record for record in snapshot.leases} for snapshot in snapshots)
        if dry:
            for key in done.deleted:
                records[TARGET].pop(key, None)
        seen = (self._see(SOURCE, records[SOURCE]), self._see(TARGET, records[TARGET]))
        for key in sorted({*records[SOURCE], *records[TARGET], *self.known}):
            both = seen[SOURCE].get(key), seen[TARGET].get(key)
            if any(each is not None and readable(each.record) is None for each in both):
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
            holders = " and ".join(owner(each.record) for each in seen if each is not None)
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
            if not dry:
                try:
                    self.stores[away].write_config(text, snapshots[away].config)
                except ConflictError:
                    if wins is not None:
                        raise
                    return  # somebody was quicker; the next look sees what they did
            done.document = "copied" if texts[away] is None else "updated"
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
        backoff = Backoff(random.Random(), _FIRST_PAUSE, _LAST_PAUSE)  # noqa: S311 - pauses need no secrecy
        away = False
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
                    self._stopping.wait(backoff.next())
                    continue
                if away:
                    self._say("both stores answer again")
                backoff.reset()
                away = False
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
            if readable(original.record) is None:
                continue
            if copy is None:
                problems.append(f"{key} is missing")
            elif copy.record.value != original.record.value:
                problems.append(f"{key} has another text")
            elif original.record.permanent and not copy.record.permanent:
                problems.append(f"{key} is a reservation in the source alone")
            elif ends_early(original, copy):
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
        except PyflannelError as error:  # the next look meets it too, or opens another watch
            log.debug("watch broke: %s", error)
        if watch is self._watch:  # else there is another one already, which may have broken, too
            self._broken = True

    def close(self) -> None:
        """End it. Idempotent."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def _same_document(one: str | None, other: str | None) -> bool:
    """Whether nodes take both for the same: one network, and one change of it under way or over."""
    if one is None or other is None or one == other:
        return one == other
    try:
        same = NetworkConfig.from_json(one) == NetworkConfig.from_json(other)
        return same and _history(read(one)) == _history(read(other))
    except ConfigError:
        return False


def _history(written: Written) -> tuple[object, ...]:
    return written.change, written.last, written.outcome, written.earlier


def _is_ahead(written: Written, other: Written) -> bool:
    """Whether the network is in a change, or has been through one, of which ``other`` does not know."""
    mine, theirs = (each.change.id if each.change is not None else "" for each in (written, other))
    return other.precedes(written) or mine not in ("", theirs, other.last, *other.earlier)


def _networks(network: NetworkConfig) -> str:
    return " and ".join(str(family.network) for family in network.families)
