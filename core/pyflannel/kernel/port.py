"""The port through which the tracker sees and changes a kernel: dump, write, and be told.

Two implementations: :mod:`~pyflannel.kernel.netlink` talks to the real kernel, :mod:`~pyflannel.kernel.twin` is a
kernel in memory whose calls can be made to fail. Both pass one test suite.

What a port reports as *actual* are the same frozen values that planners produce, restricted to what is ours or stands
in our way: links that carry our mark or have a name in the :class:`Scope`; all addresses, permanent neighbours and
permanent FDB entries with a remote on those links; routes that have our protocol number, and those of the main table
that leave through those links to a gateway that is taken to be there (``onlink``: that is how flanneld's look, which
carry no mark). Any other route through a link of ours is somebody's own. Rules are ours by our protocol number and by
nothing else, root queueing disciplines on those links by our handle; where one is wanted, whatever else is there is
reported, too. IPsec policies are ours that belong to an interface with one of our numbers. Link-local addresses and
what the kernel makes by itself (multicast, local table, connected routes) are not reported. Of a foreign device under a
name in the scope just the link is reported, with a :class:`~pyflannel.kernel.model.ForeignInfo`; what is on it is not
ours to see or change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from types import MappingProxyType
from typing import Final

from pyflannel.errors import KernelError
from pyflannel.kernel.model import (
    GenericInfo,
    KernelObject,
    Key,
    Link,
    Qdisc,
    Route,
    Rule,
    Sysctl,
    WireguardDevice,
    XfrmPolicy,
)
from pyflannel.kernel.packed import plans_of, unpack
from pyflannel.network.lease import IPNetwork
from pyflannel.network.underlay import Question, Way

__all__ = [
    "SEVERAL",
    "ForeignLink",
    "ForeignPolicy",
    "ForeignRoute",
    "ForeignRule",
    "KernelPort",
    "Notice",
    "Scope",
    "Surroundings",
    "Write",
    "apart",
    "following",
    "rule_order",
    "tables",
    "waits",
]

SEVERAL: Final = IPv4Address(0)
"""The ``remote`` under which a forwarding entry is reported that has several (somebody appended one), or more about it
than an entry of ours has: it differs from every entry that can be wanted, and is put right."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The names we want to have, whether or not they carry our mark yet.

    ``generic`` are the links among them of which not all is ours to say: those of a kind that the port knows nothing
    about (:class:`~pyflannel.kernel.model.GenericInfo`), with any master, or with a group. Of such a device is reported
    what the wanted one says something about, its MAC address included. ``wireguard`` are the WireGuard devices among
    them whose keys and peers are ours to set; those of any other are somebody's own, and are not reported. ``xfrm``
    says that there are IPsec policies among what we want; they are looked at where an xfrm interface of ours was left
    behind, too.
    """

    links: frozenset[str] = frozenset()
    sysctls: frozenset[str] = frozenset()
    generic: Mapping[str, Link] = field(default_factory=dict)
    wireguard: frozenset[str] = frozenset()
    spaces: tuple[IPNetwork, ...] = ()
    """The address ranges in which foreign routes are of interest: a notice says when one of them has changed."""
    optional: frozenset[str] = frozenset()
    """Those of ``sysctls`` that are reported only where they can be set."""
    qdiscs: Mapping[str, Qdisc] = field(default_factory=dict)
    """The queueing disciplines wanted, by their link: of one is reported what the wanted one says something about."""
    xfrm: bool = False

    @classmethod
    def of(cls, wanted: Iterable[KernelObject], spaces: tuple[IPNetwork, ...] = ()) -> Scope:
        """What has to be looked at to tell whether the kernel holds just these objects."""
        links: dict[str, Link] = {}
        sysctls, optional, wireguard, qdiscs = set(), set(), set(), {}
        xfrm = False
        for item in wanted:
            if isinstance(item, Link):
                links[item.name] = item
            elif isinstance(item, Sysctl):
                sysctls.add(item.path)
                if item.optional:
                    optional.add(item.path)
            elif isinstance(item, WireguardDevice):
                wireguard.add(item.link)
            elif isinstance(item, Qdisc):
                qdiscs[item.link] = item
            elif isinstance(item, XfrmPolicy):
                xfrm = True
        generic = {name: link for name, link in links.items() if _leaves_something_open(link)}
        return cls(
            frozenset(links),
            frozenset(sysctls),
            generic,
            frozenset(wireguard),
            spaces,
            frozenset(optional),
            qdiscs,
            xfrm,
        )


def _leaves_something_open(link: Link) -> bool:
    return isinstance(link.info, GenericInfo) or link.master is None or link.group is not None


@dataclass(frozen=True, slots=True)
class Write:
    """One change: create (no ``old``), replace in place, or delete (no ``new``). Both have the same key."""

    old: KernelObject | None
    new: KernelObject | None

    @property
    def key(self) -> Key:
        """The key that changes."""
        item = self.new or self.old
        if item is None:
            raise ValueError("a write needs an object")
        return item.key


def apart(deletions: Iterable[Write], creations: Iterable[Write]) -> tuple[list[Write], list[Write]]:
    """The deletions of routes that come first, and those of routes to whose destination another one is written.

    The second kind waits for the other one, where both can stand side by side: IPv4 routes, which differ in their
    metric, and those in different tables.
    """
    going = list(deletions)
    if not going:
        return [], []  # as at a start, which makes thousands
    followed = tables(write.new for write in creations)
    first: list[Write] = []
    last: list[Write] = []
    for write in going:
        (last if isinstance(write.old, Route) and waits(write.old, followed) else first).append(write)
    return first, last


def tables(objects: Iterable[KernelObject | None]) -> Mapping[object, Collection[int]]:
    """The tables in which routes among these objects are, by destination."""
    found: dict[object, set[int]] = {}
    for item in objects:
        if isinstance(item, Route):
            found.setdefault(item.destination, set()).add(item.table)
    return found


def waits(old: Route, followed: Mapping[object, Collection[int]]) -> bool:
    """Whether a route that goes can stay until another one is there.

    :param followed: where routes are to be, see :func:`tables`.
    """
    successors = followed.get(old.destination, ())
    return bool(successors) and (old.destination.version == 4 or successors != {old.table})


def following(deletions: Iterable[Write], creations: Iterable[Write], failures: dict[Key, KernelError]) -> list[Write]:
    """Those of the deletions that wait which may be done now: where the new route was refused, the old one stays.

    That it stays is noted in ``failures``, so that it is tried again.
    """
    routes = (write.new for write in creations if write.key in failures)
    refused = {route.destination for route in routes if isinstance(route, Route)}
    free = []
    for write in deletions:
        if isinstance(write.old, Route) and write.old.destination in refused:
            failures[write.key] = KernelError(f"{write.old} stays until the one that takes its place is there")
        else:
            free.append(write)
    return free


def rule_order(write: Write) -> tuple[bool, int]:
    """By what the writes of rules are sorted: what is written in the order of priorities, then what goes in the reverse
    one."""
    priority = write.key[1][1]  # type: ignore[index]
    return (True, -priority) if write.new is None else (False, priority)


@dataclass(slots=True)
class Notice:
    """What the kernel told since the last :meth:`KernelPort.poll`.

    ``changes`` maps the key of an object in scope to its new state, ``None`` when it is gone. ``interfaces`` are the
    names of links that were created, deleted, renamed, set up or down, or changed in MTU, MAC or addresses, and of
    those whose foreign routes changed. ``resync`` asks for a new dump: messages were lost, or a link of ours came, went
    or went down, which takes objects along without a word about each.
    """

    changes: dict[Key, KernelObject | None] = field(default_factory=dict)
    interfaces: set[str] = field(default_factory=set)
    resync: bool = False
    diversions: bool = False
    """Whether something of others' has changed that may take packets of the overlay away."""


_RTPROT_KERNEL = 2
"""Of routes that the kernel makes because a device has an address in them (linux/rtnetlink.h)."""


@dataclass(frozen=True, slots=True)
class ForeignRoute:
    """A route of the main table that is not ours; ``protocol`` is who made it (``rtm_protocol``)."""

    route: Route
    protocol: int

    def __str__(self) -> str:
        text = str(self.route).removeprefix("route ")
        return f"{text} proto kernel" if self.protocol == _RTPROT_KERNEL else text


@dataclass(frozen=True, slots=True)
class ForeignLink:
    """A device that is not ours, and the addresses on it."""

    link: Link
    addresses: tuple[IPv4Interface | IPv6Interface, ...]


@dataclass(frozen=True, slots=True)
class ForeignPolicy:
    """An IPsec policy that is not ours, and takes forwarded packets away before they come to an interface of ours."""

    source: IPNetwork
    destination: IPNetwork

    def __str__(self) -> str:
        return f"xfrm policy src {self.source} dst {self.destination} dir out"


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """A policy rule that is not ours, and may take packets between addresses of the overlay away."""

    rule: Rule

    def __str__(self) -> str:
        return str(self.rule)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What others have put into some address ranges: routes that lead into them, devices with addresses in them, where
    IPsec policies of ours are followed, others' for packets to there, and policy rules that may select such packets, in
    the order in which the kernel asks them."""

    routes: tuple[ForeignRoute, ...] = ()
    links: tuple[ForeignLink, ...] = ()
    policies: tuple[ForeignPolicy, ...] = ()
    rules: tuple[ForeignRule, ...] = ()


NOTHING: Final[Mapping[Key, KernelObject]] = MappingProxyType({})
"""No objects."""


class KernelPort(ABC):
    """See the module's docstring. Used from one thread.

    ``progress`` is called again and again within a long :meth:`apply`: whoever waits for it can show that it is alive.
    """

    progress: Callable[[], None] = staticmethod(lambda: None)

    @abstractmethod
    def dump(self, scope: Scope, known: Mapping[Key, KernelObject] = NOTHING) -> dict[Key, KernelObject]:
        """Everything of ours that is there now. ``scope`` holds for later notifications too.

        :param known: what is expected. What is found to equal it is returned as that very object, so that thousands
            of values are not kept twice.
        :raises KernelError: the kernel can't be read (a missing right, no netlink).
        """

    def differing(
        self, scope: Scope, wanted: Mapping[Key, KernelObject], lacking: list[bytes] | None = None
    ) -> dict[Key, KernelObject | None]:
        """What of a :meth:`dump` is not as wanted: under each such key what is there, ``None`` for nothing.

        :param lacking: takes packed plans of which nothing at all is there; the answer is then without their keys.
        :raises KernelError: see :meth:`dump`.
        """
        found = self.dump(scope, wanted)
        differing = {key: there for key, item in wanted.items() if (there := found.pop(key, None)) != item}
        differing.update(found)
        if lacking is not None:
            for plan in plans_of(wanted):
                keys = [item.key for item in unpack(plan)] if isinstance(plan, bytes) else []
                if isinstance(plan, bytes) and all(key in differing and differing[key] is None for key in keys):
                    lacking.append(plan)
                    for key in keys:
                        del differing[key]
        return differing

    def fill(self, writes: Sequence[Write], plans: Sequence[bytes]) -> Mapping[Key, KernelError]:
        """As :meth:`apply`, and make all that packed plans hold, of which nothing is there.

        :param writes: which delete nothing.
        """
        return self.apply([*writes, *(Write(None, item) for plan in plans for item in unpack(plan))])

    @abstractmethod
    def apply(self, writes: Sequence[Write]) -> Mapping[Key, KernelError]:
        """Make the changes: deletions first, in reverse order of kind, then the rest in order of kind.

        Addresses are the exception: old ones are deleted after new ones were added, because the kernel drops all IPv4
        routes of a link together with its last address. So are WireGuard's peers: one that takes over another's
        allowed-ips must have them before that one goes. So are routes where another one to the same destination is
        written and both can be there (:func:`apart`), and before these, rules. Rules come in the order in which they
        are asked and go in the reverse one, so that what is there at any moment is the beginning of what is wanted. A
        sysctl and a WireGuard device's set-up can't be deleted; such
        a write does nothing.

        :returns: the keys that failed, each with the reason; all others are done. Deleting what is gone is done.
        """

    @abstractmethod
    def look_around(self) -> Surroundings:
        """What others have in the spaces of the scope of the last :meth:`dump`. Reads all routes there are.

        :raises KernelError: the kernel can't be read.
        """

    @abstractmethod
    def ask_ways(self, questions: Sequence[Question]) -> list[Way | str]:
        """How the kernel would send, by all rules and tables, or why it would send nowhere.

        :raises KernelError: it can't be asked.
        """

    @abstractmethod
    def clear(self, found: Iterable[ForeignRoute | ForeignLink]) -> tuple[KernelError, ...]:
        """Remove what :meth:`look_around` has found; what refuses to go is told. What is gone already is done."""

    @abstractmethod
    def fileno(self) -> int:
        """Readable when :meth:`poll` has something to tell."""

    @abstractmethod
    def poll(self) -> Notice:
        """Collect what was notified; never blocks.

        Call it every few seconds even if nothing is readable: of WireGuard's peers and of some sysctls the kernel tells
        nothing, so they are read again from time to time, and what differs is reported here as if it had been told.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the kernel, leaving everything as it is. Idempotent."""
