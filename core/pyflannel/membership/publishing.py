"""What we tell others of ourselves: what our lease says, and whether our overlay carries packets.

The words of a lease are the backend's, and during a change of the network those of both backends. They are compared
with what the store holds, so that what is true already is not written again.
"""

from __future__ import annotations

from dataclasses import replace

from pyflannel.backend import Node, Published
from pyflannel.errors import ConfigError, ConflictError, PluginError, PyflannelError
from pyflannel.membership.calls import Announce, Publish, Renew, Steps, Update
from pyflannel.membership.place import Place
from pyflannel.membership.records import readable
from pyflannel.membership.state import KeeperState
from pyflannel.network.change import LEASE_KEY, NetworkChange, NodeProgress, Phase, Step, read, step_apart
from pyflannel.network.lease import DEFAULT_MARGIN, JSON, MARGIN_KEY, LeaseAttributes, Subnets, bounded

__all__ = ["announce", "our_attributes", "publish", "settle_requests"]


def settle_requests(state: KeeperState, number: int, error: PyflannelError | None) -> None:
    """Say how the requests to publish up to ``number`` went; one that failed may succeed later."""
    if number > state.lease_state.published or state.lease_state.publish_error is not None:
        state.lease_state = replace(state.lease_state, published=number, publish_error=error)


def our_attributes(
    state: KeeperState, place: Place, subnets: Subnets, before: LeaseAttributes
) -> Steps[LeaseAttributes]:
    """What our lease of ``subnets`` should say; unknown fields of an earlier one are kept.

    The state remembers it: what a backend has said is what it goes by next (:meth:`KeeperState.node`).
    """
    node = state.node(place, subnets, before)
    ours: Published = yield Publish(place.backend, node)
    progress = yield from _progress(state, place, node, before)
    extra: dict[str, JSON] = {}  # what is ours comes first: there is a limit to how much of it all is read
    if progress is not None:
        extra[LEASE_KEY] = progress.to_json()
    if state.options.margin != DEFAULT_MARGIN and not state.options.assigned:
        extra[MARGIN_KEY] = round(state.options.margin, 1)
    extra.update((name, value) for name, value in before.extra.items() if name not in (LEASE_KEY, MARGIN_KEY))
    uses = place.network.family
    told = LeaseAttributes(
        public_ip=place.underlay.public_ipv4 if uses(4) else None,
        public_ipv6=place.underlay.public_ipv6 if uses(6) else None,
        backend_type=None if place.backend.capabilities.untyped_leases else place.backend.name,
        backend_data=ours.data,
        backend_v6_data=ours.v6_data,
        node_id=state.node_id,
        marks=state.marks,
        twin_of=state.options.node_id if state.node_id != state.options.node_id else None,
        extra=extra,
    )
    state.told = subnets, told
    return told


def _progress(state: KeeperState, place: Place, node: Node, before: LeaseAttributes) -> Steps[NodeProgress | None]:
    """What our lease should say of the change that is under way, or of the last one."""
    apart = _refused(state, place)
    if apart is not None:
        return apart
    change = place.written.change
    if change is None:
        return NodeProgress(place.last, Step.DONE) if place.last else None
    known = state.reached if state.reached.id == change.id else NodeProgress(change.id, _said_before(before, change.id))
    if place.following is None:
        # Until this run has planned, the kernel may send as an earlier one has left it.
        left = change.phase is Phase.BACK and known.step is not None and state.ready is None
        return NodeProgress(change.id, known.step if left else step_apart(change.phase), trouble=place.trouble)
    following, known = place.following, replace(known, trouble=_standstill(state, place, change) or known.trouble)
    try:
        theirs: Published = yield Publish(following.backend, following.node(node))
        told = replace(known, backend_type=following.name, data=theirs.data, v6_data=theirs.v6_data)
        if not bounded({LEASE_KEY: told.to_json()}):
            raise PluginError(f"backend {following.name!r} published more than a lease holds beside another")
    except PyflannelError as error:
        state.pauses["publish"].put_off(state.now)
        said = NodeProgress.from_json(before.extra.get(LEASE_KEY))
        here = state.reached.id == change.id or change.phase is Phase.RETIRE
        if here and said is not None and said.id == change.id:
            return replace(said, step=known.step, trouble=str(error))  # peers may send here by what it has said
        # On the way back the daemon's loop says when this node sends by the former settings again.
        return NodeProgress(change.id, known.step if change.phase is Phase.BACK else None, trouble=str(error))
    return told


def _standstill(state: KeeperState, place: Place, change: NetworkChange) -> str:
    """Why this node can't follow the change where the document says it is now; empty if it can."""
    trouble = state.troubles.get("follow")
    if trouble is None or state.document == place.document:
        return ""
    try:
        now = read(state.document).change
    except ConfigError:
        return ""
    return str(trouble) if now is not None and now.id == change.id else ""


def _said_before(before: LeaseAttributes, change_id: str) -> Step | None:
    """How far our lease says that an earlier run was."""
    said = NodeProgress.from_json(before.extra.get(LEASE_KEY))
    if said is None or said.id != change_id:
        return None
    # That one had seen the end; by this document, what the lease says besides is of the former settings again.
    return Step.RETIRED if said.step is Step.DONE else said.step


def _refused(state: KeeperState, place: Place) -> NodeProgress | None:
    """What to say of a change in which this node can't take part, since it does not even follow the document as it is.

    Else those who wait for it would take it for one that is down.
    """
    trouble = state.troubles.get("follow")
    if trouble is None or state.document == place.document:
        return None
    try:
        written = read(state.document)
    except ConfigError:
        return None
    change = written.change
    if change is not None and (place.written.change is None or place.written.change.id != change.id):
        return NodeProgress(change.id, step_apart(change.phase), trouble=str(trouble))
    if change is None and written.moved and written.last != place.written.last:
        return NodeProgress(written.last, trouble=str(trouble))
    return None


def publish(state: KeeperState) -> Steps[None]:
    """Write what we are into our lease."""
    asked = state.asked
    try:
        yield from _write_our_lease(state)
    except PyflannelError as error:
        settle_requests(state, asked, error)
        raise
    settle_requests(state, asked, None)
    state.troubles.pop("publish", None)
    if state.pauses["publish"].at is None:  # nothing is to be tried again
        state.pauses["publish"].backoff.reset()


def _write_our_lease(state: KeeperState) -> Steps[None]:
    held, lease = state.held, state.lease_state.lease
    if held is None or lease is None:
        raise ConflictError("our lease is gone")
    attributes = yield from our_attributes(state, state.in_force, lease.subnets, lease.attributes)
    held, lease = state.held, state.lease_state.lease
    if held is None or lease is None:
        raise ConflictError("our lease is gone")
    said = readable(held)  # what the store holds: somebody else may have written rubbish over what we said
    if said is None or attributes != said.attributes:
        yield Update(held, attributes.to_json(), None if held.permanent else state.options.ttl)
    elif state.options.assigned:
        yield Renew(held, state.options.ttl)  # for what the store itself has to see to


def announce(state: KeeperState) -> Steps[None]:
    """Tell the store whether our overlay carries packets."""
    ready = state.ready
    assert ready is not None
    state.announced = None  # until an answer comes nobody knows which of the two the store was told last
    yield Announce(ready)
    state.announced = ready
    state.troubles.pop("announce", None)
    state.pauses["announce"].clear()
    state.pauses["announce"].at = state.now  # it may have changed meanwhile
