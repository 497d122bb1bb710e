"""What the lease keeper's machine asks of the world, as frozen values, and what the world may answer.

A :class:`Do` carries a call to the store or the backend, and its result comes back under the same number; the other
orders have none. What comes back is judged here, once for all calls: if a driver returns what its contract does not
allow, or raises an error that is not one of :mod:`pyflannel.errors`, the result is an error that names the driver.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, TypeAlias, TypeVar

from pyflannel.backend import Backend, Node, Published
from pyflannel.errors import KernelError, LeaseError, PluginError, PyflannelError, StoreError
from pyflannel.membership.records import readable
from pyflannel.network.change import in_force
from pyflannel.network.document import NetworkConfig
from pyflannel.planning.judging import own_problem, placement_problem
from pyflannel.planning.transition import Side
from pyflannel.small.scarcity import lacking
from pyflannel.store import Record, Snapshot, Unassigned

__all__ = [
    "Announce",
    "AskAssigned",
    "AskChosen",
    "BrokenStoreError",
    "Call",
    "CloseWatch",
    "Create",
    "Delete",
    "Do",
    "GiveUp",
    "Keep",
    "Lane",
    "Load",
    "OpenStore",
    "OpenWatch",
    "Order",
    "Publish",
    "Reaches",
    "ReadConfig",
    "Renew",
    "Steps",
    "TakeSnapshot",
    "Update",
    "WriteConfig",
    "judged",
]


class Lane(Enum):
    """Who answers: of each, one call is under way at most, so that a plugin that hangs delays its own kind alone."""

    STORE = "store"
    PUBLISH = "publish"
    LOAD = "load"


@dataclass(frozen=True, slots=True)
class OpenStore:
    """Make the store's driver anew, and close the one before if there was one."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "its constructor"
    answer: ClassVar[tuple[type, ...]] = (type(None),)


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Read everything."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "snapshot"
    answer: ClassVar[tuple[type, ...]] = (Snapshot,)


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Read the network document."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "read_config"
    answer: ClassVar[tuple[type, ...]] = (Record, type(None))


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """Create the network document."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "write_config"
    answer: ClassVar[tuple[type, ...]] = (Record,)
    value: str


@dataclass(frozen=True, slots=True)
class Create:
    """Create a lease."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "create"
    answer: ClassVar[tuple[type, ...]] = (Record,)
    key: str
    value: str
    ttl: float


@dataclass(frozen=True, slots=True)
class Update:
    """Make a lease say something else."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "update"
    answer: ClassVar[tuple[type, ...]] = (Record,)
    record: Record
    value: str
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Renew:
    """Extend a lease."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "renew"
    answer: ClassVar[tuple[type, ...]] = (Record,)
    record: Record
    ttl: float


@dataclass(frozen=True, slots=True)
class Delete:
    """Give a lease back."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "delete"
    answer: ClassVar[tuple[type, ...]] = (type(None),)
    record: Record


@dataclass(frozen=True, slots=True)
class AskAssigned:
    """Ask which record is ours, where the store assigns subnets; there has to be one in each of ``families``."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "assigned"
    answer: ClassVar[tuple[type, ...]] = (Record, Unassigned)
    families: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AskChosen:
    """Ask by which addresses an operator wants this node reached, where the store assigns subnets."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "chosen addresses"
    answer: ClassVar[tuple[type, ...]] = (tuple, list)


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the store whether our overlay carries packets."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "announce"
    answer: ClassVar[tuple[type, ...]] = (type(None),)
    ready: bool


@dataclass(frozen=True, slots=True)
class OpenWatch:
    """Hear of changes after ``revision``, and pass them on under the number ``watch``."""

    lane: ClassVar[Lane] = Lane.STORE
    name: ClassVar[str] = "watch"
    answer: ClassVar[tuple[type, ...]] = (type(None),)
    watch: int
    revision: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load and make the backend that a network document asks for."""

    lane: ClassVar[Lane] = Lane.LOAD
    name: ClassVar[str] = "loading"
    answer: ClassVar[tuple[type, ...]] = (Backend,)
    network: NetworkConfig


@dataclass(frozen=True, slots=True)
class Publish:
    """Ask the backend what our lease should carry."""

    lane: ClassVar[Lane] = Lane.PUBLISH
    name: ClassVar[str] = "publish"
    answer: ClassVar[tuple[type, ...]] = (Published,)
    backend: Backend[Any]
    node: Node


@dataclass(frozen=True, slots=True)
class Reaches:
    """Ask whether a backend plans for any lease of others.

    :param node: this node as it would be. ``last``: the change that has led there, if one has.
    """

    lane: ClassVar[Lane] = Lane.LOAD
    name: ClassVar[str] = "planning"
    answer: ClassVar[tuple[type, ...]] = (bool,)
    side: Side
    node: Node
    leases: Sequence[Record]
    last: str

    def ask(self) -> bool:
        """The answer. Takes as long as the backend, and as thousands of leases that it can't use."""
        return any(map(self._is_reached, self.leases))

    def _is_reached(self, record: Record) -> bool:
        found = readable(record)
        if found is None or found.attributes.node_id == self.node.node_id:
            return False
        lease = in_force(found, self.last)
        if placement_problem(self.node.network, lease) or own_problem(self.node, lease):
            return False
        try:
            self.side.plan_peer(self.node, lease)
        except PyflannelError:
            return False
        return True


Call: TypeAlias = (
    OpenStore
    | TakeSnapshot
    | ReadConfig
    | WriteConfig
    | Create
    | Update
    | Renew
    | Delete
    | AskAssigned
    | AskChosen
    | Announce
    | OpenWatch
    | Load
    | Publish
    | Reaches
)


@dataclass(frozen=True, slots=True)
class Do:
    """Make a call. Its result goes to :meth:`~pyflannel.membership.machine.LeaseMachine.done` under this number."""

    number: int
    call: Call


@dataclass(frozen=True, slots=True)
class CloseWatch:
    """End a watch; nobody waits for that."""

    watch: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The store hangs in a call: leave it to itself. The next call opens another."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep a network document for the next start."""

    document: str


Order: TypeAlias = Do | CloseWatch | GiveUp | Keep

T = TypeVar("T")
Steps: TypeAlias = Generator[Call, Any, T]
"""What a duty does from top to bottom: it yields a call, and goes on with its result or with the error that it met."""


class BrokenStoreError(PluginError):
    """A store's driver did what its contract does not know. That may pass, so it never ends the daemon."""


def judged(call: Call, result: Any, scheme: str) -> Any:
    """What a call has come back with, or the error that it is instead.

    :param scheme: the name of the store's plugin.
    """
    who = f"store {scheme!r}" if call.lane is Lane.STORE else "the backend"
    if not isinstance(result, BaseException):
        key = _key_written(call)
        if isinstance(result, call.answer) and (key is None or (isinstance(result, Record) and result.key == key)):
            return result
        result = PluginError(f"{who} answered {call.name} with a value of type {type(result).__name__}")
    scarce = lacking(result)
    if scarce is not None:
        return KernelError(f"{who} could not finish {call.name}: {scarce}")
    if not isinstance(result, PyflannelError):
        result = PluginError(f"{who} failed in {call.name}: {type(result).__name__}: {result}")
    if call.lane is Lane.STORE and isinstance(result, PluginError | LeaseError):
        return BrokenStoreError(str(result))
    if call.lane is not Lane.STORE and isinstance(result, StoreError | LeaseError):
        return PluginError(str(result))
    return result


def _key_written(call: Call) -> str | None:
    """Of which lease the answer must be."""
    if isinstance(call, Create):
        return call.key
    return call.record.key if isinstance(call, Update | Renew) else None
