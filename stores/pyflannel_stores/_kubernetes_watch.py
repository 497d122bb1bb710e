"""Following a cluster's Nodes, and the network document beside them: the watch, and what was known at its revisions.

The idea: a watch holds a state of its own (which leases there are, as of a resource version), and each event or look at
the document turns it into the next one. The latest states are kept by their revisions, so that another watch can begin
where a snapshot or an earlier watch has ended.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from pyflannel.errors import HistoryGoneError, StoreError, StoreUnavailableError
from pyflannel.store import CONFIG_KEY, Batch, Change, Record, StoreLocation, Watch
from pyflannel_stores._bounds import parsed

if TYPE_CHECKING:
    from pyflannel_stores._kubernetes_http import Stream
    from pyflannel_stores._kubernetes_nodes import ClusterNodes, Sieve

__all__ = ["Followed", "History", "KubernetesWatch", "State"]

_PATIENCE: Final = 2.0
"""Seconds between two looks at the network document while nothing comes from the API server."""

_BREATH: Final = 0.05
"""Seconds of rest after events that were none of ours and came in quick succession: many are read at once then."""

_SHORTEST: Final = 1.0
"""Seconds within which no API server ends a watch that it means to serve. One that does is not asked again at once."""

_REMEMBERED: Final = 4


@dataclass(slots=True)
class State:
    """All leases, and the document, as of a resource version."""

    version: str
    cluster: ClusterNodes
    config: Record
    sieve: Sieve

    def copy(self) -> State:
        """The same, to go on from."""
        return State(self.version, self.cluster.copy(), self.config, self.sieve.copy())


class History:
    """What was known at the revisions that were handed out last. For any thread."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, State] = OrderedDict()
        self._lock = threading.Lock()
        self._name = uuid.uuid4().hex[:12]
        self._number = 0

    def add(self, state: State) -> str:
        """Keep a state of its own and return its revision."""
        with self._lock:
            return self._enter(state)

    def advance(self, before: str, state: State) -> str:
        """``state`` has gone on from revision ``before``, which is forgotten if it was this very state."""
        with self._lock:
            if self._states.get(before) is state:
                del self._states[before]
            return self._enter(state)

    def get(self, revision: str) -> State | None:
        """The state at a revision, if it is still kept."""
        with self._lock:
            return self._states.get(revision)

    def _enter(self, state: State) -> str:
        self._number += 1
        revision = f"{self._name}.{self._number}.{state.version}"
        self._states[revision] = state
        while len(self._states) > _REMEMBERED:
            self._states.popitem(last=False)
        return revision


class Followed(Protocol):
    """What a watch needs of its store."""

    location: StoreLocation

    @property
    def http(self) -> Any:
        """The module that speaks HTTP, with its errors."""

    @property
    def own(self) -> str | None:
        """Our own Node's name, once it is known."""

    @property
    def document_interval(self) -> float:
        """Seconds between two looks at the network document."""

    def open_stream(self, version: str) -> Stream:
        """Follow all Nodes from a resource version on."""

    def state(self, revision: str) -> State | None:
        """What was known at a revision."""

    def advance(self, revision: str, state: State) -> str:
        """A watch knows more now; returns the revision that stands for it."""

    def read_document(self) -> Record:
        """The network document as it is now."""

    def take_in(self, node: Mapping[str, Any]) -> tuple[str, Record | None]:
        """A Node of an event: its name, and the lease it stands for now."""

    def outdated(self, name: str, version: str) -> bool:
        """Whether an event of our own Node is older than what we have written meanwhile."""


class KubernetesWatch(Watch):
    """Changes of Nodes, and of the document's file."""

    def __init__(self, store: Followed, revision: str) -> None:
        self._store = store
        self._revision = revision
        before = store.state(revision)
        self._state = before.copy() if before is not None else None
        self._stream: Stream | None = None
        self._idle_at = self._looked_at = self._silent_since = 0.0
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    def __next__(self) -> Batch:
        with self._reading:
            try:
                while not self._closed.is_set():
                    batch = self._follow()
                    if batch is not None:
                        return batch
            except Exception:
                self._let_go()
                if not self._closed.is_set():
                    raise
            self._let_go()
        raise StopIteration

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            if self._stream is not None:
                self._stream.close()
        if self._reading.acquire(blocking=False):  # else whoever reads lets go of it
            self._let_go()
            self._reading.release()

    def _follow(self) -> Batch | None:
        state = self._state
        if state is None:
            raise HistoryGoneError(
                f"{self._store.location}: revision {self._revision!r} is not known here (any more); take a new snapshot"
            )
        http = self._store.http
        version = state.version
        try:
            if self._stream is None:
                self._open(state)
            assert self._stream is not None
            lines = self._stream.lines(_PATIENCE)
            changes = () if lines is None else self._taken_in(state, lines)
            self._note(lines)
            if not changes:
                self._rest()
        except http.Gone as error:
            raise HistoryGoneError(f"{error}; take a new snapshot") from None
        except http.NotFound as error:
            raise StoreUnavailableError(str(error)) from None
        if lines is None:  # the server ends every watch at some time
            self._let_go()
        changes += self._document_changes(state)
        if not changes and state.version == version:
            return None
        self._revision = self._store.advance(self._revision, state)
        return Batch(self._revision, changes) if changes else None

    def _taken_in(self, state: State, lines: Iterator[bytes]) -> tuple[Change, ...]:
        """What these lines change. What came before trouble is told first: opened anew, the watch meets it again."""
        changes: list[Change] = []
        try:
            for change in self._changes(state, lines):
                changes.append(change)
        except Exception:
            if not changes:
                raise
            self._let_go()
        return tuple(changes)

    def _note(self, lines: Iterator[bytes] | None) -> None:
        """What has come of the stream.

        :raises StoreUnavailableError: its end, and nothing before.
        """
        now = time.monotonic()
        if lines is None and now - self._silent_since < _SHORTEST:
            raise StoreUnavailableError(f"{self._store.location}: the API server ends a watch as soon as it is open")
        if lines is not None:
            self._silent_since = 0.0

    def _rest(self) -> None:
        """Nothing of what came was ours: if that happens all the time, let some more come before looking again."""
        now = time.monotonic()
        if now - self._idle_at < _BREATH / 2:
            self._closed.wait(_BREATH)
            now = time.monotonic()
        self._idle_at = now

    def _open(self, state: State) -> None:
        stream = self._store.open_stream(state.version)
        with self._lock:
            self._stream = stream
            self._silent_since = time.monotonic()
            if self._closed.is_set():
                stream.close()

    def _let_go(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.release()

    def _changes(self, state: State, lines: Iterator[bytes]) -> Iterator[Change]:
        for line in lines:
            if self._concerns_own(line):
                yield from self._event(state, line)
            elif (version := state.sieve.unchanged(line)) is not None:
                state.version = version
            elif line:
                yield from self._event(state, line)
                state.sieve.learn()

    def _concerns_own(self, line: bytes) -> bool:
        """Whether an event may be our own Node's, of which more is looked at."""
        own = self._store.own
        return own is not None and f'"name":"{own}"'.encode() in line[:400]

    def _event(self, state: State, line: bytes) -> Iterator[Change]:
        try:
            event = parsed(line)
            kind, node = event["type"], event["object"]
            if kind == "ERROR":
                raise self._store.http.refusal(
                    int(node.get("code", 500)), json.dumps(node).encode(), str(self._store.location)
                )
            version, name = str(node["metadata"]["resourceVersion"]), node["metadata"].get("name", "")
            if kind == "DELETED":
                state.sieve.forget(name)
                yield from state.cluster.put(name, None)
            elif kind in ("ADDED", "MODIFIED") and not self._store.outdated(name, version):
                yield from state.cluster.put(*self._store.take_in(node))
            state.version = version
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StoreUnavailableError(
                f"{self._store.location}: the API server sends something other than events of Nodes"
            ) from None

    def _document_changes(self, state: State) -> tuple[Change, ...]:
        now = time.monotonic()
        if now - self._looked_at < self._store.document_interval:
            return ()
        self._looked_at = now
        try:
            config = self._store.read_document()
        except StoreError:
            return ()  # a file that is being replaced, or a server that is busy; what it said holds
        if config == state.config:
            return ()
        state.config = config
        return (Change(CONFIG_KEY, config),)
