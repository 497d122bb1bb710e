"""Metrics of IPv4 routes with gateways: stable, spread, and only where they help."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.daemon.extras import BLACKHOLE_METRIC
from pyflannel.kernel.model import IpEncapsulation, KernelObject, Neighbour, Route
from pyflannel.kernel.packed import unpack
from pyflannel.planning.spread import METRICS, kept, metric_of, spread
from pyflannel_backends.shut import SHUT

GATEWAY = ip_address("192.0.2.2")


@given(st.integers(0, 2**32 - 1), st.integers(1, 32))
def test_every_subnet_has_a_metric_of_the_range(number: int, length: int) -> None:
    assert metric_of(IPv4Network((number, length), strict=False)) in METRICS


def test_neighbouring_subnets_fill_the_range_evenly() -> None:
    shares = Counter(metric_of(IPv4Network((0x0A000000 + (number << 8), 24))) for number in range(50_000))
    assert len(shares) == len(METRICS)
    assert max(shares.values()) - min(shares.values()) <= 1


def test_a_metric_stays_what_it_was() -> None:
    assert metric_of(ip_network("10.5.3.0/24")) == 1284


@pytest.mark.parametrize(
    "item",
    [
        Route(ip_network("10.5.2.0/24"), "p2"),
        Route(ip_network("10.5.2.0/24"), None, metric=4000000000),
        Route(ip_network("10.5.2.0/24"), "eth0", GATEWAY, metric=7),
        Route(ip_network("fd00::/64"), "eth0", ip_address("2001:db8::2")),
        Neighbour("p2", GATEWAY, "02:00:00:00:00:01"),
    ],
    ids=str,
)
def test_what_needs_no_metric_stays_as_it_is(item: KernelObject) -> None:
    assert spread([item]) == unpack(kept([item])) == (item,)


def test_a_route_to_a_gateway_differs_in_its_metric_alone() -> None:
    plain = Route(ip_network("10.5.3.0/24"), "flannel.1", ip_address("10.5.3.0"), onlink=True)
    tunnel = IpEncapsulation(ip_address("192.0.2.2"), 7)
    full = Route(plain.destination, "tun7", GATEWAY, True, GATEWAY, None, "local", 4711, (("mtu", 1400),), tunnel)
    assert all(getattr(full, each.name) != each.default for each in fields(full) if each.name != "metric")
    for route in (plain, full):
        assert spread([route]) == unpack(kept([route])) == (replace(route, metric=1284),)
    assert isinstance(kept([plain]), bytes)
    assert isinstance(kept([full]), tuple)


def test_what_makes_packets_end_stays_behind_all() -> None:
    assert METRICS[-1] < min(SHUT, BLACKHOLE_METRIC)
