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
from pyflannel.network.lease import IPAddress, Lease, LeaseAttributes, Subnets
from pyflannel.network.marks import Marks
from pyflannel.store import Record

__all__ = ["addresses", "claims", "concerning", "creation", "crossing", "is_anothers", "readable", "writer"]


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


def claims(network: NetworkConfig, keys: Iterable[str]) -> dict[str, Subnets]:
    """What the records of these keys take away from others.

    A claim to the whole network or more takes nothing: it is nobody's subnet, and must not shut all other nodes out.
    """
    found: dict[str, Subnets] = {}
    four, six = (_length(network.ipv4), _length(network.ipv6))
    for key in keys:
        try:
            subnets = Subnets.from_key(key)
        except MalformedError:
            continue
        ipv4, ipv6 = subnets.ipv4, subnets.ipv6
        if (ipv4 is None or ipv4.prefixlen > four) and (ipv6 is None or ipv6.prefixlen > six):
            found[key] = subnets
    return found


def _length(family: FamilyConfig[Any] | None) -> int:
    """That of a family's network, if it is in use: a subnet must have a greater one."""
    return -1 if family is None else int(family.network.prefixlen)


def crossing(network: NetworkConfig, key: str, keys: Iterable[str]) -> list[Subnets]:
    """What others lease that overlaps the lease ``key``."""
    found = claims(network, dict.fromkeys((key, *keys)))
    ours = found.pop(key, None)
    return [] if ours is None else [claim for claim in found.values() if claim.overlaps(ours)]
