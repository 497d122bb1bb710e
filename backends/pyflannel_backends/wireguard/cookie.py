"""What keeps strangers from making us compute: two codes at the end of each handshake message, and cookies.

``mac1`` shows that the sender knows our public key; without it we stay silent. Under load we also ask for ``mac2``,
made with a cookie that we hand out encrypted: it shows that the sender receives at the address it sends from, so that
addresses can be given a limit each. White paper, sections 5.3 and 5.4.4 to 5.4.7.

:class:`Gate` is the receiving side, :class:`Stamper` the sending one. Cookies are sealed with XChaCha20-Poly1305, which
is ChaCha20-Poly1305 with a key derived by HChaCha20 (draft-irtf-cfrg-xchacha); HChaCha20 is ChaCha20's block without
its last addition, so it is had from the primitive by subtracting what that adds.
"""

from __future__ import annotations

import hmac
import math
import struct
from collections.abc import Hashable
from hashlib import blake2s
from ipaddress import IPv6Address, ip_address
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .messages import MAC, CookieReply, Handshake
from .noise import RandomBytes

__all__ = ["COOKIE_LIFETIME", "Gate", "RateLimits", "Stamper", "hchacha20", "xchacha20poly1305"]

COOKIE_LIFETIME: Final = 120.0
"""Seconds for which a cookie is good (white paper, sections 5.4.7 and 6.1)."""

_NO_MAC: Final = bytes(MAC)
_LABEL_MAC1: Final = b"mac1----"
_LABEL_COOKIE: Final = b"cookie--"
_SIGMA: Final = struct.unpack("<4I", b"expand 32-byte k")
_WORDS: Final = struct.Struct("<16I")

Endpoint: TypeAlias = tuple[str, int]


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """A 32-byte key from a 32-byte ``key`` and a 16-byte ``nonce``."""
    block = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64))
    words = _WORDS.unpack(block)
    added = (*_SIGMA, *struct.unpack("<4I", nonce))
    return struct.pack(
        "<8I", *((word - add) & 0xFFFFFFFF for word, add in zip(words[:4] + words[12:], added, strict=True))
    )


def xchacha20poly1305(key: bytes, nonce: bytes) -> tuple[ChaCha20Poly1305, bytes]:
    """A cipher and the 12-byte nonce to use it with, once, for a 32-byte ``key`` and a 24-byte ``nonce``."""
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])), bytes(4) + nonce[16:]


def _labelled(label: bytes, public: bytes) -> bytes:
    return blake2s(label + public).digest()


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, digest_size=MAC, key=key).digest()


class Stamper:
    """Ends our handshake messages to one peer with the two codes, and keeps the cookie that the peer gave us.

    :param public: the peer's public key.
    """

    __slots__ = ("_cookie", "_cookie_key", "_cookie_until", "_last_mac1", "_mac1_key")

    def __init__(self, public: bytes) -> None:
        self._mac1_key = _labelled(_LABEL_MAC1, public)
        self._cookie_key = _labelled(_LABEL_COOKIE, public)
        self._cookie, self._cookie_until = b"", -math.inf
        self._last_mac1 = b""

    def stamp(self, message: Handshake, now: float) -> bytes:
        """The whole message, ready to be sent."""
        body = message.pack()[: -2 * MAC]
        mac1 = self._last_mac1 = _mac(self._mac1_key, body)
        mac2 = _mac(self._cookie, body + mac1) if now < self._cookie_until else _NO_MAC
        return body + mac1 + mac2

    def accept(self, reply: CookieReply, now: float) -> bool:
        """Keep a cookie for our next messages; false if ``reply`` does not answer our last one."""
        if not self._last_mac1:
            return False
        cipher, nonce = xchacha20poly1305(self._cookie_key, reply.nonce)
        try:
            self._cookie = cipher.decrypt(nonce, reply.cookie, self._last_mac1)
        except InvalidTag:
            return False
        self._cookie_until = now + COOKIE_LIFETIME
        self._last_mac1 = b""
        return True


class RateLimits:
    """A token bucket for each of many keys, at most ``capacity`` of them: one that is full again is forgotten.

    :param rate: tokens a second.
    :param burst: the most that one bucket holds.
    """

    def __init__(self, rate: float, burst: float, capacity: int = 16384) -> None:
        self._rate, self._burst, self._capacity = rate, burst, capacity
        self._buckets: dict[Hashable, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, key: Hashable, now: float) -> bool:
        """Take one token from ``key``'s bucket, if there is one."""
        tokens, then = self._buckets.get(key, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - then) * self._rate)
        if tokens < 1:
            self._buckets[key] = tokens, now
            return False
        if key not in self._buckets and len(self._buckets) >= self._capacity and not self._make_room(now):
            return False
        self._buckets[key] = tokens - 1, now
        return True

    def _make_room(self, now: float) -> bool:
        full = self._burst / self._rate
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket[1] < full}
        return len(self._buckets) < self._capacity


class Gate:
    """Decides which handshake messages are worth a Diffie-Hellman computation.

    :param public: our public key.
    :param capacity: handshake messages a second that are taken from anybody before we count as under load.
    """

    def __init__(self, public: bytes, random: RandomBytes, *, capacity: float = 200.0) -> None:
        self._mac1_key = _labelled(_LABEL_MAC1, public)
        self._cookie_key = _labelled(_LABEL_COOKIE, public)
        self._random = random
        self._secret, self._secret_until = b"", -math.inf
        self._load = RateLimits(capacity, capacity)
        self._loaded_until = -math.inf
        self._sources = RateLimits(_PER_SOURCE, _PER_SOURCE_BURST)

    def is_under_load(self, now: float) -> bool:
        """Whether more came lately than we take from everybody."""
        return now < self._loaded_until

    def admit(self, data: bytes, message: Handshake, sender: Endpoint, now: float) -> bool | CookieReply:
        """Whether to go on with ``message``; a cookie reply if its sender has to show first that it is there.

        :param data: the message as it came.
        """
        if not hmac.compare_digest(_mac(self._mac1_key, data[: -2 * MAC]), message.mac1):
            return False
        if not self._load.allow("", now):
            self._loaded_until = now + _LOAD_LASTS
        if not self.is_under_load(now):
            return True
        cookie = self._cookie(sender, now)
        if not hmac.compare_digest(_mac(cookie, data[:-MAC]), message.mac2):
            return self._reply(message, cookie)
        return self._sources.allow(_source(sender), now)

    def _cookie(self, sender: Endpoint, now: float) -> bytes:
        """What only somebody who receives at ``sender`` can know, for two minutes."""
        if now >= self._secret_until:
            self._secret, self._secret_until = self._random(32), now + COOKIE_LIFETIME
        address, port = sender
        return _mac(self._secret, ip_address(address).packed + port.to_bytes(2, "big"))

    def _reply(self, message: Handshake, cookie: bytes) -> CookieReply:
        nonce = self._random(24)
        cipher, short = xchacha20poly1305(self._cookie_key, nonce)
        return CookieReply(message.sender, nonce, cipher.encrypt(short, cookie, message.mac1))


_LOAD_LASTS: Final = 1.0
_PER_SOURCE: Final = 20.0
_PER_SOURCE_BURST: Final = 5.0
"""Handshake messages a second, and at once, that one source may send while we are under load."""


def _source(sender: Endpoint) -> bytes:
    """Whose limit a message counts against: an IPv4 address, or the /64 that an IPv6 host may choose from."""
    address = ip_address(sender[0])
    return address.packed[:8] if isinstance(address, IPv6Address) else address.packed
