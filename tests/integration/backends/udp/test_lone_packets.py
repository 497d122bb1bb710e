"""Lone packets that pass the workers by: what becomes of them is what would have become of them with the workers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.backends.udp.captures import Capture, assert_valid, datagrams
from tests.integration.backends.udp.conftest import Overlay, run
from tests.waiting import until

scapy = pytest.importorskip("scapy.all", reason="needs scapy (extra: test)")
from scapy.layers.vxlan import VXLAN  # noqa: E402 - which the line above may have skipped

pytestmark = pytest.mark.root

BURST, LAST = 10, 10
RECEIVER = f"""
import socket
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("10.5.2.1", 4000))
print("bound", flush=True)
print(*(receiver.recv(2000)[0] for _ in range({BURST + 1})), flush=True)
"""
SENDER = f"""
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("10.5.1.1", 0))
sender.connect(("10.5.2.1", 4000))
sender.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT
sender.send(b"".join(bytes([number]) * 1000 for number in range({BURST})))
time.sleep(0.05)
sender.send(bytes([{LAST}]) * 100)
"""


@pytest.mark.parametrize("stopped", [1, 2])
def test_nothing_overtakes_what_waits_for_the_worker(kernel_overlay: Overlay, stopped: int) -> None:
    first, second = kernel_overlay.nodes
    receiver = second.start(sys.executable, "-c", RECEIVER, stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    with receiver:
        assert receiver.stdout.readline() == "bound\n"
        (worker,) = kernel_overlay.nodes[stopped - 1].workers()
        os.kill(worker, signal.SIGSTOP)
        try:
            run(*first.command(sys.executable, "-c", SENDER))
        finally:
            os.kill(worker, signal.SIGCONT)
        assert receiver.stdout.readline().split() == [str(number) for number in range(BURST + 1)]


@pytest.mark.parametrize("checksum", ["udpcsum", "noudpcsum"])
def test_checksums_inside_a_tunnel_of_the_containers(kernel_overlay: Overlay, checksum: str, tmp_path: Path) -> None:
    first, _ = kernel_overlay.nodes
    for node in kernel_overlay.nodes:
        ends = ("local", f"10.5.{node.number}.1", "remote", f"10.5.{node.peer}.1")
        node.ip("link", "add", "inside", "type", "vxlan", "id", "7", *ends, "dstport", "4789", checksum)
        node.ip("addr", "add", f"198.51.100.{node.number}/24", "dev", "inside")
        node.ip("link", "set", "inside", "mtu", "1300", "up")
    path = tmp_path / "underlay.pcap"
    capture = Capture(kernel_overlay, path)
    connect = "import socket; socket.create_connection(('198.51.100.2', 9), 5)"
    try:
        subprocess.run(first.command(sys.executable, "-c", connect), check=False, capture_output=True)
        segments = until(lambda: tunnelled(path), "a segment in the capture")
    finally:
        capture.stop()
    for segment in segments:
        assert_valid(segment)


def tunnelled(path: Path) -> list[Any]:
    """The TCP segments in the containers' own tunnel."""
    return [packet[VXLAN][scapy.IP] for packet in datagrams(path) if VXLAN in packet and scapy.TCP in packet[VXLAN]]


def test_mtu_of_a_route(kernel_overlay: Overlay) -> None:
    first, _ = kernel_overlay.nodes
    first.ip("route", "replace", "192.0.2.0/24", "dev", "under", "src", "192.0.2.1", "mtu", "1300")
    assert not first.ping(size=1400, options=("-M", "do"))
    assert first.ping(size=1200, options=("-M", "do"))


def test_rule_for_what_the_node_sends(kernel_overlay: Overlay) -> None:
    """The datagrams are the node's, whatever the packets in them came by."""
    first, _ = kernel_overlay.nodes
    assert first.ping()
    first.ip("route", "add", "blackhole", "default", "table", "77")
    first.ip("rule", "add", "iif", "lo", "to", "192.0.2.2", "table", "77")
    assert not first.ping()


def test_priority_of_a_packet_is_not_its_datagrams(kernel_overlay: Overlay) -> None:
    first, _ = kernel_overlay.nodes
    try:
        run(*first.command("tc", "qdisc", "add", "dev", "under", "root", "handle", "1:", "htb", "default", "20"))
    except AssertionError:
        pytest.skip("needs the kernel's HTB")
    for number in ("1:10", "1:20"):
        words = ("dev", "under", "parent", "1:", "classid", number, "htb", "rate", "1gbit")
        run(*first.command("tc", "class", "add", *words))
    send = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 0x10010); s.sendto(bytes(99), ('10.5.2.1', 9))"
    )
    run(*first.command(sys.executable, "-c", send))
    told = run(*first.command("tc", "-s", "class", "show", "dev", "under"))
    packets = dict(re.findall(r"^class htb (\S+) .*\n Sent \d+ bytes (\d+) pkt", told, re.MULTILINE))
    assert packets["1:10"] == "0"
    assert packets["1:20"] != "0"


def test_firewall_where_datagrams_leave_is_heeded(kernel_overlay: Overlay) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs nft (Debian package nftables)")
    first, _ = kernel_overlay.nodes
    for rule in (
        "add table netdev guard",
        "add chain netdev guard leaving { type filter hook egress device under priority 0; }",
        "add rule netdev guard leaving ip daddr 192.0.2.2 drop",
    ):
        run(*first.command("nft", rule))
    until(lambda: not any(first.ping() for _ in range(3)), "pings to be dropped")
