"""See _fastpath.c, which is compiled where there is a compiler."""

from collections.abc import Callable
from typing import final

from .ports import Endpoint, Received
from .table import PeerId

@final
class FastPath:
    """The waiting for packets, and what becomes of an IPv4 packet that comes alone and needs no second look.

    :param epoll: what to wait with. Both other descriptors are registered there, level-triggered.
    :param tun: a queue of the device, not blocking; packets have a virtio header.
    :param udp: a bound IPv4 socket; a packet on the wire is one datagram.
    :param tun_buffer: :param udp_buffer: where packets are read to, each when its turn comes in :meth:`poll`; with room
        for a virtio header and 65535 bytes. They can't be resized any more.
    :param port: the peers' UDP port. Packets from other ports are left to Python unless ``any_port``.
    :param judge: what to hand over for a datagram that is left to Python, from its length, the size of each packet in
        it, and who sent it.
    :raises ValueError: a buffer is too small, or the port none.
    """

    def __init__(
        self,
        *,
        epoll: int,
        tun: int,
        tun_buffer: bytearray,
        udp: int,
        udp_buffer: bytearray,
        port: int,
        any_port: bool,
        judge: Callable[[int, int, Endpoint], Received],
    ) -> None: ...
    def poll(self, deadline: float, /) -> list[tuple[int, int | Received | None]]:
        """Wait until Python has something to do, a signal came, or it is ``deadline`` (:func:`time.monotonic`).

        It also ends after a minute of waiting, and a signal that comes while a packet is carried ends the wait after
        that only at ``deadline``. Other threads of this process wait too.

        :returns: descriptors that are ready, and what was read from each: nothing (``None``), a packet of so many bytes
            from the device, or what ``judge`` has said of a datagram.
        :raises OSError: the epoll descriptor is closed.
        :raises Exception: what ``judge``, or the handler of a signal, has raised.
        """

    def learn_route(self, destination: bytes, peer: PeerId, mtu: int, /) -> None:
        """Packets to ``destination`` (four bytes) go to ``peer``, an IPv4 address, if they have at most ``mtu`` bytes.

        :raises ValueError: something isn't of that form.
        """

    def learn_path(self, peer: PeerId, addresses: bytes, /) -> None:
        """``peer`` may send us packets with this source and destination (eight bytes).

        :raises ValueError: something isn't of that form.
        """

    def forget(self) -> None:
        """Forget all that was learned."""

    def take_counters(self) -> tuple[int, int, int, int]:
        """Packets and bytes sent, packets and bytes received, since the last call; without outer headers."""
