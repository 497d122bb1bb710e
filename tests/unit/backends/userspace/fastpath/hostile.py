"""Packets and headers as an attacker or a broken kernel would make them, drawn by hypothesis."""

from __future__ import annotations

import struct

from hypothesis import strategies as st
from tests.unit.backends.userspace import reference
from tests.unit.backends.userspace.reference import UDP, Packet

from pyflannel_backends.userspace import vnet


@st.composite
def hostile(draw: st.DrawFn, source: bytes, destination: bytes) -> bytes:
    """A good packet, or one with a few bytes changed and perhaps cut or lengthened, or any bytes."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=60))
    size = draw(st.sampled_from([0, 1, 12, 1443, 1444, 1445]))
    ttl = draw(st.sampled_from([0, 1, 2, 64, 255]))
    options = draw(st.sampled_from([b"", b"", b"", bytes(4)]))
    packet = Packet(
        bytes(size), UDP, source, destination, ttl=ttl, ip_options=options, identification=draw(st.integers(0, 9))
    )
    data = bytearray(packet.build())
    if kind < 3:
        return bytes(data)
    if kind < 6:  # checksums that turn over when a hop is taken
        struct.pack_into("!H", data, 10, draw(st.sampled_from([0, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFF])))
        return bytes(data)
    for position, value in draw(st.lists(st.tuples(st.integers(0, 27), st.integers(0, 255)), max_size=3)):
        data[position] = value
    if kind < 8:  # the checksum is right for what was changed
        data[10:12] = bytes(2)
        struct.pack_into("!H", data, 10, reference.internet_checksum(bytes(data[:20])))
    else:
        data = data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=3))
    return bytes(data)


headers = (
    st.just(vnet.PLAIN) | st.binary(min_size=10, max_size=10) | st.binary(min_size=8, max_size=8).map(b"\0\0".__add__)
)
