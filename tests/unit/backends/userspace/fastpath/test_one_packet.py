"""One packet at a time: the fast path carries it as Python would, or leaves it to Python as it was."""

from __future__ import annotations

import pytest
from tests.unit.backends.userspace.bursts import OTHERS, OURS, THEIRS
from tests.unit.backends.userspace.edges import OTHER, PEER, Edges
from tests.unit.backends.userspace.fastpath.bench import MTU, Bench, arriving, leaving, one_hop_on, with_checksum

from pyflannel_backends.userspace import vnet


def test_what_was_learnt_is_carried_and_counted(bench: Bench) -> None:
    assert bench.from_tun(leaving()) is None
    bench.learn_route(THEIRS, PEER, MTU)
    assert bench.from_tun(leaving()) == leaving(ttl=63)
    assert bench.from_udp(arriving()) is None
    bench.path.learn_path(PEER, THEIRS + OURS)
    assert bench.from_udp(arriving(payload=b"longer answer")) == arriving(payload=b"longer answer")
    assert bench.counted() == (1, 40, 1, 41)
    assert bench.counted() == (0, 0, 0, 0)


def test_what_was_forgotten_is_not_carried(bench: Bench) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    bench.path.forget()
    assert bench.from_tun(leaving()) is None
    assert bench.from_udp(arriving()) is None


@pytest.mark.parametrize("ttl", [2, 3, 64, 255])
@pytest.mark.parametrize("checksum", [0, 1, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFE, 0xFFFF])
def test_one_hop_less_changes_the_checksum_as_python_does(bench: Bench, ttl: int, checksum: int) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    packet = with_checksum(leaving(ttl=ttl), checksum)
    assert bench.from_tun(packet) == one_hop_on(packet)


@pytest.mark.parametrize("ttl", [0, 1])
def test_no_packet_goes_on_without_a_hop_left(bench: Bench, ttl: int) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    assert bench.from_tun(leaving(ttl=ttl)) is None


@pytest.mark.parametrize("mtu", [20, 1471, 1472, 0xFFFF])
def test_what_fits_is_carried_and_not_a_byte_more(bench: Bench, mtu: int) -> None:
    bench.learn_route(THEIRS, PEER, mtu)
    for length in {20, mtu - 1, mtu} if mtu < 65507 else {20, 65506, 65507}:
        packet = leaving()[:20]
        packet = packet[:2] + length.to_bytes(2, "big") + packet[4:] + bytes(max(0, length - 20))
        assert (bench.from_tun(packet) is not None) == (length >= 20)
    if mtu < 0xFFFF:
        assert bench.from_tun(leaving(payload=bytes(mtu + 1 - 28) if mtu > 28 else b"")) is None


@pytest.mark.parametrize("checksum", [0, 0x1234, 0xFEFF, 0xFFFF])
def test_a_packet_that_could_not_be_sent_is_python_s(bench: Bench, checksum: int) -> None:
    bench.learn_route(THEIRS, "255.255.255.255", MTU)  # forbidden without SO_BROADCAST
    packet = with_checksum(leaving(), checksum)
    edges = bench.edges
    edges.rest(bench.path)
    edges.give(vnet.PLAIN + packet)
    assert bench.path.poll(0.0) == [(edges.tun.fileno(), (one_hop_on(packet), len(packet), "255.255.255.255"))]
    assert bench.counted() == (0, 0, 0, 0)


def test_a_packet_that_the_device_does_not_take_is_counted(bench: Bench, edges: Edges) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    filling = bytes(40_000)
    while edges.tun.send(b"", filling) == 0:
        pass
    edges.send(arriving())
    assert bench.path.poll(0.0) == []
    assert bench.path.take_counters()["drop_tun_failed"] == 1
    assert {data for header, data in edges.given()} == {filling[10:]}


def test_only_the_peer_whose_path_it_is_may_send(bench: Bench) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    assert bench.from_udp(arriving(), OTHER) is None
    assert bench.from_udp(arriving(), right_port=False) is None
    assert bench.from_udp(arriving(source=OTHERS)) is None
    assert bench.from_udp(arriving(destination=OTHERS)) is None
    assert bench.from_udp(arriving()) == arriving()
    bench.path.learn_path(OTHER, THEIRS + OURS)  # it holds that subnet now
    assert bench.from_udp(arriving()) is None
    assert bench.from_udp(arriving(), OTHER) == arriving()


def test_any_port_of_the_peer_is_good_where_told_so(edges: Edges) -> None:
    bench = Bench(edges, any_port=True)
    bench.path.learn_path(PEER, THEIRS + OURS)
    assert bench.from_udp(arriving(), right_port=False) == arriving()
    assert bench.from_udp(arriving(), OTHER, right_port=False) is None


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        arriving()[:19],
        arriving()[:-1],
        arriving(ip_options=bytes(4)),
        with_checksum(arriving(), 0x1234),
        b"\x65" + arriving()[1:],
        b"\x44" + arriving()[1:],
    ],
    ids=["empty", "a byte", "cut header", "cut", "options", "checksum", "version", "short header"],
)
def test_what_is_unusual_is_python_s(bench: Bench, packet: bytes) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    bench.learn_route(OURS, PEER, MTU)
    assert bench.from_udp(packet) is None
    if packet != with_checksum(arriving(), 0x1234):  # the checksum is the receiver's to look at
        assert bench.from_tun(packet) is None


@pytest.mark.parametrize(
    "header",
    [
        vnet.VnetHeader(1, 0, 0, 0, 20, 16),
        vnet.VnetHeader(1, 0, 0, 0, 0, 6),
        vnet.VnetHeader(0, 1, 40, 1000, 0, 0),
        vnet.VnetHeader(0, 5, 28, 0, 20, 6),
        vnet.VnetHeader(0, 6, 28, 1000, 20, 6),
        vnet.VnetHeader(4, 0, 0, 0, 0, 0),
    ],
)
def test_what_the_kernel_left_undone_in_another_way_is_python_s(bench: Bench, header: vnet.VnetHeader) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    assert bench.from_tun(leaving(), header.pack()) is None


def test_datagrams_that_came_as_one_are_no_packet_even_if_they_say_so(bench: Bench, edges: Edges) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    whole = arriving(payload=bytes(72))
    edges.rest(bench.path)
    edges.send(whole, size=50)
    assert bench.path.poll(0.0) == [(edges.port.fileno(), (len(whole), 50, "judged"))]
