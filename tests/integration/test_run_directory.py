"""A daemon and its run directory: whatever others do there, it can be asked again, and it stays one of a kind."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.integration.asking import until
from tests.storing import write_document

from pyflannel.daemon.control import ActionFailed, request
from pyflannel.errors import ExitCode
from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import Daemon

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=1, containers=0) as lab:
        write_document(lab, "vxlan")
        yield lab


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.nodes[0].start_daemon(lab.file_store, "vxlan")
    try:
        daemon.wait_ready()
        yield daemon
        print(daemon.log(40))
    finally:
        daemon.kill()
        clear(directory(daemon))


def directory(daemon: Daemon) -> Path:
    return daemon.node.sandbox.outside(daemon.run_directory)


def clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def without_sockets(path: Path) -> None:
    (path / "status.sock").unlink()
    (path / "control.sock").unlink()


def with_dead_sockets(path: Path) -> None:
    """As of a daemon that was killed: nobody listens."""
    without_sockets(path)
    for name in ("status.sock", "control.sock"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path / name))


def as_a_file(path: Path) -> None:
    clear(path)
    path.write_text("in the way")


def another(daemon: Daemon, name: str) -> Daemon:
    """A second one with the same directories, and a log of its own."""
    node = daemon.node
    assert isinstance(node, Node)
    second = Daemon(node, daemon.options)
    second.log_file = node.directory / f"{name}.log"
    second.start()
    return second


@pytest.mark.parametrize("harm", [clear, without_sockets, with_dead_sockets], ids=lambda harm: harm.__name__)
def test_it_answers_again(daemon: Daemon, harm: Callable[[Path], None]) -> None:
    path = directory(daemon)
    harm(path)
    daemon.wait_status(lambda status: bool(status["ready"]), "asked again", 60)
    until(lambda: "was restored" in daemon.log(), daemon.log)
    with pytest.raises(ActionFailed, match="no action 'turn'"):
        request(path, "vxlan", "turn")
    second = another(daemon, "second")
    until(lambda: not second.running, second.log)
    assert second.process.returncode == ExitCode.DAEMON
    assert daemon.stop() == 0
    assert not list(path.glob("*.sock")), "it takes along what it has made"


def test_what_is_in_the_way_is_named_and_waited_for(daemon: Daemon) -> None:
    path = directory(daemon)
    as_a_file(path)
    until(lambda: "this daemon can't be asked for its status" in daemon.log(), daemon.log)
    path.unlink()
    daemon.wait_status(lambda status: bool(status["ready"]), "asked again", 60)


def test_it_ends_as_ever_although_the_directory_is_none_any_more(daemon: Daemon) -> None:
    as_a_file(directory(daemon))
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log()
    assert directory(daemon).read_text() == "in the way"


def test_it_gives_way_to_another_one_that_has_begun_where_it_was(daemon: Daemon) -> None:
    """Two daemons of one node would write the same kernel."""
    daemon.pause()
    clear(directory(daemon))
    second = another(daemon, "second")
    second.wait_ready()
    daemon.resume()
    until(lambda: not daemon.running, daemon.log)
    assert daemon.process.returncode == ExitCode.DAEMON
    assert f"already holds {daemon.run_directory}" in daemon.log()
    assert second.status()["ready"], "its sockets were left alone"
    assert second.stop() == 0


def test_nobody_else_may_write_to_what_it_creates_whatever_the_umask(lab: Lab) -> None:
    node = lab.nodes[0]
    above = node.directory / "above"
    wrapper = ("sh", "-c", 'umask 0; exec "$0" "$@"')
    daemon = node.start_daemon(
        lab.file_store, "vxlan", arguments=["--state-dir", str(above / "middle" / "state")], wrapper=wrapper
    )
    try:
        daemon.wait_ready()
        top = node.sandbox.outside(above)
        modes = {path: path.stat().st_mode for path in (top, *top.rglob("*"))}
        assert top / "middle" / "state" / "network.json" in modes
        assert [path for path, mode in modes.items() if mode & 0o022] == []
    finally:
        daemon.kill()
        clear(directory(daemon))


def test_many_that_ask_for_nothing_keep_nobody_out(daemon: Daemon) -> None:
    path = directory(daemon)
    with ExitStack() as stack:
        folder = os.open(path, os.O_PATH)
        stack.callback(os.close, folder)
        for name in ("control.sock", "status.sock"):
            for _ in range(300):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(f"/proc/self/fd/{folder}/{name}")
                if name == "control.sock":
                    client.sendall(b'{"backend": "vx')
        assert daemon.status()["ready"]
        with pytest.raises(ActionFailed, match="no action 'turn'"):
            request(path, "vxlan", "turn")
