"""Getting a lease where nodes choose their subnets themselves: go on with one that is ours, or create one.

What is to be done is decided by pure functions (:mod:`pyflannel.membership.allocation`); here it is made so. Creating a
key that must be absent keeps two nodes apart, and where two keys can still cross, looking again does.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import replace
from typing import Final

from pyflannel.errors import ConflictError, LeaseError, StoreUnavailableError
from pyflannel.membership import publishing, renewal
from pyflannel.membership.allocation import Adopt, Contested, Existing, Fresh, Identity, allocate, decide
from pyflannel.membership.calls import Create, Delete, Renew, Steps, TakeSnapshot, Update
from pyflannel.membership.place import Place
from pyflannel.membership.records import claims, concerning, crossing, readable, writer
from pyflannel.membership.state import KeeperState
from pyflannel.membership.twins import apart_from_twins
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Lease, LeaseAttributes, Subnets
from pyflannel.store import Record, Snapshot

__all__ = ["obtain"]

CREATE_ATTEMPTS: Final = 10
"""How often another subnet is drawn when others were quicker, before joining begins anew."""


def obtain(state: KeeperState, place: Place, records: dict[str, Record]) -> Steps[bool]:
    """Hold a lease; whether it says already what we are. ``records`` loses those of ours that are given back."""
    network = place.network
    addresses = (
        place.underlay.public_ipv4 if network.ipv4 else None,
        place.underlay.public_ipv6 if network.ipv6 else None,
    )
    leases = apart_from_twins(state, concerning(Identity(state.options.node_id, *addresses), records))
    identity = Identity(state.node_id, *addresses)
    leases += _spoiled(state, records)
    existing = [Existing(lease, records[lease.key].permanent) for lease in leases if lease.key in records]
    previous = state.last_subnets
    decision = decide(network, identity, existing, previous, state.options.policy)
    if isinstance(decision, Contested):
        raise LeaseError(decision.reason)
    stale = [records.pop(lease.key) for lease in decision.stale]
    sound = yield from _obtain_new(state, place, records, decision, {record.key for record in stale})
    for record in stale:  # last, so that peers never see us without a lease: the new one may have the same subnet
        yield Delete(record)
    return sound


def _spoiled(state: KeeperState, records: Mapping[str, Record]) -> list[Lease]:
    """Our lease, if somebody has written over it what can't be read: nobody else says that it is theirs."""
    lease = state.lease_state.lease if state.generation else None
    record = records.get(lease.key) if lease is not None else None
    if lease is None or record is None or readable(record) is not None:
        return []
    return [Lease(lease.subnets, LeaseAttributes(node_id=state.node_id))]


def _obtain_new(
    state: KeeperState, place: Place, records: dict[str, Record], decision: Adopt | Fresh, stale: set[str]
) -> Steps[bool]:
    network = place.network
    if isinstance(decision, Adopt):
        key = decision.lease.key
        if key in state.unchecked and crossing(network, key, records):
            yield Delete(records.pop(key))
        else:
            return (yield from _adopt(state, place, records[key], decision.lease))
    taken = claims(network, records)
    _refuse_to_lose(state, network, records, taken)
    ours = [lease.subnets for lease in decision.stale if lease.attributes.node_id == state.node_id]
    kept = state.lease_state.lease.subnets if state.lease_state.lease is not None else next(iter(ours), None)
    yield from _create(state, place, list(taken.values()), state.last_subnets, stale, kept)
    return True


def _adopt(state: KeeperState, place: Place, record: Record, lease: Lease) -> Steps[bool]:
    """Go on with a lease that exists. One that was ours before can say later what we are now."""
    state.unchecked.discard(record.key)
    held = state.held
    ours = held is not None and held.key == record.key
    if held is not None and ours and state.generation:
        state.held = replace(record, permanent=held.permanent or record.permanent)  # perhaps another's words by now
        if place.document != state.in_force.document:  # that it is renewed says that the new document is followed
            yield Renew(record, state.options.ttl)
        return False
    attributes = yield from publishing.our_attributes(state, place, lease.subnets, lease.attributes)
    ttl = None if record.permanent else state.options.ttl
    began = state.now
    if attributes != lease.attributes:
        renewal.hold(state, (yield Update(record, attributes.to_json(), ttl)), began)
        if not state.generation and writer(lease.attributes) != writer(attributes):
            state.taken_from = lease.attributes
    elif not ours:
        renewal.hold(state, renewal.as_known(record, (yield Renew(record, state.options.ttl))), began)
    return True


def _refuse_to_lose(
    state: KeeperState, network: NetworkConfig, records: Mapping[str, Record], claims: Mapping[str, Subnets]
) -> None:
    """A node whose subnet is another's now must not quietly get a new one: its containers have addresses of it."""
    held = state.lease_state.lease if state.generation and not state.gives_way else None
    if held is None or not network.fits(held.subnets):
        return
    for key, claim in claims.items():
        if claim.overlaps(held.subnets):
            lease = readable(records[key])
            whose = lease.attributes.holder if lease is not None else "a node that can't be told"
            raise LeaseError(
                f"our subnet {held.subnets} was lost and is leased to {whose} now. Delete that lease, "
                "or restart this daemon and its containers to get another subnet"
            )


def _create(
    state: KeeperState,
    place: Place,
    taken: list[Subnets],
    previous: Subnets | None,
    stale: Set[str],
    kept: Subnets | None,
) -> Steps[None]:
    for _ in range(CREATE_ATTEMPTS):
        subnets = allocate(place.network, taken, previous, state.rng, kept)
        attributes = yield from publishing.our_attributes(state, place, subnets, LeaseAttributes())
        state.unchecked.add(subnets.key)
        began = state.now
        try:
            record: Record = yield Create(subnets.key, attributes.to_json(), state.options.ttl)
        except ConflictError:
            state.unchecked.discard(subnets.key)
            if subnets == previous:  # perhaps it is ours, made by a mirror of two stores: look whose it is
                raise StoreUnavailableError(f"lease {subnets.key} has just come into being; looking again") from None
            taken.append(subnets)
            continue
        rivals: list[Subnets] = []
        if len(place.network.versions) > 1:
            # Creating excludes everybody who wants the same key. With two families, two keys can share a subnet of
            # one of them; but then the node that was later sees the other's lease, and gives its own back. Two that
            # see each other both do.
            now_there: Snapshot = yield TakeSnapshot()
            others = {other.key: other for other in now_there.leases if other.key not in stale}
            rivals = crossing(place.network, record.key, others)
        state.unchecked.discard(subnets.key)
        if not rivals:
            renewal.hold(state, record, began)
            return
        taken += rivals
        with suppress(ConflictError):
            yield Delete(record)
    raise StoreUnavailableError("many nodes are leasing subnets right now; trying again")
