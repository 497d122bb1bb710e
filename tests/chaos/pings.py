"""Traffic between all pairs of containers all the time, and what was lost of it: ``python -m tests.chaos.pings``.

One process has a UDP socket in each container's namespace. In every round each container sends one numbered datagram to
each other one, in each family; the number is the round's, so that whoever gets it knows what was lost before. A
direction is a stream of its own: nothing is answered. Times are of the monotonic clock, which all processes share.

Standard input: one JSON document a line, ``{"name": ..., "netns": ..., "addresses": [...]}`` for a new container, or
one whose addresses are new. Standard output: ``{"lost": [source, target, version, begin, end, count]}`` when a gap is
over, and each second a ``{"at": ..., "sent": ..., "cpu": ..., "open": [...]}`` with the gaps that go on.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from pyflannel.kernel.netns import call_in

__all__ = ["INTERVAL", "Board", "Gap"]

INTERVAL: Final = 0.2
"""Seconds between two rounds."""

PORT: Final = 9009
OPEN: Final = 5
"""Rounds without an answer after which a gap is told as one that goes on."""

_DATAGRAM: Final = struct.Struct("!HHI")


@dataclass(frozen=True, slots=True)
class Gap:
    """Rounds of one stream that did not arrive: from the first to before ``until``."""

    source: int
    target: int
    version: int
    first: int
    until: int


class Board:
    """What has arrived of which stream. Pure: it is told rounds, and has no clock."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, int, int], int] = {}

    def begin(self, source: int, target: int, version: int, number: int) -> None:
        """The stream's first datagram is sent in this round."""
        self._next.setdefault((source, target, version), number)

    def arrived(self, source: int, target: int, version: int, number: int) -> Gap | None:
        """A datagram came; returns what is missing before it."""
        expected = self._next.get((source, target, version))
        if expected is None or number < expected:  # out of order: told as lost already
            return None
        self._next[source, target, version] = number + 1
        return Gap(source, target, version, expected, number) if number > expected else None

    def going_on(self, number: int) -> Iterator[Gap]:
        """The streams of which nothing has come for :data:`OPEN` rounds, before round ``number``."""
        for (source, target, version), expected in self._next.items():
            if number - expected > OPEN:
                yield Gap(source, target, version, expected, number)


@dataclass(slots=True)
class _Container:
    name: str
    sockets: dict[int, socket.socket]
    addresses: dict[int, tuple[str, int]] = field(default_factory=dict)


def _socket(version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    channel = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    if version == 6:
        channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    channel.bind(("" if version == 4 else "::", PORT))
    return channel


class _Pings:
    def __init__(self) -> None:
        self.containers: list[_Container] = []
        self.board = Board()
        self.began: list[float] = []
        """When each round began."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        os.set_blocking(0, False)
        self._read = b""
        self.sent = 0
        self.over = False

    def run(self) -> None:
        at = time.monotonic()
        while not self.over:
            self.began.append(time.monotonic())
            for number, _ in enumerate(self.containers):
                self._send(number)
                self._wait(at + INTERVAL * (number + 1) / len(self.containers))
            at += INTERVAL
            self._wait(at)
            if len(self.began) % round(1 / INTERVAL) == 0:
                self._tell_open()

    def _send(self, source: int) -> None:
        one, number = self.containers[source], len(self.began) - 1
        for target, other in enumerate(self.containers):
            for version, address in other.addresses.items():
                if target != source and version in one.addresses:
                    self.board.begin(source, target, version, number)
                    self.sent += 1
                    with suppress(OSError):  # no way there: lost
                        one.sockets[version].sendto(_DATAGRAM.pack(source, target, number), address)

    def _wait(self, until: float) -> None:
        while not self.over:
            left = until - time.monotonic()
            for key, _ in self._selector.select(max(0.0, left)):
                if key.fileobj is sys.stdin:
                    self._hear()
                else:
                    self._receive(*key.data)
            if left <= 0:
                return

    def _receive(self, target: int, version: int) -> None:
        channel = self.containers[target].sockets[version]
        with suppress(BlockingIOError):
            while True:
                try:
                    data = channel.recv(64)
                except BlockingIOError:
                    return
                except OSError:  # an ICMP error about something that was sent
                    continue
                if len(data) == _DATAGRAM.size:
                    source, meant, number = _DATAGRAM.unpack(data)
                    gap = self.board.arrived(source, target, version, number) if meant == target else None
                    if gap is not None:
                        self._tell({"lost": [*self._names(gap), self.began[gap.until], gap.until - gap.first]})

    def _names(self, gap: Gap) -> list[Any]:
        source, target = self.containers[gap.source].name, self.containers[gap.target].name
        return [source, target, gap.version, self.began[gap.first]]

    def _tell_open(self) -> None:
        going_on = [self._names(gap) for gap in self.board.going_on(len(self.began))]
        self._tell({"at": self.began[-1], "sent": self.sent, "cpu": time.process_time(), "open": going_on})

    def _tell(self, document: Any) -> None:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()

    def _hear(self) -> None:
        data = os.read(0, 1 << 16)
        self.over = not data
        *lines, self._read = (self._read + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, document: Any) -> None:
        name = document["name"]
        container = next((one for one in self.containers if one.name == name), None)
        if container is None:
            sockets = call_in(Path(document["netns"]), lambda: {version: _socket(version) for version in (4, 6)})
            container = _Container(name, sockets)
            for version, channel in sockets.items():
                self._selector.register(channel, selectors.EVENT_READ, (len(self.containers), version))
            self.containers.append(container)
        container.addresses = {ip_address(text).version: (text, PORT) for text in document["addresses"]}


if __name__ == "__main__":
    _Pings().run()
