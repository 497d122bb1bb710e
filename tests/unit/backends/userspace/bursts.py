"""Bursts of packets as the device and the underlay may bring them: good ones, and some that are bent."""

from __future__ import annotations

from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.reference import ACK, CWR, FIN, PSH, TCP, UDP, Packet

from pyflannel_backends.userspace import vnet

OURS, THEIRS, OTHERS = bytes([10, 5, 1, 2]), bytes([10, 5, 2, 2]), bytes([10, 5, 3, 2])
HOSTS6 = [bytes([0xFD, 0, 0, 5, 0, subnet, *bytes(9), 2]) for subnet in (1, 2, 3)]


@st.composite
def super_packets(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A virtio header and what it belongs to, of either family and protocol; a few fields of some are wrong."""
    size = draw(st.sampled_from([7, 536, 1400, 1420]))
    packet = parts(draw, size * draw(st.integers(0, 20)) + draw(st.integers(0, size)), leaves=True)
    offset = 16 if packet.protocol == TCP else 6
    kind = vnet.GSO_UDP_L4 if packet.protocol == UDP else vnet.GSO_TCPV6 if packet.ip_length == 40 else vnet.GSO_TCPV4
    kind |= vnet.GSO_ECN if packet.flags & CWR and packet.protocol == TCP else 0
    header = bytearray(vnet.VnetHeader(1, kind, packet.header_length, size, packet.ip_length, offset).pack())
    data = bytearray(packet.build_partial())
    for position, value in draw(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=1)):
        if position < len(data):
            data[position] = value
    for position, value in draw(
        st.lists(st.tuples(st.sampled_from([0, 1, 4, 5, 6, 8]), st.integers(0, 6)), max_size=1)
    ):
        header[position] = value
    return bytes(header), bytes(data)


def parts(draw: st.DrawFn, size: int, *, leaves: bool) -> Packet:
    ours, theirs = draw(st.sampled_from([(OURS, THEIRS), (OURS, OTHERS), (HOSTS6[0], HOSTS6[1])]))
    return Packet(
        draw(st.binary(min_size=4, max_size=4)) * (size // 4) + bytes(size % 4),
        draw(st.sampled_from([TCP, UDP])),
        *((ours, theirs) if leaves else (theirs, ours)),
        identification=draw(st.sampled_from([0, 5, 0xFFF8])),
        sequence=draw(st.sampled_from([0, 0xFFFFF000])),
        flags=draw(st.sampled_from([ACK, ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | CWR | PSH])),
        tcp_options=bytes(draw(st.sampled_from([0, 12]))),
        ttl=draw(st.sampled_from([1, 2, 64, 64])),
    )


@st.composite
def trains(draw: st.DrawFn) -> tuple[bytes, int]:
    """What one call might bring: packets of one flow or of two, some of them bent or out of order; and their size."""
    size = draw(st.sampled_from([100, 536, 537, 1400]))
    flows = [
        reference.segments(
            parts(draw, size * draw(st.integers(1, 6)) + draw(st.sampled_from([0, 0, 1, 50])), leaves=False),
            size,
            hops=0,
        )
        for _ in range(draw(st.sampled_from([1, 1, 2])))
    ]
    packets = [bytearray(packet) for flow in flows for packet in flow]
    for number, position, value in draw(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 70), st.integers(0, 255)), max_size=2)
    ):
        packet = packets[number % len(packets)]
        packet[position % len(packet)] = value
    if draw(st.integers(0, 4)) == 0:
        packets.reverse()
    whole = b""
    full = len(packets[0])
    for packet in packets:
        if len(packet) > full:
            break
        whole += packet
        if len(packet) < full:
            break
    return whole, full
