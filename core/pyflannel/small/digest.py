"""SHA-256 without OpenSSL, for names that must stay the same: node ids and MAC addresses, no secrets.

:mod:`hashlib` loads OpenSSL's library, 3.5 MB that a daemon would hold for two digests at its start. The interpreter
brings an implementation of its own, which :mod:`random` uses for the same reason; where it lacks it, this is hashlib's.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final, Protocol

__all__ = ["hmac_sha256", "sha256"]

_BLOCK: Final = 64


class _Digest(Protocol):
    def digest(self) -> bytes:
        """All 32 bytes."""


def _find() -> Callable[[bytes], _Digest]:
    for name in ("_sha2", "_sha256", "hashlib"):  # Python 3.12 and newer, older ones, any
        try:
            found: Callable[[bytes], _Digest] = import_module(name).sha256
        except (ImportError, AttributeError):
            continue
        return found
    raise ImportError("this Python has no SHA-256")


_new = _find()


def sha256(data: bytes) -> bytes:
    """The digest of ``data`` (FIPS 180-4)."""
    return _new(data).digest()


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """The keyed digest of ``data`` (RFC 2104)."""
    padded = (key if len(key) <= _BLOCK else sha256(key)).ljust(_BLOCK, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in padded) + data)
    return sha256(bytes(byte ^ 0x5C for byte in padded) + inner)
