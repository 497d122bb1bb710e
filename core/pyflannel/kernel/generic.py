"""Generic netlink: parts of the kernel that are reached by a name instead of a number of their own.

A *family* is such a part (``wireguard``); the kernel gives it a number when its module is loaded, and asking for the
number makes the kernel load the module if there is one (``linux/genetlink.h``).
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import Final

from pyflannel.errors import KernelError
from pyflannel.kernel import wire
from pyflannel.kernel.rtsocket import NETLINK_GENERIC, Refused, RequestSocket

__all__ = ["HEADER_SIZE", "attribute", "encode", "family_number", "has_family"]

HEADER_SIZE: Final = 4
"""``struct genlmsghdr``: what stands before the attributes in a message's payload."""

_HEADER = Struct("=BBH")
_ATTRIBUTE = Struct("=HH")
_U16 = Struct("=H")

_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2


def encode(family: int, command: int, flags: int, body: bytes, version: int = 1) -> bytes:
    """A message to a family; ``body`` are its attributes."""
    return wire.message(family, flags, _HEADER.pack(command, version, 0) + body)


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, aligned to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def family_number(requests: RequestSocket, name: str) -> int | None:
    """The number of a family; ``None`` if this kernel does not have it.

    :raises KernelError: the kernel does not say.
    """
    query = encode(_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, 0, attribute(_CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0"))
    answer = requests.ask(query)
    if isinstance(answer, Refused):
        if answer.number == errno.ENOENT:
            return None
        raise KernelError(f"can't look up {name} in generic netlink: {answer.text or OSError(answer.number, '')}")
    raw = wire.attributes(answer.datagram, answer.start + HEADER_SIZE, answer.end).get(_CTRL_ATTR_FAMILY_ID)
    if raw is None:
        raise KernelError(f"the kernel's answer about generic netlink's {name} has no number in it")
    return int(_U16.unpack(raw)[0])


def has_family(name: str) -> bool:
    """Whether this kernel has a family, or a module for it, which is loaded then. Changes nothing else.

    :raises KernelError: no netlink here.
    """
    requests = RequestSocket(NETLINK_GENERIC)
    try:
        return family_number(requests, name) is not None
    finally:
        requests.close()
