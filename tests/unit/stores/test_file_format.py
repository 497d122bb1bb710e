"""How the file store spells keys, values and expiries: every one comes back, and hand-written ones are understood."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyflannel_stores._file_format import LATEST, MAX_NAME, decode, encode, file_name, key_of

ANY_TEXT = st.text(st.characters(), max_size=60)  # half surrogate pairs and NUL included
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
MOMENTS = st.none() | st.integers(0, int(LATEST)).map(float) | st.floats(0, 4e9).map(lambda moment: round(moment, 6))


@given(ANY_TEXT.filter(bool))
@example(".")
@example("..")
@example("a/../b")
@example("\0")
@example("\ud800")
@example("%41")
def test_a_key_comes_back_from_its_file_name(key: str) -> None:
    try:
        name = file_name(key)
    except ValueError:
        assert len(key.encode("utf-8", "surrogatepass")) * 3 > MAX_NAME - len(".json")
        return
    assert key_of(name) == key
    assert name.isascii()
    assert name.isprintable()
    assert not name.startswith(".")
    assert "/" not in name
    assert len(os.fsencode(name)) <= MAX_NAME


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("10.5.34.0-24", "10.5.34.0-24.json"),
        ("10.5.34.0-24&fd00:10:5:34::-64", "10.5.34.0-24&fd00:10:5:34::-64.json"),
        ("a/b", "a%2Fb.json"),
        (".hidden", "%2Ehidden.json"),
        ("ü", "%C3%BC.json"),
    ],
)
def test_subnet_keys_are_readable_as_file_names(key: str, name: str) -> None:
    assert file_name(key) == name


@pytest.mark.parametrize("key", ["", "x" * 251, "ü" * 42])
def test_a_key_that_no_file_can_have_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"key|name"):
        file_name(key)


@pytest.mark.parametrize(
    "name", ["10.5.1.0-24", ".json", ".10.json.swp", "%41.json", "a%2fb.json", "%FF.json", "ü.json"]
)
def test_other_file_names_are_no_keys(name: str) -> None:
    assert key_of(name) is None


@given(st.dictionaries(ANY_TEXT, JSON, max_size=5), MOMENTS, st.booleans())
@example({"Expires": "2026-01-01T00:00:00Z"}, None, True)
@example({"Expires": "2026-01-01T00:00:00Z"}, 5.25, True)
@example({"Created": "2026-01-01T00:00:00Z"}, None, True)
@example({"Created": "2026-01-01T00:00:00Z"}, 5.25, True)
@example({"pyflannel:text": "x"}, None, True)
@example({"pyflannel:text": "x"}, 1.0, False)
@example({"a": "\ud800"}, 1.0, True)
def test_what_the_core_writes_comes_back_exactly(
    document: dict[str, object], expires: float | None, lease: bool
) -> None:
    value = json.dumps(document, separators=(",", ":"))
    if not lease:
        expires = None
    created = 1_700_000_000.25 if lease and expires is not None else None
    found, moment, since = decode(encode(value, expires, lease, created), lease)
    assert found == value
    assert moment == pytest.approx(expires, abs=1e-6)
    assert since == created


@given(ANY_TEXT, MOMENTS)
@example("[1, 2]", 3.0)
@example('{"a": Infinity}', None)
@example('{"a": 1e999}', 7.0)
@example("[" * 100_000, None)
@example('{"a": ' + "1" * 5000 + "}", None)
@example("\ufeff{}", None)
@example("\ud800", None)
def test_any_other_text_comes_back_exactly(value: str, expires: float | None) -> None:
    found, moment, _ = decode(encode(value, expires, True), True)
    assert moment == pytest.approx(expires, abs=1e-6)
    assert found == value or json.loads(found) == json.loads(value)


def test_a_lease_on_disk_is_flannels_document_and_an_expiry() -> None:
    value = '{"PublicIP":"192.0.2.1","BackendData":{"VNI":1},"note":"grün"}'
    moment = datetime(2026, 11, 23, 2, 17, 0, 250_000, timezone.utc).timestamp()
    assert encode(value, moment, True).decode() == (
        '{\n  "PublicIP": "192.0.2.1",\n  "BackendData": {\n    "VNI": 1\n  },\n  "note": "grün",\n'
        '  "Expires": "2026-11-23T02:17:00.250000Z"\n}\n'
    )


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T02:17:00Z",
        "2026-11-23t02:17:00z",
        "2026-11-23 02:17:00Z",
        "2026-11-23T02:17:00.000000000Z",
        "2026-11-23T04:17:00+02:00",
        "2026-11-22T20:47:00.0-05:30",
    ],
)
def test_expiries_as_people_and_other_programs_write_them(text: str) -> None:
    expected = datetime(2026, 11, 23, 2, 17, tzinfo=timezone.utc).timestamp()
    assert decode(json.dumps({"Expires": text, "a": 1}).encode(), True) == ('{"a":1}', expected, None)


@pytest.mark.parametrize(
    "expires", ["soon", "2026-11-23", "2026-13-01T00:00:00Z", "2026-11-23T02:17:00", 5, None, ["x"]]
)
def test_an_unreadable_expiry_makes_no_lease_vanish(expires: object) -> None:
    value = json.dumps({"Expires": expires}, separators=(",", ":"))
    assert decode(value.encode(), True) == (value, None, None)


def test_the_network_document_has_no_expiry() -> None:
    value = '{"Network":"10.5.0.0/16","Expires":"2001-01-01T00:00:00Z"}'
    assert decode(value.encode(), False) == (value, None, None)


@given(st.binary(max_size=200), st.booleans())
@example(b"", True)
@example(b"\xff\xfe", True)
@example(b'{"a": "\xff"}', True)
@example(b"[]", True)
def test_whatever_is_on_disk_reads_as_some_record(data: bytes, lease: bool) -> None:
    value, _, _ = decode(data, lease)
    assert isinstance(value, str)
