"""What a store holds, looked at from outside: compared, followed by a watch as the core does, read batch by batch."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable

from pyflannel.errors import HistoryGoneError, StoreError, StoreUnavailableError
from pyflannel.store import Batch, Change, Record, Snapshot, Store, Watch
from pyflannel.testing import _waiting as waiting
from pyflannel.testing._calls import Caller, close_watch
from pyflannel.testing._waiting import eventually

__all__ = ["Follower", "Reader", "contents", "facts", "same_value"]


def same_value(left: str, right: str) -> bool:
    """Whether two texts are one value: equal, or the same JSON object, which a store may lay out anew."""
    if left == right:
        return True
    try:
        documents = json.loads(left), json.loads(right)
    except ValueError:
        return False
    return isinstance(documents[0], dict) and documents[0] == documents[1]


def facts(record: Record) -> tuple[str, str, bool]:
    """Value, version and permanence."""
    return record.value, record.version, record.permanent


def contents(snapshot: Snapshot) -> dict[str, tuple[str, str, bool]]:
    """Key to value, version and permanence, the network document included."""
    records = snapshot.leases if snapshot.config is None else (snapshot.config, *snapshot.leases)
    found = {record.key: facts(record) for record in records}
    if len(found) < len(records):
        twice = [key for key, times in Counter(record.key for record in records).items() if times > 1]
        raise AssertionError(f"the snapshot holds more than one record of: {', '.join(twice)}")
    return found


class Follower:
    """Follows a store from a snapshot on, in a thread, as the core does.

    ``state`` is the snapshot with all batches applied, ``changes`` what came, in order. A broken stream is reopened at
    the last revision, lost history is answered by a new snapshot; ``interruptions`` holds the errors that said so.

    :param state: what to begin with in place of the snapshot's contents.
    """

    def __init__(self, store: Store, snapshot: Snapshot, state: dict[str, tuple[str, str, bool]] | None = None) -> None:
        self.state = contents(snapshot) if state is None else dict(state)
        self.changes: list[Change] = []
        self.revision = snapshot.revision
        self.interruptions: list[StoreError] = []
        self.error: BaseException | None = None
        self._store = store
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watch = store.watch(snapshot.revision)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """End the watch, and the thread with it."""
        with self._lock:
            self._closed.set()
            close_watch(self._watch)
        self.thread.join(waiting.PATIENCE)
        assert not self.thread.is_alive(), f"close() of a watch did not end its iteration within {waiting.PATIENCE:g} s"

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                try:
                    self._follow()
                    assert self._closed.is_set(), "the watch ended (StopIteration), and nobody had closed it"
                    return
                except (StoreUnavailableError, HistoryGoneError) as error:
                    self.interruptions.append(error)
                    self._reopen(isinstance(error, HistoryGoneError))
        except BaseException as error:
            self.error = error

    def _follow(self) -> None:
        for batch in self._watch:
            for change in batch.changes:
                self.changes.append(change)
                if change.record is None:
                    self.state.pop(change.key, None)
                else:
                    self.state[change.key] = facts(change.record)
            self.revision = batch.revision

    def _reopen(self, anew: bool) -> None:
        close_watch(self._watch)
        if anew:
            snapshot = self._store.snapshot()
            self.state, self.revision = contents(snapshot), snapshot.revision
        self._closed.wait(0.05)
        with self._lock:
            if not self._closed.is_set():
                self._watch = self._store.watch(self.revision)

    def until(self, condition: Callable[[], bool], what: str, patience: float | None = None) -> None:
        """Wait for ``condition``, or for the error that makes it impossible."""
        try:
            eventually(lambda: self.error is not None or condition(), f"{what}, in a watch", patience)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last changes that came: {self.changes[-5:] or 'none'}") from None
        if self.error is not None:
            raise self.error

    def of(self, key: str) -> list[Record | None]:
        """The states of one key, in the order they came."""
        return [change.record for change in self.changes if change.key == key]


class Reader:
    """Reads a watch in the test's own thread, which does not hang if nothing comes. A context manager."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._caller = Caller(type(watch).__name__)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        close_watch(self._watch)
        self._caller.end()

    def __call__(self, what: str) -> Batch:
        """The next batch, which brings ``what``."""
        clause = "iterating blocks until there is a batch, an error or close(): pyflannel.store.Watch"
        return self._caller(f"the next batch, with {what},", lambda: next(self._watch), waiting.PATIENCE, clause)

    def to_the_end(self) -> list[Batch]:
        """All batches until the watch ends or raises."""
        batches = []
        while True:
            try:
                batches.append(self("the end of the watch"))
            except StopIteration:
                return batches
