"""Policy rules between the model and netlink (``linux/fib_rules.h``), and how to take away just one of them.

Rules have no names. The kernel deletes the first one that agrees with all that a request says, so a request for a rule
that says little also fits those that say more. :func:`requests` therefore looks at the rules as they stand: of those
before ours that would go in its place, copies are put behind it first. Nor is its word of use that such a rule is there
already (``NLM_F_EXCL``), which it also gives for one that says more.

Others' rules are never in our way: a request for a deletion says our protocol number. They are only looked at, for
those that may take packets of the overlay away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import Final

from pyflannel.kernel.model import ROUTE_PROTOCOL, RULE_ACTIONS, Rule
from pyflannel.kernel.wire import NLM_F_CREATE, NLM_F_DUMP, attribute, attributes, message
from pyflannel.network.lease import IPNetwork

__all__ = [
    "RTM_DELRULE",
    "RTM_NEWRULE",
    "encode_rule_dump",
    "encoded",
    "may_divert",
    "parse_foreign_rule",
    "parse_rule",
    "requests",
]

RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34

_FRA_DST = 1
_FRA_SRC = 2
_FRA_IIFNAME = 3
_FRA_PRIORITY = 6
_FRA_FWMARK = 10
_FRA_TUN_ID = 12
_FRA_SUPPRESS_IFGROUP = 13
_FRA_SUPPRESS_PREFIXLEN = 14
_FRA_TABLE = 15
_FRA_FWMASK = 16
_FRA_OIFNAME = 17
_FRA_L3MDEV = 19
_FRA_UID_RANGE = 20
_FRA_PROTOCOL = 21
_FRA_IP_PROTO, _FRA_SPORT_RANGE, _FRA_DPORT_RANGE = 22, 23, 24
_NEVER_SAID = frozenset({_FRA_TUN_ID, _FRA_L3MDEV, _FRA_UID_RANGE, _FRA_IP_PROTO, _FRA_SPORT_RANGE, _FRA_DPORT_RANGE})
"""What somebody else may have a rule say; ours never do."""

_INVERTED = 0x2
_LOCAL_TABLE = 255
_USUAL_TABLES = frozenset({253, 254, 255})
"""``default``, ``main``, ``local``: where ours are, or are asked anyway."""
_MAIN_PRIORITY = 32766
_NONE = 0xFFFFFFFF
_ALL_BITS = 0xFFFFFFFF

_RULE = Struct("=8BI")
_U8 = Struct("=B")
_U32 = Struct("=I")
_ACTIONS: Final = {number: name for name, number in RULE_ACTIONS.items()}


def encode_rule_dump(family: int) -> bytes:
    """``RTM_GETRULE``: every rule of a family, in the kernel's order."""
    return message(RTM_GETRULE, NLM_F_DUMP, _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def encoded(kind: int, rule: Rule, flags: int = 0, protocol: int = ROUTE_PROTOCOL) -> bytes:
    """``RTM_NEWRULE`` or ``RTM_DELRULE``."""
    source, destination = rule.source, rule.destination
    body = _RULE.pack(
        AF_INET if rule.version == 4 else AF_INET6,
        destination.prefixlen if destination is not None else 0,
        source.prefixlen if source is not None else 0,
        0,
        rule.table if rule.table < 256 else 0,
        0,
        0,
        RULE_ACTIONS[rule.action],
        _INVERTED if rule.inverted else 0,
    )
    return message(kind, flags, body + b"".join(_said(rule, protocol)))


def _said(rule: Rule, protocol: int) -> Iterator[bytes]:
    yield attribute(_FRA_PRIORITY, _U32.pack(rule.priority))
    yield attribute(_FRA_PROTOCOL, _U8.pack(protocol))
    for kind, network in ((_FRA_SRC, rule.source), (_FRA_DST, rule.destination)):
        if network is not None:
            yield attribute(kind, network.network_address.packed)
    for kind, name in ((_FRA_IIFNAME, rule.iif), (_FRA_OIFNAME, rule.oif)):
        if name:
            yield attribute(kind, name.encode(errors="surrogateescape") + b"\0")
    if rule.mark is not None:
        yield attribute(_FRA_FWMARK, _U32.pack(rule.mark)) + attribute(_FRA_FWMASK, _U32.pack(rule.mask))
    if rule.table:
        yield attribute(_FRA_TABLE, _U32.pack(rule.table))
    if rule.suppress_prefixlength is not None:
        yield attribute(_FRA_SUPPRESS_PREFIXLEN, _U32.pack(rule.suppress_prefixlength))


def parse_rule(datagram: bytes, start: int, end: int) -> Rule | None:
    """A rule of ours from the payload of ``RTM_NEWRULE`` or ``RTM_DELRULE``; ``None`` if it is somebody else's."""
    rule, protocol = _parse(datagram, start, end)
    return rule if protocol == ROUTE_PROTOCOL else None


def parse_foreign_rule(datagram: bytes, start: int, end: int) -> Rule | None:
    """A rule of somebody else's; ``None`` if it is ours, or says more than a :class:`Rule` can, such as a port."""
    rule, protocol = _parse(datagram, start, end)
    return rule if protocol != ROUTE_PROTOCOL else None


def may_divert(rule: Rule, spaces: Iterable[IPNetwork]) -> bool:
    """Whether a rule of somebody else's may take away packets between addresses in ``spaces`` before the main table is
    asked for them: it ends them, or looks up a table of its own. Such packets have no mark.
    """
    if rule.priority >= _MAIN_PRIORITY or (rule.action == "lookup" and rule.table in _USUAL_TABLES):
        return False
    near = [space for space in spaces if space.version == rule.version]
    if rule.inverted:
        return bool(near)
    unmarked = rule.mark is None or not rule.mark & rule.mask
    ends = (end for end in (rule.source, rule.destination) if end is not None)
    return unmarked and not rule.oif and bool(near) and all(any(end.overlaps(space) for space in near) for end in ends)


def _parse(datagram: bytes, start: int, end: int) -> tuple[Rule | None, int]:
    """A rule, ``None`` if a :class:`Rule` can't say what it does, and who made it."""
    family, to, origin, tos, table, _, _, action, flags = _RULE.unpack_from(datagram, start)
    found = attributes(datagram, start + 12, end)
    priority, name = _number(found, _FRA_PRIORITY, 0), _ACTIONS.get(action)
    protocol = found.get(_FRA_PROTOCOL, b"\0")[0]
    if not priority or name is None:
        return None, protocol
    asked = _number(found, _FRA_TABLE, table) if name == "lookup" else 0
    unusual = bool(tos) or _number(found, _FRA_SUPPRESS_IFGROUP, _NONE) != _NONE or asked == _LOCAL_TABLE
    if unusual or (name == "lookup" and not asked) or not _NEVER_SAID.isdisjoint(found):
        return None, protocol
    mask = _number(found, _FRA_FWMASK, 0)
    suppressed = _number(found, _FRA_SUPPRESS_PREFIXLEN, _NONE)
    rule = Rule(
        version=4 if family == AF_INET else 6,
        priority=priority,
        source=_network(found.get(_FRA_SRC), origin),
        destination=_network(found.get(_FRA_DST), to),
        iif=_name(found.get(_FRA_IIFNAME, b"")),
        oif=_name(found.get(_FRA_OIFNAME, b"")),
        mark=_number(found, _FRA_FWMARK, 0) if mask else None,
        mask=mask or _ALL_BITS,
        inverted=bool(flags & _INVERTED),
        action=name,
        table=asked,
        suppress_prefixlength=suppressed if suppressed != _NONE and name == "lookup" else None,
    )
    return rule, protocol


def _number(found: dict[int, bytes], kind: int, otherwise: int) -> int:
    value = found.get(kind)
    return otherwise if value is None or len(value) != 4 else int(_U32.unpack(value)[0])


def _name(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="surrogateescape")


def _network(packed: bytes | None, length: int) -> IPNetwork | None:
    if not packed or not length:
        return None
    return IPv4Network((packed, length)) if len(packed) == 4 else IPv6Network((packed, length))


def requests(writes: Iterable[tuple[Rule | None, Rule | None]], ours: Sequence[Rule]) -> Iterator[tuple[bytes, ...]]:
    """What to ask the kernel for, write by write: each is an old rule, a new one, or both.

    Follows what each request does to the kernel's list, on which the next depends.

    :param ours: all rules of ours as the kernel holds them, in its order.
    """
    writes = tuple(writes)
    goes = {old for old, _ in writes if old is not None}
    there = list(ours)
    for old, new in writes:
        messages: tuple[bytes, ...] = ()
        if new is not None and new not in there:
            messages = (encoded(RTM_NEWRULE, new, NLM_F_CREATE),)
            there.append(new)
        if old is not None:
            away, there = _deletion(old, there, goes)
            messages += away
        yield messages


def _deletion(rule: Rule, ours: Sequence[Rule], goes: Collection[Rule]) -> tuple[tuple[bytes, ...], list[Rule]]:
    """The requests after which a rule, and every copy of it, is gone, and all others but ``goes`` are there; and what
    is left then."""
    last = max((place for place, there in enumerate(ours) if there == rule), default=-1)
    hit = [there for there in ours[: last + 1] if _fits(rule, there)]
    kept = [each for each in dict.fromkeys(hit) if each != rule and each not in goes]
    left = [there for place, there in enumerate(ours) if place > last or not _fits(rule, there)]
    copies = (encoded(RTM_NEWRULE, each, NLM_F_CREATE) for each in kept)
    return (*copies, *([encoded(RTM_DELRULE, rule)] * len(hit))), [*left, *kept]


def _fits(asked: Rule, there: Rule) -> bool:
    """Whether a request for a rule's deletion is content with another one: each thing that is asked for counts, and
    what is not does not (``rule_find`` in ``net/core/fib_rules.c``)."""
    if (asked.version, asked.priority) != (there.version, there.priority):
        return False
    return all(not said or said == have for said, have in zip(_selectors(asked), _selectors(there), strict=True))


def _selectors(rule: Rule) -> tuple[object, ...]:
    length = rule.suppress_prefixlength
    return (
        rule.source,
        rule.destination,
        rule.iif,
        rule.oif,
        rule.mark,
        rule.mask if rule.mark is not None else None,
        RULE_ACTIONS[rule.action],
        rule.table,
        None if length is None else (length,),
    )
