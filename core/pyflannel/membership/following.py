"""Following the network document and the underlay: which place they ask for, and going over to it while we run.

What is wanted and what is in force are compared, with pauses, until they agree; so nothing that could not be followed
at once is forgotten. Document and underlay are followed each for itself: a node with a document that it refuses still
goes along with its own new address.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pyflannel.errors import ConfigError, PyflannelError
from pyflannel.membership import followed
from pyflannel.membership.calls import Load, Publish, Steps, TakeSnapshot
from pyflannel.membership.place import Place, check_agreed, check_underlay
from pyflannel.membership.session import begin_generation, rejoin, settle_on
from pyflannel.membership.state import KeeperState
from pyflannel.network.change import NetworkChange, Phase, read
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON
from pyflannel.network.underlay import Underlay
from pyflannel.planning.judging import backend_types
from pyflannel.planning.transition import Side
from pyflannel.store import Record

__all__ = ["follow", "hear_of_document", "look_again", "place_for"]


def place_for(
    state: KeeperState, document: str, underlay: Underlay, leases: Sequence[Record] | None = None
) -> Steps[Place]:
    """What a network document of the store asks for.

    :param leases: all that the store holds, if they have been read already; they say what a network runs whose
        document doesn't.
    :raises ConfigError: it can't be followed, or this node's settings say otherwise.
    :raises PluginError: its backend is missing or doesn't load.
    :raises UnderlayError: the underlay lacks an address.
    """
    written = read(document, f"network config in {state.store}")
    known = _known(state, written.settings)
    if known is None:
        network = NetworkConfig.from_json(written.text, f"network config in {state.store}")
        if network.assumption and leases is None:
            leases = (yield TakeSnapshot()).leases
        network = _network(state, network, leases or (), written.agreed or state.place is not None)
        known = Side((yield Load(network)), network)
    check_underlay(known.network, underlay, known.backend)
    if state.place is not None:
        kept = followed.path(state.options.state_dir)
        check_agreed(state.place, written, known, state.store, state.slot.records(), kept)
    following, trouble = yield from _following(state, written.change, known, underlay)
    overruled = _overruled(state, known.network, following)
    place = Place(document, known.network, known.backend, underlay, written, following, trouble, overruled)
    return (yield from _introduced(state, place))


def _introduced(state: KeeperState, place: Place) -> Steps[Place]:
    """The same place, once backends that are new to a running node have said what its lease should carry.

    What they plan may follow from what they make for that, such as a key; so they are asked before anybody plans. Who
    joins asks them on the way to its lease.

    :raises PyflannelError: the backend that is to hold at once can't say it.
    """
    lease, present = state.lease_state.lease, state.place
    if lease is None or present is None or place.network.families != present.network.families:
        return place
    known = (present.backend, present.following.backend if present.following is not None else None)
    node = state.node(place, lease.subnets, lease.attributes)
    if not any(place.backend is each for each in known):
        yield Publish(place.backend, node)
    following = place.following
    if following is not None and not any(following.backend is each for each in known):
        try:
            yield Publish(following.backend, following.node(node))
        except PyflannelError as error:
            return replace(place, following=None, trouble=str(error))
    return place


def _known(state: KeeperState, settings: Mapping[str, JSON]) -> Side | None:
    """The backend that was made for these settings before: a change keeps the ones that run."""
    for place in (state.candidate, state.place):
        if place is None:
            continue
        if place.written.settings == settings:
            return place.side
        if place.written.change is not None and place.written.change.target == settings:
            return place.following
    return None


def _following(
    state: KeeperState, change: NetworkChange | None, present: Side, underlay: Underlay
) -> Steps[tuple[Side | None, str]]:
    """What is to hold after the change that is under way, or why this node can't have it.

    :raises PyflannelError: it can't, and starts when nothing else does any more.
    """
    if change is None:
        return None, ""
    try:
        known = _known(state, change.target)
        if known is None:
            network = NetworkConfig.from_json(json.dumps(change.target), "the change's new network config")
            network = _network(state, network, (), agreed=True)
            known = Side((yield Load(network)), network)
        check_underlay(known.network, underlay, known.backend)
        if known.network.families != present.network.families:
            raise ConfigError("the change's new network config has other networks; change those by themselves")
    except PyflannelError as error:
        if change.phase is Phase.RETIRE and state.place is None:
            raise  # nobody sends by the former settings any more: it would be as cut off as when the change is over
        return None, str(error)
    return known, ""


def _network(state: KeeperState, network: NetworkConfig, leases: Iterable[Record], agreed: bool) -> NetworkConfig:
    """As this node takes it, if its settings agree with it.

    :param agreed: all nodes go there together, or have done so, which counts more than ``--backend``; or this node
        runs, and :func:`~pyflannel.membership.place.check_agreed` says more.
    """
    if network.assumption:
        network = network.following(backend_types(leases, state.node_id))
    if not agreed and not _has_wanted_backend(state, network):
        raise ConfigError(
            f"--backend is {state.options.backend!r}, but the network config in {state.store} says "
            f"{network.backend_type!r}; start without --backend, or change the network with 'pyflannel network "
            "change'"
        )
    seed = state.options.seed
    if seed is not None and seed.binding and not network.means(NetworkConfig.from_json(seed.document, seed.source)):
        raise ConfigError(
            f"the network config in {state.store} means something other than {seed.source}; make them "
            "agree with 'pyflannel config set', or start without that file (--net-config-path), with which a node "
            "takes part in no change"
        )
    return network


def _has_wanted_backend(state: KeeperState, network: NetworkConfig) -> bool:
    wanted = state.options.backend
    return wanted is None or wanted.lower() == network.backend_type


def _overruled(state: KeeperState, network: NetworkConfig, following: Side | None) -> str:
    """The setting of this node that counts less than what all nodes have gone over to; empty if none does."""
    if any(_has_wanted_backend(state, each) for each in (network, *((following.network,) if following else ()))):
        return ""
    return (
        f"the network has gone over to backend {network.backend_type} by 'pyflannel network change', which counts "
        f"more than this node's --backend {state.options.backend}: take that out of its settings"
    )


def look_again(state: KeeperState, only_if_needed: bool = False) -> None:
    """The document or the underlay is another one: follow it as soon as possible."""
    place = state.place
    if place is not None and (place.document, place.underlay) == (state.document, state.underlay):
        state.pauses["follow"].clear()
        if state.troubles.pop("follow", None) is not None:
            state.pauses["publish"].at = state.now  # for our lease may say it
    elif place is not None and not (only_if_needed and "follow" in state.troubles):
        state.pauses["follow"].clear()
        state.pauses["follow"].at = state.now
    if state.session is None and state.pauses["join"].at is not None:
        state.pauses["join"].at = state.now


def hear_of_document(state: KeeperState, record: Record | None) -> None:
    """The store holds this document now. One that is gone leaves the one in force; only who has one may be told so."""
    state.document = state.in_force.document if record is None else record.value
    if record is not None:
        state.troubles.pop("document", None)
        return
    state.troubles["document"] = ConfigError(
        f"the network config has been deleted from {state.store}: this node keeps the one in force, but no node can "
        f"join or start without it, and no change can go on; put it back: 'pyflannel config set "
        f"{followed.path(state.options.state_dir)}'"
    )


def follow(state: KeeperState) -> Steps[None]:
    """Go over to the document and the underlay that there are now; each for itself."""
    document, underlay, place = state.document, state.underlay, state.in_force
    assert underlay is not None
    refused: PyflannelError | None = None
    if document != place.document or place.trouble:
        try:
            candidate = yield from place_for(state, document, underlay)
        except PyflannelError as error:
            refused = error
        else:
            if document == state.document and _go_over(state, place, candidate):
                return
            place = state.in_force
    if underlay != place.underlay:
        try:
            check_underlay(place.network, underlay, place.backend)
        except PyflannelError as error:
            refused = refused or error
        else:
            state.place = replace(place, underlay=underlay)
            begin_generation(state, None)
            state.pauses["publish"].at = state.now
    if (document, underlay) != (state.document, state.underlay):
        look_again(state)
    elif refused is not None:
        raise refused
    else:
        look_again(state)


def _go_over(state: KeeperState, place: Place, candidate: Place) -> bool:
    """Follow a document: in this session where no subnet can change, else in another. Whether all is done."""
    if candidate.network.families != place.network.families:
        state.candidate = candidate
        state.restarts.reset()
        rejoin(state, None)
        return True
    if (candidate.document, candidate.trouble) != (place.document, place.trouble):
        settle_on(state, candidate)
        begin_generation(state, None)
        state.pauses["publish"].at = state.now
    if candidate.trouble:
        state.troubles.pop("follow", None)  # of another document
        state.pauses["follow"].put_off(state.now)
    return bool(candidate.trouble)
