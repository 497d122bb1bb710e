"""The fast path holds on to its buffers, is collected with its cycle, and does not grow."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
from tests.unit.backends.userspace.bursts import OURS, THEIRS
from tests.unit.backends.userspace.edges import PEER, Edges
from tests.unit.backends.userspace.fastpath.bench import MTU, Bench, leaving

from pyflannel_backends.userspace import vnet
from pyflannel_backends.userspace._fastpath import FastPath
from pyflannel_backends.userspace.ports import Received


def test_the_buffers_stay_where_they_are_while_there_is_a_fast_path(edges: Edges) -> None:
    bench = Bench(edges)
    for buffer in (bench.tun_buffer, bench.udp_buffer):
        with pytest.raises(BufferError):
            buffer.clear()
    with pytest.raises(ValueError, match="buffer"):
        bench.make(received=bytearray())
    del bench.path
    for buffer in (bench.tun_buffer, bench.udp_buffer):
        buffer.clear()


def test_a_cycle_is_collected(edges: Edges) -> None:
    class Judge:
        path: FastPath

        def __call__(self, length: int, size: int, sender: tuple[str, int]) -> Received:
            return length, size, None

    judge = Judge()
    judge.path = Bench(edges).make(judge=judge)
    gone = weakref.ref(judge)
    del judge
    gc.collect()
    assert gone() is None


def test_memory_stays_flat_over_many_polls(bench: Bench, edges: Edges) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    carried, strange = vnet.PLAIN + leaving(), vnet.PLAIN + leaving(ttl=1)

    def rounds(count: int) -> None:
        for _ in range(count):
            for packet in (carried, strange):
                edges.give(packet)
                bench.path.poll(0.0)
                bench.path.poll(0.0)
            edges.peers[PEER].recv(100)
            edges.send(b"nonsense")
            bench.path.poll(0.0)
            bench.path.poll(0.0)
            bench.judged.clear()
            bench.learn_route(THEIRS, PEER, MTU)
            bench.path.learn_path(PEER, THEIRS + OURS)
            bench.learn_route(b"elsewhere, sixte", "255.255.255.255", MTU)
            bench.path.take_notes()
            for _ in range(2):
                with pytest.raises(ValueError, match="bytes of"):
                    bench.path.learn_path(PEER, b"")
                with pytest.raises(ValueError, match="buffer"):
                    bench.make(received=bytearray())
            bench.path.take_counters()

    def held() -> list[int]:
        things = (None, PEER, FastPath, bench.path, bench.tun_buffer, bench.udp_buffer)
        return [sys.getrefcount(thing) for thing in things]

    rounds(100)
    gc.collect()
    before, blocks = held(), sys.getallocatedblocks()
    rounds(2_000)
    gc.collect()
    assert all(abs(after - former) < 100 for after, former in zip(held(), before, strict=True))
    assert sys.getallocatedblocks() < blocks + 500
