"""Routes, and the rules by which routing tables are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pyflannel.kernel.model.checks import (
    ADDRESS_RULE,
    LINK_RULE,
    NETWORKS,
    U32,
    check_flags,
    check_number,
    fits_a_link,
    is_address,
    is_pairs,
    refuse,
)
from pyflannel.kernel.model.encapsulations import (
    Encapsulation,
    ForeignEncapsulation,
    IpEncapsulation,
    MplsEncapsulation,
    Seg6Encapsulation,
)
from pyflannel.kernel.model.keys import MAIN_TABLE, Key, Kind, route_key
from pyflannel.network.lease import IPAddress, IPNetwork

__all__ = ["DISCARDING", "ROUTE_METRICS", "ROUTE_PROTOCOL", "ROUTE_TYPES", "RULE_ACTIONS", "Route", "Rule"]

ROUTE_PROTOCOL: Final = 241
"""The routing protocol number (``rtnetlink(7)``, rtm_protocol) of every route and every rule that we write."""

ROUTE_TYPES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "unicast": 1,
        "local": 2,
        "broadcast": 3,
        "anycast": 4,
        "multicast": 5,
        "blackhole": 6,
        "unreachable": 7,
        "prohibit": 8,
        "throw": 9,
    }
)
"""What a route does with packets, under the names of ``ip-route(8)``, and their numbers (``RTN_*``)."""

DISCARDING: Final = frozenset({"blackhole", "unreachable", "prohibit", "throw"})
"""The types of routes that lead nowhere."""

ROUTE_METRICS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "mtu": (2, 65520),
        "window": (3, 0xFFFFFFFF),
        "ssthresh": (6, 0xFFFFFFFF),
        "cwnd": (7, 0xFFFFFFFF),
        "advmss": (8, 65495),
        "reordering": (9, 0xFFFFFFFF),
        "hoplimit": (10, 255),
        "initcwnd": (11, 0xFFFFFFFF),
        "initrwnd": (14, 0xFFFFFFFF),
        "quickack": (15, 1),
    }
)
"""What can be said of the connections along a route, under the names of ``ip-route(8)``: each with its number
(``RTAX_*`` in ``linux/rtnetlink.h``) and the largest value that the kernel keeps as it is. The smallest is 1."""

RULE_ACTIONS: Final[Mapping[str, int]] = MappingProxyType(
    {"lookup": 1, "blackhole": 6, "unreachable": 7, "prohibit": 8}
)
"""What a rule does with the packets that it selects, under the names of ``ip-rule(8)``, and their numbers
(``FR_ACT_*``)."""

_LOCAL_TABLE: Final = 255

_PLAIN: Final = ("", MAIN_TABLE, (), None)
"""Type, table, metrics and encapsulation of most routes."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route, in the main table if it names no other.

    ``link`` is ``None`` where packets go nowhere: for a blackhole, or what ``type`` says. ``onlink`` makes the kernel
    believe that ``gateway`` is on the link. ``metric`` is the route's priority, ``None`` for the family's default (IPv4
    0, IPv6 1024); the default's number becomes ``None``, so that equal routes are equal.

    :param type: what it does with packets (:data:`ROUTE_TYPES`). Empty: unicast, or blackhole without a link; these
        become empty, so that equal routes are equal.
    :param table: the number of its routing table. Those of other tables than main need a :class:`Rule` or a VRF to be
        asked.
    :param metrics: what is said of the connections along it (:data:`ROUTE_METRICS`): ``(("mtu", 1400),)``; kept sorted.
    :param encapsulation: what is done to the packets.
    """

    destination: IPNetwork
    link: str | None
    gateway: IPAddress | None = None
    onlink: bool = False
    source: IPAddress | None = None
    metric: int | None = None
    type: str = ""
    table: int = MAIN_TABLE
    metrics: tuple[tuple[str, int], ...] = ()
    encapsulation: Encapsulation | None = None

    def __post_init__(self) -> None:
        if type(self.destination) not in NETWORKS:
            raise refuse(self, "destination", "must be an IPv4Network or IPv6Network")
        if self.link is not None and (type(self.link) is not str or not self.link):
            raise refuse(self, "link", f"{LINK_RULE}, or None for a blackhole")
        if not (self.gateway is None or is_address(self.gateway)):
            raise refuse(self, "gateway", f"{ADDRESS_RULE}, or None")
        if not (self.source is None or is_address(self.source)):
            raise refuse(self, "source", f"{ADDRESS_RULE}, or None")
        if type(self.onlink) is not bool:
            raise refuse(self, "onlink", "must be True or False")
        if self.metric is not None:
            check_number(self, "metric", U32)
        # The kernel stores 1024 where an IPv6 route says 0.
        if self.metric is not None and self.metric in ((0,) if self.destination.version == 4 else (0, 1024)):
            object.__setattr__(self, "metric", None)
        if type(self.table) is not int or (self.type, self.table, self.metrics, self.encapsulation) != _PLAIN:
            self._check_details()

    def _check_details(self) -> None:
        """What most routes don't have."""
        if self.type != "":
            self._check_route_type()
        _check_table(self)
        if self.metrics != ():
            self._check_metrics()
        if self.encapsulation is not None:
            self._check_encapsulation()

    def _check_route_type(self) -> None:
        if type(self.type) is not str or self.type not in ROUTE_TYPES:
            raise refuse(self, "type", f"must be empty or one of {', '.join(ROUTE_TYPES)}")
        if (self.type in DISCARDING) is not (self.link is None):
            raise refuse(self, "type", "must be one that leads nowhere if there is no link, and only then")
        if self.type in ("unicast", "blackhole"):
            object.__setattr__(self, "type", "")

    def _check_metrics(self) -> None:
        said = self.metrics
        if not is_pairs(said) or len(dict(said)) != len(said) or not all(name in ROUTE_METRICS for name, _ in said):
            raise refuse(
                self, "metrics", f"must be a tuple of pairs, with one of {', '.join(ROUTE_METRICS)} first each"
            )
        for name, value in said:
            most = ROUTE_METRICS[name][1]
            if type(value) is not int or not 1 <= value <= most:
                raise refuse(self, "metrics", f"{name} must be a whole number between 1 and {most}")
        if len(said) > 1:
            object.__setattr__(self, "metrics", tuple(sorted(said)))

    def _check_encapsulation(self) -> None:
        said = self.encapsulation
        if not isinstance(said, IpEncapsulation | Seg6Encapsulation | MplsEncapsulation | ForeignEncapsulation):
            rule = "must be an IpEncapsulation, Seg6Encapsulation or MplsEncapsulation, or None"
            raise refuse(self, "encapsulation", rule)
        if self.link is None:
            raise refuse(self, "encapsulation", "must be None where packets go nowhere")
        if isinstance(said, Seg6Encapsulation) and said.inline and self.destination.version == 4:
            raise refuse(self, "encapsulation", "must not be inline: IPv4 has no such header")

    def __str__(self) -> str:
        words = ["route", self.type or ("blackhole" if self.link is None else ""), str(self.destination)]
        words += ["encap", str(self.encapsulation)] if self.encapsulation else []
        words += ["via", str(self.gateway)] if self.gateway else []
        words += ["dev", self.link] if self.link else []
        words += ["src", str(self.source)] if self.source else []
        words += ["metric", str(self.metric)] if self.metric is not None else []
        words += ["table", str(self.table)] if self.table != MAIN_TABLE else []
        words += [f"{name} {value}" for name, value in self.metrics]
        return " ".join(word for word in [*words, "onlink" if self.onlink else ""] if word)

    @property
    def effective_metric(self) -> int:
        """The priority the kernel stores."""
        if self.metric is not None:
            return self.metric
        return 0 if self.destination.version == 4 else 1024

    @property
    def effective_type(self) -> str:
        """The type the kernel stores."""
        return self.type or ("blackhole" if self.link is None else "unicast")

    @property
    def key(self) -> Key:
        """By destination, metric and table."""
        return route_key(self.destination, self.effective_metric, self.table)


def _check_table(item: Any) -> None:
    check_number(item, "table", U32, 1)
    if item.table == _LOCAL_TABLE:
        raise refuse(item, "table", "must not be the kernel's own")


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy rule (``ip-rule(8)``): which routing table is asked for which packets, before the main table is.

    Every rule of ours has our protocol number, by which it is told from others', whatever they say.

    :param version: 4 or 6, of the packets.
    :param priority: rules are asked in the order of these numbers; that of the main table has 32766. Of several rules
        with one number nobody can say which is asked first.
    :param source: where selected packets come from, and ``destination`` where they go; ``None`` or all addresses: any.
    :param iif: the name of the device that they come in by, ``lo`` for the node's own; empty: any. It need not exist.
    :param oif: the name of the device to which a socket is bound; empty: any.
    :param mark: what the packet's mark is in the bits of ``mask``; ``None``: any.
    :param inverted: all other packets are selected (``not``).
    :param action: what is done with them (:data:`RULE_ACTIONS`).
    :param table: the routing table that is looked up; 0 for the other actions.
    :param suppress_prefixlength: a route that this table answers with is passed over if its prefix has no more bits
        than that: 0 passes over default routes. ``None``: each counts.
    """

    version: int
    priority: int
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    iif: str = ""
    oif: str = ""
    mark: int | None = None
    mask: int = U32
    inverted: bool = False
    action: str = "lookup"
    table: int = 0
    suppress_prefixlength: int | None = None

    def __post_init__(self) -> None:
        if type(self.version) is not int or self.version not in (4, 6):
            raise refuse(self, "version", "must be 4 or 6")
        check_number(self, "priority", U32, 1)
        for name in ("source", "destination"):
            self._check_network(name)
        for name in ("iif", "oif"):
            value = getattr(self, name)
            if type(value) is not str or (value and not fits_a_link(value)):
                raise refuse(self, name, f"{LINK_RULE}, or empty")
        self._check_mark()
        check_flags(self, "inverted")
        self._check_action()

    def _check_network(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if type(value) not in NETWORKS or value.version != self.version or getattr(value, "scope_id", None):
            raise refuse(self, name, "must be an IPv4Network or IPv6Network of the rule's version, or None")
        if not value.prefixlen:  # the kernel does not tell it from none
            object.__setattr__(self, name, None)

    def _check_mark(self) -> None:
        check_number(self, "mask", U32, 1)
        if self.mark is not None:
            check_number(self, "mark", U32)
        elif self.mask != U32:
            raise refuse(self, "mask", "must be left out where there is no mark")

    def _check_action(self) -> None:
        if type(self.action) is not str or self.action not in RULE_ACTIONS:
            raise refuse(self, "action", f"must be one of {', '.join(RULE_ACTIONS)}")
        if self.action == "lookup":
            _check_table(self)
        elif self.table != 0 or type(self.table) is not int:
            raise refuse(self, "table", "must be 0 where no table is looked up")
        if self.suppress_prefixlength is not None:
            check_number(self, "suppress_prefixlength", 32 if self.version == 4 else 128)
            if self.action != "lookup":
                raise refuse(self, "suppress_prefixlength", "must be None where no table is looked up")

    def __str__(self) -> str:
        words = ["rule", "not"] if self.inverted else ["rule"]
        words += ["from", str(self.source or "all")]
        words += ["to", str(self.destination)] if self.destination else []
        if self.mark is not None:
            words += ["fwmark", f"{self.mark:#x}" + (f"/{self.mask:#x}" if self.mask != U32 else "")]
        words += ["iif", self.iif] if self.iif else []
        words += ["oif", self.oif] if self.oif else []
        words += ["lookup", str(self.table)] if self.action == "lookup" else [self.action]
        if self.suppress_prefixlength is not None:
            words += ["suppress_prefixlength", str(self.suppress_prefixlength)]
        return " ".join([*words, "priority", str(self.priority), f"(IPv{self.version})"])

    @property
    def key(self) -> Key:
        """By all that the kernel tells rules apart by: everything but whether it is inverted."""
        ends = (self.source, self.destination, self.iif, self.oif, self.mark, self.mask)
        does = (self.action, self.table, self.suppress_prefixlength)
        return (Kind.RULE, (self.version, self.priority), (*ends, *does))
