"""A store's server as a process: started somewhere, frozen, killed, and started again on its data.

Where it runs is not its own business: a *place* starts it, either this system (:data:`HERE`) or a namespace of a lab,
which has the same ``start`` method. What a test or the lab does to a server then is the same for every store.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Protocol, TypeVar

from pyflannel.errors import StoreUnavailableError

__all__ = ["HERE", "PORTS", "Cluster", "Place", "Running", "Server", "free_ports"]

C = TypeVar("C", bound="Cluster")

PORTS: Final = range(20000, 32000)
"""Below the kernel's range for outgoing connections, so that none of those takes a server's port while it is down."""

STOP_TIMEOUT: Final = 5.0
"""Seconds a server may take to end on SIGTERM before it is killed."""


class Running(Protocol):
    """A started process, as far as a server needs it."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit status."""

    def pause(self) -> None:
        """Stop it (SIGSTOP)."""

    def resume(self) -> None:
        """Let it go on."""

    def kill(self) -> None:
        """Kill it (SIGKILL) and wait until it is gone."""

    def stop(self, timeout: float = 10.0) -> int:
        """Ask it to end (SIGTERM), kill it after ``timeout`` seconds."""


class Place(Protocol):
    """Somewhere processes can be started: this system, or a namespace of a lab."""

    def start(
        self, words: Sequence[str | os.PathLike[str]], *, stdout: int | IO[str] | None, stderr: int | IO[str] | None
    ) -> Running:
        """Start a command."""


class _Process:
    """A process of this system."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait(self, timeout: float | None = None) -> int:
        return self._popen.wait(timeout)

    def pause(self) -> None:
        self._popen.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._popen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def stop(self, timeout: float = 10.0) -> int:
        self._popen.terminate()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()


class _Here:
    """This system, in the network namespace of the caller."""

    def start(
        self,
        words: Sequence[str | os.PathLike[str]],
        *,
        stdout: int | IO[str] | None = subprocess.DEVNULL,
        stderr: int | IO[str] | None = subprocess.DEVNULL,
    ) -> Running:
        """Start a command in a session of its own, so that a terminal's Ctrl-C reaches only the owner."""
        command = [os.fspath(word) for word in words]
        return _Process(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True)
        )


HERE: Final[Place] = _Here()


class Server:
    """One server of a store.

    :param title: what messages call it.
    :param log: the file its output goes to.
    """

    def __init__(self, title: str, log: Path) -> None:
        self.title = title
        self.log = log
        self.process: Running | None = None

    @property
    def running(self) -> bool:
        """Whether its process has not ended; a paused one runs too."""
        return self.process is not None and self.process.running

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process().pid

    def launch(self, place: Place, words: Sequence[str | os.PathLike[str]]) -> None:
        """Start its process with these words, without waiting; the log goes on where an earlier life left it."""
        with self.log.open("a", encoding="utf-8") as log:
            self.process = place.start(words, stdout=log, stderr=log)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing is answered."""
        self._process().pause()

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        self._process().resume()

    def kill(self) -> None:
        """Kill it (SIGKILL), as a crash does. Its data stay."""
        self._process().kill()

    def stop(self) -> None:
        """End it in good order, by force if that takes too long. Idempotent."""
        if self.process is not None and self.process.running:
            self.process.resume()
            self.process.stop(STOP_TIMEOUT)

    def last_words(self, lines: int = 5) -> str:
        """The end of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:]) or "no log"

    def _process(self) -> Running:
        if self.process is None:
            raise RuntimeError(f"{self.title} was never started")
        return self.process


class Cluster(ABC):
    """Servers that belong together. A context manager that starts them all, and leaves no process behind."""

    @abstractmethod
    def start(self) -> None:
        """Start all that don't run, and wait until the whole is healthy.

        :raises StoreUnavailableError: one ended or is not healthy in time; the message has the end of its log.
        """

    @abstractmethod
    def stop(self) -> None:
        """End all at once. Idempotent; data stay."""

    def __enter__(self: C) -> C:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_ports(count: int, host: str) -> list[int]:
    """Ports of ``host`` nobody listens on, at random so that several runs beside each other don't meet.

    :raises StoreUnavailableError: there are not so many.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket(family) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise StoreUnavailableError(f"no {count} free ports between {PORTS.start} and {PORTS.stop} on {host}")
