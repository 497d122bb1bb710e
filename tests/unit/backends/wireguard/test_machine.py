"""The state machine on a network in memory: handshakes, timers, and what strangers can't do."""

from __future__ import annotations

import pytest
from tests.unit.backends.wireguard.world import Host, World

from pyflannel_backends.wireguard import messages
from pyflannel_backends.wireguard.machine import HELD, STAGED, Limits, Timestamps
from pyflannel_backends.wireguard.messages import INITIATION, RESPONSE, TRANSPORT, kind
from pyflannel_backends.wireguard.noise import StaticKeys

PACKET = b"\x45" + bytes(range(99))
PADDED = PACKET + bytes(12)


def kinds(world: World) -> list[int]:
    return [kind(data) for _, _, data in world.wire]


def established(world: World) -> tuple[Host, Host]:
    first, second = world.meet()
    first.send(second, PACKET)
    world.settle()
    assert second.received == [PADDED]
    second.received.clear()
    return first, second


@pytest.mark.parametrize("psk", [bytes(32), bytes(range(32))], ids=["no psk", "psk"])
def test_what_waits_goes_out_with_the_handshake(psk: bytes) -> None:
    world = World()
    first, second = world.meet(psk=psk)
    first.send(second, PACKET)
    assert kinds(world) == [INITIATION]
    world.deliver()
    assert kinds(world) == [RESPONSE]
    world.deliver()
    assert kinds(world) == [TRANSPORT]
    world.deliver()
    assert second.received == [PADDED]
    second.send(first, b"\x45back")
    world.settle()
    assert first.received == [b"\x45back" + bytes(11)]


def test_another_psk_agrees_on_nothing() -> None:
    world = World()
    first, second = world.hosts
    first.know(second, psk=bytes(range(32)))
    second.know(first)
    first.send(second, PACKET)
    world.settle()
    assert not second.received
    assert first.machine.peers[second.name].current is None


def test_a_responder_does_not_send_before_the_initiator_has_shown_that_it_can_read() -> None:
    world = World()
    first, second = world.meet()
    first.send(second, PACKET)
    world.deliver()
    world.lose()  # the response
    second.send(first, PACKET)
    assert kinds(world) == [INITIATION]


def test_an_initiator_with_nothing_to_send_confirms_by_a_keepalive() -> None:
    world = World()
    first, second = established(world)
    world.pass_time(181)
    first.send(second)
    assert kinds(world) == [INITIATION]
    world.settle()
    assert world.log[-1][:1] == bytes([TRANSPORT])
    assert len(world.log[-1]) == messages.OVERHEAD
    assert second.machine.peers[first.name].current is not None


def test_an_initiation_is_repeated_with_other_contents_for_90_seconds() -> None:
    world = World()
    first, second = world.meet()
    first.send(second, PACKET)
    seen: list[bytes] = []

    def watch() -> None:
        seen.extend(data for _, _, data in world.wire)
        world.lose()

    watch()
    world.pass_time(10, then=watch)
    assert len(seen) == 4, "after one, two and four seconds"
    world.pass_time(290, then=watch)
    assert 18 <= len(seen) <= 20
    assert {kind(data) for data in seen} == {INITIATION}
    assert len({data[8:40] for data in seen}) == len(seen), "an ephemeral key was used twice"
    assert dict(first.machine.failures())[second.name].startswith("no answer")
    assert not first.machine.peers[second.name].staged
    first.send(second, PACKET)
    world.settle()
    assert second.received == [PADDED]
    assert not dict(first.machine.failures())


def test_repeated_handshakes_try_the_configured_address_too() -> None:
    world = World()
    first, second = established(world)
    second.endpoint = ("198.51.100.9", 7)
    second.send(first, PACKET)
    world.settle()
    assert first.machine.peers[second.name].endpoint == second.endpoint
    second.endpoint = ("192.0.2.2", 51820)
    second.restart()
    second.know(first)
    world.pass_time(181)
    first.send(second, PACKET)
    world.settle()
    assert not second.received
    world.pass_time(6)
    assert second.received == [PADDED]


def test_the_queue_for_a_handshake_is_bounded_and_the_oldest_gives_way() -> None:
    world = World()
    first, second = world.meet()
    packets = [bytes([0x45, number % 256, number // 256]) + bytes(13) for number in range(STAGED + 10)]
    for packet in packets:
        first.send(second, packet)
    world.settle()
    assert second.received == packets[10:]


def test_both_begin_at_once() -> None:
    world = World()
    first, second = world.meet()
    first.send(second, b"\x45" + bytes(15))
    second.send(first, b"\x46" + bytes(15))
    assert kinds(world) == [INITIATION, INITIATION]
    world.settle()
    assert first.received == [b"\x46" + bytes(15)]
    assert second.received == [b"\x45" + bytes(15)]
    for host, other in ((first, second), (second, first)):
        host.send(other, PACKET)
    assert kinds(world) == [TRANSPORT, TRANSPORT]
    world.settle()
    assert first.received[1:] == second.received[1:] == [PADDED]


def test_a_late_answer_does_not_replace_what_was_agreed_since() -> None:
    """Our own initiation is void once the peer's handshake is confirmed: the peer may have forgotten ours."""
    world = World()
    first, second = world.meet()
    first.send(second, PACKET)
    ours = world.wire.pop()
    second.send(first, PACKET)
    world.settle()
    agreed = first.machine.peers[second.name].current
    assert agreed is not None
    assert not agreed.initiator
    world.wire.append(ours)
    world.deliver()
    assert kinds(world) == [RESPONSE]
    world.settle()
    assert first.machine.peers[second.name].current is agreed


def test_the_initiator_renews_after_120_seconds_and_loses_nothing() -> None:
    world = World()
    first, second = established(world)
    world.pass_time(121)
    old = first.machine.peers[second.name].current
    first.send(second, PACKET)
    assert kinds(world) == [TRANSPORT, INITIATION]
    second.send(first, PACKET)  # the responder still uses the old session
    world.settle()
    assert first.received == second.received == [PADDED]
    assert first.machine.peers[second.name].current is not old


def test_the_responder_does_not_renew() -> None:
    world = World()
    first, second = established(world)
    world.pass_time(121)
    second.send(first, PACKET)
    assert kinds(world) == [TRANSPORT]


def test_the_initiator_renews_after_so_many_messages() -> None:
    world = World(limits=Limits(rekey_after_messages=5))
    first, second = established(world)
    world.pass_time(6)
    for _ in range(3):
        first.send(second, PACKET)
        assert kinds(world) == [TRANSPORT]
        world.settle()
    first.send(second, PACKET)
    assert kinds(world) == [TRANSPORT, INITIATION]


def test_an_initiator_that_only_receives_renews_before_the_end() -> None:
    world = World()
    first, second = established(world)
    world.pass_time(164)
    second.send(first, PACKET)
    world.deliver()
    assert kinds(world) == []
    world.now += 2
    second.send(first, PACKET)
    world.deliver()
    assert kinds(world) == [INITIATION]


def test_a_session_ends_after_180_seconds_and_its_keys_are_dropped() -> None:
    world = World()
    first, second = established(world)
    first.send(second, PACKET)
    late = world.wire.pop()
    world.pass_time(179, then=world.lose)
    assert first.machine.sessions
    world.pass_time(1.5, then=world.lose)
    assert not first.machine.sessions
    assert not second.machine.sessions
    assert first.machine.peers[second.name].current is None
    second.take(late[2], late[0])
    assert not second.received
    first.send(second, PACKET)
    assert kinds(world) == [INITIATION]


def test_a_session_in_use_is_never_interrupted() -> None:
    """One packet a second in both directions for half an hour, each delivered at once."""
    world = World()
    first, second = established(world)
    for number in range(1800):
        world.pass_time(1)
        for host, other in ((first, second), (second, first)):
            host.send(other, PACKET)
            assert TRANSPORT in kinds(world), f"after {number} s a packet had to wait"
        world.settle()
    assert len(first.received) == len(second.received) == 1800
    handshakes = sum(kind(data) == RESPONSE for data in world.log)
    assert 14 <= handshakes <= 17


def test_who_only_receives_says_so_after_10_seconds() -> None:
    world = World()
    first, second = established(world)
    world.pass_time(9.9)
    world.log.clear()
    first.send(second, PACKET)
    world.settle()
    world.pass_time(5)
    assert [len(data) for data in world.log if kind(data) == TRANSPORT][1:] == [messages.OVERHEAD]
    world.log.clear()
    world.pass_time(60)
    assert [len(data) for data in world.log] == [messages.OVERHEAD], "for the second packet, and no answer to that"


def test_who_hears_nothing_back_for_15_seconds_begins_anew() -> None:
    world = World()
    first, second = established(world)
    first.send(second, PACKET)
    world.lose()
    world.pass_time(14.9, then=world.lose)
    assert first.machine.peers[second.name].pending is None
    world.pass_time(0.5)
    assert kind(world.log[-3]) == INITIATION
    assert first.machine.peers[second.name].pending is None


def test_persistent_keepalives() -> None:
    world = World()
    _, second = world.meet(keepalive=25)
    world.pass_time(1)
    assert second.machine.sessions, "a keepalive needs a session, so one is made"
    world.log.clear()
    world.pass_time(100)
    assert {len(data) for data in world.log} == {messages.OVERHEAD}
    assert 4 <= len(world.log) <= 8


def test_a_restart_of_one_side_costs_one_handshake() -> None:
    world = World()
    first, second = established(world)
    second.restart()
    second.know(first)
    first.send(second, PACKET)
    world.settle()
    assert not second.received
    second.send(first, PACKET)
    world.settle()
    assert first.received == [PADDED]
    first.send(second, PACKET)
    assert kinds(world) == [TRANSPORT]
    world.settle()
    assert second.received == [PADDED]


@pytest.mark.parametrize("step", [-1, -3600, -86400 * 365, 86400 * 365])
def test_a_clock_that_is_set_keeps_nobody_from_meeting(step: int) -> None:
    """Neither while running nor over a restart."""
    world = World()
    first, second = established(world)
    for restart in (False, True, True):
        first.wall_offset += step * 10**9
        if restart:
            first.restart()
            first.know(second)
        world.pass_time(181, then=world.lose)
        first.send(second, PACKET)
        world.settle()
        assert second.received == [PADDED]
        second.received.clear()
    first.wall_offset = 0
    first.restart()
    first.know(second)
    world.pass_time(1)
    first.send(second, PACKET)
    world.settle()
    assert second.received == [PADDED]


def test_timestamps_grow_and_are_reserved_ahead_but_seldom() -> None:
    wall, kept = [10**18], [0]
    reserved: list[int] = []

    def reserve(timestamp: int) -> None:
        kept[0] = timestamp
        reserved.append(timestamp)

    def as_number(label: bytes) -> int:
        return (int.from_bytes(label[:8], "big") - 2**62 - 10) * 10**9 + int.from_bytes(label[8:], "big")

    timestamps = Timestamps(lambda: wall[0], 0, reserve)
    labels = []
    for step in (0, 0, 10**9, -(10**15), 0, 61 * 10**9, 10**15, 0):
        wall[0] += step
        labels.append(timestamps.next())
        assert as_number(labels[-1]) < kept[0]
    assert labels == sorted(set(labels))
    assert all(len(label) == 12 for label in labels)
    assert len(reserved) == 2
    assert Timestamps(lambda: 0, kept[0], reserve).next() > labels[-1]
    timestamps.release()
    assert kept[0] == as_number(labels[-1])
    assert Timestamps(lambda: 0, kept[0], reserve).next() > labels[-1]
    labels.append(timestamps.next())
    assert labels[-2] < labels[-1]
    assert as_number(labels[-1]) < kept[0], "what comes after is reserved again"
    coarse = 1 << 54  # nanoseconds: 18,014,398 s after 1970, which is TAI64's 2 ** 62 + 10 s
    assert Timestamps(lambda: coarse + 99, 0, reserve).next().hex() == f"{0x400000000000000A + 18_014_398:x}1e5e1400"


def test_an_old_initiation_is_not_answered_again() -> None:
    world = World()
    first, second = world.meet()
    first.send(second, PACKET)
    initiation = world.wire[0]
    world.settle()
    before = dict(second.machine.sessions)
    second.take(initiation[2], ("203.0.113.1", 1))
    assert not world.wire
    assert second.machine.sessions == before


def test_a_recorded_initiation_moves_nobody_after_a_restart() -> None:
    world = World()
    first, second = world.meet()
    first.send(second, PACKET)
    initiation = world.wire[0]
    world.settle()
    second.restart()
    second.know(first)
    second.take(initiation[2], ("203.0.113.1", 1))
    assert second.machine.peers[first.name].endpoint == first.endpoint


def test_peers_are_followed_to_where_they_authenticate_from() -> None:
    world = World()
    first, second = established(world)
    second.endpoint = ("198.51.100.7", 4711)
    first.send(second, PACKET)
    world.settle()
    assert not second.received
    second.send(first, PACKET)
    world.settle()
    first.send(second, PACKET)
    world.settle()
    assert second.received == [PADDED]
    first.machine.put(second.name, second.public_key, ("192.0.2.2", 51820), world.now)
    assert first.machine.peers[second.name].endpoint == second.endpoint, "what is configured as before changes nothing"
    first.machine.put(second.name, second.public_key, ("192.0.2.99", 51820), world.now)
    assert first.machine.peers[second.name].endpoint == ("192.0.2.99", 51820)


def change_key(host: Host, private: bytes) -> None:
    host.private = private
    host.machine.set_identity(StaticKeys(private), host.world.now)
    host.flush()


def test_our_own_new_key_costs_no_packet() -> None:
    """What we send waits for a handshake with the new key; what comes is taken as before."""
    world = World()
    first, second = established(world)
    change_key(first, first.random.randbytes(32))
    first.send(second, PACKET)
    assert kinds(world) == [INITIATION], "which nobody understands yet"
    second.send(first, PACKET)
    world.settle()
    assert (first.received, second.received) == ([PADDED], [])
    second.know(first)  # the new lease arrives
    assert kinds(world) == [INITIATION]
    second.send(first, PACKET)
    assert kinds(world) == [INITIATION, TRANSPORT], "the other side need not wait"
    world.settle()
    assert (first.received, second.received) == ([PADDED] * 2, [PADDED])
    world.pass_time(181)
    second.send(first, PACKET)
    world.settle()
    assert first.received == [PADDED] * 3


def test_a_peer_that_forgets_all_as_it_learns_our_new_key_misses_no_packet() -> None:
    """As the kernel does, which lets one peer take the place of the other."""
    world = World()
    first, second = established(world)
    change_key(first, first.random.randbytes(32))
    first.send(second, PACKET)
    world.settle()
    second.machine.remove(first.name)
    second.know(first, keepalive=1)  # sends one at once
    first.send(second, PACKET)
    world.pass_time(1)
    assert second.received == [PADDED] * 2


def test_a_new_key_of_ours_leaves_room_for_what_is_on_its_way_to_those_that_we_talk_to() -> None:
    """In all, so that many peers can't take the memory; then the oldest give way as ever."""
    world = World()
    first, second = established(world)
    change_key(first, first.random.randbytes(32))
    packets = [bytes([0x45]) + number.to_bytes(15, "big") for number in range(STAGED + HELD + 10)]
    first.send(second, *packets)
    second.know(first)
    world.settle()
    assert second.received == packets[10:]


def test_a_peer_that_does_not_learn_our_new_key_is_sent_to_under_the_former() -> None:
    world = World()
    first, second = established(world)
    change_key(first, first.random.randbytes(32))
    first.send(second, PACKET)
    world.pass_time(10)
    assert not second.received
    world.pass_time(1)
    assert second.received == [PADDED]
    first.send(second, PACKET)
    assert kinds(world) == [TRANSPORT]


def test_a_key_change_that_is_taken_back_holds_nothing_up() -> None:
    world = World()
    first, second = established(world)
    former = first.private
    change_key(first, first.random.randbytes(32))
    first.send(second, PACKET)
    world.lose()
    change_key(first, former)
    assert TRANSPORT in kinds(world)
    world.settle()
    assert second.received == [PADDED]


def test_a_handshake_under_way_survives_our_new_key() -> None:
    world = World()
    first, second = world.meet()
    first.send(second, PACKET)
    change_key(first, first.random.randbytes(32))
    second.know(first)
    world.settle()
    assert second.received == [PADDED]


def test_a_removed_peer_is_forgotten() -> None:
    world = World()
    first, second = established(world)
    second.machine.remove(first.name)
    first.send(second, PACKET)
    world.settle()
    assert not second.received
    assert not second.machine.sessions
    first.restart()
    first.know(second)
    first.send(second, PACKET)
    world.settle()
    assert not second.received
    world.pass_time(200)
    second.know(first)
    first.send(second, PACKET)
    world.settle()
    assert second.received == [PADDED]


def test_two_peers_with_one_key_are_one_and_a_failure() -> None:
    world = World()
    first, second = world.meet()
    first.machine.put("thief", second.public_key, ("203.0.113.1", 1), world.now)
    assert dict(first.machine.failures()) == {"thief": "another peer has the same public key"}
    first.machine.send(first.machine.peers["thief"], [PACKET], world.now)
    first.flush()
    assert not world.wire
    second.send(first, PACKET)
    world.settle()
    assert first.received == [PADDED]
    first.machine.remove(second.name)
    assert not dict(first.machine.failures())


@pytest.mark.parametrize("key", [b"short", None])
def test_a_key_that_can_be_no_peers_is_refused(key: bytes | None) -> None:
    world = World()
    machine = world.hosts[0].machine
    with pytest.raises(ValueError, match="key"):
        machine.put("x", machine.public_key if key is None else key, None, world.now)


def test_padding_does_not_exceed_the_mtu() -> None:
    world = World()
    first, second = established(world)
    for size, padded in ((1408, 1408), (1409, 1420), (1420, 1420), (1500, 1500), (1, 16)):
        first.send(second, bytes(size))
        world.settle()
        assert len(second.received.pop()) == padded


def test_both_sides_count_the_same_bytes() -> None:
    world = World()
    first, second = established(world)
    for _ in range(5):
        first.send(second, PACKET, PACKET)
        second.send(first, PACKET)
        world.pass_time(40)
    here, there = first.machine.peers[second.name], second.machine.peers[first.name]
    assert here.sent_bytes == there.received_bytes
    assert here.received_bytes == there.sent_bytes
    assert here.sent_bytes > here.received_bytes > 5 * 144


def test_keys_are_not_in_any_text() -> None:
    world = World()
    first, second = world.meet(psk=b"\x5a" * 32)
    first.send(second, PACKET)
    pending = first.machine.peers[second.name].pending
    world.settle()
    session = first.machine.peers[second.name].current
    shown = (first.machine, first.machine.peers[second.name], session, pending, StaticKeys(first.private))
    for text in map(repr, shown):
        assert "Z" * 8 not in text
        assert repr(first.private)[2:-1] not in text
        assert first.private.hex() not in text
