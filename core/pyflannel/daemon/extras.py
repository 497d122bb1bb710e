"""What a node needs in its kernel besides what its backend plans."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from pyflannel.daemon.reverse_path import ReversePath
from pyflannel.kernel.model import KernelObject, Route, Sysctl
from pyflannel.membership.slot import Generation
from pyflannel.planning.transition import Transition
from pyflannel.settings.settings import Settings

__all__ = ["BLACKHOLE_METRIC", "extras", "of_links"]

BLACKHOLE_METRIC: Final = 0xFFFFFFFE
"""Behind every other route: what makes a packet to an unused address of ours end here instead of looping."""


def extras(
    generation: Generation, settings: Settings, advertised: Iterable[str], reverse_path: ReversePath
) -> Iterator[KernelObject]:
    """What the operator wants, what a change of the network needs, and what keeps this node's own routes alive.

    A kernel that forwards IPv6 takes no router's advertisement any more, and forgets those it has, except on links
    whose ``accept_ra`` is 2.

    :param advertised: links that have had routes by a router's advertisement.
    :raises ConfigError: what there was before can't be kept.
    """
    node, backend = generation.node, generation.backend
    if node.network.ipv6 is not None:
        for link in sorted(advertised):
            yield Sysctl(f"net/ipv6/conf/{link}/accept_ra", "2", optional=True)
    if settings.blackhole_route:
        for subnet in node.subnets.each:
            yield Route(subnet, None, metric=BLACKHOLE_METRIC)
    if isinstance(backend, Transition):
        yield from of_links(generation, reverse_path, {*backend.links(node), node.underlay.interface})


def of_links(generation: Generation, reverse_path: ReversePath, links: Collection[str]) -> tuple[KernelObject, ...]:
    """What a change of the network needs of devices by which packets come in, those of single peers too.

    :raises ConfigError: what there was before can't be kept.
    """
    changing = isinstance(generation.backend, Transition) and generation.node.network.ipv4 is not None
    return reverse_path.loosen(links) if changing else ()
