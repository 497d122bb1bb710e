"""A store in memory with a clock of its own, and a node's lease keeper on it: no thread, and time that is told."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from pyflannel.backend import Backend, Published, Underlay, parse_options
from pyflannel.errors import ConflictError, HistoryGoneError, PyflannelError, StoreUnavailableError
from pyflannel.membership.calls import (
    Call,
    CloseWatch,
    Do,
    GiveUp,
    Keep,
    Load,
    OpenStore,
    OpenWatch,
    Order,
    Publish,
    Reaches,
    Renew,
)
from pyflannel.membership.keeper import perform
from pyflannel.membership.machine import LeaseMachine
from pyflannel.membership.slot import Generation, LeaseState, Slot
from pyflannel.membership.state import KeeperOptions
from pyflannel.network.document import NetworkConfig, NetworkSeed
from pyflannel.network.lease import LeaseAttributes, Subnets
from pyflannel.network.marks import NO_MARKS, Marks
from pyflannel.plugins import load_backend
from pyflannel.store import Batch, Change, Record, Snapshot, Store, StoreLocation, Watch

DOCUMENT = '{"Network": "10.5.0.0/16"}'
TWO_FAMILIES = (
    '{"Network": "10.5.0.0/24", "SubnetLen": 28, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", '
    '"Backend": {"Type": "alloc"}}'
)
HANGS = "hangs"
UNAVAILABLE = StoreUnavailableError("out of reach")


def agreed(document: str, change: str = "00000000000000a1") -> str:
    """A document that a change has led to: nodes that run follow it."""
    return json.dumps({**json.loads(document), "LastChange": {"Id": change, "Outcome": "done"}})


def underlay(host: int = 1, ipv6: bool = True) -> Underlay:
    four = IPv4Address(f"192.0.2.{host}")
    six = IPv6Address(f"2001:db8::{host:x}") if ipv6 else None
    return Underlay("eth0", 1500, four, six, public_ipv4=four, public_ipv6=six)


def foreign(host: int, node_id: str | None = None) -> str:
    """The text of another node's lease."""
    data = {"VNI": 1, "VtepMAC": "02:00:00:00:00:07"}
    return LeaseAttributes(
        IPv4Address(f"192.0.2.{host}"), backend_type="vxlan", backend_data=data, node_id=node_id
    ).to_json()


def made(network: NetworkConfig) -> Backend[Any]:
    """The backend that a document asks for."""
    kind = load_backend(network.backend_type)
    return kind(parse_options(kind.Options, network.backend_options)[0])


@dataclass(slots=True)
class _Kept:
    record: Record
    ends: float | None


class StoreModel(Store):
    """What a store does, on a clock that a test moves. History can be forgotten (``compact``)."""

    scheme = "model"

    def __init__(self) -> None:
        super().__init__(StoreLocation.parse("model://a/b"))
        self.now = 0.0
        self.kept: dict[str, _Kept] = {}
        self.config: Record | None = None
        self.history: list[Change] = []
        self.oldest = 0
        self._version = 0

    # For tests

    def expire(self) -> None:
        for key in [key for key, kept in self.kept.items() if kept.ends is not None and kept.ends <= self.now]:
            del self.kept[key]
            self.history.append(Change(key, None))

    def compact(self) -> None:
        """Forget all history so far, and a bit more, so that no watch can be resumed."""
        self.history.append(Change("config", self.config))
        self.oldest = len(self.history)

    def since(self, revision: str) -> tuple[str, tuple[Change, ...]]:
        self.expire()
        if int(revision) < self.oldest:
            raise HistoryGoneError("forgotten")
        return str(len(self.history)), tuple(self.history[int(revision) :])

    def put(self, key: str, value: str, ttl: float | None = None) -> Record:
        """Write as an operator would, whatever is there."""
        return self._write(key, value, ttl)

    def config_is(self, document: str) -> None:
        self.write_config(document, self.config)

    def config_is_gone(self) -> None:
        self.config = None
        self.history.append(Change("config", None))

    # The contract

    def read_config(self) -> Record | None:
        return self.config

    def write_config(self, value: str, expected: Record | None) -> Record:
        if self.config != expected:
            raise ConflictError("config")
        self._version += 1
        self.config = Record("config", value, str(self._version), permanent=True)
        self.history.append(Change("config", self.config))
        return self.config

    def snapshot(self) -> Snapshot:
        self.expire()
        leases = tuple(kept.record for kept in self.kept.values())
        return Snapshot(str(len(self.history)), self.config, leases)

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        self.expire()
        if key in self.kept:
            raise ConflictError(key)
        return self._write(key, value, ttl)

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        self._unchanged(record)
        return self._write(record.key, value, None if record.permanent else ttl)

    def renew(self, record: Record, ttl: float) -> Record:
        kept = self._unchanged(record)
        if kept.ends is not None:
            kept.ends = self.now + ttl
        return kept.record

    def delete(self, record: Record) -> None:
        self.expire()
        if record.key in self.kept:
            self._unchanged(record)
            del self.kept[record.key]
            self.history.append(Change(record.key, None))

    def watch(self, revision: str) -> Watch:
        raise NotImplementedError("the harness hands out what the model remembers")

    def _unchanged(self, record: Record) -> _Kept:
        self.expire()
        kept = self.kept.get(record.key)
        if kept is None or kept.record.version != record.version:
            raise ConflictError(record.key)
        return kept

    def _write(self, key: str, value: str, ttl: float | None) -> Record:
        self._version += 1
        record = Record(key, value, str(self._version), permanent=ttl is None)
        self.kept[key] = _Kept(record, None if ttl is None else self.now + ttl)
        self.history.append(Change(key, record))
        return record


Fault = Callable[[Call], Any]
"""What a call answers instead: an exception, a value, :data:`HANGS`; ``None`` for the right answer."""


@dataclass
class Node:
    """A node's machine, run by hand: every call is answered at once unless ``fault`` says otherwise."""

    store: StoreModel = field(default_factory=StoreModel)
    host: int = 1
    fault: Fault | None = None
    make: Callable[[NetworkConfig], Backend[Any]] = made
    after: Callable[[Call], None] | None = None
    """Called when a call has taken effect, before the machine hears of it."""
    previous: Subnets | None = None
    node_id: str = ""
    marks: Marks = NO_MARKS
    given: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.node_id = self.node_id or f"node-{self.host}"
        options = {
            "node_id": self.node_id,
            "state_dir": Path("/nonexistent"),
            "ttl": 60.0,
            "margin": 20.0,
            "seed": NetworkSeed(DOCUMENT, "the test", False),
            **self.given,
        }
        self.woken = 0
        self.slot = Slot(self._wake)
        self.machine = LeaseMachine(
            KeeperOptions(**options), "model://a/b", "model", self.previous, self.slot, random.Random(self.host)
        )
        self.calls: list[tuple[float, Call]] = []
        self.watches: dict[int, str] = {}
        self.hanging: list[Do] = []
        self.given_up = 0
        self.followed = ""
        self.down = False

    def _wake(self) -> None:
        self.woken += 1

    # What a test looks at

    @property
    def now(self) -> float:
        return self.store.now

    @property
    def state(self) -> LeaseState:
        return self.slot.state

    @property
    def generation(self) -> Generation | None:
        return self.slot.drain().generation

    @property
    def joined(self) -> Generation:
        generation = self.generation
        assert generation is not None, self.state
        return generation

    @property
    def record(self) -> Record | None:
        """Our lease as it is in the store."""
        self.store.expire()
        lease = self.state.lease
        kept = self.store.kept.get(lease.key) if lease is not None else None
        return kept.record if kept is not None else None

    def count(self, kind: type) -> int:
        return sum(isinstance(call, kind) for _, call in self.calls)

    # Running it

    def start(self, where: Underlay | None = None) -> Node:
        self.machine.start(where or underlay(self.host), self.now, self.marks)
        return self.run(0.0)

    def run(self, seconds: float) -> Node:
        """Let time pass."""
        together([self], seconds)
        return self

    def step(self) -> bool:
        """Do what can be done now; whether there was anything."""
        if self._obey(self.machine.orders()) or self._tell():
            return True
        if self.machine.due is not None and self.machine.due <= self.now:
            self.machine.tick(self.now)
            return True
        return False

    def until(self, condition: Callable[[], Any], limit: float = 300.0) -> Node:
        """Let time pass until something holds."""
        end = self.now + limit
        self.run(0.0)
        while not condition():
            assert self.now < end, self.state
            self.run(0.25)
        return self

    def _obey(self, orders: list[Order]) -> bool:
        for order in orders:
            match order:
                case Do(number, call):
                    self.calls.append((self.now, call))
                    result = self._result(call)
                    if result == HANGS:
                        self.hanging.append(order)
                    else:
                        self.machine.done(number, result, self.now)
                case Keep(document):
                    self.followed = document
                case CloseWatch(watch):
                    self.watches.pop(watch, None)
                case GiveUp():
                    self.given_up += 1
                    self.watches.clear()
        return bool(orders)

    def _result(self, call: Call) -> Any:
        fault = self.fault(call) if self.fault is not None else None
        if fault is not None:
            return fault
        if self.down and not isinstance(call, Publish | Load | Reaches | OpenStore):
            return StoreUnavailableError("out of reach")
        try:
            result = self._answer(call)
        except Exception as error:
            result = error
        if self.after is not None:
            self.after(call)
        return result

    def _answer(self, call: Call) -> Any:
        match call:
            case OpenStore():
                return None
            case OpenWatch(watch, revision):
                self.watches[watch] = revision
                return None
            case Load(network):
                return self.make(network)
            case Publish(backend, node):
                return backend.publish(node)
            case Reaches():
                return call.ask()
        return perform(self.store, call)

    def _tell(self) -> bool:
        """Hand on what the open watches have to tell."""
        for watch, revision in list(self.watches.items()):
            error: PyflannelError | None = StoreUnavailableError("out of reach") if self.down else None
            changes: tuple[Change, ...] = ()
            if error is None:
                try:
                    self.watches[watch], changes = self.store.since(revision)
                except HistoryGoneError as gone:
                    error = gone
            if error is not None:
                del self.watches[watch]
                self.machine.broke(watch, error, self.now)
                return True
            if changes:
                self.machine.batch(watch, Batch(self.watches[watch], changes), self.now)
                return True
        return False

    def come_back(self) -> None:
        """What hangs has its right answer after all."""
        hanging, self.hanging = self.hanging, []
        for order in hanging:
            self.machine.done(order.number, self._result(order.call), self.now)

    def let_go(self) -> None:
        """What hung comes back at last, with an error."""
        hanging, self.hanging = self.hanging, []
        for order in hanging:
            self.machine.done(order.number, StoreUnavailableError("late"), self.now)


def together(nodes: Sequence[Node], seconds: float) -> None:
    """Let time pass for several nodes of one store."""
    store = nodes[0].store
    end = store.now + seconds
    for _ in range(50_000):
        if any(node.step() for node in nodes):
            continue
        due = min((node.machine.due for node in nodes if node.machine.due is not None), default=end)
        store.now = min(max(due, store.now), end)
        if due > end or (due == end and not any(node.step() for node in nodes)):
            break
    else:
        last = [type(call).__name__ for node in nodes for _, call in node.calls[-20:]]
        raise AssertionError(f"it never comes to rest: {last}")
    store.now = end


def on_store(document: str = DOCUMENT, **options: Any) -> Node:
    """A node on a store that has a document."""
    node = Node(**options)
    node.store.config_is(document)
    return node


class Saying(Backend[Any]):
    """A backend that publishes what a test tells it to."""

    name = "saying"

    def __init__(self, publish: Callable[[], Any] = Published) -> None:
        super().__init__(None)
        self.on_publish = publish

    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu

    def publish(self, node: Any) -> Published:
        answer: Published = self.on_publish()
        return answer


def once(kind: type, result: Any) -> Fault:
    """A fault of the first call of a kind."""
    left = [result]
    return lambda call: left.pop() if left and isinstance(call, kind) else None


def while_true(kind: type, result: Any, holds: list[bool]) -> Fault:
    """A fault of every call of a kind for as long as ``holds[0]``."""
    return lambda call: result if holds[0] and isinstance(call, kind) else None


def renewals(node: Node) -> list[float]:
    """When the node renewed."""
    return [at for at, call in node.calls if isinstance(call, Renew)]
