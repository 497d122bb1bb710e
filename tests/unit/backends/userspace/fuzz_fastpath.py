"""Whatever comes, to a fast path that was compiled with the compiler's own checks: they end the process at a fault.

``python -m tests.unit.backends.userspace.fuzz_fastpath DIRECTORY SEED ROUNDS``; the extension is in the directory.
Prints how many packets were carried, left to Python, and refused as arguments: none of them must be rare.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import random
import select
import socket
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.unit.backends.userspace.edges import OTHER, PEER, STRANGER, Edges
from tests.unit.backends.userspace.reference import UDP, Packet

ROOM = 10 + 0xFFFF
HOSTS = [bytes([10, 5, subnet, host]) for subnet in (1, 2) for host in (0, 255)]
SIZES = [0, 1, 12, 100, 1444, 1445, 9000, 0xFFFF - 28, 0xFFFF - 28 + 1]


class Fuzz:
    """One fast path, which is made anew now and then; buffers have not a byte more than they must."""

    def __init__(self, kind: Any, seed: int) -> None:
        self.kind = kind
        self.random = random.Random(seed)
        self.edges = Edges()
        self.count: Counter[str] = Counter()
        self.make()

    def make(self) -> None:
        self.path = self.kind(
            epoll=self.edges.epoll.fileno(),
            tun=self.edges.tun.fileno(),
            tun_buffer=bytearray(ROOM),
            udp=self.edges.port.fileno(),
            udp_buffer=bytearray(ROOM),
            port=self.edges.number,
            any_port=self.random.random() < 0.5,
            judge=self.judge,
        )

    def judge(self, length: int, size: int, sender: tuple[str, int]) -> object:
        if self.random.random() < 0.1:
            raise LookupError
        return length, size, sender

    def step(self) -> None:
        actions = [self.from_tun, self.from_udp] * 4 + [self.learn] * 3 + [self.misuse]
        for _ in range(self.random.choice([1, 1, 1, 3])):
            self.random.choice(actions)()
        for deadline in (-1.0, math.nan, 0.0, 0.0)[: self.random.choice([0, 1, 2, 4, 4])]:
            self.poll(deadline)
        self.count["carried"] += sum(self.path.take_counters()[::2])
        if self.random.random() < 0.01:
            self.path.forget()
            self.make()

    def poll(self, deadline: float) -> None:
        try:
            left = self.path.poll(deadline)
        except LookupError:
            return
        for fd, read in left:
            self.count["left"] += 1
            if read is None:
                self.drain(fd)

    def drain(self, fd: int) -> None:
        """What the data plane would read."""
        with socket.socket(fileno=socket.dup(fd)) as end:
            while select.select([end], [], [], 0)[0]:
                end.recv(1 << 17, socket.MSG_DONTWAIT)

    def packet(self) -> bytes:
        chance = self.random
        if chance.random() < 0.1:
            return chance.randbytes(chance.choice([0, 1, 19, 20, 21, 1000, 0xFFFF - 28]))
        data = bytearray(
            Packet(
                bytes(chance.choice(SIZES) % (0xFFFF - 20 - 8)),
                UDP,
                chance.choice(HOSTS),
                chance.choice(HOSTS),
                ttl=chance.choice([0, 1, 2, 64, 255]),
                ip_options=bytes(chance.choice([0, 0, 0, 4, 40])),
            ).build()
        )
        while chance.random() < 0.3:
            data[chance.randrange(min(len(data), 30))] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        if chance.random() < 0.1:
            struct.pack_into("!H", data, 2, chance.choice([0, 19, 20, len(data) - 1, 0x7FFF, 0xFFFF]))
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        return bytes(data)

    def from_tun(self) -> None:
        header = self.random.choice([bytes(10), bytes(10), self.random.randbytes(10)])
        packet = header + self.packet() + bytes(self.random.choice([0, 0, 0, 10, 70_000]))
        if self.random.random() < 0.05:
            packet = packet[: self.random.randrange(1, 31)]
        with contextlib.suppress(BlockingIOError):  # the queue is full
            self.edges.kernel.send(packet)

    def from_udp(self) -> None:
        packet = self.packet()[: 0xFFFF - 28]
        sizes = [0, 0, 0] if len(packet) > 60 * 1400 else [0, 0, 0, min(1400, max(1, len(packet) // 2)), 1400]
        sender = self.random.choice([PEER, PEER, OTHER, STRANGER])
        self.edges.send(packet, sender, size=self.random.choice(sizes), right_port=self.random.random() < 0.8)

    def learn(self) -> None:
        chance = self.random
        for host in HOSTS:
            peer = chance.choice([PEER, PEER, PEER, OTHER, "255.255.255.255"])
            self.path.learn_route(host, peer, chance.choice([20, 1472, 0xFFFF]))
            self.path.learn_path(peer, host + chance.choice(HOSTS))
        self.path.learn_route(chance.randbytes(4), peer, chance.randrange(1, 0x10000))
        for end in (self.edges.kernel, *self.edges.peers.values()):
            self.drain(end.fileno())

    def misuse(self) -> None:
        chance = self.random
        things: list[object] = [
            b"",
            b"abcd",
            b"abcdefgh",
            b"x" * 5000,
            "",
            PEER,
            "::1",
            "\udcff",
            "x" * 5000,
            None,
            0,
            -1,
            1 << 80,
        ]
        things += [1472, math.inf, math.nan, bytearray(8), (), self.path, struct.pack("Q", 1)]
        byte_strings = [b"", b"abc", b"abcd", chance.randbytes(7), chance.randbytes(9), chance.choice(things)]
        peers = [PEER, PEER, chance.choice(things)]
        called, *arguments = chance.choice(
            [
                (
                    self.path.learn_route,
                    chance.choice(byte_strings),
                    chance.choice(peers),
                    chance.choice([-1, 1472, 1 << 33]),
                ),
                (self.path.learn_path, chance.choice(peers), chance.choice(byte_strings)),
                (self.path.forget, chance.choice(things)),
                (self.kind,),
            ]
        )
        names = ("epoll", "tun", "tun_buffer", "udp", "udp_buffer", "port", "any_port", "judge")
        try:
            if called is self.kind:
                self.kind(**{name: chance.choice([*things, bytearray(ROOM), 3, 8285]) for name in names})
            else:
                called(*arguments)
        except (TypeError, ValueError, OverflowError):
            self.count["refused"] += 1


def main() -> None:
    directory, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    sys.path.insert(0, str(directory))
    extension = importlib.import_module("_fastpath")
    assert Path(extension.__file__ or "").parent == directory
    assert "libasan" in Path("/proc/self/maps").read_text()
    fuzz = Fuzz(extension.FastPath, seed)
    for _ in range(rounds):
        fuzz.step()
    print(*(f"{name}={count}" for name, count in sorted(fuzz.count.items())))


if __name__ == "__main__":
    main()
