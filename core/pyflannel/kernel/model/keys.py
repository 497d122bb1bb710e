"""By what the kernel tells two objects apart, and the order in which kinds of objects are made."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeAlias

from pyflannel.network.lease import IPAddress, IPNetwork

__all__ = ["MAIN_TABLE", "Key", "Kind", "neighbour_key", "route_key"]


MAIN_TABLE: Final = 254
"""The routing table that everybody looks into (``ip-route(8)``, table main)."""


class Kind(IntEnum):
    """The kinds of kernel objects, in order of creation."""

    LINK = 0
    SYSCTL = 1
    ADDRESS = 2
    NEIGHBOUR = 3
    FDB = 4
    WIREGUARD = 5
    WIREGUARD_PEER = 6
    ROUTE = 7
    RULE = 8
    QDISC = 9
    XFRM_POLICY = 10
    MPLS_ROUTE = 11


Key: TypeAlias = tuple[Kind, object, object]
"""``(kind, ...)``: hashable, comparable only for equality.

Those of routes and neighbours hold numbers in place of addresses, whose hash is computed in Python each time: a start
looks up every key some twenty times.
"""


_IPV6: Final = 1 << 128
"""Beyond all addresses."""


def _number(address: IPAddress) -> int:
    """An address as a number of its own among those of both families."""
    number = int(address)
    return number if address.version == 4 else number | _IPV6


def neighbour_key(link: str, address: IPAddress) -> Key:
    """The key of a neighbour."""
    return (Kind.NEIGHBOUR, link, _number(address))


def route_key(destination: IPNetwork, metric: int, table: int) -> Key:
    """The key of a route; ``metric`` is the one that the kernel stores."""
    number = _number(destination.network_address) << 8 | destination.prefixlen
    return (Kind.ROUTE, number, metric if table == MAIN_TABLE else (metric, table))
