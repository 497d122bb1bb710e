"""The tracker: what should be, what is, and the writes that turn one into the other.

It is level-triggered. Whatever happens (a changed plan, a notification, a lost message, a failed write) only marks
keys dirty; :meth:`Tracker.reconcile` compares desired with actual under these keys and writes the difference. Nothing
remembers *why* a key is dirty, so a deleted route, a re-created device and a first start are one case.

* Links go first and alone: when one was written, everything on it may be gone, so the kernel is dumped again before
  the rest is compared.
* An object that the kernel refuses stays dirty by itself and is tried again with growing pauses; the others go on. The
  first refusal is not believed: mostly the kernel has changed and its notification is still on the way, so everything
  is compared with a fresh dump at once. What else changes ends a pause early; what our own attempt left behind does
  not. A device that the kernel takes and keeps in another way than it was asked to counts as refused.
* Objects that nobody wants are deleted only once sweeping is allowed, that is after the first complete snapshot.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from pyflannel.errors import KernelError
from pyflannel.kernel.model import KernelObject, Key, Kind, Sysctl
from pyflannel.kernel.port import KernelPort, Notice, Scope, Write
from pyflannel.kernel.refusal import not_kept
from pyflannel.network.lease import IPNetwork
from pyflannel.small.retry import Backoff

__all__ = ["Failure", "ObjectState", "ObjectStatus", "Outcome", "Tracker"]

FIRST_RETRY = 1.0
"""Seconds until a refused object is tried again, at most; doubles with every refusal."""

LAST_RETRY = 60.0
"""The longest such pause, in seconds."""

_BELIEVED = 2
"""The refusal that is believed, counted from 1."""

_STIRRING = frozenset({Kind.LINK, Kind.ADDRESS})
"""What the port tells of as if others had written it: it names the link."""

_SCOPE = frozenset({Kind.LINK, Kind.SYSCTL, Kind.WIREGUARD, Kind.QDISC})
"""What the port is told to look at."""

_LASTING = frozenset({Kind.SYSCTL, Kind.WIREGUARD})
"""What can't be deleted."""


class ObjectState(str, Enum):
    """Where one object stands."""

    DONE = "done"
    PENDING = "pending"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Failure:
    """A refused write: the reason, since when it has been refused, how often, when last, and when it is tried again."""

    error: KernelError
    since: float
    attempts: int
    tried_at: float
    retry_at: float


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """One wanted object, its state, the time of that state's beginning, and the reason of a failure."""

    item: KernelObject
    state: ObjectState
    since: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one reconciliation did: how many writes the kernel took, and those that put right what others changed.

    ``refused`` counts the writes that it did not take, ``failed`` the objects that it has refused for long.
    """

    written: int = 0
    repaired: tuple[Write, ...] = ()
    failed: int = 0
    refused: int = 0


class Tracker:
    """Keeps one kernel as it should be. ``clock`` gives seconds on any scale that never jumps backwards."""

    def __init__(self, port: KernelPort, clock: Callable[[], float], rng: random.Random | None = None) -> None:
        self.port = port
        self.sweep = False
        """Whether objects of ours that nobody wants may be deleted. Set after the first complete snapshot."""
        self.spaces: tuple[IPNetwork, ...] = ()
        """The address ranges in which others' routes are of interest, see :meth:`watch`."""
        self._clock = clock
        self._desired: Mapping[Key, KernelObject] = {}
        self._actual: dict[Key, KernelObject] = {}
        self._dirty: set[Key] = set()
        self._drifted: set[Key] = set()
        self._failures: dict[Key, Failure] = {}
        self._attempted: set[Key] = set()
        """What was refused in the last reconciliation: what is seen there next is what our attempt left."""
        self._stirred: set[str] = set()
        """The links that the last reconciliation wrote to: what is told of them next is our own doing."""
        self._backoff = Backoff(rng or random.Random(), FIRST_RETRY, LAST_RETRY)  # noqa: S311 - no secret
        self._since: dict[Key, float] = {}
        self._settled_at: float | None = None
        self._scope = Scope()
        self._resync = True

    # What should be

    def follow(self, desired: Mapping[Key, KernelObject]) -> None:
        """Make the kernel hold ``desired``, now and as it changes: say :meth:`changed` whenever it has.

        Keys under which it agrees with what was desired before don't become dirty.
        """
        before, self._desired = self._desired, desired
        if not before:
            self.changed(desired)
            return
        self.changed(key for key in before if key not in desired)
        self.changed(key for key, item in desired.items() if before.get(key) != item)

    def changed(self, keys: Iterable[Key]) -> None:
        """The desired state is another one under ``keys``."""
        keys = set(keys)
        self._dirty |= keys
        self._drifted -= keys
        self._forgive(keys)
        self._stamp(keys)
        if not _SCOPE.isdisjoint({key[0] for key in keys}):
            self._resync = True  # the port's scope changes with these

    def _forgive(self, keys: Iterable[Key]) -> None:
        """Forget what was refused under ``keys``."""
        if self._failures:
            for key in keys:
                self._failures.pop(key, None)

    def _stamp(self, keys: Iterable[Key]) -> None:
        """Note that objects' states change now. What the first reconciliation settles has one common stamp."""
        if self._settled_at is None:
            return
        now = self._clock()
        for key in keys:
            if key in self._desired:
                self._since[key] = now
            else:
                self._since.pop(key, None)

    def watch(self, spaces: tuple[IPNetwork, ...]) -> None:
        """Have the port look at others' routes in these address ranges, from the next dump on."""
        if spaces != self.spaces:
            self.spaces = spaces
            self._resync = True  # the port's scope changes with these

    # What is

    def observe(self, notice: Notice) -> None:
        """Take in what the kernel has told."""
        self._resync |= notice.resync
        if notice.interfaces - self._stirred:
            self._retry_soon()
        for key, item in notice.changes.items():
            self._see(key, item)
            if self.sweep and item is not None and key not in self._desired:
                self._drifted.add(key)

    def _retry_soon(self, link: str | None = None) -> None:
        """What was refused may be possible now: something foreign that was in the way has changed, or its link has.

        At most once in :data:`FIRST_RETRY`, for the change may come of our trying.
        """
        for key, failure in self._failures.items():
            if link is None or getattr(self._desired.get(key), "link", None) == link:
                at = self._clock() if failure.attempts <= _BELIEVED else failure.tried_at + FIRST_RETRY
                self._failures[key] = replace(failure, retry_at=min(failure.retry_at, at))

    def request_resync(self) -> None:
        """Have everything compared with a fresh dump at the next reconciliation."""
        self._resync = True

    def _see(self, key: Key, item: KernelObject | None) -> None:
        wanted = self._desired.get(key)
        if item is None:
            was = self._actual.pop(key, None)
        else:
            was = self._actual.get(key)
            self._actual[key] = wanted if wanted is not None and wanted == item else item
        if was != item and (item is None or key not in self._attempted):
            self._failures.pop(key, None)
        if item != wanted:
            self._dirty.add(key)
            if wanted is not None and was == wanted and not _may_lack(wanted):
                self._drifted.add(key)
                self._stamp((key,))

    def _dump(self) -> None:
        self._scope = Scope.of(self._desired.values(), self.spaces)
        found = self.port.dump(self._scope, self._desired)
        take, actual, dirty = found.pop, self._actual, self._dirty
        here = 0
        for key, wanted in self._desired.items():
            item = take(key, None)
            if item is not None:
                here += 1
                if item is not wanted or actual.get(key) is not wanted:  # nearly all are as they were
                    self._see(key, item)
            elif _may_lack(wanted):
                here += 1
                actual[key] = wanted
            else:
                if key in actual:
                    self._see(key, None)
                dirty.add(key)
        if len(self._actual) > here:  # we had seen others, too
            for key in [key for key in self._actual if key not in self._desired and key not in found]:
                self._see(key, None)
        for key, item in found.items():
            self._see(key, item)
        self._resync = False

    # The difference

    def reconcile(self) -> Outcome:
        """Write what differs. Writes nothing when nothing does.

        :raises KernelError: the kernel can't be read at all; everything stays as dirty as it was.
        """
        if self._resync:
            self._dump()
        self._attempted, self._stirred = set(), set()
        links = rest = Outcome()
        if self._dirty:
            links = self._write_links()
            rest, _ = self._write(lambda key: key[0] is not Kind.LINK)
            if not self._dirty:
                self._dirty = set()  # an emptied set keeps the size that it once had
        if self._settled_at is None and self._desired:
            self._settled_at = self._clock()
        return Outcome(
            links.written + rest.written,
            links.repaired + rest.repaired,
            len(self.failures),
            links.refused + rest.refused,
        )

    def _write_links(self) -> Outcome:
        """Write links, dump all that is on them now, and see whether the kernel has kept them as they were written."""
        before = dict(self._failures)
        outcome, written = self._write(lambda key: key[0] is Kind.LINK)
        if not written:
            return outcome
        self._attempted |= written
        drifted = set(self._drifted)
        self._dump()
        made = {str(key[1]) for key in written}
        # What a device had that was made anew went with it: that was our own doing.
        self._drifted -= {key for key in self._drifted - drifted if _stands_on(self._desired.get(key), made)}
        kept: dict[Key, KernelError] = {}
        for key in written:
            wanted, item = self._desired.get(key), self._actual.get(key)
            if wanted is not None and item is not None and item != wanted:
                kept[key] = not_kept(wanted, item)
                self._drifted.discard(key)
                if key in before:
                    self._failures[key] = before[key]
            else:
                self._retry_soon(str(key[1]))
        self._fail(kept, self._clock())
        repaired = tuple(write for write in outcome.repaired if write.key not in kept)
        return Outcome(outcome.written - len(kept), repaired, refused=outcome.refused + len(kept))

    def _apply(self, writes: list[Write]) -> Mapping[Key, KernelError]:
        """What the port refuses of these. One that it can't even encode is one refused write, and ends nothing else."""
        try:
            return self.port.apply(writes)
        except KernelError:
            raise
        except Exception as error:  # whatever an encoder raises
            if len(writes) == 1:
                reason = f"{type(error).__name__}: {error}"
                return {writes[0].key: KernelError(f"can't encode {writes[0].new or writes[0].old}: {reason}")}
        half = len(writes) // 2  # whatever was done of it can be repeated
        return {**self._apply(writes[:half]), **self._apply(writes[half:])}

    def _write(self, selected: Callable[[Key], bool]) -> tuple[Outcome, set[Key]]:
        """Write what differs among the selected keys; also returns the keys of what was written."""
        now = self._clock()
        writes = dict(self._pending_writes(now, selected))
        if not writes:
            return Outcome(), set()
        refused = self._apply(list(writes.values()))
        self._stirred |= {str(key[1]) for key in writes if key[0] in _STIRRING}
        self._fail(refused, now)
        done = {key: write for key, write in writes.items() if key not in refused} if refused else writes
        for key, write in done.items():
            if write.new is None:
                self._actual.pop(key, None)
            else:
                self._actual[key] = write.new
        keys = set(done)
        self._dirty -= keys
        self._forgive(keys)
        self._stamp(keys)
        repaired = tuple(write for key, write in done.items() if key in self._drifted) if self._drifted else ()
        self._drifted -= keys
        return Outcome(len(done), repaired, refused=len(refused)), keys

    def _pending_writes(self, now: float, selected: Callable[[Key], bool]) -> Iterator[tuple[Key, Write]]:
        failures, lacking = self._failures, self._lacking_links()
        settled = []
        for key in self._dirty:
            if not selected(key):
                continue
            old, new = self._actual.get(key), self._desired.get(key)
            if old is new or (old is not None and old == new):
                settled.append(key)
            elif (new is None and (not self.sweep or key[0] in _LASTING)) or _link(new) in lacking:
                failures.pop(key, None)  # it is not refused now, it waits: nothing is due
            elif (failure := failures.get(key)) is None or failure.retry_at <= now:
                yield key, Write(old, new)
        self._dirty.difference_update(settled)
        self._drifted.difference_update(settled)
        self._forgive(settled)

    def _lacking_links(self) -> frozenset[object]:
        """The names of links of ours that are not there yet, and that what is on them has to wait for."""
        desired, actual = self._desired, self._actual
        return frozenset(key[1] for key in self._dirty if key[0] is Kind.LINK and key in desired and key not in actual)

    def _fail(self, refused: Mapping[Key, KernelError], now: float) -> None:
        """Note what was refused. Those that fail together are tried again together."""
        pauses: dict[int, float] = {1: 0.0}
        for key, error in refused.items():
            before = self._failures.get(key)
            attempts = before.attempts + 1 if before else 1
            if attempts < _BELIEVED:
                self._resync = True
            if attempts not in pauses:
                self._backoff.attempts = attempts - _BELIEVED
                pauses[attempts] = self._backoff.next()
            since = before.since if before else now
            self._failures[key] = Failure(error, since, attempts, now, now + pauses[attempts])
            self._dirty.add(key)
        self._attempted |= refused.keys()

    # For those who watch

    @property
    def retry_at(self) -> float | None:
        """When the next refused object is due, on the clock's scale; ``None`` if there is none."""
        return min((failure.retry_at for failure in self._failures.values()), default=None)

    @property
    def failures(self) -> Mapping[Key, Failure]:
        """What the kernel refuses at present, more than once. May be read from any thread."""
        return {key: failure for key, failure in list(self._failures.items()) if failure.attempts > 1}

    @property
    def link_names(self) -> frozenset[str]:
        """The names of the links that we want, as of the last dump."""
        return self._scope.links

    def in_place(self, keys: Iterable[Key]) -> bool:
        """Whether the kernel holds what we want under all of ``keys``."""
        return all(self._actual.get(key) == self._desired.get(key) for key in keys)

    def status(self) -> Iterator[ObjectStatus]:
        """Every wanted object and where it stands. May be called from any thread."""
        for key, item in list(self._desired.items()):
            failure = self._failures.get(key)
            if failure is not None and failure.attempts > 1:
                yield ObjectStatus(item, ObjectState.FAILED, failure.since, str(failure.error))
            else:
                state = ObjectState.DONE if self._actual.get(key) == item else ObjectState.PENDING
                yield ObjectStatus(item, state, self._since.get(key, self._settled_at or self._clock()))


def _stands_on(item: KernelObject | None, links: set[str]) -> bool:
    """Whether an object goes with one of these links."""
    if isinstance(item, Sysctl):
        return not links.isdisjoint(item.path.split("/"))
    return getattr(item, "link", None) in links


def _may_lack(item: KernelObject) -> bool:
    """Whether the kernel may do without ``item``; it appears later where its link does."""
    return type(item) is Sysctl and item.optional


def _link(item: KernelObject | None) -> str | None:
    """The link that ``item`` is on, if it is on one."""
    return getattr(item, "link", None)
