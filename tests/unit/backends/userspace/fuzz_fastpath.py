"""Whatever comes, to a fast path that was compiled with the compiler's own checks: they end the process at a fault.

``python -m tests.unit.backends.userspace.fuzz_fastpath DIRECTORY SEED ROUNDS bare|sealed``; the extension is in the
directory. Prints what became of the packets: how many were ``given`` and ``sent`` by the device, ``came`` and were
``received`` from peers, were ``left`` to Python or joined, and how many arguments were ``refused``. What is given is
good most of the time, so that whole bursts get through to the last line of code; the rest is bent in every way.
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
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.unit.backends.userspace.edges import NODE, OTHER, PEER, STRANGER, Edges
from tests.unit.backends.userspace.reference import ACK, CWR, FIN, PSH, SYN, TCP, UDP, Packet, segments

ROOM = 10 + 0xFFFF
MTU = 1420
HOSTS = [bytes([10, 5, subnet, host]) for subnet in (1, 2) for host in (0, 255)]
HOSTS6 = [bytes([0xFD, subnet, *bytes(13), host]) for subnet in (1, 2) for host in (0, 255)]
SIZES = [0, 1, 2, 12, 100, 536, 1340, 1380, 1444, 5000, 20_000, 65_000]
STEPS = [1, 7, 100, 536, 1340, 1352, 1360]
INDEX = 0x01020304


class Fuzz:
    """One fast path, which is made anew now and then; buffers have not a byte more than they must."""

    def __init__(self, extension: Any, seed: int, *, sealed: bool) -> None:
        self.extension = extension
        self.sealed = sealed
        self.random = random.Random(seed)
        self.edges = Edges()
        self.count: Counter[str] = Counter()
        self.make()

    def make(self) -> None:
        chance = self.random
        self.path = self.extension.FastPath(
            epoll=self.edges.epoll.fileno(),
            tun=self.edges.tun.fileno(),
            sockets=(self.edges.port.fileno(),),
            packet=bytearray(ROOM),
            received=bytearray(ROOM - 10),
            opened=bytearray(ROOM - 10),
            judge=self.judge,
            port=self.edges.number,
            any_port=chance.random() < 0.5,
            sealed=self.sealed,
            mtu=MTU,
            segments=chance.random() < 0.8,
            cuts=chance.random() < 0.9,
            joins_tcp=chance.random() < 0.9,
            joins_udp=chance.random() < 0.9,
        )
        self.path.let_linger(chance.choice([0.0, 0.001, math.inf]), chance.random() < 0.5)
        self.ours = self.theirs = None
        if self.sealed:
            one, other = chance.randbytes(32), chance.randbytes(32)
            self.ours = self.extension.Transport(one, other)
            self.theirs = self.extension.Transport(other, one)

    def judge(self, length: int, size: int, sender: tuple[str, int]) -> object:
        if self.random.random() < 0.1:
            raise LookupError
        return length, size, sender

    def step(self) -> None:
        actions = [self.from_tun, self.from_udp] * 4 + [self.misuse]
        self.learn()
        for _ in range(self.random.choice([1, 1, 1, 3])):
            self.random.choice(actions)()
        for deadline in (-1.0, math.nan, 0.0, 0.0)[: self.random.choice([0, 1, 2, 4, 4])]:
            self.poll(deadline)
        counters = self.path.take_counters()
        for name in ("sent_calls", "sent_packets", "received_calls", "received_packets", "joined_packets"):
            self.count[name] += counters[name]
        self.path.take_notes()
        if self.random.random() < 0.01:
            self.path.forget()
            self.make()

    def poll(self, deadline: float) -> None:
        try:
            left = self.path.poll(deadline)
        except LookupError:
            return
        self.count["left"] += len(left)

    def drain(self, fd: int) -> None:
        with socket.socket(fileno=socket.dup(fd)) as end:
            while select.select([end], [], [], 0)[0]:
                end.recv(1 << 17, socket.MSG_DONTWAIT)

    def parts(self, size: int) -> Packet:
        chance = self.random
        hosts = chance.choice([HOSTS, HOSTS, HOSTS6])
        return Packet(
            chance.randbytes(size),
            chance.choice([TCP, UDP]),
            chance.choice(hosts),
            chance.choice(hosts),
            ttl=chance.choice([2, 64, 64, 64, 255]),
            identification=chance.choice([0, 7, 0xFFFF]),
            sequence=chance.choice([0, 0xFFFFFFF0]),
            flags=chance.choice([ACK, ACK, ACK | PSH, ACK | FIN, ACK | CWR]),
            tcp_options=bytes(chance.choice([0, 0, 12, 40])),
        )

    def bent(self, packet: bytes) -> bytes:
        """The same, or not quite."""
        chance = self.random
        if chance.random() < 0.75:
            return packet
        if chance.random() < 0.1:
            return chance.randbytes(chance.choice([0, 1, 19, 20, 21, 39, 40, 41, 1000]))
        data = bytearray(packet)
        while data and chance.random() < 0.5:
            data[chance.randrange(min(len(data), 60))] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        if len(data) > 4 and chance.random() < 0.2:
            struct.pack_into("!H", data, 2, chance.choice([0, 19, 20, len(data) - 1, 0x7FFF, 0xFFFF]))
        if data and chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        return bytes(data)

    def from_tun(self) -> None:
        chance = self.random
        for _ in range(chance.choice([1, 1, 2, 5])):
            packet = self.parts(chance.choice(SIZES))
            offset = 16 if packet.protocol == TCP else 6
            kind = {TCP: 4 if packet.ip_length == 40 else 1, UDP: 5}[packet.protocol] * (len(packet.payload) > 1300)
            step = chance.choice(STEPS[3:] if chance.random() < 0.8 else STEPS)
            head = struct.pack("=BBHHHH", 1, kind, packet.header_length, step, packet.ip_length, offset)
            whole = bytearray(head + self.bent(packet.build_partial()))
            while chance.random() < 0.1:
                whole[chance.randrange(min(10, len(whole)))] = chance.choice([0, 1, 2, 0xFF, chance.randrange(256)])
            if chance.random() < 0.02:
                del whole[chance.randrange(1, 40) :]
            with contextlib.suppress(BlockingIOError):  # the queue is full
                self.edges.kernel.send(bytes(whole) + bytes(70_000 * (chance.random() < 0.01)))
                self.count["given"] += 1

    def datagrams(self) -> tuple[bytes, int]:
        """Packets of one size, the last perhaps shorter; most of the time of one flow."""
        chance = self.random
        step = chance.choice([1, 100, 536, 1340])
        packet = self.parts(step * chance.choice([1, 1, 2, 5, 20]) + chance.choice([0, 0, 1, 50]))
        packet.flags &= ~(SYN | 0)
        made = [self.bent(data) for data in segments(packet, step, hops=0)]
        if self.sealed:
            made = [self.sealed_one(data) for data in made]
        size = len(made[0])
        whole = b""
        for data in made:
            if size == 0 or len(data) > size or len(whole) + len(data) > 0xFFFF - 28:
                break
            whole += data
            if len(data) < size:
                break
        return whole, size

    def sealed_one(self, packet: bytes) -> bytes:
        chance = self.random
        assert self.theirs is not None
        number = self.theirs.claim(1)
        if chance.random() < 0.03:
            number = max(0, number - chance.choice([1, 2, 9000]))
        if chance.random() < 0.03:
            packet = b""
        packet += bytes(max(0, min(-len(packet) % 16, MTU - len(packet))))
        message = bytearray(self.theirs.seal(number, packet))
        struct.pack_into("<I", message, 4, INDEX if chance.random() < 0.98 else chance.randrange(1 << 32))
        while chance.random() < 0.02:
            message[chance.randrange(len(message))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.02:
            del message[chance.randrange(len(message)) :]
        return bytes(message)

    def from_udp(self) -> None:
        chance = self.random
        for _ in range(chance.choice([1, 1, 2, 5])):
            whole, size = self.datagrams()
            sender = chance.choice([PEER] * 8 + [OTHER, STRANGER])
            size = size if size < len(whole) <= 64 * size else 0
            self.edges.send(whole[: 0xFFFF - 28], sender, size=size, right_port=chance.random() < 0.9)
            self.count["came"] += 1

    def learn(self) -> None:
        chance = self.random
        peer = chance.choice([PEER] * 20 + [OTHER, "255.255.255.255"])
        endpoint = peer, self.edges.number
        until = time.monotonic() + chance.choice([1e9] * 20 + [0, math.nan])
        if self.sealed:
            self.path.learn_session(self.ours, INDEX, 7, PEER, endpoint, until)
        for hosts in (HOSTS, HOSTS6):
            for host in hosts:
                mtu = chance.choice([MTU] * 8 + [20, 0xFFFF])
                self.path.learn_route(host, peer, mtu, self.ours if self.sealed else endpoint)
                for other in hosts:
                    self.path.learn_path(PEER if chance.random() < 0.95 else OTHER, host + other)
        for end in (self.edges.kernel, *self.edges.peers.values()):
            self.drain(end.fileno())

    def misuse(self) -> None:
        chance = self.random
        things: list[object] = [b"", b"abcd", b"abcdefgh", b"x" * 5000, "", PEER, "::1", "\udcff", "x" * 5000, None, 0]
        things += [-1, 1 << 80, 1472, math.inf, math.nan, bytearray(8), (), self.path, self.ours, (NODE, 5), ("::1", 5)]
        names = ["packet", "received", "opened"]
        methods = [self.path.learn_route, self.path.learn_path, self.path.learn_session, self.path.forget]
        if self.sealed:
            ours = self.extension.Transport(bytes(32), bytes(32))
            methods += [self.extension.Transport, ours.claim, ours.accept, ours.accept_run, ours.seal, ours.open]
        try:
            if chance.random() < 0.2:
                whole: dict[str, object] = dict.fromkeys(names, bytearray(ROOM))
                whole |= dict.fromkeys(["epoll", "tun", "port", "mtu"], 3)
                whole |= dict.fromkeys(["any_port", "sealed", "segments", "cuts", "joins_tcp", "joins_udp"], True)
                whole |= {"sockets": (3,), "judge": None}
                self.extension.FastPath(**(whole | {chance.choice(list(whole)): chance.choice(things)}))
            else:
                method = chance.choice(methods)
                method(*(chance.choice(things) for _ in range(chance.choice([1, 2, 2, 3, 4, 6]))))
        except (TypeError, ValueError, OverflowError):
            self.count["refused"] += 1


def main() -> None:
    directory, seed, rounds, how = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    sys.path.insert(0, str(directory))
    extension = importlib.import_module("_fastpath")
    assert Path(extension.__file__ or "").parent == directory
    assert "libasan" in Path("/proc/self/maps").read_text()
    fuzz = Fuzz(extension, seed, sealed=how == "sealed")
    for _ in range(rounds):
        fuzz.step()
    print(*(f"{name}={count}" for name, count in sorted(fuzz.count.items())))


if __name__ == "__main__":
    main()
