"""How the file store spells a record: the name of its file and the text inside. Pure functions of both directions.

The idea: a file is what a person would write. A lease is flannel's JSON document, indented, with one field more:
``Expires``, and once it has been changed another: ``Created``, since a file's own time is then that of its change.
Whatever does not fit that form (a value that is not a JSON object, or has one of these of its own) is still kept
exactly, as it is or wrapped in a field of its own; and whatever is found on disk reads as *some* record.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from typing import Final
from urllib.parse import quote, unquote

__all__ = ["LATEST", "MAX_FILE", "decode", "encode", "file_name", "key_of"]

MAX_FILE: Final = 1 << 20
"""Bytes that a record's file may have. A longer file is read up to here, so it can't be valid JSON."""

MAX_NAME: Final = 255
"""Bytes of a file name (``NAME_MAX``, limits.h)."""

EXPIRES: Final = "Expires"
CREATED: Final = "Created"
TEXT: Final = "pyflannel:text"
SUFFIX: Final = ".json"

_PLAIN: Final = " !#$&'()+,:;=@[]^{}"
"""What a file name shows as it is, beside letters, digits and ``_.-~``."""


def file_name(key: str) -> str:
    """The name of a key's file, ASCII: what a name can't hold, or a shell would expand, is percent-encoded.

    :raises ValueError: no file can have it.
    """
    stem = quote(key, safe=_PLAIN, errors="surrogatepass")
    if stem.startswith("."):
        stem = "%2E" + stem[1:]
    name = stem + SUFFIX
    if not key:
        raise ValueError("a key can't be empty")
    if len(name) > MAX_NAME:
        raise ValueError(f"its file's name would have {len(name)} bytes, more than {MAX_NAME}")
    return name


def key_of(name: str) -> str | None:
    """The key whose file is called ``name``; ``None`` if no key's is."""
    if not name.endswith(SUFFIX):
        return None
    try:
        key = unquote(name[: -len(SUFFIX)], errors="surrogatepass")
        return key if file_name(key) == name else None
    except ValueError:
        return None


def decode(data: bytes, expiring: bool) -> tuple[str, float | None, float | None]:
    """A file's content as the record's value, the moment it expires, in seconds since 1970 (``None``: never), and the
    moment it came into being, if the file says so.

    A JSON object gives its compact text. Anything else gives the text as it is, with bytes that are not UTF-8
    replaced, and never expires: neither does an object whose ``Expires`` can't be read, which then stays in the value.

    :param expiring: whether ``Expires`` and ``Created`` have a meaning here; in the network document they have none.
    """
    text = data.decode("utf-8", "replace")
    try:
        document = _DECODER.decode(text)
        if not isinstance(document, dict):
            return text, None, None
        expires, created = (_take_time(document, name) if expiring else None for name in (EXPIRES, CREATED))
        if len(document) == 1 and isinstance(document.get(TEXT), str):
            return document[TEXT], expires, created
        return _COMPACT.encode(document), expires, created
    except (ValueError, RecursionError):
        return text, None, None


def _take_time(document: dict[str, object], name: str) -> float | None:
    """The moment of a field, which leaves the document if it can be read."""
    time = _parse_time(document.get(name))
    if time is not None:
        del document[name]
    return time


def encode(value: str, expires: float | None, expiring: bool, created: float | None = None) -> bytes:
    """What to write so that :func:`decode` gives ``value`` (a JSON object: the same object) and the times back."""
    fields = _plain_fields(value, expiring)
    times = {name: _format_time(time) for name, time in ((CREATED, created), (EXPIRES, expires)) if time is not None}
    if fields is None:
        if not times:
            verbatim = value.encode("utf-8", "replace")
            if decode(verbatim, expiring) == (value, None, None):
                return verbatim
        fields = {TEXT: value}
    fields = {**fields, **times}
    try:
        text = _PRETTY.encode(fields)
    except RecursionError:
        text = ""
    # Indenting what is nested deeply makes it grow with the square of its length.
    if not text or len(text) > 4 * len(value) + 4096:
        text = _COMPACT.encode(fields)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return (_COMPACT.encode(fields) + "\n").encode()


def _plain_fields(value: str, expiring: bool) -> dict[str, object] | None:
    """The JSON object that ``value`` is, if it can be stored field by field."""
    try:
        document = _DECODER.decode(value)
        _COMPACT.encode(document)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or TEXT in document or (expiring and {EXPIRES, CREATED} & document.keys()):
        return None
    return document


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON (RFC 8259)")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
_COMPACT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_PRETTY = json.JSONEncoder(indent=2, ensure_ascii=False, allow_nan=False)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

LATEST: Final = (datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc) - _EPOCH).total_seconds()
"""The last moment that an expiry can have, in seconds since 1970."""

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def _parse_time(text: object) -> float | None:
    """An RFC 3339 time in seconds since 1970, ``None`` if it is none."""
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = match.groups()
    try:
        moment = datetime(
            int(year),
            int(month),
            int(day),
            int(hour),
            int(minute),
            int(second),
            int((fraction or "")[:6].ljust(6, "0")),
            timezone.utc,
        )
    except ValueError:
        return None
    seconds = (moment - _EPOCH) / timedelta(seconds=1)
    if sign:
        offset = int(hours) * 3600 + int(minutes) * 60
        seconds += -offset if sign == "+" else offset
    return seconds


def _format_time(seconds: float) -> str:
    moment = _EPOCH + timedelta(microseconds=round(seconds * 1_000_000))
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
