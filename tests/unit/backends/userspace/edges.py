"""The two edges of a data plane as real descriptors, for the fast path, which reads and writes these itself.

One end of a socket pair, whose messages have bounds as a device's packets have, is the TUN queue; the peers are sockets
on loopback.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import TYPE_CHECKING

import pytest

from pyflannel_backends.udp.worker import UdpConfig, UdpPort
from pyflannel_backends.userspace.forward import Forwarder
from pyflannel_backends.userspace.ports import TunQueue

if TYPE_CHECKING:
    from pyflannel_backends.userspace._fastpath import FastPath

NODE, PEER, OTHER, STRANGER = "127.0.1.1", "127.0.1.2", "127.0.1.3", "127.0.1.4"
_END = b"the end"
_UDP_SEGMENT = 103


class SocketTun(TunQueue):
    """The queue of a device on another descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor


class Edges:
    """``kernel`` is the other side of the device; ``peers`` are sockets at the node's port, by their addresses."""

    def __init__(self, *, any_source_port: bool = False) -> None:
        self.kernel, self._queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self._queue.setblocking(False)
        self.tun = SocketTun(self._queue.fileno())
        self.number, self.peers = _bind_peers()
        config = UdpConfig(
            device="",
            mtu=1472,
            own=["10.5.1.0/24"],
            offload=True,
            address=NODE,
            port=self.number,
            any_source_port=any_source_port,
        )
        self.port = UdpPort(config)
        self.port.put(PEER, ())
        self.port.put(OTHER, ())
        self.port.open()
        self.epoll = select.epoll()
        for source in (self.tun, self.port):
            self.epoll.register(source.fileno(), select.EPOLLIN)

    def close(self) -> None:
        self.epoll.close()
        self.port.close()
        for end in (self.kernel, self._queue, *self.peers.values()):
            end.close()

    def attach(self, forwarder: Forwarder) -> FastPath:
        """A fast path for a forwarder, as the worker makes it, even if extensions are switched off where tests run."""
        device = forwarder.device_side(self.epoll.fileno(), self.tun.fileno())
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("PYFLANNEL_NO_EXTENSIONS", raising=False)
            fast_path = self.port.fast_path(device)
        assert fast_path is not None
        forwarder.attach(fast_path)
        return fast_path

    def give(self, packet: bytes) -> None:
        """To the node, by its device."""
        self.kernel.send(packet)

    def given(self) -> list[tuple[bytes, bytes]]:
        """What the node has written to its device: virtio headers and packets."""
        written = []
        with contextlib.suppress(BlockingIOError):
            while True:
                whole = self.kernel.recv(1 << 17)
                written.append((whole[:10], whole[10:]))
        return written

    def send(self, data: bytes, sender: str = PEER, *, size: int = 0, right_port: bool = True) -> None:
        """To the node, from a peer: one datagram, or, in one call, several of ``size`` bytes."""
        segment = [(socket.SOL_UDP, _UDP_SEGMENT, size.to_bytes(2, "little"))] if 0 < size < len(data) else []
        if right_port:
            self.peers[sender].sendmsg([data], segment, 0, (NODE, self.number))
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.bind((sender, 0))
                end.sendmsg([data], segment, 0, (NODE, self.number))
        self.wait_for_datagram()

    def wait_for_datagram(self) -> None:
        readable, _, _ = select.select([self.port], [], [], 10)
        assert readable

    def sent(self) -> list[tuple[bytes, str]]:
        """What the node has sent, each with the peer that got it; in order for each peer."""
        found = []
        for address, end in self.peers.items():
            assert self.port.send(memoryview(_END), len(_END), address) == 0
            while (datagram := end.recv(1 << 16)) != _END:
                found.append((datagram, address))
        return found

    def rest(self, fast_path: FastPath) -> None:
        """A pause: whatever comes next comes alone."""
        assert fast_path.poll(0.0) == []


def _bind_peers() -> tuple[int, dict[str, socket.socket]]:
    """Sockets of all peers at one port that nobody has."""
    end = time.monotonic() + 10
    while True:
        number, peers = 0, {}
        try:
            for address in (PEER, OTHER, STRANGER):
                peers[address] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                peers[address].settimeout(10)
                peers[address].bind((address, number))
                number = peers[address].getsockname()[1]
        except OSError:
            for taken in peers.values():
                taken.close()
            assert time.monotonic() < end
        else:
            return number, peers
