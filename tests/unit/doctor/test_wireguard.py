"""What the times of WireGuard's handshakes mean to doctor."""

from __future__ import annotations

from base64 import b64encode
from ipaddress import IPv4Address, IPv4Network

from pyflannel.doctor.finding import Judgement
from pyflannel.doctor.wireguard import judge
from pyflannel.kernel.model import Endpoint, WireguardPeer

NOW = 1_700_000_000.0


def peer(number: int) -> WireguardPeer:
    key = b64encode(number.to_bytes(32, "big")).decode()
    endpoint = Endpoint(IPv4Address(f"192.0.2.{number}"), 51820)
    return WireguardPeer("flannel-wg", key, (IPv4Network(f"10.5.{number}.0/24"),), endpoint)


PEERS = [peer(number) for number in range(1, 9)]


def test_all_have_shaken_hands() -> None:
    last = {item.public_key: NOW - number for number, item in enumerate(PEERS)}
    (finding,) = judge("flannel-wg", PEERS, last, NOW)
    assert finding.outcome is Judgement.PASS
    assert "all 8 peers, the longest ago 7 s" in finding.message


def test_who_never_has_is_named_with_what_it_means() -> None:
    last = dict.fromkeys((item.public_key for item in PEERS[1:]), NOW)
    last[PEERS[2].public_key] = 0.0
    (finding,) = judge("flannel-wg", PEERS, last, NOW)
    assert finding.outcome is Judgement.WARN
    assert "2 of 8 peers" in finding.message
    assert "192.0.2.1:51820 (10.5.1.0/24)" in finding.message, "one that the kernel does not know"
    assert "192.0.2.3:51820 (10.5.3.0/24)" in finding.message, "and one that it knows"
    assert "UDP port" in finding.meaning
    assert finding.fix == "wg show flannel-wg"


def test_of_many_some_are_named() -> None:
    (finding,) = judge("flannel-wg", PEERS, {}, NOW)
    assert "and 3 more" in finding.message


def test_without_peers_there_is_nothing_to_say() -> None:
    (finding,) = judge("flannel-wg", [], {}, NOW)
    assert finding.outcome is Judgement.SKIP
