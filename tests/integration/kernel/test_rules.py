"""Policy rules on every kernel port: the kernel in memory and a real one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from tests.integration.kernel.conftest import NamespaceWorld

from pyflannel.kernel.model import ROUTE_PROTOCOL, Kind, Link, Rule, VxlanInfo
from pyflannel.kernel.port import Scope, Write
from pyflannel.network.underlay import Question, Way

TABLE = 4711


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def network(version: int, number: int) -> Any:
    return ip_network(f"10.{number}.0.0/16" if version == 4 else f"fd00:{number}::/32")


def plain(version: int) -> Rule:
    return Rule(version, 100, network(version, 1), table=TABLE)


def variety(version: int) -> list[Rule]:
    """Rules of all sorts, each another one to the kernel."""
    one, two = network(version, 1), network(version, 2)
    return [
        plain(version),
        Rule(version, 100, one, two, table=TABLE),
        Rule(version, 101, one, table=TABLE),
        Rule(version, 100, None, two, table=100),
        Rule(version, 100, one, iif="eth0", table=TABLE),
        Rule(version, 100, oif="not-there", table=TABLE),
        Rule(version, 100, mark=0x20, table=TABLE),
        Rule(version, 100, mark=0x20, mask=0xF0, table=TABLE),
        Rule(version, 100, mark=0, mask=0xF0, table=TABLE),
        Rule(version, 100, mark=0x30, inverted=True, table=TABLE),
        Rule(version, 100, one, table=TABLE, suppress_prefixlength=0),
        Rule(version, 100, one, action="blackhole"),
        Rule(version, 100, one, action="unreachable"),
        Rule(version, 100, two, action="prohibit"),
        Rule(version, 4294967294, table=100),
    ]


def found(world: Any) -> dict[Any, Any]:
    return {key: item for key, item in world.dump().items() if key[0] is Kind.RULE}


def test_what_was_written_is_what_is_dumped(world: Any, version: int) -> None:
    wanted = {rule.key: rule for rule in variety(version)}
    assert len(wanted) == len(variety(version))
    assert world.write(*wanted.values()) == {}
    assert found(world) == wanted
    assert world.become(wanted.values()) == 0


def test_there_and_back_again(world: Any, version: int) -> None:
    rules = variety(version)
    one, two = rules[::2], rules[1::2]
    world.become(one)
    before = world.rules(version)
    world.become(two)
    assert found(world) == {rule.key: rule for rule in two}
    world.become(one)
    assert world.rules(version) == before


def test_one_family_s_rules_are_not_the_other_s(world: Any) -> None:
    rules = [Rule(version, 100, mark=7, table=TABLE) for version in (4, 6)]
    world.become(rules)
    world.become(rules[1:])
    assert found(world) == {rules[1].key: rules[1]}
    assert world.rules(4) == []


@pytest.mark.parametrize("order", [1, -1], ids=["general first", "general last"])
def test_a_general_rule_goes_and_the_special_ones_stay(world: Any, version: int, order: int) -> None:
    """A request for its deletion fits them, too, and the kernel takes the first that fits."""
    general = Rule(version, 100, table=TABLE)
    special = [rule for rule in variety(version) if rule.priority == 100 and rule.table == TABLE]
    for rule in [general, *special][::order]:
        assert world.write(rule) == {}
    assert world.port.apply([Write(general, None)]) == {}
    assert found(world) == {rule.key: rule for rule in special}
    assert world.become([]) == len(special)
    assert world.rules(version) == []


def test_a_rule_is_turned_round(world: Any, version: int) -> None:
    """Which is no other rule to the kernel."""
    straight = plain(version)
    turned = replace(straight, inverted=True)
    assert straight.key == turned.key
    for rule in (straight, turned, straight):
        world.become([rule])
        assert found(world) == {rule.key: rule}
        assert len(world.rules(version)) == 1


def test_what_somebody_deletes_is_told_and_comes_back(world: Any, version: int) -> None:
    rules = variety(version)
    world.become(rules)
    world.quiet()
    for rule in (rules[1], rules[2], rules[-1]):  # iproute2, too, is understood to mean the first that fits
        world.remove(rule)
        told = world.until(lambda notice, key=rule.key: key in notice.changes)
        assert told.changes == {rule.key: None}
        assert world.become(rules) == 1
    assert found(world) == {rule.key: rule for rule in rules}


def test_somebody_s_rules_are_neither_seen_nor_touched(world: Any, version: int) -> None:
    ours = plain(version)
    theirs = [ours, replace(ours, table=100), replace(ours, inverted=True, priority=99)]
    for rule in theirs:
        world.put(rule)
    before = world.rules(version)
    assert found(world) == {}
    world.become([ours])
    assert found(world) == {ours.key: ours}
    world.quiet()
    assert world.become([]) == 1
    assert world.rules(version) == before


def test_a_leftover_of_ours_is_told_and_swept(world: Any, version: int) -> None:
    leftover = plain(version)
    world.quiet()
    world.put(leftover, ROUTE_PROTOCOL)
    assert world.until(lambda notice: leftover.key in notice.changes).changes == {leftover.key: leftover}
    assert found(world) == {leftover.key: leftover}
    assert world.become([]) == 1
    assert world.rules(version) == []


def test_a_rule_outlives_the_device_that_it_names(world: Any, version: int) -> None:
    from ipaddress import ip_address

    link = Link("flannel.1", VxlanInfo(1, 8472, ip_address("192.0.2.1"), "eth0"), 1450, "02:00:00:00:01:01")
    rule = Rule(version, 100, iif="flannel.1", table=TABLE)
    world.become([link, rule])
    world.become([rule])
    assert found(world) == {rule.key: rule}
    assert world.become([link, rule]) == 1


def test_a_write_can_be_repeated(world: Any, version: int) -> None:
    rule = plain(version)
    for _ in range(2):
        assert world.port.apply([Write(None, rule)]) == {}
        assert len(world.rules(version)) == 1


def test_own_writes_are_not_told(world: Any, version: int) -> None:
    world.become(variety(version))
    world.become([plain(version)])
    assert not world.quiet().changes


def test_everything_can_be_deleted_twice(world: Any, version: int) -> None:
    world.become(variety(version))
    deletions = [Write(rule, None) for rule in variety(version)]
    for _ in range(2):
        assert world.port.apply(deletions) == {}
    assert found(world) == {}


SPACE: dict[int, Any] = {4: ip_network("10.1.0.0/16"), 6: ip_network("fd00:1::/32")}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("to {inside} prohibit priority 100", True),
        ("from {inside} to {inside} lookup 100 priority 100", True),
        ("not fwmark 0xca6c lookup 51820 priority 100", True),
        ("lookup 100 priority 100", True),
        ("fwmark 0/0xff lookup 100 priority 100", True),
        ("to {outside} prohibit priority 100", False),
        ("from {outside} lookup 100 priority 100", False),
        ("fwmark 0x200/0xf00 lookup 2004 priority 9", False),
        ("lookup main suppress_prefixlength 0 priority 100", False),
        ("oif eth0 lookup 100 priority 100", False),
        ("prohibit priority 40000", False),
        ("to {inside} prohibit priority 100 protocol 241", False),
        ("to {inside} ipproto tcp prohibit priority 100", False),
        ("l3mdev priority 1000", False),
    ],
)
def test_of_others_rules_those_are_told_that_may_divert_packets(
    namespace: NamespaceWorld, version: int, words: str, told: bool
) -> None:
    """As wg-quick(8), Cilium, VRFs and hosts with several uplinks have them."""
    namespace.port.dump(Scope(spaces=(SPACE[version],)))
    assert namespace.port.look_around().rules == ()
    namespace.quiet()
    given = words.format(inside=next(SPACE[version].subnets()), outside=network(version, 2)).split()
    for verb in ("add", "delete"):
        namespace.ip(f"-{version}", "rule", verb, *given)
        assert namespace.quiet().diversions == told, "whether to look around"
        assert len(namespace.port.look_around().rules) == (told and verb == "add")


def test_a_change_of_a_table_that_others_rules_look_up_is_told(namespace: NamespaceWorld, version: int) -> None:
    namespace.port.dump(Scope(spaces=(SPACE[version],)))
    add = (f"-{version}", "route", "add", "blackhole")
    namespace.ip(*add, str(SPACE[version]), "table", "100")
    assert not namespace.quiet().diversions
    namespace.ip(f"-{version}", "rule", "add", "lookup", "100", "priority", "100")
    namespace.quiet()
    namespace.port.look_around()
    namespace.ip(*add, str(network(version, 2)), "table", "100")
    assert not namespace.quiet().diversions, "it leads elsewhere"
    namespace.ip(*add, "default", "table", "100")
    assert namespace.quiet().diversions


def test_the_kernel_is_asked_by_all_rules_and_says_which_table_decides(namespace: NamespaceWorld, version: int) -> None:
    own, peer = (list(SPACE[version].subnets(new_prefix=SPACE[version].prefixlen + 8))[number] for number in (1, 2))
    question = Question(peer.network_address + 1)
    namespace.ip("link", "add", "one", "type", "veth", "peer", "name", "other")
    namespace.ip("link", "set", "other", "up")
    namespace.ip("link", "set", "one", "up")
    namespace.ip("address", "add", f"{own.network_address + 1}/{own.max_prefixlen}", "dev", "one")
    namespace.port.dump(Scope())
    namespace.ip(f"-{version}", "route", "add", str(peer), "dev", "one", "table", "100")
    assert namespace.port.ask_ways([question]) == ["unreachable"]
    namespace.ip(f"-{version}", "rule", "add", "lookup", "100", "priority", "100")
    (way,) = namespace.port.ask_ways([question])
    assert isinstance(way, Way)
    assert (way.interface, way.table) == ("one", 100)
    namespace.ip(f"-{version}", "rule", "add", "to", str(peer), "prohibit", "priority", "99")
    assert namespace.port.ask_ways([question]) == ["prohibit"]
