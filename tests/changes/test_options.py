"""Other options, ranges and MTUs, where that takes more than the quick tests have: every process replaced, WireGuard on
other ports in both families, a node that comes when the ranges are others, and what containers are told of the MTU."""

from __future__ import annotations

import json
from ipaddress import IPv4Network

import pytest
from tests.changing import DUAL, UDP, USERSPACE, VXLAN, Overlay, network, overlay, pinging
from tests.integration.asking import workers
from tests.waiting import LONG, PATIENCE, until

from pyflannel.lab import Container, Node
from pyflannel.lab.sandbox import Process

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
        (subnet,) = late.wait_ready(peers=2, timeout=LONG)["lease"]["subnets"]
        assert IPv4Network(subnet).prefixlen == 26
        assert IPv4Network(subnet).subnet_of(IPv4Network("10.245.10.0/24"))
        made.nodes[2].attach_containers()
        with pinging(made.lab):
            made.change("--backend", "host-gw")
            made.run_on("host-gw")
        assert [node.daemon.status()["lease"]["subnets"] for node in made.nodes[:2]] == before


SMALLER = 1420
"""WireGuard's MTU, on an underlay of 1500 bytes."""


def sends(source: Container, target: Container, version: int, size: int) -> tuple[bool, str]:
    """Whether one packet of this size, which nobody may take apart, is answered, and what is said of it."""
    header = {4: 28, 6: 48}[version]
    words = ["ping", f"-{version}", "-c1", "-W5", "-M", "do", "-s", str(size - header), target.address(version)]
    done = source.run(words, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def learns(source: Container, target: Container, version: int) -> None:
    """Its own node tells it at the first packet that is too large; it waits for no answer that never comes."""
    arrived, said = sends(source, target, version, SMALLER + 1)
    assert not arrived
    assert "mtu" in said
    assert str(SMALLER) in said
    arrived, said = sends(source, target, version, SMALLER)
    assert arrived, said


def told(made: Overlay, process: Process) -> set[int]:
    """The MTUs that nodes told containers that started, as long as the change went on."""
    found = set()

    def is_over() -> bool:
        seen = [node.daemon.container_network().mtu for node in made.nodes]
        if made.phase():
            found.update(seen)
        return not process.running

    until(is_over, "the change is over", PATIENCE)
    return found


def test_the_smaller_mtu_holds_for_containers_that_start_and_those_that_exist_learn_it() -> None:
    """The former from the beginning of a change to its end, whichever way it goes; the latter when packets go by it."""
    with overlay(network(VXLAN, **DUAL), nodes=2) as made, pinging(made.lab, (4, 6)):
        (first, second), (one, two) = (node.daemon for node in made.nodes), made.lab.containers
        larger = first.container_network().mtu
        assert larger > SMALLER
        second.pause()
        with made.driven("--backend", "wireguard") as process:
            until(lambda: first.container_network().mtu == SMALLER, "subnet.env has the smaller MTU", PATIENCE)
            assert made.phase() == "prepare"
            for version in (4, 6):
                arrived, said = sends(one, two, version, SMALLER + 1)
                assert arrived, f"something goes by the new way already: {said}"
            second.resume()
            second.wait_status(lambda it: it["change"] is not None and it["change"]["step"] != "", "prepared", LONG)
            assert second.container_network().mtu == SMALLER
            second.pause()
            first.wait_status(lambda it: it["change"]["step"] in ("switched", "retired"), "it has switched", LONG)
            for version in (4, 6):
                learns(one, two, version)
            second.resume()
            assert told(made, process) == {SMALLER}
        made.run_on("wireguard")
        for version in (4, 6):
            learns(two, one, version)
        with made.driven("--backend", "vxlan") as process:
            assert told(made, process) == {SMALLER}
        made.run_on("vxlan")
        for daemon in (first, second):
            until(lambda daemon=daemon: daemon.container_network().mtu == larger, "the larger MTU", PATIENCE)  # type: ignore[misc]
