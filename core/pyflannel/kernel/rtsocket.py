"""The two netlink sockets of a port: one asks and is answered, the other is told.

Both come straight from :mod:`socket`. The request socket puts many messages into one system call; the kernel works
through them before the call returns, says nothing about those that went well, and answers each that failed under its
sequence number. Only the last message asks for an acknowledgement, which therefore ends the batch.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from struct import Struct
from typing import Final, NamedTuple

from pyflannel.errors import KernelError
from pyflannel.kernel.wire import (
    NLM_F_ACK,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    attributes,
    messages,
)
from pyflannel.small.scarcity import lacking

__all__ = ["NETLINK_GENERIC", "NETLINK_XFRM", "Answer", "NotificationSocket", "Refused", "RequestSocket"]

NETLINK_XFRM: Final = 6
NETLINK_GENERIC: Final = 16

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1

_ERROR = Struct("=i")
_LENGTH = Struct("=I")
_TIMEVAL = Struct("@ll")
_INSTRUCTION = Struct("=HBBI")
"""``struct sock_filter`` (linux/filter.h): code, where to jump to if true and if false, operand."""

_PROGRAM = Struct("@HP")
"""``struct sock_fprog``: how many instructions, and where they are."""

_LOAD_WORD, _LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06
"""``BPF_LD | BPF_W | BPF_ABS`` and the like (linux/bpf_common.h)."""

_KIND_AT, _PORT_AT = 4, 12
"""Where ``struct nlmsghdr`` has a message's type and port id."""

BUFFER: Final = 8 << 20
"""The receive buffer we ask for, in bytes."""

CHUNK: Final = 96 << 10
"""The most bytes in one system call; safely below the default send buffer of 208 KiB."""

_COST = 2048
"""What one queued notification or answer may take of a receive buffer, in bytes, bookkeeping included."""

_PATIENCE = 10
"""Seconds to wait for an answer; the kernel gives it before the request's system call returns."""

_DUMP_ATTEMPTS = 10


class Refused(NamedTuple):
    """The kernel's answer to a message that failed: errno and its explanation, if it gave one."""

    number: int
    text: str


class Answer(NamedTuple):
    """One message of an answer: its type, and where its payload lies."""

    kind: int
    datagram: bytes
    start: int
    end: int


def _open(protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        forbidden = f"{error.strerror}; a seccomp profile or systemd's RestrictAddressFamilies must allow AF_NETLINK"
        raise KernelError(f"can't open a netlink socket: {lacking(error) or forbidden}") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    opened.bind((0, 0))
    return opened


def _option(sock: socket.socket, option: int) -> bool:
    """Switch a netlink option on; whether this kernel knows it."""
    try:
        sock.setsockopt(_SOL_NETLINK, option, 1)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return False
    return True


class RequestSocket:
    """Asks the kernel. ``port_id`` is how notifications name this socket as their cause; ``strict`` says whether the
    kernel heeds the selection in dump requests.

    :param protocol: the netlink protocol (``netlink(7)``): routes, links and the like, or :data:`NETLINK_GENERIC`.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = _open(protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(_PATIENCE, 0))
        _option(self._socket, _NETLINK_EXT_ACK)
        _option(self._socket, _NETLINK_CAP_ACK)
        self.strict = _option(self._socket, _NETLINK_GET_STRICT_CHK)
        self.port_id: int = self._socket.getsockname()[0]
        self._most = _capacity(self._socket)
        self._sequence = 0

    def send(self, batch: Sequence[bytes], most: int, between: Callable[[], None]) -> dict[int, Refused]:
        """Have the kernel work through ``batch``.

        :param most: messages at a time.
        :param between: called after each of these chunks.
        :returns: the refused messages, by their index.
        """
        refused: dict[int, Refused] = {}
        begin = 0
        for chunk in _chunks(batch, min(most, self._most)):
            refused.update(self._send_chunk(chunk, begin))
            begin += len(chunk)
            between()
        return refused

    def _send_chunk(self, chunk: list[bytes], begin: int) -> dict[int, Refused]:
        first = self._next(len(chunk))
        data = bytearray(b"".join(chunk))
        offset = 0
        for number, message in enumerate(chunk):
            _LENGTH.pack_into(data, offset + 8, first + number)
            last = offset
            offset += len(message)
        (flags,) = Struct("=H").unpack_from(data, last + 6)
        Struct("=H").pack_into(data, last + 6, flags | NLM_F_ACK)
        final = first + len(chunk) - 1
        try:
            self._socket.send(data)
            return {
                begin + sequence - first: answer
                for sequence, answer in self._errors(final)
                if answer.number and first <= sequence <= final
            }
        except OSError as error:
            # Some or all of it may have been done. Every write can be repeated, so report all as failed.
            answer = Refused(error.errno or errno.EIO, "no answer from the kernel")
            return {begin + number: answer for number in range(len(chunk))}

    def _errors(self, final: int) -> Iterator[tuple[int, Refused]]:
        while True:
            datagram = self._socket.recv(1 << 16)
            for kind, flags, sequence, _, start, end in messages(datagram):
                if kind == NLMSG_ERROR:
                    yield sequence, _refused(datagram, flags, start, end)
                    if sequence == final:
                        return

    def ask(self, request: bytes) -> Answer | Refused:
        """Send one request that has one answer (``RTM_GETLINK`` by name)."""
        sequence = self._next(1)
        self._transmit(request, sequence)
        while True:
            datagram = self._receive()
            for kind, flags, answered, _, start, end in messages(datagram):
                if answered != sequence:
                    continue
                if kind == NLMSG_ERROR:
                    return _refused(datagram, flags, start, end)
                return Answer(kind, datagram, start, end)

    def dump(self, request: bytes, nothing: frozenset[int] = frozenset()) -> list[Answer]:
        """Everything that a dump request selects, consistent: begun again when the kernel says that it changed.

        :param nothing: errors that mean an empty dump.
        :raises KernelError: the kernel refuses, or changes too fast.
        """
        for _ in range(_DUMP_ATTEMPTS):
            found = self._dump_once(request, nothing)
            if found is not None:
                return found
        raise KernelError(f"the kernel's tables changed during each of {_DUMP_ATTEMPTS} attempts to read them")

    def _dump_once(self, request: bytes, nothing: frozenset[int]) -> list[Answer] | None:
        sequence = self._next(1)
        self._transmit(request, sequence)
        found: list[Answer] = []
        interrupted = False
        while True:
            datagram = self._receive()
            for kind, flags, answered, _, start, end in messages(datagram):
                if answered != sequence:
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    answer = _refused(datagram, flags, start, end) if end - start >= 4 else Refused(0, "")
                    if answer.number and answer.number not in nothing:
                        raise KernelError(
                            f"can't read the kernel's tables: {answer.text or OSError(answer.number, '')}"
                            f" ({errno.errorcode.get(answer.number, answer.number)})"
                        )
                    return None if interrupted else found
                found.append(Answer(kind, datagram, start, end))

    def _transmit(self, request: bytes, sequence: int) -> None:
        data = bytearray(request)
        _LENGTH.pack_into(data, 8, sequence)
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError(f"can't ask the kernel over netlink: {error.strerror}") from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except OSError as error:
            raise KernelError(f"no answer from the kernel over netlink: {error.strerror}") from error

    def _next(self, count: int) -> int:
        first = self._sequence + 1
        if first + count > 0xFFFFFFFF:
            first = 1
        self._sequence = first + count - 1
        return first

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class NotificationSocket:
    """Hears what changes in the kernel. ``most`` is how many changes its buffer holds for certain."""

    def __init__(self, groups: Iterable[int], protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = _open(protocol)
        self._socket.setblocking(False)
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        self.most = _capacity(self._socket)

    def ignore(self, port_id: int, kinds: Collection[int]) -> None:
        """Have the kernel leave out messages of ``kinds`` whose cause is ``port_id``, where it lets us.

        A start would read three for each peer, to no end. Whoever reads has to be ready for them all the same.
        """
        reject = len(kinds) + 1
        program = [
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _PORT_AT),
            _INSTRUCTION.pack(_JUMP_EQUAL, 0, reject, socket.ntohl(port_id)),
            _INSTRUCTION.pack(_LOAD_HALF, 0, 0, _KIND_AT),
            *(_INSTRUCTION.pack(_JUMP_EQUAL, reject - n, 0, socket.ntohs(kind)) for n, kind in enumerate(kinds, 1)),
            _INSTRUCTION.pack(_RETURN, 0, 0, 0xFFFFFFFF),
            _INSTRUCTION.pack(_RETURN, 0, 0, 0),
        ]
        text = ctypes.create_string_buffer(b"".join(program))
        with suppress(OSError):
            self._socket.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(program), ctypes.addressof(text))
            )

    def fileno(self) -> int:
        """Readable when something was told, or lost."""
        return self._socket.fileno()

    def read(self) -> Iterator[bytes | None]:
        """The datagrams that wait; ``None`` where some were lost. Never blocks."""
        receive = self._socket.recv
        while True:
            try:
                datagram = receive(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(f"can't hear the kernel over netlink: {error.strerror}") from error
                yield None
            else:
                yield datagram

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _capacity(sock: socket.socket) -> int:
    return max(16, sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // _COST)


def _chunks(batch: Sequence[bytes], most: int) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for message in batch:
        if chunk and (len(chunk) >= most or size + len(message) > CHUNK):
            yield chunk
            chunk, size = [], 0
        chunk.append(message)
        size += len(message)
    if chunk:
        yield chunk


def _refused(datagram: bytes, flags: int, start: int, end: int) -> Refused:
    (number,) = _ERROR.unpack_from(datagram, start)
    text = ""
    if flags & _NLM_F_ACK_TLVS:
        begin = start + 4
        if end - begin >= 16 and datagram[start - 12 : start - 10] == _ERROR_TYPE:
            (length,) = _LENGTH.unpack_from(datagram, begin)
            begin += 16 if flags & _NLM_F_CAPPED else (length + 3) & ~3
        text = attributes(datagram, begin, end).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    return Refused(-number, text)


_ERROR_TYPE = Struct("=H").pack(NLMSG_ERROR)
