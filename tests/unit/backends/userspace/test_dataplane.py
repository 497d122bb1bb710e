"""The daemon's side of a data plane: workers that are slow to answer. There is no device here, which they report."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.waiting import until

from pyflannel.backend import Lease, LeaseAttributes, Subnets
from pyflannel.errors import ConfigError
from pyflannel_backends.udp.worker import UdpConfig
from pyflannel_backends.userspace import dataplane
from pyflannel_backends.userspace.control import WorkerConfig
from pyflannel_backends.userspace.dataplane import UserspaceDataPlane, WorkerKind, _to_tune

MODULE = "pyflannel_backends.udp.worker"
PATIENCE = 60.0
PEER = Subnets.from_key("10.5.2.0-24")


def workers() -> int:
    """How many workers this process has started and not seen the end of."""
    return sum(_is_worker(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _is_worker(process: Path) -> bool:
    try:
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        return parent == os.getpid() and MODULE.encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def udp_kind() -> WorkerKind:
    config = UdpConfig(
        device="pyfl-none",
        mtu=1400,
        own=["10.5.1.0/24"],
        offload=False,
        address="127.0.0.1",
        port=0,
        any_source_port=False,
    )
    return WorkerKind("udp", MODULE, config, lambda lease: [("10.5.2.0/24", "192.0.2.2")])


def test_a_worker_that_answers_too_late_is_ended_before_another_one_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them would share the packets, and one would never hear of a change."""
    monkeypatch.setattr(dataplane, "_START_TIMEOUT", 0.001)
    monkeypatch.setattr(dataplane, "_LAST_PAUSE", 0.2)
    plane = UserspaceDataPlane(udp_kind(), tmp_path, 1)
    try:
        plane.put(Lease(PEER, LeaseAttributes(public_ip=IPv4Address("192.0.2.2"))))
        until(lambda: "can't be started" in plane.check().get(PEER.key, ""), "no worker answers in time")
        monkeypatch.setattr(dataplane, "_START_TIMEOUT", PATIENCE)
        until(lambda: plane.statuses()[0], "a worker that had the time to answer")
        assert workers() == 1
    finally:
        plane.end()
    until(lambda: workers() == 0, "no worker is left")


def test_a_worker_that_can_t_listen_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is in its socket's place is found by it alone; with a traceback, before."""
    place = tmp_path / "udp-worker-0.sock"
    place.mkdir()
    plane = UserspaceDataPlane(udp_kind(), tmp_path, 1)
    try:
        plane.put(Lease(PEER, LeaseAttributes(public_ip=IPv4Address("192.0.2.2"))))
        wanted = f"udp data plane: the worker can't be started: [Errno {errno.EISDIR}] Is a directory: '{place}'"
        until(lambda: plane.check().get(PEER.key) == wanted, "the worker's own words")
    finally:
        plane.end()
    assert capfd.readouterr().err == ""


def test_no_data_plane_where_no_worker_could_listen(tmp_path: Path) -> None:
    """A node without peers would be ready for ever, and carry nothing to the first that comes."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"can't be made in {tmp_path}/file/x: Not a directory; .* --state-dir"):
        UserspaceDataPlane(udp_kind(), tmp_path / "file" / "x", 1)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A worker that hangs, as far as others can see; it is gone at the end."""
    os.kill(pid, signal.SIGSTOP)
    yield
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_worker_that_falls_silent_is_told_ended_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold on to its queue of the device, whose packets nobody would get; others can't make up for it."""
    monkeypatch.setattr(dataplane, "_SILENT", 2.5)
    monkeypatch.setattr(dataplane, "_HOPELESS", 5.0)
    plane = UserspaceDataPlane(udp_kind(), tmp_path, 2)
    try:
        plane.put(Lease(PEER, LeaseAttributes(public_ip=IPv4Address("192.0.2.2"))))
        until(lambda: all(plane.statuses()), "the workers speak")
        other, hanging = plane.pids()
        with stopped(hanging):
            until(lambda: f"(process {hanging}) has said nothing for" in plane.check()[PEER.key], "it is told")
            until(lambda: plane.pids()[1] != hanging and plane.statuses()[1], "another worker speaks")
            assert not Path(f"/proc/{hanging}").exists()
        assert plane.pids()[0] == other
        assert "has said nothing" not in plane.check()[PEER.key]
    finally:
        plane.end()


def test_no_worker_is_blamed_for_what_the_daemon_has_slept_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped, or whose machine was, heard nobody meanwhile; its clock may tell of hours."""
    monkeypatch.setattr(dataplane, "_LOOK", 0.2)
    ticks = itertools.count()
    monkeypatch.setattr(dataplane, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 3600.0 * next(ticks)))
    plane = UserspaceDataPlane(udp_kind(), tmp_path, 1)
    try:
        plane.put(Lease(PEER, LeaseAttributes(public_ip=IPv4Address("192.0.2.2"))))
        until(lambda: plane.statuses()[0], "the worker speaks")
        before, said = plane.pids(), plane.statuses()[0]
        until(lambda: plane.statuses()[0] is not said, "it goes on speaking")
        assert "has said nothing" not in plane.check()[PEER.key]
        assert plane.pids() == before
    finally:
        plane.end()


def test_a_worker_of_an_earlier_daemon_that_hangs_is_ended_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = UserspaceDataPlane(udp_kind(), tmp_path, 1)
    until(lambda: before.statuses()[0], "the worker speaks")
    (pid,) = before.pids()
    before.stop()
    monkeypatch.setattr(dataplane, "_ANSWER_TIMEOUT", 0.2)
    with stopped(pid):
        plane = UserspaceDataPlane(udp_kind(), tmp_path, 1)
        try:
            until(lambda: plane.statuses()[0], "another worker speaks")
            assert plane.pids() != [pid]
        finally:
            monkeypatch.setattr(dataplane, "_ANSWER_TIMEOUT", 5.0)
            plane.end()
            before.end()


def test_a_worker_that_hangs_does_not_outlive_its_data_plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the device it would still have what packets wait there."""
    plane = UserspaceDataPlane(udp_kind(), tmp_path, 1)
    until(lambda: plane.statuses()[0], "the worker speaks")
    monkeypatch.setattr(dataplane, "_ANSWER_TIMEOUT", 0.2)
    with stopped(plane.pids()[0]):
        plane.end()
        until(lambda: workers() == 0, "it is gone")


@pytest.mark.parametrize("name", ["pyflannel_backends", "json", "runpy", "numpy"])
def test_a_worker_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is root, and where the daemon was started others may write."""
    (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close(); raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    plane = UserspaceDataPlane(udp_kind(), tmp_path, 1)
    try:
        plane.put(Lease(PEER, LeaseAttributes(public_ip=IPv4Address("192.0.2.2"))))
        until(lambda: plane.statuses()[0] or (tmp_path / "imported").exists(), "the worker answers")
        assert not (tmp_path / "imported").exists()
    finally:
        plane.end()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, {}),
        ({"realtime": True}, {}),
        ({"mtu": 1400}, {"mtu": 1400}),
        ({"mtu": 1400, "realtime": True}, {"mtu": 1400}),
        ({"offload": True}, None),
        ({"mtu": 1400, "device": "other"}, None),
    ],
)
def test_a_worker_is_told_what_it_can_take_and_replaced_otherwise(
    values: dict[str, Any], told: dict[str, Any] | None
) -> None:
    there = WorkerConfig(device="flannel0", mtu=1450, own=["10.5.1.0/24"], offload=False)
    wanted = replace(there, **values).to_message()
    assert _to_tune({"config": there.to_message(), "tuned": ["mtu"]}, wanted) == told
    if told:
        assert _to_tune({"config": there.to_message()}, wanted) is None, "an older one takes nothing"
        later = {**there.to_message(), "more": 1}
        assert _to_tune({"config": later, "tuned": ["more", "mtu"]}, wanted) is None, (
            "one of a later release is replaced"
        )
