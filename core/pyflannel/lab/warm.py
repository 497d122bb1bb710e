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
import ctypes
import gc
import importlib
import json
import math
import os
import pkgutil
import resource
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from io import TextIOWrapper
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

_FIXED: Final = ("GLIBC_", "LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYTHON", "TZ", "XDG_")
"""How the names of variables begin that only count when an interpreter starts."""


def of_ours(words: Sequence[str]) -> list[str] | None:
    """The module and its words, if a command line runs one of pyflannel's with this interpreter."""
    *start, _ = module_command("")
    ours = [*words[len(start) :]]
    return ours if [*words[: len(start)]] == start and ours and ours[0].partition(".")[0] == _MODULE else None


class Warm:
    """The process that has it all, which is started when it is first needed and ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._asks: socket.socket | None = None
        self._owner = 0
        self._inherited: object = None
        self._broken = False
        """It has died of itself: it is of no use here."""

    def start(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        namespaces: Sequence[str],
        streams: tuple[int | IO[str] | None, int | IO[str] | None, int | IO[str] | None],
    ) -> Forked | None:
        """Start a module, in a session of its own; ``None`` if another way has to be taken.

        :param words: its name, and what is said to it.
        :param namespaces: the files of those to enter, in that order; the command begins in ``/`` then, without any
            where this process is.
        :param streams: standard input, output and error, as ``subprocess.Popen`` takes them.
        """
        with self._lock, ExitStack() as theirs, ExitStack() as ours:
            try:
                entered = [_opened(theirs, path) for path in namespaces]
            except OSError:
                return None  # nsenter says it better
            asks = self._ready(environment)
            if asks is None:
                return None
            near, far = _streams(ours, theirs, streams)
            told, tells = os.pipe2(os.O_CLOEXEC)
            ours.callback(os.close, told)
            theirs.callback(os.close, tells)
            directory = "/" if namespaces else str(Path.cwd())
            request = json.dumps({"words": [*words], "environment": {**environment}, "directory": directory}).encode()
            rights = array.array("i", [*far, tells, *entered])
            try:
                asks.sendmsg([len(request).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                asks.sendall(request)
                pid = int.from_bytes(asks.recv(4, socket.MSG_WAITALL), "big")
            except OSError:
                pid = 0
            except BaseException:  # interrupted: nobody would know which answer belongs to which question
                self._drop()
                raise
            if not pid:
                self._broken = True
                self._drop()
                return None
            ours.pop_all()
            return Forked(words, pid, told, near)

    def end(self) -> None:
        """End it, not what was forked from it. It is restarted when it is needed."""
        with self._lock:
            if self._owner == os.getpid():
                self._drop()

    def _drop(self) -> None:
        if self._asks is not None:
            with suppress(OSError):
                self._asks.shutdown(socket.SHUT_RDWR)  # though a fork of this process may hold it, too
            self._asks.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._asks = None

    def _ready(self, environment: Mapping[str, str]) -> socket.socket | None:
        """Where it is asked; ``None`` if what it would start is not what this process would."""
        if self._owner != os.getpid():  # of this process, not of one that it is a fork of
            if self._asks is not None:
                self._asks.close()
            self._process = self._asks = None
            self._owner = os.getpid()
        if self._broken:
            return None
        if self._asks is None:
            near, far = socket.socketpair()
            with far:
                try:
                    self._process = subprocess.Popen(
                        module_command(__name__, str(far.fileno())),
                        pass_fds=[far.fileno()],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                except BaseException:
                    near.close()
                    raise
            self._asks, self._inherited = near, _inherited(os.environ)
            atexit.register(self.end)
        return self._asks if _inherited(environment) == self._inherited else None


def _inherited(environment: Mapping[str, str]) -> object:
    """What a process has from the one that starts it, and a fork of another one would not."""
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    masks = [line for line in status if line.startswith(("Umask:", "Cpus_allowed:", "NoNewPrivs:", "CapBnd:"))]
    return {name: value for name, value in environment.items() if name.startswith(_FIXED)}, limits, masks


def _opened(stack: ExitStack, path: str, flags: int = os.O_RDONLY) -> int:
    number = os.open(path, flags | os.O_CLOEXEC)
    stack.callback(os.close, number)
    return number


def _streams(
    ours: ExitStack, theirs: ExitStack, streams: Sequence[int | IO[str] | None]
) -> tuple[list[TextIOWrapper | None], list[int]]:
    """Our ends of the pipes among them, and the three descriptors that the command gets."""
    near: list[TextIOWrapper | None] = []
    far: list[int] = []
    for number, stream in enumerate(streams):
        mine: TextIOWrapper | None = None
        if stream is None:
            far.append(number)
        elif stream == subprocess.PIPE:
            read, write = os.pipe2(os.O_CLOEXEC)
            given, kept = (read, write) if number == 0 else (write, read)
            theirs.callback(os.close, given)
            far.append(given)
            mine = ours.enter_context(os.fdopen(kept, "w" if number == 0 else "r"))
        elif stream == subprocess.DEVNULL:
            far.append(_opened(theirs, os.devnull, os.O_RDWR))
        elif stream == subprocess.STDOUT:
            far.append(far[1])
        else:
            far.append(stream if isinstance(stream, int) else stream.fileno())
        near.append(mine)
    return near, far


class Forked:
    """The process outside, with the part of ``subprocess.Popen`` that a lab uses."""

    def __init__(self, words: Sequence[str], pid: int, told: int, streams: Sequence[TextIOWrapper | None]) -> None:
        self.args = [*words]
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = streams
        self._told: int | None = told
        self._lock = threading.Lock()
        self._input = b""
        self._said: dict[TextIOWrapper, bytearray] = {}

    def __del__(self) -> None:
        if getattr(self, "_told", None) is not None:
            os.close(self._told or 0)

    def poll(self) -> int | None:
        """How it ended, if it has: negative for a signal."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        :raises subprocess.TimeoutExpired: it did not end within ``timeout`` seconds.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            remaining = deadline - time.monotonic()
            code = self._look(max(0.0, min(1.0, remaining)))
            if code is not None:
                return code
            if remaining <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)

    def _look(self, seconds: float) -> int | None:
        told = self._told
        if told is not None:
            poller = select.poll()
            poller.register(told, select.POLLIN)
            if poller.poll(1000 * seconds):
                self._take()
        return self.returncode

    def _take(self) -> None:
        with self._lock:
            if self._told is not None:  # another thread has not taken it meanwhile
                said = os.read(self._told, 16)
                self.returncode = int(said) if said else -signal.SIGKILL
                os.close(self._told)
                self._told = None

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:  # noqa: A002
        """Give it its input, and return its output and errors at its end; empty where there is no pipe.

        :raises subprocess.TimeoutExpired: it did not end within ``timeout`` seconds. What it has said is kept for the
            next call.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            if self.stdin is not None and not self.stdin.closed:
                self._input += (input or "").encode(self.stdin.encoding, self.stdin.errors or "strict")
                selector.register(self.stdin, selectors.EVENT_WRITE)
            for stream in (self.stdout, self.stderr):
                if stream is not None and not stream.closed:
                    selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
                for key, _ in selector.select(None if remaining == math.inf else remaining):
                    file: Any = key.fileobj
                    if not (self._give() if file is self.stdin else self._hear(file)):
                        selector.unregister(file)
                        with suppress(BrokenPipeError):
                            file.close()
        self.wait(None if timeout is None else max(0.0, deadline - time.monotonic()))
        return self._text(self.stdout), self._text(self.stderr)

    def _give(self) -> bool:
        """Write some of the input; whether there is more."""
        assert self.stdin is not None
        try:
            written = os.write(self.stdin.fileno(), self._input[: select.PIPE_BUF])
        except BrokenPipeError:
            return False
        self._input = self._input[written:]
        return bool(self._input)

    def _hear(self, stream: TextIOWrapper) -> bool:
        """Read some of what it says; whether more may come."""
        data = os.read(stream.fileno(), 1 << 16)
        self._said.setdefault(stream, bytearray()).extend(data)
        return bool(data)

    def _text(self, stream: TextIOWrapper | None) -> str:
        if stream is None:
            return ""
        text = bytes(self._said.pop(stream, b"")).decode(stream.encoding, stream.errors or "strict")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def send_signal(self, number: int) -> None:
        """Send the process outside a signal; none if it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
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
                with suppress(BrokenPipeError):
                    stream.close()
        self.wait()


# The process that has it all


def _modules(within: Sequence[str] = _ROOMS) -> Iterator[str]:
    """What most daemons and commands need, by name."""
    for name in within:
        if not name.startswith(_LEFT_OUT):
            yield name
            path = getattr(sys.modules.get(name), "__path__", ())
            yield from _modules([f"{name}.{found.name}" for found in pkgutil.iter_modules(path)])


def serve(asked: socket.socket) -> None:
    """Fork for each request until nobody can ask any more. In a fork, returns when its module is to be run."""
    for name in _modules():  # imports a package before it is asked for what is in it
        with suppress(Exception):  # whoever needs it will say why it can't be had
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
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        former = getattr(sys, name)
        buffering = 1 if number == 2 or (number == 1 and request["environment"].get("PYTHONUNBUFFERED")) else -1
        own = open(number, mode, buffering, former.encoding, former.errors, closefd=False)  # noqa: SIM115 - to the end
        setattr(sys, name, own)
        setattr(sys, f"__{name}__", own)
    sys.argv = request["words"]
    with suppress(OSError):
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
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
