"""Lone packets that pass the worker by do so on one device, whatever becomes of it and whatever comes by others."""

from __future__ import annotations

import json
import sys

import pytest
from tests.integration.backends.udp.conftest import Node, Overlay, run
from tests.unit.backends.userspace.reference import UDP, Packet
from tests.waiting import until

pytestmark = pytest.mark.root

COUNT = 20
_SEND_FRAMES = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as end:
    end.bind(("under", 0))
    for _ in range(int(sys.argv[2])):
        end.send(bytes.fromhex(sys.argv[1]))
"""


def _link(node: Node, device: str) -> tuple[int, str]:
    (found,) = json.loads(node.ip("-json", "link", "show", device))
    return found["ifindex"], found["address"]


def _forged(station: str) -> bytes:
    """A frame as from the second node, with a packet as those that answer the first one's pings."""
    inner = Packet(b"forged", UDP, source=bytes([10, 5, 2, 1]), destination=bytes([10, 5, 1, 0])).build()
    outer = Packet(inner, UDP, bytes([192, 0, 2, 2]), bytes([192, 0, 2, 1]), ports=(8285, 8285)).build()
    return bytes.fromhex(station.replace(":", "")) + bytes.fromhex("020000000099 0800") + outer


def _dropped_by_rp_filter(node: Node) -> int:
    told = run(*node.command("cat", "/proc/net/netstat")).splitlines()
    names, values = (line.split() for line in told if line.startswith("TcpExt:"))
    return int(values[names.index("IPReversePathFilter")])


def test_what_came_by_another_device_lets_nobody_in_by_the_underlays(kernel_overlay: Overlay) -> None:
    """Of a peer that is reached by another device, ``rp_filter`` drops what comes by the underlay's."""
    first, second = kernel_overlay.nodes
    first.ip("link", "add", "other", "type", "veth", "peer", "name", "other", "netns", second.namespace)
    for node in kernel_overlay.nodes:
        node.ip("link", "set", "other", "up")
        node.ip("route", "add", f"192.0.2.{node.peer}/32", "dev", "other", "src", f"192.0.2.{node.number}")
    run(*first.command("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.under.rp_filter=1"))
    frame = _forged(_link(first, "under")[1]).hex()

    def are_all_dropped() -> bool:
        assert first.ping(count=3)
        before = _dropped_by_rp_filter(first)
        run(*second.command(sys.executable, "-c", _SEND_FRAMES, frame, str(COUNT)))
        return _dropped_by_rp_filter(first) - before == COUNT

    until(are_all_dropped, "rp_filter to see what is forged, once it is forgotten that the peer came by the underlay")


def test_a_device_that_is_replaced_by_one_of_the_same_index_is_noticed(kernel_overlay: Overlay) -> None:
    """As one may be that is moved to another network namespace and back."""
    first, second = kernel_overlay.nodes
    index, _ = _link(first, "under")
    first.ip("link", "del", "under")
    words = ("under", "index", str(index), "type", "veth", "peer", "name", "under", "netns", second.namespace)
    first.ip("link", "add", *words)
    for node in kernel_overlay.nodes:
        node.ip("addr", "add", f"192.0.2.{node.number}/24", "dev", "under")
        node.ip("link", "set", "under", "up")

    def receives() -> bool:
        before = first.counters()["lone_received_packets"]
        return first.ping(count=COUNT) and first.counters()["lone_received_packets"] > before

    until(receives, "replies that pass the worker by")
