"""The fast path's cipher: OpenSSL's, used as it has to be, with keys that are gone when they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from pyflannel_backends.wireguard.messages import OVERHEAD, TransportHeader
from pyflannel_backends.wireguard.session import REJECT_AFTER_MESSAGES, nonce

extension = pytest.importorskip(
    "pyflannel_backends.userspace._fastpath", reason="the extension was not compiled", exc_type=ImportError
)
if not hasattr(extension, "Transport"):
    pytest.skip("the extension was compiled without OpenSSL", allow_module_level=True)
Transport = extension.Transport

ONE, OTHER = bytes(range(32)), bytes(range(100, 132))
VECTORS = json.loads(Path(__file__).with_name("wycheproof.json").read_text())["tests"]


def vectors(result: str) -> list[Any]:
    return [
        pytest.param(*map(bytes.fromhex, fields), id=str(number))
        for number, found, *fields in VECTORS
        if found == result
    ]


@pytest.mark.parametrize(("key", "iv", "extra", "plain", "sealed", "tag"), vectors("valid"))
def test_wycheproof_s_valid_vectors(
    key: bytes, iv: bytes, extra: bytes, plain: bytes, sealed: bytes, tag: bytes
) -> None:
    transport = Transport(key, key)
    assert transport.crypt(True, iv, extra, plain) == sealed + tag
    assert transport.crypt(False, iv, extra, sealed + tag) == plain


@pytest.mark.parametrize(("key", "iv", "extra", "plain", "sealed", "tag"), vectors("invalid"))
def test_wycheproof_s_invalid_vectors(
    key: bytes, iv: bytes, extra: bytes, plain: bytes, sealed: bytes, tag: bytes
) -> None:
    assert Transport(key, key).crypt(False, iv, extra, sealed + tag) is None


def test_the_vectors_are_all_there() -> None:
    results = [result for _, result, *_ in VECTORS]
    assert results.count("valid") > 200
    assert results.count("invalid") > 50
    assert set(results) == {"valid", "invalid"}


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3000))
def test_messages_are_those_of_cryptography(number: int, plain: bytes) -> None:
    transport, peer = Transport(ONE, OTHER), Transport(OTHER, ONE)
    header = TransportHeader(0, number).pack()
    message = header + ChaCha20Poly1305(ONE).encrypt(nonce(number), plain, None)
    assert transport.seal(number, plain) == message
    assert peer.open(number, message) == plain
    assert transport.open(number, message) is None


@given(st.binary(max_size=200), st.data())
def test_what_was_changed_cut_or_sent_under_another_number_does_not_open(plain: bytes, data: st.DataObject) -> None:
    message = bytearray(Transport(ONE, OTHER).seal(7, plain))
    peer = Transport(OTHER, ONE)
    assert peer.open(8, bytes(message)) is None
    assert peer.open(7, bytes(message[: data.draw(st.integers(0, len(message) - 1))])) is None
    message[data.draw(st.integers(16, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert peer.open(7, bytes(message)) is None
    assert peer.open(7, Transport(ONE, OTHER).seal(7, plain)) == plain, "an attempt leaves nothing behind"


@pytest.mark.parametrize("size", [0, OVERHEAD - 1])
def test_what_is_too_short_for_a_tag_does_not_open(size: int) -> None:
    assert Transport(ONE, ONE).open(0, bytes(size)) is None


@pytest.mark.parametrize("keys", [(b"", ONE), (ONE, b"k" * 31), (ONE, b"k" * 33), ("k" * 32, ONE), (ONE,), ()])
def test_a_key_has_32_bytes(keys: tuple[Any, ...]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Transport(*keys)


def test_numbers_are_claimed_once_and_end() -> None:
    transport = Transport(ONE, OTHER)
    assert [transport.claim(count) for count in (1, 46, 0, 3)] == [0, 1, 47, 47]
    assert transport.sent == 50
    assert transport.claim(REJECT_AFTER_MESSAGES) is None
    assert transport.claim(REJECT_AFTER_MESSAGES - 50) == 50
    assert transport.claim(1) is None
    assert transport.claim(0) == REJECT_AFTER_MESSAGES
    for bad in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            transport.claim(bad)


def test_there_is_no_half_a_transport() -> None:
    with pytest.raises(TypeError):
        Transport.__new__(Transport)
    with pytest.raises(TypeError):
        type("Descendant", (Transport,), {})


_HOLDER = """
import ctypes, os, sys
from pyflannel_backends.userspace._fastpath import Transport
libc = ctypes.CDLL(None)
keys = bytes(32), bytes(32)
places = [id(key) + bytes.__basicsize__ - 1 for key in keys]
for place in places:
    assert libc.read(0, ctypes.c_void_p(place), 32) == 32
transport = Transport(*keys)
for place in places:
    ctypes.memset(place, 0, 32)
transport.seal(0, bytes(1400)), transport.open(0, bytes(1432))
for state in "made", "gone":
    print(state, flush=True)
    os.read(0, 1)
    transport = None
"""


def test_keys_are_in_memory_as_long_as_they_are_needed_and_no_longer() -> None:
    keys = [bytes(range(start, start + 32)) for start in (0x61, 0xA1)]
    words = (sys.executable, "-c", _HOLDER)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        for key in keys:
            holder.stdin.write(key)
        assert holder.stdout.readline() == b"made\n"
        assert all(_found(holder.pid, key) for key in keys)
        holder.stdin.write(b"x")
        assert holder.stdout.readline() == b"gone\n"
        assert not any(_found(holder.pid, key) for key in keys)
        holder.stdin.write(b"x")


def _found(pid: int, key: bytes) -> int:
    """How often the memory that a process may write to holds a key."""
    count = 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, rights, *_ = line.split()
            if "rw" in rights:
                start, stop = (int(bound, 16) for bound in bounds.split("-"))
                memory.seek(start)
                count += memory.read(stop - start).count(key)
    return count
