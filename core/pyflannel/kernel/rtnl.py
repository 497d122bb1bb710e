"""pyroute2's link and address messages, without the rest of pyroute2.

``import pyroute2`` runs an ``__init__`` that imports all of the package and asyncio: 130 ms and 24 MB, for a program
that needs two message classes. :func:`messages` imports just the submodules that define them, under a bare package
module, and takes everything out of :data:`sys.modules` again, so that a later ``import pyroute2`` by anybody gets the
real package. Where this does not work out, the plain import does the same at its price. The reasons are in
``docs/decisions/0002-slim-pyroute2.md``.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["Messages", "messages"]

_PACKAGE = "pyroute2"
_LINK = "pyroute2.netlink.rtnl.ifinfmsg"
_ADDRESS = "pyroute2.netlink.rtnl.ifaddrmsg"
_lock = threading.Lock()


class Messages(NamedTuple):
    """The message classes (``pyroute2.netlink.nlmsg``): dictionaries with ``encode``, ``data`` and ``decode``."""

    link: Any
    address: Any


def messages() -> Messages:
    """The classes for ``RTM_*LINK`` and ``RTM_*ADDR``; imported at the first call, 20 ms."""
    with _lock:
        return _load()


@lru_cache(maxsize=1)
def _load() -> Messages:
    # What it can't encode it raises, and logs with the stack that led there; whoever catches it says what was wrong.
    logging.getLogger("pyroute2.netlink").setLevel(logging.CRITICAL)
    if _PACKAGE not in sys.modules:
        try:
            return _load_slim()
        except Exception:  # noqa: S110 - another layout of pyroute2: the plain import tells if it is unusable
            pass
    return _pick()


def _load_slim() -> Messages:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    bare = ModuleType(_PACKAGE)
    bare.__path__ = list(spec.submodule_search_locations)
    bare.__spec__ = spec
    sys.modules[_PACKAGE] = bare
    try:
        return _pick()
    finally:
        for name in [name for name in sys.modules if name == _PACKAGE or name.startswith(_PACKAGE + ".")]:
            del sys.modules[name]


def _pick() -> Messages:
    return Messages(importlib.import_module(_LINK).ifinfmsg, importlib.import_module(_ADDRESS).ifaddrmsg)
