"""One node of a simulated cluster: the daemon's own loop and lease keeper, on a kernel in memory and a wire that fails.

What is simulated is what is around them: when a thread gets its turn, what becomes of a request to the store, what the
kernel holds. Everything that decides is the code that runs in a daemon. A *life* is the time from one start of the
daemon to its end; the kernel, the data plane's table and the files of a node outlive it.
"""

from __future__ import annotations

import random
import select
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from pathlib import Path
from typing import Any, Final

from pyflannel.backend import Backend
from pyflannel.daemon import subnet_env
from pyflannel.daemon.loop import Loop, first_window
from pyflannel.daemon.notify import Notifier
from pyflannel.daemon.reverse_path import ReversePath
from pyflannel.errors import (
    HistoryGoneError,
    PluginError,
    PyflannelError,
    StoreUnavailableError,
)
from pyflannel.firewall.choose import Tools
from pyflannel.firewall.keeper import FirewallKeeper
from pyflannel.firewall.model import Mode, Rules
from pyflannel.firewall.sync import Firewall
from pyflannel.kernel.model import Address, FdbEntry, ForeignInfo, Link, Neighbour, Route
from pyflannel.kernel.twin import TwinPort
from pyflannel.membership.calls import Call, CloseWatch, Do, GiveUp, Load, OpenStore, OpenWatch, Publish
from pyflannel.membership.intake import bounded_batch
from pyflannel.membership.keeper import KeeperOptions, perform
from pyflannel.membership.machine import LeaseMachine
from pyflannel.membership.slot import LeaseState, Slot
from pyflannel.network.change import NodeProgress
from pyflannel.network.document import NetworkConfig
from pyflannel.network.marks import Marks
from pyflannel.network.underlay import Interface, InterfaceRoute, Inventory, Underlay
from pyflannel.settings.settings import resolve
from pyflannel.show.measures import Measures
from pyflannel.show.view import PluginName
from pyflannel.small.wake import Wake
from pyflannel.store import CALL_TIMEOUT
from pyflannel.testing.simulation.agenda import Agenda
from pyflannel.testing.simulation.plane import Table
from pyflannel.testing.simulation.stores import SimulatedStore, StoreModel

__all__ = ["FOREIGN", "Shared", "SimulatedNode", "Wire"]

LATENCY: Final = 0.002
"""Seconds that a request takes on average."""

FOREIGN: Final = (
    Link("other0", ForeignInfo("dummy"), 1500),
    Address("other0", ip_interface("203.0.113.1/24")),
    Neighbour("other0", IPv4Address("203.0.113.9"), "02:aa:00:00:00:09"),
    FdbEntry("other0", "02:aa:00:00:00:08", IPv4Address("203.0.113.8")),
    Route(ip_network("203.0.113.128/25"), "other0"),
    Route(ip_network("198.51.100.0/24"), "eth0", IPv4Address("192.0.2.254")),
)
"""What somebody else has in every kernel. It must stay."""


@dataclass(slots=True)
class Wire:
    """How a node's calls to the store fare. Counts of what goes on at present: two faults of one kind may overlap."""

    cut: int = 0
    lossy: int = 0
    slow: int = 0
    hanging: int = 0

    @property
    def sound(self) -> bool:
        """Whether calls come back as they should."""
        return not (self.cut or self.lossy or self.slow or self.hanging)


@dataclass(slots=True)
class Shared:
    """What all nodes of a cluster share.

    :param make_backend: makes the backend that a document asks for, with a node's table.
    :param note: told of whatever happens, for the history.
    """

    agenda: Agenda
    model: StoreModel
    seed: str
    ttl: float
    margin: float
    make_backend: Callable[[NetworkConfig, Table], Backend[Any]]
    note: Callable[[str, str], None]
    down_until: float = 0.0
    """Until when the store answers nobody."""
    nap: float = 0.0
    """The least time in seconds between two turns for which nothing has come in: longer while all is quiet."""


class _FirewallLeftAlone(FirewallKeeper):
    """The keeper of a daemon that is to leave the firewall alone, without its thread: it sees to things at once."""

    def __init__(self) -> None:
        super().__init__(lambda: Firewall(Tools(None, {}), Mode.NONE), 5.0, lambda: None)
        self._firewall = self._make()

    def want(self, rules: Rules, force_nftables: bool = False) -> None:
        super().want(rules, force_nftables)
        self._hear(None)
        self._check(None)


class SimulatedNode:
    """See the module's docstring.

    :param host: the last byte of its underlay address.
    :param folder: for its files.
    :param hardware: another machine's name, if this one is like that one in everything.
    """

    def __init__(
        self, around: Shared, host: int, node_id: str, folder: Path, name: str = "", hardware: str = ""
    ) -> None:
        self.around, self.host, self.node_id = around, host, node_id
        self.name = name or node_id
        """What it is called in histories, and by a store that gives subnets by name: a clone has its own."""
        self.hardware = hardware or self.name
        """What its marks are made of; a copy that differs in nothing has the original's."""
        self.wire = Wire()
        self.table = Table()
        self.life = self.boots = 0
        self.alive = self.frozen = self.gone = False
        self._move(host)
        self.up = True
        self.unpublished = 0
        """How many reasons there are for which the backend fails to say what the lease carries."""
        self.calls = self.turns = 0
        self.touched = 0
        """Moves whenever something may have changed in what this node's kernel or table does with a packet."""
        self._folder = folder
        self._settings = resolve(
            {},
            {
                "PYFLANNEL_STORE": f"file://{folder}/store",
                "PYFLANNEL_RUN_DIR": f"{folder}/run",
                "PYFLANNEL_STATE_DIR": f"{folder}/state",
                "PYFLANNEL_SUBNET_FILE": f"{folder}/subnet.env",
                "PYFLANNEL_FIREWALL": Mode.NONE.value,
            },
        ).settings
        self._settings.run_dir.mkdir(parents=True)
        self.slot = Slot(lambda: None)
        self.loop: Loop | None = None
        self.machine: LeaseMachine | None = None
        self.kernel = self._new_kernel()
        self._rng = random.Random(f"{around.seed} {self.name}")  # noqa: S311 - a simulation
        self._client: SimulatedStore | None = None
        self._watches: dict[int, str] = {}
        self._hung: list[int] = []
        self._queued: list[Callable[[], None]] = []
        self._turn_due = self._look_due = self._machine_due = float("inf")

    # What others look at

    @property
    def now(self) -> float:
        """The clock."""
        return self.around.agenda.now

    @property
    def state(self) -> LeaseState:
        """How its lease stands, as it knows."""
        return self.slot.state

    @property
    def running(self) -> bool:
        """Whether its daemon runs and gets its turns."""
        return self.alive and not self.frozen

    def _move(self, address: int) -> None:
        self.address = address
        self.addresses = IPv4Address(f"192.0.2.{address}"), IPv6Address(f"2001:db8::{address:x}")
        """Where it is on the underlay."""
        self.underlay = tuple(
            Address("eth0", ip_interface(f"{ip}/{24 if ip.version == 4 else 64}")) for ip in self.addresses
        )
        """The same as its kernel has it."""

    # Starting and ending

    def boot(self) -> None:
        """Start the daemon."""
        self.life += 1
        self.alive = True
        wake, rng = Wake(), random.Random(f"{self.around.seed} {self.name} {self.life}")  # noqa: S311 - a simulation
        self.slot = Slot(self._soon)
        options = KeeperOptions(
            node_id=self.node_id,
            state_dir=self._settings.state_dir,
            ttl=self.around.ttl,
            margin=self.around.margin,
            assigned=self.around.model.assigns_subnets,
        )
        previous = subnet_env.read_previous(self._settings.subnet_file).subnets
        self.machine = LeaseMachine(options, "simulated://store/", "simulated", previous, self.slot, rng)
        self._client, self._watches, self._hung, self._queued = None, {}, [], []
        self.loop = Loop(
            self._settings,
            first_window(
                self.node_id,
                PluginName("simulated"),
                "simulated://store/",
                self.slot,
                wake.set,
                lambda: self.around.agenda.now,
            ),
            self.slot,
            self,
            self.kernel,
            _FirewallLeftAlone(),
            self._inventory,
            Notifier({}),
            lambda: self._settings,
            Measures(),
            wake,
            lambda kind, name: PluginName(name),
            rng,
            reverse_path=ReversePath(self._settings.state_dir, self._folder),  # not this machine's own filters
        )
        self._wake = wake
        self._poll = select.poll()
        self._poll.register(wake, select.POLLIN)
        self._poll.register(self.kernel.fileno(), select.POLLIN)
        self._turn_due = self._look_due = self._machine_due = float("inf")
        self._soon()

    def crash(self) -> None:
        """Kill the daemon: what it knew is gone, the kernel stays as it is."""
        self.life += 1
        self.alive = self.frozen = False
        self.slot = Slot(lambda: None)
        self.loop = self.machine = None

    def wipe_kernel(self) -> None:
        """What a reboot leaves: nothing."""
        self.kernel.close()
        self.kernel = self._new_kernel()
        self.boots += 1
        self.table.kill()
        self._settings.subnet_file.unlink(missing_ok=True)  # /run is gone, too
        self.touched += 1

    def freeze(self) -> None:
        """Stop the process, as SIGSTOP does; the clock goes on."""
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on: all that has come in meanwhile is there at once."""
        if self.frozen:
            self.frozen = False
            queued, self._queued = self._queued, []
            for action in queued:
                action()
            self._obey()
            self._soon()
            self.look()

    def close(self) -> None:
        """Let go of the kernel's descriptor."""
        self.crash()
        self.kernel.close()

    # The daemon's surroundings

    def _new_kernel(self) -> TwinPort:
        switches = {"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"}
        eth0 = Link("eth0", ForeignInfo("veth"), 1500, up=self.up)
        kernel = TwinPort([eth0], self.underlay, switches)
        for item in FOREIGN:
            kernel.put(item)
        return kernel

    def _inventory(self) -> Inventory:
        four, six = self.addresses
        routes = (
            InterfaceRoute(ip_network("192.0.2.0/24"), "eth0"),
            InterfaceRoute(ip_network("2001:db8::/64"), "eth0"),
            InterfaceRoute(ip_network("0.0.0.0/0"), "eth0", IPv4Address("192.0.2.254")),
            InterfaceRoute(ip_network("::/0"), "eth0", IPv6Address("2001:db8::fe")),
        )
        return Inventory((Interface("eth0", 1500, self.up, (four, six)),), routes if self.up else ())

    def move_to(self, address: int) -> None:
        """The underlay has another address now."""
        before = self.underlay
        self._move(address)
        for item in self.underlay:
            self.kernel.put(item)
        for item in before:
            self.kernel.remove(item.key)
        self.disturbed()

    def set_up(self, up: bool) -> None:
        """The underlay's link goes up or down."""
        self.up = up
        self.kernel.set_link("eth0", up=up)
        if up:  # who set it up does so again
            for item in self.underlay:
                self.kernel.put(item)
            self.kernel.put(FOREIGN[-1])
        self.disturbed()

    def disturbed(self) -> None:
        """Something else has changed this node's kernel."""
        self.touched += 1
        self._soon()

    # The lease keeper, as the loop sees it

    def start(self, underlay: Underlay | None) -> None:
        marks = Marks(f"{self.hardware} {self.boots}", f"product {self.hardware}", frozenset({f"card {self.hardware}"}))
        self._tell(lambda machine: machine.start(underlay, self.now, marks))

    def move(self, underlay: Underlay | None) -> None:
        self._tell(lambda machine: machine.move(underlay, self.now))

    def publish(self) -> int:
        raise NotImplementedError("no simulated backend has actions")

    def announce(self, ready: bool) -> None:
        self._tell(lambda machine: machine.announce(ready, self.now))

    def reached(self, progress: NodeProgress) -> None:
        self._tell(lambda machine: machine.reached(progress, self.now))

    def _tell(self, what: Callable[[LeaseMachine], None], after: float = 0.0) -> None:
        """Hand the machine something, in this life or never."""
        life = self.life

        def tell() -> None:
            if self.life != life or self.machine is None:
                return
            if self.frozen:
                self._queued.append(tell)
                return
            what(self.machine)
            self._obey()

        self.around.agenda.after(after, tell)

    def _tick(self) -> None:
        if self._machine_due > self.now:
            return
        self._machine_due = float("inf")
        machine = self.machine
        if machine is None or self.frozen:
            return
        machine.tick(self.now)
        self._obey()

    def _obey(self) -> None:
        """Do what the machine has ordered, and come back when it wants to be called."""
        machine = self.machine
        if machine is None:
            return
        for order in machine.orders():
            if isinstance(order, Do):
                self._call(order.number, order.call)
            elif isinstance(order, CloseWatch):
                self._watches.pop(order.watch, None)
            elif isinstance(order, GiveUp):
                self._client = None
                self._watches.clear()
        due, life = machine.due, self.life
        if due is not None and max(due, self.now) < self._machine_due:
            self._machine_due = max(due, self.now)
            self.around.agenda.at(self._machine_due, lambda: self._tick() if self.life == life else None)

    # Calls

    def _call(self, number: int, call: Call) -> None:
        self.calls += 1
        if isinstance(call, Load | Publish):
            self._answer(number, self._ask_backend(call), self._rng.random() * LATENCY)
        elif isinstance(call, OpenStore):
            self._client = self.around.model.open(self.name)
            self._watches.clear()
            self._answer(number, None, 0.0)
        elif self.wire.hanging:
            self._hung.append(number)
        else:
            self._send(number, call)

    def _ask_backend(self, call: Load | Publish) -> Any:
        try:
            if isinstance(call, Load):
                return self.around.make_backend(call.network, self.table)
            if self.unpublished:
                return PluginError("the backend can't say what the lease should carry now")
            return call.backend.publish(call.node)
        except Exception as error:
            return error

    def _send(self, number: int, call: Call) -> None:
        wire, rng, client = self.wire, self._rng, self._client
        if wire.cut or self._is_down() or (wire.lossy and rng.random() < 0.3):
            self._fail(number)
            return
        arrives = self._travel()
        self.around.agenda.after(arrives, lambda: self._arrive(number, call, client, self.life))

    def _travel(self) -> float:
        pause = self._rng.random() * CALL_TIMEOUT * 0.45 if self.wire.slow else 0.0
        return pause + self._rng.random() * 2 * LATENCY

    def _is_down(self) -> bool:
        return self.now < self.around.down_until

    def _fail(self, number: int) -> None:
        self._answer(number, StoreUnavailableError("out of reach"), self._rng.random() * CALL_TIMEOUT)

    def _arrive(self, number: int, call: Call, client: SimulatedStore | None, life: int) -> None:
        """A request has reached the store, be it that nobody waits for it any more."""
        if client is None or self._is_down():
            if life == self.life:
                self._fail(number)
            return
        self.around.model.advance(self.now)
        result = self._performed(client, call)
        self.around.note(self.name, f"{call.name}: {_short(result)}")
        if life != self.life:
            return
        if self.wire.cut or (self.wire.lossy and self._rng.random() < 0.3):
            self._fail(number)
            return
        self._answer(number, result, self._travel())

    def _performed(self, client: SimulatedStore, call: Call) -> Any:
        if isinstance(call, OpenWatch):
            if client is self._client:
                self._watches[call.watch] = call.revision
                self.look()
            return None
        try:
            return perform(client, call)
        except PyflannelError as error:
            return error

    def _answer(self, number: int, result: Any, after: float) -> None:
        self._tell(lambda machine: machine.done(number, result, self.now), after)

    def let_go(self) -> None:
        """What hung comes back at last, with an error."""
        hung, self._hung = self._hung, []
        for number in hung:
            self._answer(number, StoreUnavailableError("late"), 0.0)

    # Watches

    def look(self) -> None:
        """The store may have something to tell: look in a moment."""
        if not self._watches:
            return
        late = self._client.late if self._client is not None else 0.0
        due = self.now + self._travel() + late
        if due < self._look_due:
            self._look_due = due
            life = self.life
            self.around.agenda.at(due, lambda: self._tell_changes() if self.life == life else None)

    def _tell_changes(self) -> None:
        if self._look_due > self.now:
            return
        self._look_due = float("inf")
        client = self._client
        if self.frozen or self.wire.cut or self._is_down() or self.machine is None or client is None:
            return  # whoever mends this has us look again
        self.around.model.advance(self.now)
        for watch, revision in list(self._watches.items()):
            try:
                batch = client.told(revision)
            except HistoryGoneError as error:
                self._break(watch, error)
                continue
            self._watches[watch] = batch.revision
            if batch.changes:
                self.machine.batch(watch, bounded_batch(batch), self.now)
        self._obey()
        if client.behind:
            self.look()

    def _break(self, watch: int, error: PyflannelError) -> None:
        if self._watches.pop(watch, None) is not None and self.machine is not None:
            self.machine.broke(watch, error, self.now)
            self._obey()

    def notice_break(self, after: float) -> None:
        """Streams whose store is out of reach are found to be broken after so long, if it still is then."""
        life, watches = self.life, list(self._watches)

        def find() -> None:
            if self.life == life and self.running and (self.wire.cut or self._is_down()):
                for watch in watches:
                    self._break(watch, StoreUnavailableError("the stream broke"))

        self.around.agenda.after(after, find)

    # The loop's turns

    def _soon(self) -> None:
        self._turn_at(self.now + self._rng.random() * LATENCY)

    def _turn_at(self, time: float) -> None:
        if time < self._turn_due:
            self._turn_due = time
            life = self.life
            self.around.agenda.at(time, lambda: self._turn() if self.life == life else None)

    def _turn(self) -> None:
        if self._turn_due > self.now:
            return
        self._turn_due = float("inf")
        if self.frozen or self.loop is None:
            return
        self.turns += 1
        self._wake.drain()
        written = len(self.kernel.writes)
        try:
            self.loop.turn()
        except PyflannelError as error:
            self._exit(error)
            return
        if len(self.kernel.writes) != written:
            self.touched += 1
        due = self.loop.due
        if self._poll.poll(0) or due <= self.now:
            self._soon()
        else:
            nap = self.around.nap if self.loop.tracker.retry_at is None else 0.0  # what was refused is asked for
            self._turn_at(max(due, self.now + nap))

    def _exit(self, error: PyflannelError) -> None:
        """The daemon gives up, and its supervisor starts it again."""
        self.around.note(self.name, f"ends: {error}")
        self.crash()
        life = self.life
        self.around.agenda.after(5.0, lambda: self.boot() if self.life == life and not self.gone else None)

    @property
    def counters(self) -> Mapping[str, int]:
        """How much it has done."""
        return {"calls": self.calls, "turns": self.turns, "writes": len(self.kernel.writes)}


def _short(result: Any) -> str:
    if isinstance(result, BaseException):
        return type(result).__name__
    return str(getattr(result, "key", "done"))
