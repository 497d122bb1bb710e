"""One check of the firewall: look, compare, write what differs, look again.

Looking is done in proportion to what changed. nft lists both IP versions and all tables in one go; iptables-save runs
only for chains of which nft's list shows a change; legacy tables are read when their fingerprint changes. So a check
on a quiet host starts no program, and one after somebody's change to nftables starts one.

A step of the plan that can't be done (a table that its owner has locked, a rule that iptables does not know) fails
alone; the others go on, and :class:`FirewallState` names it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from pyflannel.errors import KernelError
from pyflannel.firewall import builtin, iptables, nftables, programs
from pyflannel.firewall.builtin import BuiltInChains
from pyflannel.firewall.chains import (
    EXITS_CHAIN,
    FORWARD_CHAIN,
    POSTROUTING_CHAIN,
    PREROUTING_CHAIN,
    ChainTable,
    first_drop,
    reachable,
)
from pyflannel.firewall.choose import Tools, choose, missing
from pyflannel.firewall.foreign import find_drops
from pyflannel.firewall.iptables import Tables, Variant, find_variants
from pyflannel.firewall.legacy import HIDDEN, legacy_fingerprint, legacy_tables
from pyflannel.firewall.model import EXIT_COMMENT, NO_RULES, SOURCE_COMMENT, FamilyRules, Mode, Rules
from pyflannel.firewall.monitor import sees_forward_chains
from pyflannel.firewall.nftables import ChainId, Nft, Ruleset, transaction
from pyflannel.firewall.state import UNGUARDED, Drop, FirewallState
from pyflannel.network.lease import IPNetwork

__all__ = ["LEGACY_DROP_IN", "OPEN", "Firewall", "find_tools"]

log = logging.getLogger(__name__)

LEGACY_DROP_IN: Final = "contrib/pyflannel.service.d/iptables-legacy.conf"
"""What the service wants where iptables-legacy has rules: only root may see and change them."""

OPEN: Final = "--check-overlay-sources=false"
"""What leaves the rules for arriving packets out."""

_AT_WILL: Final = {
    SOURCE_COMMENT: f" (the check of sources, which {OPEN} leaves out)",
    EXIT_COMMENT: f" (the check of exits, which {UNGUARDED} leaves out)",
}
"""Comment of rules to what is said of them where they can't be written."""

_ROUNDS = 4
"""Looks per check. One write is enough unless somebody else writes at the same time."""

_OURS = (FORWARD_CHAIN, POSTROUTING_CHAIN, PREROUTING_CHAIN, EXITS_CHAIN)
_TABLES = ("filter", "nat", "raw", "mangle")
"""Those of iptables that have rules of ours."""


def find_tools() -> Tools:
    """The programs that this host has."""
    return Tools(programs.find("nft"), find_variants())


@dataclass(frozen=True, slots=True)
class _Step:
    """A write that is missing. ``now`` is what it wants to change, ``plausible`` that it looks complete."""

    what: str
    signature: str
    now: str
    plausible: bool
    run: Callable[[], None]
    masquerade: bool
    fully_random: bool


class Firewall:
    """The rules on this host, brought into place by :meth:`check`. Used from one thread."""

    def __init__(self, tools: Tools, mode: Mode = Mode.AUTO, run: Callable[..., str] = programs.run) -> None:
        self.tools = tools
        self.mode = mode
        self.rules = NO_RULES
        self.force_nftables = False
        self.state = FirewallState()
        self._nft = Nft(tools.nft, run) if tools.nft is not None else None
        self._ruleset: Ruleset | None = None
        self._saved: dict[int, Tables] = {}
        self._saved_digest: dict[int, str] = {}
        self._legacy: dict[int, Tables] = {}
        self._fingerprints: dict[int, bytes] = {}
        self._settled: dict[str, str] = {}
        self._built_in = BuiltInChains()
        self._no_fully_random = False

    def want(self, rules: Rules, force_nftables: bool = False) -> None:
        """Say what should be in place from the next check on."""
        self.rules, self.force_nftables = rules, force_nftables
        self.state = replace(self.state, in_place=False)

    def reconsider(self) -> None:
        """Choose the port anew with the next check, as at the start."""
        self.state = replace(self.state, port="", in_place=False)
        self.forget()
        self._legacy.clear()

    # Looking

    def forget(self) -> None:
        """nftables may have changed: the next check reads it again."""
        self._ruleset = None

    def legacy_changed(self) -> bool:
        """Whether iptables-legacy's tables differ from what was read last; starts no program."""
        if "legacy" not in self.tools.iptables:
            return False
        changed = False
        for version in (4, 6):
            try:
                fingerprint = legacy_fingerprint(version)
            except KernelError:  # they changed while we looked
                fingerprint = None
            if fingerprint != self._fingerprints.get(version):
                self._legacy.pop(version, None)
                changed = True
        return changed

    @property
    def watched(self) -> frozenset[ChainId]:
        """The chains of nftables whose rules concern us: what a forwarded packet meets, and our own."""
        if self._ruleset is None:
            return frozenset()
        found: set[ChainId] = set()
        for (family, name), table in self._ruleset.tables.items():
            hooks = {"forward", "prerouting"}
            roots = [chain.name for chain in table.chains.values() if chain.hook in hooks and chain.kind == "filter"]
            roots += [name for name in ("POSTROUTING", *_OURS) if name in table.chains]
            if (family, name) in nftables.TABLES.values():
                roots += table.chains
            found |= {(family, name, chain) for root in roots for chain in _near(table, root)}
        return frozenset(found)

    def _look(self) -> None:
        if self._nft is not None and self._ruleset is None:
            try:
                self._ruleset = self._nft.read()
                self._built_in = builtin.read() if self._ruleset.has_iptables else BuiltInChains()
            except KernelError as error:
                self._do_without_nft(error)
        legacy = self.tools.iptables.get("legacy")
        if legacy is not None:
            for version in (4, 6):
                self._look_at_legacy(legacy, version)

    def _do_without_nft(self, error: KernelError) -> None:
        """Go on with iptables where nft was built without JSON, or the kernel without nftables."""
        usable = dict(self.tools.iptables)
        if "not supported" in str(error):
            usable.pop("nft", None)
        elif "JSON" not in str(error):
            raise error
        log.warning("nft is of no use here (%s); %s is left", error, " and ".join(usable) or "nothing")
        self._nft, self.tools = None, replace(self.tools, nft=None, iptables=usable)

    def _look_at_legacy(self, legacy: Variant, version: int) -> None:
        if version in self._legacy or version not in legacy.paths:
            return
        self._fingerprints[version] = legacy_fingerprint(version)
        self._legacy[version] = legacy.read(version) if legacy_tables(version) else {}

    def _look_at_iptables_nft(self, variant: Variant, version: int) -> Tables:
        """iptables-nft's tables; read again only if what nft shows of them has changed."""
        digest = self._digest(version)
        if version not in self._saved or digest is None or digest != self._saved_digest.get(version):
            self._saved[version] = variant.read(version)
            if digest is not None:
                self._saved_digest[version] = digest
        return self._saved[version]

    def _digest(self, version: int) -> str | None:
        """All that matters of iptables-nft's chains, as nft shows it."""
        if self._ruleset is None:
            return None
        family = "ip" if version == 4 else "ip6"
        tables = [self._ruleset.tables.get((family, name)) for name in _TABLES]
        return repr([_relevant(table) for table in tables if table is not None])

    # Planning

    def _steps(self, port: str) -> Iterator[_Step]:
        """What is missing, the masquerade's new place before its old one."""
        steps = [*self._iptables_steps("nft", port), *self._iptables_steps("legacy", port)]
        nft_steps = list(self._nft_steps(port))
        return iter(nft_steps + steps if port == "nftables" else steps + nft_steps)

    def _effective(self, version: int) -> FamilyRules:
        family = self.rules.of(version)
        if not self._no_fully_random:
            return family
        return replace(family, masquerade=tuple(replace(rule, fully_random=False) for rule in family.masquerade))

    def _nft_steps(self, port: str) -> Iterator[_Step]:
        if self._nft is None or self._ruleset is None:
            return
        rules = NO_RULES if port == "none" else Rules(self._effective(4), self._effective(6))
        left_out = frozenset({("ip", "filter"), ("ip6", "filter")} if port == "iptables-nft" else ())
        for commands in transaction(self._ruleset, rules, own=port == "nftables", left_out=left_out):
            yield self._nft_step(self._nft, self._ruleset, commands)

    def _nft_step(self, nft: Nft, ruleset: Ruleset, commands: list[nftables.Command]) -> _Step:
        (subject,) = next(iter(commands[-1].values())).values()
        family, name = subject["family"], subject.get("table") or subject["name"]
        table = ruleset.tables.get((family, name), ChainTable(family, name))
        changes = [(verb, item) for command in commands for verb, item in command.items()]
        added = [item["rule"] for verb, item in changes if verb != "delete" and "rule" in item]
        there = [
            (chain.name, rule.comment, rule.body)
            for chain in table.chains.values()
            if chain.name == subject.get("chain")
            for rule in chain.rules
        ]
        mine = sum(rule[1] == item["comment"] for rule in there for item in added[:1])
        return _Step(
            f"nftables table {family} {name}{_AT_WILL.get(added[0]['comment'], '') if added else ''}",
            json.dumps([rule["expr"] for rule in added]) + f" {family} {name} {subject.get('chain')}",
            repr(there),
            bool(added) and mine == len(added),
            lambda: nft.write(commands),
            any("masquerade" in item for rule in added for item in rule["expr"]),
            "fully-random" in json.dumps(commands),
        )

    def _iptables_steps(self, kind: str, port: str) -> Iterator[_Step]:
        variant = self.tools.iptables.get(kind)
        if variant is None:
            return
        for version in variant.paths:
            rules = self._effective(version)
            tables = self._tables_if_needed(variant, version, port, rules)
            if tables is None:
                continue
            if port != variant.name:
                stands_alone = kind == "legacy" or self._nft is None
                forward = rules.forward if port != "none" and stands_alone and _drops(tables) else ()
                rules = FamilyRules(version, forward)
            for text in iptables.scripts(tables, rules):
                yield self._iptables_step(variant, version, tables, rules, text)

    def _tables_if_needed(self, variant: Variant, version: int, port: str, rules: FamilyRules) -> Tables | None:
        """The tables of one kind of iptables, ``None`` where we want nothing and have nothing."""
        if variant.kind == "legacy":
            return self._legacy.get(version)
        wanted = port == variant.name and rules != FamilyRules(version)
        if wanted or self._ruleset is None or self._has_leftovers(self._ruleset, version):
            return self._look_at_iptables_nft(variant, version)
        return None

    @staticmethod
    def _has_leftovers(ruleset: Ruleset, version: int) -> bool:
        family = "ip" if version == 4 else "ip6"
        tables = [ruleset.tables.get((family, name)) for name in _TABLES]
        return any(name in table.chains for table in tables if table is not None for name in _OURS)

    def _iptables_step(self, variant: Variant, version: int, tables: Tables, rules: FamilyRules, text: str) -> _Step:
        there = {
            (table.name, chain.name): [rule.key for rule in chain.rules]
            for table in tables.values()
            for chain in table.chains.values()
            if chain.name in (*_OURS, "FORWARD", "POSTROUTING", "PREROUTING")
        }
        parts = (rules.forward, rules.masquerade, rules.arrival, rules.departure)
        wanted = zip(_TABLES, _OURS, parts, strict=True)
        plausible = all(
            len(there.get((table, chain), ())) == len(each) for table, chain, each in wanted if f"*{table}\n" in text
        )

        def write() -> None:
            variant.write(version, text)
            self._saved.pop(version, None)

        return _Step(
            f"{variant.name}, IPv{version}{_refusable(text)}",
            f"{variant.name}{version}{text}",
            repr(sorted(there.items())),
            plausible,
            write,
            "MASQUERADE" in text,
            "--random-fully" in text,
        )

    # Checking

    def missing(self) -> tuple[str, ...]:
        """What :meth:`check` would write to, were it called now; changes nothing."""
        self._look()
        found = list(dict.fromkeys(step.what for step in self._steps(self._choose())))
        return tuple(found or ["empty chains of iptables-nft"] * self._built_in.any_unused)

    def drops(self) -> tuple[Drop, ...]:
        """Who drops what the overlay forwards; changes nothing.

        :raises KernelError: the firewall can't be read.
        """
        self._look()
        return find_drops(self._ruleset, self._legacy, self._networks)

    @property
    def _networks(self) -> list[IPNetwork]:
        """The networks whose packets must pass."""
        matches = (family.forward[0].source for family in self.rules.each if family.forward)
        return [match.network for match in matches if match is not None]

    def check(self) -> FirewallState:
        """Bring the rules into place and say how they stand.

        :raises KernelError: the firewall can't be read.
        """
        was_in_place = self.state.in_place
        port, errors, writes = self._converge()
        errors += self._missing(port) or self._hidden()
        drops: tuple[Drop, ...] = ()
        if self.rules.any_forward and port != "none":
            drops = find_drops(self._ruleset, self._legacy, self._networks)
            errors += [
                f"{drop} drops packets of the overlay, and none of our accept rules comes before it"
                for drop in drops
                if not drop.passed and not errors
            ]
        self.state = FirewallState(
            port, not errors, tuple(errors), drops, self.state.repaired + bool(was_in_place and writes)
        )
        return self.state

    def _missing(self, port: str) -> list[str]:
        if port:
            return []
        found, lacking = [], missing(self._asked)
        if self.rules.any_departure:
            found.append(f"what others route past the encryption is let out: {lacking}, or {UNGUARDED} accepts it")
        if self.rules.any_masquerade:
            found.append(f"no masquerade: {lacking}")
        if self.rules.any_arrival:
            found.append(f"packets that others send in the overlay's name are let in: {lacking}, or {OPEN} accepts it")
        if found:
            return found
        if self.rules.any_forward and (sees_forward_chains() or legacy_tables(4) or legacy_tables(6)):
            return [f"there are firewall rules on this host, and none of ours: {lacking}"]
        return []

    def _hidden(self) -> list[str]:
        if not self.rules.any_forward or HIDDEN not in self._fingerprints.values():
            return []
        text = "iptables-legacy has rules for forwarded packets, which this user may neither see nor change"
        return [f"{text}: run the daemon as {LEGACY_DROP_IN} does"]

    def _converge(self) -> tuple[str, list[str], int]:
        done: set[str] = set()
        writes = 0
        for _ in range(_ROUNDS):
            self._look()
            port = self._choose()
            steps = [step for step in self._steps(port) if self._settled.get(step.signature) != step.now]
            for step in steps:
                if step.signature in done and step.plausible:  # this program prints the rules in another form
                    self._settled[step.signature] = step.now
            steps = [step for step in steps if self._settled.get(step.signature) != step.now]
            if not steps:
                self._tidy()
                return port, [], writes
            failed = self._write(steps, done)
            writes += len(steps) - len(failed)
            self.forget()
            self._legacy.clear()
            if failed and len(failed) == len(steps):
                if any(step.fully_random for step in failed):
                    self._no_fully_random = True
                    log.warning("masquerade is tried without fully random ports: %s", next(iter(failed.values())))
                    continue
                if any(step.masquerade for step in failed):
                    self._no_fully_random = False  # that was not the reason
                self._look()
                return port, [f"{step.what}: {error}" for step, error in failed.items()], writes
        return port, ["something else changes the firewall's rules as fast as they are written"], writes

    def _tidy(self) -> None:
        """Leave no empty chain of ours behind."""
        if self._built_in.any_unused or (self._ruleset is None and "nft" in self.tools.iptables):
            builtin.remove_unused()

    @property
    def _asked(self) -> Mode:
        return Mode.NFTABLES if self.force_nftables and self.mode is Mode.AUTO else self.mode

    def _choose(self) -> str:
        return choose(self._asked, self.tools, self._ruleset, self._legacy, self.state.port, self._built_in.ours)

    @staticmethod
    def _write(steps: list[_Step], done: set[str]) -> dict[_Step, KernelError]:
        failed = {}
        for step in steps:
            try:
                step.run()
            except KernelError as error:
                failed[step] = error
            else:
                done.add(step.signature)
        return failed


def _refusable(text: str) -> str:
    """What to say of rules for iptables that it may refuse, and that can be done without."""
    return next((told for mark, told in _AT_WILL.items() if mark in text and " -j DROP" in text), "")


def _near(table: ChainTable, root: str) -> set[str]:
    """The chains that a packet in ``root`` may come to; of a NAT chain just itself, which is all we mind there."""
    chain = table.chains[root]
    return {root} if chain.kind == "nat" or root in _OURS else reachable(table, root)


def _relevant(table: ChainTable) -> list[object]:
    names = [name for name in ("FORWARD", "POSTROUTING", "PREROUTING", *_OURS) if name in table.chains]
    wanted = sorted({near for name in names for near in _near(table, name)})
    chains = [table.chains[name] for name in wanted if name in table.chains]
    return [(chain.name, chain.policy, [(rule.key, str(rule.body)) for rule in chain.rules]) for chain in chains]


def _drops(tables: Tables) -> bool:
    table = tables.get("filter")
    chain = table.chains.get("FORWARD") if table is not None else None
    if table is None or chain is None:
        return False
    others = [rule for rule in chain.rules if FORWARD_CHAIN not in rule.targets]
    return chain.policy == "drop" or first_drop(table, others) is not None
