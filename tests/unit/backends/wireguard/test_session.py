"""Numbers: sent ones are used once, received ones are taken once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.wireguard.world import World

from pyflannel_backends.userspace.fastpath import load_transport
from pyflannel_backends.wireguard.machine import Peer
from pyflannel_backends.wireguard.messages import HEADER, parse_transport
from pyflannel_backends.wireguard.noise import TransportKeys
from pyflannel_backends.wireguard.session import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, Numbers, Session

pytestmark = pytest.mark.usefixtures("path")

WINDOW = 8128


def numbers() -> Any:
    transport = load_transport()
    return Numbers() if transport is None else transport(bytes(32), bytes(32))


class Model:
    """The plainest window there is."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def accept(self, counter: int) -> bool:
        fresh = (
            counter not in self.seen
            and counter > max(self.seen, default=-1) - WINDOW
            and counter < REJECT_AFTER_MESSAGES
        )
        if fresh:
            self.seen.add(counter)
        return fresh

    def accept_run(self, first: int, count: int) -> bool:
        if first <= max(self.seen, default=-1) or first + count > REJECT_AFTER_MESSAGES:
            return False
        self.seen.update(range(first, first + count))
        return True


counters = (
    st.integers(0, 200)
    | st.integers(WINDOW - 40, WINDOW + 200)
    | st.integers(0, REJECT_AFTER_MESSAGES - 100)
    | st.integers(REJECT_AFTER_MESSAGES - 20, REJECT_AFTER_MESSAGES + 5)
)
steps = st.tuples(counters, st.none() | st.integers(1, 70))


@given(st.lists(steps, max_size=60))
def test_the_window_is_as_its_model(taken: list[tuple[int, int | None]]) -> None:
    window, model = numbers(), Model()
    for counter, count in taken:
        if count is None:
            assert window.accept(counter) == model.accept(counter)
        else:
            assert window.accept_run(counter, count) == model.accept_run(counter, count)


def test_the_window_at_its_edges() -> None:
    window = numbers()
    assert window.accept(0)
    assert not window.accept(0)
    assert window.accept(WINDOW - 1)
    assert not window.accept(0)
    assert window.accept(1)
    assert window.accept(WINDOW + 1)
    assert not window.accept(1)
    assert window.accept(2)
    assert window.accept_run(WINDOW + 2, WINDOW + 5)
    assert not window.accept(WINDOW + 2)


def pair() -> tuple[Session, Session]:
    one, other = b"a" * 32, b"b" * 32
    return (
        Session(Peer("b", bytes(32)), 1, 2, TransportKeys(one, other), own_key=bytes(32), initiator=True, now=0),
        Session(Peer("a", bytes(32)), 2, 1, TransportKeys(other, one), own_key=bytes(32), initiator=False, now=0),
    )


def test_a_packet_is_taken_once_and_only_whole() -> None:
    sender, receiver = pair()
    message = sender.seal(b"packet")
    assert message is not None
    header = parse_transport(message)
    assert header is not None
    assert (header.receiver, header.counter) == (2, 0)
    sealed = message[HEADER:]
    assert receiver.open(0, sealed[:-1]) is None
    assert receiver.open(0, bytes([sealed[0] ^ 1]) + sealed[1:]) is None
    assert receiver.open(1, sealed) is None
    assert receiver.open(0, sealed) == b"packet", "what was forged before must not count as received"
    assert receiver.open(0, sealed) is None
    assert receiver.open(REJECT_AFTER_MESSAGES, sealed) is None


def test_blocks_of_numbers_do_not_overlap() -> None:
    sender, _ = pair()
    assert [sender.claim(count) for count in (1, 46, 1, 3)] == [0, 1, 47, 48]
    assert sender.sent == 51


def test_numbers_run_out() -> None:
    sender, _ = pair()
    assert sender.claim(REJECT_AFTER_MESSAGES - 2) == 0
    assert sender.claim(3) is None
    assert sender.is_alive(0)
    assert sender.claim(2) is not None
    assert sender.seal(b"packet") is None
    assert not sender.is_alive(0)


def test_a_session_lives_for_180_seconds() -> None:
    sender, _ = pair()
    assert sender.is_alive(REJECT_AFTER_TIME - 0.1)
    assert not sender.is_alive(REJECT_AFTER_TIME)


def test_a_used_up_session_is_replaced() -> None:
    world = World()
    first, second = world.meet()
    first.send(second, b"\x45" + bytes(15))
    world.settle()
    session = first.machine.peers[second.name].current
    assert session is not None
    session.claim(REJECT_AFTER_MESSAGES - session.sent)
    world.pass_time(6)
    first.send(second, b"\x46" + bytes(15))
    world.settle()
    assert second.received[-1][0] == 0x46
