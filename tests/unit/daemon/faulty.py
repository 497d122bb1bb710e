"""A backend, a store, a kernel and an underlay whose every call can be made to fail, as a test says."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from ipaddress import IPv4Interface, IPv4Network
from typing import Any, ClassVar

from pyflannel.backend import (
    Address,
    Backend,
    DataPlane,
    DesiredState,
    GenericInfo,
    Lease,
    Link,
    Node,
    Outcome,
    Published,
    Route,
    Subnets,
    Underlay,
    forwarding,
)
from pyflannel.kernel.model import KernelObject, Key
from pyflannel.kernel.port import NOTHING, Notice, Scope, Write
from pyflannel.kernel.twin import TwinPort
from pyflannel.network.underlay import Inventory
from pyflannel.store import Batch, Record, Snapshot, Watch
from pyflannel_stores.file import FileStore


class Faults:
    """What goes wrong, by the name of the call."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._wrong: dict[str, Callable[[], Any]] = {}
        self._gate = threading.Event()

    def once(self, name: str, error: BaseException) -> None:
        """The next call fails."""

        def fail() -> None:
            del self._wrong[name]
            raise error

        self._wrong[name] = fail

    def always(self, name: str, error: BaseException) -> None:
        """Every call fails until :meth:`end`."""

        def fail() -> None:
            raise error

        self._wrong[name] = fail

    def hang(self, name: str) -> None:
        """No call comes back until :meth:`end`."""
        self._wrong[name] = self._gate.wait

    def end(self) -> None:
        """All is well from now on."""
        self._wrong.clear()
        self._gate.set()

    def at(self, name: str) -> None:
        """A call is made."""
        self.calls[name] += 1
        wrong = self._wrong.get(name)
        if wrong is not None:
            self.failed[name] += 1
            wrong()


class FaultyBackend(Backend[Any]):
    """A device, and a route for each peer; and a data plane that remembers whom it was told of."""

    name = "faulty"
    device: ClassVar[str] = "faulty0"
    actions: ClassVar[Mapping[str, str]] = {"turn": "change what is published"}

    def __init__(self, faults: Faults, has_plane: bool = True) -> None:
        super().__init__(None)
        self.faults, self.has_plane = faults, has_plane
        self.told: dict[Subnets, Lease] = {}
        self.turned = self.heard = 0

    def mtu(self, underlay: Underlay) -> int:
        self.faults.at("mtu")
        return underlay.mtu - 50

    def publish(self, node: Node) -> Published:
        self.faults.at("publish")
        return Published({"Turned": self.turned})

    def describe(self, node: Node) -> Mapping[str, str]:
        self.faults.at("describe")
        return {"turned": str(self.turned)}

    def plan_node(self, node: Node) -> DesiredState:
        self.faults.at("plan_node")
        device = Link(self.device, GenericInfo("dummy"), node.underlay.mtu - 50)
        assert node.subnets.ipv4 is not None
        return DesiredState(
            [forwarding(4), device, Address(self.device, IPv4Interface(node.subnets.ipv4.network_address))]
        )

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        self.faults.at("plan_peer")
        assert isinstance(peer.subnets.ipv4, IPv4Network)
        assert peer.attributes.public_ip is not None
        return DesiredState([Route(peer.subnets.ipv4, self.device, metric=int(peer.attributes.public_ip) & 0xFFFF)])

    def act(self, action: str, node: Node) -> Outcome:
        self.faults.at("act")
        self.turned += 1
        return Outcome(done="turned", undo=lambda: None)

    def start(self, node: Node) -> DataPlane | None:
        self.faults.at("start")
        return _Plane(self) if self.has_plane else None


class _Plane(DataPlane):
    def __init__(self, backend: FaultyBackend) -> None:
        self.backend, self.faults = backend, backend.faults
        backend.told.clear()

    def put(self, peer: Lease) -> None:
        self.faults.at("put")
        self.backend.told[peer.subnets] = peer

    def remove(self, subnets: Subnets) -> None:
        self.faults.at("remove")
        self.backend.told.pop(subnets, None)

    def check(self) -> Mapping[str, str]:
        self.faults.at("check")
        return {}

    def renew(self) -> None:
        self.faults.at("plane.renew")
        self.backend.heard = self.backend.turned

    def counters(self) -> Mapping[str, int]:
        self.faults.at("counters")
        return {"told": len(self.backend.told)}

    def describe(self) -> Mapping[str, str]:
        self.faults.at("plane.describe")
        return {}

    def stop(self) -> None:
        self.faults.at("plane.stop")

    def end(self) -> None:
        self.faults.at("plane.end")


class FaultyStore(FileStore):
    """A file store."""

    def __init__(self, location: Any, faults: Faults) -> None:
        super().__init__(location)
        self.faults = faults

    def snapshot(self) -> Snapshot:
        self.faults.at("snapshot")
        return super().snapshot()

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        self.faults.at("create")
        return super().create(key, value, ttl)

    def renew(self, record: Record, ttl: float) -> Record:
        self.faults.at("renew")
        return super().renew(record, ttl)

    def watch(self, revision: str) -> Watch:
        self.faults.at("watch")
        return _FaultyWatch(super().watch(revision), self.faults)


class _FaultyWatch(Watch):
    def __init__(self, watch: Watch, faults: Faults) -> None:
        self.inner, self.faults = watch, faults

    def __next__(self) -> Batch:
        self.faults.at("iterate")
        return next(self.inner)

    def close(self) -> None:
        self.inner.close()


class FaultyPort(TwinPort):
    """A twin."""

    faults: Faults

    def dump(self, scope: Scope, known: Mapping[Key, KernelObject] = NOTHING) -> dict[Key, KernelObject]:
        self.faults.at("dump")
        return super().dump(scope, known)

    def apply(self, writes: Any) -> Any:
        self.faults.at("apply")
        found: list[Write] = list(writes)
        return super().apply(found)

    def poll(self) -> Notice:
        self.faults.at("poll")
        return super().poll()


def reading(faults: Faults, inventory: Inventory) -> Callable[[], Inventory]:
    """Reads the underlay's interfaces."""

    def read() -> Inventory:
        faults.at("read_inventory")
        return inventory

    return read
