"""Checks of the firewall: our own rules, and whose rules or policies stand in the overlay's way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyflannel.daemon.rules import planned, unguarded
from pyflannel.doctor.facts import Facts
from pyflannel.doctor.finding import Finding, failed, passed, skipped, warned
from pyflannel.errors import KernelError
from pyflannel.firewall.model import Mode, Rules
from pyflannel.firewall.sync import LEGACY_DROP_IN, OPEN, Firewall, find_tools

__all__ = ["exits", "foreign_drops", "own_rules", "sources"]

_UNIT_D: Final = "/etc/systemd/system/pyflannel.service.d"
_RESTART: Final = "systemctl restart pyflannel"


def _firewall(facts: Facts, everything: bool) -> Firewall | None:
    """A reader of the firewall that knows what this node should have; ``None`` if that is not known.

    :param everything: assume that the forward rules are on: what matters is whether packets pass.
    """
    if facts.overlay is None:
        return None
    firewall = Firewall(find_tools(), facts.settings.firewall)
    wanted = planned(facts.overlay, facts.settings, forward=everything)
    firewall.want(wanted, facts.overlay.node.network.enable_nftables)
    return firewall


def own_rules(facts: Facts) -> Iterator[Finding]:
    """The rules that the settings ask for: forward, masquerade, sources of what arrives, exits of what leaves."""
    firewall = _firewall(facts, False)
    if firewall is None:
        yield skipped("own rules", f"not known which: {facts.problems['overlay']}")
        return
    if facts.settings.firewall is Mode.NONE or firewall.rules == Rules():
        yield passed("own rules", "the settings ask for none")
        return
    if _lacks_rights(facts):
        yield failed(
            "own rules",
            "iptables-legacy has rules for forwarded packets, which the daemon may neither see nor change",
            "what they drop of the overlay's packets is lost; a restart alone gives it no more rights",
            f"install -D -m 0644 -t {_UNIT_D} {LEGACY_DROP_IN} && systemctl daemon-reload && {_RESTART}",
        )
        return
    try:
        missing = firewall.missing()
    except KernelError as error:
        yield skipped("own rules", f"the firewall can't be read: {error}")
        return
    if missing:
        yield failed(
            "own rules",
            f"not as they should be: {', '.join(missing)}",
            "the overlay's packets may be dropped by others' rules, leave the overlay with their inner addresses, be "
            "forged from outside, or leave unencrypted. A running daemon repairs this within seconds",
            f"pyflannel status; {_RESTART}",
        )
    else:
        yield passed("own rules", "in place")


def _lacks_rights(facts: Facts) -> bool:
    """Whether the daemon says so; who runs this command may well have the rights that the daemon lacks."""
    return facts.status is not None and any(LEGACY_DROP_IN in error for error in facts.status["firewall"]["errors"])


def sources(facts: Facts) -> Iterator[Finding]:
    """Whether packets that come from outside the overlay with its addresses are dropped."""
    if facts.overlay is None:
        yield skipped("sources", f"not known: {facts.problems['overlay']}")
    elif not facts.overlay.entrances:
        yield passed("sources", f"{facts.overlay.backend.name} has no device by which alone the overlay's packets come")
    elif facts.settings.check_sources and facts.settings.firewall is not Mode.NONE:
        yield passed("sources", "checked: the overlay's packets come by its devices and from this node's containers")
    else:
        told = "--firewall none" if facts.settings.firewall is Mode.NONE else OPEN
        yield warned(
            "sources",
            f"not checked: {told}",
            "whoever reaches this node's underlay can send its containers packets with any other container's address",
            f"systemctl edit pyflannel   # drop {told}; then: {_RESTART}",
        )


def exits(facts: Facts) -> Iterator[Finding]:
    """Whether packets to the overlay that would leave otherwise than encrypted are dropped."""
    if facts.overlay is None:
        yield skipped("exits", f"not known: {facts.problems['overlay']}")
        return
    told = unguarded(facts.overlay, facts.settings)
    if not told:
        hidden = "whatever a foreign route says" if facts.overlay.exits else "nothing is encrypted"
        yield passed("exits", f"checked: {hidden}")
        return
    yield warned(
        "exits",
        f"not checked: {told}",
        "if somebody adds a route past the encryption, packets to other nodes' containers leave in plaintext until "
        "somebody notices",
        f"systemctl edit pyflannel   # drop {told}; then: {_RESTART}"
        if facts.overlay.exits
        else "a rule of your own, by the devices that this backend uses",
    )


def foreign_drops(facts: Facts) -> Iterator[Finding]:
    """Chains on the forward hook that drop what nobody accepts before: Docker's, firewalld's, ufw's, anybody's."""
    firewall = _firewall(facts, True)
    if firewall is None:
        yield skipped("foreign drops", f"not known for which network: {facts.problems['overlay']}")
        return
    try:
        drops = firewall.drops()
    except KernelError as error:
        yield skipped("foreign drops", f"the firewall can't be read: {error}")
        return
    for drop in drops:
        if drop.passed:
            yield passed("foreign drops", f"{drop} drops, and our accept rule comes before it")
        elif facts.status is None:
            text = f"{drop} drops the overlay's packets, and no daemon is there to accept them before"
            yield failed("foreign drops", text, "containers on different nodes can't talk", "systemctl start pyflannel")
        else:
            networks = (
                [str(network) for network in facts.overlay.node.subnets.each] if facts.overlay is not None else []
            )
            yield failed(
                "foreign drops",
                f"{drop} drops the overlay's packets",
                "an accept elsewhere does not help: every chain of a hook decides for itself",
                _command(drop.system, drop.table, drop.chain, networks),
            )
    if not drops:
        yield passed("foreign drops", "no chain on the forward hook drops what it does not know")
    if not facts.settings.forward_rules and any(not drop.passed for drop in drops):
        yield warned("forward rules", "off", "nobody accepts the overlay's packets", "--iptables-forward-rules")


def _command(system: str, table: str, chain: str, networks: list[str]) -> str:
    """A command that shows the chain, and one that lets the overlay through."""
    if system == "nftables":
        return f"nft list chain {table} {chain}   # accept {' and '.join(networks)} there"
    return f"iptables-legacy -I {chain} -s {networks[0] if networks else 'NETWORK'} -j ACCEPT"
