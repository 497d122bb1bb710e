"""What the daemon's loop says of itself: one frozen view per turn, and the details when somebody asks for them.

Whatever shows something (status, readiness, health, metrics, page) reads a view and nothing else, in whatever thread it
has. A view costs the same with one peer and with thousands. What grows with their number, the :class:`Details`, is
made by the loop in its next turn after somebody asked; who asks while the loop does not turn gets the last ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pyflannel.firewall.state import FirewallState
from pyflannel.kernel.tracker import Tracked
from pyflannel.membership.slot import LeaseState
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON, Subnets
from pyflannel.network.underlay import Underlay
from pyflannel.planning.overlay import Peer
from pyflannel.show.measures import Measures
from pyflannel.show.status import ChangeStatus
from pyflannel.small.guarded import PluginCall

__all__ = ["DETAILS_PATIENCE", "Details", "PluginName", "View", "Window"]

DETAILS_PATIENCE: Final = 3.0
"""Seconds that somebody who asks for details waits for the loop's next turn."""


@dataclass(frozen=True, slots=True)
class PluginName:
    """A plugin in use, and the distribution that it came with."""

    name: str
    distribution: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Details:
    """What grows with the number of peers, as of ``made_at`` on the daemon's clock.

    :param problems: lease key to why the data plane can't serve it; ``notes``: what it tells of it besides.
    :param tracked: every kernel object that is wanted, and where it stands.
    :param links: the overlay's devices. ``describes``: what the backend tells of itself.
    """

    made_at: float
    peers: tuple[Peer, ...] = ()
    network: NetworkConfig | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    tracked: tuple[Tracked, ...] = ()
    links: frozenset[str] = frozenset()
    describes: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    measures: Measures = field(default_factory=Measures)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How the daemon stands, as of one turn of its loop. Times are on the daemon's clock, but for those of ``started``
    and ``last_error``, which are Unix time.

    :param troubles: what goes wrong, other than single kernel objects; the most important first.
    :param in_place: the kernel holds all that the node needs for itself. ``refused``: the first reason why it does not
        take something, ``refusals`` how many objects there are of that kind.
    :param diversions: others' routes, IPsec policies and policy rules that take packets of the overlay away;
        ``encrypts``: where the backend would have encrypted them. ``unguarded``: why no rule of the firewall holds such
        packets back; empty if one does, or if nothing is encrypted.
    :param subnet_file: ``subnet.env`` says what we hold.
    :param change: the change of the network that is under way.
    :param settings: what this daemon was told, as flags without their dashes, but for secrets. ``warnings``: what of
        it is ignored, or no good idea.
    :param overruled: a setting of this node that counts less than the network config, and what to do.
    :param call: a plugin's call that the loop is in, or the start before there is a loop.
    :param settled: the overlay holds all leases of the store.
    """

    node_id: str
    started: float
    store: PluginName
    store_location: str
    settings: Mapping[str, JSON] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    lease: LeaseState = field(default_factory=LeaseState)
    stopping: bool = False
    underlay: Underlay | None = None
    backend: PluginName | None = None
    network: NetworkConfig | None = None
    overruled: str = ""
    subnets: Subnets | None = None
    troubles: tuple[str, ...] = ()
    kernel_readable: bool = True
    call: PluginCall | None = None
    in_place: bool = False
    refused: str = ""
    refusals: int = 0
    plane_trouble: str = ""
    diversions: tuple[str, ...] = ()
    encrypts: bool = False
    unguarded: str = ""
    subnet_file: bool = False
    peers: int = 0
    skipped: int = 0
    firewall: FirewallState = field(default_factory=FirewallState)
    repaired: int = 0
    last_error: tuple[float, str] | None = None
    change: ChangeStatus | None = None
    details: Details | None = None

    @property
    def guarded(self) -> bool:
        """Whether packets that others route past the encryption are dropped."""
        return self.encrypts and not self.unguarded and self.firewall.in_place


class Window:
    """Where the loop puts its views, and everybody else looks at them.

    :param clock: the daemon's clock, in seconds. ``wake``: makes the loop turn.
    :param lease: how our lease stands now. The lease keeper goes on while the loop stands still, so that a view says
        what holds when somebody looks.
    """

    def __init__(
        self, view: View, clock: Callable[[], float], wake: Callable[[], None], lease: Callable[[], LeaseState]
    ) -> None:
        self._view, self._lease = view, lease
        self.clock = clock
        self.beat = clock()
        """When the loop last gave a sign of life: at each turn, and within long work."""
        self._wake = wake
        self._changed = threading.Condition()
        self._asked = self._answered = 0

    # The loop's side

    def put(self, view: View) -> None:
        """The newest view; it keeps the details of the one before unless it has its own."""
        if view.details is None and self._view.details is not None:
            view = replace(view, details=self._view.details)
        self._view = view

    @property
    def last(self) -> View:
        """The newest view, as it was put."""
        return self._view

    @property
    def wanted(self) -> int:
        """The number of the request for details that nobody has answered; 0: there is none."""
        return self._asked if self._asked != self._answered else 0

    def answer(self, request: int, view: View) -> None:
        """A view with details, for all requests up to ``request``."""
        with self._changed:
            self.put(view)
            self._answered = request
            self._changed.notify_all()

    # Everybody else's

    @property
    def view(self) -> View:
        """The newest view."""
        return replace(self._view, lease=self._lease())

    def detailed(self, patience: float = DETAILS_PATIENCE) -> View:
        """A view with details of now or later; after ``patience`` seconds in vain, the newest there is."""
        with self._changed:
            self._asked += 1
            request = self._asked
            self._wake()
            self._changed.wait_for(lambda: self._answered >= request, patience)
            return self.view
