"""ipsec: containers' packets in ESP tunnels between the nodes, keyed by strongSwan's IKE daemon, charon.

Three parts. The whole network is routed into an *xfrm interface*, as into a tunnel; it drops whatever no policy and no
key is there for, so that nothing leaves in plaintext, whoever deletes what. *Policies*, three for each peer, say which
packets go through the tunnel to which node. The *keys* are charon's: it negotiates and renews them by IKEv2, and all
nodes prove by one preshared key that they belong to the network.

On the wire this is flannel's backend of this name: IKEv2 with its proposals, ESP in tunnel mode, the two subnets as
traffic selectors.

This module is the planner; :mod:`.dataplane` runs charon, :mod:`.connections` says what it is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Final

from pyflannel.backend import (
    XFRM_INTERFACES,
    Address,
    Backend,
    Capabilities,
    DataPlane,
    DesiredState,
    GenericInfo,
    IPAddress,
    KernelObject,
    Lease,
    Link,
    Node,
    PeerRejected,
    Route,
    Secret,
    Sysctl,
    Underlay,
    XfrmPolicy,
    forwarding,
    option,
)
from pyflannel.errors import ConfigError
from pyflannel_backends.peer_address import public_address
from pyflannel_backends.secret_file import pre_shared_key_path, read_secret
from pyflannel_backends.shut import shut

from .connections import Tunnel

__all__ = ["DEVICE", "IF_ID", "REQID", "IpsecBackend", "IpsecOptions"]

DEVICE: Final = "flannel-ipsec"
IF_ID: Final = XFRM_INTERFACES[0]
REQID: Final = 11
"""Flannel's: what ties policies to keys."""

SHORTEST_PSK: Final = 96
"""Characters; flannel asks for as many."""

LONGEST_PSK: Final = 4096

DEFAULT_PROPOSAL: Final = "aes128gcm16-sha256-prfsha256-ecp256"

OVERHEAD: Final = 77
"""Bytes that ESP over IPv4 adds at most, as flannel counts them: outer header (20), SPI and sequence (8), IV (16),
padding (15) and its trailer (2), ICV (16)."""

OVERHEAD_V6: Final = OVERHEAD + 20
OVERHEAD_UDP: Final = 8
OVERHEAD_ICV: Final = {"sha384": 8, "sha512": 16}
"""What longer ICVs add (RFC 4868, 2.6)."""

_is_proposal = re.compile(r"[a-z0-9_]+(?:-[a-z0-9_]+)*").fullmatch


@dataclass(frozen=True, slots=True)
class IpsecOptions:
    """The keys of ``Backend`` in the network document; all but ``PSKFile`` are flannel's."""

    udp_encap: bool = option("UDPEncap", False, "ESP in UDP, port 4500, for networks that pass nothing else")
    esp_proposal: str = option("ESPProposal", DEFAULT_PROPOSAL, "algorithms for ESP, in strongSwan's words")
    psk: str = option(
        "PSK",
        "",
        f"the key that all nodes share, at least {SHORTEST_PSK} characters; flannel's nodes need it here",
        secret=True,
    )
    psk_file: str = option("PSKFile", "", "the same, from a file of every node's own: the store never has it")

    def __post_init__(self) -> None:
        if not _is_proposal(self.esp_proposal):
            raise ConfigError(
                f"network config: Backend.ESPProposal is {self.esp_proposal!r}: must be algorithms in strongSwan's "
                f"words with hyphens between them, as in {DEFAULT_PROPOSAL}"
            )
        if pre_shared_key_path(self.psk, self.psk_file) is None and self.psk:
            _checked(self.psk.encode(), "network config: Backend.PSK")


class IpsecBackend(Backend[IpsecOptions]):
    """Containers' packets in IPsec, as flannel's backend of this name sends them."""

    name = "ipsec"
    Options = IpsecOptions
    capabilities = Capabilities(ipv4=True, ipv6=True, interface_public_ip=True, encrypts=True)

    def __init__(self, options: IpsecOptions) -> None:
        super().__init__(options)
        self.psk = _psk(options)

    def describe(self, node: Node) -> Mapping[str, str]:
        return {
            "esp_proposal": self.options.esp_proposal,
            "udp_encapsulation": "yes" if self.options.udp_encap else "no",
        }

    @property
    def tunnelled(self) -> bool:
        """Always: what comes in elsewhere is not from a peer, whoever it says it is."""
        return True

    def mtu(self, underlay: Underlay) -> int:
        longer = max((more for name, more in OVERHEAD_ICV.items() if name in self._integrity), default=0)
        overhead = (OVERHEAD if underlay.ipv6 is None else OVERHEAD_V6) + longer
        return underlay.mtu - overhead - (OVERHEAD_UDP if self.options.udp_encap else 0)

    @property
    def _integrity(self) -> frozenset[str]:
        """The words of the proposal that may be about the ICV."""
        return frozenset(self.options.esp_proposal.split("-"))

    def plan_node(self, node: Node) -> DesiredState:
        """The interface with the subnets' network addresses, and the whole network behind it."""
        data = (("IFLA_XFRM_IF_ID", IF_ID),)
        objects: list[KernelObject] = [Link(DEVICE, GenericInfo("xfrm", data=data), self.mtu(node.underlay))]
        objects.append(Sysctl(f"net/ipv6/conf/{DEVICE}/accept_ra", "0", optional=True))
        for version in node.network.versions:
            subnet, network = node.subnets.of(version), node.network.family(version)
            if subnet is None or network is None:
                continue
            objects += [
                forwarding(version),
                Address(DEVICE, ip_interface(f"{subnet.network_address}/{subnet.max_prefixlen}")),
                Route(network.network, DEVICE),
                shut(network.network),
            ]
        return DesiredState(objects)

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """Three policies for each of its subnets.

        :raises PeerRejected: it has no address that it can be reached by.
        """
        return DesiredState(policy for tunnel in self.tunnels(node, peer) for policy in _policies(tunnel))

    def tunnels(self, node: Node, peer: Lease) -> Iterator[Tunnel]:
        """A tunnel for each address family that both have; the outer packets are of the same family.

        :raises PeerRejected: see :meth:`plan_peer`.
        """
        for version in node.network.versions:
            own, theirs = node.subnets.of(version), peer.subnets.of(version)
            if own is None or theirs is None:
                continue
            yield Tunnel(
                local=_local(node, version),
                remote=public_address(peer, version),
                own=own,
                theirs=theirs,
                proposal=self.options.esp_proposal,
                encapsulated=self.options.udp_encap,
                if_id=IF_ID,
                reqid=REQID,
            )

    def start(self, node: Node) -> DataPlane:
        """Take over the charon that an earlier daemon left behind, or start one.

        :raises ConfigError: there is no charon here, or no library to speak to it.
        """
        from .charon import Charon
        from .dataplane import IpsecDataPlane

        settings = (self.options.esp_proposal, str(self.options.udp_encap))
        charon = Charon(node.state_dir / "ipsec", self.psk, DEVICE, settings)
        return IpsecDataPlane(lambda peer: tuple(self.tunnels(node, peer)), charon)


def _policies(tunnel: Tunnel) -> Iterator[XfrmPolicy]:
    own, theirs, local, remote = tunnel.own, tunnel.theirs, tunnel.local, tunnel.remote
    yield XfrmPolicy(own, theirs, "out", tunnel.if_id, local, remote, tunnel.reqid)
    for direction in ("in", "fwd"):
        yield XfrmPolicy(theirs, own, direction, tunnel.if_id, remote, local, tunnel.reqid)


def _local(node: Node, version: int) -> IPAddress:
    address = node.underlay.local(version)
    if address is None:
        raise PeerRejected(
            f"interface {node.underlay.interface} of this node has no IPv{version} address, from which its tunnel "
            "would begin"
        )
    return address


def _psk(options: IpsecOptions) -> Secret:
    path = pre_shared_key_path(options.psk, options.psk_file)
    if path is not None:
        return _checked(_read_psk(path), f"IPsec PSK file {path}")
    if not options.psk:
        raise ConfigError(
            f"network config: Backend has no PSK and no PSKFile: all nodes share a key of at least {SHORTEST_PSK} "
            "characters, as 'openssl rand -hex 48' makes one"
        )
    return Secret(options.psk.encode())


def _checked(key: bytes, what: str) -> Secret:
    if not SHORTEST_PSK <= len(key) <= LONGEST_PSK:
        raise ConfigError(
            f"{what} has {len(key)} bytes: must have between {SHORTEST_PSK} and {LONGEST_PSK}, as 'openssl rand -hex "
            "48' makes them"
        )
    return Secret(key)


def _read_psk(path: Path) -> bytes:
    content = read_secret(path, "IPsec PSK file", LONGEST_PSK + 2)
    if content is None:
        raise ConfigError(f"IPsec PSK file {path}: there is none; Backend.PSKFile says that every node has it there")
    return content.strip()
