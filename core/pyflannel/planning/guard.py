"""What keeps a backend's faults the backend's own: its answers are looked at, and its slow calls don't hold up a lease.

Planners are trusted with nothing but planning. :func:`examined` takes a plan apart before it reaches the kernel: every
object must be a kernel object, on a link that the plan itself makes (routes also on the underlay's), for addresses of
the overlay. :class:`Publisher` calls ``publish`` in a thread of its own, because a lease's renewal comes after it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from pyflannel.backend import Backend, Node, Published
from pyflannel.errors import PluginError, PyflannelError
from pyflannel.kernel.model import (
    Address,
    FdbEntry,
    KernelObject,
    Link,
    Neighbour,
    Route,
    Sysctl,
    WireguardDevice,
    WireguardPeer,
)
from pyflannel.network.lease import IPNetwork

__all__ = ["PUBLISH_TIMEOUT", "Bounded", "Publisher", "checked_mtu", "examined"]

PUBLISH_TIMEOUT: Final = 60.0
"""Seconds that a backend may take to say what our lease should carry; it may run a command or make a key."""

_ON_LINKS: Final = frozenset({Address, FdbEntry, Neighbour, Route, WireguardDevice, WireguardPeer})


def examined(
    plan: Any, node: Node, subnets: Collection[IPNetwork], links: Collection[str] = ()
) -> tuple[KernelObject, ...]:
    """A plan's objects.

    :param subnets: what its routes may lead to, and its WireGuard peers speak for.
    :param links: links of ours that other plans make.
    :raises PluginError: it holds something that a backend must not plan; says what.
    """
    objects: tuple[Any, ...] = tuple(plan)
    underlay = node.underlay.interface
    own: Collection[str] = links
    for item in objects:
        kind = type(item)
        if kind is Link:
            if item.name == underlay:
                raise PluginError(f"it planned the underlay's own link {underlay}")
            own = {*own, item.name}
        elif kind not in _ON_LINKS and kind is not Sysctl:
            raise PluginError(f"it planned {item!r}, which is no kernel object")
    for item in objects:  # thousands of peers come by here: what is usual is looked at first
        kind = type(item)
        if kind not in _ON_LINKS:
            continue
        if item.link not in own and not (kind is Route and (item.link is None or item.link == underlay)):
            raise PluginError(f"it planned {item}, on a link that is not its own")
        if kind is Route and not _within(item.destination, subnets):
            raise PluginError(f"it planned {item}, which leads beyond {', '.join(map(str, subnets))}")
        if kind is WireguardPeer and not all(_within(ip, subnets) for ip in item.allowed_ips):
            raise PluginError(f"it planned {item}, which may speak for more than {', '.join(map(str, subnets))}")
    return objects


def _within(destination: IPNetwork, subnets: Collection[IPNetwork]) -> bool:
    for subnet in subnets:
        if destination is subnet:
            return True
        if destination.version == subnet.version and destination.prefixlen >= subnet.prefixlen:
            spare = subnet.max_prefixlen - subnet.prefixlen
            if int(destination.network_address) >> spare == int(subnet.network_address) >> spare:
                return True
    return False


def checked_mtu(name: str, mtu: Any) -> int:
    """An MTU that a backend has named.

    :raises PluginError: it is none. RFC 791 has 68 bytes for the smallest, and a length of 16 bits.
    """
    if type(mtu) is not int or not 68 <= mtu <= 65535:
        raise PluginError(f"backend {name!r} says that the MTU is {mtu!r}: must be a number between 68 and 65535")
    return mtu


class Bounded:
    """Calls into plugins, and waits for the answer only so long.

    A call that does not come back is left behind in its thread; until it does, every other one fails at once, so that
    a backend that hangs costs one thread.
    """

    def __init__(self, timeout: float = PUBLISH_TIMEOUT) -> None:
        self._timeout = timeout
        self._call: _Call | None = None

    def __call__(self, name: str, what: str, function: Callable[[], Any]) -> Any:
        """What ``function`` of the backend ``name`` answers; ``what`` it is doing is for messages.

        :raises PluginError: it fails, or has not come back in time.
        """
        if self._call is None or not self._call.is_alive():
            self._call = _Call(name, what, function)
            self._call.start()
            self._call.join(self._timeout)
        call = self._call
        if call.is_alive():
            waited = time.monotonic() - call.began
            raise PluginError(f"backend {call.backend!r} has not come back from {call.what} for {waited:.0f} s")
        if isinstance(call.error, PyflannelError):
            raise call.error
        if call.error is not None:
            reason = f"{type(call.error).__name__}: {call.error}"
            raise PluginError(f"backend {name!r} failed in {what}: {reason}") from call.error
        return call.answer


class Publisher:
    """Asks backends what a lease should carry."""

    def __init__(self, timeout: float = PUBLISH_TIMEOUT) -> None:
        self._bounded = Bounded(timeout)

    def __call__(self, backend: Backend[Any], node: Node) -> Published:
        """What ``backend`` publishes for ``node``.

        :raises PluginError: it fails, answers nonsense, or has not come back in time.
        """
        return _checked_published(backend, self._bounded(backend.name, "publish", lambda: backend.publish(node)))


class _Call(threading.Thread):
    """One call of a plugin's."""

    def __init__(self, backend: str, what: str, function: Callable[[], Any]) -> None:
        super().__init__(name=f"pyflannel-{what}-{backend}", daemon=True)
        self.backend = backend
        self.what = what
        self.function = function
        self.began = time.monotonic()
        self.answer: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.answer = self.function()
        except BaseException as error:  # passed on to who asked
            self.error = error


def _checked_published(backend: Backend[Any], answer: Any) -> Published:
    if not isinstance(answer, Published):
        raise PluginError(f"backend {backend.name!r} published {answer!r}, which is no Published")
    try:
        json.dumps([answer.data, answer.v6_data], allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PluginError(f"backend {backend.name!r} published what is not JSON: {error}") from error
    return answer
