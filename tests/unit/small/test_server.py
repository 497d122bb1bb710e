"""The servers' loop when it gets no descriptor for who comes."""

from __future__ import annotations

import logging
import socket
import threading
from pathlib import Path

import pytest
from tests.starving import without_descriptors

from pyflannel.small import server
from pyflannel.small.server import SocketServer, listen_in


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
