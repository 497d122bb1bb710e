"""Devices of kinds that we know nothing about: a refused attribute is named, and libraries keep their stacks."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pyflannel.kernel.links import LinkTable, encode_new_link, in_order, parse_link
from pyflannel.kernel.model import GenericInfo, Link

GOOD = ("IFLA_GRE_LOCAL", "192.0.2.1")


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (("IFLA_GRE_TTL", "many"), "IFLA_GRE_TTL = 'many': a gre device can't have that value"),
        (("IFLA_GRE_TTL", 500), "IFLA_GRE_TTL = 500: a gre device can't have that value"),
        (("IFLA_GRE_REMOTE", "nowhere"), "IFLA_GRE_REMOTE = 'nowhere': a gre device can't have that value"),
        (("IFLA_GRE_COLOUR", 1), "IFLA_GRE_COLOUR = 1 is not an attribute of a gre device"),
        (
            ("IFLA_GRE_LOCALE", "x"),
            "IFLA_GRE_LOCALE = 'x' is not an attribute of a gre device: did you mean 'IFLA_GRE_LOCAL'?",
        ),
        (
            ("COLOUR", 1),
            "COLOUR = 1 is not an attribute of a gre device; one that pyroute2 has no name for is named by its",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_refused_attribute_is_named_alone(
    item: tuple[str, str | int], told: str, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data = (item, GOOD) if first else (GOOD, item)
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        encode_new_link(Link("gre7", GenericInfo("gre", None, data), 1400), 0)
    assert "192.0.2.1" not in str(refused.value)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("ip6gre", ((18, b""),)),
        ("ip6gre", (("IFLA_IP6GRE_TTL", 64), (18, b""), (77, b"abc"))),
        ("gre", ((7, bytes([192, 0, 2, 1])),)),
        ("macvlan", (("IFLA_MACVLAN_MODE", "bridge"),)),
    ],
)
@pytest.mark.parametrize("mac", [None, "02:00:00:00:00:01"])
def test_attributes_come_back_under_the_names_they_were_given(kind: str, data: Any, mac: str | None) -> None:
    wanted = Link("x0", GenericInfo(kind, None, data), 1400, mac, up=False, marked=False)
    encoded = encode_new_link(wanted, 0)
    row = parse_link(encoded, 16, len(encoded))
    assert row is not None
    assert LinkTable({"x0": wanted}).link(row) == wanted


def test_links_come_after_what_they_need_whatever_the_plan_s_order() -> None:
    """What they sit on, what they are part of, and what they are made with."""
    pair = GenericInfo("veth", None, (("VETH_INFO_PEER", (("IFLA_IFNAME", "end1"),)),))
    links = [
        Link("top", GenericInfo("macvlan", "middle"), 1400),
        Link("end1", GenericInfo("veth"), 1400, master="bridge"),
        Link("middle", GenericInfo("vlan", "eth0"), 1400, master="bridge"),
        Link("end0", pair, 1400),
        Link("bridge", GenericInfo("bridge"), 1500),
    ]
    for plan in (links, links[::-1]):
        names = [link.name for link in in_order(plan, lambda link: link)]
        assert sorted(names) == sorted(link.name for link in links)
        for first, then in (("middle", "top"), ("bridge", "middle"), ("bridge", "end1"), ("end0", "end1")):
            assert names.index(first) < names.index(then)
    circle = [Link("a", GenericInfo("vlan", "b"), 1400), Link("b", GenericInfo("vlan", "a"), 1400)]
    assert in_order(circle, lambda link: link) == circle
