"""The stores' kit: what a watch owes, and what is owed while the server is away."""

# A test's name is its docstring:

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from typing import Final

import pytest

from pyflannel.errors import HistoryGoneError, StoreUnavailableError
from pyflannel.store import Record, Snapshot, Store
from pyflannel.testing import _store_workers as workers
from pyflannel.testing import _waiting as waiting
from pyflannel.testing._calls import close_watch
from pyflannel.testing._following import Follower, Reader, contents, facts
from pyflannel.testing._store_records import ask_clock
from pyflannel.testing._store_subject import CONFIG, KEY, OTHER, VALUE, StoreSubject
from pyflannel.testing._store_workers import Opening
from pyflannel.testing._waiting import check_what_is_left, eventually
from pyflannel.testing.clauses import clause, tell

__all__ = ["StoreWatches"]

SLOW_WATCH: Final = 0.25
"""Seconds from a change to its batch from which on the summary warns: so long other nodes send to where nobody is."""

IDLE: Final = 0.5
"""Seconds for which a watch is looked at that has nothing to tell."""

MOST_IDLE_BATCHES: Final = 50
"""Batches that none has in that time."""


class StoreWatches(StoreSubject):
    """The watch, and outages."""

    # the watch

    @clause("pyflannel.store.Batch", "changes in the order they happened")
    def test_changes_come_in_order_once_each(self, store: Store, opening: Opening) -> None:
        keys = [f"10.5.{number}.0-24" for number in range(100)]
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            records = [other.create(key, VALUE, 3600.0) for key in keys]
            follower.until(lambda: len(follower.changes) >= len(keys), "all creations")
            assert [change.key for change in follower.changes] == keys
            assert [change.record and facts(change.record) for change in follower.changes] == [*map(facts, records)]
            for record in reversed(records):
                other.delete(record)
            follower.until(lambda: not follower.state, "all deletions")
            gone = follower.changes[len(keys) :]
            assert sorted(change.key for change in gone) == sorted(keys)
            assert all(change.record is None for change in gone)

    @clause("pyflannel.store.Store.watch", "changes after the revision, none from before")
    def test_a_watch_does_not_repeat_the_snapshot(self, store: Store, opening: Opening) -> None:
        store.write_config(CONFIG, None)
        store.create(KEY, VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            last = other.create("10.5.1.0-24", VALUE, 3600.0)
            follower.until(lambda: last.key in follower.state, "the change after the snapshot")
            assert [change.key for change in follower.changes] == [last.key]

    @clause(
        "pyflannel.store.Store.watch",
        "goes on from a revision that a batch of this object carried, more than once",
    )
    def test_a_watch_resumes_from_a_revision(self, store: Store, opening: Opening) -> None:
        with opening.open() as other:
            gone = other.create("10.5.1.0-24", VALUE, 3600.0)
            changed = other.create("10.5.2.0-24", VALUE, 3600.0)
            with Follower(store, store.snapshot()) as follower:
                other.create("10.5.3.0-24", VALUE, 3600.0)
                follower.until(lambda: "10.5.3.0-24" in follower.state, "the first change")
            revision, state = follower.revision, dict(follower.state)
            other.delete(gone)
            changed = other.update(changed, OTHER, 3600.0)
            brief = other.create("10.5.4.0-24", VALUE, 3600.0)
            other.delete(brief)
            new = other.create("10.5.5.0-24", VALUE, 3600.0)
            for _ in range(2):  # a revision can be resumed from more than once
                with Follower(store, Snapshot(revision, None, ()), state) as resumed:
                    final = contents(other.snapshot())
                    resumed.until(lambda: resumed.state == final, f"the state {final}")  # noqa: B023
                    assert not resumed.interruptions
                    seen = [change.key for change in resumed.changes if change.key != brief.key]
                    assert sorted(seen) == sorted([gone.key, changed.key, new.key])
                    assert seen.index(changed.key) < seen.index(new.key)

    @clause(
        "pyflannel.store.Batch", "a watch goes on after each batch's revision with what came next, and nothing else"
    )
    def test_each_batch_says_where_to_go_on(self, store: Store, opening: Opening) -> None:
        """The last ones, too: revisions don't go back, nor do they run ahead of what was told."""
        keys = [f"10.5.{number}.0-24" for number in range(6)]
        told: dict[str, int] = {}
        with Reader(store.watch(store.snapshot().revision)) as read, opening.open() as other:
            for key in keys:
                other.create(key, VALUE, 3600.0)
                batch = read(key)
                while not batch.changes:
                    batch = read(key)
                told[batch.revision] = keys.index(key) + 1
        last = self._create_last(opening)
        for revision, count in told.items():
            seen: list[str] = []
            with Reader(store.watch(revision)) as again:
                while last not in seen:
                    seen += [change.key for change in again(last).changes]
            assert seen == [*keys[count:], last], (
                f"a watch from revision {revision} on, which came with {keys[count - 1]}"
            )

    @staticmethod
    def _create_last(opening: Opening) -> str:
        with opening.open() as other:
            return other.create("10.5.99.0-24", VALUE, 3600.0).key

    @clause("pyflannel.store.Watch", "where nothing changes, iterating waits")
    def test_a_watch_with_nothing_to_tell_waits(self, store: Store) -> None:
        """It may tell now and then that the revision has moved on. One that goes on and on costs a CPU."""
        watch = store.watch(store.snapshot().revision)
        batches: list[str] = []

        def follow() -> None:
            with suppress(StopIteration):
                while len(batches) < MOST_IDLE_BATCHES:
                    batches.append(next(watch).revision)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        thread.join(IDLE)
        waits = thread.is_alive()
        close_watch(watch)
        assert len(batches) < MOST_IDLE_BATCHES, f"{len(batches)} batches within {IDLE:g} s, and nothing had changed"
        assert waits, "the watch ended, and nobody had closed it"

    @clause(
        "pyflannel.store.Store.watch",
        "goes on from another object's revision where the server keeps history (keeps_history), else HistoryGoneError",
    )
    def test_another_objects_revision_is_resumed_or_refused(self, store: Store, opening: Opening) -> None:
        with opening.open() as other:
            revision = other.snapshot().revision
            record = other.create(KEY, VALUE, 3600.0)
        with Follower(store, Snapshot(revision, None, ())) as follower:
            follower.until(lambda: follower.state.get(KEY) == facts(record), "the change since")
            refusals = [type(error) for error in follower.interruptions]
            assert refusals == ([] if self.keeps_history else [HistoryGoneError]), (
                f"keeps_history is {self.keeps_history}: where the server keeps no history, and only there, another "
                "object's revision is refused; say which it is in the kit's class, or --set keeps_history=true"
            )

    @clause("pyflannel.store.Snapshot", "watch(revision) goes on without a gap, whoever writes meanwhile")
    def test_no_gap_between_snapshot_and_watch_while_others_write(
        self, store: Store, opening: Opening, pool: ProcessPoolExecutor
    ) -> None:
        keys = [[f"10.{writer}.{number}.0-24" for number in range(8)] for writer in range(4)]
        jobs = [pool.submit(workers.hammer, opening, keys[writer], 150, writer) for writer in range(4)]
        followers: list[Follower] = []
        try:
            while len(followers) < 6 and not all(job.done() for job in jobs):
                followers.append(Follower(store, store.snapshot()))
                wanted = len(followers[-1].changes) + 1
                eventually(
                    lambda: len(followers[-1].changes) >= wanted or all(job.done() for job in jobs),  # noqa: B023
                    "a change, or the end of all changes",
                )
            workers.results(pool, jobs, workers.TIMEOUT, "all changes are made")
            final = contents(store.snapshot())
            for follower in followers:
                follower.until(lambda: follower.state == final, "the final state")  # noqa: B023
                assert not follower.interruptions
                self._check_order(follower)
        finally:
            for follower in followers:
                follower.close()

    @staticmethod
    def _check_order(follower: Follower) -> None:
        """No change came twice, none after a later one: the values of each key count up.

        A renewal for another TTL may show as a change of the version alone.
        """
        last: dict[str, int] = {}
        seen: set[tuple[str, str]] = set()
        for change in follower.changes:
            if change.record is not None:
                count = json.loads(change.record.value)["count"]
                assert count >= last.get(change.key, 0), f"{change.key}: {count} after {last[change.key]}"
                assert (change.key, change.record.version) not in seen, f"{change.key}: {count} came twice"
                last[change.key] = count
                seen.add((change.key, change.record.version))

    @clause("pyflannel.store.Watch", "a reader that was slow gets all that it missed, or HistoryGoneError")
    def test_a_slow_reader_catches_up(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        """Or is told that history is gone."""
        keys = [f"10.5.{number}.0-24" for number in range(20)]
        with Reader(store.watch(store.snapshot().revision)) as read:
            with opening.open() as other:
                first = other.create(KEY, VALUE, 3600.0)
            assert KEY in self._changed(read, "the first change")
            workers.results(pool, [pool.submit(workers.hammer, opening, keys, 600, 1)], workers.TIMEOUT, "600 changes")
            final = contents(store.snapshot())
            with suppress(HistoryGoneError):  # allowed: the reader is told to take a new snapshot
                self._catch_up(read, {KEY: facts(first)}, final)

    @staticmethod
    def _changed(read: Reader, what: str) -> list[str]:
        while not (batch := read(what)).changes:
            pass
        return [change.key for change in batch.changes]

    @staticmethod
    def _catch_up(read: Reader, state: dict[str, tuple[str, str, bool]], final: object) -> None:
        deadline = time.monotonic() + waiting.PATIENCE
        while state != final:
            assert time.monotonic() < deadline, (
                f"after {waiting.PATIENCE:g} s the watch has led to {state}, not to {final}"
            )
            for change in read(f"what is missing to {final}").changes:
                if change.record is None:
                    state.pop(change.key, None)
                else:
                    state[change.key] = facts(change.record)

    @clause("pyflannel.store.Store.watch", "a change comes (how soon is told below)")
    def test_a_change_comes_soon(self, request: pytest.FixtureRequest, store: Store, opening: Opening) -> None:
        """How soon is told, not judged."""
        took = []
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            for number in range(9):
                key = other.create(f"10.5.{number}.0-24", VALUE, 3600.0).key
                began = time.monotonic()
                follower.until(lambda: key in follower.state, f"the creation of {key}")  # noqa: B023
                took.append(time.monotonic() - began)
        median = statistics.median(took)
        slow = "warning: a change is late; from 250 ms on nodes send to where nobody is: " * (median >= SLOW_WATCH)
        tell(request, f"{slow}watch latency: median {median * 1000:.0f} ms, worst {max(took) * 1000:.0f} ms")

    @clause("pyflannel.store.Watch.close", "ends the stream, and what it was made of")
    def test_a_watch_leaves_nothing_behind(self, store: Store) -> None:
        """No thread and no connection, however many watches there were."""
        self._watch_once(store, 0)  # what is made once for all
        check_what_is_left(lambda: [self._watch_once(store, number) for number in range(1, 7)], "six closed watches")

    @staticmethod
    def _watch_once(store: Store, number: int) -> None:
        with Follower(store, store.snapshot()) as follower:
            key = store.create(f"10.5.{number}.0-24", VALUE, 3600.0).key
            follower.until(lambda: key in follower.state, f"the creation of {key}")
        with Reader(store.watch(follower.revision)) as read:  # which nobody iterates when it is closed
            store.create(f"10.6.{number}.0-24", VALUE, 3600.0)
            read("another creation")

    @clause("pyflannel.store.Watch.close", "ends a blocked iteration, from any thread; idempotent")
    def test_close_ends_a_waiting_watch(self, store: Store) -> None:
        follower = Follower(store, store.snapshot())
        store.create(KEY, VALUE, 3600.0)
        follower.until(lambda: KEY in follower.state, "the first change")
        follower.close()
        follower.close()
        assert follower.error is None
        assert not follower.interruptions

    @clause("pyflannel.store.Watch", "iterating over a closed watch ends at once")
    def test_a_closed_watch_has_ended(self, store: Store) -> None:
        watch = store.watch(store.snapshot().revision)
        close_watch(watch)
        close_watch(watch)
        with Reader(watch) as read:
            assert read.to_the_end() == []

    @clause("pyflannel.store.Store.close", "ends all watches")
    def test_closing_the_store_ends_its_watches(self, opening: Opening) -> None:
        store = opening.open()
        watch = store.watch(store.snapshot().revision)
        ended: list[str] = []

        def follow() -> None:
            try:
                for _ in watch:
                    pass
                ended.append("")
            except StoreUnavailableError:
                ended.append("")  # the stream broke: true as well
            except BaseException as error:
                ended.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        store.close()
        thread.join(waiting.PATIENCE)
        assert ended == [""], f"the watch of a closed store must end, or raise StoreUnavailableError; it: {ended}"

    @clause("pyflannel.store.Store.watch", "each of several watches tells everything")
    def test_many_watches_of_one_store(self, store: Store, opening: Opening) -> None:
        snapshot = store.snapshot()
        followers = [Follower(store, snapshot) for _ in range(4)]
        try:
            with opening.open() as other:
                for number in range(20):
                    other.delete(other.create(f"10.5.{number}.0-24", VALUE, 3600.0))
                last = other.create(KEY, VALUE, 3600.0)
            for follower in followers:
                follower.until(lambda: follower.state == {KEY: facts(last)}, "the last record alone")  # noqa: B023
        finally:
            for follower in followers:
                follower.close()

    @clause("pyflannel.store.Watch.__next__", "HistoryGoneError if changes were missed")
    def test_lost_history_is_said_when_iterating(self, store: Store) -> None:
        revision = store.snapshot().revision
        store.delete(store.create(KEY, VALUE, 3600.0))
        with Reader(store.watch(self.lose_history(store, revision))) as read, pytest.raises(HistoryGoneError):
            read.to_the_end()

    # outages

    @clause(
        "pyflannel.store.Store",
        "a server that does not answer is a StoreUnavailableError within CALL_TIMEOUT, and all goes on when it is back",
    )
    def test_an_outage_is_said_and_survived(self, store: Store, opening: Opening) -> None:
        config = store.write_config(CONFIG, None)
        kept = store.create(KEY, VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower:
            self.stop_server()
            try:
                self._check_outage(store, config, kept)
            finally:
                self.start_server()
            eventually(lambda: self._answers(store), "the store answers again")
            expected = {config.key: facts(config), kept.key: facts(kept)}
            assert contents(store.snapshot()) == expected, (
                "what was asked for during the outage has taken effect: where stop_server() merely freezes the server, "
                "which then does it all when it goes on, let it end the server"
            )
            with opening.open() as other:
                new = other.create("10.5.1.0-24", VALUE, 3600.0)
            expected[new.key] = facts(new)
            follower.until(lambda: follower.state == expected, f"the state {expected}")
            assert [change.key for change in follower.changes if change.key == kept.key] == []
            store.renew(kept, 3600.0)

    @staticmethod
    def _check_outage(store: Store, config: Record, kept: Record) -> None:
        calls: tuple[Callable[[], object], ...] = (
            store.read_config,
            store.snapshot,
            lambda: store.write_config(CONFIG, config),
            lambda: store.create("10.5.9.0-24", VALUE, 3600.0),
            lambda: store.update(kept, OTHER, 3600.0),
            lambda: store.renew(kept, 3600.0),
            lambda: store.delete(kept),
        )
        for call in calls:
            with pytest.raises(StoreUnavailableError):
                call()
        ask_clock(store)

    @staticmethod
    def _answers(store: Store) -> bool:
        try:
            store.snapshot()
        except StoreUnavailableError:
            return False
        return True
