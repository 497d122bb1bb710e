"""The rules as values: which packets pass, which are masqueraded, and which are let in or out at all, for a network,
this node's subnets and settings.

A pure function of frozen values; how a rule is written down is the ports' business. The rules for passing and
masquerading and their order are flannel's, so that flanneld and pyflannel take over each other's nodes without a packet
treated otherwise. Those for arriving and leaving are ours: an overlay address is believed of a packet that came in
where the route to that address leads out, or by a device of the overlay, and of no other; and where the overlay is
encrypted, no packet goes to an address in it by any other device.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_network
from typing import Final

from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPAddress, IPNetwork, Subnets

__all__ = [
    "EXIT_COMMENT",
    "FORWARD_COMMENT",
    "MASQ_COMMENT",
    "NO_RULES",
    "SOURCE_COMMENT",
    "FamilyRules",
    "FirewallRule",
    "Match",
    "Mode",
    "Rules",
    "Verdict",
    "plan",
]

FORWARD_COMMENT: Final = "flanneld forward"
MASQ_COMMENT: Final = "flanneld masq"
"""The comments that flanneld puts on its rules: our mark, too, so that either daemon knows the other's rules."""

SOURCE_COMMENT: Final = "pyflannel overlay sources"
EXIT_COMMENT: Final = "pyflannel overlay exits"
"""Our marks on the rules for arriving and for leaving packets, which flanneld has not."""

KUBE_PROXY_MARK: Final = 0x4000
"""kube-proxy's own masquerade mark; what carries it is masqueraded by kube-proxy's rules."""

LOOPBACK: Final = "lo"

_MULTICAST: Final = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}


class Mode(str, Enum):
    """Where the rules go (``--firewall``): where the host's are, into one of the two, or nowhere."""

    AUTO = "auto"
    NFTABLES = "nftables"
    IPTABLES = "iptables"
    NONE = "none"


class Verdict(str, Enum):
    """What happens to a packet that matches: it passes, leaves our chain, falls, or gets the node's address."""

    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    MASQUERADE = "masquerade"


@dataclass(frozen=True, slots=True)
class Match:
    """An address inside a network, or outside it."""

    network: IPNetwork
    negated: bool = False


@dataclass(frozen=True, slots=True)
class FirewallRule:
    """One rule.

    :param interface: what the packet came in by. ``exit``: what it goes out by.
    :param strayed: matches what came in by an interface by which no route leads back to its source.
    :param to_ipsec: matches what IPsec is about to encrypt.
    :param mark: matches if all its bits are set.
    :param fully_random: about a masquerade's source ports.
    """

    verdict: Verdict
    source: Match | None = None
    destination: Match | None = None
    interface: str = ""
    exit: str = ""
    strayed: bool = False
    to_ipsec: bool = False
    mark: int | None = None
    fully_random: bool = False


@dataclass(frozen=True, slots=True)
class FamilyRules:
    """The rules of one IP version, in order: ``forward`` for the forward hook, ``masquerade`` and ``departure`` for the
    postrouting hook, which what is forwarded and what the node itself sends pass alike, and ``arrival`` for the
    prerouting hook.
    """

    version: int
    forward: tuple[FirewallRule, ...] = ()
    masquerade: tuple[FirewallRule, ...] = ()
    arrival: tuple[FirewallRule, ...] = ()
    departure: tuple[FirewallRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of both IP versions; a version that the network does not use has none."""

    ipv4: FamilyRules = FamilyRules(4)
    ipv6: FamilyRules = FamilyRules(6)

    @property
    def each(self) -> tuple[FamilyRules, FamilyRules]:
        """Both, IPv4 first."""
        return self.ipv4, self.ipv6

    def of(self, version: int) -> FamilyRules:
        """Those of IP version 4 or 6."""
        return self.ipv4 if version == 4 else self.ipv6

    @property
    def any_forward(self) -> bool:
        """Whether some packets must pass."""
        return any(family.forward for family in self.each)

    @property
    def any_masquerade(self) -> bool:
        """Whether some packets must be masqueraded."""
        return any(family.masquerade for family in self.each)

    @property
    def any_arrival(self) -> bool:
        """Whether some packets must not come in."""
        return any(family.arrival for family in self.each)

    @property
    def any_departure(self) -> bool:
        """Whether some packets must not go out."""
        return any(family.departure for family in self.each)


NO_RULES: Final = Rules()
"""What a node needs that has no lease, or from which pyflannel is cleaned up."""


def plan(
    network: NetworkConfig,
    subnets: Subnets,
    *,
    forward: bool,
    masquerade: bool,
    fully_random: bool = True,
    entrances: Collection[str] = (),
    underlay: str = "",
    addresses: Collection[IPAddress] = (),
    exits: Collection[str] = (),
    ipsec: bool = False,
) -> Rules:
    """The rules of a node that holds ``subnets`` of ``network``.

    :param forward: accept what comes from or goes to the overlay.
    :param masquerade: give what leaves the overlay, and what enters it from outside, this node's address.
    :param fully_random: choose masqueraded source ports at random, which avoids clashes between simultaneous flows.
    :param entrances: the devices by which the overlay's packets come in. Others that claim to be from the overlay are
        dropped, unless the route to their source leads back where they came from, as to this node's containers. If
        there are none, all may come in.
    :param underlay: the interface by which nobody speaks for the overlay then, not even for an address that no route
        but the default one leads to.
    :param addresses: this node's own on the underlay. If one lies in the network, that covers the nodes, and others are
        heard by such addresses, too: those that can't be leased.
    :param exits: the devices by which alone packets leave for the overlay. Others to an address that may be leased to
        another node are dropped: they would be readable on the way. If there are none, all may go out.
    :param ipsec: such a device is IPsec's, which shows the firewall a packet twice: when it goes into the device, and
        when it is about to be encrypted for the underlay's interface.
    """

    def family(version: int) -> FamilyRules:
        config, subnet = network.family(version), subnets.of(version)
        if config is None or subnet is None:
            return FamilyRules(version)
        whole: IPNetwork = config.network
        nodes = config.unleasable if any(address in whole for address in addresses) else ()
        return FamilyRules(
            version,
            _forward(whole) if forward else (),
            _masquerade(whole, subnet, fully_random) if masquerade else (),
            _arrival(whole, nodes, entrances, underlay) if entrances else (),
            _departure(whole, (subnet, *config.unleasable), exits, ipsec) if exits else (),
        )

    return Rules(family(4), family(6))


def _forward(network: IPNetwork) -> tuple[FirewallRule, ...]:
    inside = Match(network)
    return FirewallRule(Verdict.ACCEPT, source=inside), FirewallRule(Verdict.ACCEPT, destination=inside)


def _arrival(
    network: IPNetwork, others: Collection[IPNetwork], entrances: Collection[str], underlay: str
) -> tuple[FirewallRule, ...]:
    """Where no subnet may be leased, ``others``, nodes may have their own addresses, by which they send what they have
    wrapped up. By the loopback interface, which may have the underlay's address, comes what this node sends to itself.
    """
    inside = Match(network)
    strangers = () if underlay == LOOPBACK else (FirewallRule(Verdict.DROP, source=inside, interface=underlay),)
    return (
        *(FirewallRule(Verdict.RETURN, interface=name) for name in sorted(entrances)),
        *(FirewallRule(Verdict.RETURN, source=Match(other)) for other in others),
        *strangers,
        FirewallRule(Verdict.DROP, source=inside, strayed=True),
    )


def _departure(
    network: IPNetwork, others: Collection[IPNetwork], exits: Collection[str], ipsec: bool
) -> tuple[FirewallRule, ...]:
    """What is for ``others``, such as this node's containers, and nodes whose own addresses lie in the network, where
    no subnet may be leased, is none of the overlay's.
    """
    return (
        *(FirewallRule(Verdict.RETURN, exit=name) for name in (*sorted(exits), LOOPBACK)),
        *(FirewallRule(Verdict.RETURN, destination=Match(other)) for other in others),
        *((FirewallRule(Verdict.RETURN, to_ipsec=True),) if ipsec else ()),
        FirewallRule(Verdict.DROP, destination=Match(network)),
    )


def _masquerade(network: IPNetwork, subnet: IPNetwork, fully_random: bool) -> tuple[FirewallRule, ...]:
    inside, outside, own = Match(network), Match(network, True), Match(subnet)
    not_multicast = Match(_MULTICAST[network.version], True)
    return (
        FirewallRule(Verdict.RETURN, mark=KUBE_PROXY_MARK),
        FirewallRule(Verdict.RETURN, own, inside),
        FirewallRule(Verdict.RETURN, inside, own),
        FirewallRule(Verdict.RETURN, outside, own),
        FirewallRule(Verdict.MASQUERADE, inside, not_multicast, fully_random=fully_random),
        FirewallRule(Verdict.MASQUERADE, outside, inside, fully_random=fully_random),
    )
