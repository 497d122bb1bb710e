"""Which subnets a node gets: the decisions between reading all leases and writing one, as pure functions.

The idea: subnets are *numbers*. The leasable subnets of a family are 0 .. size-1, a taken subnet of whatever length
blocks a range of those numbers, and a draw picks the n-th number that no range covers. So the work grows with the
leases there are, never with the subnets there could be (a /48 cut into /126s has more than memory can list).

:func:`decide` comes first (is one of the leases ours already?), :func:`allocate` when the answer is no. Neither knows
a clock, a store or a file: their caller holds the leases, and creates the result only if it is still absent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, TypeAlias, TypeVar

from pyflannel.errors import OutOfSubnetsError
from pyflannel.network.document import FamilyConfig, NetworkConfig
from pyflannel.network.lease import IPNetwork, Lease, LeaseAttributes, Subnets, lies_in

__all__ = [
    "Adopt",
    "ConflictPolicy",
    "Contested",
    "Decision",
    "Existing",
    "Fresh",
    "Identity",
    "allocate",
    "decide",
    "rivals",
]

N = TypeVar("N", IPv4Network, IPv6Network)


def allocate(
    network: NetworkConfig,
    taken: Iterable[Subnets],
    previous: Subnets | None,
    rng: random.Random,
    kept: Subnets | None = None,
) -> Subnets:
    """Choose subnets for this node, one in every family of ``network``.

    Each family by itself: the previous subnet if it fits and is free, else one drawn uniformly from all free ones, so
    that many nodes that start at once rarely draw the same.

    :param taken: what all other leases hold, also those whose value can't be read: of any length, in any place.
    :param kept: what this node holds now: it stays wherever it lies in the network, whatever new subnets look like.
    :raises OutOfSubnetsError: a family has no free subnet.
    """
    held = tuple(taken)
    if kept is not None and any(kept.overlaps(other) for other in held):
        kept = None
    four, six = (_kept(network, kept, version) for version in (4, 6))
    ipv4 = _Pool(network.ipv4, (subnets.ipv4 for subnets in held)) if network.ipv4 and not four else None
    ipv6 = _Pool(network.ipv6, (subnets.ipv6 for subnets in held)) if network.ipv6 and not six else None
    pools = [pool for pool in (ipv4, ipv6) if pool is not None]
    if not all(pool.free for pool in pools):
        raise OutOfSubnetsError(
            f"no free subnet: {'; '.join(pool.describe() for pool in pools)}. Wait until a lease expires, delete the "
            "leases of nodes that are gone, or give the network config a larger range or smaller subnets"
        )
    return Subnets(
        ipv4.choose(previous.ipv4 if previous else None, rng) if ipv4 else kept.ipv4 if kept and four else None,
        ipv6.choose(previous.ipv6 if previous else None, rng) if ipv6 else kept.ipv6 if kept and six else None,
    )


def _kept(network: NetworkConfig, kept: Subnets | None, version: int) -> bool:
    """Whether a node can go on with the subnet that it has."""
    family, subnet = network.family(version), kept.of(version) if kept is not None else None
    return family is not None and subnet is not None and lies_in(subnet, family.network)


class _Pool(Generic[N]):
    """One family's leasable subnets and the numbers among them that are blocked: disjoint ranges in order."""

    def __init__(self, family: FamilyConfig[N], taken: Iterable[IPNetwork | None]) -> None:
        self.family: FamilyConfig[N] = family
        self.blocked: list[tuple[int, int]] = []
        ranges = family.index_ranges(subnet for subnet in taken if subnet is not None)
        for start, stop in sorted((numbers.start, numbers.stop) for numbers in ranges if numbers.start < numbers.stop):
            if self.blocked and start <= self.blocked[-1][1]:
                self.blocked[-1] = (self.blocked[-1][0], max(stop, self.blocked[-1][1]))
            else:
                self.blocked.append((start, stop))
        self.free = family.size - sum(stop - start for start, stop in self.blocked)

    def describe(self) -> str:
        """The pool in numbers, for an operator."""
        family = self.family
        return (
            f"IPv{family.network.version} network {family.network} has {family.size} subnets of length "
            f"/{family.subnet_len} ({family.subnet_min.network_address} to {family.subnet_max.network_address}), "
            f"{family.size - self.free} of them taken"
        )

    def choose(self, previous: N | None, rng: random.Random) -> N:
        """``previous`` if it may be had, else any free subnet."""
        if previous is not None and self.family.fits(previous) and not self._covers(self.family.index_range(previous)):
            return previous
        number = rng.randrange(self.free)
        for start, stop in self.blocked:
            if number < start:
                break
            number += stop - start
        return self.family.subnet(number)

    def _covers(self, numbers: range) -> bool:
        return any(start <= numbers.start < stop for start, stop in self.blocked)


class ConflictPolicy(Enum):
    """What to do when another node's lease claims one of our public addresses."""

    REFUSE = "refuse"
    TAKE_OVER = "take-over"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is: its stable id and the public addresses it has now."""

    node_id: str
    public_ipv4: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None

    def owns(self, attributes: LeaseAttributes) -> bool:
        """Whether a lease is this node's: by node id or, where the lease has none, by public address."""
        return attributes.same_node(LeaseAttributes(self.public_ipv4, self.public_ipv6, node_id=self.node_id))

    def claimed_by(self, attributes: LeaseAttributes) -> bool:
        """Whether a lease says that one of our public addresses leads to its node."""
        return (self.public_ipv4 is not None and self.public_ipv4 == attributes.public_ip) or (
            self.public_ipv6 is not None and self.public_ipv6 == attributes.public_ipv6
        )


@dataclass(frozen=True, slots=True)
class Existing:
    """A lease that is in the store; ``permanent`` is a reservation, which has no expiry."""

    lease: Lease
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Adopt:
    """Go on with ``lease``: update its attributes to what they are now, keep its subnets. Delete ``stale``."""

    lease: Lease
    stale: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class Fresh:
    """We hold nothing that fits: delete ``stale`` (ours, but of another network config), then :func:`allocate`."""

    stale: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class Contested:
    """``lease`` is another node's and claims a public address of ours; ``reason`` says so, and what to do."""

    lease: Lease
    reason: str


Decision: TypeAlias = Adopt | Fresh | Contested


def decide(
    network: NetworkConfig,
    identity: Identity,
    existing: Sequence[Existing],
    previous: Subnets | None = None,
    policy: ConflictPolicy = ConflictPolicy.REFUSE,
) -> Decision:
    """What this node's way to a lease is, given all leases there are.

    A lease is ours by its node id, whatever address it has (ours has changed since), or, without a node id (flanneld
    wrote it, or an operator's reservation), by its public address. Of several that fit, a reservation comes first,
    then one with our node id, then the one we held last (``previous``), then the lowest key. The others of ours are
    stale, reservations excepted: who made them may want them back. Those that don't fit are stale, as in flannel, but
    for one with our node id that still lies in the network: another length or range is for those who come new.

    A lease with another node's id that claims our address is never stolen under ``REFUSE``: we keep a lease that has
    our node id and the same address already, for then we were not the later one; otherwise we refuse.
    """
    ours = [item for item in existing if identity.owns(item.lease.attributes)]
    claims = rivals(identity, existing)
    if policy is ConflictPolicy.TAKE_OVER:
        ours += claims
    elif claims and not any(_established(identity, item) for item in ours):
        return _contested(identity, claims[0].lease)
    fitting = sorted(
        (item for item in ours if _keeps(network, identity, item.lease)),
        key=lambda item: (
            not network.fits(item.lease.subnets),
            not item.permanent,
            item.lease.attributes.node_id != identity.node_id,
            item.lease.subnets != previous,
            item.lease.key,
        ),
    )
    misfits = tuple(item.lease for item in ours if not _keeps(network, identity, item.lease))
    if not fitting:
        return Fresh(misfits)
    return Adopt(fitting[0].lease, misfits + tuple(item.lease for item in fitting[1:] if not item.permanent))


def _keeps(network: NetworkConfig, identity: Identity, lease: Lease) -> bool:
    """Whether a lease of ours is one that a node may have in this network."""
    if network.fits(lease.subnets):
        return True
    return lease.attributes.node_id == identity.node_id and network.contains(lease.subnets)


def rivals(identity: Identity, existing: Iterable[Existing]) -> list[Existing]:
    """The leases of other nodes, known by their node ids, that claim a public address of ours."""
    return [
        item
        for item in existing
        if item.lease.attributes.node_id not in (None, identity.node_id) and identity.claimed_by(item.lease.attributes)
    ]


def _established(identity: Identity, item: Existing) -> bool:
    """Whether a lease of ours has our node id and the address we still have."""
    return item.lease.attributes.node_id == identity.node_id and identity.claimed_by(item.lease.attributes)


def _contested(identity: Identity, lease: Lease) -> Contested:
    attributes = lease.attributes
    shared = identity.public_ipv4 if identity.public_ipv4 == attributes.public_ip else None
    address = shared or identity.public_ipv6
    return Contested(
        lease,
        f"lease {lease.key} of node {attributes.node_id!r} claims our public address {address} (we are node "
        f"{identity.node_id!r}). Give one of the two nodes another address; if that node is gone for good, delete its "
        "lease or let this node take it over",
    )
