"""Tunnels that the kernel encrypts: WireGuard's devices and peers, and IPsec policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from pyflannel.kernel.model.checks import (
    ADDRESS_RULE,
    NETWORKS,
    U16,
    U32,
    check_flags,
    check_link,
    check_number,
    check_secret,
    is_address,
    is_public_key,
    refuse,
)
from pyflannel.kernel.model.keys import Key, Kind
from pyflannel.network.lease import IPAddress, IPNetwork
from pyflannel.small.secret import Secret

__all__ = ["XFRM_DIRECTIONS", "XFRM_INTERFACES", "Endpoint", "WireguardDevice", "WireguardPeer", "XfrmPolicy"]

XFRM_INTERFACES: Final = range(0x70790000, 0x707A0000)
"""The numbers (``if_id``) of xfrm interfaces that are ours: by them our policies are told from all others."""

XFRM_DIRECTIONS: Final[Mapping[str, int]] = MappingProxyType({"in": 0, "out": 1, "fwd": 2})
"""Which packets a policy is about, under the names of ``ip-xfrm(8)``, and their numbers (``XFRM_POLICY_*``)."""


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
        check_link(self, "link")
        check_secret(self, "private_key")
        check_number(self, "listen_port", U16)
        check_number(self, "fwmark", U32)
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
        check_link(self, "link")
        if type(self.public_key) is not str or not is_public_key(self.public_key):
            raise refuse(self, "public_key", "must be 32 bytes as 44 characters of base64")
        if type(self.allowed_ips) is not tuple or not all(type(ip) in NETWORKS for ip in self.allowed_ips):
            raise refuse(self, "allowed_ips", "must be a tuple of IPv4Network and IPv6Network")
        check_secret(self, "preshared_key")
        check_number(self, "keepalive", U16)
        if self.endpoint is not None:
            self._check_endpoint(self.endpoint)
        if len(self.allowed_ips) > 1:
            ordered = sorted(set(self.allowed_ips), key=lambda ip: (ip.version, ip.network_address, ip.prefixlen))
            object.__setattr__(self, "allowed_ips", tuple(ordered))

    def _check_endpoint(self, endpoint: Endpoint) -> None:
        if type(endpoint) is not Endpoint or not is_address(endpoint.address):
            raise refuse(self, "endpoint", f"must be an Endpoint; its address {ADDRESS_RULE}")
        if type(endpoint.port) is not int or not 0 <= endpoint.port <= U16:
            raise refuse(self, "endpoint", f"its port must be a whole number between 0 and {U16}")

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
        if type(self.source) not in NETWORKS:
            raise refuse(self, "source", "must be an IPv4Network or IPv6Network")
        if type(self.destination) is not type(self.source):
            raise refuse(self, "destination", "must be a network of the source's version")
        if type(self.direction) is not str or self.direction not in XFRM_DIRECTIONS:
            raise refuse(self, "direction", f"must be one of {', '.join(XFRM_DIRECTIONS)}")
        check_number(self, "if_id", XFRM_INTERFACES[-1], XFRM_INTERFACES[0])
        if not is_address(self.tunnel_source):
            raise refuse(self, "tunnel_source", ADDRESS_RULE)
        if not is_address(self.tunnel_destination) or self.tunnel_destination.version != self.tunnel_source.version:
            raise refuse(self, "tunnel_destination", f"{ADDRESS_RULE}, of the tunnel_source's version")
        check_number(self, "reqid", U32)
        check_number(self, "priority", U32)
        check_flags(self, "plain")

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
