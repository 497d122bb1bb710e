"""The lease keeper without I/O: gets this node's lease, keeps it, and says what the store tells of everybody else's.

Input and the time go in; what is known now comes out in a :class:`~pyflannel.membership.slot.Slot`, and the calls that
have to be made as frozen values (:mod:`pyflannel.membership.calls`). Somebody else makes them (a thread, or a
simulation of a whole cluster) and brings their results. Of each kind (:class:`Lane`) one call is under way at most.

The machine has *duties*, and each of them is taken care of for itself, so that none waits for another. All of them work
on one state (:mod:`pyflannel.membership.state`); here is when each has its turn, and what its failure means.

* **renew** (:mod:`~pyflannel.membership.renewal`) comes first, always. A lease that we hold is renewed when that is
  due, whatever else can't go on: a document that nobody can follow, an address that is missing, a backend that doesn't
  answer. Only a lease that is another's now is not.
* **join** (:mod:`~pyflannel.membership.joining`): take a snapshot, decide from it what our lease is, make that so by
  compare-and-swap, and begin a *session*. Whatever can't be explained (history gone, our lease gone) ends the session,
  and joining begins again from a snapshot.
* **announce** tells the store whether this node's overlay carries packets, for those who would start work here.
* **watch**, **publish** and **follow** (:mod:`~pyflannel.membership.watching`, :mod:`~pyflannel.membership.publishing`,
  :mod:`~pyflannel.membership.following`) are a session's: hear of changes, make our lease say what we are, and go over
  to another document or underlay as soon as that is possible. Until then the session goes on with the ones in force. A
  document that all nodes have to follow together is followed only by way of a change
  (:mod:`pyflannel.network.change`); one that merely was written keeps the one in force, and is trouble.

Each duty has a trouble of its own, which is there from its failure until it succeeds, and pauses of its own.

An outage is not the end of a session. The node goes on forwarding with what it knows, and the watch resumes where it
broke off when the store still knows the place. A call that does not come back is named, and after a longer while the
store is given up for a new one of the same kind.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from pyflannel.errors import (
    ConfigError,
    ConflictError,
    HistoryGoneError,
    LeaseError,
    PluginError,
    PyflannelError,
    StoreError,
    StoreUnavailableError,
)
from pyflannel.membership import joining, renewal, watching
from pyflannel.membership.calls import (
    BrokenStoreError,
    Call,
    Delete,
    Do,
    GiveUp,
    Lane,
    Load,
    OpenStore,
    Order,
    Publish,
    Reaches,
    Renew,
    Steps,
    Update,
    judged,
)
from pyflannel.membership.following import follow, look_again
from pyflannel.membership.publishing import announce, publish, settle_requests
from pyflannel.membership.session import drop_watch, rejoin
from pyflannel.membership.slot import Slot
from pyflannel.membership.state import Job, KeeperOptions, KeeperState, Pending
from pyflannel.network.change import NodeProgress
from pyflannel.network.lease import Subnets
from pyflannel.network.marks import NO_MARKS, Marks
from pyflannel.network.underlay import Underlay
from pyflannel.small.guarded import PluginCall
from pyflannel.store import CALL_TIMEOUT, Batch

__all__ = ["LeaseMachine"]

NAMED_AFTER: Final = CALL_TIMEOUT + 1.0
"""Seconds after which a call is one that hangs, and said to be; the contract allows a store CALL_TIMEOUT."""

GIVEN_UP_AFTER: Final = 3 * CALL_TIMEOUT
"""Seconds after which a store that hangs is given up for a new one."""

MOST_GIVEN_UP: Final = 8
"""How many stores may hang in a call at a time, each with a thread, before the last one is waited for."""

_DUTIES: Final[Mapping[str, Callable[[KeeperState], Steps[None]]]] = {
    "join": joining.join,
    "watch": watching.watch,
    "publish": publish,
    "follow": follow,
    "announce": announce,
}
"""What takes turns, in the order in which those that are due at the same time begin."""


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
        self._state = KeeperState(options, store, scheme, previous, slot, rng)

    # Input ------------------------------------------------------------------------------------------------------------

    def start(self, underlay: Underlay | None, now: float, marks: Marks = NO_MARKS) -> None:
        """Begin.

        :param marks: what tells this machine from another one of its node id. Where the store assigns subnets it says
            who we are.
        """
        state = self._state
        state.marks = NO_MARKS if state.options.assigned else marks
        state.pauses["join"].at = now
        self.move(underlay, now)

    def move(self, underlay: Underlay | None, now: float) -> None:
        """The underlay is another one now, or there is none, and the one in force is kept until there is."""
        state = self._state
        state.now = now
        if underlay is not None and underlay != state.underlay:
            state.underlay = underlay
            look_again(state)
        self._turn()

    def publish(self, number: int, now: float) -> None:
        """Write into our lease what the backend publishes now; ``published`` will say so under this number."""
        state = self._state
        state.now, state.asked = now, max(number, state.asked)
        state.pauses["publish"].at = now
        if state.session is None and "join" in state.troubles:
            settle_requests(state, state.asked, state.troubles["join"])
        self._turn()

    def reached(self, progress: NodeProgress, now: float) -> None:
        """This node is so far in a change: have our lease say so."""
        state = self._state
        state.now = now
        if progress != state.reached:
            state.reached = progress
            state.pauses["publish"].at = now
        self._turn()

    def announce(self, ready: bool, now: float) -> None:
        """Our overlay carries packets, or does not: tell the store."""
        state = self._state
        if state.ready is None and state.place is not None and state.place.trouble:
            state.pauses["publish"].at = now  # for our lease may say it
        state.now, state.ready = now, ready
        state.pauses["announce"].at = now
        self._turn()

    def done(self, number: int, result: Any, now: float) -> None:
        """A call has come back with a value, or with an exception that it raised."""
        state = self._state
        state.now = now
        state.given_up.discard(number)
        pending = next((pending for pending in state.pending.values() if pending.number == number), None)
        if pending is not None:
            self._came_back(pending, result)
        self._turn()

    def batch(self, watch: int, batch: Batch, now: float) -> None:
        """A watch has told something."""
        state = self._state
        state.now = now
        session = state.session
        if session is not None and session.watch == watch:
            try:
                watching.take_in(state, session, batch)
            except Exception as error:  # a driver's nonsense
                told = f"its watch told what can't be read: {type(error).__name__}: {error}"
                rejoin(state, BrokenStoreError(f"store {state.scheme!r}: {told}"))
        self._turn()

    def broke(self, watch: int, error: PyflannelError, now: float) -> None:
        """A watch has ended."""
        state = self._state
        state.now = now
        session = state.session
        if session is not None and session.watch == watch:
            drop_watch(state, session)
            if isinstance(error, StoreUnavailableError | HistoryGoneError):
                watching.failed(state, session, error)
            else:  # what it can't tell, a snapshot may
                rejoin(state, error)
        self._turn()

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._state.now = now
        self._turn()

    def stop(self, now: float) -> None:
        """End; the lease stays in the store, for the next start."""
        self._state.now = now
        self._end()

    # Output -----------------------------------------------------------------------------------------------------------

    def orders(self) -> list[Order]:
        """What is to be done now, in this order; each is told once."""
        orders, self._state.orders = self._state.orders, []
        return orders

    @property
    def over(self) -> bool:
        """Whether there is nothing to be done any more."""
        return self._state.over

    @property
    def due(self) -> float | None:
        """When :meth:`tick` is to be called, if nothing comes in before."""
        state = self._state
        if state.over:
            return None
        times = [pending.named_at for pending in state.pending.values()]
        times += [at for duty in _DUTIES if self._wanted(duty) and (at := state.pauses[duty].at) is not None]
        first = self._first_call_at()
        if first is not None and Lane.STORE not in state.pending:
            times.append(first)
        return min(times, default=None)

    # The turn ---------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Begin what is due, make the calls that can be made, and say how things stand."""
        state = self._state
        if state.over:
            return
        self._look_at_hanging()
        for duty in _DUTIES:
            at = state.pauses[duty].at
            if self._wanted(duty) and at is not None and at <= state.now:
                self._begin(duty)
        for lane in Lane:
            if lane not in state.pending and not state.over:
                self._next_call(lane)
        self._report()

    def _wanted(self, duty: str) -> bool:
        """Whether a duty may begin as soon as its time has come."""
        state = self._state
        if duty in state.jobs:
            return False
        if duty == "join":
            return state.session is None and state.underlay is not None
        if duty == "announce":
            return state.ready is not None and state.ready != state.announced
        return state.session is not None and (duty != "watch" or state.session.watch is None)

    def _begin(self, duty: str) -> None:
        self._state.pauses[duty].at = None
        job = self._state.jobs[duty] = Job(duty, _DUTIES[duty](self._state))
        self._advance(job, None)

    def _advance(self, job: Job, result: Any) -> None:
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
            failure = BrokenStoreError(f"unexpected {type(error).__name__} in the lease keeper: {error}")
        finally:
            job.running = False
        if self._state.jobs.get(job.duty) is job:
            del self._state.jobs[job.duty]
            if failure is not None:
                self._failed(job.duty, failure)

    # Calls ------------------------------------------------------------------------------------------------------------

    def _first_call_at(self) -> float | None:
        """When the call is due that comes before all others: a renewal or, without a store, opening one."""
        state = self._state
        return renewal.due(state) if state.opened else state.pauses["open"].at

    def _next_call(self, lane: Lane) -> None:
        state, first = self._state, self._first_call_at()
        call: Call | None = None
        job: Job | None = None
        if lane is Lane.STORE and not state.opened:
            if first is None or first <= state.now:
                call = OpenStore()
        elif lane is Lane.STORE and first is not None and first <= state.now:
            assert state.held is not None
            call = Renew(state.held, state.options.ttl)
        else:
            waiting = (job for job in state.jobs.values() if job.waiting is not None and job.waiting.lane is lane)
            job = next(waiting, None)
            call = None if job is None else self._current(job.waiting)
        if call is not None:
            state.number += 1
            state.pending[lane] = Pending(state.number, call, state.now, job, state.now + NAMED_AFTER)
            state.orders.append(Do(state.number, call))

    def _current(self, call: Call | None) -> Call | None:
        """A call with our record as the last renewal left it."""
        held = self._state.held
        if held is None or not isinstance(call, Update | Renew | Delete):
            return call
        same = (call.record.key, call.record.version) == (held.key, held.version)
        return replace(call, record=held) if same else call

    def _came_back(self, pending: Pending, result: Any) -> None:
        state, call = self._state, pending.call
        del state.pending[call.lane]
        state.troubles.pop(f"hanging {call.lane.value}", None)
        result = judged(call, result, state.scheme)
        if isinstance(call, OpenStore):
            self._store_opened(result)
            return
        renewal.note(state, call, result, pending.since)
        if pending.job is None:
            renewal.renewed(state, result)
        elif state.jobs.get(pending.job.duty) is pending.job:
            self._advance(pending.job, result)
        session = state.session
        if session is not None and isinstance(call, Update | Renew):
            unheard, session.unheard = session.unheard, []
            for record in unheard:
                watching.own_changed(state, session, record)

    def _store_opened(self, result: PyflannelError | None) -> None:
        state = self._state
        pause = state.pauses["open"]
        if result is None:
            state.opened = True
            state.announced = None  # another driver knows nothing of it
            state.pauses["announce"].at = state.now
            state.troubles.pop("open", None)
            pause.clear()
            if state.session is None and state.pauses["join"].at is not None:
                state.pauses["join"].at = state.now
        elif self._fatal(result):
            self._end_with(result)
        else:
            state.troubles["open"] = result
            pause.put_off(state.now)

    def _look_at_hanging(self) -> None:
        """Name plugins that do not come back from a call; a store is given up after a longer while."""
        state = self._state
        for lane, pending in list(state.pending.items()):
            if state.now < pending.named_at:
                continue
            call = PluginCall(_asked(pending.call, state.scheme), pending.call.name, pending.since, _kind(lane))
            pending.named_at = state.now + CALL_TIMEOUT
            if lane is Lane.STORE:
                named = StoreUnavailableError(call.hanging(state.now))
                state.troubles["hanging store"] = named
                self._give_up_if_it_is_time(pending, named)
            else:
                state.troubles[f"hanging {lane.value}"] = PluginError(call.hanging(state.now))

    def _give_up_if_it_is_time(self, pending: Pending, named: StoreUnavailableError) -> None:
        state = self._state
        give_up_at = pending.since + GIVEN_UP_AFTER
        if state.now < give_up_at:
            pending.named_at = min(pending.named_at, give_up_at)
        if state.now < give_up_at or len(state.given_up) >= MOST_GIVEN_UP:
            return
        del state.pending[Lane.STORE]
        state.given_up.add(pending.number)
        state.opened = False
        state.orders.append(GiveUp())
        if pending.job is not None and state.jobs.get(pending.job.duty) is pending.job:
            self._advance(pending.job, named)
        if isinstance(pending.call, Renew) and pending.job is None:
            state.troubles["renew"] = named
            state.pauses["renew"].at = state.now
        rejoin(state, named)

    # Failures ---------------------------------------------------------------------------------------------------------

    def _failed(self, duty: str, error: PyflannelError) -> None:
        state, session = self._state, self._state.session
        if duty == "join":
            if self._fatal(error):
                self._end_with(error)
                return
            joining.failed(state, error)
        elif duty == "watch" and session is not None:
            watching.failed(state, session, error)
        elif duty == "publish" and isinstance(error, ConflictError):
            rejoin(state, None)
        else:
            state.troubles[duty] = error
            state.pauses[duty].put_off(state.now)
            if duty == "follow" and session is not None:
                state.pauses["publish"].at = state.now  # who waits for us is told why

    def _fatal(self, error: PyflannelError) -> bool:
        """Whether only another configuration helps."""
        wrong = isinstance(error, ConfigError | PluginError) and not isinstance(error, BrokenStoreError)
        return wrong and not self._state.generation

    def _end_with(self, error: PyflannelError) -> None:
        self._state.lease_state = replace(self._state.lease_state, fatal=error)
        self._report()
        self._end()

    def _end(self) -> None:
        state = self._state
        if state.session is not None:
            drop_watch(state, state.session)
        for job in state.jobs.values():
            job.cancel()
        state.jobs.clear()
        state.over = True

    def _report(self) -> None:
        """Say how things stand: another's claim first, then what keeps us from the store, then the rest."""
        state = self._state
        hanging = (f"hanging {lane.value}" for lane in Lane)
        order = (*hanging, "open", "join", "renew", "watch", "follow", "document", "publish", "announce")
        errors = [state.troubles[name] for name in order if name in state.troubles]
        claims = [error for error in errors if isinstance(error, LeaseError)]
        error = next(iter(claims or errors), None)
        apart = _apart(state)
        refused = state.troubles.get("follow", state.troubles.get("document"))
        state.slot.report(
            replace(
                state.lease_state,
                trouble=apart if error is None else str(error),
                connected=not any(isinstance(each, StoreError | BrokenStoreError) for each in errors),
                conflict=bool(claims),
                refused=str(refused) if isinstance(refused, (ConfigError, PluginError)) else "",
            )
        )


def _apart(state: KeeperState) -> str:
    """That the others are in a change that this node can't have its part in; empty if it has, or there is none."""
    place = state.place
    if place is None or place.written.change is None or not place.trouble:
        return ""
    return f"the network is being changed, and this node can't have the new settings: {place.trouble}"


def _asked(call: Call, scheme: str) -> str:
    """The name of the plugin that a call is made to."""
    if isinstance(call, Load):
        return call.network.backend_type
    if isinstance(call, Publish):
        return call.backend.name
    return call.side.name if isinstance(call, Reaches) else scheme


def _kind(lane: Lane) -> str:
    return "store" if lane is Lane.STORE else "backend"
