"""The tracker: what should be, what is, and the writes that turn one into the other.

It is level-triggered. Whatever happens (a changed plan, a notification, a lost message, a failed write) only marks
keys dirty; :meth:`Tracker.reconcile` compares desired with actual under these keys and writes the difference. Nothing
remembers *why* a key is dirty, so a deleted route, a re-created device and a first start are one case.

* The kernel is taken to hold what is wanted, but for what is noted: so much is kept as differs, and nothing of what is
  as it should be.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from enum import Enum

from pyflannel.errors import KernelError
from pyflannel.kernel.model import KernelObject, Key, Kind, Route, Sysctl
from pyflannel.kernel.packed import count_of, key_of, parts, picked, plans_of, unpack
from pyflannel.kernel.port import KernelPort, Notice, Scope, Write, tables, waits
from pyflannel.kernel.refusal import not_kept
from pyflannel.network.lease import IPNetwork
from pyflannel.small.retry import Backoff

__all__ = ["Failure", "ObjectState", "Reconciled", "Tracked", "Tracker", "stands_on"]

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
class Tracked:
    """One wanted object, its state, the time of that state's beginning, and the reason of a failure."""

    item: KernelObject
    state: ObjectState
    since: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Reconciled:
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
        self._noted: dict[Key, KernelObject | None] = {}
        """What is there under the keys where that differs from what is wanted, or may: ``None`` for nothing. Under all
        other keys there is what is wanted."""
        self._unseen = True
        """Whether the kernel was not looked at since there is anything wanted."""
        self._lacking: list[bytes] = []
        """Packed plans of which nothing is there, from a first look on until they are written or noted: there are none
        between two reconciliations."""
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
            self._unseen = self._resync = True
            self._stamp(desired)
            return
        was: dict[Key, KernelObject | None] = {k: item for k, item in before.items() if desired.get(k) != item}
        was.update(dict.fromkeys(key for key in desired if key not in before))
        self.changed(was)

    def changed(self, was: Mapping[Key, KernelObject | None]) -> None:
        """The desired state is another one under these keys.

        :param was: with what was desired before, ``None`` for nothing.
        """
        for key, item in was.items():
            self._noted.setdefault(key, item)
        self._drifted -= was.keys()
        self._forgive(was)
        self._stamp(was)
        if not _SCOPE.isdisjoint({key[0] for key in was}):
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

    def _there(self, key: Key) -> KernelObject | None:
        """What is there, as far as we know."""
        return self._noted[key] if key in self._noted else self._desired.get(key)

    def _see(self, key: Key, item: KernelObject | None) -> None:
        wanted = self._desired.get(key)
        was = self._noted.get(key, wanted)
        if item != wanted or key in self._noted:
            self._noted[key] = item
        if was != item and (item is None or key not in self._attempted):
            self._failures.pop(key, None)
        if item != wanted and wanted is not None and was == wanted and not _may_lack(wanted):
            self._drifted.add(key)
            self._stamp((key,))

    def _dump(self) -> None:
        desired, noted = self._desired, self._noted
        self._scope = Scope.of(_at_large(desired), self.spaces)
        first = (self._unseen and self._settled_at is None) or bool(self._lacking)
        lacking: list[bytes] = []
        found = self.port.differing(self._scope, desired, lacking if first else None)
        for key in [key for key in found if key[0] is Kind.SYSCTL and found[key] is None]:
            if _may_lack(desired[key]):
                del found[key]
        if self._unseen:
            self._noted, self._unseen, self._lacking = found, False, lacking
        else:
            if lacking != self._lacking:
                self._note_lacking()
                found.update(_none_of(lacking))
            for key in [key for key in noted if key not in found]:
                self._see(key, desired.get(key))
            for key, item in found.items():
                if item is not None or key not in noted or noted[key] is not None:  # a start has thousands that lack
                    self._see(key, item)
        self._resync = False

    # The difference

    def reconcile(self) -> Reconciled:
        """Write what differs. Writes nothing when nothing does.

        :raises KernelError: the kernel can't be read at all; everything stays as dirty as it was.
        """
        if self._resync:
            self._dump()
        self._attempted, self._stirred = set(), set()
        links = rest = Reconciled()
        if self._noted or self._lacking:
            try:
                links = self._write_links()
                rest, _ = self._write(links=False)
            finally:
                self._note_lacking()
            if not self._noted:
                self._noted = {}  # one that was emptied keeps the size that it once had
        if self._settled_at is None and self._desired:
            self._settled_at = self._clock()
        return Reconciled(
            links.written + rest.written,
            links.repaired + rest.repaired,
            len(self.failures),
            links.refused + rest.refused,
        )

    def _write_links(self) -> Reconciled:
        """Write links, dump all that is on them now, and see whether the kernel has kept them as they were written."""
        before = dict(self._failures)
        outcome, written = self._write(links=True)
        if not written:
            return outcome
        self._attempted |= written
        drifted = set(self._drifted)
        self._dump()
        made = {str(key[1]) for key in written}
        # What a device had that was made anew went with it: that was our own doing.
        self._drifted -= {key for key in self._drifted - drifted if stands_on(self._desired.get(key), made)}
        kept: dict[Key, KernelError] = {}
        for key in written:
            wanted, item = self._desired.get(key), self._there(key)
            if wanted is not None and item is not None and item != wanted:
                kept[key] = not_kept(wanted, item)
                self._drifted.discard(key)
                if key in before:
                    self._failures[key] = before[key]
            else:
                self._retry_soon(str(key[1]))
        self._fail(kept, self._clock())
        repaired = tuple(write for write in outcome.repaired if write.key not in kept)
        return Reconciled(outcome.written - len(kept), repaired, refused=outcome.refused + len(kept))

    def _note_lacking(self) -> None:
        """Note what lacks key by key."""
        self._noted.update(_none_of(self._lacking))
        self._lacking = []

    def _fill(self, writes: list[Write]) -> Mapping[Key, KernelError]:
        """As :meth:`_apply`, and make all that is lacking."""
        plans, self._lacking = self._lacking, []
        try:
            refused = self.port.fill(writes, plans)
        except KernelError:
            self._lacking = plans
            raise
        except Exception:  # whatever an encoder raises: found out one by one
            refused = self._apply([*writes, *(Write(None, item) for plan in plans for item in unpack(plan))])
        of_writes = {write.key for write in writes}
        self._noted.update(dict.fromkeys(key for key in refused if key not in of_writes))
        return refused

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

    def _write(self, links: bool) -> tuple[Reconciled, set[Key]]:
        """Write what differs, links or all else; also returns the keys of what was written."""
        now = self._clock()
        if not links and self._lacking and not self._only_creates():
            self._note_lacking()
        writes = dict(self._pending_writes(now, links))
        count = 0 if links else sum(map(count_of, self._lacking))
        if not writes and not count:
            return Reconciled(), set()
        refused = (self._fill if count else self._apply)(list(writes.values()))
        self._stirred |= {str(key[1]) for key in writes if key[0] in _STIRRING}
        self._fail(refused, now)
        done = {key: write for key, write in writes.items() if key not in refused} if refused else writes
        for key in done:
            del self._noted[key]
        keys = set(done)
        self._forgive(keys)
        self._stamp(keys)
        repaired = tuple(write for key, write in done.items() if key in self._drifted) if self._drifted else ()
        self._drifted -= keys
        return Reconciled(len(writes) + count - len(refused), repaired, refused=len(refused)), keys

    def _only_creates(self) -> bool:
        """Whether nothing has to be deleted or replaced, and all links are there."""
        there = (key for key, item in self._noted.items() if item is not None and key[0] is not Kind.SYSCTL)
        return next(there, None) is None and not self._lacking_links()

    def _pending_writes(self, now: float, links: bool) -> Iterator[tuple[Key, Write]]:
        failures, lacking = self._failures, self._lacking_links()
        noted = {key: there for key, there in self._noted.items() if (key[0] is Kind.LINK) is links}
        desired = picked(self._desired, noted.keys())
        settled = []
        going: dict[Key, Route] = {}
        owed: list[KernelObject | None] = []  # what is wanted, not there yet, and not written now
        for key, old in noted.items():
            new = desired.get(key)
            if old == new:
                settled.append(key)
            elif new is None and (not self.sweep or key[0] in _LASTING):
                failures.pop(key, None)  # it is not refused now, it waits: nothing is due
            elif _link(new) in lacking:
                failures.pop(key, None)
                owed.append(new if old is None else None)
            elif (failure := failures.get(key)) is not None and failure.retry_at > now:
                owed.append(new if old is None else None)
            elif new is None and isinstance(old, Route):
                going[key] = old
            else:
                yield key, Write(old, new)
        followed = tables(owed)
        for key, route in going.items():
            if waits(route, followed):
                failures.pop(key, None)  # its turn comes with the one that takes its place
            else:
                yield key, Write(route, None)
        for key in settled:
            del self._noted[key]
        self._drifted.difference_update(settled)
        self._forgive(settled)

    def _lacking_links(self) -> frozenset[object]:
        """The names of links of ours that are not there yet, and that what is on them has to wait for."""
        noted = self._noted.items()
        return frozenset(k[1] for k, item in noted if item is None and k[0] is Kind.LINK and k in self._desired)

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
        if not self._noted and not self._unseen:
            return True
        return all(not self._unseen and self._there(key) == self._desired.get(key) for key in keys)

    def status(self) -> Iterator[Tracked]:
        """Every wanted object and where it stands."""
        for key, item in self._desired.items():
            failure = self._failures.get(key)
            if failure is not None and failure.attempts > 1:
                yield Tracked(item, ObjectState.FAILED, failure.since, str(failure.error))
            else:
                done = not self._unseen and (key not in self._noted or self._noted[key] == item)
                state = ObjectState.DONE if done else ObjectState.PENDING
                yield Tracked(item, state, self._since.get(key, self._settled_at or self._clock()))


def stands_on(item: KernelObject | None, links: Set[str]) -> bool:
    """Whether an object goes with one of these links."""
    if isinstance(item, Sysctl):
        return not links.isdisjoint(item.path.split("/"))
    return getattr(item, "link", None) in links


def _at_large(wanted: Mapping[Key, KernelObject]) -> Iterator[KernelObject]:
    """What is wanted, without the thousands that say nothing about where to look."""
    for plan in plans_of(wanted):
        if not isinstance(plan, bytes):
            yield from plan


def _none_of(plans: Iterable[bytes]) -> dict[Key, KernelObject | None]:
    """The keys of packed plans, for nothing of which is there."""
    return {key_of(part): None for plan in plans for part in parts(plan)}


def _may_lack(item: KernelObject) -> bool:
    """Whether the kernel may do without ``item``; it appears later where its link does."""
    return type(item) is Sysctl and item.optional


def _link(item: KernelObject | None) -> str | None:
    """The link that ``item`` is on, if it is on one."""
    return getattr(item, "link", None)
