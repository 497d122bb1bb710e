"""Joining: from a snapshot of the store to a lease that we hold, and a session.

There is one path to a correct state, and start-up, an outage and a day of being cut off all take it: read everything,
renew what an earlier run has left us before anybody else is asked, decide which document to follow, and make a lease
ours by compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from pyflannel.errors import (
    ConfigError,
    ConflictError,
    OutOfSubnetsError,
    PyflannelError,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
)
from pyflannel.membership import publishing, renewal
from pyflannel.membership.allocation import Adopt, Existing, Identity, decide
from pyflannel.membership.assigned import ask_assigned, take_assigned
from pyflannel.membership.calls import Publish, Reaches, Renew, Steps, TakeSnapshot, WriteConfig
from pyflannel.membership.following import hear_of_document, look_again, place_for
from pyflannel.membership.obtaining import obtain
from pyflannel.membership.place import Place, backends_apart, check_underlay
from pyflannel.membership.records import concerning
from pyflannel.membership.session import begin
from pyflannel.membership.state import KeeperState
from pyflannel.membership.twins import apart_from_twins
from pyflannel.network.agreement import ranges_apart
from pyflannel.network.change import read
from pyflannel.network.document import NetworkConfig, with_backend
from pyflannel.network.lease import LeaseAttributes, Subnets
from pyflannel.network.underlay import Underlay
from pyflannel.planning.judging import backend_types
from pyflannel.store import Record, Snapshot

__all__ = ["failed", "join"]


def failed(state: KeeperState, error: PyflannelError) -> None:
    """We could not join: after a pause we try again."""
    state.troubles["join"] = error
    state.pauses["join"].put_off(state.now)
    publishing.settle_requests(state, state.asked, error)
    ends = state.lease_state.expires_at
    if state.held is None and state.lease_state.lease is not None:
        state.lease_state = replace(state.lease_state, expires_at=state.now if ends is None else min(ends, state.now))


def join(state: KeeperState) -> Steps[None]:
    """From a snapshot to a lease that we hold, and a new session."""
    asked = state.asked
    assigned = (yield from ask_assigned(state)) if state.options.assigned else None
    snapshot: Snapshot = yield TakeSnapshot()
    records = _take_over(state, snapshot)
    if assigned is None:
        yield from _keep_ours(state, records)
    if snapshot.config is None and (state.options.seed is not None or state.place is None):
        try:
            snapshot = yield from _create_config(state, snapshot)
        except StoreDeniedError:
            if state.place is None:  # else what is in force does without a document
                raise
        records = _take_over(state, snapshot)
    place = yield from _place_to_join(state, snapshot.leases)
    try:
        others = dict(records)
        published = yield from _have_lease(state, place, others, assigned)
    except OutOfSubnetsError as error:
        place = _place_instead(state, place, error)
        others = dict(records)
        published = yield from _have_lease(state, place, others, assigned)
    held = state.held
    assert held is not None
    begin(state, place, held, snapshot, others)
    if published:
        publishing.settle_requests(state, asked, None)
    else:
        state.pauses["publish"].at = state.now
    look_again(state, only_if_needed=True)


def _have_lease(state: KeeperState, place: Place, records: dict[str, Record], assigned: Record | None) -> Steps[bool]:
    """Hold a lease that fits a place; whether it says already what we are."""
    if assigned is None:
        return (yield from obtain(state, place, records))
    return (yield from take_assigned(state, place, assigned))


def _place_instead(state: KeeperState, place: Place, error: OutOfSubnetsError) -> Place:
    """What is in force, where the families of the new document are more than this node can have subnets of."""
    present, underlay = state.place, state.underlay
    if present is None or underlay is None or present.network.families == place.network.families:
        raise error
    state.troubles["follow"] = ConfigError(str(error))  # it is nobody's claim to what this node has
    state.pauses["follow"].put_off(state.now)
    return _moved_if_possible(present, underlay)


def _take_over(state: KeeperState, snapshot: Snapshot) -> dict[str, Record]:
    """Note which document there is, if one is there or in force. Returns the leases by key."""
    if snapshot.config is not None or state.place is not None:
        hear_of_document(state, snapshot.config)
    return {record.key: record for record in snapshot.leases}


def _create_config(state: KeeperState, found: Snapshot) -> Steps[Snapshot]:
    seed = state.options.seed
    if seed is None:
        raise StoreError(
            f"{state.store} has no network config yet; put one there with 'pyflannel config set', "
            "or start a node with --network"
        )
    network = NetworkConfig.from_json(seed.document, seed.source)
    if network.assumption:
        network = network.following(backend_types(found.leases, state.node_id))
    document = with_backend(seed.document, network.backend_type)
    if state.place is None:  # what this node can't use itself would keep it, and others, from every later start
        underlay = state.underlay
        assert underlay is not None
        state.candidate = yield from place_for(state, document, underlay, found.leases)
    with suppress(ConflictError):  # another node was first; its document counts
        yield WriteConfig(document)
    snapshot: Snapshot = yield TakeSnapshot()
    if snapshot.config is None:
        raise StoreError(f"{state.store}: the network config vanished right after it was written")
    return snapshot


def _keep_ours(state: KeeperState, records: dict[str, Record]) -> Steps[None]:
    """Hold on to the lease that an earlier run left us, whatever keeps us from joining with it."""
    if state.held is not None:
        return
    leases = apart_from_twins(state, concerning(Identity(state.options.node_id), records))
    identity = Identity(state.node_id)
    existing = [
        Existing(lease, records[lease.key].permanent)
        for lease in leases
        if lease.attributes.node_id == state.node_id and lease.key in records.keys() - state.unchecked
    ]
    decisions = (
        decide(network, identity, existing, state.last_subnets, state.options.policy)
        for document in (state.document, state.options.followed)
        if (network := _network_of(document)) is not None
    )
    decision = next((each for each in decisions if isinstance(each, Adopt)), None)
    if decision is None:
        return
    began = state.now
    try:
        record: Record = yield Renew(records[decision.lease.key], state.options.ttl)
    except ConflictError as error:
        raise StoreUnavailableError(f"our lease {decision.lease.key} has just changed; looking again") from error
    renewal.hold(state, record, began)
    records[record.key] = record


def _place_to_join(state: KeeperState, leases: Sequence[Record]) -> Steps[Place]:
    """What the store's document asks for, or what is in force as long as that can't be followed."""
    underlay = state.underlay
    assert underlay is not None
    refused: PyflannelError | None = None
    place: Place | None = None
    try:
        place = yield from place_for(state, state.document, underlay, leases)
    except PyflannelError as error:
        refused = error
    if state.place is None:
        place = (yield from _followed_last(state, place, underlay, leases)) or place
    elif refused is not None:
        place = _moved_if_possible(state.place, underlay)
    if place is None:
        assert refused is not None
        raise refused
    if refused is None:
        state.troubles.pop("follow", None)
    else:
        state.troubles["follow"] = refused
        state.pauses["follow"].put_off(state.now)
    return place


def _followed_last(
    state: KeeperState, place: Place | None, underlay: Underlay, leases: Sequence[Record]
) -> Steps[Place | None]:
    """What the last run followed, if by that alone any other node is reached; else ``None``.

    :param place: what the store's document asks for; ``None`` if it can't be followed.
    """
    document = state.options.followed
    if document in ("", state.document) or state.options.assigned:  # there, the document is in the cluster's hands
        return None
    try:
        if _leads_away(state, document):
            return None
        last = yield from place_for(state, document, underlay, leases)
    except PyflannelError:
        return None
    if place is not None:
        if not (ranges_apart(last.network, place.network) or backends_apart(last.side, place.side)):
            return None
        if (yield from _reaches(state, place, leases)):
            return None
    return last if (yield from _reaches(state, last, leases)) else None


def _leads_away(state: KeeperState, document: str) -> bool:
    """Whether all nodes are to leave ``document`` for the store's, or nobody can say where they are."""
    followed = read(document)
    try:
        now = read(state.document)
    except ConfigError:
        return False
    if followed.change is not None:
        return True
    return not now.precedes(followed) and (now.change is not None or now.last not in ("", followed.last))


def _reaches(state: KeeperState, place: Place, leases: Sequence[Record]) -> Steps[bool]:
    """Whether a backend plans for any lease of others; asked when it has made what its plans may follow from."""
    subnets = state.last_subnets
    if subnets is None or not place.network.contains(place.network.used(subnets)):
        four, six = place.network.ipv4, place.network.ipv6
        subnets = Subnets(four.subnet_min if four else None, six.subnet_min if six else None)
    node = state.node(place, subnets, LeaseAttributes())
    with suppress(PyflannelError):
        yield Publish(place.backend, node)
    found: bool = yield Reaches(place.side, node, leases, place.last)
    return found


def _moved_if_possible(place: Place, underlay: Underlay) -> Place:
    try:
        check_underlay(place.network, underlay, place.backend)
    except PyflannelError:
        return place
    return replace(place, underlay=underlay)


def _network_of(document: str) -> NetworkConfig | None:
    try:
        return NetworkConfig.from_json(document) if document else None
    except ConfigError:
        return None
