"""Another machine with our node id: which leases are its own, by which id we go, and when we give way.

How two machines are told apart is judged in :mod:`pyflannel.membership.naming`; here it is remembered and reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pyflannel.membership.records import addresses, readable
from pyflannel.membership.state import KeeperState
from pyflannel.network.lease import Lease, LeaseAttributes
from pyflannel.store import Change, Record

__all__ = ["apart_from_twins", "look_for_twin", "speaks_again"]


def apart_from_twins(state: KeeperState, records: Iterable[Record]) -> list[Lease]:
    """The leases of these records, without those of a machine with our node id; decides by which id we go."""
    leases = [lease for record in records if (lease := readable(record)) is not None]
    me = state.myself
    naming = me.name(leases, state.node_id, held=state.generation > 0)
    state.node_id, twin = naming.node_id, naming.twin
    if twin is None and state.gives_way:
        twin = next((lease for lease in leases if lease.attributes.node_id == state.options.node_id), None)
    _note_twin(state, twin)
    return [lease for lease in leases if not me.is_twins(lease.attributes, state.node_id)]


def _note_twin(state: KeeperState, twin: Lease | None) -> None:
    state.twin_key = twin.key if twin is not None else ""
    state.lease_state = replace(state.lease_state, twin=_told_of(state, twin) if twin is not None else "")


def _told_of(state: KeeperState, twin: Lease) -> str:
    theirs = twin.attributes
    if state.node_id == state.options.node_id:
        return (
            f"another machine has this one's node id {state.node_id!r}, and came at the same time: that of lease "
            f"{twin.key} at {theirs.public_ip or theirs.public_ipv6}. Each keeps its lease; give the one that was "
            "copied a machine id of its own ('pyflannel doctor' says how)"
        )
    return (
        f"another machine has this one's node id {state.options.node_id!r}: that of lease {twin.key} at "
        f"{theirs.public_ip or theirs.public_ipv6}. It keeps that lease, and this node goes by {state.node_id!r} "
        "with a subnet of its own. If it was copied, give it a machine id of its own ('pyflannel doctor' says how)"
    )


def look_for_twin(state: KeeperState, change: Change) -> None:
    """Another machine with our node id may come at the same time, or go."""
    record = change.record
    if change.key == state.twin_key:
        _note_twin(state, None)  # it may have an id of its own by now
    if record is None or state.options.node_id not in record.value:  # reading all takes as long as all the rest
        return
    lease = readable(record)
    if lease is not None and state.myself.is_twins(lease.attributes):
        _note_twin(state, lease)


def speaks_again(state: KeeperState, theirs: LeaseAttributes) -> bool:
    """Whether the machine that we have taken our lease over from writes to it again, and so is another one.

    What has our marks, where that one's were others, we wrote ourselves, and hear of it late.
    """
    taken = state.taken_from
    if taken is None or (theirs.node_id, addresses(theirs)) != (state.node_id, addresses(taken)):
        return False
    if theirs.marks == state.marks != taken.marks:
        return False
    mine = state.lease_state.lease
    moved = mine is not None and addresses(mine.attributes) != addresses(taken)
    return moved or (theirs.marks == taken.marks != state.marks)
