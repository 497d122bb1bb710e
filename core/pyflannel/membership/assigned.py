"""Getting a lease where the store assigns subnets: ask for our record, and write into it what we are.

Nothing is allocated, nor created, nor deleted. Who we are is the store's to say, too, and by which addresses others are
to reach us.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from pyflannel.errors import ConfigError, LeaseError, OutOfSubnetsError, StoreError, UnderlayError
from pyflannel.membership import publishing, renewal
from pyflannel.membership.calls import AskAssigned, AskChosen, ReadConfig, Renew, Steps, Update
from pyflannel.membership.place import Place
from pyflannel.membership.records import readable
from pyflannel.membership.state import KeeperState
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPAddress, Lease, LeaseAttributes, Subnets
from pyflannel.planning.judging import covering_problem, own_addresses
from pyflannel.store import Record, Unassigned

__all__ = ["ask_assigned", "take_assigned"]


def ask_assigned(state: KeeperState) -> Steps[Record]:
    """Our record, from a store that assigns subnets. Before the snapshot, which costs more: this may take long."""
    config: Record | None = yield ReadConfig()
    document = config.value if config is not None else state.document
    wanted = _versions(state, document)
    found: Record | Unassigned = yield AskAssigned(wanted)
    if isinstance(found, Unassigned) and state.place is not None and state.place.network.versions != wanted:
        in_force: Record | Unassigned = yield AskAssigned(state.place.network.versions)
        found = in_force if isinstance(in_force, Record) else found
    if isinstance(found, Unassigned):
        renewal.lose(state)
        raise StoreError(found.reason)
    state.lease_state = replace(state.lease_state, chosen=_chosen((yield AskChosen())))
    underlay = state.underlay
    assert underlay is not None
    for address in state.lease_state.chosen:
        if underlay.public(address.version) != address:
            raise UnderlayError(f"{state.store} has {address} for this node: looking for the interface with it")
    return found


def _versions(state: KeeperState, document: str) -> tuple[int, ...]:
    """The families of a document, or if it can't be read of the one in force.

    :raises ConfigError: it can't be read, and none is.
    """
    try:
        return NetworkConfig.from_json(document, f"network config in {state.store}").versions
    except ConfigError:
        if state.place is None:
            raise
        return state.place.network.versions


def take_assigned(state: KeeperState, place: Place, record: Record) -> Steps[bool]:
    """Go by the subnets that the store has for us, of whatever length; whether our lease says what we are."""
    subnets = Subnets.from_key(record.key)
    lacking = [version for version in place.network.versions if subnets.of(version) is None]
    if lacking:
        raise OutOfSubnetsError(
            f"{state.store} gives this node {subnets}, and the network config uses IPv{lacking[0]}, too"
        )
    if not place.network.contains(place.network.used(subnets)):
        raise StoreError(
            f"{state.store} gives this node {subnets}, which is not part of the network config's networks: "
            f"{', '.join(str(family.network) for family in place.network.families)}. Make both say the same"
        )
    problem = covering_problem(place.network, subnets, own_addresses(place.underlay))
    if problem:
        raise StoreError(
            f"what {state.store} gives this node would be skipped by other nodes: {problem}. Let the network config's "
            "bounds hold what the store gives"
        )
    lease = readable(record) or Lease(subnets, LeaseAttributes())
    theirs = lease.attributes.node_id
    if theirs is not None and theirs == state.yielded_to:
        raise LeaseError(
            f"another daemon (node id {theirs!r}) has taken over what {state.store} assigned to this node: stop "
            "one of the two, and restart the other"
        )
    if state.held is not None and state.held.key == record.key and state.generation:
        state.held = record
        return False
    attributes = yield from publishing.our_attributes(state, place, subnets, lease.attributes)
    began = state.now
    if attributes != lease.attributes:
        renewal.hold(state, (yield Update(record, attributes.to_json(), None)), began)
    else:
        renewal.hold(state, (yield Renew(record, state.options.ttl)), began)
    return True


def _chosen(texts: Iterable[str]) -> tuple[IPAddress, ...]:
    """
    :raises StoreError: one of them is none.
    """
    try:
        return tuple(ip_address(text) for text in texts)
    except ValueError as error:
        raise StoreError(f"the address that is to be this node's: {error}; correct it in the store") from None
