"""Driving a change of the network from outside: reads the store, and moves the document on when every node is there.

All of a change's state is in the store, so that who drives it can go away at any moment and somebody else, anywhere,
can go on with it. A :class:`Drive` looks at a snapshot, says which nodes keep the change in its phase, and writes the
next phase by compare-and-swap. It never talks to a node.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Final

from pyflannel.errors import ConfigError, ConflictError, MalformedError, StoreError
from pyflannel.network.change import LEASE_KEY, NetworkChange, NodeProgress, Phase, Step, Written, finished, read
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import DEFAULT_MARGIN, JSON, MARGIN_KEY, Lease, Subnets
from pyflannel.network.marks import NO_MARKS
from pyflannel.planning.judging import backend_types, placement_problem
from pyflannel.store import Record, Snapshot, Store

__all__ = [
    "Drive",
    "NodeStanding",
    "Progress",
    "abandon",
    "away",
    "begin",
    "note",
    "reading",
    "renewal_margin",
    "standings",
]

AWAY_INTERVAL: Final = timedelta(seconds=20)
"""Between two looks for nodes that have not answered."""

MOST_MARGIN: Final = 1e9

_AFTER: Final = {Phase.PREPARE: Phase.SWITCH, Phase.SWITCH: Phase.RETIRE}


@dataclass(frozen=True, slots=True)
class NodeStanding:
    """How far one node is, as its lease says it.

    :param answered: it has said anything of this change; a node that runs flanneld or an older pyflannel never does.
    :param older: its lease lacks what those that know changes have always written.
    :param ipv6: its other address, if it has two.
    """

    key: str
    node_id: str
    address: str
    answered: bool
    step: Step | None
    trouble: str
    flanneld: bool
    older: bool = False
    ipv6: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.node_id or self.address or self.key

    def named(self, names: Iterable[str]) -> bool:
        """Whether one of ``names`` is this node: its id, an address, its lease's key or a subnet of that."""
        subnets = (str(subnet) for subnet in Subnets.from_key(self.key).each)
        return bool({self.key, self.node_id, self.address, self.ipv6, *subnets} & set(names) - {""})

    def to_json(self) -> JSON:
        """For programs."""
        return {
            "lease": self.key,
            "node_id": self.node_id or None,
            "address": self.address or None,
            "step": self.step.value if self.step is not None else None,
            "answered": self.answered,
            "trouble": self.trouble or None,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a change is. ``phase`` is ``done`` or ``back`` when it is over; then ``waiting`` are late followers.

    :param away: since when nodes have been gone, by the keys of their leases.
    """

    id: str
    phase: str
    since: str
    nodes: tuple[NodeStanding, ...]
    waiting: tuple[str, ...]
    over: bool = False
    away: Mapping[str, str] = field(default_factory=dict)

    @property
    def late(self) -> tuple[NodeStanding, ...]:
        """The nodes that are waited for."""
        return tuple(node for node in self.nodes if node.key in self.waiting)

    def to_json(self) -> JSON:
        """For programs."""
        return {
            "change": self.id,
            "phase": self.phase,
            "since": self.since or None,
            "over": self.over,
            "waiting": [node.name for node in self.nodes if node.key in self.waiting],
            "nodes": [
                {
                    **node.to_json(),
                    "waited_for_since": (self.since or None) if node.key in self.waiting else None,
                    "away_since": self.away.get(node.key),
                }
                for node in self.nodes
            ],
        }


def standings(network: NetworkConfig, records: Sequence[Record], change_id: str) -> tuple[NodeStanding, ...]:
    """The nodes of a network, by their leases; reservations that no node has, and what nobody can use, are left out.

    Where the leases of nodes say no type, as with flannel's udp, nothing tells such a reservation from a node of
    flanneld's: there, nodes send to it and wait for it, and so it is one.
    """
    leases = []
    for record in records:
        with suppress(MalformedError):
            lease = Lease.from_record(record.key, record.value)
            if not placement_problem(network, lease):
                leases.append((record, lease))
    untyped = any(not _is_idle(record, lease) and lease.attributes.backend_type is None for record, lease in leases)
    found = []
    for record, lease in leases:
        attributes = lease.attributes
        if _is_idle(record, lease) and not untyped:
            continue
        told = NodeProgress.from_json(attributes.extra.get(LEASE_KEY))
        mine = told is not None and told.id == change_id
        found.append(
            NodeStanding(
                record.key,
                attributes.node_id or "",
                str(attributes.public_ip or attributes.public_ipv6 or ""),
                mine,
                told.step if told is not None and mine else None,
                told.trouble if told is not None and mine else "",
                attributes.node_id is None,
                attributes.marks == NO_MARKS and not record.permanent,
                str(attributes.public_ipv6 or ""),
            )
        )
    return tuple(sorted(found, key=lambda node: node.key))


def _is_idle(record: Record, lease: Lease) -> bool:
    """Whether it is a reservation that names no node."""
    return record.permanent and lease.attributes.node_id is None and lease.attributes.backend_type is None


def away(store: Store, records: Iterable[Record], margin: float) -> dict[str, float]:
    """Key to the seconds for which a node has been gone, as far as the store can know.

    What it knows of the nodes themselves comes first; else a lease that should have been renewed tells.

    :param margin: how many seconds before a lease's end daemons renew it, where the lease says nothing else.
    :raises StoreError: it can't be asked now.
    """
    records = list(records)
    found = dict(store.away(records))
    margins = {record.key: renewal_margin(record, margin) for record in records}
    for key, left in store.time_to_live(records).items():
        if left is not None and key in margins and left < 0.9 * margins[key]:
            found.setdefault(key, margins[key] - left)
    return found


def renewal_margin(record: Record, otherwise: float) -> float:
    """How many seconds before its end a lease is renewed: as it says, or ``otherwise``."""
    try:
        said = Lease.from_record(record.key, record.value).attributes.extra.get(MARGIN_KEY)
    except MalformedError:
        return otherwise
    return float(said) if isinstance(said, (int, float)) and 0 < said < MOST_MARGIN else otherwise


def note(moment: datetime) -> str:
    """A moment as it stands in the document."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def begin(
    store: Store, record: Record, target: Mapping[str, JSON], phases: bool, without: Sequence[str], at: str
) -> str:
    """Begin a change to the document ``target``; returns its id.

    :param phases: whether nodes have to go through it together; otherwise each follows the document by itself.
    :raises ConfigError: both documents together are longer than one may be, and no node would read them.
    :raises ConflictError: the document is another one now, or another change is under way.
    """
    written, identity = read(record.value), secrets.token_hex(8)
    if written.change is not None:
        raise ConflictError(f"change {written.change.id} is under way")
    change = NetworkChange(identity, Phase.PREPARE, target, at, tuple(sorted(without)), at)
    text = written.with_change(change) if phases else written.ended(change, at)
    read(text, "the network config with the change in it")
    store.write_config(text, record)
    return identity


def abandon(store: Store, record: Record, at: str) -> str:
    """Turn round the change that is under way; returns its id.

    :raises ConfigError: there is none, or it is too late.
    """
    written = read(record.value)
    change = written.change
    if change is None:
        raise ConfigError("no change of the network is under way")
    if change.phase is Phase.RETIRE:
        raise ConfigError(
            "nodes are taking the former settings away already: let this change come to its end with "
            "'pyflannel network change', then change back"
        )
    if change.phase is not Phase.BACK:
        store.write_config(written.with_change(change.at(Phase.BACK, at)), record)
    return change.id


class Drive:
    """See the module's docstring.

    :param wanted: the change's id.
    :param now: the time of day. ``without``: nodes not to wait for, besides those that the change itself names.
    :param margin: see :func:`away`.
    """

    def __init__(
        self,
        store: Store,
        wanted: str,
        now: Callable[[], datetime],
        without: Sequence[str] = (),
        margin: float = DEFAULT_MARGIN,
    ) -> None:
        self._store, self._id, self._now, self._without = store, wanted, now, tuple(without)
        self._margin = margin
        self._away: dict[str, str] = {}
        self._away_looked: datetime | None = None

    def look(self) -> Progress:
        """See how far it is, and move it on if all nodes are there.

        :raises ConfigError: somebody else has replaced the document.
        :raises StoreError: the store can't be read or written now; look again.
        """
        snapshot = self._store.snapshot()
        record = snapshot.config
        if record is None:
            raise StoreError(f"{self._store.location} holds no network config any more")
        written = read(record.value)
        network = NetworkConfig.from_json(written.text)
        nodes = standings(network, snapshot.leases, self._id)
        change = written.change
        if change is None or change.id != self._id:
            return self._after(written, nodes)
        named = change.without
        self._without = tuple(sorted({*named, *self._without}))
        change = replace(change, without=self._without)
        waiting = self._waiting(change, nodes)
        if not waiting:
            self._write(record, self._next(written, change))
        elif change.without != named:
            self._write(record, written.with_change(change))
        missing = {node.key for node in nodes if node.key in waiting and not node.answered}
        away = self._look_for([record for record in snapshot.leases if record.key in missing])
        return Progress(change.id, change.phase.value, change.since, nodes, waiting, away=away)

    def _look_for(self, missing: Sequence[Record]) -> Mapping[str, str]:
        """Since when those have been gone that have not answered; asked now and then, and of each once."""
        keys = {record.key for record in missing}
        self._away = {key: since for key, since in self._away.items() if key in keys}
        now = self._now()
        looked = self._away_looked
        if missing and (looked is None or not timedelta(0) <= now - looked < AWAY_INTERVAL):  # clocks are set, too
            self._away_looked = now
            with suppress(StoreError):  # it was asked for the sake of words
                for key, seconds in away(self._store, missing, self._margin).items():
                    self._away.setdefault(key, note(now - timedelta(seconds=seconds)))
        return dict(self._away)

    def _after(self, written: Written, nodes: tuple[NodeStanding, ...]) -> Progress:
        if self._id in written.earlier:
            raise ConfigError(
                f"change {self._id} has come to its end, and others have been made since: look at 'pyflannel config "
                "get'"
            )
        if written.last != self._id:
            raise ConfigError(
                f"change {self._id} has been taken out of the network config by somebody else; nodes keep what they "
                "have: look at 'pyflannel config get', and restart the daemons if it is right"
            )
        waiting: tuple[str, ...] = ()
        if written.moved:
            waiting = tuple(node.key for node in nodes if node.step is not Step.DONE and not node.named(self._without))
        return Progress(self._id, "done" if written.moved else "back", "", nodes, waiting, over=True)

    def _waiting(self, change: NetworkChange, nodes: Sequence[NodeStanding]) -> tuple[str, ...]:
        without = [node.key for node in nodes if node.named(change.without)]
        waiting = finished(change, {node.key: node.step for node in nodes}, without)
        troubled = [
            node.key
            for node in nodes
            if change.phase is Phase.PREPARE and node.trouble and node.key not in (*waiting, *without)
        ]
        return (*waiting, *troubled)

    def _next(self, written: Written, change: NetworkChange) -> str:
        at = note(self._now())
        following = _AFTER.get(change.phase)
        return written.ended(change, at) if following is None else written.with_change(change.at(following, at))

    def _write(self, record: Record, text: str) -> None:
        with suppress(ConflictError):  # somebody else drives, too, and was quicker
            self._store.write_config(text, record)


def reading(snapshot: Snapshot, location: object) -> tuple[Record, Written, NetworkConfig]:
    """The document of a store, with what it says; of one that names no backend, what the nodes run.

    :raises StoreError: there is none.
    """
    if snapshot.config is None:
        raise StoreError(f"{location} holds no network config; write one with: pyflannel config set FILE")
    written = read(snapshot.config.value)
    network = NetworkConfig.from_json(written.text).following(backend_types(snapshot.leases))
    return snapshot.config, written, replace(network, assumption="")
