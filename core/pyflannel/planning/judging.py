"""Why a lease can't be used, whatever the backend: where it lies, where it leads to, whose it is.

Pure functions of the network, this node's place in it and one lease. Each answers with the reason in words, empty if
there is none. What only a backend can say of a lease, and which of two leases has what both claim, is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Protocol

from pyflannel.backend import Node, Published
from pyflannel.errors import MalformedError
from pyflannel.network.document import FamilyConfig, NetworkConfig
from pyflannel.network.lease import IPAddress, IPNetwork, Lease, LeaseAttributes, Subnets
from pyflannel.network.underlay import Underlay

__all__ = [
    "backend_types",
    "covering_problem",
    "displaced",
    "no_hosts",
    "nowhere",
    "own_addresses",
    "own_problem",
    "own_public_problem",
    "placement_problem",
    "said",
    "type_problem",
]


class Stored(Protocol):
    """A lease as a store tells of it."""

    @property
    def key(self) -> str:
        """Its subnets."""

    @property
    def value(self) -> str:
        """Its text."""

    @property
    def permanent(self) -> bool:
        """Whether it is a reservation."""


def placement_problem(network: NetworkConfig, lease: Lease) -> str:
    """Why no node of ``network`` can use where ``lease`` lies or where it leads to; empty if nothing is wrong."""
    used = False
    for version in network.versions:
        family, subnet = network.family(version), lease.subnets.of(version)
        if family is None or subnet is None:
            continue
        used = True
        problem = _family_problem(family, subnet, lease.attributes.public(version))
        if problem:
            return problem
    if not used:
        return "has no subnet of a family that this network uses"
    return covering_problem(network, lease.subnets, _publics(lease))


def covering_problem(network: NetworkConfig, subnets: Subnets, addresses: Collection[IPAddress | None]) -> str:
    """Why ``subnets`` are not the overlay's where nodes have these addresses; empty if they are.

    A network that covers nodes' addresses covers others of the underlay, too: of routers, of the store. It is the
    overlay's only where subnets may be leased, or one lease would lead all packets to those into the overlay.
    """
    for version in network.versions:
        family, subnet = network.family(version), subnets.of(version)
        if family is None or subnet is None or family.bounds(subnet):
            continue
        whole, infix = family.network, "" if version == 4 else "IPv6"
        covered = next((each for each in addresses if each is not None and each in whole), None)
        if covered is not None:
            return (
                f"{subnet} lies outside {infix}SubnetMin to {infix}SubnetMax, and elsewhere in the network {whole} are "
                f"nodes themselves, such as {covered}"
            )
    return ""


def own_addresses(underlay: Underlay) -> tuple[IPAddress | None, ...]:
    """Those by which a node is on its underlay, and by which others reach it."""
    return underlay.ipv4, underlay.ipv6, underlay.public_ipv4, underlay.public_ipv6


def displaced(
    present: NetworkConfig, new: NetworkConfig, leases: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """The keys of leases that can be used in ``present`` and not in ``new``, each with whose it is, and why.

    :param leases: keys and texts.
    """
    read: list[tuple[str, Lease]] = []
    for key, value in leases:
        with suppress(MalformedError):
            read.append((key, Lease.from_record(key, value)))
    addresses = [each for _, lease in read for each in _publics(lease)]
    covered = {id(network): _covered(network, addresses) for network in (present, new)}

    def problem(network: NetworkConfig, lease: Lease) -> str:
        return placement_problem(network, lease) or covering_problem(network, lease.subnets, covered[id(network)])

    for key, lease in read:
        why = problem(new, lease)
        if why and not problem(present, lease):
            attributes = lease.attributes
            name = attributes.node_id or attributes.public_ip or attributes.public_ipv6
            yield key, f"{name}: {why}"


def _publics(lease: Lease) -> tuple[IPAddress | None, ...]:
    return lease.attributes.public_ip, lease.attributes.public_ipv6


def _covered(network: NetworkConfig, addresses: Iterable[IPAddress | None]) -> list[IPAddress]:
    """Those of the addresses that lie in the network."""
    wholes = [family.network for family in network.families]
    return [each for each in addresses if each is not None and any(each in whole for whole in wholes)]


def own_problem(node: Node, lease: Lease) -> str:
    """Why ``lease`` can't be another node's as ``node`` sees it: it claims what is ours; empty if it does not."""
    for version in node.network.versions:
        public = lease.attributes.public(version)
        leased = lease.subnets.of(version) is not None
        if not leased or public is None:
            continue
        own = (node.underlay.public(version), node.underlay.local(version))
        if public in own or public in node.underlay.also_own:
            return f"{_public_name(version)} {public} is this node's own"
        no_host = _no_host(node, public)
        if no_host:
            return f"{_public_name(version)} {public} is not an address that a node can have: {no_host}"
    if lease.subnets.overlaps(node.subnets):
        return f"overlaps this node's own subnet {node.subnets}"
    return covering_problem(node.network, lease.subnets, own_addresses(node.underlay))


def own_public_problem(network: NetworkConfig, underlay: Underlay, version: int) -> str:
    """Why every other node would skip a lease with this underlay's public address; empty if none would."""
    family, public = network.family(version), underlay.public(version)
    if family is None or public is None:
        return ""
    # An address that the interface has is one, whatever other routes lead there.
    edges = _no_hosts(underlay, version) if public != underlay.local(version) else ()
    unusable = _unusable(public) or next((why for each, why in edges if each == public), "")
    if unusable:
        return f"{_public_name(version)} {public} is not an address that a node can have: {unusable}"
    if public in family.network and family.index_range(ip_network(public)):
        return f"{_public_name(version)} {public} lies in subnets that the overlay {family.network} may lease"
    return ""


def said(attributes: LeaseAttributes, backend: str) -> Published:
    """What our own lease says to peers of a network with this backend; nothing if it is of another type."""
    if attributes.backend_type is None or attributes.backend_type.lower() != backend:
        return Published()
    return Published(attributes.backend_data, attributes.backend_v6_data)


def type_problem(lease: Lease, backend: str, untyped_leases: bool) -> str:
    """Why ``lease`` is not one of a network with this backend; empty if it is."""
    backend_type = lease.attributes.backend_type
    if backend_type == backend or (backend_type is None and untyped_leases):
        return ""
    found = "none" if backend_type is None else repr(backend_type)
    return f"BackendType is {found}, this network's is {backend!r}"


def _family_problem(
    family: FamilyConfig[IPv4Network] | FamilyConfig[IPv6Network], subnet: IPNetwork, public: IPAddress | None
) -> str:
    whole = family.network
    # Numbers: every lease is looked at, and a network's own "in" takes several times as long.
    spare = whole.max_prefixlen - whole.prefixlen
    leading = int(whole.network_address) >> spare
    if subnet.prefixlen < whole.prefixlen or int(subnet.network_address) >> spare != leading:
        return f"{subnet} lies outside the network {whole}"
    if public is None:
        return f"has no {_public_name(whole.version)}"
    unusable = _unusable(public)
    if unusable:
        name = _public_name(whole.version)
        return f"{name} {public} is not an address that a node can have: {unusable}"
    inside = int(public) >> spare == leading
    if inside and (public in subnet or family.index_range(ip_network(public))):
        return f"{_public_name(whole.version)} {public} lies inside the overlay {whole}, which it should carry"
    return ""


_NOWHERE = {
    4: (
        (ip_network("0.0.0.0/8"), "0.0.0.0/8 means this network"),
        (ip_network("127.0.0.0/8"), "a loopback address"),
        (ip_network("169.254.0.0/16"), "a link-local address"),
        (ip_network("224.0.0.0/4"), "a multicast address"),
        (ip_network("240.0.0.0/4"), "240.0.0.0/4 is reserved"),
    ),
    6: (
        (ip_network("::/128"), "the unspecified address"),
        (ip_network("::1/128"), "a loopback address"),
        (ip_network("::ffff:0:0/96"), "an IPv4-mapped address"),
        (ip_network("fe80::/10"), "a link-local address"),
        (ip_network("ff00::/8"), "a multicast address"),
    ),
}
"""Addresses that no packet to another node can have (RFC 6890)."""

_BOUNDS = {
    version: tuple((int(network[0]), int(network[-1]), why) for network, why in nowhere)
    for version, nowhere in _NOWHERE.items()
}
"""The same as numbers."""


def _unusable(address: IPAddress) -> str:
    number = int(address)
    for first, last, why in _BOUNDS[address.version]:
        if first <= number <= last:
            return why
    return ""


def _no_host(node: Node, address: IPAddress) -> str:
    """Why no other node on our underlay's links can have ``address``."""
    return next((why for unusable, why in no_hosts(node, address.version) if unusable == address), "")


def no_hosts(node: Node, version: int) -> Iterator[tuple[IPAddress, str]]:
    """The addresses on our underlay's links that no node can have, and why."""
    return _no_hosts(node.underlay, version)


def _no_hosts(underlay: Underlay, version: int) -> Iterator[tuple[IPAddress, str]]:
    for route in underlay.routes:
        network = route.destination
        if route.gateway is not None or not route.connected or network.version != version or network.num_addresses <= 2:
            continue
        yield network.network_address, f"the network address of {network}"
        if version == 4:
            yield network.broadcast_address, f"the broadcast address of {network}"


def nowhere(version: int) -> tuple[tuple[int, int, str], ...]:
    """The first and the last address of each range in which no node can have one, as numbers, and why."""
    return _BOUNDS[version]


def _public_name(version: int) -> str:
    return f"PublicIP{'' if version == 4 else 'v6'}"


def backend_types(records: Iterable[Stored], node_id: str = "") -> Iterator[str | None]:
    """What the leases of a store say that their nodes run; ``None`` is what a lease of flanneld's udp says.

    Our own (``node_id``) only repeats what we once took for right, and a reservation without a type says nothing.
    """
    for record in records:
        try:
            attributes = Lease.from_record(record.key, record.value).attributes
        except MalformedError:
            continue
        says = attributes.backend_type is not None or not record.permanent
        reachable = attributes.public_ip is not None or attributes.public_ipv6 is not None
        if says and reachable and not (node_id and attributes.node_id == node_id):
            yield attributes.backend_type
