"""Unix sockets in the run directory, through which commands on this node speak with its daemon.

A server has one thread and one client at a time; a client sends a request, which may be empty, and reads the answer to
the end of the stream. Only the daemon's own user may connect.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyflannel.errors import DaemonError

__all__ = ["RunSocketServer", "exchange"]


class RunSocketServer:
    """Lets ``serve`` deal with whoever connects to the socket ``path``, until :meth:`close`.

    Open it only while holding the run directory's lock: a socket that an earlier daemon left is replaced.

    :param serve: called in the server's thread; it must come back, whatever the client does.
    :raises DaemonError: the socket can't be made.
    """

    def __init__(self, path: Path, serve: Callable[[socket.socket], None]) -> None:
        self._path, self._serve = path, serve
        self._wake, self._woken = socket.socketpair()
        self._listener = self._listen()
        self._thread = threading.Thread(target=self._run, name=path.stem, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering. Idempotent."""
        if self._thread.is_alive():
            self._wake.send(b".")
            self._thread.join()
            self._path.unlink(missing_ok=True)
        for channel in (self._listener, self._wake, self._woken):
            channel.close()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)
            os.fchmod(listener.fileno(), 0o600)  # Linux gives the file this mode at bind(2), with no moment in between
            with _short(self._path) as address:
                listener.bind(address)
            listener.listen()
        except OSError as error:
            for channel in (listener, self._wake, self._woken):
                channel.close()
            raise DaemonError(f"{self._path}: {error.strerror}; choose another --run-dir") from None
        return listener

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._woken in ready:
                    return
                client, _ = self._listener.accept()
                with client:
                    self._serve(client)


def exchange(path: Path, request: bytes, timeout: float) -> bytes:
    """Send a request to a daemon's socket and return its answer.

    :param timeout: seconds to wait for each part of the answer.
    :raises DaemonError: none answers.
    """
    chunks = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(timeout)
        try:
            with _short(path) as address:
                channel.connect(address)
            if request:  # whoever is not asked may have answered and gone already
                channel.sendall(request)
            while chunk := channel.recv(1 << 16):
                chunks.append(chunk)
        except OSError as error:
            raise DaemonError(_unanswered(path, error)) from None
    return b"".join(chunks)


def _unanswered(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return f"no daemon answers at {path}; is pyflannel running, with this --run-dir?"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path}: permission denied; ask as the user the daemon runs as (usually root)"
    return f"the daemon at {path} does not answer: {error.strerror or error}"


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for ``path`` that fits into the 108 bytes of ``sun_path``, however deep it lies (``unix(7)``)."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
