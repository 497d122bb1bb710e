"""The codec of IPsec policies: what is written is what is read, and what somebody else wrote is not taken for ours."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.kernel import wire, xfrm
from pyflannel.kernel.model import XFRM_DIRECTIONS, XFRM_INTERFACES, XfrmPolicy

HEADER = wire.HEADER.size


def networks(version: int) -> st.SearchStrategy[Any]:
    kind, bits = (IPv4Network, 32) if version == 4 else (IPv6Network, 128)
    addresses = st.integers(0, (1 << bits) - 1)
    return st.builds(
        lambda address, length: kind((address >> (bits - length) << (bits - length) if length else 0, length)),
        addresses,
        st.integers(0, bits),
    )


def addresses(version: int) -> st.SearchStrategy[Any]:
    kind, bits = (IPv4Address, 32) if version == 4 else (IPv6Address, 128)
    return st.integers(0, (1 << bits) - 1).map(kind)


@st.composite
def policies(draw: st.DrawFn) -> XfrmPolicy:
    inner, outer = draw(st.sampled_from([4, 6])), draw(st.sampled_from([4, 6]))
    return XfrmPolicy(
        draw(networks(inner)),
        draw(networks(inner)),
        draw(st.sampled_from(sorted(XFRM_DIRECTIONS))),
        draw(st.sampled_from(XFRM_INTERFACES)),
        draw(addresses(outer)),
        draw(addresses(outer)),
        draw(st.integers(0, 0xFFFFFFFF)),
        draw(st.integers(0, 0xFFFFFFFF)),
    )


@given(policies())
def test_there_and_back(policy: XfrmPolicy) -> None:
    message = xfrm.encode_policy(policy)
    row = xfrm.parse_policy(xfrm.UPDPOLICY, message, HEADER, len(message))
    assert row is not None
    assert row.policy == policy
    assert xfrm.ours([row], {policy.key: policy}) == [policy]


@given(policies(), st.integers(0, 0xFFFFFFFF).filter(lambda number: number not in XFRM_INTERFACES))
def test_a_number_that_is_not_ours_is_somebody_s(policy: XfrmPolicy, number: int) -> None:
    before, after = (each.to_bytes(4, sys.byteorder) for each in (policy.if_id, number))
    message = xfrm.encode_policy(policy)
    message = message[:-4] + message[-4:].replace(before, after)
    row = xfrm.parse_policy(xfrm.UPDPOLICY, message, HEADER, len(message))
    assert row is not None
    assert row.if_id == number
    assert row.policy is None


@pytest.mark.parametrize("length", range(0, 232, 8))
def test_a_message_that_ends_early_is_nothing(length: int) -> None:
    policy = XfrmPolicy(
        *(IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24"), "out", XFRM_INTERFACES[0]),
        *(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")),
    )
    message = xfrm.encode_policy(policy)
    row = xfrm.parse_policy(xfrm.UPDPOLICY, message[:length], min(HEADER, length), length)
    assert row is None or row.policy is None or not row.policy.plain
