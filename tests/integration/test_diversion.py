"""Nothing leaks past an encrypting backend: what flanneld left goes, what others add is named, by captures."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest
from tests.integration.asking import PATIENCE, until, workers
from tests.integration.examining import PAST_THE_ENCRYPTION, Doctor
from tests.integration.overlay import overlay

from pyflannel.lab import Lab, Node
from pyflannel.lab.topology import UPLINK

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with overlay({"Type": "wireguard", "Implementation": "userspace"}) as lab:
        yield lab


@pytest.fixture(autouse=True)
def runs_again(lab: Lab) -> Iterator[None]:
    """What a test has stopped is there for the next one, also if it failed."""
    yield
    for node in lab.nodes:
        if not node.daemon.running:
            node.daemon.start()


def subnet(node: Node) -> IPv4Network:
    (text,) = node.daemon.status()["lease"]["subnets"]
    net = ip_network(str(text))
    assert isinstance(net, IPv4Network)
    return net


def message(node: Node) -> str:
    return str(node.daemon.status()["message"])


def plain(lab: Lab, node: Node) -> list[bytes]:
    """The packets between two containers that are seen on a node's underlay as they are, while one pings the other."""
    one, two = lab.containers[0], lab.containers[1]
    inner = b"".join(IPv4Address(container.address()).packed for container in (one, two))
    with node.capture() as underlay, one.ping(two.address(), interval=0.02) as ping:
        ping.wait_replies(10, PATIENCE)
    return [frame for frame in underlay.stop() if inner in frame]


@pytest.mark.parametrize("time", ["first", "switched back, and over again"])
def test_a_node_taken_over_from_flanneld_sends_nothing_in_plaintext(lab: Lab, time: str) -> None:
    node, *peers = lab.nodes
    until(lambda: lab.reachability().complete, "containers reach each other")
    own, (near, far) = subnet(node), [subnet(peer) for peer in peers]
    node.daemon.stop()
    node.ip(
        [
            f"link add flannel.1 type vxlan id 1 dev {UPLINK} local {node.ipv4.ip} dstport 8472 nolearning",
            f"addr add {own.network_address}/32 dev flannel.1",
            "link set flannel.1 up",
            f"route add {near} via {near.network_address} dev flannel.1 onlink",
            f"route add {far} via {peers[1].ipv4.ip} dev {UPLINK}",
        ]
    )
    node.daemon.start()
    node.daemon.wait_ready(peers=2, timeout=PATIENCE)
    until(lambda: "flannel.1" not in node.run(["ip", "link"]).stdout, "flanneld's device is gone")
    until(lambda: "via" not in node.run(["ip", "route", "show", str(far)]).stdout, "flanneld's route is gone")
    until(lambda: lab.reachability().complete, "containers reach each other again")
    assert plain(lab, node) == []
    assert "removing what flanneld has left" in node.daemon.log(), time


def kill_workers(node: Node) -> None:
    for pid in workers(node, "wireguard"):
        os.kill(pid, signal.SIGKILL)


def delete_device(node: Node) -> None:
    node.run(["ip", "link", "delete", "flannel-wg"])


def kill_all(node: Node) -> None:
    node.daemon.kill()
    kill_workers(node)


def kill_all_and_start(node: Node) -> None:
    kill_all(node)
    node.daemon.start()


def kill_all_and_delete(node: Node) -> None:
    """As nobody repairs it, packets must go nowhere."""
    kill_all(node)
    node.run(["ip", "link", "delete", "flannel-wg"], check=False)


def stop_and_start(node: Node) -> None:
    node.daemon.stop()
    node.daemon.start()


EVENTS: dict[str, Callable[[Node], None]] = {
    "the device is deleted": delete_device,
    "the workers are killed": kill_workers,
    "the daemon is killed": kill_all_and_start,
    "the daemon is killed, and the device deleted": kill_all_and_delete,
    "the daemon is stopped and started": stop_and_start,
}


@pytest.mark.parametrize("event", EVENTS)
def test_not_one_packet_leaves_in_plaintext_when(lab: Lab, event: str) -> None:
    """From before it happens until all is well again, to both sides."""
    node, one, two = lab.nodes[0], lab.containers[0], lab.containers[1]
    inner = [b"".join(IPv4Address(each.address()).packed for each in pair) for pair in ((one, two), (two, one))]
    with node.capture() as underlay, one.ping(two.address(), interval=0.02) as ping:
        ping.wait_replies(5, PATIENCE)
        with two.ping(one.address(), interval=0.02) as back:
            back.wait_replies(5, PATIENCE)
            EVENTS[event](node)
            if not node.daemon.running:
                one.run(["ping", "-c", "5", "-i", "0.1", "-W", "1", two.address()], check=False)
                node.daemon.start()
            node.daemon.wait_ready(peers=2, timeout=PATIENCE)
            ping.wait_replies(5, PATIENCE)
            back.wait_replies(5, PATIENCE)
    frames = underlay.stop()
    assert frames
    assert [frame for frame in frames if any(pair in frame for pair in inner)] == []


@pytest.mark.parametrize("length", [24, 25, 32])
def test_a_route_that_is_added_later_is_named_and_the_node_is_not_ready(lab: Lab, length: int) -> None:
    node, peer = lab.nodes[0], lab.nodes[1]
    until(lambda: node.daemon.status()["state"] == "ready", "the node is ready")
    route = f"{subnet(peer).network_address}/{length} via {lab.nodes[2].ipv4.ip} dev {UPLINK}"
    node.ip([f"route add {route} proto static"])
    try:
        until(lambda: node.daemon.status()["state"] == "waiting", lambda: message(node))
        assert "past the encryption" in message(node)
        assert str(subnet(peer).network_address) in message(node)
        with Doctor(node) as doctor:
            told = doctor.trouble()[PAST_THE_ENCRYPTION.check]
        assert any("comes before ours" in finding["message"] for finding in told)
        assert any(f"{PAST_THE_ENCRYPTION.fix} {subnet(peer).network_address}" in finding["fix"] for finding in told)
    finally:
        node.ip([f"route del {route}"])
    until(lambda: node.daemon.status()["state"] == "ready", lambda: message(node))
    assert plain(lab, node) == []


def test_a_foreign_route_is_left_alone(lab: Lab) -> None:
    node = lab.nodes[0]
    leased = [subnet(each) for each in lab.nodes]
    nobody = next(net for net in ip_network("10.244.128.0/22").subnets(new_prefix=24) if net not in leased)
    route = f"{nobody} via {lab.nodes[2].ipv4.ip} dev {UPLINK} proto static"
    node.ip([f"route add {route}"])
    try:
        until(lambda: node.daemon.status()["state"] == "waiting", lambda: message(node))
        assert str(nobody) in node.run(["ip", "route"]).stdout
    finally:
        node.ip([f"route del {route}"])
    until(lambda: node.daemon.status()["state"] == "ready", lambda: message(node))
