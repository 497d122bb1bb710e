"""The kernel parameters that are wanted, below ``/proc/sys``: read, compared and set.

Of a few the kernel tells when they change; the others are looked at again from time to time.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from pyflannel.kernel import mpls
from pyflannel.kernel.model import KernelObject, Key, Kind, Sysctl
from pyflannel.kernel.port import Scope, Write
from pyflannel.kernel.refusal import not_kept, refusal
from pyflannel.small import files as smallfile
from pyflannel.small.scarcity import lacking

__all__ = ["Sysctls"]

_TOLD: Final = frozenset({"forwarding", "ip_forward", "rp_filter"})
"""Those of which the kernel tells (``NETCONFA_*`` in linux/netconf.h), among those that plans set."""

_SILENT_PERIOD = 1.0
"""Seconds between two looks at the others, at least."""

T = TypeVar("T")


class Sysctls:
    """The parameters as they were read last.

    :param inside: calls a function in the namespace.
    """

    def __init__(self, inside: Callable[[Callable[[], dict[str, str]]], dict[str, str]]) -> None:
        self._inside = inside
        self._values: dict[str, str] = {}
        self._silent_due = 0.0

    def read(self, scope: Scope) -> list[Sysctl]:
        """Those in scope that are there."""
        self._values = self._inside(lambda: _read(scope.sysctls, scope.optional, self._values))
        return [Sysctl(path, value) for path, value in self._values.items()]

    def silent_changed(self, scope: Scope) -> bool:
        """Whether one differs of which the kernel does not tell."""
        silent = [path for path in scope.sysctls if path.rpartition("/")[2] not in _TOLD]
        if not silent or time.monotonic() < self._silent_due:
            return False
        self._silent_due = time.monotonic() + _SILENT_PERIOD
        now = self._inside(lambda: _read(silent, scope.optional, self._values))
        return any(now.get(path) != self._values.get(path) for path in silent)

    def changes(self, scope: Scope) -> dict[Key, KernelObject | None]:
        """Those that differ from what was read last."""
        now, before = self._inside(lambda: _read(scope.sysctls, scope.optional, self._values)), self._values
        self._values = now
        return {
            (Kind.SYSCTL, path, None): Sysctl(path, now[path]) if path in now else None
            for path in scope.sysctls
            if now.get(path) != before.get(path)
        }

    def put(self, write: Write) -> None:
        """Set one.

        :raises KernelError: it can't be set, or has another value then.
        """
        item = write.new
        assert isinstance(item, Sysctl)
        if item.path.startswith("net/mpls/"):
            mpls.load()
        try:
            self._values.update(self._inside(lambda: _put(item)))
        except OSError as error:
            raise refusal(write, error.errno or errno.EIO) from None
        if self._values[item.path] != item.value:
            raise not_kept(item, replace(item, value=self._values[item.path]))


def _put(item: Sysctl) -> dict[str, str]:
    """Set a parameter: what it is then."""
    Path("/proc/sys", item.path).write_text(f"{item.value}\n", encoding="ascii")
    return {item.path: item.value, **_read([item.path])}


def _read(
    paths: Iterable[str], settable: Container[str] = (), before: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """The readable ones among ``paths``, blanks normalised; of those in ``settable`` the ones that can be set.

    :param before: what was read last, which is what counts of one that can't be opened for want of a descriptor.
    """
    found = {}
    for path in paths:
        if path in settable and not os.access(f"/proc/sys/{path}", os.W_OK):
            continue
        try:
            found[path] = " ".join(smallfile.read(f"/proc/sys/{path}").decode("ascii", "backslashreplace").split())
        except OSError as error:
            # Not there, or not for us: absent from a dump, and refused when it is written.
            if lacking(error) is not None and path in before:
                found[path] = before[path]
    return found
