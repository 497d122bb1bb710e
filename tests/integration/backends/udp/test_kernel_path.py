"""Lone packets that pass the worker by: the same becomes of them, and whatever they must not pass by is heeded."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from tests.integration.backends.udp.conftest import MakeOverlay, Node, Overlay, run
from tests.unit.backends.userspace.reference import TCP, UDP, Packet, internet_checksum, pseudo_header
from tests.waiting import until

pytestmark = pytest.mark.root

COUNT = 20
ICMP = 1

_SEND = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as end:
    for line in sys.stdin:
        end.sendto(bytes.fromhex(line), ("10.5.2.1", 0))
        time.sleep(0.005)
"""

_SEND_DATAGRAMS = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
    for size in map(int, sys.argv[1:]):
        end.sendto(bytes(number % 251 for number in range(size)), ("10.5.2.1", 9))
        time.sleep(0.02)
"""

_CAPTURE = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(int(sys.argv[2]))) as end:
    if sys.argv[1] != "any":
        end.bind((sys.argv[1], int(sys.argv[2])))
    print("listening", flush=True)
    while True:
        data, (_, _, kind, *_) = end.recvfrom(1 << 16)
        if kind != 4:  # PACKET_OUTGOING
            print(data.hex(), flush=True)
"""
IPV4, EVERYTHING = 0x0800, 0x0003


def is_not_used(node: Node, why: str) -> None:
    until(lambda: why in " ".join(node.tell("kernel_path")), f"a worker that packets don't pass by: {why}")
    before = node.counters()
    assert node.ping(count=4)
    until(lambda: node.counters()["sent_packets"] >= before["sent_packets"] + 4, "the counters of all packets")
    assert node.counters()["lone_sent_packets"] == before["lone_sent_packets"]


def _pinged(node: Node) -> None:
    assert node.ping(count=COUNT)


def _lone(node: Node, direction: str, act: Any) -> int:
    """Packets that passed the worker by, of all that it told of while ``act`` took place."""
    before = node.counters()
    act(node)
    until(
        lambda: node.counters()[f"{direction}_packets"] >= before[f"{direction}_packets"] + COUNT,
        "the counters of all packets",
    )
    return node.counters()[f"lone_{direction}_packets"] - before[f"lone_{direction}_packets"]


def test_packets_pass_the_worker_by_on_both_nodes(kernel_overlay: Overlay) -> None:
    first, second = kernel_overlay.nodes
    before = {node: node.counters() for node in (first, second)}
    assert first.ping(count=5 * COUNT)

    def grown(node: Node, name: str) -> int:
        return node.counters()[name] - before[node][name]

    for node in (first, second):
        for direction in ("sent", "received"):
            until(lambda: grown(node, f"{direction}_packets") >= 5 * COUNT, "the counters of all packets")  # noqa: B023
            packets = grown(node, f"{direction}_packets")
            assert grown(node, f"lone_{direction}_packets") > 0.9 * packets  # now and then one takes the usual way
            assert grown(node, f"{direction}_bytes") == packets * 84
        drops = {name for name, count in node.counters().items() if name.startswith("drop_") and count}
        assert drops <= {"drop_other_family"}


@contextmanager
def captured(node: Node, device: str, protocol: int) -> Iterator[list[bytes]]:
    """IPv4 packets that come in by a device; the list is filled by the end."""
    packets: list[bytes] = []
    words = (sys.executable, "-c", _CAPTURE, device, str(protocol))
    with node.start(*words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "listening\n"
            yield packets
        finally:
            process.terminate()
        packets += [bytes.fromhex(line) for line in process.stdout]


def some_packets() -> list[bytes]:
    """Between two fixed addresses, most of them plain; the last is one that ends a capture."""
    chance = random.Random(1)
    packets = []
    for number in range(60):
        protocol = chance.choice([TCP, UDP])
        size = chance.choice([0, 1, 23, 24, 25, 87, 88, 89, 107, 108, 109, 500, 1001, 1404])
        packet = Packet(
            chance.randbytes(size),
            protocol,
            bytes([10, 5, 1, 1]),
            bytes([10, 5, 2, 1]),
            identification=number + 1,
            ttl=chance.choice([64, 64, 64, 2, 255]),
            tos=chance.choice([0, 0, 0xB8, 1, 3]),
            fragment=chance.choice([0x4000, 0x4000, 0]),
            ip_options=chance.choice([b"", b"", b"", b"", b"\x01\x01\x01\x00"]),
        )
        built = bytearray(packet.build())
        if chance.random() < 0.1:
            built[-1] ^= 1  # damage stays
        packets.append(bytes(built))
    return packets


def arrived(overlay: Overlay, packets: Sequence[bytes]) -> list[bytes]:
    """What the second node's kernel gets of them, in any order."""
    first, second = overlay.nodes
    with captured(second, "flannel0", IPV4) as got:
        lines = "".join(packet.hex() + "\n" for packet in packets)
        subprocess.run(first.command(sys.executable, "-c", _SEND), input=lines, text=True, check=True)
        assert first.ping()  # it comes last
    return sorted(packet for packet in got if packet[9] != ICMP)


def test_the_same_becomes_of_every_packet(make_overlay: MakeOverlay) -> None:
    packets = some_packets()
    usual, lone = make_overlay(extensions=True, KernelPath=False), make_overlay(extensions=True)
    for node in lone.nodes:
        node.let_lone_packets_pass()
    got = arrived(lone, packets)
    assert len(got) == len(packets)
    assert got == arrived(usual, packets)
    for node, direction in zip(lone.nodes, ("sent", "received"), strict=True):
        until(
            lambda node=node, direction=direction: (  # type: ignore[misc]
                node.counters()[f"lone_{direction}_packets"] > COUNT + len(packets) // 2
            ),
            "most of the packets to have passed the worker by",
        )


def test_checksums_are_finished_before_a_packet_leaves(kernel_overlay: Overlay) -> None:
    """Where the kernel would leave them to the device: who gets the datagram on the underlay can't know of that."""
    first, second = kernel_overlay.nodes
    sizes = [0, 1, 2, 15, 16, 17, 100, 127, 128, 129, 130, 255, 256, 257, 999, 1000, 1443, 1444]
    first.ping()
    with captured(second, "under", EVERYTHING) as got:
        words = map(str, [*sizes, *sizes])  # the first of a kind takes the usual way
        subprocess.run(first.command(sys.executable, "-c", _SEND_DATAGRAMS, *words), check=True)
        assert first.ping()
    outside = [packet for packet in got if packet[0] >> 4 == 4 and packet[9] == UDP]
    inside = [(packet[26:28], packet[28:]) for packet in outside if packet[28 + 9] == UDP]
    assert len(inside) == 2 * len(sizes)
    passed = [packet for checksum, packet in inside if checksum == b"\0\0"]
    assert len(passed) > len(sizes)
    assert min(map(len, passed)) < 44 < max(map(len, passed))
    for packet in passed:
        assert internet_checksum(packet[:20]) == 0
        pseudo = pseudo_header(packet[12:16], packet[16:20], UDP, len(packet) - 20)
        assert internet_checksum(pseudo + packet[20:]) == 0
    assert sorted(struct.unpack_from("!H", packet, 24)[0] - 8 for _, packet in inside) == sorted([*sizes, *sizes])


def test_what_is_for_another_machine_on_the_wire_is_left_alone(kernel_overlay: Overlay) -> None:
    """A frame for another station, which a device in promiscuous mode gets as well."""
    first, second = kernel_overlay.nodes
    second.ip("link", "set", "under", "promisc", "on")
    until(lambda: _lone(second, "received", lambda _: _pinged(first)), "pings that pass the worker by")
    first.ip("neigh", "replace", "192.0.2.2", "lladdr", "02:00:00:00:00:99", "dev", "under", "nud", "permanent")
    assert not first.ping(count=5)
    first.ip("neigh", "del", "192.0.2.2", "dev", "under")
    until(first.ping, "the neighbour to be found again")


RULE = ("nft", "add table inet test { chain input { type filter hook input priority 0; udp dport 8285 drop; }; }")


def test_a_rule_against_the_datagrams_is_heeded_after_a_few_seconds(kernel_overlay: Overlay) -> None:
    first, second = kernel_overlay.nodes
    run(*second.command(*RULE))
    until(lambda: not first.ping(), "the rule to be heeded")
    assert not any(first.ping() for _ in range(3))
    run(*second.command("nft", "delete", "table", "inet", "test"))
    until(first.ping, "a ping without the rule")


@contextmanager
def policy(node: Node) -> Iterator[None]:
    words = ("src", "198.51.100.1/32", "dst", "198.51.100.2/32", "dir", "out")
    node.ip("xfrm", "policy", "add", *words, "action", "block")
    yield
    node.ip("xfrm", "policy", "del", *words)


@contextmanager
def queueing(node: Node) -> Iterator[None]:
    words = ("dev", "flannel0", "root")
    run(*node.command("tc", "qdisc", "add", *words, "tbf", "rate", "10gbit", "burst", "1mb", "latency", "50ms"))
    yield
    run(*node.command("tc", "qdisc", "del", *words))


@contextmanager
def filtering(node: Node, kind: str, parent: str) -> Iterator[None]:
    run(*node.command("tc", "qdisc", "add", "dev", "under", kind))
    node.let_lone_packets_pass()  # no filter, no matter
    words = ("tc", "filter", "add", "dev", "under", "parent", parent)
    run(*node.command(*words, "bpf", "direct-action", "bytecode", "1,6 0 0 0"))
    yield
    run(*node.command("tc", "qdisc", "del", "dev", "under", kind))


FILTERS = "under has filters for what comes in"
CAPTURES = "packets of flannel0 are being captured"


@pytest.mark.parametrize(
    "obstacles",
    [
        (
            (policy, (), "there are IPsec policies"),
            (queueing, (), "flannel0 has a queueing discipline that it was given"),
        ),
        ((filtering, ("clsact", "ffff:fff2"), FILTERS), (filtering, ("ingress", "ffff:"), FILTERS)),
        ((captured, ("flannel0", EVERYTHING), CAPTURES), (captured, ("any", EVERYTHING), CAPTURES)),
    ],
    ids=["policies and disciplines", "filters", "captures"],
)
def test_what_packets_must_not_pass_by_sends_them_through_the_worker(kernel_overlay: Overlay, obstacles: Any) -> None:
    first, _ = kernel_overlay.nodes
    for obstacle, arguments, why in obstacles:
        with obstacle(first, *arguments):
            is_not_used(first, why)
        first.let_lone_packets_pass()


def test_packets_that_the_worker_carried_just_before_pass_it_by_at_once(kernel_overlay: Overlay) -> None:
    """What was found out for the programs that are gone is told to the next ones."""
    first, _ = kernel_overlay.nodes
    with policy(first):
        is_not_used(first, "there are IPsec policies")
    until(lambda: not any(first.tell("kernel_path")), "workers that packets pass by")
    assert _lone(first, "sent", _pinged) > COUNT // 2


def test_the_option_switches_it_off(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay(extensions=True, KernelPath=False)
    first, _ = overlay.nodes
    assert first.ping(count=COUNT)
    until(lambda: first.counters()["sent_packets"] >= COUNT, "the counters of all packets")
    assert first.counters()["lone_sent_packets"] == 0
    assert first.tell("kernel_path") == []


def test_without_the_right_to_it_the_worker_carries_everything_and_says_why(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay(extensions=True, under=("setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin"))
    for node in overlay.nodes:
        until(lambda node=node: node.tell("kernel_path"), "what the worker says")  # type: ignore[misc]
        assert node.tell("kernel_path") == ["can't make a BPF map: Operation not permitted; it takes CAP_BPF"]
        assert node.ping(count=3)


def test_no_other_right_is_needed_than_those_for_networks_and_programs(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay(extensions=True, under=("setpriv", "--bounding-set=-all,+net_admin,+bpf"))
    for node in overlay.nodes:
        node.let_lone_packets_pass()


def test_several_workers_know_of_their_own_packets(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay(extensions=True, Workers=3)
    first, second = overlay.nodes
    first.let_lone_packets_pass()
    assert first.tell("kernel_path") == ["", "", ""]
    assert second.ping(count=COUNT)


def test_an_underlay_that_is_replaced_is_found_again(kernel_overlay: Overlay) -> None:
    first, second = kernel_overlay.nodes
    first.ip("link", "del", "under")
    until(lambda: "can't look at" in " ".join(first.tell("kernel_path")), "the worker to miss the device")
    first.ip("link", "add", "under", "type", "veth", "peer", "name", "under", "netns", second.namespace)
    for node in kernel_overlay.nodes:
        node.ip("addr", "add", f"192.0.2.{node.number}/24", "dev", "under")
        node.ip("link", "set", "under", "up")
    until(first.ping, "a ping over the new wire")
    for node in kernel_overlay.nodes:
        node.let_lone_packets_pass()


def test_nothing_is_left_when_the_worker_ends(kernel_overlay: Overlay) -> None:
    """A ping to the node that has no worker any more reaches nobody."""
    first, second = kernel_overlay.nodes
    second.tell("end")
    until(lambda: not second.workers(), "the worker's end")
    assert not first.ping()
