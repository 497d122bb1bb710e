"""What a node's kernel should hold, as frozen values.

Every value has a ``key``: the tuple by which the kernel tells two such objects apart. Two values with one key can't
both be there; a value that differs from the actual one under the same key is a change in place. Links are named, not
numbered: an interface index belongs to one life of a device, a name to what we want. As text, a value reads like the
iproute2 command that would make it.

The order of :class:`Kind` is the order of creation (a route needs its link); deletion runs backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Interface, IPv6Interface
from typing import ClassVar, Final, NamedTuple, TypeAlias

from pyflannel.network.lease import IPAddress, IPNetwork
from pyflannel.small.secret import Secret

__all__ = [
    "OWNER",
    "ROUTE_PROTOCOL",
    "Address",
    "DesiredState",
    "Endpoint",
    "FdbEntry",
    "ForeignInfo",
    "GenericInfo",
    "KernelObject",
    "Key",
    "Kind",
    "Link",
    "LinkInfo",
    "Neighbour",
    "Route",
    "Sysctl",
    "TunInfo",
    "VxlanInfo",
    "WireguardDevice",
    "WireguardPeer",
]

OWNER: Final = "pyflannel"
"""The alias (``ip link set alias``) by which we recognise devices that we made."""

ROUTE_PROTOCOL: Final = 241
"""The routing protocol number (``rtnetlink(7)``, rtm_protocol) of every route that we write."""

IPInterface: TypeAlias = IPv4Interface | IPv6Interface


class Kind(IntEnum):
    """The kinds of kernel objects, in order of creation."""

    LINK = 0
    SYSCTL = 1
    ADDRESS = 2
    NEIGHBOUR = 3
    FDB = 4
    WIREGUARD = 5
    WIREGUARD_PEER = 6
    ROUTE = 7


Key: TypeAlias = tuple[Kind, object, object]
"""``(kind, ...)``: hashable, comparable only for equality."""


@dataclass(frozen=True, slots=True)
class VxlanInfo:
    """A VXLAN device (RFC 7348; ``ip-link(8)``, type vxlan).

    ``underlay`` names the interface that carries the encapsulated packets. A device can change ``local`` (within its
    family) and ``learning`` in place; the other fields need a new device.
    """

    kind: ClassVar[str] = "vxlan"
    vni: int
    port: int
    local: IPAddress
    underlay: str
    gbp: bool = False
    learning: bool = False


@dataclass(frozen=True, slots=True)
class TunInfo:
    """A persistent TUN device (``tun.rst`` in the kernel's documentation) that a userspace data plane attaches to.

    ``queue_length`` is how many packets may wait for it in each queue; the kernel drops what comes then.
    """

    kind: ClassVar[str] = "tun"
    vnet_hdr: bool = False
    multi_queue: bool = False
    queue_length: int = 500


@dataclass(frozen=True, slots=True)
class GenericInfo:
    """A device of any other kind that ``ip link add`` can make: macvlan, vlan, gre and so on.

    :param kind: as after ``type`` in ``ip-link(8)``.
    :param underlay: the interface that it sits on (``IFLA_LINK``, ``ip link add link``); ``None``: not our business.
    :param data: attributes of its kind and their values, under the names that ``linux/if_link.h`` and pyroute2 have
        for them: ``(("IFLA_MACVLAN_MODE", "bridge"),)``. What is not named is the kernel's choice. A device that
        differs in what is named is made anew.
    """

    kind: str
    underlay: str | None = None
    data: tuple[tuple[str, str | int], ...] = ()


@dataclass(frozen=True, slots=True)
class ForeignInfo:
    """A device of a kind that we don't create; only ever actual, never desired."""

    kind: str


LinkInfo: TypeAlias = VxlanInfo | TunInfo | GenericInfo | ForeignInfo


@dataclass(frozen=True, slots=True)
class Link:
    """A network device of ours.

    ``mac`` is ``xx:xx:xx:xx:xx:xx`` in lower case, ``None`` where the device has none or any will do; ``mtu`` in bytes.
    ``up`` is the administrative state. ``marked`` says that the device carries our mark (its alias, see
    :data:`OWNER`): a device of the right kind that flanneld left unmarked is adopted by marking it.
    """

    name: str
    info: LinkInfo
    mtu: int
    mac: str | None = None
    up: bool = True
    marked: bool = True

    def __str__(self) -> str:
        return f"link {self.name} type {self.info.kind} mtu {self.mtu}" + (f" address {self.mac}" if self.mac else "")

    @property
    def key(self) -> Key:
        """By name."""
        return (Kind.LINK, self.name, None)


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel parameter, named by its path below ``/proc/sys`` (``net/ipv4/ip_forward``).

    An ``optional`` one is left alone where the kernel has no such parameter.
    """

    path: str
    value: str
    optional: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"sysctl {self.path}={self.value}"

    @property
    def key(self) -> Key:
        """By path."""
        return (Kind.SYSCTL, self.path, None)


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link of ours."""

    link: str
    interface: IPInterface

    def __str__(self) -> str:
        return f"address {self.interface} dev {self.link}"

    @property
    def key(self) -> Key:
        """By link, address and prefix length."""
        return (Kind.ADDRESS, self.link, self.interface)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour: who has ``address`` on ``link`` (ARP or NDP table)."""

    link: str
    address: IPAddress
    mac: str

    def __str__(self) -> str:
        return f"neighbour {self.address} lladdr {self.mac} dev {self.link}"

    @property
    def key(self) -> Key:
        """By link and address."""
        return (Kind.NEIGHBOUR, self.link, self.address)


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A permanent forwarding entry of a VXLAN device: frames to ``mac`` go to the VTEP at ``remote``."""

    link: str
    mac: str
    remote: IPAddress

    def __str__(self) -> str:
        return f"fdb {self.mac} dst {self.remote} dev {self.link}"

    @property
    def key(self) -> Key:
        """By link and MAC address."""
        return (Kind.FDB, self.link, self.mac)


@dataclass(frozen=True, slots=True)
class WireguardDevice:
    """How a WireGuard device of ours is set up (``wg(8)``, set): its key, UDP port and mark of outer packets.

    The device itself is a :class:`Link` with ``GenericInfo("wireguard")``.

    :param private_key: 32 bytes; clamped (RFC 7748, 5) as the kernel keeps them. ``None``: it has none yet.
    """

    link: str
    private_key: Secret | None
    listen_port: int
    fwmark: int = 0

    def __post_init__(self) -> None:
        if self.private_key is not None:
            key = bytearray(self.private_key.reveal())
            key[0] &= 248
            key[31] = key[31] & 127 | 64
            object.__setattr__(self, "private_key", Secret(bytes(key)))

    def __str__(self) -> str:
        return f"wireguard {self.link} listen-port {self.listen_port}" + (f" fwmark {self.fwmark}" * bool(self.fwmark))

    @property
    def key(self) -> Key:
        """By link."""
        return (Kind.WIREGUARD, self.link, None)


class Endpoint(NamedTuple):
    """A UDP address of a peer's."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.address.version == 4 else f"[{self.address}]:{self.port}"


@dataclass(frozen=True, slots=True)
class WireguardPeer:
    """A peer of a WireGuard device (``wg(8)``, peer).

    :param public_key: 44 characters of base64.
    :param allowed_ips: what is sent to it and accepted from it; kept sorted, so that equal sets are equal.
    :param endpoint: where it is reached first. The kernel goes on to wherever the peer's packets come from, which is
        neither reported nor put right; a changed ``endpoint`` is written.
    :param keepalive: seconds between keepalives; 0 for none.
    """

    link: str
    public_key: str
    allowed_ips: tuple[IPNetwork, ...]
    endpoint: Endpoint | None = None
    preshared_key: Secret | None = None
    keepalive: int = 0

    def __post_init__(self) -> None:
        if len(self.allowed_ips) > 1:
            ordered = sorted(set(self.allowed_ips), key=lambda ip: (ip.version, ip.network_address, ip.prefixlen))
            object.__setattr__(self, "allowed_ips", tuple(ordered))

    def __str__(self) -> str:
        ips = ",".join(map(str, self.allowed_ips)) or "none"
        words = ["wireguard", self.link, "peer", self.public_key, "allowed-ips", ips]
        words += ["endpoint", str(self.endpoint)] if self.endpoint else []
        words += ["persistent-keepalive", str(self.keepalive)] if self.keepalive else []
        return " ".join(words)

    @property
    def key(self) -> Key:
        """By link and public key."""
        return (Kind.WIREGUARD_PEER, self.link, self.public_key)


@dataclass(frozen=True, slots=True)
class Route:
    """A route in the main table.

    ``link`` is ``None`` for a blackhole. ``onlink`` makes the kernel believe that ``gateway`` is on the link.
    ``metric`` is the route's priority, ``None`` for the family's default (IPv4 0, IPv6 1024); the default's number
    becomes ``None``, so that equal routes are equal.
    """

    destination: IPNetwork
    link: str | None
    gateway: IPAddress | None = None
    onlink: bool = False
    source: IPAddress | None = None
    metric: int | None = None

    def __post_init__(self) -> None:
        # The kernel stores 1024 where an IPv6 route says 0.
        if self.metric is not None and self.metric in ((0,) if self.destination.version == 4 else (0, 1024)):
            object.__setattr__(self, "metric", None)

    def __str__(self) -> str:
        words = ["route", "blackhole" if self.link is None else "", str(self.destination)]
        words += ["via", str(self.gateway)] if self.gateway else []
        words += ["dev", self.link] if self.link else []
        words += ["src", str(self.source)] if self.source else []
        words += ["metric", str(self.metric)] if self.metric is not None else []
        return " ".join(word for word in [*words, "onlink" if self.onlink else ""] if word)

    @property
    def effective_metric(self) -> int:
        """The priority the kernel stores."""
        if self.metric is not None:
            return self.metric
        return 0 if self.destination.version == 4 else 1024

    @property
    def key(self) -> Key:
        """By destination and metric."""
        return (Kind.ROUTE, self.destination, self.effective_metric)


KernelObject: TypeAlias = Link | Sysctl | Address | Neighbour | FdbEntry | WireguardDevice | WireguardPeer | Route


class DesiredState:
    """A set of kernel objects in which every key occurs once. Immutable; compares by content.

    :raises ValueError: two different objects have one key.
    """

    __slots__ = ("_objects",)

    def __init__(self, objects: Iterable[KernelObject] = ()) -> None:
        self._objects: dict[Key, KernelObject] = {}
        for item in objects:
            if self._objects.setdefault(item.key, item) != item:
                raise ValueError(f"two objects for one key: {self._objects[item.key]} and {item}")

    def __iter__(self) -> Iterator[KernelObject]:
        return iter(self._objects.values())

    def __len__(self) -> int:
        return len(self._objects)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DesiredState) and self._objects == other._objects

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DesiredState({list(self._objects.values())!r})"

    def get(self, key: Key) -> KernelObject | None:
        """The object under ``key``, if any."""
        return self._objects.get(key)

    def keys(self) -> Iterable[Key]:
        """The keys of all objects."""
        return self._objects.keys()
