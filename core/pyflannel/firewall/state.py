"""How the firewall stands, as values that the daemon's loop can show without knowing how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["UNGUARDED", "Drop", "FirewallState"]

UNGUARDED: Final = "--check-overlay-exits=false"
"""What leaves the rules for leaving packets out."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A chain on the forward hook in which a packet falls that nobody accepts first.

    :param system: ``nftables`` (iptables-nft lives there too) or ``iptables-legacy``.
    :param table: family and name, such as ``inet firewalld``.
    :param reason: what drops: the policy, or a rule.
    :param passed: accepts of ours stand before it for all IP versions in question.
    """

    system: str
    table: str
    chain: str
    reason: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.system} {self.table} {self.chain} ({self.reason})"


@dataclass(frozen=True, slots=True)
class FirewallState:
    """How the rules stand.

    :param port: ``nftables``, ``iptables-nft``, ``iptables-legacy`` or ``none``; empty before the first check.
    :param in_place: all rules are as they should be.
    :param errors: what could not be done, one sentence each.
    :param drops: chains of others that drop what they don't know.
    :param repaired: how often rules had to be written after somebody else had changed the firewall.
    """

    port: str = ""
    in_place: bool = False
    errors: tuple[str, ...] = ()
    drops: tuple[Drop, ...] = ()
    repaired: int = 0

    @property
    def trouble(self) -> str:
        """The first error, or what stands in the overlay's way; empty if all is well."""
        if self.errors:
            return f"firewall: {self.errors[0]}"
        return ""
