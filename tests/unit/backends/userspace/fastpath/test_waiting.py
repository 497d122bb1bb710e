"""What the fast path waits for, in which order it serves both sides, and what ends its wait."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.backends.userspace.bursts import OURS, THEIRS
from tests.unit.backends.userspace.edges import NODE, PEER, STRANGER, Edges
from tests.unit.backends.userspace.fastpath.bench import MTU, ROOM, Bench, arriving, leaving

from pyflannel_backends.userspace import vnet
from pyflannel_backends.userspace.ports import Received


def test_after_a_pause_the_first_packet_goes_before_anybody_looks_for_more(bench: Bench, edges: Edges) -> None:
    """Those that follow go together, at the next turn."""
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    for _ in range(2):
        edges.rest(bench.path)
        for number in range(5):
            edges.give(vnet.PLAIN + leaving(identification=number))
        assert bench.path.poll(0.0) == []
        assert edges.sent() == [(leaving(identification=0, ttl=63), PEER)]
        assert bench.path.poll(0.0) == []
        assert edges.sent() == [(leaving(identification=number, ttl=63), PEER) for number in range(1, 5)]
        assert bench.path.take_counters()["sent_calls"] == 2
        edges.rest(bench.path)
        for number in range(5):
            edges.send(arriving(identification=number))
        assert bench.path.poll(0.0) == []
        assert edges.given() == [(vnet.PLAIN, arriving(identification=0))]
        assert bench.path.poll(0.0) == []
        assert len(edges.given()) == 1


@pytest.mark.parametrize("yields", [True, False])
@pytest.mark.parametrize("after", [0.0, math.inf])
def test_what_follows_a_packet_that_came_alone_is_carried_whether_anybody_lingers_for_it(
    bench: Bench, edges: Edges, after: float, yields: bool
) -> None:
    """Twice: an answer comes at once, what comes later wakes it up."""
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    bench.path.let_linger(after, yields)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:  # the path keeps the interpreter to itself
        signal.alarm(50)
        try:
            for number in range(2):
                time.sleep(0.01)
                edges.give(vnet.PLAIN + leaving(identification=number))
                os.write(writer, repr(found(edges.sent)).encode())
                edges.peers[PEER].sendto(arriving(identification=number), (NODE, edges.number))
                os.write(writer, repr(found(edges.given)).encode())
            edges.give(vnet.PLAIN + b"nonsense")
        finally:
            os._exit(0)
    try:
        assert bench.path.poll(time.monotonic() + 50) == [(edges.tun.fileno(), 18)]
        assert os.read(reader, 10_000).decode() == "".join(
            repr(seen)
            for number in range(2)
            for seen in (
                [(leaving(identification=number, ttl=63), PEER)],
                [(vnet.PLAIN, arriving(identification=number))],
            )
        )
    finally:
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def found(look: Callable[[], list[Any]]) -> list[Any]:
    """What is there when something is: with no pause between two looks, so that the answer to it finds who lingers."""
    while not (seen := look()):
        pass
    return seen


def test_after_a_pause_an_answer_goes_in_the_same_turn(bench: Bench, edges: Edges) -> None:
    """The kernel answers a ping while the device is written to, when it has been asked already what is ready."""
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    edges.rest(bench.path)
    edges.epoll.unregister(edges.tun.fileno())
    try:
        edges.send(arriving())
        edges.give(vnet.PLAIN + leaving())
        assert bench.path.poll(0.0) == []
    finally:
        edges.epoll.register(edges.tun.fileno(), select.EPOLLIN)
    assert edges.given() == [(vnet.PLAIN, arriving())]
    assert edges.sent() == [(leaving(ttl=63), PEER)]


def test_one_side_that_has_no_end_does_not_keep_the_other_waiting(bench: Bench, edges: Edges) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    given = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            edges.give(vnet.PLAIN + leaving(payload=bytes(1400)))
            given += 1
    assert given > 64
    edges.send(arriving())
    assert bench.path.poll(0.0) == []
    assert edges.given() == [(vnet.PLAIN, arriving())]
    sent = bench.path.take_counters()["sent_packets"]
    assert sent < given
    while sent < given:
        assert bench.path.poll(0.0) == []
        sent += bench.path.take_counters()["sent_packets"]
        edges.sent()


def test_what_is_left_to_python_keeps_no_datagram_waiting(bench: Bench, edges: Edges) -> None:
    bench.path.learn_path(PEER, THEIRS + OURS)
    edges.rest(bench.path)
    for _ in range(2):
        edges.give(vnet.PLAIN + b"nonsense")
    edges.send(arriving())
    assert bench.path.poll(0.0) == [(edges.tun.fileno(), 18)]
    assert edges.given() == [(vnet.PLAIN, arriving())]
    assert bench.path.poll(0.0) == [(edges.tun.fileno(), 18)]


def test_other_descriptors_are_reported_beside_a_packet(bench: Bench, edges: Edges) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    reading, writing = os.pipe()
    edges.epoll.register(reading, select.EPOLLIN)
    try:
        edges.rest(bench.path)
        os.write(writing, b"x")
        assert bench.path.poll(math.inf) == [(reading, None)]
        edges.give(vnet.PLAIN + leaving())
        assert bench.path.poll(math.inf) == [(reading, None)]
        assert edges.sent() == [(leaving(ttl=63), PEER)]
    finally:
        edges.epoll.unregister(reading)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("deadline", [0, -1.5, -math.inf, math.nan])
def test_a_deadline_that_is_past_or_no_number_ends_the_wait_at_once(bench: Bench, deadline: float) -> None:
    assert bench.path.poll(deadline) == []


def test_nothing_ends_the_wait_before_the_deadline(bench: Bench) -> None:
    deadline = time.monotonic() + 0.02
    assert bench.path.poll(deadline) == []
    assert time.monotonic() >= deadline


def test_a_carried_packet_does_not_move_the_deadline(bench: Bench, edges: Edges) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    edges.rest(bench.path)
    edges.give(vnet.PLAIN + leaving())
    deadline = time.monotonic() + 0.02
    assert bench.path.poll(deadline) == []
    assert time.monotonic() >= deadline
    assert edges.sent() == [(leaving(ttl=63), PEER)]


@pytest.fixture
def signals() -> Iterator[Callable[[Callable[..., object]], None]]:
    """Have a signal handled by a function, and come again and again."""
    sender: list[subprocess.Popen[bytes]] = []
    former = signal.getsignal(signal.SIGUSR1)

    def begin(handler: Callable[..., object]) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        words = ["sh", "-c", 'while kill -USR1 "$1"; do sleep 0.01; done', "sh", str(os.getpid())]
        sender.append(subprocess.Popen(words))
        signal.signal(signal.SIGUSR1, handler)

    yield begin
    for process in sender:
        process.kill()
        process.wait()
    signal.signal(signal.SIGUSR1, former)


def test_a_signal_ends_the_wait(bench: Bench, signals: Callable[[Callable[..., object]], None]) -> None:
    came: list[int] = []
    signals(lambda number, _frame: came.append(number))
    deadline = time.monotonic() + 50
    assert bench.path.poll(deadline) == []
    assert time.monotonic() < deadline
    assert signal.SIGUSR1 in came


def test_what_a_signal_s_handler_raises_ends_the_wait(
    bench: Bench, signals: Callable[[Callable[..., object]], None]
) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def stop(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise Stop

    with pytest.raises(Stop):  # noqa: PT012 - it may come before the wait does
        signals(stop)
        bench.path.poll(time.monotonic() + 50)


def test_what_judge_raises_is_raised(edges: Edges) -> None:
    def judge(length: int, size: int, sender: tuple[str, int]) -> Received:
        raise LookupError(sender[0])

    path = Bench(edges).make(judge=judge)
    edges.send(b"data", STRANGER)
    with pytest.raises(LookupError, match=STRANGER):
        path.poll(0.0)
    edges.rest(path)


def test_a_closed_epoll_is_told(bench: Bench) -> None:
    epoll = select.epoll()
    path = bench.make(epoll=epoll.fileno())
    epoll.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        path.poll(0.0)


def test_an_edge_that_cannot_be_read_is_python_s_to_find_out(bench: Bench, edges: Edges) -> None:
    """As a device that was deleted."""
    closed = os.open(os.devnull, os.O_WRONLY)
    with select.epoll() as epoll:
        edges.give(b"x")
        epoll.register(edges.tun.fileno(), select.EPOLLIN)
        os.dup2(edges.tun.fileno(), closed)
        duplicate = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)  # read(2) fails with EISDIR
        path = bench.make(epoll=epoll.fileno())
        kept = os.dup(edges.tun.fileno())
        os.dup2(duplicate, edges.tun.fileno())
        try:
            assert path.poll(0.0) == [(edges.tun.fileno(), None)]
        finally:
            os.dup2(kept, edges.tun.fileno())
            for descriptor in (closed, duplicate, kept):
                os.close(descriptor)
    os.read(edges.tun.fileno(), ROOM)
