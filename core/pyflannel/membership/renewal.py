"""The lease that we hold: what it lives from, and when it is to be renewed.

Whoever wrote our record last, what the store answered is what we hold, and it lives from *before* that call. Renewing
is no duty that waits for its turn: when it is due it comes before all else that is asked of the store.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from pyflannel.errors import ConflictError, PyflannelError
from pyflannel.membership.calls import Call, Delete, Renew, Update
from pyflannel.membership.records import readable
from pyflannel.membership.session import confirm, rejoin
from pyflannel.membership.state import KeeperState
from pyflannel.store import Record

__all__ = ["as_known", "due", "hold", "lose", "note", "renewed"]

LONGEST_MARGIN: Final = 2 / 3
"""Of a lease's life: with a longer margin it would be renewed for ever."""

SHORTEST_LIFE: Final = 1.0
"""Seconds. A store that says less is not asked again all the time."""


def due(state: KeeperState) -> float | None:
    """When our lease is to be renewed, if we hold one that ends."""
    if state.held is None or state.held.permanent:
        return None
    confirm_at = state.session.confirm_at if state.session is not None else None
    times = [at for at in (state.pauses["renew"].at, confirm_at) if at is not None]
    return min(times, default=None)


def note(state: KeeperState, call: Call, result: Any, since: float) -> None:
    """Whoever wrote our record: what is in the store now is what we hold. It lives from *before* the call."""
    held = state.held
    if held is None or not isinstance(call, Update | Renew | Delete) or call.record.key != held.key:
        return
    if isinstance(call, Delete):
        if not isinstance(result, BaseException):
            lose(state)
    elif isinstance(result, Record):
        hold(state, as_known(call.record, result) if isinstance(call, Renew) else result, since)


def as_known(record: Record, renewed: Record) -> Record:
    """What a renewal has answered. If somebody has written over the record meanwhile, that is heard of by the watch,
    like all that others write: until then we know the record as it was."""
    if readable(renewed) == readable(record):
        return renewed
    return replace(renewed, value=record.value, version=record.version)


def hold(state: KeeperState, record: Record, since: float) -> None:
    """Note that ``record`` is ours, as written or renewed by a call that began at ``since``.

    It lives as long as was asked for, or less if the store says so: Consul grants no more than a day.
    """
    lease = readable(record) or state.lease_state.lease
    ttl, margin = state.options.ttl, state.options.margin
    if record.ttl is not None:
        ttl = min(ttl, max(record.ttl, SHORTEST_LIFE))
    state.held = record
    pause = state.pauses["renew"]
    pause.clear()
    if not record.permanent:
        pause.at = since + ttl - min(margin, LONGEST_MARGIN * ttl) * (1 + 0.1 * state.rng.random())
    state.troubles.pop("renew", None)
    state.lease_state = replace(
        state.lease_state,
        lease=lease,
        permanent=record.permanent,
        expires_at=None if record.permanent else since + ttl,
        renewed_at=state.now,
    )


def lose(state: KeeperState) -> None:
    """Our lease is gone, or another's."""
    state.held = None
    state.pauses["renew"].clear()


def renewed(state: KeeperState, result: Any) -> None:
    """A renewal has come back."""
    session = state.session
    if isinstance(result, ConflictError):
        lose(state)
        rejoin(state, None)
    elif isinstance(result, PyflannelError):
        state.troubles["renew"] = result
        state.pauses["renew"].put_off(state.now)
        if session is not None and session.confirm_at is not None:
            session.confirm_at = state.pauses["renew"].at
    elif session is not None and session.confirm_at is not None:
        confirm(state, session)
