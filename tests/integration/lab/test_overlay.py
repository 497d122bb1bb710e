"""The lab with real daemons: an overlay comes up, faults are what they say, the command tells success from failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
from tests.integration.lab.traces import inhabited, namespaces_of
from tests.waiting import until

from pyflannel.errors import DaemonError, ExitCode, StoreUnavailableError
from pyflannel.lab import Lab
from pyflannel.lab.servers.etcd import find_etcd
from pyflannel.lab.trial import TrialNetwork, try_out
from pyflannel.store import StoreLocation
from pyflannel_stores.file import FileStore

pytestmark = pytest.mark.root

NETWORK = "10.244.0.0/16"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two nodes that form an overlay, with one container each."""
    with Lab(nodes=2) as lab:
        for node in lab.nodes:
            node.start_daemon(lab.file_store, "vxlan", NETWORK)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
            node.attach_containers()
        yield lab


def test_containers_reach_each_other_through_the_overlay(lab: Lab) -> None:
    one, other = lab.nodes
    with one.capture() as capture:
        matrix = lab.reachability(timeout=10)
    assert matrix.complete
    assert len(matrix.pairs) == 2
    outer = [frame for frame in capture.stop() if frame[12:14] == b"\x08\x00" and frame[23] == 17]
    assert any(frame[36:38] == (8472).to_bytes(2, "big") for frame in outer), "no VXLAN packet on the underlay"
    assert one.network is not None
    assert one.network.mtu == 1450
    assert one.state() == other.state() == "ready"


def test_forwarding_goes_on_without_the_daemon_which_comes_back_with_its_subnet(lab: Lab) -> None:
    one, other = lab.nodes
    before = one.daemon.container_network()
    with other.containers[0].ping(one.containers[0].address(), interval=0.02) as ping:
        ping.wait_replies(3)
        one.daemon.kill()
        assert not one.daemon.running
        assert one.state() == "ended with status -9"
        ping.wait_replies(3)
        one.daemon.start()
        one.daemon.wait_ready(peers=1)
        ping.wait_replies(3)
    assert ping.stop().lost == 0
    assert one.daemon.container_network() == before


def test_a_daemon_is_paused_resumed_stopped_and_restarted(lab: Lab) -> None:
    daemon = lab.nodes[0].daemon
    daemon.pause()
    assert daemon.running
    daemon.resume()
    assert daemon.wait_ready(peers=1)["node_id"] == "n1"
    assert daemon.stop() == 0
    with pytest.raises(DaemonError):
        daemon.status()
    daemon.restart()
    daemon.wait_ready(peers=1)
    with pytest.raises(DaemonError, match="runs already"):
        daemon.start()


def test_a_daemon_that_cannot_start_is_reported_with_its_log() -> None:
    with Lab(nodes=1, containers=0) as lab:
        daemon = lab.nodes[0].start_daemon(lab.file_store, "no-such-backend", NETWORK)
        with pytest.raises(DaemonError, match=r"(?s)n1: the daemon ended with exit status 7.*no-such-backend"):
            daemon.wait_ready()


def test_waiting_for_peers_that_never_come_ends() -> None:
    with Lab(nodes=1, containers=0) as lab:
        daemon = lab.nodes[0].start_daemon(lab.file_store, "vxlan", NETWORK)
        daemon.wait_ready()
        with pytest.raises(DaemonError, match="not ready with 1 peer after"):
            daemon.wait_ready(peers=1, timeout=0.2)


def test_a_trial_of_a_broken_node_reports_it_and_measures_the_rest() -> None:
    with Lab(nodes=3) as lab:
        lab.nodes[2].ip(["link set eth0 down", "link set eth0 name eth9"])
        report = try_out(lab, TrialNetwork(), throughput=None, timeout=15)
    assert not report.ok
    assert {failure.nodes for failure in report.failures} >= {("n3",)}
    assert [bool(node.subnets) for node in report.nodes] == [True, True, False]
    assert len(report.reachability.pairs) == 2
    assert report.reachability.complete
    assert "n3" in report.logs


def test_a_peer_that_cannot_be_used_is_a_failure_with_its_reason() -> None:
    lease = {"PublicIP": "192.0.2.77", "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "nonsense"}}
    with Lab(nodes=1, containers=0) as lab:
        place = StoreLocation("file", path=str(lab.outside(PurePosixPath(StoreLocation.parse(lab.file_store).path))))
        with FileStore(place) as store:
            store.create("10.244.9.0-24", json.dumps(lease), None)
        report = try_out(lab, TrialNetwork(), throughput=None)
    (failure,) = report.failures
    assert "n1 can't use 10.244.9.0/24" in failure.what
    assert "VtepMAC" in failure.what
    assert failure.nodes == ("n1",)


def test_a_cut_cable_shows_as_failed_pairs(lab: Lab) -> None:
    lab.nodes[0].unplug()
    matrix = lab.reachability(timeout=0.6)
    assert len(matrix.failed) == 2
    assert not matrix.complete


@pytest.mark.parametrize("members", [1, 3])
def test_an_etcd_of_its_own(members: int) -> None:
    if find_etcd() is None:
        pytest.skip("etcd is not installed: apt-get install etcd-server")
    with Lab(nodes=1, containers=0) as lab:
        url = lab.start_store("etcd", members)
        hosts = url.removeprefix("etcd://").split(",")
        assert len(hosts) == members
        for host in hosts:
            address, _, port = host.rpartition(":")
            program = f"import socket; socket.create_connection(({address!r}, {port}), 5)"
            lab.nodes[0].run([sys.executable, "-I", "-c", program])


def test_servers_that_do_not_start_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLANNEL_CONSUL", "/bin/false")
    with Lab(nodes=1, containers=0) as lab, pytest.raises(StoreUnavailableError, match="consul"):
        lab.start_store("consul")


def command(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyflannel", "lab", *words],
        capture_output=True, text=True, timeout=120, check=False, **more,
    )  # fmt: skip


def test_the_command_shows_a_working_network(untouched: None) -> None:
    done = command("--nodes", "2", "--routed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "PASSED: 2 nodes on vxlan, 2 of 2 container pairs reached"
    assert "Gbit/s" in done.stdout
    assert "198.51.100.2" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_the_command_answers_in_json() -> None:
    done = command("--nodes", "2", "--json", "--no-throughput", "--backend-option", "VNI=77")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["ok"] is True
    assert document["throughput"] is None
    assert document["network"]["Backend"] == {"Type": "vxlan", "VNI": 77}
    assert len(document["reachability"]) == 2


def test_the_command_shows_a_network_that_changes_its_backend() -> None:
    done = command("--nodes", "2", "--no-throughput", "--change-to", "wireguard")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("changed to wireguard")]
    assert ": 0 of " in line


def test_the_command_fails_when_a_check_fails() -> None:
    done = command("--nodes", "2", "--backend", "wireguard", "--backend-option", "PSKFile=/no/such/file")
    assert done.returncode == ExitCode.CHECK_FAILED
    assert "the end of n1's log:" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("FAILED: 2 nodes on wireguard")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--nodes", "0"], ExitCode.USAGE),
        (["--backend-option", "VNI"], ExitCode.CONFIG),
        (["--store", "etcd://192.0.2.9"], ExitCode.CONFIG),
        (["--nodes", "1", "--routed", "2"], ExitCode.CONFIG),
        (["--network", "nope"], ExitCode.CONFIG),
        (["--ipv6-network", "10.0.0.0/8"], ExitCode.CONFIG),
        (["--backend-option", "VNI=many"], ExitCode.CONFIG),
        (["--backend", "udp", "--ipv6-network", "fd00:5::/48"], ExitCode.CONFIG),
        (["--backend", "nope"], ExitCode.PLUGIN),
        (["--change-to", "nope"], ExitCode.PLUGIN),
    ],
)
def test_the_command_refuses_what_makes_no_lab(words: list[str], code: ExitCode) -> None:
    assert command(*words).returncode == code


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_kept_lab_ends_with_its_command(number: signal.Signals, code: int, untouched: None) -> None:
    words = [sys.executable, "-m", "pyflannel", "lab", "--nodes", "2", "--keep", "--no-throughput"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C ends it" in line:
                break
        (hint,) = [line.partition(": ")[2].split() for line in lines if line.startswith("  n2: ")]
        holder = int(hint[1].removeprefix("--target="))
        inside = subprocess.run([*hint[:-1], "ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        assert "flannel.1" in inside
        namespaces = namespaces_of(holder)
        assert len(inhabited(namespaces)) >= 3
        process.send_signal(number)
        assert process.wait(30) == code
        until(lambda: not inhabited(namespaces - namespaces_of(os.getpid())), "all processes of the lab gone")


def test_ctrl_c_while_the_lab_comes_up_leaves_nothing(untouched: None) -> None:
    words = [sys.executable, "-m", "pyflannel", "lab", "--nodes", "3"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert "namespaces" in process.stdout.readline()
        (holder,) = (int(pid) for pid in _children(process.pid) if _words(int(pid))[0] == "unshare")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    until(lambda: not os.path.exists(f"/proc/{holder}"), "the holder gone")


def _children(pid: int) -> list[str]:
    return subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    ).stdout.split()


def _words(pid: int) -> list[str]:
    with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
        return file.read().split("\0")
