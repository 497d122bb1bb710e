"""Other options and ranges, where that takes more than the quick tests have: every process replaced, WireGuard on other
ports in both families, and a node that comes when the ranges are others."""

from __future__ import annotations

import json
from ipaddress import IPv4Network

import pytest
from tests.changing import DUAL, UDP, USERSPACE, VXLAN, network, overlay, pinging
from tests.integration.asking import workers
from tests.waiting import PATIENCE, until

from pyflannel.lab import Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def words(*options: str) -> list[str]:
    return [word for option in options for word in ("--backend-option", option)]


def received(node: Node, device: str) -> int:
    """Packets that came in by a device; none if it is not there yet."""
    told = node.run(["ip", "-j", "-s", "link", "show", "dev", device], check=False).stdout
    return int(json.loads(told)[0]["stats64"]["rx"]["packets"]) if told else 0


def test_how_many_processes_move_packets_and_by_which_means_changes_along_with_the_port() -> None:
    """Alone it is refused: a device's queue would end with what waits in it."""
    with overlay(network(UDP)) as made, pinging(made.lab) as pings:
        for option in ("Workers=3", "Offload=false"):
            assert "another name" in made.refused(*words(option))
        for options, count in ((("Workers=3", "Offload=false", "Port=8300"), 3), (("Workers=1", "Port=8285"), 1)):
            made.change(*words(*options))
            made.run_on("udp")
            for node in made.nodes:
                until(lambda node=node, count=count: len(workers(node, "udp")) == count, "its workers", PATIENCE)  # type: ignore[misc]
            pings.note(str(options))


def test_wireguard_is_tried_on_its_other_ports_in_both_families_before_it_is_used() -> None:
    """While one node holds everybody up, packets come in by the others' new devices, and by the old ones as before."""
    with overlay(network(USERSPACE, **DUAL)) as made, pinging(made.lab, (4, 6)):
        made.nodes[2].daemon.pause()
        with made.driven(*words("ListenPort=51900", "ListenPortV6=51901")) as process:
            for node in made.nodes[:2]:
                for device in ("flannel-wg51900", "flannel-w651901"):
                    until(lambda n=node, d=device: received(n, d) > 0, f"{node.name}: {device}", PATIENCE)  # type: ignore[misc]
            assert made.phase() == "prepare"
            made.nodes[2].daemon.resume()
            until(lambda: not process.running, "the change is over", PATIENCE)
        made.run_on("wireguard")


def test_nodes_keep_their_subnets_and_who_comes_later_leases_by_the_new_bounds() -> None:
    with overlay(network(VXLAN), without=[2]) as made, pinging(made.lab, only=(0, 1)):
        before = [node.daemon.status()["lease"]["subnets"] for node in made.nodes[:2]]
        ranges = ["--network", "10.244.0.0/15", "--subnet-len", "26"]
        made.change(*ranges, "--subnet-min", "10.245.10.0", "--subnet-max", "10.245.10.192")
        late = made.nodes[2].start_daemon(made.store, "vxlan")
        (subnet,) = late.wait_ready(peers=2, timeout=PATIENCE)["lease"]["subnets"]
        assert IPv4Network(subnet).prefixlen == 26
        assert IPv4Network(subnet).subnet_of(IPv4Network("10.245.10.0/24"))
        made.nodes[2].attach_containers()
        with pinging(made.lab):
            made.change("--backend", "host-gw")
            made.run_on("host-gw")
        assert [node.daemon.status()["lease"]["subnets"] for node in made.nodes[:2]] == before


@pytest.mark.parametrize("version", [4, 6])
def test_containers_that_exist_learn_the_smaller_mtu_from_their_own_node(version: int) -> None:
    """At the first packet that is too large for the new settings, and not by waiting for an answer that never comes."""
    with overlay(network(VXLAN, **DUAL), nodes=2) as made:
        source, target = made.lab.containers
        header = {4: 28, 6: 48}[version]
        whole = ["ping", f"-{version}", "-c1", "-W5", "-M", "do", target.address(version)]
        assert source.run([*whole, "-s", str(1420 + 1 - header)], check=False).returncode == 0
        with pinging(made.lab, (4, 6)):
            made.change("--backend", "wireguard")
            made.run_on("wireguard")
        told = source.run([*whole, "-s", str(1420 + 1 - header)], check=False)
        assert told.returncode == 1
        assert "mtu" in told.stdout + told.stderr
        assert "1420" in told.stdout + told.stderr
        assert source.run([*whole, "-s", str(1420 - header)], check=False).returncode == 0
