"""Whatever comes that a peer did not make: no exception, no answer, no change."""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.wireguard.world import Host, World

from pyflannel_backends.wireguard.cookie import Stamper
from pyflannel_backends.wireguard.messages import Initiation, Response
from pyflannel_backends.wireguard.noise import Initiator, StaticKeys

pytestmark = pytest.mark.usefixtures("path")

STRANGER = ("203.0.113.66", 6666)
TIMED = ("repeat_at", "keepalive_at", "heard_until", "persistent_at", "wake", "asked", "initiated", "tries")
KNOWN = (*TIMED, "endpoint", "configured", "welcomed", "pending", "current", "next", "former", "received_bytes")


def state(host: Host) -> dict[str, Any]:
    """All of a machine that what comes may change."""
    machine = host.machine
    peers = {name: [repr(getattr(peer, field)) for field in KNOWN] for name, peer in machine.peers.items()}
    windows = {index: (s.numbers.state(), s.renewing) for index, s in machine.sessions.items()}
    return {"peers": peers, "windows": windows, "pending": dict(machine._pending), "at": machine.deadline}


def recorded() -> tuple[World, Host, Host, list[bytes]]:
    """Two hosts with a session, an unanswered initiation of each, and one message of every type, not yet delivered."""
    world = World()
    first, second = world.meet()
    first.send(second, b"\x45" + bytes(40))
    initiation = world.wire[0][2]
    world.deliver()
    response = world.wire[0][2]
    world.settle()
    world.pass_time(121)
    first.send(second, b"\x46" + bytes(40))
    transport, renewal = (data for _, _, data in world.wire)
    world.lose()
    second.send(first, b"\x47" + bytes(40))
    world.lose()
    world.now += 0.1
    return world, first, second, [initiation, response, transport, renewal]


@given(st.binary(max_size=300), st.sampled_from([0, 1, 2, 3, 4]), st.booleans())
def test_random_bytes(data: bytes, kind: int, sized: bool) -> None:
    _, first, second, _ = shared()
    if sized:
        data = (bytes([kind, 0, 0, 0]) + data).ljust({1: 148, 2: 92, 3: 64}.get(kind, 32), b"\0")
        data = data[: {1: 148, 2: 92, 3: 64}.get(kind, len(data))]
    for host in (first, second):
        ignores(host, data)


@given(st.integers(0, 3), st.data())
def test_genuine_messages_with_a_bit_flipped_or_cut_or_extended(which: int, data: st.DataObject) -> None:
    _, first, second, genuine = shared()
    message = genuine[which]
    how = data.draw(st.sampled_from(["flip", "cut", "extend"]))
    if how == "flip":
        changed = bytearray(message)
        changed[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        message = bytes(changed)
    elif how == "cut":
        message = message[: data.draw(st.integers(0, len(message) - 1))]
    else:
        message += data.draw(st.binary(min_size=1, max_size=20))
    for host in (first, second):
        if not (which == 3 and len(message) == 148 and message[:-16] == genuine[3][:-16]):  # mac2 isn't asked for
            ignores(host, message)


@given(st.binary(min_size=1, max_size=28), st.integers(0, 2**32 - 1))
def test_whole_handshakes_by_somebody_unknown(secret: bytes, index: int) -> None:
    """A stranger who knows our public key makes a perfect initiation."""
    _, _, second, _ = shared()
    stranger = StaticKeys(secret.ljust(32, b"s"))
    made = Initiator(
        stranger, second.public_key, bytes(32), index=index, timestamp=b"\xff" * 12, ephemeral=secret.ljust(32, b"e")
    )
    ignores(second, Stamper(second.public_key).stamp(made.message, 0))


@given(st.binary(min_size=32, max_size=32))
def test_an_initiation_that_claims_a_peers_key(secret: bytes) -> None:
    """Its static key is the peer's, but whoever made it does not hold it: the timestamp can't be right."""
    _, first, second, _ = shared()

    class Claims(StaticKeys):
        __slots__ = ()

    liar = Claims(secret)
    liar.public = first.public_key
    made = Initiator(liar, second.public_key, bytes(32), index=5, timestamp=b"\xff" * 12, ephemeral=secret)
    ignores(second, Stamper(second.public_key).stamp(made.message, 0))


@given(st.sampled_from([bytes(32), b"\x01" + bytes(31)]), st.binary(min_size=16, max_size=16))
def test_degenerate_ephemeral_keys(point: bytes, sealed: bytes) -> None:
    _, first, second, _ = shared()
    initiation = Initiation(1, point, sealed * 3, (sealed * 2)[:28])
    (index,) = first.machine._pending
    response = Response(1, index, point, sealed)
    for host in (first, second):
        ignores(host, Stamper(host.public_key).stamp(initiation, 0))
        ignores(host, Stamper(host.public_key).stamp(response, 0))


def test_a_replayed_packet_moves_nobody() -> None:
    _, _, second, genuine = recorded()
    second.take(genuine[2], ("192.0.2.1", 51820))
    assert second.received[-1][0] == 0x46
    ignores(second, genuine[2])


def test_what_was_recorded_is_what_these_tests_take_it_for() -> None:
    """Unchanged, the unanswered initiation and the packet do have an effect."""
    _, _, second, genuine = recorded()
    before = state(second)
    second.take(genuine[3], ("192.0.2.1", 51820))
    assert state(second) != before
    before = state(second)
    second.take(genuine[2], ("192.0.2.1", 51820))
    assert state(second) != before


def ignores(host: Host, data: bytes) -> None:
    before = state(host)
    packets = len(host.received)
    host.machine._gate._load._buckets.clear()  # never under load, when anybody who knows our key gets a cookie
    host.take(data, STRANGER)
    assert not host.world.wire
    assert len(host.received) == packets
    assert state(host) == before


def shared() -> tuple[World, Host, Host, list[bytes]]:
    """What properties look at, once for each path."""
    return _shared(os.environ.get("PYFLANNEL_NO_EXTENSIONS"))


@functools.cache
def _shared(_: str | None) -> tuple[World, Host, Host, list[bytes]]:
    return recorded()
