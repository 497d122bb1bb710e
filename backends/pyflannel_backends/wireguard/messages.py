"""WireGuard's four messages as bytes: what a datagram says, read strictly, before anything in it is believed.

A datagram that is not exactly one of the four is ``None``; nothing here raises for what came from outside, and nothing
here knows a key. The layouts are those of the WireGuard white paper, section 5.4; numbers are little-endian, and the
three reserved bytes after the type are zero.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = [
    "HEADER",
    "MAC",
    "OVERHEAD",
    "TAG",
    "CookieReply",
    "Handshake",
    "Initiation",
    "Response",
    "TransportHeader",
    "kind",
    "parse_handshake",
    "parse_transport",
]

INITIATION: Final = 1
RESPONSE: Final = 2
COOKIE_REPLY: Final = 3
TRANSPORT: Final = 4

TAG: Final = 16
"""Bytes that authenticated encryption adds."""
MAC: Final = 16
"""Bytes of each of the two message authentication codes that end a handshake message."""
HEADER: Final = 16
"""Bytes before a transport message's ciphertext."""
OVERHEAD: Final = HEADER + TAG
"""Bytes that a transport message adds to its (padded) packet."""

_INITIATION: Final = struct.Struct("<II32s48s28s16s16s")
_RESPONSE: Final = struct.Struct("<III32s16s16s16s")
_COOKIE_REPLY: Final = struct.Struct("<II24s32s")
_TRANSPORT: Final = struct.Struct("<IIQ")


@dataclass(frozen=True, slots=True)
class Initiation:
    """The first message of a handshake; ``static`` and ``timestamp`` are encrypted."""

    sender: int
    ephemeral: bytes
    static: bytes
    timestamp: bytes
    mac1: bytes = bytes(MAC)
    mac2: bytes = bytes(MAC)

    def pack(self) -> bytes:
        """As it goes over the wire."""
        return _INITIATION.pack(
            INITIATION, self.sender, self.ephemeral, self.static, self.timestamp, self.mac1, self.mac2
        )


@dataclass(frozen=True, slots=True)
class Response:
    """The second message of a handshake; ``empty`` is the encryption of nothing."""

    sender: int
    receiver: int
    ephemeral: bytes
    empty: bytes
    mac1: bytes = bytes(MAC)
    mac2: bytes = bytes(MAC)

    def pack(self) -> bytes:
        """As it goes over the wire."""
        return _RESPONSE.pack(RESPONSE, self.sender, self.receiver, self.ephemeral, self.empty, self.mac1, self.mac2)


@dataclass(frozen=True, slots=True)
class CookieReply:
    """What a node under load answers to a handshake message; ``cookie`` is encrypted."""

    receiver: int
    nonce: bytes
    cookie: bytes

    def pack(self) -> bytes:
        """As it goes over the wire."""
        return _COOKIE_REPLY.pack(COOKIE_REPLY, self.receiver, self.nonce, self.cookie)


@dataclass(frozen=True, slots=True)
class TransportHeader:
    """What precedes an encrypted packet."""

    receiver: int
    counter: int

    def pack(self) -> bytes:
        """As it goes over the wire."""
        return _TRANSPORT.pack(TRANSPORT, self.receiver, self.counter)


Handshake: TypeAlias = Initiation | Response


def kind(data: bytes | memoryview) -> int:
    """The type of the message that ``data`` may be, by its first four bytes; 0 if it is none."""
    if len(data) < 4 or data[0] > TRANSPORT or data[1] | data[2] | data[3]:
        return 0
    return data[0]


def parse_handshake(data: bytes) -> Handshake | CookieReply | None:
    """A message of the first three types, or ``None``."""
    found = kind(data)
    if found == INITIATION and len(data) == _INITIATION.size:
        return Initiation(*_INITIATION.unpack(data)[1:])
    if found == RESPONSE and len(data) == _RESPONSE.size:
        return Response(*_RESPONSE.unpack(data)[1:])
    if found == COOKIE_REPLY and len(data) == _COOKIE_REPLY.size:
        return CookieReply(*_COOKIE_REPLY.unpack(data)[1:])
    return None


def parse_transport(data: bytes | memoryview) -> TransportHeader | None:
    """The header of a message of the fourth type, whose ciphertext follows, or ``None``."""
    if kind(data) != TRANSPORT or len(data) < OVERHEAD:
        return None
    return TransportHeader(*_TRANSPORT.unpack_from(data)[1:])
