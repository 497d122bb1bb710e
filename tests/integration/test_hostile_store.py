"""A store full of what somebody put there to hurt: the overlay goes on, and all that is shown of it stays small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.asking import until
from tests.servers.flanneld import Etcd

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import peers_in, pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PORT = 9199
NETWORK = {"Network": "10.244.0.0/16", "SubnetMax": "10.244.89.0", "Backend": {"Type": "vxlan", "VNI": 43}}
HALF = "x" * 520_000
LARGE = [
    {"PublicIP": "192.0.2.77", "BackendType": "vxlan", "BackendData": {"VNI": 43, "VtepMAC": HALF}},
    {"PublicIP": "192.0.2.77", "BackendType": "vxlan", "BackendData": [[] for _ in range(150_000)]},
    {"PublicIP": "192.0.2.77", "BackendType": HALF},
    {"PublicIP": "192.0.2.77", "NodeID": HALF},
    {"PublicIP": HALF},
    {"PublicIP": "192.0.2.77", "BackendType": "vxlan", HALF: 1},
    {"PublicIP": "192.0.2.77", "BackendType": "vxlan", "BackendData": {"VNI": 43, "VtepMAC": "x" * 30_000}},
]
RAW = ("\x1b", "\u202e", "\x9b")
"""An escape, a mark that turns the direction of reading, and the escape of eight bits."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(nodes=2) as lab:
        (root(lab) / "subnets").mkdir(mode=0o700, parents=True)
        (root(lab) / "config.json").write_text(json.dumps({**NETWORK, f"key{''.join(RAW)}\n": 1}))
        for node in lab.nodes:
            node.start_daemon(lab.file_store, "vxlan", arguments=("--healthz-port", str(PORT)))
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
            node.attach_containers()
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(30)[:10_000], sep="\n")


def root(lab: Lab) -> Path:
    return lab.outside(lab.nodes[0].directory).parent / "store"


def plant(lab: Lab) -> int:
    """Put leases there that nobody could mean; returns how many."""
    subnets = root(lab) / "subnets"
    for number in range(120):
        document = json.dumps(LARGE[number % len(LARGE)])
        (subnets / f"10.244.{100 + number}.0-24.json").write_text(document)
    for name in ("10.244.90.0-024", "10.244.090.0-24", f"10.244.91.0-24{RAW[1]}", f"{RAW[0]}[2J"):
        # What a file's name can't hold as it is stands percent-encoded there.
        encoded = "".join(
            c if c.isprintable() and c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in name
        )
        (subnets / f"{encoded}.json").write_text('{"PublicIP":"192.0.2.78","BackendType":"vxlan"}')
    return 124


def resident(node: Node, pid: int) -> int:
    """MiB."""
    lines = node.run(["cat", f"/proc/{pid}/status"]).stdout.splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) >> 10


def test_large_and_odd_leases_hurt_nobody(lab: Lab) -> None:
    node = lab.nodes[0]
    planted = plant(lab)
    node.daemon.wait_status(lambda status: len(status["peers"]) == 1 + planted, "aware of all")
    status = node.daemon.status()
    assert [peer["state"] for peer in status["peers"]].count("ok") == 1
    assert len(json.dumps(status)) < 500_000
    page = node.run(["curl", "-sS", f"http://127.0.0.1:{PORT}/"]).stdout
    assert 1_000 < len(page) < 500_000
    listed = node.run([*pyflannel_command("leases", "--store", lab.file_store)]).stdout
    assert 1_000 < len(listed) < 100_000
    for text in (page, listed, node.daemon.log()):
        assert not any(raw in text for raw in RAW)
    until(lambda: lab.reachability().complete, "everybody reaches everybody")
    assert resident(node, status["pid"]) < 250


def test_a_renewed_lease_keeps_no_more_than_it_should(lab: Lab) -> None:
    node = lab.nodes[0]
    key = node.daemon.status()["lease"]["key"]
    path = root(lab) / "subnets" / f"{key}.json"
    document = json.loads(path.read_text())
    deep = json.loads(400 * "[" + 400 * "]")
    path.write_text(json.dumps({**document, "Deep": deep, "New": "kept", "Large": HALF[:20_000]}))
    node.daemon.restart()
    node.daemon.wait_ready(peers=1)
    assert node.daemon.status()["lease"]["key"] == key
    written = json.loads(path.read_text())
    assert "Expires" in written
    assert path.stat().st_size < 100_000


COVERING = {"Network": "192.0.0.0/8", "SubnetLen": 24, "SubnetMin": "192.10.0.0", "SubnetMax": "192.99.0.0"}


@pytest.mark.parametrize("key", ["192.0.2.0-25", "192.0.2.0-24", "192.0.2.2-32", "192.0.2.128-25", "192.0.0.0-16"])
def test_in_a_network_that_covers_the_nodes_no_lease_takes_their_addresses_nor_the_store_s(key: str) -> None:
    """A node that lost the store to a lease would never hear that it is gone. The store is at 192.0.2.201."""
    with Lab(nodes=3) as lab:
        etcd = Etcd(lab)
        etcd.put("/covering/config", json.dumps({**COVERING, "Backend": {"Type": "vxlan"}}))
        for node in lab.nodes:
            node.start_daemon(etcd.store("/covering"), None)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=2)
            node.attach_containers()
        until(lambda: lab.reachability().complete, "everybody reaches everybody")
        one, two = lab.containers[:2]
        with one.ping(two.address(), interval=0.02) as ping:
            data = {"VNI": 1, "VtepMAC": "02:00:00:00:00:99"}
            lease = {"PublicIP": "198.51.100.9", "BackendType": "vxlan", "BackendData": data}
            etcd.put(f"/covering/subnets/{key}", json.dumps(lease))
            for node in lab.nodes:
                status = node.daemon.wait_status(lambda status: len(status["peers"]) == 3, "aware of it")
                (skipped,) = peers_in(status, "skipped")
                assert "lies outside SubnetMin to SubnetMax" in skipped["reason"]
            ping.wait_replies(20, 20)
            assert ping.stop().lost == 0
        assert lab.reachability().complete
        etcd.put("/covering/subnets/192.50.0.0-24", json.dumps(lease))
        for node in lab.nodes:
            node.daemon.wait_status(lambda status: len(status["peers"]) == 4, "still hearing of the store")
