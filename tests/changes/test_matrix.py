"""Changes of the network from every backend to every other one, on every store, and while daemons are killed at random.

Minutes long: ``make test-change`` runs it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from tests.changing import DUAL, HOST_GW, UDP, VXLAN, WIREGUARD, Document, network, overlay, pinging
from tests.servers import consul, etcd
from tests.waiting import PATIENCE, until

from pyflannel.errors import KernelError
from pyflannel.kernel.generic import has_family

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


def kernel_has_wireguard() -> bool:
    try:
        return has_family("wireguard")
    except KernelError:
        return False


def every_backend() -> Iterator[Document]:
    """Those that this kernel has and that plan routes. Both implementations of WireGuard, where there are two."""
    yield from (VXLAN, HOST_GW, UDP)
    yield {**WIREGUARD, "Implementation": "userspace"}
    if kernel_has_wireguard():
        yield {**WIREGUARD, "Implementation": "kernel"}


def words(backend: Document) -> list[str]:
    options = [f"{key}={value}" for key, value in backend.items() if key != "Type"]
    return ["--backend", str(backend["Type"]), *(word for option in options for word in ("--backend-option", option))]


PAIRS = [(one, two) for one, two in itertools.permutations(every_backend(), 2) if one["Type"] != two["Type"]]


@pytest.mark.parametrize(("former", "following"), PAIRS, ids=lambda backend: "-".join(map(str, backend.values())))
def test_from_every_backend_to_every_other(former: Document, following: Document) -> None:
    with overlay(network(former)) as made, pinging(made.lab):
        made.change(*words(following))
        made.run_on(str(following["Type"]))


SIX = [(one, two) for one, two in PAIRS if "udp" not in (one["Type"], two["Type"])]


@pytest.mark.parametrize(("former", "following"), SIX, ids=lambda backend: "-".join(map(str, backend.values())))
def test_in_both_families(former: Document, following: Document) -> None:
    with overlay(network(former, **DUAL)) as made, pinging(made.lab, (4, 6)):
        made.change(*words(following))
        made.run_on(str(following["Type"]))


@pytest.mark.parametrize(
    "store",
    [
        pytest.param("etcd", marks=pytest.mark.skipif(etcd.MISSING is not None, reason=str(etcd.MISSING))),
        pytest.param("consul", marks=pytest.mark.skipif(consul.MISSING is not None, reason=str(consul.MISSING))),
    ],
)
def test_on_other_stores(store: str) -> None:
    with overlay(network(VXLAN), kind=store) as made, pinging(made.lab):
        for backend in (WIREGUARD, HOST_GW):
            made.change(*words(backend))
            made.run_on(str(backend["Type"]))


@pytest.mark.parametrize("seed", range(3))
def test_daemons_are_killed_at_random_moments(seed: int) -> None:
    """A few times in each change, and never a second one before the first is there again."""
    rng = random.Random(seed)
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        for backend in (WIREGUARD, VXLAN):
            with made.driven(*words(backend)) as process:
                for _ in range(4):
                    looks = iter(range(rng.randrange(200)))
                    until(lambda looks=looks, process=process: next(looks, None) is None or not process.running)  # type: ignore[misc]
                    daemon = rng.choice(made.nodes).daemon
                    daemon.kill()
                    daemon.start()
                    daemon.wait_ready(peers=2, timeout=PATIENCE)
                until(lambda process=process: not process.running, "the change is over", 3 * PATIENCE)  # type: ignore[misc]
            made.run_on(str(backend["Type"]))


def test_thirty_nodes() -> None:
    with overlay(network(VXLAN), nodes=30) as made, pinging(made.lab, only=(0, 9, 19, 29)):
        made.change(*words(HOST_GW))
        made.run_on("host-gw")
