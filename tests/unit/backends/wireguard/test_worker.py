"""The worker's files: what it keeps for its next life, and a key file that has become unusable."""

from __future__ import annotations

import time
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from pyflannel.errors import ConfigError
from pyflannel_backends.wireguard import keys
from pyflannel_backends.wireguard.worker import KeyedTunnel, ReservedTimestamps, WireguardConfig

PEER = b64encode(bytes(range(1, 33))).decode()


def config(directory: Path) -> WireguardConfig:
    return WireguardConfig(
        device="flannel-wg",
        mtu=1420,
        own=["10.5.1.0/24"],
        offload=False,
        listen=[],
        key_file=str(directory / "key"),
        timestamp_file=str(directory / "timestamp"),
    )


def test_what_was_reserved_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "timestamp"
    assert ReservedTimestamps(path).read() == 0
    kept = ReservedTimestamps(path)
    kept.reserve(5)
    kept.reserve(17)
    assert ReservedTimestamps(path).read() == 17
    assert [entry.name for entry in tmp_path.iterdir()] == ["timestamp"]
    path.write_text("no number")
    assert ReservedTimestamps(path).read() == 0


def test_a_handshake_reserves_and_a_full_disk_stops_none(tmp_path: Path) -> None:
    keys.load_or_create(tmp_path / "key")
    tunnel = KeyedTunnel(config(tmp_path), bytes(32))
    tunnel.put(PEER, ["lease", "192.0.2.2", 51820])
    packet = memoryview(bytearray(100))
    assert tunnel.send(packet, 100, PEER) == 0
    reserved = int((tmp_path / "timestamp").read_text())
    assert reserved - time.time_ns() <= 5 * 10**9
    nowhere = ReservedTimestamps(tmp_path / "missing" / "timestamp")
    nowhere.reserve(1)
    assert "missing" in nowhere.trouble


def test_nothing_ahead_stays_reserved_after_the_end(tmp_path: Path) -> None:
    """The kernel, which may have the same key next, says the time as it is: peers that heard more would ignore it."""
    keys.load_or_create(tmp_path / "key")
    before = time.time_ns()
    tunnel = KeyedTunnel(config(tmp_path), bytes(32))
    tunnel.put(PEER, ["lease", "192.0.2.2", 51820])
    tunnel.send(memoryview(bytearray(100)), 100, PEER)
    ahead = int((tmp_path / "timestamp").read_text())
    tunnel.close()
    used = int((tmp_path / "timestamp").read_text())
    assert before - 2**24 <= used < ahead
    assert used <= time.time_ns()


def test_what_a_successor_has_reserved_stays(tmp_path: Path) -> None:
    path = tmp_path / "timestamp"
    former, successor = ReservedTimestamps(path), ReservedTimestamps(path)
    former.reserve(50)
    former.reserve(40)
    assert former.read() == 40
    successor.reserve(90)
    former.reserve(30)
    assert successor.read() == 90


def test_an_unusable_key_file_is_told_of_and_the_old_key_stays(tmp_path: Path) -> None:
    path = tmp_path / "key"
    keys.load_or_create(path)
    tunnel = KeyedTunnel(config(tmp_path), bytes(32))
    tunnel.put(PEER, ["lease", "192.0.2.2", 51820])
    old = tunnel.machine.public_key
    good = path.read_bytes()
    path.write_bytes(b"no key\n")
    tunnel.expire(time.monotonic() + 2)
    assert tunnel.machine.public_key == old
    assert "no private key in it" in tunnel.failures()[PEER]
    assert "no private key in it" in tunnel.status()["trouble_with_files"]
    path.write_bytes(good)
    tunnel.expire(time.monotonic() + 4)
    assert not tunnel.failures()
    assert not tunnel.status()["trouble_with_files"]


def test_what_is_tuned_holds_for_peers_that_are_known_and_for_those_to_come(tmp_path: Path) -> None:
    keys.load_or_create(tmp_path / "key")
    tunnel = KeyedTunnel(config(tmp_path), bytes(32))
    tunnel.put(PEER, ["lease", "192.0.2.2", 51820])
    tunnel.tune(replace(config(tmp_path), keepalive=7, mtu=1300))
    tunnel.put(b64encode(bytes(range(2, 34))).decode(), ["other", "192.0.2.3", 51820])
    assert [peer.keepalive for peer in tunnel.machine.peers.values()] == [7, 7]
    assert tunnel.machine.mtu == 1300
    tunnel.tune(config(tmp_path))
    assert [peer.keepalive for peer in tunnel.machine.peers.values()] == [0, 0]


def test_without_a_key_there_is_no_tunnel(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        KeyedTunnel(config(tmp_path), bytes(32))


def test_a_handshake_that_its_predecessor_got_the_answer_to_is_begun_again_soon(tmp_path: Path) -> None:
    keys.load_or_create(tmp_path / "key")
    tunnel = KeyedTunnel(config(tmp_path), bytes(32))
    tunnel.put(PEER, ["lease", "192.0.2.2", 51820])
    tunnel.open()
    try:
        tunnel.send(memoryview(bytearray(100)), 100, PEER)
        peer = tunnel.machine.peers["lease"]
        first, begun = peer.initiated, {peer.initiated}
        while tunnel.deadline < first + 4:
            tunnel.expire(tunnel.deadline)
            begun.add(peer.initiated)
        assert len(begun) == 3
        assert max(begun) < first + 2
        assert peer.staged
    finally:
        tunnel.close()
