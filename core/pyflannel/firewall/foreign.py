"""Who else drops forwarded packets on this node, and whether the overlay's get past them.

Pure functions of what was read. The daemon's status and ``pyflannel doctor`` tell people with them which chain of
which firewall stands in the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyflannel.firewall.chains import Chain, Table, first_drop
from pyflannel.firewall.iptables import FORWARD_CHAIN, Tables
from pyflannel.firewall.nftables import Ruleset, is_ours
from pyflannel.firewall.state import Drop

__all__ = ["find_drops"]


def find_drops(
    ruleset: Ruleset | None, legacy: Mapping[int, Tables], versions: Iterable[int] = (4, 6)
) -> tuple[Drop, ...]:
    """The chains that drop what they don't know, of those that packets of ``versions`` meet.

    :param ruleset: all of nftables, ``None`` if unknown.
    :param legacy: IP version to the tables of iptables-legacy.
    """
    wanted = set(versions)
    found = []
    if ruleset is not None:
        found += [
            _drop("nftables", table, chain, wanted)
            for _, table, chain in ruleset.forward_chains()
            if wanted & set(table.versions)
        ]
    for version, tables in legacy.items():
        table = tables.get("filter")
        if version in wanted and table is not None and "FORWARD" in table.chains:
            found.append(_drop("iptables-legacy", table, table.chains["FORWARD"], wanted))
    return tuple(drop for drop in found if drop is not None)


def _drop(system: str, table: Table, chain: Chain, versions: set[int]) -> Drop | None:
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
