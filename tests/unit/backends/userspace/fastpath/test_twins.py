"""The fast path beside Python alone: given the same, two nodes send, deliver and count the same."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.bursts import HOSTS6, OTHERS, OURS, THEIRS, super_packets, trains
from tests.unit.backends.userspace.edges import OTHER, PEER, STRANGER, Edges
from tests.unit.backends.userspace.fastpath.bench import MTU, arriving, leaving
from tests.unit.backends.userspace.fastpath.hostile import headers, hostile
from tests.unit.backends.userspace.memory import MemoryTun, MemoryUnderlay
from tests.unit.backends.userspace.reference import ACK, PSH, TCP, UDP, Packet

from pyflannel_backends.userspace import vnet
from pyflannel_backends.userspace.forward import Forwarder, QueueLimits, RateLimit
from pyflannel_backends.userspace.table import Peer, PeerTable


class Twins:
    """Two nodes that see the same: one with a fast path between real descriptors, one without between edges in memory.

    Subnet 10.5.1.0/24; 10.5.2.0/24 and 10.5.3.0/24 are peers'.
    """

    def __init__(self, edges: Edges, *, offload: bool) -> None:
        self.edges = edges
        self.tun, self.underlay = MemoryTun(), MemoryUnderlay()
        self.fast = self._forwarder(edges.tun, edges.port, offload)
        self.plain = self._forwarder(self.tun, self.underlay, offload)
        self.path = edges.attach(self.fast)
        self.known: dict[str, set[int]] = {PEER: set(), OTHER: set()}
        edges.port.counters.update(dict.fromkeys(edges.port.counters, 0))
        self.refused = dict.fromkeys(edges.port.counters, 0)
        self.move(2, PEER)
        self.move(3, OTHER)

    @staticmethod
    def _forwarder(tun: Any, underlay: Any, offload: bool) -> Forwarder:
        splitter = joiner = None
        if offload:
            numpy_path = pytest.importorskip("pyflannel_backends.userspace.offload", reason="needs numpy (extra: udp)")
            splitter, joiner = numpy_path.Splitter(), numpy_path.Joiner()
        table = PeerTable([ip_network("10.5.1.0/24"), ip_network("fd00:5:1::/48")])
        limit = RateLimit(0.0, 1e9, lambda: 0.0)
        addresses = {4: bytes([10, 5, 1, 0]), 6: HOSTS6[0][:15] + bytes(1)}
        return Forwarder(tun, underlay, table, QueueLimits(MTU, addresses), limit, splitter, joiner)

    def move(self, number: int, holder: str | None) -> None:
        """A subnet is another peer's, or nobody's, as the worker does it when it is told."""
        for forwarder in (self.fast, self.plain):
            for subnet in ip_network(f"10.5.{number}.0/24"), ip_network(f"fd00:5:{number}::/48"):
                if holder is None:
                    forwarder.table.remove(subnet)
                else:
                    forwarder.table.put(Peer(subnet, holder))
        for peer, subnets in self.known.items():
            subnets.discard(number)
            if peer == holder:
                subnets.add(number)
            (self.edges.port.put(peer, ()) if subnets else self.edges.port.remove(peer))
        for forwarder in (self.fast, self.plain):
            forwarder.table_changed()

    def out(self, header: bytes, packet: bytes) -> None:
        self.tun.incoming.append(header + packet)
        self.plain.from_tun()
        self.plain.from_tun()
        self.edges.rest(self.path)
        self.edges.give(header + packet)
        self._work()

    def come(self, packet: bytes, sender: str, right_port: bool, size: int = 0) -> None:
        """What one call brings: a packet, or several of one size, the last of which may be shorter."""
        size = size or len(packet)
        count = -(-len(packet) // size) if packet else 1
        if not self.known.get(sender):
            self.refused["drop_unknown_sender"] += count
        elif not right_port:
            self.refused["drop_source_port"] += count
        else:
            self.underlay.incoming.append((packet, size, sender))
            self.plain.from_underlay(self.underlay)
            self.plain.from_underlay(self.underlay)
        self.edges.rest(self.path)
        self.edges.send(packet, sender, size=size, right_port=right_port)
        self._work()

    def _work(self) -> None:
        for fd, read in self.path.poll(0.0):
            if fd == self.edges.tun.fileno():
                self.fast.from_tun(read)  # type: ignore[arg-type] # of the device
            else:
                self.fast.from_underlay(self.edges.port, read)  # type: ignore[arg-type] # of a socket

    def compare(self) -> None:
        """Both have sent and written the same."""
        assert self.edges.given() == self.tun.outgoing
        assert sorted(self.edges.sent()) == sorted(self.underlay.outgoing)
        self.tun.outgoing.clear()
        self.underlay.outgoing.clear()

    def compare_counters(self) -> int:
        """Returns how many packets the fast path has carried."""
        carried = self.path.take_counters()
        counters = {name: count + carried.get(name, 0) for name, count in self.fast.counters.items()}
        assert counters == self.plain.counters
        assert self.edges.port.counters == self.refused
        return carried["sent_packets"] + carried["received_packets"]


hosts = st.sampled_from([OURS, THEIRS, OTHERS, bytes([10, 5, 2, 9]), bytes([10, 5, 9, 9])])
steps = (
    super_packets().map(lambda made: ("out", *made))
    | st.tuples(trains(), st.sampled_from([PEER, PEER, PEER, OTHER])).map(
        lambda made: ("come", made[0][0], made[1], True, made[0][1])
    )
    | st.tuples(st.just("out"), st.just(vnet.PLAIN), st.tuples(hosts, hosts).flatmap(lambda ends: hostile(*ends)))
    | st.tuples(st.just("out"), headers, hostile(OURS, THEIRS))
    | st.tuples(
        st.just("come"),
        hosts.flatmap(lambda source: hostile(source, OURS)),
        st.sampled_from([PEER, PEER, OTHER, STRANGER]),
        st.sampled_from([True, True, True, False]),
    )
    | st.tuples(st.just("move"), st.sampled_from([2, 2, 3]), st.sampled_from([PEER, OTHER, None]))
    | st.tuples(st.just("forget"))
)


@pytest.mark.parametrize("offload", [True, False])
@given(todo=st.lists(steps, max_size=30))
def test_python_alone_would_have_done_the_same(edges: Edges, offload: bool, todo: list[tuple[Any, ...]]) -> None:
    twins = Twins(edges, offload=offload)
    for name, *arguments in todo:
        if name == "forget":
            twins.fast.forget_path_mtus()
            twins.plain.forget_path_mtus()
        else:
            getattr(twins, name)(*arguments)
        twins.compare()
    twins.compare_counters()


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("ends", [(OURS, THEIRS), (HOSTS6[0], HOSTS6[1])], ids=["IPv4", "IPv6"])
def test_whole_bursts_are_carried_without_python(edges: Edges, protocol: int, ends: tuple[bytes, bytes]) -> None:
    """Cut and joined as Python does it, byte by byte."""
    twins = Twins(edges, offload=True)
    ours, theirs = ends
    parts = Packet(bytes(range(256)) * 200, protocol, ours, theirs, flags=ACK | PSH, identification=0xFFF0)
    offset, kind = (
        (6, vnet.GSO_UDP_L4) if protocol == UDP else (16, vnet.GSO_TCPV6 if len(ours) == 16 else vnet.GSO_TCPV4)
    )
    header = vnet.VnetHeader(1, kind, parts.header_length, 1400, parts.ip_length, offset).pack()
    wire = reference.segments(Packet(bytes(range(256)) * 200, protocol, theirs, ours), 1400, hops=0)
    for _ in range(3):
        twins.out(header, parts.build_partial())
        twins.come(b"".join(wire), PEER, True, len(wire[0]))
        assert len(twins.tun.outgoing) == 1
        assert len(twins.underlay.outgoing) == len(wire) == 37
        twins.compare()
    assert twins.compare_counters() == 2 * 2 * 37


def test_flows_that_go_on_are_carried_without_python(edges: Edges) -> None:
    twins = Twins(edges, offload=False)
    for _ in range(10):
        twins.out(vnet.PLAIN, leaving())
        twins.come(arriving(), PEER, True)
        twins.compare()
    assert twins.compare_counters() == 2 * 9  # all but the first, which was looked up


def test_a_peer_that_lost_its_subnet_neither_gets_nor_sends_a_packet(edges: Edges) -> None:
    twins = Twins(edges, offload=False)

    def exchange() -> tuple[list[str], int]:
        for _ in range(3):
            twins.out(vnet.PLAIN, leaving())
            twins.come(arriving(), PEER, True)
        sent, given = edges.sent(), edges.given()
        return [peer for _, peer in sent], len([data for _, data in given if data[12:16] == THEIRS])

    assert exchange() == ([PEER] * 3, 3)
    twins.move(2, None)
    assert exchange() == ([], 0)
    twins.move(2, PEER)
    assert exchange() == ([PEER] * 3, 3)
    twins.move(2, OTHER)
    assert exchange() == ([OTHER] * 3, 0)
    twins.move(2, PEER)
    assert exchange() == ([PEER] * 3, 3)
