"""What the records in a store say: whose they are, and what they take from others. Pure readings of key and text.

Thousands of records may have to be looked at, and parsing one takes longer than all else that is done with it: so a
record is parsed only where its text could concern us at all, and what others hold is read from their keys alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pyflannel.errors import MalformedError
from pyflannel.membership.allocation import Identity
from pyflannel.network.document import FamilyConfig, NetworkConfig
from pyflannel.network.lease import IPAddress, IPNetwork, Lease, LeaseAttributes, Subnets
from pyflannel.network.marks import Marks
from pyflannel.store import Record

__all__ = ["addresses", "claimed", "concerning", "creation", "crossing", "is_anothers", "readable", "writer"]


def is_anothers(lease: Lease, mine: Lease) -> bool:
    """Whether a lease says another node's name, or another address, than ours does."""
    theirs, ours = lease.attributes, mine.attributes
    if theirs.node_id is None:
        return False
    return (theirs.node_id, theirs.public_ip, theirs.public_ipv6) != (ours.node_id, ours.public_ip, ours.public_ipv6)


def addresses(attributes: LeaseAttributes) -> frozenset[IPAddress]:
    """Where a lease says that its node is reached."""
    return frozenset(ip for ip in (attributes.public_ip, attributes.public_ipv6) if ip is not None)


def writer(attributes: LeaseAttributes) -> tuple[frozenset[IPAddress], Marks]:
    """What a lease says of the machine that wrote it."""
    return addresses(attributes), attributes.marks


def concerning(identity: Identity, records: Mapping[str, Record]) -> Iterator[Record]:
    """The records that may be ours or a rival's: those that name us. Reading all takes as long as all the rest."""
    addresses = [str(ip) for ip in (identity.public_ipv4, identity.public_ipv6) if ip is not None]
    names = [f'"{name}"' for name in (identity.node_id, *addresses)]
    for record in records.values():
        # A text with escapes or an IPv6 address may spell one name in several ways.
        if "\\" in record.value or identity.public_ipv6 is not None or any(name in record.value for name in names):
            yield record


def creation(records: Iterable[Record]) -> dict[str, int]:
    """Each one's place in the order of creation, as far as the store tells it."""
    return {record.key: record.created for record in records if record.created}


def readable(record: Record) -> Lease | None:
    """The lease that a record is, if it is one."""
    try:
        return Lease.from_record(record.key, record.value)
    except MalformedError:
        return None


def claimed(network: NetworkConfig, key: str) -> Subnets | None:
    """What a record of this key takes away from others.

    A claim to the whole network or more takes nothing: it is nobody's subnet, and must not shut all other nodes out.
    """
    try:
        subnets = Subnets.from_key(key)
    except MalformedError:
        return None
    return subnets if _is_part(subnets.ipv4, network.ipv4) and _is_part(subnets.ipv6, network.ipv6) else None


def _is_part(subnet: IPNetwork | None, family: FamilyConfig[Any] | None) -> bool:
    """Whether a subnet is smaller than its family's network, if both are there."""
    return subnet is None or family is None or subnet.prefixlen > family.network.prefixlen


def crossing(network: NetworkConfig, key: str, keys: Iterable[str]) -> list[Subnets]:
    """What others lease that overlaps the lease ``key``."""
    ours = claimed(network, key)
    if ours is None:
        return []
    claims = [claimed(network, other) for other in keys if other != key]
    return [claim for claim in claims if claim is not None and claim.overlaps(ours)]
