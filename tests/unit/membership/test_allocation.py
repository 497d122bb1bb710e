"""Allocation and the decision about existing leases: no overlap ever, everything used, nothing stolen."""

from __future__ import annotations

import json
import random
from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import ExitCode, OutOfSubnetsError
from pyflannel.membership.allocation import (
    Adopt,
    ConflictPolicy,
    Contested,
    Existing,
    Fresh,
    Identity,
    allocate,
    decide,
    rivals,
)
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Lease, LeaseAttributes, Subnets

SEEDS = st.integers(0, 2**32).map(random.Random)


def config(**document: Any) -> NetworkConfig:
    return NetworkConfig.from_json(json.dumps(document))


def s4(text: str) -> Subnets:
    return Subnets(IPv4Network(text))


def s6(text: str) -> Subnets:
    return Subnets(None, IPv6Network(text))


SMALL = {
    "ipv4": config(Network="10.0.0.0/24", SubnetLen=28, SubnetMin="10.0.0.32", SubnetMax="10.0.0.224"),
    "ipv6": config(
        EnableIPv4=False,
        EnableIPv6=True,
        IPv6Network="fd00::/60",
        IPv6SubnetLen=64,
        IPv6SubnetMin="fd00:0:0:2::",
        IPv6SubnetMax="fd00:0:0:e::",
    ),
    "dual": config(
        Network="10.0.0.0/24",
        SubnetLen=28,
        SubnetMin="10.0.0.32",
        SubnetMax="10.0.0.224",
        EnableIPv6=True,
        IPv6Network="fd00::/60",
    ),
}
# Networks of any length in and around the small ranges: smaller, equal, larger, half outside, everything.
TAKEN4 = st.builds(lambda number, length: IPv4Network((0x0A000000 + number, length), strict=False),
                   st.integers(-64, 320), st.integers(0, 32))  # fmt: skip
TAKEN6 = st.builds(lambda number, length: IPv6Network((0xFD << 120 | number << 62, length), strict=False),
                   st.integers(0, 80), st.sampled_from([0, 8, 58, *range(60, 68), 128]))  # fmt: skip
TAKEN = st.builds(Subnets, TAKEN4, TAKEN6) | st.builds(Subnets, TAKEN4) | st.builds(Subnets, st.none(), TAKEN6)
ANY_CONFIG = st.sampled_from(sorted(SMALL)).map(SMALL.__getitem__)


def free_count(network: NetworkConfig, taken: list[Subnets]) -> list[int]:
    """What :func:`allocate` has to choose from, counted the slow and obvious way."""
    counts = []
    for family in network.families:
        every = [family.subnet(number) for number in range(family.size)]
        held = [subnet for subnets in taken for subnet in subnets.each if subnet.version == family.network.version]
        counts.append(sum(not any(subnet.overlaps(other) for other in held) for subnet in every))
    return counts


@given(ANY_CONFIG, st.lists(TAKEN, max_size=12), st.none() | TAKEN, SEEDS)
def test_what_is_allocated_fits_and_overlaps_nothing(
    network: NetworkConfig, taken: list[Subnets], previous: Subnets | None, rng: random.Random
) -> None:
    try:
        got = allocate(network, taken, previous, rng)
    except OutOfSubnetsError:
        assert 0 in free_count(network, taken)
        return
    assert 0 not in free_count(network, taken)
    assert network.fits(got)
    assert not any(got.overlaps(other) for other in taken)


@given(ANY_CONFIG, st.lists(TAKEN.filter(lambda item: all(net.prefixlen > 26 for net in item.each)), max_size=3), SEEDS)
def test_every_subnet_is_allocatable_exactly_once_until_exhaustion(
    network: NetworkConfig, reserved: list[Subnets], rng: random.Random
) -> None:
    taken = list(reserved)
    expected = min(free_count(network, reserved))
    for _ in range(expected):
        taken.append(allocate(network, iter(taken), None, rng))
    with pytest.raises(OutOfSubnetsError):
        allocate(network, taken, None, rng)
    ours = taken[len(reserved) :]
    assert len(set(ours)) == expected
    assert not any(
        one.overlaps(other) for number, one in enumerate(ours) for other in taken[: len(reserved)] + ours[:number]
    )


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_previous_subnets_come_first(name: str) -> None:
    network = SMALL[name]
    rng = random.Random(1)
    previous = allocate(network, [], None, rng)
    for _ in range(20):
        assert allocate(network, [], previous, rng) == previous
    assert allocate(network, [previous], previous, rng) != previous


@pytest.mark.parametrize("previous", ["10.0.0.16/28", "10.0.0.64/29", "10.0.0.64/27", "10.9.0.0/28", "10.0.0.240/28"])
def test_previous_subnets_that_do_not_fit_are_forgotten(previous: str) -> None:
    assert SMALL["ipv4"].fits(allocate(SMALL["ipv4"], [], s4(previous), random.Random(1)))


def test_each_family_keeps_its_previous_subnet_by_itself() -> None:
    previous = Subnets(IPv4Network("10.0.0.64/28"), IPv6Network("fd00:0:0:5::/64"))
    got = allocate(config(**DUAL_DOCUMENT), [s6("fd00:0:0:4::/63")], previous, random.Random(1))
    assert got.ipv4 == previous.ipv4
    assert got.ipv6 is not None
    assert not got.ipv6.overlaps(IPv6Network("fd00:0:0:4::/63"))
    # A network that was IPv4 only before: the subnet from then stays.
    assert allocate(config(**DUAL_DOCUMENT), [], s4("10.0.0.64/28"), random.Random(1)).ipv4 == previous.ipv4


DUAL_DOCUMENT = {"Network": "10.0.0.0/24", "SubnetLen": 28, "EnableIPv6": True, "IPv6Network": "fd00::/60"}


@pytest.mark.parametrize(
    ("network", "taken"),
    [
        (config(Network="10.0.0.0/8", SubnetLen=30), s4("10.0.0.0/9")),
        (config(EnableIPv4=False, EnableIPv6=True, IPv6Network="fd00::/48"), s6("fd00::/49")),
        (config(EnableIPv4=False, EnableIPv6=True, IPv6Network="fd00::/8", IPv6SubnetLen=126), s6("fd00::/9")),
    ],
)
def test_networks_too_large_to_list_are_allocated_from(network: NetworkConfig, taken: Subnets) -> None:
    """Listing 2**118 subnets would not end; half of them is blocked by one lease."""
    got = allocate(network, [taken], None, random.Random(7))
    assert network.fits(got)
    assert not got.overlaps(taken)


def test_draws_are_uniform_over_what_is_free() -> None:
    """Every free subnet between, before and behind blocked ones is drawn about equally often."""
    taken = [s4("10.0.0.48/28"), s4("10.0.0.96/27"), s4("10.0.0.100/32")]
    rng = random.Random(11)
    draws = Counter(allocate(SMALL["ipv4"], taken, None, rng) for _ in range(10_000))
    assert len(draws) == 10
    assert all(800 < count < 1200 for count in draws.values())


@pytest.mark.parametrize("blocker", ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24"])
def test_a_lease_larger_than_the_range_blocks_all(blocker: str) -> None:
    with pytest.raises(OutOfSubnetsError):
        allocate(SMALL["ipv4"], [s4(blocker)], None, random.Random(1))


def test_out_of_subnets_counts_by_family_and_says_what_to_do() -> None:
    network = config(**DUAL_DOCUMENT)
    with pytest.raises(OutOfSubnetsError) as caught:
        allocate(network, [s4("10.0.0.0/24"), s6("fd00:0:0:2::/64"), s6("fd00:0:0:3::/64")], None, random.Random(1))
    message = str(caught.value)
    assert "10.0.0.0/24 has 15 subnets of length /28 (10.0.0.16 to 10.0.0.240), 15 of them taken" in message
    assert "fd00::/60 has 15 subnets of length /64 (fd00:0:0:1:: to fd00:0:0:f::), 2 of them taken" in message
    assert "expires" in message
    assert caught.value.exit_code is ExitCode.LEASE


A4, B4 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
A6, B6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
NET = config(Network="10.0.0.0/16")
ME = Identity("me", A4)


def lease(subnet: str, public_ip: IPv4Address | None, node_id: str | None = None, permanent: bool = False,
          public_ipv6: IPv6Address | None = None) -> Existing:  # fmt: skip
    return Existing(Lease(s4(subnet), LeaseAttributes(public_ip, public_ipv6, "vxlan", node_id=node_id)), permanent)


OTHERS = [lease("10.0.50.0/24", B4), lease("10.0.51.0/24", IPv4Address("192.0.2.3"), "third")]


def test_without_a_lease_of_ours_a_fresh_one() -> None:
    assert decide(NET, ME, []) == Fresh()
    assert decide(NET, ME, OTHERS) == Fresh()


@pytest.mark.parametrize(
    "mine",
    [
        pytest.param(lease("10.0.7.0/24", A4, "me"), id="node id and address"),
        pytest.param(lease("10.0.7.0/24", A4), id="address, written by flanneld"),
        pytest.param(lease("10.0.7.0/24", A4, permanent=True), id="reservation by address"),
        pytest.param(lease("10.0.7.0/24", IPv4Address("192.0.2.99"), "me"), id="node id, address changed"),
        pytest.param(lease("10.0.7.0/24", None, "me"), id="node id, no address"),
    ],
)
def test_a_lease_of_ours_is_adopted(mine: Existing) -> None:
    assert decide(NET, ME, [*OTHERS, mine]) == Adopt(mine.lease)


@pytest.mark.parametrize(
    ("subnet", "node_id"), [("10.0.0.0/24", None), ("10.0.7.0/25", None), ("10.9.0.0/24", None), ("10.9.0.0/24", "me")]
)
@pytest.mark.parametrize("permanent", [False, True])
def test_a_lease_of_ours_that_does_not_fit_is_deleted(subnet: str, node_id: str | None, permanent: bool) -> None:
    mine = lease(subnet, A4, node_id, permanent)
    assert decide(NET, ME, [*OTHERS, mine]) == Fresh((mine.lease,))


@pytest.mark.parametrize("subnet", ["10.0.0.0/24", "10.0.7.0/25"])
def test_a_lease_with_our_node_id_is_kept_in_a_network_that_is_laid_out_anew(subnet: str) -> None:
    """Containers keep their addresses; one that fits is preferred."""
    mine, fits = lease(subnet, A4, "me"), lease("10.0.9.0/24", A4, "me")
    assert decide(NET, ME, [*OTHERS, mine]) == Adopt(mine.lease)
    assert decide(NET, ME, [*OTHERS, mine, fits]) == Adopt(fits.lease, (mine.lease,))


def test_which_of_several() -> None:
    by_address = lease("10.0.1.0/24", A4)
    by_id = lease("10.0.2.0/24", A4, "me")
    by_id_later = lease("10.0.3.0/24", A4, "me")
    reserved = lease("10.0.9.0/24", A4, permanent=True)
    misfit = lease("10.9.9.0/24", A4, "me")
    assert decide(NET, ME, [by_address, by_id]) == Adopt(by_id.lease, (by_address.lease,))
    assert decide(NET, ME, [by_id_later, by_id]) == Adopt(by_id.lease, (by_id_later.lease,))
    assert decide(NET, ME, [by_id, by_id_later], by_id_later.lease.subnets) == Adopt(by_id_later.lease, (by_id.lease,))
    assert decide(NET, ME, [by_id, reserved]) == Adopt(reserved.lease, (by_id.lease,))
    assert decide(NET, ME, [misfit, by_id]) == Adopt(by_id.lease, (misfit.lease,))
    another = lease("10.0.8.0/24", A4, permanent=True)
    assert decide(NET, ME, [reserved, another]) == Adopt(another.lease), "a reservation that is not used stays"


@pytest.mark.parametrize("permanent", [False, True])
@pytest.mark.parametrize("subnet", ["10.0.7.0/24", "10.9.7.0/24"])
def test_another_nodes_claim_of_our_address_is_never_stolen(subnet: str, permanent: bool) -> None:
    theirs = lease(subnet, A4, "them", permanent)
    decision = decide(NET, ME, [*OTHERS, theirs])
    assert isinstance(decision, Contested)
    assert decision.lease == theirs.lease
    for word in (theirs.lease.key, "'them'", "'me'", "192.0.2.1", "delete"):
        assert word in decision.reason


def test_a_lease_elsewhere_does_not_excuse_the_later_of_two() -> None:
    """Our address has changed to one that another node has: it was there first."""
    moved = lease("10.0.1.0/24", IPv4Address("192.0.2.99"), "me")
    assert isinstance(decide(NET, ME, [moved, lease("10.0.7.0/24", A4, "them")]), Contested)
    unsigned = lease("10.0.1.0/24", A4)
    assert isinstance(decide(NET, ME, [unsigned, lease("10.0.7.0/24", A4, "them")]), Contested)


def test_who_has_its_lease_already_keeps_it_and_sees_the_rival() -> None:
    mine, theirs = lease("10.0.1.0/24", A4, "me"), lease("10.0.7.0/24", A4, "them")
    assert decide(NET, ME, [mine, theirs]) == Adopt(mine.lease)
    assert rivals(ME, [mine, theirs, *OTHERS]) == [theirs]


def test_take_over_is_explicit() -> None:
    theirs, mine = lease("10.0.7.0/24", A4, "them"), lease("10.0.8.0/24", A4, "me")
    take = ConflictPolicy.TAKE_OVER
    assert decide(NET, ME, [theirs], policy=take) == Adopt(theirs.lease)
    assert decide(NET, ME, [theirs, mine], policy=take) == Adopt(mine.lease, (theirs.lease,))
    misfit = lease("10.9.7.0/24", A4, "them")
    assert decide(NET, ME, [misfit], policy=take) == Fresh((misfit.lease,))
    assert decide(NET, ME, OTHERS, policy=take) == Fresh()


def test_a_shared_ipv6_address_is_a_conflict_too() -> None:
    me = Identity("me", A4, A6)
    theirs = lease("10.0.7.0/24", B4, "them", public_ipv6=A6)
    decision = decide(NET, me, [theirs])
    assert isinstance(decision, Contested)
    assert "2001:db8::1" in decision.reason
    assert decide(NET, me, [lease("10.0.7.0/24", B4, "them", public_ipv6=B6)]) == Fresh()


def test_ipv6_only_nodes_are_known_by_their_ipv6_address() -> None:
    network = config(EnableIPv4=False, EnableIPv6=True, IPv6Network="fd00::/48")
    mine = Existing(Lease(s6("fd00:0:0:7::/64"), LeaseAttributes(None, A6)))
    assert decide(network, Identity("me", None, A6), [mine]) == Adopt(mine.lease)
    assert decide(network, Identity("me", None, B6), [mine]) == Fresh()


EXISTING = st.builds(
    lease,
    st.integers(0, 20).map(lambda number: f"10.0.{number}.0/24"),
    st.sampled_from([A4, B4, None]),
    st.sampled_from([None, "me", "them"]),
    st.booleans(),
    st.sampled_from([A6, B6, None]),
)


@given(st.lists(EXISTING, max_size=8, unique_by=lambda item: item.lease.key), st.sampled_from(ConflictPolicy))
def test_no_decision_touches_a_lease_that_is_not_ours(existing: list[Existing], policy: ConflictPolicy) -> None:
    me = Identity("me", A4, A6)
    decision = decide(NET, me, existing, policy=policy)
    touched: set[str] = set()
    if isinstance(decision, (Adopt, Fresh)):
        touched.update(item.key for item in decision.stale)
    if isinstance(decision, Adopt):
        assert NET.contains(decision.lease.subnets)
        assert decision.lease not in decision.stale
        touched.add(decision.lease.key)
    for item in existing:
        attributes = item.lease.attributes
        if item.lease.key in touched:
            ours = attributes.node_id == "me" or (attributes.node_id is None and me.claimed_by(attributes))
            taken_over = policy is ConflictPolicy.TAKE_OVER and me.claimed_by(attributes)
            assert ours or taken_over
