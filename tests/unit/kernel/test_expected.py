"""What a kernel says of entries that are as they should be is known by how it begins; here as Linux 6.18 says it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from tests.plans import Plans

from pyflannel.kernel.expected import Expected
from pyflannel.kernel.model import FdbEntry, KernelObject, Neighbour, Route

LINKS = {"flannel.1": 4, "flannel-v6.1": 5}
MAC4, MAC6 = "02:00:00:00:00:07", "02:00:00:00:00:08"
GATEWAY4, GATEWAY6 = IPv4Address("10.1.2.0"), IPv6Address("fd00:1::")
ROUTE4 = Route(IPv4Network("10.1.2.0/24"), "flannel.1", GATEWAY4, onlink=True, metric=259)
ROUTE6 = Route(IPv6Network("fd00:1::/64"), "flannel-v6.1", GATEWAY6, onlink=True)
NET6, NEVER = "fd000001000000000000000000000000", "00000000010000000100000000000000"

# A header, and attributes: length, type, value.
TOLD: list[tuple[KernelObject, str]] = [
    (
        Neighbour("flannel.1", GATEWAY4, MAC4),
        f"020000000400000080000001 0800 0100 0a010200 0a00 0200 0200000000070000 0800 0400 00000000 1400 0300 {NEVER}",
    ),
    (
        Neighbour("flannel-v6.1", GATEWAY6, MAC6),
        f"0a0000000500000080000001 1400 0100 {NET6} 0a00 0200 0200000000080000 0800 0400 00000000 1400 0300 {NEVER}",
    ),
    (
        FdbEntry("flannel.1", MAC4, IPv4Address("198.51.100.7")),
        f"0700000004000000c0000201 0a00 0200 0200000000070000 0800 0100 c6336407 1400 0300 {NEVER}",
    ),
    (
        FdbEntry("flannel-v6.1", MAC6, IPv6Address("2001:db8::7")),
        (
            "0700000005000000c0000201 0a00 0200 0200000000080000 1400 0100 20010db8000000000000000000000007"
            f"1400 0300 {NEVER}"
        ),
    ),
    (
        ROUTE4,
        (
            "02180000fef1000104000000 0800 0f00 fe000000 0800 0100 0a010200 0800 0600 03010000 0800 0500 0a010200"
            "0800 0400 04000000"
        ),
    ),
    (
        ROUTE6,
        (
            f"0a400000fef1000104000000 0800 0f00 fe000000 1400 0100 {NET6} 0800 0600 00040000 1400 0500 {NET6}"
            f"0800 0400 05000000 2400 0c00 {'00' * 32} 0500 1400 00000000"
        ),
    ),
]


@pytest.fixture(params=TOLD, ids=lambda pair: str(pair[0]))
def told(request: pytest.FixtureRequest) -> tuple[KernelObject, bytes]:
    item, text = request.param
    return item, bytes.fromhex(text)


def expected(item: KernelObject) -> Expected:
    """All of the kind of ``item`` that is wanted."""
    return Expected(item.key[0], Plans([each for each, _ in TOLD]), LINKS.get)


def same_kind(item: KernelObject) -> set[object]:
    return {each.key for each, _ in TOLD if type(each) is type(item)}


def test_an_entry_is_expected_until_it_was_told_of(told: tuple[KernelObject, bytes]) -> None:
    item, message = told
    entries = expected(item)
    datagram = b"before" + message + b"behind"
    assert not entries.told(item.key)
    assert entries.take(datagram, 6, 6 + len(message))
    assert entries.told(item.key)
    assert set(entries.untold()) == same_kind(item) - {item.key}
    assert not entries.take(datagram, 6, 6 + len(message))


def test_an_entry_with_more_to_it_is_another_one(told: tuple[KernelObject, bytes]) -> None:
    item, message = told
    entries = expected(item)
    more = message + bytes.fromhex("08000700 07000000")
    assert not entries.take(more, 0, len(more))
    assert set(entries.untold()) == same_kind(item)


def test_an_entry_that_differs_in_any_byte_is_another_one(told: tuple[KernelObject, bytes]) -> None:
    item, message = told
    entries = expected(item)
    settled = {Neighbour: -28, FdbEntry: -20}.get(type(item), -44 if item is ROUTE6 else 0)
    for place in range(len(message) + settled):
        other = bytearray(message)
        other[place] ^= 1
        assert not entries.take(bytes(other), 0, len(other)), place


def test_of_what_is_on_a_link_that_is_not_there_nothing_is_told(told: tuple[KernelObject, bytes]) -> None:
    item, message = told
    entries = Expected(item.key[0], Plans([item]), lambda _link: None)
    assert not entries.take(message, 0, len(message))
    assert not entries.told(item.key)
    assert list(entries.untold()) == [item.key]
