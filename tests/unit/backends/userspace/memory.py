"""The two edges of a data plane in memory: a TUN device and an underlay that record what they are given."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from pyflannel_backends.userspace.ports import Endpoint, Inlet, UnderlayPort
from pyflannel_backends.userspace.table import PeerId


class MemoryTun:
    """``incoming`` holds packets with their virtio header, as the kernel would hand them over."""

    def __init__(self) -> None:
        self.incoming: deque[bytes] = deque()
        self.outgoing: list[tuple[bytes, bytes]] = []
        self.error = 0

    def receive(self, buffer: memoryview) -> int:
        if not self.incoming:
            return 0
        packet = self.incoming.popleft()
        buffer[: len(packet)] = packet
        return len(packet)

    def send(self, header: bytes, packet: memoryview | bytes) -> int:
        if self.error:
            return self.error
        whole = header + bytes(packet)
        self.outgoing.append((whole[:10], whole[10:]))
        return 0


class MemoryUnderlay(UnderlayPort):
    """``incoming`` holds what receive calls return: packets back to back, their size, and who sent them.

    Packets of up to ``mtu`` bytes go into a call of up to 64 packets and 65507 bytes, as with a UDP socket.
    """

    def __init__(self, mtu: int = 1472) -> None:
        super().__init__()
        self.incoming: deque[tuple[bytes, int, PeerId | None]] = deque()
        self.outgoing: list[tuple[bytes, PeerId]] = []
        self.calls: list[tuple[int, int]] = []
        self.fragmented: list[int] = []
        """Sizes of what was to be fragmented on the underlay, in the order of sending."""
        self.mtu = mtu
        self.port = 0
        """Where peers are on loopback, for a fast path, which sends by itself."""
        self.errors: deque[int] = deque()

    def open(self) -> Sequence[Inlet]:
        return [self]

    def close(self) -> None:
        pass

    def put(self, peer: PeerId, details: Sequence[Any]) -> None:
        pass

    def remove(self, peer: PeerId) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def receive(self, buffer: memoryview) -> tuple[int, int, PeerId | None] | None:
        if not self.incoming:
            return None
        data, size, peer = self.incoming.popleft()
        data = data[: len(buffer)]
        buffer[: len(data)] = data
        return len(data), size, peer

    def send(self, data: memoryview, size: int, peer: PeerId) -> int:
        if self.errors:
            error = self.errors.popleft()
            if error:
                return error
        if size > self.mtu:
            return 90  # EMSGSIZE
        whole = bytes(data)
        packets = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert len(packets) <= self.rows(size)
        self.calls.append((size, len(packets)))
        self.outgoing += [(packet, peer) for packet in packets]
        return 0

    def send_in_fragments(self, data: memoryview, size: int, peer: PeerId) -> int:
        packets = [bytes(data[start : start + size]) for start in range(0, len(data), size)]
        self.fragmented += map(len, packets)
        self.outgoing += [(packet, peer) for packet in packets]
        return self.errors.popleft() if self.errors else 0

    def way(self, peer: PeerId) -> Endpoint | None:
        return (peer, self.port) if self.port else None

    def rows(self, size: int) -> int:
        return max(1, min(64, 65507 // size))

    def path_mtu(self, peer: PeerId) -> int:
        return self.mtu
