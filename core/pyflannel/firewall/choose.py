"""Which port carries the rules: what the host already uses, unless somebody decided.

A host whose rules are in iptables (Docker, kube-proxy and ufw put theirs there) gets flannel's chains in the same kind
of iptables, where its people look for them. On all others nftables is the kernel's present interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

from pyflannel.firewall.iptables import Tables, Variant, in_use
from pyflannel.firewall.model import Mode
from pyflannel.firewall.nftables import ChainId, Ruleset

__all__ = ["Tools", "choose", "missing"]

_MISSING: Final = {
    Mode.AUTO: "neither nft nor iptables is installed (apt-get install nftables)",
    Mode.NFTABLES: "nftables was asked for, and there is no nft that can be used (apt-get install nftables)",
    Mode.IPTABLES: "iptables was asked for, and is not installed (apt-get install iptables)",
}


@dataclass(frozen=True, slots=True)
class Tools:
    """What is installed: the path of nft, and the kinds of iptables by kind."""

    nft: str | None
    iptables: Mapping[str, Variant]


def missing(mode: Mode) -> str:
    """What :func:`choose` has not found if it answers nothing."""
    return _MISSING[mode]


def choose(
    mode: Mode,
    tools: Tools,
    ruleset: Ruleset | None,
    legacy: Mapping[int, Tables],
    current: str = "",
    ours: Set[ChainId] = frozenset(),
) -> str:
    """The port: ``nftables``, ``iptables-nft`` or ``iptables-legacy``; ``none``; empty if what is needed is missing.

    :param current: the port in use; an iptables port stays although its host has no other rules of that kind now,
        which is so for a moment whenever their owner restarts.
    :param ours: built-in chains of iptables-nft that were made for our rules.
    """
    if mode is Mode.NONE:
        return "none"
    if mode is Mode.NFTABLES:
        return "nftables" if tools.nft is not None else ""
    kinds = _kinds_in_use(tools, ruleset, legacy, ours)
    if current.startswith("iptables-") and current.removeprefix("iptables-") in tools.iptables and not kinds:
        return current
    if kinds:
        return f"iptables-{kinds[0]}"
    if mode is Mode.AUTO and tools.nft is not None:
        return "nftables"
    return next((f"iptables-{kind}" for kind in ("nft", "legacy") if kind in tools.iptables), "")


def _kinds_in_use(tools: Tools, ruleset: Ruleset | None, legacy: Mapping[int, Tables], ours: Set[ChainId]) -> list[str]:
    """The kinds of iptables that are installed and have rules, the better one first."""
    used = []
    if "nft" in tools.iptables and ruleset is not None and ruleset.uses_iptables(ours):
        used.append("nft")
    if "legacy" in tools.iptables and any(map(in_use, legacy.values())):
        used.append("legacy")
    return used
