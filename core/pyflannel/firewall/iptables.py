"""The iptables port: flannel's chains FLANNEL-FWD and FLANNEL-POSTRTG, and our own FLANNEL-SOURCES and FLANNEL-EXITS,
written by ``iptables-restore --noflush``.

iptables comes in two kinds that look alike and share nothing: *legacy* keeps its tables in a kernel interface of its
own, *nft* keeps them in nftables. A :class:`Variant` is one of them with its programs. :func:`script` is pure: from
what iptables-save prints it computes the input of iptables-restore that is missing, empty if all is right. One restore
changes each table at once; foreign rules in it keep their place and their counters.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pyflannel.firewall import builtin, programs
from pyflannel.firewall.chains import (
    EXITS_CHAIN,
    FORWARD_CHAIN,
    POSTROUTING_CHAIN,
    PREROUTING_CHAIN,
    Chain,
    ChainRule,
    ChainTable,
    first_drop,
    is_our_chain,
)
from pyflannel.firewall.model import (
    EXIT_COMMENT,
    FORWARD_COMMENT,
    MASQ_COMMENT,
    SOURCE_COMMENT,
    FamilyRules,
    FirewallRule,
)

__all__ = ["Variant", "find_variants", "in_use", "parse", "script", "scripts"]

_PREFIX: Final = {4: "ip", 6: "ip6"}
_WITH_VALUE: Final = frozenset({"-i", "-o", "--in-interface", "--out-interface"})
_TARGET: Final = frozenset({"-j", "-g", "--jump", "--goto"})

Tables = Mapping[str, ChainTable]
"""Name to table."""


def parse(text: str, version: int = 4) -> dict[str, ChainTable]:
    """Read what iptables-save prints."""
    chains: dict[str, dict[str, Chain]] = {}
    rules: dict[tuple[str, str], list[ChainRule]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
            chains[table] = {}
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            built_in = policy != "-"
            chains[table][name] = Chain(
                name, name.lower() if built_in else "", table, 0, policy.lower() if built_in else ""
            )
        elif line.startswith("-A "):
            rule = _read_rule(line)
            rules.setdefault((table, line.split(" ", 2)[1]), []).append(rule)
    return {
        name: ChainTable(
            _PREFIX[version],
            name,
            {chain.name: replace(chain, rules=tuple(rules.get((name, chain.name), ()))) for chain in found.values()},
        )
        for name, found in chains.items()
    }


def _read_rule(line: str) -> ChainRule:
    words = shlex.split(line)[2:]
    target, comment, narrow, interfaces = "", "", False, 0
    negated = False
    at = 0
    while at < len(words) and not target:
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 1 if word == "!" else 2
        if word in _TARGET:
            target = value
        elif word in _WITH_VALUE:
            interfaces += not negated
        elif word == "--comment":
            comment = value
        elif word != "!" and (word, value) != ("-m", "comment"):
            narrow = True
        negated = word == "!"
    return ChainRule(
        key=line,
        body=line,
        comment=comment,
        broad=not narrow and interfaces < 2,
        drops=target in {"DROP", "REJECT"},
        targets=(target,) if target not in {"", "DROP", "REJECT", "ACCEPT", "RETURN"} else (),
    )


def in_use(tables: Tables) -> bool:
    """Whether somebody other than us has rules or chains here, or a policy that drops."""
    for table in tables.values():
        for chain in table.chains.values():
            if chain.policy == "drop" or (not chain.hook and not is_our_chain(chain.name)):
                return True
            if not is_our_chain(chain.name) and any(not _is_our_jump(rule) for rule in chain.rules):
                return True
    return False


def _is_our_jump(rule: ChainRule) -> bool:
    return any(map(is_our_chain, rule.targets))


# What should be ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """One of our chains: where it lives, what jumps to it, what is in it.

    :param first: the jump goes before what may take packets out of the chain.
    """

    table: str
    chain: str
    base: str
    comment: str
    rules: tuple[FirewallRule, ...]
    first: bool = False

    @property
    def lines(self) -> list[str]:
        return [_line(self.chain, rule, self.comment) for rule in self.rules]

    @property
    def jump(self) -> str:
        return f'-m comment --comment "{self.comment}" -j {self.chain}'


_BASES: Final = (
    ("filter", "FORWARD"),
    ("nat", "POSTROUTING"),
    ("raw", "PREROUTING"),
    ("mangle", "POSTROUTING"),  # the one hook that sees what is forwarded and what the node sends, routed at last
)


def _parts(rules: FamilyRules) -> tuple[_Part, ...]:
    return (
        _Part("filter", FORWARD_CHAIN, "FORWARD", FORWARD_COMMENT, rules.forward),
        _Part("nat", POSTROUTING_CHAIN, "POSTROUTING", MASQ_COMMENT, rules.masquerade),
        _Part("raw", PREROUTING_CHAIN, "PREROUTING", SOURCE_COMMENT, rules.arrival, first=True),
        _Part("mangle", EXITS_CHAIN, "POSTROUTING", EXIT_COMMENT, rules.departure, first=True),
    )


def _line(chain: str, rule: FirewallRule, comment: str) -> str:
    """A rule as iptables-save prints it."""
    words = [f"-A {chain}"]
    for match, flag in ((rule.source, "-s"), (rule.destination, "-d")):
        if match is not None:
            words.append(f"{'! ' if match.negated else ''}{flag} {match.network}")
    if rule.interface:
        words.append(f"-i {rule.interface}")
    if rule.exit:
        words.append(f"-o {rule.exit}")
    if rule.strayed:
        words.append("-m rpfilter --invert")
    if rule.to_ipsec:
        words.append("-m policy --dir out --pol ipsec")
    if rule.mark is not None:
        words.append(f"-m mark --mark {rule.mark:#x}/{rule.mark:#x}")
    words.append(f'-m comment --comment "{comment}" -j {rule.verdict.value.upper()}')
    if rule.fully_random:
        words.append("--random-fully")
    return " ".join(words)


def script(tables: Tables, rules: FamilyRules) -> str:
    """The input of iptables-restore that makes ``tables`` hold exactly ``rules`` of ours; empty if they do.

    Leftovers are removed, in whichever table. A table is named only if something in it changes.
    """
    return "".join(scripts(tables, rules))


def scripts(tables: Tables, rules: FamilyRules) -> tuple[str, ...]:
    """The same in three: what passes and is masqueraded, what may come in, and what may go out; a kernel may lack what
    one of the latter needs.
    """
    *usual, arrival, departure = (_block(tables, part) for part in _parts(rules))
    return tuple(filter(None, ("".join(usual), arrival, departure)))


def _block(tables: Tables, part: _Part) -> str:
    lines = _changes(tables.get(part.table, ChainTable("", part.table)), part)
    return "\n".join([f"*{part.table}", *lines, "COMMIT\n"]) if lines else ""


def _changes(table: ChainTable, part: _Part) -> list[str]:
    chain, base = table.chains.get(part.chain), table.chains.get(part.base)
    base_rules = base.rules if base is not None else ()
    jumps = [(place, rule) for place, rule in enumerate(base_rules) if part.chain in rule.targets]
    removals = [rule.key.replace("-A", "-D", 1) for _, rule in jumps]
    if not part.rules:
        return [*removals, f"-F {part.chain}", f"-X {part.chain}"] if chain is not None else removals
    changes = []
    if chain is None or [rule.key for rule in chain.rules] != part.lines:
        changes = [f":{part.chain} - [0:0]", *part.lines]
    others = [rule for rule in base_rules if part.chain not in rule.targets]
    drop = first_drop(table, others) if part.base == "FORWARD" else None
    limit = base_rules.index(others[drop]) if drop is not None else len(base_rules)
    right = [place for place, rule in jumps if place < limit and rule.key == f"-A {part.base} {part.jump}"]
    if len(jumps) != 1 or not right:
        changes += removals
        place = 0 if part.first else drop
        changes.append(f"-A {part.base} {part.jump}" if place is None else f"-I {part.base} {place + 1} {part.jump}")
    return changes


# The programs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variant:
    """iptables of one kind: ``nft`` or ``legacy``; ``paths`` maps IP version to the paths of save and restore."""

    kind: str
    paths: Mapping[int, tuple[str, str]]
    run: Callable[..., str] = field(default=programs.run, compare=False)

    @property
    def name(self) -> str:
        """``iptables-nft`` or ``iptables-legacy``."""
        return f"iptables-{self.kind}"

    def read(self, version: int) -> dict[str, ChainTable]:
        """All tables of one IP version.

        :raises KernelError: iptables can't list them.
        """
        return parse(self.run([self.paths[version][0]]), version)

    def write(self, version: int, text: str) -> None:
        """Feed iptables-restore: each table changes at once, or not at all.

        :raises KernelError: it refused.
        """
        if self.kind == "nft":
            blocks = {block.partition("\n")[0].lstrip("*"): block for block in text.split("COMMIT\n")}
            builtin.make(
                _PREFIX[version],
                [table for table, base in _BASES if re.search(f"^-[AI] {base} ", blocks.get(table, ""), re.M)],
            )
        self.run([self.paths[version][1], "--noflush", "-w", "5"], text)


def find_variants(
    find: Callable[[str], str | None] = programs.find, run: Callable[..., str] = programs.run
) -> dict[str, Variant]:
    """The kinds of iptables that are installed, by kind."""
    found: dict[str, dict[int, tuple[str, str]]] = {}
    for kind in ("nft", "legacy"):
        for version, prefix in _PREFIX.items():
            pair = _pair(find, [f"{prefix}tables-{kind}-save", f"{prefix}tables-{kind}-restore"])
            if pair is not None:
                found.setdefault(kind, {})[version] = pair
    if not found:
        for version, prefix in _PREFIX.items():
            pair = _pair(find, [f"{prefix}tables-save", f"{prefix}tables-restore"])
            if pair is not None:
                found.setdefault(_kind(run([pair[1], "--version"])), {})[version] = pair
    return {kind: Variant(kind, pairs, run) for kind, pairs in found.items()}


def _pair(find: Callable[[str], str | None], names: Sequence[str]) -> tuple[str, str] | None:
    save, restore = map(find, names)
    return (save, restore) if save is not None and restore is not None else None


def _kind(text: str) -> str:
    """Which kind a version text tells of: ``iptables-restore v1.8.9 (nf_tables)``; before 1.8 there was just one."""
    return "nft" if re.search(r"\(nf_tables\)", text) else "legacy"
