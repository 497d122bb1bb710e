"""The ``virtio_net_hdr`` before every packet on the TUN device: what is left undone, and how a super-packet is cut.

Ten bytes, host byte order (``linux/virtio_net.h``, ``tun.rst``). The kernel leaves work undone only as far as
``TUNSETOFFLOAD`` allows it to.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

__all__ = [
    "GSO_ECN",
    "GSO_NONE",
    "GSO_TCPV4",
    "GSO_TCPV6",
    "GSO_UDP_L4",
    "LENGTH",
    "NEEDS_CSUM",
    "PLAIN",
    "VnetHeader",
    "unpack",
]

NEEDS_CSUM: Final = 1
"""Flag: the checksum at ``csum_start + csum_offset`` holds only the pseudo-header's sum."""
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80
"""Added to a TCP type: CWR is set, and belongs to the first segment only."""

_STRUCT: Final = struct.Struct("=BBHHHH")
LENGTH: Final = _STRUCT.size
PLAIN: Final = bytes(LENGTH)
"""The header of a packet that is complete as it is."""


class VnetHeader(NamedTuple):
    """``gso_size`` is the payload of one segment; offsets count from the packet's first byte. All in bytes."""

    flags: int
    gso_type: int
    header_length: int
    gso_size: int
    csum_start: int
    csum_offset: int

    def pack(self) -> bytes:
        """The ten bytes."""
        return _STRUCT.pack(*self)


def unpack(buffer: bytes | bytearray | memoryview) -> VnetHeader:
    """Read the header at the beginning of ``buffer``, which must hold at least ten bytes."""
    return VnetHeader._make(_STRUCT.unpack_from(buffer))
