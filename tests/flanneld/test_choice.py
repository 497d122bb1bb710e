"""Which interface and address a node takes: the same flags on the same node, given to flanneld and then to us."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.servers.flanneld import Etcd, Flanneld
from tests.waiting import LONG, until

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

CHOSEN = re.compile(r"Using interface with name (\S+) and address (\S+)$", re.MULTILINE)
DOCUMENT = '{"Network": "10.244.0.0/16", "Backend": {"Type": "alloc"}}'
CASES = {
    "nothing": ((), "eth0"),
    "a name": (("-iface=eth1",), "eth1"),
    "an address": (("-iface=198.51.100.1",), "eth1"),
    "the next where one is not there": (("-iface=nope", "-iface=eth1"), "eth1"),
    "the next where one has no address": (("-iface=eth2", "-iface=eth1"), "eth1"),
    "a pattern after a name": (("-iface=nope", "-iface-regex=^eth1$"), "eth1"),
    "a pattern for a name and for another's address": ((r"-iface-regex=^eth0$|^198\.51\.",), "eth1"),
    "a pattern that matches what has no address": (("-iface-regex=^eth2$", "-iface-regex=^eth1$"), "eth1"),
    "what can be reached": (("-iface-can-reach=198.51.100.77",), "eth1"),
    "what can be reached after a name": (("-iface=nope", "-iface-can-reach=198.51.100.77"), "eth1"),
    "a public address": (("-public-ip=198.51.100.1",), "eth1"),
}
"""Flags, and the interface that both take. ``eth2`` has no address."""


@dataclass(frozen=True)
class Place:
    """A node with three interfaces, and an etcd."""

    node: Node
    etcd: Etcd


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab(nodes=1, containers=0) as lab:
        node = lab.nodes[0]
        node.ip(f"link add eth{number} type veth peer name far{number}" for number in (1, 2))
        node.ip(f"link set {name} up" for name in ("eth1", "far1", "eth2", "far2"))
        node.ip(["address add 198.51.100.1/24 dev eth1"])
        yield Place(node, Etcd(lab))


@pytest.mark.parametrize("name", CASES)
def test_both_take_the_same_interface_and_address(place: Place, name: str) -> None:
    flags, expected = CASES[name]
    node, prefix = place.node, f"/choice/{sorted(CASES).index(name)}"
    place.etcd.put(f"{prefix}/config", DOCUMENT)
    with Flanneld(node, place.etcd, prefix) as flanneld:
        flanneld.command = (*(word for word in flanneld.command if not word.startswith("-iface")), *flags)
        flanneld.start()
        until(lambda: CHOSEN.search(flanneld.log()) or not flanneld.running, flanneld.log)
        chosen = CHOSEN.search(flanneld.log())
        assert chosen is not None, flanneld.log()
    daemon = node.start_daemon(place.etcd.store(prefix), None, None, flags, interface=None)
    try:
        underlay = daemon.wait_ready(timeout=LONG)["underlay"]
    finally:
        daemon.stop()
    assert (underlay["interface"], underlay["ipv4"]) == chosen.groups()
    assert underlay["interface"] == expected
