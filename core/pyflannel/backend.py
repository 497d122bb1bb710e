"""The contract for backends (public API).

A backend is a *planner*. From this node's place in the network (:class:`Node`) and one peer's lease it says which
kernel objects this node should hold; the core compares that with the kernel and writes the difference, again and
again, for as long as the daemon runs. A backend therefore has no code for creating, repairing or removing anything:
no event, no retry, no netlink.

Planning is split by peer so that one changed lease among thousands costs the work of one: :meth:`Backend.plan_node`
gives what the node needs for itself, :meth:`Backend.plan_peer` what it needs for one peer. Both are pure: same
arguments, same result, no clock, no socket, no state. Two peers whose plans claim one kernel key are settled by the
core (a lease that has the network's layout wins, then the older one; the other is shown as skipped).

Whatever a backend raises, ``SystemExit`` included, ends that call alone and is reported as its fault. Calls come from
the core's loop, with these exceptions: ``describe`` may be called from any thread, and the constructor and
:meth:`Backend.publish` run in threads of their own, because they may take long. ``publish`` never runs at the same time
as :meth:`Backend.act`, which may change what it reads.

A backend whose packets are moved by a process of its own returns a :class:`DataPlane` from :meth:`Backend.start`.

To write one: subclass :class:`Backend`, register it in the entry point group ``pyflannel.backends`` under the name
that ``Backend.Type`` has in the network document, and run the conformance kit in :mod:`pyflannel.testing`.
"""

from __future__ import annotations

import json
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

from pyflannel.errors import ConfigError, PeerRejected
from pyflannel.kernel.model import (
    MAIN_TABLE,
    QDISC_OPTIONS,
    ROUTE_METRICS,
    ROUTE_TYPES,
    RULE_ACTIONS,
    XFRM_DIRECTIONS,
    XFRM_INTERFACES,
    Address,
    Attributes,
    AttributeValue,
    DesiredState,
    Encapsulation,
    Endpoint,
    FdbEntry,
    ForeignEncapsulation,
    ForeignInfo,
    GenericInfo,
    IpEncapsulation,
    IPInterface,
    KernelObject,
    Key,
    Kind,
    Link,
    LinkInfo,
    MplsEncapsulation,
    MplsRoute,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    Seg6Encapsulation,
    Sysctl,
    TunInfo,
    VxlanInfo,
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
)
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON, IPAddress, IPNetwork, Lease, LeaseAttributes, Subnets
from pyflannel.network.marks import Kinship, Marks
from pyflannel.network.underlay import Underlay, UnderlayRoute
from pyflannel.small.attendant import Attendant
from pyflannel.small.digest import sha256
from pyflannel.small.interpreter import module_command
from pyflannel.small.retry import Backoff
from pyflannel.small.secret import Secret
from pyflannel.small.text import cut
from pyflannel.small.wake import Wake

__all__ = [
    "API_VERSION",
    "JSON",
    "LARGEST_PUBLISHED",
    "MAIN_TABLE",
    "QDISC_OPTIONS",
    "ROUTE_METRICS",
    "ROUTE_TYPES",
    "RULE_ACTIONS",
    "XFRM_DIRECTIONS",
    "XFRM_INTERFACES",
    "Address",
    "Attendant",
    "AttributeValue",
    "Attributes",
    "Backend",
    "Backoff",
    "Capabilities",
    "DataPlane",
    "DesiredState",
    "Encapsulation",
    "Endpoint",
    "FdbEntry",
    "ForeignEncapsulation",
    "ForeignInfo",
    "GenericInfo",
    "IPAddress",
    "IPInterface",
    "IPNetwork",
    "IpEncapsulation",
    "KernelObject",
    "Key",
    "Kind",
    "Kinship",
    "Lease",
    "LeaseAttributes",
    "Link",
    "LinkInfo",
    "Marks",
    "MplsEncapsulation",
    "MplsRoute",
    "Neighbour",
    "NetworkConfig",
    "NoOptions",
    "Node",
    "Outcome",
    "PeerRejected",
    "Published",
    "Qdisc",
    "Route",
    "Rule",
    "Secret",
    "Seg6Encapsulation",
    "Subnets",
    "Sysctl",
    "TunInfo",
    "Underlay",
    "UnderlayRoute",
    "UsualData",
    "VxlanInfo",
    "Wake",
    "WireguardDevice",
    "WireguardPeer",
    "XfrmPolicy",
    "forwarding",
    "has_generic_netlink",
    "module_command",
    "mpls_input",
    "option",
    "parse_options",
    "route_via_underlay",
    "stable_mac",
]

API_VERSION: Final = 1
"""The version of this contract. A plugin states the one it was built for as ``api_version``."""

LARGEST_PUBLISHED: Final = 6 << 10
"""Characters of JSON that a backend may publish at most. During a change to another backend a lease contains the data
of both, and nodes skip a lease that is larger than that."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do and needs; the core refuses a network that asks for more.

    :param ipv4: carries IPv4 subnets.
    :param ipv6: carries IPv6 subnets.
    :param interface_public_ip: the public address must be the underlay interface's own (no NAT in between).
    :param untyped_leases: leases without a ``BackendType`` are this backend's (flannel's udp and alloc).
    :param encrypts: packets on the underlay are unreadable and unforgeable without the nodes' keys.
    """

    ipv4: bool = True
    ipv6: bool = False
    interface_public_ip: bool = False
    untyped_leases: bool = False
    encrypts: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """What a node's own lease says to peers: ``BackendData`` and ``BackendV6Data``, each JSON or ``None``.

    Both together have at most :data:`LARGEST_PUBLISHED` characters.
    """

    data: JSON = None
    v6_data: JSON = None


@dataclass(frozen=True, slots=True)
class Node:
    """This node's place in the network: all that a planner may know of it.

    ``state_dir`` is for what must outlive reboots (private keys). ``node_id`` is stable over reboots and
    reinstallation of pyflannel. ``said`` is what this node's lease contains already, if it is of this backend's type;
    an earlier run or flanneld wrote it. Peers use it, so publishing the same again loses no packet. It comes from the
    store and must not be trusted.
    """

    node_id: str
    network: NetworkConfig
    underlay: Underlay
    subnets: Subnets
    state_dir: Path = Path("/var/lib/pyflannel")
    said: Published = field(default=Published(), compare=False)


@dataclass(frozen=True, slots=True)
class UsualData:
    """Backend data that thousands of leases share, except for one MAC address (:meth:`Backend.usual`).

    :param said: all keys but that of the address, with their values.
    :param mac: the key of the MAC address.
    :param apart: MAC addresses with which a lease is not a usual one.
    """

    said: Mapping[str, JSON]
    mac: str
    apart: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a backend that has none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an action has done (:meth:`Backend.act`), and how to undo it.

    :param done: one sentence for the operator.
    :param undo: makes ``publish`` and ``plan_node`` return again what they returned before.
    """

    done: str
    undo: Callable[[], None]


Change = Outcome
"""The former name of :class:`Outcome`; :class:`pyflannel.store.Change` is another thing."""

O = TypeVar("O")  # noqa: E741 - the options of a backend


class DataPlane(ABC):
    """Packets moved by a process of the backend's own; the core feeds it the peers and watches over it.

    Called from the core's loop only. A method must return at once; what takes long happens in the backend's own
    thread or process. A :meth:`put` or :meth:`remove` that raises concerns that peer alone, and is repeated with
    growing pauses; every call may be repeated.
    """

    @abstractmethod
    def put(self, peer: Lease) -> None:
        """Reach ``peer`` from now on, replacing what was known of it and of any peer with the same subnets."""

    @abstractmethod
    def remove(self, subnets: Subnets) -> None:
        """Forget the peer that held ``subnets``."""

    @abstractmethod
    def check(self) -> Mapping[str, str]:
        """Lease key to reason for every peer that can't be served now; restarts what has died.

        Called every second, and after each turn of the loop in which peers were put.

        Raise if the whole data plane is dead: the core stops it, starts it again after a pause, and puts all peers
        anew.

        The first call comes after every peer of the first complete snapshot was put. Peers that only an earlier
        daemon's data plane knew may then be forgotten.
        """

    def renew(self) -> None:  # noqa: B027 - most data planes have nothing to do
        """An action has changed what the backend publishes or plans for this node, or was undone (:class:`Outcome`)."""

    def counters(self) -> Mapping[str, int]:
        """Named totals since the start, for ``status`` and metrics."""
        return {}

    def describe(self) -> Mapping[str, str]:
        """Lease key to what ``status`` should say about a peer besides its state: a few words, and nothing secret.

        Called from any thread; must return at once. Peers may be left out.
        """
        return {}

    @abstractmethod
    def stop(self) -> None:
        """The daemon is stopping: leave packets flowing if that is possible, else end cleanly.

        Must return at once, whatever a process or thread is doing. Idempotent.
        """

    def end(self) -> None:
        """The network has changed to another backend: no packet comes here any more, so leave nothing behind.

        What was agreed with peers is void, too: if the network changes back, they will have forgotten it. Otherwise as
        :meth:`stop`, which it calls by default.
        """
        self.stop()


class Backend(ABC, Generic[O]):
    """A planner for one kind of overlay.

    Class attributes a backend sets:

    * ``api_version``: the :data:`API_VERSION` it was built for;
    * ``name``: as in ``Backend.Type``, equal to its entry point's name;
    * ``Options``: a frozen dataclass for the keys of the ``Backend`` dictionary (see :func:`option`);
    * ``capabilities``;
    * ``actions``: what an operator can ask for with ``pyflannel NAME ACTION`` while the daemon runs, each with a line
      of help.
    """

    api_version: ClassVar[int] = API_VERSION
    name: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    capabilities: ClassVar[Capabilities] = Capabilities()
    actions: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: O) -> None:
        self.options = options

    def publish(self, node: Node) -> Published:
        """What this node's lease must contain for peers to reach it.

        Called before anything is planned for this node with these options, so plans may depend on what it creates
        (keys).
        """
        return Published()

    def describe(self, node: Node) -> Mapping[str, str]:
        """What ``status`` should say about this backend on this node: names to short texts, and nothing secret.

        Called often, and from any thread; must return at once.
        """
        return {}

    @abstractmethod
    def mtu(self, underlay: Underlay) -> int:
        """The largest packet, in bytes, that containers may send over this overlay without fragmentation."""

    @property
    def tunnelled(self) -> bool:
        """Whether packets of peers' containers arrive through the devices of :meth:`plan_node` and in no other way.

        If so, the core drops packets with overlay addresses as their source that arrive elsewhere, also during a change
        to another backend with tunnels. Must be false where :meth:`plan_peer` plans a device for each peer.
        """
        return False

    def plan_node(self, node: Node) -> DesiredState:
        """The kernel objects this node needs whatever its peers are."""
        return DesiredState()

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """The kernel objects that make ``peer`` reachable. Its subnets lie in the network and overlap nobody's.

        :raises PeerRejected: ``peer``'s lease is unusable; the message says why.
        """
        return DesiredState()

    def usual(self, node: Node) -> Mapping[int, UsualData]:
        """By IP version: the data of leases whose plans differ only in addresses, so that the core plans them itself.

        A lease is usual if it has this data, in a dual-stack network for both versions. Where the plan of one contains
        its subnet's first address, its public address or its (unicast) MAC address, that of any other must contain its
        own; all else must be equal. This is only a shortcut for :meth:`plan_peer`, which is called for all other
        leases. A class that overrides ``plan_peer`` must override this, too; otherwise that of its base is ignored.
        """
        return {}

    def act(self, action: str, node: Node) -> Outcome:
        """Do one of ``actions``: change what ``publish`` and ``plan_node`` return for this node from now on.

        The core then updates the kernel and the data plane, and the lease last. If the store does not accept the lease,
        the core calls :attr:`Outcome.undo` and returns to the former state. Keep the change where a start after a
        crash finds it: that start goes on with it.

        :raises PyflannelError: it can't be done; nothing is changed.
        """
        raise NotImplementedError(f"backend {self.name} has no action {action}")

    def start(self, node: Node) -> DataPlane | None:
        """Start or take over the backend's own data plane; ``None`` if the kernel moves the packets."""
        return None


def stable_mac(seed: str) -> str:
    """A MAC address derived from a text: always the same for it, locally administered and unicast (IEEE 802).

    Put into ``seed`` what no two nodes share (``node.subnets``) and what the device is; the address then survives
    restarts and reboots without being stored anywhere.
    """
    digest = bytearray(sha256(seed.encode())[:6])
    digest[0] = digest[0] & 0xFC | 0x02
    return digest.hex(":")


def forwarding(version: int) -> Sysctl:
    """The kernel parameter that lets a node forward packets of IP version 4 or 6."""
    return Sysctl("net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding", "1")


def mpls_input(link: str) -> Sysctl:
    """The kernel parameter that accepts packets with MPLS labels on a link (see :class:`MplsRoute`)."""
    return Sysctl(f"net/mpls/conf/{link}/input", "1")


def route_via_underlay(node: Node, subnet: IPNetwork, gateway: IPAddress) -> Route:
    """An unencapsulated route to a peer's ``subnet`` through its address on the underlay's link."""
    return Route(subnet, node.underlay.interface, gateway)


def has_generic_netlink(family: str) -> bool:
    """Whether this kernel has a generic netlink family such as ``wireguard``; a module for it is loaded.

    Not for planning: ask once, in the backend's constructor.

    :raises KernelError: the kernel can't be asked.
    """
    from pyflannel.kernel.generic import has_family

    return has_family(family)


def option(
    key: str,
    default: Any,
    doc: str,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    secret: bool = False,
    local: bool = False,
) -> Any:
    """A field of a backend's ``Options``: its key in the ``Backend`` dictionary, default, meaning and bounds.

    :param minimum: the smallest allowed value; ``maximum`` the largest.
    :param secret: keeps the value out of errors and ``repr``.
    :param local: concerns one node only: nodes with different values reach each other, so a running node adopts a new
        value at once.
    """
    metadata = {"key": key, "doc": doc, "minimum": minimum, "maximum": maximum, "secret": secret, "local": local}
    return field(default=default, repr=not secret, metadata=metadata)


def parse_options(
    kind: type[O], values: Mapping[str, JSON], source: str = "network config"
) -> tuple[O, tuple[str, ...]]:
    """Fill a backend's ``Options`` from the ``Backend`` dictionary; keys match without regard to case.

    Fields may be ``bool``, ``int``, ``str`` or one of these ``| None``.

    :returns: the options, and the keys that are unknown (reported, not refused: a newer flannel may know them).
    :raises ConfigError: a value has the wrong type or is out of bounds.
    """
    hints = typing.get_type_hints(kind)
    declared = {str(item.metadata["key"]).lower(): item for item in fields(kind) if "key" in item.metadata}  # type: ignore[arg-type]
    arguments: dict[str, JSON] = {}
    unknown = []
    for name, value in values.items():
        item = declared.get(name.lower())
        if item is None:
            unknown.append(name)
            continue
        if value is None and item.default is not MISSING:
            continue
        key, minimum, maximum = (item.metadata[part] for part in ("key", "minimum", "maximum"))
        accepted = _accepted_type(hints[item.name])
        if type(value) is not accepted:
            expected = _TYPE_NAMES.get(accepted, accepted.__name__)
            shown = "hidden" if item.metadata["secret"] else cut(json.dumps(value))
            raise ConfigError(f"{source}: Backend.{key} is {shown}: must be {expected}")
        if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            raise ConfigError(f"{source}: Backend.{key} is {cut(str(value))}: must be {_bounds(minimum, maximum)}")
        arguments[item.name] = value
    return kind(**arguments), tuple(unknown)


def _bounds(minimum: int | None, maximum: int | None) -> str:
    if minimum is None:
        return f"{maximum} or less"
    return f"{minimum} or more" if maximum is None else f"between {minimum} and {maximum}"


_TYPE_NAMES = {bool: "true or false", int: "a whole number", str: "a string"}


def _accepted_type(hint: Any) -> type:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    accepted: type = hint
    return accepted
