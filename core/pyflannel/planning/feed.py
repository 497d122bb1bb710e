"""Feeding a backend's own data plane: what each peer should be told against what it was told.

Level-triggered like everything else: :meth:`Feed.tend` compares the overlay with what the data plane was told and tells
it the difference, removals first. What is told is kept by subnets and not by lease: two leases with the same usable
subnets are one entry of the data plane's table, and have one owner. A peer that the data plane does not take is tried
again by itself, with growing pauses, while the others go on; a data plane that can't be started, or that says by
raising from ``check`` that it is dead, is stopped and started again, and told everything anew.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from pyflannel.backend import Backend, DataPlane, Lease, LeaseAttributes, Node, Subnets
from pyflannel.errors import MalformedError, PluginError, PyflannelError
from pyflannel.planning.guard import guarded
from pyflannel.planning.overlay import Overlay, Peer
from pyflannel.small.guarded import answered
from pyflannel.small.retry import Backoff

__all__ = ["Feed", "Peers", "Share"]

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_INTERVAL: Final = 1.0
"""Seconds between two checks of a data plane."""

OUTAGE_AFTER: Final = 5.0
"""Seconds for which a data plane may serve nobody, as while a process of it starts, before it is said."""

FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 15.0
"""The first and the longest pause in seconds until a start, or a peer that was not taken, is tried again."""

AT_ONCE: Final = 2000
"""Peers that are looked at, and told, in one call of :meth:`Feed.tend`; the others' turn comes with the next call,
which is due."""


_AS_TOLD: Final = Lease(Subnets(IPv4Network("0.0.0.0/32")), LeaseAttributes())
"""Stands for a lease that the data plane was told of in this very form."""


class Peers(Protocol):
    """What a feed is told from: an overlay, or a share of one."""

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Lease key to peer."""

    def lease(self, key: str) -> Lease | None:
        """A peer's lease as the data plane should be told; ``None`` if it should not."""

    def drain_touched(self) -> set[str]:
        """The keys of leases that may be another thing than at the last call."""


class Share:
    """An overlay's peers as one of its data planes should be told of them.

    :param lease: a peer's lease as it is for that one.
    """

    def __init__(self, overlay: Overlay, lease: Callable[[Lease], Lease | None]) -> None:
        self._overlay, self._lease = overlay, lease
        self._touched: set[str] = set()

    @property
    def peers(self) -> Mapping[str, Peer]:
        """All of the overlay's; which of them this data plane serves is :meth:`lease`'s to say."""
        return self._overlay.peers

    def lease(self, key: str) -> Lease | None:
        """A peer's lease as this data plane should be told; ``None`` if it should not."""
        lease = self._overlay.lease(key)
        return None if lease is None else self._lease(lease)

    def touch(self, keys: set[str]) -> None:
        """What :meth:`Overlay.drain_touched` has told."""
        self._touched |= keys

    def drain_touched(self) -> set[str]:
        """What was touched since the last call."""
        touched, self._touched = self._touched, set()
        return touched


@dataclass(slots=True)
class _Refused:
    """A peer that the data plane does not take or let go, and when it is tried again. ``claims`` are the subnets that
    it shall have: until it has, they stay as the data plane was told last."""

    reason: str
    claims: Subnets | None
    backoff: Backoff
    due: float


class Feed:
    """One backend's data plane, if it has one, for as long as backend and node stay what they are.

    :param rng: for the pauses between retries.
    """

    def __init__(self, backend: Backend[Any], node: Node, rng: random.Random | None = None) -> None:
        self.backend = backend
        self.node = node
        self.plane: DataPlane | None = None
        self.due = 0.0
        """When :meth:`tend` wants to be called again, on the clock of its ``now``."""
        self._rng = rng or random.Random()  # noqa: S311 - pauses need no secrecy
        self._backoff = Backoff(self._rng, FIRST_RETRY, LAST_RETRY)
        self._troubles: dict[str, str] = {}
        """What goes wrong with the data plane as a whole, by the call that fails."""
        self._reported: Mapping[str, str] = {}
        self._told: dict[str, tuple[str, Subnets]] = {}
        """Lease key to the lease's text and subnets, as the data plane was told."""
        self._owners: dict[Subnets, str] = {}
        """The same by subnets: which lease has them."""
        self._refused: dict[str, _Refused] = {}
        self._dirty: set[str] = set()
        self._superseded: set[str] = set()
        """Leases that are gone, whose subnets another one shall have and has not yet."""
        self._overlay: Peers | None = None
        self._started = False
        self._complete = False
        """Whether everything was told once: only then the data plane may forget what it knew besides."""
        self._check_due = 0.0
        self._checked = False
        """Whether it was checked since it was told something last."""
        self._out_since: float | None = None
        self.outage = ""
        """Why the data plane has served nobody for a while, if that has one reason for all peers."""

    @property
    def trouble(self) -> str:
        """Why there is no sound data plane although the backend has one; empty if all is well."""
        return next(iter(self._troubles.values()), "")

    @property
    def settled(self) -> bool:
        """Whether the data plane, if there is one, knows all peers and has said since that it serves them."""
        if not self._started or self._troubles or self._dirty or self._refused or self._reported:
            return False
        return self.plane is None or self._checked

    @property
    def problems(self) -> Mapping[str, str]:
        """Lease key to reason for the peers that the data plane can't serve."""
        return {**self._reported, **{key: refused.reason for key, refused in self._refused.items()}}

    def serves(self, backend: Backend[Any], node: Node) -> bool:
        """Whether this is the right data plane for a backend and node, so that it can go on."""
        return type(backend) is type(self.backend) and (backend.options, node) == (self.backend.options, self.node)

    def tend(self, overlay: Peers, now: float) -> None:
        """Start the data plane if it is not running, tell it what has changed, and look after it once a second.

        :param overlay: with all leases of the store in it: whoever is missing is forgotten.
        """
        self._note_changes(overlay)
        if not self._started and now >= self.due:
            self._start(now)
        if self.plane is None:
            if self._started:
                self._dirty.clear()
            return
        if self._tell(self.plane, overlay, now):
            self._check_due = now  # or they would count as served for a second, whatever the data plane says
        if now >= self._check_due and (self._complete or not self._dirty):
            self._complete = True
            self._check_due = now + CHECK_INTERVAL
            if "renew" in self._troubles:
                self.renew()
            if "counters" in self._troubles:
                self.counters()
            if "describe" in self._troubles:
                self.descriptions()
            self._check(self.plane, now)
        if self.plane is not None:
            waiting = [refused.due for refused in self._refused.values()]
            self.due = now if self._dirty else min([self._check_due, *waiting])

    def _note_changes(self, overlay: Peers) -> None:
        touched = overlay.drain_touched()
        if overlay is self._overlay:
            self._dirty |= touched
        else:
            self._dirty = {*self._told, *self._refused, *overlay.peers}
            self._overlay = overlay

    # The data plane as a whole

    def _start(self, now: float) -> None:
        try:
            self.plane = self._call("start", self._started_plane)
        except PyflannelError:
            self.due = now + self._backoff.next()
            return
        self._started = True
        self._troubles.clear()
        self._check_due = now
        if self.plane is None:
            self.due = float("inf")

    def _started_plane(self) -> DataPlane | None:
        plane: object = self.backend.start(self.node)
        if plane is not None and not isinstance(plane, DataPlane):
            raise PluginError(f"backend {self.backend.name!r} started {answered(plane)}, which is no DataPlane")
        return plane

    def _check(self, plane: DataPlane, now: float) -> None:
        try:
            self._reported = self._by_lease(self._call("check", lambda: _texts(plane.check())))
            self._checked = True
            self._note_outage(now)
            self._backoff.reset()
        except PyflannelError:  # it is dead, and says so
            self.stop()
            self.plane, self._started, self._complete = None, False, False
            self._reported, self._told, self._owners, self._refused, self._superseded = {}, {}, {}, {}, set()
            self._overlay = None
            self._note_outage(now)
            self.due = now + self._backoff.next()

    def _note_outage(self, now: float) -> None:
        reasons = {self._reported.get(key, "") for key in self._told}
        reason = reasons.pop() if len(reasons) == 1 else ""
        if not reason:
            self._out_since = None
        elif self._out_since is None:
            self._out_since = now
        lasts = self._out_since is not None and now - self._out_since >= OUTAGE_AFTER
        self.outage = reason if lasts else ""

    def _by_lease(self, told: Mapping[str, str]) -> Mapping[str, str]:
        """What is told of peers, under their leases' keys: a data plane knows only the subnets in use."""
        return {key if key in self._told else self._owner(key): text for key, text in told.items()}

    def _owner(self, key: str) -> str:
        try:
            return self._owners.get(Subnets.from_key(key), key)
        except MalformedError:
            return key

    # What it is told

    def _tell(self, plane: DataPlane, overlay: Peers, now: float) -> bool:
        """Tell the data plane what it should know; returns whether there were peers to reach among that."""
        due = {key for key, refused in self._refused.items() if refused.due <= now}
        now_due = set(islice(self._dirty, AT_ONCE))
        keys = now_due | due | self._superseded
        self._dirty, self._superseded = self._dirty - now_due, set()
        wanted: dict[str, Lease] = {}
        gone: list[str] = []
        for key in keys:
            lease, told = self._wanted(overlay, key), self._told.get(key)
            if lease is not None and lease is not _AS_TOLD:
                wanted[key] = lease
            elif lease is _AS_TOLD or told is None:
                self._refused.pop(key, None)
            else:
                gone.append(key)
        claimed = {lease.subnets for lease in wanted.values()}
        for key, refused in self._refused.items():
            if refused.claims is not None and key not in gone:  # what is gone claims nothing any more
                claimed.add(refused.claims)
        for key in sorted(gone):
            self._remove(plane, key, now, claimed)
        for key in sorted(wanted):
            self._put(plane, key, overlay.peers[key].value, wanted[key], now)
        return bool(wanted)

    def _wanted(self, overlay: Peers, key: str) -> Lease | None:
        """What the data plane should be told of a lease, :data:`_AS_TOLD` if it was; ``None`` if nothing."""
        peer, told = overlay.peers.get(key), self._told.get(key)
        if peer is None or peer.reason:
            return None
        return _AS_TOLD if told is not None and told[0] == peer.value else overlay.lease(key)

    def _remove(self, plane: DataPlane, key: str, now: float, claimed: set[Subnets]) -> None:
        """Forget a peer; if another one takes over its subnets, putting that one is all it takes."""
        subnets = self._told[key][1]
        if subnets in claimed:
            self._refused.pop(key, None)  # its turn comes with whoever takes over
            self._superseded.add(key)
            return
        try:
            self._call("remove", lambda: plane.remove(subnets), key)
        except PyflannelError as error:
            self._refuse(key, error, None, now)
            return
        self._forget(key)

    def _put(self, plane: DataPlane, key: str, value: str, lease: Lease, now: float) -> None:
        self._checked = False
        try:
            self._call("put", lambda: plane.put(lease), key)
        except PyflannelError as error:
            told = self._told.get(key)
            if told is not None:  # it may have taken the news for all that: told anew, even what it was told before
                self._told[key] = ("", told[1])
            self._refuse(key, error, lease.subnets, now)
            return
        self._forget(self._owners.get(lease.subnets, key))
        self._forget(key)
        self._told[key], self._owners[lease.subnets] = (value, lease.subnets), key

    def _forget(self, key: str) -> None:
        self._refused.pop(key, None)
        told = self._told.pop(key, None)
        if told is not None and self._owners.get(told[1]) == key:
            del self._owners[told[1]]

    def _refuse(self, key: str, error: PyflannelError, claims: Subnets | None, now: float) -> None:
        before = self._refused.get(key)
        backoff = before.backoff if before is not None else Backoff(self._rng, FIRST_RETRY, LAST_RETRY)
        self._refused[key] = _Refused(str(error), claims, backoff, now + backoff.next())

    def _call(self, what: str, call: Callable[[], T], key: str = "") -> T:
        """A call of the backend's; one that is not about the peer ``key`` alone is trouble while it fails."""
        try:
            answer = guarded(self.backend.name, what if what == "start" else f"{what} of its data plane", call)
        except PyflannelError as error:
            if not key:
                whose = "" if isinstance(error, PluginError) else f"the data plane of backend {self.backend.name!r}: "
                self._troubles[what] = f"{whose}{error}"
            raise
        if not key:
            self._troubles.pop(what, None)
        return answer

    # What others ask of it

    def counters(self) -> Mapping[str, int]:
        """The data plane's totals."""
        plane = self.plane
        try:
            return {} if plane is None else self._call("counters", lambda: _numbers(plane.counters()))
        except PyflannelError:
            return {}  # the rest of the status document does not depend on it; the trouble is noted

    def descriptions(self) -> Mapping[str, str]:
        """What the data plane tells of peers, by lease key."""
        plane = self.plane
        try:
            told = {} if plane is None else self._call("describe", lambda: _texts(plane.describe()))
        except PyflannelError:
            return {}  # as above
        return self._by_lease(told)

    def renew(self) -> None:
        """Tell the data plane that an action has changed what the backend says; with every check until it hears it."""
        plane = self.plane
        if plane is not None:
            try:
                self._call("renew", lambda: plane.renew())
            except PyflannelError as error:
                log.error("%s", error)

    def stop(self) -> None:
        """The daemon, or this use of the data plane, ends."""
        plane = self.plane
        if plane is not None:
            self._let_go("stop", lambda: plane.stop())

    def end(self) -> None:
        """The backend is not used any more."""
        plane = self.plane
        if plane is not None:
            self._let_go("end", lambda: plane.end())

    def _let_go(self, what: str, call: Callable[[], None]) -> None:
        try:
            guarded(self.backend.name, f"{what} of its data plane", call)
        except PyflannelError as error:
            log.error("%s", error)


def _texts(told: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key): str(text) for key, text in told.items()}


def _numbers(told: Mapping[Any, Any]) -> dict[str, int]:
    """What is counted; status and metrics are made of it, and would fail as a whole for something else.

    :raises TypeError: it is no numbers.
    """
    for name, count in told.items():
        if type(count) is not int:
            raise TypeError(f"{name!s} is of type {type(count).__name__}: must be a whole number")
    return {str(name): count for name, count in told.items()}
