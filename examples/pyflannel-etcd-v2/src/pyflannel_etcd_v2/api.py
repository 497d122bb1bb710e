"""The v2 keys API over HTTP: requests, answers, and which error of the contract an etcd error is.

Each call tries the members in turn, beginning with the one that answered last, and has an answer or an error within
the contract's time. Reads are ``quorum`` reads: a member that is cut off from the others must not answer with what was.
See https://etcd.io/docs/v2.3/api/ for the API.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, Final
from urllib.parse import quote, urlencode

from pyflannel.errors import HistoryGoneError, StoreDeniedError, StoreError, StoreUnavailableError
from pyflannel.store import CALL_TIMEOUT

__all__ = ["Answer", "Api", "Connections", "Exists", "Mismatch", "Missing"]

QUIET: Final = 60.0
"""Seconds after which a long poll without an event is asked again."""

_INDEX: Final = "X-Etcd-Index"
_KEY_NOT_FOUND, _COMPARE_FAILED, _KEY_EXISTS, _DENIED, _INDEX_CLEARED = 100, 101, 105, 110, 401
_SERVER_TROUBLE: Final = range(300, 400)
"""etcd's own codes for "no leader", "timed out" and the like."""


class Missing(StoreError):  # noqa: N818 - not an error for those who ask whether it is there
    """There is no such key. ``index`` is etcd's, as of now."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class Mismatch(StoreError):  # noqa: N818 - the same
    """The key has another index than was expected."""


class Exists(StoreError):  # noqa: N818 - the same
    """The key is there."""


@dataclass(frozen=True)
class Answer:
    """What etcd said.

    :param index: of an event, the event's; of other answers, etcd's as of then.
    :param action: ``get``, ``set``, ``create``, ``compareAndSwap``, ``delete``, ``expire`` ...
    :param node: the key it is about; empty if a long poll ended without an event.
    """

    index: int
    action: str
    node: Mapping[str, Any]


@dataclass
class Connections:
    """The connection that a watch waits on, for others to cut."""

    _closed: bool = False
    _current: socket.socket | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def use(self, current: socket.socket | None) -> None:
        """From now on this one is waited on.

        :raises StoreUnavailableError: all has been closed.
        """
        with self._lock:
            if self._closed:
                raise StoreUnavailableError("the watch was closed")
            self._current = current

    def cut(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Cut the current one, and let no other come."""
        with self._lock:
            self._closed = True
            if self._current is not None:
                with contextlib.suppress(OSError):  # it is closed already
                    self._current.shutdown(socket.SHUT_RDWR)


class Api:
    """The keys API of one cluster. Any thread may call."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = list(hosts)

    def get(self, path: str, **query: str) -> Answer:
        """Read a key, or a directory.

        :raises Missing: there is none.
        """
        return self._call("GET", path, {"quorum": "true", **query})

    def put(self, path: str, form: Mapping[str, str]) -> Answer:
        """Write a key.

        :raises Missing, Mismatch, Exists: as ``form`` asked.
        """
        return self._call("PUT", path, {}, form)

    def delete(self, path: str, index: int) -> Answer:
        """Delete a key that has this index.

        :raises Missing, Mismatch: it hasn't.
        """
        return self._call("DELETE", path, {"prevIndex": str(index)})

    def wait(self, path: str, index: int, connections: Connections) -> Answer | None:
        """The first event below ``path`` at or after ``index``.

        :returns: without a node if there was none up to the index it names; ``None`` if not even that is known.
        :raises HistoryGoneError: etcd does not remember that far.
        """
        query = {"wait": "true", "recursive": "true", "waitIndex": str(index)}
        host, *_ = self._hosts
        connection = HTTPConnection(host, timeout=CALL_TIMEOUT)
        seen: int | None = None
        try:
            connection.connect()
            current = connection.sock
            connections.use(current)
            response = _send(connection, "GET", path, query)  # the head comes at once, the event when it happens
            seen = _index(response)
            current.settimeout(QUIET)
            document = response.read()
            if response.status == 200 and not document:
                return Answer(max(seen, index - 1), "", {})
            return _answer(response, document, event=True)
        except TimeoutError:
            if seen is None:
                self._put_last(host)
                raise StoreUnavailableError(f"etcd at {host} does not answer") from None
            return Answer(max(seen, index - 1), "", {})
        except (OSError, HTTPException) as error:
            self._put_last(host)
            raise StoreUnavailableError(f"etcd at {host}: {_reason(error)}") from None
        finally:
            connection.close()

    def _call(self, method: str, path: str, query: Mapping[str, str], form: Mapping[str, str] | None = None) -> Answer:
        deadline = time.monotonic() + CALL_TIMEOUT / 2  # a lost answer may need a second call
        reasons = []
        hosts = tuple(self._hosts)
        for number, host in enumerate(hosts):
            share = max(0.1, (deadline - time.monotonic()) / (len(hosts) - number))
            connection = HTTPConnection(host, timeout=share)
            refused = False
            try:
                response = _send(connection, method, path, query, form)
                return _answer(response, response.read())
            except StoreUnavailableError as error:
                reasons.append(f"{host}: {error}")
            except ConnectionRefusedError as error:
                reasons.append(f"{host}: {_reason(error)}")
                refused = True
            except (OSError, HTTPException) as error:
                reasons.append(f"{host}: {_reason(error)}")
            finally:
                connection.close()
            self._put_last(host)
            if method != "GET" and not refused:
                break  # it may have been done: whoever asked has to look before it is done again
        raise StoreUnavailableError(f"etcd does not answer ({'; '.join(reasons)})")

    def _put_last(self, host: str) -> None:
        self._hosts = [*(other for other in self._hosts if other != host), host]


def _send(
    connection: HTTPConnection,
    method: str,
    path: str,
    query: Mapping[str, str],
    form: Mapping[str, str] | None = None,
) -> HTTPResponse:
    # etcd decodes what it is given once; a percent sign of the key itself has to survive that.
    target = f"/v2/keys{quote(path)}" + (f"?{urlencode(query)}" if query else "")
    if form is None:
        connection.request(method, target)
    else:
        body = urlencode(form, errors="surrogatepass").encode()
        connection.request(method, target, body, {"Content-Type": "application/x-www-form-urlencoded"})
    return connection.getresponse()


def _answer(response: HTTPResponse, content: bytes, event: bool = False) -> Answer:
    try:
        document = json.loads(content)
    except ValueError:
        if response.status == 404:
            raise StoreError("this etcd has no v2 API: it must be started with --enable-v2") from None
        raise StoreUnavailableError(f"HTTP {response.status} without an answer") from None
    if not isinstance(document, dict) or not document.keys() & {"errorCode", "node"}:
        raise StoreUnavailableError(f"HTTP {response.status} with an answer that is not etcd's")
    if "errorCode" in document:
        raise _error(document)
    node = document["node"]
    return Answer(node["modifiedIndex"] if event else _index(response), document["action"], node)


def _index(response: HTTPResponse) -> int:
    text = response.headers.get(_INDEX, "0")  # an error's answer has it in the document
    if not text.isdecimal():
        raise StoreUnavailableError(f"{_INDEX} is {text!r}, which is not etcd's")
    return int(text)


def _error(document: Mapping[str, Any]) -> StoreError:
    code, text = document["errorCode"], f"{document.get('message')} ({document.get('cause')})"
    if code == _KEY_NOT_FOUND:
        return Missing(text, document["index"])
    if code == _COMPARE_FAILED:
        return Mismatch(text)
    if code == _KEY_EXISTS:
        return Exists(text)
    if code == _INDEX_CLEARED:
        return HistoryGoneError(f"etcd remembers the last 1,000 changes, and that one is older: {text}")
    if code == _DENIED:
        return StoreDeniedError(f"etcd refuses: {text}")
    return StoreUnavailableError(text) if code in _SERVER_TROUBLE else StoreError(f"etcd: {text}")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
