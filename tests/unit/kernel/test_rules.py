"""Policy rules as messages: what is encoded is what is parsed, what pyroute2 reads in them, and a deletion takes just
the one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg

from pyflannel.kernel import rules, wire
from pyflannel.kernel.model import ROUTE_PROTOCOL, RULE_ACTIONS, Rule
from pyflannel.kernel.port import Write, rule_order
from pyflannel.network.lease import IPNetwork

PRIORITIES = st.integers(1, 2**32 - 1)
TABLES = st.integers(1, 2**32 - 1).filter(lambda table: table != 255)
NAMES = st.sampled_from(["", "lo", "eth0", "flannel-v6.1", "fünf"])
MARKS = st.none() | st.tuples(st.sampled_from([0, 1, 0xFF, 2**32 - 1]), st.sampled_from([1, 0xFF, 2**32 - 1]))


@st.composite
def some(draw: st.DrawFn, version: int | None = None, priorities: st.SearchStrategy[int] = PRIORITIES) -> Rule:
    version = draw(st.sampled_from([4, 6])) if version is None else version
    networks: st.SearchStrategy[IPNetwork] = st.sampled_from(
        [IPv4Network("10.1.0.0/16"), IPv4Network("10.1.2.3/32")]
        if version == 4
        else [IPv6Network("fd00::/16"), IPv6Network("fd00:1::/128")]
    )
    action = draw(st.sampled_from(["lookup", "lookup", *RULE_ACTIONS]))
    mark, mask = draw(MARKS) or (None, 2**32 - 1)
    return Rule(
        version,
        draw(priorities),
        draw(st.none() | networks),
        draw(st.none() | networks),
        draw(NAMES),
        draw(NAMES),
        mark,
        mask,
        draw(st.booleans()),
        action,
        draw(TABLES) if action == "lookup" else 0,
        draw(st.none() | st.sampled_from([0, 32])) if action == "lookup" else None,
    )


def created(rule: Rule) -> bytes:
    return rules.encoded(rules.RTM_NEWRULE, rule, wire.NLM_F_CREATE)


def parsed(message: bytes) -> Rule | None:
    ((_, _, _, _, start, end),) = wire.messages(message)
    return rules.parse_rule(message, start, end)


@given(some())
def test_rules_come_back(rule: Rule) -> None:
    assert parsed(created(rule)) == rule


@given(some())
def test_rules_as_pyroute2_reads_them(rule: Rule) -> None:
    found = fibmsg(created(rule))
    found.decode()
    said = dict(found["attrs"])
    assert found["family"] == (2 if rule.version == 4 else 10)
    assert found["action"] == RULE_ACTIONS[rule.action]
    assert bool(found["flags"] & 2) is rule.inverted
    assert (found["src_len"], found["dst_len"]) == tuple(
        end.prefixlen if end is not None else 0 for end in (rule.source, rule.destination)
    )
    for name, end in (("FRA_SRC", rule.source), ("FRA_DST", rule.destination)):
        assert said.get(name) == (None if end is None else str(end.network_address))
    assert said["FRA_PRIORITY"] == rule.priority
    assert said["FRA_PROTOCOL"] == ROUTE_PROTOCOL
    assert (said.get("FRA_IIFNAME", ""), said.get("FRA_OIFNAME", "")) == (rule.iif, rule.oif)
    assert said.get("FRA_FWMARK") == rule.mark
    assert said.get("FRA_TABLE", 0) == rule.table
    assert said.get("FRA_SUPPRESS_PREFIXLEN") == rule.suppress_prefixlength


@pytest.mark.parametrize(
    ("kind", "value"),
    [(20, bytes(8)), (22, b"\6"), (23, bytes(4)), (24, bytes(4)), (12, bytes(8)), (19, b"\1"), (13, b"\1\0\0\0")],
    ids=["user", "protocol", "source port", "destination port", "tunnel", "VRF", "group"],
)
def test_what_says_more_than_ours_ever_do_is_somebody_s(kind: int, value: bytes) -> None:
    plain = created(Rule(4, 100, table=100))
    ((number, flags, _, _, start, _),) = wire.messages(plain)
    assert parsed(wire.message(number, flags, plain[start:] + wire.attribute(kind, value))) is None


def test_another_protocol_s_table_or_action_is_somebody_s() -> None:
    rule = Rule(4, 100, table=100)
    assert parsed(rules.encoded(rules.RTM_NEWRULE, rule, protocol=4)) is None
    for place, number in ((16 + 7, 2), (16 + 3, 8)):  # goto; a type of service
        changed = bytearray(created(rule))
        changed[place] = number
        assert parsed(bytes(changed)) is None


def kernel(there: list[Rule], requests: tuple[bytes, ...]) -> list[Rule]:
    """What the kernel does to its list (``fib_nl_newrule`` and ``fib_nl_delrule`` in ``net/core/fib_rules.c``)."""
    there = list(there)
    for request in requests:
        ((kind, _, _, _, _, _),) = wire.messages(request)
        rule = parsed(request)
        assert rule is not None
        if kind == rules.RTM_NEWRULE:
            behind = [place for place, other in enumerate(there, 1) if other.priority <= rule.priority]
            there.insert(max(behind, default=0), rule)
        else:
            there.remove(next(other for other in there if fits(rule, other)))
    return there


def fits(asked: Rule, other: Rule) -> bool:
    blank = replace(other, mark=other.mark) if asked.mark else replace(other, mark=None, mask=2**32 - 1)
    for name in ("source", "destination", "iif", "oif", "suppress_prefixlength"):
        if getattr(asked, name) in (None, ""):
            blank = replace(blank, **{name: getattr(asked, name)})
    if asked.mark == 0:
        return replace(blank, inverted=asked.inverted) == replace(asked, mark=None, mask=2**32 - 1) and (
            other.mask == asked.mask and other.mark is not None
        )
    return replace(blank, inverted=asked.inverted) == asked


FEW = st.lists(
    some(4, st.sampled_from([100, 101])).map(lambda rule: replace(rule, table=7 if rule.table else 0)), max_size=5
)


@settings(max_examples=60)
@given(FEW, FEW, st.data())
def test_any_rules_become_any_others(first: list[Rule], second: list[Rule], data: st.DataObject) -> None:
    """Of these some stay, some go, some are turned round, and one may be there twice."""
    there = {rule.key: rule for rule in first}
    stay = data.draw(st.lists(st.sampled_from(first), max_size=3)) if first else []
    wanted = {rule.key: rule for rule in [*second, *stay]}
    ours = sorted([*there.values(), *list(there.values())[:1]], key=lambda rule: rule.priority)
    keys = [key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key)]
    writes = sorted((Write(there.get(key), wanted.get(key)) for key in keys), key=rule_order)
    pairs: Any = [(write.old, write.new) for write in writes]
    left = kernel(ours, tuple(message for asked in rules.requests(pairs, ours) for message in asked))
    assert set(left) == set(wanted.values())
    assert len(left) - len(wanted) <= any(twice in wanted.values() for twice in list(there.values())[:1])
    assert [rule.priority for rule in left] == sorted(rule.priority for rule in left)
