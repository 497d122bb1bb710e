"""SHA-256 without OpenSSL, for names that must stay the same: node ids and MAC addresses, no secrets.

:mod:`hashlib` loads OpenSSL's library, 3.5 MB that a daemon would hold for two digests at its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count, islice

__all__ = ["hmac_sha256", "sha256"]

_BLOCK = 64
_MASK = 0xFFFFFFFF


@lru_cache(maxsize=64)  # a node's own names are asked for again with each peer
def sha256(data: bytes) -> bytes:
    """The digest of ``data`` (FIPS 180-4); a millisecond a kilobyte."""
    state = tuple(_fraction(prime, 2) for prime in islice(_primes(), 8))
    padded = data + b"\x80" + bytes(-(len(data) + 9) % _BLOCK) + (8 * len(data)).to_bytes(8, "big")
    for start in range(0, len(padded), _BLOCK):
        mixed = _compress(state, padded[start : start + _BLOCK])
        state = tuple((old + new) & _MASK for old, new in zip(state, mixed, strict=True))
    return b"".join(word.to_bytes(4, "big") for word in state)


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """The keyed digest of ``data`` (RFC 2104)."""
    padded = (key if len(key) <= _BLOCK else sha256(key)).ljust(_BLOCK, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in padded) + data)
    return sha256(bytes(byte ^ 0x5C for byte in padded) + inner)


def _compress(state: tuple[int, ...], block: bytes) -> tuple[int, ...]:
    """One block's 64 rounds."""
    a, b, c, d, e, f, g, h = state
    for word, constant in zip(_schedule(block), _constants(), strict=True):
        first = h + (_rotated(e, 6) ^ _rotated(e, 11) ^ _rotated(e, 25)) + (e & f ^ ~e & g) + constant + word
        second = (_rotated(a, 2) ^ _rotated(a, 13) ^ _rotated(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (first + second) & _MASK, a, b, c, (d + first) & _MASK, e, f, g
    return a, b, c, d, e, f, g, h


def _schedule(block: bytes) -> list[int]:
    words = [int.from_bytes(block[at : at + 4], "big") for at in range(0, _BLOCK, 4)]
    for at in range(16, 64):
        early, late = words[at - 15], words[at - 2]
        low = _rotated(early, 7) ^ _rotated(early, 18) ^ early >> 3
        high = _rotated(late, 17) ^ _rotated(late, 19) ^ late >> 10
        words.append((words[at - 16] + low + words[at - 7] + high) & _MASK)
    return words


def _rotated(word: int, by: int) -> int:
    return word >> by | word << 32 - by & _MASK


@lru_cache
def _constants() -> tuple[int, ...]:
    return tuple(_fraction(prime, 3) for prime in islice(_primes(), 64))


def _primes() -> Iterator[int]:
    return (number for number in count(2) if all(number % divisor for divisor in range(2, number)))


def _fraction(number: int, degree: int) -> int:
    """The first 32 bits of the fraction of a root."""
    target, low, high = number << 32 * degree, 0, number << 32
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= target else (low, middle - 1)
    return low & _MASK
