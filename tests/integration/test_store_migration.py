"""An overlay moves from files to etcd and on to Consul while its containers ping each other, and no ping is lost."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.integration.asking import PATIENCE, until
from tests.integration.overlay import overlay
from tests.servers import consul, etcd
from tests.storing import delete

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import peers_in, pyflannel_command
from pyflannel.lab.measure import Ping

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(etcd.MISSING is not None, reason=str(etcd.MISSING)),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with overlay("vxlan") as lab:
        yield lab


class Migration:
    """``pyflannel store migrate`` in a lab."""

    def __init__(self, node: Node, source: str, target: str, *words: str) -> None:
        self.node, self.source, self.target, self.words = node, source, target, words
        self.log = node.lab.outside(node.lab.new_file("migration"))
        self.start()

    def start(self) -> None:
        words = pyflannel_command("store", "migrate", "--from", self.source, "--to", self.target, "--json", *self.words)
        with self.log.open("w") as log:
            self.process = self.node.start(words, stdout=log, stderr=log)

    def follows(self) -> None:
        until(lambda: "one by one" in self.log.read_text() or not self.process.running, "it follows")
        assert self.process.running, self.log.read_text()

    def end(self) -> dict[str, Any]:
        """Wait for its end, and return its report."""
        until(lambda: not self.process.running, self.log.read_text)
        text = self.log.read_text()
        assert self.process.returncode == 0, text
        report: dict[str, Any] = json.loads(text[text.index("{\n") :])
        return report


@contextmanager
def pings(lab: Lab) -> Iterator[list[Ping]]:
    """Every container pings the next, ten times a second; not one is lost."""
    with ExitStack() as stack:
        count = len(lab.containers)
        running = [
            stack.enter_context(one.ping(lab.containers[(index + 1) % count].address(), interval=0.1))
            for index, one in enumerate(lab.containers)
        ]
        for ping in running:
            ping.wait_replies(3)
        yield running
        for ping in running:
            ping.wait_replies(3)
        assert [ping.stop().lost for ping in running] == [0] * count


def subnets(lab: Lab) -> list[str]:
    return [str(node.daemon.status()["lease"]["key"]) for node in lab.nodes]


def move(node: Node, store: str) -> None:
    """Edit one line and restart."""
    node.daemon.options = replace(node.daemon.options, store=store)
    node.daemon.restart()
    node.daemon.wait_ready(peers=2)


def all_see_all(lab: Lab) -> bool:
    return all(len(peers_in(node.daemon.status(), "ok")) == 2 for node in lab.nodes)


def leases(node: Node, store: str) -> dict[str, Any]:
    listed = json.loads(node.run(pyflannel_command("leases", "--json", "--store", store)).stdout)
    return {lease["key"]: lease for lease in listed["leases"]}


@pytest.mark.skipif(consul.MISSING is not None, reason=str(consul.MISSING))
def test_files_to_etcd_to_consul_without_a_lost_ping(lab: Lab) -> None:
    before = subnets(lab)
    stores = [lab.file_store, lab.start_store("etcd"), lab.start_store("consul")]
    with pings(lab):
        for source, target in itertools.pairwise(stores):
            migration = Migration(lab.nodes[0], source, target, "--follow", "--until-moved")
            migration.follows()
            for node in lab.nodes:
                move(node, target)
                assert subnets(lab) == before
                assert all_see_all(lab)
                assert lab.reachability().complete
            report = migration.end()
            assert (report["verified"], report["moved"], report["leases"]) == (True, 3, 3)
            assert leases(lab.nodes[0], source).keys() == leases(lab.nodes[0], target).keys() == set(before)
            again = Migration(lab.nodes[0], source, target).end()
            assert [again[what] for what in ("copied", "updated", "renewed", "deleted")] == [[], [], [], []]


def test_nodes_on_both_sides_see_each_other_whatever_happens_meanwhile(lab: Lab) -> None:
    before = subnets(lab)
    first, second, third = lab.nodes
    new = lab.start_store("etcd")
    migration = Migration(first, lab.file_store, new, "--follow")
    migration.follows()
    with pings(lab):
        move(first, new)
        # It is killed, and taken up where it was.
        migration.process.kill()
        migration.start()
        migration.follows()
        assert all_see_all(lab)
    # A lease deleted in the new store is taken again by its moved node, and one of the old store by its own.
    for node, store in ((first, new), (second, lab.file_store)):
        delete(node, store, str(node.daemon.status()["lease"]["key"]))
    until(lambda: set(leases(third, new)) == set(leases(third, lab.file_store)) == set(before), "both are back")
    until(lambda: all_see_all(lab), "all see all")
    with pings(lab):
        # The last two move; one of them goes back and comes again.
        for node, store in ((second, new), (second, lab.file_store), (third, new), (second, new)):
            move(node, store)
            assert all_see_all(lab)
        assert subnets(lab) == before
        assert lab.reachability().complete
    until(lambda: "one by one" in migration.log.read_text(), migration.log.read_text)
    migration.process.stop(PATIENCE)
    assert migration.end()["verified"]


def test_nodes_on_both_sides_go_through_a_change_of_the_network(lab: Lab) -> None:
    """It is begun in the old store, and the next one in the new one."""
    new = lab.start_store("etcd")
    migration = Migration(lab.nodes[0], lab.file_store, new, "--follow")
    migration.follows()
    move(lab.nodes[1], new)
    with pings(lab):
        for store, backend in ((lab.file_store, "host-gw"), (new, "vxlan")):
            words = pyflannel_command("network", "change", "--backend", backend, "--store", store)
            lab.nodes[0].run(words, timeout=PATIENCE)
            for node in lab.nodes:
                node.daemon.wait_status(
                    lambda it, backend=backend: it["backend"]["name"] == backend and it["change"] is None,  # type: ignore[misc]
                    f"{backend} alone",
                    PATIENCE,
                )
            assert all_see_all(lab)
    migration.process.stop(PATIENCE)
    assert migration.end()["verified"]
