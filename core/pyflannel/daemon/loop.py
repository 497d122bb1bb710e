"""The agent: one loop that joins the store's side and the kernel's side, and says how things stand.

Everything that happens arrives as a mark: the lease keeper's events in a mailbox, the kernel's notifications on its
port, timers. A turn of the loop takes in all that is there, lets the overlay plan and the tracker write, and then
announces the outcome (``subnet.env``, readiness, status). The loop never talks to the store, so that a store that hangs
can't delay a repair.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from pyflannel.backend import Backend, Change, Node, parse_options
from pyflannel.daemon import memory, runlock
from pyflannel.daemon import subnet_env as envfile
from pyflannel.daemon.control import ACTION_TIMEOUT, ControlServer
from pyflannel.daemon.notify import Notifier
from pyflannel.errors import DaemonError, KernelError, PluginError, PyflannelError, UnderlayError
from pyflannel.firewall.keeper import FirewallKeeper
from pyflannel.firewall.model import Mode, plan
from pyflannel.kernel.model import Route
from pyflannel.kernel.port import KernelPort, Notice
from pyflannel.kernel.tracker import Tracker
from pyflannel.membership.keeper import Event, Fatal, Joined, KeeperOptions, LeaseKeeper, Moved, PeersChanged
from pyflannel.membership.nodeid import identify
from pyflannel.network.document import NetworkConfig
from pyflannel.network.underlay import Inventory, Selection, Underlay, choose
from pyflannel.planning.feed import Feed
from pyflannel.planning.guard import checked_mtu
from pyflannel.planning.overlay import Overlay
from pyflannel.plugins import load_backend, load_store
from pyflannel.settings.settings import Settings
from pyflannel.show.metrics import Measures, MeteredStore
from pyflannel.show.standing import document, standing
from pyflannel.show.status import State, Status, StatusServer
from pyflannel.store import Store

if TYPE_CHECKING:
    from pyflannel.firewall.sync import Firewall

__all__ = ["Agent", "run"]

log = logging.getLogger(__name__)

UNDERLAY_PAUSE = 1.0
"""Seconds between two looks at the underlay while interfaces keep changing (containers come and go)."""

CHECK_INTERVAL = 1.0
"""Seconds between two tries at a missing underlay or an unreadable kernel."""

PLUGIN_PATIENCE = 5.0
"""Seconds after which a backend's call is taken for one that hangs, and named in ``status``."""

BEAT_INTERVAL = 4.0
"""The longest time in seconds that the loop sleeps: what /livez and the watchdog hear it by."""

SETTLE_AFTER = 2.0
"""Seconds from joining until the kernel has told of all that we write then: time to give back what that took."""

TRIM_PAUSE = 30.0
"""Seconds from a change of leases until memory is given back: a store may have read them all again to find it."""

BLACKHOLE_METRIC = 0xFFFFFFFE
"""Behind every other route: what makes a packet to an unused address of ours end here instead of looping."""


RELOADABLE = ("iptables_resync", "log_format", "log_level", "resync_interval")
"""The settings that SIGHUP changes in a running daemon; the others need a new start."""


def run(settings: Settings, read_settings: Callable[[], Settings]) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT.

    :param read_settings: for SIGHUP: reads the settings anew, and sets up logging as they say.
    :returns: the exit code.
    :raises PyflannelError: it can't start with these settings, on this node, or with this network config.
    """
    from pyflannel.kernel.inventory import read_inventory
    from pyflannel.kernel.netlink import NetlinkPort

    _require_net_admin()
    store_class = load_store(settings.store.scheme)
    with ExitStack() as stack:
        stack.enter_context(runlock.hold(settings.run_dir))
        measures = Measures()
        store = MeteredStore(stack.enter_context(store_class(settings.store)), measures)
        port = NetlinkPort()
        stack.callback(port.close)
        agent = Agent(settings, store, port, read_inventory, Notifier(), read_settings, measures)
        stack.enter_context(
            _signals({signal.SIGTERM: agent.stop, signal.SIGINT: agent.stop, signal.SIGHUP: agent.reload})
        )
        if settings.healthz_port:
            from pyflannel.show.health import HealthServer, answers

            health = HealthServer(settings.healthz_ip, settings.healthz_port, answers(agent))
            stack.callback(health.close)
        server = StatusServer(settings.run_dir, agent.status)
        stack.callback(server.close)
        control = ControlServer(settings.run_dir, agent.act)
        stack.callback(control.close)
        agent.run()
    return 0


def _require_net_admin() -> None:
    cap_net_admin = 12  # linux/capability.h
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    if not effective >> cap_net_admin & 1:
        raise KernelError("the daemon needs CAP_NET_ADMIN to configure interfaces and routes: run it as root")


@contextmanager
def _signals(reactions: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    def handle(number: int, _: Any) -> None:
        reactions[signal.Signals(number)]()

    before = {number: signal.signal(number, handle) for number in reactions}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class _Membership:
    """What we are part of, from the first :class:`Joined` on."""

    backend: Backend[Any]
    overlay: Overlay
    feed: Feed
    published: bool = False
    """Whether subnet.env says what we hold."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Somebody wants an action of the backend."""

    backend: str
    action: str
    answer: SimpleQueue[str | PyflannelError]


@dataclass(frozen=True, slots=True)
class _Republished:
    """Our lease says what an action has changed, or why it does not."""

    asked: _Asked
    change: Change
    error: PyflannelError | None


class Agent:
    """See the module's docstring. ``run`` belongs to one thread, the others are for any."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        port: KernelPort,
        read_inventory: Callable[[], Inventory],
        notifier: Notifier,
        read_settings: Callable[[], Settings],
        measures: Measures,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.node_id = identify(settings.state_dir, settings.node_id)
        self.store = store
        self.clock = clock
        self.tracker = Tracker(port, clock)
        self.underlay: Underlay | None = None
        self.underlay_trouble = ""
        self.kernel_trouble = ""
        self.backend_trouble = ""
        self.subnet_file_trouble = ""
        self.call: tuple[str, float] | None = None
        """The plugin's call that the loop is in, as the beginning of a sentence, and since when."""
        self.repaired = 0
        self.measures = measures
        self.beat = clock()
        """When the loop turned last."""
        self.started = time.time()
        self.membership: _Membership | None = None
        self.keeper = LeaseKeeper(
            store,
            KeeperOptions(
                node_id=self.node_id,
                subnet_file=settings.subnet_file,
                state_dir=settings.state_dir,
                ttl=settings.lease_ttl,
                margin=settings.renew_margin,
                policy=settings.conflict_policy,
                seed=settings.read_seed(),
                backend=settings.backend,
            ),
            make_backend,
            self._post,
            clock,
            rng or random.Random(),  # noqa: S311 - jitter and the choice of a subnet need no secrecy
        )
        self.firewall = FirewallKeeper(lambda: _make_firewall(settings.firewall), settings.iptables_resync, self._awake)
        self._port = port
        self._read_inventory = read_inventory
        self._notifier = notifier
        self._read_settings = read_settings
        self._mailbox: deque[Event | _Asked | _Republished] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = threading.Event()
        self._reload_wanted = False
        self._ready_said = False
        self._settle_due: float | None = None
        self._trim_due: float | None = None
        self._last_state, self._last_message = State.STARTING, ""
        self.last_error: tuple[float, str] | None = None
        self._underlay_due: float | None = clock()
        self._underlay_seen = clock() - UNDERLAY_PAUSE
        self._resync_due = clock() + settings.resync_interval
        self._alive_due = clock()

    # Called from other threads

    def stop(self) -> None:
        """Make :meth:`run` return soon; forwarding goes on. Safe in a signal handler."""
        self._stopping.set()
        self._awake()

    def reload(self) -> None:
        """Make the loop read the settings anew. Safe in a signal handler."""
        self._reload_wanted = True
        self._awake()

    def act(self, backend: str, action: str) -> str:
        """Do an action of the backend; returns what was done.

        :raises PyflannelError: it did not come about, or is not done in time.
        """
        answer: SimpleQueue[str | PyflannelError] = SimpleQueue()
        self._post(_Asked(backend, action, answer))
        try:
            said = answer.get(timeout=ACTION_TIMEOUT)
        except Empty:
            raise DaemonError(
                f"{action} is not done after {ACTION_TIMEOUT:.0f} s and goes on; see 'pyflannel status'"
            ) from None
        if isinstance(said, PyflannelError):
            raise said
        return said

    def _post(self, event: Event | _Asked | _Republished) -> None:
        self._mailbox.append(event)
        self._awake()

    def _awake(self) -> None:
        os.eventfd_write(self._wake, 1)

    # The loop

    def run(self) -> None:
        """Work until :meth:`stop`.

        :raises PyflannelError: the first session showed that this configuration can't work.
        """
        self.firewall.start()
        with memory.rush(), selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(self._port.fileno(), selectors.EVENT_READ)
            try:
                while not self._stopping.is_set():
                    self._turn()
                    for key, _ in selector.select(self._patience()):
                        if key.fd == self._wake:
                            os.eventfd_read(self._wake)
            finally:
                log.info("stopping; forwarding goes on")
                self._notifier.stopping()
                if self.membership is not None:
                    self.membership.feed.stop()
                self.keeper.stop(timeout=2.0)
                self.firewall.stop(timeout=2.0)
                os.close(self._wake)

    def _turn(self) -> None:
        now = self.beat = self.clock()
        if self._reload_wanted:
            self._reload_wanted = False
            self._reload(now)
        self._hear(self._port.poll(), now)
        if self._underlay_due is not None and now >= self._underlay_due:
            self._look_at_underlay(now)
        while self._mailbox:
            self._handle(self._mailbox.popleft())
        if now >= self._resync_due:
            self.tracker.request_resync()
            self._resync_due = now + self.settings.resync_interval
        self._reconcile()
        self._tend_data_plane(now)
        self._announce(now)
        self._tidy(now)

    def _tidy(self, now: float) -> None:
        """Give back memory, when what took it for a moment is over."""
        if self._settle_due is not None and now >= self._settle_due:
            self._settle_due = self._trim_due = None
            memory.settle()
        elif self._trim_due is not None and now >= self._trim_due:
            self._trim_due = None
            memory.trim()

    def _patience(self) -> float:
        """Seconds until something is due."""
        due = [self._resync_due, self.beat + BEAT_INTERVAL]
        if self._underlay_due is not None:
            due.append(self._underlay_due)
        if self.tracker.retry_at is not None:
            due.append(self.tracker.retry_at)
        due += [at for at in (self._settle_due, self._trim_due) if at is not None]
        if self.membership is not None:
            due.append(self.membership.feed.due)
        if self._notifier.watchdog_interval is not None:
            due.append(self._alive_due)
        if self.keeper.state.expires_at is not None and self.keeper.state.expires_at > self.clock():
            due.append(self.keeper.state.expires_at)
        return max(0.0, min(due) - self.clock())

    def _reload(self, now: float) -> None:
        """Take over what may change while we run, from the sources that the settings came from."""
        if self._ready_said:
            self._notifier.reloading()
        try:
            wanted = self._read_settings()
        except PyflannelError as error:
            log.error("the settings stay as they are: %s", error)
        else:
            self._adopt(wanted, now)
        if self._ready_said:
            self._notifier.ready()

    def _adopt(self, wanted: Settings, now: float) -> None:
        adopted = replace(self.settings, **{name: getattr(wanted, name) for name in RELOADABLE})
        if wanted != adopted:
            log.warning("other settings than %s have changed: they hold from the next start", ", ".join(RELOADABLE))
        self.settings = adopted
        self.measures.reloads += 1
        self._resync_due = now + adopted.resync_interval
        self.firewall.reload(adopted.iptables_resync)
        log.info("settings reloaded: log level %s, resync every %g s", adopted.log_level, adopted.resync_interval)

    # The kernel's side

    def _hear(self, notice: Notice, now: float) -> None:
        self.tracker.observe(notice)
        ours = self.tracker.link_names
        if (notice.resync or notice.interfaces - ours) and self._underlay_due is None:
            self._underlay_due = max(now, self._underlay_seen + UNDERLAY_PAUSE)

    def _look_at_underlay(self, now: float) -> None:
        self._underlay_seen, self._underlay_due = now, None
        settings = self.settings
        selection = Selection(
            settings.iface, settings.iface_regex, settings.iface_can_reach, settings.public_ip, settings.public_ipv6
        )
        try:
            found = choose(self._read_inventory(), selection)
        except (UnderlayError, KernelError) as error:
            self._underlay_due = now + CHECK_INTERVAL
            self.underlay_trouble = str(error)
            return
        self.underlay_trouble = ""
        if found == self.underlay:
            return
        first, self.underlay = self.underlay is None, found
        log.info("underlay: %s %s, MTU %d", found.interface, found.public_ipv4 or found.public_ipv6, found.mtu)
        if first:
            self.keeper.start(found)
        else:
            self.keeper.move(found)

    def _reconcile(self) -> None:
        if self.membership is None:
            return
        begin = self.clock()
        try:
            outcome = self.tracker.reconcile()
        except KernelError as error:
            self.kernel_trouble = str(error)
            self.tracker.request_resync()
            self._resync_due = min(self._resync_due, self.clock() + CHECK_INTERVAL)
            return
        self.kernel_trouble = ""
        if outcome.written or outcome.refused:
            self.measures.reconcile.observe(self.clock() - begin)
            self.measures.written += outcome.written
            self.measures.refused += outcome.refused
        if outcome.repaired:
            self.repaired += len(outcome.repaired)
            first, others = outcome.repaired[0], len(outcome.repaired) - 1
            log.warning(
                "put right what something else had changed: %s%s",
                first.new or f"no {first.old}",
                f" and {others} more" if others else "",
            )

    # The store's side

    def _handle(self, event: Event | _Asked | _Republished) -> None:
        if isinstance(event, Fatal):
            raise event.error
        try:
            if isinstance(event, _Asked):
                self._begin_action(event)
            elif isinstance(event, _Republished):
                self._end_action(event)
            elif isinstance(event, Joined):
                with self._calling(event.backend, "planning"):
                    self._join(event)
            elif self.membership is not None:
                with self._calling(self.membership.backend, "planning"):
                    if isinstance(event, Moved):
                        self._move(event.node)
                    elif isinstance(event, PeersChanged):
                        self._peers_changed(event)
        except PyflannelError as error:
            self.backend_trouble = str(error)
            log.error("%s", error)

    @contextmanager
    def _calling(self, backend: Backend[Any], what: str) -> Iterator[None]:
        """Let ``status`` know what the loop is in, should it not come back."""
        self.call = (f"backend {backend.name!r} has not come back from {what}", self.clock())
        try:
            yield
        finally:
            self.call = None

    def _join(self, event: Joined) -> None:
        overlay = _plan(event.backend, lambda: Overlay(event.backend, event.node, self._extras(event.node)))
        for record in event.records:
            overlay.put(record.key, record.value)
        before = self.membership
        feed = before.feed if before is not None else Feed(event.backend, event.node)
        self.membership = _Membership(event.backend, overlay, feed)
        self._follow(overlay)
        self.tracker.sweep = True
        self._settle_due = self.clock() + SETTLE_AFTER
        self.backend_trouble = ""
        if before is None or before.overlay.node.subnets != event.node.subnets:
            log.info("lease: %s (%s)", event.lease.subnets, event.backend.name)

    def _move(self, node: Node) -> None:
        if self.membership is not None:
            overlay = self.membership.overlay
            self.membership.overlay = _plan(self.membership.backend, lambda: overlay.moved(node))
            self._follow(self.membership.overlay)

    def _follow(self, overlay: Overlay) -> None:
        overlay.drain_changed()
        self.tracker.follow(overlay.desired)
        network, settings = overlay.node.network, self.settings
        rules = plan(
            network,
            overlay.node.subnets,
            forward=settings.forward_rules,
            masquerade=settings.ip_masq,
            fully_random=settings.ip_masq_fully_random,
        )
        self.firewall.want(rules, network.enable_nftables)

    def _extras(self, node: Node) -> Iterator[Route]:
        """What the operator wants beside the backend's plan."""
        if self.settings.blackhole_route:
            for subnet in node.subnets.each:
                yield Route(subnet, None, metric=BLACKHOLE_METRIC)

    def _peers_changed(self, event: PeersChanged) -> None:
        if self.membership is None:
            return
        if self._trim_due is None:
            self._trim_due = self.clock() + TRIM_PAUSE
        overlay = self.membership.overlay
        for change in event.changes:
            if change.record is None:
                overlay.remove(change.key)
            else:
                overlay.put(change.key, change.record.value)
        self.tracker.changed(overlay.drain_changed())

    # Actions of the backend

    def _begin_action(self, asked: _Asked) -> None:
        """Have the backend change what it says of this node, and bring the kernel there; then the lease is written.

        The kernel first: peers that read the new lease must not find us as we were.
        """
        try:
            member = self._able_to_act(asked)
            with self._calling(member.backend, asked.action):
                change = _plan(member.backend, lambda: member.backend.act(asked.action, member.overlay.node))
        except PyflannelError as error:
            asked.answer.put(error)
            return
        try:
            self._replan()
        except PyflannelError as error:
            self._end_action(_Republished(asked, change, error))
            return
        if self.own_in_place:
            self.keeper.republish(lambda error: self._post(_Republished(asked, change, error)))
        else:
            reason = self.kernel_trouble or next((str(item.error) for item in self.tracker.failures.values()), "")
            self._end_action(_Republished(asked, change, KernelError(f"the kernel does not take it: {reason}")))

    def _able_to_act(self, asked: _Asked) -> _Membership:
        member = self.membership
        if member is None or not self.own_in_place:
            raise DaemonError(f"{asked.action} has to wait: {standing(self)[1]}")
        if member.backend.name != asked.backend:
            raise DaemonError(f"this node runs backend {member.backend.name!r}, not {asked.backend!r}")
        if asked.action not in member.backend.actions:
            raise PluginError(f"backend {member.backend.name!r} has no action {asked.action!r}")
        if self.keeper.state.trouble:
            raise DaemonError(f"{asked.action} has to wait: {self.keeper.state.trouble}")
        return member

    def _end_action(self, outcome: _Republished) -> None:
        error, asked = outcome.error, outcome.asked
        if error is None:
            log.info("%s", outcome.change.done)
            asked.answer.put(outcome.change.done)
            return
        log.error("%s is taken back: %s", asked.action, error)
        try:
            outcome.change.undo()
            self._replan()
        except PyflannelError as failure:
            asked.answer.put(DaemonError(f"{asked.action} failed ({error}) and can't be undone: {failure}"))
            raise
        finally:
            self.keeper.republish(lambda _: None)  # the store may have taken it after all
        asked.answer.put(DaemonError(f"{asked.action} is taken back, all is as before: {error}"))

    def _replan(self) -> None:
        """Plan anew, and write what differs at once."""
        member = self.membership
        if member is not None:
            self._move(member.overlay.node)
            member.feed.renew()
            for _ in range(2):  # a first refusal is not believed
                self._reconcile()

    # The backend's own data plane

    def _tend_data_plane(self, now: float) -> None:
        member = self.membership
        if member is None:
            return
        node = member.overlay.node
        if not member.feed.serves(member.backend, node):
            member.feed.stop()
            member.feed = Feed(member.backend, node)
        with self._calling(member.backend, "its data plane"):
            member.feed.tend(member.overlay, now)

    # What we say about ourselves

    @property
    def lease_valid(self) -> bool:
        """Whether we hold a lease that has not expired."""
        state = self.keeper.state
        return state.lease is not None and (state.expires_at is None or state.expires_at > self.clock())

    @property
    def own_in_place(self) -> bool:
        """Whether the kernel holds all that the node needs for itself."""
        member = self.membership
        return member is not None and self.tracker.in_place(item.key for item in member.overlay.own_objects)

    @property
    def stopping(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopping.is_set()

    @property
    def trouble(self) -> str:
        """What goes wrong at present, other than single kernel objects."""
        found = (
            self.hanging,
            self.underlay_trouble,
            self.kernel_trouble,
            self.backend_trouble,
            self.subnet_file_trouble,
            self.keeper.state.trouble,
        )
        return next(filter(None, found), self.firewall.state.trouble)

    @property
    def hanging(self) -> str:
        """Which plugin the loop waits for, if it does so for long."""
        call = self.call
        if call is None or self.clock() - call[1] < PLUGIN_PATIENCE:
            return ""
        return f"{call[0]} for {self.clock() - call[1]:.0f} s; repairs wait for it, the lease is renewed"

    def status(self) -> Status:
        """The status document."""
        return document(self)

    def _announce(self, now: float) -> None:
        member = self.membership
        sound = self.own_in_place and self.lease_valid and not self.keeper.state.conflict
        if sound and member is not None and not member.feed.trouble:
            try:
                self._write_subnet_file()
                self.subnet_file_trouble = ""
            except PyflannelError as error:
                self.subnet_file_trouble = str(error)  # tried again at the next beat
        state, message = standing(self)
        if state in (State.READY, State.DEGRADED) and not self._ready_said:
            self._ready_said = True
            self._notifier.ready()
        self._notifier.status(f"{state.value}: {message}")
        if state in (State.WAITING, State.DEGRADED, State.CONFLICT) and message != self._last_message:
            self.last_error = (time.time(), message)
        if (state, message) != (self._last_state, self._last_message) and state is not State.STARTING:
            if state is not State.READY:
                log.warning("%s: %s", state.value, message)
            elif state is not self._last_state:
                log.info("%s: %s", state.value, message)
            self._last_state, self._last_message = state, message
        if self._notifier.watchdog_interval is not None and now >= self._alive_due:
            self._alive_due = now + self._notifier.watchdog_interval
            self._notifier.alive()

    def _write_subnet_file(self) -> None:
        member = self.membership
        assert member is not None
        node = member.overlay.node
        with self._calling(member.backend, "mtu"):
            mtu = checked_mtu(member.backend.name, _plan(member.backend, lambda: member.backend.mtu(node.underlay)))
        text = envfile.render(node.network, node.subnets, mtu, self.settings.ip_masq)
        envfile.write(self.settings.subnet_file, text)
        member.published = True


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
    for version, able in ((4, kind.capabilities.ipv4), (6, kind.capabilities.ipv6)):
        if version in network.versions and not able:
            raise PluginError(
                f"backend {kind.name!r} can't carry IPv{version}, which the network config switches on; "
                f"use another backend, or set EnableIPv{version} to false"
            )
    try:
        return kind(options)
    except PyflannelError:
        raise
    except Exception as error:
        raise PluginError(f"backend {kind.name!r} can't be made: {type(error).__name__}: {error}") from error


def _plan(backend: Backend[Any], call: Callable[[], Any]) -> Any:
    """What a backend answers; whatever else it raises is named as its fault."""
    try:
        return call()
    except PyflannelError:
        raise
    except Exception as error:
        log.debug("backend %s failed", backend.name, exc_info=True)
        raise PluginError(f"backend {backend.name!r} failed: {type(error).__name__}: {error}") from error
