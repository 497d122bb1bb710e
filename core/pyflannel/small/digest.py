"""SHA-256 without OpenSSL.

:mod:`hashlib` and :mod:`hmac` load libcrypto as soon as they are imported: 4 MB resident, in a daemon that hashes two
short texts in its life. CPython carries the function itself in a module of its own, which :mod:`random` uses in the
same way and for the same reason; where there is none, hashlib it is.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

__all__ = ["hmac_sha256", "sha256"]

_BLOCK: Final = 64
"""SHA-256's block size in bytes."""


def _find() -> Any:
    for module in ("_sha2", "_sha256"):  # CPython from 3.12 on, and before
        try:
            return importlib.import_module(module).sha256
        except (ImportError, AttributeError):
            continue
    return importlib.import_module("hashlib").sha256


_SHA256: Final = _find()


def sha256(data: bytes) -> bytes:
    """The 32 bytes of FIPS 180-4's SHA-256."""
    digest: bytes = _SHA256(data).digest()
    return digest


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """The 32 bytes of RFC 2104's HMAC with SHA-256."""
    padded = (sha256(key) if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in padded) + message)
    return sha256(bytes(byte ^ 0x5C for byte in padded) + inner)
