"""What keeps a plugin's faults the plugin's own: whatever it raises is named, its answers are looked at, and its slow
calls don't hold up a lease.

Every call into a plugin goes through :func:`~pyflannel.small.guarded.guarded`, so that nothing it raises, not even
``SystemExit``, ends more than that call. Planners are trusted with nothing but planning: :func:`examined` takes a plan
apart before it reaches the kernel, and every object must be a kernel object, on a link that the plan itself makes
(routes also on the underlay's), for addresses of the overlay. :class:`Publisher` calls ``publish`` in a thread of its
own, because a lease's renewal comes after it; :func:`exclusive` keeps that apart from an action, which changes what it
reads.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from pyflannel.backend import LARGEST_PUBLISHED, Backend, Node, Published
from pyflannel.errors import DaemonError, PluginError
from pyflannel.kernel.model import (
    MAIN_TABLE,
    Address,
    FdbEntry,
    KernelObject,
    Link,
    MplsRoute,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    Sysctl,
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
)
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPNetwork, lies_in
from pyflannel.small.guarded import PluginCall, answered, guarded, reason

__all__ = [
    "PUBLISH_TIMEOUT",
    "Bounded",
    "Publisher",
    "about_the_overlay",
    "checked_mtu",
    "examined",
    "exclusive",
    "guarded",
    "not_carried",
]

PUBLISH_TIMEOUT: Final = 60.0
"""Seconds that a backend may take to say what our lease should carry; it may run a command or make a key."""

_ON_LINKS: Final = frozenset({Address, FdbEntry, MplsRoute, Neighbour, Qdisc, Route, WireguardDevice, WireguardPeer})
_ANYWHERE: Final = frozenset({Rule, Sysctl, XfrmPolicy})


_LOOPBACK: Final = "lo"
_DEFAULT_TABLE: Final = 253
"""The routing table that is asked last (``ip-rule(8)``)."""


@dataclass(slots=True)
class _Turn:
    lock: threading.Lock = field(default_factory=threading.Lock)
    holder: str = ""


_turns: dict[int, _Turn] = {}
_turns_lock = threading.Lock()


@contextmanager
def exclusive(backend: Backend[Any], what: str, patience: float = -1) -> Iterator[None]:
    """Keep a backend's ``publish`` and ``act`` apart: their threads differ, and one changes what the other reads.

    :param what: the call that is to be made, for the message that others get.
    :param patience: seconds to wait for one that is being made; for ever if negative.
    :raises DaemonError: it has not come back in that time.
    """
    with _turns_lock:
        turn = _turns.get(id(backend))
        if turn is None:
            turn = _turns[id(backend)] = _Turn()
            weakref.finalize(backend, _turns.pop, id(backend), None)
    if not turn.lock.acquire(timeout=patience):
        raise DaemonError(
            f"{what} has to wait: backend {backend.name!r} has not come back from {turn.holder} yet; try again"
        )
    try:
        turn.holder = what
        yield
    finally:
        turn.lock.release()


def examined(
    name: str, objects: tuple[Any, ...], node: Node, subnets: Collection[IPNetwork], links: Collection[str] = ()
) -> tuple[KernelObject, ...]:
    """The objects of a plan that the backend ``name`` made.

    :param subnets: what its routes may lead to, and its WireGuard peers and IPsec policies speak for.
    :param links: links of ours that other plans make.
    :raises PluginError: it holds something that a backend must not plan; says what.
    """
    told = f"backend {name!r} planned"
    underlay = node.underlay.interface
    own: Collection[str] = links
    for item in objects:
        kind = type(item)
        if kind is Link:
            if item.name == underlay:
                raise PluginError(f"{told} the underlay's own link {underlay}")
            own = {*own, item.name}
        elif kind not in _ON_LINKS and kind not in _ANYWHERE:
            raise PluginError(f"{told} {answered(item)}, which is not a kernel object")
    for item in objects:  # thousands of peers come by here: what is usual is looked at first
        kind = type(item)
        if kind not in _ON_LINKS:
            _examine_at_large(told, item, subnets, own)
            continue
        if item.link not in own and not _may_leave(item, underlay):
            raise PluginError(f"{told} {item}, on a link that is not its own")
        if kind is Route and not _within(item.destination, subnets):
            raise PluginError(f"{told} {item}, which leads beyond {', '.join(map(str, subnets))}")
        if kind is WireguardPeer and not all(_within(ip, subnets) for ip in item.allowed_ips):
            raise PluginError(f"{told} {item}, which may speak for more than {', '.join(map(str, subnets))}")
    return objects


def _may_leave(item: Any, underlay: str) -> bool:
    """Whether an object that is on no link of its backend's may be where it is."""
    if type(item) is Route:
        return item.link is None or item.link == underlay
    return type(item) is MplsRoute and item.link in (underlay, _LOOPBACK)


def _examine_at_large(told: str, item: KernelObject, subnets: Collection[IPNetwork], links: Collection[str]) -> None:
    if isinstance(item, Rule) and not about_the_overlay(item, subnets, links):
        raise PluginError(
            f"{told} {item}, which is about more than the overlay: say where from or to, or by which link of its own, "
            "or look up a table of its own"
        )
    if isinstance(item, XfrmPolicy) and not _within(item.far_end, subnets):
        raise PluginError(f"{told} {item}, which may speak for more than {', '.join(map(str, subnets))}")


def about_the_overlay(rule: Rule, subnets: Collection[IPNetwork], links: Collection[str]) -> bool:
    """Whether a rule is about the overlay's packets alone: by where they come from or go to, or a link of ours, or
    because the table that it looks up holds nothing but our routes."""
    if rule.action == "lookup" and rule.table not in (_DEFAULT_TABLE, MAIN_TABLE):
        return True
    ends = [end for end in (rule.source, rule.destination) if end is not None]
    own = any(_within(end, subnets) for end in ends) or not {rule.iif, rule.oif}.isdisjoint(links)
    return own and not rule.inverted


def _within(destination: IPNetwork, subnets: Collection[IPNetwork]) -> bool:
    return any(destination is subnet or lies_in(destination, subnet) for subnet in subnets)


def checked_mtu(name: str, mtu: Any) -> int:
    """An MTU that a backend has named.

    :raises PluginError: it is none. RFC 791 has 68 bytes for the smallest, and a length of 16 bits.
    """
    if type(mtu) is not int or not 68 <= mtu <= 65535:
        raise PluginError(
            f"backend {name!r} says that the MTU is {answered(mtu)}: must be a number between 68 and 65535"
        )
    return mtu


def not_carried(kind: type[Backend[Any]], network: NetworkConfig) -> str:
    """Why a backend can't carry all families of a network; empty if it can."""
    for version, able in ((4, kind.capabilities.ipv4), (6, kind.capabilities.ipv6)):
        if version in network.versions and not able:
            return (
                f"backend {kind.name!r} can't carry IPv{version}, which the network config switches on; "
                f"use another backend, or set EnableIPv{version} to false"
            )
    return ""


class Bounded:
    """Calls into plugins, and waits for the answer only so long.

    A call that does not come back is left behind in its thread; until it does, every other one fails at once, so that
    a backend that hangs costs one thread.
    """

    def __init__(self, timeout: float = PUBLISH_TIMEOUT) -> None:
        self._timeout = timeout
        self._call: _Call | None = None

    @property
    def hanging(self) -> str:
        """Says which call has not come back yet; empty if none is being made."""
        call = self._call
        if call is None or not call.is_alive():
            return ""
        return f"{call.under_way.kind} {call.under_way.plugin!r} in {call.under_way.what}"

    def beat(self) -> None:
        """The function that is being called has come a step further: it is waited for as long again."""
        if self._call is not None:
            self._call.under_way.since = time.monotonic()

    def __call__(self, name: str, what: str, function: Callable[[], Any], kind: str = "backend") -> Any:
        """As :func:`guarded`.

        :raises PluginError: it fails, or has not come back in time.
        """
        call = self._call
        if call is None or not call.is_alive():
            call = self._call = _Call(name, what, function, kind)
            call.start()
            while call.is_alive() and (left := call.under_way.since + self._timeout - time.monotonic()) > 0:
                call.join(left)
        if call.is_alive():
            raise PluginError(call.under_way.hanging(time.monotonic()))
        if call.error is not None:
            raise call.error
        return call.answer


class Publisher:
    """Asks backends what a lease should carry."""

    def __init__(self, timeout: float = PUBLISH_TIMEOUT) -> None:
        self._bounded = Bounded(timeout)

    @property
    def hanging(self) -> str:
        """Says which ``publish`` has not come back yet; empty if none is being made."""
        return self._bounded.hanging

    def __call__(self, backend: Backend[Any], node: Node) -> Published:
        """What ``backend`` publishes for ``node``.

        :raises PluginError: it fails, answers nonsense, or has not come back in time.
        """

        def publish() -> Published:
            with exclusive(backend, "publish"):
                return backend.publish(node)

        return _checked_published(backend, self._bounded(backend.name, "publish", publish))


class _Call(threading.Thread):
    """One call of a plugin's."""

    def __init__(self, plugin: str, what: str, function: Callable[[], Any], kind: str) -> None:
        super().__init__(name=f"pyflannel-{what}-{plugin}", daemon=True)
        self.under_way = PluginCall(plugin, what, time.monotonic(), kind)
        self.function = function
        self.answer: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.answer = guarded(self.under_way.plugin, self.under_way.what, self.function, self.under_way.kind)
        except BaseException as error:  # passed on to who asked
            self.error = error


def _checked_published(backend: Backend[Any], answer: Any) -> Published:
    if not isinstance(answer, Published):
        raise PluginError(f"backend {backend.name!r} published {answered(answer)}, which is no Published")
    try:
        size = len(json.dumps([answer.data, answer.v6_data], allow_nan=False))
    except Exception as error:  # what it goes through may be of classes of the plugin's own
        raise PluginError(f"backend {backend.name!r} published what is not JSON: {reason(error)}") from error
    if size > LARGEST_PUBLISHED:
        raise PluginError(
            f"backend {backend.name!r} published {size} characters of JSON: a lease has room for {LARGEST_PUBLISHED}"
        )
    return answer
