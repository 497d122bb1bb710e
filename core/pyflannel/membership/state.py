"""All that the lease keeper remembers, in one place: what it was told, follows and holds, and what it is about to do.

The duties are functions of this state, each in a module of its own, and share nothing else: whoever wants to know what
a duty reads and changes finds it by the names of these fields.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pyflannel.backend import Node
from pyflannel.errors import PyflannelError
from pyflannel.membership.allocation import ConflictPolicy
from pyflannel.membership.calls import Call, Lane, Order, Steps
from pyflannel.membership.naming import Myself, state_directory
from pyflannel.membership.place import Place
from pyflannel.membership.slot import LeaseState, Slot
from pyflannel.network.change import NodeProgress
from pyflannel.network.document import NetworkSeed
from pyflannel.network.lease import LeaseAttributes, Subnets
from pyflannel.network.marks import NO_MARKS, Marks
from pyflannel.network.underlay import Underlay
from pyflannel.planning.guard import PUBLISH_TIMEOUT
from pyflannel.planning.judging import said
from pyflannel.small.retry import Backoff
from pyflannel.store import Record

__all__ = ["Job", "KeeperOptions", "KeeperState", "Pause", "Pending", "StoreSession"]

LATEST_FOLLOW: Final = 60.0
"""The longest pause in seconds before a document or an underlay that could not be followed is looked at again."""


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """What the operator decided about this node's lease.

    :param seed: the network document to create if the store has none.
    :param backend: the backend that the network must have, if given.
    :param ttl: a lease's life in seconds; ``margin``: how long before its end it is renewed.
    :param load_timeout: seconds that the backend may take to be loaded and made.
    :param publish_timeout: seconds that it may take to say what the lease should carry.
    :param assigned: the store says which subnets this node has.
    :param followed: the network document that an earlier run followed last; empty if that is not known.
    """

    node_id: str
    state_dir: Path
    ttl: float
    margin: float
    policy: ConflictPolicy = ConflictPolicy.REFUSE
    seed: NetworkSeed | None = None
    backend: str | None = None
    load_timeout: float = PUBLISH_TIMEOUT
    publish_timeout: float = PUBLISH_TIMEOUT
    assigned: bool = False
    followed: str = ""


@dataclass(slots=True)
class Pending:
    """A call that is under way."""

    number: int
    call: Call
    since: float
    job: Job | None
    named_at: float


@dataclass(slots=True)
class Job:
    """A duty that is being done: its steps, and the call that the next one waits for."""

    duty: str
    steps: Steps[None]
    waiting: Call | None = None
    running: bool = False

    def cancel(self) -> None:
        """Take no further step; a duty that is in the middle of one ends by itself."""
        if not self.running:
            self.steps.close()


@dataclass(slots=True)
class Pause:
    """When a duty is due, and how long it pauses after a failure."""

    backoff: Backoff
    at: float | None = None

    def put_off(self, now: float) -> None:
        """It has failed: not before a pause that grows."""
        self.at = now + self.backoff.next()

    def clear(self) -> None:
        """All is well, and it is not due."""
        self.at = None
        self.backoff.reset()


@dataclass(slots=True)
class StoreSession:
    """What ends with a session."""

    key: str
    revision: str
    began: float
    watch: int | None = None
    watch_opened: float = 0.0
    confirm_at: float | None = None
    unheard: list[Record | None] = field(default_factory=list)
    """What the watch told of our own lease while we were writing it."""


@dataclass(slots=True, eq=False)
class KeeperState:
    """All that the lease keeper knows, holds and is about to do. There is nothing else that it remembers.

    :param store: the store's address, for messages; ``scheme`` is its plugin's name.
    :param previous: the subnets that an earlier run of this node had.
    :param slot: where what is known is written, for the daemon's loop.
    """

    options: KeeperOptions
    store: str
    scheme: str
    previous: Subnets | None
    slot: Slot
    rng: random.Random
    now: float = 0.0
    over: bool = False

    # What is to be done, and what is under way
    orders: list[Order] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    pending: dict[Lane, Pending] = field(default_factory=dict)
    number: int = 0
    """Of the last call that was made."""
    opened: bool = False
    """Whether there is a driver of the store."""
    given_up: set[int] = field(default_factory=set)
    """Calls that hang in drivers that were given up."""
    pauses: dict[str, Pause] = field(init=False)
    restarts: Backoff = field(init=False)
    """The pauses between sessions that don't last."""
    troubles: dict[str, PyflannelError] = field(default_factory=dict)
    """Of each duty, from its failure until it succeeds."""

    # Who we are
    node_id: str = field(init=False)
    """What we go by: the node id, or another one if another machine has that."""
    marks: Marks = NO_MARKS
    twin_key: str = ""
    """The lease of a machine that has our node id; empty if there is none."""
    taken_from: LeaseAttributes | None = None
    """What our lease said before we made it ours, if that was of another address or with other marks."""
    gives_way: bool = False
    """Whether we gave our lease up to the machine that had it before us."""
    yielded_to: str | None = None
    """The node id of another daemon that took over what the store had assigned to us."""

    # What we follow
    underlay: Underlay | None = None
    document: str = ""
    """The newest document that the store has told of."""
    kept: str = field(init=False)
    """The one that is kept for the next start."""
    place: Place | None = None
    """What is in force."""
    candidate: Place | None = None
    """What is to be in force as soon as we have joined it."""

    # What we hold, and what others are told
    session: StoreSession | None = None
    watches: int = 0
    """How many watches were opened; each has a number of its own."""
    held: Record | None = None
    changed_at: float = float("-inf")
    """When somebody else last changed our record."""
    unchecked: set[str] = field(default_factory=set)
    """Leases that we may have created without having looked whether another crosses them."""
    generation: int = 0
    lease_state: LeaseState = field(default_factory=LeaseState)
    told: tuple[Subnets, LeaseAttributes] | None = None
    """What our lease should say, as our backend had it last, and of which subnets."""
    asked: int = 0
    """The newest request to publish."""
    reached: NodeProgress = field(default_factory=lambda: NodeProgress(""))
    """How far this node is in a change, as the daemon's loop sees it."""
    ready: bool | None = None
    """Whether our overlay carries packets, as far as we are told; ``announced`` is what the store was told of it."""
    announced: bool | None = None

    def __post_init__(self) -> None:
        rng = self.rng
        self.node_id, self.kept = self.options.node_id, self.options.followed
        duties = ("open", "join", "renew", "watch", "publish", "announce")
        self.pauses = {duty: Pause(Backoff(rng)) for duty in duties}
        self.pauses["follow"] = Pause(Backoff(rng, last=LATEST_FOLLOW))
        self.restarts = Backoff(rng)

    @property
    def in_force(self) -> Place:
        """The place that we have; only asked for when there is one."""
        assert self.place is not None
        return self.place

    @property
    def last_subnets(self) -> Subnets | None:
        """The subnets that this node had last."""
        lease = self.lease_state.lease
        return lease.subnets if lease is not None else self.previous

    @property
    def myself(self) -> Myself:
        """This machine, to be told from another one of its node id."""
        underlay = self.underlay
        addresses = {underlay.public_ipv4, underlay.public_ipv6} if underlay is not None else set()
        return Myself(self.options.node_id, self.marks, frozenset(ip for ip in addresses if ip is not None))

    def node(self, place: Place, subnets: Subnets, ours: LeaseAttributes) -> Node:
        """Our place as a backend sees it.

        Once the daemon plans by what we have told others, that holds as long as the subnets do: what somebody else
        writes over our lease, or that it is made anew, changes no device.

        :param ours: of our lease, as it was when we came to it, or as we have written it.
        """
        if self.generation and self.told is not None and self.told[0] == subnets:
            ours = self.told[1]
        used = place.network.used(subnets)
        state_dir = state_directory(self.options.state_dir, self.options.node_id, self.node_id)
        return Node(self.node_id, place.network, place.underlay, used, state_dir, said(ours, place.backend.name))
