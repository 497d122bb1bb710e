"""Following a store as the core does: from a snapshot, batch by batch, opening the watch again where it broke."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from pyflannel.errors import StoreUnavailableError
from pyflannel.store import Change, Store, Watch


class Follower:
    """A thread that follows a store. A context manager.

    ``changes`` are all that were seen, in order; ``breaks`` counts how often the watch had to be opened again;
    ``failure`` is what ended it, if anything but :meth:`close` did.
    """

    def __init__(self, store: Store, revision: str | None = None) -> None:
        self._store = store
        self.revision = revision if revision is not None else store.snapshot().revision
        self.changes: list[Change] = []
        self.breaks = 0
        self.failure: BaseException | None = None
        self._news = threading.Condition()
        self._closed = threading.Event()
        self._watch: Watch = store.watch(self.revision)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def until(self, condition: Callable[[list[Change]], bool], timeout: float = 30.0) -> list[Change]:
        """Wait until the changes seen so far fulfil ``condition``, and return them."""
        with self._news:
            met = self._news.wait_for(lambda: self.failure is not None or condition(self.changes), timeout)
        if self.failure is not None:
            raise self.failure
        assert met, f"not seen within {timeout:g} s; seen: {[change.key for change in self.changes]}"
        return self.changes

    def close(self) -> None:
        self._closed.set()
        self._watch.close()
        self._thread.join(10)
        assert not self._thread.is_alive(), "closing the watch did not end the iteration"

    def _follow(self) -> None:
        while not self._closed.is_set():
            try:
                for batch in self._watch:
                    with self._news:
                        self.revision = batch.revision
                        self.changes.extend(batch.changes)
                        self._news.notify_all()
            except StoreUnavailableError:
                self.breaks += 1
                self._watch.close()
                self._closed.wait(0.05)
                self._watch = self._store.watch(self.revision)
                if self._closed.is_set():
                    self._watch.close()
            except BaseException as error:
                with self._news:
                    self.failure = error
                    self._news.notify_all()
                return
            else:
                return

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
