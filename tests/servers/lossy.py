"""A TCP proxy that loses a request, or the answer to one: what makes a write ambiguous."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType


class LossyProxy:
    """Listens on a port of its own and passes everything on to ``target`` (``host:port``). A context manager.

    Connections are cut once, when a request with the marked bytes passes: see :meth:`lose_answer` and
    :meth:`lose_request`.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.lost = threading.Event()
        self._mark: bytes | None = None
        self._before: Callable[[], None] | None = None
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def lose_answer(self, mark: bytes) -> None:
        """Pass the next request that contains ``mark`` on, wait for the answer, and cut the connection instead."""
        self._mark, self._before = mark, None
        self.lost.clear()

    def lose_request(self, mark: bytes, before: Callable[[], None]) -> None:
        """Keep the next request that contains ``mark``, call ``before``, and cut the connection."""
        self._mark, self._before = mark, before
        self.lost.clear()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            answers_pass = threading.Event()
            answers_pass.set()
            self._open |= {near, far}
            for work in (self._requests, self._answers):
                thread = threading.Thread(target=work, args=(near, far, answers_pass))
                self._threads.append(thread)
                thread.start()

    def _requests(self, near: socket.socket, far: socket.socket, answers_pass: threading.Event) -> None:
        while data := _receive(near):
            if self._mark is not None and self._mark in data:
                self._mark = None
                if self._before is not None:
                    self._before()
                    break
                answers_pass.clear()
            if not _send(far, data):
                break
        if answers_pass.is_set():
            self.lost.set()
            _cut(near, far)

    def _answers(self, near: socket.socket, far: socket.socket, answers_pass: threading.Event) -> None:
        while data := _receive(far):
            if not answers_pass.is_set():
                # HTTP/2 acknowledges with frames of 17 bytes and less; an answer is longer.
                if len(data) <= 34:
                    continue
                break
            if not _send(near, data):
                break
        self.lost.set()
        _cut(near, far)

    def cut(self) -> None:
        """Cut all connections that are open now."""
        _cut(*tuple(self._open))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        _cut(*self._open)
        for thread in self._threads:
            thread.join(10)
        for each in self._open:
            each.close()

    def __enter__(self) -> LossyProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def _send(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def _cut(*connections: socket.socket) -> None:
    for connection in connections:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
