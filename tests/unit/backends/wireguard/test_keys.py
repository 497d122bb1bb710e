"""The private key's file: made once, complete, for its owner only, and never shown."""

from __future__ import annotations

import os
import stat
import threading
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import ConfigError
from pyflannel_backends.wireguard import keys
from pyflannel_backends.wireguard.keys import KeyPair


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_the_public_key_is_that_of_rfc_7748() -> None:
    alice = KeyPair.of(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert alice.public_key == b64encode(public).decode()


@given(st.binary(min_size=32, max_size=32))
def test_private_keys_are_clamped_as_the_kernel_clamps_them(raw: bytes) -> None:
    found = KeyPair.of(raw)
    key = found.private_key.reveal()
    assert key[0] & 7 == 0
    assert key[31] & 0xC0 == 0x40
    assert KeyPair.of(key) == found, "and clamping again changes nothing"


@given(st.binary(max_size=40))
def test_keys_are_32_bytes_of_base64_and_not_zeros(raw: bytes) -> None:
    text = b64encode(raw).decode()
    assert keys.decode(text) == (raw if len(raw) == 32 and any(raw) else None)


@pytest.mark.parametrize("text", ["", "A" * 44, "A" * 42 + "B=", " " * 44, "A" * 43 + "=\n"])
def test_what_is_no_key(text: str) -> None:
    assert keys.decode(text) is None


def test_it_is_made_once_for_its_owner_only_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "some" / "where" / "key"
    before = os.umask(0)
    try:
        made = keys.load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.decode(path.read_text().strip()) == made.private_key.reveal()
    assert keys.load_or_create(path) == made
    assert keys.identity(path) == made
    assert os.listdir(path.parent) == ["key"], "nothing else is left"


def test_two_that_make_it_in_one_moment_have_one_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    found: list[KeyPair] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait()
        found.append(keys.load_or_create(path))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({identity.public_key for identity in found}) == 1
    assert os.listdir(tmp_path) == ["key"]


def test_one_that_is_there_is_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first, second = KeyPair.new(), KeyPair.new()
    keys.create(path, first)
    keys.create(path, second)
    assert keys.load(path) == first
    keys.replace(path, second)
    assert keys.load(path) == keys.identity(path) == second


def test_flanneld_s_key_file_is_taken(tmp_path: Path) -> None:
    """Mode 0400, and no newline at its end."""
    private = KeyPair.new()
    path = written(tmp_path / "wgkey", b64encode(private.private_key.reveal()), 0o400)
    assert keys.load(path) == private


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WIREGUARD_KEY_FILE", raising=False)
    assert keys.key_path(tmp_path) == tmp_path / "wireguard.key"
    monkeypatch.setenv("WIREGUARD_KEY_FILE", "/run/flannel/wgkey")
    assert keys.key_path(tmp_path) == Path("/run/flannel/wgkey")


@pytest.mark.parametrize(
    ("content", "mode", "named"),
    [
        (b"", 0o600, "no private key"),
        (b"rubbish that is secret", 0o600, "no private key"),
        (b"\xff" * 5000, 0o600, "no private key"),
        (b"A" * 43 + b"=", 0o600, "no private key"),
        (b64encode(bytes(range(32))), 0o644, "chmod 600"),
        (b64encode(bytes(range(32))), 0o620, "chmod 600"),
    ],
)
def test_a_file_that_can_t_be_used_is_named_with_what_to_do(
    tmp_path: Path, content: bytes, mode: int, named: str
) -> None:
    path = written(tmp_path / "key", content, mode)
    with pytest.raises(ConfigError, match=named) as caught:
        keys.load_or_create(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert path.read_bytes() == content, "and it stays as it is"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        keys.load_or_create(tmp_path)
    with pytest.raises(ConfigError, match="Not a directory"):
        keys.load_or_create(written(tmp_path / "file", b"") / "key")


def test_a_key_that_can_t_be_installed_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    before = keys.load_or_create(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        keys.replace(path, KeyPair.new())
    monkeypatch.undo()
    assert keys.load(path) == keys.identity(path) == before
    assert os.listdir(tmp_path) == ["key"]
