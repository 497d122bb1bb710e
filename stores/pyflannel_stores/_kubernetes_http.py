"""HTTP to one Kubernetes API server, by the standard library: calls with a deadline, and a stream of lines.

The idea: a call is a request whose answer is read whole, within a deadline that nothing the server does can stretch;
a :class:`Stream` is one whose answer never ends, read by hand, so that it costs next to nothing per event, wakes up
now and then, and can be ended from any thread. Both connect alike: through a proxy where there is one, with the TLS
files of now. What comes out is an answer or an error of pyflannel's.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from io import BytesIO
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from pyflannel.errors import StoreDeniedError, StoreError, StoreUnavailableError
from pyflannel.store import hide_credentials
from pyflannel_stores._bounds import LARGEST_ANSWER, parsed, short, whole
from pyflannel_stores._deadline import Deadline
from pyflannel_stores._kubernetes_access import Access, ApiServer
from pyflannel_stores._names import is_host
from pyflannel_stores._tls import wrapped

__all__ = ["Api", "ChunkedLines", "Deadline", "Gone", "NotFound", "Overtaken", "Stream", "refusal"]

CONNECT_TIMEOUT: Final = 2.0
"""Seconds for a TCP connection, and again for TLS."""

LONGEST_PAUSE: Final = 60.0
"""Seconds for which a server may keep us from asking again. API servers say a few; a load balancer's page that says an
hour would have this node follow nobody when the server is back."""

_PIECE: Final = 1 << 16
_MOST_AT_ONCE: Final = 1 << 20

_LARGEST_LINE: Final = LARGEST_ANSWER

_AGENT: Final = "pyflannel"

_RIGHTS: Final = "give its account what contrib/kubernetes/base/rbac.yaml lists"


class NotFound(Exception):  # noqa: N818 - an answer, not a failure
    """There is no such object."""


class Overtaken(Exception):  # noqa: N818 - an answer, not a failure
    """The object was changed since it was read."""


class Gone(Exception):  # noqa: N818 - an answer, not a failure
    """The server does not know that resource version any more."""


class Forbidden(StoreDeniedError):  # noqa: N818 - as its neighbours
    """The account has not this right; ``reason`` is the server's."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}; {_RIGHTS}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Api:
    """One connection for calls, kept open: one call after the other, from any thread."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._name = f"{access.where}: {access.endpoint}"
        self._connection: http.client.HTTPConnection | None = None
        self._identity: tuple[object, ...] = ()
        self._closed = False
        self._calling = threading.Lock()
        self._not_before = 0.0

    def get(self, path: str, deadline: Deadline, **query: str) -> bytes:
        """The body of an object or a list. See :meth:`call`."""
        return self.call("GET", path, deadline, query=query)

    def call(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        kind: str = "application/json",
    ) -> bytes:
        """Send a request that may be sent twice; the body of the answer.

        A server that asks to wait (429, or 503 with ``Retry-After``) is obeyed, as long as the deadline allows it.

        :raises NotFound, Overtaken, Gone: it answered so.
        :raises StoreUnavailableError: no answer in time, or one that says that a later one may be better.
        :raises StoreDeniedError: it was refused.
        """
        data = None if body is None else json.dumps(body).encode()
        with self._calling:
            try:
                return self._obey(method, _target(self._access.endpoint, path, query), data, kind, deadline)
            finally:
                if self._closed:
                    self._drop()

    def _obey(self, method: str, target: str, data: bytes | None, kind: str, deadline: Deadline) -> bytes:
        renewed = False
        while True:
            self._wait_turn(deadline)
            answer = self._exchange(method, target, data, kind, deadline)
            if answer.status < 300:
                return answer.body
            if answer.status == 401 and not renewed and self._access.refused():
                renewed = True
                continue
            pause = _retry_after(answer)
            if pause is None:
                raise refusal(answer.status, answer.body, self._name)
            self._not_before = time.monotonic() + pause
            if pause >= deadline.left:
                raise StoreUnavailableError(
                    f"{self._name}: has too much to do and asks to wait {pause:g} s (status {answer.status})"
                )

    def close(self) -> None:
        """Let go of the connection, and end the call that is under way. From any thread."""
        self._closed = True
        connection = self._connection
        if connection is not None:
            _shut(connection.sock)
        if self._calling.acquire(blocking=False):  # else the call that is under way lets go of it
            self._drop()
            self._calling.release()

    def _wait_turn(self, deadline: Deadline) -> None:
        pause = self._not_before - time.monotonic()
        if pause > deadline.left:
            raise StoreUnavailableError(f"{self._name}: asked to wait, for {pause:.0f} s more")
        if pause > 0:
            time.sleep(pause)

    def _exchange(self, method: str, target: str, data: bytes | None, kind: str, deadline: Deadline) -> _Answer:
        """One request, sent once more where the server had closed a connection that was kept."""
        headers = _headers(self._access)
        if data is not None:
            headers["Content-Type"] = kind
        while True:
            fresh = self._connection is None
            try:
                connection = self._connected(deadline)
                return self._ask(connection, method, target, data, headers, deadline)
            except StoreError:
                self._drop()
                raise
            except (http.client.HTTPException, OSError, ValueError) as error:
                self._drop()
                stale = isinstance(error, (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError))
                if fresh or not stale or not deadline.left or self._closed:
                    raise self._failed(error, deadline) from error

    def _connected(self, deadline: Deadline) -> http.client.HTTPConnection:
        if self._closed:
            raise StoreUnavailableError(f"{self._name}: closed")
        identity = self._access.identity()
        if self._connection is not None and (identity != self._identity or self._connection.sock is None):
            self._drop()
        if self._connection is None:
            self._connection = connect(self._access, min(CONNECT_TIMEOUT, deadline.left))
            self._identity = identity
        return self._connection

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        data: bytes | None,
        headers: Mapping[str, str],
        deadline: Deadline,
    ) -> _Answer:
        left = deadline.left
        if not left:
            raise TimeoutError
        connection.sock.settimeout(left)
        # A socket's timeout is one read's; this one is the whole answer's, also of a server that trickles.
        guard = threading.Timer(left, _shut, (connection.sock,))
        guard.daemon = True
        guard.start()
        try:
            connection.request(method, target, data, dict(headers))
            with closing(connection.getresponse()) as response:
                body = whole(iter(lambda: response.read(_PIECE), b""))
            return _Answer(response.status, {name.title(): text for name, text in response.headers.items()}, body)
        finally:
            guard.cancel()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failed(self, error: Exception, deadline: Deadline) -> StoreError:
        if self._closed:
            return StoreUnavailableError(f"{self._name}: closed")
        if not deadline.left:
            return StoreUnavailableError(f"{self._name}: no answer in time")
        return unanswered(self._name, error)


class Stream:
    """A watch: lines of JSON that come as they happen.

    :param idle: seconds after which a silent server is taken for a dead one.
    :raises Gone, StoreUnavailableError, StoreDeniedError: see :meth:`Api.call`.
    """

    def __init__(self, access: Access, path: str, query: Mapping[str, str], idle: float, deadline: Deadline) -> None:
        self._name = f"{access.where}: {access.endpoint}"
        self._idle = idle
        self._lines = ChunkedLines()
        self._came_with_head = b""
        self._closed = False
        self._heard = time.monotonic()
        try:
            self._connection = connect(access, min(CONNECT_TIMEOUT, deadline.left))
            self._socket = self._connection.sock
            self._begin(access, path, query, deadline)
        except StoreError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise unanswered(self._name, error) from error

    def lines(self, patience: float) -> Iterator[bytes] | None:
        """What has come, after waiting up to ``patience`` seconds; ``None`` when the server has ended the stream.

        :raises StoreUnavailableError: the connection broke, or nothing was heard for too long.
        """
        data, self._came_with_head = self._came_with_head, b""
        try:
            if not data:
                data = self._receive(patience)
        except TimeoutError:
            if time.monotonic() - self._heard > self._idle:
                raise StoreUnavailableError(f"{self._name}: nothing heard for {self._idle:g} s") from None
            return iter(())
        except OSError as error:
            raise unanswered(self._name, error) from error
        self._heard = time.monotonic()
        if not data:
            return None
        try:
            lines = self._lines.feed(data)
        except ValueError as error:
            raise unanswered(self._name, error) from error
        return None if self._lines.ended and not lines else iter(lines)

    def _receive(self, patience: float) -> bytes:
        """What is there, after waiting for its first byte; TLS hands out 16 KiB at a time."""
        self._socket.settimeout(patience)
        data = self._socket.recv(_PIECE)
        pending = getattr(self._socket, "pending", None)
        if not data or (pending is None and len(data) < _PIECE):
            return data
        pieces, length = [data], len(data)
        self._socket.settimeout(0)
        while length < _MOST_AT_ONCE:
            try:
                data = self._socket.recv(_PIECE)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            if not data:
                break  # said again by the next call
            pieces.append(data)
            length += len(data)
        return b"".join(pieces)

    def close(self) -> None:
        """End it. Idempotent, from any thread."""
        if not self._closed:
            self._closed = True
            _shut(self._socket)

    def release(self) -> None:
        """Give the socket back; for the reading thread."""
        self.close()
        self._connection.close()

    def _begin(self, access: Access, path: str, query: Mapping[str, str], deadline: Deadline) -> None:
        try:
            target = _target(access.endpoint, path, query)
            head = [f"GET {target} HTTP/1.1", *(f"{name}: {text}" for name, text in _headers(access).items())]
            head.append(f"Host: {_host(access.endpoint)}")
            self._socket.settimeout(max(0.01, deadline.left))
            self._socket.sendall("\r\n".join([*head, "", ""]).encode("latin-1"))
            status, headers, rest = self._read_head(deadline)
            if status != 200:
                raise refusal(status, self._read_refusal(headers, rest, deadline), self._name)
            if headers.get("Transfer-Encoding", "").lower() != "chunked":
                raise ValueError("a watch that is not chunked")
            self._came_with_head = rest
        except BaseException:
            self._connection.close()
            raise

    def _read_head(self, deadline: Deadline) -> tuple[int, Mapping[str, str], bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(deadline)
            if len(data) > 1 << 16:
                raise ValueError("a header without an end")
        head, _, rest = data.partition(b"\r\n\r\n")
        first, _, fields = head.partition(b"\r\n")
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise ValueError("no HTTP")
        parsed = http.client.parse_headers(BytesIO(fields + b"\r\n\r\n"))
        return int(words[1]), {name.title(): text for name, text in parsed.items()}, rest

    def _read_refusal(self, headers: Mapping[str, str], rest: bytes, deadline: Deadline) -> bytes:
        with suppress(ValueError, OSError):
            length = min(int(headers.get("Content-Length", "0")), 1 << 20)
            while len(rest) < length:
                rest += self._more(deadline)
        return rest

    def _more(self, deadline: Deadline) -> bytes:
        if not deadline.left:
            raise TimeoutError
        self._socket.settimeout(deadline.left)
        data = self._socket.recv(1 << 16)
        if not data:
            raise http.client.RemoteDisconnected("closed")
        return data


class ChunkedLines:
    """Bytes of a chunked body (RFC 9112, 7.1) in, whole lines out. No I/O."""

    def __init__(self) -> None:
        self._raw = b""
        self._left = 0
        self._line = bytearray()  # a list of pieces would take many times their length where they are small
        self.ended = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their ends.

        :raises ValueError: this is no chunked body, or a line has no end.
        """
        raw = self._raw + data
        lines: list[bytes] = []
        at = 0
        while at < len(raw) and not self.ended:
            if self._left > 2:
                piece = raw[at : at + self._left - 2]
                at += len(piece)
                self._left -= len(piece)
                self._take(piece, lines)
            elif self._left:  # the CRLF behind a chunk
                step = min(self._left, len(raw) - at)
                at += step
                self._left -= step
            else:
                end = raw.find(b"\r\n", at)
                if end < 0:
                    break
                size = int(raw[at:end].partition(b";")[0], 16)
                if size < 0:
                    raise ValueError("a chunk of less than nothing")
                at = end + 2
                self.ended = size == 0
                self._left = size + 2
        self._raw = raw[at:]
        if len(self._raw) > 1024 and not self.ended:
            raise ValueError("a chunk without a size")
        return lines

    def _take(self, piece: bytes, lines: list[bytes]) -> None:
        *whole, rest = piece.split(b"\n")
        for part in whole:
            lines.append(bytes(self._line + part) if self._line else part)
            self._line.clear()
        self._line += rest
        if len(self._line) > _LARGEST_LINE:
            raise ValueError("a line without an end")


# Connecting -----------------------------------------------------------------------------------------------------------


def connect(access: Access, timeout: float) -> http.client.HTTPConnection:
    """A connection to the API server, TLS and all.

    :raises StoreUnavailableError, StoreDeniedError: there is none.
    """
    endpoint, name = access.endpoint, f"{access.where}: {access.endpoint}"
    if timeout <= 0:
        raise StoreUnavailableError(f"{name}: no answer in time")
    proxy = _proxy(access)
    address = (proxy.host, proxy.port) if proxy is not None else (endpoint.host, endpoint.port)
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    connection.auto_open = 0  # which would connect without TLS
    try:
        tls = access.tls() if endpoint.tls else None  # takes a while, in which a server may hang up
        if proxy is not None:
            connection.set_tunnel(endpoint.host, endpoint.port)
        _resolve(*address, timeout, name)
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if tls is not None:
            connection.sock = wrapped(connection.sock, tls, access.server_name or endpoint.host)
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        raise unanswered(name, error) from error
    except StoreError:
        connection.close()
        raise
    return connection


def _proxy(access: Access) -> ApiServer | None:
    """The proxy to go through: the kubeconfig's, else the environment's (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)."""
    endpoint = access.endpoint
    url = access.proxy
    if url is None:
        scheme = "https" if endpoint.tls else "http"
        loopback = endpoint.host == "localhost" or endpoint.host.startswith("127.") or endpoint.host == "::1"
        proxies = getproxies_environment()
        if loopback or proxy_bypass(endpoint.host) or _in_networks(endpoint.host, proxies.get("no", "")):
            return None
        url = proxies.get(scheme)
    if not url:
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme == "http" and parts.hostname and is_host(parts.hostname):
            return ApiServer(parts.hostname, parts.port or 80, False)
    except ValueError:  # its text quotes what was taken for the port, which may be a part of the password
        pass
    raise StoreDeniedError(
        f"{access.where}: proxy {hide_credentials(url)!r}: only proxies of the form http://host:port are known"
    )


def _in_networks(host: str, texts: str) -> bool:
    """Whether an address lies in one of the networks among these texts, as Go reads ``NO_PROXY``; Python does not."""
    for text in texts.split(","):
        with suppress(ValueError):  # a name
            if ip_address(host) in ip_network(text.strip(), strict=False):
                return True
    return False


def _resolve(host: str, port: int, timeout: float, name: str) -> None:
    """Look a name up in time: the system's resolver may take much longer, and has no timeout."""
    if host.replace(".", "").isdigit() or ":" in host:
        return

    def ask() -> None:
        with suppress(OSError):  # whoever connects next gets the same error, and tells it
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    if asking.is_alive():
        raise StoreUnavailableError(f"{name}: no answer about {host} from DNS")


def _target(endpoint: ApiServer, path: str, query: Mapping[str, str] | None) -> str:
    return f"{endpoint.path}{path}{'?' + urlencode(query) if query else ''}"


def _host(endpoint: ApiServer) -> str:
    return str(ApiServer(endpoint.host, endpoint.port, endpoint.tls)).partition("://")[2]


def _headers(access: Access) -> dict[str, str]:
    headers = {"Accept": "application/json", "User-Agent": _AGENT, "Accept-Encoding": "identity"}
    token = access.token()
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _shut(connection: socket.socket | None) -> None:
    if connection is not None:
        with suppress(OSError):  # it is closed already
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not SSLSocket's, which would disturb the reader


# What answers mean ----------------------------------------------------------------------------------------------------


def refusal(status: int, body: bytes, name: str) -> Exception:
    """What an answer other than success means; ``status`` is HTTP's, or that of an error in a stream."""
    reason = _message(body)
    if status == 404:
        return NotFound(f"{name}: {reason}")
    if status == 409:
        return Overtaken(f"{name}: {reason}")
    if status == 410:
        return Gone(f"{name}: {reason}")
    if status == 401:
        return StoreDeniedError(
            f"{name}: does not know our credentials ({reason}); has the token expired or been revoked?"
        )
    if status == 403:
        return Forbidden(name, reason)
    if status == 429 or status >= 500 or status == 408:
        return StoreUnavailableError(f"{name}: answered {status}: {reason}")
    if 300 <= status < 400:
        return StoreUnavailableError(f"{name}: what answers there is not a Kubernetes API server (status {status})")
    hint = "; use https" if "HTTPS server" in reason else ""
    return StoreDeniedError(f"{name}: answered {status}: {reason}{hint}")


def _message(body: bytes) -> str:
    """The message of a Status object (v1), or the beginning of whatever came instead."""
    text = body.decode(errors="replace").strip()
    with suppress(ValueError, TypeError, AttributeError):
        text = str(parsed(body).get("message") or text)
    return short(text)


def _retry_after(answer: _Answer) -> float | None:
    """Seconds that a server asks to wait, as far as it is obeyed; ``None`` if it does not ask."""
    if answer.status != 429 and answer.status < 500:
        return None
    text = answer.headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_PAUSE)
    return 1.0 if answer.status == 429 else None


def unanswered(name: str, error: Exception) -> StoreError:
    """What no answer means: TLS that will not do until somebody acts, or a server that may be back soon."""
    if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        if error.reason == "WRONG_VERSION_NUMBER":
            return StoreDeniedError(f"{name}: does not speak TLS; use http:// if that is meant")
        return StoreDeniedError(f"{name}: TLS: {error}; check the authority and the client certificate")
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"{name}: no answer in time")
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        return StoreUnavailableError(f"{name}: {reason}")
    return StoreUnavailableError(f"{name}: what answers there is not a Kubernetes API server: {short(str(error))}")
