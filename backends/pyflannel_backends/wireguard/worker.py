"""The wireguard backend's worker: packets encrypted by :mod:`.tunnel`, keys kept by this process alone.

Run as a module, with FD as its argument; see :mod:`pyflannel_backends.userspace.worker`.

The private key is read from its file, here and by nobody else, and again when the file is another one: so rotating the
key needs no word from the daemon, and works without one. The kernel tells of a change at once (``inotify(7)``), and the
lock on the former file tells whoever made it how long packets are sent under the former key. The preshared key comes
from the daemon by the socket. Neither is ever said again; and this process leaves no core dump and can't be looked into
but by root.
"""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final

from pyflannel.errors import ConfigError
from pyflannel_backends.userspace.control import WorkerConfig
from pyflannel_backends.userspace.ports import Inlet, UdpSocket
from pyflannel_backends.userspace.table import PeerId
from pyflannel_backends.userspace.worker import work

from . import keys, messages
from .machine import Endpoint, Limits, Peer, Timestamps, WireguardMachine
from .noise import StaticKeys
from .tunnel import Tunnel

__all__ = ["KeyedTunnel", "ReservedTimestamps", "WireguardConfig"]

_PR_SET_DUMPABLE: Final = 4
_SUCCESSION: Final = (0.2, 1.0)
"""Seconds after opening the sockets at which handshakes are begun again: a predecessor that has other options had the
port until it heard that we were there, and may have got the answers."""
_KEY_CHECK: Final = 1.0
"""Seconds between looks at the key file."""
_IN_MOVED_TO: Final = 0x80
_IN_CREATE: Final = 0x100
_INITIATION: Final = bytes((messages.INITIATION,))
_KEY_GLANCE: Final = 0.01
"""The same while peers begin handshakes: one that fails for want of the new key is begun again seconds later only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WireguardConfig(WorkerConfig):
    """What a worker of this backend is told besides.

    ``listen`` are addresses and ports to receive at, one of each family at most. ``key_file`` holds the private key,
    ``timestamp_file`` what :class:`~.machine.Timestamps` reserves. ``psk_digest`` tells one preshared key from another
    without telling it. ``limits`` are other values than the white paper's for :class:`~.machine.Limits`.
    """

    tuned: ClassVar[frozenset[str]] = WorkerConfig.tuned | {"keepalive"}

    listen: Sequence[tuple[str, int]]
    key_file: str
    timestamp_file: str
    keepalive: int = 0
    psk_digest: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)


class ReservedTimestamps:
    """A number in a file, replaced as a whole.

    It isn't forced to the disk: only a loss of power *and* a clock that has gone back could make the loss of it felt,
    and then for as long as the clock is behind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = 0
        self.trouble = ""

    def read(self) -> int:
        """What was reserved last; 0 if nothing was, or nobody knows."""
        try:
            return int(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def reserve(self, timestamp: int) -> None:
        """Keep a number. If that fails, handshakes go on: it matters to the next run only.

        A number smaller than the last one is kept only while that is still there: a successor may have reserved more.
        """
        if timestamp < self._kept != self.read():
            return
        fresh = self._path.with_name(f".{self._path.name}-{os.getpid()}")
        try:
            fresh.unlink(missing_ok=True)
            with fresh.open("x") as file:  # not through a link that somebody planted
                file.write(f"{timestamp}\n")
            fresh.replace(self._path)
            self._kept, self.trouble = timestamp, ""
        except OSError as error:
            self.trouble = f"{self._path}: {error.strerror}"


class KeyedTunnel(Tunnel):
    """A tunnel whose key is the one in the file, whenever that changes.

    :raises ConfigError: the file has no usable key.
    """

    def __init__(self, config: WireguardConfig, psk: bytes) -> None:
        self._key_file = Path(config.key_file)
        self._key_seen = self._look()
        found, held = keys.use(self._key_file)
        held.close()  # nothing is sent yet
        identity = StaticKeys(found.private_key.reveal())
        self._is_open = False
        self._held: BinaryIO | None = None
        self._watch: _DirectoryWatch | None = None
        self._key_trouble = ""
        self._next_look = time.monotonic() + _KEY_CHECK
        self._begin_again_at: list[float] = []
        self._next_glance = 0.0
        self._reserved = ReservedTimestamps(Path(config.timestamp_file))
        self._timestamps = Timestamps(time.time_ns, self._reserved.read(), self._reserved.reserve)
        limits = Limits(**config.limits)  # type: ignore[arg-type] # messages are counted in whole numbers
        machine = WireguardMachine(identity, self._timestamps, os.urandom, mtu=config.mtu, limits=limits)
        sockets = [functools.partial(UdpSocket, *place, offload=config.offload) for place in config.listen]
        super().__init__(machine, sockets, config.mtu, psk=psk, keepalive=config.keepalive)

    def _look(self) -> tuple[int, int, int] | None:
        """What tells one file from another."""
        with suppress(OSError):
            about = self._key_file.stat()
            return about.st_ino, about.st_mtime_ns, about.st_ctime_ns
        return None

    def tune(self, config: WorkerConfig) -> None:
        super().tune(config)
        if isinstance(config, WireguardConfig):
            self.set_keepalive(config.keepalive)

    @property
    def deadline(self) -> float:
        return min(self.machine.deadline, self._next_look, *self._begin_again_at)

    def open(self) -> Sequence[Inlet]:
        """See :class:`UnderlayPort`. What comes from the last inlet is no packet, but word of another key."""
        inlets = list(super().open())
        with suppress(OSError):  # the system has too few of them: another key is found within a second all the same
            self._watch = _DirectoryWatch(self._key_file.parent, lambda: self._renew(time.monotonic()))
            inlets.append(self._watch)
        self._is_open = True
        now = time.monotonic()
        self._take_key(self._look(), now)
        self._begin_again_at = [now + after for after in _SUCCESSION]
        return inlets

    def close(self) -> None:
        super().close()
        self._is_open = False
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._hold(None)
        self._timestamps.release()

    def _take_one(self, data: bytes, sender: Endpoint, now: float) -> tuple[Peer | None, bytes]:
        """A peer that begins a handshake may have read our new key in the store before we looked at the file."""
        if data[:1] == _INITIATION and now >= self._next_glance:
            self._next_glance = now + _KEY_GLANCE
            self._renew(now)
        return super()._take_one(data, sender, now)

    def expire(self, now: float) -> None:
        if now >= self._next_look:
            self._next_look = now + _KEY_CHECK
            self._renew(now)
        if any(at <= now for at in self._begin_again_at):
            self._begin_again_at = [at for at in self._begin_again_at if at > now]
            self.machine.begin_again(now)
        super().expire(now)

    def _renew(self, now: float) -> None:
        """Take the key of another file."""
        seen = self._look()
        if seen != self._key_seen:
            self._take_key(seen, now)

    def _take_key(self, seen: tuple[int, int, int] | None, now: float) -> None:
        """Take the key of the file. While that can't be used, stay with the key we have and say so."""
        try:
            found, held = keys.use(self._key_file)
        except ConfigError as error:
            self._key_trouble = str(error)
            return
        self._key_seen, self._key_trouble = seen, ""
        identity = StaticKeys(found.private_key.reveal())
        if identity.public != self.machine.public_key:
            self.machine.set_identity(identity, now)
            self._flush()
        if self._is_open:
            self._hold(held)
        else:
            held.close()

    def _hold(self, key_file: BinaryIO | None) -> None:
        """Let go of the former key file: nothing more will be sent under its key."""
        if self._held is not None:
            self._held.close()
        self._held = key_file

    def status(self) -> Mapping[str, Any]:
        return {**super().status(), "trouble_with_files": self._key_trouble or self._reserved.trouble}

    def failures(self) -> Mapping[PeerId, str]:
        """See :class:`UnderlayPort`. A key file that can't be used concerns every peer, sooner or later."""
        if self._key_trouble:
            return dict.fromkeys(self._names, f"still using the former key: {self._key_trouble}")
        return super().failures()


class _DirectoryWatch:
    """Calls back when a file in a directory was made or replaced, by way of the loop that waits for packets.

    :raises OSError: the directory can't be watched.
    """

    def __init__(self, directory: Path, changed: Callable[[], None]) -> None:
        self._changed = changed
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(directory), _IN_MOVED_TO | _IN_CREATE) < 0:
            number = ctypes.get_errno()
            self.close()
            raise OSError(number, os.strerror(number), str(directory))

    def fileno(self) -> int:
        return self._fd

    def receive(self, _buffer: memoryview) -> None:
        """See :class:`Inlet`. It never brings anything."""
        with suppress(BlockingIOError):
            os.read(self._fd, 1 << 16)
            self._changed()

    def close(self) -> None:
        """Watch no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def keep_secrets() -> None:
    """Leave no core dump, and let nobody but root trace this process or read its memory (``prctl(2)``)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def _make_port(config: WireguardConfig, secrets: Mapping[str, Any]) -> KeyedTunnel:
    return KeyedTunnel(config, bytes.fromhex(secrets.get("psk", "")) or bytes(32))


if __name__ == "__main__":
    keep_secrets()
    work(WireguardConfig, _make_port)
