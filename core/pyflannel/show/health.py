"""The health port: a small HTTP server in a thread of its own, and what it answers.

The idea: nothing that a client does can cost more than a fixed amount. One thread serves all connections without ever
blocking on one of them; each has a deadline, a limit on its request, and ends with its answer; beyond a number of
connections the oldest goes. There is nothing to change here: only GET and HEAD are served, and no request is looked at
beyond its first line (RFC 9112).

========== ====================================================================================================
path       answer
========== ====================================================================================================
/healthz   200 while the process lives, as flanneld says it
/livez     200 while the daemon's loop turns, 503 when it has been stuck for :data:`STUCK_AFTER` seconds
/readyz    200 while this node's containers can use the overlay, else 503; the body says how things stand
/metrics   Prometheus' text format (:mod:`pyflannel.show.metrics`)
/          a page for people (:mod:`pyflannel.show.page`)
========== ====================================================================================================
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from pyflannel.errors import ConfigError
from pyflannel.network.lease import IPAddress
from pyflannel.show.standing import readiness

if TYPE_CHECKING:
    from pyflannel.daemon.loop import Agent
    from pyflannel.show.reachability import Reachability

__all__ = ["STUCK_AFTER", "HealthServer", "Response", "answers"]

log = logging.getLogger(__name__)

STUCK_AFTER: Final = 10.0
"""Seconds without a turn of the loop after which /livez says so. The loop turns every two seconds at least."""

MAX_REQUEST: Final = 8192
"""Bytes of a request, first line and headers."""

MAX_CONNECTIONS: Final = 64
"""Connections at a time; for one more, the oldest is closed."""

MAX_SECONDS: Final = 10.0
"""From a connection's beginning to its end, whoever is slow."""

_DRAIN_SECONDS = 1.0
_CHUNK = 1 << 16

_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


@dataclass(frozen=True, slots=True)
class Response:
    """What to say to a request."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def text(cls, status: HTTPStatus, text: str) -> Response:
        """A line of plain text."""
        return cls(status, f"{text}\n".encode())

    def encode(self, head_only: bool = False) -> bytes:
        """The response as it goes over the wire."""
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in _HEADERS),
            *(["Allow: GET, HEAD"] if self.status is HTTPStatus.METHOD_NOT_ALLOWED else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else self.body)


def answers(agent: Agent) -> Callable[[str], Response]:
    """What the daemon says about itself, by path."""
    reachability: Reachability | None = None

    def healthz() -> Response:
        return Response(HTTPStatus.OK, b"flanneld is running")

    def livez() -> Response:
        age = agent.clock() - agent.beat
        if age < STUCK_AFTER:
            return Response.text(HTTPStatus.OK, f"ok: the loop turned {age:.1f} s ago")
        return Response.text(HTTPStatus.SERVICE_UNAVAILABLE, f"stuck: the loop has not turned for {age:.0f} s")

    def readyz() -> Response:
        ready, message = readiness(agent)
        return Response.text(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, message)

    def metrics() -> Response:
        from pyflannel.show.metrics import CONTENT_TYPE, MissingPackageError, render

        try:
            return Response(HTTPStatus.OK, render(agent), CONTENT_TYPE)
        except MissingPackageError as error:
            return Response.text(HTTPStatus.NOT_IMPLEMENTED, str(error))

    def page() -> Response:
        nonlocal reachability
        from pyflannel.show.page import render
        from pyflannel.show.reachability import Reachability

        reachability = reachability or Reachability()
        status = agent.status()
        text = render(status, readiness(agent), time.time(), reachability.look(status))
        return Response(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8")

    routes = {"/": page, "/healthz": healthz, "/livez": livez, "/metrics": metrics, "/readyz": readyz}

    def answer(path: str) -> Response:
        route = routes.get(path)
        if route is None:
            return Response.text(HTTPStatus.NOT_FOUND, f"nothing here; there are {' '.join(routes)}")
        return route()

    return answer


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


class HealthServer:
    """Serves ``answer`` on ``address`` and ``port`` (0: any free one, see :attr:`port`) until :meth:`close`.

    :param answer: the response for a path. Called in the server's thread.
    :raises ConfigError: it can't listen there.
    """

    def __init__(self, address: IPAddress, port: int, answer: Callable[[str], Response]) -> None:
        self._answer = answer
        self._listener = _listen(address, port)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._connections: dict[_Connection, None] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="pyflannel-health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering. Idempotent."""
        if self._thread.is_alive():
            self._wake.send(b".")
            self._thread.join()
        for channel in (self._listener, self._wake, self._woken):
            channel.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            soonest = min((connection.deadline for connection in self._connections), default=None)
            patience = None if soonest is None else max(0.0, soonest - time.monotonic())
            for key, _ in self._selector.select(patience):
                if key.fileobj is self._woken:
                    for connection in list(self._connections):
                        self._end(connection)
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._connections:  # it may have been closed for a newer one just now
                    self._advance(key.data)
            now = time.monotonic()
            for connection in [item for item in self._connections if item.deadline <= now]:
                self._end(connection)

    def _accept(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except OSError as error:
            if not isinstance(error, (BlockingIOError, ConnectionAbortedError)):
                log.warning("the health port can't take a connection: %s", error.strerror)
                time.sleep(0.1)  # out of descriptors or memory: the connection stays in the queue
            return
        channel.setblocking(False)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._end(next(iter(self._connections)))
        connection = _Connection(channel, time.monotonic() + MAX_SECONDS)
        self._connections[connection] = None
        self._selector.register(channel, selectors.EVENT_READ, connection)

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
            response = self._respond(bytes(connection.received))
            if response is not None:
                connection.outgoing = memoryview(response)
                connection.phase = _Phase.WRITING
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

    def _respond(self, received: bytes) -> bytes | None:
        """The whole answer to a whole request, or ``None`` while it is incomplete."""
        if len(received) > MAX_REQUEST:
            return Response.text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request too large").encode()
        if b"\r\n\r\n" not in received and b"\n\n" not in received:
            return None
        words = received.split(b"\n", 1)[0].decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
            return Response.text(HTTPStatus.BAD_REQUEST, "not an HTTP/1 request").encode()
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return Response.text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD").encode()
        try:
            response = self._answer(target.partition("?")[0])
        except Exception as error:
            log.exception("the health port can't answer %r", target)
            response = Response.text(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}; see the daemon's log")
        return response.encode(head_only=method == "HEAD")


def _listen(address: IPAddress, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.version == 6:  # "::" means every address, of both families, as in Go
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((str(address), port))
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--healthz-ip {address} --healthz-port {port}: can't listen there: {error.strerror}; "
            "choose another address or port, or 0 to have no health port"
        ) from None
    return listener
