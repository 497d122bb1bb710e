"""The process that moves the packets. Each data plane has a module of its own for it, which calls :func:`work`.

It is started by the daemon with one end of a socket pair as the descriptor that its first argument names, but doesn't
need the daemon to live: it forwards with the table it has, and whoever connects to its Unix socket next feeds it from
then on. It attaches to the TUN device when the device is there, and again when it was deleted and made anew, or when
another one has its name. Without a daemon *and* without a device there is nothing left to do, and it ends; so deleting
the device is all that a cleanup needs. It waits ten seconds for its first device, and two for another one: by the time
that one comes, peers may have forgotten what was agreed with them. Without a daemon it also ends when another worker
has its socket's place: no daemon will find it again, and it would get a share of the packets and forward them with a
table that nobody renews.

Its standard error is that of its daemon, and nothing's without one: whoever reads what a daemon wrote, through a pipe
say, sees the end of it when the daemon ends.

One loop, one thread: whatever is ready is handled in turn.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import ipaddress
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from . import control
from .control import Frames, Message, Row, WorkerConfig
from .forward import COUNTERS, Forwarder, QueueLimits, RateLimit
from .packet import TCP, UDP
from .ports import DeviceGone, Inlet, TunQueue, UnderlayPort
from .precedence import Precedence
from .table import Peer, PeerTable, Subnet

if TYPE_CHECKING:
    from ._fastpath import FastPath
    from .offload import Joiner, Splitter

_TICK: Final = 1.0
_ORPHAN_LIFETIME: Final = 10.0
_BEREFT_LIFETIME: Final = 2.0
"""Seconds that it lives without a daemon and without a device, before it has had one and after that."""
_PATH_MTU_LIFETIME: Final = 600.0
_ICMP_RATE: Final = 1000.0
_ICMP_BURST: Final = 100.0
_RTMGRP_LINK: Final = 1

Config = TypeVar("Config", bound=WorkerConfig)


class _Source(Protocol):
    def fileno(self) -> int: ...


class Worker:
    """See the module's docstring.

    :param connection: to the daemon; :param path: where to listen for the next one.
    """

    def __init__(
        self,
        connection: socket.socket,
        config: WorkerConfig,
        underlay: UnderlayPort,
        path: Path,
        peers: Iterable[Row],
    ) -> None:
        self._config = config
        self._tuning: Mapping[str, Any] = {}
        """Values of the configuration that are to be taken."""
        self._underlay = underlay
        self._table = PeerTable(ipaddress.ip_network(subnet) for subnet in config.own)
        self._put(peers)
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._tun: TunQueue | None = None
        self._inlets: Sequence[Inlet] = ()
        self._forwarder: Forwarder | None = None
        self._fast_path: FastPath | None = None
        self._trouble = ""
        self._has_forwarded = False
        self._running = True
        self._epoll = select.epoll()
        self._poll: Callable[[float], Sequence[tuple[int, Any]]] = self._wait
        self._handlers: dict[int, Callable[..., object]] = {}
        self._control: socket.socket | None = None
        self._frames = Frames()
        self._listener = control.listen(path)
        self._path, self._place = path, path.stat().st_ino
        self._watch(self._listener, self._accept)
        self._links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._links.bind((0, _RTMGRP_LINK))
        self._watch(self._links, self._links_changed)
        self._precedence = Precedence(config.realtime)
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
        handlers, underlay, clock = self._handlers, self._underlay, time.monotonic
        while self._running:
            try:
                if self._tuning:
                    self._tune()
                underlay.settle()
                for fd, read in self._poll(min(self._next_tick, underlay.deadline)):
                    handler = handlers.get(fd)
                    if handler is not None:
                        handler() if read is None else handler(read)
            except DeviceGone as error:
                self._reattach(str(error))
            now = clock()
            if now >= underlay.deadline:
                underlay.expire(now)
            if now >= self._next_tick:
                self._tick()
        self._dissolve()
        self._listener.close()

    def _let_linger(self) -> None:
        """Have the fast path do so where it may: see :mod:`precedence <.precedence>`."""
        if self._fast_path is not None:
            self._fast_path.let_linger(*self._precedence.lingering)

    def _wait(self, deadline: float) -> Sequence[tuple[int, Any]]:
        """What is ready before ``deadline``, as :meth:`FastPath.poll` has it; nothing has been read."""
        return [(fd, None) for fd, _ in self._epoll.poll(max(0.0, deadline - time.monotonic()))]

    def _terminate(self, *_: object) -> None:
        self._running = False

    def _watch(self, source: _Source, handler: Callable[..., object]) -> None:
        self._handlers[source.fileno()] = handler
        self._epoll.register(source.fileno(), select.EPOLLIN)

    def _unwatch(self, source: _Source) -> None:
        del self._handlers[source.fileno()]
        self._epoll.unregister(source.fileno())

    # The data path

    def _assemble(self) -> None:
        """Attach to the device and open the underlay's sockets; forward as soon as both are there."""
        if self._forwarder is not None:
            return
        config = self._config
        try:
            self._tun = self._tun or TunQueue(config.device, offload=config.offload and _load_offload() is not None)
            self._inlets = self._underlay.open()
        except DeviceGone as error:
            self._trouble = str(error)
            return
        except OSError as error:
            self._trouble = f"can't open {error.filename}: {error.strerror}"
            return
        self._trouble, self._has_forwarded = "", True
        self._forward(self._tun)

    def _forward(self, tun: TunQueue) -> None:
        """Move packets between the device and the sockets, by the configuration as it is."""
        offload = _load_offload() if self._config.offload else None
        self._forwarder = forwarder = self._make_forwarder(tun, offload)
        self._watch(tun, forwarder.from_tun)
        for inlet in self._inlets:
            self._watch(inlet, functools.partial(forwarder.from_underlay, inlet))
        self._fast_path = self._underlay.fast_path(forwarder.device_side(self._epoll.fileno(), tun.fileno()))
        forwarder.attach(self._fast_path)
        self._poll = self._wait if self._fast_path is None else self._fast_path.poll
        self._let_linger()

    def _tune(self) -> None:
        """Take other values of the configuration, between two packets: what waits goes on waiting where it is."""
        values, self._tuning = self._tuning, {}
        self._config = replace(self._config, **values)
        self._underlay.tune(self._config)
        if self._forwarder is not None:
            assert self._tun is not None
            self._stop_forwarding(self._tun)
            self._forward(self._tun)

    def _make_forwarder(self, tun: TunQueue, offload: Any) -> Forwarder:
        config = self._config
        splitter: Splitter | None = None
        joiner: Joiner | None = None
        if offload is not None and tun.tso:
            splitter = offload.Splitter()
            joiner = offload.Joiner(frozenset({TCP, UDP} if tun.uso else {TCP}))
        subnets = [ipaddress.ip_network(subnet) for subnet in config.own]
        limits = QueueLimits(config.mtu, {subnet.version: subnet.network_address.packed for subnet in subnets})
        icmp_limit = RateLimit(_ICMP_RATE, _ICMP_BURST, time.monotonic)
        forwarder = Forwarder(tun, self._underlay, self._table, limits, icmp_limit, splitter, joiner)
        forwarder.counters = self._counters
        return forwarder

    def _reattach(self, reason: str) -> None:
        """Find the device again, or wait for it."""
        self._dissolve()
        self._trouble = reason
        self._assemble()

    def _dissolve(self) -> None:
        """Let go of the device and the sockets."""
        if self._tun is None:
            return
        if self._forwarder is not None:
            self._stop_forwarding(self._tun)
            self._underlay.close()
        self._tun.close()
        self._tun, self._inlets = None, ()

    def _stop_forwarding(self, tun: TunQueue) -> None:
        self._count()
        self._forwarder = self._fast_path = None
        self._poll = self._wait
        self._unwatch(tun)
        for inlet in self._inlets:
            self._unwatch(inlet)

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
        tuned = sorted(self._config.tuned)
        self._say({"say": "hello", "pid": os.getpid(), "config": self._config.to_message(), "tuned": tuned})

    def _leave_daemon(self) -> None:
        if self._control is not None:
            self._unwatch(self._control)
            self._control.close()
            self._control = None
            self._write_errors_to(os.open(os.devnull, os.O_WRONLY))

    def _write_errors_to(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):
            os.dup2(descriptor, 2)
        os.close(descriptor)

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
            data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 20, 1)
            for descriptor in descriptors:  # they come with "log", which says no more
                self._write_errors_to(descriptor)
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
                self._put(message["peers"])
            case "remove":
                self._remove(ipaddress.ip_network(subnet) for subnet in message["subnets"])
            case "replace":
                kept = {ipaddress.ip_network(row[0]) for row in message["peers"]}
                self._remove([peer.subnet for peer in self._table if peer.subnet not in kept])
                self._put(message["peers"])
            case "tune":
                self._tuning = message["config"]
            case "stop":
                self._running = False
        if self._forwarder is not None:
            self._forwarder.table_changed()

    def _put(self, rows: Iterable[Row]) -> None:
        for subnet, peer, *details in rows:
            former = self._table.put(Peer.from_text(subnet, peer))
            self._underlay.put(peer, details)
            self._forget(former)

    def _remove(self, subnets: Iterable[Subnet]) -> None:
        for subnet in subnets:
            self._forget(self._table.remove(subnet))

    def _forget(self, former: Peer | None) -> None:
        """Tell the underlay of a peer that lost its last subnet."""
        if former is not None and not self._table.is_peer(former.id):
            self._underlay.remove(former.id)

    # Time and links

    def _links_changed(self) -> None:
        with contextlib.suppress(OSError):  # nothing left to read, or more than fits: either way look at the device
            while self._links.recv(1 << 16):
                pass
        if self._tun is not None and self._tun.displaced:
            self._reattach(f"another device has the name {self._config.device}")
        else:
            self._assemble()

    def _tick(self) -> None:
        now = time.monotonic()
        self._next_tick = now + _TICK
        self._assemble()
        if self._control is not None or self._forwarder is not None:
            self._needed_at = now
        elif now - self._needed_at > (_BEREFT_LIFETIME if self._has_forwarded else _ORPHAN_LIFETIME):
            self._running = False
        if self._control is None and self._is_displaced():
            self._running = False
        if self._forwarder is not None and now > self._forget_at:
            self._forwarder.forget_path_mtus()
            self._forget_at = now + _PATH_MTU_LIFETIME
        self._count()
        self._precedence.look(self._counters["sent_bytes"] + self._counters["received_bytes"])
        self._let_linger()
        self._say(
            {
                **self._underlay.status(),
                "say": "status",
                "counters": {**self._counters, **self._underlay.counters},
                "trouble": self._trouble,
                "failures": {} if self._forwarder is None else self._failures(self._forwarder),
            }
        )

    def _count(self) -> None:
        """Add what the fast path has done."""
        if self._fast_path is None:
            return
        for name, count in self._fast_path.take_counters().items():
            for counters in (self._counters, self._underlay.counters):
                if name in counters:
                    counters[name] += count

    def _is_displaced(self) -> bool:
        """Whether another worker listens where this one did."""
        try:
            return self._path.stat().st_ino != self._place
        except OSError:
            return False  # nobody does

    def _failures(self, forwarder: Forwarder) -> Mapping[str, str]:
        return {**self._underlay.failures(), **forwarder.failures}


def _load_offload() -> Any | None:
    """The vectorised path; ``None`` without numpy, which is an extra."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else numpy starts a thread for each processor, for matrices
    try:
        from . import offload
    except ImportError:
        return None
    return offload


def work(config_type: type[Config], make_port: Callable[[Config, Mapping[str, Any]], UnderlayPort]) -> None:
    """Be a worker: take the configuration from the daemon, then move packets.

    :param make_port: from the configuration and the secrets.
    """
    connection = socket.socket(fileno=int(sys.argv[1]))
    frames = Frames()
    messages: list[Message] = []
    while not messages:
        data = connection.recv(1 << 16)
        if not data:
            return
        messages = frames.feed(data)
    first = messages[0]
    config = config_type(**first["config"])
    try:
        port = make_port(config, first["secrets"])
        worker = Worker(connection, config, port, Path(first["path"]), first["peers"])
    except OSError as error:  # a port that is taken, say: told there, and not to the log at every attempt
        connection.sendall(control.encode({"say": "failed", "why": str(error)}))
        sys.exit(1)
    gc.freeze()  # what was imported stays; no collection, which packets would wait for, needs to look at it
    worker.run()
