"""The status document: what a running daemon knows about itself, and how one asks for it.

The daemon listens on a unix socket in its run directory. Whoever connects gets one JSON document and the end of the
stream; nothing is read from the client. Only the daemon's own user may connect, for the document tells the layout of
the network. The document is made when somebody asks, so it costs nothing while nobody does.

The fields are stable: later versions add some, and change or remove none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final

from pyflannel.errors import DaemonError
from pyflannel.network.lease import JSON
from pyflannel.small.server import LocalServer, ask

__all__ = [
    "BackendStatus",
    "DropStatus",
    "FailureStatus",
    "FirewallStatus",
    "LeaseStatus",
    "ObjectCounts",
    "ObjectStatus",
    "ObjectsStatus",
    "PeerState",
    "PeerStatus",
    "State",
    "Status",
    "StatusServer",
    "StoreStatus",
    "UnderlayStatus",
    "query",
]

log = logging.getLogger(__name__)

_NAME: Final = "status.sock"
_PATIENCE: Final = 30.0
"""Seconds to wait for an answer. It comes at once, but for tens of thousands of peers it takes some to make."""


class State(str, Enum):
    """Where the daemon stands."""

    STARTING = "starting"
    WAITING = "waiting"
    READY = "ready"
    DEGRADED = "degraded"
    CONFLICT = "conflict"
    STOPPING = "stopping"


class PeerState(str, Enum):
    """How far a peer has got: all objects done, some to do, some refused by the kernel, or lease not usable."""

    OK = "ok"
    PENDING = "pending"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """The backend in use, and the distribution it came with; ``details`` are what it tells of itself.

    ``assumed`` says why this one, if the network config names none, or this node's settings another one; else empty.
    """

    name: str
    distribution: str = ""
    version: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    assumed: str = ""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The store in use. ``location`` has no options, which may be secret; ``connected`` is how the last call went."""

    location: str
    connected: bool
    distribution: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class UnderlayStatus:
    """The interface that carries the overlay; ``mtu`` in bytes, addresses as text.

    ``why`` says what chose it, ``others`` what would have been chosen without it.
    """

    interface: str
    mtu: int
    ipv4: str | None = None
    ipv6: str | None = None
    public_ipv4: str | None = None
    public_ipv6: str | None = None
    why: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """This node's lease. ``expires_in`` is in seconds, ``None`` for a reservation; ``renewed`` is RFC 3339."""

    key: str
    subnets: tuple[str, ...]
    expires_in: float | None
    reserved: bool
    renewed: str | None = None


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One other node, or a lease that could not be used (``skipped``), with the reason.

    ``note`` is what the backend's own data plane tells of it.
    """

    key: str
    subnets: tuple[str, ...]
    state: PeerState
    reason: str = ""
    public_ip: str | None = None
    public_ipv6: str | None = None
    node_id: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ObjectCounts:
    """How many objects of one kind are in which state."""

    done: int = 0
    pending: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """One kernel object: ``object`` is text for people, ``state`` is done, pending or failed, ``since`` RFC 3339."""

    kind: str
    object: str
    state: str
    since: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class ObjectsStatus:
    """All kernel objects: how many, by kind, and each one."""

    counts: Mapping[str, ObjectCounts] = field(default_factory=dict)
    list: tuple[ObjectStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class FailureStatus:
    """The last thing that went wrong; ``when`` is RFC 3339."""

    when: str
    what: str


@dataclass(frozen=True, slots=True)
class DropStatus:
    """A chain of somebody else that drops forwarded packets; ``passed`` if accepts of ours stand before that."""

    system: str
    table: str
    chain: str
    reason: str
    passed: bool


@dataclass(frozen=True, slots=True)
class FirewallStatus:
    """The firewall rules: which port carries them, whether all are in place, and if not, why.

    ``port`` is nftables, iptables-nft, iptables-legacy or none, empty before the first check. ``exits`` says whether
    packets to the overlay that would leave unencrypted are dropped, or why not; empty with a backend that does not
    encrypt.
    """

    port: str = ""
    in_place: bool = False
    errors: tuple[str, ...] = ()
    drops: tuple[DropStatus, ...] = ()
    repaired: int = 0
    exits: str = ""


@dataclass(frozen=True, slots=True)
class ChangeStatus:
    """Where this node stands in a change of the network that is under way, from one backend to another.

    ``phase`` is the change's, ``step`` what our lease says; ``trouble`` keeps us from going on, and ``waiting`` are the
    leases of the peers that do.
    """

    id: str
    phase: str
    former: str
    following: str
    step: str = ""
    trouble: str = ""
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The whole document. ``started`` is RFC 3339; ``message`` says in one line what the state is about.

    ``repaired`` counts the objects that something else changed and that were put right; ``data_plane`` are the
    backend's own counters. ``age`` says how many seconds ago peers, objects and counters were looked at: more than
    a moment only while the daemon's loop does not come back from a plugin. ``diversions`` are routes, IPsec
    policies and policy rules of others that take packets of the overlay away. ``settings`` are the flags that the
    daemon was told, without secrets, and ``warnings`` what of all that it was told it ignores. ``refused`` says why the
    network config in the store is not the one that this node goes by; empty while it is.
    """

    version: str
    pid: int
    started: str
    state: State
    message: str
    node_id: str
    backend: BackendStatus | None = None
    store: StoreStatus | None = None
    network: str | None = None
    ipv6_network: str | None = None
    underlay: UnderlayStatus | None = None
    lease: LeaseStatus | None = None
    peers: tuple[PeerStatus, ...] = ()
    objects: ObjectsStatus = field(default_factory=ObjectsStatus)
    last_error: FailureStatus | None = None
    repaired: int = 0
    firewall: FirewallStatus = field(default_factory=FirewallStatus)
    data_plane: Mapping[str, int] = field(default_factory=dict)
    age: float = 0.0
    diversions: tuple[str, ...] = ()
    change: ChangeStatus | None = None
    settings: Mapping[str, JSON] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    refused: str = ""

    @property
    def ready(self) -> bool:
        """Whether this node's containers can use the overlay."""
        return self.state in (State.READY, State.DEGRADED)

    def to_json(self) -> str:
        """The document as one line of JSON, its keys in the order of the fields."""
        document: dict[str, Any] = {}
        for item in fields(self):
            document[item.name] = getattr(self, item.name)
            if item.name == "state":
                document["ready"] = self.ready
        return json.dumps(document, default=_plain, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        kind: Any = type(value)
        return {name: getattr(value, name) for name in _names(kind)}
    raise TypeError(f"{type(value).__name__} has no place in a status document")


@cache  # there are a dozen kinds, and of some a hundred thousand values
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind))


class StatusServer(LocalServer):
    """Answers for the daemon from a thread of its own.

    :param current: makes the document. Called in the server's thread.
    """

    def __init__(self, run_dir: Path, current: Callable[[], Status]) -> None:
        self._current = current
        super().__init__(run_dir / _NAME, "status", self._answer, asked=False)

    def _answer(self, _: bytes) -> bytes:
        try:
            text = self._current().to_json()
        except Exception as error:
            log.exception("the status document can't be made")
            text = json.dumps({"error": f"the status document can't be made: {type(error).__name__}: {error}"})
        return text.encode() + b"\n"


def query(run_dir: Path, timeout: float = _PATIENCE) -> dict[str, JSON]:
    """The status document of the daemon of ``run_dir``.

    :param timeout: seconds to wait for each part of the answer.
    :raises DaemonError: none answers, or not with a document.
    """
    path = run_dir / _NAME
    raw = ask(path, b"", timeout)
    try:
        document = json.loads(raw)
    except ValueError:
        raise DaemonError(f"the daemon at {path} went away before it had answered") from None
    if not isinstance(document, dict) or "error" in document:
        raise DaemonError(f"the daemon at {path} answered: {document}")
    return document
