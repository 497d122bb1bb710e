"""Keys that may be used and must not be shown.

A :class:`Secret` is bytes whose text says nothing: it can stand in a plan, a log line, an error or a status document by
mistake without giving itself away. Only :meth:`Secret.reveal` gives the bytes, so a search for that word finds every
place that uses them.
"""

from __future__ import annotations

from operator import xor
from typing import Any, NoReturn

__all__ = ["Secret"]


class Secret:
    """Immutable bytes. How long it takes to compare two of a length says nothing about where they differ."""

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes) -> None:
        self._bytes = bytes(value)

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._bytes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret) or len(self._bytes) != len(other._bytes):
            return False
        return not sum(map(xor, self._bytes, other._bytes))  # hmac.compare_digest would load OpenSSL

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written down: it can't be pickled")
