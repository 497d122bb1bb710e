"""Changes of the network from every backend to every other one, on every store, while packets and streams go on.

All ordered pairs of backends in one tour: each change of it begins where the one before it ended. Minutes long:
``make test-change`` runs it.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator, Sequence

import pytest
from tests.changing import (
    DUAL,
    HOST_GW,
    STORES,
    UDP,
    USERSPACE,
    VXLAN,
    Document,
    network,
    options,
    overlay,
    pinging,
    streaming,
)

from pyflannel.errors import KernelError
from pyflannel.kernel.generic import has_family

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


def kernel_has_wireguard() -> bool:
    try:
        return has_family("wireguard")
    except KernelError:
        return False


def kernel_has(kind: str) -> bool:
    """Whether devices of this kind can be made, in a namespace that goes away with the attempt."""
    words = ["unshare", "-n", "ip", "link", "add", "probe", "type", kind, "local", "192.0.2.1"]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


WIREGUARDS = [USERSPACE, *([{**USERSPACE, "Implementation": "kernel"}] if kernel_has_wireguard() else [])]
"""Two implementations of one backend: between them is no change that a network goes through together."""

TUNNELS: list[Document] = [{"Type": kind} for kind in ("gre", "ipip") if kernel_has(kind)]


def tour(backends: Sequence[Document]) -> Iterator[Document]:
    """Every ordered pair once, and back where it began (Hierholzer)."""
    ways = {n: [other for other in range(len(backends)) if other != n] for n in range(len(backends))}
    open_ends, closed = [0], []
    while open_ends:
        here = open_ends[-1]
        if ways[here]:
            open_ends.append(ways[here].pop())
        else:
            closed.append(open_ends.pop())
    return (backends[n] for n in reversed(closed))


def test_a_tour_has_every_pair_once() -> None:
    pairs = [
        (str(one["Type"]), str(two["Type"])) for one, two in itertools.pairwise(tour([VXLAN, HOST_GW, UDP, USERSPACE]))
    ]
    assert sorted(pairs) == sorted(itertools.permutations(["vxlan", "host-gw", "udp", "wireguard"], 2))


@pytest.mark.parametrize("wireguard", WIREGUARDS, ids=lambda backend: str(backend["Implementation"]))
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("versions", [(4,), (4, 6)], ids=["one family", "two families"])
def test_from_every_backend_to_every_other(wireguard: Document, store: str, versions: Sequence[int]) -> None:
    of_one_family = ("udp", "ipip") if len(versions) > 1 else ()
    backends = [VXLAN, HOST_GW, wireguard, UDP, *TUNNELS]
    first, *following = tour([each for each in backends if each["Type"] not in of_one_family])
    with (
        overlay(network(first, **(DUAL if len(versions) > 1 else {})), kind=store) as made,
        streaming(made.lab, versions) as streams,
        pinging(made.lab, versions) as pings,
    ):
        for backend in following:
            try:
                made.change(*options(backend))
                made.run_on(str(backend["Type"]))
                streams.go_on()
            finally:
                pings.note(json.dumps(backend))


def test_thirty_nodes() -> None:
    with overlay(network(VXLAN), nodes=30) as made, pinging(made.lab, only=(0, 9, 19, 29)):
        made.change(*options(HOST_GW))
        made.run_on("host-gw")
