"""The health port: a small HTTP server in a thread of its own, and what it answers.

There is nothing to change here: only GET and HEAD are served, and no request is looked at beyond its first line
(RFC 9112). How clients are kept from costing more than they may is :mod:`pyflannel.small.server`'s.

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
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from pyflannel.errors import ConfigError
from pyflannel.network.lease import IPAddress
from pyflannel.show import metrics, page
from pyflannel.show.document import document
from pyflannel.show.reachability import Reachability
from pyflannel.show.readiness import readiness
from pyflannel.show.view import Window
from pyflannel.small.server import MAX_CONNECTIONS, SocketServer
from pyflannel.small.text import inert

__all__ = ["STUCK_AFTER", "HealthServer", "HttpResponse", "answers"]

log = logging.getLogger(__name__)

STUCK_AFTER: Final = 10.0
"""Seconds without a beat of the loop after which /livez says so. It beats at least every four seconds."""

MAX_REQUEST: Final = 8192
"""Bytes of a request, first line and headers."""

_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What to say to a request."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def text(cls, status: HTTPStatus, text: str) -> HttpResponse:
        """A line of plain text. Names in it may be others', and of any bytes."""
        return cls(status, f"{inert(text)}\n".encode())

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


def answers(window: Window) -> Callable[[str], HttpResponse]:
    """What the daemon says about itself, by path."""
    reachability = Reachability()

    def healthz() -> HttpResponse:
        return HttpResponse(HTTPStatus.OK, b"flanneld is running")

    def livez() -> HttpResponse:
        age = window.clock() - window.beat
        if age < STUCK_AFTER:
            return HttpResponse.text(HTTPStatus.OK, f"ok: the loop turned {age:.1f} s ago")
        return HttpResponse.text(HTTPStatus.SERVICE_UNAVAILABLE, f"stuck: the loop has not turned for {age:.0f} s")

    def readyz() -> HttpResponse:
        ready, message = readiness(window.view, window.clock())
        return HttpResponse.text(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, message)

    def numbers() -> HttpResponse:
        try:
            return HttpResponse(HTTPStatus.OK, metrics.render(window), metrics.CONTENT_TYPE)
        except metrics.MissingPackageError as error:
            return HttpResponse.text(HTTPStatus.NOT_IMPLEMENTED, str(error))

    def overview() -> HttpResponse:
        view, now = window.detailed(), window.clock()
        status = document(view, now, time.time())
        text = page.render(status, readiness(view, now), time.time(), reachability.look(status))
        return HttpResponse(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8")

    routes = {"/": overview, "/healthz": healthz, "/livez": livez, "/metrics": numbers, "/readyz": readyz}

    def answer(path: str) -> HttpResponse:
        route = routes.get(path)
        if route is None:
            return HttpResponse.text(HTTPStatus.NOT_FOUND, f"nothing here; there are {' '.join(routes)}")
        return route()

    return answer


class HealthServer:
    """Serves ``answer`` on ``address`` and ``port`` (0: any free one, see :attr:`port`) until :meth:`close`.

    :param answer: the response for a path. Called in the server's thread.
    :raises ConfigError: it can't listen there.
    """

    def __init__(self, address: IPAddress, port: int, answer: Callable[[str], HttpResponse]) -> None:
        self._answer = answer
        listener = _listen(address, port)
        self.port: int = listener.getsockname()[1]
        self._server = SocketServer(listener, "pyflannel-health", self._respond)

    def close(self, timeout: float | None = None) -> bool:
        """Stop answering, see :meth:`Server.close`."""
        return self._server.close(timeout)

    def _respond(self, received: bytes) -> bytes | None:
        """The whole answer to a whole request, or ``None`` while it is incomplete."""
        if len(received) > MAX_REQUEST:
            return HttpResponse.text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request too large").encode()
        if b"\r\n\r\n" not in received and b"\n\n" not in received:
            return None
        words = received.split(b"\n", 1)[0].decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
            return HttpResponse.text(HTTPStatus.BAD_REQUEST, "not an HTTP/1 request").encode()
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return HttpResponse.text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD").encode()
        try:
            response = self._answer(target.partition("?")[0])
        except Exception as error:
            log.exception("the health port can't answer %r", target)
            response = HttpResponse.text(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}; see the daemon's log"
            )
        return response.encode(head_only=method == "HEAD")


def _listen(address: IPAddress, port: int) -> socket.socket:
    # "0.0.0.0" and "::" mean every address, of both families, as in Go; of one alone where the kernel has no IPv6.
    both = address.is_unspecified and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or address.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if both else str(address), port))
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--healthz-ip {address} --healthz-port {port}: can't listen there: {error.strerror}; "
            "choose another address or port, or 0 to have no health port"
        ) from None
    return listener
