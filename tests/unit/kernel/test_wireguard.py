"""WireGuard's messages: what is encoded is what pyroute2 reads in them, and what pyroute2 encodes is what is parsed."""

from __future__ import annotations

import socket
import struct
from base64 import b64decode, b64encode
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.wireguard import wgmsg

from pyflannel.errors import KernelError
from pyflannel.kernel import wire, wireguard
from pyflannel.kernel.generic import encode
from pyflannel.kernel.model import Endpoint, Kind, WireguardDevice, WireguardPeer
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import Write
from pyflannel.kernel.rtsocket import Answer, Refused
from pyflannel.kernel.wireguard import MESSAGE_SIZE, SESSION_SECONDS, Wireguard
from pyflannel.small.secret import Secret

FAMILY = 31
INDEX = 7
keys = st.binary(min_size=32, max_size=32).filter(any)
texts = keys.map(lambda raw: b64encode(raw).decode())
secrets = keys.map(Secret)
ports = st.integers(1, 65535)
ipv4 = st.integers(0, 2**32 - 1)
ipv6 = st.integers(0, 2**128 - 1)
endpoints = st.builds(Endpoint, ipv4.map(IPv4Address) | ipv6.map(IPv6Address), ports)
networks = st.one_of(
    st.tuples(ipv4, st.integers(0, 32)).map(lambda pair: IPv4Network(pair, strict=False)),
    st.tuples(ipv6, st.integers(0, 128)).map(lambda pair: IPv6Network(pair, strict=False)),
)
peers = st.builds(
    WireguardPeer,
    st.just("wg0"),
    texts,
    st.lists(networks, max_size=4, unique=True).map(tuple),
    st.none() | endpoints,
    st.none() | secrets,
    st.integers(0, 65535),
)
devices = st.builds(WireguardDevice, st.just("wg0"), secrets, ports, st.integers(0, 2**32 - 1))


def read(message: bytes) -> Any:
    """A message as pyroute2 decodes it."""
    found = wgmsg(message)
    found.decode()
    return found


def attrs(part: Any) -> dict[str, Any]:
    return dict(part["attrs"])


def as_told(peer: WireguardPeer, received: int = 0, sent: int = 0) -> bytes:
    """What the kernel would say of a peer, encoded by pyroute2."""
    told: list[Any] = [
        ("WGPEER_A_PUBLIC_KEY", peer.public_key),
        ("WGPEER_A_PRESHARED_KEY", b64encode(peer.preshared_key.reveal() if peer.preshared_key else bytes(32))),
        ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.keepalive),
        ("WGPEER_A_RX_BYTES", received),
        ("WGPEER_A_TX_BYTES", sent),
    ]
    if peer.endpoint is not None:
        told.append(("WGPEER_A_ENDPOINT", {"addr": str(peer.endpoint.address), "port": peer.endpoint.port}))
    ips = [
        {
            "attrs": [
                ("WGALLOWEDIP_A_FAMILY", 2 if ip.version == 4 else 10),
                ("WGALLOWEDIP_A_IPADDR", ip.network_address.packed),
                ("WGALLOWEDIP_A_CIDR_MASK", ip.prefixlen),
            ]
        }
        for ip in peer.allowed_ips
    ]
    told.append(("WGPEER_A_ALLOWEDIPS", ips))
    return answer([("WGDEVICE_A_PEERS", [{"attrs": told}])])


def answer(told: list[Any]) -> bytes:
    message = wgmsg()
    message["header"] = {"type": FAMILY, "flags": 2, "sequence_number": 1, "pid": 0}
    message["cmd"], message["version"], message["attrs"] = 0, 1, told
    message.encode()
    return bytes(message.data)


def parsed(message: bytes) -> tuple[Any, list[Any]]:
    ((kind, _, _, _, start, end),) = wire.messages(message)
    assert kind == FAMILY
    return wireguard.parse(message, start, end)


@given(devices)
def test_devices_are_read_by_pyroute2(device: WireguardDevice) -> None:
    found = attrs(read(wireguard.encode_device(FAMILY, INDEX, device)))
    assert device.private_key is not None
    assert b64decode(found["WGDEVICE_A_PRIVATE_KEY"]) == device.private_key.reveal()
    assert (found["WGDEVICE_A_IFINDEX"], found["WGDEVICE_A_LISTEN_PORT"]) == (INDEX, device.listen_port)
    assert found["WGDEVICE_A_FWMARK"] == device.fwmark


@given(devices, devices)
def test_of_a_device_only_what_differs_is_written(new: WireguardDevice, old: WireguardDevice) -> None:
    found = attrs(read(wireguard.encode_device(FAMILY, INDEX, new, old)))
    assert ("WGDEVICE_A_PRIVATE_KEY" in found) == (new.private_key != old.private_key)
    assert ("WGDEVICE_A_LISTEN_PORT" in found) == (new.listen_port != old.listen_port)
    assert ("WGDEVICE_A_FWMARK" in found) == (new.fwmark != old.fwmark)


@given(st.lists(peers, min_size=1, max_size=5))
def test_peers_are_read_by_pyroute2(some: list[WireguardPeer]) -> None:
    message = wireguard.encode_peers(FAMILY, INDEX, [wireguard.encode_peer(peer) for peer in some])
    assert len(message) % 4 == 0
    found = attrs(read(message))["WGDEVICE_A_PEERS"]
    assert len(found) == len(some)
    for peer, part in zip(some, found, strict=True):
        told = attrs(part)
        assert told["WGPEER_A_PUBLIC_KEY"].decode() == peer.public_key
        secret = peer.preshared_key.reveal() if peer.preshared_key else bytes(32)
        assert b64decode(told["WGPEER_A_PRESHARED_KEY"]) == secret
        assert told["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL"] == peer.keepalive
        assert told["WGPEER_A_FLAGS"] == 2, "WGPEER_F_REPLACE_ALLOWEDIPS"
        endpoint: Any = told.get("WGPEER_A_ENDPOINT")
        assert (endpoint is None) == (peer.endpoint is None)
        if peer.endpoint is not None:
            same = type(peer.endpoint.address)(endpoint["addr"])
            assert (same, endpoint["port"]) == peer.endpoint
        assert [ip["addr"] for ip in told.get("WGPEER_A_ALLOWEDIPS", [])] == list(map(_as_pyroute2, peer.allowed_ips))


def _as_pyroute2(ip: Any) -> str:
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, ip.network_address.packed)}/{ip.prefixlen}"


@given(peers, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_peers_come_back(peer: WireguardPeer, received: int, sent: int) -> None:
    device, (row,) = parsed(as_told(peer, received, sent))
    assert device is None
    assert (row.public_key, row.keepalive, row.endpoint) == (peer.public_key, peer.keepalive, peer.endpoint)
    assert row.preshared_key == (peer.preshared_key.reveal() if peer.preshared_key else bytes(32))
    assert (row.received, row.sent, row.last_handshake) == (received, sent, 0)
    assert sorted(map(str, row.allowed_ips)) == sorted(map(str, peer.allowed_ips))


@given(devices)
def test_devices_come_back(device: WireguardDevice) -> None:
    assert device.private_key is not None
    secret = device.private_key.reveal()
    told = [
        ("WGDEVICE_A_LISTEN_PORT", device.listen_port),
        ("WGDEVICE_A_FWMARK", device.fwmark),
        ("WGDEVICE_A_IFINDEX", INDEX),
        ("WGDEVICE_A_PRIVATE_KEY", b64encode(secret)),
        ("WGDEVICE_A_PUBLIC_KEY", b64encode(secret[::-1])),
    ]
    row, none = parsed(answer(told))
    assert not none
    assert row == (secret, secret[::-1], device.listen_port, device.fwmark)


@given(st.binary(max_size=200))
def test_no_bytes_are_too_strange(noise: bytes) -> None:
    """A truncated or unknown message is read as far as it makes sense, or refused; it does not hang."""
    message = encode(FAMILY, 0, 2, noise + bytes(-len(noise) % 4))
    ((_, _, _, _, start, end),) = wire.messages(message)
    with suppress(ValueError, KeyError, IndexError, struct.error):
        wireguard.parse(message, start, end)


# the devices


class Requests:
    """A request socket over a kernel of one device, which is just what was sent to it, understood by pyroute2."""

    def __init__(self) -> None:
        self.device: bytes = answer([("WGDEVICE_A_LISTEN_PORT", 51820), ("WGDEVICE_A_FWMARK", 0)])
        self.peers: dict[str, WireguardPeer] = {}
        self.messages: list[Any] = []
        self.bad: set[str] = set()
        self.sizes: list[int] = []

    def ask(self, request: bytes) -> Answer:
        message = wire.message(16, 0, bytes((1, 2, 0, 0)) + bytes((6, 0, 1, 0, FAMILY, 0, 0, 0)))
        return Answer(16, message, 16, len(message))

    def dump(self, request: bytes, nothing: Any) -> list[Answer]:
        told = [self.device, *(as_told(peer) for peer in self.peers.values())]
        return [Answer(FAMILY, message, 16, len(message)) for message in told]

    def send(self, batch: list[bytes], most: int, between: Any) -> dict[int, Refused]:
        refused = {}
        for number, message in enumerate(batch):
            self.sizes.append(len(message))
            self.messages.append(read(message))
            for part in attrs(self.messages[-1]).get("WGDEVICE_A_PEERS", []):
                told = attrs(part)
                key = told["WGPEER_A_PUBLIC_KEY"].decode()
                if key in self.bad:
                    refused[number] = Refused(22, "")
                    break
                if told["WGPEER_A_FLAGS"] == 1:
                    self.peers.pop(key, None)
                elif told["WGPEER_A_FLAGS"] == 2:
                    self.peers[key] = WireguardPeer("wg0", key, _ips(told), _endpoint(told))
        return refused

    def close(self) -> None:
        self.messages.clear()


def _ips(told: Any) -> tuple[Any, ...]:
    return tuple(IPv4Network(ip["addr"]) for ip in told.get("WGPEER_A_ALLOWEDIPS", []))


def _endpoint(told: Any) -> Endpoint | None:
    raw = told.get("WGPEER_A_ENDPOINT")
    return Endpoint(IPv4Address(raw["addr"]), raw["port"]) if raw else None


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.requests = Requests()
        self.wireguard = Wireguard(lambda: self.requests, lambda: self.now, lambda: self.now)  # type: ignore[arg-type, return-value]

    def put(self, *writes: Write) -> dict[Any, Any]:
        failures: dict[Any, Any] = {}
        self.wireguard.put(writes, lambda write, name: INDEX, failures)
        return failures

    def read(self, **known: Any) -> dict[Any, Any]:
        return {item.key: item for item in self.wireguard.read({"wg0": INDEX}, **known)}


def peer(number: int, **changes: Any) -> WireguardPeer:
    key = b64encode(number.to_bytes(32, "big")).decode()
    values: dict[str, Any] = {
        "allowed_ips": (IPv4Network((0x0A000000 + (number << 8), 24)),),
        "endpoint": Endpoint(IPv4Address("192.0.2.1") + number % 200, 51820),
    }
    return WireguardPeer("wg0", key, **{**values, **changes})


def test_thousands_of_peers_need_few_messages_none_too_long() -> None:
    world = World()
    many = [peer(number) for number in range(1, 3001)]
    assert world.put(*(Write(None, item) for item in many)) == {}
    assert len(world.requests.peers) == 3000
    assert max(world.requests.sizes) < MESSAGE_SIZE + 100
    assert len(world.requests.sizes) < 30


def test_a_refused_peer_is_refused_alone() -> None:
    world = World()
    many = [peer(number) for number in range(1, 401)]
    world.requests.bad = {many[7].public_key, many[300].public_key}
    failures = world.put(*(Write(None, item) for item in many))
    assert failures.keys() == {many[7].key, many[300].key}
    assert many[7].public_key in str(failures[many[7].key])
    assert world.requests.peers.keys() == {item.public_key for item in many} - world.requests.bad


def test_a_learned_endpoint_is_left_alone_and_a_changed_one_written() -> None:
    world = World()
    one = peer(1)
    world.put(Write(None, one))
    world.requests.peers[one.public_key] = peer(1, endpoint=Endpoint(IPv4Address("198.51.100.9"), 4))
    assert world.read()[one.key] == one, "what was learned is not reported"
    moved = peer(1, endpoint=Endpoint(IPv4Address("192.0.2.77"), 51820))
    assert world.read(known={moved.key: moved})[one.key] == one, "the lease has changed: that is to be written"
    world.put(Write(one, moved))
    assert world.requests.peers[one.public_key].endpoint == moved.endpoint
    world.requests.messages.clear()
    world.put(Write(moved, peer(1, endpoint=moved.endpoint, keepalive=9)))
    (part,) = attrs(world.requests.messages[0])["WGDEVICE_A_PEERS"]
    assert "WGPEER_A_ENDPOINT" not in attrs(part), "an endpoint that is the same is not written again"


def test_after_a_restart_a_peer_is_believed_if_it_was_heard_of_lately() -> None:
    for age, believed in ((SESSION_SECONDS - 1, True), (SESSION_SECONDS + 1, False)):
        world = World()
        elsewhere = Endpoint(IPv4Address("198.51.100.9"), 4)
        row = wireguard.PeerRow(peer(1).public_key, bytes(32), elsewhere, 0, world.now - age, 0, 0, peer(1).allowed_ips)
        found = world.wireguard._believed("wg0", row, {peer(1).key: peer(1)})
        assert found.endpoint == (peer(1).endpoint if believed else elsewhere)


def test_what_others_change_is_found_when_it_is_time() -> None:
    world = World()
    world.put(*(Write(None, peer(number)) for number in (1, 2, 3)))
    world.read()
    del world.requests.peers[peer(1).public_key]
    world.requests.peers[peer(2).public_key] = peer(2, allowed_ips=())
    assert world.wireguard.reread({"wg0": INDEX}) == {}, "not yet"
    world.now += wireguard.REREAD_AFTER
    changes = world.wireguard.reread({"wg0": INDEX})
    assert changes == {peer(1).key: None, peer(2).key: peer(2, allowed_ips=())}
    world.now += wireguard.REREAD_AFTER
    assert world.wireguard.reread({"wg0": INDEX}) == {}


def test_a_failure_to_read_again_asks_for_a_dump_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(links: Any) -> Any:
        raise KernelError("the kernel's tables changed during each of 10 attempts to read them")

    port = NetlinkPort()
    try:
        port.poll()
        monkeypatch.setattr(port._wireguard, "reread", fail)
        assert port.poll().resync
    finally:
        port.close()


def test_a_successor_has_the_allowed_ips_before_the_other_goes_and_is_greeted() -> None:
    world = World()
    old, new = peer(1), peer(9, allowed_ips=peer(1).allowed_ips)
    world.put(Write(None, old))
    world.requests.messages.clear()
    world.put(Write(old, None), Write(None, new), Write(None, peer(3)))
    first, *greetings = world.requests.messages
    parts = [attrs(part) for part in attrs(first)["WGDEVICE_A_PEERS"]]
    assert [part["WGPEER_A_PUBLIC_KEY"].decode() for part in parts] == [
        new.public_key,
        peer(3).public_key,
        old.public_key,
    ]
    greeted = [attrs(part) for message in greetings for part in attrs(message)["WGDEVICE_A_PEERS"]]
    assert {part["WGPEER_A_PUBLIC_KEY"].decode() for part in greeted} == {new.public_key}
    assert [part["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL"] for part in greeted] == [1, 0]
    assert Kind.WIREGUARD_PEER in {key[0] for key in world.read()}
