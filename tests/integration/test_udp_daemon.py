"""The udp backend under the real daemon, in a lab: whichever process dies, packets go on; what is dropped is told.

One lab with three nodes serves all tests of this module; each leaves it as it found it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.integration.asking import PATIENCE, until, workers
from tests.integration.backends.udp import traffic
from tests.integration.overlay import overlay

from pyflannel.lab import Container, Lab, Machine, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.warm import Forked

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with overlay("udp") as lab:
        yield lab


def counters(node: Node) -> Mapping[str, int]:
    found: Mapping[str, int] = node.daemon.status()["data_plane"]
    return found


def device_bytes(node: Node) -> int:
    """What the kernel counts on the TUN device, at once; the worker tells its counters once a second."""
    (link,) = json.loads(node.run(["ip", "-j", "-s", "link", "show", "flannel0"]).stdout)
    return int(link["stats64"]["rx"]["bytes"] + link["stats64"]["tx"]["bytes"])


def lease_file(node: Node) -> Path:
    key = node.daemon.status()["lease"]["key"]
    return node.lab.outside(node.directory).parent / "store" / "subnets" / f"{key}.json"


class Transfer:
    """One TCP connection that carries ``size`` bytes; ``finish`` checks each of them."""

    def __init__(self, source: Container, target: Container, size: int) -> None:
        self.size = size
        script = [sys.executable, str(traffic.__file__)]
        self._sink = target.start([*script, "sink", "5001"], stdout=subprocess.PIPE)
        assert self._answer(self._sink.proxy) == "listening"
        words = [*script, "source", target.address(), "5001", str(size)]
        self._source = source.start(words, stdout=subprocess.PIPE)

    @staticmethod
    def _answer(process: subprocess.Popen[str] | Forked) -> Any:
        assert process.stdout is not None
        return json.loads(process.stdout.readline())

    @property
    def running(self) -> bool:
        return self._source.running

    def finish(self) -> None:
        with self._sink.proxy, self._source.proxy:
            self._answer(self._source.proxy)
            assert self._answer(self._sink.proxy) == [self.size, traffic.digest(self.size)]


def test_every_container_reaches_every_other(lab: Lab) -> None:
    assert lab.reachability().complete
    for node in lab.nodes:
        assert "FLANNEL_MTU=1472\n" in lab.outside(node.subnet_file).read_text()
        assert len(workers(node, "udp")) == 1


def test_kill_9_of_the_worker_under_load(lab: Lab) -> None:
    transfer = Transfer(lab.containers[0], lab.containers[1], 600 * MEBIBYTE)
    for node in lab.nodes[:2]:
        carried = device_bytes(node)
        until(lambda node=node, carried=carried: device_bytes(node) > carried + MEBIBYTE)  # type: ignore[misc]
        (worker,) = workers(node, "udp")
        os.kill(worker, signal.SIGKILL)
        assert transfer.running
        until(lambda node=node, worker=worker: len(workers(node, "udp") - {worker}) == 1)  # type: ignore[misc]
    transfer.finish()
    until(lambda: lab.reachability().complete)


def test_kill_9_of_the_daemon_under_load_loses_nothing(lab: Lab) -> None:
    node = lab.nodes[0]
    before = workers(node, "udp")
    transfer = Transfer(lab.containers[0], lab.containers[1], 400 * MEBIBYTE)
    with lab.containers[0].ping(lab.containers[2].address()) as ping:
        ping.wait_replies(3)
        node.daemon.kill()
        ping.wait_replies(3)
        assert workers(node, "udp") == before
        node.daemon.start()
        node.daemon.wait_ready(peers=2)
        ping.wait_replies(3)
        loss = ping.stop()
    transfer.finish()
    assert loss.lost == 0
    assert workers(node, "udp") == before, "the restarted daemon took it over"
    until(lambda: counters(node).get("sent_bytes", 0) > transfer.size, "the counters of the worker's whole life")


def test_a_restart_takes_the_worker_over_with_the_table_of_now(lab: Lab) -> None:
    node, _, gone = lab.nodes
    before, file = workers(node, "udp"), lease_file(gone)
    lease = file.read_bytes()
    gone.daemon.stop()
    node.daemon.stop()
    file.unlink()
    node.daemon.start()
    node.daemon.wait_ready(peers=1)
    until(lambda: not lab.reachability(lab.containers[::2], timeout=0.3).of(4)["n1-c1", "n3-c1"])
    file.write_bytes(lease)
    gone.daemon.start()
    for each in (node, gone):
        each.daemon.wait_ready(peers=2)
    assert workers(node, "udp") == before
    until(lambda: lab.reachability().complete)


def test_a_deleted_device_comes_back(lab: Lab) -> None:
    node = lab.nodes[0]
    before = workers(node, "udp")
    node.run(["ip", "link", "del", "flannel0"])
    until(lambda: node.daemon.status()["repaired"] > 0)
    until(lambda: lab.reachability().complete)
    assert workers(node, "udp") == before


def test_a_peer_that_leaves_and_returns(lab: Lab) -> None:
    node, _, other = lab.nodes
    file = lease_file(other)
    lease = file.read_bytes()
    other.daemon.stop()
    file.unlink()
    node.daemon.wait_status(lambda status: len(status["peers"]) == 1, "left by the peer")
    refused = counters(node).get("drop_no_route", 0)
    said = lab.containers[0].run(["ping", "-c", "1", "-W", "5", lab.containers[2].address()], check=False).stdout
    assert "Destination Host Unreachable" in said
    until(lambda: counters(node)["drop_no_route"] > refused)
    file.write_bytes(lease)
    other.daemon.start()
    for each in lab.nodes:
        each.daemon.wait_ready(peers=2)
    until(lambda: lab.reachability().complete)


def test_a_lease_without_a_type_as_flanneld_writes_it_is_used(lab: Lab) -> None:
    node, _, other = lab.nodes
    file = lease_file(other)
    other.daemon.stop()
    file.unlink()
    node.daemon.wait_status(lambda status: len(status["peers"]) == 1, "left by the peer")
    file.write_text(json.dumps({"PublicIP": str(other.ipv4.ip), "PublicIPv6": None}))
    node.daemon.wait_ready(peers=2)
    until(lambda: lab.reachability(lab.containers[::2]).complete)
    other.daemon.start()
    other.daemon.wait_ready(peers=2)
    until(lambda: lab.reachability().complete)


def ping(container: Container, *words: str) -> None:
    container.run(["ping", "-c", "1", "-W", "1", *words], check=False)


def datagram(source: Machine, target: Node) -> None:
    script = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(bytes(64), (sys.argv[1], 8285))"
    source.run([sys.executable, "-c", script, str(target.ipv4.ip)])


DROPS: dict[str, Callable[[Lab], None]] = {
    "drop_no_route": lambda lab: ping(lab.containers[0], "10.244.255.9"),
    "drop_ttl_exceeded": lambda lab: ping(lab.containers[0], "-t", "2", lab.containers[1].address()),
    "drop_unknown_sender": lambda lab: datagram(lab.switch, lab.nodes[0]),
    "drop_source_port": lambda lab: datagram(lab.nodes[1], lab.nodes[0]),
}


@pytest.mark.parametrize("reason", DROPS)
def test_drops_are_shown_by_reason(lab: Lab, reason: str) -> None:
    node = lab.nodes[0]
    before = counters(node).get(reason, 0)
    DROPS[reason](lab)
    until(lambda: counters(node)[reason] == before + 1, lambda: f"{reason} of {counters(node)}")
    shown = node.run([*pyflannel_command(), "status", "--run-dir", str(node.daemon.run_directory)])
    assert reason in shown.stdout


def test_a_worker_that_can_not_be_started_is_told_once_and_the_node_is_not_said_to_be_well(lab: Lab) -> None:
    node = lab.nodes[0]
    already = len(node.daemon.log().splitlines())
    (worker,) = workers(node, "udp")
    place = lab.outside(node.daemon.state_directory / "udp-worker-0.sock")
    place.unlink()
    place.mkdir()
    os.kill(worker, signal.SIGKILL)
    try:
        status = node.daemon.wait_status(lambda it: it["state"] == "degraded", "it says so", PATIENCE)
        assert "the worker can't be started" in status["message"]
        assert place.name in status["message"]
    finally:
        place.rmdir()
    node.daemon.wait_status(lambda it: it["state"] == "ready", "all is well", PATIENCE)
    until(lambda: lab.reachability().complete)
    said = node.daemon.log().splitlines()[already:]
    assert [line.split()[1] for line in said] == ["warning", "info"], said


def test_cleanup_ends_the_worker(lab: Lab) -> None:
    node = lab.nodes[2]
    node.daemon.stop()
    assert len(workers(node, "udp")) == 1
    node.run([*pyflannel_command(), "cleanup", "--run-dir", str(node.daemon.run_directory)])
    assert node.run(["ip", "link", "show", "flannel0"], check=False).returncode != 0
    until(lambda: not workers(node, "udp"))
    node.daemon.start()
    node.daemon.wait_ready(peers=2)
    until(lambda: lab.reachability().complete)
