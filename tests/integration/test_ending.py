"""How the daemon ends: on SIGTERM, with exit code 0, whatever it is in the middle of; and what it survives."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.integration.asking import get, until
from tests.integration.planted import BACKEND, STORE, plant, put_peer, switched_on
from tests.storing import write_document

from pyflannel.daemon.control import ActionFailed, request
from pyflannel.errors import ExitCode, PyflannelError
from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

NETWORK = "10.244.0.0/16"

LIMIT = 60.0
"""Seconds for an end; the daemon's own limit is far shorter, and what it does not keep the kill after this tells."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(nodes=1, containers=0) as lab:
        yield lab
        print(lab.nodes[0].log_tail(60))


@pytest.fixture
def node(lab: Lab) -> Node:
    return lab.nodes[0]


def start(node: Node, *arguments: str, store: str | None = None, backend: str = "planted") -> Any:
    write_document(node.lab, backend)
    return node.start_daemon(store or node.lab.file_store, backend, None, arguments)


def test_before_there_is_an_underlay(node: Node) -> None:
    node.ip(["link set eth0 down"])
    daemon = start(node, backend="vxlan")
    daemon.wait_status(lambda status: status["state"] == "waiting" and status["underlay"] is None, "without underlay")
    assert daemon.stop(LIMIT) == 0
    assert "stopping; forwarding goes on" in daemon.log()


def test_while_nft_hangs(node: Node) -> None:
    """Nothing but the firewall's rules waits for it, and it ends with the daemon."""
    place = node.directory / "hanging"
    outside = node.lab.outside(place)
    outside.mkdir()
    (outside / "nft").write_text(f"#!/bin/sh\necho $$ >>{place}/pids\nsleep 3600\n")
    (outside / "nft").chmod(0o755)
    write_document(node.lab, "vxlan")
    daemon = node.start_daemon(
        node.lab.file_store, "vxlan", wrapper=("env", f"PATH={place}:{os.environ.get('PATH', os.defpath)}")
    )
    until((outside / "pids").exists, daemon.log)
    daemon.wait_ready()
    assert daemon.stop(LIMIT) == 0
    assert "left behind" not in daemon.log()


@pytest.mark.parametrize(
    ("call", "left", "bring"),
    [
        ("plan_peer", "the loop (backend 'planted' has not come back from planning)", put_peer),
        ("publish", "backend 'planted' in publish has not come back", None),
        ("stop", "the loop (backend 'planted' has not come back from stop of its data plane)", lambda node: None),
        ("thread", "the thread 'of a plugin' did not end in time", lambda node: None),
    ],
)
@pytest.mark.parametrize("signals", [1, 20])
def test_with_a_backend_that_hangs(
    node: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    left: str,
    bring: Callable[[Node], None] | None,
    signals: int,
) -> None:
    """A second signal, or a twentieth, while the first one is being heeded changes nothing."""
    plant(tmp_path, monkeypatch, backend=BACKEND)
    with switched_on(tmp_path, call) as reached:
        daemon = start(node)
        if bring is not None:
            daemon.wait_ready()
            bring(node)
        if call != "stop":
            until(reached, daemon.log)
        for _ in range(signals - 1):
            daemon.process.signal(signal.SIGTERM)
        assert daemon.stop(LIMIT) == 0, daemon.log()
    assert left in daemon.log()
    assert "left behind" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_with_a_store_that_hangs(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, backend=BACKEND, store=STORE)
    with switched_on(tmp_path, "renew") as reached:
        daemon = start(node, "--lease-ttl", "3", store=node.lab.file_store.replace("file:", "planted:"))
        until(reached, daemon.log)
        assert daemon.stop(LIMIT) == 0
    assert "store 'planted' in renew has not come back and is left behind" in daemon.log()
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("call", ["import", "constructor"])
def test_with_a_store_that_hangs_before_anything_runs(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    plant(tmp_path, monkeypatch, store=STORE)
    with switched_on(tmp_path, call) as reached:
        daemon = start(node, store=node.lab.file_store.replace("file:", "planted:"), backend="vxlan")
        until(reached, daemon.log)
        assert daemon.stop(LIMIT) == 0
    assert "the start with store 'planted' did not end in time and is left behind" in daemon.log()


def test_with_a_store_that_hangs_when_it_is_closed(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, store=STORE)
    with switched_on(tmp_path, "close") as reached:
        daemon = start(node, store=node.lab.file_store.replace("file:", "planted:"), backend="vxlan")
        daemon.wait_ready()
        assert daemon.stop(LIMIT) == 0
        assert reached()


def test_with_an_action_that_hangs(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, backend=BACKEND)
    daemon = start(node)
    daemon.wait_ready()
    with switched_on(tmp_path, "act") as reached, ThreadPoolExecutor() as pool:
        asked = pool.submit(request, node.lab.outside(daemon.run_directory), "planted", "turn")
        until(reached, daemon.log)
        assert daemon.stop(LIMIT) == 0
        with pytest.raises(ActionFailed, match="turn may be half done: the daemon is stopping"):
            asked.result()
    assert "stopped before the end of: turn" in daemon.log()


def test_with_an_action_pending(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, backend=BACKEND, store=STORE)
    daemon = start(node, store=node.lab.file_store.replace("file:", "planted:"))
    daemon.wait_ready()
    with switched_on(tmp_path, "update") as reached, ThreadPoolExecutor() as pool:
        asked = pool.submit(request, node.lab.outside(daemon.run_directory), "planted", "turn")
        until(reached, daemon.log)
        assert daemon.stop(LIMIT) == 0
        with pytest.raises(ActionFailed, match="turn is not done: the daemon is stopping"):
            asked.result()
    assert "stopped before the end of: turn" in daemon.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_again_and_again_until_it_has_ended(node: Node, number: signal.Signals) -> None:
    daemon = start(node, backend="vxlan")
    daemon.wait_ready()
    daemon.process.signal(signal.SIGTERM)

    def over() -> bool:
        daemon.process.signal(number)
        return not daemon.running

    until(over, daemon.log)
    assert daemon.process.returncode == 0
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_that_another_thread_gets(node: Node, number: signal.Signals) -> None:
    """The kernel picks the thread: not the main one, for example, while that has not got round to an earlier signal."""
    daemon = start(node, backend="vxlan")
    daemon.wait_ready()
    pid = daemon.process.pid
    threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    other = next(thread for thread in threads if thread != pid)
    assert ctypes.CDLL(None, use_errno=True).tgkill(pid, other, number) == 0
    if number == signal.SIGTERM:
        assert daemon.process.wait(LIMIT) == 0
    else:
        until(lambda: "settings" in daemon.log().partition("ready")[2], daemon.log)


SERVERS = ("status", "control", "health")


def test_a_lack_of_descriptors_ends_no_server(node: Node) -> None:
    daemon = start(node, "--healthz-ip", "127.0.0.1", "--healthz-port", "8401", backend="vxlan")
    daemon.wait_ready()
    pid, directory = daemon.process.pid, node.lab.outside(daemon.run_directory)
    assert get(node, "/livez")[0] == 200
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))  # 0 to 2 are open, so it gets no further one
    with ThreadPoolExecutor() as pool:
        try:
            asked = [
                pool.submit(daemon.status),
                pool.submit(request, directory, "vxlan", "turn"),
                pool.submit(get, node, "/livez"),
            ]
            for name in SERVERS:
                until(lambda: f"{name} can't take a connection: Too many open files" in daemon.log(), daemon.log)  # noqa: B023
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        status, action, health = asked
        assert status.result()["state"] in ("ready", "degraded", "waiting"), "who waited is let in"
        assert isinstance(action.exception(), ActionFailed)
        assert health.result()[0] == 200
    until(lambda: daemon.status()["state"] == "ready", daemon.log)
    with pytest.raises(PyflannelError, match="no action 'turn'"):
        request(directory, "vxlan", "turn")
    assert get(node, "/readyz")[0] == 200
    assert daemon.stop(LIMIT) == 0


def test_too_few_descriptors_to_start_with_are_named(node: Node) -> None:
    daemon = node.start_daemon(node.lab.file_store, "vxlan", NETWORK, wrapper=("prlimit", "--nofile=8:8"))
    until(lambda: not daemon.running, daemon.log)
    assert daemon.process.returncode == ExitCode.KERNEL, daemon.log()
    assert "Too many open files" in daemon.log()
    assert "raise LimitNOFILE=" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_a_margin_close_to_the_lease_s_life_does_not_renew_all_the_time(node: Node) -> None:
    daemon = start(node, "--lease-ttl", "61", "--subnet-lease-renew-margin", "1", backend="vxlan")
    before = daemon.wait_ready()["lease"]["renewed"]
    put_peer(node, BackendType="vxlan", BackendData={"VtepMAC": "02:00:00:00:00:77", "VNI": 1})
    status = daemon.wait_ready(peers=1)
    assert status["lease"]["renewed"] == before
    assert daemon.stop(LIMIT) == 0
