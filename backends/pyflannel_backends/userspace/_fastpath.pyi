"""See native/fastpath.c and native/transport.c, which are compiled where there is a compiler."""

from collections.abc import Callable
from typing import TypeAlias, final

from .ports import Endpoint, Received
from .table import PeerId

SOURCES: str
"""A digest of what this was compiled from."""

Unsent: TypeAlias = tuple[bytes, int, PeerId]
"""Packets that could not be sent, back to back, the size of each (the last may be shorter), and for whom they are."""
Note: TypeAlias = tuple[int, int, float]
"""Messages with content, bytes of all messages, and when (:func:`time.monotonic`) the last one was."""

@final
class Transport:
    """The two keys of one WireGuard session, in OpenSSL's memory, and the numbers that have been used with them.

    There is none where OpenSSL, or its headers when this was compiled, are missing. Keys are wiped when it goes.

    :param send: :param receive: 32 bytes each.
    :raises ValueError: they are not.
    """

    def __init__(self, send: bytes, receive: bytes) -> None: ...
    @property
    def sent(self) -> int:
        """How many numbers have been claimed."""

    def claim(self, count: int, /) -> int | None:
        """The first of ``count`` numbers that nobody else will use; ``None`` if there are not so many left."""

    def accept(self, number: int, /) -> bool:
        """Note that a number was received; false if it came before, is too old to tell, or must not be used."""

    def accept_run(self, first: int, count: int, /) -> bool:
        """Note ``count`` numbers from ``first`` on, if all are newer than any before; else note none."""

    def state(self) -> object:
        """All that sending and receiving change; to be compared."""

    def seal(self, number: int, plain: bytes, /) -> bytes:
        """One transport message, header included, with a number that was claimed. For tests."""

    def open(self, number: int, message: bytes, /) -> bytes | None:
        """What is in a transport message; ``None`` if it is not authentic. For tests."""

    def crypt(self, sealing: bool, nonce: bytes, associated_data: bytes, data: bytes, /) -> bytes | None:
        """Seal, or open, with any nonce: for test vectors. ``None`` if that is not possible, or not authentic."""

@final
class FastPath:
    """The waiting for packets, and what becomes of those that need no second look. See native/fastpath.c.

    :param epoll: what to wait with. The other descriptors are registered there, level-triggered.
    :param tun: a queue of the device, not blocking; packets have a virtio header.
    :param sockets: one or two bound UDP sockets, of different families.
    :param packet: where a packet of the device is put that is left to Python, with its virtio header.
    :param received: where datagrams are put before ``judge`` is asked of them.
    :param opened: where packets are put that were received with a session and are left to Python. The three have room
        for 65535 bytes, the first for a virtio header more, and can't be resized any more.
    :param judge: what to hand over for datagrams that are left to Python, from their length, the size of each (the last
        may be shorter), and who sent them.
    :param port: the peers' UDP port, if packets are not sealed. Those from other ports are left to Python unless
        ``any_port``.
    :param sealed: packets go sealed, by :class:`Transport`. Else one packet is one datagram over IPv4.
    :param mtu: padding of sealed packets doesn't go beyond it.
    :param segments: the kernel takes many datagrams in one call.
    :param cuts: cut super-packets of the device.
    :param joins_tcp: :param joins_udp: what the device takes super-packets of.
    :raises ValueError: something isn't of that form.
    """

    def __init__(
        self,
        *,
        epoll: int,
        tun: int,
        sockets: tuple[int, ...],
        packet: bytearray,
        received: bytearray,
        opened: bytearray,
        judge: Callable[[int, int, Endpoint], Received],
        port: int,
        any_port: bool,
        sealed: bool,
        mtu: int,
        segments: bool,
        cuts: bool,
        joins_tcp: bool,
        joins_udp: bool,
    ) -> None: ...
    def poll(self, deadline: float, /) -> list[tuple[int, int | Received | Unsent | None]]:
        """Wait until Python has something to do, a signal came, or it is ``deadline`` (:func:`time.monotonic`).

        It also ends after a minute of waiting, and a signal that comes while a packet is carried ends the wait after
        that only at ``deadline``. Other threads of this process wait too.

        :returns: descriptors that are ready, and what was read from each: nothing (``None``); of the device, a packet
            of so many bytes, or packets that could not be sent; of a socket, what ``judge`` has said, or packets that
            were opened, in the same form.
        :raises OSError: the epoll descriptor is closed.
        :raises Exception: what ``judge``, or the handler of a signal, has raised.
        """

    def learn_route(self, destination: bytes, peer: PeerId, mtu: int, way: Endpoint | Transport, /) -> None:
        """Packets to ``destination`` (four or sixteen bytes) of at most ``mtu`` bytes go to ``peer``.

        :param way: where that is; if packets are sealed, the session, which :meth:`learn_session` was told of.
        :raises ValueError: something isn't of that form.
        """

    def learn_path(self, peer: PeerId, addresses: bytes, /) -> None:
        """``peer`` may send us packets with this source and destination (eight or 32 bytes).

        :raises ValueError: something isn't of that form.
        """

    def learn_session(
        self, transport: Transport, index: int, remote_index: int, peer: PeerId, endpoint: Endpoint, until: float, /
    ) -> None:
        """A session with ``peer``, who is at ``endpoint``, may be used until then (:func:`time.monotonic`).

        :param index: our name for it; ``remote_index``: the peer's.
        :raises ValueError: something isn't of that form, or no socket is of the endpoint's family.
        """

    def forget(self) -> None:
        """Forget all that was learned."""

    def carry_lone(self, device: int, underlay: int, address: str, /) -> None:
        """Have the kernel carry packets that come alone, like those that were carried here, without waking anybody.

        See native/bpf/lone.bpf.c. Only where packets are not sealed, and come from one port. It ends with this object.

        :param device: :param underlay: indices of the TUN device, and of the one that datagrams come in by.
        :param address: ours, on that.
        :raises OSError: the kernel can't, or we may not; ``strerror`` says what.
        :raises ValueError: something isn't of that form.
        """

    def carries_lone(self) -> bool:
        """Whether it still does so: a device that is deleted ends it."""

    def carry_all(self) -> None:
        """Carry all packets here again."""

    def let_linger(self, after: float, yields: bool, /) -> None:
        """Wait for what follows without sleeping, for a moment, when a packet of the device was sent on that came
        alone, after so many seconds without any. Until told, there is no such wait.

        :param yields: let other programs go first meanwhile.
        """

    def take_counters(self) -> dict[str, int]:
        """What was counted since the last call."""

    def take_notes(self) -> list[tuple[int, Note, Note]]:
        """Sessions that were used since the last call, by our index: what was sent, and what was received."""
