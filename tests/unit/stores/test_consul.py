"""What the Consul driver makes of a location, of states that follow each other, and of Consul's numbers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.servers.web import web

from pyflannel.errors import ConfigError, HistoryGoneError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import Record, StoreLocation
from pyflannel_stores import consul as driver
from pyflannel_stores._consul_access import TOKEN_VARIABLES
from pyflannel_stores.consul import ConsulStore


@pytest.fixture(autouse=True)
def no_token_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def open_store(url: str, **options: str) -> ConsulStore:
    return ConsulStore(StoreLocation.parse(url, options))


@pytest.mark.parametrize(
    ("url", "hosts", "prefix"),
    [
        ("consul://", [("127.0.0.1", 8500)], "coreos.com/network"),
        ("consul://h1", [("h1", 8500)], "coreos.com/network"),
        ("consul://h1:1,h2:65535/", [("h1", 1), ("h2", 65535)], "coreos.com/network"),
        ("consul://[2001:db8::1]:8501/a", [("2001:db8::1", 8501)], "a"),
        ("consul://[2001:db8::1]/a/b/", [("2001:db8::1", 8500)], "a/b"),
        ("consul:///a%20b", [("127.0.0.1", 8500)], "a b"),
    ],
)
def test_a_location(url: str, hosts: list[tuple[str, int]], prefix: str) -> None:
    store = open_store(url)
    assert store._hosts == hosts
    assert store._path("config") == f"{prefix}/config"
    assert store._path("10.5.1.0-24") == f"{prefix}/subnets/10.5.1.0-24"
    assert store._access.tls is False


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("consul://h1:0", "h1:0"),
        ("consul://h1:65536", "65536"),
        ("consul://h1:http", "http"),
        ("consul://h1:", "h1:"),
        ("consul://:8500", ":8500"),
        ("consul://[2001:db8::1]x", "2001"),
        ("consul://h1..example", "can't be a host's name"),
        (f"consul://h1,{'x' * 64}.example", "can't be a host's name"),
        ("consul://h1/a//b", "empty parts"),
        ("consul://h1/a/../b", "empty parts"),
        ("consul://h1/./b", "empty parts"),
        ("consul://h1?tls=maybe", "true or false"),
        ("consul://h1?token=secret", "unknown option 'token'"),
        ("consul://h1?token_file=/no/such/file", "/no/such/file"),
        ("consul://h1?cafile=/no/such/file", "/no/such/file"),
        ("consul://h1?certfile=/dev/null", "go together"),
        ("consul://h1?tls=false&cafile=/dev/null", "leave one"),
    ],
)
def test_a_location_that_makes_no_sense(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_store(url)
    assert words in str(refused.value)


@pytest.mark.parametrize("text", ["", "\n", "two words", "tök", "a\x00b", "two\nlines"])
def test_a_token_that_is_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="token") as refused:
        open_store("consul://h1", token_file=str(path))
    assert not text.strip() or text not in str(refused.value)
    if text.strip() and "\x00" not in text:
        monkeypatch.setenv("CONSUL_HTTP_TOKEN", text)
        with pytest.raises(ConfigError, match="CONSUL_HTTP_TOKEN"):
            open_store("consul://h1")


def test_tls_is_implied_by_its_files(tmp_path: Path) -> None:
    assert open_store("consul://h1", cafile="/dev/null")._access.tls
    assert open_store("consul://h1?tls=true")._access.tls
    assert open_store("consul://h1", certfile="/dev/null", keyfile="/dev/null")._access.tls


def test_datacenter_and_namespace_go_with_every_request() -> None:
    access = open_store("consul://h1?datacenter=east&namespace=net")._access
    assert access.parameters == {"dc": "east", "ns": "net"}


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    words = [sys.executable, "-c", f"import sys; {code}"]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_without_py_consul_it_is_said_what_to_install() -> None:
    code = "from pyflannel.store import StoreLocation; from pyflannel_stores.consul import ConsulStore"
    shown = run(
        f"""sys.modules["consul"] = None; {code}
try:
    ConsulStore(StoreLocation.parse("consul://h1"))
except Exception as error:
    print(type(error).__name__, error)"""
    )
    assert shown.startswith("ConfigError ")
    assert "pip install 'pyflannel[consul]'" in shown


def test_the_module_alone_costs_little() -> None:
    shown = run("import pyflannel_stores.consul; print({'consul', 'requests', 'urllib3'} & sys.modules.keys())")
    assert shown == "set()"


def test_a_closed_store_answers_nothing() -> None:
    store = open_store("consul://127.0.0.1:1")
    watch = store.watch("x")
    store.close()
    store.close()
    assert list(watch) == []
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.snapshot()


REASONS = json.dumps({"Errors": [{"What": f"permission denied {'x' * 100_000}"}]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"[" * 100_000, StoreUnavailableError),
        (409, b"[" * 100_000, StoreUnavailableError),
        (409, REASONS, StoreDeniedError),
    ],
    ids=["too deep", "too deep a refusal", "too long"],
)
def test_what_no_consul_says_is_told_in_short(status: int, body: bytes, error: type[Exception]) -> None:
    with web(status, body) as port, open_store(f"consul://127.0.0.1:{port}") as store, pytest.raises(error) as told:
        store.snapshot()
    assert len(str(told.value)) < 500


def test_a_revision_from_elsewhere_is_not_known() -> None:
    with open_store("consul://127.0.0.1:1") as store, store.watch("x.1") as watch, pytest.raises(HistoryGoneError):
        next(watch)


def test_a_resolver_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def never(*_: object, **__: object) -> list[object]:
        ended.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    try:
        with (
            open_store("consul://h1.invalid,h2.invalid") as store,
            pytest.raises(StoreUnavailableError, match="no answer about that name from DNS"),
        ):
            store.snapshot()
    finally:
        ended.set()


def test_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with open_store("consul://h1.invalid") as store, pytest.raises(StoreUnavailableError, match="not known"):
        store.create("10.5.1.0-24", "{}", 60.0)


# states

KEYS = st.sampled_from(["config", "10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24", "odd"])


@st.composite
def states(draw: st.DrawFn) -> dict[str, Record]:
    numbers = st.integers(1, 4)
    return {
        key: Record(key, draw(st.sampled_from("ab")), f"{draw(numbers)}.{draw(numbers)}", draw(st.booleans()))
        for key in draw(st.lists(KEYS, unique=True))
    }


@given(states(), states())
def test_the_differences_lead_from_one_state_to_the_other(before: dict[str, Record], after: dict[str, Record]) -> None:
    changes = driver._differences(before, after)
    state = {key: (record.version, record.value) for key, record in before.items()}
    for change in changes:
        if change.record is None:
            del state[change.key]
        else:
            state[change.key] = (change.record.version, change.record.value)
    assert state == {key: (record.version, record.value) for key, record in after.items()}
    assert len({change.key for change in changes}) == len(changes)
    indices = [driver._index_of(change.record) for change in changes if change.record]
    assert indices == sorted(indices)


@given(states())
def test_no_difference_no_change(state: dict[str, Record]) -> None:
    assert driver._differences(state, dict(state)) == ()


def test_old_states_are_forgotten() -> None:
    history = driver._History()
    small = driver._State(1, {})
    revisions = [history.add(small) for _ in range(driver._REMEMBERED_STATES + 1)]
    assert len(set(revisions)) == len(revisions)
    assert [history.get(revision) is None for revision in revisions[:2]] == [True, False]
    record = Record("k", "v", "1.1")
    large = driver._State(1, {str(number): record for number in range(driver._REMEMBERED_RECORDS // 2)})
    kept = [history.add(large) for _ in range(3)]
    assert [history.get(revision) is large for revision in kept] == [False, True, True]
    assert driver._History().get(revisions[-1]) is None


# numbers


@given(st.floats(0.001, 1e7))
def test_a_granted_ttl_is_one_that_consul_takes(ttl: float) -> None:
    granted = driver._grant(ttl)
    assert 10 <= granted <= 86400
    assert granted >= min(ttl, 86400)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("86400s", 86400), ("24h", 86400), ("1h30m0.5s", 5400.5), ("15000ms", 15), ("", None)],
)
def test_ttls_as_go_writes_them(text: str, seconds: float | None) -> None:
    assert driver._parse_ttl(text) == seconds


@given(st.text(), st.integers(1, 2**32 - 1), st.integers(1, 2**40))
def test_a_stamp_keeps_the_version_of_its_value_alone(value: str, index: int, later: int) -> None:
    value = value.encode("utf-8", "replace").decode()
    record = Record("k", value, f"7.{index}")
    item = {"Flags": driver._stamp(record), "CreateIndex": 7, "ModifyIndex": later, "Value": value.encode()}
    assert driver._version(item) == record.version
    assert driver._version({**item, "Value": (value + "x").encode()}) == f"7.{later}"
    assert driver._version({**item, "Flags": 0}) == f"7.{later}"
    assert 0 <= item["Flags"] < 2**64  # type: ignore[operator]
