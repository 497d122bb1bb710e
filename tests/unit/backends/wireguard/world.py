"""Machines on a network in memory, with a clock that the test turns: what is sent waits here until it is delivered."""

from __future__ import annotations

import random
from collections.abc import Callable

from pyflannel_backends.wireguard.machine import Endpoint, Limits, Timestamps, WireguardMachine
from pyflannel_backends.wireguard.messages import TRANSPORT, kind
from pyflannel_backends.wireguard.noise import StaticKeys

WALL = 1_700_000_000 * 10**9


class Host:
    """A node: a machine, where it is, and the packets that it got."""

    def __init__(self, world: World, number: int, limits: Limits | None) -> None:
        self.world = world
        self.limits = limits
        self.name = f"node {number}"
        self.endpoint: Endpoint = (f"192.0.2.{number}", 51820)
        self.random = random.Random(number)
        self.private = self.random.randbytes(32)
        self.wall_offset = 0
        self.reserved = 0
        self.received: list[bytes] = []
        self.restart()

    def restart(self) -> None:
        """As after a crash: only the key and the reserved timestamp are left."""
        self.machine = WireguardMachine(
            StaticKeys(self.private),
            Timestamps(self._wall, self.reserved, self._reserve),
            self.random.randbytes,
            mtu=1420,
            limits=self.limits,
        )

    def _wall(self) -> int:
        return WALL + self.wall_offset + int(self.world.now * 1e9)

    def _reserve(self, timestamp: int) -> None:
        self.reserved = timestamp

    @property
    def public_key(self) -> bytes:
        return self.machine.public_key

    def know(self, other: Host, *, psk: bytes = bytes(32), keepalive: float = 0.0) -> None:
        self.machine.put(other.name, other.public_key, other.endpoint, self.world.now, psk=psk, keepalive=keepalive)
        self.flush()

    def send(self, other: Host, *packets: bytes) -> None:
        self.machine.send(self.machine.peers[other.name], packets, self.world.now)
        self.flush()

    def take(self, data: bytes, sender: Endpoint) -> None:
        if kind(data) == TRANSPORT:
            opened = self.machine.open(data, sender, self.world.now)
            if opened is not None and opened[1]:
                self.received.append(opened[1])
        else:
            self.machine.receive(data, sender, self.world.now)
        self.flush()

    def flush(self) -> None:
        """Hand what the machine wants to send to the network."""
        for endpoint, data in self.machine.outgoing:
            self.world.wire.append((self.endpoint, endpoint, data))
        self.machine.outgoing.clear()


class World:
    """``wire`` holds what is under way (from, to, data), ``sent`` all that ever was."""

    def __init__(self, hosts: int = 2, *, limits: Limits | None = None) -> None:
        self.now = 1000.0
        self.wire: list[tuple[Endpoint, Endpoint, bytes]] = []
        self.log: list[bytes] = []
        self.hosts = [Host(self, number, limits) for number in range(1, hosts + 1)]

    def deliver(self, index: int = 0) -> None:
        """Deliver one datagram; one to nobody is lost."""
        sender, receiver, data = self.wire.pop(index)
        self.log.append(data)
        for host in self.hosts:
            if host.endpoint == receiver:
                host.take(data, sender)

    def settle(self) -> None:
        """Deliver all that is under way, and what it causes."""
        for _ in range(10_000):
            if not self.wire:
                return
            self.deliver()
        raise AssertionError("the machines never stop talking")

    def lose(self) -> None:
        """Lose all that is under way."""
        self.wire.clear()

    def pass_time(self, seconds: float, *, then: Callable[[], None] | None = None) -> None:
        """Let time pass, from deadline to deadline; after each, do ``then`` (deliver everything, by default)."""
        until = self.now + seconds
        act = then or self.settle
        while True:
            self.now = min([until, *(max(self.now, host.machine.deadline) for host in self.hosts)])
            for host in self.hosts:
                host.machine.tick(self.now)
                host.flush()
            act()
            if self.now >= until:
                return

    def meet(self, *, psk: bytes = bytes(32), keepalive: float = 0.0) -> tuple[Host, Host]:
        """The first two hosts know each other."""
        first, second = self.hosts[:2]
        first.know(second, psk=psk, keepalive=keepalive)
        second.know(first, psk=psk, keepalive=keepalive)
        return first, second
