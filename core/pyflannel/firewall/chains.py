"""Other people's chains, reduced to the one question that matters here: what may drop the overlay's packets?

``nft``'s JSON and ``iptables-save``'s text both become :class:`Table` values. A rule is *broad* if it takes packets
whatever their addresses and protocols: no condition at all, or conditions on interfaces only. A broad drop, or a jump
to a chain that has one, is a net under which new packets fall, such as firewalld's last reject. A drop with any
other condition is somebody's decision about particular packets, and none of our business: accepts of ours never go
before it for its own sake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "EXITS_CHAIN",
    "FORWARD_CHAIN",
    "POSTROUTING_CHAIN",
    "PREROUTING_CHAIN",
    "Chain",
    "ChainRule",
    "ChainTable",
    "first_drop",
    "is_our_chain",
    "reachable",
]

FORWARD_CHAIN: Final = "FLANNEL-FWD"
POSTROUTING_CHAIN: Final = "FLANNEL-POSTRTG"
PREROUTING_CHAIN: Final = "FLANNEL-SOURCES"
EXITS_CHAIN: Final = "FLANNEL-EXITS"

_OBEYED: Final = ("DOCKER-ISOLATION-",)
"""Chains whose broad drops keep two bridges of this node apart; they are obeyed like a particular rule."""


@dataclass(frozen=True, slots=True)
class ChainRule:
    """One rule, as far as it matters: ``targets`` are the chains it may continue in, ``key`` names it to its tool.

    ``key`` is nft's handle, or the rule's line in iptables-save. ``body`` is what it does, comparable, without
    counters and handle.
    """

    key: Any
    body: Any = None
    comment: str = ""
    broad: bool = False
    drops: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; ``hook``, ``kind`` and ``priority`` are those of a base chain, which also has a ``policy``."""

    name: str
    hook: str = ""
    kind: str = ""
    priority: int = 0
    policy: str = ""
    rules: tuple[ChainRule, ...] = ()


@dataclass(frozen=True, slots=True)
class ChainTable:
    """A table of nftables (``family`` ip, ip6 or inet), or one of iptables (``family`` ip or ip6)."""

    family: str
    name: str
    chains: Mapping[str, Chain] = field(default_factory=dict)

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions whose packets it sees."""
        return {"ip": (4,), "ip6": (6,), "inet": (4, 6)}.get(self.family, ())


def is_our_chain(name: str) -> bool:
    """Whether a chain of iptables is one of flannel's or ours."""
    return name in {FORWARD_CHAIN, POSTROUTING_CHAIN, PREROUTING_CHAIN, EXITS_CHAIN}


def first_drop(table: ChainTable, rules: Sequence[ChainRule]) -> int | None:
    """The place of the first rule under which any packet may fall, or ``None``; the policy is not looked at."""
    for index, rule in enumerate(rules):
        if rule.broad and (rule.drops or any(_drops(table, target, {target}) for target in rule.targets)):
            return index
    return None


def _drops(table: ChainTable, name: str, seen: set[str]) -> bool:
    chain = table.chains.get(name)
    if chain is None or name.startswith(_OBEYED):
        return False
    for rule in chain.rules:
        if rule.broad and rule.drops:
            return True
        fresh = [target for target in rule.targets if target not in seen]
        seen.update(fresh)
        if rule.broad and any(_drops(table, target, seen) for target in fresh):
            return True
    return False


def reachable(table: ChainTable, name: str) -> set[str]:
    """``name`` and all chains that a packet in it may come to."""
    found, queue = {name}, [name]
    while queue:
        chain = table.chains.get(queue.pop())
        targets = {target for rule in chain.rules for target in rule.targets} if chain is not None else set()
        queue += targets - found
        found |= targets
    return found
