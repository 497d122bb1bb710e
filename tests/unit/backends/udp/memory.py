"""The two edges of the data plane in memory: a TUN device and an underlay that record what they are given."""

from __future__ import annotations

from collections import deque

from pyflannel_backends.udp.table import Endpoint


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


class MemoryUnderlay:
    """``incoming`` holds what receive calls return: datagrams back to back, their size, and who sent them."""

    def __init__(self, mtu: int = 1500) -> None:
        self.incoming: deque[tuple[bytes, int, Endpoint]] = deque()
        self.outgoing: list[tuple[bytes, Endpoint]] = []
        self.calls: list[tuple[int, int]] = []
        self.mtu = mtu
        self.errors: deque[int] = deque()

    def receive(self, buffer: memoryview) -> tuple[int, int, Endpoint] | None:
        if not self.incoming:
            return None
        data, size, endpoint = self.incoming.popleft()
        data = data[: len(buffer)]
        buffer[: len(data)] = data
        return len(data), size, endpoint

    def send(self, data: memoryview, size: int, endpoint: Endpoint) -> int:
        if self.errors:
            error = self.errors.popleft()
            if error:
                return error
        if size + 28 > self.mtu:
            return 90  # EMSGSIZE
        whole = bytes(data)
        packets = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert len(packets) <= 64
        assert len(whole) <= 65507
        self.calls.append((size, len(packets)))
        self.outgoing += [(packet, endpoint) for packet in packets]
        return 0

    def path_mtu(self, endpoint: Endpoint) -> int:
        return self.mtu
