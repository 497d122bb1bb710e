"""A session begins when we hold a lease, and ends whenever something can't be explained: then we join again.

Within it the node may go over to another document or underlay. Each such step is a *generation*, which the daemon's
loop adopts as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyflannel.errors import PyflannelError
from pyflannel.membership.calls import CloseWatch, Keep
from pyflannel.membership.place import Place
from pyflannel.membership.records import creation
from pyflannel.membership.slot import Generation
from pyflannel.membership.state import KeeperState, StoreSession
from pyflannel.store import Record, Snapshot

__all__ = ["begin", "begin_generation", "confirm", "drop_watch", "rejoin", "settle_on"]

STEADY_AFTER: Final = 30.0
"""Seconds that a session must have lasted for its end not to count as a failure in a row."""

CONFIRM_INTERVAL: Final = 2.0
"""Seconds within which the watch should tell of the lease that we created. A store that compares states tells nothing
of one that was created and deleted between two looks, so until it has told we ask."""


def rejoin(state: KeeperState, error: PyflannelError | None) -> None:
    """End the session, and begin another: at once, unless the last one did not last."""
    session, pause = state.session, state.pauses["join"]
    if session is not None:
        if state.now - session.began >= STEADY_AFTER:
            state.restarts.reset()
        drop_watch(state, session)
        state.session = None
        again = state.restarts.attempts > 0
        delay = state.restarts.next()
        pause.at = state.now + delay if again or error is not None else state.now
        for duty in ("watch", "publish", "follow"):
            state.troubles.pop(duty, None)
            job = state.jobs.pop(duty, None)
            if job is not None:
                job.cancel()
    if error is not None:
        state.troubles["join"] = error


def drop_watch(state: KeeperState, session: StoreSession) -> None:
    """End a session's watch, if it has one."""
    if session.watch is not None:
        state.orders.append(CloseWatch(session.watch))
        session.watch = None


def settle_on(state: KeeperState, place: Place) -> None:
    """Follow a document from now on, and after a restart."""
    state.place = place
    if place.document != state.kept:
        state.kept = place.document
        state.orders.append(Keep(place.document))


def begin_generation(state: KeeperState, records: Mapping[str, Record] | None) -> None:
    """A new generation, with all other nodes' leases; ``None``: with those that are known already."""
    lease = state.lease_state.lease
    assert lease is not None
    place = state.in_force
    state.generation += 1
    node = state.node(place, lease.subnets, lease.attributes)
    generation = Generation(state.generation, node, place.planner, lease, place.last, place.overruled)
    if records is None:
        state.slot.begin(generation)
    else:
        values = {key: record.value for key, record in records.items()}
        state.slot.begin(generation, values, creation(records.values()))


def begin(state: KeeperState, place: Place, held: Record, snapshot: Snapshot, records: Mapping[str, Record]) -> None:
    """We hold a lease: a session begins, and a generation."""
    settle_on(state, place)
    state.candidate = None
    session = state.session = StoreSession(held.key, snapshot.revision, state.now)
    if held.key not in {record.key for record in snapshot.leases}:
        confirm(state, session)
    state.troubles.pop("join", None)
    state.pauses["join"].clear()
    state.pauses["watch"].at = state.now
    begin_generation(state, {key: record for key, record in records.items() if key != held.key})


def confirm(state: KeeperState, session: StoreSession) -> None:
    """Ask for our lease again before long, unless the watch has told of it by then."""
    session.confirm_at = state.now + CONFIRM_INTERVAL
