"""Catching a function that is not pure: what it opens, runs, starts, prints or asks the clock is written down.

An audit hook (``sys.addaudithook``) sees files, sockets and processes; clocks, randomness, threads and what is printed
raise no audit events everywhere, so their functions are replaced for the moment. What is written down can't be hidden
by a handler that swallows errors.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

__all__ = ["connections", "watched"]

_EVENTS: Final = ("open", "socket.", "subprocess.", "os.", "shutil.", "ctypes.dlopen", "signal.")
_FUNCTIONS: Final[tuple[tuple[Any, str], ...]] = (
    (time, "time"),
    (time, "time_ns"),
    (time, "monotonic"),
    (time, "monotonic_ns"),
    (time, "sleep"),
    (os, "urandom"),
    (os, "getpid"),
    (random, "random"),
    (random, "randrange"),
    (random, "randint"),
    (random, "choice"),
    (random, "getrandbits"),
    (threading.Thread, "start"),
)
_STREAMS: Final = ("stdout", "stderr")

_NETWORK: Final = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")

_watching = threading.local()
_connecting: list[list[str]] = []
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    found: list[str] | None = getattr(_watching, "found", None)
    if found is not None and event.startswith(_EVENTS):
        found.append(f"{event} {arguments[0] if arguments else ''}".strip())
    if _connecting and event in _NETWORK:
        for each in _connecting:
            each.append(f"{event} {arguments[1:2] or ''}".strip())


def _install() -> None:
    if not _installed:  # a hook can't be taken out again
        sys.addaudithook(_hook)
        _installed.append(True)


def _noting(name: str, function: Callable[..., Any], found: list[str]) -> Callable[..., Any]:
    owner = threading.get_ident()

    def note(*arguments: Any, **named: Any) -> Any:
        if threading.get_ident() == owner:
            found.append(name)
        return function(*arguments, **named)

    return note


class _Printing:
    """A stream that writes down what a thread that is watched writes to it, and passes everything on."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> Any:
        found: list[str] | None = getattr(_watching, "found", None)
        if found is not None and text.strip():
            found.append(f"{self._name}: {text.strip()}")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_printing: dict[tuple[str, int], _Printing] = {}
"""One for each stream that there was, which stays: ``print`` holds the stream that it writes to without a reference of
its own (until Python 3.14), so that one which goes while another thread prints takes the process along."""


def _printed(name: str) -> _Printing:
    stream = getattr(sys, name)
    return _printing.setdefault((name, id(stream)), _Printing(stream, f"sys.{name}"))


@contextmanager
def watched() -> Iterator[list[str]]:
    """What this thread does to the world meanwhile, as texts; nothing is hindered."""
    _install()
    found: list[str] = []
    with ExitStack() as stack:
        for module, name in _FUNCTIONS:
            function = getattr(module, name)
            stack.enter_context(patch.object(module, name, _noting(f"{module.__name__}.{name}", function, found)))
        for name in _STREAMS:
            stack.enter_context(patch.object(sys, name, _printed(name)))
        _watching.found = found
        try:
            yield found
        finally:
            _watching.found = None


@contextmanager
def connections() -> Iterator[list[str]]:
    """What this process's threads send to the network meanwhile, as far as Python sees it."""
    _install()
    found: list[str] = []
    _connecting.append(found)
    try:
        yield found
    finally:
        _connecting.remove(found)
