"""Hearing of changes, and what each kind of them means: another node's lease, the network document, our own lease.

Others' leases are passed on as they are. Of our own record the watch may tell what we wrote ourselves; anything else
that it tells ends the session, or makes us write anew what we are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pyflannel.errors import HistoryGoneError, LeaseError, PyflannelError
from pyflannel.membership import renewal
from pyflannel.membership.allocation import ConflictPolicy
from pyflannel.membership.calls import Lane, OpenWatch, ReadConfig, Renew, Steps, Update
from pyflannel.membership.following import hear_of_document, look_again
from pyflannel.membership.naming import Myself
from pyflannel.membership.records import creation, is_anothers, readable
from pyflannel.membership.session import rejoin
from pyflannel.membership.state import KeeperState, StoreSession
from pyflannel.membership.twins import look_for_twin, speaks_again
from pyflannel.network.lease import Lease
from pyflannel.network.marks import NO_MARKS
from pyflannel.store import CONFIG_KEY, Batch, Record

__all__ = ["failed", "own_changed", "take_in", "watch"]

REWRITE_PAUSE: Final = 1.0
"""Seconds before we write anew what another machine at our own address has written, so that two don't race; and what
somebody changes who has changed our record just before."""

STEADY_AFTER: Final = 30.0
"""Seconds that a watch must have lasted for its end not to count as a failure in a row."""


def failed(state: KeeperState, session: StoreSession, error: PyflannelError) -> None:
    """The watch is gone, or could not be opened; it resumes where it broke off as long as the store knows the place."""
    if isinstance(error, HistoryGoneError):
        rejoin(state, None)
        return
    pause = state.pauses["watch"]
    if session.watch_opened and state.now - session.watch_opened >= STEADY_AFTER:
        pause.backoff.reset()
    session.watch, session.watch_opened = None, 0.0
    state.troubles["watch"] = error
    pause.put_off(state.now)


def watch(state: KeeperState) -> Steps[None]:
    """Open a watch where the last one ended."""
    session = state.session
    assert session is not None
    if "watch" in state.troubles:
        yield ReadConfig()  # is it back? A watch on a dead store may say nothing for a long time
    state.watches += 1
    number = session.watch = state.watches
    session.watch_opened = state.now
    try:
        yield OpenWatch(number, session.revision)
    except PyflannelError:
        session.watch = None
        raise
    if session.watch == number:
        state.troubles.pop("watch", None)


def take_in(state: KeeperState, session: StoreSession, batch: Batch) -> None:
    """A watch has told of these changes."""
    session.revision = batch.revision
    state.pauses["watch"].backoff.reset()
    peers: list[tuple[str, str | None]] = []
    for change in batch.changes:
        if change.key == CONFIG_KEY:
            before = state.document
            hear_of_document(state, change.record)
            if state.document != before:
                look_again(state)
        elif change.key == session.key:
            own_changed(state, session, change.record)
        else:
            look_for_twin(state, change)
            peers.append((change.key, None if change.record is None else change.record.value))
    if peers:
        state.slot.change(peers, creation(change.record for change in batch.changes if change.record is not None))


def _claimed_by_another(state: KeeperState, lease: Lease, mine: Lease) -> bool:
    """Whether our record says another node's name now. In an assigned one, the address alone is an operator's."""
    if state.options.assigned:
        return lease.attributes.node_id not in (None, state.options.node_id)
    return is_anothers(lease, mine)


def own_changed(state: KeeperState, session: StoreSession, record: Record | None) -> None:
    """The watch told of our record: written by us, or deleted, expired, or written by somebody else."""
    if session is not state.session:
        return
    pending = state.pending.get(Lane.STORE)
    if pending is not None and isinstance(pending.call, Update | Renew):
        session.unheard.append(record)
        return
    session.confirm_at = None
    held = state.held
    if held is None or record is None:
        renewal.lose(state)
        rejoin(state, None)
        return
    if record.version == held.version:
        return
    lease, mine = readable(record), state.lease_state.lease
    if lease is not None and speaks_again(state, lease.attributes):
        state.gives_way = True  # we came later
        state.node_id = Myself(state.options.node_id, state.marks).derived
        renewal.lose(state)
        rejoin(state, None)
        return
    if lease is not None and mine is not None and _claimed_by_another(state, lease, mine):
        theirs = lease.attributes
        if theirs.node_id != state.options.node_id and state.options.policy is ConflictPolicy.REFUSE:
            state.yielded_to = theirs.node_id
        renewal.lose(state)
        rejoin(
            state,
            LeaseError(
                f"our lease {record.key} was overwritten by {theirs.holder}; two nodes must not share a node id (is "
                "one a clone of the other?), an address or a subnet"
            ),
        )
        return
    state.held = replace(record, permanent=held.permanent or record.permanent)
    if lease is not None:
        state.lease_state = replace(state.lease_state, lease=lease)
    other = lease is not None and lease.attributes.marks not in (NO_MARKS, state.marks)
    again = state.now - state.changed_at < REWRITE_PAUSE
    state.changed_at = state.now
    state.pauses["publish"].at = state.now + (REWRITE_PAUSE if other or again else 0.0)
