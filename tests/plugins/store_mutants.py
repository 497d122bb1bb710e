"""Drivers that break one clause of the store contract each, and which tests of the kit must fail for it.

Not collected as it is: :mod:`test_mutants` runs the kit on all of them. A mutant names first the test that is about
its clause and must fail, then those that may fail, too, because they can't work without it; all others must pass.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
from tests.unit.testing.memory_store import SERVERS, TICK, MemoryStore, MemoryWatch, Row

from pyflannel.errors import ConflictError, HistoryGoneError, StoreAbsentError, StoreUnavailableError
from pyflannel.store import CONFIG_KEY, Batch, Change, Record, Snapshot, Store, StoreLocation, StoreTime, Watch
from pyflannel.testing import _calls, _waiting
from pyflannel.testing import _store_workers as workers
from pyflannel.testing.stores import StoreConformance

_waiting.PATIENCE = 4.0
_calls.GRACE = 1.0

workers.TIMEOUT = 6.0

MUTANTS: dict[str, tuple[type[MemoryStore], tuple[str, ...]]] = {}

EVERYWHERE = tuple(name.removeprefix("test_") for name in dir(StoreConformance) if name.startswith("test_"))
"""For what everything else rests on."""

EXPIRED: set[tuple[int, str]] = set()

CLAIMS = ("exactly_one_gets_an_expired_key", "nodes_that_start_at_once_get_a_subnet_each")


def breaks(*tests: str) -> Callable[[type[MemoryStore]], type[MemoryStore]]:
    """The test that must fail, and those that may; without their ``test_``."""

    def note(kind: type[MemoryStore]) -> type[MemoryStore]:
        MUTANTS[kind.__name__] = (kind, tests)
        return kind

    return note


class OnMemory(StoreConformance):
    """The kit; its other nodes are threads, since the servers are in this process."""

    __test__ = False
    minimum_ttl = 0.6
    expiry_slack = 0.5
    keeps_history = True
    call_timeout = 1.5
    many = 60
    racers = 4
    largest_value = 4096

    @pytest.fixture
    def location(self) -> StoreLocation:
        self.path = f"/{uuid.uuid4().hex}"
        return StoreLocation.parse(f"memory://127.0.0.1:1{self.path}")

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls) -> Iterator[Executor]:
        workers.join(threading.Barrier(cls.racers))  # type: ignore[arg-type] # the threads' line is this process's
        with ThreadPoolExecutor(cls.racers) as pool:
            yield pool

    def stop_server(self) -> None:
        SERVERS[self.path].up = False
        SERVERS[self.path].outages += 1

    def start_server(self) -> None:
        SERVERS[self.path].up = True

    def lose_history(self, store: Store, revision: str) -> str:
        server = SERVERS[self.path]
        server.forgotten = server.revision
        return revision


# the face


@breaks("the_driver_states_its_api_version_and_scheme")
class OldVersion(MemoryStore):
    api_version = 0


@breaks("the_driver_states_its_api_version_and_scheme", *EVERYWHERE)
class ToBeAwaited(MemoryStore):
    async def snapshot(self) -> Snapshot:  # type: ignore[override]
        return super().snapshot()


@breaks("the_driver_states_its_api_version_and_scheme")
class ClocksByItsObjects(MemoryStore):
    @property
    def node_clocks(self) -> bool:  # type: ignore[override]
        return False


@breaks("the_driver_states_its_api_version_and_scheme")
class SecretThatIsNoOption(MemoryStore):
    secret_options = frozenset({"token"})


@breaks("constructing_touches_no_server")
class ConnectsAtOnce(MemoryStore):
    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location)
        host, _, port = location.hosts[0].partition(":")
        if port != "1":
            socket.create_connection((host, int(port))).close()


@breaks("an_unknown_option_is_refused")
class TakesAnyOption(MemoryStore):
    def __init__(self, location: StoreLocation) -> None:
        super().__init__(replace(location, options={}))


@breaks("closing_twice_is_harmless", "closing_the_store_ends_its_watches")
class ClosesOnce(MemoryStore):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


@breaks("a_closed_store_leaves_nothing_behind")
class LeavesAFile(MemoryStore):
    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location)
        os.open(os.devnull, os.O_RDONLY)


@breaks("a_closed_store_leaves_nothing_behind")
class LeavesAThreadOfEachRenewal(MemoryStore):
    def renew(self, record: Record, ttl: float) -> Record:
        threading.Thread(target=threading.Event().wait, name="of a renewal", daemon=True).start()
        return super().renew(record, ttl)


# the network document


@breaks("an_empty_store_has_nothing")
class InventsAConfig(MemoryStore):
    def read_config(self) -> Record | None:
        return super().read_config() or Record(CONFIG_KEY, "{}", "0", permanent=True)


@breaks("who_only_looks_makes_no_store")
class MakesWhatItLooksFor(MemoryStore):
    looks = False

    def expect_existing(self) -> None:
        self.looks = not self.server.revision

    def read_config(self) -> Record | None:
        if self.looks:
            self.looks = False
            raise StoreAbsentError("there is none yet")
        return super().read_config()


@breaks("who_only_looks_makes_no_store")
class HidesFromWhoLooks(MemoryStore):
    def expect_existing(self) -> None:
        self.forgetful = True

    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        return replace(found, leases=()) if hasattr(self, "forgetful") else found


@breaks("the_config_is_written_only_over_what_is_expected", "no_write_of_the_config_is_lost")
class OverwritesTheConfig(MemoryStore):
    def write_config(self, value: str, expected: Record | None) -> Record:
        with self.reached():
            return self.put(CONFIG_KEY, value, None)


@breaks("the_config_keeps_the_text_a_person_wrote")
class TidiesTheConfig(MemoryStore):
    def write_config(self, value: str, expected: Record | None) -> Record:
        kept = {key: item for key, item in json.loads(value).items() if key != "Expires"}
        return super().write_config(json.dumps(kept) if "Expires" in value else value, expected)


@breaks("the_config_is_written_only_over_what_is_expected")
class NamesTheConfigOtherwise(MemoryStore):
    def read_config(self) -> Record | None:
        found = super().read_config()
        return found and replace(found, key="network")


@breaks(
    "the_config_is_written_only_over_what_is_expected",
    "a_watch_does_not_repeat_the_snapshot",
    "an_outage_is_said_and_survived",
    "who_only_looks_makes_no_store",
)
class CountsTheConfigAmongLeases(MemoryStore):
    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        return found if found.config is None else replace(found, leases=(*found.leases, found.config))


@breaks("a_config_change_is_seen_by_a_watch")
class HidesTheConfigFromWatches(MemoryStore):
    def since(self, revision: int) -> list[tuple[int, Change]]:
        return [entry for entry in super().since(revision) if entry[1].key != CONFIG_KEY]


@breaks("a_config_change_is_seen_by_a_watch", "no_write_of_the_config_is_lost", "an_outage_is_said_and_survived")
class RemembersTheConfig(MemoryStore):
    """What somebody else writes it never reads."""

    known: Record | None = None

    def read_config(self) -> Record | None:
        self.known = self.known or super().read_config()
        return self.known

    def write_config(self, value: str, expected: Record | None) -> Record:
        self.known = super().write_config(value, expected)
        return self.known


# records


@breaks("a_created_record_is_there", *EVERYWHERE)
class SpeaksInBytes(MemoryStore):
    def show(self, row: Row) -> Record:
        return replace(super().show(row), value=row.record.value.encode())  # type: ignore[arg-type]


@breaks("a_created_record_is_there", *EVERYWHERE)
class NumbersItsVersions(MemoryStore):
    def version(self, key: str, value: str) -> str:
        return self.server.revision + 1  # type: ignore[return-value]


@breaks("a_created_record_is_there", *EVERYWHERE)
class ShowsOneTwice(MemoryStore):
    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        return replace(found, leases=(*found.leases, *found.leases[:1]))


@breaks("a_created_record_is_there", *EVERYWHERE)
class AnswersWithoutTheValue(MemoryStore):
    def create(self, key: str, value: str, ttl: float | None) -> Record:
        return replace(super().create(key, value, ttl), value="")


@breaks(
    "create_meets_an_existing_key",
    "exactly_one_of_many_creates_a_key",
    *CLAIMS,
    "the_config_is_written_only_over_what_is_expected",
)
class CreatesOver(MemoryStore):
    def create(self, key: str, value: str, ttl: float | None) -> Record:
        with self.reached():
            return self.put(key, value, ttl)


@breaks("update_is_a_compare_and_swap", "a_record_created_anew_is_another_one", "a_record_expires")
class ComparesValues(MemoryStore):
    """The old value is back, and so is the right of who knew it (ABA)."""

    def version(self, key: str, value: str) -> str:
        return value


@breaks("update_of_a_deleted_record_is_a_conflict", "a_record_expires", "who_deletes_or_renews_undoes_no_update")
class UpdatesWhatIsGone(MemoryStore):
    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        with self.reached():
            if record.key in self.server.rows:
                self.check(record)
            return self.put(record.key, value, None if record.permanent else ttl)


@breaks("update_of_a_deleted_record_is_a_conflict", "a_record_expires")
class RenewsWhatIsGone(MemoryStore):
    def renew(self, record: Record, ttl: float) -> Record:
        with self.reached():
            if record.key not in self.server.rows:
                return record
            return super().renew(record, ttl)


@breaks(
    "a_record_created_anew_is_another_one", "a_record_expires", "no_gap_between_snapshot_and_watch_while_others_write"
)
class CountsVersionsPerKey(MemoryStore):
    def version(self, key: str, value: str) -> str:
        row = self.server.rows.get(key)
        return "1" if row is None else str(int(row.record.version) + 1)


@breaks("an_older_record_stays_older")
class MakesYoungByUpdate(MemoryStore):
    def creation(self, key: str) -> int:
        return self.server.revision + 1


@breaks("an_older_record_stays_older")
class MakesYoungInAWatch(MemoryStore):
    """Where a record was changed last is told in place of where it came into being."""

    def since(self, revision: int) -> list[tuple[int, Change]]:
        return [
            (number, Change(change.key, change.record and replace(change.record, created=number)))
            for number, change in super().since(revision)
        ]


@breaks(
    "delete_is_a_compare_and_swap_and_repeatable",
    "a_record_created_anew_is_another_one",
    "who_deletes_or_renews_undoes_no_update",
)
class DeletesAnyVersion(MemoryStore):
    def delete(self, record: Record) -> None:
        with self.reached():
            if record.key in self.server.rows:
                self.drop(record.key)


@breaks("delete_is_a_compare_and_swap_and_repeatable", "a_record_expires")
class MissesWhatIsGone(MemoryStore):
    def delete(self, record: Record) -> None:
        with self.reached():
            self.check(record)
            self.drop(record.key)


@breaks("delete_is_a_compare_and_swap_and_repeatable", "a_record_created_anew_is_another_one")
class ForgivesAStaleDelete(MemoryStore):
    """Nothing is deleted, and nobody is told."""

    def delete(self, record: Record) -> None:
        with suppress(ConflictError):
            super().delete(record)


@breaks("delete_is_a_compare_and_swap_and_repeatable", *EVERYWHERE)
class SaysThatItDeleted(MemoryStore):
    """With which the daemon, which takes nothing for an answer here, can't go on."""

    def delete(self, record: Record) -> None:
        super().delete(record)
        return True  # type: ignore[return-value]


@breaks("the_rest_is_untouched", "a_slow_reader_catches_up", "no_gap_between_snapshot_and_watch_while_others_write")
class DeletesItsNeighbours(MemoryStore):
    def delete(self, record: Record) -> None:
        super().delete(record)
        with self.reached():
            if record.key == "10.5.3.0-24" and "10.5.4.0-24" in self.server.rows:
                self.drop("10.5.4.0-24")


# contention


@breaks("exactly_one_of_many_creates_a_key", *CLAIMS)
class LooksThenLeaps(MemoryStore):
    """Two steps where one is asked for."""

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        with self.reached():
            taken = key in self.server.rows
        if taken:
            raise ConflictError(f"{key} exists")
        time.sleep(0.01)
        with self.reached():
            return self.put(key, value, ttl)


@breaks("no_update_is_lost", "no_write_of_the_config_is_lost", "who_deletes_or_renews_undoes_no_update")
class ComparesThenSwaps(MemoryStore):
    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        with self.reached():
            self.check(record)
        time.sleep(0.003)
        with self.reached():
            if record.key not in self.server.rows:
                raise ConflictError(f"{record.key} is gone")
            return self.put(record.key, value, None if record.permanent else ttl)


@breaks("no_write_of_the_config_is_lost")
class ComparesTheConfigThenSwaps(MemoryStore):
    def write_config(self, value: str, expected: Record | None) -> Record:
        with self.reached():
            row = self.server.rows.get(CONFIG_KEY)
            if (row and row.record.version) != (expected and expected.version):
                raise ConflictError("the config was changed")
        time.sleep(0.003)
        with self.reached():
            return self.put(CONFIG_KEY, value, None)


@breaks("who_deletes_or_renews_undoes_no_update")
class ComparesThenDeletes(MemoryStore):
    def delete(self, record: Record) -> None:
        with self.reached():
            if record.key not in self.server.rows:
                return
            self.check(record)
        time.sleep(0.01)
        with self.reached():
            if record.key in self.server.rows:
                self.drop(record.key)


@breaks("who_deletes_or_renews_undoes_no_update")
class RenewsByWritingBack(MemoryStore):
    """What it has read before, over what is there by then."""

    def renew(self, record: Record, ttl: float) -> Record:
        with self.reached():
            self.check(record)
            row = self.server.rows[record.key]
        time.sleep(0.01)
        with self.reached():
            self.server.rows[record.key] = Row(row.record, None if record.permanent else self.end(ttl))
        return record


# expiry


@breaks(
    "a_record_expires",
    "an_update_sets_the_expiry_anew",
    "what_is_renewed_or_reserved_stays_and_nobody_notices",
    "a_renewal_sets_the_expiry_anew",
    *CLAIMS,
)
class NeverExpires(MemoryStore):
    def expire(self) -> None:
        pass


@breaks("a_record_expires")
class ExpiresEarly(MemoryStore):
    def end(self, ttl: float | None) -> float | None:
        return None if ttl is None else time.monotonic() + ttl * (0.5 if ttl < 1 else 1)


@breaks("a_record_expires")
class ForgetsWhatExpires(MemoryStore):
    """Those who watch at that moment hear of it, and nobody who comes later."""

    class Stream(MemoryWatch):
        def __next__(self) -> Batch:
            known = {entry[0] for entry in self.store.server.log}
            batch = super().__next__()
            for entry in list(self.store.server.log):
                if entry[0] not in known and (id(self.store.server), entry[1].key) in EXPIRED:
                    self.store.server.log.remove(entry)
            return batch

    stream = Stream

    def expire(self) -> None:
        rows = self.server.rows
        before = set(rows)
        super().expire()
        EXPIRED.update((id(self.server), key) for key in before - set(rows))


@breaks("exactly_one_gets_an_expired_key")
class LeapsForWhatHasExpired(MemoryStore):
    """Two steps, if somebody had the key before."""

    def expire(self) -> None:
        rows = self.server.rows
        EXPIRED.update((id(self.server), key) for key in rows)
        super().expire()
        EXPIRED.difference_update((id(self.server), key) for key in rows)

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        with self.reached():
            if key in self.server.rows or (id(self.server), key) not in EXPIRED:
                return super().create(key, value, ttl)
        time.sleep(0.05)
        with self.server.changed:
            return self.put(key, value, ttl)


@breaks("what_is_renewed_or_reserved_stays_and_nobody_notices", "a_renewal_sets_the_expiry_anew")
class RenewsInVain(MemoryStore):
    def renew(self, record: Record, ttl: float) -> Record:
        with self.reached():
            self.check(record)
            return record


@breaks("a_renewal_sets_the_expiry_anew")
class RenewsForAsLongAsBefore(MemoryStore):
    def renew(self, record: Record, ttl: float) -> Record:
        with self.reached():
            self.check(record)
            row = self.server.rows[record.key]
            row.ends = self.end(row.record.ttl)
            return record


@breaks(
    "what_is_renewed_or_reserved_stays_and_nobody_notices",
    "an_outage_is_said_and_survived",
    "no_gap_between_snapshot_and_watch_while_others_write",
    "a_slow_reader_catches_up",
    "odd_keys_come_back",
    "odd_values_come_back",
    "an_older_record_stays_older",
    "a_closed_store_leaves_nothing_behind",
    "a_renewal_sets_the_expiry_anew",
    "who_deletes_or_renews_undoes_no_update",
)
class TakesItsTimeToRenew(MemoryStore):
    """It answers, and rightly, but later than the contract allows."""

    def renew(self, record: Record, ttl: float) -> Record:
        renewed = super().renew(record, ttl)
        time.sleep(1.5 + 2 * _calls.GRACE)
        return renewed


@breaks("what_is_renewed_or_reserved_stays_and_nobody_notices", *EVERYWHERE)
class ExitsInsteadOfRenewing(MemoryStore):
    def renew(self, record: Record, ttl: float) -> Record:
        sys.exit(3)


@breaks("what_is_renewed_or_reserved_stays_and_nobody_notices", "who_deletes_or_renews_undoes_no_update")
class RenewsAloud(MemoryStore):
    def renew(self, record: Record, ttl: float) -> Record:
        with self.reached():
            self.check(record)
            return self.put(record.key, record.value, None if record.permanent else ttl)


@breaks("what_is_renewed_or_reserved_stays_and_nobody_notices")
class UnreservesByUpdate(MemoryStore):
    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        with self.reached():
            self.check(record)
            return self.put(record.key, value, ttl)


@breaks("an_update_sets_the_expiry_anew")
class UpdatesTheValueAlone(MemoryStore):
    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        with self.reached():
            self.check(record)
            ends = self.server.rows[record.key].ends
            updated = self.put(record.key, value, None if record.permanent else ttl)
            self.server.rows[record.key].ends = ends
            return updated


@breaks("time_to_live_of_records")
class HasLivedForLong(MemoryStore):
    def show(self, row: Row) -> Record:
        return row.record if row.ends is None else replace(row.record, ttl=-5.0)


@breaks("time_to_live_of_records")
class TellsWhatItWasGiven(MemoryStore):
    """And nothing of it has passed."""

    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        with self.reached():
            return {record.key: self.server.rows[record.key].record.ttl for record in records}


@breaks("time_to_live_of_records")
class TellsPairs(MemoryStore):
    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        return list(super().time_to_live(records).items())  # type: ignore[return-value]


@breaks("time_to_live_of_records")
class TellsMilliseconds(MemoryStore):
    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        return {key: left and left * 1000 for key, left in super().time_to_live(records).items()}


# the clock


@breaks("the_clock_tells_the_time_of_day_or_nothing", "an_outage_is_said_and_survived")
class ClockSinceBoot(MemoryStore):
    def clock(self) -> StoreTime | None:
        return StoreTime(time.monotonic(), time.monotonic() + 1, "the kernel")


@breaks("the_clock_tells_the_time_of_day_or_nothing", "an_outage_is_said_and_survived")
class ClockThatWrites(MemoryStore):
    def clock(self) -> StoreTime | None:
        with self.reached():
            self.put("clock", "", None)
        return super().clock()


@breaks("the_clock_tells_the_time_of_day_or_nothing", "an_outage_is_said_and_survived")
class ClockThatNeverComes(MemoryStore):
    def clock(self) -> StoreTime | None:
        threading.Event().wait()
        return None


# the watch


@breaks(
    "changes_come_in_order_once_each",
    "a_slow_reader_catches_up",
    "a_watch_resumes_from_a_revision",
    "many_watches_of_one_store",
    "no_gap_between_snapshot_and_watch_while_others_write",
    "odd_keys_come_back",
    "odd_values_come_back",
    "each_batch_says_where_to_go_on",
)
class Backwards(MemoryStore):
    class Stream(MemoryWatch):
        def __next__(self) -> Batch:
            time.sleep(TICK)  # several changes
            batch = super().__next__()
            return replace(batch, changes=batch.changes[::-1])

    stream = Stream


@breaks(
    "a_watch_does_not_repeat_the_snapshot",
    "a_large_cluster",
    "a_record_expires",
    "a_watch_resumes_from_a_revision",
    "an_outage_is_said_and_survived",
    "what_is_renewed_or_reserved_stays_and_nobody_notices",
    "each_batch_says_where_to_go_on",
)
class BeginsAtTheBeginning(MemoryStore):
    def watch(self, revision: str) -> Watch:
        return super().watch("0")


@breaks(
    "a_watch_resumes_from_a_revision",
    "another_objects_revision_is_resumed_or_refused",
    "lost_history_is_said_when_iterating",
    "no_gap_between_snapshot_and_watch_while_others_write",
    "each_batch_says_where_to_go_on",
    "a_record_expires",
)
class ResumesFromNow(MemoryStore):
    def watch(self, revision: str) -> Watch:
        return super().watch(str(self.server.revision))


@breaks("another_objects_revision_is_resumed_or_refused")
class KnowsItsOwnRevisionsOnly(MemoryStore):
    first = 0

    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        self.first = self.first or int(found.revision) + 1
        return found

    def since(self, revision: int) -> list[tuple[int, Change]]:
        if not self.first:
            raise HistoryGoneError("that revision is another object's")
        return super().since(revision)


@breaks("no_gap_between_snapshot_and_watch_while_others_write", "a_slow_reader_catches_up")
class ReadsTheRevisionLater(MemoryStore):
    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        time.sleep(0.02)
        return replace(found, revision=super().snapshot().revision)


@breaks(
    "a_slow_reader_catches_up",
    "changes_come_in_order_once_each",
    "a_large_cluster",
    "many_watches_of_one_store",
    "odd_keys_come_back",
    "no_gap_between_snapshot_and_watch_while_others_write",
)
class DropsWhatNobodyReads(MemoryStore):
    class Stream(MemoryWatch):
        def __next__(self) -> Batch:
            batch = super().__next__()
            return replace(batch, changes=batch.changes[-10:])

    stream = Stream


@breaks("each_batch_says_where_to_go_on", "a_watch_resumes_from_a_revision", "an_outage_is_said_and_survived")
class StepsBack(MemoryStore):
    """Every other batch has the revision of the one before."""

    class Stream(MemoryWatch):
        def __next__(self) -> Batch:
            batch = super().__next__()
            before = getattr(self, "before", "")
            self.before = "" if before else batch.revision
            return replace(batch, revision=before) if before else batch

    stream = Stream


@breaks("each_batch_says_where_to_go_on", "a_watch_resumes_from_a_revision", "an_outage_is_said_and_survived")
class StaysAtTheBeginning(MemoryStore):
    class Stream(MemoryWatch):
        def __init__(self, store: MemoryStore, revision: int) -> None:
            super().__init__(store, revision)
            self.first = str(revision)

        def __next__(self) -> Batch:
            return replace(super().__next__(), revision=self.first)

    stream = Stream


@breaks("a_watch_with_nothing_to_tell_waits")
class Chatters(MemoryStore):
    """Empty batches without end."""

    class Stream(MemoryWatch):
        def __next__(self) -> Batch:
            if self.closed.is_set():
                raise StopIteration
            with self.store.server.changed:
                self.store.expire()
                news = self.store.server.up and self.store.since(self.revision)
            return super().__next__() if news else Batch(str(self.revision))

    stream = Stream


@breaks("a_watch_with_nothing_to_tell_waits", *EVERYWHERE)
class EndsInSilence(MemoryStore):
    class Stream(MemoryWatch):
        def __next__(self) -> Batch:
            if not self.store.server.log:
                raise StopIteration
            return super().__next__()

    stream = Stream


@breaks("a_watch_does_not_repeat_the_snapshot", *EVERYWHERE)
class YieldsItsBatches(MemoryStore):
    """A generator can't be closed from another thread while it runs."""

    def watch(self, revision: str) -> Watch:  # type: ignore[misc]
        yield from super().watch(revision)


@breaks("a_watch_leaves_nothing_behind")
class LeavesAThread(MemoryStore):
    def watch(self, revision: str) -> Watch:
        threading.Thread(target=threading.Event().wait, name="of a watch", daemon=True).start()
        return super().watch(revision)


@breaks("a_watch_leaves_nothing_behind")
class LeavesAPipe(MemoryStore):
    def watch(self, revision: str) -> Watch:
        os.pipe()
        return super().watch(revision)


@breaks("a_watch_leaves_nothing_behind")
class ClosesWhenIterated(MemoryStore):
    """A watch that is closed between two batches keeps its file."""

    class Stream(MemoryWatch):
        def __init__(self, store: MemoryStore, revision: int) -> None:
            super().__init__(store, revision)
            self.file = os.open(os.devnull, os.O_RDONLY)

        def __next__(self) -> Batch:
            try:
                return super().__next__()
            except BaseException:
                os.close(self.file)
                raise

    stream = Stream


@breaks("close_ends_a_waiting_watch", "a_closed_watch_has_ended")
class ClosesAWatchOnce(MemoryStore):
    class Stream(MemoryWatch):
        def close(self) -> None:
            if self.closed.is_set():
                raise RuntimeError("closed already")
            super().close()

    stream = Stream


@breaks("a_closed_watch_has_ended", "closing_the_store_ends_its_watches")
class WaitsForTheFirstChange(MemoryStore):
    class Stream(MemoryWatch):
        """Looks whether it is closed after the first change only."""

        def __next__(self) -> Batch:
            while not (self.store.server.log or self.revision):
                time.sleep(TICK)
            return super().__next__()

    stream = Stream


@breaks("closing_the_store_ends_its_watches")
class ForgetsItsWatches(MemoryStore):
    def close(self) -> None:
        pass


@breaks("many_watches_of_one_store", "no_gap_between_snapshot_and_watch_while_others_write", "a_record_expires")
class OneWatchAtATime(MemoryStore):
    def watch(self, revision: str) -> Watch:
        self.close()
        return super().watch(revision)


@breaks("lost_history_is_said_when_iterating")
class SkipsWhatItForgot(MemoryStore):
    def since(self, revision: int) -> list[tuple[int, Change]]:
        return super().since(max(revision, self.server.forgotten))


# outages


@breaks("an_outage_is_said_and_survived")
class SaysConflictWhenDown(MemoryStore):
    def delete(self, record: Record) -> None:
        try:
            super().delete(record)
        except StoreUnavailableError as error:
            raise ConflictError(str(error)) from error


@breaks("an_outage_is_said_and_survived")
class HangsWhenDown(MemoryStore):
    def read_config(self) -> Record | None:
        while not self.server.up:
            time.sleep(TICK)
        return super().read_config()


@breaks("an_outage_is_said_and_survived")
class EndsItsWatchesWhenDown(MemoryStore):
    class Stream(MemoryWatch):
        def __init__(self, store: MemoryStore, revision: int) -> None:
            super().__init__(store, revision)
            self.outages = store.server.outages

        def __next__(self) -> Batch:
            if self.store.server.outages != self.outages:
                raise StopIteration
            batch = super().__next__()
            return batch if self.store.server.outages == self.outages else next(self)

    stream = Stream


# what is stored


@breaks("odd_keys_come_back")
class FoldsCase(MemoryStore):
    def create(self, key: str, value: str, ttl: float | None) -> Record:
        return super().create(key.lower(), value, ttl)


@breaks("odd_keys_come_back")
class DropsStrangers(MemoryStore):
    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        return replace(found, leases=tuple(item for item in found.leases if "-" in item.key))


@breaks("odd_values_come_back")
class StripsValues(MemoryStore):
    def put(self, key: str, value: str, ttl: float | None) -> Record:
        return super().put(key, value.strip(), ttl)


@breaks("a_large_value_comes_back")
class CutsValues(MemoryStore):
    def put(self, key: str, value: str, ttl: float | None) -> Record:
        return super().put(key, value[:2048], ttl)


@breaks("a_large_cluster", "nodes_that_start_at_once_get_a_subnet_each")
class ShowsAPage(MemoryStore):
    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        return replace(found, leases=found.leases[:50])


class TellsLate(MemoryStore):
    """Which nobody is judged by."""

    class Stream(MemoryWatch):
        def __next__(self) -> Batch:
            batch = super().__next__()
            time.sleep(0.3)
            return batch

    stream = Stream


class Sound(MemoryStore):
    """Breaks nothing."""


MUTANTS["Sound"] = (Sound, ())
MUTANTS["TellsLate"] = (TellsLate, ())


for _name, (_kind, _) in MUTANTS.items():
    globals()[f"Test{_name}"] = type(f"Test{_name}", (OnMemory,), {"__test__": True, "store_class": _kind})
