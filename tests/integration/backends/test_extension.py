"""The extension backend in a lab: an overlay made by shell commands alone, as flannel's documentation shows two.

host-gw needs one command to add a route and one to take it away. vxlan makes a device before the lease, publishes its
MAC address through standard output, and is told the peers' through standard input.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.asking import until
from tests.integration.examining import NOT_SERVED, Doctor
from tests.storing import FREE, write_document

from pyflannel.lab import Lab, Node
from pyflannel.testing.backends import BackendConformance, LiveOverlay, not_applicable

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


HOST_GW = {
    "SubnetAddCommand": 'ip route add "$SUBNET" via "$PUBLIC_IP"',
    "SubnetRemoveCommand": 'ip route del "$SUBNET" via "$PUBLIC_IP"',
}

HOST_GW_DUAL = {
    "SubnetAddCommand": 'ip route replace "$SUBNET" via "$PUBLIC_IP" && '
    'ip route replace "$IPV6SUBNET" via "$PUBLIC_IPV6"',
    "SubnetRemoveCommand": 'ip route del "$SUBNET"; ip route del "$IPV6SUBNET"',
}

VXLAN = {
    "PreStartupCommand": "ip link show ext0 >/dev/null 2>&1 ||"
    " ip link add ext0 type vxlan id 9 dstport 8472 nolearning || exit;"
    ' ip -br link show ext0 | { read -r name state mac rest; echo "$mac"; }',
    "PostStartupCommand": 'ip address replace "${SUBNET%/*}/32" dev ext0 && ip link set ext0 up mtu 1450',
    "SubnetAddCommand": 'read -r vtep; gateway="${SUBNET%/*}";'
    ' ip neighbour replace "$gateway" lladdr "$vtep" dev ext0 nud permanent &&'
    ' bridge fdb replace "$vtep" dev ext0 self dst "$PUBLIC_IP" &&'
    ' ip route replace "$SUBNET" via "$gateway" dev ext0 onlink',
    "SubnetRemoveCommand": 'read -r vtep; gateway="${SUBNET%/*}"; ip route del "$SUBNET" dev ext0;'
    ' bridge fdb del "$vtep" dev ext0 self dst "$PUBLIC_IP"; ip neighbour del "$gateway" dev ext0',
}


def store_of(lab: Lab) -> Any:
    return lab.outside(lab.nodes[0].directory).parent / "store"


def bring_up(lab: Lab, commands: dict[str, str], **document: Any) -> None:
    write_document(lab, {"Type": "extension", **commands}, **document)
    for node in lab.nodes:
        node.start_daemon(lab.file_store, "extension")
    for node in lab.nodes:
        node.daemon.wait_ready(peers=len(lab.nodes) - 1)
        node.attach_containers()


def routes(node: Node) -> list[str]:
    lines = node.run(["ip", "-4", "route", "show", "root", "10.244.0.0/16"]).stdout.splitlines()
    return sorted(" ".join(line.split()) for line in lines if "cni0" not in line)


def counters(node: Node) -> dict[str, int]:
    return dict(node.daemon.status()["data_plane"])


@pytest.fixture(params=[HOST_GW, VXLAN], ids=["host-gw", "vxlan"], scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(nodes=3) as lab:
        bring_up(lab, request.param)
        until(lambda: lab.reachability().complete, lab.nodes[0].log_tail)
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")


def test_containers_reach_each_other(lab: Lab) -> None:
    assert lab.reachability().complete


def test_the_lease_holds_what_the_command_printed(lab: Lab) -> None:
    leases = [json.loads(file.read_text()) for file in (store_of(lab) / "subnets").glob("*.json")]
    assert len(leases) == 3
    for lease in leases:
        assert lease["BackendType"] == "extension"
        data = lease.get("BackendData")
        assert data is None or (isinstance(data, str) and len(data.split(":")) == 6)


def test_a_restart_converges_to_the_same_routes(lab: Lab) -> None:
    node = lab.nodes[0]
    before = routes(node)
    assert len(before) == 2
    node.daemon.restart()
    node.daemon.wait_ready(peers=2)
    until(lambda: counters(node).get("commands_run", 0) >= 2 and routes(node) == before, node.log_tail)
    until(lambda: lab.reachability().complete, node.log_tail)


def test_stopping_leaves_packets_flowing(lab: Lab) -> None:
    node = lab.nodes[0]
    before = routes(node)
    node.daemon.stop()
    assert routes(node) == before
    assert lab.reachability().complete
    node.daemon.start()
    node.daemon.wait_ready(peers=2)
    until(lambda: lab.reachability().complete, node.log_tail)


def test_a_peer_that_goes_is_removed_and_comes_back(lab: Lab) -> None:
    node, _, gone = lab.nodes
    before = routes(node)
    key = gone.daemon.status()["lease"]["key"]
    gone.daemon.stop()
    (store_of(lab) / "subnets" / f"{key}.json").unlink()
    until(lambda: len(routes(node)) == 1, lambda: routes(node))
    gone.daemon.start()
    gone.daemon.wait_ready(peers=2)
    until(lambda: routes(node) == before, lambda: routes(node))
    until(lambda: lab.reachability().complete, node.log_tail)


def test_a_peer_whose_command_fails_is_named_and_the_others_go_on(lab: Lab) -> None:
    node = lab.nodes[0]
    odd = store_of(lab) / "subnets" / f"{FREE}.json"
    lease = {"PublicIP": "203.0.113.9", "BackendType": "extension", "BackendData": "not a MAC address"}

    def failed() -> list[tuple[str, str]]:
        peers = node.daemon.status()["peers"]
        return [(peer["key"], peer["reason"].partition(":")[0]) for peer in peers if peer["state"] == "failed"]

    try:
        odd.write_text(json.dumps(lease))
        until(
            lambda: [(key, why[:30]) for key, why in failed()] == [(odd.stem, "SubnetAddCommand ended with st")],
            failed,
        )
        assert node.daemon.status()["ready"]
        assert lab.reachability().complete
        with Doctor(node) as doctor:
            (finding,) = doctor.trouble("--no-probes")[NOT_SERVED.check]
        assert finding["fix"].startswith(NOT_SERVED.fix)
        assert finding["message"].startswith(f"{FREE} at 203.0.113.9: SubnetAddCommand ended with status")
    finally:
        odd.unlink()
    until(lambda: len(node.daemon.status()["peers"]) == 2, "the odd lease is gone")


def test_both_families() -> None:
    with Lab(nodes=2) as lab:
        bring_up(lab, HOST_GW_DUAL, EnableIPv6=True, IPv6Network="fd00:10:244::/48")
        until(lambda: lab.reachability().complete, lab.nodes[0].log_tail)
        assert lab.reachability().versions == (4, 6)


def test_a_start_command_that_fails_is_said_and_tried_again() -> None:
    with Lab(nodes=1, containers=0) as lab:
        (node,) = lab.nodes
        gate = node.directory / "gate"
        write_document(lab, {"Type": "extension", "PreStartupCommand": f"cat {gate}"})
        node.start_daemon(lab.file_store, "extension")
        node.daemon.wait_status(lambda status: "PreStartupCommand" in status["message"], "failing")
        lab.outside(gate).write_text("open\n")
        node.daemon.wait_ready()
        (lease,) = (store_of(lab) / "subnets").glob("*.json")
        assert json.loads(lease.read_text())["BackendData"] == "open"


class TestExtensionKit(BackendConformance):
    """The kit, with the commands of host-gw in both families."""

    backend = "extension"
    variants = (HOST_GW_DUAL,)
    plans_routes = False

    def test_cleanup_leaves_nothing(self, overlay: LiveOverlay) -> None:
        not_applicable("nobody but the operator knows what the commands made")
