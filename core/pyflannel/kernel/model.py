"""What a node's kernel should hold, as frozen values.

Every value has a ``key``: the tuple by which the kernel tells two such objects apart. Two values with one key can't
both be there; a value that differs from the actual one under the same key is a change in place. Links are named, not
numbered: an interface index belongs to one life of a device, a name to what we want. As text, a value reads like the
iproute2 command that would make it. A value that no kernel could hold is refused by its constructor with a
:class:`ValueError` that names the field, so that everything behind it can be encoded.

The order of :class:`Kind` is the order of creation (a route needs its link); deletion runs backwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from pyflannel.network.lease import IPAddress, IPNetwork
from pyflannel.small.secret import Secret

__all__ = [
    "MAIN_TABLE",
    "OWNER",
    "QDISC_OPTIONS",
    "ROUTE_METRICS",
    "ROUTE_PROTOCOL",
    "ROUTE_TYPES",
    "RULE_ACTIONS",
    "XFRM_DIRECTIONS",
    "XFRM_INTERFACES",
    "Address",
    "AttributeValue",
    "Attributes",
    "DesiredState",
    "Encapsulation",
    "Endpoint",
    "FdbEntry",
    "ForeignEncapsulation",
    "ForeignInfo",
    "GenericInfo",
    "IPInterface",
    "IpEncapsulation",
    "KernelObject",
    "Key",
    "Kind",
    "Link",
    "LinkInfo",
    "MplsEncapsulation",
    "Neighbour",
    "Qdisc",
    "Route",
    "Rule",
    "Seg6Encapsulation",
    "Sysctl",
    "TunInfo",
    "VxlanInfo",
    "WireguardDevice",
    "WireguardPeer",
    "XfrmPolicy",
    "neighbour_key",
    "route_key",
]

OWNER: Final = "pyflannel"
"""The alias (``ip link set alias``) by which we recognise devices that we made."""

ROUTE_PROTOCOL: Final = 241
"""The routing protocol number (``rtnetlink(7)``, rtm_protocol) of every route and every rule that we write."""

MAIN_TABLE: Final = 254
"""The routing table that everybody looks into (``ip-route(8)``, table main)."""

ROUTE_TYPES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "unicast": 1,
        "local": 2,
        "broadcast": 3,
        "anycast": 4,
        "multicast": 5,
        "blackhole": 6,
        "unreachable": 7,
        "prohibit": 8,
        "throw": 9,
    }
)
"""What a route does with packets, under the names of ``ip-route(8)``, and their numbers (``RTN_*``)."""

DISCARDING: Final = frozenset({"blackhole", "unreachable", "prohibit", "throw"})
"""The types of routes that lead nowhere."""

ROUTE_METRICS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "mtu": (2, 65520),
        "window": (3, 0xFFFFFFFF),
        "ssthresh": (6, 0xFFFFFFFF),
        "cwnd": (7, 0xFFFFFFFF),
        "advmss": (8, 65495),
        "reordering": (9, 0xFFFFFFFF),
        "hoplimit": (10, 255),
        "initcwnd": (11, 0xFFFFFFFF),
        "initrwnd": (14, 0xFFFFFFFF),
        "quickack": (15, 1),
    }
)
"""What can be said of the connections along a route, under the names of ``ip-route(8)``: each with its number
(``RTAX_*`` in ``linux/rtnetlink.h``) and the largest value that the kernel keeps as it is. The smallest is 1."""

RULE_ACTIONS: Final[Mapping[str, int]] = MappingProxyType(
    {"lookup": 1, "blackhole": 6, "unreachable": 7, "prohibit": 8}
)
"""What a rule does with the packets that it selects, under the names of ``ip-rule(8)``, and their numbers
(``FR_ACT_*``)."""

QDISC_OPTIONS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "pfifo": MappingProxyType({"limit": 0}),
        "bfifo": MappingProxyType({"limit": 0}),
        "fq": MappingProxyType(
            {
                "limit": 1,
                "flow_limit": 2,
                "quantum": 3,
                "initial_quantum": 4,
                "pacing": 5,
                "maxrate": 7,
                "refill_delay": 9,
                "orphan_mask": 10,
                "low_rate_threshold": 11,
                "ce_threshold": 12,
            }
        ),
        "fq_codel": MappingProxyType(
            {
                "target": 1,
                "limit": 2,
                "interval": 3,
                "ecn": 4,
                "flows": 5,
                "quantum": 6,
                "ce_threshold": 7,
                "drop_batch": 8,
                "memory_limit": 9,
            }
        ),
    }
)
"""The options that a queueing discipline of each kind can be given, under the names of its man page (``tc-fq(8)`` and
the like) and in the kernel's units (bytes, packets, microseconds, bytes a second), with their numbers
(``TCA_*`` in ``linux/pkt_sched.h``); 0: the kind has just that one."""

XFRM_INTERFACES: Final = range(0x70790000, 0x707A0000)
"""The numbers (``if_id``) of xfrm interfaces that are ours: by them our policies are told from all others."""

XFRM_DIRECTIONS: Final[Mapping[str, int]] = MappingProxyType({"in": 0, "out": 1, "fwd": 2})
"""Which packets a policy is about, under the names of ``ip-xfrm(8)``, and their numbers (``XFRM_POLICY_*``)."""

IPInterface: TypeAlias = IPv4Interface | IPv6Interface
"""An address with its network's length, of either family."""

AttributeValue: TypeAlias = str | int | bytes | tuple[tuple[str | int, Any], ...]
"""What an attribute of a link says; a tuple of names and such values is nested (``NLA_F_NESTED``)."""

Attributes: TypeAlias = tuple[tuple[str | int, AttributeValue], ...]
"""Attributes of a link by name, or by number with the bytes that the kernel has for them."""


_U8: Final = 0xFF
_U16: Final = 0xFFFF
_U24: Final = 0xFFFFFF
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_LOCAL_TABLE: Final = 255
_MOST_ATTRIBUTES: Final = 1 << 14
"""Two of the 16 bits of an attribute's number are flags."""


_INTERFACES: Final = frozenset({IPv4Interface, IPv6Interface})
_NETWORKS: Final = frozenset({IPv4Network, IPv6Network})

_is_mac = re.compile("[0-9a-f]{2}(?::[0-9a-f]{2}){5}").fullmatch
_is_hardware_address = re.compile("[0-9a-f]{2}(?::[0-9a-f]{2}){0,31}").fullmatch
_is_name = re.compile(r"(?!\.{1,2}$)[^/:\s\0]+", re.ASCII).fullmatch
_is_public_key = re.compile("[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=").fullmatch

_MAC_RULE: Final = "must be a MAC address as xx:xx:xx:xx:xx:xx in lower case"
_LINK_LAYER_RULE: Final = f"{_MAC_RULE}, or an IPv4Address or IPv6Address without a scope"
_ADDRESS_RULE: Final = "must be an IPv4Address or IPv6Address without a scope"
_LINK_RULE: Final = "must be the name of a link"


def _refuse(item: object, name: str, rule: str) -> ValueError:
    value = getattr(item, name)
    shown = "hidden" if isinstance(value, bytes | Secret) else repr(value)
    return ValueError(f"{type(item).__name__}: {name} is {shown if len(shown) <= 100 else shown[:100] + '...'}: {rule}")


def _is_address(value: object) -> bool:
    return type(value) is IPv4Address or (type(value) is IPv6Address and value.scope_id is None)


def _check_number(item: object, name: str, most: int, least: int = 0) -> None:
    value = getattr(item, name)
    if type(value) is not int or not least <= value <= most:
        raise _refuse(item, name, f"must be a whole number between {least} and {most}")


def _check_type(item: object, name: str, kind: type, rule: str) -> None:
    if type(getattr(item, name)) is not kind:
        raise _refuse(item, name, rule)


def _check_flags(item: object, *names: str) -> None:
    for name in names:
        _check_type(item, name, bool, "must be True or False")


def _check_link(item: object, name: str) -> None:
    value = getattr(item, name)
    if type(value) is not str or not value:
        raise _refuse(item, name, _LINK_RULE)


def _fits_a_link(name: str) -> bool:
    return _is_name(name) is not None and len(name.encode(errors="surrogateescape")) <= 15


def _check_secret(item: object, name: str) -> None:
    value = getattr(item, name)
    if value is not None and (type(value) is not Secret or len(value.reveal()) != 32):
        raise _refuse(item, name, "must be a Secret of 32 bytes, or None")


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
    RULE = 8
    QDISC = 9
    XFRM_POLICY = 10


Key: TypeAlias = tuple[Kind, object, object]
"""``(kind, ...)``: hashable, comparable only for equality.

Those of routes and neighbours hold numbers in place of addresses, whose hash is computed in Python each time: a start
looks up every key some twenty times.
"""


def _number(address: IPAddress) -> int:
    """An address as a number of its own among those of both families."""
    number = int(address)
    return number if address.version == 4 else number | _IPV6


_IPV6: Final = 1 << 128
"""Beyond all addresses."""


def neighbour_key(link: str, address: IPAddress) -> Key:
    """The key of a neighbour."""
    return (Kind.NEIGHBOUR, link, _number(address))


def route_key(destination: IPNetwork, metric: int, table: int) -> Key:
    """The key of a route; ``metric`` is the one that the kernel stores."""
    number = _number(destination.network_address) << 8 | destination.prefixlen
    return (Kind.ROUTE, number, metric if table == MAIN_TABLE else (metric, table))


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

    def __post_init__(self) -> None:
        _check_number(self, "vni", _U24)
        _check_number(self, "port", _U16)
        if not _is_address(self.local):
            raise _refuse(self, "local", _ADDRESS_RULE)
        _check_type(self, "underlay", str, _LINK_RULE)
        _check_flags(self, "gbp", "learning")


@dataclass(frozen=True, slots=True)
class TunInfo:
    """A persistent TUN device (``tun.rst`` in the kernel's documentation) that a userspace data plane attaches to.

    ``queue_length`` is how many packets may wait for it in each queue; the kernel drops what comes then.
    """

    kind: ClassVar[str] = "tun"
    vnet_hdr: bool = False
    multi_queue: bool = False
    queue_length: int = 500

    def __post_init__(self) -> None:
        _check_flags(self, "vnet_hdr", "multi_queue")
        _check_number(self, "queue_length", _U32)


@dataclass(frozen=True, slots=True)
class GenericInfo:
    """A device of any other kind that ``ip link add`` can make: macvlan, vlan, gre and so on.

    :param kind: as after ``type`` in ``ip-link(8)``.
    :param underlay: the interface that it sits on (``IFLA_LINK``, ``ip link add link``); ``None``: not our business.
    :param data: attributes of its kind and their values, under the names that ``linux/if_link.h`` and pyroute2 have
        for them: ``(("IFLA_MACVLAN_MODE", "bridge"),)``. What is not named is the kernel's choice. A device that
        differs in what is named is made anew. A value may be a tuple of such pairs again, as the other end of a veth
        is: ``(("VETH_INFO_PEER", (("IFLA_IFNAME", "wire0"),)),)``. Plan a link of that name, too, to set that end up.
        An attribute that pyroute2 does not know is named by its number, and its value is bytes in the kernel's form.
    """

    kind: str
    underlay: str | None = None
    data: Attributes = ()

    def __post_init__(self) -> None:
        if type(self.kind) is not str or not self.kind:
            raise _refuse(self, "kind", "must be a kind of devices as after 'type' in ip-link(8)")
        if self.underlay is not None:
            _check_type(self, "underlay", str, f"{_LINK_RULE}, or None")
        if not _is_pairs(self.data):
            raise _refuse(self, "data", "must be a tuple of pairs, an attribute's name and its value each")

    @property
    def other_end(self) -> str | None:
        """The name of the device that is made together with this one: a veth's other end."""
        nested: Any = dict(self.data).get("VETH_INFO_PEER") if self.kind == "veth" else None
        name = dict(nested).get("IFLA_IFNAME") if isinstance(nested, tuple) else None
        return name if isinstance(name, str) else None


def _is_pairs(value: Any) -> bool:
    """Whether a value is made of attributes' names and values, at any depth."""
    if type(value) is not tuple or not all(type(pair) is tuple and len(pair) == 2 for pair in value):
        return False
    return all(_is_attribute(name, item) for name, item in value)


def _is_attribute(name: object, value: object) -> bool:
    if type(name) is int:
        return 0 < name < _MOST_ATTRIBUTES and type(value) is bytes
    return type(name) is str and (type(value) is not tuple or _is_pairs(value))


@dataclass(frozen=True, slots=True)
class ForeignInfo:
    """A device of a kind that we don't create; only ever actual, never desired."""

    kind: str


LinkInfo: TypeAlias = VxlanInfo | TunInfo | GenericInfo | ForeignInfo
"""What kind of device a link is, and what makes it one."""


@dataclass(frozen=True, slots=True)
class Link:
    """A network device of ours.

    ``mac`` is ``xx:xx:xx:xx:xx:xx`` in lower case, ``None`` where the device has none or any will do; ``mtu`` in bytes.
    ``up`` is the administrative state. ``marked`` says that the device carries our mark (its alias, see
    :data:`OWNER`): a device of the right kind that flanneld left unmarked is adopted by marking it.

    :param master: the name of the device that this one is a part of: a bridge, a VRF (``ip link set master``). Empty:
        of none; ``None``: not our business.
    :param group: its number (``ip link set group``); the kernel's default is 0. ``None``: not our business.
    """

    name: str
    info: LinkInfo
    mtu: int
    mac: str | None = None
    up: bool = True
    marked: bool = True
    master: str | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if type(self.name) is not str or not _fits_a_link(self.name):
            raise _refuse(self, "name", "must be 1 to 15 bytes, without '/', ':' and blanks")
        if not isinstance(self.info, VxlanInfo | TunInfo | GenericInfo | ForeignInfo):
            raise _refuse(self, "info", "must be a VxlanInfo, TunInfo or GenericInfo")
        _check_number(self, "mtu", _U32)
        if self.mac is not None and (type(self.mac) is not str or not _is_hardware_address(self.mac)):
            raise _refuse(self, "mac", f"{_MAC_RULE}, or None")
        _check_flags(self, "up", "marked")
        if self.master is not None:
            _check_type(self, "master", str, f"{_LINK_RULE}, empty, or None")
            if self.master == self.name:
                raise _refuse(self, "master", "must be another link")
        if self.group is not None:
            _check_number(self, "group", _U32)

    def __str__(self) -> str:
        words = ["link", self.name, "type", self.info.kind, "mtu", str(self.mtu)]
        words += ["address", self.mac] if self.mac else []
        words += ["master", self.master] if self.master else []
        words += ["group", str(self.group)] if self.group is not None else []
        return " ".join(words)

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the links that have to be there first."""
        info = self.info
        underlay = info.underlay if isinstance(info, VxlanInfo | GenericInfo) else None
        return tuple(name for name in (underlay, self.master) if name)

    @property
    def key(self) -> Key:
        """By name."""
        return (Kind.LINK, self.name, None)


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel parameter, named by its path below ``/proc/sys`` (``net/ipv4/ip_forward``).

    An ``optional`` one is left alone where the kernel has no such parameter, or where ``/proc/sys`` is read-only, as it
    is in most containers. Blanks in ``value`` become single spaces, as which they are read.
    """

    path: str
    value: str
    optional: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        path, value = self.path, self.value
        if type(path) is not str or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise _refuse(self, "path", "must lie below /proc/sys, as net/ipv4/ip_forward does")
        if type(value) is not str or not value.isascii() or "\0" in value:
            raise _refuse(self, "value", "must be a text of ASCII characters")
        object.__setattr__(self, "value", " ".join(value.split()))

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

    def __post_init__(self) -> None:
        _check_link(self, "link")
        if type(self.interface) not in _INTERFACES or getattr(self.interface, "scope_id", None) is not None:
            raise _refuse(self, "interface", "must be an IPv4Interface or IPv6Interface without a scope")

    def __str__(self) -> str:
        return f"address {self.interface} dev {self.link}"

    @property
    def key(self) -> Key:
        """By link, address and prefix length."""
        return (Kind.ADDRESS, self.link, self.interface)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour: who has ``address`` on ``link`` (ARP or NDP table).

    ``mac`` is its link-layer address: ``xx:xx:xx:xx:xx:xx`` in lower case. Tunnels with many ends have addresses of the
    underlay in its place, IPv4 ones where the device is of kind ``gre``.
    """

    link: str
    address: IPAddress
    mac: str | IPAddress

    def __post_init__(self) -> None:
        if type(self.link) is not str or not self.link:
            raise _refuse(self, "link", _LINK_RULE)
        if not _is_address(self.address):
            raise _refuse(self, "address", _ADDRESS_RULE)
        if not (_is_mac(self.mac) if type(self.mac) is str else _is_address(self.mac)):
            raise _refuse(self, "mac", _LINK_LAYER_RULE)

    def __str__(self) -> str:
        return f"neighbour {self.address} lladdr {self.mac} dev {self.link}"

    @property
    def key(self) -> Key:
        """By link and address."""
        return neighbour_key(self.link, self.address)


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A permanent forwarding entry of a VXLAN device: frames to ``mac`` go to the VTEP at ``remote``.

    :param port: the VTEP's UDP port, and ``vni`` its network, where they differ from the device's own, which are left
        out: ``None``.
    """

    link: str
    mac: str
    remote: IPAddress
    port: int | None = None
    vni: int | None = None

    def __post_init__(self) -> None:
        if type(self.link) is not str or not self.link:
            raise _refuse(self, "link", _LINK_RULE)
        if type(self.mac) is not str or not _is_mac(self.mac):
            raise _refuse(self, "mac", _MAC_RULE)
        if not _is_address(self.remote):
            raise _refuse(self, "remote", _ADDRESS_RULE)
        if self.port is not None:
            _check_number(self, "port", _U16, 1)
        if self.vni is not None:
            _check_number(self, "vni", _U24)

    def __str__(self) -> str:
        words = ["fdb", self.mac, "dst", str(self.remote)]
        words += ["port", str(self.port)] if self.port is not None else []
        words += ["vni", str(self.vni)] if self.vni is not None else []
        return " ".join([*words, "dev", self.link])

    @property
    def way(self) -> tuple[IPAddress, int | None, int | None]:
        """Where its frames are sent."""
        return (self.remote, self.port, self.vni)

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
        _check_link(self, "link")
        _check_secret(self, "private_key")
        _check_number(self, "listen_port", _U16)
        _check_number(self, "fwmark", _U32)
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
        _check_link(self, "link")
        if type(self.public_key) is not str or not _is_public_key(self.public_key):
            raise _refuse(self, "public_key", "must be 32 bytes as 44 characters of base64")
        if type(self.allowed_ips) is not tuple or not all(type(ip) in _NETWORKS for ip in self.allowed_ips):
            raise _refuse(self, "allowed_ips", "must be a tuple of IPv4Network and IPv6Network")
        _check_secret(self, "preshared_key")
        _check_number(self, "keepalive", _U16)
        if self.endpoint is not None:
            self._check_endpoint(self.endpoint)
        if len(self.allowed_ips) > 1:
            ordered = sorted(set(self.allowed_ips), key=lambda ip: (ip.version, ip.network_address, ip.prefixlen))
            object.__setattr__(self, "allowed_ips", tuple(ordered))

    def _check_endpoint(self, endpoint: Endpoint) -> None:
        if type(endpoint) is not Endpoint or not _is_address(endpoint.address):
            raise _refuse(self, "endpoint", f"must be an Endpoint; its address {_ADDRESS_RULE}")
        if type(endpoint.port) is not int or not 0 <= endpoint.port <= _U16:
            raise _refuse(self, "endpoint", f"its port must be a whole number between 0 and {_U16}")

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
class XfrmPolicy:
    """Packets between two networks go through an IPsec tunnel between two addresses (RFC 4301, 4.4.1; ``ip-xfrm(8)``,
    policy): ESP in tunnel mode, and nothing else.

    It concerns packets that leave or enter by the xfrm interface with the number ``if_id``, which is a :class:`Link`
    with ``GenericInfo("xfrm", data=(("IFLA_XFRM_IF_ID", if_id),))``. Such an interface drops a packet for which there
    is no policy, or a policy and no keys: nothing leaves it unencrypted. The keys (``ip xfrm state``) are what an IKE
    daemon negotiates; a plan can't hold them (docs/decisions/0047).

    :param direction: one of :data:`XFRM_DIRECTIONS`. A tunnel needs one of each: ``out`` is how packets are sent,
        ``in`` and ``fwd`` how they must have come, to this node itself and to what lies behind it.
    :param if_id: one of :data:`XFRM_INTERFACES`.
    :param tunnel_source: the addresses of the outer packets, of either version.
    :param reqid: the keys must have this number, too; 0: any.
    :param priority: of two that fit, the one with the smaller number counts.
    :param plain: only ever actual when false: there is something else about it.
    """

    source: IPNetwork
    destination: IPNetwork
    direction: str
    if_id: int
    tunnel_source: IPAddress
    tunnel_destination: IPAddress
    reqid: int = 0
    priority: int = 0
    plain: bool = True

    def __post_init__(self) -> None:
        if type(self.source) not in _NETWORKS:
            raise _refuse(self, "source", "must be an IPv4Network or IPv6Network")
        if type(self.destination) is not type(self.source):
            raise _refuse(self, "destination", "must be a network of the source's version")
        if type(self.direction) is not str or self.direction not in XFRM_DIRECTIONS:
            raise _refuse(self, "direction", f"must be one of {', '.join(XFRM_DIRECTIONS)}")
        _check_number(self, "if_id", XFRM_INTERFACES[-1], XFRM_INTERFACES[0])
        if not _is_address(self.tunnel_source):
            raise _refuse(self, "tunnel_source", _ADDRESS_RULE)
        if not _is_address(self.tunnel_destination) or self.tunnel_destination.version != self.tunnel_source.version:
            raise _refuse(self, "tunnel_destination", f"{_ADDRESS_RULE}, of the tunnel_source's version")
        _check_number(self, "reqid", _U32)
        _check_number(self, "priority", _U32)
        _check_flags(self, "plain")

    def __str__(self) -> str:
        words = ["xfrm policy src", str(self.source), "dst", str(self.destination), "dir", self.direction]
        words += ["priority", str(self.priority)] if self.priority else []
        words += ["if_id", hex(self.if_id), "tmpl src", str(self.tunnel_source), "dst", str(self.tunnel_destination)]
        words += ["proto esp"] + (["reqid", str(self.reqid)] if self.reqid else []) + ["mode tunnel"]
        return " ".join(words if self.plain else [*words, "and more"])

    @property
    def far_end(self) -> IPNetwork:
        """The network at the tunnel's other end."""
        return self.destination if self.direction == "out" else self.source

    @property
    def key(self) -> Key:
        """By direction, interface and the two networks."""
        return (Kind.XFRM_POLICY, (self.direction, self.if_id), (self.source, self.destination))


@dataclass(frozen=True, slots=True)
class IpEncapsulation:
    """Packets along a route go into a tunnel to ``destination`` (``ip-route(8)``, encap ip and ip6).

    The route's link must be a device that asks each packet for its tunnel: one of kind vxlan, geneve, gre or ip6gre
    that is ``external`` (``IFLA_*_COLLECT_METADATA``).

    :param destination: the tunnel's other end; its version is that of the outer header.
    :param id: the tunnel's number, as a VNI or a key of GRE.
    :param source: our end; ``None``: the kernel's choice.
    :param ttl: of the outer header, IPv6's hop limit; 0: the kernel's choice.
    :param tos: of the outer header, IPv6's traffic class.
    :param key: whether a header that can do without the number, as GRE's can, has it.
    """

    destination: IPAddress
    id: int = 0
    source: IPAddress | None = None
    ttl: int = 0
    tos: int = 0
    key: bool = False

    def __post_init__(self) -> None:
        if not _is_address(self.destination):
            raise _refuse(self, "destination", _ADDRESS_RULE)
        _check_number(self, "id", _U64)
        if self.source is not None and (
            not _is_address(self.source) or self.source.version != self.destination.version or not int(self.source)
        ):
            raise _refuse(self, "source", "must be an address of the destination's version, or None")
        _check_number(self, "ttl", _U8)
        _check_number(self, "tos", _U8)
        _check_flags(self, "key")

    @property
    def kind(self) -> str:
        """As after ``encap`` in ``ip-route(8)``."""
        return "ip" if self.destination.version == 4 else "ip6"

    def __str__(self) -> str:
        words = [self.kind, "id", str(self.id)] + (["src", str(self.source)] if self.source else [])
        words += ["dst", str(self.destination)]
        names = ("ttl", "tos") if self.destination.version == 4 else ("hoplimit", "tc")
        values = (str(self.ttl) if self.ttl else "", f"{self.tos:#x}" if self.tos else "")
        words += [f"{name} {value}" for name, value in zip(names, values, strict=True) if value]
        return " ".join([*words, "key"] if self.key else words)


@dataclass(frozen=True, slots=True)
class Seg6Encapsulation:
    """Packets along a route visit ``segments`` one after the other (RFC 8754; ``ip-route(8)``, encap seg6).

    :param segments: IPv6 addresses, the first one to visit first.
    :param inline: the list goes into the packet's own IPv6 header, and not into one around it.
    """

    kind: ClassVar[str] = "seg6"
    segments: tuple[IPv6Address, ...]
    inline: bool = False

    def __post_init__(self) -> None:
        segments = self.segments
        if type(segments) is not tuple or not 1 <= len(segments) <= MOST_SEGMENTS or not all(map(_is_ipv6, segments)):
            raise _refuse(self, "segments", f"must be a tuple of 1 to {MOST_SEGMENTS} IPv6Addresses without a scope")
        _check_flags(self, "inline")

    def __str__(self) -> str:
        return f"seg6 mode {'inline' if self.inline else 'encap'} segs {','.join(map(str, self.segments))}"


def _is_ipv6(value: object) -> bool:
    return type(value) is IPv6Address and value.scope_id is None


@dataclass(frozen=True, slots=True)
class MplsEncapsulation:
    """Packets along a route get ``labels`` (RFC 3032; ``ip-route(8)``, encap mpls).

    :param labels: the outermost first.
    :param ttl: of the labels; 0: the packet's own.
    """

    kind: ClassVar[str] = "mpls"
    labels: tuple[int, ...]
    ttl: int = 0

    def __post_init__(self) -> None:
        labels = self.labels
        if type(labels) is not tuple or not 1 <= len(labels) <= MOST_LABELS or not all(map(_is_label, labels)):
            rule = (
                f"must be a tuple of 1 to {MOST_LABELS} whole numbers between 0 and {MOST_LABEL}, without 3 (implicit)"
            )
            raise _refuse(self, "labels", rule)
        _check_number(self, "ttl", _U8)

    def __str__(self) -> str:
        return f"mpls {'/'.join(map(str, self.labels))}" + (f" ttl {self.ttl}" if self.ttl else "")


def _is_label(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_LABEL and value != IMPLICIT_NULL


MOST_LABEL: Final = (1 << 20) - 1
IMPLICIT_NULL: Final = 3
"""The label that routers tell each other and never put on a packet (RFC 3032, 2.1)."""

MOST_LABELS: Final = 30
"""As many as the kernel takes (``MAX_NEW_LABELS`` in ``net/mpls/internal.h``)."""


MOST_SEGMENTS: Final = 126
"""As many as the length of a routing header can say, with one to spare for the destination of an inline one."""


@dataclass(frozen=True, slots=True)
class ForeignEncapsulation:
    """An encapsulation that we don't write, or with details that we don't; only ever actual, never desired."""

    kind: str

    def __str__(self) -> str:
        return f"{self.kind} of somebody's"


Encapsulation: TypeAlias = IpEncapsulation | Seg6Encapsulation | MplsEncapsulation | ForeignEncapsulation
"""What a route does to packets before it sends them (``ip-route(8)``, encap)."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route, in the main table if it names no other.

    ``link`` is ``None`` where packets go nowhere: for a blackhole, or what ``type`` says. ``onlink`` makes the kernel
    believe that ``gateway`` is on the link. ``metric`` is the route's priority, ``None`` for the family's default (IPv4
    0, IPv6 1024); the default's number becomes ``None``, so that equal routes are equal.

    :param type: what it does with packets (:data:`ROUTE_TYPES`). Empty: unicast, or blackhole without a link; these
        become empty, so that equal routes are equal.
    :param table: the number of its routing table. Those of other tables than main need a :class:`Rule` or a VRF to be
        asked.
    :param metrics: what is said of the connections along it (:data:`ROUTE_METRICS`): ``(("mtu", 1400),)``; kept sorted.
    :param encapsulation: what is done to the packets.
    """

    destination: IPNetwork
    link: str | None
    gateway: IPAddress | None = None
    onlink: bool = False
    source: IPAddress | None = None
    metric: int | None = None
    type: str = ""
    table: int = MAIN_TABLE
    metrics: tuple[tuple[str, int], ...] = ()
    encapsulation: Encapsulation | None = None

    def __post_init__(self) -> None:
        if type(self.destination) not in _NETWORKS:
            raise _refuse(self, "destination", "must be an IPv4Network or IPv6Network")
        if self.link is not None and (type(self.link) is not str or not self.link):
            raise _refuse(self, "link", f"{_LINK_RULE}, or None for a blackhole")
        if not (self.gateway is None or _is_address(self.gateway)):
            raise _refuse(self, "gateway", f"{_ADDRESS_RULE}, or None")
        if not (self.source is None or _is_address(self.source)):
            raise _refuse(self, "source", f"{_ADDRESS_RULE}, or None")
        if type(self.onlink) is not bool:
            raise _refuse(self, "onlink", "must be True or False")
        if self.metric is not None:
            _check_number(self, "metric", _U32)
        # The kernel stores 1024 where an IPv6 route says 0.
        if self.metric is not None and self.metric in ((0,) if self.destination.version == 4 else (0, 1024)):
            object.__setattr__(self, "metric", None)
        if type(self.table) is not int or (self.type, self.table, self.metrics, self.encapsulation) != _PLAIN:
            self._check_details()

    def _check_details(self) -> None:
        """What most routes don't have."""
        if self.type != "":
            self._check_route_type()
        _check_table(self)
        if self.metrics != ():
            self._check_metrics()
        if self.encapsulation is not None:
            self._check_encapsulation()

    def _check_route_type(self) -> None:
        if type(self.type) is not str or self.type not in ROUTE_TYPES:
            raise _refuse(self, "type", f"must be empty or one of {', '.join(ROUTE_TYPES)}")
        if (self.type in DISCARDING) is not (self.link is None):
            raise _refuse(self, "type", "must be one that leads nowhere if there is no link, and only then")
        if self.type in ("unicast", "blackhole"):
            object.__setattr__(self, "type", "")

    def _check_metrics(self) -> None:
        said = self.metrics
        if not _is_pairs(said) or len(dict(said)) != len(said) or not all(name in ROUTE_METRICS for name, _ in said):
            raise _refuse(
                self, "metrics", f"must be a tuple of pairs, with one of {', '.join(ROUTE_METRICS)} first each"
            )
        for name, value in said:
            most = ROUTE_METRICS[name][1]
            if type(value) is not int or not 1 <= value <= most:
                raise _refuse(self, "metrics", f"{name} must be a whole number between 1 and {most}")
        if len(said) > 1:
            object.__setattr__(self, "metrics", tuple(sorted(said)))

    def _check_encapsulation(self) -> None:
        said = self.encapsulation
        if not isinstance(said, IpEncapsulation | Seg6Encapsulation | MplsEncapsulation | ForeignEncapsulation):
            rule = "must be an IpEncapsulation, Seg6Encapsulation or MplsEncapsulation, or None"
            raise _refuse(self, "encapsulation", rule)
        if self.link is None:
            raise _refuse(self, "encapsulation", "must be None where packets go nowhere")
        if isinstance(said, Seg6Encapsulation) and said.inline and self.destination.version == 4:
            raise _refuse(self, "encapsulation", "must not be inline: IPv4 has no such header")

    def __str__(self) -> str:
        words = ["route", self.type or ("blackhole" if self.link is None else ""), str(self.destination)]
        words += ["encap", str(self.encapsulation)] if self.encapsulation else []
        words += ["via", str(self.gateway)] if self.gateway else []
        words += ["dev", self.link] if self.link else []
        words += ["src", str(self.source)] if self.source else []
        words += ["metric", str(self.metric)] if self.metric is not None else []
        words += ["table", str(self.table)] if self.table != MAIN_TABLE else []
        words += [f"{name} {value}" for name, value in self.metrics]
        return " ".join(word for word in [*words, "onlink" if self.onlink else ""] if word)

    @property
    def effective_metric(self) -> int:
        """The priority the kernel stores."""
        if self.metric is not None:
            return self.metric
        return 0 if self.destination.version == 4 else 1024

    @property
    def effective_type(self) -> str:
        """The type the kernel stores."""
        return self.type or ("blackhole" if self.link is None else "unicast")

    @property
    def key(self) -> Key:
        """By destination, metric and table."""
        return route_key(self.destination, self.effective_metric, self.table)


_PLAIN: Final = ("", MAIN_TABLE, (), None)
"""Type, table, metrics and encapsulation of most routes."""


def _check_table(item: Any) -> None:
    _check_number(item, "table", _U32, 1)
    if item.table == _LOCAL_TABLE:
        raise _refuse(item, "table", "must not be the kernel's own")


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy rule (``ip-rule(8)``): which routing table is asked for which packets, before the main table is.

    Every rule of ours has our protocol number, by which it is told from others', whatever they say.

    :param version: 4 or 6, of the packets.
    :param priority: rules are asked in the order of these numbers; that of the main table has 32766. Of several rules
        with one number nobody can say which is asked first.
    :param source: where selected packets come from, and ``destination`` where they go; ``None`` or all addresses: any.
    :param iif: the name of the device that they come in by, ``lo`` for the node's own; empty: any. It need not exist.
    :param oif: the name of the device to which a socket is bound; empty: any.
    :param mark: what the packet's mark is in the bits of ``mask``; ``None``: any.
    :param inverted: all other packets are selected (``not``).
    :param action: what is done with them (:data:`RULE_ACTIONS`).
    :param table: the routing table that is looked up; 0 for the other actions.
    :param suppress_prefixlength: a route that this table answers with is passed over if its prefix has no more bits
        than that: 0 passes over default routes. ``None``: each counts.
    """

    version: int
    priority: int
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    iif: str = ""
    oif: str = ""
    mark: int | None = None
    mask: int = _U32
    inverted: bool = False
    action: str = "lookup"
    table: int = 0
    suppress_prefixlength: int | None = None

    def __post_init__(self) -> None:
        if type(self.version) is not int or self.version not in (4, 6):
            raise _refuse(self, "version", "must be 4 or 6")
        _check_number(self, "priority", _U32, 1)
        for name in ("source", "destination"):
            self._check_network(name)
        for name in ("iif", "oif"):
            value = getattr(self, name)
            if type(value) is not str or (value and not _fits_a_link(value)):
                raise _refuse(self, name, f"{_LINK_RULE}, or empty")
        self._check_mark()
        _check_flags(self, "inverted")
        self._check_action()

    def _check_network(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if type(value) not in _NETWORKS or value.version != self.version or getattr(value, "scope_id", None):
            raise _refuse(self, name, "must be an IPv4Network or IPv6Network of the rule's version, or None")
        if not value.prefixlen:  # the kernel does not tell it from none
            object.__setattr__(self, name, None)

    def _check_mark(self) -> None:
        _check_number(self, "mask", _U32, 1)
        if self.mark is not None:
            _check_number(self, "mark", _U32)
        elif self.mask != _U32:
            raise _refuse(self, "mask", "must be left out where there is no mark")

    def _check_action(self) -> None:
        if type(self.action) is not str or self.action not in RULE_ACTIONS:
            raise _refuse(self, "action", f"must be one of {', '.join(RULE_ACTIONS)}")
        if self.action == "lookup":
            _check_table(self)
        elif self.table != 0 or type(self.table) is not int:
            raise _refuse(self, "table", "must be 0 where no table is looked up")
        if self.suppress_prefixlength is not None:
            _check_number(self, "suppress_prefixlength", 32 if self.version == 4 else 128)
            if self.action != "lookup":
                raise _refuse(self, "suppress_prefixlength", "must be None where no table is looked up")

    def __str__(self) -> str:
        words = ["rule", "not"] if self.inverted else ["rule"]
        words += ["from", str(self.source or "all")]
        words += ["to", str(self.destination)] if self.destination else []
        if self.mark is not None:
            words += ["fwmark", f"{self.mark:#x}" + (f"/{self.mask:#x}" if self.mask != _U32 else "")]
        words += ["iif", self.iif] if self.iif else []
        words += ["oif", self.oif] if self.oif else []
        words += ["lookup", str(self.table)] if self.action == "lookup" else [self.action]
        if self.suppress_prefixlength is not None:
            words += ["suppress_prefixlength", str(self.suppress_prefixlength)]
        return " ".join([*words, "priority", str(self.priority), f"(IPv{self.version})"])

    @property
    def key(self) -> Key:
        """By all that the kernel tells rules apart by: everything but whether it is inverted."""
        ends = (self.source, self.destination, self.iif, self.oif, self.mark, self.mask)
        does = (self.action, self.table, self.suppress_prefixlength)
        return (Kind.RULE, (self.version, self.priority), (*ends, *does))


@dataclass(frozen=True, slots=True)
class Qdisc:
    """How packets queue for a link of ours: its root queueing discipline (``tc(8)``).

    Where nobody plans one, the kernel's choice stays, and so does what somebody else has put there; where one is
    planned, it takes the place of whatever is there. Ours is known by its handle (:data:`QDISC_HANDLE`).

    There is no ``clsact`` or ``ingress``: these do nothing without filters, which whoever loads them adds together with
    them.

    :param kind: as in ``tc qdisc add ... root KIND``: ``noqueue``, ``pfifo``, ``fq``, ``fq_codel`` or any other one.
    :param options: of :data:`QDISC_OPTIONS`; what is not named is the kernel's choice. A kind that has none there can't
        be given any.
    """

    link: str
    kind: str
    options: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        _check_link(self, "link")
        if type(self.kind) is not str or not self.kind.isascii() or not _fits_a_link(self.kind):
            raise _refuse(self, "kind", "must be a kind of queueing disciplines as in tc(8)")
        if self.options != ():
            self._check_options()

    def _check_options(self) -> None:
        known, said = QDISC_OPTIONS.get(self.kind, {}), self.options
        if not _is_pairs(said) or len(dict(said)) != len(said) or not all(name in known for name, _ in said):
            names = f"with one of {', '.join(known)} first each" if known else f"empty for the kind {self.kind}"
            raise _refuse(self, "options", f"must be a tuple of pairs, {names}")
        for name, value in said:
            if type(value) is not int or not 0 <= value <= _U32:
                raise _refuse(self, "options", f"{name} must be a whole number between 0 and {_U32}")
        if len(said) > 1:
            object.__setattr__(self, "options", tuple(sorted(said)))

    def __str__(self) -> str:
        return " ".join(["qdisc", self.kind, *(f"{name} {value}" for name, value in self.options), "dev", self.link])

    @property
    def key(self) -> Key:
        """By link."""
        return (Kind.QDISC, self.link, None)


QDISC_HANDLE: Final = 0xF1A00000
"""The handle (``tc(8)``, f1a0:) by which we recognise queueing disciplines that we made on devices of ours."""

KernelObject: TypeAlias = (
    Link | Sysctl | Address | Neighbour | FdbEntry | WireguardDevice | WireguardPeer | Route | Rule | Qdisc | XfrmPolicy
)
"""Whatever a plan may hold."""


class DesiredState:
    """A set of kernel objects in which every key occurs once. Immutable; compares by content.

    :raises ValueError: two different objects have one key.
    """

    __slots__ = ("_by_key", "_objects")

    def __init__(self, objects: Iterable[KernelObject] = ()) -> None:
        self._objects = tuple(objects)
        self._by_key: dict[Key, KernelObject] | None = None
        if len(set(map(type, self._objects))) < len(self._objects):  # or no two can have one key
            self._objects = tuple(self._keyed().values())

    def _keyed(self) -> dict[Key, KernelObject]:
        """The objects by key."""
        if self._by_key is None:
            found: dict[Key, KernelObject] = {}
            for item in self._objects:
                first = found.setdefault(item.key, item)
                if first is not item and first != item:
                    raise ValueError(f"two objects for one key: {first} and {item}")
            self._by_key = found
        return self._by_key

    def __iter__(self) -> Iterator[KernelObject]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DesiredState) and self._keyed() == other._keyed()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DesiredState({list(self._objects)!r})"

    def get(self, key: Key) -> KernelObject | None:
        """The object under ``key``, if any."""
        return self._keyed().get(key)

    def keys(self) -> Iterable[Key]:
        """The keys of all objects."""
        return self._keyed().keys()
