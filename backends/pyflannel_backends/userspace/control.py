"""What the daemon and a worker say to each other: JSON documents, each behind its length, over a Unix stream socket.

The daemon speaks: ``configure`` (once, to a worker it has just started), ``log`` (to one that was there before, with
the descriptor to write errors to), ``put``, ``remove``, ``replace`` (the whole table at once) and ``stop``. The worker
speaks: ``hello`` (who it is and how it is configured, to whoever connects), ``status`` (every second) and ``failed``
(why it ends before it has begun). Both run the same release or recognise that they don't by :data:`PROTOCOL`.

A row of the table is a list: the subnet (CIDR), the peer that holds it, and the details that the data plane's port
wants to know of that peer.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

__all__ = [
    "PROTOCOL",
    "Frames",
    "Message",
    "Row",
    "WorkerConfig",
    "connect",
    "encode",
    "listen",
    "other_side",
    "trusted",
]

PROTOCOL: Final = 2
Message: TypeAlias = dict[str, Any]
Row: TypeAlias = Sequence[Any]
"""``[subnet, peer, *details]``, of JSON's types."""

_CONNECT_TIMEOUT: Final = 5.0
"""Seconds."""

_QUEUE: Final = 128
"""Daemons that may knock at a worker that hangs. Its number is known to those that find room, and to no other."""

_LENGTH: Final = struct.Struct("!I")
_LONGEST: Final = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """What every worker needs besides the table; a data plane adds its own. A worker with another one is replaced.

    Unless all that differs is in ``tuned``, which is for each class of these to say: those values a worker takes while
    packets flow.

    ``own`` are this node's subnets (CIDR), ``mtu`` is the overlay's in bytes, ``realtime`` lets packets go before
    ordinary programs (see :func:`~pyflannel_backends.userspace.leaves_a_cpu`). Nothing secret belongs here: a worker
    tells its configuration to whoever may connect to it.
    """

    tuned: ClassVar[frozenset[str]] = frozenset({"mtu"})

    device: str
    mtu: int
    own: Sequence[str]
    offload: bool
    realtime: bool = False
    protocol: int = PROTOCOL

    def to_message(self) -> Message:
        """As a document that compares equal to a received one."""
        message: Message = json.loads(json.dumps(asdict(self)))
        return message


def encode(message: Message) -> bytes:
    """A message as it goes over the socket."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Add what was received; returns the messages that are complete now.

        :raises ValueError: the other side doesn't speak this protocol.
        """
        self._buffer += data
        messages = []
        position = 0
        while len(self._buffer) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, position)
            if length > _LONGEST:
                raise ValueError(f"a message of {length} bytes")
            end = position + _LENGTH.size + length
            if end > len(self._buffer):
                break
            message = json.loads(self._buffer[position + _LENGTH.size : end])
            if not isinstance(message, dict):
                raise ValueError("a message that is not an object")
            messages.append(message)
            position = end
        del self._buffer[:position]
        return messages


def listen(path: Path) -> socket.socket:
    """Listen at ``path``, taking it from whoever listened there before; only this user may connect.

    :raises OSError: the socket can't be made there; it names the path.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    fresh = f"{path.name}.{os.getpid()}"
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(_short(directory, fresh))
        listener.listen(_QUEUE)
        os.replace(fresh, path.name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(directory)
    return listener


def connect(path: Path) -> socket.socket | None:
    """Connect to the worker that listens at ``path``; ``None`` if none does."""
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(_CONNECT_TIMEOUT)  # one that hangs lets no more in than its listener's queue has room for
    try:
        connection.connect(_short(directory, path.name))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def trusted(connection: socket.socket) -> bool:
    """Whether the other side runs as this user or as root (``unix(7)``, ``SO_PEERCRED``)."""
    _, uid, _ = _peer(connection)
    return uid in (0, os.geteuid())


def other_side(connection: socket.socket) -> int:
    """The process at the other side; of a socket that was connected to, the one that listens; 0 if it is not known."""
    return _peer(connection)[0]


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """Process, user and group of the other side."""
    pid, uid, gid = struct.unpack("iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def _short(directory: int, name: str) -> str:
    """A path within the 108 bytes that a socket's address has, however deep the directory lies."""
    return f"/proc/self/fd/{directory}/{name}"
