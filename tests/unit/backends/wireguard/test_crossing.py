"""Two nodes that begin to talk at once, as all do when a network goes over to WireGuard: no order of events keeps them
apart.

Each of the two sends a packet; their handshakes cross, messages are delivered in any order, one of them may get lost,
and each side may begin its handshake anew, as a worker does that may have had a predecessor. Every course of events is
gone through, by replaying it with other choices. In all of them both packets are there before the queue for a handshake
is full, should there be one every ten milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.unit.backends.wireguard.world import Host, World

from pyflannel_backends.wireguard.machine import STAGED
from pyflannel_backends.wireguard.messages import INITIATION, RESPONSE, TRANSPORT, kind

FREE = 6
"""Events that are chosen, fewer where there are more of them; what is left is delivered in order."""
PACKET = b"\x45" + bytes(15)
WHILE_ROOM = STAGED * 0.01
"""Seconds until the first packet has to give way, at one every ten milliseconds."""


class Choices:
    """A list of decisions, and after each course the next one in the order of an odometer."""

    def __init__(self) -> None:
        self._taken: list[list[int]] = []
        self._at = 0

    def choose(self, options: int) -> int:
        if self._at == len(self._taken):
            self._taken.append([0, options])
        self._at += 1
        return self._taken[self._at - 1][0]

    def courses(self) -> Iterator[None]:
        while True:
            self._at = 0
            yield
            while self._taken and self._taken[-1][0] + 1 == self._taken[-1][1]:
                self._taken.pop()
            if not self._taken:
                return
            self._taken[-1][0] += 1


def play(choices: Choices, losses: int, again: bool) -> World:
    """One course of events.

    :param losses: messages of handshakes that may get lost.
    :param again: each side begins anew once, and once some time goes by.
    """
    world = World()
    first, second = world.meet()
    own: list[Callable[[], None]] = []
    for host, other in ((first, second), (second, first)):
        own.append(lambda host=host, other=other: host.send(other, PACKET))  # type: ignore[misc]
        if again:
            own.append(lambda host=host: _begin_again(host))  # type: ignore[misc]
    if again:
        own.append(lambda: setattr(world, "now", world.now + 0.05))
    for _ in range(FREE - 2 * again):
        may_go = [at for at, (_, _, data) in enumerate(world.wire) if losses and kind(data) != TRANSPORT]
        number = choices.choose(len(own) + len(world.wire) + len(may_go) or 1)
        if number < len(own):
            own.pop(number)()
        elif number < len(own) + len(world.wire):
            world.deliver(number - len(own))
        elif may_go:
            world.wire.pop(may_go[number - len(own) - len(world.wire)])
            losses -= 1
    for event in own:
        event()
    world.settle()
    return world


def _begin_again(host: Host) -> None:
    host.machine.begin_again(host.world.now)
    host.flush()


@pytest.mark.parametrize(
    ("losses", "again"),
    [(0, False), (2, False), (0, True)],
    ids=["in any order", "two are lost", "begun anew"],
)
def test_both_reach_each_other_before_a_packet_has_to_give_way(losses: int, again: bool) -> None:
    choices = Choices()
    for _ in choices.courses():
        world = play(choices, losses, again)
        world.pass_time(1000.0 + WHILE_ROOM + 0.1 - world.now)
        arrived = [len(host.received) for host in world.hosts]
        assert arrived == [1, 1], choices


def test_initiations_that_are_read_late_are_answered_all_the_same() -> None:
    """What was sent one after the other is read at once by a machine that was busy; the last one counts."""
    world = World()
    first, second = world.meet()
    first.send(second, PACKET)
    world.now += 0.5
    _begin_again(first)
    assert [kind(data) for _, _, data in world.wire] == [INITIATION, INITIATION]
    world.settle()
    assert len(second.received) == 1


def test_a_handshake_that_was_begun_just_now_is_not_begun_anew() -> None:
    """A kernel would ignore the second initiation, and the answer to the first one would be nobody's any more."""
    world = World()
    first, second = world.meet()
    first.send(second, PACKET)
    world.now += 0.015
    _begin_again(first)
    assert [kind(data) for _, _, data in world.wire] == [INITIATION]


def test_a_flood_of_initiations_is_answered_in_part() -> None:
    """As many in a second as the kernel answers, and a few more."""
    world = World()
    first, second = world.meet()
    for _ in range(400):
        world.now += 0.001
        first.machine.peers[second.name].initiated = -1.0
        first.send(second, PACKET)
    answers = len(world.wire)
    for _ in range(answers):
        world.deliver()
    responses = [data for _, _, data in world.wire if kind(data) == RESPONSE]
    assert 1 <= len(responses) <= 8
