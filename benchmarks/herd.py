"""A herd: N nodes join one store at once, all renew after an outage, a tenth of them is replaced, all start again.

Every node is the daemon's own lease keeper (:class:`~pyflannel.membership.machine.LeaseMachine`) with its slot; some
are whole (``--whole``): overlay, tracker and a kernel in memory, which has to hold a way to everybody in the end. Their
calls go to one real cluster, three members on loopback, through the daemon's own drivers, some dozens of calls at a
time (``--drivers``). Watches are what one process can't have by the thousand: one real watch is open, and every node
gets from it what its own would have told, from the revision on that the node has asked for, ten times a second.

Time is real but for one jump: instead of the hours until renewals are due, the nodes' clocks are put forward while the
servers are away.

Printed is for each act how long it took until every node held its lease, and until every node knew of every other one;
what the store was asked and how many draws of a subnet somebody else had been quicker with; changes told to a node; and
what the servers sent and received (etcd's own count, without the watches that were not there).

    python benchmarks/herd.py --nodes 1000 --store etcd
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from heapq import heappop, heappush
from ipaddress import IPv4Address, ip_interface
from pathlib import Path
from typing import Any, TypeAlias

from pyflannel.backend import Backend, Underlay, parse_options
from pyflannel.errors import ConflictError, PyflannelError, StoreUnavailableError
from pyflannel.kernel.model import Address, ForeignInfo, Kind, Link
from pyflannel.kernel.tracker import Tracker
from pyflannel.kernel.twin import TwinPort
from pyflannel.lab.servers.consul import ConsulCluster
from pyflannel.lab.servers.etcd import EtcdCluster
from pyflannel.membership.calls import (
    CloseWatch,
    Create,
    Do,
    GiveUp,
    Load,
    OpenStore,
    OpenWatch,
    Order,
    Publish,
    TakeSnapshot,
)
from pyflannel.membership.keeper import perform
from pyflannel.membership.machine import LeaseMachine
from pyflannel.membership.slot import Slot
from pyflannel.membership.state import KeeperOptions
from pyflannel.network.document import NetworkConfig
from pyflannel.planning.overlay import Overlay
from pyflannel.plugins import load_backend, load_store
from pyflannel.store import Batch, Change, Snapshot, Store, StoreLocation

Cluster: TypeAlias = EtcdCluster | ConsulCluster
Input: TypeAlias = Callable[[], None]

DOCUMENT = '{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}'
TTL = 86400.0
MARGIN = 3600.0
PATIENCE = 1800.0
FLUSH = 0.1
LOOK = 0.05
BYTES = ("etcd_network_client_grpc_sent_bytes_total", "etcd_network_client_grpc_received_bytes_total")


class Feed:
    """What one real watch has told since the beginning, for whoever wants to know what came after a revision."""

    def __init__(self, store: Store, inbox: queue.SimpleQueue[Input]) -> None:
        self._store, self._inbox = store, inbox
        self.revisions: list[int] = []
        """The revision of each batch, and ``ends``: how many changes there were after it."""
        self.ends: list[int] = []
        self.changes: list[Change] = []
        self._revision = ""
        self._positions: dict[str, int] = {}
        """Of revisions that are no numbers, as Consul's driver makes them up: how many changes there were at most."""
        self.broke: Callable[[PyflannelError], None] = lambda error: None
        self.up = False
        self._stopping = False

    def start(self, revision: str) -> None:
        threading.Thread(target=self._run, args=(revision,), daemon=True).start()

    def stop(self) -> None:
        self._stopping = True

    def position(self, revision: str) -> int:
        """How many changes there were up to a revision."""
        if not revision.isdecimal():
            return self._positions[revision]
        before = bisect_right(self.revisions, int(revision))
        return self.ends[before - 1] if before else 0

    def took(self, revision: str, position: int) -> None:
        """A snapshot was asked for after so many changes. What it has besides is told once more."""
        if not revision.isdecimal():
            self._positions[revision] = position

    def since(self, position: int) -> Batch:
        return Batch(self._revision, tuple(self.changes[position:]))

    def _run(self, revision: str) -> None:
        """Watch, and after each break from where it broke off."""
        while not self._stopping:
            try:
                with self._store.watch(revision) as watch:
                    self._inbox.put(self._opened)
                    for batch in watch:
                        revision = batch.revision
                        self._inbox.put(lambda batch=batch: self._heard(batch))  # type: ignore[misc]
            except PyflannelError as error:
                self._inbox.put(lambda error=error: self._lost(error))  # type: ignore[misc]
                time.sleep(0.1)

    def _opened(self) -> None:
        self.up = True

    def _heard(self, batch: Batch) -> None:
        if batch.changes:
            self.changes.extend(batch.changes)
            self._revision = batch.revision
            self.took(batch.revision, len(self.changes))
            if batch.revision.isdecimal():
                self.revisions.append(int(batch.revision))
                self.ends.append(len(self.changes))

    def _lost(self, error: PyflannelError) -> None:
        if self.up:
            self.up = False
            self.broke(error)


class Node:
    """One node; ``whole`` ones have an overlay and a kernel."""

    def __init__(self, number: int, backend: Backend[Any], whole: bool, location: StoreLocation) -> None:
        address = IPv4Address(0xC6120000 + number)  # 198.18.0.0/15, for benchmarks
        self.underlay = Underlay("eth0", 1500, address, public_ipv4=address)
        self.backend = backend
        self.slot = Slot(lambda: None)
        options = KeeperOptions(f"herd-{number}", Path("/nonexistent"), TTL, MARGIN)
        rng = random.Random(number)
        self.machine = LeaseMachine(options, str(location), location.scheme, None, self.slot, rng)
        self.watch: int | None = None
        self.position = 0
        self.events = 0
        self.due: float | None = None
        self.tracker: Tracker | None = None
        self.port: TwinPort | None = None
        self.overlay: Overlay | None = None
        if whole:
            eth0 = Link("eth0", ForeignInfo("veth"), 1500)
            sysctls = {"net/ipv4/ip_forward": "0"}
            self.port = TwinPort([eth0], [Address("eth0", ip_interface(f"{address}/15"))], sysctls)
            self.tracker = Tracker(self.port, time.monotonic)

    def settle(self) -> None:
        """What the daemon's loop does with what the slot has."""
        drained = self.slot.drain()
        if self.tracker is None or drained.generation is None:
            return
        dirty = drained.dirty
        if self.overlay is None or self.overlay.node != drained.generation.node:
            self.overlay = Overlay(drained.generation.backend, drained.generation.node)
            dirty = self.slot.records()
            self.overlay.drain_changed()
            self.tracker.follow(self.overlay.desired)
            self.tracker.sweep = True
        for key, value in dirty.items():
            if value is None:
                self.overlay.remove(key)
            else:
                self.overlay.put(key, value)
        self.tracker.changed(self.overlay.drain_changed())
        self.tracker.reconcile()

    def routes(self) -> int:
        assert self.port is not None
        return sum(key[0] is Kind.ROUTE for key in self.port.routes)


class Herd:
    """The nodes and the one thread that hands them their input."""

    def __init__(self, location: StoreLocation, drivers: int, whole: int) -> None:
        self.location = location
        self.nodes: dict[int, Node] = {}
        self.inbox: queue.SimpleQueue[Input] = queue.SimpleQueue()
        self.calls: Counter[str] = Counter()
        self.bytes = 0
        self._driver = load_store(location.scheme)
        self._kind = load_backend("vxlan")
        self._whole = whole
        self._heap: list[tuple[float, int]] = []
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(drivers)
        self._open_drivers: list[Store] = []
        self._ahead = self._flush_at = 0.0

    def forget(self) -> None:
        """Count from here."""
        self.calls.clear()
        self.bytes = 0
        for node in self.nodes.values():
            node.events = 0

    def now(self) -> float:
        return time.monotonic() + self._ahead

    def jump(self, seconds: float) -> None:
        """Put the nodes' clocks forward."""
        self._ahead += seconds

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with self._driver(self.location) as first:
            first.write_config(DOCUMENT, None)
            self.feed = Feed(first, self.inbox)
            self.feed.broke = self._broke
            self.feed.start(first.snapshot().revision)
            try:
                yield
            finally:
                self.feed.stop()
                self._pool.shutdown(cancel_futures=True)
                for store in self._open_drivers:
                    with suppress(PyflannelError):
                        store.close()

    # What happens

    def add(self, number: int) -> None:
        network = NetworkConfig.from_json(DOCUMENT)
        backend = self._kind(parse_options(self._kind.Options, network.backend_options)[0])
        node = self.nodes[number] = Node(number, backend, len(self.nodes) < self._whole, self.location)
        node.machine.start(node.underlay, self.now())
        self._obey(number)

    def replace(self, numbers: range, successors: range) -> None:
        """Nodes go for good, leases and all, and other machines come."""
        gone = [lease.key for number in numbers if (lease := self.nodes.pop(number).slot.state.lease) is not None]
        self._pool.submit(self._delete, frozenset(gone))
        for successor in successors:
            self.add(successor)

    def _delete(self, keys: frozenset[str]) -> None:
        store = self._store()
        for record in store.snapshot().leases:
            if record.key in keys:
                store.delete(record)

    def restart(self) -> None:
        """Every daemon starts again on a node that has a lease."""
        numbers = list(self.nodes)
        self.nodes.clear()
        for number in numbers:
            self.add(number)

    def run(self, done: Callable[[], bool]) -> float:
        """Work until ``done``; the seconds that took."""
        begin = looked = time.monotonic()
        while not done():
            looked = time.monotonic()
            if looked - begin > PATIENCE:
                raise SystemExit(f"no end in sight: {self._example()}")
            while time.monotonic() - looked < LOOK:
                self._turn()
        return time.monotonic() - begin

    def _example(self) -> str:
        return next((node.slot.state.trouble for node in self.nodes.values() if node.slot.state.trouble), "no trouble")

    def _turn(self) -> None:
        if time.monotonic() >= self._flush_at:
            self._flush()
        due = self._heap[0][0] - self.now() if self._heap else LOOK
        taken: Input | None = None
        with suppress(queue.Empty):
            taken = self.inbox.get(timeout=min(max(due, 0.001), LOOK))
        while taken is not None:
            taken()
            try:
                taken = self.inbox.get_nowait()
            except queue.Empty:
                taken = None
        while self._heap and self._heap[0][0] <= self.now():
            at, number = heappop(self._heap)
            node = self.nodes.get(number)
            if node is not None and node.due == at:
                node.machine.tick(self.now())
                self._obey(number)

    def _obey(self, number: int) -> None:
        node = self.nodes[number]
        while orders := node.machine.orders():
            for order in orders:
                self._carry_out(number, node, order)
        if node.machine.due != node.due:
            node.due = node.machine.due
            if node.due is not None:
                heappush(self._heap, (node.due, number))

    def _carry_out(self, number: int, node: Node, order: Order) -> None:
        match order:
            case CloseWatch():
                node.watch = None
            case GiveUp():
                self.calls["given up"] += 1
            case Do(asked, OpenStore()):
                node.machine.done(asked, None, self.now())
            case Do(asked, Load()):
                node.machine.done(asked, node.backend, self.now())
            case Do(asked, Publish(backend, place)):
                node.machine.done(asked, backend.publish(place), self.now())
            case Do(asked, OpenWatch(watch, revision)):
                self._open_watch(node, asked, watch, revision)
            case Do(asked, call):
                self.calls[call.name] += 1
                self._pool.submit(self._call, number, node, asked, call)

    def _open_watch(self, node: Node, asked: int, watch: int, revision: str) -> None:
        self.calls["watch"] += 1
        if not self.feed.up:
            node.machine.done(asked, StoreUnavailableError("no watch"), self.now())
            return
        node.machine.done(asked, None, self.now())
        node.watch, node.position = watch, self.feed.position(revision)

    def _flush(self) -> None:
        """Tell every node what it has not been told."""
        self._flush_at = time.monotonic() + FLUSH
        end, batches = len(self.feed.changes), dict[int, Batch]()
        for number, node in list(self.nodes.items()):
            if node.watch is None or node.position == end:
                continue
            if node.position not in batches:
                batches[node.position] = self.feed.since(node.position)
            batch = batches[node.position]
            node.position = end
            node.events += len(batch.changes)
            node.machine.batch(node.watch, batch, self.now())
            if node.tracker is None:
                node.slot.drain()
            self._obey(number)

    def _broke(self, error: PyflannelError) -> None:
        for number, node in self.nodes.items():
            watch, node.watch = node.watch, None
            if watch is not None:
                node.machine.broke(watch, error, self.now())
                self._obey(number)

    # The drivers' threads

    def _store(self) -> Store:
        if not hasattr(self._local, "store"):
            self._local.store = self._driver(self.location)
            self._open_drivers.append(self._local.store)
        store: Store = self._local.store
        return store

    def _call(self, number: int, node: Node, asked: int, call: Any) -> None:
        known = len(self.feed.changes)
        try:
            result = perform(self._store(), call)
        except PyflannelError as error:
            result = error
        if isinstance(result, Snapshot):
            self.feed.took(result.revision, known)
        self.inbox.put(lambda: self._answered(number, node, asked, call, result))

    def _answered(self, number: int, node: Node, asked: int, call: Any, result: Any) -> None:
        if isinstance(result, PyflannelError):
            lost = isinstance(call, Create) and isinstance(result, ConflictError)
            self.calls["subnet lost to a quicker one" if lost else f"{call.name} failed"] += 1
        if isinstance(call, TakeSnapshot) and isinstance(result, Snapshot):
            self.bytes += sum(len(record.key) + len(record.value) for record in result.leases)
        if self.nodes.get(number) is node:
            node.machine.done(asked, result, self.now())
            self._obey(number)

    # What is looked at

    def all_hold(self) -> bool:
        return all(node.slot.state.valid(self.now()) for node in self.nodes.values())

    def all_know(self) -> bool:
        """Whether every node has just the others' leases."""
        if not self.all_hold() or not self.inbox.empty() or any(node.watch is None for node in self.nodes.values()):
            return False
        keys = {lease.key for node in self.nodes.values() if (lease := node.slot.state.lease) is not None}
        if len(keys) < len(self.nodes):
            return False
        return all(
            len(records := node.slot.records()) == len(keys) - 1 and records.keys() <= keys
            for node in self.nodes.values()
        )


def counted(cluster: Cluster) -> Counter[str]:
    """What the members have sent to clients and received from them since they started, in bytes, by their account."""
    found: Counter[str] = Counter()
    if isinstance(cluster, EtcdCluster):
        for member in cluster.members:
            with urllib.request.urlopen(f"{member.metrics_url}/metrics", timeout=30) as answer:
                lines = answer.read().decode().splitlines()
            for name in BYTES:
                found[name] += sum(int(float(line.split()[1])) for line in lines if line.startswith(f"{name} "))
    return found


def act(herd: Herd, cluster: Cluster, name: str, begin: Callable[[], None]) -> dict[str, Any]:
    """One act of the play, and what it took."""
    herd.forget()
    before, used = counted(cluster), resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    begin()
    late = time.monotonic() - began
    held = late + herd.run(herd.all_hold)
    known = held + herd.run(herd.all_know)
    after, now_used = counted(cluster), resource.getrusage(resource.RUSAGE_SELF)
    nodes = len(herd.nodes)
    events = [node.events for node in herd.nodes.values()]
    whole = [node for node in herd.nodes.values() if node.tracker is not None]
    planned = time.process_time()
    for node in whole:
        node.settle()
    planned = time.process_time() - planned
    wrong = [node.routes() for node in whole if node.routes() != nodes - 1]
    if wrong:
        raise SystemExit(f"{name}: {len(wrong)} kernels have {wrong[0]} routes, not {nodes - 1}")
    return {
        "act": name,
        "nodes": nodes,
        "all hold, s": round(held, 2),
        "all know all, s": round(known, 2),
        "calls a node": {kind: round(count / nodes, 3) for kind, count in sorted(herd.calls.items())},
        "leases read in snapshots, MB": round(herd.bytes / 1e6, 2),
        "changes told a node": round(sum(events) / nodes, 1),
        "sent by servers, MB": round(_more(before, after, BYTES[0]) / 1e6, 2),
        "received by servers, MB": round(_more(before, after, BYTES[1]) / 1e6, 2),
        "CPU of all nodes, s": round(now_used.ru_utime + now_used.ru_stime - used.ru_utime - used.ru_stime, 2),
        "CPU of a whole node's planning and writing, s": round(planned / max(1, len(whole)), 3),
    }


def _more(before: Counter[str], after: Counter[str], name: str) -> int:
    """What a counter grew by; from nothing where the servers have been started anew."""
    return after[name] - before[name] if after[name] >= before[name] else after[name]


def play(herd: Herd, cluster: Cluster, nodes: int, outage: float) -> Iterator[dict[str, Any]]:
    def join() -> None:
        for number in range(nodes):
            herd.add(number)

    def outlast() -> None:
        cluster.stop()
        herd.jump(TTL - MARGIN)
        begin = time.monotonic()
        herd.run(lambda: time.monotonic() - begin > outage)
        cluster.start()
        back = herd.now()
        took = herd.run(lambda: all((node.slot.state.renewed_at or 0.0) > back for node in herd.nodes.values()))
        print(f"all have renewed {took:.2f} s after the servers are back", flush=True)

    def replace() -> None:
        tenth = nodes // 10
        herd.replace(range(nodes - tenth, nodes), range(nodes, nodes + tenth))

    yield act(herd, cluster, "join", join)
    yield act(herd, cluster, "renew after an outage", outlast)
    yield act(herd, cluster, "replace a tenth", replace)
    yield act(herd, cluster, "start again", herd.restart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--store", choices=("etcd", "consul"), default="etcd")
    parser.add_argument("--drivers", type=int, default=24, help="calls at a time (default %(default)s)")
    parser.add_argument("--whole", type=int, default=5, help="nodes with a kernel (default %(default)s)")
    parser.add_argument("--outage", type=float, default=10.0, help="seconds (default %(default)s)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers must not outlive us
    kind: Any = EtcdCluster if arguments.store == "etcd" else ConsulCluster
    with tempfile.TemporaryDirectory(prefix="pyflannel-") as directory, kind(Path(directory), 3) as cluster:
        location = StoreLocation.parse(f"{arguments.store}://{cluster.hosts}/coreos.com/network")
        herd = Herd(location, arguments.drivers, arguments.whole)
        with herd.at_work():
            for found in play(herd, cluster, arguments.nodes, arguments.outage):
                print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    sys.setswitchinterval(0.001)
    main()
