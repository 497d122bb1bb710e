"""Importing etcd3 0.12.0 beside any protobuf from 3.20.3 on.

The generated ``*_pb2`` modules inside etcd3 came from a protoc whose output protobuf 4 and later refuse to run
("Descriptors cannot be created directly"). All they hold, though, is a description of the messages in serialized form,
and that has not changed. So while etcd3 is imported, a finder stands in for those three modules: it takes the
description out of their source without running it, and builds the classes the way freshly generated modules do.

The description goes into a descriptor pool of our own, because other etcd clients in the same process register files
of the same names (``kv.proto``) in protobuf's default pool. A release of etcd3 whose modules look different is left
to the plain import.

gRPC brings an asynchronous half along that nobody here calls, and with it asyncio and TLS's Python side: 7 MB, and a
third of the time that gRPC's import takes. They are put off until somebody asks for something in them.

Threads that wait for an answer wake up many times a second to look for signals. Here they wait on: those in Python by
a constant of gRPC's, those in its compiled code by the kernel's leave (:func:`patient_threads`).
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any, Final

__all__ = ["load_etcd3", "load_grpc", "patient_threads"]

_GENERATED: Final = frozenset(f"etcd3.etcdrpc.{name}_pb2" for name in ("kv", "auth", "rpc"))
# The literal is written in Python 2's style: text whose characters stand for bytes. A regular expression finds it in
# a twentieth of the time that parsing the module takes.
_DESCRIPTION: Final = re.compile(r"""serialized_pb=_b\(('(?:[^'\\\n]|\\.)*')\)""")

# What gRPC imports and etcd3 does not use.
_PUT_OFF: Final = ("asyncio", "google.protobuf.internal.python_message", "grpc.aio", "tenacity")

# Of linux/prctl.h.
_PR_SET_TIMERSLACK: Final = 29
_PR_GET_TIMERSLACK: Final = 30
# Nanoseconds by which a patient thread's waiting may take longer than it asked for; what arrives wakes it at once.
_PATIENCE: Final = 1_000_000_000

_importing: Final = threading.Lock()


def load_etcd3() -> Any:
    """The module ``etcd3``, imported at the first call.

    gRPC writes its own log to standard error, where a failed connection is nothing new to us: its log is switched off
    unless ``GRPC_VERBOSITY`` says otherwise. Names are looked up by the system's resolver unless ``GRPC_DNS_RESOLVER``
    does: gRPC's own also asks a DNS server about what is in ``/etc/hosts``, and waits for one that is down.

    :raises ImportError: etcd3 or something it needs is not installed.
    """
    with _importing:
        if "etcd3" in sys.modules:
            return sys.modules["etcd3"]
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        os.environ.setdefault("GRPC_DNS_RESOLVER", "native")
        with _put_off(*_PUT_OFF):
            finder = _DescriptionFinder()
            sys.meta_path.insert(0, finder)
            try:
                etcd3 = importlib.import_module("etcd3")
            finally:
                sys.meta_path.remove(finder)
        _let_waiting_threads_sleep()
        return etcd3


def load_grpc() -> Any:
    """The module ``grpc``, as etcd3's import left it: imported by others first, it brings along all that it has."""
    load_etcd3()
    return sys.modules["grpc"]


@contextmanager
def patient_threads() -> Iterator[None]:
    """Have the threads that are started meanwhile wait for up to a second longer than they ask for.

    This is for the one that waits for a stream's answers: gRPC wakes it up five times a second, to no end. A thread
    inherits it from the one that starts it (``prctl(2)``, PR_SET_TIMERSLACK), which has it only as long as this lasts.
    Where prctl is denied, nothing changes.

    It is not for a thread that acts when its time is up, as those of gRPC's pool do. A signal that there is work may
    find none of them waiting, and they look for it again 15 ms later: patient ones took a second for a first call.
    Waiting for the interpreter is waiting, too: while another thread computes without a pause, a patient one gets its
    turn after a second, instead of the usual 5 ms (``sys.getswitchinterval``).
    """
    libc = ctypes.CDLL(None)
    usual = libc.prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0)
    libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_PATIENCE), 0, 0, 0)
    try:
        yield
    finally:
        # More than an int holds comes back negative, and 0 stands for what the thread began with.
        libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(max(usual, 0)), 0, 0, 0)


def _let_waiting_threads_sleep() -> None:
    """Keep gRPC from waking every waiting thread ten times a second.

    It does so for signal handlers, which in Python 3 run without that (PEP 475). The ten are most of what an idle
    daemon would use of a processor.
    """
    from grpc import _common

    if hasattr(_common, "MAXIMUM_WAIT_TIMEOUT"):
        _common.MAXIMUM_WAIT_TIMEOUT = 60.0


@contextmanager
def _put_off(*names: str) -> Iterator[None]:
    """Give those who import these modules meanwhile stand-ins for them; leave no trace in ``sys.modules``."""
    stand_ins = {name: _StandIn(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


class _StandIn(ModuleType):
    """A module that is imported when something in it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _DescriptionFinder(MetaPathFinder):
    """Finds the three generated modules, and leaves every other name to those who come after."""

    def __init__(self) -> None:
        from google.protobuf.descriptor_pool import DescriptorPool

        self._pool = DescriptorPool()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _GENERATED:
            return None
        installed = PathFinder.find_spec(fullname, path, target)
        if installed is None or not isinstance(installed.loader, InspectLoader):
            return None
        found = _DESCRIPTION.search(installed.loader.get_source(fullname) or "")
        if found is None:
            return None
        description = ast.literal_eval(found[1]).encode("latin-1")
        return spec_from_loader(fullname, _DescriptionLoader(self._pool, description), origin=installed.origin)


class _DescriptionLoader(Loader):
    """Fills a module with the message classes of one serialized file description."""

    def __init__(self, pool: Any, description: bytes) -> None:
        self._pool = pool
        self._description = description

    def exec_module(self, module: ModuleType) -> None:
        from google.protobuf.internal import builder

        if module.__name__.endswith(".rpc_pb2"):
            # Its messages refer to those of the other two, which must be in the pool first.
            for name in ("kv", "auth"):
                importlib.import_module(f"etcd3.etcdrpc.{name}_pb2")
        description = self._pool.AddSerializedFile(self._description)
        names = vars(module)
        names["DESCRIPTOR"] = description
        builder.BuildMessageAndEnumDescriptors(description, names)
        builder.BuildTopDescriptorsAndMessages(description, module.__name__, names)
