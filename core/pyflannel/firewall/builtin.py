"""iptables' built-in chains in nftables: made when our rules need them there, removed when nobody does any more.

iptables-legacy has its built-in chains (FORWARD, POSTROUTING) always; iptables-nft makes table and chain in nftables
when the first rule comes, and leaves them there when the last one goes. So that we leave nothing behind, we make what
is missing ourselves, just as iptables-nft would, with a comment that says whose it is: iptables does not mind, ``nft
list`` shows it, and it lives exactly as long as the chain. What carries it and is empty again is deleted, unless
somebody has given the chain another policy. What others have made stays, and so does ours while they use it.

Everything is decided and done within one generation of nftables: if anything changes meanwhile, it is looked at again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pyflannel.firewall import nfnetlink as wire
from pyflannel.firewall.nftables import ChainId

__all__ = ["BuiltInChains", "make", "read", "remove_unused"]

COMMENT: Final = "made by pyflannel"

_TRIES: Final = 10
_FAMILY: Final = {name: kind for kind, name in wire.FAMILIES.items()}
# A comment in user data: type 0, its length, the text (libnftnl/udata.h).
_MARK: Final = bytes([0, len(COMMENT) + 1]) + wire.string(COMMENT)
_ACCEPT: Final = 1
# Table: the built-in chain that our rules need, its kind, hook and priority (linux/netfilter_ipv4.h).
_BUILT_IN: Final = {
    "filter": ("FORWARD", "filter", 2, 0),
    "nat": ("POSTROUTING", "nat", 4, 100),
    "raw": ("PREROUTING", "filter", 0, -300),
    "mangle": ("POSTROUTING", "filter", 4, -150),
}

# Attributes: NFTA_TABLE_*, NFTA_CHAIN_*, NFTA_HOOK_*.
_T_NAME, _T_USE, _T_USERDATA = 1, 3, 6
_C_TABLE, _C_NAME, _C_HOOK, _C_POLICY, _C_USE, _C_TYPE, _C_USERDATA = 1, 3, 4, 5, 6, 7, 12
_H_NUMBER, _H_PRIORITY = 1, 2

TableId = tuple[str, str]


@dataclass(frozen=True, slots=True)
class BuiltInChains:
    """Tables and chains of iptables' names, as of one generation.

    :param tables: those there are, and how many things each holds.
    :param chains: the built-in ones there are; true if it is ours, without a rule and with policy accept.
    :param ours: the tables and chains (with an empty chain name for a table) that carry our comment.
    """

    generation: bytes = b""
    tables: Mapping[TableId, int] = field(default_factory=dict)
    chains: Mapping[ChainId, bool] = field(default_factory=dict)
    ours: frozenset[ChainId] = frozenset()

    @property
    def any_unused(self) -> bool:
        """Whether :func:`remove_unused` would find something."""
        return any(True for _ in _unused(self))


def read() -> BuiltInChains:
    """What there is now.

    :raises KernelError: the kernel has no nftables, or does not list them to us.
    """
    generation = wire.generation()
    tables, chains, ours = {}, {}, set()
    for family, table in wire.dump(wire.GETTABLE):
        name = wire.text(table.get(_T_NAME))
        if name in _BUILT_IN and family != "inet":
            tables[family, name] = wire.number(table.get(_T_USE))
            if table.get(_T_USERDATA) == _MARK:
                ours.add((family, name, ""))
    for family, chain in wire.dump(wire.GETCHAIN):
        place = family, wire.text(chain.get(_C_TABLE)), wire.text(chain.get(_C_NAME))
        if place[:2] in tables and place[2] == _BUILT_IN[place[1]][0]:
            mine = chain.get(_C_USERDATA) == _MARK
            accepts = wire.number(chain.get(_C_POLICY)) == _ACCEPT
            chains[place] = mine and accepts and not wire.number(chain.get(_C_USE))
            if mine:
                ours.add(place)
    return BuiltInChains(generation, tables, chains, frozenset(ours))


def make(family: str, tables: Iterable[str]) -> None:
    """Make the built-in chains of these tables, and the tables, where they are missing.

    :raises KernelError: the kernel refuses.
    """
    wanted = tuple(tables)
    for _ in range(_TRIES):
        there = read()
        changes = [change for table in wanted for change in _missing(there, family, table)]
        if not changes or wire.transact(changes, there.generation):
            return
    # Somebody changes nftables without a pause. iptables-nft makes what it needs by itself; then it is not ours.


def _missing(there: BuiltInChains, family: str, table: str) -> Iterator[bytes]:
    name, kind, hook, priority = _BUILT_IN[table]
    if (family, table) not in there.tables:
        body = [wire.attribute(_T_NAME, wire.string(table)), wire.attribute(_T_USERDATA, _MARK)]
        yield wire.message(wire.NEWTABLE, _FAMILY[family], body, wire.ONLY_NEW)
    if (family, table, name) not in there.chains:
        place = [
            wire.attribute(_H_NUMBER, wire.big32(hook)),
            wire.attribute(_H_PRIORITY, wire.big32(priority & 0xFFFFFFFF)),  # a signed number
        ]
        body = [
            wire.attribute(_C_TABLE, wire.string(table)),
            wire.attribute(_C_NAME, wire.string(name)),
            wire.attribute(_C_HOOK, place),
            wire.attribute(_C_POLICY, wire.big32(_ACCEPT)),
            wire.attribute(_C_TYPE, wire.string(kind)),
            wire.attribute(_C_USERDATA, _MARK),
        ]
        yield wire.message(wire.NEWCHAIN, _FAMILY[family], body, wire.ONLY_NEW)


def remove_unused() -> None:
    """Delete what is ours and nobody uses. Under a storm of changes it may stay until the next time.

    :raises KernelError: the kernel refuses.
    """
    for _ in range(_TRIES):
        there = read()
        changes = list(_unused(there))
        if not changes or wire.transact(changes, there.generation):
            return


def _unused(there: BuiltInChains) -> Iterator[bytes]:
    left = dict(there.tables)
    for (family, table, name), idle in there.chains.items():
        if idle:
            left[family, table] -= 1
            body = [wire.attribute(_C_TABLE, wire.string(table)), wire.attribute(_C_NAME, wire.string(name))]
            yield wire.message(wire.DELCHAIN, _FAMILY[family], body, wire.ONLY_EMPTY)
    for (family, table), use in left.items():
        if not use and (family, table, "") in there.ours:
            body = [wire.attribute(_T_NAME, wire.string(table))]
            yield wire.message(wire.DELTABLE, _FAMILY[family], body, wire.ONLY_EMPTY)
