"""Network devices of ours, and what makes each kind of device what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

from pyflannel.kernel.model.checks import (
    ADDRESS_RULE,
    LINK_RULE,
    MAC_RULE,
    U16,
    U24,
    U32,
    check_flags,
    check_number,
    check_type,
    fits_a_link,
    is_address,
    is_hardware_address,
    is_pairs,
    refuse,
)
from pyflannel.kernel.model.keys import Key, Kind
from pyflannel.network.lease import IPAddress

__all__ = [
    "OWNER",
    "AttributeValue",
    "Attributes",
    "ForeignInfo",
    "GenericInfo",
    "Link",
    "LinkInfo",
    "TunInfo",
    "VxlanInfo",
]

OWNER: Final = "pyflannel"
"""The alias (``ip link set alias``) by which we recognise devices that we made."""

AttributeValue: TypeAlias = str | int | bytes | tuple[tuple[str | int, Any], ...]
"""What an attribute of a link says; a tuple of names and such values is nested (``NLA_F_NESTED``)."""

Attributes: TypeAlias = tuple[tuple[str | int, AttributeValue], ...]
"""Attributes of a link by name, or by number with the bytes that the kernel has for them."""


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
        check_number(self, "vni", U24)
        check_number(self, "port", U16)
        if not is_address(self.local):
            raise refuse(self, "local", ADDRESS_RULE)
        check_type(self, "underlay", str, LINK_RULE)
        check_flags(self, "gbp", "learning")


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
        check_flags(self, "vnet_hdr", "multi_queue")
        check_number(self, "queue_length", U32)


@dataclass(frozen=True, slots=True)
class GenericInfo:
    """A device of any other kind that ``ip link add`` can make: macvlan, vlan, gre and so on.

    :param kind: as after ``type`` in ``ip-link(8)``.
    :param underlay: the interface that it sits on (``IFLA_LINK``, ``ip link add link``); ``None``: not our business.
        Tunnels such as vxlan and gre sit on none: their packets go where the route to the remote end leads.
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
            raise refuse(self, "kind", "must be a kind of devices as after 'type' in ip-link(8)")
        if self.underlay is not None:
            check_type(self, "underlay", str, f"{LINK_RULE}, or None")
        if not is_pairs(self.data):
            raise refuse(self, "data", "must be a tuple of pairs, an attribute's name and its value each")

    @property
    def other_end(self) -> str | None:
        """The name of the device that is made together with this one: a veth's other end."""
        nested: Any = dict(self.data).get("VETH_INFO_PEER") if self.kind == "veth" else None
        name = dict(nested).get("IFLA_IFNAME") if isinstance(nested, tuple) else None
        return name if isinstance(name, str) else None


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
        of none, for a bridge takes all packets that its members get; ``None``: not our business.
    :param group: its number (``ip link set group``); the kernel's default is 0. ``None``: not our business.
    """

    name: str
    info: LinkInfo
    mtu: int
    mac: str | None = None
    up: bool = True
    marked: bool = True
    master: str | None = ""
    group: int | None = None

    def __post_init__(self) -> None:
        if type(self.name) is not str or not fits_a_link(self.name):
            raise refuse(self, "name", "must be 1 to 15 bytes, without '/', ':' and blanks")
        if not isinstance(self.info, VxlanInfo | TunInfo | GenericInfo | ForeignInfo):
            raise refuse(self, "info", "must be a VxlanInfo, TunInfo or GenericInfo")
        check_number(self, "mtu", U32)
        if self.mac is not None and (type(self.mac) is not str or not is_hardware_address(self.mac)):
            raise refuse(self, "mac", f"{MAC_RULE}, or None")
        check_flags(self, "up", "marked")
        if self.master is not None:
            check_type(self, "master", str, f"{LINK_RULE}, empty, or None")
            if self.master == self.name:
                raise refuse(self, "master", "must be another link")
        if self.group is not None:
            check_number(self, "group", U32)

    def __str__(self) -> str:
        words = ["link", self.name, "type", self.info.kind, "mtu", str(self.mtu)]
        words += ["address", self.mac] if self.mac else []
        words += ["master", "any" if self.master is None else self.master] if self.master != "" else []
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
