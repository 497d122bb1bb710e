"""A fast path is made and taught with what it expects, and refuses anything else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.backends.userspace.edges import PEER
from tests.unit.backends.userspace.fastpath.bench import ROOM, Bench, arriving, leaving

from pyflannel_backends.userspace._fastpath import FastPath
from pyflannel_backends.userspace.fastpath import load_fast_path


@pytest.mark.parametrize(
    "changes",
    [
        {"epoll": "x"},
        {"epoll": 1 << 40},
        {"tun": -(1 << 40)},
        {"sockets": None},
        {"sockets": ()},
        {"sockets": (1, 2, 3)},
        {"sockets": (None,)},
        {"sockets": (-1,)},
        {"packet": bytes(ROOM)},
        {"received": memoryview(bytearray(ROOM))},
        {"packet": bytearray()},
        {"packet": bytearray(ROOM - 1)},
        {"received": bytearray(100)},
        {"opened": bytearray(0xFFFE)},
        {"mtu": 0},
        {"mtu": 65536},
        {"port": 0},
        {"port": -1},
        {"port": 65536 + 8285},
        {"port": 1 << 40},
        {"port": "8285"},
        {"another": 1},
    ],
)
def test_a_fast_path_is_not_made_of_anything(bench: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        bench.make(**changes)


def test_there_is_no_half_a_fast_path() -> None:
    with pytest.raises(TypeError):
        FastPath.__new__(FastPath)
    with pytest.raises(TypeError):
        FastPath(1, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        type("Descendant", (FastPath,), {})


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("carry_lone", (0, 1, "192.0.2.1")),
        ("carry_lone", (1, -1, "192.0.2.1")),
        ("carry_lone", (1, 1 << 40, "192.0.2.1")),
        ("carry_lone", (1, 1, "2001:db8::1")),
        ("carry_lone", (1, 1, "a name")),
        ("carry_lone", (1, 1, b"\xc0\0\2\1")),
        ("carry_lone", (1, 1)),
        ("learn_route", (b"abc", PEER, 1, (PEER, 1))),
        ("learn_route", (b"abcde", PEER, 1, (PEER, 1))),
        ("learn_route", (b"", PEER, 1, (PEER, 1))),
        ("learn_route", ("abcd", PEER, 1, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 1, ("a name", 1))),
        ("learn_route", (b"abcd", PEER, 1, ("fd00::1", 1))),
        ("learn_route", (b"abcd", PEER, 1, (PEER + "\0", 1))),
        ("learn_route", (b"abcd", PEER, 1, ("\udc80", 1))),
        ("learn_route", (b"abcd", PEER, 1, (b"\x7f\0\0\1", 1))),
        ("learn_route", (b"abcd", PEER, 1, (PEER, 0))),
        ("learn_route", (b"abcd", PEER, 1, (PEER, 65536))),
        ("learn_route", (b"abcd", PEER, 1, (PEER,))),
        ("learn_route", (b"abcd", PEER, 1, None)),
        ("learn_route", (b"abcd", PEER, 1, PEER)),
        ("learn_route", (b"abcd", 5, 1, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 0, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, -1, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 65536, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 1 << 70, (PEER, 1))),
        ("learn_route", (b"abcd", PEER, 1.5, (PEER, 1))),
        ("learn_route", ()),
        ("learn_session", (None, 1, 2, PEER, (PEER, 1), 1.0)),
        ("learn_session", ()),
        ("learn_path", (PEER, b"abcdefg")),
        ("learn_path", (PEER, b"abcdefghi")),
        ("learn_path", (PEER, "abcdefgh")),
        ("learn_path", (PEER, b"abcdefgh" * 2)),
        ("learn_path", ("", b"abcdefgh")),
        ("learn_path", ("fd00::1", b"abcdefgh")),
        ("learn_path", (PEER + "\0", b"abcdefgh")),
        ("learn_path", ("\udc80", b"abcdefgh")),
        ("learn_path", (None, b"abcdefgh")),
        ("learn_path", (PEER,)),
        ("poll", ("soon",)),
        ("poll", ()),
        ("forget", (1,)),
    ],
)
def test_arguments_of_another_form_are_refused_and_nothing_is_learnt(
    bench: Bench, method: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        getattr(bench.path, method)(*arguments)
    assert bench.from_tun(leaving(destination=b"abcd")) is None
    assert bench.from_udp(arriving(source=b"abcd", destination=b"efgh")) is None


def test_the_environment_switches_the_extension_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYFLANNEL_NO_EXTENSIONS", raising=False)
    assert load_fast_path() is FastPath
    monkeypatch.setenv("PYFLANNEL_NO_EXTENSIONS", "1")
    assert load_fast_path() is None
