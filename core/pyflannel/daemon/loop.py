"""The daemon's loop: what the store's side knows, into the kernel, again and again.

Nothing arrives as an event. The lease keeper's slot holds the newest generation and which leases are dirty, the
kernel's port what has changed there, and timers say when to look again. A turn takes in all that is there, lets the
overlay plan and the tracker write, feeds the backend's data plane, and puts down how things stand: ``subnet.env``,
readiness, one frozen view. What fails stays due and is tried again until it succeeds.

The loop never talks to the store, so that a store that hangs can't delay a repair. A turn has a bound: thousands of
leases are planned in slices, with all the rest of a turn between them.
"""

from __future__ import annotations

import logging
import random
import selectors
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from pyflannel.backend import Backend, Node
from pyflannel.daemon import memory, rules, subnet_env
from pyflannel.daemon.account import Account
from pyflannel.daemon.actions import Actions
from pyflannel.daemon.announcing import Announcements
from pyflannel.daemon.calls import Calls
from pyflannel.daemon.crossing import Crossing, as_far, own_progress
from pyflannel.daemon.extras import extras, of_links
from pyflannel.daemon.joined import Joined, shown
from pyflannel.daemon.kernel_side import KernelSide
from pyflannel.daemon.node_files import NodeFiles
from pyflannel.daemon.notify import Notifier
from pyflannel.daemon.planes import Planes
from pyflannel.daemon.reverse_path import ReversePath
from pyflannel.daemon.store_side import Adopted, StoreSide
from pyflannel.daemon.trial import Pinger, Trials
from pyflannel.errors import DaemonError, KernelError, PyflannelError
from pyflannel.firewall.keeper import FirewallKeeper
from pyflannel.kernel.model import KernelObject, Link
from pyflannel.kernel.port import KernelPort
from pyflannel.kernel.tracker import Tracker, stands_on
from pyflannel.membership.slot import Slot
from pyflannel.network.change import NodeProgress, Phase
from pyflannel.network.lease import IPNetwork
from pyflannel.network.underlay import Inventory, Underlay
from pyflannel.planning.overlay import Overlay
from pyflannel.planning.transition import Transition
from pyflannel.settings.settings import Settings
from pyflannel.show.measures import Measures
from pyflannel.show.readiness import summary
from pyflannel.show.view import PluginName, View, Window
from pyflannel.small.wake import Wake

__all__ = ["BEAT_INTERVAL", "RELOADABLE", "Keeper", "Loop", "first_window"]

log = logging.getLogger(__name__)

BEAT_INTERVAL: Final = 4.0
"""The longest time in seconds that the loop sleeps: what /livez and the watchdog hear it by."""

RELOADABLE: Final = ("iptables_resync", "log_format", "log_level", "resync_interval")
"""The settings that SIGHUP changes in a running daemon; the others need a new start."""


class Keeper(Protocol):
    """What the loop needs of the lease keeper, besides its slot."""

    def start(self, underlay: Underlay | None) -> None:
        """Begin."""

    def move(self, underlay: Underlay | None) -> None:
        """The underlay is another one now."""

    def publish(self) -> int:
        """Have our lease say what the backend publishes now; the request's number."""

    def announce(self, ready: bool) -> None:
        """Our overlay carries packets, or does not: tell the store."""

    def reached(self, progress: NodeProgress) -> None:
        """This node is so far in a change of the network."""


def first_window(
    node_id: str,
    store: PluginName,
    location: str,
    slot: Slot,
    wake: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> Window:
    """What is shown of a daemon that starts, and where its loop will put its views.

    :param store: the plugin, ``location`` its address. ``wake``: makes the loop turn.
    """
    view = View(node_id=node_id, started=time.time(), store=store, store_location=location)
    return Window(view, clock, wake, lambda: slot.state)


class Loop:
    """See the module's docstring. :meth:`run` and :meth:`turn` belong to one thread; :meth:`stop`, :meth:`reload`,
    ``actions.ask`` and ``window`` are for any.

    :param window: where it puts its views; the loop goes by its clock.
    :param read_settings: for a reload: reads the settings anew, and sets up logging as they say.
    :param plugin: what is known of an installed plugin, by ``backend`` or ``store`` and its name.
    :param open_pinger: for trying ways to peers; ``None`` where there is no network to try.
    :param reverse_path: the kernel's filter; the one of this network namespace unless given.
    """

    def __init__(
        self,
        settings: Settings,
        window: Window,
        slot: Slot,
        keeper: Keeper,
        port: KernelPort,
        firewall: FirewallKeeper,
        read_inventory: Callable[[], Inventory],
        notifier: Notifier,
        read_settings: Callable[[], Settings],
        measures: Measures,
        wake: Wake,
        plugin: Callable[[str, str], PluginName],
        rng: random.Random | None = None,
        open_pinger: Callable[[], Pinger] | None = None,
        reverse_path: ReversePath | None = None,
    ) -> None:
        self.settings = settings
        self._open_pinger = open_pinger
        self.slot, self.keeper, self.firewall = slot, keeper, firewall
        self.window, self.clock = window, window.clock
        self.measures = measures
        self._rng = rng or random.Random()  # noqa: S311 - pauses need no secrecy
        self.tracker = Tracker(port, self.clock, self._rng)
        self.actions = Actions(self, wake.set)
        self.joined: Joined | None = None
        self._plugin = plugin
        self._calls = Calls(self.window, self.clock)
        self.calling = self._calls.calling
        port.progress = self._calls.beat
        self._port, self._wake = port, wake
        self._read_settings = read_settings
        self.kernel_side = KernelSide(settings, port, self.tracker, read_inventory, measures, self.clock)
        self.store_side = StoreSide(slot, self._calls, self.clock, self._rng)
        self._announcements = Announcements(notifier, lambda ready: keeper.announce(ready), self.clock())
        self._files = NodeFiles(self._calls)
        self._account = Account(
            self.window,
            slot,
            self.kernel_side,
            self.store_side,
            firewall,
            self._files,
            self._announcements,
            self._calls,
            measures,
            self.clock,
        )
        self._stopping = self._reload_wanted = False
        self._memory = memory.Tidying()
        self._reverse_path = reverse_path or ReversePath(settings.state_dir)
        self._said = NodeProgress("")
        """How far in a change we have told the keeper that this node is."""

    # For other threads

    def stop(self) -> None:
        """Make :meth:`run` return soon; forwarding goes on. Safe in a signal handler."""
        self._stopping = True
        self._wake.set()

    def reload(self) -> None:
        """Make the loop read the settings anew. Safe in a signal handler."""
        self._reload_wanted = True
        self._wake.set()

    # The loop

    def run(self) -> None:
        """Work until :meth:`stop`.

        :raises PyflannelError: the first look at the store showed that this configuration can't work.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(self._port.fileno(), selectors.EVENT_READ)
            try:
                while not self._stopping:
                    self.turn()
                    self._memory.tidy(self.clock())
                    if selector.select(self._patience()):
                        self._wake.drain()
            finally:
                self._end()

    def _end(self) -> None:
        self._stopping = True
        self._put_view()
        self._announcements.stopping()
        self.actions.end()
        if self.joined is not None:
            self.joined.end()

    def turn(self) -> None:
        """Take in what is there, write what differs, put down how things stand. For :meth:`run` and simulations."""
        now = self.window.beat = self.clock()
        if self._reload_wanted:
            self._reload_wanted = False
            self._reload(now)
        self.kernel_side.hear(now, self.joined is not None)
        if self.kernel_side.underlay.due is not None and now >= self.kernel_side.underlay.due:
            self._look_at_underlay(now)
        self._follow_store(now)
        self.kernel_side.resync(now, self.settings.resync_interval, self.joined is not None)
        if self.joined is not None:
            self.kernel_side.reconcile()
            self.kernel_side.diversions.look_if_due(self.joined.overlay, now)
        self.actions.turn(self.slot.state)
        if self.joined is not None:
            self._tend(self.joined, now)
            self._cross(self.joined, now)
        self._announce()

    @property
    def due(self) -> float:
        """When the next :meth:`turn` is due by the clock, if nothing comes in before."""
        crossing = self.joined.crossing if self.joined is not None and not self.store_side.adopting else None
        if self.store_side.busy or (crossing is not None and not crossing.complete):
            return self.clock()
        due = [*self.kernel_side.due, *self.store_side.due]
        if self.joined is not None:
            due += [feed.due for feed in self.joined.planes.feeds]
        if crossing is not None:
            due.append(crossing.due(self.clock()))
        expires_at = self.slot.state.expires_at
        if expires_at is not None and expires_at > self.clock():
            due.append(expires_at)
        return min(due)

    def _patience(self) -> float:
        """Seconds to sleep: until something is due, and never so long that nobody hears of us."""
        announcement = self._announcements.due
        due = [self.due, self.window.beat + BEAT_INTERVAL, *self._memory.due]
        if announcement is not None:
            due.append(announcement)
        return max(0.0, min(due) - self.clock())

    def _reload(self, now: float) -> None:
        """Take over what may change while we run, from the sources that the settings came from."""
        self._announcements.reloading()
        try:
            wanted = self._read_settings()
        except PyflannelError as error:
            log.error("the settings stay as they are: %s", error)
        else:
            self._adopt_settings(wanted, now)
        self._announcements.reloaded()

    def _adopt_settings(self, wanted: Settings, now: float) -> None:
        adopted = replace(self.settings, **{name: getattr(wanted, name) for name in RELOADABLE})
        if wanted != adopted:
            log.warning("other settings than %s have changed: they hold from the next start", ", ".join(RELOADABLE))
        self.settings = adopted
        self.measures.reloads += 1
        self.kernel_side.resync_due = now + adopted.resync_interval
        self.firewall.reload(adopted.iptables_resync)
        log.info("settings reloaded: log level %s, resync every %g s", adopted.log_level, adopted.resync_interval)

    # The underlay

    def _look_at_underlay(self, now: float) -> None:
        underlay = self.kernel_side.underlay
        tell = self.keeper.move if underlay.found is not None else self.keeper.start
        changed = underlay.look(now, self._own_subnets)
        if changed is not None:
            tell(changed)

    def _own_subnets(self) -> tuple[IPNetwork, ...]:
        """Where this node's containers have their addresses, as of now or of the last run."""
        if self.joined is not None:
            return self.joined.overlay.node.subnets.each
        previous = subnet_env.read_previous(self.settings.subnet_file).subnets
        return previous.each if previous is not None else ()

    # The store's side

    def _follow_store(self, now: float) -> None:
        """Take in what the slot has: a generation as soon as it can be adopted, and a slice of the leases."""
        if self.slot.state.fatal is not None:
            raise self.slot.state.fatal
        if self.slot.state.chosen != self.kernel_side.underlay.chosen:
            self.kernel_side.underlay.chosen = self.slot.state.chosen
            self._look_at_underlay(now)
        if self.store_side.read(now):
            self._memory.changed(now)
        self._adopt(now)
        overlay = self.joined.overlay if self.joined is not None else None
        self.store_side.take_in(overlay, now)
        if overlay is not None:
            changed = overlay.drain_changed()
            self.tracker.changed(changed)
            if changed and self.kernel_side.diversions.suspects:
                self.kernel_side.diversions.look_soon(now)  # perhaps it is this peer's packets that they divert

    def _adopt(self, now: float) -> None:
        """Go on with a generation that is on its way in; when it is whole, it holds."""
        generation = self.store_side.next(now)
        if generation is None:
            return
        if not self.store_side.begun:
            generation = as_far(generation, self.slot.state, self.joined.crossing if self.joined is not None else None)
            if self.joined is None:  # one that fails, or hangs, is shown, too
                self._calls.backend = self._plugin("backend", shown(generation.backend).name)
        needed = extras(generation, self.settings, self.kernel_side.underlay.advertised, self._reverse_path)
        adopted = self.store_side.adopt(generation, needed, partial(of_links, generation, self._reverse_path))
        if adopted is not None:
            self._hold(adopted)

    def _hold(self, adopted: Adopted) -> None:
        """A generation holds from now on."""
        before, generation, overlay = self.joined, adopted.generation, adopted.overlay
        backend, now = generation.backend, self.clock()
        planes = Planes(backend, overlay, before.planes if before is not None else None, self._calls, self._rng)
        crossing = Crossing(overlay, backend, self._trials()) if isinstance(backend, Transition) else None
        self.joined = Joined(backend, overlay, planes, crossing)
        if before is not None:
            if before.crossing is not None:
                before.crossing.close()
            planes.take_over(before.planes)  # their devices are going, and nobody is to make them anew
        if crossing is None:
            self._reverse_path.restore()
        overlay.drain_changed()
        self.tracker.watch(tuple(family.network for family in generation.node.network.families))
        self.tracker.follow(overlay.desired)
        self.kernel_side.diversions.look_soon(now)
        self._want_firewall(overlay)
        self.tracker.sweep = True
        self._memory.joined(now, len(overlay.peers))
        now_shown = self.joined.shown
        if before is None or before.shown is not now_shown:
            self._calls.backend = self._plugin("backend", now_shown.name)
            if generation.node.network.assumption:
                log.warning("%s; 'pyflannel config set' writes it down", generation.node.network.assumption)
            if generation.overruled:
                log.warning("%s", generation.overruled)
        if before is None or before.overlay.node.subnets != generation.node.subnets:
            log.info("lease: %s (%s)", generation.lease.subnets, now_shown.name)

    def _want_firewall(self, overlay: Overlay) -> None:
        self.firewall.want(rules.planned(overlay, self.settings), overlay.node.network.enable_nftables)
        before, unguarded = self._account.unguarded, rules.unguarded(overlay, self.settings)
        self._account.unguarded = unguarded
        if unguarded not in ("", before):
            log.warning("nothing stops packets that a foreign route takes past the encryption: %s", unguarded)

    # The stage of actions

    def acting(self, action: str) -> tuple[Backend[Any], Node]:
        """The backend and the node that an action is for.

        :raises DaemonError: there is no overlay yet that it could be about, or it would be in the way.
        """
        joined = self.joined
        if joined is None or self.store_side.adopting or not self._account.in_place(joined):
            view = self._account.view(self.settings, joined)
            raise DaemonError(f"{action} has to wait: {summary(view, self.clock())[1]}")
        if self.slot.state.trouble:
            raise DaemonError(f"{action} has to wait: {self.slot.state.trouble}")
        if joined.crossing is not None:
            raise DaemonError(f"{action} has to wait: a change of the network is under way")
        return joined.backend, joined.overlay.node

    def replan(self) -> None:
        """Plan all anew, since an action has changed what the backend knows, and write it.

        :raises KernelError: the kernel does not take it.
        """
        joined = self.joined
        if joined is None:
            return
        with self.calling(joined.backend, "planning"):
            overlay = joined.overlay = joined.overlay.moved(joined.overlay.node, self._calls.beat)
            joined.planes = Planes(joined.backend, overlay, joined.planes, self._calls, self._rng)
        overlay.drain_changed()
        self.tracker.follow(overlay.desired)
        joined.planes.renew()
        for _ in range(2):  # a first refusal is not believed
            self.kernel_side.reconcile()
        if not self._account.in_place(joined):
            refused = next(iter(self.kernel_side.refusals), "")
            raise KernelError(f"the kernel does not take it: {self.kernel_side.trouble or refused}")

    def publish(self) -> int:
        """Have our lease say what the backend publishes now; the request's number."""
        return self.keeper.publish()

    # Data planes, and a change of the network

    def _tend(self, joined: Joined, now: float) -> None:
        """Tell the data planes which leases have changed."""
        touched = joined.overlay.drain_touched()
        if joined.crossing is not None and touched:
            joined.crossing.see(touched)
        joined.planes.tend(touched, now)

    def _cross(self, joined: Joined, now: float) -> None:
        """Say how far we are in a change, and go on in it."""
        if joined.crossing is None or not self.store_side.settled:
            return
        crossing, transition, node = joined.crossing, joined.crossing.transition, joined.overlay.node
        crossing.look(now)
        if not crossing.complete:
            return
        own = own_progress(self.slot.state, transition.change.id)
        trouble = transition.trouble(node) or self._change_trouble(joined, transition.following.backend)
        said = crossing.progress(own.step, lambda: self._all_in_place(joined), trouble, now)
        if said != self._said:
            self._said = said
            self.keeper.reached(said)
        further, newest = transition.at(own.step, crossing.graced(now)), self.store_side.generation
        if further is not transition and newest is not None:
            self.store_side.again(replace(newest, backend=further), now)
            self._wake.set()

    def _trials(self) -> Trials | None:
        return Trials(self._open_pinger) if self._open_pinger is not None else None

    def _all_in_place(self, joined: Joined) -> bool:
        """Whether the kernel and the data planes have all that was planned; on the way back, but for what goes then."""
        desired, backend = joined.overlay.desired, joined.backend
        if not self.firewall.settled or self.kernel_side.trouble:
            return False
        if not isinstance(backend, Transition) or backend.change.phase is not Phase.BACK:
            return joined.planes.settled and self.tracker.in_place(desired)
        leaving = backend.leaving(joined.overlay.node)
        staying = (key for key, item in desired.items() if not _goes_with(item, leaving))
        return joined.planes.essential_settled and self.tracker.in_place(staying)

    def _change_trouble(self, joined: Joined, following: Backend[Any]) -> str:
        """What goes wrong in this node besides."""
        planes = (*joined.planes.troubles, joined.planes.outage_of(following))
        return next(filter(None, (*planes, *self.kernel_side.refusals, self.firewall.state.trouble)), "")

    # What we say about ourselves

    def _put_view(self) -> View:
        self._account.stopping = self._stopping
        return self._account.put(self.settings, self.joined)

    def _announce(self) -> None:
        joined, lease, now = self.joined, self.slot.state, self.clock()
        sound = self._account.in_place(joined) and lease.valid(now) and not lease.conflict
        if sound and joined is not None and not joined.planes.essential_trouble:
            self._files.write(joined, self.settings)
        self._announcements.say(*summary(self._put_view(), now), now)


def _goes_with(item: KernelObject, links: frozenset[str]) -> bool:
    return item.name in links if isinstance(item, Link) else stands_on(item, links)
