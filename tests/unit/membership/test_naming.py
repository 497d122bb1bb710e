"""By which id a machine goes, for each combination of leases that it may find."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from pyflannel.membership.naming import Myself, Naming
from pyflannel.network.lease import IPAddress, Lease, LeaseAttributes, Subnets
from pyflannel.network.marks import NO_MARKS, Marks

ORIGINAL = Marks("run", "", frozenset({"card"}))
REBOOTED = replace(ORIGINAL, run="later run")
COPY = Marks("its run", "", frozenset({"its card"}))
HERE: dict[int, IPAddress] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8::1")}
THERE: dict[int, IPAddress] = {4: IPv4Address("192.0.2.2"), 6: IPv6Address("2001:db8::2")}


def lease(
    number: int, address: IPAddress, node_id: str | None = "n", marks: Marks = ORIGINAL, twin_of: str | None = None
) -> Lease:
    attributes = LeaseAttributes(node_id=node_id, marks=marks, twin_of=twin_of)
    if isinstance(address, IPv4Address):
        attributes = replace(attributes, public_ip=address)
    else:
        attributes = replace(attributes, public_ipv6=address)
    return Lease(Subnets(IPv4Network((f"10.5.{number}.0", 24))), attributes)


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def me(marks: Marks, version: int) -> Myself:
    return Myself("n", marks, frozenset({HERE[version]}))


@pytest.mark.parametrize("written", [ORIGINAL, REBOOTED, NO_MARKS, Marks("run")], ids=["itself", "boot", "old", "run"])
def test_a_node_with_another_address_goes_on_with_its_lease(version: int, written: Marks) -> None:
    assert me(ORIGINAL, version).name([lease(1, THERE[version], marks=written)]) == Naming("n")


def test_a_copy_gets_another_name_and_the_same_each_time(version: int) -> None:
    theirs = lease(1, THERE[version])
    copy = me(COPY, version)
    assert copy.name([theirs]) == Naming(copy.derived, theirs)
    assert copy.derived != "n"
    assert me(replace(COPY, run="after a reboot"), version).derived == copy.derived
    assert me(replace(COPY, cards=frozenset({"of a second copy"})), version).derived != copy.derived


def test_a_copy_of_which_nothing_lives_in_the_store_is_the_node(version: int) -> None:
    assert me(COPY, version).name([]) == Naming("n")
    assert me(COPY, version).name([lease(1, THERE[version], "another node")]) == Naming("n")


def test_a_copy_finds_its_lease_again_also_when_the_original_is_gone(version: int) -> None:
    theirs, ours = lease(1, THERE[version]), lease(2, HERE[version], "d", COPY, "n")
    assert me(COPY, version).name([theirs, ours]) == Naming("d", theirs)
    assert me(replace(COPY, run="later"), version).name([ours]) == Naming("d")


def test_the_original_is_not_moved_by_its_copy(version: int) -> None:
    ours, copy = lease(1, HERE[version]), lease(2, THERE[version], "d", COPY, "n")
    assert me(REBOOTED, version).name([ours, copy]) == Naming("n")


def test_an_original_is_not_moved_by_a_copy_alike_in_every_mark_that_gave_way_to_it(version: int) -> None:
    ours, copy = lease(1, HERE[version]), lease(2, THERE[version], "d", ORIGINAL, "n")
    assert me(ORIGINAL, version).name([ours, copy]) == Naming("n")
    assert me(REBOOTED, version).name([copy, ours]) == Naming("n")


def test_an_original_goes_on_where_somebody_wrote_over_the_address_in_its_lease(version: int) -> None:
    """It has held that lease; what a copy like it held once is none of its own."""
    ours, copy = lease(1, THERE[version]), lease(2, HERE[version], "d", ORIGINAL, "n")
    assert me(ORIGINAL, version).name([ours, copy], "n", held=True) == Naming("n")
    assert me(ORIGINAL, version).name([ours, copy], "n") == Naming("d", ours), "after a start nothing tells"


def test_of_two_that_came_at_once_each_keeps_its_own(version: int) -> None:
    ours, theirs = lease(1, HERE[version]), lease(2, THERE[version], marks=COPY)
    assert me(REBOOTED, version).name([ours, theirs]) == Naming("n", theirs)
    assert me(REBOOTED, version).is_twins(theirs.attributes)
    assert not me(REBOOTED, version).is_twins(ours.attributes)


def test_other_hardware_with_our_very_address_is_this_node(version: int) -> None:
    assert me(COPY, version).name([lease(1, HERE[version])]) == Naming("n")


def test_a_node_keeps_the_name_it_has_taken(version: int) -> None:
    assert me(COPY, version).name([], "d") == Naming("d")


def test_what_a_machine_may_give_back(version: int) -> None:
    copy = me(COPY, version)
    assert copy.owns(lease(2, HERE[version], "d", COPY, "n").attributes)
    assert not copy.owns(lease(1, THERE[version]).attributes), "the original's"
    assert not copy.owns(lease(2, THERE[version], "d", ORIGINAL, "n").attributes), "another copy's"
    assert copy.owns(lease(1, THERE[version], marks=NO_MARKS).attributes), "of an older version"


def test_a_copy_that_got_an_id_of_its_own_keeps_its_subnet(version: int) -> None:
    renamed = Myself("m", replace(COPY, run="later"), frozenset({HERE[version]}))
    assert renamed.name([lease(1, THERE[version]), lease(2, HERE[version], "d", COPY, "n")]) == Naming("d")
    assert Myself("m", ORIGINAL).name([lease(2, HERE[version], "d", COPY, "n")]) == Naming("m")


def test_a_copy_is_known_to_its_original(version: int) -> None:
    original = me(ORIGINAL, version)
    assert original.is_copys(lease(2, THERE[version], "d", COPY, "n").attributes)
    assert not original.is_copys(lease(2, THERE[version], "d", COPY, "m").attributes)
    assert not me(COPY, version).is_copys(lease(2, THERE[version], "d", COPY, "n").attributes)
