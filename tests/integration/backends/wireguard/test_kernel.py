"""wireguard in the kernel: nodes with daemons in a lab, looked at with wg(8). Runs where the kernel has WireGuard."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator

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
from pyflannel.testing.backends import BackendBehaviour

pytestmark = [pytest.mark.root, pytest.mark.timeout(600), kernels.needs_wireguard]

OPTIONS = {"Implementation": "kernel", "PSK": PSK}
STRANGER = b64encode(bytes(range(1, 33))).decode()


class TestKernel(BackendBehaviour):
    """The conformance kit's second half; the first needs no kernel and is run with the unit tests."""

    backend = "wireguard"
    variants = (
        {"Implementation": "kernel"},
        {"Implementation": "kernel", "Mode": "auto", "PSK": PSK, "ListenPort": 51900, "MTU": 1480},
    )


def subnet(node: Node) -> str:
    return str(node.daemon.status()["lease"]["subnets"][0])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    arguments = [word for key, value in OPTIONS.items() for word in ("--backend-option", f"{key}={value}")]
    with Lab(nodes=2) as lab:
        for node in lab.nodes:
            node.start_daemon(lab.file_store, "wireguard", NETWORK, [*arguments, "--resync-interval", "3600"])
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1, timeout=PATIENCE)
            node.attach_containers()
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")


def test_containers_talk_and_wg_agrees(lab: Lab) -> None:
    one, two = lab.nodes
    until(lambda: reachable(lab), "containers reach each other")
    for node, other in ((one, two), (two, one)):
        (entry,) = entries(node).values()
        assert entry.key == public_key(other)
        assert entry.allowed_ips == subnet(other)
        assert entry.endpoint == f"{other.ipv4.ip}:51820"
        assert entry.psk == PSK
        assert entry.keepalive == "off"
        assert entry.handshake > 0
        assert entry.received > 0
        assert entry.sent > 0
        assert wg(node, "show", "flannel-wg", "public-key").strip() == public_key(node)
        assert wg(node, "show", "flannel-wg", "listen-port").strip() == "51820"
        assert node.daemon.status()["backend"]["details"]["implementation"] == "kernel"


def test_no_secret_is_shown_anywhere(lab: Lab) -> None:
    node = lab.nodes[0]
    private = wg(node, "show", "flannel-wg", "private-key").strip()
    told = node.daemon.log() + str(node.daemon.status())
    told += node.run(pyflannel_command("status", "--all", "--run-dir", str(node.daemon.run_directory))).stdout
    assert private not in told
    assert PSK not in told
    assert public_key(node) in told


def test_a_peer_that_is_removed_by_hand_comes_back(lab: Lab) -> None:
    one, two = lab.nodes
    wg(one, "set", "flannel-wg", "peer", public_key(two), "remove")
    until(lambda: public_key(two) in entries(one), "the peer is back")
    until(lambda: reachable(lab), "and reaches us")


def test_a_device_that_is_deleted_comes_back_with_its_peers(lab: Lab) -> None:
    one, two = lab.nodes
    key = public_key(one)
    one.run(["ip", "link", "delete", "flannel-wg"])
    until(lambda: reachable(lab), "containers reach each other again")
    assert entries(one).keys() == {public_key(two)}
    assert wg(one, "show", "flannel-wg", "public-key").strip() == key == public_key(one)


def test_a_learned_endpoint_is_left_alone(lab: Lab) -> None:
    """A stranger that is swept away shows that the peers have been read again since. The peer is silent meanwhile: from
    each of its packets the kernel learns where it is.
    """
    one, two = lab.nodes
    elsewhere = "192.0.2.99:4444"
    one.run(["nft", "add table inet silence; add chain inet silence in { type filter hook input priority -400; }"])
    one.run(["nft", "add rule inet silence in udp dport 51820 drop"])
    try:
        wg(one, "set", "flannel-wg", "peer", public_key(two), "endpoint", elsewhere)
        wg(one, "set", "flannel-wg", "peer", STRANGER, "allowed-ips", "10.99.0.0/24")
        until(lambda: STRANGER not in entries(one), "the stranger is swept")
        assert entries(one)[public_key(two)].endpoint == elsewhere
    finally:
        one.run(["nft", "delete table inet silence"])
    until(lambda: reachable(lab), "the peer's own packets tell where it is")
    assert entries(one)[public_key(two)].endpoint == f"{two.ipv4.ip}:51820"


def test_a_new_key_costs_no_packet(lab: Lab) -> None:
    one, two = lab.nodes
    until(lambda: reachable(lab), "containers reach each other")
    for node, other in ((one, two), (two, one)):
        old = public_key(node)
        forth, back = node.containers[0], other.containers[0]
        with forth.ping(back.address(), interval=0.02) as ping, back.ping(forth.address(), interval=0.02) as pong:
            ping.wait_replies(10)
            pong.wait_replies(10)
            words = ["wireguard", "rotate-key", "--run-dir", str(node.daemon.run_directory)]
            said = node.run(pyflannel_command(*words), timeout=PATIENCE).stdout
            until(lambda other=other, node=node: entries(other).keys() == {public_key(node)}, "the other learned it")  # type: ignore[misc]
            ping.wait_replies(10, PATIENCE)
            pong.wait_replies(10, PATIENCE)
            assert (ping.stop().lost, pong.stop().lost) == (0, 0)
        assert public_key(node) != old
        assert public_key(node) in said
        assert wg(node, "show", "flannel-wg", "public-key").strip() == public_key(node)


def test_a_key_that_was_replaced_in_a_crash_is_the_key_after_the_next_start(lab: Lab) -> None:
    one, two = lab.nodes
    old = public_key(one)
    one.daemon.kill()
    new = wg(one, "genkey").strip()
    file = lab.outside(one.daemon.state_directory / "wireguard.key")
    file.write_text(new + "\n")
    one.daemon.start()
    one.daemon.wait_ready(peers=1, timeout=PATIENCE)
    until(lambda: old not in entries(two) and public_key(one) in entries(two), "the other has learned it")
    assert wg(one, "show", "flannel-wg", "private-key").strip() == new
    until(lambda: reachable(lab), "containers reach each other")


def test_cleanup_leaves_nothing(lab: Lab) -> None:
    node = lab.nodes[1]
    node.daemon.stop()
    node.run(pyflannel_command("cleanup", "--run-dir", str(node.daemon.run_directory)))
    assert "flannel-wg" not in node.run(["ip", "link"]).stdout
    assert wg(node, "show") == ""
