"""An action of a backend, from the socket to kernel and store: wireguard's rotate-key on the kernel's twin."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.unit.daemon.running import Running, settings_in, twin

from pyflannel import cli
from pyflannel.daemon.control import ActionFailed, ControlServer, request
from pyflannel.errors import DaemonError, ExitCode, StoreUnavailableError
from pyflannel.kernel.model import Kind, WireguardDevice, WireguardPeer
from pyflannel.kernel.port import Write
from pyflannel.kernel.twin import TwinPort
from pyflannel.network.lease import Lease
from pyflannel.planning.guard import exclusive
from pyflannel.show.status import State
from pyflannel.store import Record
from pyflannel_backends.wireguard import keys
from pyflannel_stores.file import FileStore

NETWORK = {"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard", "Implementation": "kernel"}}
PEER_KEY = "PxAJ+mM7QYmDSmq0Qd8DmsGVmJBjH5Yd0SNZUEO9Ul0="


@dataclass
class Trace:
    """What kernel and store were asked for, in this order."""

    events: list[str] = field(default_factory=list)
    refuse: bool = False
    hold: threading.Event = field(default_factory=lambda: _set_event())
    """While it is not set, updates don't come back."""


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


class TracedStore(FileStore):
    """A file store that notes updates, and fails when it is told to."""

    trace = Trace()

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        self.trace.events.append(f"lease {json.loads(value)['BackendData']['PublicKey']}")
        self.trace.hold.wait()
        if self.trace.refuse:
            raise StoreUnavailableError("the store is away")
        return super().update(record, value, ttl)


class TracedTwin(TwinPort):
    """A twin that notes the device's keys, and fails when it is told to."""

    trace = Trace()
    broken = False

    def apply(self, writes: Any) -> Any:
        for write in writes:
            if isinstance(write.new, WireguardDevice) and write.new.private_key is not None:
                if self.broken:
                    self.fail_next(write.key, 5)
                self.trace.events.append(f"kernel {keys.KeyPair.of(write.new.private_key.reveal()).public_key}")
        return super().apply(writes)


class Daemon:
    """A daemon on a twin and a file store, with the socket that actions come by."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WIREGUARD_KEY_FILE", raising=False)
        self.path = path
        self.trace = Trace()
        settings = settings_in(path)
        self.store = self.open(settings.store)
        if self.store.read_config() is None:
            self.store.write_config(json.dumps(NETWORK), None)
        made = twin(TracedTwin)
        assert isinstance(made, TracedTwin)
        self.twin = made
        self.twin.trace = self.trace
        self.running = Running(path, lambda: self.open(settings.store), self.twin, settings=settings)
        self.control = ControlServer(settings.run_dir, self.running.loop.actions.ask)
        self.running.ready()
        self.trace.events.clear()

    def open(self, location: Any) -> TracedStore:
        store = TracedStore(location)
        store.trace = self.trace
        return store

    def until(self, condition: Callable[[], bool]) -> None:
        self.running.until(condition)

    @property
    def is_ready(self) -> bool:
        return self.running.state is State.READY

    def rotate(self) -> str:
        return request(self.path / "run", "wireguard", "rotate-key")

    def keys(self) -> set[str]:
        """The node's public key, as file, kernel and lease have it."""
        in_file = keys.load(self.path / "state" / keys.FILE_NAME)
        (device,) = [item for item in self.twin.wireguard.values() if isinstance(item, WireguardDevice)]
        (record,) = self.store.snapshot().leases
        data: Any = Lease.from_record(record.key, record.value).attributes.backend_data
        assert in_file is not None
        assert device.private_key is not None
        return {in_file.public_key, keys.KeyPair.of(device.private_key.reveal()).public_key, data["PublicKey"]}

    def close(self) -> None:
        self.running.close()
        self.control.close()
        self.store.close()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, monkeypatch)
    try:
        yield daemon
    finally:
        daemon.close()


def test_a_new_key_is_in_the_kernel_before_it_is_in_the_lease(daemon: Daemon) -> None:
    (old,) = daemon.keys()
    said = daemon.rotate()
    (new,) = daemon.keys()
    assert new != old
    assert new in said
    assert daemon.trace.events == [f"kernel {new}", f"lease {new}"]
    assert daemon.is_ready
    assert daemon.running.status().repaired == 0


def test_a_store_that_refuses_brings_the_old_key_back(daemon: Daemon) -> None:
    (old,) = daemon.keys()
    daemon.trace.refuse = True
    with pytest.raises(ActionFailed, match="all is as before: the store is away") as caught:
        daemon.rotate()
    assert caught.value.exit_code is ExitCode.DAEMON
    daemon.trace.refuse = False
    daemon.until(lambda: daemon.keys() == {old} and daemon.is_ready)
    assert daemon.trace.events[-1] == f"kernel {old}"


def test_a_kernel_that_refuses_keeps_the_lease_as_it_is(daemon: Daemon) -> None:
    (old,) = daemon.keys()
    daemon.twin.broken = True
    with pytest.raises(ActionFailed, match="the kernel does not take it"):
        daemon.rotate()
    daemon.twin.broken = False
    daemon.running.loop.tracker.request_resync()
    daemon.until(lambda: daemon.keys() == {old} and daemon.is_ready)
    assert not [event for event in daemon.trace.events if event.startswith("lease") and old not in event]


@pytest.mark.parametrize(
    ("backend", "action", "reason"),
    [("vxlan", "rotate-key", "not 'vxlan'"), ("wireguard", "explode", "no action 'explode'")],
)
def test_what_can_t_be_asked_for(daemon: Daemon, backend: str, action: str, reason: str) -> None:
    with pytest.raises(ActionFailed, match=reason):
        request(daemon.path / "run", backend, action)
    assert not daemon.trace.events


def test_the_command_line_has_the_actions_of_backends(daemon: Daemon) -> None:
    run = CliRunner().invoke
    listed = run(cli.pyflannel, ["wireguard", "--help"])
    assert "rotate-key" in listed.output
    done = run(cli.pyflannel, ["wireguard", "rotate-key", "--run-dir", str(daemon.path / "run")])
    assert done.exit_code == 0
    (new,) = daemon.keys()
    assert new in done.output
    assert "No such command" in run(cli.pyflannel, ["vxlan", "--help"]).output, "a backend without actions is none"


def test_without_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match="no daemon answers"):
        request(tmp_path, "wireguard", "rotate-key")


def test_a_start_after_a_crash_in_the_middle_goes_on_with_the_new_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced first: killed right then, kernel and lease have the old key yet."""
    first = Daemon(tmp_path, monkeypatch)
    (old,) = first.keys()
    twin = dict(first.twin.wireguard)
    first.close()
    new = keys.KeyPair.new()
    keys.replace(tmp_path / "state" / keys.FILE_NAME, new)
    (tmp_path / "run").rename(tmp_path / "old-run")
    keys._identities.clear()
    second = Daemon(tmp_path, monkeypatch)
    try:
        assert second.keys() == {new.public_key} != {old}
        assert twin.keys() <= second.twin.wireguard.keys()
    finally:
        second.close()


def test_a_peer_with_a_new_key_takes_over_its_subnet(daemon: Daemon) -> None:
    other = {"PublicIP": "192.0.2.2", "BackendType": "wireguard", "BackendData": {"PublicKey": PEER_KEY}}
    record = daemon.store.create("10.5.200.0-24", json.dumps(other), 60.0)

    def peers() -> list[WireguardPeer]:
        return [item for item in daemon.twin.wireguard.values() if isinstance(item, WireguardPeer)]

    daemon.until(lambda: [peer.public_key for peer in peers()] == [PEER_KEY])
    daemon.twin.writes.clear()
    successor = keys.KeyPair.new().public_key
    FileStore.update(daemon.store, record, json.dumps({**other, "BackendData": {"PublicKey": successor}}), 60.0)
    daemon.until(lambda: [peer.public_key for peer in peers()] == [successor])
    writes: list[Write] = [write for write in daemon.twin.writes if write.key[0] is Kind.WIREGUARD_PEER]
    assert len(writes) == 2, "one turn makes the new one and unmakes the old one"
    assert peers()[0].allowed_ips == (ip_network("10.5.200.0/24"),)


def test_an_action_that_is_pending_is_answered_when_the_daemon_stops(daemon: Daemon) -> None:
    daemon.trace.hold.clear()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(daemon.rotate)
        daemon.until(lambda: any(event.startswith("lease") for event in daemon.trace.events))
        daemon.running.loop.stop()
        with pytest.raises(ActionFailed, match="the daemon is stopping"):
            asked.result()
        with pytest.raises(ActionFailed, match="the daemon is stopping"):
            daemon.rotate()
    daemon.trace.hold.set()


def test_an_action_does_not_run_beside_publish(daemon: Daemon) -> None:
    assert daemon.running.loop.joined is not None
    (old,) = daemon.keys()
    with (
        exclusive(daemon.running.loop.joined.backend, "publish"),
        pytest.raises(ActionFailed, match="has not come back from publish yet; try again"),
    ):
        daemon.rotate()
    assert daemon.keys() == {old}
    daemon.rotate()


def test_a_backend_whose_actions_are_nonsense_is_named(daemon: Daemon) -> None:
    assert daemon.running.loop.joined is not None
    backend = type(daemon.running.loop.joined.backend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "actions", 7)
        with pytest.raises(ActionFailed, match="backend 'wireguard' failed in actions: TypeError"):
            daemon.rotate()
    daemon.rotate()
