"""sd_notify, against a socket that stands for the service manager's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.starving import without_descriptors

from pyflannel.daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(5)
        if request.param == "path":
            address = str(tmp_path / "notify")
            channel.bind(address)
        else:
            channel.bind("")  # the kernel picks an abstract name
            name = channel.getsockname()
            assert isinstance(name, bytes)
            address = "@" + name[1:].decode()
        yield channel, {"NOTIFY_SOCKET": address}


def test_the_manager_hears_each_message(manager: tuple[socket.socket, dict[str, str]]) -> None:
    channel, environ = manager
    notifier = Notifier(environ)
    notifier.status("waiting for\nthe store")
    notifier.status("waiting for\nthe store")
    notifier.ready()
    notifier.alive()
    notifier.stopping()
    heard = [channel.recv(100).decode() for _ in range(4)]
    assert heard == ["STATUS=waiting for the store", "READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.ready()
    assert notifier.watchdog_interval is None


def test_a_manager_that_went_away_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert "does not listen (No such file or directory): READY=1" in caplog.text


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_asked(environ: dict[str, str], interval: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", **environ}).watchdog_interval == interval


def test_a_process_without_descriptors_tells_nobody_and_goes_on(
    manager: tuple[socket.socket, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(manager[1])
    with without_descriptors():
        notifier.alive()
    assert "(Too many open files): WATCHDOG=1" in caplog.text
    notifier.ready()
    assert manager[0].recv(100) == b"READY=1"
