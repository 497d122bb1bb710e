"""The status document, made from a view. Pure; nothing here is asked of anybody."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone

from pyflannel.errors import MalformedError
from pyflannel.kernel.model import Key
from pyflannel.kernel.tracker import ObjectState
from pyflannel.kernel.tracker import Tracked as Tracked
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Lease
from pyflannel.planning.overlay import Peer, usable
from pyflannel.show import status
from pyflannel.show.readiness import summary
from pyflannel.show.status import PeerState, Status
from pyflannel.show.view import Details, View
from pyflannel.version import VERSION

__all__ = ["document", "object_counts", "peer_states"]


def document(view: View, now: float, wall: float) -> Status:
    """The status document.

    :param now: on the daemon's clock; ``wall``: the same moment in Unix time.
    """
    state, message = summary(view, now)
    details = view.details or Details(now)
    network, underlay = view.network, view.underlay
    return Status(
        version=VERSION,
        pid=os.getpid(),
        started=_timestamp(view.started),
        state=state,
        message=message,
        node_id=view.node_id,
        backend=_backend(view, details),
        store=status.StoreStatus(
            view.store_location, view.lease.connected, view.store.distribution, view.store.version
        ),
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
            underlay.why,
            underlay.others,
        ),
        lease=_lease(view, now, wall),
        peers=_peers(details),
        objects=_objects(details, wall - now),
        last_error=None
        if view.last_error is None
        else status.FailureStatus(_timestamp(view.last_error[0]), view.last_error[1]),
        repaired=view.repaired,
        firewall=_firewall(view),
        data_plane=details.counters,
        age=round(now - details.made_at, 1),
        diversions=view.diversions,
        change=view.change,
        settings=view.settings,
        warnings=view.warnings,
        refused=view.lease.refused,
    )


def peer_states(details: Details) -> Iterator[PeerState]:
    """The state of each peer, for counting."""
    unsettled = _unsettled(details.tracked)
    for peer in details.peers:
        yield _peer_state(peer, unsettled, details.problems.get(peer.key, ""))[0]


def object_counts(details: Details) -> Counter[tuple[str, str]]:
    """How many kernel objects there are of each kind and state."""
    return Counter((_kind(item), item.state.value) for item in details.tracked)


def _backend(view: View, details: Details) -> status.BackendStatus | None:
    backend = view.backend
    if backend is None:
        return None
    assumed = view.overruled or (view.network.assumption if view.network is not None else "")
    return status.BackendStatus(backend.name, backend.distribution, backend.version, details.describes, assumed)


def _firewall(view: View) -> status.FirewallStatus:
    state = view.firewall
    drops = tuple(status.DropStatus(d.system, d.table, d.chain, d.reason, d.passed) for d in state.drops)
    return status.FirewallStatus(state.port, state.in_place, state.errors, drops, state.repaired, _exits(view))


def _exits(view: View) -> str:
    """What becomes of packets to the overlay that would leave unencrypted."""
    if not view.encrypts:
        return ""
    if view.unguarded:
        return f"not dropped: {view.unguarded}"
    return "dropped" if view.guarded else "not dropped: the rules are not in place"


def _lease(view: View, now: float, wall: float) -> status.LeaseStatus | None:
    state = view.lease
    if state.lease is None:
        return None
    return status.LeaseStatus(
        key=state.lease.key,
        subnets=_subnets(state.lease),
        expires_in=None if state.expires_at is None else round(state.expires_at - now, 1),
        reserved=state.permanent,
        renewed=None if state.renewed_at is None else _timestamp(wall - (now - state.renewed_at)),
    )


def _peers(details: Details) -> tuple[status.PeerStatus, ...]:
    unsettled, problems, notes = _unsettled(details.tracked), details.problems, details.notes
    return tuple(
        _peer(peer, details.network, unsettled, problems.get(peer.key, ""), notes.get(peer.key, ""))
        for peer in details.peers
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
    peer: Peer, network: NetworkConfig | None, unsettled: Mapping[Key, Tracked], problem: str, note: str
) -> status.PeerStatus:
    lease = _read(peer, network)
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


def _read(peer: Peer, network: NetworkConfig | None) -> Lease | None:
    """A peer's lease as far as its network uses it; ``None`` if it can't be read."""
    try:
        lease = Lease.from_record(peer.key, peer.value)
    except MalformedError:
        return None
    return lease if network is None else usable(network, lease)


def _objects(details: Details, offset: float) -> status.ObjectsStatus:
    counts = object_counts(details)
    moments = {since: _timestamp(since + offset) for since in {item.since for item in details.tracked}}
    return status.ObjectsStatus(
        {
            kind: status.ObjectCounts(counts[kind, "done"], counts[kind, "pending"], counts[kind, "failed"])
            for kind in dict.fromkeys(kind for kind, _ in counts)
        },
        tuple(
            status.ObjectStatus(_kind(item), str(item.item), item.state.value, moments[item.since], item.error)
            for item in details.tracked
        ),
    )


def _kind(item: Tracked) -> str:
    return item.item.key[0].name.lower()


def _subnets(lease: Lease) -> tuple[str, ...]:
    return tuple(str(subnet) for subnet in lease.subnets.each)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
