"""Daemons and commands of a lab without the second that Python takes to import them.

The idea: one process imports what pyflannel is made of, and each daemon and each command is a fork of it that enters
the lab's namespaces and runs the module that it was asked for, as ``python -m`` would. So fifty nodes start as soon as
five would otherwise, and what they have in common is in memory once. What another interpreter, other paths or another
program would be needed for is not started here.

A fork is two processes, as with nsenter(1): a pid namespace is entered by children only. The first stays outside, waits
for the second, which is the command, stops when that is stopped, and tells how it ended.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from pyflannel.small.interpreter import module_command

__all__ = ["Forked", "Warm", "of_ours"]

_MODULE: Final = "pyflannel"
_ROOMS: Final = ("pyflannel", "pyflannel_backends", "pyflannel_stores", "stevedore")
_LEFT_OUT: Final = (
    *(f"pyflannel.{room}" for room in ("__main__", "doctor", "lab", "skeleton", "storetools", "testing")),
    *("pyflannel.cli.lab", "pyflannel.cli.plugin", "pyflannel_backends.ipsec", "pyflannel_backends.userspace"),
    *(f"pyflannel_stores.{sort}{store}" for sort in ("", "_") for store in ("consul", "etcd", "kubernetes")),
    *("stevedore.example", "stevedore.tests", "stevedore.sphinxext"),
)
"""How the names of modules begin that few daemons and commands need. gRPC, which etcd's has, outlives no fork."""

_FIXED: Final = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_")
"""How the names of variables begin that only count when an interpreter starts."""


def of_ours(words: Sequence[str]) -> list[str] | None:
    """The words for pyflannel, if it is pyflannel that a command line runs, with this interpreter."""
    start = module_command(_MODULE)
    return [*words[len(start) :]] if list(words[: len(start)]) == start else None


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_FIXED)}


class Warm:
    """The process that has it all, which is started when it is first needed and ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._asks: socket.socket | None = None
        self._owner = 0
        self._environment: Mapping[str, str] = {}

    def start(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        namespaces: Sequence[str],
        streams: tuple[int | IO[str] | None, int | IO[str] | None, int | IO[str] | None],
    ) -> Forked | None:
        """Start pyflannel with these words, in a session of its own; ``None`` if that needs another interpreter.

        :param namespaces: the files of those to enter, in that order; the command begins in ``/`` then, without any
            where this process is.
        :param streams: standard input, output and error, as ``subprocess.Popen`` takes them.
        """
        with self._lock, contextlib.ExitStack() as stack:
            if not self._ready(environment):
                return None
            assert self._asks is not None
            ours, theirs = _streams(stack, streams)
            told, tells = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, tells)
            entered = [_opened(stack, path) for path in namespaces]
            directory = "/" if namespaces else str(Path.cwd())
            request = json.dumps({"words": [*words], "environment": {**environment}, "directory": directory}).encode()
            try:
                rights = array.array("i", [*theirs, tells, *entered])
                message = [len(request).to_bytes(4, "big")]
                self._asks.sendmsg(message, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                self._asks.sendall(request)
                pid = int.from_bytes(self._asks.recv(4, socket.MSG_WAITALL), "big")
            except OSError:
                pid = 0
            if not pid:
                os.close(told)
                for stream in ours:
                    if stream is not None:
                        stream.close()
                return None
            return Forked(words, pid, told, ours)

    def end(self) -> None:
        """End it, not what was forked from it. It is started anew when it is needed."""
        if self._process is None or self._owner != os.getpid():
            return
        if self._asks is not None:
            self._asks.close()
        self._process.wait()
        self._process = self._asks = None

    def _ready(self, environment: Mapping[str, str]) -> bool:
        if self._owner != os.getpid():  # of this process, not of one that it is a fork of
            self._process, self._owner, self._environment = None, os.getpid(), {**os.environ}
        if self._process is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    module_command(__name__, str(theirs.fileno())),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._asks = ours
            atexit.register(self.end)
        return self._process.poll() is None and _fixed(environment) == _fixed(self._environment)


def _opened(stack: contextlib.ExitStack, path: str) -> int:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, number)
    return number


def _streams(
    stack: contextlib.ExitStack, streams: Sequence[int | IO[str] | None]
) -> tuple[list[IO[str] | None], list[int]]:
    """Our ends of the pipes among them, and the three descriptors that the command gets."""
    ours: list[IO[str] | None] = []
    theirs: list[int] = []
    for number, stream in enumerate(streams):
        mine: IO[str] | None = None
        if stream is None:
            theirs.append(number)
        elif stream == subprocess.PIPE:
            read, write = os.pipe2(os.O_CLOEXEC)
            far, near = (read, write) if number == 0 else (write, read)
            stack.callback(os.close, far)
            theirs.append(far)
            mine = os.fdopen(near, "w" if number == 0 else "r")
        elif stream == subprocess.DEVNULL:
            theirs.append(_opened_null(stack))
        elif stream == subprocess.STDOUT:
            theirs.append(theirs[1])
        else:
            theirs.append(stream if isinstance(stream, int) else stream.fileno())
        ours.append(mine)
    return ours, theirs


def _opened_null(stack: contextlib.ExitStack) -> int:
    number = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, number)
    return number


class Forked:
    """The process outside, with the part of ``subprocess.Popen`` that a lab uses."""

    def __init__(self, words: Sequence[str], pid: int, told: int, streams: Sequence[IO[str] | None]) -> None:
        self.args = [*words]
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = streams
        self._told: int | None = told
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """How it ended, if it has: negative for a signal."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        :raises subprocess.TimeoutExpired: it did not end within ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            remaining = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            code = self._look(max(0.0, remaining))
            if code is not None:
                return code
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)

    def _look(self, seconds: float) -> int | None:
        with self._lock:
            if self._told is None or not select.select([self._told], [], [], seconds)[0]:
                return self.returncode
            said = os.read(self._told, 16)
            self.returncode = int(said) if said else -signal.SIGKILL
            os.close(self._told)
            self._told = None
            return self.returncode

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:  # noqa: A002
        """Give it its input, and return its output and errors at its end; empty where there is no pipe.

        :raises subprocess.TimeoutExpired: it did not end within ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        said: dict[int, str] = {}
        threads = [
            threading.Thread(target=_read, args=(said, number, stream), daemon=True)
            for number, stream in enumerate((self.stdout, self.stderr))
            if stream is not None and not stream.closed
        ]
        if self.stdin is not None and not self.stdin.closed:
            threads.append(threading.Thread(target=_write, args=(self.stdin, input), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return said.get(0, ""), said.get(1, "")

    def send_signal(self, number: int) -> None:
        """Send the process outside a signal; none if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process outside."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.wait()


def _read(said: dict[int, str], number: int, stream: IO[str]) -> None:
    with contextlib.suppress(ValueError):  # closed by who gave up
        said[number] = stream.read()
        stream.close()


def _write(stream: IO[str], text: str | None) -> None:
    with contextlib.suppress(BrokenPipeError, ValueError):
        stream.write(text or "")
        stream.close()


# The process that has it all


def _modules(within: Sequence[str] = _ROOMS) -> Iterator[str]:
    """What most daemons and commands need, by name."""
    for name in within:
        if not name.startswith(_LEFT_OUT):
            yield name
            path = getattr(sys.modules.get(name), "__path__", ())
            yield from _modules([f"{name}.{found.name}" for found in pkgutil.iter_modules(path)])


def serve(asked: socket.socket) -> None:
    """Fork for each request until nobody can ask any more. In a fork, returns when pyflannel is to be run."""
    for name in _modules():  # imports a package before it is asked for what is in it
        with contextlib.suppress(Exception):  # whoever needs it will say why it can't be had
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    while True:
        head, rights, _, _ = socket.recv_fds(asked, 4, 16)
        if not head:
            sys.exit(0)
        request = json.loads(asked.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
        pid = os.fork()
        if pid == 0:
            asked.close()
            _begin(request, rights)
            return
        for number in rights:
            os.close(number)
        asked.sendall(pid.to_bytes(4, "big"))


def _begin(request: Mapping[str, Any], rights: Sequence[int]) -> None:
    """Become the command; the process outside ends in here."""
    streams, tells, namespaces = rights[:3], rights[3], rights[4:]
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        libc = ctypes.CDLL(None, use_errno=True)
        for namespace in namespaces:
            if libc.setns(namespace, 0) != 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))
        os.chdir(request["directory"])
        child = os.fork()
    except BaseException as error:
        os.write(streams[2], f"pyflannel lab: {error}\n".encode())
        os.write(tells, b"1")
        os._exit(1)
    if child:
        for number in (*streams, *namespaces):
            os.close(number)
        _follow(child, tells)
    os.close(tells)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for number in {*streams, *namespaces} - {0, 1, 2}:
        os.close(number)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115 - as long as the process is
        for number, mode, errors in ((0, "r", None), (1, "w", None), (2, "w", "backslashreplace"))
    )
    sys.argv = [_MODULE, *request["words"]]
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(_MODULE, encoding="ascii")


def _follow(child: int, tells: int) -> None:
    """Wait for the command as nsenter does, and tell how it ended."""
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            break
        os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(child, signal.SIGCONT)
    os.write(tells, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(_MODULE, run_name="__main__", alter_sys=True)
