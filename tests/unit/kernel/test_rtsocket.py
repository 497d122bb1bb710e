"""How answers are read: refusals with their explanations, and dumps that the kernel interrupts.

The other end of the netlink socket is a socket pair, which speaks the same bytes.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyflannel.errors import KernelError
from pyflannel.kernel import wire
from pyflannel.kernel.rtsocket import Refused, RequestSocket

ROW = b"row."


@pytest.fixture
def kernel() -> Iterator[tuple[RequestSocket, Callable[[Callable[[int, int], list[bytes]]], None]]]:
    """A request socket, and how to set what answers a request: from its number and sequence number to datagrams."""
    asking = RequestSocket()
    asking.close()
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asking._socket = near
    threads: list[threading.Thread] = []

    def answer(with_: Callable[[int, int], list[bytes]]) -> None:
        def serve() -> None:
            number = 0
            while request := far.recv(1 << 16):
                *_, (_, _, sequence, _, _, _) = wire.messages(request)
                for datagram in with_(number, sequence):
                    far.send(datagram)
                number += 1

        threads.append(threading.Thread(target=serve))
        threads[-1].start()

    yield asking, answer
    near.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    asking.close()
    far.close()


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return wire.HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


def error(number: int, sequence: int, text: str = "", *, capped: bool = True) -> bytes:
    original = wire.HEADER.pack(28, wire.RTM_NEWROUTE, 0, sequence, 0) + (b"" if capped else bytes(12))
    raw = text.encode() + b"\0"
    extended = struct.pack("=HH", 4 + len(raw), 1) + raw
    flags = (0x100 if capped else 0) | (0x200 if text else 0)
    return message(
        wire.NLMSG_ERROR, flags, sequence, struct.pack("=i", -number) + original + (extended if text else b"")
    )


@pytest.mark.parametrize("capped", [True, False])
def test_refusals_are_told_by_index_with_the_kernels_words(kernel: Any, capped: bool) -> None:
    asking, answer = kernel
    answer(
        lambda number, last: [
            error(errno.EEXIST, last - 2, "taken", capped=capped),
            error(errno.EPERM, last - 1, capped=capped) + error(0, last, capped=capped),
        ]
    )
    chunks: list[None] = []
    refused = asking.send([wire.message(wire.RTM_NEWROUTE, 0, bytes(12))] * 4, 100, lambda: chunks.append(None))
    assert refused == {1: Refused(errno.EEXIST, "taken"), 2: Refused(errno.EPERM, "")}
    assert len(chunks) == 1


def test_a_batch_goes_out_in_chunks(kernel: Any) -> None:
    asking, answer = kernel
    answer(lambda number, last: [error(errno.ENODEV if number == 1 else 0, last)])
    chunks: list[None] = []
    refused = asking.send([wire.message(wire.RTM_NEWROUTE, 0, bytes(12))] * 5, 2, lambda: chunks.append(None))
    assert refused == {3: Refused(errno.ENODEV, "")}
    assert len(chunks) == 3


def test_an_interrupted_dump_is_begun_again(kernel: Any) -> None:
    asking, answer = kernel

    def dump(number: int, sequence: int) -> list[bytes]:
        flags = wire.NLM_F_DUMP_INTR if number == 0 else 0
        rows = [message(wire.RTM_NEWROUTE, 0, sequence, ROW)] * (number + 1)
        return [b"".join(rows), message(wire.NLMSG_DONE, flags, sequence, bytes(4))]

    answer(dump)
    assert [found.datagram[found.start : found.end] for found in asking.dump(wire.encode_route_dump(2))] == [ROW, ROW]


def test_a_dump_that_is_always_interrupted_fails(kernel: Any) -> None:
    asking, answer = kernel
    answer(lambda number, sequence: [message(wire.NLMSG_DONE, wire.NLM_F_DUMP_INTR, sequence, bytes(4))])
    with pytest.raises(KernelError, match="changed during"):
        asking.dump(wire.encode_route_dump(2))


def test_answers_to_others_are_skipped(kernel: Any) -> None:
    asking, answer = kernel
    answer(
        lambda number, sequence: [
            message(wire.RTM_NEWROUTE, 0, sequence + 9, b"old."),
            message(wire.RTM_NEWROUTE, 0, sequence, ROW) + message(wire.NLMSG_DONE, 0, sequence, bytes(4)),
        ]
    )
    assert [found.datagram[found.start : found.end] for found in asking.dump(wire.encode_route_dump(2))] == [ROW]


def test_a_refused_dump(kernel: Any) -> None:
    asking, answer = kernel
    answer(lambda number, sequence: [error(errno.EPERM if number else errno.ENOENT, sequence, "not for you")])
    assert asking.dump(wire.encode_route_dump(2), frozenset({errno.ENOENT})) == []
    with pytest.raises(KernelError, match=r"not for you.*EPERM"):
        asking.dump(wire.encode_route_dump(2))


def test_a_socket_that_fails_refuses_all_of_its_chunk(kernel: Any) -> None:
    asking, _ = kernel
    asking._socket.shutdown(socket.SHUT_WR)
    refused = asking.send([wire.message(wire.RTM_NEWROUTE, 0, bytes(12))] * 3, 100, lambda: None)
    assert {number: answer.number for number, answer in refused.items()} == dict.fromkeys(range(3), errno.EPIPE)
    with pytest.raises(KernelError, match="netlink"):
        asking.dump(wire.encode_route_dump(2))
