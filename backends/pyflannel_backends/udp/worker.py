"""The process that moves the packets: ``python -m pyflannel_backends.udp.worker FD``.

It is started by the daemon with one end of a socket pair as descriptor ``FD``, but doesn't need the daemon to live: it
forwards with the table it has, and whoever connects to its Unix socket next feeds it from then on. It attaches to the
TUN device when the device is there, and again when it was deleted and made anew. Without a daemon *and* without a
device for ten seconds there is nothing left to do, and it ends; so deleting the device is all that a cleanup needs.

One loop, one thread: whatever is ready is handled in turn, packets in bursts that are short enough for the other side
of the overlay not to wait.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import control
from .control import Frames, Message, WorkerConfig
from .forward import COUNTERS, Forwarder, Limits, RateLimit
from .packet import TCP, UDP
from .ports import DeviceGone, TunQueue, UdpSocket
from .table import Peer, PeerTable

if TYPE_CHECKING:
    from .offload import Joiner, Splitter

_BURST: Final = 16
"""Receive calls on one side before the other side gets its turn."""
_TICK: Final = 1.0
_ORPHAN_LIFETIME: Final = 10.0
_PATH_MTU_LIFETIME: Final = 600.0
_ICMP_RATE: Final = 1000.0
_ICMP_BURST: Final = 100.0
_RTMGRP_LINK: Final = 1


class Worker:
    """See the module's docstring."""

    def __init__(
        self, connection: socket.socket, config: WorkerConfig, path: Path, peers: Iterable[tuple[str, str, int]]
    ) -> None:
        self._config = config
        self._path = path
        self._table = _table(config.own, peers)
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._tun: TunQueue | None = None
        self._udp: UdpSocket | None = None
        self._forwarder: Forwarder | None = None
        self._trouble = ""
        self._running = True
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], object]] = {}
        self._control: socket.socket | None = None
        self._frames = Frames()
        self._listener = control.listen(path)
        self._watch(self._listener, self._accept)
        self._links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._links.bind((0, _RTMGRP_LINK))
        self._watch(self._links, self._links_changed)
        now = time.monotonic()
        self._needed_at = now
        self._next_tick = now + _TICK
        self._forget_at = now + _PATH_MTU_LIFETIME
        self._take(connection)

    def run(self) -> None:
        """Until told to stop, or nothing is left to do."""
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._tick()
        poll, handlers = self._epoll.poll, self._handlers
        while self._running:
            for fd, _ in poll(max(0.0, self._next_tick - time.monotonic())):
                handler = handlers.get(fd)
                if handler is not None:
                    handler()
            if time.monotonic() >= self._next_tick:
                self._tick()
        self._dissolve()
        self._listener.close()

    def _terminate(self, *_: object) -> None:
        self._running = False

    def _watch(self, source: Any, handler: Callable[[], object]) -> None:
        self._handlers[source.fileno()] = handler
        self._epoll.register(source.fileno(), select.EPOLLIN)

    def _unwatch(self, source: Any) -> None:
        del self._handlers[source.fileno()]
        self._epoll.unregister(source.fileno())
        source.close()

    # The data path

    def _assemble(self) -> None:
        """Attach to the device and open the socket, whichever is missing; forward as soon as both are there."""
        if self._forwarder is not None:
            return
        config = self._config
        try:
            offload = _load_offload() if config.offload else None
            self._tun = self._tun or TunQueue(config.device, offload=offload is not None)
            self._udp = self._udp or UdpSocket(config.address, config.port, offload=config.offload)
        except (DeviceGone, OSError) as error:
            self._trouble = self._explain(error)
            return
        self._trouble = ""
        self._forwarder = self._make_forwarder(self._tun, self._udp, offload)
        self._forwarder.counters = self._counters
        self._watch(self._tun, self._from_tun)
        self._watch(self._udp, self._from_underlay)

    def _explain(self, error: DeviceGone | OSError) -> str:
        if isinstance(error, DeviceGone):
            return str(error)
        what = "the TUN driver" if self._tun is None else f"UDP port {self._config.address}:{self._config.port}"
        return f"can't open {what}: {error.strerror}"

    def _make_forwarder(self, tun: TunQueue, udp: UdpSocket, offload: Any) -> Forwarder:
        config = self._config
        splitter: Splitter | None = None
        joiner: Joiner | None = None
        if offload is not None and tun.tso:
            splitter = offload.Splitter()
            joiner = offload.Joiner(frozenset({TCP, UDP} if tun.uso else {TCP}))
        address = ipaddress.ip_network(config.own[0]).network_address.packed
        limits = Limits(config.mtu, config.port, address, config.any_source_port)
        icmp_limit = RateLimit(_ICMP_RATE, _ICMP_BURST, time.monotonic)
        return Forwarder(tun, udp, self._table, limits, icmp_limit, splitter, joiner)

    def _from_tun(self) -> None:
        if self._forwarder is not None:
            try:
                self._forwarder.from_tun(_BURST)
            except DeviceGone as error:
                self._dissolve()
                self._trouble = str(error)
                self._assemble()

    def _from_underlay(self) -> None:
        if self._forwarder is not None:
            self._forwarder.from_underlay(_BURST)

    def _dissolve(self) -> None:
        """Let go of the device and the socket."""
        if self._forwarder is None:
            return
        assert self._tun is not None
        assert self._udp is not None
        self._forwarder = None
        self._unwatch(self._tun)
        self._unwatch(self._udp)
        self._tun = self._udp = None

    # The daemon

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it was gone again
        if control.trusted(connection):
            self._take(connection)
        else:
            connection.close()

    def _take(self, connection: socket.socket) -> None:
        """Obey this daemon from now on, and no other."""
        self._leave_daemon()
        connection.setblocking(False)
        self._control = connection
        self._frames = Frames()
        self._watch(connection, self._listen)
        self._say({"say": "hello", "pid": os.getpid(), "config": self._config.to_message()})

    def _leave_daemon(self) -> None:
        if self._control is not None:
            self._unwatch(self._control)
            self._control = None

    def _say(self, message: Message) -> None:
        """Never wait for the daemon: one that doesn't read has to connect again."""
        if self._control is None:
            return
        data = control.encode(message)
        try:
            if self._control.send(data, socket.MSG_NOSIGNAL) == len(data):
                return
        except OSError:
            pass  # either way the conversation is over
        self._leave_daemon()

    def _listen(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(1 << 20)
            messages = self._frames.feed(data)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._leave_daemon()
            return
        if not data:
            self._leave_daemon()
        for message in messages:
            self._obey(message)

    def _obey(self, message: Message) -> None:
        match message.get("do"):
            case "put":
                for subnet, address, port in message["peers"]:
                    self._table.put(Peer.from_text(subnet, address, port))
            case "remove":
                for subnet in message["subnets"]:
                    self._table.remove(ipaddress.ip_network(subnet))
            case "replace":
                self._table = _table(self._config.own, message["peers"])
                if self._forwarder is not None:
                    self._forwarder.table = self._table
            case "stop":
                self._running = False
        if self._forwarder is not None:
            self._forwarder.table_changed()

    # Time and links

    def _links_changed(self) -> None:
        with contextlib.suppress(OSError):  # nothing left to read, or more than fits: either way look at the device
            while self._links.recv(1 << 16):
                pass
        self._assemble()

    def _tick(self) -> None:
        now = time.monotonic()
        self._next_tick = now + _TICK
        self._assemble()
        if self._control is not None or self._forwarder is not None:
            self._needed_at = now
        elif now - self._needed_at > _ORPHAN_LIFETIME:
            self._running = False
        if self._forwarder is not None and now > self._forget_at:
            self._forwarder.forget_path_mtus()
            self._forget_at = now + _PATH_MTU_LIFETIME
        failures = [] if self._forwarder is None else [[*key, why] for key, why in self._forwarder.failures.items()]
        self._say({"say": "status", "counters": self._counters, "trouble": self._trouble, "failures": failures})


def _table(own: Iterable[str], peers: Iterable[tuple[str, str, int]]) -> PeerTable:
    table = PeerTable(ipaddress.ip_network(subnet) for subnet in own)
    for subnet, address, port in peers:
        table.put(Peer.from_text(subnet, address, port))
    return table


def _load_offload() -> Any | None:
    """The vectorised path; ``None`` without numpy, which is an extra."""
    try:
        from . import offload
    except ImportError:
        return None
    return offload


def main() -> None:
    """Take the configuration from the daemon, then work."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    frames = Frames()
    messages: list[Message] = []
    while not messages:
        data = connection.recv(1 << 16)
        if not data:
            return
        messages = frames.feed(data)
    first = messages[0]
    Worker(connection, WorkerConfig(**first["config"]), Path(first["path"]), first["peers"]).run()


if __name__ == "__main__":
    main()
