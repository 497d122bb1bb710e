"""The lease keeper without I/O: gets this node's lease, keeps it, and says what the store tells of everybody else's.

Input and the time go in; what is known now comes out in a :class:`~pyflannel.membership.slot.Slot`, and the calls that
have to be made as frozen values. Somebody else makes them (a thread, or a simulation of a whole cluster) and brings
their results. Of each kind (:class:`Lane`) one call is under way at most.

The machine has *duties*, and each of them is taken care of for itself, so that none waits for another:

* **renew** comes first, always. A lease that we hold is renewed when that is due, whatever else can't go on: a document
  that nobody can follow, an address that is missing, a backend that doesn't answer. Only a lease that is another's now
  is not.
* **join**: take a snapshot, decide from it what our lease is (:func:`~pyflannel.membership.allocation.decide`), make
  that so by compare-and-swap, and begin a *session*. Whatever can't be explained (history gone, our lease gone) ends
  the session, and joining begins again from a snapshot: there is one path to a correct state; start-up, an outage and a
  day of being cut off all take it.
* **announce** tells the store whether this node's overlay carries packets, for those who would start work here.
* **watch**, **publish** and **follow** are a session's: hear of changes, make our lease say what we are, and go over to
  another document or underlay as soon as that is possible. Until then the session goes on with the ones in force. A
  document that all nodes have to follow together is followed only by way of a change
  (:mod:`pyflannel.network.change`); one that merely was written keeps the one in force, and is trouble.

Each duty has a trouble of its own, which is there from its failure until it succeeds, and pauses of its own.

An outage is not the end of a session. The node goes on forwarding with what it knows, and the watch resumes where it
broke off when the store still knows the place. A call that does not come back is named, and after a longer while the
store is given up for a new one of the same kind.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

from pyflannel.backend import Backend, Node, Published
from pyflannel.errors import (
    ConfigError,
    ConflictError,
    HistoryGoneError,
    LeaseError,
    MalformedError,
    PluginError,
    PyflannelError,
    StoreError,
    StoreUnavailableError,
    UnderlayError,
)
from pyflannel.membership.allocation import (
    Adopt,
    ConflictPolicy,
    Contested,
    Existing,
    Fresh,
    Identity,
    allocate,
    decide,
)
from pyflannel.membership.naming import Myself, state_directory
from pyflannel.membership.slot import Generation, LeaseState, Slot
from pyflannel.network.agreement import options_apart, ranges_apart
from pyflannel.network.change import LEASE_KEY, NetworkChange, NodeProgress, Step, Written, in_force, read
from pyflannel.network.document import NetworkConfig, NetworkSeed, with_backend
from pyflannel.network.lease import JSON, IPAddress, Lease, LeaseAttributes, Subnets
from pyflannel.network.marks import NO_MARKS, Marks
from pyflannel.network.underlay import Underlay
from pyflannel.planning.guard import PUBLISH_TIMEOUT
from pyflannel.planning.judging import backend_types, own_problem, placement_problem, said
from pyflannel.planning.transition import Side, Transition
from pyflannel.small.retry import Backoff
from pyflannel.store import CALL_TIMEOUT, CONFIG_KEY, Batch, Change, Record, Snapshot, Unassigned

__all__ = [
    "Announce",
    "AskAssigned",
    "AskChosen",
    "Call",
    "CloseWatch",
    "Create",
    "Delete",
    "Do",
    "GiveUp",
    "KeeperOptions",
    "Lane",
    "LeaseMachine",
    "Load",
    "OpenStore",
    "OpenWatch",
    "Order",
    "Publish",
    "ReadConfig",
    "Renew",
    "TakeSnapshot",
    "Update",
    "WriteConfig",
]

LONGEST_MARGIN: Final = 2 / 3
"""Of a lease's life: with a longer margin it would be renewed for ever."""

CREATE_ATTEMPTS: Final = 10
"""How often joining draws another subnet when others were quicker, before it takes a new snapshot."""

CONFIRM_INTERVAL: Final = 2.0
"""Seconds within which the watch should tell of the lease that we created. A store that compares states tells nothing
of one that was created and deleted between two looks, so until it has told we ask."""

NAMED_AFTER: Final = CALL_TIMEOUT + 1.0
"""Seconds after which a call to the store is one that hangs, and said to be; the contract allows CALL_TIMEOUT."""

GIVEN_UP_AFTER: Final = 3 * CALL_TIMEOUT
"""Seconds after which a store that hangs is given up for a new one."""

MOST_GIVEN_UP: Final = 8
"""How many stores may hang in a call at a time, each with a thread, before the last one is waited for."""

REWRITE_PAUSE: Final = 1.0
"""Seconds before we write anew what another machine at our own address has written, so that two don't race."""

STEADY_AFTER: Final = 30.0
"""Seconds that a session or a watch must have lasted for its end not to count as a failure in a row."""

LATEST_FOLLOW: Final = 60.0
"""The longest pause in seconds before a document or an underlay that could not be followed is looked at again."""


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """What the operator decided about this node's lease.

    :param seed: the network document to create if the store has none.
    :param backend: the backend that the network must have, if given.
    :param ttl: a lease's life in seconds; ``margin``: how long before its end it is renewed.
    :param load_timeout: seconds that the backend may take to be loaded and made.
    :param publish_timeout: seconds that it may take to say what the lease should carry.
    :param assigned: the store says which subnets this node has.
    :param followed: the network document that an earlier run followed last; empty if that is not known.
    """

    node_id: str
    state_dir: Path
    ttl: float
    margin: float
    policy: ConflictPolicy = ConflictPolicy.REFUSE
    seed: NetworkSeed | None = None
    backend: str | None = None
    load_timeout: float = PUBLISH_TIMEOUT
    publish_timeout: float = PUBLISH_TIMEOUT
    assigned: bool = False
    followed: str = ""


# What the machine asks for --------------------------------------------------------------------------------------------


class Lane(Enum):
    """Who answers: of each, one call is under way at most, so that a plugin that hangs delays its own kind alone."""

    STORE = "store"
    PUBLISH = "publish"
    LOAD = "load"


@dataclass(frozen=True, slots=True)
class OpenStore:
    """Make the store's driver anew, and close the one before if there was one."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "open"
    answer: ClassVar[tuple[type, ...]] = (type(None),)


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Read everything."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "snapshot"
    answer: ClassVar[tuple[type, ...]] = (Snapshot,)


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Read the network document."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "read_config"
    answer: ClassVar[tuple[type, ...]] = (Record, type(None))


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """Create the network document."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "write_config"
    answer: ClassVar[tuple[type, ...]] = (Record,)
    value: str


@dataclass(frozen=True, slots=True)
class Create:
    """Create a lease."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "create"
    answer: ClassVar[tuple[type, ...]] = (Record,)
    key: str
    value: str
    ttl: float


@dataclass(frozen=True, slots=True)
class Update:
    """Make a lease say something else."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "update"
    answer: ClassVar[tuple[type, ...]] = (Record,)
    record: Record
    value: str
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Renew:
    """Put off a lease's end."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "renew"
    answer: ClassVar[tuple[type, ...]] = (Record,)
    record: Record
    ttl: float


@dataclass(frozen=True, slots=True)
class Delete:
    """Give a lease back."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "delete"
    answer: ClassVar[tuple[type, ...]] = (type(None),)
    record: Record


@dataclass(frozen=True, slots=True)
class AskAssigned:
    """Ask which record is ours, where the store assigns subnets; there has to be one in each of ``families``."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "assigned"
    answer: ClassVar[tuple[type, ...]] = (Record, Unassigned)
    families: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AskChosen:
    """Ask by which addresses an operator wants this node reached, where the store assigns subnets."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "chosen addresses"
    answer: ClassVar[tuple[type, ...]] = (tuple, list)


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the store whether our overlay carries packets."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "announce"
    answer: ClassVar[tuple[type, ...]] = (type(None),)
    ready: bool


@dataclass(frozen=True, slots=True)
class OpenWatch:
    """Hear of changes after ``revision``, and pass them on under the number ``watch``."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "watch"
    answer: ClassVar[tuple[type, ...]] = (type(None),)
    watch: int
    revision: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load and make the backend that a network document asks for."""

    lane: ClassVar[Lane] = Lane.LOAD
    name: ClassVar[str] = "loading"
    answer: ClassVar[tuple[type, ...]] = (Backend,)
    network: NetworkConfig


@dataclass(frozen=True, slots=True)
class Publish:
    """Ask the backend what our lease should carry."""

    lane: ClassVar[Lane] = Lane.PUBLISH
    name: ClassVar[str] = "publish"
    answer: ClassVar[tuple[type, ...]] = (Published,)
    backend: Backend[Any]
    node: Node


@dataclass(frozen=True, slots=True)
class Reaches:
    """Ask whether a backend plans for any lease of others.

    :param node: this node as it would be. ``last``: the change that has led there, if one has.
    """

    lane: ClassVar[Lane] = Lane.LOAD
    name: ClassVar[str] = "planning"
    answer: ClassVar[tuple[type, ...]] = (bool,)
    side: Side
    node: Node
    leases: Sequence[Record]
    last: str

    def ask(self) -> bool:
        """The answer. Takes as long as the backend, and as thousands of leases that it can't use."""
        return any(map(self._is_reached, self.leases))

    def _is_reached(self, record: Record) -> bool:
        found = _readable(record)
        if found is None or found.attributes.node_id == self.node.node_id:
            return False
        lease = in_force(found, self.last)
        if placement_problem(self.node.network, lease) or own_problem(self.node, lease):
            return False
        try:
            self.side.plan_peer(self.node, lease)
        except PyflannelError:
            return False
        return True


Call: TypeAlias = (
    OpenStore
    | TakeSnapshot
    | ReadConfig
    | WriteConfig
    | Create
    | Update
    | Renew
    | Delete
    | AskAssigned
    | AskChosen
    | Announce
    | OpenWatch
    | Load
    | Publish
    | Reaches
)


@dataclass(frozen=True, slots=True)
class Do:
    """Make a call, and bring its result to :meth:`LeaseMachine.done` under this number."""

    number: int
    call: Call


@dataclass(frozen=True, slots=True)
class CloseWatch:
    """End a watch; nobody waits for that."""

    watch: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The store hangs in a call: leave it to itself. The next call opens another."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep a network document for the next start."""

    document: str


Order: TypeAlias = Do | CloseWatch | GiveUp | Keep
_Steps: TypeAlias = Generator[Call, Any, None]


@dataclass(slots=True)
class _Pending:
    """A call that is under way."""

    number: int
    call: Call
    since: float
    job: _Job | None
    named_at: float


@dataclass(slots=True)
class _Job:
    """A duty that is being done: its steps, and the call that the next one waits for."""

    duty: str
    steps: _Steps
    waiting: Call | None = None
    running: bool = False

    def cancel(self) -> None:
        """Take no further step; a duty that is in the middle of one ends by itself."""
        if not self.running:
            self.steps.close()


@dataclass(slots=True)
class _Pause:
    """When a duty is due, and how long it pauses after a failure."""

    backoff: Backoff
    at: float | None = None

    def put_off(self, now: float) -> None:
        self.at = now + self.backoff.next()

    def clear(self) -> None:
        self.at = None
        self.backoff.reset()


@dataclass(frozen=True, slots=True)
class _Place:
    """What we follow: a network document, the backend for it, and the underlay.

    While a change is under way, ``following`` is what is to hold after it, or ``trouble`` says why this node can't have
    that. ``overruled`` names a setting of this node that says otherwise, and why it does not count.
    """

    document: str
    network: NetworkConfig
    backend: Backend[Any]
    underlay: Underlay
    written: Written
    following: Side | None = None
    trouble: str = ""
    overruled: str = ""

    @property
    def side(self) -> Side:
        """What holds now."""
        return Side(self.backend, self.network)

    @property
    def planner(self) -> Backend[Any]:
        """What plans for this place."""
        change = self.written.change
        if change is None or self.following is None:
            return self.backend
        return Transition(self.side, self.following, change)

    @property
    def last(self) -> str:
        """The change that has led here, if one has."""
        return self.written.last if self.written.moved else ""


@dataclass(slots=True)
class _Session:
    """What ends with a session."""

    key: str
    revision: str
    began: float
    watch: int | None = None
    watch_opened: float = 0.0
    confirm_at: float | None = None
    unheard: list[Record | None] = field(default_factory=list)
    """What the watch told of our own lease while we were writing it."""


class _BrokenStoreError(PluginError):
    """A store's driver did what its contract does not know. That may pass, so it never ends the daemon."""


class LeaseMachine:
    """See the module's docstring. Every method takes the time; :meth:`orders` and :attr:`due` are read after each.

    :param store: the store's address, for messages; ``scheme`` is its plugin's name.
    :param previous: the subnets that an earlier run of this node had.
    """

    def __init__(
        self,
        options: KeeperOptions,
        store: str,
        scheme: str,
        previous: Subnets | None,
        slot: Slot,
        rng: random.Random,
    ) -> None:
        self._options, self._store, self._scheme, self._previous = options, store, scheme, previous
        self._slot, self._rng = slot, rng
        self._now = 0.0
        self._kept = options.followed
        self._orders: list[Order] = []
        self._jobs: dict[str, _Job] = {}
        self._pending: dict[Lane, _Pending] = {}
        self._number = 0
        self._watches = 0
        self._given_up: set[int] = set()
        self._opened = False
        self._over = False
        self._troubles: dict[str, PyflannelError] = {}
        self._pauses = {
            "open": _Pause(Backoff(rng)),
            "join": _Pause(Backoff(rng)),
            "renew": _Pause(Backoff(rng)),
            "watch": _Pause(Backoff(rng)),
            "publish": _Pause(Backoff(rng)),
            "follow": _Pause(Backoff(rng, last=LATEST_FOLLOW)),
            "announce": _Pause(Backoff(rng)),
        }
        self._restarts = Backoff(rng)
        self._steps: dict[str, Callable[[], _Steps]] = {
            "join": self._join,
            "watch": self._open_watch,
            "publish": self._publish,
            "follow": self._follow,
            "announce": self._announce,
        }
        # What we know and hold
        self._marks = NO_MARKS
        self._node_id = options.node_id
        """What we go by: the node id, or another one if another machine has that."""
        self._twin_key = ""
        """The lease of a machine that has our node id; empty if there is none."""
        self._taken_from: LeaseAttributes | None = None
        """What our lease said before we made it ours, if that was of another address or with other marks."""
        self._gives_way = False
        """Whether we gave our lease up to the machine that had it before us."""
        self._underlay: Underlay | None = None
        self._document = ""
        """The newest document that the store has told of."""
        self._place: _Place | None = None
        """What is in force."""
        self._candidate: _Place | None = None
        """What is to be in force as soon as we have joined it."""
        self._session: _Session | None = None
        self._held: Record | None = None
        self._unchecked: set[str] = set()
        """Leases that we may have created without having looked whether another crosses them."""
        self._generation = 0
        self._asked = 0
        self._reached = NodeProgress("")
        """How far this node is in a change, as the daemon's loop sees it."""
        self._ready: bool | None = None
        """Whether our overlay carries packets, as far as we are told, and what the store was told of it."""
        self._announced: bool | None = None
        self._yielded_to: str | None = None
        """The node id of another daemon that took over what the store had assigned to us."""
        self._state = LeaseState()

    # Input ------------------------------------------------------------------------------------------------------------

    def start(self, underlay: Underlay | None, now: float, marks: Marks = NO_MARKS) -> None:
        """Begin.

        :param marks: what tells this machine from another one of its node id. Where the store assigns subnets it says
            who we are.
        """
        self._marks = NO_MARKS if self._options.assigned else marks
        self._pauses["join"].at = now
        self.move(underlay, now)

    def move(self, underlay: Underlay | None, now: float) -> None:
        """The underlay is another one now, or there is none, and the one in force is kept until there is."""
        self._now = now
        if underlay is not None and underlay != self._underlay:
            self._underlay = underlay
            self._look_again()
        self._turn()

    def publish(self, number: int, now: float) -> None:
        """Write into our lease what the backend publishes now; ``published`` will say so under this number."""
        self._now, self._asked = now, max(number, self._asked)
        self._pauses["publish"].at = now
        if self._session is None and "join" in self._troubles:
            self._settle_requests(self._asked, self._troubles["join"])
        self._turn()

    def reached(self, progress: NodeProgress, now: float) -> None:
        """This node is so far in a change: have our lease say so."""
        self._now = now
        if progress != self._reached:
            self._reached = progress
            self._pauses["publish"].at = now
        self._turn()

    def announce(self, ready: bool, now: float) -> None:
        """Our overlay carries packets, or does not: tell the store."""
        self._now, self._ready = now, ready
        self._pauses["announce"].at = now
        self._turn()

    def done(self, number: int, result: Any, now: float) -> None:
        """A call has come back with a value, or with an exception that it raised."""
        self._now = now
        self._given_up.discard(number)
        pending = next((pending for pending in self._pending.values() if pending.number == number), None)
        if pending is not None:
            self._came_back(pending, result)
        self._turn()

    def batch(self, watch: int, batch: Batch, now: float) -> None:
        """A watch has told something."""
        self._now = now
        session = self._session
        if session is not None and session.watch == watch:
            try:
                self._take_in(session, batch)
            except Exception as error:  # a driver's nonsense
                told = f"its watch told what can't be read: {type(error).__name__}: {error}"
                self._rejoin(_BrokenStoreError(f"store {self._scheme!r}: {told}"))
        self._turn()

    def broke(self, watch: int, error: PyflannelError, now: float) -> None:
        """A watch has ended."""
        self._now = now
        session = self._session
        if session is not None and session.watch == watch:
            self._drop_watch(session)
            if isinstance(error, StoreUnavailableError | HistoryGoneError):
                self._watch_failed(session, error)
            else:  # what it can't tell, a snapshot may
                self._rejoin(error)
        self._turn()

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._now = now
        self._turn()

    def stop(self, now: float) -> None:
        """End; the lease stays in the store, for the next start."""
        self._now = now
        self._end()

    # Output -----------------------------------------------------------------------------------------------------------

    def orders(self) -> list[Order]:
        """What is to be done now, in this order; each is told once."""
        orders, self._orders = self._orders, []
        return orders

    @property
    def over(self) -> bool:
        """Whether there is nothing to be done any more."""
        return self._over

    @property
    def due(self) -> float | None:
        """When :meth:`tick` is to be called, if nothing comes in before."""
        if self._over:
            return None
        times = [pending.named_at for lane, pending in self._pending.items() if lane is Lane.STORE]
        times += [at for duty in self._steps if self._wanted(duty) and (at := self._pauses[duty].at) is not None]
        renewal = self._renewal()
        if renewal is not None and Lane.STORE not in self._pending:
            times.append(renewal)
        return min(times, default=None)

    # The turn ---------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Begin what is due, make the calls that can be made, and say how things stand."""
        if self._over:
            return
        self._look_at_hanging()
        for duty in self._steps:
            at = self._pauses[duty].at
            if self._wanted(duty) and at is not None and at <= self._now:
                self._begin(duty)
        for lane in Lane:
            if lane not in self._pending and not self._over:
                self._next_call(lane)
        self._report()

    def _wanted(self, duty: str) -> bool:
        """Whether a duty may begin as soon as its time has come."""
        if duty in self._jobs:
            return False
        if duty == "join":
            return self._session is None and self._underlay is not None
        if duty == "announce":
            return self._ready is not None and self._ready != self._announced
        return self._session is not None and (duty != "watch" or self._session.watch is None)

    def _begin(self, duty: str) -> None:
        self._pauses[duty].at = None
        job = self._jobs[duty] = _Job(duty, self._steps[duty]())
        self._advance(job, None)

    def _advance(self, job: _Job, result: Any) -> None:
        """Hand a result to a duty that waits for it, and take its next call."""
        job.waiting, job.running = None, True
        try:
            if isinstance(result, BaseException):
                job.waiting = job.steps.throw(result)
            else:
                job.waiting = job.steps.send(result)
            return
        except StopIteration:
            failure = None
        except PyflannelError as error:
            failure = error
        except Exception as error:  # what a driver or backend answered can't be worked with
            failure = self._unexpected(error)
        finally:
            job.running = False
        if self._jobs.get(job.duty) is job:
            del self._jobs[job.duty]
            if failure is not None:
                self._failed(job.duty, failure)

    def _next_call(self, lane: Lane) -> None:
        renewal = self._renewal()
        call: Call | None = None
        job: _Job | None = None
        if lane is Lane.STORE and not self._opened:
            if renewal is None or renewal <= self._now:
                call = OpenStore()
        elif lane is Lane.STORE and renewal is not None and renewal <= self._now:
            assert self._held is not None
            call = Renew(self._held, self._options.ttl)
        else:
            waiting = (job for job in self._jobs.values() if job.waiting is not None and job.waiting.lane is lane)
            job = next(waiting, None)
            call = None if job is None else self._current(job.waiting)
        if call is not None:
            self._number += 1
            self._pending[lane] = _Pending(self._number, call, self._now, job, self._now + NAMED_AFTER)
            self._orders.append(Do(self._number, call))

    def _current(self, call: Call | None) -> Call | None:
        """A call with our record as the last renewal left it."""
        held = self._held
        if held is None or not isinstance(call, Update | Renew | Delete):
            return call
        same = (call.record.key, call.record.version) == (held.key, held.version)
        return replace(call, record=held) if same else call

    def _came_back(self, pending: _Pending, result: Any) -> None:
        call = pending.call
        del self._pending[call.lane]
        self._troubles.pop(f"hanging {call.lane.value}", None)
        result = self._judged(call, result)
        if isinstance(call, OpenStore):
            self._store_opened(result)
            return
        self._note_our_record(call, result, pending.since)
        if pending.job is None:
            self._renewed(result)
        elif self._jobs.get(pending.job.duty) is pending.job:
            self._advance(pending.job, result)
        session = self._session
        if session is not None and isinstance(call, Update | Renew):
            unheard, session.unheard = session.unheard, []
            for record in unheard:
                self._own_changed(session, record)

    def _judged(self, call: Call, result: Any) -> Any:
        """A result, or the error that it is instead."""
        who = f"store {self._scheme!r}" if call.lane is Lane.STORE else "the backend"
        if not isinstance(result, BaseException):
            key = _key_written(call)
            if isinstance(result, call.answer) and (key is None or (isinstance(result, Record) and result.key == key)):
                return result
            result = PluginError(f"{who} answered {call.name} with another thing, of type {type(result).__name__}")
        if not isinstance(result, PyflannelError):
            result = PluginError(f"{who} failed in {call.name}: {type(result).__name__}: {result}")
        if call.lane is Lane.STORE and isinstance(result, PluginError | LeaseError):
            return _BrokenStoreError(str(result))
        if call.lane is not Lane.STORE and isinstance(result, StoreError | LeaseError):
            return PluginError(str(result))
        return result

    def _unexpected(self, error: BaseException) -> PluginError:
        return _BrokenStoreError(f"unexpected {type(error).__name__} in the lease keeper: {error}")

    # A store that hangs -----------------------------------------------------------------------------------------------

    def _look_at_hanging(self) -> None:
        pending = self._pending.get(Lane.STORE)
        if pending is None or self._now < pending.named_at:
            return
        waited = self._now - pending.since
        named = StoreUnavailableError(
            f"store {self._store} has not come back from {pending.call.name} for {waited:.0f} s"
        )
        self._troubles["hanging store"] = named
        pending.named_at = self._now + CALL_TIMEOUT
        give_up_at = pending.since + GIVEN_UP_AFTER
        if self._now < give_up_at:
            pending.named_at = min(pending.named_at, give_up_at)
        if self._now < give_up_at or len(self._given_up) >= MOST_GIVEN_UP:
            return
        del self._pending[Lane.STORE]
        self._given_up.add(pending.number)
        self._opened = False
        self._orders.append(GiveUp())
        if pending.job is not None and self._jobs.get(pending.job.duty) is pending.job:
            self._advance(pending.job, named)
        if isinstance(pending.call, Renew) and pending.job is None:
            self._troubles["renew"] = named
            self._pauses["renew"].at = self._now
        self._rejoin(named)

    def _store_opened(self, result: PyflannelError | None) -> None:
        pause = self._pauses["open"]
        if result is None:
            self._opened = True
            self._announced = None  # another driver knows nothing of it
            self._pauses["announce"].at = self._now
            self._troubles.pop("open", None)
            pause.clear()
            if self._session is None and self._pauses["join"].at is not None:
                self._pauses["join"].at = self._now
        elif self._fatal(result):
            self._end_with(result)
        else:
            self._troubles["open"] = result
            pause.put_off(self._now)

    # The lease we hold ------------------------------------------------------------------------------------------------

    def _renewal(self) -> float | None:
        """When our lease is to be renewed, if we hold one that ends; without a store, when one is to be opened."""
        if not self._opened:
            return self._pauses["open"].at
        if self._held is None or self._held.permanent:
            return None
        confirm = self._session.confirm_at if self._session is not None else None
        times = [at for at in (self._pauses["renew"].at, confirm) if at is not None]
        return min(times, default=None)

    def _note_our_record(self, call: Call, result: Any, since: float) -> None:
        """Whoever wrote our record: what is in the store now is what we hold. It lives from *before* the call."""
        held = self._held
        if held is None or not isinstance(call, Update | Renew | Delete) or call.record.key != held.key:
            return
        if isinstance(call, Delete):
            if not isinstance(result, BaseException):
                self._lose()
        elif isinstance(result, Record):
            self._hold(result, since)

    def _hold(self, record: Record, since: float) -> None:
        """Note that ``record`` is ours, as written or renewed by a call that began at ``since``."""
        lease = _readable(record) or self._state.lease
        ttl, margin = self._options.ttl, self._options.margin
        self._held = record
        pause = self._pauses["renew"]
        pause.clear()
        if not record.permanent:
            pause.at = since + ttl - min(margin, LONGEST_MARGIN * ttl) * (1 + 0.1 * self._rng.random())
        self._troubles.pop("renew", None)
        self._state = replace(
            self._state,
            lease=lease,
            permanent=record.permanent,
            expires_at=None if record.permanent else since + ttl,
            renewed_at=self._now,
        )

    def _lose(self) -> None:
        """Our lease is gone, or another's."""
        self._held = None
        self._pauses["renew"].clear()

    def _renewed(self, result: Any) -> None:
        session = self._session
        if isinstance(result, ConflictError):
            self._lose()
            self._rejoin(None)
        elif isinstance(result, PyflannelError):
            self._troubles["renew"] = result
            self._pauses["renew"].put_off(self._now)
            if session is not None and session.confirm_at is not None:
                session.confirm_at = self._pauses["renew"].at
        elif session is not None and session.confirm_at is not None:
            session.confirm_at = self._now + CONFIRM_INTERVAL

    # Failures ---------------------------------------------------------------------------------------------------------

    def _failed(self, duty: str, error: PyflannelError) -> None:
        session = self._session
        if duty == "join":
            if self._fatal(error):
                self._end_with(error)
                return
            self._join_failed(error)
        elif duty == "watch" and session is not None:
            self._watch_failed(session, error)
        elif duty == "publish" and isinstance(error, ConflictError):
            self._rejoin(None)
        else:
            self._troubles[duty] = error
            self._pauses[duty].put_off(self._now)

    def _fatal(self, error: PyflannelError) -> bool:
        """Whether only another configuration helps."""
        wrong = isinstance(error, ConfigError | PluginError) and not isinstance(error, _BrokenStoreError)
        return wrong and not self._generation

    def _join_failed(self, error: PyflannelError) -> None:
        self._troubles["join"] = error
        self._pauses["join"].put_off(self._now)
        self._settle_requests(self._asked, error)
        ends = self._state.expires_at
        if self._held is None and self._state.lease is not None:
            self._state = replace(self._state, expires_at=self._now if ends is None else min(ends, self._now))

    def _watch_failed(self, session: _Session, error: PyflannelError) -> None:
        if isinstance(error, HistoryGoneError):
            self._rejoin(None)
            return
        pause = self._pauses["watch"]
        if session.watch_opened and self._now - session.watch_opened >= STEADY_AFTER:
            pause.backoff.reset()
        session.watch, session.watch_opened = None, 0.0
        self._troubles["watch"] = error
        pause.put_off(self._now)

    def _settle_requests(self, number: int, error: PyflannelError | None) -> None:
        """Say how the requests to publish up to ``number`` went; one that failed may succeed later."""
        if number > self._state.published or self._state.publish_error is not None:
            self._state = replace(self._state, published=number, publish_error=error)

    def _end_with(self, error: PyflannelError) -> None:
        self._state = replace(self._state, fatal=error)
        self._report()
        self._end()

    def _end(self) -> None:
        if self._session is not None:
            self._drop_watch(self._session)
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()
        self._over = True

    def _report(self) -> None:
        """Say how things stand: another's claim first, then what keeps us from the store, then the rest."""
        order = ("hanging store", "open", "join", "renew", "watch", "follow", "publish", "announce")
        errors = [self._troubles[name] for name in order if name in self._troubles]
        claims = [error for error in errors if isinstance(error, LeaseError)]
        error = next(iter(claims or errors), None)
        follow = self._troubles.get("follow")
        self._slot.report(
            replace(
                self._state,
                trouble="" if error is None else str(error),
                conflict=bool(claims),
                refused=str(follow) if isinstance(follow, (ConfigError, PluginError)) else "",
            )
        )

    # Joining ----------------------------------------------------------------------------------------------------------

    def _rejoin(self, error: PyflannelError | None) -> None:
        """End the session, and begin another: at once, unless the last one did not last."""
        session, pause = self._session, self._pauses["join"]
        if session is not None:
            if self._now - session.began >= STEADY_AFTER:
                self._restarts.reset()
            self._drop_watch(session)
            self._session = None
            again = self._restarts.attempts > 0
            delay = self._restarts.next()
            pause.at = self._now + delay if again or error is not None else self._now
            for duty in ("watch", "publish", "follow"):
                self._troubles.pop(duty, None)
                job = self._jobs.pop(duty, None)
                if job is not None:
                    job.cancel()
        if error is not None:
            self._troubles["join"] = error

    def _drop_watch(self, session: _Session) -> None:
        if session.watch is not None:
            self._orders.append(CloseWatch(session.watch))
            session.watch = None

    def _join(self) -> _Steps:
        """From a snapshot to a lease that we hold, and a new session."""
        asked = self._asked
        assigned = (yield from self._ask_assigned()) if self._options.assigned else None
        snapshot: Snapshot = yield TakeSnapshot()
        if snapshot.config is None and (self._options.seed is not None or self._place is None):
            snapshot = yield from self._create_config(snapshot)
        records = {record.key: record for record in snapshot.leases}
        self._document = snapshot.config.value if snapshot.config is not None else self._in_force.document
        if assigned is None:
            yield from self._keep_ours(records)
        place = yield from self._place_to_join(snapshot.leases)
        if assigned is None:
            published = yield from self._obtain(place, records)
        else:
            published = yield from self._take_assigned(place, assigned)
        held = self._held
        assert held is not None
        self._began(place, held, snapshot, records)
        if published:
            self._settle_requests(asked, None)
        else:
            self._pauses["publish"].at = self._now
        self._look_again(only_if_needed=True)

    def _began(self, place: _Place, held: Record, snapshot: Snapshot, records: Mapping[str, Record]) -> None:
        """We hold a lease: a session begins, and a generation."""
        self._settle_on(place)
        self._candidate = None
        session = self._session = _Session(held.key, snapshot.revision, self._now)
        if held.key not in {record.key for record in snapshot.leases}:
            session.confirm_at = self._now + CONFIRM_INTERVAL
        self._troubles.pop("join", None)
        self._pauses["join"].clear()
        self._pauses["watch"].at = self._now
        self._say({key: record for key, record in records.items() if key != held.key})

    def _settle_on(self, place: _Place) -> None:
        """Follow a document from now on, and after a restart."""
        self._place = place
        if place.document != self._kept:
            self._kept = place.document
            self._orders.append(Keep(place.document))

    def _say(self, records: Mapping[str, Record] | None) -> None:
        """A new generation, with all other nodes' leases; ``None``: with those that are known already."""
        lease = self._state.lease
        assert lease is not None
        place = self._in_force
        self._generation += 1
        node = self._node(place, lease.subnets, lease.attributes)
        generation = Generation(self._generation, node, place.planner, lease, place.last, place.overruled)
        if records is None:
            self._slot.begin(generation)
        else:
            values = {key: record.value for key, record in records.items()}
            self._slot.begin(generation, values, _created(records.values()))

    @property
    def _in_force(self) -> _Place:
        assert self._place is not None
        return self._place

    def _node(self, place: _Place, subnets: Subnets, ours: LeaseAttributes) -> Node:
        """Our place.

        :param ours: of our lease, as it was when we came to it, or as we have written it.
        """
        used = place.network.used(subnets)
        state_dir = state_directory(self._options.state_dir, self._options.node_id, self._node_id)
        return Node(self._node_id, place.network, place.underlay, used, state_dir, said(ours, place.backend.name))

    def _create_config(self, found: Snapshot) -> Generator[Call, Any, Snapshot]:
        seed = self._options.seed
        if seed is None:
            raise StoreError(
                f"{self._store} has no network config yet; put one there with 'pyflannel config set', "
                "or start a node with --network"
            )
        network = NetworkConfig.from_json(seed.document, seed.source)
        if network.assumption:
            network = network.following(backend_types(found.leases, self._node_id))
        with suppress(ConflictError):  # another node was first; its document counts
            yield WriteConfig(with_backend(seed.document, network.backend_type))
        snapshot: Snapshot = yield TakeSnapshot()
        if snapshot.config is None:
            raise StoreError(f"{self._store}: the network config vanished right after it was written")
        return snapshot

    def _keep_ours(self, records: dict[str, Record]) -> Generator[Call, Any, None]:
        """Hold on to the lease that an earlier run left us, whatever keeps us from joining with it."""
        if self._held is not None:
            return
        leases = self._apart_from_twins(_concerning(Identity(self._options.node_id), records))
        identity = Identity(self._node_id)
        existing = [
            Existing(lease, records[lease.key].permanent)
            for lease in leases
            if lease.attributes.node_id == self._node_id and lease.key in records.keys() - self._unchecked
        ]
        decisions = (
            decide(network, identity, existing, self._last_subnets, self._options.policy)
            for document in (self._document, self._options.followed)
            if (network := _network_of(document)) is not None
        )
        decision = next((each for each in decisions if isinstance(each, Adopt)), None)
        if decision is None:
            return
        began = self._now
        try:
            record: Record = yield Renew(records[decision.lease.key], self._options.ttl)
        except ConflictError as error:
            raise StoreUnavailableError(f"our lease {decision.lease.key} has just changed; looking again") from error
        self._hold(record, began)
        records[record.key] = record

    def _apart_from_twins(self, records: Iterable[Record]) -> list[Lease]:
        """The leases of these records, without those of a machine with our node id; decides by which id we go."""
        leases = [lease for record in records if (lease := _readable(record)) is not None]
        me = self._myself
        naming = me.name(leases, self._node_id, held=self._generation > 0)
        self._node_id, twin = naming.node_id, naming.twin
        if twin is None and self._gives_way:
            twin = next((lease for lease in leases if lease.attributes.node_id == self._options.node_id), None)
        self._note_twin(twin)
        return [lease for lease in leases if not me.is_twins(lease.attributes, self._node_id)]

    @property
    def _myself(self) -> Myself:
        underlay = self._underlay
        addresses = {underlay.public_ipv4, underlay.public_ipv6} if underlay is not None else set()
        return Myself(self._options.node_id, self._marks, frozenset(ip for ip in addresses if ip is not None))

    def _note_twin(self, twin: Lease | None) -> None:
        self._twin_key = twin.key if twin is not None else ""
        self._state = replace(self._state, twin=self._told_of(twin) if twin is not None else "")

    def _told_of(self, twin: Lease) -> str:
        theirs = twin.attributes
        if self._node_id == self._options.node_id:
            return (
                f"another machine has this one's node id {self._node_id!r}, and came at the same time: that of lease "
                f"{twin.key} at {theirs.public_ip or theirs.public_ipv6}. Each keeps its lease; give the one that was "
                "copied a machine id of its own ('pyflannel doctor' says how)"
            )
        return (
            f"another machine has this one's node id {self._options.node_id!r}: that of lease {twin.key} at "
            f"{theirs.public_ip or theirs.public_ipv6}. It keeps that lease, and this node goes by {self._node_id!r} "
            "with a subnet of its own. If it was copied, give it a machine id of its own ('pyflannel doctor' says how)"
        )

    @property
    def _last_subnets(self) -> Subnets | None:
        return self._state.lease.subnets if self._state.lease is not None else self._previous

    def _place_to_join(self, leases: Sequence[Record]) -> Generator[Call, Any, _Place]:
        """What the store's document asks for, or what is in force as long as that can't be followed."""
        underlay = self._underlay
        assert underlay is not None
        refused: PyflannelError | None = None
        place: _Place | None = None
        try:
            place = yield from self._place_for(self._document, underlay, leases)
        except PyflannelError as error:
            refused = error
        if self._place is None:
            place = (yield from self._followed_last(place, underlay, leases)) or place
        elif refused is not None:
            place = self._moved_if_possible(self._place, underlay)
        if place is None:
            assert refused is not None
            raise refused
        if refused is None:
            self._troubles.pop("follow", None)
        else:
            self._troubles["follow"] = refused
            self._pauses["follow"].put_off(self._now)
        return place

    def _followed_last(
        self, place: _Place | None, underlay: Underlay, leases: Sequence[Record]
    ) -> Generator[Call, Any, _Place | None]:
        """What the last run followed, if by that alone any other node is reached; else ``None``.

        :param place: what the store's document asks for; ``None`` if it can't be followed.
        """
        document = self._options.followed
        if document in ("", self._document) or self._options.assigned:  # there, the document is in the cluster's hands
            return None
        try:
            if self._leads_away(document):
                return None
            last = yield from self._place_for(document, underlay, leases)
        except PyflannelError:
            return None
        if place is not None:
            if not (ranges_apart(last.network, place.network) or _backends_apart(last.side, place.side)):
                return None
            if (yield self._reaches(place, leases)):
                return None
        return last if (yield self._reaches(last, leases)) else None

    def _leads_away(self, document: str) -> bool:
        """Whether all nodes are to leave ``document`` for the store's, or nobody can say where they are."""
        followed = read(document)
        try:
            now = read(self._document)
        except ConfigError:
            return False
        return followed.change is not None or now.change is not None or now.last not in ("", followed.last)

    def _reaches(self, place: _Place, leases: Sequence[Record]) -> Reaches:
        subnets = self._last_subnets
        if subnets is None or not place.network.contains(place.network.used(subnets)):
            four, six = place.network.ipv4, place.network.ipv6
            subnets = Subnets(four.subnet_min if four else None, six.subnet_min if six else None)
        return Reaches(place.side, self._node(place, subnets, LeaseAttributes()), leases, place.last)

    def _moved_if_possible(self, place: _Place, underlay: Underlay) -> _Place:
        try:
            _check_underlay(place.network, underlay, place.backend)
        except PyflannelError:
            return place
        return replace(place, underlay=underlay)

    def _place_for(
        self, document: str, underlay: Underlay, leases: Sequence[Record] | None = None
    ) -> Generator[Call, Any, _Place]:
        """What a network document of the store asks for.

        :param leases: all that the store holds, if they have been read already; they say what a network runs whose
            document doesn't.
        :raises ConfigError: it can't be followed, or this node's settings say otherwise.
        :raises PluginError: its backend is missing or doesn't load.
        :raises UnderlayError: the underlay lacks an address.
        """
        written = read(document, f"network config in {self._store}")
        known = self._known(written.settings)
        if known is None:
            network = NetworkConfig.from_json(written.text, f"network config in {self._store}")
            if network.assumption and leases is None:
                leases = (yield TakeSnapshot()).leases
            network = self._network(network, leases or (), written.agreed or self._place is not None)
            known = Side((yield Load(network)), network)
        _check_underlay(known.network, underlay, known.backend)
        if self._place is not None:
            self._check_agreed(self._place, written, known)
        following, trouble = yield from self._following(written.change, known, underlay)
        overruled = self._overruled(known.network, following)
        return _Place(document, known.network, known.backend, underlay, written, following, trouble, overruled)

    def _known(self, settings: Mapping[str, JSON]) -> Side | None:
        """The backend that was made for these settings before: a change keeps the ones that run."""
        for place in (self._candidate, self._place):
            if place is None:
                continue
            if place.written.settings == settings:
                return place.side
            if place.written.change is not None and place.written.change.target == settings:
                return place.following
        return None

    def _check_agreed(self, place: _Place, written: Written, new: Side) -> None:
        """Refuse what a node must not follow for itself.

        :raises ConfigError: says what differs, and what to do.
        """
        if written.settings == place.written.settings and (written.change or place.written.change is None):
            return
        if written.agreed and written.last not in ("", place.written.last):  # a change has led there: all are to follow
            return
        differs = ranges_apart(place.network, new.network) or _backends_apart(place.side, new)
        if not differs and place.written.change is not None:
            differs = f"the change {place.written.change.id} that was under way has been taken out of it"
        if differs:
            raise ConfigError(
                f"the network config in {self._store} was changed behind the nodes' back: {differs}. This node keeps "
                "the one in force, with which the other nodes reach it; put that back, and use 'pyflannel network "
                "change', which loses no packet; or write it with 'pyflannel config set --force', and restart all "
                "daemons"
            )

    def _following(
        self, change: NetworkChange | None, present: Side, underlay: Underlay
    ) -> Generator[Call, Any, tuple[Side | None, str]]:
        """What is to hold after the change that is under way, or why this node can't have it."""
        if change is None:
            return None, ""
        try:
            known = self._known(change.target)
            if known is None:
                network = NetworkConfig.from_json(json.dumps(change.target), "the change's new network config")
                network = self._network(network, (), agreed=True)
                known = Side((yield Load(network)), network)
            _check_underlay(known.network, underlay, known.backend)
            if known.network.families != present.network.families:
                raise ConfigError("the change's new network config has other networks; change those by themselves")
        except PyflannelError as error:
            return None, str(error)
        return known, ""

    def _network(self, network: NetworkConfig, leases: Iterable[Record], agreed: bool) -> NetworkConfig:
        """As this node takes it, if its settings agree with it.

        :param agreed: all nodes go there together, or have done so, which counts more than ``--backend``; or this node
            runs, and :meth:`_check_agreed` says more.
        """
        if network.assumption:
            network = network.following(backend_types(leases, self._node_id))
        if not agreed and not self._has_wanted_backend(network):
            raise ConfigError(
                f"--backend is {self._options.backend!r}, but the network config in {self._store} says "
                f"{network.backend_type!r}; start without --backend, or change the network with 'pyflannel network "
                "change'"
            )
        seed = self._options.seed
        if seed is not None and seed.binding and not network.means(NetworkConfig.from_json(seed.document, seed.source)):
            raise ConfigError(
                f"the network config in {self._store} means something else than {seed.source}; make them "
                "agree with 'pyflannel config set', or start without that file (--net-config-path), with which a node "
                "takes part in no change"
            )
        return network

    def _has_wanted_backend(self, network: NetworkConfig) -> bool:
        wanted = self._options.backend
        return wanted is None or wanted.lower() == network.backend_type

    def _overruled(self, network: NetworkConfig, following: Side | None) -> str:
        """The setting of this node that counts less than what all nodes have gone over to; empty if none does."""
        if any(map(self._has_wanted_backend, (network, *((following.network,) if following else ())))):
            return ""
        return (
            f"the network has gone over to backend {network.backend_type} by 'pyflannel network change', which counts "
            f"more than this node's --backend {self._options.backend}: take that out of its settings"
        )

    # Getting the lease ------------------------------------------------------------------------------------------------

    def _obtain(self, place: _Place, records: dict[str, Record]) -> Generator[Call, Any, bool]:
        """Hold a lease; whether it says already what we are. ``records`` loses those of ours that are given back."""
        network = place.network
        addresses = (
            place.underlay.public_ipv4 if network.ipv4 else None,
            place.underlay.public_ipv6 if network.ipv6 else None,
        )
        leases = self._apart_from_twins(_concerning(Identity(self._options.node_id, *addresses), records))
        identity = Identity(self._node_id, *addresses)
        leases += self._spoiled(records)
        existing = [Existing(lease, records[lease.key].permanent) for lease in leases if lease.key in records]
        previous = self._last_subnets
        decision = decide(network, identity, existing, previous, self._options.policy)
        if isinstance(decision, Contested):
            raise LeaseError(decision.reason)
        stale = [records.pop(lease.key) for lease in decision.stale]
        sound = yield from self._obtain_new(place, records, decision, {record.key for record in stale})
        for record in stale:  # last, so that peers never see us without a lease: the new one may have the same subnet
            yield Delete(record)
        return sound

    def _spoiled(self, records: Mapping[str, Record]) -> list[Lease]:
        """Our lease, if somebody has written over it what can't be read: nobody else says that it is theirs."""
        lease = self._state.lease if self._generation else None
        record = records.get(lease.key) if lease is not None else None
        if lease is None or record is None or _readable(record) is not None:
            return []
        return [Lease(lease.subnets, LeaseAttributes(node_id=self._node_id))]

    def _obtain_new(
        self, place: _Place, records: dict[str, Record], decision: Adopt | Fresh, stale: set[str]
    ) -> Generator[Call, Any, bool]:
        network = place.network
        if isinstance(decision, Adopt):
            key = decision.lease.key
            if key in self._unchecked and _rivals(network, key, records):
                yield Delete(records.pop(key))
            else:
                return (yield from self._adopt(place, records[key], decision.lease))
        claims = {key: claim for key in records if (claim := _claim(network, key)) is not None}
        self._refuse_to_lose(network, records, claims)
        ours = [lease.subnets for lease in decision.stale if lease.attributes.node_id == self._node_id]
        kept = self._state.lease.subnets if self._state.lease is not None else next(iter(ours), None)
        yield from self._create(place, list(claims.values()), self._last_subnets, stale, kept)
        return True

    def _adopt(self, place: _Place, record: Record, lease: Lease) -> Generator[Call, Any, bool]:
        """Go on with a lease that exists. One that was ours before can say later what we are now."""
        self._unchecked.discard(record.key)
        held = self._held
        ours = held is not None and held.key == record.key
        if held is not None and ours and self._generation:
            self._held = replace(record, permanent=held.permanent or record.permanent)  # perhaps another's words by now
            if place.document != self._in_force.document:  # that it is renewed says that the new document is followed
                began = self._now
                self._hold((yield Renew(record, self._options.ttl)), began)
            return False
        attributes = yield from self._attributes(place, lease.subnets, lease.attributes)
        ttl = None if record.permanent else self._options.ttl
        began = self._now
        if attributes != lease.attributes:
            self._hold((yield Update(record, attributes.to_json(), ttl)), began)
            if not self._generation and _who(lease.attributes) != _who(attributes):
                self._taken_from = lease.attributes
        elif not ours:
            self._hold((yield Renew(record, self._options.ttl)), began)
        return True

    def _attributes(
        self, place: _Place, subnets: Subnets, before: LeaseAttributes
    ) -> Generator[Call, Any, LeaseAttributes]:
        """What our lease of ``subnets`` should say; unknown fields of an earlier one are kept."""
        node = self._node(place, subnets, before)
        ours: Published = yield Publish(place.backend, node)
        progress = yield from self._progress(place, node, before)
        extra = {name: value for name, value in before.extra.items() if name != LEASE_KEY}
        if progress is not None:
            extra[LEASE_KEY] = progress.to_json()
        uses = place.network.family
        return LeaseAttributes(
            public_ip=place.underlay.public_ipv4 if uses(4) else None,
            public_ipv6=place.underlay.public_ipv6 if uses(6) else None,
            backend_type=None if place.backend.capabilities.untyped_leases else place.backend.name,
            backend_data=ours.data,
            backend_v6_data=ours.v6_data,
            node_id=self._node_id,
            marks=self._marks,
            twin_of=self._options.node_id if self._node_id != self._options.node_id else None,
            extra=extra,
        )

    def _progress(
        self, place: _Place, node: Node, before: LeaseAttributes
    ) -> Generator[Call, Any, NodeProgress | None]:
        """What our lease should say of the change that is under way, or of the last one."""
        change = place.written.change
        if change is None:
            return NodeProgress(place.last, Step.DONE) if place.last else None
        known = self._reached
        if known.id != change.id:
            said = NodeProgress.from_json(before.extra.get(LEASE_KEY))
            known = NodeProgress(change.id, said.step if said is not None and said.id == change.id else None)
        if place.following is None:
            return NodeProgress(change.id, trouble=place.trouble)
        following = place.following
        try:
            theirs: Published = yield Publish(following.backend, following.node(node))
        except PyflannelError as error:
            return NodeProgress(change.id, trouble=str(error))
        return replace(known, backend_type=following.name, data=theirs.data, v6_data=theirs.v6_data)

    def _ask_assigned(self) -> Generator[Call, Any, Record]:
        """Our record, from a store that assigns subnets. Before the snapshot, which costs more: this may take long."""
        config: Record | None = yield ReadConfig()
        document = config.value if config is not None else self._document
        network = NetworkConfig.from_json(document, f"network config in {self._store}")
        found: Record | Unassigned = yield AskAssigned(network.versions)
        if isinstance(found, Unassigned):
            self._lose()
            raise StoreError(found.reason)
        self._state = replace(self._state, chosen=_chosen((yield AskChosen())))
        underlay = self._underlay
        assert underlay is not None
        for address in self._state.chosen:
            if underlay.public(address.version) != address:
                raise UnderlayError(f"{self._store} has {address} for this node: looking for the interface with it")
        return found

    def _take_assigned(self, place: _Place, record: Record) -> Generator[Call, Any, bool]:
        """Go by the subnets that the store has for us, of whatever length; whether our lease says what we are."""
        subnets = Subnets.from_key(record.key)
        if not place.network.contains(place.network.used(subnets)):
            raise StoreError(
                f"{self._store} gives this node {subnets}, which is no part of the network config's networks: "
                f"{', '.join(str(family.network) for family in place.network.families)}. Make both say the same"
            )
        lease = _readable(record) or Lease(subnets, LeaseAttributes())
        theirs = lease.attributes.node_id
        if theirs is not None and theirs == self._yielded_to:
            raise LeaseError(
                f"another daemon (node id {theirs!r}) has taken over what {self._store} assigned to this node: stop "
                "one of the two, and start the other anew"
            )
        if self._held is not None and self._held.key == record.key and self._generation:
            self._held = record
            return False
        attributes = yield from self._attributes(place, subnets, lease.attributes)
        began = self._now
        if attributes != lease.attributes:
            self._hold((yield Update(record, attributes.to_json(), None)), began)
        else:
            self._hold((yield Renew(record, self._options.ttl)), began)
        return True

    def _refuse_to_lose(
        self, network: NetworkConfig, records: Mapping[str, Record], claims: Mapping[str, Subnets]
    ) -> None:
        """A node whose subnet is another's now must not quietly get a new one: its containers have addresses of it."""
        held = self._state.lease if self._generation and not self._gives_way else None
        if held is None or not network.fits(held.subnets):
            return
        for key, claim in claims.items():
            if claim.overlaps(held.subnets):
                lease = _readable(records[key])
                holder = lease.attributes if lease is not None else LeaseAttributes()
                raise LeaseError(
                    f"our subnet {held.subnets} was lost and is leased to node {holder.node_id!r} "
                    f"({holder.public_ip or holder.public_ipv6}) now. Delete that lease, "
                    "or restart this daemon and its containers to get another subnet"
                )

    def _create(
        self,
        place: _Place,
        taken: list[Subnets],
        previous: Subnets | None,
        stale: Set[str],
        kept: Subnets | None,
    ) -> Generator[Call, Any, None]:
        for _ in range(CREATE_ATTEMPTS):
            subnets = allocate(place.network, taken, previous, self._rng, kept)
            attributes = yield from self._attributes(place, subnets, LeaseAttributes())
            self._unchecked.add(subnets.key)
            began = self._now
            try:
                record: Record = yield Create(subnets.key, attributes.to_json(), self._options.ttl)
            except ConflictError:
                self._unchecked.discard(subnets.key)
                if subnets == previous:  # perhaps it is ours, made by a mirror of two stores: look whose it is
                    raise StoreUnavailableError(
                        f"lease {subnets.key} has just come into being; looking again"
                    ) from None
                taken.append(subnets)
                continue
            rivals: list[Subnets] = []
            if len(place.network.versions) > 1:
                # Creating excludes everybody who wants the same key. With two families, two keys can share a subnet of
                # one of them; but then the node that was later sees the other's lease, and gives its own back. Two that
                # see each other both do.
                now_there: Snapshot = yield TakeSnapshot()
                others = {other.key: other for other in now_there.leases if other.key not in stale}
                rivals = _rivals(place.network, record.key, others)
            self._unchecked.discard(subnets.key)
            if not rivals:
                self._hold(record, began)
                return
            taken += rivals
            with suppress(ConflictError):
                yield Delete(record)
        raise StoreUnavailableError("many nodes are leasing subnets right now; trying again")

    # A session's duties -----------------------------------------------------------------------------------------------

    def _open_watch(self) -> _Steps:
        session = self._session
        assert session is not None
        if "watch" in self._troubles:
            yield ReadConfig()  # is it back? A watch on a dead store may say nothing for a long time
        self._watches += 1
        number = session.watch = self._watches
        session.watch_opened = self._now
        try:
            yield OpenWatch(number, session.revision)
        except PyflannelError:
            session.watch = None
            raise
        if session.watch == number:
            self._troubles.pop("watch", None)

    def _publish(self) -> _Steps:
        """Write what we are into our lease."""
        asked = self._asked
        try:
            yield from self._write_our_lease()
        except PyflannelError as error:
            self._settle_requests(asked, error)
            raise
        self._settle_requests(asked, None)
        self._troubles.pop("publish", None)
        self._pauses["publish"].backoff.reset()

    def _write_our_lease(self) -> _Steps:
        held, lease = self._held, self._state.lease
        if held is None or lease is None:
            raise ConflictError("our lease is gone")
        attributes = yield from self._attributes(self._in_force, lease.subnets, lease.attributes)
        held, lease = self._held, self._state.lease
        if held is None or lease is None:
            raise ConflictError("our lease is gone")
        said = _readable(held)  # what the store holds: somebody else may have written rubbish over what we said
        if said is None or attributes != said.attributes:
            yield Update(held, attributes.to_json(), None if held.permanent else self._options.ttl)
        elif self._options.assigned:
            yield Renew(held, self._options.ttl)  # for what the store itself has to see to

    def _announce(self) -> _Steps:
        """Tell the store whether our overlay carries packets."""
        ready = self._ready
        assert ready is not None
        self._announced = None  # until an answer comes nobody knows which of the two the store was told last
        yield Announce(ready)
        self._announced = ready
        self._troubles.pop("announce", None)
        self._pauses["announce"].clear()
        self._pauses["announce"].at = self._now  # it may have changed meanwhile

    def _look_again(self, only_if_needed: bool = False) -> None:
        """The document or the underlay is another one: follow it as soon as possible."""
        place = self._place
        if place is not None and (place.document, place.underlay) == (self._document, self._underlay):
            self._pauses["follow"].clear()
            self._troubles.pop("follow", None)
        elif place is not None and not (only_if_needed and "follow" in self._troubles):
            self._pauses["follow"].clear()
            self._pauses["follow"].at = self._now
        if self._session is None and self._pauses["join"].at is not None:
            self._pauses["join"].at = self._now

    def _follow(self) -> _Steps:
        """Go over to the document and the underlay that there are now; each for itself."""
        document, underlay, place = self._document, self._underlay, self._in_force
        assert underlay is not None
        refused: PyflannelError | None = None
        if document != place.document or place.trouble:
            try:
                candidate = yield from self._place_for(document, underlay)
            except PyflannelError as error:
                refused = error
            else:
                if document == self._document and self._go_over(place, candidate):
                    return
                place = self._in_force
        if underlay != place.underlay:
            try:
                _check_underlay(place.network, underlay, place.backend)
            except PyflannelError as error:
                refused = refused or error
            else:
                self._place = replace(place, underlay=underlay)
                self._say(None)
                self._pauses["publish"].at = self._now
        if (document, underlay) != (self._document, self._underlay):
            self._look_again()
        elif refused is not None:
            raise refused
        else:
            self._look_again()

    def _go_over(self, place: _Place, candidate: _Place) -> bool:
        """Follow a document: in this session where no subnet can change, else in another. Whether all is done."""
        if candidate.network.families != place.network.families:
            self._candidate = candidate
            self._restarts.reset()
            self._rejoin(None)
            return True
        if (candidate.document, candidate.trouble) != (place.document, place.trouble):
            self._settle_on(candidate)
            self._say(None)
            self._pauses["publish"].at = self._now
        if candidate.trouble:
            self._pauses["follow"].put_off(self._now)
        return bool(candidate.trouble)

    # What the watch tells ---------------------------------------------------------------------------------------------

    def _take_in(self, session: _Session, batch: Batch) -> None:
        session.revision = batch.revision
        self._pauses["watch"].backoff.reset()
        peers: list[tuple[str, str | None]] = []
        for change in batch.changes:
            if change.key == CONFIG_KEY:
                self._config_changed(change.record)
            elif change.key == session.key:
                self._own_changed(session, change.record)
            else:
                self._look_for_twin(change)
                peers.append((change.key, None if change.record is None else change.record.value))
        if peers:
            self._slot.change(peers, _created(change.record for change in batch.changes if change.record is not None))

    def _look_for_twin(self, change: Change) -> None:
        """Another machine with our node id may come at the same time, or go."""
        record = change.record
        if change.key == self._twin_key:
            self._note_twin(None)  # it may have an id of its own by now
        if record is None or self._options.node_id not in record.value:  # reading all takes as long as all the rest
            return
        lease = _readable(record)
        if lease is not None and self._myself.is_twins(lease.attributes):
            self._note_twin(lease)

    def _config_changed(self, record: Record | None) -> None:
        """A document that is gone leaves the one in force."""
        document = self._in_force.document if record is None else record.value
        if document != self._document:
            self._document = document
            self._look_again()

    def _is_anothers(self, lease: Lease, mine: Lease) -> bool:
        """Whether our record says another node's name now. In an assigned one, the address alone is an operator's."""
        if self._options.assigned:
            return lease.attributes.node_id not in (None, self._options.node_id)
        return _is_anothers(lease, mine)

    def _speaks_again(self, theirs: LeaseAttributes) -> bool:
        """Whether the machine that we have taken our lease over from writes to it again, and so is another one."""
        taken = self._taken_from
        if taken is None or (theirs.node_id, _addresses(theirs)) != (self._node_id, _addresses(taken)):
            return False
        mine = self._state.lease
        moved = mine is not None and _addresses(mine.attributes) != _addresses(taken)
        return moved or (theirs.marks == taken.marks != self._marks)

    def _own_changed(self, session: _Session, record: Record | None) -> None:
        """The watch told of our record: written by us, or deleted, expired, or written by somebody else."""
        if session is not self._session:
            return
        pending = self._pending.get(Lane.STORE)
        if pending is not None and isinstance(pending.call, Update | Renew):
            session.unheard.append(record)
            return
        session.confirm_at = None
        held = self._held
        if held is None or record is None:
            self._lose()
            self._rejoin(None)
            return
        if record.version == held.version:
            return
        lease, mine = _readable(record), self._state.lease
        if lease is not None and self._speaks_again(lease.attributes):
            self._gives_way = True  # we came later
            self._node_id = Myself(self._options.node_id, self._marks).derived
            self._lose()
            self._rejoin(None)
            return
        if lease is not None and mine is not None and self._is_anothers(lease, mine):
            theirs = lease.attributes
            if theirs.node_id != self._options.node_id and self._options.policy is ConflictPolicy.REFUSE:
                self._yielded_to = theirs.node_id
            self._lose()
            self._rejoin(
                LeaseError(
                    f"our lease {record.key} was overwritten by node {theirs.node_id!r} at "
                    f"{theirs.public_ip or theirs.public_ipv6}; two nodes must not share a node id (is one a clone of "
                    "the other?), an address or a subnet"
                )
            )
            return
        self._held = replace(record, permanent=held.permanent or record.permanent)
        if lease is not None:
            self._state = replace(self._state, lease=lease)
        other = lease is not None and lease.attributes.marks not in (NO_MARKS, self._marks)
        self._pauses["publish"].at = self._now + (REWRITE_PAUSE if other else 0.0)


# Pure judgements ------------------------------------------------------------------------------------------------------


def _backends_apart(old: Side, new: Side) -> str:
    """How two settings differ in what all nodes have to agree on; empty if they don't."""
    if old.name != new.name:
        return f"its backend is {new.name}, the one in force {old.name}"
    keys = options_apart(old.backend.options, new.backend.options)
    return f"its Backend has another {', '.join(keys)}" if keys else ""


def _key_written(call: Call) -> str | None:
    """Of which lease the answer must be."""
    if isinstance(call, Create):
        return call.key
    return call.record.key if isinstance(call, Update | Renew) else None


def _is_anothers(lease: Lease, mine: Lease) -> bool:
    theirs, ours = lease.attributes, mine.attributes
    if theirs.node_id is None:
        return False
    return (theirs.node_id, theirs.public_ip, theirs.public_ipv6) != (ours.node_id, ours.public_ip, ours.public_ipv6)


def _addresses(attributes: LeaseAttributes) -> frozenset[IPAddress]:
    return frozenset(ip for ip in (attributes.public_ip, attributes.public_ipv6) if ip is not None)


def _who(attributes: LeaseAttributes) -> tuple[frozenset[IPAddress], Marks]:
    """What a lease says of the machine that wrote it."""
    return _addresses(attributes), attributes.marks


def _check_underlay(network: NetworkConfig, underlay: Underlay, backend: Backend[Any]) -> None:
    for version in network.versions:
        public, local = underlay.public(version), underlay.local(version)
        if public is None or local is None:
            raise UnderlayError(
                f"the network uses IPv{version}, but interface {underlay.interface} has no usable IPv{version} "
                f"address; add one, choose another interface with --iface, or set EnableIPv{version} to false"
            )
        if public != local and backend.capabilities.interface_public_ip:
            raise ConfigError(
                f"backend {backend.name} needs the public address on the interface itself, but --public-ip is "
                f"{public} and {underlay.interface} has {local}; drop --public-ip, or use a backend such as vxlan"
            )


def _concerning(identity: Identity, records: Mapping[str, Record]) -> Iterator[Record]:
    """The records that may be ours or a rival's: those that name us. Reading all takes as long as all the rest."""
    addresses = [str(ip) for ip in (identity.public_ipv4, identity.public_ipv6) if ip is not None]
    names = [f'"{name}"' for name in (identity.node_id, *addresses)]
    for record in records.values():
        # A text with escapes or an IPv6 address may spell one name in several ways.
        if "\\" in record.value or identity.public_ipv6 is not None or any(name in record.value for name in names):
            yield record


def _network_of(document: str) -> NetworkConfig | None:
    try:
        return NetworkConfig.from_json(document) if document else None
    except ConfigError:
        return None


def _created(records: Iterable[Record]) -> dict[str, int]:
    return {record.key: record.created for record in records if record.created}


def _readable(record: Record) -> Lease | None:
    try:
        return Lease.from_record(record.key, record.value)
    except MalformedError:
        return None


def _claim(network: NetworkConfig, key: str) -> Subnets | None:
    """What a record of this key takes away from others.

    A claim to the whole network or more takes nothing: it is nobody's subnet, and must not shut all other nodes out.
    """
    try:
        subnets = Subnets.from_key(key)
    except MalformedError:
        return None
    families = [(network.family(subnet.version), subnet) for subnet in subnets.each]
    plausible = all(family is None or subnet.prefixlen > family.network.prefixlen for family, subnet in families)
    return subnets if plausible else None


def _rivals(network: NetworkConfig, key: str, keys: Iterable[str]) -> list[Subnets]:
    """What others lease that overlaps the lease ``key``."""
    ours = _claim(network, key)
    if ours is None:
        return []
    claims = [_claim(network, other) for other in keys if other != key]
    return [claim for claim in claims if claim is not None and claim.overlaps(ours)]


def _chosen(texts: Iterable[str]) -> tuple[IPAddress, ...]:
    """
    :raises StoreError: one of them is none.
    """
    try:
        return tuple(ip_address(text) for text in texts)
    except ValueError as error:
        raise StoreError(f"the address that is to be this node's: {error}; correct it in the store") from None
