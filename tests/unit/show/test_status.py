"""The status document and the socket that hands it out."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pyflannel.errors import DaemonError
from pyflannel.show.status import (
    BackendStatus,
    FailureStatus,
    LeaseStatus,
    ObjectCounts,
    ObjectsStatus,
    ObjectStatus,
    PeerState,
    PeerStatus,
    State,
    Status,
    StatusServer,
    StoreStatus,
    UnderlayStatus,
    query,
)

STARTED = "2024-01-01T00:00:00Z"


def document(state: State = State.READY, peers: int = 1) -> Status:
    return Status(
        version="1",
        pid=os.getpid(),
        started=STARTED,
        state=state,
        message="",
        node_id="n1",
        backend=BackendStatus("vxlan", "pyflannel", "1"),
        store=StoreStatus("file:///x", True),
        network="10.1.0.0/16",
        underlay=UnderlayStatus("eth0", 1500, ipv4="192.0.2.1", public_ipv4="192.0.2.1"),
        lease=LeaseStatus("10.1.1.0-24", ("10.1.1.0/24",), 3600.0, False, STARTED),
        peers=tuple(
            PeerStatus(f"10.2.{number}.0-24", (f"10.2.{number}.0/24",), PeerState.SKIPPED, "it is its MAC")
            for number in range(peers)
        ),
        objects=ObjectsStatus(
            {"route": ObjectCounts(3, 1, 2)}, (ObjectStatus("route", "route x", "failed", STARTED, "no"),)
        ),
        last_error=FailureStatus(STARTED, "it rained"),
        repaired=7,
        data_plane={"packets": 5},
    )


def test_the_document_is_plain_json() -> None:
    read = json.loads(document().to_json())
    assert read["state"] == "ready"
    assert read["ready"] is True
    assert read["ipv6_network"] is None
    assert read["lease"] == {
        "key": "10.1.1.0-24",
        "subnets": ["10.1.1.0/24"],
        "expires_in": 3600.0,
        "reserved": False,
        "renewed": STARTED,
    }
    assert read["peers"][0]["state"] == "skipped"
    assert read["objects"]["counts"] == {"route": {"done": 3, "pending": 1, "failed": 2}}
    assert read["objects"]["list"][0]["error"] == "no"
    assert read["last_error"] == {"when": STARTED, "what": "it rained"}
    assert read["data_plane"] == {"packets": 5}


@pytest.mark.parametrize("state", State)
def test_ready_is_what_containers_can_use(state: State) -> None:
    assert document(state).ready is (state in (State.READY, State.DEGRADED))


def test_what_is_no_part_of_a_document_is_refused() -> None:
    odd = replace(document(), data_plane={"x": Path("/")})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="Path has no place"):
        odd.to_json()


def test_who_connects_gets_the_current_document(tmp_path: Path) -> None:
    current = document()
    server = StatusServer(tmp_path, lambda: current)
    try:
        assert query(tmp_path) == json.loads(current.to_json())
        current = document(State.CONFLICT)
        assert query(tmp_path)["state"] == "conflict"
    finally:
        server.close()


def test_the_document_is_made_only_when_it_is_asked_for(tmp_path: Path) -> None:
    made = []

    def make() -> Status:
        made.append(threading.current_thread().name)
        return document()

    server = StatusServer(tmp_path, make)
    try:
        assert made == []
        query(tmp_path)
        assert made == ["status"]
    finally:
        server.close()


def test_a_large_document_arrives_whole_for_many_at_once(tmp_path: Path) -> None:
    server = StatusServer(tmp_path, lambda: document(peers=5000))
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: query(tmp_path, 30), range(8)))
        assert [len(answer["peers"]) for answer in answers] == [5000] * 8
    finally:
        server.close()


def test_only_the_owner_may_ask(tmp_path: Path) -> None:
    server = StatusServer(tmp_path, document)
    try:
        assert stat.S_IMODE((tmp_path / "status.sock").stat().st_mode) == 0o600
    finally:
        server.close()


def test_a_deep_run_directory_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    server = StatusServer(deep, document)
    try:
        assert query(deep)["node_id"] == "n1"
    finally:
        server.close()


def test_a_client_that_leaves_harms_nobody(tmp_path: Path) -> None:
    server = StatusServer(tmp_path, lambda: document(peers=5000))
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "status.sock"))
        assert query(tmp_path, 30)["state"] == "ready"
    finally:
        server.close()


def test_a_document_that_cant_be_made_is_said_and_the_next_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn = iter([RuntimeError("torn")])

    def make() -> Status:
        for error in torn:
            raise error
        return document()

    server = StatusServer(tmp_path, make)
    try:
        with pytest.raises(DaemonError, match="can't be made: RuntimeError: torn"):
            query(tmp_path)
        assert "torn" in caplog.text
        assert query(tmp_path)["state"] == "ready"
    finally:
        server.close()


def test_the_socket_of_a_dead_daemon_is_told_and_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "status.sock"))
    with pytest.raises(DaemonError, match="no daemon answers"):
        query(tmp_path)
    server = StatusServer(tmp_path, document)
    try:
        assert query(tmp_path)["state"] == "ready"
    finally:
        server.close()
    assert not (tmp_path / "status.sock").exists()
    server.close()


@pytest.mark.parametrize("name", ["", "missing"])
def test_no_daemon_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(DaemonError, match=r"no daemon answers at .*status\.sock; is pyflannel running"):
        query(tmp_path / name)


def test_a_daemon_that_hangs_is_said(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "status.sock"))
        listener.listen()
        with pytest.raises(DaemonError, match="does not answer: timed out"):
            query(tmp_path, timeout=0.05)


def test_a_daemon_that_dies_in_mid_sentence_is_said(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "status.sock"))
        listener.listen()

        def half() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b'{"state": "rea')

        thread = threading.Thread(target=half)
        thread.start()
        with pytest.raises(DaemonError, match="went away before it had answered"):
            query(tmp_path)
        thread.join()


def test_a_run_directory_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match="No such file or directory; choose another --run-dir"):
        StatusServer(tmp_path / "missing", document)
