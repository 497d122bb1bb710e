"""The servers' loop when it gets no descriptor for who comes, and whoever asks while others do."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.starving import without_descriptors

from pyflannel.errors import DaemonError
from pyflannel.small import server
from pyflannel.small.server import SocketServer, ask, listen_in


class Counted(socket.socket):
    """A listener that tells when it has been asked so many times."""

    def __init__(self, listener: socket.socket, times: int) -> None:
        super().__init__(fileno=listener.detach())
        self.left = times
        self.asked = threading.Event()

    def accept(self) -> tuple[socket.socket, object]:
        self.left -= 1
        if self.left <= 0:
            self.asked.set()
        return super().accept()


def test_without_descriptors_it_says_so_once_and_serves_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.001)
    path = tmp_path / "socket"
    listener = Counted(listen_in(path), 5)
    serving = SocketServer(listener, "status", lambda request: b"here", asked=False)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            with caplog.at_level(logging.WARNING), without_descriptors():
                client.connect(str(path))
                assert listener.asked.wait(30)
            assert client.recv(100) == b"here"
    finally:
        serving.close()
    assert caplog.messages == ["status can't take a connection: Too many open files"]


@contextmanager
def queued(path: Path) -> Iterator[None]:
    """So many that want to be let in that there is no room for one more."""
    with ExitStack() as stack:
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        yield


def test_who_asks_waits_until_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = listen_in(path)
    with queued(path), ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, path, b"", 60)
        serving = SocketServer(listener, "status", lambda request: b"here", asked=False)
        try:
            assert asked.result() == b"here"
        finally:
            serving.close()


def test_who_is_not_let_in_is_told_why(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen_in(path), queued(path), pytest.raises(DaemonError, match="does not answer: too many others are asking"):
        ask(path, b"", 1)
