"""Every kind of change, in its ordinary course: other options, families, sizes; nodes that come, go, are late.

Pings of all containers to all others run meanwhile, ten milliseconds apart; each of them has to be answered.
"""

from __future__ import annotations

import pytest
from tests.changing import DUAL, UDP, VXLAN, WIREGUARD, Document, network, overlay, pinging
from tests.integration.asking import PATIENCE
from tests.waiting import LONG, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SINGLE: dict[int, Document] = {
    4: network(VXLAN),
    6: {"EnableIPv4": False, **DUAL, "Backend": VXLAN},
}
OTHER = {
    4: ["--enable-ipv6", "true", "--ipv6-network", "fd00:244::/48"],
    6: ["--enable-ipv4", "true", "--network", "10.244.0.0/16"],
}


@pytest.mark.parametrize(
    ("document", "options"),
    [
        (VXLAN, ["VNI=2", "Port=4789"]),
        (VXLAN, ["DirectRouting=true"]),
        (VXLAN, ["MTU=1400"]),
        (WIREGUARD, ["PSK=TsP23gTYx8hFJfOWzQsgEyKdhvFzNzq4aIXPnAq3G0I=", "ListenPort=51900"]),
        (UDP, ["Port=8300"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value["Type"]),
)
def test_the_same_backend_with_other_options(document: Document, options: list[str]) -> None:
    with overlay(network(document)) as made, pinging(made.lab):
        made.change(*(word for option in options for word in ("--backend-option", option)))
        made.run_on(str(document["Type"]))
        for option in options:
            name, _, value = option.partition("=")
            assert str(made.document()["Backend"][name]).lower() == value.lower()


def test_both_families_go_over() -> None:
    """And the rules that let nothing past the encryption are there when it is over, and in nobody's way before."""
    with overlay(network(VXLAN, **DUAL)) as made, pinging(made.lab, (4, 6)):
        for backend in ("wireguard", "host-gw", "vxlan"):
            made.change("--backend", backend)
            made.run_on(backend)
            for node in made.nodes:
                rules = node.run(["nft", "list", "ruleset"]).stdout
                assert rules.count("chain exits") == (2 if backend == "wireguard" else 0), rules


def test_a_larger_network_and_another_backend_leave_containers_their_addresses() -> None:
    """Both at once, one after the other."""
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        before = [node.daemon.status()["lease"]["subnets"] for node in made.nodes]
        told = made.change("--backend", "host-gw", "--network", "10.244.0.0/15", "--subnet-len", "26")
        assert told[0]["changes"][:4] == [
            "network 10.244.0.0/16 -> 10.244.0.0/15",
            "subnets that are leased from now on: /24 -> /26",
            "subnets may be leased from 10.244.1.0 to 10.244.255.0 -> 10.244.0.64 to 10.245.255.192",
            "backend vxlan -> host-gw",
        ]
        made.run_on("host-gw")
        assert [node.daemon.status()["lease"]["subnets"] for node in made.nodes] == before
        assert made.document()["Network"] == "10.244.0.0/15"


@pytest.mark.parametrize("version", [4, 6])
def test_the_other_family_is_added_and_containers_keep_their_addresses(version: int) -> None:
    with overlay(SINGLE[version], nodes=2) as made:
        before = [node.daemon.status()["lease"]["subnets"][0] for node in made.nodes]
        with pinging(made.lab, (version,)):
            told = made.change(*OTHER[version])
            assert not told[0]["together"]
            assert told[-1]["over"]
            for node, subnet in zip(made.nodes, before, strict=True):
                status = node.daemon.wait_status(lambda it: len(it["lease"]["subnets"]) == 2, "two subnets", LONG)
                assert subnet in status["lease"]["subnets"]
        for node in made.nodes:
            node.attach_containers()
        with pinging(made.lab, (4, 6)):
            pass


@pytest.mark.parametrize("phase", ["prepare", "switch"])
def test_a_change_is_given_up_and_no_packet_is_lost(phase: str) -> None:
    """One node is stopped so that the change stays in a phase; it comes back in the middle of the way back."""
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        with made.driven("--backend", "wireguard"):
            made.come_to(phase)
        made.nodes[2].daemon.kill()
        assert "another change is under way" in made.refused("--backend", "host-gw")
        made.nodes[2].daemon.start()
        told = made.change("--abort", node=1)
        assert told[-1]["phase"] == "back"
        made.run_on("vxlan")
        assert "no change of the network is under way" in made.refused("--abort")


def test_a_change_that_was_interrupted_goes_on_elsewhere_whoever_is_killed() -> None:
    """The command is killed in every phase and run again on another node; so is a daemon."""
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        for number, phase in enumerate(("prepare", "switch", "retire")):
            with made.driven(*(("--backend", "wireguard") if phase == "prepare" else ())):
                made.come_to(phase)
            made.nodes[number].daemon.kill()
            made.nodes[number].daemon.start()
        made.change(node=2)
        made.run_on("wireguard")


def test_a_node_that_is_down_is_left_behind_and_follows_later() -> None:
    with overlay(network(VXLAN)) as made:
        made.nodes[2].daemon.kill()
        with pinging(made.lab, only=(0, 1)):
            told = made.change("--backend", "wireguard", "--without", "n3")
            assert told[0]["without"]
        made.nodes[2].daemon.start()
        made.run_on("wireguard")
        with pinging(made.lab):
            pass


def test_a_node_that_joins_in_the_middle_takes_part() -> None:
    with overlay(network(VXLAN), without=[2]) as made, pinging(made.lab, only=(0, 1)):
        made.nodes[1].daemon.kill()  # so that it stays where it is
        with made.driven("--backend", "wireguard"):
            made.come_to("prepare")
            late = made.nodes[2].start_daemon(made.store, "vxlan")
            late.wait_status(lambda status: status["change"] is not None, "it takes part", LONG)
            made.nodes[1].daemon.start()
            late.wait_ready(peers=2, timeout=LONG)
            made.nodes[2].attach_containers()
            with pinging(made.lab):
                made.run_on("wireguard")


def test_a_port_that_is_closed_is_found_before_anything_is_sent_there() -> None:
    """Of either family; the change waits, says why, and goes on when the ports are open."""
    with overlay(network(VXLAN, **DUAL), nodes=2) as made, pinging(made.lab, (4, 6)):
        closed, other = made.nodes
        ports = {"ip": 51820, "ip6": 51821}
        for family, port in ports.items():
            chain = f"chain input {{ type filter hook input priority 0; udp dport {port} drop; }}"
            closed.run(["nft", "-f", "-"], input=f"table {family} closed {{ {chain}; }}")
        with made.driven("--backend", "wireguard") as process:
            for family, subnet in zip(ports, closed.daemon.status()["lease"]["subnets"], strict=True):
                says = f"{subnet.partition('/')[0]} answers pings by vxlan, and not by wireguard"
                other.daemon.wait_status(
                    lambda it, says=says: it["change"] is not None and it["change"]["trouble"].startswith(says),  # type: ignore[misc]
                    says,
                    LONG,
                )
                assert made.phase() == "prepare"
                closed.run(["nft", "delete", "table", family, "closed"])
            until(lambda: not process.running, "the change is over", PATIENCE)
        made.run_on("wireguard")


def test_the_reverse_path_filter_is_as_it_was() -> None:
    with overlay(network(VXLAN), nodes=2) as made:
        node = made.nodes[0]
        path = "/proc/sys/net/ipv4/conf/eth0/rp_filter"
        node.run(["sysctl", "-q", "-w", "net.ipv4.conf.eth0.rp_filter=1"])
        with made.driven("--backend", "host-gw"):
            until(lambda: node.run(["cat", path]).stdout.strip() == "2", "it is loose", PATIENCE)
            made.run_on("host-gw")
        until(lambda: node.run(["cat", path]).stdout.strip() == "1", "it is strict again", PATIENCE)
