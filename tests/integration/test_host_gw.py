"""host-gw, and vxlan's DirectRouting, in a lab: three nodes on one link and a fourth behind a router."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from tests.storing import write_document
from tests.waiting import until

from pyflannel.lab import Container, Lab, Node
from pyflannel.planning.spread import metric_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


def read(node: Node, *command: str) -> Any:
    return json.loads(node.run(["ip", "-j", *command], check=False).stdout or "[]")


def routes(node: Node) -> list[dict[str, Any]]:
    """Our routes, without what the recording of flanneld has not: another mark of whose they are."""
    found: list[dict[str, Any]] = read(node, "-d", "route", "show", "proto", "241")
    return [{key: value for key, value in route.items() if key != "protocol"} for route in found]


def subnet(node: Node) -> str:
    return str(node.daemon.status()["lease"]["subnets"][0])


def running(backend: str, **options: Any) -> Iterator[Lab]:
    with Lab(nodes=4, routed=1) as lab:
        write_document(lab, {"Type": backend, **options})
        for node in lab.nodes:
            node.start_daemon(lab.file_store, None)
        for node in lab.nodes:
            node.daemon.wait_status(lambda status: status["ready"] and len(status["peers"]) == 3, "ready with 3 peers")
            node.attach_containers()
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield from running("host-gw")


@pytest.fixture(scope="module")
def direct() -> Iterator[Lab]:
    yield from running("vxlan", VNI=42, DirectRouting=True)


def near(lab: Lab) -> tuple[Container, ...]:
    return lab.containers[:3]


def test_containers_on_one_link_reach_each_other(lab: Lab) -> None:
    until(lambda: lab.reachability(near(lab)).complete)


def test_the_routes_are_those_of_flanneld(lab: Lab) -> None:
    node = lab.nodes[0]
    assert sorted(routes(node), key=str) == sorted(
        (
            {
                "type": "unicast",
                "dst": subnet(peer),
                "gateway": str(peer.ipv4.ip),
                "dev": "eth0",
                "scope": "global",
                "metric": metric_of(ip_network(subnet(peer))),
                "flags": [],
            }
            for peer in lab.nodes[1:3]
        ),
        key=str,
    ), "as in tests/golden/host-gw/routes.json, but for the protocol and the metric"
    assert [link["ifname"] for link in read(node, "link", "show") if "flannel" in link["ifname"]] == []


def test_the_node_behind_the_router_is_skipped_with_a_reason(lab: Lab) -> None:
    far = lab.nodes[3]
    for node in lab.nodes[:3]:
        status = node.daemon.status()
        (skipped,) = [peer for peer in status["peers"] if peer["state"] != "ok"]
        assert skipped["state"] == "skipped"
        assert skipped["public_ip"] == str(far.ipv4.ip)
        assert f"{far.ipv4.ip} is not on the link of eth0" in skipped["reason"]
        assert status["state"] == "ready"
        assert subnet(far) not in str(routes(node))
    assert [peer["state"] for peer in far.daemon.status()["peers"]] == ["skipped"] * 3
    assert routes(far) == []


def test_the_mtu_is_the_underlay_s(lab: Lab) -> None:
    node = lab.nodes[0]
    for mtu in (1400, 1500):
        node.set_mtu(mtu)
        until(lambda mtu=mtu: f"FLANNEL_MTU={mtu}\n" in lab.outside(node.subnet_file).read_text())  # type: ignore[misc]


DRIFTS = {
    "a route deleted": "ip route del $(ip route show proto 241 | head -1 | cut -d' ' -f1)",
    "all routes deleted": "ip route flush proto 241",
    "a route bent": "ip route replace $(ip route show proto 241 | head -1 | cut -d' ' -f1) via 192.0.2.99 proto 241",
    "a stale route": "ip route add 10.244.250.0/24 via 192.0.2.99 dev eth0 proto 241",
    "the interface down and up": "ip link set eth0 down; ip link set eth0 up; ip route add default via 192.0.2.254",
    "forwarding off": "echo 0 > /proc/sys/net/ipv4/ip_forward",
}


@pytest.mark.parametrize("command", DRIFTS.values(), ids=DRIFTS.keys())
def test_drift_is_put_right(lab: Lab, command: str) -> None:
    node = lab.nodes[0]
    before, repaired = routes(node), node.daemon.status()["repaired"]
    node.run(["sh", "-ec", command])
    until(lambda: node.daemon.status()["repaired"] != repaired, "the fault was noticed")
    until(
        lambda: routes(node) == before and node.daemon.status()["state"] == "ready",
        lambda: f"put right: {routes(node)}",
    )
    assert node.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout.strip() == "1"
    until(lambda: lab.reachability(near(lab)).complete)


def test_a_public_ip_that_is_not_the_interface_s_is_refused(lab: Lab) -> None:
    node = lab.nodes[2]
    before = routes(node)
    node.daemon.stop()
    refused = node.run([*node.daemon.command, "--public-ip", "203.0.113.7"], check=False)
    assert refused.returncode == 3
    assert "203.0.113.7" in refused.stderr
    assert str(node.ipv4.ip) in refused.stderr
    node.daemon.start()
    node.daemon.wait_ready(peers=2)
    assert routes(node) == before


def test_direct_routing_goes_direct_where_it_can_and_through_vxlan_where_not(direct: Lab) -> None:
    until(lambda: direct.reachability().complete)
    node, far = direct.nodes[0], direct.nodes[3]
    ways = {route["dst"]: (route["dev"], route["gateway"]) for route in routes(node)}
    assert ways == {
        **{subnet(peer): ("eth0", str(peer.ipv4.ip)) for peer in direct.nodes[1:3]},
        subnet(far): ("flannel.42", subnet(far).partition("/")[0]),
    }
    assert {route["dev"] for route in routes(far)} == {"flannel.42"}


@pytest.mark.parametrize(("target", "encapsulated"), [(1, False), (3, True)], ids=["same link", "behind the router"])
def test_only_packets_to_the_routed_node_are_encapsulated(direct: Lab, target: int, encapsulated: bool) -> None:
    address = direct.containers[target].address()
    with direct.nodes[0].capture() as capture:
        direct.containers[0].run(["ping", "-c", "2", "-W", "5", address])
    frames = [frame for frame in capture.stop() if frame[12:14] == b"\x08\x00"]
    vxlan = [frame for frame in frames if frame[23] == 17 and frame[36:38] == (8472).to_bytes(2, "big")]
    bare = [frame for frame in frames if frame[23] == 1 and bytes(map(int, address.split("."))) in frame[26:34]]
    assert (bool(vxlan), bool(bare)) == (encapsulated, not encapsulated)
