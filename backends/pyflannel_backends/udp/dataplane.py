"""The daemon's side of the data plane: keeps the workers alive and tells them what they should know.

The core only changes what is *wanted*, a dictionary, and never waits. A thread brings each worker there: it takes over
the worker that an earlier daemon left behind if that one is configured as we want, starts one where there is none, and
sends what changed. A worker that dies is noticed by the end of its connection and started again with the whole table.

A worker of an earlier life has an earlier table. Peers are only added to it until the core calls ``check`` for the
first time, which says that all peers are known; then the table is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from pyflannel.backend import DataPlane, Lease, Subnets

from . import control
from .control import Frames, Message, WorkerConfig

__all__ = ["UdpDataPlane"]

_ANSWER_TIMEOUT: Final = 5.0
_BACKOFF: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds before a worker is started again, by how often it died young."""
_YOUNG: Final = 5.0

_Row: TypeAlias = tuple[str, str, int]


class UdpDataPlane(DataPlane):
    """See the module's docstring.

    :param config: what every worker is told.
    :param directory: where the workers' sockets are.
    :param workers: how many of them.
    """

    def __init__(self, config: WorkerConfig, directory: Path, workers: int) -> None:
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[_Row, ...]] = {}
        self._port = config.port
        self._complete = False
        self._stopping = threading.Event()
        self._crash: BaseException | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._links = [_Link(config, _socket_path(directory, number)) for number in range(workers)]
        self._directory = directory
        self._thread = threading.Thread(target=self._work, name="udp data plane", daemon=True)
        self._thread.start()

    # Called by the core

    def put(self, peer: Lease) -> None:
        """See :class:`DataPlane`."""
        assert peer.attributes.public_ip is not None
        address = str(peer.attributes.public_ip)
        rows = tuple((str(subnet), address, self._port) for subnet in peer.subnets.each if subnet.version == 4)
        with self._lock:
            self._wanted[peer.key] = rows
            for link in self._links:
                link.pending[peer.key] = rows
        self._rouse()

    def remove(self, subnets: Subnets) -> None:
        """See :class:`DataPlane`."""
        with self._lock:
            if self._wanted.pop(subnets.key, None) is not None:
                for link in self._links:
                    link.pending[subnets.key] = ()
        self._rouse()

    def check(self) -> Mapping[str, str]:
        """See :class:`DataPlane`. A worker that died is started again by our own thread, at once."""
        if self._crash is not None:
            raise self._crash
        with self._lock:
            if not self._complete:
                self._complete = True
                self._rouse()
            reasons = [link.trouble for link in self._links]
            if all(reasons):
                return dict.fromkeys(self._wanted, f"udp data plane: {reasons[0]}")
            failures = {endpoint: why for link in self._links for endpoint, why in link.failures.items()}
            if not failures:
                return {}
            return {
                key: failures[rows[0][1:]] for key, rows in self._wanted.items() if rows and rows[0][1:] in failures
            }

    def counters(self) -> Mapping[str, int]:
        """See :class:`DataPlane`; the names are those of :data:`~pyflannel_backends.udp.forward.COUNTERS`."""
        totals: dict[str, int] = {}
        with self._lock:
            for link in self._links:
                for name, value in (*link.retired.items(), *link.counters.items()):
                    totals[name] = totals.get(name, 0) + value
        return totals

    def stop(self) -> None:
        """Let go of the workers; they go on forwarding with the table they have."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._rouse()
        self._thread.join()
        os.close(self._wake)

    def end(self) -> None:
        """End the workers, too."""
        self.stop()
        for path in _socket_paths(self._directory):
            _end_worker(path)

    # The thread

    def _rouse(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _work(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wake, selectors.EVENT_READ)
                self._end_surplus()
                while not self._stopping.is_set():
                    self._turn(selector)
        except BaseException as error:
            self._crash = error
        finally:
            for link in self._links:
                link.let_go()

    def _turn(self, selector: selectors.BaseSelector) -> None:
        for link in self._links:
            if link.connection is None and time.monotonic() >= link.due:
                self._open(selector, link)
            if link.connection is not None and not self._feed(link):
                self._lose(selector, link)
        due = min((link.due for link in self._links if link.connection is None), default=None)
        patience = None if due is None else max(0.0, due - time.monotonic())
        for key, _ in selector.select(patience):
            if key.fd == self._wake:
                os.eventfd_read(self._wake)
            elif not self._hear(key.data):
                self._lose(selector, key.data)

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
            gone = {_subnet_text(key) for key, rows in pending.items() if not rows} if not replace else set()
            if gone:
                gone.difference_update(row[0] for row in self._table())
        messages: list[Message] = []
        if gone:
            messages.append({"do": "remove", "subnets": sorted(gone)})
        if replace or peers:
            messages.append({"do": "replace" if replace else "put", "peers": peers})
        return link.tell(messages)

    def _hear(self, link: _Link) -> bool:
        """Read what a worker says; false if it is gone."""
        messages = link.hear()
        for message in messages or ():
            if message.get("say") == "status":
                with self._lock:
                    link.counters = message["counters"]
                    link.failures = {(address, port): why for address, port, why in message["failures"]}
                    link.trouble = message["trouble"]
                if not link.trouble:
                    link.succeed()
        return messages is not None

    def _lose(self, selector: selectors.BaseSelector, link: _Link) -> None:
        assert link.connection is not None
        selector.unregister(link.connection)
        self._fail(link, link.close())

    def _fail(self, link: _Link, reason: str) -> None:
        """Try again: at once the first time, later and later if that doesn't help."""
        now = time.monotonic()
        link.deaths = link.deaths + 1 if now - link.opened < _YOUNG else 0
        link.due = now + _BACKOFF[min(link.deaths, len(_BACKOFF) - 1)]
        with self._lock:
            for name, value in link.counters.items():
                link.retired[name] = link.retired.get(name, 0) + value
            link.counters, link.failures, link.trouble = {}, {}, reason

    def _table(self) -> list[_Row]:
        return [row for rows in self._wanted.values() for row in rows]

    def _end_surplus(self) -> None:
        """End workers that an earlier daemon had more of."""
        ours = {link.path for link in self._links}
        for path in _socket_paths(self._directory):
            if path not in ours:
                _end_worker(path)


class _Link:
    """One worker, as this daemon sees it.

    ``stale`` means that the worker may know peers that are gone, ``pending`` is what it has not been told yet.
    """

    def __init__(self, config: WorkerConfig, path: Path) -> None:
        self._config = config
        self.path = path
        self.pending: dict[str, tuple[_Row, ...]] = {}
        self.stale = False
        self.opened = self.due = 0.0
        self.deaths = 0
        self.trouble = "the worker is starting"
        self.failures: dict[tuple[str, int], str] = {}
        self.counters: Mapping[str, int] = {}
        self.retired: dict[str, int] = {}
        self.connection: socket.socket | None = None
        self._predecessor: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = Frames()

    def open(self, peers: Sequence[_Row]) -> bool:
        """Connect to the worker that listens if it is configured as we want, else start one that knows ``peers``.

        :returns: whether it is one that was there before.
        :raises OSError, ValueError: no worker, or none that we understand.
        """
        self.opened = time.monotonic()
        found = control.connect(self.path)
        if found is not None:
            try:
                hello = self._hello(found)
            except (OSError, ValueError):
                found.close()
                raise
            if hello["config"] == self._config.to_message():
                self.connection = found
                return True
            self._predecessor = found
        self._start(peers)
        return False

    def _start(self, peers: Sequence[_Row]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", f"{__package__}.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            ours.settimeout(_ANSWER_TIMEOUT)
            first = {"do": "configure", "config": self._config.to_message(), "path": str(self.path), "peers": peers}
            ours.sendall(control.encode(first))
            self._hello(ours)
        except (OSError, ValueError):
            ours.close()
            raise
        self.connection = ours

    def _hello(self, connection: socket.socket) -> Message:
        connection.settimeout(_ANSWER_TIMEOUT)
        self._frames = Frames()
        while True:
            data = connection.recv(1 << 16)
            if not data:
                raise ConnectionError("it ended at once; its own words are in the daemon's log")
            for message in self._frames.feed(data):
                if message.get("say") == "hello":
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

    def let_go(self) -> None:
        """Close the connections; workers go on."""
        for connection in (self.connection, self._predecessor):
            if connection is not None:
                connection.close()
        self.connection = self._predecessor = None


def _socket_path(directory: Path, number: int) -> Path:
    return directory / f"udp-worker-{number}.sock"


def _socket_paths(directory: Path) -> Iterable[Path]:
    return directory.glob("udp-worker-*.sock")


def _subnet_text(key: str) -> str:
    return str(Subnets.from_key(key).ipv4)


def _say_stop(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it ended already
        connection.sendall(control.encode({"do": "stop"}))


def _end_worker(path: Path) -> None:
    """End the worker that listens at ``path``, if one does, and wait until it has."""
    try:
        connection = control.connect(path)
    except OSError:
        return
    if connection is None:
        return
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_ANSWER_TIMEOUT)
        _say_stop(connection)
        while connection.recv(1 << 16):
            pass
