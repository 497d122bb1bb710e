"""Faults while a network changes: daemons killed at random, the store away, and changes given up, on every store.

What a change does in its ordinary course is in ``test_ways.py``. ``make test-change`` runs these.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from tests.changing import STORES, USERSPACE, VXLAN, Overlay, network, options, overlay, pinging
from tests.waiting import LONG, PATIENCE, until

from pyflannel.errors import ExitCode
from pyflannel.lab.topology import UPLINK

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

KILLS = 50
MINUTE = 6000
"""Answers to one of our pings in a minute."""

STEPS = ("", "prepared", "switched", "retired")
"""What a node says in the course of a change."""


@pytest.mark.parametrize("seed", range(2))
def test_daemons_are_killed_at_random_moments(seed: int) -> None:
    """Fifty times in all, never a second one before the first is there again, through change after change."""
    rng = random.Random(seed)
    kills = iter(range(KILLS // 2))
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        for backend in itertools.cycle((USERSPACE, VXLAN)):
            with made.driven(*options(backend)) as process:
                while process.running and next(kills, None) is not None:
                    looks = iter(range(rng.randrange(100)))
                    until(lambda looks=looks, process=process: next(looks, None) is None or not process.running)  # type: ignore[misc]
                    daemon = rng.choice(made.nodes).daemon
                    daemon.kill()
                    daemon.start()
                    daemon.wait_ready(peers=2, timeout=LONG)
                until(lambda process=process: not process.running, "the change is over", 3 * PATIENCE)  # type: ignore[misc]
            made.run_on(str(backend["Type"]))
            if next(kills, None) is None:
                break


Away = Callable[[Overlay], AbstractContextManager[None]]


@contextmanager
def cut_off(made: Overlay) -> Iterator[None]:
    """The store's servers have no network."""
    for server in made.lab.servers:
        server.ip([f"link set {UPLINK} down"])
    yield
    for server in made.lab.servers:
        server.ip([f"link set {UPLINK} up"])


@contextmanager
def moved(made: Overlay) -> Iterator[None]:
    """The file store's directory has another name."""
    place = made.path("")
    elsewhere = place.rename(place.with_name("elsewhere"))
    yield
    elsewhere.rename(place)


@contextmanager
def covered(made: Overlay) -> Iterator[None]:
    """An empty file system lies over it, as the mount point does where one is not mounted."""
    place = made.store.removeprefix("file://")
    made.nodes[0].run(["mount", "-t", "tmpfs", "empty", place])
    yield
    assert not [*made.path("").iterdir()], "nobody began another store there"
    made.nodes[0].run(["umount", "--lazy", place])


def through_a_minute_without(away: Away, store: str, step: str) -> None:
    """The store is away when one node is at least so far, and the change can't be over."""
    so_far = STEPS[STEPS.index(step) :]
    with overlay(network(VXLAN), kind=store) as made, pinging(made.lab) as pings:
        last = made.nodes[2].daemon
        with made.driven("--backend", "host-gw") as process:
            last.wait_status(
                lambda it: it["change"] is not None and it["change"]["step"] in so_far, f"as far as {step}", LONG
            )
            last.pause()
            with away(made):
                last.resume()
                pings.all[0].wait_replies(MINUTE, LONG)
                for node in made.nodes:
                    status = node.daemon.wait_status(lambda it: not it["store"]["connected"], "no store", LONG)
                    assert status["ready"]
                    assert status["change"] is not None
                assert process.running
            until(lambda: not process.running, "the change is over", 3 * PATIENCE)
        assert process.returncode == ExitCode.OK
        made.run_on("host-gw")


@pytest.mark.parametrize("store", STORES[1:])
def test_the_store_s_servers_are_away_for_a_minute_in_the_middle(store: str) -> None:
    through_a_minute_without(cut_off, store, "")


@pytest.mark.parametrize(("away", "step"), [(moved, "prepared"), (covered, "switched")])
def test_the_store_s_directory_is_away_for_a_minute_in_the_middle(away: Away, step: str) -> None:
    through_a_minute_without(away, "file", step)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("phase", ["prepare", "switch"])
def test_a_change_is_given_up_in_each_phase(store: str, phase: str) -> None:
    """By another node than the one that began it, which was killed; a second change is refused meanwhile."""
    with overlay(network(VXLAN), kind=store) as made, pinging(made.lab):
        made.nodes[2].daemon.pause()  # or nobody knows how far it gets
        with made.driven("--backend", "host-gw"):
            made.come_to("prepare")
        made.nodes[2].daemon.resume()
        made.all_are("prepared")
        if phase == "switch":
            made.write({**made.document(), "Change": {**made.document()["Change"], "Phase": "switch"}})
            made.all_are("switched")
        assert "another change is under way" in made.refused("--backend", "wireguard")
        assert made.change("--abort", node=1)[-1]["phase"] == "back"
        made.run_on("vxlan")


@pytest.mark.parametrize("store", STORES)
def test_a_node_that_is_down_is_waited_for_until_its_lease_ends_and_follows_when_it_is_back(store: str) -> None:
    """Nobody has to leave it behind; its daemon still has the flag for the backend that the network had."""
    with overlay(network(VXLAN), kind=store, without=[2]) as made, pinging(made.lab, only=(0, 1)):
        late = made.nodes[2].start_daemon(made.store, "vxlan", arguments=["--lease-ttl", "20"])
        late.wait_ready(peers=2, timeout=LONG)
        late.kill()
        assert made.change("--backend", "wireguard")[-1]["over"]
        for node in made.nodes[:2]:
            node.daemon.wait_status(lambda it: it["ready"] and not it["peers"][1:], "two nodes", LONG)
        late.start()
        made.run_on("wireguard")
        made.nodes[2].attach_containers()
        with pinging(made.lab):
            pass
