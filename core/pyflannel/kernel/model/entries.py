"""What is on a device or beside it: addresses, neighbours, forwarding entries, queues, and kernel parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from types import MappingProxyType
from typing import Final, TypeAlias

from pyflannel.kernel.model.checks import (
    ADDRESS_RULE,
    INTERFACES,
    LINK_LAYER_RULE,
    LINK_RULE,
    MAC_RULE,
    U16,
    U24,
    U32,
    check_link,
    check_number,
    fits_a_link,
    is_address,
    is_mac,
    is_pairs,
    refuse,
)
from pyflannel.kernel.model.keys import Key, Kind, neighbour_key
from pyflannel.network.lease import IPAddress

__all__ = ["QDISC_HANDLE", "QDISC_OPTIONS", "Address", "FdbEntry", "IPInterface", "Neighbour", "Qdisc", "Sysctl"]

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

QDISC_HANDLE: Final = 0xF1A00000
"""The handle (``tc(8)``, f1a0:) by which we recognise queueing disciplines that we made on devices of ours."""

IPInterface: TypeAlias = IPv4Interface | IPv6Interface
"""An address with its network's length, of either family."""


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
            raise refuse(self, "path", "must lie below /proc/sys, as net/ipv4/ip_forward does")
        if type(value) is not str or not value.isascii() or "\0" in value:
            raise refuse(self, "value", "must be a text of ASCII characters")
        object.__setattr__(self, "value", " ".join(value.split()))

    def __str__(self) -> str:
        return f"sysctl {self.path}={self.value}"

    @property
    def key(self) -> Key:
        """By path."""
        return (Kind.SYSCTL, self.path, None)


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link of ours.

    ``peer`` is the other end's address, where there is one (``ip-address(8)``); the prefix length counts from there.
    """

    link: str
    interface: IPInterface
    peer: IPAddress | None = None

    def __post_init__(self) -> None:
        check_link(self, "link")
        if type(self.interface) not in INTERFACES or getattr(self.interface, "scope_id", None) is not None:
            raise refuse(self, "interface", "must be an IPv4Interface or IPv6Interface without a scope")
        if self.peer is not None and (not is_address(self.peer) or self.peer.version != self.interface.version):
            raise refuse(self, "peer", "must be an address without a scope, of the same family, or None")

    def __str__(self) -> str:
        if self.peer is None:
            return f"address {self.interface} dev {self.link}"
        return f"address {self.interface.ip} peer {self.peer}/{self.interface.network.prefixlen} dev {self.link}"

    @property
    def key(self) -> Key:
        """By link, address, prefix length and the other end."""
        return (Kind.ADDRESS, self.link, self.interface if self.peer is None else (self.interface, self.peer))


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
            raise refuse(self, "link", LINK_RULE)
        if not is_address(self.address):
            raise refuse(self, "address", ADDRESS_RULE)
        if not (is_mac(self.mac) if type(self.mac) is str else is_address(self.mac)):
            raise refuse(self, "mac", LINK_LAYER_RULE)

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
            raise refuse(self, "link", LINK_RULE)
        if type(self.mac) is not str or not is_mac(self.mac):
            raise refuse(self, "mac", MAC_RULE)
        if not is_address(self.remote):
            raise refuse(self, "remote", ADDRESS_RULE)
        if self.port is not None:
            check_number(self, "port", U16, 1)
        if self.vni is not None:
            check_number(self, "vni", U24)

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
        check_link(self, "link")
        if type(self.kind) is not str or not self.kind.isascii() or not fits_a_link(self.kind):
            raise refuse(self, "kind", "must be a kind of queueing disciplines as in tc(8)")
        if self.options != ():
            self._check_options()

    def _check_options(self) -> None:
        known, said = QDISC_OPTIONS.get(self.kind, {}), self.options
        if not is_pairs(said) or len(dict(said)) != len(said) or not all(name in known for name, _ in said):
            names = f"with one of {', '.join(known)} first each" if known else f"empty for the kind {self.kind}"
            raise refuse(self, "options", f"must be a tuple of pairs, {names}")
        for name, value in said:
            if type(value) is not int or not 0 <= value <= U32:
                raise refuse(self, "options", f"{name} must be a whole number between 0 and {U32}")
        if len(said) > 1:
            object.__setattr__(self, "options", tuple(sorted(said)))

    def __str__(self) -> str:
        return " ".join(["qdisc", self.kind, *(f"{name} {value}" for name, value in self.options), "dev", self.link])

    @property
    def key(self) -> Key:
        """By link."""
        return (Kind.QDISC, self.link, None)
