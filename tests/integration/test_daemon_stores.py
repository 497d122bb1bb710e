"""The daemon on real clusters in a lab: three etcd members, three Consul servers, and what can happen to them."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests import iproute
from tests.integration.asking import PATIENCE, until
from tests.servers import consul, etcd

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.sandbox import Process

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PREFIX = "/coreos.com/network"
TUTORIAL = (
    '{"Network":"172.16.0.0/12","SubnetLen":24,"SubnetMin":"172.16.16.0","SubnetMax":"172.31.247.0",'
    '"Backend":{"Type":"vxlan","VNI":172,"Port":8889}}'
)
MISSING = {"etcd": etcd.MISSING, "consul": consul.MISSING}
STORES = [
    pytest.param(name, marks=pytest.mark.skipif(MISSING[name] is not None, reason=str(MISSING[name])))
    for name in ("etcd", "consul")
]


@pytest.mark.parametrize("store", STORES)
def test_the_lab_as_one_command(store: str) -> None:
    words = ("lab", "--store", store, "--store-members", "3", "--nodes", "3", "--no-throughput", "--json")
    done = subprocess.run(pyflannel_command(*words), capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["store"] == store
    assert len(report["reachability"]) == 6


class Cluster:
    """An overlay of three nodes on three servers of one kind, and hands on the servers' processes."""

    def __init__(self, lab: Lab, kind: str) -> None:
        self.lab = lab
        self.kind = kind
        self.url = lab.start_store(kind, 3)
        self.server = lab.servers[-1]
        self.log = lab.outside(self.server.directory / "again.log")

    def start(self, document: str) -> None:
        node = self.lab.nodes[0]
        node.run(pyflannel_command("config", "set", "-", "--store", self.url), input=document)
        for each in self.lab.nodes:
            each.start_daemon(self.url, "vxlan")
        for each in self.lab.nodes:
            each.daemon.wait_ready(peers=2)
            each.attach_containers()

    def pids(self) -> list[int]:
        """The servers' process ids inside the lab, in the order of their names."""
        listed = self.server.run(["sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo \" $p\"; done"])
        lines = [line.split() for line in listed.stdout.splitlines()]
        return [int(words[-1].rpartition("/")[2]) for words in lines if words[0].rpartition("/")[2] == self.kind]

    def signal(self, name: str, pid: int) -> None:
        self.server.run(["kill", f"-{name}", str(pid)])

    def command_line(self, pid: int) -> list[str]:
        return self.server.run(["cat", f"/proc/{pid}/cmdline"]).stdout.split("\0")[:-1]

    def run_again(self, words: list[str]) -> Process:
        """Start a server that was killed, on its data."""
        with self.log.open("a", encoding="utf-8") as log:
            return self.server.start(words, stdout=log, stderr=log)

    def etcdctl(self, *words: str) -> str:
        hosts = self.url.removeprefix("etcd://").partition("/")[0]
        return self.server.run(["etcdctl", f"--endpoints={hosts}", *words], env={"ETCDCTL_API": "3"}).stdout

    def connected(self) -> bool:
        return all(node.daemon.status()["state"] == "ready" for node in self.lab.nodes)

    def keys(self) -> list[str]:
        return [str(node.daemon.status()["lease"]["key"]) for node in self.lab.nodes]


@pytest.fixture(scope="module", params=STORES)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Lab(nodes=3) as lab:
        cluster = Cluster(lab, request.param)
        cluster.start(TUTORIAL)
        yield cluster
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")
        if cluster.log.exists():
            print("servers started again", cluster.log.read_text(encoding="utf-8", errors="replace"), sep="\n")


on_etcd = pytest.mark.parametrize("cluster", STORES[:1], indirect=True)


@contextmanager
def no_ping_lost(lab: Lab) -> Iterator[None]:
    """Between the last two nodes: the first one's lease is deleted now and then, to see who hears of it."""
    one, two = lab.containers[1:]
    with one.ping(two.address(), interval=0.1) as ping:
        ping.wait_replies(3)
        yield
        ping.wait_replies(3)
        assert ping.stop().lost == 0


def test_the_tutorial_s_document_is_followed(cluster: Cluster) -> None:
    for node in cluster.lab.nodes:
        status = node.daemon.status()
        assert status["network"] == "172.16.0.0/12"
        (link,) = iproute.parse(node.run(["ip", "-j", "-d", "link", "show", "flannel.172"]).stdout)
        assert (link["linkinfo"]["info_data"]["id"], link["linkinfo"]["info_data"]["port"]) == (172, 8889)
    assert cluster.lab.reachability().complete


@on_etcd
def test_etcdctl_reads_flannel_s_schema(cluster: Cluster) -> None:
    assert cluster.etcdctl("get", f"{PREFIX}/config").splitlines() == [f"{PREFIX}/config", TUTORIAL]
    found = json.loads(cluster.etcdctl("get", "--prefix", f"{PREFIX}/subnets/", "-w", "json"))["kvs"]
    assert len(found) == 3
    for kv, node in zip(sorted(found, key=lambda kv: str(etcd_value(kv)["PublicIP"])), cluster.lab.nodes, strict=True):
        assert etcd_text(kv["key"]) == f"{PREFIX}/subnets/{node.daemon.status()['lease']['key']}"
        value = etcd_value(kv)
        mac = json.loads(node.run(["ip", "-j", "link", "show", "flannel.172"]).stdout)[0]["address"]
        assert value["PublicIP"] == str(node.ipv4.ip)
        assert value["BackendType"] == "vxlan"
        assert value["BackendData"] == {"VNI": 172, "VtepMAC": mac}
        left = json.loads(cluster.etcdctl("lease", "timetolive", f"{kv['lease']:x}", "-w", "json"))
        assert left["granted-ttl"] == 86400
        assert 86000 < left["ttl"] <= 86400


def etcd_text(encoded: str) -> str:
    return b64decode(encoded).decode()


def etcd_value(kv: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(etcd_text(kv["value"]))
    return value


@on_etcd
def test_a_document_put_with_etcdctl_is_told_and_not_followed(cluster: Cluster) -> None:
    """Each node would read it at another time; "network change" is the way."""
    cluster.etcdctl("put", f"{PREFIX}/config", TUTORIAL.replace("8889", "8890"))
    for node in cluster.lab.nodes:
        node.daemon.wait_status(lambda status: "Port" in str(status["message"]), "what differs")
    assert [vxlan_port(node) for node in cluster.lab.nodes] == [8889] * len(cluster.lab.nodes)
    cluster.etcdctl("put", f"{PREFIX}/config", TUTORIAL)
    for node in cluster.lab.nodes:
        node.daemon.wait_status(lambda status: "Port" not in str(status["message"]), "nothing that differs")
    assert cluster.lab.reachability().complete


def vxlan_port(node: Node) -> int | None:
    done = node.run(["ip", "-j", "-d", "link", "show", "flannel.172"], check=False)
    links = iproute.parse(done.stdout)
    return links[0]["linkinfo"]["info_data"]["port"] if links else None


@on_etcd
def test_a_lease_deleted_with_etcdctl_is_back_with_the_same_subnet(cluster: Cluster) -> None:
    before = cluster.keys()
    key = f"{PREFIX}/subnets/{before[0]}"
    created = revision(cluster, key)
    assert cluster.etcdctl("del", key).strip() == "1"
    until(lambda: revision(cluster, key) > created)
    assert cluster.keys() == before
    for node in cluster.lab.nodes[1:]:
        node.daemon.wait_ready(peers=2)
    assert cluster.lab.reachability().complete


def revision(cluster: Cluster, key: str) -> int:
    kvs = json.loads(cluster.etcdctl("get", key, "-w", "json")).get("kvs", [])
    return int(kvs[0]["create_revision"]) if kvs else 0


@on_etcd
def test_compaction_behind_our_back_is_survived(cluster: Cluster) -> None:
    """Daemons that stood still find their history gone, and a lease that came meanwhile."""
    key = "172.20.0.0-24"
    data = {"VNI": 172, "VtepMAC": "02:00:00:00:00:63"}
    value = json.dumps({"PublicIP": "192.0.2.99", "BackendType": "vxlan", "BackendData": data})
    with no_ping_lost(cluster.lab):
        words = {pid: cluster.command_line(pid) for pid in cluster.pids()}
        for node in cluster.lab.nodes:
            node.daemon.pause()
        for pid in words:  # or the servers would keep what they were to send
            cluster.signal("KILL", pid)
        for each in words.values():
            cluster.run_again(each)
        until(lambda: "is healthy" in ask(cluster, "endpoint", "health"))
        cluster.etcdctl("put", f"{PREFIX}/subnets/{key}", value)
        header = json.loads(cluster.etcdctl("get", f"{PREFIX}/config", "-w", "json"))["header"]
        cluster.etcdctl("compaction", str(header["revision"]))
        for node in cluster.lab.nodes:
            node.daemon.resume()
        for node in cluster.lab.nodes:
            node.daemon.wait_ready(peers=3, timeout=PATIENCE)
        cluster.etcdctl("del", f"{PREFIX}/subnets/{key}")
        for node in cluster.lab.nodes:
            node.daemon.wait_status(lambda status: len(status["peers"]) == 2, "rid of it", PATIENCE)


def ask(cluster: Cluster, *words: str) -> str:
    """What etcdctl says, also while there is nobody to ask."""
    hosts = cluster.url.removeprefix("etcd://").partition("/")[0]
    done = cluster.server.run(
        ["etcdctl", f"--endpoints={hosts}", "--command-timeout=1s", *words], env={"ETCDCTL_API": "3"}, check=False
    )
    return str(done.stdout + done.stderr)


# Deletes the lease and waits until all three are there: one process, for each start of one takes longer than the rest.
DELETE = """
import sys, time
from pyflannel.plugins import load_store
from pyflannel.store import StoreLocation
where, key = StoreLocation.parse(sys.argv[1]), sys.argv[2]
with load_store(where.scheme)(where) as store:
    for record in store.snapshot().leases:
        if record.key == key:
            store.delete(record)
    while len(store.snapshot().leases) < 3:
        time.sleep(0.02)
"""


def hears(cluster: Cluster) -> None:
    """The store takes writes and all daemons hear of them: the first node's lease goes and comes back as it was."""
    first, *others = cluster.lab.nodes
    key = first.daemon.status()["lease"]["key"]
    words = [pyflannel_command()[0], "-c", DELETE, cluster.url, key]
    until(lambda: first.run(words, timeout=PATIENCE, check=False).returncode == 0, "the store takes writes")
    until(cluster.connected, "all are connected")
    assert first.daemon.status()["lease"]["key"] == key
    for node in others:
        node.daemon.wait_ready(peers=2, timeout=PATIENCE)


def test_servers_killed_one_after_the_other(cluster: Cluster) -> None:
    before = cluster.keys()
    with no_ping_lost(cluster.lab):
        for pid in cluster.pids():
            words = cluster.command_line(pid)
            cluster.signal("KILL", pid)
            until(lambda pid=pid: pid not in cluster.pids())  # type: ignore[misc]
            hears(cluster)
            cluster.run_again(words)
            until(lambda: len(cluster.pids()) == 3)
            hears(cluster)
    assert cluster.keys() == before


def test_a_frozen_server_holds_nobody_up(cluster: Cluster) -> None:
    pid = cluster.pids()[0]
    with no_ping_lost(cluster.lab):
        cluster.signal("STOP", pid)
        try:
            hears(cluster)
        finally:
            cluster.signal("CONT", pid)
        hears(cluster)


def test_the_whole_cluster_goes_and_comes_back(cluster: Cluster) -> None:
    before = cluster.keys()
    with no_ping_lost(cluster.lab):
        words = [(pid, cluster.command_line(pid)) for pid in cluster.pids()]
        for pid, _ in words:
            cluster.signal("KILL", pid)
        for node in cluster.lab.nodes:
            node.daemon.wait_status(lambda status: status["state"] == "degraded", "degraded", PATIENCE)
        assert cluster.lab.reachability().complete, "forwarding goes on"
        for _, each in words:
            cluster.run_again(each)
        until(cluster.connected, "connected again")
        hears(cluster)
    assert cluster.keys() == before
    assert cluster.lab.reachability().complete


@pytest.mark.parametrize("store", STORES)
def test_a_name_from_etc_hosts_needs_no_dns_and_one_that_is_not_there_is_named(store: str) -> None:
    with Lab(nodes=1, containers=0) as lab:
        (node,) = lab.nodes
        url = lab.start_store(store)
        address = str(lab.servers[0].ipv4.ip)
        files = {"/etc/hosts": "127.0.0.1 localhost\n", "/etc/resolv.conf": "nameserver 192.0.2.99\n"}
        for file, text in files.items():
            ours = node.directory / file.rpartition("/")[2]
            lab.outside(ours).write_text(text)
            lab.sandbox.namespace.run(["mount", "--bind", str(ours), file])
        daemon = node.start_daemon(url.replace(address, "store.example"), "vxlan", "10.244.0.0/16")
        status = daemon.wait_status(lambda it: "store.example" in it["message"], "it waits for the name", PATIENCE)
        assert store != "consul" or "DNS" in status["message"]
        with lab.outside(node.directory / "hosts").open("a") as hosts:
            hosts.write(f"{address} store.example\n")
        daemon.wait_ready(timeout=PATIENCE)
