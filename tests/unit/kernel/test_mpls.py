"""The codec of MPLS labels: what is written is what is read, and what is more than ours can be is not taken for it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.kernel import mpls, wire
from pyflannel.kernel.model import ROUTE_PROTOCOL, MplsRoute

HEADER = wire.HEADER.size
LABELS = st.integers(0, (1 << 20) - 1).filter(lambda label: label != 3)
GATEWAYS = st.none() | st.integers(0, (1 << 32) - 1).map(IPv4Address) | st.integers(0, (1 << 128) - 1).map(IPv6Address)
ROUTES = st.builds(
    MplsRoute,
    LABELS.filter(lambda label: label > 15),
    st.just("eth0"),
    GATEWAYS,
    st.lists(LABELS, max_size=30).map(tuple),
)


def read(message: bytes) -> mpls.LabelRow | None:
    return mpls.parse_label(message, HEADER, len(message))


@given(ROUTES, st.integers(1, (1 << 31) - 1))
def test_there_and_back(route: MplsRoute, link: int) -> None:
    row = read(mpls.encode_label(wire.RTM_NEWROUTE, route, link))
    assert row is not None
    assert (row.protocol, row.link) == (ROUTE_PROTOCOL, link)
    assert row.route("eth0") == route


@pytest.mark.parametrize(
    "more",
    [wire.attribute(26, b"\1"), wire.attribute(9, bytes(8)), wire.attribute(18, b"\x11\0" + bytes(6))],
    ids=["a word about TTLs", "several ways", "a gateway with a MAC address"],
)
def test_what_is_more_than_we_say_is_not_plain(more: bytes) -> None:
    message = mpls.encode_label(wire.RTM_NEWROUTE, MplsRoute(16, "eth0"), 2) + more
    row = read(message)
    assert row is not None
    assert not row.plain
    assert row.route("eth0") != MplsRoute(16, "eth0")


def test_a_route_of_another_family_is_none() -> None:
    """As a kernel without MPLS answers, which tells of all routes."""
    message = bytearray(mpls.encode_label(wire.RTM_NEWROUTE, MplsRoute(16, "eth0"), 2))
    message[HEADER] = 2
    assert read(bytes(message)) is None


def test_a_link_that_is_gone_has_a_name_all_the_same() -> None:
    row = read(mpls.encode_label(wire.RTM_NEWROUTE, MplsRoute(16, "eth0"), 7))
    assert row is not None
    assert row.route(None).link == "if7"


def test_a_deletion_names_the_label_and_no_way() -> None:
    message = mpls.encode_label(wire.RTM_DELROUTE, MplsRoute(16, "eth0", IPv4Address("192.0.2.1"), (17,)), 2)
    row = read(message)
    assert row == (16, ROUTE_PROTOCOL, 0, None, (), True)
