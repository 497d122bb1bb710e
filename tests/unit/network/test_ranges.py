from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.network.lease import Subnets
from pyflannel.network.ranges import Ranges

NUMBERS = st.integers(0, 255)
STEPS = st.lists(st.tuples(st.booleans(), st.integers(20, 28), NUMBERS, NUMBERS), max_size=40)


def subnet(family: int, length: int, high: int, low: int) -> Subnets:
    number = high << 8 | low
    if family == 4:
        return Subnets(IPv4Network((0x0A050000 | number, length), strict=False))
    return Subnets(None, IPv6Network((0xFD << 120 | number, 96 + length), strict=False))


@pytest.mark.parametrize("family", [4, 6])
@given(STEPS, st.integers(20, 28), NUMBERS, NUMBERS)
def test_who_overlaps_is_what_a_look_at_each_finds(
    family: int, steps: list[tuple[bool, int, int, int]], length: int, high: int, low: int
) -> None:
    ranges, held = Ranges(), set()
    asked = subnet(family, length, high, low)
    for add, *place in steps:
        item = subnet(family, *place)
        if add:
            ranges.add(item, item.key)
            held.add(item)
        else:
            ranges.remove(item)
            held.discard(item)
        assert ranges.overlapping(asked) == {each.key for each in held if each.overlaps(asked)}
        assert ranges.holder(item.each[0]) == (item.key if add else None)
