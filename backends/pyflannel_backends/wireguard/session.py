"""What a handshake ends with: one key for each direction, and which numbers have been used with them.

A number (the nonce of one packet) is used once. Sending, numbers are claimed in blocks, so that a whole batch of
packets can be encrypted in one go; receiving, a window remembers which have come, and takes a batch in one step when
its numbers follow each other, as they nearly always do. A number counts as received only after its packet has been
authenticated. Where there is the fast path's :class:`Transport`, it keeps the numbers, for it and for us.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from .messages import TAG, TransportHeader
from .noise import TransportKeys

if TYPE_CHECKING:
    from pyflannel_backends.userspace._fastpath import Transport

    from .machine import Peer

__all__ = ["REJECT_AFTER_MESSAGES", "REJECT_AFTER_TIME", "Numbers", "Session", "nonce"]

REJECT_AFTER_TIME: Final = 180.0
"""Seconds after which a session carries nothing any more (white paper, section 6.1)."""
REJECT_AFTER_MESSAGES: Final = 2**64 - 2**13 - 1
"""Packets after which a session carries nothing any more."""
_WINDOW: Final = 8128
"""How far behind the newest packet an older one may come, in packets; the kernel's is as large."""

_NONCE: Final = struct.Struct("<4xQ")
nonce = _NONCE.pack
"""A packet's number as ChaCha20-Poly1305 takes it: four zero bytes and the number, little-endian."""


class Numbers:
    """Which numbers were claimed for sending, and which have come: the newest, and a bit for each one before it."""

    __slots__ = ("_bits", "_newest", "sent")

    _mask: Final = (1 << _WINDOW) - 1

    def __init__(self) -> None:
        self.sent = 0
        """How many have been claimed."""
        self._newest = -1
        self._bits = 0
        """Bit ``i`` stands for number ``newest - i``."""

    def claim(self, count: int) -> int | None:
        """The first of ``count`` numbers that nobody else will use; ``None`` if there are not so many left."""
        first = self.sent
        if first + count > REJECT_AFTER_MESSAGES:
            return None
        self.sent = first + count
        return first

    def state(self) -> object:
        """All that sending and receiving change; to be compared."""
        return self.sent, self._newest, self._bits

    def accept(self, counter: int) -> bool:
        """Note ``counter``; false if it came before, is too old to tell, or must not be used."""
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        ahead = counter - self._newest
        if ahead > 0:
            self._advance(ahead, 1)
            return True
        if ahead <= -_WINDOW or self._bits >> -ahead & 1:
            return False
        self._bits |= 1 << -ahead
        return True

    def accept_run(self, first: int, count: int) -> bool:
        """Note ``count`` numbers from ``first`` on, if all are newer than any before; else note none."""
        if first <= self._newest or first + count > REJECT_AFTER_MESSAGES:
            return False
        self._advance(first + count - 1 - self._newest, count)
        return True

    def _advance(self, steps: int, count: int) -> None:
        """Go ``steps`` further, the last ``count`` of which have come."""
        self._newest += steps
        kept = self._bits << steps if steps < _WINDOW else 0
        self._bits = (kept | (1 << count) - 1) & self._mask


class Session:
    """Transport in both directions between us and one peer.

    ``index`` is our name for it, ``remote_index`` the peer's; ``created`` and ``expires`` are monotonic times in
    seconds; ``initiator`` says whether the handshake was ours, ``own_key`` under which public key of ours it was.
    """

    __slots__ = (
        "created",
        "expires",
        "index",
        "initiator",
        "numbers",
        "own_key",
        "peer",
        "receive_key",
        "remote_index",
        "renewing",
        "send_key",
        "transport",
    )

    def __init__(
        self,
        peer: Peer,
        index: int,
        remote_index: int,
        keys: TransportKeys,
        *,
        own_key: bytes,
        initiator: bool,
        now: float,
    ) -> None:
        self.peer = peer
        self.index, self.remote_index = index, remote_index
        self.send_key = keys.send
        self.receive_key = keys.receive
        self.own_key = own_key
        self.initiator = initiator
        self.created = now
        self.expires = now + REJECT_AFTER_TIME
        self.renewing = False
        """Whether a successor was asked for because this one is near its end."""
        self.transport = keys.transport
        """What the fast path seals and opens packets with; it keeps the numbers, then."""
        self.numbers: Numbers | Transport = keys.transport or Numbers()

    @property
    def sent(self) -> int:
        """How many numbers have been claimed."""
        return self.numbers.sent

    def is_alive(self, now: float) -> bool:
        """Whether it may still be used at ``now``."""
        return now < self.expires and self.numbers.sent < REJECT_AFTER_MESSAGES

    def claim(self, count: int) -> int | None:
        """The first of ``count`` numbers that nobody else will use; ``None`` if there are not so many left."""
        return self.numbers.claim(count)

    def seal(self, plain: bytes) -> bytes | None:
        """One packet (padded already) as a transport message; ``None`` if the numbers are used up."""
        counter = self.claim(1)
        if counter is None:
            return None
        header = TransportHeader(self.remote_index, counter).pack()
        return header + self.send_key.encrypt(nonce(counter), plain, None)

    def open(self, counter: int, sealed: bytes | memoryview) -> bytes | None:
        """The packet in a transport message's ciphertext; ``None`` if it is forged, or came before."""
        if counter >= REJECT_AFTER_MESSAGES or len(sealed) < TAG:
            return None
        try:
            plain = self.receive_key.decrypt(nonce(counter), sealed, None)
        except InvalidTag:
            return None
        return plain if self.numbers.accept(counter) else None
