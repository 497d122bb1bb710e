"""The udp backend's worker, which also counts what passes through Python: ``python_sends`` and ``python_receives``."""

from __future__ import annotations

from pyflannel_backends.udp.worker import UdpConfig, UdpPort
from pyflannel_backends.userspace.ports import Endpoint, Received
from pyflannel_backends.userspace.table import PeerId
from pyflannel_backends.userspace.worker import work


class ObservedPort(UdpPort):
    def __init__(self, config: UdpConfig) -> None:
        super().__init__(config)
        self.counters.update(python_sends=0, python_receives=0)

    def _judge(self, length: int, size: int, sender: Endpoint) -> Received:
        self.counters["python_receives"] += 1
        return super()._judge(length, size, sender)

    def send(self, data: memoryview, size: int, peer: PeerId) -> int:
        self.counters["python_sends"] += 1
        return super().send(data, size, peer)


if __name__ == "__main__":
    work(UdpConfig, lambda config, _secrets: ObservedPort(config))
