"""wireguard in userspace under the real daemon, in a lab: whoever dies or changes its key, packets go on."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from tests.integration.asking import PATIENCE, until, workers
from tests.integration.overlay import overlay

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.measure import read_pcap
from pyflannel.testing.backends import BackendBehaviour

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

USERSPACE = {"Type": "wireguard", "Implementation": "userspace"}
IPV6 = "fd00:244::/48"


class TestUserspace(BackendBehaviour):
    """The conformance kit's second half."""

    backend = "wireguard"
    variants = ({"Implementation": "userspace"}, {"Implementation": "userspace", "ListenPort": 51900, "MTU": 1480})


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with overlay(USERSPACE) as lab:
        yield lab


def public_key(node: Node) -> str:
    backend = node.daemon.status()["backend"]
    assert isinstance(backend, dict)
    details = backend["details"]
    assert isinstance(details, dict)
    return str(details["public_key"])


def test_every_container_reaches_every_other(lab: Lab) -> None:
    assert lab.reachability().complete
    for node in lab.nodes:
        assert "FLANNEL_MTU=1420\n" in lab.outside(node.subnet_file).read_text()
        status = node.daemon.status()
        assert status["backend"]["details"]["implementation"] == "userspace"
        assert len(workers(node, "wireguard")) == 1
    until(lambda: counter(lab.nodes[0], "handshakes") >= 2, "handshakes are counted")
    words = ["status", "--all", "--run-dir", str(lab.nodes[0].daemon.run_directory)]
    told = lab.nodes[0].run(pyflannel_command(*words)).stdout
    for node in lab.nodes[1:]:
        assert re.search(rf"\(at {node.ipv4.ip}:51820, handshake \d+ s ago, [\d.]+ MB received, [\d.]+ MB sent\)", told)


def counter(node: Node, name: str) -> int:
    counters = node.daemon.status()["data_plane"]
    assert isinstance(counters, dict)
    return int(counters.get(name, 0))


def test_the_worker_outlives_its_daemon(lab: Lab) -> None:
    node, one, two = lab.nodes[0], lab.containers[0], lab.containers[1]
    (worker,) = workers(node, "wireguard")
    until(lambda: lab.reachability().complete, "containers reach each other")
    with one.ping(two.address(), interval=0.05) as ping:
        ping.wait_replies(5, PATIENCE)
        node.daemon.kill()
        ping.wait_replies(10, PATIENCE)
        node.daemon.start()
        node.daemon.wait_ready(peers=2, timeout=PATIENCE)
        ping.wait_replies(10, PATIENCE)
        assert ping.stop().lost == 0
    assert workers(node, "wireguard") == {worker}


def test_kill_9_of_the_worker(lab: Lab) -> None:
    node = lab.nodes[0]
    (worker,) = workers(node, "wireguard")
    os.kill(worker, signal.SIGKILL)
    until(lambda: len(workers(node, "wireguard") - {worker}) == 1, "there is another one")
    until(lambda: lab.reachability().complete, "containers reach each other")


def test_a_new_key_costs_no_packet(lab: Lab) -> None:
    """Old sessions go on until new ones are there, on both sides."""
    node = lab.nodes[0]
    until(lambda: lab.reachability().complete, "containers reach each other")
    one, two = lab.containers[:2]
    old, handshakes = public_key(node), counter(lab.nodes[1], "handshakes")
    (worker,) = workers(node, "wireguard")
    with one.ping(two.address(), interval=0.02) as ping, two.ping(one.address(), interval=0.02) as pong:
        ping.wait_replies(10, PATIENCE)
        pong.wait_replies(10, PATIENCE)
        words = ["wireguard", "rotate-key", "--run-dir", str(node.daemon.run_directory)]
        node.run(pyflannel_command(*words), timeout=PATIENCE)
        until(lambda: counter(lab.nodes[1], "handshakes") > handshakes, "a handshake with the new key")
        ping.wait_replies(20, PATIENCE)
        pong.wait_replies(20, PATIENCE)
        assert (ping.stop().lost, pong.stop().lost) == (0, 0)
    assert public_key(node) != old
    assert workers(node, "wireguard") == {worker}


def test_without_the_device_nothing_leaves_in_plaintext(lab: Lab) -> None:
    """The node's default route leads to the underlay, and takes what no other route takes."""
    node, one, two = lab.nodes[0], lab.containers[0], lab.containers[1]
    until(lambda: lab.reachability().complete, "containers reach each other")
    inner = [IPv4Address(container.address()).packed for container in (one, two)]
    node.daemon.stop()
    node.ip(["link del flannel-wg"])
    try:
        with node.capture() as underlay, node.capture(one.port) as inside, one.ping(two.address(), interval=0.02):
            until(lambda: any(inner[1] in frame for frame in read_pcap(inside.path)), "the container sends")
        assert sum(b"".join(inner) in frame for frame in inside.stop()) > 0
        assert not [frame for frame in underlay.stop() if b"".join(inner) in frame]
    finally:
        node.daemon.start()
        node.daemon.wait_ready(peers=2, timeout=PATIENCE)
    until(lambda: lab.reachability().complete, "containers reach each other again")


@pytest.mark.parametrize("mode", ["separate", "auto"])
def test_both_families(mode: str) -> None:
    with overlay({**USERSPACE, "Mode": mode}, nodes=2, ipv6=IPV6) as lab:
        reached = lab.reachability()
        assert reached.complete
        assert set(reached.versions) == {4, 6}
        assert [len(workers(node, "wireguard")) for node in lab.nodes] == ([2, 2] if mode == "separate" else [1, 1])


def test_a_document_that_gives_up_ipv6_takes_no_packet_away() -> None:
    with overlay(USERSPACE, nodes=2, ipv6=IPV6) as lab:
        one, two = lab.containers
        document = lab.outside(lab.nodes[0].directory).parent / "store" / "config.json"
        changed = json.dumps({**json.loads(document.read_text()), "EnableIPv6": False})
        until(lambda: lab.reachability().complete, "containers reach each other")
        with one.ping(two.address(), interval=0.02) as ping, two.ping(one.address(6), interval=0.02) as pong:
            ping.wait_replies(20, PATIENCE)
            pong.wait_replies(20, PATIENCE)
            new = document.with_name("config.new")
            new.write_text(changed)
            new.replace(document)
            for node in lab.nodes:
                node.daemon.wait_status(lambda status: "IPv6" in str(status["message"]), "what differs", PATIENCE)
            ping.wait_replies(50, PATIENCE)
            pong.wait_replies(50, PATIENCE)
            assert (ping.stop().lost, pong.stop().lost) == (0, 0)
        assert lab.reachability().complete


def test_nodes_that_listen_at_different_ports_reach_each_other() -> None:
    """As while a ConfigMap with another port is rolled out: a node reads the network config when it starts."""
    with Lab(nodes=2) as lab:
        for node, port in zip(lab.nodes, (51820, 51900), strict=True):
            document = {"Network": "10.244.0.0/16", "Backend": {**USERSPACE, "ListenPort": port}}
            directory = lab.outside(node.directory).parent / "store"
            directory.mkdir(mode=0o700, exist_ok=True)
            (directory / "config.json").write_text(json.dumps(document))
            node.start_daemon(lab.file_store, None)
            node.daemon.wait_ready(timeout=PATIENCE)
            node.attach_containers()
        until(lambda: lab.reachability().complete, lambda: [node.daemon.log() for node in lab.nodes])
        for node, port in zip(lab.nodes, (51820, 51900), strict=True):
            assert f":{port} " in node.run(["ss", "-Hlnu"]).stdout
