"""A worker takes the key that the file holds, without a word from the daemon, and before a handshake fails for it.

Whoever changes the key learns when it has.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.errors import ConfigError
from pyflannel_backends.wireguard import keys, messages
from pyflannel_backends.wireguard.worker import KeyedTunnel, WireguardConfig

SENDER = ("192.0.2.9", 51820)


@pytest.fixture
def tunnel(tmp_path: Path) -> Iterator[KeyedTunnel]:
    path = tmp_path / "key"
    keys.load_or_create(path)
    config = WireguardConfig(
        device="flannel-wg",
        mtu=1420,
        own=["10.5.1.0/24"],
        offload=False,
        listen=[],
        key_file=str(path),
        timestamp_file=str(tmp_path / "timestamp"),
    )
    tunnel = KeyedTunnel(config, bytes(32))
    yield tunnel
    tunnel.close()


def renewed(tunnel: KeyedTunnel, path: Path) -> bytes:
    new = keys.KeyPair.new()
    keys.replace(path, new)
    public = keys.decode(new.public_key)
    assert public is not None
    assert tunnel.machine.public_key != public
    return public


def test_when_a_peer_begins_a_handshake(tunnel: KeyedTunnel, tmp_path: Path) -> None:
    public = renewed(tunnel, tmp_path / "key")
    now = time.monotonic()
    tunnel._take_one(bytes((messages.TRANSPORT, *bytes(40))), SENDER, now)
    assert tunnel.machine.public_key != public, "what is no initiation costs no look"
    tunnel._take_one(bytes((messages.INITIATION, *bytes(147))), SENDER, now)
    assert tunnel.machine.public_key == public


def test_many_of_them_cost_few_looks(tunnel: KeyedTunnel, tmp_path: Path) -> None:
    now = time.monotonic()
    tunnel._take_one(bytes((messages.INITIATION, *bytes(147))), SENDER, now)
    public = renewed(tunnel, tmp_path / "key")
    tunnel._take_one(bytes((messages.INITIATION, *bytes(147))), SENDER, now + 0.005)
    assert tunnel.machine.public_key != public
    tunnel._take_one(bytes((messages.INITIATION, *bytes(147))), SENDER, now + 0.02)
    assert tunnel.machine.public_key == public


def test_and_within_a_second_anyway(tunnel: KeyedTunnel, tmp_path: Path) -> None:
    public = renewed(tunnel, tmp_path / "key")
    tunnel.expire(time.monotonic() + 1.1)
    assert tunnel.machine.public_key == public


def test_at_once_while_it_waits_for_packets(tunnel: KeyedTunnel, tmp_path: Path) -> None:
    (watch,) = tunnel.open()
    with selectors.DefaultSelector() as selector:
        selector.register(watch, selectors.EVENT_READ)
        public = renewed(tunnel, tmp_path / "key")
        assert selector.select(10)
        assert watch.receive(memoryview(bytearray(1))) is None
        assert tunnel.machine.public_key == public
        assert not selector.select(0)


def test_also_one_that_was_made_because_there_was_none(tunnel: KeyedTunnel, tmp_path: Path) -> None:
    path = tmp_path / "key"
    (watch,) = tunnel.open()
    path.unlink()
    public = keys.decode(keys.load_or_create(path).public_key)
    watch.receive(memoryview(bytearray(1)))
    assert tunnel.machine.public_key == public


def test_who_exchanges_the_key_waits_until_it_is_taken(
    tunnel: KeyedTunnel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has its turn while the other waits."""
    path = tmp_path / "key"
    (watch,) = tunnel.open()
    monkeypatch.setattr(keys, "sleep", lambda _: watch.receive(memoryview(bytearray(1))))
    before, new = keys.identity(path), keys.KeyPair.new()
    assert keys.exchange(path, new) == before
    assert tunnel.machine.public_key == keys.decode(new.public_key)


def test_a_key_that_a_worker_does_not_take_is_taken_back(
    tunnel: KeyedTunnel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_PATIENCE", 0.0)
    path = tmp_path / "key"
    tunnel.open()
    before = keys.load(path)
    with pytest.raises(ConfigError, match="still used the former key"):
        keys.exchange(path, keys.KeyPair.new())
    assert keys.load(path) == keys.identity(path) == before


def test_nobody_waits_for_a_worker_without_a_device(tunnel: KeyedTunnel, tmp_path: Path) -> None:
    """It sends nothing, and has the new key before it does."""
    path = tmp_path / "key"
    tunnel.open()
    tunnel.close()
    new = keys.KeyPair.new()
    keys.exchange(path, new)
    tunnel.open()
    assert tunnel.machine.public_key == keys.decode(new.public_key)
