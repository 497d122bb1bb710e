"""The transaction for a ruleset as nft prints it: what is written, where, and when nothing is."""

from __future__ import annotations

import json
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from pyflannel.errors import KernelError
from pyflannel.firewall.foreign import find_drops
from pyflannel.firewall.iptables import parse as parse_iptables
from pyflannel.firewall.model import NO_RULES, plan
from pyflannel.firewall.nftables import parse, transaction
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPNetwork, Subnets

DUAL = NetworkConfig.from_json('{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10::/48"}')
SUBNETS = Subnets(IPv4Network("10.244.3.0/24"), IPv6Network("fd00:10:0:3::/64"))
ALL = plan(
    DUAL,
    SUBNETS,
    forward=True,
    masquerade=True,
    entrances=["flannel.1"],
    underlay="eth0",
    exits=["flannel.1"],
    ipsec=True,
)
FORWARD = plan(DUAL, SUBNETS, forward=True, masquerade=False)

NETWORKS: list[IPNetwork] = [IPv4Network("10.244.0.0/16"), IPv6Network("fd00:10::/48")]

Item = dict[str, Any]


def ruleset(*items: Item) -> str:
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *items]})


def foreign(*rules: list[Any], policy: str = "accept", family: str = "inet", hook: str = "forward") -> list[Item]:
    """A table ``theirs`` with one base chain ``f``; each rule is its expressions."""
    where = {"family": family, "table": "theirs", "chain": "f"}
    base = {"name": "f", "type": "filter", "hook": hook, "prio": 0, "policy": policy}
    return [
        {"table": {"family": family, "name": "theirs"}},
        {"chain": {"family": family, "table": "theirs", **base}},
        *({"rule": {**where, "handle": 10 + number, "expr": rule}} for number, rule in enumerate(rules)),
    ]


def match(left: Item, right: Any, op: str = "==") -> Item:
    return {"match": {"op": op, "left": left, "right": right}}


def interface(name: str, key: str = "iifname", op: str = "==") -> Item:
    return match({"meta": {"key": key}}, name, op)


SOURCE = match({"payload": {"protocol": "ip", "field": "saddr"}}, "192.0.2.1")
DROP, REJECT = {"drop": None}, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
COUNTER = {"counter": {"packets": 5, "bytes": 500}}


def listed(commands: list[Item], handle: int = 100) -> list[Item]:
    """What nft lists after a transaction on an empty ruleset."""
    items: list[Item] = []
    for command in commands:
        if "add" in command and command["add"] not in items:
            items.append(command["add"])
    return [
        {name: {**value, "handle": handle + number}}
        for number, item in enumerate(items)
        for name, value in item.items()
    ]


def passes(items: list[Item], **options: Any) -> list[tuple[str, int | None]]:
    """What is done to the foreign chain: added at the end, inserted before a handle, deleted."""
    found = []
    for group in transaction(parse(ruleset(*items)), FORWARD, own=False, **options):
        for command in group:
            ((verb, item),) = command.items()
            found.append((verb, item["rule"].get("handle")))
    return found


def test_an_empty_host_gets_a_chain_for_each_part_and_no_forward_chain() -> None:
    groups = transaction(parse(ruleset()), ALL, own=True)
    assert [
        [command["add"]["chain"]["name"] for command in group if "chain" in command.get("add", ())] for group in groups
    ] == [
        ["exits"],
        ["postrtg"],
        ["sources"],
    ] * 2, "each alone: what one kernel lacks leaves the other in place"
    assert {group[0]["add"]["table"]["name"] for group in groups} == {"flannel-ipv4", "flannel-ipv6"}
    text = json.dumps(groups)
    assert '"hook": "forward"' not in text
    assert text.count('"masquerade": {"flags": "fully-random"}') == 4
    assert transaction(parse(ruleset()), FORWARD, own=True) == []


def test_what_is_there_is_not_written_again() -> None:
    written = [command for group in transaction(parse(ruleset()), ALL, own=True) for command in group]
    there = listed(written)
    assert transaction(parse(ruleset(*there)), ALL, own=True) == []
    for number, item in enumerate(there):
        if "rule" in item:
            damaged = [*there[:number], *there[number + 1 :]]
            assert len(transaction(parse(ruleset(*damaged)), ALL, own=True)) == 1
    assert transaction(parse(ruleset(*there)), NO_RULES, own=True) == transaction(
        parse(ruleset(*there)), ALL, own=False
    )
    assert transaction(parse(ruleset(*there)), NO_RULES, own=True) == [
        [{"delete": {"table": {"family": "ip", "name": "flannel-ipv4"}}}],
        [{"delete": {"table": {"family": "ip6", "name": "flannel-ipv6"}}}],
    ]


def test_a_chain_too_many_goes_and_the_others_are_not_touched() -> None:
    """What is let in and out is checked all the time."""
    written = [command for group in transaction(parse(ruleset()), ALL, own=True) for command in group]
    opened = plan(DUAL, SUBNETS, forward=True, masquerade=True)
    assert transaction(parse(ruleset(*listed(written))), opened, own=True) == [
        [
            {verb: {"chain": {"family": family, "table": table, "name": name}}}
            for name in ("exits", "sources")
            for verb in ("flush", "delete")
        ]
        for family, table in (("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6"))
    ]


def test_a_chain_of_ours_that_somebody_else_has_made_otherwise_is_made_anew_at_once() -> None:
    """flanneld's has another priority."""
    written = [command for group in transaction(parse(ruleset()), ALL, own=True) for command in group]
    there = listed(written)
    for item in there:
        if item.get("chain", {}).get("name") == "postrtg":
            item["chain"]["prio"] = 99
    groups = transaction(parse(ruleset(*there)), ALL, own=True)
    assert [[next(iter(command)) for command in group[:4]] for group in groups] == [
        ["add", "flush", "delete", "add"]
    ] * 2
    assert json.dumps(groups).count('"masquerade"') == 4
    assert "sources" not in json.dumps(groups)


@pytest.mark.parametrize(
    ("items", "before"),
    [
        (foreign(policy="drop"), None),
        (foreign([SOURCE, DROP], policy="drop"), None),
        (foreign([SOURCE, DROP], [REJECT]), 11),
        (foreign([COUNTER, DROP]), 10),
        (foreign([interface("eth0"), DROP]), 10),
        (foreign([interface("a", op="!="), interface("a", "oifname"), DROP]), 10),
        (foreign([{"xt": {"type": "match", "name": "comment"}}, {"xt": {"type": "target", "name": "REJECT"}}]), 10),
        (foreign([{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["x", DROP]]}}}]), 10),
        (foreign([match({"meta": {"key": "nfproto"}}, "ipv4"), DROP]), 10),
    ],
)
def test_accepts_go_before_what_drops_all(items: list[Item], before: int | None) -> None:
    verb = "add" if before is None else "insert"
    assert passes(items) == [(verb, before)] * 4
    assert find_drops(parse(ruleset(*items)), {}, NETWORKS)[0].passed is False


@pytest.mark.parametrize(
    "items",
    [
        foreign([SOURCE, DROP]),
        foreign([interface("a"), interface("b", "oifname"), DROP]),
        foreign([match({"ct": {"key": "state"}}, "invalid"), DROP]),
        foreign([{"xt": {"type": "match", "name": "addrtype"}}, DROP]),
        foreign([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", DROP]]}}}]),
        foreign([{"limit": {"rate": 1, "per": "second"}}, DROP]),
        foreign(policy="drop", hook="input"),
        foreign([DROP], family="bridge"),
    ],
)
def test_drops_of_particular_packets_are_obeyed(items: list[Item]) -> None:
    assert passes(items) == []
    assert find_drops(parse(ruleset(*items)), {}, NETWORKS) == ()


def test_a_drop_behind_jumps_is_found_and_a_loop_is_no_end() -> None:
    items = foreign([{"jump": {"target": "a"}}])
    for name, expressions in (
        ("a", [interface("eth0"), {"goto": {"target": "b"}}]),
        ("b", [{"jump": {"target": "a"}}]),
    ):
        items.append({"chain": {"family": "inet", "table": "theirs", "name": name}})
        items.append({"rule": {"family": "inet", "table": "theirs", "chain": name, "handle": 50, "expr": expressions}})
    assert passes(items) == []
    items.append({"rule": {"family": "inet", "table": "theirs", "chain": "b", "handle": 51, "expr": [REJECT]}})
    assert passes(items) == [("insert", 10)] * 4


def ours(items: list[Item], handles: list[int]) -> list[Item]:
    """The accepts that the transaction for ``items`` writes, as nft lists them."""
    (group,) = transaction(parse(ruleset(*items)), FORWARD, own=False)
    rules = [rule["rule"] for command in group for rule in command.values()]
    return [{"rule": {**rule, "handle": handle}} for rule, handle in zip(rules, handles, strict=True)]


def test_accepts_in_place_stay_and_go_with_the_drop() -> None:
    table, chain, drop = foreign([REJECT])
    accepts = ours([table, chain, drop], [20, 21, 22, 23])
    assert passes([table, chain, *accepts, drop]) == []
    deleted = [("delete", handle) for handle in (20, 21, 22, 23)]
    assert passes([table, chain, drop, *accepts]) == [*deleted, *[("insert", 10)] * 4], "behind the drop"
    assert passes([table, chain, *accepts[:3], drop]) == [*deleted[:3], *[("insert", 10)] * 4]
    assert passes([table, chain, *accepts]) == deleted, "nothing drops any more"
    assert passes([table, chain, *accepts, drop], left_out=frozenset({("inet", "theirs")})) == deleted
    (found,) = find_drops(parse(ruleset(table, chain, *accepts, drop)), {}, NETWORKS)
    assert found.passed
    assert str(found) == "nftables inet theirs f (by its last rule)"


def test_each_family_gets_its_own_accepts() -> None:
    for family, protocol in (("ip", "ip"), ("ip6", "ip6")):
        (group,) = transaction(parse(ruleset(*foreign(policy="drop", family=family))), FORWARD, own=False)
        assert len(group) == 2
        assert json.dumps(group).count(f'"protocol": "{protocol}"') == 2


def test_drops_of_legacy_tables_are_found() -> None:
    text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j FLANNEL-FWD\nCOMMIT\n"
    (drop,) = find_drops(None, {4: parse_iptables(text)}, NETWORKS)
    assert (str(drop), drop.passed) == ("iptables-legacy ip filter FORWARD (policy drop)", True)
    (drop,) = find_drops(None, {4: parse_iptables(text.replace("-A FORWARD -j FLANNEL-FWD\n", ""))}, NETWORKS)
    assert not drop.passed
    assert find_drops(None, {4: parse_iptables(text)}, NETWORKS[1:]) == ()


@pytest.mark.parametrize(
    ("destination", "found"),
    [
        ("10.244.3.2", True),
        ({"prefix": {"addr": "10.244.3.0", "len": 24}}, True),
        ("172.17.0.2", False),
        ("@set", False),
    ],
)
def test_docker_28_s_rules_before_routing_are_named(destination: Any, found: bool) -> None:
    daddr = match({"payload": {"protocol": "ip", "field": "daddr"}}, destination)
    items = foreign([daddr, interface("docker0", op="!="), COUNTER, DROP], family="ip", hook="prerouting")
    drops = find_drops(parse(ruleset(*items)), {}, NETWORKS)
    assert [(drop.chain, drop.passed) for drop in drops] == ([("f", False)] if found else [])
    assert passes(items) == [], "they are somebody's decision"


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("-d 10.244.3.2/32 ! -i docker0 -j DROP", True),
        ("! -i docker0 -d 10.244.3.2/32 -j DROP", True),
        ("-d 10.244.3.2/32 -j DROP", False),
        ("! -d 10.244.3.2/32 ! -i docker0 -j DROP", False),
        ("-d 10.244.3.2/32 ! -i docker0 -j ACCEPT", False),
        ("-d 172.17.0.2/32 ! -i docker0 -j DROP", False),
        ("-m addrtype --dst-type LOCAL -j DROP", False),
    ],
)
def test_docker_28_s_rules_in_legacy_tables_are_named(rule: str, found: bool) -> None:
    text = f"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\nCOMMIT\n"
    drops = find_drops(None, {4: parse_iptables(text)}, NETWORKS)
    said = ["iptables-legacy ip raw PREROUTING (by a rule for single containers; does dockerd lack"]
    assert [str(drop).partition(" --")[0] for drop in drops if not drop.passed] == (said if found else [])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"nftables": [{"rule": {}}]}', '{"nftables": [{"chain": {}}]}'])
def test_what_is_no_ruleset_is_an_error(text: str) -> None:
    with pytest.raises(KernelError, match="nft's ruleset can't be read"):
        parse(text)
