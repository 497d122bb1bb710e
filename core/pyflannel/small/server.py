"""A small server in a thread of its own, for answers that fit into memory: health port, status and control sockets.

The idea: nothing that a client does can cost more than a fixed amount. One thread serves all connections without ever
blocking on one of them; each has a deadline, a limit on its request, and ends with its answer; beyond a number of
connections the oldest goes. A lack of descriptors or memory makes the listener pause, not end. What a request means
and what its answer is, is its owner's business.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from pyflannel.errors import DaemonError
from pyflannel.small.wake import Wake

__all__ = ["MAX_CONNECTIONS", "MAX_SECONDS", "LocalServer", "NotAdmittedError", "SocketServer", "ask", "listen_in"]

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
"""Connections at a time, of a process that may have descriptors enough; for one more, the oldest is closed."""

_SHARE: Final = 16
"""One of so many descriptors that the process may have is for a server's connections: the others serve its purpose."""

MAX_SECONDS: Final = 10.0
"""From a connection's beginning to its whole request, and from there to the whole answer, whoever is slow."""

ACCEPT_PAUSE: Final = 0.2
"""Seconds in which nobody is let in after the system had no descriptor or memory for one more."""

FAREWELL: Final = 0.5
"""Seconds that answers have to go out when the server is closed."""

_DRAIN_SECONDS = 1.0
_CHUNK = 1 << 16


class _Phase(Enum):
    READING = 0
    WRITING = 1
    DRAINING = 2


@dataclass(slots=True, eq=False)
class _Connection:
    channel: socket.socket
    deadline: float
    phase: _Phase = _Phase.READING
    received: bytearray = field(default_factory=bytearray)
    outgoing: memoryview = field(default_factory=lambda: memoryview(b""))


class SocketServer:
    """Serves ``listener``, which it owns, until :meth:`close`.

    :param name: of its thread.
    :param respond: the whole answer to what a client has sent so far, ``None`` if that is not a whole request yet.
        Called in the server's thread; while it works, nobody else is served. If it raises, the connection ends.
    :param asked: whether clients ask anything; otherwise each is answered as it comes.
    """

    def __init__(
        self, listener: socket.socket, name: str, respond: Callable[[bytes], bytes | None], asked: bool = True
    ) -> None:
        self._listener, self._respond, self._asked = listener, respond, asked
        listener.setblocking(False)
        self._wake = Wake()
        self._closing = False
        self._paused_until: float | None = None
        self._refusing = False
        self._connections: dict[_Connection, None] = {}
        self._most = _most()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def close(self, timeout: float | None = None) -> bool:
        """Stop answering. Idempotent.

        :param timeout: seconds to wait for an answer that is being made; ``None``: for ever.
        :returns: whether it has ended.
        """
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        try:
            while not self._closing:
                self._turn()
            self._finish()
        finally:
            for connection in list(self._connections):
                self._end(connection)
            self._listener.close()
            self._selector.close()

    def _finish(self) -> None:
        """Let answers that have been made go out."""
        if self._paused_until is None:
            self._selector.unregister(self._listener)
        deadline = time.monotonic() + FAREWELL
        while any(connection.phase is _Phase.WRITING for connection in self._connections):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for key, _ in self._selector.select(left):
                if key.fileobj is self._wake:
                    self._wake.drain()
                elif key.data in self._connections:
                    self._advance(key.data)

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            if key.fileobj is self._wake:
                self._wake.drain()
            elif key.fileobj is self._listener:
                self._accept()
            elif key.data in self._connections:  # it may have been closed for a newer one just now
                self._advance(key.data)
        now = time.monotonic()
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self._selector.register(self._listener, selectors.EVENT_READ)
        for connection in [item for item in self._connections if item.deadline <= now]:
            self._end(connection)

    def _patience(self) -> float | None:
        due = [connection.deadline for connection in self._connections]
        if self._paused_until is not None:
            due.append(self._paused_until)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _accept(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except OSError as error:
            if not isinstance(error, (BlockingIOError, ConnectionAbortedError)):
                if not self._refusing:  # said once, and not at every try
                    log.warning("%s can't take a connection: %s", self._thread.name, error.strerror)
                self._refusing = True
                self._selector.unregister(self._listener)  # the connection stays in the queue
                self._paused_until = time.monotonic() + ACCEPT_PAUSE
            return
        self._refusing = False
        channel.setblocking(False)
        if len(self._connections) >= self._most:
            self._end(next(iter(self._connections)))
        connection = _Connection(channel, time.monotonic() + MAX_SECONDS)
        self._connections[connection] = None
        self._selector.register(channel, selectors.EVENT_READ, connection)
        if not self._asked:
            self._answer(connection)

    def _advance(self, connection: _Connection) -> None:
        try:
            if connection.phase is _Phase.WRITING:
                self._write(connection)
            else:
                self._read(connection)
        except BlockingIOError:
            return
        except OSError:  # the client went away
            self._end(connection)

    def _read(self, connection: _Connection) -> None:
        data = connection.channel.recv(_CHUNK)
        if not data:
            self._end(connection)
        elif connection.phase is _Phase.READING:
            connection.received += data
            self._answer(connection)

    def _answer(self, connection: _Connection) -> None:
        try:
            response = self._respond(bytes(connection.received))
        except Exception as error:  # a lack of descriptors or memory, or a fault; others may ask again
            log.error("%s has no answer: %s: %s", self._thread.name, type(error).__name__, error)
            self._end(connection)
            return
        if response is not None:
            connection.outgoing = memoryview(response)
            connection.phase = _Phase.WRITING
            connection.deadline = time.monotonic() + MAX_SECONDS
            self._selector.modify(connection.channel, selectors.EVENT_WRITE, connection)

    def _write(self, connection: _Connection) -> None:
        sent = connection.channel.send(connection.outgoing[:_CHUNK])
        connection.outgoing = connection.outgoing[sent:]
        if not connection.outgoing:
            # Closing at once, with bytes of the client unread, would reset the connection under our answer.
            connection.channel.shutdown(socket.SHUT_WR)
            connection.phase = _Phase.DRAINING
            connection.deadline = min(connection.deadline, time.monotonic() + _DRAIN_SECONDS)
            self._selector.modify(connection.channel, selectors.EVENT_READ, connection)

    def _end(self, connection: _Connection) -> None:
        del self._connections[connection]
        with suppress(KeyError):
            self._selector.unregister(connection.channel)
        connection.channel.close()


def _most() -> int:
    """How many connections a server of this process may have at a time."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, descriptors // _SHARE))


class LocalServer:
    """Serves a unix socket of its own at ``path``, see :func:`listen_in`; the other parameters are those of
    :class:`SocketServer`.

    The file is a name and no more: when somebody removes it, those who are connected notice nothing, and nobody else
    gets through. :meth:`restore` brings it back.

    :raises DaemonError: the socket can't be made.
    """

    def __init__(self, path: Path, name: str, respond: Callable[[bytes], bytes | None], asked: bool = True) -> None:
        self._path, self._name, self._respond, self._asked = path, name, respond, asked
        self._server = self._begin()

    def _begin(self) -> SocketServer:
        server = SocketServer(listen_in(self._path), self._name, self._respond, self._asked)
        self._file = _identity(self._path)
        return server

    @property
    def reachable(self) -> bool:
        """Whether it is our socket that is at the path."""
        return self._file is not None and _identity(self._path) == self._file

    def restore(self) -> None:
        """Be reachable again. Answers that are being made still go to those who asked.

        :raises DaemonError: the socket can't be made.
        """
        if not self.reachable:
            before, self._server = self._server, self._begin()
            before.close(0)

    def close(self, timeout: float | None = None) -> bool:
        """Stop answering, see :meth:`SocketServer.close`."""
        if self.reachable:
            with suppress(OSError):
                self._path.unlink()
        return self._server.close(timeout)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from another one that comes to its place; a number alone is soon given to the next."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def listen_in(path: Path) -> socket.socket:
    """A unix socket at ``path``, to which only this process's user may connect.

    Make it only while holding the directory's lock: a socket that an earlier daemon left is replaced.

    :raises DaemonError: the socket can't be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        os.fchmod(listener.fileno(), 0o600)  # Linux gives the file this mode at bind(2), with no moment in between
        with _short(path) as address:
            listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno in (errno.EMFILE, errno.ENFILE):  # as for the first one, and not the directory's fault
            raise
        raise DaemonError(f"{path}: {error.strerror}; choose another --run-dir") from None
    return listener


class NotAdmittedError(DaemonError):
    """There may be a daemon, but this user may not ask it."""


def ask(path: Path, request: bytes, timeout: float) -> bytes:
    """Send a request to a daemon's unix socket and return its answer, up to the end of the stream.

    :param timeout: seconds to wait for each part of the answer.
    :raises NotAdmittedError: the socket is another user's.
    :raises DaemonError: none answers.
    """
    chunks = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
        try:
            # Blocking, for otherwise connect(2) fails at once while too many others wait to be let in (unix(7)).
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", math.ceil(timeout), 0))
            with _short(path) as address:
                channel.connect(address)
            channel.settimeout(timeout)
            if request:  # whoever is not asked may have answered and gone already
                channel.sendall(request)
            while chunk := channel.recv(_CHUNK):
                chunks.append(chunk)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise NotAdmittedError(
                    f"{path}: permission denied; ask as the user the daemon runs as (usually root)"
                ) from None
            raise DaemonError(_unanswered(path, error)) from None
    return b"".join(chunks)


def _unanswered(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return f"no daemon answers at {path}; is pyflannel running, with this --run-dir?"
    reason = "too many others are asking" if isinstance(error, BlockingIOError) else error.strerror or error
    return f"the daemon at {path} does not answer: {reason}"


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for ``path`` that fits into the 108 bytes of ``sun_path``, however deep it lies (``unix(7)``)."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
