"""Why a lease can't be used, whatever the backend: where it lies, where it leads to, whose it is.

Pure functions of the network, this node's place in it and one lease. Each answers with the reason in words, empty if
there is none. What only a backend can say of a lease, and which of two leases has what both claim, is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from pyflannel.backend import Node
from pyflannel.errors import MalformedError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Lease

__all__ = ["backend_types", "own_problem", "placement_problem", "type_problem"]


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
    used = [version for version in network.versions if lease.subnets.of(version) is not None]
    if not used:
        return "has no subnet of a family that this network uses"
    return next(filter(None, (_family_problem(network, lease, version) for version in used)), "")


def own_problem(node: Node, lease: Lease) -> str:
    """Why ``lease`` can't be another node's as ``node`` sees it: it claims what is ours; empty if it does not."""
    for version in node.network.versions:
        public = lease.attributes.public(version)
        leased = lease.subnets.of(version) is not None
        if leased and public is not None and public == node.underlay.public(version):
            return f"{_public_name(version)} {public} is this node's own"
    if lease.subnets.overlaps(node.subnets):
        return f"overlaps this node's own subnet {node.subnets}"
    return ""


def type_problem(lease: Lease, backend: str, untyped_leases: bool) -> str:
    """Why ``lease`` is not one of a network with this backend; empty if it is."""
    backend_type = lease.attributes.backend_type
    if backend_type == backend or (backend_type is None and untyped_leases):
        return ""
    found = "none" if backend_type is None else repr(backend_type)
    return f"BackendType is {found}, this network's is {backend!r}"


def _family_problem(network: NetworkConfig, lease: Lease, version: int) -> str:
    family, subnet = network.family(version), lease.subnets.of(version)
    if family is None or subnet is None:
        return ""
    whole = family.network
    if subnet.prefixlen < whole.prefixlen or subnet.network_address not in whole:
        return f"{subnet} lies outside the network {whole}"
    name, public = _public_name(version), lease.attributes.public(version)
    if public is None:
        return f"has no {name}"
    if public.is_unspecified or public.is_loopback or public.is_multicast or int(public) == 0xFFFFFFFF:
        return f"{name} {public} is no address that a node can have"
    if public in whole:
        return f"{name} {public} lies inside the overlay {whole}, which it should carry"
    return ""


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
