"""A daemon in this process: the real loop and lease keeper with their threads, on a kernel twin and a store."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from tests.waiting import until

from pyflannel.backend import Backend
from pyflannel.daemon import subnet_env
from pyflannel.daemon.loop import Loop, first_window
from pyflannel.daemon.notify import Notifier
from pyflannel.daemon.wiring import make_backend
from pyflannel.firewall.choose import Tools
from pyflannel.firewall.keeper import FirewallKeeper
from pyflannel.firewall.model import Mode
from pyflannel.firewall.sync import Firewall
from pyflannel.kernel.model import Address, ForeignInfo, Link
from pyflannel.kernel.twin import TwinPort
from pyflannel.membership.keeper import KeeperOptions, LeaseKeeper
from pyflannel.membership.slot import Slot
from pyflannel.network.document import NetworkConfig
from pyflannel.network.underlay import Interface, InterfaceRoute, Inventory
from pyflannel.settings.settings import Settings, resolve
from pyflannel.show.document import document
from pyflannel.show.measures import Measures
from pyflannel.show.status import State, Status
from pyflannel.show.view import PluginName
from pyflannel.small.wake import Wake
from pyflannel.store import Store

INVENTORY = Inventory(
    (Interface("eth0", 1500, True, (IPv4Address("192.0.2.1"),)),),
    (InterfaceRoute(ip_network("0.0.0.0/0"), "eth0", IPv4Address("192.0.2.254")),),
)


def twin(kind: type[TwinPort] = TwinPort) -> TwinPort:
    """A kernel with one interface."""
    return kind(
        [Link("eth0", ForeignInfo("veth"), 1500)],
        [Address("eth0", ip_interface("192.0.2.1/24"))],
        {"net/ipv4/ip_forward": "0"},
    )


def settings_in(path: Path, **environ: str) -> Settings:
    """Settings of a daemon whose files are below ``path``, with a file store."""
    settings = resolve(
        {},
        {
            "PYFLANNEL_STORE": f"file://{path}/store",
            "PYFLANNEL_RUN_DIR": f"{path}/run",
            "PYFLANNEL_STATE_DIR": f"{path}/state",
            "PYFLANNEL_SUBNET_FILE": f"{path}/subnet.env",
            "PYFLANNEL_FIREWALL": Mode.NONE.value,
            **environ,
        },
    ).settings
    settings.run_dir.mkdir(exist_ok=True)
    return settings


@dataclass
class Running:
    """See the module's docstring.

    :param open_store: makes the store that the keeper works on.
    :param make: makes the backend that a document asks for.
    """

    path: Path
    open_store: Callable[[], Store]
    port: TwinPort
    make: Callable[[NetworkConfig], Backend[Any]] = make_backend
    read_inventory: Callable[[], Inventory] = lambda: INVENTORY
    settings: Settings | None = None
    ttl: float = 3600.0
    margin: float = 600.0
    publish_timeout: float = 60.0
    clock: Callable[[], float] = time.monotonic
    ended: list[BaseException | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.settings or settings_in(self.path)
        wake, rng, self.measures = Wake(), random.Random(1), Measures()
        self.slot = Slot(wake.set)
        self.keeper = LeaseKeeper(
            settings.store,
            self.open_store,
            KeeperOptions(
                node_id="node-1",
                state_dir=settings.state_dir,
                ttl=self.ttl,
                margin=self.margin,
                publish_timeout=self.publish_timeout,
            ),
            self.make,
            self.slot,
            self.clock,
            rng,
            subnet_env.read_previous(settings.subnet_file).subnets,
            self.measures.called,
        )
        self.firewall = FirewallKeeper(lambda: Firewall(Tools(None, {}), Mode.NONE), 5.0, wake.set)
        self.loop = Loop(
            settings,
            first_window(
                "node-1", PluginName(settings.store.scheme), str(settings.store), self.slot, wake.set, self.clock
            ),
            self.slot,
            self.keeper,
            self.port,
            self.firewall,
            self.read_inventory,
            Notifier({}),
            lambda: settings,
            self.measures,
            wake,
            lambda kind, name: PluginName(name),
            rng,
        )
        self.thread = threading.Thread(target=self._run, name="loop under test", daemon=True)
        self.firewall.start()
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
            self.ended.append(None)
        except BaseException as error:
            self.ended.append(error)

    def status(self) -> Status:
        """The status document of now."""
        view = self.loop.window.detailed()
        return document(view, self.loop.clock(), time.time())

    @property
    def state(self) -> State:
        """The daemon's state."""
        return self.status().state

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait until ``condition`` holds; tells the status if it never does."""
        until(condition, lambda: str(self.status()))

    def ready(self) -> None:
        """Wait until the node is ready."""
        self.until(lambda: self.state is State.READY)

    def close(self) -> None:
        """End all threads, but for those that hang in a plugin."""
        self.loop.stop()
        self.thread.join(20)
        self.keeper.stop(5)
        self.firewall.stop(5)
        if not self.thread.is_alive():
            self.port.close()


@contextmanager
def running(path: Path, open_store: Callable[[], Store], **options: Any) -> Iterator[Running]:
    """A daemon, ended at the end of the block."""
    options.setdefault("port", twin())
    daemon = Running(path, open_store, **options)
    try:
        yield daemon
    finally:
        daemon.close()


def wanted_and_held(daemon: Running) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """What the daemon's kernel should hold, and what it does hold of that."""
    tracker = daemon.loop.tracker
    desired = dict(tracker._desired)
    return desired, {key: desired[key] for key in desired if tracker.in_place([key])}
