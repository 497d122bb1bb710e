"""Changes of the network from every backend to every other one, on every store, while packets and streams go on.

All ordered pairs of backends in one tour: each change of it begins where the one before it ended. Minutes long:
``make test-change`` runs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest
from tests.changing import (
    HOST_GW,
    STORES,
    UDP,
    USERSPACE,
    VXLAN,
    Document,
    go_round,
    network,
    options,
    overlay,
    pinging,
    tour,
)
from tests.features import has_device, has_wireguard

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


WIREGUARDS = [USERSPACE, *([{**USERSPACE, "Implementation": "kernel"}] if has_wireguard() else [])]
"""Two implementations of one backend: between them is no change that a network goes through together."""

TWICE = [STORES[0], *(pytest.param(*store.values, marks=[*store.marks, pytest.mark.long]) for store in STORES[1:])]
"""The stores for what hardly depends on the store: all but one are long."""

TUNNELS: list[Document] = [{"Type": kind} for kind in ("gre", "ipip") if has_device(kind)]


def pairs(backends: Iterable[Document]) -> list[tuple[str, str]]:
    return sorted((str(one["Type"]), str(two["Type"])) for one, two in itertools.pairwise(backends))


def test_a_tour_has_every_pair_once() -> None:
    everywhere = pairs(tour([VXLAN, HOST_GW, UDP, USERSPACE]))
    assert everywhere == sorted(itertools.permutations(["vxlan", "host-gw", "udp", "wireguard"], 2))


def test_a_tour_leaves_out_pairs_that_were_tried_elsewhere() -> None:
    everywhere = pairs(tour([VXLAN, HOST_GW, UDP, USERSPACE], apart=[[VXLAN, HOST_GW, UDP]]))
    others = ["vxlan", "host-gw", "udp"]
    assert everywhere == sorted([("wireguard", other) for other in others] + [(other, "wireguard") for other in others])


@pytest.mark.parametrize("wireguard", WIREGUARDS, ids=lambda backend: str(backend["Implementation"]))
@pytest.mark.parametrize("store", STORES)
def test_from_every_backend_to_every_other(wireguard: Document, store: str) -> None:
    go_everywhere(wireguard, store, (4,))


@pytest.mark.parametrize("wireguard", WIREGUARDS, ids=lambda backend: str(backend["Implementation"]))
@pytest.mark.parametrize("store", TWICE)
def test_from_every_backend_to_every_other_with_two_families(wireguard: Document, store: str) -> None:
    go_everywhere(wireguard, store, (4, 6))


def go_everywhere(wireguard: Document, store: str, versions: Sequence[int]) -> None:
    of_one_family = ("udp", "ipip") if len(versions) > 1 else ()
    backends = [VXLAN, HOST_GW, wireguard, UDP, *TUNNELS]
    go_round(tour([each for each in backends if each["Type"] not in of_one_family]), store, versions)


@pytest.mark.parametrize("nodes", [30, pytest.param(50, marks=pytest.mark.long)])
def test_many_nodes(nodes: int) -> None:
    with overlay(network(VXLAN), nodes=nodes) as made, pinging(made.lab, only=(*range(9, nodes, 10), 0)):
        made.change(*options(HOST_GW))
        made.run_on("host-gw")
