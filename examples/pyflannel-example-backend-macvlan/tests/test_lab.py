"""The backend at work: three nodes in network namespaces, real daemons, containers that ping each other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyflannel.lab import Lab, Node, missing_programs

pytestmark = pytest.mark.root

PATIENCE = 30.0
DOCUMENT = {
    "Network": "10.244.0.0/16",
    "EnableIPv6": True,
    "IPv6Network": "fd00:10:244::/48",
    "Backend": {"Type": "macvlan"},
}


def until(condition: Callable[[], bool], what: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if missing := missing_programs():
        pytest.skip(f"a lab needs {', '.join(missing)}")
    with Lab(nodes=3) as lab:
        store = lab.outside(lab.nodes[0].directory).parent / "store"
        store.mkdir()
        (store / "config.json").write_text(json.dumps(DOCUMENT))
        for node in lab.nodes:
            node.start_daemon(lab.file_store, "macvlan")
        for node in lab.nodes:
            node.daemon.wait_ready(peers=2)
            node.attach_containers()
        yield lab


def kernel(node: Node) -> Any:
    def read(*words: str) -> Any:
        return json.loads(node.run(["ip", "-j", "-d", *words], check=False).stdout or "[]")

    links = read("link", "show", "dev", "flannel-mv")
    return (
        [(link["address"], link["mtu"], link["linkinfo"], link["link"]) for link in links],
        sorted(map(str, read("-4", "route", "show", "proto", "241") + read("-6", "route", "show", "proto", "241"))),
        sorted(map(str, read("neigh", "show", "dev", "flannel-mv", "nud", "permanent"))),
    )


def test_every_container_reaches_every_other_in_both_families(lab: Lab) -> None:
    matrix = lab.reachability()
    assert matrix.complete
    assert len(matrix.pairs) == 12


def test_packets_travel_bare_between_the_devices_own_addresses(lab: Lab) -> None:
    one, two = lab.containers[:2]
    with lab.nodes[0].capture() as capture:
        one.run(["ping", "-c", "1", "-W", "5", two.address()])
    macs = [kernel(node)[0][0][0] for node in lab.nodes[:2]]
    frames = [(frame[0:6].hex(":"), frame[6:12].hex(":")) for frame in capture.stop() if frame[23:24] == b"\x01"]
    assert (macs[1], macs[0]) in frames, "an ICMP packet as the payload of an Ethernet frame"


@pytest.mark.parametrize(
    "damage",
    [
        "ip link del flannel-mv",
        "ip link set flannel-mv down",
        "ip link set flannel-mv address 02:00:00:00:00:99",
        "ip link set flannel-mv type macvlan mode bridge",
        "ip route flush proto 241",
        "ip neigh flush dev flannel-mv nud permanent",
    ],
)
def test_drift_is_put_right(lab: Lab, damage: str) -> None:
    node = lab.nodes[0]
    before, repaired = kernel(node), node.daemon.status()["repaired"]
    node.run(["sh", "-ec", damage])
    until(lambda: node.daemon.status()["repaired"] != repaired, "the damage is noticed")
    until(lambda: kernel(node) == before, "it is put right")
    assert lab.reachability().complete


def test_a_restart_loses_no_packet(lab: Lab) -> None:
    node = lab.nodes[0]
    before = kernel(node)
    with lab.containers[0].ping(lab.containers[1].address()) as ping:
        ping.wait_replies(3)
        node.daemon.restart()
        node.daemon.wait_ready(peers=2)
        ping.wait_replies(ping.replies + 3)
        assert ping.stop().lost == 0
    assert kernel(node) == before
