"""What is on the wire between the two nodes, read by a decoder that shares nothing with us."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.integration.backends.udp.conftest import Overlay

scapy = pytest.importorskip("scapy.all", reason="needs scapy (extra: test)")


def datagrams(path: Path) -> list[Any]:
    """The inner packets of all datagrams to port 8285, decoded from the payload's bytes."""
    inner = []
    for frame in scapy.rdpcap(str(path)):
        if scapy.UDP in frame and frame[scapy.UDP].dport == 8285:
            assert frame[scapy.UDP].sport == 8285
            payload = bytes(frame[scapy.UDP].payload)[: frame[scapy.UDP].len - 8]
            inner.append(scapy.IP(payload))
            assert inner[-1].version == 4
            assert inner[-1].len == len(payload)
    return inner


def assert_valid(packet: Any) -> None:
    """Built again by the decoder, with lengths and checksums left to it, the packet is the same."""
    again = packet.copy()
    fragment = packet.frag or packet.flags.MF
    for layer in (scapy.IP,) if fragment else (scapy.IP, scapy.TCP, scapy.UDP, scapy.ICMP):
        if layer in again:
            del again[layer].chksum
    built = scapy.IP(bytes(again))
    if scapy.TCP in built and (built[scapy.TCP].chksum, packet[scapy.TCP].chksum) == (0, 0xFFFF):
        built[scapy.TCP].chksum = 0xFFFF  # the same sum, and what Linux writes in place of zero, as for UDP
    assert bytes(built) == bytes(packet)


class Capture:
    """Frames on node 2's end of the wire."""

    def __init__(self, overlay: Overlay, path: Path) -> None:
        words = (
            "tcpdump",
            "-i",
            "under",
            "-s",
            "2048",  # of each slot in the buffer: so many frames fit that a busy tcpdump loses none
            "-B",
            "32768",
            "--immediate-mode",
            "-U",
            "-w",
            str(path),
            "udp",
            "port",
            "8285",
        )
        self._process = overlay.nodes[1].start(*words, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        while "listening" not in (line := self._process.stderr.readline()):
            assert line, "tcpdump ended"

    def stop(self) -> None:
        with self._process:
            self._process.terminate()
