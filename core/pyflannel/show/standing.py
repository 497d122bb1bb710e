"""How the daemon stands, in one word, in one sentence, and as the whole status document.

Everything here reads the agent and its parts, from the loop or from the status server's thread; nothing is changed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pyflannel.kernel.model import Key
from pyflannel.kernel.tracker import ObjectState
from pyflannel.kernel.tracker import ObjectStatus as Tracked
from pyflannel.network.lease import Lease
from pyflannel.planning.overlay import Peer
from pyflannel.show import status
from pyflannel.show.status import PeerState, State, Status
from pyflannel.version import VERSION

if TYPE_CHECKING:
    from pyflannel.daemon.loop import Agent

__all__ = ["backend_details", "document", "object_counts", "peer_states", "readiness", "standing"]


def standing(agent: Agent) -> tuple[State, str]:
    """The state, and one sentence about it."""
    keeper, member = agent.keeper.state, agent.membership
    if agent.stopping:
        return State.STOPPING, "stopping; forwarding goes on"
    if keeper.conflict:
        return State.CONFLICT, keeper.trouble
    trouble = agent.trouble
    if member is None:
        return (State.WAITING, trouble) if trouble else (State.STARTING, "looking for underlay, store and lease")
    if not agent.lease_valid:
        return State.WAITING, f"the lease has expired; {trouble or 'renewing it'}"
    if not agent.own_in_place and not agent.tracker.failures:
        return State.STARTING, "setting up the kernel"
    if not agent.own_in_place:
        return State.WAITING, trouble or _failure(agent)
    if member.feed.trouble:
        return State.WAITING, member.feed.trouble
    if trouble or agent.tracker.failures:
        return State.DEGRADED if member.published else State.WAITING, trouble or _failure(agent)
    if not member.published:
        return State.STARTING, "writing subnet.env"
    skipped = member.overlay.skipped
    text = f"{member.overlay.node.subnets} on {member.backend.name}, {len(member.overlay.peers) - skipped} peers"
    return State.READY, text + (f", {skipped} leases skipped" if skipped else "")


def readiness(agent: Agent) -> tuple[bool, str]:
    """Whether containers on this node can use the overlay, and a line that says how things stand.

    That needs a lease that is valid and nobody contests, a kernel that can be read, and all that the node needs for
    itself in place. One peer in trouble, or a store that is away while the lease is valid, does not end it.
    """
    state, message = standing(agent)
    return state in (State.READY, State.DEGRADED) and not agent.kernel_trouble, f"{state.value}: {message}"


def peer_states(agent: Agent, tracked: Iterable[Tracked]) -> Iterator[PeerState]:
    """The state of each peer, for counting."""
    if agent.membership is not None:
        unsettled, problems = _unsettled(tracked), agent.membership.feed.problems
        for peer in list(agent.membership.overlay.peers.values()):
            yield _peer_state(peer, unsettled, problems.get(peer.key, ""))[0]


def object_counts(tracked: Iterable[Tracked]) -> Counter[tuple[str, str]]:
    """How many kernel objects there are of each kind and state."""
    return Counter((_kind(item), item.state.value) for item in tracked)


def _failure(agent: Agent) -> str:
    return next((str(failure.error) for failure in agent.tracker.failures.values()), "")


def document(agent: Agent) -> Status:
    """The status document."""
    state, message = standing(agent)
    member, underlay = agent.membership, agent.underlay
    tracked = list(agent.tracker.status())
    network = member.overlay.node.network if member is not None else None
    return Status(
        version=VERSION,
        pid=os.getpid(),
        started=_timestamp(agent.started),
        state=state,
        message=message,
        node_id=agent.node_id,
        backend=_backend(agent),
        store=status.StoreStatus(str(agent.store.location), not agent.keeper.state.trouble),
        network=str(network.ipv4.network) if network is not None and network.ipv4 else None,
        ipv6_network=str(network.ipv6.network) if network is not None and network.ipv6 else None,
        underlay=None
        if underlay is None
        else status.UnderlayStatus(
            underlay.interface,
            underlay.mtu,
            _text(underlay.ipv4),
            _text(underlay.ipv6),
            _text(underlay.public_ipv4),
            _text(underlay.public_ipv6),
        ),
        lease=_lease(agent),
        peers=_peers(agent, tracked),
        objects=_objects(agent, tracked),
        last_error=None
        if agent.last_error is None
        else status.FailureStatus(_timestamp(agent.last_error[0]), agent.last_error[1]),
        repaired=agent.repaired,
        firewall=_firewall(agent),
        data_plane=_counters(agent),
    )


def _backend(agent: Agent) -> status.BackendStatus | None:
    member = agent.membership
    return status.BackendStatus(member.backend.name, details=backend_details(agent)) if member is not None else None


def backend_details(agent: Agent) -> Mapping[str, str]:
    """What the backend tells of itself."""
    member = agent.membership
    if member is None:
        return {}
    try:
        return {str(name): str(text) for name, text in member.backend.describe(member.overlay.node).items()}
    except Exception as error:  # a plugin's fault; nothing else depends on it
        return {"fault": f"describe failed: {type(error).__name__}: {error}"}


def _firewall(agent: Agent) -> status.FirewallStatus:
    state = agent.firewall.state
    drops = tuple(status.DropStatus(d.system, d.table, d.chain, d.reason, d.passed) for d in state.drops)
    return status.FirewallStatus(state.port, state.in_place, state.errors, drops, state.repaired)


def _lease(agent: Agent) -> status.LeaseStatus | None:
    state = agent.keeper.state
    if state.lease is None:
        return None
    now = agent.clock()
    return status.LeaseStatus(
        key=state.lease.key,
        subnets=_subnets(state.lease),
        expires_in=None if state.expires_at is None else round(state.expires_at - now, 1),
        reserved=state.permanent,
        renewed=None if state.renewed_at is None else _timestamp(time.time() - (now - state.renewed_at)),
    )


def _peers(agent: Agent, tracked: list[Tracked]) -> tuple[status.PeerStatus, ...]:
    if agent.membership is None:
        return ()
    overlay = agent.membership.overlay
    feed = agent.membership.feed
    unsettled, problems, notes = _unsettled(tracked), feed.problems, feed.descriptions()
    return tuple(
        _peer(peer, overlay.lease(peer.key), unsettled, problems.get(peer.key, ""), notes.get(peer.key, ""))
        for peer in list(overlay.peers.values())
    )


def _unsettled(tracked: Iterable[Tracked]) -> dict[Key, Tracked]:
    return {item.item.key: item for item in tracked if item.state is not ObjectState.DONE}


def _peer_state(peer: Peer, unsettled: Mapping[Key, Tracked], problem: str) -> tuple[PeerState, str]:
    """Where a peer stands, and why if that is not well."""
    state, reason = PeerState.OK, peer.reason or problem
    if reason:
        state = PeerState.SKIPPED if peer.reason else PeerState.FAILED
    found = next((unsettled[item.key] for item in peer.objects if item.key in unsettled), None)
    if found is not None and not reason:
        state = PeerState.FAILED if found.state is ObjectState.FAILED else PeerState.PENDING
        reason = found.error
    return state, reason


def _peer(
    peer: Peer, lease: Lease | None, unsettled: Mapping[Key, Tracked], problem: str, note: str
) -> status.PeerStatus:
    state, reason = _peer_state(peer, unsettled, problem)
    return status.PeerStatus(
        key=peer.key,
        subnets=_subnets(lease) if lease is not None else (),
        state=state,
        reason=reason,
        public_ip=_text(lease.attributes.public_ip) if lease is not None else None,
        public_ipv6=_text(lease.attributes.public_ipv6) if lease is not None else None,
        node_id=lease.attributes.node_id if lease is not None else None,
        note=note,
    )


def _objects(agent: Agent, tracked: list[Tracked]) -> status.ObjectsStatus:
    offset = time.time() - agent.clock()
    counts = object_counts(tracked)
    return status.ObjectsStatus(
        {
            kind: status.ObjectCounts(counts[kind, "done"], counts[kind, "pending"], counts[kind, "failed"])
            for kind in dict.fromkeys(kind for kind, _ in counts)
        },
        tuple(
            status.ObjectStatus(
                _kind(item), str(item.item), item.state.value, _timestamp(item.since + offset), item.error
            )
            for item in tracked
        ),
    )


def _kind(item: Tracked) -> str:
    return item.item.key[0].name.lower()


def _counters(agent: Agent) -> Mapping[str, int]:
    return {} if agent.membership is None else agent.membership.feed.counters()


def _subnets(lease: Lease) -> tuple[str, ...]:
    return tuple(str(subnet) for subnet in lease.subnets.each)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
