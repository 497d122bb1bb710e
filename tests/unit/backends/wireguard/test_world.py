"""Any course of events on a bad network: properties that hold in all of them.

Hypothesis plays sender, network, clock and operator. Whatever it does, a packet arrives at most once and as it was
sent, no (key, number) is used twice, and once the network is good again both sides reach each other.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.backends.wireguard.world import Host, World

from pyflannel_backends.wireguard.machine import Limits
from pyflannel_backends.wireguard.messages import TRANSPORT, kind, parse_transport
from pyflannel_backends.wireguard.noise import StaticKeys

sides = st.sampled_from([0, 1])


class BadNetwork(RuleBasedStateMachine):
    """Two hosts that know each other, and everything that can happen between them."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(limits=Limits(rekey_after_messages=20))
        self.world.meet()
        self.sent: set[bytes] = set()
        self.count = 0
        self.used: dict[tuple[bytes, int, int], bytes] = {}
        self.watched = 0

    @rule(side=sides, packets=st.integers(1, 5))
    def send(self, side: int, packets: int) -> None:
        for _ in range(packets):
            self.count += 1
            packet = bytes([0x45, side]) + self.count.to_bytes(14, "big")
            self.sent.add(packet)
            self._host(side).send(self._host(1 - side), packet)

    @precondition(lambda self: self.world.wire)
    @rule(data=st.data())
    def deliver_any(self, data: st.DataObject) -> None:
        self.world.deliver(data.draw(st.integers(0, len(self.world.wire) - 1)))

    @rule()
    def deliver_all(self) -> None:
        self.world.settle()

    @precondition(lambda self: self.world.wire)
    @rule(data=st.data())
    def duplicate(self, data: st.DataObject) -> None:
        self.world.wire.append(self.world.wire[data.draw(st.integers(0, len(self.world.wire) - 1))])

    @precondition(lambda self: self.world.wire)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        del self.world.wire[data.draw(st.integers(0, len(self.world.wire) - 1))]

    @precondition(lambda self: self.world.wire)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.world.wire) - 1))
        sender, receiver, message = self.world.wire[index]
        changed = bytearray(message)
        changed[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        self.world.wire[index] = sender, receiver, bytes(changed)

    @precondition(lambda self: self.world.log)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        message = data.draw(st.sampled_from(self.world.log))
        for host in self.world.hosts:
            self.world.wire.append((("203.0.113.1", 1), host.endpoint, message))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.5, 11.0, 16.0, 60.0, 121.0, 200.0]), quiet=st.booleans())
    def pass_time(self, seconds: float, quiet: bool) -> None:
        self.world.pass_time(seconds, then=(lambda: None) if quiet else None)

    @rule(side=sides, seconds=st.sampled_from([-(10**7), -3600, -1, 1, 3600, 10**7]))
    def set_clock(self, side: int, seconds: int) -> None:
        self._host(side).wall_offset += seconds * 10**9

    @rule(side=sides)
    def restart(self, side: int) -> None:
        host = self._host(side)
        host.restart()
        host.know(self._host(1 - side))

    @rule(side=sides)
    def rotate_key(self, side: int) -> None:
        host = self._host(side)
        host.private = host.random.randbytes(32)
        host.machine.set_identity(StaticKeys(host.private), self.world.now)
        host.flush()
        self._host(1 - side).know(host)

    @rule(side=sides, last=st.integers(1, 9))
    def move(self, side: int, last: int) -> None:
        """A host's address changes; its lease follows."""
        host = self._host(side)
        host.endpoint = (f"198.51.100.{last + 10 * side}", 51820 + last)
        self._host(1 - side).know(host)

    @rule()
    def the_network_recovers(self) -> None:
        """Within one repeated handshake, or the time to notice that one is needed, both reach each other."""
        self.world.settle()
        self.world.pass_time(1)
        for _ in range(2):
            for side in (0, 1):
                self.send(side, 1)
            self.world.pass_time(22)
        for side in (0, 1):
            self.send(side, 1)
            newest = bytes([0x45, side]) + self.count.to_bytes(14, "big")
            self.world.settle()
            assert newest in self._host(1 - side).received

    @invariant()
    def packets_arrive_once_and_as_they_were_sent(self) -> None:
        for side in (0, 1):
            received = self._host(side).received
            assert len(received) == len(set(received))
            assert all(packet in self.sent and packet[1] == 1 - side for packet in received)

    @invariant()
    def no_number_is_used_twice_with_one_key(self) -> None:
        """Two different ciphertexts to one index with one number would be two uses of a nonce."""
        for sender, receiver, data in self.world.wire:
            header = parse_transport(data) if kind(data) == TRANSPORT else None
            if header is not None and sender != ("203.0.113.1", 1):
                self._note(receiver, header.receiver, header.counter, data)

    def _note(self, receiver: Any, index: int, counter: int, data: bytes) -> None:
        known = self.used.setdefault((repr(receiver).encode(), index, counter), data)
        assert known == data or sum(a != b for a, b in zip(known, data, strict=False)) <= 2, "a nonce was used twice"

    @invariant()
    def sessions_are_few_and_known(self) -> None:
        for host in self.world.hosts:
            for peer in host.machine.peers.values():
                sessions = list(peer.sessions)
                assert len(sessions) <= 5
                assert {session.index for session in sessions} == set(host.machine.sessions)
                pending = {peer.pending[0]} if peer.pending else set()
                assert pending == set(host.machine._pending)

    def _host(self, side: int) -> Host:
        return self.world.hosts[side]


BadNetwork.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBadNetwork = BadNetwork.TestCase
