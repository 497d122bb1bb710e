"""IPsec policies, on the kernel in memory and on a real one, where iproute2 shows them and changes them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from tests.integration.kernel.conftest import NamespaceWorld, policy_words

from pyflannel.kernel.model import XFRM_INTERFACES, Kind, XfrmPolicy
from pyflannel.kernel.port import ForeignPolicy, Scope, Write

POLICIES = Scope(xfrm=True)
IF_ID = XFRM_INTERFACES[1]


def policy(version: int, direction: str = "out", number: int = 2, outer: int | None = None) -> XfrmPolicy:
    near, far = (ip_network(f"10.1.{each}.0/24" if version == 4 else f"fd00:1:{each}::/64") for each in (1, number))
    here, there = (
        ip_address(f"192.0.2.{each}" if (outer or version) == 4 else f"2001:db8::{each}") for each in (1, number)
    )
    if direction == "out":
        return XfrmPolicy(near, far, direction, IF_ID, here, there, reqid=11)
    return XfrmPolicy(far, near, direction, IF_ID, there, here, reqid=11)


def listed(world: NamespaceWorld) -> str:
    """As iproute2 shows them, in one line."""
    return " ".join(world.ip("xfrm", "policy", "list").split())


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def followed(world: Any) -> Any:
    world.scope = POLICIES
    world.dump()
    return world


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("direction", ["in", "out", "fwd"])
def test_what_was_written_is_what_is_dumped(followed: Any, version: int, direction: str, outer: int) -> None:
    item = replace(policy(version, direction, outer=outer), priority=7)
    assert followed.write(item) == {}
    assert followed.dump() == {item.key: item}
    assert followed.write(item) == {}
    assert followed.quiet().changes == {}, "our own writes are told as others'"


@pytest.mark.root
@pytest.mark.parametrize("direction", ["in", "out", "fwd"])
def test_iproute2_says_the_same(namespace: NamespaceWorld, version: int, direction: str) -> None:
    item = policy(version, direction)
    assert namespace.port.apply([Write(None, item)]) == {}
    shown = listed(namespace)
    assert f"src {item.source} dst {item.destination} dir {direction}" in shown
    assert f"tmpl src {item.tunnel_source} dst {item.tunnel_destination} proto esp" in shown
    assert "reqid 11 mode tunnel" in shown
    assert f"if_id {IF_ID:#x}" in shown
    assert namespace.port.apply([Write(item, None)]) == {}
    assert listed(namespace) == ""


def test_changes_in_place_and_deletion_twice(followed: Any, version: int) -> None:
    item = policy(version)
    others = [policy(version, direction) for direction in ("in", "fwd")]
    moved = replace(item, tunnel_destination=policy(version, number=3).tunnel_destination, priority=9)
    assert followed.write(item, *others) == {}
    assert followed.write(moved) == {}
    assert followed.dump() == {each.key: each for each in (moved, *others)}
    for _ in range(2):
        assert followed.port.apply([Write(moved, None)]) == {}
    assert followed.dump() == {each.key: each for each in others}


def test_what_others_do_is_told(followed: Any, version: int) -> None:
    item = policy(version)
    assert followed.write(item) == {}
    bent = replace(item, tunnel_destination=policy(version, number=3).tunnel_destination)
    followed.put(bent)
    followed.until(lambda told: told.changes.get(item.key) == bent)
    followed.remove(bent)
    followed.until(lambda told: told.changes.get(item.key, item) is None)
    followed.put(item)
    followed.until(lambda told: told.changes.get(item.key) == item)


@pytest.mark.root
def test_all_that_is_flushed_asks_for_a_dump(namespace: NamespaceWorld, version: int) -> None:
    item = policy(version)
    assert namespace.port.apply([Write(None, item)]) == {}
    namespace.ip("xfrm", "policy", "flush")
    namespace.until(lambda told: told.resync)
    assert namespace.port.dump(POLICIES) == {}


@pytest.mark.root
@pytest.mark.parametrize(
    "bent",
    [
        ["action", "block"],
        ["flag", "icmp"],
        ["limit", "packet-hard", "1000"],
        ["tmpl", "proto", "ah", "mode", "transport"],
        ["level", "use"],
    ],
    ids=" ".join,
)
def test_what_we_would_not_write_is_put_right(namespace: NamespaceWorld, version: int, bent: list[str]) -> None:
    item = policy(version, "in")
    assert namespace.port.apply([Write(None, item)]) == {}
    words = policy_words(item)
    split = words.index("tmpl")
    whole = [*words, *bent] if bent[0] in ("tmpl", "level") else [*words[:split], *bent, *words[split:]]
    namespace.ip("xfrm", "policy", "update", *whole)
    told = namespace.until(lambda told: item.key in told.changes)
    seen = namespace.port.dump(POLICIES)[item.key]
    assert seen == told.changes[item.key] != item
    assert namespace.port.apply([Write(seen, item)]) == {}
    assert namespace.port.dump(POLICIES) == {item.key: item}


@pytest.mark.root
@pytest.mark.parametrize(
    "theirs",
    [["if_id", "0x1"], [], ["mark", "7"], ["proto", "tcp"]],
    ids=lambda words: " ".join(words) or "no interface",
)
def test_others_policies_for_the_same_networks_are_left_alone(
    namespace: NamespaceWorld, version: int, theirs: list[str]
) -> None:
    item = policy(version)
    assert namespace.port.apply([Write(None, item)]) == {}
    selector = ["src", str(item.source), "dst", str(item.destination)]
    number = theirs if "if_id" in theirs or not theirs else [*theirs, "if_id", hex(IF_ID)]
    proto = number[:2] if "proto" in number else []
    rest = number[2:] if proto else number
    namespace.ip("xfrm", "policy", "add", *selector, *proto, "dir", "out", *rest, "action", "block")
    assert namespace.port.dump(POLICIES) == {item.key: item}
    assert namespace.port.apply([Write(item, None)]) == {}
    assert namespace.port.dump(POLICIES) == {}
    assert "action block" in listed(namespace)


@pytest.mark.root
def test_nobody_s_policies_are_looked_at_where_none_of_ours_can_be(namespace: NamespaceWorld) -> None:
    namespace.put(policy(4))
    assert not [key for key in namespace.port.dump(Scope()) if key[0] is Kind.XFRM_POLICY]


def test_what_is_gone_already_keeps_nothing_else_from_going(followed: Any, version: int) -> None:
    one, other = policy(version, number=2), policy(version, number=3)
    assert followed.write(one, other) == {}
    assert followed.port.apply([Write(policy(version, number=4), None), Write(one, None)]) == {}
    assert followed.dump() == {other.key: other}


@pytest.mark.root
@pytest.mark.parametrize(
    ("destination", "rest", "named"),
    [
        ("10.1.0.0/16", ["action", "block"], True),
        ("0.0.0.0/0", ["action", "block"], True),
        ("10.1.9.0/24", ["tmpl", "src", "192.0.2.1", "dst", "192.0.2.9", "proto", "esp", "mode", "tunnel"], True),
        ("10.2.0.0/16", ["action", "block"], False),
        ("10.1.0.0/16", [], False),
        ("10.1.0.0/16", ["if_id", "1", "action", "block"], False),
        ("10.1.0.0/16", ["mark", "1", "action", "block"], False),
    ],
)
def test_others_policies_that_take_packets_of_the_overlay_away_are_named(
    namespace: NamespaceWorld, destination: str, rest: list[str], named: bool
) -> None:
    item = policy(4)
    spaces = (ip_network("10.1.0.0/16"),)
    namespace.port.dump(Scope(xfrm=True, spaces=spaces))
    assert namespace.port.apply([Write(None, item)]) == {}
    assert namespace.port.look_around().policies == ()
    namespace.ip("xfrm", "policy", "add", "src", "10.0.0.0/8", "dst", destination, "dir", "out", *rest)
    assert namespace.quiet().diversions, "nobody is told to look around"
    expected = ForeignPolicy(ip_network("10.0.0.0/8"), ip_network(destination))
    assert namespace.port.look_around().policies == ((expected,) if named else ())
