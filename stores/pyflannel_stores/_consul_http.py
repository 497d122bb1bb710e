"""How the Consul driver talks: py-consul's client for several addresses, with deadlines, and errors told apart.

The idea: :class:`Addresses` asks one address until it fails, then the next, within one deadline; what comes out is an
answer or an error of pyflannel's. Requests, their parameters and the reading of answers are py-consul's. Its HTTP layer
is replaced where it falls short of the contract for stores:

* its timeout is per read and fixed; ours bounds a whole call, and differs between a blocking query and the rest;
* it can't be interrupted; ours can, since ``close()`` has to end a long poll (the connection's socket is shut down);
* transactions carry neither token, datacenter nor namespace; ours adds them to every request;
* it prefers ``CONSUL_HTTP_TOKEN`` to the token it is given, and follows proxies and redirects, which would learn it.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import consul.base
import consul.exceptions
import consul.std
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from pyflannel.errors import StoreDeniedError, StoreError, StoreUnavailableError
from pyflannel_stores._bounds import parsed, short, whole
from pyflannel_stores._consul_access import Access
from pyflannel_stores._deadline import Deadline

__all__ = ["Addresses", "Deadline", "NoSuchNode", "NoSuchSession", "RolledBack"]

T = TypeVar("T")

CONNECT_TIMEOUT: Final = 1.0
"""Seconds for a TCP or TLS handshake; a lost SYN is sent again after one, so waiting longer hardly helps."""

FIRST_SHARE: Final = 1.0
"""Seconds an address gets at least to answer, before the next one is asked."""


_PIECE: Final = 1 << 16
"""Bytes of a body that are read at a time."""

# Of headers that end in their middle it logs a traceback, at every attempt; what then lacks is an error of ours.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)

_RIGHTS: Final = "the token lacks a right; docs/stores/consul.md lists the rules it needs"
_THERE: Final = "check that a Consul agent runs there, and can be reached"

_NO_JSON: Final = "Failed to decode JSON: "
"""What py-consul says of it has only this to tell it by, and then the body."""


class RolledBack(Exception):  # noqa: N818 - an answer, not a failure
    """A transaction was not applied, for these reasons."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(short("; ".join(reasons)))


class NoSuchSession(Exception):  # noqa: N818 - an answer, not a failure
    """A session that was to be renewed has ended."""


class NoSuchNode(Exception):  # noqa: N818 - an answer, not a failure
    """A session was to be bound to a node that the catalog doesn't have."""


class _Transport(consul.base.HTTPClient):  # type: ignore[misc]
    """py-consul's view of HTTP for one address. One request at a time; :meth:`abort` from any thread ends it."""

    def __init__(self, host: str, port: int, access: Access) -> None:
        scheme = "https" if access.tls else "http"
        shown = f"[{host}]" if ":" in host else host
        super().__init__(shown, port, scheme, access.cafile or True, access.certificate)
        self._access = access
        self._aborted = False
        self._socket: socket.socket | None = None
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.mount(f"{scheme}://", _Adapter(self._connected))
        self.deadline = Deadline(0)

    def get(self, callback: Any, path: str, params: Any = None, headers: Any = None, raw: bool = False) -> Any:
        return self._send("GET", callback, path, params, None, headers)

    def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return self._send("PUT", callback, path, params, data, headers)

    def delete(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return self._send("DELETE", callback, path, params, data, headers)

    def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return self._send("POST", callback, path, params, data, headers)

    def close(self) -> None:
        self._session.close()

    def abort(self, forever: bool = True) -> None:
        """End the request that is under way, and, if ``forever``, every later one as soon as it connects."""
        self._aborted = self._aborted or forever
        if (current := self._socket) is not None:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(current, socket.SHUT_RDWR)  # not SSLSocket's, which would disturb the reader

    def _connected(self, connection: socket.socket) -> None:
        self._socket = connection
        if self._aborted:
            self.abort()

    def _send(self, method: str, callback: Any, path: str, params: Any, data: Any, headers: Any) -> Any:
        left = self.deadline.left
        if not left:
            raise requests.Timeout
        query = [*(params or ()), *(self._access.parameters or {}).items()]
        # A timeout of requests is one read's. This one is the whole answer's, also of a server that trickles.
        guard = threading.Timer(left, self.abort, (False,))
        guard.daemon = True
        guard.start()
        try:
            response = self._session.request(
                method,
                self.uri(path, query),
                data=data,
                headers={**(headers or {}), **self._credentials()},
                verify=self.verify,
                cert=self.cert,
                timeout=(min(CONNECT_TIMEOUT, left), left),
                allow_redirects=False,
                stream=True,
            )
            with response:
                body = whole(response.iter_content(_PIECE))
        except requests.RequestException as error:
            if not self.deadline.left:
                raise requests.Timeout from error
            raise
        finally:
            guard.cancel()
        return callback(consul.base.Response(response.status_code, response.headers, body.decode()))

    def _credentials(self) -> dict[str, str]:
        token = self._access.token()
        return {"X-Consul-Token": token} if token else {}


class _NoAnswerFromDNS(urllib3.exceptions.ConnectTimeoutError):
    """A name was not resolved in time."""


def _look_up(connection: HTTPConnection) -> None:
    """Make sure that a name can be resolved in time: the system's resolver may take much longer, and has no timeout.

    :raises _NoAnswerFromDNS: it can't.
    """
    try:
        ipaddress.ip_address(connection.host.strip("[]"))
    except ValueError:
        pass
    else:
        return
    asking = threading.Thread(target=_resolve, args=(connection.host, connection.port), daemon=True)
    asking.start()
    asking.join(CONNECT_TIMEOUT)
    if asking.is_alive():
        raise _NoAnswerFromDNS(connection, f"no answer about {connection.host} from DNS")


def _resolve(host: str, port: int) -> None:
    with suppress(OSError):  # whoever connects next gets the same error, and tells it
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _tls_context() -> ssl.SSLContext:
    """One without RFC 5280's letter, which Python insists on since 3.13.

    Go, and so Consul and all of its other clients, takes an authority without key usage (such as ``openssl req -x509``
    makes) and certificates without a key identifier.
    """
    context: ssl.SSLContext = create_urllib3_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class _Adapter(HTTPAdapter):
    """An adapter that tells of every connection it opens."""

    def __init__(self, connected: Callable[[socket.socket], None]) -> None:
        self._told = connected
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=_tls_context(), **keywords)
        told = self._told

        class Plain(HTTPConnection):
            def connect(self) -> None:
                _look_up(self)
                super().connect()
                told(self.sock)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                _look_up(self)
                super().connect()
                told(self.sock)

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


class _Client(consul.base.Consul):  # type: ignore[misc]
    """py-consul's client for one address over our transport."""

    def __init__(self, host: str, port: int, access: Access) -> None:
        self._access = access
        super().__init__(host, port, scheme="https" if access.tls else "http", verify=True)

    def http_connect(self, host: str, port: int, *_: Any) -> _Transport:
        return _Transport(host, port, self._access)


class Addresses:
    """The servers of one store, asked in turn. For one thread, but for :meth:`close`.

    :param where: the store's name for error messages.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]], access: Access, where: str) -> None:
        self._hosts = tuple(hosts)
        self._access = access
        self._where = where
        self._clients: dict[int, _Client] = {}
        self._current = 0
        self._closed = False
        self.doubtful = False
        self._lock = threading.Lock()

    def call(self, deadline: Deadline, request: Callable[[Any], T]) -> T:
        """Send a request that may be sent twice, to one address after the other until one answers.

        Afterwards, and after an error too, :attr:`doubtful` says whether an address that did not answer may have
        carried it out.

        :raises StoreUnavailableError: none answered in time.
        :raises StoreDeniedError: it was refused.
        """
        tries = max(2, len(self._hosts))
        self.doubtful = False
        while True:
            tries -= 1
            try:
                return self.once(self._share(deadline, tries), request)
            except StoreUnavailableError as error:
                self.doubtful = self.doubtful or _may_have_arrived(error)
                if self._closed or not tries or deadline.left < FIRST_SHARE / 4:
                    raise

    def once(self, deadline: Deadline, request: Callable[[Any], T]) -> T:
        """Send a request to the present address alone; if it does not answer, the next address is the present one."""
        try:
            with self._errors():
                client = self._client()
                client.http.deadline = deadline
                return request(client)
        except StoreUnavailableError:
            self._current = (self._current + 1) % len(self._hosts)
            raise

    def close(self) -> None:
        """Let go of all connections, and end the request that is under way. From any thread."""
        with self._lock:
            self._closed = True
            for client in self._clients.values():
                client.http.abort()
                client.http.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what py-consul, requests and the system raise into pyflannel's errors, about the present address."""
        host, port = self._hosts[self._current]
        name = f"{self._where}: {host}:{port}"
        try:
            yield
        except consul.exceptions.NotFound:
            raise NoSuchSession from None
        except consul.exceptions.ConsulException as error:
            raise _answered(name, error) from error
        except requests.RequestException as error:
            if self._closed:
                raise StoreUnavailableError(f"{self._where}: closed") from None
            raise _unanswered(name, error) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreUnavailableError(f"{name}: what answers there is not Consul: {short(str(error))}") from error
        except OSError as error:  # requests raises it for files that are not there
            raise StoreDeniedError(f"{name}: {error}; check cafile, certfile and keyfile") from error

    def _share(self, deadline: Deadline, tries: int) -> Deadline:
        left = deadline.left
        if len(self._hosts) == 1:
            return Deadline(left)
        return Deadline(min(left, max(FIRST_SHARE, left / (tries + 1))))

    def _client(self) -> _Client:
        with self._lock:
            if self._closed:
                raise StoreUnavailableError(f"{self._where}: closed")
            client = self._clients.get(self._current)
            if client is None:
                client = self._clients[self._current] = _Client(*self._hosts[self._current], self._access)
            return client


def _answered(name: str, error: Exception) -> Exception:
    """What an answer other than success means. py-consul keeps the status and the body in the message alone."""
    text = str(error).strip()
    status, _, body = text.partition(" ")
    if isinstance(error, consul.exceptions.ACLPermissionDenied):
        return StoreDeniedError(f"{name}: {short(text)}; {_RIGHTS}")
    if isinstance(error, consul.exceptions.ACLDisabled):
        return StoreDeniedError(f"{name}: {short(text)}")
    if status == "409":
        return _rolled_back(name, body)
    if isinstance(error, consul.exceptions.BadRequest):
        hint = "; use tls=true" if "HTTPS server" in body else ""
        return StoreDeniedError(f"{name}: {short(body)}{hint}")
    if isinstance(error, consul.exceptions.ClientError) and status != "429":
        return StoreDeniedError(f"{name}: answered {short(text)}")
    if text.startswith(_NO_JSON):
        return StoreUnavailableError(f"{name}: what answers there is not Consul: {short(text.removeprefix(_NO_JSON))}")
    if "Missing node registration" in body:
        return NoSuchNode(short(text))
    return StoreUnavailableError(f"{name}: answered {short(text)}")


def _rolled_back(name: str, body: str) -> Exception:
    try:
        reasons = [str(each["What"]) for each in parsed(body)["Errors"]]
    except (ValueError, TypeError, KeyError):
        return StoreUnavailableError(f"{name}: what answers there is not Consul: {short(body)}")
    if any("permission denied" in reason.lower() for reason in reasons):
        return StoreDeniedError(f"{name}: {short('; '.join(reasons))}; {_RIGHTS}")
    return RolledBack(reasons)


def _unanswered(name: str, error: Exception) -> StoreError:
    """What no answer means: TLS that will not do until somebody acts, or a server that may be back soon."""
    fault = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
    if fault is not None and not isinstance(fault, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return StoreDeniedError(f"{name}: TLS: {fault}; check tls, cafile, certfile and keyfile")
    if any(isinstance(cause, _NoAnswerFromDNS) for cause in _causes(error)):
        return StoreUnavailableError(f"{name}: no answer about that name from DNS within {CONNECT_TIMEOUT:g} s")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return StoreUnavailableError(f"{name}: no connection within {CONNECT_TIMEOUT:g} s; {_THERE}")
    if isinstance(error, requests.exceptions.Timeout):
        return StoreUnavailableError(f"{name}: no answer in time; {_THERE}")
    refused = next((cause for cause in _causes(error) if isinstance(cause, OSError) and cause.errno), None)
    return StoreUnavailableError(f"{name}: {refused.strerror if refused else 'the connection broke'}; {_THERE}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it was made of; requests and urllib3 use causes, contexts, arguments and ``reason``."""
    seen: set[int] = set()
    todo: list[BaseException] = [error]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        more = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
        todo.extend(each for each in more if isinstance(each, BaseException))


def _may_have_arrived(error: StoreError) -> bool:
    """Whether a request that failed so may still have been carried out."""
    causes = list(_causes(error))
    never = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return not any(isinstance(cause, never) for cause in causes)
