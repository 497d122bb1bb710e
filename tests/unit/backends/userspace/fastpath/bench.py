"""A fast path between real descriptors without anybody who teaches it, and packets to give it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.backends.userspace.bursts import OURS, THEIRS
from tests.unit.backends.userspace.edges import PEER, Edges
from tests.unit.backends.userspace.reference import UDP, Packet

from pyflannel_backends.userspace import packet as ip
from pyflannel_backends.userspace import vnet
from pyflannel_backends.userspace.ports import Received

pytest.importorskip(
    "pyflannel_backends.userspace._fastpath", reason="the extension was not compiled", exc_type=ImportError
)

from pyflannel_backends.userspace._fastpath import FastPath

ROOM = 10 + 0xFFFF
MTU = 1472


class Bench:
    """A fast path without anybody who teaches it. ``judged`` is what it asked about."""

    def __init__(self, edges: Edges, *, any_port: bool = False) -> None:
        self.edges = edges
        self.tun_buffer, self.udp_buffer = bytearray(ROOM), bytearray(ROOM)
        self.judged: list[tuple[int, int, tuple[str, int]]] = []
        self.path = self.make(any_port=any_port)

    def make(self, **changes: Any) -> FastPath:
        arguments = {
            "epoll": self.edges.epoll.fileno(),
            "tun": self.edges.tun.fileno(),
            "sockets": (self.edges.port.fileno(),),
            "packet": self.tun_buffer,
            "received": self.udp_buffer,
            "opened": self.udp_buffer,
            "judge": self._judge,
            "port": self.edges.number,
            "any_port": False,
            "sealed": False,
            "mtu": MTU,
            "segments": True,
            "cuts": True,
            "joins_tcp": True,
            "joins_udp": True,
            **changes,
        }
        path = FastPath(**arguments)
        path.let_linger(0.001, True)
        return path

    def learn_route(self, destination: bytes, peer: str, mtu: int) -> None:
        self.path.learn_route(destination, peer, mtu, (peer, self.edges.number))

    def counted(self) -> tuple[int, int, int, int]:
        """Packets and bytes sent, packets and bytes received."""
        counters = self.path.take_counters()
        sent, received = (
            (counters["sent_packets"], counters["sent_bytes"]),
            (
                counters["received_packets"],
                counters["received_bytes"],
            ),
        )
        return *sent, *received

    def _judge(self, length: int, size: int, sender: tuple[str, int]) -> Received:
        self.judged.append((length, size, sender))
        return length, size, "judged"

    def from_tun(self, packet: bytes, header: bytes = vnet.PLAIN) -> bytes | None:
        """What was sent for a packet that comes alone; ``None`` if it is Python's, as it was."""
        self.edges.rest(self.path)
        self.edges.give(header + packet)
        left = self.path.poll(0.0)
        sent = self.edges.sent()
        if left:
            assert left == [(self.edges.tun.fileno(), 10 + len(packet))]
            assert self.tun_buffer[: 10 + len(packet)] == header + packet
            assert sent == []
            return None
        ((data, _),) = sent
        return data

    def from_udp(self, packet: bytes, sender: str = PEER, *, right_port: bool = True) -> bytes | None:
        """What was written to the device for a datagram that comes alone; ``None`` if it is Python's, as it was."""
        self.edges.rest(self.path)
        self.edges.send(packet, sender, right_port=right_port)
        left = self.path.poll(0.0)
        given = self.edges.given()
        if left:
            assert left == [(self.edges.port.fileno(), (len(packet), len(packet), "judged"))]
            assert self.udp_buffer[: len(packet)] == packet
            length, size, (address, number) = self.judged.pop()
            assert (length, size, address) == (len(packet), len(packet), sender)
            assert (number == self.edges.number) == right_port
            assert given == []
            return None
        ((header, data),) = given
        assert header == vnet.PLAIN
        return data


def leaving(**changes: Any) -> bytes:
    ends = {"source": OURS, "destination": THEIRS}
    return Packet(**{"payload": b"hello, peers", "protocol": UDP, **ends, **changes}).build()


def arriving(**changes: Any) -> bytes:
    return leaving(**{"source": THEIRS, "destination": OURS, **changes})


def one_hop_on(packet: bytes) -> bytes:
    after = bytearray(packet)
    ip.decrement_ttl(after)
    return bytes(after)


def with_checksum(packet: bytes, value: int) -> bytes:
    return packet[:10] + value.to_bytes(2, "big") + packet[12:]
