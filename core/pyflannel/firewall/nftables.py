"""The nftables port: tables of our own for masquerade and arriving packets, accepts in the chains of others that drop.

It speaks the JSON of ``nft -j`` (libnftables-json(5)) in both directions. :func:`transaction` is pure: from the ruleset
and the rules it computes the commands that are missing, none if all is right. A list of commands is one transaction of
the kernel: all of it happens, or nothing.

The tables have flanneld's names, ``ip flannel-ipv4`` and ``ip6 flannel-ipv6``, so that each daemon replaces what the
other one left. There is no forward chain in them: its accepts would end that one chain and stop no other chain's drop.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pyflannel.errors import KernelError
from pyflannel.firewall import programs
from pyflannel.firewall.chains import Chain, ChainRule, ChainTable, first_drop, is_our_chain
from pyflannel.firewall.model import (
    EXIT_COMMENT,
    FORWARD_COMMENT,
    MASQ_COMMENT,
    NO_RULES,
    SOURCE_COMMENT,
    FamilyRules,
    FirewallRule,
    Match,
    Rules,
    Verdict,
)

__all__ = ["TABLES", "ChainId", "Nft", "Ruleset", "is_ours", "needs_pass", "parse", "transaction"]

TABLES: Final = {4: ("ip", "flannel-ipv4"), 6: ("ip6", "flannel-ipv6")}
"""IP version to family and name of our table; the names are flanneld's."""

_MASQUERADE: Final = Chain("postrtg", "postrouting", "nat", 100, "accept")
"""Our chain for what leaves. 100 is the priority of source NAT (``NF_IP_PRI_NAT_SRC``, linux/netfilter_ipv4.h)."""

_ARRIVAL: Final = Chain("sources", "prerouting", "filter", -300, "accept")
"""Our chain for what comes in: before anything is known or done about a packet (``NF_IP_PRI_RAW``)."""

_DEPARTURE: Final = Chain("exits", "postrouting", "filter", -150, "accept")
"""Our chain for what goes out, forwarded or sent by this node, when it is known by which device
(``NF_IP_PRI_MANGLE``)."""

_INTERFACE_KEYS: Final = frozenset({"iif", "oif", "iifname", "oifname", "iifgroup", "oifgroup", "nfproto"})
_FAMILY: Final = {4: "ip", 6: "ip6"}

Command = dict[str, Any]
ChainId = tuple[str, str, str]
"""Family, table and chain."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All tables of nftables, by family and name."""

    tables: Mapping[tuple[str, str], ChainTable] = field(default_factory=dict)

    def forward_chains(self) -> Iterator[tuple[ChainId, ChainTable, Chain]]:
        """The base chains that see forwarded IP packets and are not ours."""
        for (family, name), table in self.tables.items():
            if table.versions and (family, name) not in TABLES.values():
                for chain in table.chains.values():
                    if chain.hook == "forward" and chain.kind == "filter":
                        yield (family, name, chain.name), table, chain

    @property
    def has_iptables(self) -> bool:
        """Whether iptables-nft has been used here: there is a built-in chain in one of its tables, in its capitals."""
        return any(True for _ in self._built_in())

    def uses_iptables(self, ours: Set[ChainId] = frozenset()) -> bool:
        """Whether somebody uses iptables-nft here, not counting chains of ``ours`` with nothing but our rules."""
        for table, chain in self._built_in():
            if (table.family, table.name, chain.name) not in ours or chain.policy == "drop":
                return True
            others = [name for name, each in table.chains.items() if not each.hook and not is_our_chain(name)]
            if others or any(not is_ours(rule) and not any(map(is_our_chain, rule.targets)) for rule in chain.rules):
                return True
        return False

    def _built_in(self) -> Iterator[tuple[ChainTable, Chain]]:
        for family in ("ip", "ip6"):
            for name, chains in (
                ("filter", ("FORWARD", "INPUT", "OUTPUT")),
                ("nat", ("POSTROUTING", "PREROUTING")),
                ("raw", ("PREROUTING", "OUTPUT")),
                ("mangle", ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")),
            ):
                table = self.tables.get((family, name))
                if table is not None:
                    yield from ((table, table.chains[chain]) for chain in chains if chain in table.chains)


def parse(text: str) -> Ruleset:
    """Read what ``nft -j list ruleset`` prints.

    :raises KernelError: that is no ruleset.
    """
    try:
        items = json.loads(text)["nftables"]
        return _ruleset(items)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(f"nft's ruleset can't be read: {type(error).__name__}: {error}") from None


def _ruleset(items: Sequence[Mapping[str, Any]]) -> Ruleset:
    tables: dict[tuple[str, str], dict[str, Chain]] = {}
    rules: dict[ChainId, list[ChainRule]] = {}
    for item in items:
        if "table" in item:
            tables[item["table"]["family"], item["table"]["name"]] = {}
        elif "chain" in item:
            chain = item["chain"]
            tables[chain["family"], chain["table"]][chain["name"]] = Chain(
                chain["name"],
                chain.get("hook", ""),
                chain.get("type", ""),
                chain.get("prio", 0),
                chain.get("policy", ""),
            )
        elif "rule" in item:
            rule = item["rule"]
            rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(_read_rule(rule))
    return Ruleset(
        {
            (family, name): ChainTable(
                family,
                name,
                {
                    chain.name: replace(chain, rules=tuple(rules.get((family, name, chain.name), ())))
                    for chain in chains.values()
                },
            )
            for (family, name), chains in tables.items()
        }
    )


def _read_rule(rule: Mapping[str, Any]) -> ChainRule:
    expressions = [item for item in rule.get("expr", ()) if "counter" not in item]
    conditions = [condition for condition in map(_condition, expressions) if condition is not None]
    targets = [target for item in expressions for target in _targets(item)]
    return ChainRule(
        key=rule["handle"],
        body=expressions,
        comment=rule.get("comment", ""),
        broad="narrow" not in conditions and conditions.count("interface") < 2,
        drops=any(map(_is_drop, expressions)),
        targets=tuple(targets),
    )


def _condition(expression: Mapping[str, Any]) -> str | None:
    """What a statement asks of a packet: ``interface`` (the name of one), ``any`` (nearly nothing), or ``narrow``."""
    if "match" in expression:
        match = expression["match"]
        meta = match["left"].get("meta", {}) if isinstance(match["left"], dict) else {}
        if meta.get("key") not in _INTERFACE_KEYS:
            return "narrow"
        return "interface" if match["op"] == "==" and meta["key"] != "nfproto" else "any"
    if "vmap" in expression:
        key = expression["vmap"]["key"]
        return "any" if isinstance(key, dict) and key.get("meta", {}).get("key") in _INTERFACE_KEYS else "narrow"
    if "xt" in expression:
        xt = expression["xt"]
        return "narrow" if xt.get("type") == "match" and xt.get("name") != "comment" else None
    return "narrow" if "limit" in expression else None


def _is_drop(expression: Mapping[str, Any]) -> bool:
    if "drop" in expression or "reject" in expression:
        return True
    if "vmap" in expression:
        return any("drop" in verdict for verdict in _verdicts(expression["vmap"]))
    xt = expression.get("xt", {})
    return bool(xt.get("type") == "target" and xt.get("name") == "REJECT")


def _targets(expression: Mapping[str, Any]) -> Iterator[str]:
    verdicts = _verdicts(expression["vmap"]) if "vmap" in expression else [expression]
    for verdict in verdicts:
        for kind in ("jump", "goto"):
            if kind in verdict:
                yield verdict[kind]["target"]


def _verdicts(vmap: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The verdicts in an anonymous map; a named one is listed elsewhere and counts as none."""
    data = vmap["data"]
    for element in data.get("set", ()) if isinstance(data, dict) else ():
        if isinstance(element, list) and isinstance(element[-1], dict):
            yield element[-1]


# What should be ------------------------------------------------------------------------------------------------------


def is_ours(rule: ChainRule) -> bool:
    """Whether a rule in somebody else's chain is an accept of ours."""
    return rule.comment == FORWARD_COMMENT and not rule.targets


def needs_pass(table: ChainTable, chain: Chain) -> bool:
    """Whether new packets fall in this chain unless something accepts them first."""
    others = [rule for rule in chain.rules if not is_ours(rule)]
    return chain.policy == "drop" or first_drop(table, others) is not None


def _expressions(rule: FirewallRule, version: int) -> list[Any]:
    """A rule as nft lists it."""
    found: list[Any] = []
    if rule.mark is not None:
        found.append(_equal({"&": [{"meta": {"key": "mark"}}, rule.mark]}, rule.mark))
    for match, name in ((rule.source, "saddr"), (rule.destination, "daddr")):
        if match is not None:
            found.append(_address(match, name, version))
    if rule.interface:
        found.append(_equal({"meta": {"key": "iifname"}}, rule.interface))
    if rule.exit:
        found.append(_equal({"meta": {"key": "oifname"}}, rule.exit))
    if rule.strayed:  # "fib saddr . iif oif missing"
        found.append(_equal({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False))
    if rule.to_ipsec:  # "rt ipsec exists"
        found.append(_equal({"rt": {"key": "ipsec"}}, True))
    if rule.verdict is Verdict.MASQUERADE:
        found.append({"masquerade": {"flags": "fully-random"} if rule.fully_random else None})
    else:
        found.append({rule.verdict.value: None})
    return found


def _equal(left: Any, right: Any) -> Any:
    return {"match": {"op": "==", "left": left, "right": right}}


def _address(match: Match, name: str, version: int) -> Any:
    network = match.network
    right: Any = str(network.network_address)
    if network.prefixlen < network.max_prefixlen:
        right = {"prefix": {"addr": right, "len": network.prefixlen}}
    left = {"payload": {"protocol": _FAMILY[version], "field": name}}
    return {"match": {"op": "!=" if match.negated else "==", "left": left, "right": right}}


def transaction(
    ruleset: Ruleset, rules: Rules, *, own: bool, left_out: frozenset[tuple[str, str]] = frozenset()
) -> list[list[Command]]:
    """The commands that are missing, in groups that may fail by themselves; none if all is right.

    :param own: this port carries the rules for masquerade, arriving and leaving packets; if not, tables of ours are
        leftovers and go.
    :param left_out: tables (family and name) that another port looks after; accepts of ours there are leftovers.
    """
    groups = [
        group for family in rules.each for group in _own_table(ruleset, family if own else NO_RULES.of(family.version))
    ]
    groups += [
        _passes(name, table, chain, rules if name[:2] not in left_out else NO_RULES)
        for name, table, chain in ruleset.forward_chains()
    ]
    return [group for group in groups if group]


def _own_table(ruleset: Ruleset, rules: FamilyRules) -> Iterator[list[Command]]:
    """A group for each of our chains: what one kernel can't do leaves the other chain alone. Those that are wanted no
    more go last and by themselves, so that what stays is in force all the time."""
    family, name = TABLES[rules.version]
    table = {"family": family, "name": name}
    there = ruleset.tables.get((family, name), ChainTable(family, name)).chains
    parts = [  # what may leave comes first, together with what makes room for it
        (_DEPARTURE, rules.departure, EXIT_COMMENT),
        (_MASQUERADE, rules.masquerade, MASQ_COMMENT),
        (_ARRIVAL, rules.arrival, SOURCE_COMMENT),
    ]
    wanted = {chain: (each, comment) for chain, each, comment in parts if each}
    if not wanted:
        if (family, name) in ruleset.tables:
            yield [{"delete": {"table": table}}]
        return
    for chain, (each, comment) in wanted.items():
        bodies, before = [_expressions(rule, rules.version) for rule in each], there.get(chain.name)
        unlike = before is not None and replace(before, rules=()) != chain  # flanneld's
        if before is None or unlike or [rule.body for rule in before.rules] != bodies:
            place = family, name, chain.name
            yield [
                {"add": {"table": table}},
                *(_gone(place) if unlike else ()),
                {"add": {"chain": _declared(place, chain)}},
                _on_chain("flush", place),
                *(_rule("add", place, body, comment) for body in bodies),
            ]
    unwanted = [(family, name, each) for each in there.keys() - {chain.name for chain in wanted}]
    yield [command for place in sorted(unwanted) for command in _gone(place)]


def _gone(place: ChainId) -> tuple[Command, Command]:
    return _on_chain("flush", place), _on_chain("delete", place)


def _on_chain(verb: str, place: ChainId) -> Command:
    family, table, name = place
    return {verb: {"chain": {"family": family, "table": table, "name": name}}}


def _declared(place: ChainId, chain: Chain) -> dict[str, Any]:
    family, table, name = place
    hook = {"type": chain.kind, "hook": chain.hook, "prio": chain.priority, "policy": chain.policy}
    return {"family": family, "table": table, "name": name, **hook}


def _passes(name: ChainId, table: ChainTable, chain: Chain, rules: Rules) -> list[Command]:
    """What brings our accepts in one chain of others into order: all of them, no others, before any broad drop."""
    mine = [(place, rule) for place, rule in enumerate(chain.rules) if is_ours(rule)]
    others = [rule for rule in chain.rules if not is_ours(rule)]
    drop = first_drop(table, others)
    bodies: list[Any] = []
    if chain.policy == "drop" or drop is not None:
        bodies = [_expressions(rule, version) for version in table.versions for rule in rules.of(version).forward]
    before = others[drop] if drop is not None else None
    limit = chain.rules.index(before) if before is not None else len(chain.rules)
    if [rule.body for _, rule in mine] == bodies and all(place < limit for place, _ in mine):
        return []
    family, table_name, chain_name = name
    address = {"family": family, "table": table_name, "chain": chain_name}
    commands: list[Command] = [{"delete": {"rule": {**address, "handle": rule.key}}} for _, rule in mine]
    if before is None:
        return commands + [_rule("add", name, body, FORWARD_COMMENT) for body in bodies]
    return commands + [_rule("insert", name, body, FORWARD_COMMENT, before.key) for body in bodies]


def _rule(verb: str, chain: ChainId, body: Any, comment: str, handle: int | None = None) -> Command:
    family, table, name = chain
    rule: dict[str, Any] = {"family": family, "table": table, "chain": name, "expr": body, "comment": comment}
    if handle is not None:
        rule["handle"] = handle
    return {verb: {"rule": rule}}


# The program ---------------------------------------------------------------------------------------------------------


_DEVICES: Final = re.compile(r" hook \w+ devices?(?: =)? \{?([^{}]*?)\}? priority ")


class Nft:
    """The ``nft`` program at ``path``, in the network namespace of this process."""

    def __init__(self, path: str, run: Callable[..., str] = programs.run) -> None:
        self._path = path
        self._run = run

    def read(self) -> Ruleset:
        """The whole ruleset, without the elements of named sets.

        :raises KernelError: nft can't list it.
        """
        return parse(self._run([self._path, "-j", "-t", "list", "ruleset"]))

    def device_chains(self) -> Mapping[str, tuple[str, ...]]:
        """Each device that has chains of its own, which see its packets before any other does, and their names.

        :raises KernelError: nft can't list them.
        """
        found: dict[str, list[str]] = defaultdict(list)
        table = chain = ""
        for line in self._run([self._path, "list", "chains"]).splitlines():  # nft 1.0 leaves devices out of its JSON
            words = line.split()
            if words[:1] == ["table"]:
                table = " ".join(words[1:3])
            elif words[:1] == ["chain"]:
                chain = words[1]
            elif (devices := _DEVICES.search(line)) is not None:
                for device in devices[1].replace('"', "").split(","):
                    found[device.strip()].append(f"{table} {chain}")
        return {device: tuple(chains) for device, chains in found.items()}

    def write(self, commands: Sequence[Command]) -> None:
        """Carry out all of it, or nothing.

        :raises KernelError: the kernel refused, or nft did not understand.
        """
        self._run([self._path, "-j", "-f", "-"], json.dumps({"nftables": list(commands)}))
