"""What a node asks of strangers, and how much it does for them under load."""

from __future__ import annotations

import os

import pytest
from tests.unit.backends.wireguard.world import World

from pyflannel_backends.wireguard import messages
from pyflannel_backends.wireguard.cookie import Gate, RateLimits, Stamper
from pyflannel_backends.wireguard.messages import COOKIE_REPLY, RESPONSE, CookieReply, Initiation, kind

PUBLIC = bytes(range(32))
HERE, THERE = ("192.0.2.1", 1000), ("2001:db8::1", 1000)


def initiation(index: int = 1) -> Initiation:
    return Initiation(index, bytes(32), bytes(48), bytes(28))


def asked(gate: Gate, data: bytes, sender: tuple[str, int], now: float) -> bool | CookieReply:
    message = messages.parse_handshake(data)
    assert isinstance(message, Initiation)
    return gate.admit(data, message, sender, now)


@pytest.fixture
def loaded() -> Gate:
    """A gate that is under load at time 0."""
    gate = Gate(PUBLIC, os.urandom, capacity=10)
    stamper = Stamper(PUBLIC)
    for _ in range(10):
        assert asked(gate, stamper.stamp(initiation(), 0), HERE, 0) is True
    assert not gate.is_under_load(0)
    assert isinstance(asked(gate, stamper.stamp(initiation(), 0), HERE, 0), CookieReply)
    assert gate.is_under_load(0)
    return gate


def test_who_does_not_know_our_key_gets_nothing() -> None:
    gate = Gate(PUBLIC, os.urandom, capacity=1)
    for _ in range(10):
        assert asked(gate, Stamper(bytes(32)).stamp(initiation(), 0), HERE, 0) is False
    assert not gate.is_under_load(0), "and is no load"


@pytest.mark.parametrize("sender", [HERE, THERE])
def test_under_load_a_cookie_opens_the_gate(loaded: Gate, sender: tuple[str, int]) -> None:
    stamper = Stamper(PUBLIC)
    reply = asked(loaded, stamper.stamp(initiation(7), 0), sender, 0)
    assert isinstance(reply, CookieReply)
    assert reply.receiver == 7
    assert stamper.accept(reply, 0)
    assert asked(loaded, stamper.stamp(initiation(8), 0), sender, 0) is True


def test_a_cookie_is_good_for_its_address_and_port_only(loaded: Gate) -> None:
    stamper = Stamper(PUBLIC)
    reply = asked(loaded, stamper.stamp(initiation(), 0), HERE, 0)
    assert isinstance(reply, CookieReply)
    stamper.accept(reply, 0)
    for sender in (THERE, ("192.0.2.2", 1000), ("192.0.2.1", 1001)):
        assert isinstance(asked(loaded, stamper.stamp(initiation(), 0), sender, 0), CookieReply)


def test_a_cookie_is_good_for_two_minutes() -> None:
    gate = Gate(PUBLIC, os.urandom, capacity=0.001)
    stamper = Stamper(PUBLIC)
    reply = asked(gate, stamper.stamp(initiation(), 0), HERE, 0)
    assert isinstance(reply, CookieReply)
    stamper.accept(reply, 0)
    kept = stamper.stamp(initiation(), 119)
    assert asked(gate, kept, HERE, 119) is True
    assert stamper.stamp(initiation(), 120)[-16:] == bytes(16)
    assert isinstance(asked(gate, kept, HERE, 121), CookieReply)


def test_a_cookie_reply_must_answer_our_last_message(loaded: Gate) -> None:
    stamper = Stamper(PUBLIC)
    first = stamper.stamp(initiation(1), 0)
    reply = asked(loaded, first, HERE, 0)
    assert isinstance(reply, CookieReply)
    assert not Stamper(PUBLIC).accept(reply, 0)
    stamper.stamp(initiation(2), 0)
    assert not stamper.accept(reply, 0)
    later = asked(loaded, stamper.stamp(initiation(3), 0), HERE, 0)
    assert isinstance(later, CookieReply)
    forged = CookieReply(later.receiver, later.nonce, bytes(32))
    assert not stamper.accept(forged, 0)
    assert stamper.accept(later, 0)
    assert not stamper.accept(later, 0), "once"


def test_under_load_each_source_has_its_share(loaded: Gate) -> None:
    def admitted(sender: tuple[str, int]) -> int:
        stamper = Stamper(PUBLIC)
        reply = asked(loaded, stamper.stamp(initiation(), 0), sender, 0)
        assert isinstance(reply, CookieReply)
        stamper.accept(reply, 0)
        return sum(asked(loaded, stamper.stamp(initiation(), 0), sender, 0) is True for _ in range(100))

    assert admitted(HERE) == admitted(THERE) == 5
    assert admitted(("192.0.2.1", 2000)) == 0, "another port is the same source"
    assert admitted(("2001:db8::ffff", 1)) == 0, "and so is another address of the same /64"
    assert admitted(("2001:db8:0:1::1", 1)) == 5


def test_load_passes() -> None:
    gate = Gate(PUBLIC, os.urandom, capacity=1)
    for _ in range(3):
        asked(gate, Stamper(PUBLIC).stamp(initiation(), 0), HERE, 0)
    assert gate.is_under_load(0.9)
    assert asked(gate, Stamper(PUBLIC).stamp(initiation(), 5), HERE, 5) is True


def test_buckets_fill_up_again_and_are_bounded() -> None:
    limits = RateLimits(10, 2, capacity=3)
    assert [limits.allow("a", 0) for _ in range(3)] == [True, True, False]
    assert [limits.allow("a", 0.1) for _ in range(2)] == [True, False]
    assert limits.allow("b", 0.1)
    assert limits.allow("c", 0.1)
    assert not limits.allow("d", 0.1), "no room, and nobody's bucket is full"
    assert limits.allow("d", 0.5)
    assert len(limits) == 1


def test_a_node_under_load_is_reached_by_who_answers_its_cookie() -> None:
    """Through the machines: a flood of valid first codes, then a genuine handshake."""
    world = World()
    first, second = world.meet()
    stamper = Stamper(second.public_key)
    for index in range(400):
        second.take(stamper.stamp(initiation(index), world.now), ("203.0.113.9", 9))
    replies = [data for _, _, data in world.wire]
    assert {kind(data) for data in replies} == {COOKIE_REPLY}
    assert max(map(len, replies)) < 148, "no amplification"
    world.lose()
    first.send(second, b"\x45" + bytes(15))
    world.deliver()
    assert [kind(data) for _, _, data in world.wire] == [COOKIE_REPLY]
    world.settle()

    def flood_and_settle() -> None:
        for index in range(400):
            second.take(stamper.stamp(initiation(index), world.now), ("203.0.113.9", 9))
        world.settle()

    world.pass_time(6, then=flood_and_settle)
    assert second.received == [b"\x45" + bytes(15)]
    assert RESPONSE in map(kind, world.log)
