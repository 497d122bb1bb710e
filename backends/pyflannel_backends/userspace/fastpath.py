"""The extension, where there is one: compiled, and not switched off by ``PYFLANNEL_NO_EXTENSIONS``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._fastpath import FastPath, Transport

__all__ = ["DeviceSide", "load_fast_path", "load_transport"]


@dataclass(frozen=True, slots=True)
class DeviceSide:
    """What a port needs to make a fast path, besides what the port knows itself.

    ``epoll`` is what to wait with, ``tun`` the device's queue. ``packet`` and ``buffer`` are where forwarding looks for
    a packet of the device, and for packets of peers. The others say what the device gives and takes.
    """

    epoll: int
    tun: int
    packet: bytearray
    buffer: bytearray
    cuts: bool
    joins_tcp: bool
    joins_udp: bool


def load_fast_path() -> type[FastPath] | None:
    """What carries bursts, if it is there."""
    if os.environ.get("PYFLANNEL_NO_EXTENSIONS"):
        return None
    try:
        from ._fastpath import FastPath
    except ImportError:
        return None
    return FastPath


def load_transport() -> type[Transport] | None:
    """What seals and opens packets in the fast path, if it is there, and OpenSSL with it."""
    if os.environ.get("PYFLANNEL_NO_EXTENSIONS"):
        return None
    try:
        from ._fastpath import Transport
    except ImportError:
        return None
    return Transport
