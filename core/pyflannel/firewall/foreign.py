"""Who else drops forwarded packets on this node, and whether the overlay's get past them.

Pure functions of what was read. The daemon's status and ``pyflannel doctor`` tell people with them which chain of
which firewall stands in the way.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

from pyflannel.firewall.chains import FORWARD_CHAIN, Chain, ChainRule, ChainTable, first_drop
from pyflannel.firewall.iptables import Tables
from pyflannel.firewall.nftables import Ruleset, is_ours
from pyflannel.firewall.state import Drop
from pyflannel.network.lease import IPNetwork

__all__ = ["find_drops"]


def find_drops(
    ruleset: Ruleset | None, legacy: Mapping[int, Tables], networks: Sequence[IPNetwork]
) -> tuple[Drop, ...]:
    """The chains that drop packets of ``networks``, of which they don't know.

    :param ruleset: all of nftables, ``None`` if unknown.
    :param legacy: IP version to the tables of iptables-legacy.
    """
    wanted: set[int] = {network.version for network in networks}
    found: list[Drop | None] = []
    if ruleset is not None:
        found += [
            _drop("nftables", table, chain, wanted)
            for _, table, chain in ruleset.forward_chains()
            if wanted & set(table.versions)
        ]
        found += _refusals(ruleset, networks)
    for version, tables in legacy.items():
        table = tables.get("filter")
        if version in wanted and table is not None and "FORWARD" in table.chains:
            found.append(_drop("iptables-legacy", table, table.chains["FORWARD"], wanted))
        raw = tables.get("raw")
        if version in wanted and raw is not None and "PREROUTING" in raw.chains:
            chain = raw.chains["PREROUTING"]
            if any(rule.drops and _line_to_inside(rule.body, networks) for rule in chain.rules):
                found.append(_refusal("iptables-legacy", raw, chain))
    return tuple(drop for drop in found if drop is not None)


def _drop(system: str, table: ChainTable, chain: Chain, versions: set[int]) -> Drop | None:
    others = [rule for rule in chain.rules if not is_ours(rule) and FORWARD_CHAIN not in rule.targets]
    first = first_drop(table, others)
    if first is not None:
        rule = others[first]
        reason = f"through its jump to {', '.join(rule.targets)}" if rule.targets else "by its last rule"
    elif chain.policy == "drop":
        reason = "policy drop"
    else:
        return None
    before = chain.rules[: chain.rules.index(others[first])] if first is not None else chain.rules
    passes = sum(is_ours(rule) for rule in before)
    needed = 2 * len(versions & set(table.versions))
    passed = passes >= needed or any(FORWARD_CHAIN in rule.targets for rule in before)
    return Drop(system, f"{table.family} {table.name}", chain.name, reason, passed)


def _refusals(ruleset: Ruleset, networks: Sequence[IPNetwork]) -> Iterator[Drop]:
    """Rules before routing that refuse to let other hosts reach a container directly, as Docker 28 makes them.

    Somebody wanted these, so no accept of ours goes before them; Docker has an option to leave them out.
    """
    for table in ruleset.tables.values():
        for chain in table.chains.values():
            refused = [rule for rule in chain.rules if rule.drops and _to_inside(rule, networks)]
            if chain.hook == "prerouting" and refused:
                yield _refusal("nftables", table, chain)


def _refusal(system: str, table: ChainTable, chain: Chain) -> Drop:
    reason = "by a rule for single containers; does dockerd lack --allow-direct-routing?"
    return Drop(system, f"{table.family} {table.name}", chain.name, reason, False)


def _line_to_inside(line: str, networks: Sequence[IPNetwork]) -> bool:
    """The same as :func:`_to_inside` of a line of iptables-save."""
    pairs = list(pairwise(shlex.split(line)))
    options = dict(pairs)
    destination = options.get("-d", "").partition("/")[0]
    return "-i" in options and ("!", "-d") not in pairs and _lies_inside(destination, networks)


def _to_inside(rule: ChainRule, networks: Sequence[IPNetwork]) -> bool:
    """Whether a rule is about packets to an address in one of ``networks`` that come from certain interfaces."""
    matches = [item["match"] for item in rule.body if "match" in item]
    elsewhere = any(
        isinstance(match["left"], dict) and match["left"].get("meta", {}).get("key") in {"iif", "iifname"}
        for match in matches
    )
    return elsewhere and any(_destination_inside(match, networks) for match in matches)


def _destination_inside(match: Mapping[str, Any], networks: Sequence[IPNetwork]) -> bool:
    left, right = match["left"], match["right"]
    if match["op"] != "==" or not isinstance(left, dict) or left.get("payload", {}).get("field") != "daddr":
        return False
    prefix = right.get("prefix", {}) if isinstance(right, dict) else {"addr": right}
    return _lies_inside(prefix.get("addr", ""), networks)


def _lies_inside(text: str, networks: Sequence[IPNetwork]) -> bool:
    try:
        address = ip_address(text)
    except ValueError:  # a set, or a name
        return False
    return any(address in network for network in networks)
