"""ipip on a kernel that has it: next to what flanneld sets up, with a router between, with others in the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import PurePosixPath
from typing import Any

import pytest
from tests import iproute
from tests.storing import FREE, write_document

from pyflannel.errors import ExitCode
from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import Daemon, pyflannel_command
from pyflannel.lab.topology import ContainerNetwork
from pyflannel.store import StoreLocation
from pyflannel.testing.stores import eventually
from pyflannel_stores.file import FileStore

pytestmark = pytest.mark.root

PATIENCE = 60.0
IPIP = 4
"""The protocol number of IPv4 in IPv4 (RFC 2003)."""

FLANNELD_LEASE = {"PublicIP": "192.0.2.2", "PublicIPv6": None, "BackendType": "ipip", "BackendV6Data": None}
FLANNELD_DEVICE = "type ipip local {local} ttl inherit tos 0 nopmtudisc"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(nodes=2) as lab:
        write_document(lab, "ipip")
        yield lab
        for node in lab.nodes:
            print(node.name, node.log_tail(), sep="\n")


def start(node: Node, *arguments: str) -> Daemon:
    return node.start_daemon(node.lab.file_store, "ipip", None, arguments)


def device(node: Node, name: str = "flannel.ipip") -> dict[str, Any]:
    shown = node.run(["ip", "-j", "-d", "address", "show", "dev", name], check=False).stdout
    found: list[dict[str, Any]] = [link for link in iproute.parse(shown) if link]
    return found[0] if found else {}


def routes(node: Node) -> dict[str, tuple[str, str]]:
    shown = iproute.parse(node.run(["ip", "-j", "route", "show", "proto", "241"]).stdout)
    return {route["dst"]: (route["dev"], route["gateway"]) for route in shown}


def ends(link: dict[str, Any]) -> dict[str, Any]:
    """What makes a tunnel, but for the inner protocol: by their age, flanneld's libraries ask for IPv4 or for any."""
    return {name: value for name, value in link["linkinfo"]["info_data"].items() if name != "proto"}


def lease(node: Node) -> dict[str, Any]:
    folder = node.lab.outside(PurePosixPath(StoreLocation.parse(node.lab.file_store).path)) / "subnets"
    leases = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    (found,) = (item for item in leases if item.get("NodeID") == node.name)
    return found  # type: ignore[no-any-return]


def subnet(node: Node) -> str:
    return str(node.daemon.status()["lease"]["subnets"][0])


def test_a_node_as_flanneld_sets_it_up_is_a_peer(lab: Lab) -> None:
    ours, theirs = lab.nodes
    start(ours).wait_ready(timeout=PATIENCE)
    place = StoreLocation("file", path=str(lab.outside(PurePosixPath(StoreLocation.parse(lab.file_store).path))))
    with FileStore(place) as store:
        store.create(FREE, json.dumps(FLANNELD_LEASE), None)
    theirs.ip(
        [
            f"link add flannel.ipip {FLANNELD_DEVICE.format(local='192.0.2.2')}",
            "link set flannel.ipip mtu 1480 up",
            "address add 10.244.250.0/32 dev flannel.ipip",
            f"route add {subnet(ours)} via 192.0.2.1 dev flannel.ipip onlink",
        ]
    )
    theirs.attach_containers(ContainerNetwork(1480, IPv4Interface("10.244.250.1/24"), None))
    ours.daemon.wait_ready(peers=1, timeout=PATIENCE)
    ours.attach_containers()
    with ours.capture() as capture:
        eventually(lambda: lab.reachability(versions=[4]).complete, "containers reach each other", PATIENCE)
    outer = [frame for frame in capture.stop() if frame[12:14] == b"\x08\x00" and frame[23] == IPIP]
    assert outer, "no IPv4 in IPv4 on the underlay"
    assert routes(ours) == {"10.244.250.0/24": ("flannel.ipip", "192.0.2.2")}


def test_the_device_is_as_flanneld_s(lab: Lab) -> None:
    ours, theirs = lab.nodes
    theirs.ip([f"link add flannel.ipip {FLANNELD_DEVICE.format(local='192.0.2.2')}"])
    start(ours).wait_ready(timeout=PATIENCE)
    made, expected = device(ours), device(theirs)
    assert made["linkinfo"]["info_kind"] == "ipip"
    assert ends(made) == {**ends(expected), "local": "192.0.2.1"}
    assert made["mtu"] == 1480
    assert [(a["local"], a["prefixlen"]) for a in made["addr_info"] if a["family"] == "inet"] == [
        (subnet(ours).partition("/")[0], 32)
    ]
    assert lease(ours)["BackendType"] == "ipip"
    assert not lease(ours).get("BackendData")


def test_flanneld_s_device_is_taken_over_as_it_is(lab: Lab) -> None:
    node = lab.nodes[0]
    node.ip(
        [
            f"link add flannel.ipip {FLANNELD_DEVICE.format(local='192.0.2.1')}",
            "link set flannel.ipip mtu 1480 up",
            "address add 10.244.9.0/32 dev flannel.ipip",
        ]
    )
    before = device(node)["ifindex"]
    start(node).wait_ready(timeout=PATIENCE)
    assert device(node)["ifindex"] == before
    assert device(node)["ifalias"] == "pyflannel"
    assert [a["local"] for a in device(node)["addr_info"] if a["family"] == "inet"] == [subnet(node).partition("/")[0]]


@pytest.mark.parametrize("ends", ["local 192.0.2.99", "local 192.0.2.1 remote 192.0.2.2"])
def test_a_device_with_other_ends_is_made_anew(lab: Lab, ends: str) -> None:
    node = lab.nodes[0]
    node.ip([f"link add flannel.ipip type ipip {ends}"])
    before = device(node)["ifindex"]
    start(node).wait_ready(timeout=PATIENCE)
    assert device(node)["ifindex"] != before
    assert device(node)["linkinfo"]["info_data"]["local"] == "192.0.2.1"
    assert device(node)["linkinfo"]["info_data"]["remote"] == "any"


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("flannel.ipip", "dummy", "flannel.ipip is a dummy device that is not ours"),
        ("mine", "ipip local 192.0.2.1", "another ipip device has the same ends: see 'ip -d link show type ipip'"),
    ],
    ids=["its name is taken", "its ends are taken"],
)
def test_what_is_in_the_way_is_named_and_left_alone(lab: Lab, name: str, kind: str, reason: str) -> None:
    node = lab.nodes[0]
    node.ip([f"link add {name} type {kind}"])
    before = device(node, name)
    daemon = start(node)
    status = daemon.wait_status(lambda status: reason in status["message"], reason, PATIENCE)
    assert not status["ready"]
    assert device(node, name) == before
    node.ip([f"link delete {name}"])
    daemon.wait_ready(timeout=PATIENCE)


def test_the_module_s_own_device_is_nobody_s(lab: Lab) -> None:
    node = lab.nodes[0]
    node.ip(["link set tunl0 mtu 1400 up"])
    before = device(node, "tunl0")
    start(node).wait_ready(timeout=PATIENCE)
    assert "tunl0" not in json.dumps(node.daemon.status())
    assert node.daemon.stop() == ExitCode.OK
    words = [*pyflannel_command(), "cleanup", "--run-dir", str(node.daemon.run_directory)]
    assert node.run(words, timeout=PATIENCE).returncode == ExitCode.OK
    assert device(node) == {}
    assert device(node, "tunl0") == before


def test_another_underlay_address_moves_the_tunnel(lab: Lab) -> None:
    for node in lab.nodes:
        start(node)
    for node in lab.nodes:
        node.daemon.wait_ready(peers=1, timeout=PATIENCE)
        node.attach_containers()
    one, other = lab.nodes
    before = subnet(one)
    one.set_address(IPv4Interface("192.0.2.77/24"))
    moved = {before: ("flannel.ipip", "192.0.2.77")}
    eventually(lambda: routes(other) == moved, "the peer sends to the new address", PATIENCE)
    eventually(lambda: lab.reachability(versions=[4]).complete, "containers reach each other again", PATIENCE)
    assert device(one)["linkinfo"]["info_data"]["local"] == "192.0.2.77"
    assert subnet(one) == before


def test_a_public_address_that_is_not_the_interface_s_is_published(lab: Lab) -> None:
    """As behind a 1:1 NAT, and as flanneld does it: the tunnel has the interface's, the lease the public one."""
    node = lab.nodes[0]
    start(node, "--public-ip", "198.51.100.9").wait_ready(timeout=PATIENCE)
    assert device(node)["linkinfo"]["info_data"]["local"] == "192.0.2.1"
    assert lease(node)["PublicIP"] == "198.51.100.9"


def test_direct_routing_goes_direct_where_it_can() -> None:
    with Lab(nodes=3, routed=1) as lab:
        write_document(lab, {"Type": "ipip", "DirectRouting": True})
        near, peer, far = lab.nodes
        for node in lab.nodes:
            start(node)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=2, timeout=PATIENCE)
            node.attach_containers()
        assert routes(near) == {
            subnet(peer): ("eth0", str(peer.ipv4.ip)),
            subnet(far): ("flannel.ipip", str(far.ipv4.ip)),
        }
        assert {link for link, _ in routes(far).values()} == {"flannel.ipip"}
        eventually(lambda: lab.reachability(versions=[4]).complete, "containers reach each other", PATIENCE)
        for container, encapsulated in ((lab.containers[1], False), (lab.containers[2], True)):
            with near.capture() as capture:
                lab.containers[0].run(["ping", "-c", "1", "-W", "5", container.address()])
            protocols = {frame[23] for frame in capture.stop() if frame[12:14] == b"\x08\x00"}
            assert (IPIP in protocols, 1 in protocols) == (encapsulated, not encapsulated)
