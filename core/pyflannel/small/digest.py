"""SHA-256 for a few short texts, without OpenSSL.

:mod:`hashlib` and :mod:`hmac` load libcrypto when they are imported: 3.5 MB resident and some 4 ms, for a daemon that
hashes two short texts in its life (what its node id and its MAC address follow from, which have to be the same in every
version). So the function is written out here as FIPS 180-4 has it. It takes about 0.1 ms for each 64 bytes; what
hashes more, or again and again, is better off with :mod:`hashlib`.
"""

from __future__ import annotations

from typing import Final

__all__ = ["hmac_sha256", "sha256"]

_BLOCK: Final = 64
"""SHA-256's block size in bytes."""

_WORD: Final = 0xFFFFFFFF

_PRIMES: Final = [number for number in range(2, 312) if all(number % divisor for divisor in range(2, min(number, 18)))]
"""The first 64. SHA-256's constants are the first 32 bits of the fractions of their roots."""

_INITIAL: Final = tuple(int(prime ** (1 / 2) % 1 * 2**32) for prime in _PRIMES[:8])
_ROUND: Final = tuple(int(prime ** (1 / 3) % 1 * 2**32) for prime in _PRIMES)


def sha256(data: bytes) -> bytes:
    """The 32 bytes of FIPS 180-4's SHA-256."""
    padded = data + b"\x80" + bytes(-(len(data) + 9) % _BLOCK) + (8 * len(data)).to_bytes(8, "big")
    state = _INITIAL
    for begin in range(0, len(padded), _BLOCK):
        state = _compress(state, padded[begin : begin + _BLOCK])
    return b"".join(word.to_bytes(4, "big") for word in state)


def _compress(state: tuple[int, ...], block: bytes) -> tuple[int, ...]:
    """One block (FIPS 180-4, 6.2.2), with the names that the standard uses."""
    words = [int.from_bytes(block[at : at + 4], "big") for at in range(0, _BLOCK, 4)]
    for at in range(16, 64):
        early, late = words[at - 15], words[at - 2]
        sigma0 = _rotate(early, 7) ^ _rotate(early, 18) ^ early >> 3
        sigma1 = _rotate(late, 17) ^ _rotate(late, 19) ^ late >> 10
        words.append(sigma1 + words[at - 7] + sigma0 + words[at - 16] & _WORD)
    a, b, c, d, e, f, g, h = state
    for constant, word in zip(_ROUND, words, strict=True):
        t1 = h + (_rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25)) + (e & f ^ ~e & g) + constant + word
        t2 = (_rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = t1 + t2 & _WORD, a, b, c, d + t1 & _WORD, e, f, g
    return tuple(old + new & _WORD for old, new in zip(state, (a, b, c, d, e, f, g, h), strict=True))


def _rotate(word: int, bits: int) -> int:
    return (word >> bits | word << 32 - bits) & _WORD


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """The 32 bytes of RFC 2104's HMAC with SHA-256."""
    padded = (sha256(key) if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in padded) + message)
    return sha256(bytes(byte ^ 0x5C for byte in padded) + inner)
