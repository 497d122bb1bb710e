"""The extension, where there is one: compiled, and not switched off by ``PYFLANNEL_NO_EXTENSIONS``.

One that was compiled from other sources than those beside it is left aside and named: what it expects of Python may be
what a former version did.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._fastpath import FastPath, Transport

__all__ = ["DeviceSide", "described", "load_fast_path", "load_transport", "sources_digest"]

log = logging.getLogger(__name__)

NATIVE: Final = Path(__file__).with_name("native")
"""The extension's sources, where this is a checkout."""

_AGAIN: Final = "compile it again with 'pip install --editable .' or 'tools/bootstrap test' in the checkout"


@dataclass(frozen=True, slots=True)
class DeviceSide:
    """What a port needs to make a fast path, besides what the port knows itself.

    ``epoll`` is what to wait with, ``tun`` the device's queue. ``packet`` and ``buffer`` are where forwarding looks for
    a packet of the device, and for packets of peers. The others say what the device gives and takes.
    """

    epoll: int
    tun: int
    packet: bytearray
    buffer: bytearray
    cuts: bool
    joins_tcp: bool
    joins_udp: bool


def load_fast_path() -> type[FastPath] | None:
    """What carries bursts, if it is there."""
    return getattr(_extension(), "FastPath", None)


def load_transport() -> type[Transport] | None:
    """What seals and opens packets in the fast path, if it is there, and OpenSSL with it."""
    return getattr(_extension(), "Transport", None)


def described(made: object) -> str:
    """Whether there is a fast path, ``made`` of it, for people; and if there is none, why."""
    if made is not None:
        return "yes"
    if os.environ.get("PYFLANNEL_NO_EXTENSIONS"):
        return "no: switched off by PYFLANNEL_NO_EXTENSIONS"
    return f"no: {_found()[1] or 'compiled without OpenSSL, or libcrypto is missing here'}"


def _extension() -> ModuleType | None:
    return None if os.environ.get("PYFLANNEL_NO_EXTENSIONS") else _found()[0]


@functools.cache
def _found() -> tuple[ModuleType | None, str]:
    """The extension, or why it is of no use."""
    try:
        found = importlib.import_module("._fastpath", __package__)
    except ModuleNotFoundError:
        return None, "not compiled"
    except ImportError as error:  # of another machine, or what it needs is missing
        return None, _warned(f"can't be loaded: {error}; {_AGAIN}")
    if sources_digest(NATIVE) not in ("", getattr(found, "SOURCES", None)):
        return None, _warned(f"{found.__file__} was compiled from other sources than those in {NATIVE}; {_AGAIN}")
    return found, ""


def _warned(reason: str) -> str:
    log.warning("Python does without its fast path, and is slower by far: %s", reason)
    return reason


def sources_digest(folder: Path) -> str:
    """What tells one version of the extension's sources from another; empty where there are none, as in a wheel.

    ``setup.py`` has the same, for what it compiles.
    """
    files = sorted(each for each in folder.glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(each.name.encode() + b"\0" + each.read_bytes() for each in files))
    return digest.hexdigest()[:16] if files else ""
