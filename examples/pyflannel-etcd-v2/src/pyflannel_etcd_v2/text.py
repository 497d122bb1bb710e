"""How a record is spelled in etcd: the name of its key, and its value with what makes a version of it.

A name is the lease's key, percent-encoded where etcd would read it otherwise: it takes a slash for a directory, hides
names that begin with an underscore, and treats ``.`` and ``..`` as paths do.

A value is the lease's text as it is, so that flannel and people can read and write it. Only an update of a lease with
a TTL adds a field, ``pyflannel:updates``, a number that counts up: with etcd's index of the creation it tells two
states of a key apart that have the same text, which an index can't do where renewals move it.
"""

from __future__ import annotations

import json
import zlib
from typing import Final
from urllib.parse import quote, unquote

__all__ = ["decode", "encode", "key_of", "name_of", "version_of"]

UPDATES: Final = "pyflannel:updates"
TEXT: Final = "pyflannel:text"
"""Holds a text that is no JSON object, or one that has fields of these names of its own."""


def name_of(key: str) -> str:
    """The last part of the etcd key for a lease's key."""
    name = quote(key, safe="&:+,;=@!$'()* ~")
    return f"%{ord(name[0]):02X}{name[1:]}" if name[:1] in ("_", ".") else name


def key_of(name: str) -> str | None:
    """The lease's key for a name; ``None`` if :func:`name_of` does not make such a name."""
    key = unquote(name, errors="surrogateescape")
    try:
        return key if name_of(key) == name else None
    except UnicodeEncodeError:
        return None


def encode(value: str, updates: int) -> str:
    """The text to store for ``value`` after so many updates."""
    document = _document(value)
    if not updates and (document is None or UPDATES not in document):
        return value
    if document is None or document.keys() & {UPDATES, TEXT}:
        return json.dumps({TEXT: value, UPDATES: updates})
    return json.dumps({**document, UPDATES: updates}, separators=(",", ":"))


def decode(stored: str) -> tuple[str, int]:
    """The value and the number of updates that a stored text says."""
    document = _document(stored)
    updates = document.pop(UPDATES, None) if document is not None else None
    if document is None or not isinstance(updates, int):
        return stored, 0
    text = document.get(TEXT)
    if isinstance(text, str) and len(document) == 1:
        return text, updates
    return json.dumps(document, separators=(",", ":")), updates


def version_of(created: int, stored: str) -> str:
    """The version of a lease: no renewal changes it, everything else does."""
    return f"{created}.{decode(stored)[1]}.{zlib.crc32(stored.encode(errors='surrogatepass')):08x}"


def _document(text: str) -> dict[str, object] | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
