"""WireGuard's device and peers over netlink, on a real kernel that has it, as wg(8) sees them."""

from __future__ import annotations

from base64 import b64encode
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from tests.integration.backends.wireguard.kernels import needs_wireguard
from tests.integration.kernel.conftest import NamespaceWorld, run
from tests.waiting import until

from pyflannel.kernel.model import Endpoint, GenericInfo, KernelObject, Key, Kind, Link, WireguardDevice, WireguardPeer
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import Scope, Write
from pyflannel.small.secret import Secret

pytestmark = [pytest.mark.root, needs_wireguard]

NAME = "flannel-wg"
LINK = Link(NAME, GenericInfo("wireguard"), 1420)
DEVICE = WireguardDevice(NAME, Secret(bytes(range(32))), 51820)
SCOPE = Scope(frozenset({NAME}), generic={NAME: LINK}, wireguard=frozenset({NAME}))
PSK = Secret(bytes(range(32, 64)))


def peer(number: int, **changes: Any) -> WireguardPeer:
    values: dict[str, Any] = {
        "allowed_ips": (IPv4Network((0x0A000000 + (number << 8), 24)), IPv6Network((0xFD << 120 | number << 64, 64))),
        "endpoint": Endpoint(IPv4Address("192.0.2.1") + number % 200, 51820),
        **changes,
    }
    return WireguardPeer(NAME, b64encode(number.to_bytes(32, "big")).decode(), **values)


class World:
    """A namespace with a port."""

    def __init__(self, namespace: NamespaceWorld) -> None:
        self.name = namespace.name
        self.port = namespace.port
        assert self.write(LINK) == {}

    def dump(self) -> dict[Key, KernelObject]:
        return {key: item for key, item in self.port.dump(SCOPE).items() if key[0] is not Kind.LINK}

    def write(self, *wanted: KernelObject) -> dict[Key, Any]:
        actual = self.port.dump(SCOPE)
        return dict(self.port.apply([Write(actual.get(item.key), item) for item in wanted]))

    def wg(self, *words: str) -> str:
        return run("ip", "netns", "exec", self.name, "wg", *words)

    def told(self) -> dict[Key, KernelObject | None]:
        """What the port tells once it has read again."""
        return dict(until(lambda: self.port.poll().changes, "nothing was told"))


@pytest.fixture
def world(namespace: NamespaceWorld) -> World:
    return World(namespace)


def test_what_is_written_is_what_is_dumped_and_what_wg_shows(world: World) -> None:
    wanted: list[KernelObject] = [
        DEVICE,
        peer(1),
        peer(2, preshared_key=PSK, keepalive=25),
        peer(3, endpoint=Endpoint(IPv6Address("2001:db8::3"), 7), allowed_ips=()),
        peer(4, endpoint=None),
    ]
    assert world.write(*wanted) == {}
    assert world.dump() == {item.key: item for item in wanted}
    shown = {line.split("\t")[0]: line.split("\t") for line in world.wg("show", NAME, "dump").splitlines()[1:]}
    assert shown[peer(1).public_key][1:4] == ["(none)", "192.0.2.2:51820", "10.0.1.0/24,fd00:0:0:1::/64"]
    assert shown[peer(2).public_key][1] == b64encode(PSK.reveal()).decode()
    assert shown[peer(2).public_key][7] == "25"
    assert shown[peer(3).public_key][2:4] == ["[2001:db8::3]:7", "(none)"]
    assert world.wg("show", NAME, "listen-port").strip() == "51820"
    assert DEVICE.private_key is not None
    assert world.wg("show", NAME, "private-key").strip() == b64encode(DEVICE.private_key.reveal()).decode()


def test_changes_in_place(world: World) -> None:
    world.write(DEVICE, peer(1), peer(2, preshared_key=PSK, keepalive=25))
    changed: list[KernelObject] = [
        WireguardDevice(NAME, Secret(bytes(range(1, 33))), 51999, fwmark=3),
        peer(1, preshared_key=PSK, allowed_ips=peer(9).allowed_ips, keepalive=3),
        peer(2, endpoint=Endpoint(IPv4Address("192.0.2.200"), 9)),
    ]
    assert world.write(*changed) == {}
    assert world.dump() == {item.key: item for item in changed}


def test_thousands_of_peers_in_several_messages(world: World) -> None:
    many: list[KernelObject] = [peer(number) for number in range(1, 2001)]
    assert world.write(DEVICE, *many) == {}
    assert world.dump() == {item.key: item for item in (DEVICE, *many)}
    assert len(world.wg("show", NAME, "peers").split()) == 2000
    assert world.port.apply([Write(item, None) for item in many]) == {}
    assert world.dump() == {DEVICE.key: DEVICE}


def test_a_peer_with_many_allowed_ips_is_put_together_again(world: World) -> None:
    many = tuple(IPv4Network((0x0A000000 + (number << 8), 24)) for number in range(1000))
    wanted: list[KernelObject] = [peer(1, allowed_ips=()), peer(2, allowed_ips=many), peer(3, allowed_ips=())]
    assert world.write(DEVICE, *wanted) == {}
    assert world.dump() == {item.key: item for item in (DEVICE, *wanted)}


def test_what_others_change_is_told_without_a_notification(world: World) -> None:
    world.write(DEVICE, peer(1), peer(2), peer(3))
    world.dump()
    world.wg("set", NAME, "peer", peer(1).public_key, "remove")
    world.wg("set", NAME, "peer", peer(2).public_key, "persistent-keepalive", "5")
    world.wg("set", NAME, "peer", peer(3).public_key, "endpoint", "192.0.2.99:1")
    changes = world.told()
    assert changes == {peer(1).key: None, peer(2).key: peer(2, keepalive=5)}, "and a learned endpoint is no change"


def test_after_a_restart_an_endpoint_without_a_handshake_is_not_believed(world: World) -> None:
    world.write(DEVICE, peer(1))
    elsewhere = Endpoint(IPv4Address("192.0.2.99"), 1)
    world.wg("set", NAME, "peer", peer(1).public_key, "endpoint", str(elsewhere))
    port = NetlinkPort(Path("/run/netns") / world.name)
    try:
        assert port.dump(SCOPE, {peer(1).key: peer(1)})[peer(1).key] == peer(1, endpoint=elsewhere)
    finally:
        port.close()


def test_a_successor_takes_the_allowed_ips_over(world: World) -> None:
    world.write(DEVICE, peer(1))
    successor = peer(9, allowed_ips=peer(1).allowed_ips)
    assert world.port.apply([Write(peer(1), None), Write(None, successor)]) == {}
    assert world.dump() == {item.key: item for item in (DEVICE, successor)}
    assert world.wg("show", NAME, "persistent-keepalive").split() == [successor.public_key, "off"]


def test_a_refused_port_is_one_failure(world: World) -> None:
    run("ip", "-n", world.name, "link", "add", "other", "type", "wireguard")
    run("ip", "-n", world.name, "link", "set", "other", "up")
    world.wg("set", "other", "listen-port", "51820")
    failures = world.write(DEVICE, peer(1))
    assert failures.keys() == {DEVICE.key}
    assert "51820" in str(failures[DEVICE.key])
    assert "ss -lnup" in str(failures[DEVICE.key])
    assert peer(1).key in world.dump()


def test_of_a_device_that_is_not_ours_to_set_only_the_link_is_reported(world: World) -> None:
    world.write(DEVICE, peer(1))
    assert {key[0] for key in world.port.dump(Scope())} == {Kind.LINK}


def test_a_device_that_goes_takes_its_peers_along(world: World) -> None:
    world.write(DEVICE, peer(1))
    run("ip", "-n", world.name, "link", "delete", NAME)
    assert world.dump() == {}
    failures = world.write(peer(1))
    assert "no interface flannel-wg" in str(failures[peer(1).key])
