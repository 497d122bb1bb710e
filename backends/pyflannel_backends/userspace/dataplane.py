"""The daemon's side of a data plane: keeps the workers alive and tells them what they should know.

The core only changes what is *wanted*, a dictionary, and never waits. A thread brings each worker there: it takes over
the worker that an earlier daemon left behind if that one is configured as we want, starts one where there is none, and
sends what changed. A worker that dies is noticed by the end of its connection and started again with the whole table.

A worker of an earlier life has an earlier table. Peers are only added to it until the core calls ``check`` for the
first time, which says that all peers are known; then the table is replaced as a whole.

A worker says how it is every second. One that falls silent has hung, or somebody has stopped it: that is told, and when
it lasts, the worker is ended and started anew, since its queue of the device would get packets for ever.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pyflannel.backend import Attendant, Backoff, DataPlane, Lease, Subnets, module_command
from pyflannel.errors import ConfigError

from . import control
from .control import Frames, Message, Row, WorkerConfig

__all__ = ["UserspaceDataPlane", "WorkerKind"]

log = logging.getLogger(__name__)

_ANSWER_TIMEOUT: Final = 5.0
_START_TIMEOUT: Final = 60.0
"""Seconds until a worker that was started answers: it has imported all that it needs by then."""
_STOP_PATIENCE: Final = 1.0
"""Seconds that ``stop`` waits for our thread, which has nothing to wait for itself but a worker that is starting."""
_FIRST_PAUSE: Final = 0.2
_LAST_PAUSE: Final = 5.0
"""Seconds before a worker that died young is started again."""
_YOUNG: Final = 5.0
_SILENT: Final = 5.0
"""Seconds without a word of a worker, after which that is told."""
_HOPELESS: Final = 20.0
"""Seconds without a word, after which it is ended. On a busy machine, too, a worker gets to say something before."""
_UNANSWERED: Final = 4
"""As many greetings in a row a worker of an earlier daemon may leave without an answer."""
_LOOK: Final = 1.0
"""Seconds of silence that are counted at a time, at most: while this process stands still, nobody is heard."""


@dataclass(frozen=True)
class WorkerKind:
    """What makes one data plane's workers.

    ``name`` is the backend's, ``module`` what ``python -m`` runs. ``config`` is what every worker is told, and told of;
    ``secrets`` are given to a worker that is started, and to nobody else. ``rows`` are a lease's rows of the table.
    """

    name: str
    module: str
    config: WorkerConfig
    rows: Callable[[Lease], Iterable[Row]]
    secrets: Mapping[str, Any] = field(default_factory=dict, repr=False)


class UserspaceDataPlane(DataPlane):
    """See the module's docstring.

    :param directory: where the workers' sockets are.
    :param workers: how many of them.
    :raises ConfigError: no worker could be started: its socket can't be made there.
    """

    def __init__(self, kind: WorkerKind, directory: Path, workers: int) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[Row, ...]] = {}
        self._complete = False
        self._links = [_Link(kind, directory / f"{kind.name}-worker-{number}.sock") for number in range(workers)]
        self._directory = directory
        if not any(link.path.exists() for link in self._links):  # one that runs needs no place for a socket any more
            _check_place(directory)
        self._attendant = Attendant(f"{kind.name} data plane", self._work, self._leave)
        self._attendant.start()

    # Called by the core

    def put(self, peer: Lease) -> None:
        rows = tuple(self._kind.rows(peer))
        with self._lock:
            self._wanted[peer.key] = rows
            for link in self._links:
                link.pending[peer.key] = rows
        self._attendant.wake.set()

    def remove(self, subnets: Subnets) -> None:
        with self._lock:
            if self._wanted.pop(subnets.key, None) is not None:
                for link in self._links:
                    link.pending[subnets.key] = ()
        self._attendant.wake.set()

    def check(self) -> Mapping[str, str]:
        """See :class:`DataPlane`. A worker that died is started again by our own thread, at once."""
        self._attendant.check()
        with self._lock:
            if not self._complete:
                self._complete = True
                self._attendant.wake.set()
            reasons = [link.trouble for link in self._links]
            # One that has ended leaves its share of the packets to the others, one that is silent does not.
            silent = [link.trouble for link in self._links if link.silent]
            if silent or all(reasons):
                return dict.fromkeys(self._wanted, f"{self._kind.name} data plane: {[*silent, *reasons][0]}")
            failures = {peer: why for link in self._links for peer, why in link.status.get("failures", {}).items()}
            if not failures:
                return {}
            return {key: failures[rows[0][1]] for key, rows in self._wanted.items() if rows and rows[0][1] in failures}

    def counters(self) -> Mapping[str, int]:
        """See :class:`DataPlane`: those of :data:`~.forward.COUNTERS`, and those of the workers' underlay ports."""
        totals: dict[str, int] = {}
        with self._lock:
            for link in self._links:
                for name, value in (*link.retired.items(), *link.counters.items()):
                    totals[name] = totals.get(name, 0) + value
        return totals

    def peers(self) -> Mapping[str, str]:
        """Lease key to the peer that holds it, as the rows of the table name it."""
        with self._lock:
            return {key: rows[0][1] for key, rows in self._wanted.items() if rows}

    def statuses(self) -> Sequence[Message]:
        """What each worker said last of itself; empty where it said nothing yet."""
        with self._lock:
            return [link.status for link in self._links]

    def pids(self) -> Sequence[int]:
        """The process of each worker; 0 where none has spoken yet."""
        return [link.pid for link in self._links]

    def stop(self) -> None:
        """Let go of the workers; they go on forwarding with the table they have.

        A thread that is starting a worker sees to the end of that, and lets go then.
        """
        self._attendant.stop(_STOP_PATIENCE)

    def end(self) -> None:
        """See :class:`DataPlane`: the workers end, too, and with them what they have agreed with peers."""
        self.stop()
        ending = threading.Thread(target=self._end_workers, name=f"{self._kind.name} ends", daemon=True)
        ending.start()
        ending.join(_STOP_PATIENCE)

    def _end_workers(self) -> None:
        self._attendant.join()  # it may be starting one
        _end_listening(self._socket_paths())
        for link in self._links:
            link.reap()

    # The thread

    def _work(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._attendant.wake, selectors.EVENT_READ)
            self._end_surplus()
            while not self._attendant.stopping.is_set():
                self._turn(selector)

    def _leave(self) -> None:
        for link in self._links:
            link.let_go()

    def _turn(self, selector: selectors.BaseSelector) -> None:
        for link in self._links:
            if link.connection is None and time.monotonic() >= link.due:
                self._open(selector, link)
            if link.connection is not None and not self._feed(link):
                self._lose(selector, link)
        begin = time.monotonic()
        due = min((link.due for link in self._links if link.connection is None), default=begin + _LOOK)
        ready = selector.select(min(_LOOK, max(0.0, due - begin)))
        passed = min(_LOOK, time.monotonic() - begin)
        for link in self._links:
            link.silence += passed
        for key, _ in ready:
            if key.fileobj is self._attendant.wake:
                self._attendant.wake.drain()
            elif not self._hear(key.data):
                self._lose(selector, key.data)
        for link in self._links:
            if link.connection is not None and link.silence >= _SILENT:
                self._judge(link)

    def _judge(self, link: _Link) -> None:
        """A worker says nothing."""
        with self._lock:
            link.silent = True
            link.trouble = f"the worker (process {link.pid}) has said nothing for {_SILENT:.0f} s or more"
        if link.silence >= _HOPELESS:
            log.error("%s data plane: %s: ending it, to start another one", self._kind.name, link.trouble)
            link.silence = 0.0
            link.kill()  # the end of its connection says the rest

    def _open(self, selector: selectors.BaseSelector, link: _Link) -> None:
        """Take over the worker that listens, or start one with the table as it is now."""
        with self._lock:
            link.pending.clear()
            peers = self._table()
        try:
            adopted = link.open(peers)
        except (OSError, ValueError) as error:
            self._fail(link, f"the worker can't be started: {error}")
            return
        assert link.connection is not None
        selector.register(link.connection, selectors.EVENT_READ, link)
        with self._lock:
            link.stale = adopted
            if adopted:
                link.pending = {**self._wanted, **link.pending}

    def _feed(self, link: _Link) -> bool:
        """Tell a worker what changed; false if it is gone."""
        with self._lock:
            pending, link.pending = link.pending, {}
            replace = link.stale and self._complete
            link.stale = link.stale and not replace
            peers = self._table() if replace else [row for rows in pending.values() for row in rows]
            gone = {subnet for key, rows in pending.items() if not rows for subnet in _subnets(key)}
            if gone:
                gone.difference_update(row[0] for row in self._table())
        messages: list[Message] = []
        if gone and not replace:
            messages.append({"do": "remove", "subnets": sorted(gone)})
        if replace or peers:
            messages.append({"do": "replace" if replace else "put", "peers": peers})
        return link.tell(messages)

    def _hear(self, link: _Link) -> bool:
        """Read what a worker says; false if it is gone."""
        messages = link.hear()
        link.silence = 0.0
        for message in messages or ():
            if message.get("say") == "status":
                with self._lock:
                    link.silent = False
                    link.status = message
                    link.trouble = message["trouble"]
                if not link.trouble:
                    link.succeed()
        return messages is not None

    def _lose(self, selector: selectors.BaseSelector, link: _Link) -> None:
        assert link.connection is not None
        selector.unregister(link.connection)
        self._fail(link, link.close())

    def _fail(self, link: _Link, reason: str) -> None:
        """Try again: at once if it had lived for a while, else later and later."""
        now = time.monotonic()
        if now - link.opened < _YOUNG:
            link.due = now + link.backoff.next()
        else:
            link.backoff.reset()
            link.due = now
        with self._lock:
            for name, value in link.counters.items():
                link.retired[name] = link.retired.get(name, 0) + value
            link.status, link.trouble, link.silent = {}, reason, False

    def _table(self) -> list[Row]:
        return [row for rows in self._wanted.values() for row in rows]

    def _end_surplus(self) -> None:
        """End workers that an earlier daemon had more of."""
        ours = {link.path for link in self._links}
        _end_listening(path for path in self._socket_paths() if path not in ours)

    def _socket_paths(self) -> Iterable[Path]:
        return self._directory.glob(f"{self._kind.name}-worker-*.sock")


def _check_place(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # not the directory's fault
            raise
        raise ConfigError(
            f"a worker's socket can't be made in {directory}: {error.strerror}; make it writable, or choose another "
            "--state-dir"
        ) from None


def _to_tune(hello: Message, wanted: Message) -> Message | None:
    """What a worker has to be told to be configured as we want; ``None`` if another one has to take its place.

    How a worker is scheduled is no reason to lose its sessions.
    """
    config: Message = {**hello["config"], "realtime": wanted["realtime"]}
    tunable = set(wanted).intersection(hello.get("tuned", ()))  # a worker of a later release may know more
    tuned = {name: wanted[name] for name in tunable if config.get(name) != wanted[name]}
    return tuned if {**config, **tuned} == wanted else None


class _Link:
    """One worker, as this daemon sees it.

    ``stale`` means that the worker may know peers that are gone, ``pending`` is what it has not been told yet.
    """

    def __init__(self, kind: WorkerKind, path: Path) -> None:
        self._kind = kind
        self.path = path
        self.pending: dict[str, tuple[Row, ...]] = {}
        self.stale = False
        self.opened = self.due = 0.0
        self.backoff = Backoff(random.Random(), _FIRST_PAUSE, _LAST_PAUSE)  # noqa: S311 - no secret
        self.trouble = "the worker is starting"
        self.status: Message = {}
        self.retired: dict[str, int] = {}
        self.connection: socket.socket | None = None
        self.pid = 0
        self.silence = 0.0
        """Seconds for which it has said nothing."""
        self.silent = False
        """Whether that has been told."""
        self._unanswered = 0
        self._predecessor: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = Frames()

    @property
    def counters(self) -> Mapping[str, int]:
        """The worker's totals as it said them last."""
        counters: Mapping[str, int] = self.status.get("counters", {})
        return counters

    def open(self, peers: Sequence[Row]) -> bool:
        """Connect to the worker that listens if it is configured as we want, else start one that knows ``peers``.

        :returns: whether it is one that was there before.
        :raises OSError, ValueError: no worker, or none that we understand.
        """
        self.opened, self.silence = time.monotonic(), 0.0
        found = control.connect(self.path)
        if found is not None:
            try:
                hello = self._hello(found, _ANSWER_TIMEOUT)
            except (OSError, ValueError):
                self._give_up(found)
                found.close()
                raise
            self._unanswered = 0
            tuned = _to_tune(hello, self._kind.config.to_message())
            if tuned is not None:
                if tuned:
                    found.sendall(control.encode({"do": "tune", "config": tuned}))
                _share_errors(found)
                self.connection, self.pid = found, control.other_side(found)
                return True
            self._predecessor = found
        self._start(peers)
        return False

    def _start(self, peers: Sequence[Row]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    module_command(self._kind.module, str(theirs.fileno())),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            ours.settimeout(_START_TIMEOUT)
            ours.sendall(control.encode(self._first_message(peers)))
            self._hello(ours, _START_TIMEOUT)
        except (OSError, ValueError):
            ours.close()
            self._abandon()
            raise
        self.connection, self.pid = ours, self._process.pid

    def _give_up(self, connection: socket.socket) -> None:
        """End an earlier daemon's worker that has left too many greetings without an answer."""
        self._unanswered += 1
        pid = control.other_side(connection)
        if self._unanswered >= _UNANSWERED:
            self._unanswered = 0
            _kill(pid)

    def kill(self) -> None:
        """End the worker that we are connected to."""
        _kill(self.pid)

    def _abandon(self) -> None:
        """End a worker that didn't answer: with a table that nobody renews it would share the next one's packets."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _first_message(self, peers: Sequence[Row]) -> Message:
        return {
            "do": "configure",
            "config": self._kind.config.to_message(),
            "secrets": dict(self._kind.secrets),
            "path": str(self.path),
            "peers": peers,
        }

    def _hello(self, connection: socket.socket, timeout: float) -> Message:
        connection.settimeout(timeout)
        self._frames = Frames()
        while True:
            data = connection.recv(1 << 16)
            if not data:
                raise ConnectionError("it ended at once; its own words are in the daemon's log")
            for message in self._frames.feed(data):
                if message.get("say") == "failed":
                    raise ConnectionError(message["why"])
                if message.get("say") == "hello":
                    connection.settimeout(_ANSWER_TIMEOUT)
                    return message

    def tell(self, messages: Sequence[Message]) -> bool:
        """Send to the worker; false if it is gone or doesn't listen."""
        assert self.connection is not None
        try:
            for message in messages:
                self.connection.sendall(control.encode(message))
        except OSError:
            return False
        return True

    def hear(self) -> list[Message] | None:
        """What the worker said, ``None`` if it is gone."""
        assert self.connection is not None
        try:
            data = self.connection.recv(1 << 16)
            return self._frames.feed(data) if data else None
        except (OSError, ValueError):
            return None

    def succeed(self) -> None:
        """Our worker forwards now: the one that it replaces may end."""
        if self._predecessor is not None:
            _say_stop(self._predecessor)
            self._predecessor.close()
            self._predecessor = None

    def close(self) -> str:
        """Forget a worker that is gone; returns how it ended."""
        assert self.connection is not None
        self.connection.close()
        self.connection = None
        if self._process is None:
            return "the worker is gone"
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the worker closed its connection"
        self._process = None
        return f"the worker was killed by signal {-code}" if code < 0 else f"the worker ended with exit code {code}"

    def reap(self) -> None:
        """Take note of the end of the worker that we started, if it has ended."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ANSWER_TIMEOUT)

    def let_go(self) -> None:
        """Close the connections; workers go on."""
        for connection in (self.connection, self._predecessor):
            if connection is not None:
                connection.close()
        self.connection = self._predecessor = None


def _subnets(key: str) -> Iterable[str]:
    return (str(subnet) for subnet in Subnets.from_key(key).each)


def _kill(pid: int) -> None:
    """End a worker that does not listen; nobody if it is not known which process that is."""
    if pid > 0:
        with contextlib.suppress(OSError):  # it has ended by itself
            os.kill(pid, signal.SIGKILL)


def _share_errors(connection: socket.socket) -> None:
    """Have a worker that was there before write its errors where this process does."""
    if sys.stderr is not None:  # else descriptor 2 is none, or something else
        with contextlib.suppress(OSError):  # it ended already
            socket.send_fds(connection, [control.encode({"do": "log"})], [2])


def _say_stop(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it ended already
        connection.sendall(control.encode({"do": "stop"}))


def _end_listening(paths: Iterable[Path]) -> None:
    """End the workers that listen at these, and wait until they have; those that hang are killed.

    All are told before one is waited for: from then on another data plane's may listen there.
    """
    told = []
    for path in paths:
        with contextlib.suppress(OSError):
            connection = control.connect(path)
            if connection is not None:
                connection.settimeout(_ANSWER_TIMEOUT)
                _say_stop(connection)
                told.append(connection)
    for connection in told:
        with connection:
            try:
                while connection.recv(1 << 16):
                    pass
            except TimeoutError:
                _kill(control.other_side(connection))
            except OSError:
                pass  # it ended with words of ours unread
