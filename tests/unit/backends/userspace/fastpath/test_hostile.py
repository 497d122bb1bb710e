"""Whatever comes on either side is carried as Python would carry it, or left to Python as it was."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.bursts import OURS, THEIRS
from tests.unit.backends.userspace.edges import OTHER, PEER, STRANGER, Edges
from tests.unit.backends.userspace.fastpath.bench import MTU, Bench, one_hop_on
from tests.unit.backends.userspace.fastpath.hostile import headers, hostile

from pyflannel_backends.userspace import vnet


@given(packet=hostile(OURS, THEIRS), header=headers)
@example(packet=b"", header=vnet.PLAIN)
def test_any_packet_of_the_device_is_sent_as_python_would_or_left_as_it_was(
    edges: Edges, packet: bytes, header: bytes
) -> None:
    bench = Bench(edges)
    bench.learn_route(THEIRS, PEER, MTU)
    sent = bench.from_tun(packet, header)
    if sent is not None and not header[1] and not header[0] & vnet.NEEDS_CSUM:
        assert not header[0] & ~3
        assert packet[0] == 0x45
        assert packet[8] >= 2
        assert packet[16:20] == THEIRS
        assert int.from_bytes(packet[2:4], "big") == len(packet) <= MTU
        assert sent == one_hop_on(packet)
    if sent is None:
        assert bench.counted() == (0, 0, 0, 0)


@given(packet=hostile(THEIRS, OURS), sender=st.sampled_from([PEER, PEER, OTHER, STRANGER]), right_port=st.booleans())
def test_any_datagram_is_delivered_as_python_would_or_left_as_it_was(
    edges: Edges, packet: bytes, sender: str, right_port: bool
) -> None:
    bench = Bench(edges)
    bench.path.learn_path(PEER, THEIRS + OURS)
    given = bench.from_udp(packet, sender, right_port=right_port)
    if given is not None:
        assert (sender, right_port) == (PEER, True)
        assert packet[12:20] == THEIRS + OURS
        assert packet[0] == 0x45
        assert reference.internet_checksum(packet[:20]) == 0
        assert given == packet[: int.from_bytes(packet[2:4], "big")]
    assert bench.counted() == ((0, 0, 0, 0) if given is None else (0, 0, 1, len(packet)))
