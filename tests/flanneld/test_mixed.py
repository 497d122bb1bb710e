"""One cluster of real flannelds and our daemons: packets both ways, and a node that goes over and back meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.features import has_device, has_wireguard
from tests.integration.asking import get
from tests.servers.flanneld import Etcd, Flanneld
from tests.waiting import LONG, until

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PREFIX = "/coreos.com/network"
BOTH = {"EnableIPv6": True, "IPv6Network": "fd00:10::/48"}
NETWORKS: dict[str, dict[str, Any]] = {
    "vxlan": {"Backend": {"Type": "vxlan"}},
    "vxlan, both families": {"Backend": {"Type": "vxlan"}, **BOTH},
    "vxlan, direct": {"Backend": {"Type": "vxlan", "DirectRouting": True, "VNI": 7, "Port": 4789}},
    "host-gw": {"Backend": {"Type": "host-gw"}},
    "udp": {"Backend": {"Type": "udp"}},
    "extension": {
        "Backend": {
            "Type": "extension",
            "PreStartupCommand": "hostname",
            "SubnetAddCommand": "ip route replace $SUBNET via $PUBLIC_IP",
            "SubnetRemoveCommand": "ip route del $SUBNET via $PUBLIC_IP",
        }
    },
    **({"ipip": {"Backend": {"Type": "ipip"}}} if has_device("ipip") else {}),
    **({"wireguard": {"Backend": {"Type": "wireguard"}}} if has_wireguard() else {}),
    **({"wireguard, both families": {"Backend": {"Type": "wireguard"}, **BOTH}} if has_wireguard() else {}),
}
"""With ipip and wireguard where the kernel has them, as flanneld wants it: ``tests/kernels`` boots such kernels."""


@dataclass(frozen=True)
class Mixed:
    """Three nodes on one etcd: flanneld, pyflannel, flanneld."""

    lab: Lab
    etcd: Etcd
    flannelds: Sequence[Flanneld]
    store: str
    versions: tuple[int, ...]

    def meet(self) -> None:
        """Wait until all containers reach each other."""
        until(lambda: self.lab.reachability(versions=self.versions).complete, "everybody reaches everybody")

    def start_ours(self, node: Node) -> None:
        """Start pyflannel with what a drop-in is given: flanneld's own flags."""
        flags = ("--etcd-endpoints", self.etcd.endpoint, "--etcd-prefix", PREFIX, "--ip-masq")
        node.start_daemon(self.store, None, None, (*flags, "--healthz-port", "8401"))
        node.daemon.wait_ready(peers=2, timeout=LONG)

    @contextmanager
    def pinging(self, without: Node | None, what: str) -> Iterator[None]:
        """Have every container ping every other one a hundred times a second, and none of it lost.

        :param without: a node that is left out.
        """
        containers = [each for each in self.lab.containers if each.node is not without]
        pings = [
            one.ping(two.address(version), interval=0.01)
            for one in containers
            for two in containers
            for version in self.versions
            if one is not two
        ]
        for ping in pings:
            ping.wait_replies(20, LONG)
        yield
        for ping in pings:
            ping.wait_replies(20, LONG)
        lost = {f"{ping.source.name} to {ping.address}": ping.stop().lost for ping in pings}
        assert set(lost.values()) == {0}, f"{what}: {lost}"


@contextmanager
def mixed(network: dict[str, Any]) -> Iterator[Mixed]:
    with Lab(nodes=3) as lab, ExitStack() as stack:
        etcd = Etcd(lab)
        etcd.put(f"{PREFIX}/config", json.dumps({"Network": "10.244.0.0/16", **network}))
        one, two, three = lab.nodes
        flannelds = [
            stack.enter_context(Flanneld(node, etcd, PREFIX, "-ip-masq", "-healthz-port=8401")) for node in (one, three)
        ]
        for flanneld in flannelds:
            flanneld.start()
        for flanneld in flannelds:
            flanneld.wait_ready()
            flanneld.node.attach_containers(flanneld.container_network())
        made = Mixed(lab, etcd, flannelds, etcd.store(PREFIX), (4, 6) if "IPv6Network" in network else (4,))
        made.start_ours(two)
        two.attach_containers()
        made.meet()
        yield made
        for flanneld in flannelds:
            print(flanneld.node.name, flanneld.log(), sep="\n")
        for node in lab.nodes:
            if node.state() != "no daemon":
                print(node.name, node.daemon.log(), sep="\n")


@pytest.mark.parametrize("name", NETWORKS)
def test_all_reach_each_other_and_a_node_goes_over_and_back(name: str) -> None:
    """With udp every packet passes a program: there only a node that has none meanwhile may lose some. Ours would keep
    flanneld from the port, so that it goes in between.
    """
    with mixed(NETWORKS[name]) as made:
        flanneld = made.flannelds[0]
        node = flanneld.node
        before = flanneld.environment()
        keeps = name != "udp"
        with made.pinging(node if not keeps else None, "from flanneld to pyflannel"):
            flanneld.stop()
            made.start_ours(node)
            assert made.lab.outside(node.subnet_file).read_bytes() == before, "the same subnet, and the same file"
        with made.pinging(node if not keeps else None, "and back"):
            node.daemon.stop()
            if not keeps:
                node.run(pyflannel_command("cleanup"))
            flanneld.start()
            flanneld.wait_ready()
            assert flanneld.environment() == before
        made.meet()
        assert all(each.running for each in made.flannelds)


def test_nothing_of_ours_is_left_where_a_cleanup_lies_between() -> None:
    """Else the checks of sources drop what flannelds send by their next backend."""
    with mixed(NETWORKS["vxlan"]) as made:
        flanneld = made.flannelds[0]
        node, before = flanneld.node, flanneld.environment()
        flanneld.stop()
        made.start_ours(node)
        node.daemon.stop()
        node.run(pyflannel_command("cleanup"))
        flanneld.start()
        flanneld.wait_ready()
        assert flanneld.environment() == before
        made.meet()
        left = node.run(["sh", "-c", "iptables-save && ip6tables-save && ip route && ip -6 route"]).stdout
        assert "FLANNEL-FWD" in left
        assert "FLANNEL-SOURCES" not in left
        assert "proto 241" not in left
        assert flanneld.running


def test_both_answer_probes_alike() -> None:
    """Before there is a network, and with one."""
    with Lab(nodes=2) as lab:
        etcd = Etcd(lab)
        with Flanneld(lab.nodes[0], etcd, PREFIX, "-healthz-port=8401") as flanneld:
            flanneld.start()
            flags = ("--etcd-endpoints", etcd.endpoint, "--healthz-port", "8401")
            lab.nodes[1].start_daemon(etcd.store(PREFIX), None, None, flags)
            for node in lab.nodes:
                until(lambda node=node: answers(node), "it listens")  # type: ignore[misc]
                assert get(node, "/healthz") == (200, "flanneld is running")
                assert get(node, "/readyz")[0] == 503
            etcd.put(f"{PREFIX}/config", '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
            for node in lab.nodes:
                until(lambda node=node: get(node, "/readyz")[0] == 200, "it is ready")  # type: ignore[misc]
                assert get(node, "/healthz") == (200, "flanneld is running")


def answers(node: Node) -> bool:
    script = ["sh", "-c", "ss -Hltn 'sport = :8401' | grep -q ."]
    return not node.run(script, check=False).returncode


def test_a_change_of_the_network_names_the_node_that_can_t_take_part() -> None:
    with mixed(NETWORKS["vxlan"]) as made:
        node = made.lab.nodes[1]
        command = ["network", "change", "--backend", "host-gw", "--store", made.store]
        before = made.etcd.get(f"{PREFIX}/config")
        with made.pinging(None, "while it is refused"):
            for words in (["--dry-run"], []):
                done = node.run(pyflannel_command(*command, *words), check=False, timeout=60)
                said = done.stdout + done.stderr
                assert "flanneld runs there, which can't take part" in said
                assert all(flanneld.node.ipv4.ip.compressed in said for flanneld in made.flannelds), said
            assert done.returncode
        assert made.etcd.get(f"{PREFIX}/config") == before


def test_a_document_that_somebody_writes_while_nodes_run_parts_nobody() -> None:
    """flanneld looks at it when it starts; ours says what differs wherever one looks, and stays with its peers."""
    with mixed(NETWORKS["vxlan"]) as made:
        node = made.lab.nodes[1]
        with made.pinging(None, "while another document is in the store"):
            made.etcd.put(f"{PREFIX}/config", json.dumps({"Network": "10.244.0.0/16", **NETWORKS["host-gw"]}))
            for _ in range(2):
                status = node.daemon.wait_status(
                    lambda it: "host-gw" in it["message"] and "network change" in it["message"], "it says so", LONG
                )
                assert status["ready"]
                assert status["backend"]["name"] == "vxlan"
                code, body = get(node, "/readyz")
                assert code == 200
                assert "network change" in body
                node.daemon.restart()
                node.daemon.wait_ready(peers=2, timeout=LONG)
        assert "network change" in node.daemon.log()
