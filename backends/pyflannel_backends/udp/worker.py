"""The udp backend's worker: what carries a packet is one bare UDP datagram.

Run as a module, with FD as its argument; see :mod:`pyflannel_backends.userspace.worker`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pyflannel_backends.userspace.control import WorkerConfig
from pyflannel_backends.userspace.fastpath import DeviceSide, load_fast_path
from pyflannel_backends.userspace.ports import Endpoint, Inlet, Received, UdpSocket, UnderlayPort
from pyflannel_backends.userspace.table import PeerId
from pyflannel_backends.userspace.worker import work

from .bypass import Bypass

if TYPE_CHECKING:
    from pyflannel_backends.userspace._fastpath import FastPath

__all__ = ["UdpConfig", "UdpPort"]

_LOOK: Final = 1.0
"""Seconds between two looks at whether packets may pass us by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UdpConfig(WorkerConfig):
    """``address`` and ``port`` are where we receive; peers send from ``port`` too, unless ``any_source_port``.

    Lone packets pass the worker by if ``kernel_path``, between its device and ``interface``, which has the address.
    """

    tuned: ClassVar[frozenset[str]] = WorkerConfig.tuned | {"interface", "kernel_path"}

    address: str
    port: int
    any_source_port: bool
    interface: str = ""
    kernel_path: bool = False


class UdpPort(UnderlayPort):
    """One datagram per packet. A peer is its public address, in its usual text form."""

    def __init__(self, config: UdpConfig) -> None:
        super().__init__()
        self.counters.update(drop_unknown_sender=0, drop_source_port=0, lone_sent_packets=0, lone_received_packets=0)
        self._config = config
        self._known: set[PeerId] = set()
        self._socket: UdpSocket
        self._bypass: Bypass | None = None
        self._next_look = math.inf

    def open(self) -> Sequence[Inlet]:
        config = self._config
        self._socket = UdpSocket(config.address, config.port, offload=config.offload)
        return [self]

    def close(self) -> None:
        self._end_bypass()
        self._socket.close()

    def tune(self, config: WorkerConfig) -> None:
        assert isinstance(config, UdpConfig)
        self._config = config

    def put(self, peer: PeerId, details: Sequence[Any]) -> None:
        self._known.add(peer)

    def remove(self, peer: PeerId) -> None:
        self._known.discard(peer)

    def fileno(self) -> int:
        return self._socket.fileno()

    def fast_path(self, device: DeviceSide) -> FastPath | None:
        self._end_bypass()
        made = load_fast_path()
        config = self._config
        if made is None or ":" in config.address:
            return None
        fast_path = made(
            epoll=device.epoll,
            tun=device.tun,
            sockets=(self.fileno(),),
            packet=device.packet,
            received=device.buffer,
            opened=device.buffer,
            judge=self._judge,
            port=config.port,
            any_port=config.any_source_port,
            sealed=False,
            mtu=config.mtu,
            segments=self._socket.segments,
            cuts=device.cuts,
            joins_tcp=device.joins_tcp,
            joins_udp=device.joins_udp,
        )
        if config.kernel_path and not config.any_source_port:
            self._bypass = Bypass(fast_path, config.device, config.interface, config.address)
            self._bypass.look()
            self._next_look = time.monotonic() + _LOOK
        return fast_path

    @property
    def deadline(self) -> float:
        return self._next_look

    def expire(self, now: float) -> None:
        self._next_look = now + _LOOK
        if self._bypass is not None:
            self._bypass.look()

    def _end_bypass(self) -> None:
        if self._bypass is not None:
            self._bypass.end()
        self._bypass, self._next_look = None, math.inf

    def status(self) -> Mapping[str, Any]:
        """``kernel_path``: why packets don't pass us by; empty while they do. Absent where they are not to."""
        return {} if self._bypass is None else {"kernel_path": self._bypass.trouble}

    def way(self, peer: PeerId) -> Endpoint:
        return peer, self._config.port

    def receive(self, buffer: memoryview) -> Received | None:
        received = self._socket.receive(buffer)
        return None if received is None else self._judge(*received)

    def _judge(self, length: int, size: int, sender: Endpoint) -> Received:
        """Tell who has sent this. An address is as good as the underlay's own filters; see docs/backends/udp.md."""
        address, port = sender
        if address not in self._known:
            return self._refuse(length, size, "drop_unknown_sender")
        if port != self._config.port and not self._config.any_source_port:
            return self._refuse(length, size, "drop_source_port")
        return length, size, address

    def send(self, data: memoryview, size: int, peer: PeerId) -> int:
        return self._socket.send(data, size, (peer, self._config.port))

    def send_in_fragments(self, data: memoryview, size: int, peer: PeerId) -> int:
        return self._socket.send_in_fragments(data, size, (peer, self._config.port))

    def rows(self, size: int) -> int:
        return self._socket.rows(size)

    def path_mtu(self, peer: PeerId) -> int:
        return self._socket.path_mtu((peer, self._config.port))

    def _refuse(self, length: int, size: int, reason: str) -> Received:
        self.counters[reason] += -(-length // size) if length else 1
        return length, size, None


if __name__ == "__main__":
    work(UdpConfig, lambda config, _secrets: UdpPort(config))
