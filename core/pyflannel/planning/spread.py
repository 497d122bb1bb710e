"""A metric for every IPv4 route with a gateway, so that thousands of them are written in linear time.

Linux keeps the next hops of IPv4 routes in a hash table, by protocol, scope, preferred source, metric and device, but
not by gateway (``fib_info_hashfn`` in ``net/ipv4/fib_semantics.c``): routes that differ in nothing else share one
bucket, and each insertion walks through all that are there. Metrics taken from the subnets spread them over
:data:`METRICS`. Which metric a subnet has follows from the subnet alone, so that a route keeps its key through
restarts and changes of its peer. IPv6 has no such table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pyflannel.kernel.model import KernelObject, Route
from pyflannel.kernel.packed import Plan, pack
from pyflannel.network.lease import IPNetwork

__all__ = ["METRICS", "kept", "metric_at", "metric_of", "spread"]

METRICS: Final = range(1, 4097)
"""The metrics of our IPv4 routes with gateways. Low, so that few routes of others come before them."""


_SHARED: Final = tuple(METRICS)
"""The same numbers, each kept once for all its routes."""


def metric_of(subnet: IPNetwork) -> int:
    """The metric of a subnet's route: neighbouring subnets of one size have different ones."""
    return metric_at(int(subnet.network_address) >> (subnet.max_prefixlen - subnet.prefixlen))


def metric_at(leading: int) -> int:
    """The same, by a subnet's leading bits."""
    return _SHARED[leading % len(_SHARED)]


def spread(objects: Iterable[KernelObject]) -> tuple[KernelObject, ...]:
    """A plan's objects, its IPv4 routes through gateways with metrics, unless the planner has chosen one."""
    return tuple([_with_metric(item) if type(item) is Route else item for item in objects])


def kept(objects: Iterable[KernelObject]) -> Plan:
    """The same, as it is kept."""
    plan = pack(objects, metric_of)
    return plan if isinstance(plan, bytes) else spread(plan)


def _with_metric(route: Route) -> Route:
    if route.gateway is None or route.metric is not None or route.destination.version != 4:
        return route
    way = (route.destination, route.link, route.gateway, route.onlink, route.source, metric_of(route.destination))
    return Route(
        *way, route.type, route.table, route.metrics, route.encapsulation
    )  # replace() takes four times as long
