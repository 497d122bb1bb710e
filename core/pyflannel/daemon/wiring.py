"""Wiring: who starts and ends what.

The process's first thread is the owner. It takes the run directory's lock, has everything started in one order, and
waits for a signal or for the loop's end; then it ends what was started in the reverse order, within one deadline
however far that had got. It never calls a plugin itself, not even to start, so that it always hears a signal. A signal
handler sets a flag and wakes the owner, nothing else; when all is over signals are ignored, for what is left to do is
to exit. What hangs in a plugin by then is named and left behind: the process ends.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pyflannel.backend import Backend, parse_options
from pyflannel.daemon import cni, memory, runlock, subnet_env
from pyflannel.daemon.control import ControlServer
from pyflannel.daemon.loop import Loop, first_window
from pyflannel.daemon.notify import Notifier
from pyflannel.errors import DaemonError, ExitCode, KernelError, PluginError, PyflannelError
from pyflannel.firewall.keeper import FirewallKeeper
from pyflannel.firewall.model import Mode
from pyflannel.membership import followed
from pyflannel.membership.keeper import KeeperOptions, LeaseKeeper
from pyflannel.membership.nodeid import identify, read_marks
from pyflannel.membership.slot import Slot
from pyflannel.network.document import NetworkConfig
from pyflannel.network.marks import Marks
from pyflannel.planning.guard import Bounded, guarded, not_carried
from pyflannel.plugins import distribution, load_backend, load_store
from pyflannel.settings.settings import Settings
from pyflannel.show.document import document
from pyflannel.show.measures import Measures
from pyflannel.show.status import Status, StatusServer
from pyflannel.show.view import PluginName, Window
from pyflannel.small.guarded import HangingCall, PluginCall
from pyflannel.small.server import LocalServer
from pyflannel.small.shared_log import undisturbed
from pyflannel.small.signals import Bell, heard
from pyflannel.small.strangers import strangers
from pyflannel.small.wake import Wake

if TYPE_CHECKING:
    from pyflannel.firewall.sync import Firewall
    from pyflannel.store import Store, StoreLocation

__all__ = ["STOP_PATIENCE", "make_backend", "run"]

log = logging.getLogger(__name__)

STOP_PATIENCE: Final = 4.0
"""Seconds within which everything must have ended; systemd's TimeoutStopSec in the unit is longer."""

LOOK_INTERVAL: Final = 5.0
"""Seconds between two looks at whether the lock and the sockets are where others look for them."""

_FOR_OTHERS: Final = 0o022
"""What no file or directory of ours, or of what we start, grants to others, whoever started us: to write there."""

_LOOP: Final = "the loop"


def run(settings: Settings, read_settings: Callable[[], Settings]) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT.

    :param read_settings: for SIGHUP: reads the settings anew, and sets up logging as they say.
    :returns: the exit code.
    :raises PyflannelError: it can't start with these settings, on this node, or with this network config.
    """
    _require_net_admin()
    os.umask(os.umask(_FOR_OTHERS) | _FOR_OTHERS)
    owner = _Owner(settings, read_settings)
    with (
        memory.or_end(),
        heard({signal.SIGTERM: owner.stop, signal.SIGINT: owner.stop, signal.SIGHUP: owner.reload}) as bell,
    ):
        return owner.run(bell)


class _Owner:
    """What has been started, and ends it again."""

    def __init__(self, settings: Settings, read_settings: Callable[[], Settings]) -> None:
        self._settings, self._read_settings = settings, read_settings
        self._wake = Wake()
        self._stop_wanted = self._reload_wanted = False
        self._failure: BaseException | None = None
        self._window: Window | None = None
        self._loop: Loop | None = None
        self._lock: runlock.RunLock | None = None
        self._sockets: tuple[LocalServer, ...] = ()
        self._run_dir_trouble = ""
        self._ends: list[tuple[str, Callable[[float], bool]]] = []
        """What was started, in this order, and how each is ended within some seconds; whether it has ended."""

    def stop(self) -> None:
        """End soon. For signal handlers."""
        self._stop_wanted = True
        self._wake.set()

    def reload(self) -> None:
        """Read the settings anew. For signal handlers."""
        self._reload_wanted = True
        self._wake.set()

    def run(self, bell: Bell) -> int:
        """Start all, wait, end all."""
        with ExitStack() as stack:
            self._lock = stack.enter_context(runlock.hold(self._settings.run_dir))
            starting = threading.Thread(target=lambda: self._begin(stack), name="pyflannel-start", daemon=True)
            starting.start()
            self._wait(bell)
            hung = self._end(starting)
            if hung:
                self._leave(hung)
        if self._failure is not None:
            raise self._failure
        return ExitCode.OK

    def _begin(self, stack: ExitStack) -> None:
        try:
            self._start(stack)
        except BaseException as error:  # passed on to the owner
            self._failure = error
            self.stop()
        self._wake.set()  # for a reload that was asked for meanwhile

    def _start(self, stack: ExitStack) -> None:
        """Start everything, each thing after what it needs."""
        from pyflannel.kernel.inventory import read_cards, read_inventory
        from pyflannel.kernel.netlink import NetlinkPort
        from pyflannel.small.ping import Echoes

        settings, measures, loop_wake = self._settings, Measures(), Wake()
        if settings.cni_conf is not None:
            cni.remove_after_reboot(settings.cni_conf, settings.subnet_file)
        rng = random.Random()  # noqa: S311 - jitter and the choice of a subnet need no secrecy
        node_id = identify(settings.state_dir, settings.node_id)
        slot = Slot(loop_wake.set)
        plugin = PluginName(settings.store.scheme, *distribution("store", settings.store.scheme))
        window = self._window = first_window(node_id, plugin, str(settings.store), slot, loop_wake.set)
        self._show(window)
        store_class = self._store_class(window)
        port = NetlinkPort()
        stack.callback(port.close)
        keeper = LeaseKeeper(
            settings.store,
            lambda: _made(store_class, settings.store),
            _keeper_options(settings, node_id, store_class.assigns_subnets),
            make_backend,
            slot,
            time.monotonic,
            rng,
            previous=subnet_env.read_previous(settings.subnet_file).subnets,
            measure=measures.called,
            read_marks=lambda: _marks(read_cards),
        )
        firewall = FirewallKeeper(lambda: _make_firewall(settings.firewall), settings.iptables_resync, loop_wake.set)
        loop = Loop(
            settings,
            window,
            slot,
            keeper,
            port,
            firewall,
            lambda: read_inventory(towards=filter(None, (settings.iface_can_reach,))),
            Notifier(),
            self._read_settings,
            measures,
            loop_wake,
            lambda kind, name: PluginName(name, *distribution(kind, name)),
            rng=rng,
            open_pinger=Echoes,
        )
        self._ends.append(("the lease keeper", keeper.stop))
        firewall.start()
        self._ends.append(("the firewall's keeper", firewall.stop))
        thread = threading.Thread(target=lambda: self._run(loop), name="pyflannel-loop", daemon=True)
        thread.start()
        self._loop = loop
        self._ends.append((_LOOP, lambda timeout: _end_loop(loop, thread, timeout)))
        hearing = ControlServer(settings.run_dir, loop.actions.ask)
        self._ends.append(("the control socket", hearing.close))
        self._sockets += (hearing,)

    def _store_class(self, window: Window) -> type[Store]:
        """The store's driver, which takes the location that is wanted. One that hangs is shown."""
        location, calls = self._settings.store, Bounded()

        def call(what: str, function: Callable[[], Any]) -> Any:
            under_way = PluginCall(location.scheme, what, window.clock(), "store")
            window.put(replace(window.last, call=under_way))
            self._wake.set()  # the owner says in the log if it hangs
            try:
                return calls(location.scheme, what, function, kind="store")
            finally:
                window.put(replace(window.last, call=None))
                self._wake.set()

        driver: type[Store] = call("its import", lambda: load_store(location.scheme))
        store: Store = call("its constructor", lambda: _made(driver, location))
        with suppress(PyflannelError):  # nobody needs it any more
            call("close", store.close)
        return driver

    def _show(self, window: Window) -> None:
        """Open the ways in which others look at the daemon."""
        settings = self._settings
        if settings.healthz_port:
            from pyflannel.show.health import HealthServer, answers

            health = HealthServer(settings.healthz_ip, settings.healthz_port, answers(window))
            self._ends.append(("the health port", health.close))

        def status() -> Status:
            view = window.detailed()
            return document(view, window.clock(), time.time())

        answering = StatusServer(settings.run_dir, status)
        self._ends.append(("the status socket", answering.close))
        self._sockets = (answering,)

    def _run(self, loop: Loop) -> None:
        try:
            loop.run()
        except BaseException as error:  # passed on to the owner
            self._failure = error
        finally:
            self.stop()

    def _wait(self, bell: Bell) -> None:
        """Until a signal comes, starting fails, or the loop ends."""
        with selectors.PollSelector() as selector:  # poll(2) takes no descriptor, of which there may be none
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(bell, selectors.EVENT_READ)
            hanging = HangingCall()
            while not self._stop_wanted:
                patience = LOOK_INTERVAL
                if self._window is not None:
                    hangs_at = hanging.look(self._window.last.call, self._window.clock())
                    if hangs_at is not None:
                        patience = min(patience, max(0.0, hangs_at - self._window.clock()))
                if self._reload_wanted and self._loop is not None:
                    self._reload_wanted = False
                    self._loop.reload()
                if not selector.select(patience):
                    self._look_after_run_dir()
                bell.drain()
                self._wake.drain()

    def _look_after_run_dir(self) -> None:
        """Put back what somebody has removed: the lock, so that there is one daemon, and the sockets.

        Where another daemon has come to run meanwhile, this one ends.
        """
        lock = self._lock
        if lock is None or (lock.held and all(each.reachable for each in self._sockets)):
            return
        try:
            lock.restore()
            for each in self._sockets:
                each.restore()
        except runlock.HeldByAnotherError as error:
            self._failure = error
            self.stop()
        except (DaemonError, OSError, RuntimeError, MemoryError) as error:  # no room, no descriptor, no thread
            if str(error) != self._run_dir_trouble:
                log.warning("this daemon can't be asked for its status: %s", error)
            self._run_dir_trouble = str(error)
        else:
            log.warning("%s, or something in it, had been removed, and was restored", self._settings.run_dir)
            self._run_dir_trouble = ""

    def _end(self, starting: threading.Thread) -> list[str]:
        """End what was started, the last thing first; the names of what does not end."""
        deadline = time.monotonic() + STOP_PATIENCE
        if self._loop is not None:
            self._loop.actions.end()
        starting.join(STOP_PATIENCE / 2)
        hung = [f"the start with store {self._settings.store.scheme!r}"] if starting.is_alive() else []
        while self._ends:
            name, end = self._ends.pop()
            left = max(0.1, deadline - time.monotonic())
            if not end(left / 2 if self._ends else left):
                hung.append(self._in_what(name))
        hung += [f"the thread {name!r}" for name in strangers(max(0.1, deadline - time.monotonic()))]
        return hung

    def _in_what(self, name: str) -> str:
        call = self._loop.window.view.call if name == _LOOP and self._loop is not None else None
        return name if call is None else f"{name} ({call.text})"

    def _leave(self, hung: list[str]) -> NoReturn:
        """End the process although something of it hangs in a plugin."""
        log.warning("%s did not end in time and is left behind; forwarding goes on", " and ".join(hung))
        code = ExitCode.OK
        if self._failure is not None:
            known = isinstance(self._failure, PyflannelError)
            code = self._failure.exit_code if isinstance(self._failure, PyflannelError) else ExitCode.INTERNAL
            log.error("%s", self._failure, exc_info=None if known else self._failure)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _made(driver: type[Store], location: StoreLocation) -> Store:
    with undisturbed(f"store {driver.scheme!r}"):
        return driver(location)


def _end_loop(loop: Loop, thread: threading.Thread, timeout: float) -> bool:
    loop.stop()
    thread.join(timeout)
    loop.actions.end()
    return not thread.is_alive()


def _keeper_options(settings: Settings, node_id: str, assigned: bool) -> KeeperOptions:
    return KeeperOptions(
        node_id=node_id,
        state_dir=settings.state_dir,
        ttl=settings.lease_ttl,
        margin=settings.renew_margin,
        policy=settings.conflict_policy,
        seed=settings.read_seed(),
        backend=settings.backend,
        assigned=assigned,
        followed=followed.read(settings.state_dir),
    )


def _marks(read_cards: Callable[[], frozenset[str]]) -> Marks:
    try:
        return read_marks(read_cards())
    except KernelError as error:
        log.warning("this machine's network cards are not known, which would tell it from a copy of it: %s", error)
        return read_marks(())


def _require_net_admin() -> None:
    cap_net_admin = 12  # linux/capability.h
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    if not effective >> cap_net_admin & 1:
        raise KernelError("the daemon needs CAP_NET_ADMIN to configure interfaces and routes: run it as root")


def _make_firewall(mode: Mode) -> Firewall:
    from pyflannel.firewall.sync import Firewall, find_tools

    return Firewall(find_tools(), mode)


def make_backend(network: NetworkConfig) -> Backend[Any]:
    """The backend that a network document asks for, with its options.

    :raises PluginError: it is not installed, or can't be loaded.
    :raises ConfigError: its options are wrong, or it can't do what the network asks for.
    """
    kind = load_backend(network.backend_type)
    options, unknown = parse_options(kind.Options, network.backend_options)
    for key in (*network.unknown_keys, *(f"Backend.{key}" for key in unknown)):
        log.warning("network config: key %s is not known here and ignored", key)
    reason = not_carried(kind, network)
    if reason:
        raise PluginError(reason)
    with undisturbed(f"backend {kind.name!r}"):
        return guarded(kind.name, "its constructor", lambda: kind(options))
