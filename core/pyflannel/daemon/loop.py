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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import length_hint
from typing import Any, Final, Protocol

from pyflannel.backend import Backend, Node
from pyflannel.daemon import cni, memory, rules, subnet_env
from pyflannel.daemon.actions import Actions
from pyflannel.daemon.announcing import Announcements
from pyflannel.daemon.crossing import Crossing
from pyflannel.daemon.notify import Notifier
from pyflannel.daemon.reverse_path import ReversePath
from pyflannel.daemon.trial import Pinger, Trials
from pyflannel.daemon.underlay_watch import UnderlayWatch
from pyflannel.errors import DaemonError, KernelError, PyflannelError
from pyflannel.firewall.keeper import FirewallKeeper
from pyflannel.kernel.model import KernelObject, Route, Sysctl
from pyflannel.kernel.port import ForeignLink, ForeignPolicy, ForeignRoute, KernelPort, Notice
from pyflannel.kernel.tracker import Tracker
from pyflannel.membership.slot import Generation, Slot
from pyflannel.network.change import LEASE_KEY, NodeProgress
from pyflannel.network.lease import IPNetwork
from pyflannel.network.underlay import Inventory, Underlay
from pyflannel.planning.diversion import diverting, leftovers
from pyflannel.planning.feed import Feed, Share
from pyflannel.planning.guard import checked_mtu, guarded
from pyflannel.planning.overlay import Overlay
from pyflannel.planning.transition import Part, Transition, encrypts
from pyflannel.settings.settings import Settings
from pyflannel.show.measures import Measures
from pyflannel.show.readiness import summary
from pyflannel.show.status import ChangeStatus
from pyflannel.show.view import Details, PluginCall, PluginName, View, Window
from pyflannel.small.retry import Backoff
from pyflannel.small.wake import Wake

__all__ = ["BEAT_INTERVAL", "RELOADABLE", "Keeper", "Loop"]

log = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 1.0
"""Seconds between two tries at an unreadable kernel."""

DIVERSIONS_PAUSE: Final = 1.0
"""Seconds between two looks at who else has routes in the overlay's address space, at least."""

BEAT_INTERVAL: Final = 4.0
"""The longest time in seconds that the loop sleeps: what /livez and the watchdog hear it by."""

SLICE: Final = 1000
"""Leases that are taken in before the rest of a turn has its turn."""

SETTLE_AFTER: Final = 2.0
"""Seconds from joining until the kernel has told of all that we write then: time to give back what that took."""

TRIM_PAUSE: Final = 30.0
"""Seconds from a change of leases until memory is given back: a store may have read them all again to find it."""

REPLAN_PAUSE: Final = 1.0
LONGEST_REPLAN_PAUSE: Final = 60.0
"""The first and the longest pause in seconds until the backend is asked again to plan for a peer that it failed for."""

BLACKHOLE_METRIC: Final = 0xFFFFFFFE
"""Behind every other route: what makes a packet to an unused address of ours end here instead of looping."""

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


@dataclass(slots=True)
class _Plane:
    """A backend's own data plane: what is fed, from what. ``essential``: this node can't do without it."""

    feed: Feed
    share: Share
    essential: bool


def _shown(backend: Backend[Any]) -> Backend[Any]:
    """The backend that a node is said to use; while the network changes, still the former one."""
    return backend.former.backend if isinstance(backend, Transition) else backend


@dataclass(slots=True)
class _Member:
    """What this node is part of, since a generation was adopted. ``crossing``: a change of the network is under way."""

    backend: Backend[Any]
    overlay: Overlay
    planes: tuple[_Plane, ...]
    crossing: Crossing | None = None

    @property
    def shown(self) -> Backend[Any]:
        """The backend that is in force: during a change the former one."""
        return _shown(self.backend)

    @property
    def plane_trouble(self) -> str:
        """What goes wrong with a data plane that this node can't do without."""
        return next((plane.feed.trouble for plane in self.planes if plane.essential and plane.feed.trouble), "")

    @property
    def essential(self) -> tuple[KernelObject, ...]:
        """What the node itself can't do without."""
        if isinstance(self.backend, Transition):
            return self.backend.essential(self.overlay.node)
        return self.overlay.own_objects


@dataclass(slots=True)
class _Adoption:
    """A generation on its way in. Its overlay is filled aside, and takes the former one's place when it has all."""

    generation: Generation
    backoff: Backoff
    due: float = 0.0
    trouble: str = ""
    overlay: Overlay | None = None
    remaining: Iterator[tuple[str, str]] = field(default_factory=lambda: iter(()))
    later: dict[str, str | None] = field(default_factory=dict)
    """What has changed since its records were read."""


class Loop:
    """See the module's docstring. :meth:`run` and :meth:`turn` belong to one thread; :meth:`stop`, :meth:`reload`,
    ``actions.ask`` and ``window`` are for any.

    :param read_settings: for a reload: reads the settings anew, and sets up logging as they say.
    :param plugin: what is known of an installed plugin, by ``backend`` or ``store`` and its name.
    :param open_pinger: for trying ways to peers; ``None`` where there is no network to try.
    """

    def __init__(
        self,
        settings: Settings,
        node_id: str,
        store_location: str,
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
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        open_pinger: Callable[[], Pinger] | None = None,
    ) -> None:
        self.settings = settings
        self._open_pinger = open_pinger
        self.slot, self.keeper, self.firewall = slot, keeper, firewall
        self.clock = clock
        self.measures = measures
        self._rng = rng or random.Random()  # noqa: S311 - pauses need no secrecy
        self.tracker = Tracker(port, clock, self._rng)
        scheme = settings.store.scheme
        view = View(
            node_id=node_id,
            started=time.time(),
            store=plugin("store", scheme),
            store_location=store_location,
        )
        self.window = Window(view, clock, wake.set, lambda: slot.state)
        self.actions = Actions(self, wake.set)
        self.member: _Member | None = None
        self._generation: Generation | None = None
        """The newest one that was read."""
        self._adoption: _Adoption | None = None
        """How that one comes in, until it holds."""
        self._dirty: dict[str, str | None] = {}
        self._replan_due: float | None = None
        self._replan_pause = Backoff(self._rng, REPLAN_PAUSE, LONGEST_REPLAN_PAUSE)
        self._plugin = plugin
        port.progress = self._beat
        self._port, self._wake = port, wake
        self._read_settings = read_settings
        self._underlay = UnderlayWatch(settings, read_inventory, clock())
        self._announcements = Announcements(notifier, lambda ready: keeper.announce(ready), clock())
        self._stopping = self._reload_wanted = False
        self._kernel_trouble = self._subnet_file_trouble = ""
        self._call: PluginCall | None = None
        self._backend_name: PluginName | None = None
        self._subnet_file = False
        self._repaired = 0
        self._settle_due: float | None = None
        self._trim_due: float | None = None
        self._diversions: tuple[ForeignRoute | ForeignPolicy, ...] = ()
        self._unguarded = ""
        self._diversions_due: float | None = None
        self._diversions_seen = clock() - DIVERSIONS_PAUSE
        self._reverse_path = ReversePath(settings.state_dir)
        self._said = NodeProgress("")
        """How far in a change we have told the keeper that this node is."""
        self._resync_due = clock() + settings.resync_interval

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
                    self._tidy(self.clock())
                    if selector.select(self._patience()):
                        self._wake.drain()
            finally:
                self._end()

    def _end(self) -> None:
        self._stopping = True
        self._put_view()
        self._announcements.stopping()
        self.actions.end()
        if self.member is not None:
            self._stop(self.member.planes)
            if self.member.crossing is not None:
                self.member.crossing.close()

    def turn(self) -> None:
        """Take in what is there, write what differs, put down how things stand. For :meth:`run` and simulations."""
        now = self.window.beat = self.clock()
        if self._reload_wanted:
            self._reload_wanted = False
            self._reload(now)
        self._hear(now)
        if self._underlay.due is not None and now >= self._underlay.due:
            self._look_at_underlay(now)
        self._follow_store(now)
        if now >= self._resync_due:
            self.tracker.request_resync()
            self._look_around_soon(now)
            self._resync_due = now + self.settings.resync_interval
        self._reconcile()
        if self._diversions_due is not None and now >= self._diversions_due:
            self._look_around(now)
        self.actions.turn(self.slot.state)
        self._tend_data_planes(now)
        self._cross(now)
        self._announce()

    def _tidy(self, now: float) -> None:
        """Give back memory, when what took it for a moment is over."""
        if self._settle_due is not None and now >= self._settle_due:
            self._settle_due = self._trim_due = None
            memory.settle()
        elif self._trim_due is not None and now >= self._trim_due:
            self._trim_due = None
            memory.trim()

    @property
    def due(self) -> float:
        """When the next :meth:`turn` is due by the clock, if nothing comes in before."""
        crossing = self.member.crossing if self.member is not None and self._adoption is None else None
        if self._dirty or (self._adoption is not None and self._adoption.overlay is not None):
            return self.clock()
        if crossing is not None and not crossing.complete:
            return self.clock()
        maybe = (self._underlay.due, self._diversions_due, self.tracker.retry_at, self._replan_due)
        due = [self._resync_due, *(at for at in maybe if at is not None)]
        if self._adoption is not None:
            due.append(self._adoption.due)
        if self.member is not None:
            due += [plane.feed.due for plane in self.member.planes]
        if crossing is not None:
            due.append(crossing.due(self.clock()))
        expires_at = self.slot.state.expires_at
        if expires_at is not None and expires_at > self.clock():
            due.append(expires_at)
        return min(due)

    def _patience(self) -> float:
        """Seconds to sleep: until something is due, and never so long that nobody hears of us."""
        maybe = (self._settle_due, self._trim_due, self._announcements.due)
        due = [self.due, self.window.beat + BEAT_INTERVAL, *(at for at in maybe if at is not None)]
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
        self._resync_due = now + adopted.resync_interval
        self.firewall.reload(adopted.iptables_resync)
        log.info("settings reloaded: log level %s, resync every %g s", adopted.log_level, adopted.resync_interval)

    # The kernel's side

    def _hear(self, now: float) -> None:
        try:
            notice = self._port.poll()
        except KernelError:
            notice = Notice(resync=True)  # the dump that this asks for says what is wrong
        self.tracker.observe(notice)
        ours = self.tracker.link_names
        # The kernel tells of no IPv4 route that goes with its device.
        if notice.diversions or notice.resync or (self._diversions and notice.interfaces - ours):
            self._look_around_soon(now)
        if notice.resync or notice.interfaces - ours:
            self._underlay.look_soon(now)

    def _look_at_underlay(self, now: float) -> None:
        tell = self.keeper.move if self._underlay.found is not None else self.keeper.start
        changed = self._underlay.look(now, self._own_subnets)
        if changed is not None:
            tell(changed)

    def _look_around_soon(self, now: float) -> None:
        if self._diversions_due is None and self.member is not None:
            self._diversions_due = max(now, self._diversions_seen + DIVERSIONS_PAUSE)

    def _look_around(self, now: float) -> None:
        """See who else has routes in the overlay's address space; what flanneld left there goes, the rest is named."""
        self._diversions_seen, self._diversions_due = now, None
        member = self.member
        if member is None:
            return
        overlay = member.overlay
        own = overlay.node.subnets
        try:
            around = self._port.look_around()
            network = overlay.node.network
            diversions = diverting(around.routes, overlay.desired, own, network)
            found = leftovers(diversions, around.links, overlay.peers.values(), self.tracker.spaces)
            if found:
                names = [each.link.name if isinstance(each, ForeignLink) else str(each) for each in found]
                log.warning("removing what flanneld has left in this network: %s", ", ".join(names))
                for error in self._port.clear(found):
                    log.error("%s", error)
                diversions = diverting(self._port.look_around().routes, overlay.desired, own, network)
        except KernelError as error:
            log.debug("can't look for routes of others: %s", error)
            self._diversions_due = now + CHECK_INTERVAL
            return
        found_now: tuple[ForeignRoute | ForeignPolicy, ...] = (*diversions, *around.policies)
        for each in found_now:
            if each not in self._diversions:
                what = "a route" if isinstance(each, ForeignRoute) else "an IPsec policy"
                log.warning("%s that is not ours takes packets of the overlay away: %s", what, each)
        self._diversions = found_now

    def _own_subnets(self) -> tuple[IPNetwork, ...]:
        """Where this node's containers have their addresses, as of now or of the last run."""
        if self.member is not None:
            return self.member.overlay.node.subnets.each
        previous = subnet_env.read_previous(self.settings.subnet_file).subnets
        return previous.each if previous is not None else ()

    def _reconcile(self) -> None:
        if self.member is None:
            return
        begin = self.clock()
        try:
            outcome = self.tracker.reconcile()
        except KernelError as error:
            self._kernel_trouble = str(error)
            self.tracker.request_resync()
            self._resync_due = min(self._resync_due, self.clock() + CHECK_INTERVAL)
            return
        self._kernel_trouble = ""
        if outcome.written or outcome.refused:
            self.measures.reconcile.observe(self.clock() - begin)
            self.measures.written += outcome.written
            self.measures.refused += outcome.refused
        if outcome.repaired:
            self._repaired += len(outcome.repaired)
            first, others = outcome.repaired[0], len(outcome.repaired) - 1
            log.warning(
                "put right what something else had changed: %s%s",
                first.new or f"no {first.old}",
                f" and {others} more" if others else "",
            )

    # The store's side

    def _follow_store(self, now: float) -> None:
        """Take in what the slot has: a generation as soon as it can be adopted, and a slice of the leases."""
        if self.slot.state.fatal is not None:
            raise self.slot.state.fatal
        if self.slot.state.chosen != self._underlay.chosen:
            self._underlay.chosen = self.slot.state.chosen
            self._look_at_underlay(now)
        drained = self.slot.drain()
        adoption, known = self._adoption, self._generation
        if drained.generation is not None and drained.generation is not known:
            self._generation = drained.generation
            self._dirty.clear()  # a generation comes with all leases
            backoff = adoption.backoff if adoption is not None else Backoff(self._rng)
            self._adoption = _Adoption(drained.generation, backoff, now)
        if drained.dirty:
            self._dirty.update(drained.dirty)
            if self._adoption is not None:
                self._adoption.later.update(drained.dirty)
            if self._trim_due is None:
                self._trim_due = now + TRIM_PAUSE
        if self._adoption is not None:
            self._adopt(self._adoption, now)
        if self.member is not None:
            self._take_in(self.member.overlay, self._dirty)
            self._try_again(self.member.overlay, now)
            self.tracker.changed(self.member.overlay.drain_changed())
        elif self._adoption is not None:
            self._dirty.clear()

    def _adopt(self, adoption: _Adoption, now: float) -> None:
        """Bring a generation in by one more slice; when it is whole, it holds."""
        if now < adoption.due:
            return
        generation = adoption.generation = self._as_far(adoption)
        if self.member is None and adoption.overlay is None:  # one that fails, or hangs, is shown, too
            self._backend_name = self._plugin("backend", _shown(generation.backend).name)
        try:
            with self.calling(generation.backend, "planning"):
                if adoption.overlay is None:
                    adoption.later.clear()
                    extras = self._extras(generation)
                    adoption.overlay = Overlay(generation.backend, generation.node, extras, generation.last)
                    adoption.remaining = iter(self.slot.records().items())
                for key, value in islice(adoption.remaining, SLICE):
                    adoption.overlay.put(key, value, self.slot.created(key))
                    self._beat()
        except PyflannelError as error:
            adoption.overlay = None
            adoption.due = self.clock() + adoption.backoff.next()
            if str(error) != adoption.trouble:
                adoption.trouble = str(error)
                log.error("%s", error)
            return
        if length_hint(adoption.remaining):
            return
        self._dirty = dict(adoption.later)
        self._hold(generation, adoption.overlay)
        self._adoption = None

    def _hold(self, generation: Generation, overlay: Overlay) -> None:
        """A generation holds from now on."""
        before, backend = self.member, generation.backend
        planes = self._planes(backend, overlay)
        crossing = Crossing(overlay, backend, self._trials()) if isinstance(backend, Transition) else None
        self.member = _Member(backend, overlay, planes, crossing)
        if before is not None and before.crossing is not None:
            before.crossing.close()
        if before is not None:  # their devices are going, and nobody is to make them anew
            self._let_go(before.planes, planes)
        if crossing is None:
            self._reverse_path.restore()
        overlay.drain_changed()
        self.tracker.watch(tuple(family.network for family in generation.node.network.families))
        self.tracker.follow(overlay.desired)
        self._look_around_soon(self.clock())
        self._want_firewall(overlay)
        self.tracker.sweep = True
        self._settle_due = self.clock() + SETTLE_AFTER
        shown = self.member.shown
        if before is None or before.shown is not shown:
            self._backend_name = self._plugin("backend", shown.name)
            if generation.node.network.assumption:
                log.warning("%s; 'pyflannel config set' writes it down", generation.node.network.assumption)
            if generation.overruled:
                log.warning("%s", generation.overruled)
        if before is None or before.overlay.node.subnets != generation.node.subnets:
            log.info("lease: %s (%s)", generation.lease.subnets, shown.name)

    def _take_in(self, overlay: Overlay, dirty: dict[str, str | None]) -> None:
        """Plan a slice of the leases that have changed."""
        if not dirty:
            return
        with self.calling(overlay.backend, "planning"):
            for key in list(islice(dirty, SLICE)):
                value = dirty.pop(key)
                if value is None:
                    overlay.remove(key)
                else:
                    overlay.put(key, value, self.slot.created(key))
                self._beat()

    def _try_again(self, overlay: Overlay, now: float) -> None:
        """Plan anew for peers for which the backend has failed to."""
        if not overlay.faulty:
            self._replan_due = None
            self._replan_pause.reset()
        elif self._replan_due is None:
            self._replan_due = now + self._replan_pause.next()
        elif now >= self._replan_due:
            self._replan_due = now + self._replan_pause.next()
            with self.calling(overlay.backend, "planning"):
                for key in list(islice(overlay.faulty, SLICE)):
                    overlay.retry(key)
                    self._beat()

    def _beat(self) -> None:
        """A sign of life within long work."""
        self.window.beat = self.clock()

    def _want_firewall(self, overlay: Overlay) -> None:
        self.firewall.want(rules.planned(overlay, self.settings), overlay.node.network.enable_nftables)
        before, self._unguarded = self._unguarded, rules.unguarded(overlay, self.settings)
        if self._unguarded not in ("", before):
            log.warning(
                "nothing holds back packets that a route of somebody else takes past the encryption: %s",
                self._unguarded,
            )

    def _extras(self, generation: Generation) -> Iterator[KernelObject]:
        """What the operator wants, what a change of the network needs, and what keeps this node's own routes alive.

        A kernel that forwards IPv6 takes no router's advertisement any more, and forgets those it has, except on links
        whose ``accept_ra`` is 2.
        """
        node, backend = generation.node, generation.backend
        if node.network.ipv6 is not None:
            for link in sorted(self._underlay.advertised):
                yield Sysctl(f"net/ipv6/conf/{link}/accept_ra", "2", optional=True)
        if self.settings.blackhole_route:
            for subnet in node.subnets.each:
                yield Route(subnet, None, metric=BLACKHOLE_METRIC)
        if isinstance(backend, Transition) and node.network.ipv4 is not None:
            yield from self._reverse_path.loosen({*backend.links(node), node.underlay.interface})

    # The stage of actions

    def acting(self, action: str) -> tuple[Backend[Any], Node]:
        """The backend and the node that an action is for.

        :raises DaemonError: there is no overlay yet that it could be about, or it would be in the way.
        """
        member = self.member
        if member is None or self._adoption is not None or not self._in_place():
            raise DaemonError(f"{action} has to wait: {summary(self._make_view(), self.clock())[1]}")
        if self.slot.state.trouble:
            raise DaemonError(f"{action} has to wait: {self.slot.state.trouble}")
        if member.crossing is not None:
            raise DaemonError(f"{action} has to wait: a change of the network is under way")
        return member.backend, member.overlay.node

    def replan(self) -> None:
        """Plan all anew, since an action has changed what the backend knows, and write it.

        :raises KernelError: the kernel does not take it.
        """
        member = self.member
        if member is None:
            return
        with self.calling(member.backend, "planning"):
            overlay = member.overlay = member.overlay.moved(member.overlay.node, self._beat)
            member.planes = self._planes(member.backend, overlay)
        overlay.drain_changed()
        self.tracker.follow(overlay.desired)
        for plane in member.planes:
            plane.feed.renew()
        for _ in range(2):  # a first refusal is not believed
            self._reconcile()
        if not self._in_place():
            refused = next((str(item.error) for item in self.tracker.failures.values()), "")
            raise KernelError(f"the kernel does not take it: {self._kernel_trouble or refused}")

    def publish(self) -> int:
        """Have our lease say what the backend publishes now; the request's number."""
        return self.keeper.publish()

    # The backends' own data planes

    def _planes(self, backend: Backend[Any], overlay: Overlay) -> tuple[_Plane, ...]:
        """The data planes that an overlay asks for; those that run already go on."""
        node = overlay.node
        running = [plane.feed for plane in self.member.planes] if self.member is not None else []
        parts = backend.parts(node) if isinstance(backend, Transition) else [Part(backend, node, lambda lease: lease)]
        planes = []
        for part in parts:
            known = next((feed for feed in running if feed.serves(part.backend, part.node)), None)
            feed = known or Feed(part.backend, part.node, self._rng)
            planes.append(_Plane(feed, Share(overlay, part.lease), part.essential))
        return tuple(planes)

    def _stop(self, planes: Iterable[_Plane]) -> None:
        for plane in planes:
            with self.calling(plane.feed.backend, "stop of its data plane"):
                plane.feed.stop()

    def _let_go(self, before: Iterable[_Plane], planes: Iterable[_Plane]) -> None:
        """Stop what goes on no more: for good where the backend does not, else the next one may take over from it."""
        kept, backends = {id(plane.feed) for plane in planes}, {type(plane.feed.backend) for plane in planes}
        left = [plane for plane in before if id(plane.feed) not in kept]
        self._stop(plane for plane in left if type(plane.feed.backend) in backends)
        for plane in left:
            if type(plane.feed.backend) not in backends:
                with self.calling(plane.feed.backend, "end of its data plane"):
                    plane.feed.end()

    def _tend_data_planes(self, now: float) -> None:
        member = self.member
        if member is None:
            return
        touched = member.overlay.drain_touched()
        if member.crossing is not None and touched:
            member.crossing.see(touched)
        for plane in member.planes:
            plane.share.touch(touched)
            with self.calling(plane.feed.backend, "its data plane"):
                plane.feed.tend(plane.share, now)

    # A change of the network

    def _own_progress(self, change_id: str) -> NodeProgress:
        """What our lease says of a change."""
        lease = self.slot.state.lease
        said = None if lease is None else NodeProgress.from_json(lease.attributes.extra.get(LEASE_KEY))
        return said if said is not None and said.id == change_id else NodeProgress(change_id)

    def _as_far(self, adoption: _Adoption) -> Generation:
        """A generation that is in a change, as far in it as we are."""
        generation, backend = adoption.generation, adoption.generation.backend
        if adoption.overlay is not None or not isinstance(backend, Transition):
            return generation
        known = self.member.crossing if self.member is not None else None
        same = known is not None and known.transition.change == backend.change
        graced = backend.graced or (same and known is not None and known.transition.graced)
        return replace(generation, backend=backend.at(self._own_progress(backend.change.id).step, graced))

    def _cross(self, now: float) -> None:
        """Say how far we are in a change, and go on in it."""
        member = self.member
        if member is None or member.crossing is None or self._adoption is not None or self._dirty:
            return
        crossing, transition, node = member.crossing, member.crossing.transition, member.overlay.node
        crossing.look(now)
        if not crossing.complete:
            return
        own = self._own_progress(transition.change.id)
        trouble = transition.trouble(node) or self._change_trouble()
        said = crossing.progress(own.step, self._all_in_place, trouble, now)
        if said != self._said:
            self._said = said
            self.keeper.reached(said)
        further = transition.at(own.step, crossing.graced(now))
        if further is not transition and self._generation is not None:
            generation = replace(self._generation, backend=further)
            self._adoption = _Adoption(generation, Backoff(self._rng), now)
            self._wake.set()

    def _trials(self) -> Trials | None:
        return Trials(self._open_pinger) if self._open_pinger is not None else None

    def _all_in_place(self) -> bool:
        """Whether the kernel and the data planes have all that was planned."""
        member = self.member
        if member is None or not all(plane.feed.settled for plane in member.planes):
            return False
        if self._kernel_trouble or not self.tracker.in_place(member.overlay.desired):
            return False
        return self.firewall.settled

    def _change_trouble(self) -> str:
        """What goes wrong in this node besides."""
        member = self.member
        refused = (str(failure.error) for failure in self.tracker.failures.values())
        planes = (plane.feed.trouble for plane in member.planes) if member is not None else iter(())
        return next(filter(None, (*planes, *refused, self.firewall.state.trouble)), "")

    # What we say about ourselves

    @contextmanager
    def calling(self, backend: Backend[Any], what: str) -> Iterator[None]:
        """Let the view say what the loop is in, should it not come back. Also for :class:`~.actions.Stage`."""
        self._call = PluginCall(f"backend {backend.name!r} has not come back from {what}", self.clock())
        self.window.put(replace(self.window.last, call=self._call, backend=self._backend_name))
        try:
            yield
        finally:
            self._call = None

    def _in_place(self) -> bool:
        """Whether the kernel holds all that the node needs for itself."""
        member = self.member
        return member is not None and self.tracker.in_place(item.key for item in member.essential)

    def _make_view(self) -> View:
        member, failures = self.member, self.tracker.failures
        node = member.overlay.node if member is not None else None
        adopting = self._adoption.trouble if self._adoption is not None else ""
        last = self.window.last
        return replace(
            last,
            settings=self.settings.told,
            warnings=self.settings.warnings,
            lease=self.slot.state,
            node_id=node.node_id if node is not None else last.node_id,
            stopping=self._stopping,
            underlay=self._underlay.found,
            backend=self._backend_name,
            network=node.network if node is not None else None,
            overruled=self._generation.overruled if self._generation is not None else "",
            subnets=node.subnets if node is not None else None,
            troubles=(self._underlay.trouble, self._kernel_trouble, adopting, self._subnet_file_trouble),
            kernel_readable=not self._kernel_trouble,
            call=self._call,
            in_place=self._in_place(),
            refused=next((str(failure.error) for failure in failures.values()), ""),
            refusals=len(failures),
            plane_trouble=member.plane_trouble if member is not None else "",
            diversions=tuple(map(str, self._diversions)),
            encrypts=member is not None and encrypts(member.backend),
            unguarded=self._unguarded,
            change=self._change_status(),
            subnet_file=self._subnet_file,
            peers=len(member.overlay.peers) if member is not None else 0,
            skipped=member.overlay.skipped if member is not None else 0,
            firewall=self.firewall.state,
            repaired=self._repaired,
            last_error=self._announcements.last_error,
        )

    def _change_status(self) -> ChangeStatus | None:
        crossing = self.member.crossing if self.member is not None else None
        return None if crossing is None else crossing.status(self._own_progress(crossing.transition.change.id))

    def _put_view(self) -> View:
        """Put down how things stand, with the details if somebody has asked for them."""
        view = self._make_view()
        request = self.window.wanted
        if request:
            view = replace(view, details=self._make_details())
            self.window.answer(request, view)
        else:
            self.window.put(view)
        return view

    def _make_details(self) -> Details:
        member = self.member
        tracked, links = tuple(self.tracker.status()), self.tracker.link_names
        details = Details(self.clock(), tracked=tracked, links=links, measures=self.measures.copy())
        if member is None:
            return details
        feeds, overlay = [plane.feed for plane in member.planes], member.overlay
        with self.calling(member.backend, "describe"):
            return replace(
                details,
                peers=tuple(overlay.peers.values()),
                network=overlay.node.network,
                problems=_together(feed.problems for feed in feeds),
                notes=_together(feed.descriptions() for feed in feeds),
                describes=_described(member.backend, overlay.node),
                counters={name: count for feed in feeds for name, count in feed.counters().items()},
            )

    def _announce(self) -> None:
        member, now = self.member, self.clock()
        lease = self.slot.state
        sound = self._in_place() and lease.valid(now) and not lease.conflict
        if sound and member is not None and not member.plane_trouble:
            try:
                self._write_node_files(member)
                self._subnet_file_trouble = ""
            except PyflannelError as error:
                self._subnet_file_trouble = str(error)  # tried again at the next beat
        self._announcements.say(*summary(self._put_view(), now), now)

    def _write_node_files(self, member: _Member) -> None:
        """What the rest of the node reads: subnet.env, and the CNI network."""
        node, backend = member.overlay.node, member.backend
        with self.calling(backend, "mtu"):
            mtu = checked_mtu(backend.name, guarded(backend.name, "mtu", lambda: backend.mtu(node.underlay)))
        text = subnet_env.render(node.network, node.subnets, mtu, self.settings.ip_masq)
        subnet_env.write(self.settings.subnet_file, text)
        if self.settings.cni_conf is not None:
            cni.write(self.settings.cni_conf, cni.render(node.network, node.subnets, mtu, self.settings.ip_masq))
        self._subnet_file = True


def _described(backend: Backend[Any], node: Node) -> dict[str, str]:
    """What the backend tells of itself."""
    try:
        return guarded(
            backend.name,
            "describe",
            lambda: {str(name): str(text) for name, text in backend.describe(node).items()},
        )
    except PyflannelError as error:  # a plugin's fault; nothing else depends on it
        return {"fault": str(error)}


def _together(told: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What data planes tell of peers, as one."""
    found: dict[str, str] = {}
    for each in told:
        for key, text in each.items():
            found[key] = f"{found[key]}; {text}" if key in found else text
    return found
