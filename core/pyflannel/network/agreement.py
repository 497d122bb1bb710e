"""What a node may follow for itself when the network document changes, and what all nodes have to do together.

A document that somebody writes while nodes run is one that each of them reads at its own time. Where subnets may lie
and what concerns one node alone can be followed at once; whatever decides how two nodes reach each other can't, for
those that have followed and those that have not would be cut off from each other. Nor is anything followed that would
take from containers the addresses that they have.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import lies_in

__all__ = ["options_apart", "ranges_apart"]


def ranges_apart(old: NetworkConfig, new: NetworkConfig) -> str:
    """Why nodes of ``old`` can't keep their subnets under ``new``; empty if they can."""
    for version in old.versions:
        before, after = old.family(version), new.family(version)
        if before is None:
            continue
        if after is None:
            return f"it switches IPv{version} off, which takes containers' IPv{version} addresses away"
        if not lies_in(before.network, after.network):
            return f"its network {after.network} does not contain the present one, {before.network}"
    added = [version for version in new.versions if version not in old.versions]
    relaid = [family for family in old.families if new.family(family.network.version) not in (None, family)]
    if added and relaid:
        return f"it adds IPv{added[0]} and changes the layout of the other subnets at the same time"
    return ""


def options_apart(old: Any, new: Any) -> tuple[str, ...]:
    """The keys of two ``Options`` of one backend that differ, without those that concern a node alone."""
    if not is_dataclass(old) or type(old) is not type(new):
        return () if old == new else ("options",)
    return tuple(
        str(item.metadata.get("key", item.name))
        for item in fields(old)
        if getattr(old, item.name) != getattr(new, item.name) and not item.metadata.get("local")
    )
