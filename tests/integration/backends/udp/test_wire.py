"""What the underlay sees, read by a decoder that shares nothing with us: bare, valid IP packets, as flannel's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.integration.backends.udp.captures import Capture, assert_valid, datagrams
from tests.integration.backends.udp.conftest import MakeOverlay
from tests.integration.backends.udp.transfer import MEBIBYTE, Transfer
from tests.waiting import until

scapy = pytest.importorskip("scapy.all", reason="needs scapy (extra: test)")

GOLDEN = Path(__file__).parents[3] / "golden" / "udp" / "underlay.pcap"


def test_linux_has_two_checksums_of_zero() -> None:
    """One packet of 65,536 has one."""
    segment = (
        "4500003453144000 3f06d1a50a050201 0a05010013898cba b9d90612edf665d4 80100195ffff0000 0101080a1ae16437 fe852c85"
    )
    packet = scapy.IP(bytes.fromhex(segment))
    assert_valid(packet)
    packet[scapy.TCP].chksum = 0xFFFE
    with pytest.raises(AssertionError):
        assert_valid(packet)


@pytest.mark.root
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_every_packet_on_the_underlay_is_valid(make_overlay: MakeOverlay, tmp_path: Path, offload: bool) -> None:
    for tool in ("tcpdump", "ethtool"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (Debian package of that name)")
    overlay = make_overlay(Offload=offload)
    first, second = overlay.nodes
    for node in overlay.nodes:  # let the kernel cut what we hand over in one piece, as a wire would carry it
        subprocess.run(
            node.command("ethtool", "-K", "under", "tx-udp-segmentation", "off", "tx", "off"),
            check=True,
            capture_output=True,
        )
    path = tmp_path / "underlay.pcap"
    capture = Capture(overlay, path)
    try:
        assert first.ping(size=1444, count=3, options=("-W", "10"))
        assert second.ping(size=3000, options=("-W", "10"))
        Transfer(overlay, 2 * MEBIBYTE).finish()
        until(lambda: path.stat().st_size > 2 * MEBIBYTE, "the capture to be written")
    finally:
        capture.stop()
    packets = datagrams(path)
    assert len([packet for packet in packets if scapy.TCP in packet]) > 1000
    assert len([packet for packet in packets if scapy.ICMP in packet]) >= 8
    for packet in packets:
        assert packet.ttl == 63
        assert packet.len <= 1472
        assert_valid(packet)


def test_the_decoder_sees_the_same_in_what_flanneld_sent() -> None:
    packets = datagrams(GOLDEN)
    assert len(packets) == 6
    for packet in packets:
        assert packet.ttl == 63
        assert scapy.ICMP in packet
        assert_valid(packet)
