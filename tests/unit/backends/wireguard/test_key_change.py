"""A worker takes the key that the file holds, without a word from the daemon, and before a handshake fails for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pyflannel_backends.wireguard import keys, messages
from pyflannel_backends.wireguard.worker import KeyedTunnel, WireguardConfig

SENDER = ("192.0.2.9", 51820)


@pytest.fixture
def tunnel(tmp_path: Path) -> KeyedTunnel:
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
    return KeyedTunnel(config, bytes(32))


def renewed(tunnel: KeyedTunnel, path: Path) -> bytes:
    new = keys.Identity.new()
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
