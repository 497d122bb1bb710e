"""Nodes with the kernel's WireGuard and nodes with our own in one network. Runs where the kernel has WireGuard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.integration.backends.wireguard import kernels
from tests.integration.backends.wireguard.kernels import (
    NETWORK,
    PATIENCE,
    PSK,
    entries,
    public_key,
    reachable,
    until,
    wg,
)

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(600), kernels.needs_wireguard]


@contextmanager
def as_chosen(implementation: str) -> Iterator[None]:
    """Daemons that are started meanwhile choose this implementation, whatever the kernel has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WIREGUARD_IMPLEMENTATION", implementation)
        yield


def restart(node: Node, implementation: str) -> None:
    with as_chosen(implementation):
        node.daemon.restart()
    told = node.daemon.wait_ready(peers=1, timeout=PATIENCE)["backend"]["details"]
    assert told["implementation"] == implementation


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The first node has the kernel's, the second one ours; the document is the same."""
    with Lab(nodes=2) as lab:
        for node, implementation in zip(lab.nodes, ("kernel", "userspace"), strict=True):
            with as_chosen(implementation):
                node.start_daemon(lab.file_store, "wireguard", NETWORK, ["--backend-option", f"PSK={PSK}"])
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1, timeout=PATIENCE)
            node.attach_containers()
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")


def test_they_are_what_they_should_be(lab: Lab) -> None:
    told = [node.daemon.status()["backend"]["details"]["implementation"] for node in lab.nodes]
    assert told == ["kernel", "userspace"]
    kinds = [node.run(["ip", "-d", "link", "show", "flannel-wg"]).stdout for node in lab.nodes]
    assert "wireguard" in kinds[0]
    assert "tun " in kinds[1]


def test_they_talk_and_wg_agrees(lab: Lab) -> None:
    kernel, ours = lab.nodes
    until(lambda: reachable(lab), "containers reach each other")
    (entry,) = entries(kernel).values()
    assert entry.key == public_key(ours)
    assert entry.endpoint == f"{ours.ipv4.ip}:51820"
    assert entry.handshake > 0
    assert entry.received > 0
    assert entry.sent > 0


def test_full_packets_pass(lab: Lab) -> None:
    one, two = lab.containers
    size = str(1420 - 28)
    for source, target in ((one, two), (two, one)):
        source.run(["ping", "-M", "do", "-c", "3", "-W", "20", "-s", size, target.address()], timeout=PATIENCE)


def test_a_capture_shows_no_plain_text(lab: Lab) -> None:
    kernel, _ = lab.nodes
    one, two = lab.containers
    pattern = bytes.fromhex("0badcafe") * 4
    with kernel.capture() as capture:
        one.run(["ping", "-c", "3", "-W", "20", "-p", pattern.hex(), two.address()], timeout=PATIENCE)
    frames = capture.stop()
    assert frames, "nothing was seen on the underlay"
    assert not [frame for frame in frames if pattern[:8] in frame]


@pytest.mark.parametrize("turn", ["kernel", "userspace"])
def test_a_new_key_costs_no_packet(lab: Lab, turn: str) -> None:
    """A kernel forgets a peer's sessions as it learns the new key; by then nobody sends with those any more."""
    until(lambda: reachable(lab), "containers reach each other")
    nodes: dict[str, Node] = dict(zip(("kernel", "userspace"), lab.nodes, strict=True))
    node = nodes[turn]
    old = public_key(node)
    one, two = lab.containers
    with one.ping(two.address(), interval=0.02) as ping, two.ping(one.address(), interval=0.02) as pong:
        ping.wait_replies(10, PATIENCE)
        pong.wait_replies(10, PATIENCE)
        words = ["wireguard", "rotate-key", "--run-dir", str(node.daemon.run_directory)]
        node.run(pyflannel_command(*words), timeout=PATIENCE)
        new = public_key(node)
        if turn == "kernel":
            until(lambda: wg(node, "show", "flannel-wg", "public-key").strip() == new, "the kernel has it")
        else:
            until(lambda: entries(nodes["kernel"]).keys() == {new}, "the other has learned it")
        ping.wait_replies(20, PATIENCE)
        pong.wait_replies(20, PATIENCE)
        assert (ping.stop().lost, pong.stop().lost) == (0, 0)
    assert new != old


def test_either_side_may_start_anew(lab: Lab) -> None:
    for node, implementation in zip(lab.nodes, ("kernel", "userspace"), strict=True):
        restart(node, implementation)
        until(lambda: reachable(lab), "containers reach each other")


def test_a_node_may_change_its_implementation(lab: Lab) -> None:
    node = lab.nodes[0]
    key = public_key(node)
    for implementation in ("userspace", "kernel"):
        restart(node, implementation)
        until(lambda: reachable(lab), f"containers reach each other by way of the {implementation}")
        assert public_key(node) == key


def test_cleanup_leaves_nothing(lab: Lab) -> None:
    for node in lab.nodes:
        node.daemon.stop()
        node.run(pyflannel_command("cleanup", "--run-dir", str(node.daemon.run_directory)))
        assert "flannel-wg" not in node.run(["ip", "link"]).stdout
