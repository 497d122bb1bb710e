"""A machine and its copy: real daemons with one machine id, each with files of its own that say which boot it is in.

Whatever has become of the original, the copy gets a subnet of its own and the original's packets go on, every one of
them; and a node that comes back with another address, after a reboot or without one, is itself.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

import pytest
from tests.waiting import LONG, until

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.serve import has_server
from pyflannel.network.lease import Lease

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

RANGES = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10::/48"}
VXLAN = {"Type": "vxlan"}
MACHINE_ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"
TOLD = "another machine has this one's node id"

AS_MACHINE = (
    "unshare",
    "--mount",
    "sh",
    "-ec",
    'for at in /etc/machine-id /proc/sys/kernel/random/boot_id; do mount --bind "$0/${at##*/}" $at; done; exec "$@"',
)
"""A program, told in ``$0`` where the files are that this machine differs in."""


def boot(node: Node, machine_id: str = MACHINE_ID) -> None:
    """Give a node its machine id, and the boot id of a machine that has just started."""
    home = node.lab.outside(node.directory)
    (home / "machine-id").write_text(f"{machine_id}\n")
    (home / "boot_id").write_text(f"{uuid.uuid4()}\n")


def start(node: Node, store: str, backend: Mapping[str, str] = VXLAN) -> None:
    """Start a node's daemon as what its files say it is."""
    wrapper = (*AS_MACHINE, str(node.directory))
    config = node.lab.new_file("network")
    node.lab.outside(config).write_text(json.dumps({**RANGES, "Backend": backend}))
    words = ["--net-config-path", str(config), "--lease-ttl", "600"]
    node.start_daemon(store, backend["Type"], None, words, node_id=None, wrapper=wrapper)


@contextmanager
def cluster(scheme: str = "file", routed: int = 0, backend: Mapping[str, str] = VXLAN) -> Iterator[tuple[Lab, str]]:
    """Two nodes with containers that know each other, and a third that is a copy of the first and not started yet."""
    if scheme != "file" and not has_server(scheme):
        pytest.skip(f"no server of {scheme} here")
    with Lab(nodes=3, routed=routed) as lab:
        store = lab.file_store if scheme == "file" else lab.start_store(scheme)
        original, other, copy = lab.nodes
        boot(original)
        boot(other, uuid.uuid4().hex)
        boot(copy)
        start(original, store, backend)
        start(other, store, backend)
        for node in (original, other):
            node.daemon.wait_ready(peers=1, timeout=LONG)
            node.attach_containers()
        yield lab, store
        for node in lab.nodes[: 3 if copy.state() != "no daemon" else 2]:
            print(node.name, node.daemon.log(), sep="\n")


def told(node: Node) -> Mapping[str, Any]:
    """Wait until a node has its own subnet and says why; its status then."""
    return node.daemon.wait_status(
        lambda status: bool(status["ready"]) and TOLD in status["message"], "ready, and told of its twin", LONG
    )


def key(node: Node) -> str:
    return str(node.daemon.status()["lease"]["key"])


def reachable(source: Node, target: Node, version: int) -> bool:
    words = ["ping", "-c", "1", "-W", "2", target.containers[0].address(version)]
    return not source.containers[0].run(words, check=False).returncode


def cut_off(node: Node) -> None:
    """No packet of the node's to a store's server, and none from it."""
    chain = "nft add chain inet cut o '{ type filter hook output priority 0; }'"
    node.run(["sh", "-ec", f"nft add table inet cut; {chain}; nft add rule inet cut o meta l4proto tcp drop"])


STATES: dict[str, tuple[str, Callable[[Node], object]]] = {
    "running": ("file", lambda node: None),
    "stopped": ("file", lambda node: node.daemon.stop()),
    "killed": ("file", lambda node: node.daemon.kill()),
    "frozen": ("file", lambda node: node.daemon.pause()),
    "cut off from etcd": ("etcd", cut_off),
    "running, on etcd": ("etcd", lambda node: None),
    "running, on consul": ("consul", lambda node: None),
}


@pytest.mark.parametrize(("scheme", "befalls"), STATES.values(), ids=STATES.keys())
def test_a_copy_costs_the_original_no_packet(scheme: str, befalls: Callable[[Node], object]) -> None:
    with cluster(scheme) as (lab, store):
        original, other, copy = lab.nodes
        before = key(original)
        pings = [other.containers[0].ping(original.containers[0].address(version)) for version in (4, 6)]
        for ping in pings:
            ping.wait_replies(5)
        befalls(original)
        start(copy, store)
        told(copy)
        copy.daemon.wait_ready(peers=2, timeout=LONG)
        copy.attach_containers()
        for version in (4, 6):
            until(lambda version=version: reachable(other, copy, version))  # type: ignore[misc]
            assert reachable(copy, other, version)
        for ping in pings:
            ping.wait_replies(20)
        assert [ping.stop().lost for ping in pings] == [0, 0]
        status = copy.daemon.status()
        assert status["lease"]["key"] != before
        assert before in status["message"]
        assert {peer["key"]: peer["state"] for peer in other.daemon.status()["peers"]} == {
            before: "ok",
            status["lease"]["key"]: "ok",
        }
        assert f"warning  {status['state']}: " in copy.daemon.log()
        assert TOLD in copy.daemon.log()
        assert TOLD not in original.daemon.log()
        original.daemon.resume()
        if original.daemon.running:
            assert key(original) == before


def test_a_copy_is_the_same_node_after_its_own_reboot() -> None:
    with cluster() as (lab, store):
        copy = lab.nodes[2]
        start(copy, store)
        first = told(copy)
        copy.daemon.stop()
        boot(copy)
        copy.set_address(IPv4Interface("192.0.2.88/24"))
        start(copy, store)
        again = told(copy)
        assert (again["lease"]["key"], again["node_id"]) == (first["lease"]["key"], first["node_id"])


@pytest.mark.parametrize("rebooted", [False, True], ids=["the same boot", "after a reboot"])
@pytest.mark.parametrize("scheme", ["file", "etcd"])
def test_a_node_with_another_address_is_itself(scheme: str, rebooted: bool) -> None:
    with cluster(scheme) as (lab, store):
        node, other, _ = lab.nodes
        before, status = key(node), node.daemon.status()
        node.daemon.stop()
        if rebooted:
            boot(node)
            node.ip(["link delete flannel.1", "link delete flannel-v6.1"])
        node.set_address(IPv4Interface("192.0.2.77/24"))
        node.set_address(IPv6Interface("2001:db8::77/64"))
        start(node, store)
        node.daemon.wait_ready(peers=1, timeout=LONG)
        assert key(node) == before
        assert node.daemon.status()["node_id"] == status["node_id"]
        assert TOLD not in node.daemon.log()
        for version in (4, 6):
            until(lambda version=version: reachable(other, node, version))  # type: ignore[misc]


def test_what_an_older_version_left_is_gone_on_with() -> None:
    """Its lease says nothing of the machine; the address is another one after the upgrade."""
    with cluster() as (lab, store):
        node = lab.nodes[0]
        before = key(node)
        node.daemon.stop()
        file = lab.outside(node.directory).parent / "store" / "subnets" / f"{before}.json"
        record = json.loads(file.read_text())
        assert record.pop("Machine")
        file.write_text(json.dumps(record))
        node.set_address(IPv4Interface("192.0.2.77/24"))
        start(node, store)
        node.daemon.wait_ready(peers=1, timeout=LONG)
        assert key(node) == before
        until(lambda: Lease.from_record(before, file.read_text()).attributes.marks.run)


def test_a_copy_gives_back_its_own_lease_alone() -> None:
    with cluster() as (lab, store):
        original, _, copy = lab.nodes
        start(copy, store)
        told(copy)
        own = key(copy)
        copy.daemon.stop()
        directories = ["--run-dir", str(copy.daemon.run_directory), "--state-dir", str(copy.daemon.state_directory)]
        words = pyflannel_command("cleanup", "--lease", "--store", store, *directories)
        done = copy.run([*copy.daemon.options.wrapper, *words])
        assert own in done.stdout
        assert key(original) not in done.stdout
        subnets = lab.outside(copy.directory).parent / "store" / "subnets"
        assert {path.stem for path in subnets.glob("*.json")} >= {key(original)}
        assert own not in {path.stem for path in subnets.glob("*.json")}


def test_a_copy_with_the_original_s_card_gives_way() -> None:
    """Nothing tells the two apart but that the original speaks up: then who came later takes another subnet."""
    with cluster(routed=1) as (lab, store):
        original, other, copy = lab.nodes
        before = key(original)
        card = original.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
        copy.ip([f"link set eth0 address {card}"])
        start(copy, store)
        told(copy)
        until(lambda: key(copy) != before)
        until(lambda: (key(original), original.daemon.status()["ready"]) == (before, True))
        copy.attach_containers()
        for version in (4, 6):
            until(lambda version=version: reachable(other, copy, version))  # type: ignore[misc]
            until(lambda version=version: reachable(other, original, version))  # type: ignore[misc]
        assert original.daemon.log().count("was overwritten by") <= 1, "no swapping to and fro"


def examined(node: Node) -> dict[str, Any]:
    """What doctor says of a node's id."""
    wrapper = node.daemon.options.wrapper
    flags = node.daemon.command[len(wrapper) + len(pyflannel_command()) :]
    words = [*wrapper, *pyflannel_command("doctor", "--json", "--no-probes", *flags)]
    document = json.loads(node.run(words, check=False, timeout=90).stdout)
    (finding,) = (finding for finding in document["findings"] if finding["check"] == "node id")
    return dict(finding)


def test_doctor_names_both_and_what_it_says_mends_it() -> None:
    with cluster() as (lab, store):
        original, other, copy = lab.nodes
        assert {examined(original)["verdict"], examined(other)["verdict"]} == {"pass"}
        start(copy, store)
        told(copy)
        own = key(copy)
        for node, twin, running in ((copy, original, True), (original, copy, True), (copy, original, False)):
            if not running:
                copy.daemon.stop()
            finding = examined(node)
            assert finding["verdict"] == "warn"
            assert "another machine has this one's node id" in finding["message"]
            assert str(twin.ipv4.ip) in finding["message"]
            assert "systemd-machine-id-setup" in finding["fix"]
        boot(copy, uuid.uuid4().hex)
        start(copy, store)
        status = copy.daemon.wait_ready(peers=2, timeout=LONG)
        assert (status["state"], status["lease"]["key"]) == ("ready", own)
        assert {examined(node)["verdict"] for node in lab.nodes} == {"pass"}


def test_a_copy_with_the_original_s_private_key_makes_its_own() -> None:
    """With WireGuard a node is its key: who shows the same public key would take the other's packets."""
    backend = {"Type": "wireguard", "Implementation": "userspace"}
    with cluster(backend=backend) as (lab, store):
        original, other, copy = lab.nodes
        copy.run(["cp", "-a", str(original.daemon.state_directory), str(copy.directory / "state")])
        pings = [other.containers[0].ping(original.containers[0].address(version)) for version in (4, 6)]
        for ping in pings:
            ping.wait_replies(5)
        start(copy, store, backend)
        told(copy)
        copy.daemon.wait_ready(peers=2, timeout=LONG)
        copy.attach_containers()
        for version in (4, 6):
            until(lambda version=version: reachable(other, copy, version))  # type: ignore[misc]
        for ping in pings:
            ping.wait_replies(20)
        assert [ping.stop().lost for ping in pings] == [0, 0]
        keys = {node.daemon.status()["backend"]["details"]["public_key"] for node in lab.nodes}
        assert len(keys) == 3


@pytest.mark.parametrize("scheme", ["file", "etcd"])
def test_two_that_start_at_once_each_have_a_subnet(scheme: str) -> None:
    if scheme != "file" and not has_server(scheme):
        pytest.skip(f"no server of {scheme} here")
    with Lab(nodes=2) as lab:
        store = lab.file_store if scheme == "file" else lab.start_store(scheme)
        for node in lab.nodes:
            boot(node)
        for node in lab.nodes:
            start(node, store)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1, timeout=LONG)
            node.attach_containers()
        one, other = lab.nodes
        assert key(one) != key(other)
        until(lambda: any(TOLD in node.daemon.status()["message"] for node in lab.nodes))
        for version in (4, 6):
            until(lambda version=version: reachable(one, other, version))  # type: ignore[misc]
        assert not any("was overwritten" in node.daemon.log() for node in lab.nodes)
