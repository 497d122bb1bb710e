"""The daemon in a lab: real processes, real kernel, faults one by one.

One lab with three nodes serves all tests of this module; each leaves it as it found it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from ipaddress import IPv4Interface
from typing import Any

import pytest
from tests import iproute
from tests.integration.asking import until

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


NETWORK = {"Network": "10.244.0.0/16", "SubnetMax": "10.244.89.0", "Backend": {"Type": "vxlan", "VNI": 42}}
"""Nobody gets a subnet above 89: those are for what tests make up."""


SPARE = (
    "link add spare0 type veth peer name spare1",
    "address add 198.51.100.9/24 dev spare0",
    "link set spare0 up",
)
"""One node has an address besides that of the underlay."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=3) as lab:
        store = lab.outside(lab.nodes[0].directory).parent / "store"
        store.mkdir(mode=0o700)
        (store / "config.json").write_text(json.dumps(NETWORK))
        for command in SPARE:
            lab.nodes[0].run(["ip", *command.split()])
        for node in lab.nodes:
            node.start_daemon(lab.file_store, "vxlan")
        for node in lab.nodes:
            node.daemon.wait_ready(peers=2)
            node.attach_containers()
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")


def read(node: Node, *command: str) -> Any:
    """What iproute2 says, as JSON; nothing about a device that is not there."""
    return iproute.parse(node.run(list(command), check=False).stdout)


def kernel(node: Node) -> dict[str, Any]:
    """All that matters of a node's kernel, without what differs from device to device (indices, lifetimes)."""
    links = read(node, "ip", "-j", "-d", "link", "show", "dev", "flannel.42")
    return {
        "link": [(link["ifname"], link["address"], link["mtu"], link["linkinfo"]["info_data"]) for link in links],
        "up": ["UP" in link["flags"] for link in links],
        "address": [link["addr_info"] for link in read(node, "ip", "-j", "-4", "address", "show", "dev", "flannel.42")],
        "route": read(node, "ip", "-j", "route", "show", "proto", "241"),
        "neighbour": sorted(read(node, "ip", "-j", "neigh", "show", "dev", "flannel.42", "nud", "permanent"), key=str),
        "fdb": sorted(read(node, "bridge", "-j", "fdb", "show", "dev", "flannel.42"), key=str),
    }


def test_every_container_reaches_every_other(lab: Lab) -> None:
    assert lab.reachability().complete


def test_subnet_env_is_flannel_s(lab: Lab) -> None:
    for node in lab.nodes:
        lines = lab.outside(node.subnet_file).read_text().splitlines()
        assert [line.partition("=")[0] for line in lines] == [
            "FLANNEL_NETWORK",
            "FLANNEL_SUBNET",
            "FLANNEL_MTU",
            "FLANNEL_IPMASQ",
        ]
        assert "FLANNEL_MTU=1450" in lines


def test_the_encapsulation_is_vxlan_as_flannel_s(lab: Lab) -> None:
    one, two = lab.containers[:2]
    with lab.nodes[0].capture() as capture:
        one.run(["ping", "-c", "2", "-W", "5", two.address()])
    vxlan = [frame for frame in capture.stop() if len(frame) > 50 and frame[23] == 17 and frame[36:38] == b"\x21\x18"]
    assert vxlan, "UDP to port 8472"
    assert all(frame[42] == 8 and frame[46:49] == (42).to_bytes(3, "big") for frame in vxlan), "RFC 7348, VNI 42"


# What ip(8) calls flushing is deleting until nothing is left, and gives up against a daemon that is faster.
DRIFTS = {
    "device deleted": "ip link del flannel.42",
    "device down": "ip link set flannel.42 down",
    "MTU changed": "ip link set flannel.42 mtu 1400",
    "MAC changed": "ip link set flannel.42 address 02:00:00:00:00:99",
    "mark removed": "ip link set flannel.42 alias ''",
    "address deleted": "ip addr del $(ip -o addr show dev flannel.42 scope global | awk '{ print $4 }') dev flannel.42",
    "another address added": "ip addr add 10.244.255.1/32 dev flannel.42",
    "a route deleted": "ip route del $(ip route show proto 241 | head -1 | cut -d' ' -f1)",
    "all routes deleted": "ip route flush proto 241",
    "a route bent": "ip route replace $(ip route show proto 241 | head -1 | cut -d' ' -f1) dev flannel.42 proto 241",
    "neighbours deleted": "ip neigh show dev flannel.42 nud permanent | "
    "while read address rest; do ip neigh del $address dev flannel.42; done",
    "a neighbour changed": "ip neigh replace $(ip neigh show dev flannel.42 nud permanent | head -1 | cut -d' ' -f1) "
    "lladdr 02:00:00:00:00:99 dev flannel.42 nud permanent",
    "fdb deleted": "bridge fdb show dev flannel.42 | while read mac rest; do bridge fdb del $mac dev flannel.42; done",
    "an fdb entry added": "bridge fdb append 02:00:00:00:00:99 dev flannel.42 dst 192.0.2.99",
    "forwarding off": "echo 0 > /proc/sys/net/ipv4/ip_forward",
}


@pytest.mark.parametrize("command", DRIFTS.values(), ids=DRIFTS.keys())
def test_drift_is_put_right(lab: Lab, command: str) -> None:
    node = lab.nodes[0]
    before = kernel(node)
    repaired = node.daemon.status()["repaired"]
    node.run(["sh", "-ec", command])
    until(lambda: node.daemon.status()["repaired"] != repaired or kernel(node) != before, "the fault was noticed")
    until(
        lambda: kernel(node) == before and node.daemon.status()["state"] == "ready",
        lambda: f"put right: {kernel(node)}",
    )
    assert node.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout.strip() == "1"
    assert lab.reachability().complete


def test_a_device_that_was_replaced_by_another_is_rebuilt(lab: Lab) -> None:
    node = lab.nodes[0]
    before = kernel(node)
    node.daemon.pause()  # it would be quicker than the second command
    node.ip(["link del flannel.42", "link add flannel.42 type vxlan id 43 dstport 8472 dev eth0 local 192.0.2.1"])
    node.daemon.resume()
    until(lambda: kernel(node) == before, lambda: f"{before} again: {kernel(node)}")
    assert lab.reachability().complete


def test_a_foreign_device_under_our_name_is_left_alone_and_named(lab: Lab) -> None:
    node = lab.nodes[0]
    before = kernel(node)
    node.daemon.pause()
    node.ip(["link del flannel.42", "link add flannel.42 type bridge"])
    node.daemon.resume()
    until(lambda: "bridge" in node.daemon.status()["message"])
    assert node.daemon.status()["state"] == "waiting"
    assert read(node, "ip", "-j", "-d", "link", "show", "flannel.42")[0]["linkinfo"]["info_kind"] == "bridge"
    node.ip(["link del flannel.42"])
    until(lambda: kernel(node) == before)
    assert lab.reachability().complete


FOREIGN = [
    "link add dummy0 type veth peer name dummy1",
    "link set dummy0 up",
    "address add 203.0.113.1/24 dev dummy0",
    "route add 10.244.250.0/24 via 192.0.2.200 dev eth0",
    "route add 203.0.113.128/25 via 192.0.2.200 dev eth0 proto static",
    "neigh add 192.0.2.200 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
]


def test_what_is_not_ours_is_never_touched(lab: Lab) -> None:
    node = lab.nodes[0]
    node.ip(FOREIGN)
    listed = [f"ip -j {what}".split() for what in ("route show dev eth0", "neigh show dev eth0 nud permanent")]
    try:
        before = [read(node, *command) for command in listed]
        node.run(["ip", "link", "del", "flannel.42"])
        until(lambda: len(read(node, "ip", "-j", "route", "show", "proto", "241")) == 2)
        node.daemon.restart()
        node.daemon.wait_ready(peers=2)
        assert [read(node, *command) for command in listed] == before
        assert read(node, "ip", "-j", "address", "show", "dev", "dummy0")[0]["addr_info"][0]["local"] == "203.0.113.1"
    finally:
        node.ip(["link del dummy0", "route del 10.244.250.0/24", "neigh del 192.0.2.200 dev eth0"])


def test_a_foreign_route_in_our_way_is_named_and_the_others_go_on(lab: Lab) -> None:
    node, other = lab.nodes[:2]
    subnet = str(other.daemon.status()["lease"]["subnets"][0])
    node.daemon.stop()
    node.ip([f"route del {subnet}", f"route add {subnet} via 192.0.2.200 dev eth0"])
    try:
        node.daemon.start()
        until(lambda: node.daemon.running and node.daemon.wait_ready()["state"] == "degraded")
        status = node.daemon.status()
        (diversion,) = status["diversions"]
        assert subnet in diversion
        assert "192.0.2.200" in diversion
        assert read(node, "ip", "-j", "route", "show", subnet)[0]["gateway"] == "192.0.2.200"
    finally:
        node.ip([f"route del {subnet} via 192.0.2.200"])
    until(lambda: node.daemon.status()["state"] == "ready")
    assert lab.reachability().complete


def test_a_restart_loses_no_packet_and_changes_nothing(lab: Lab) -> None:
    node = lab.nodes[0]
    before, lease = kernel(node), node.daemon.status()["lease"]["key"]
    index = read(node, "ip", "-j", "link", "show", "dev", "flannel.42")[0]["ifindex"]
    with lab.containers[0].ping(lab.containers[1].address()) as ping:
        ping.wait_replies(5)
        node.daemon.restart()
        node.daemon.wait_ready(peers=2)
        ping.wait_replies(5)
        loss = ping.stop()
    assert loss.lost == 0
    assert kernel(node) == before
    assert read(node, "ip", "-j", "link", "show", "dev", "flannel.42")[0]["ifindex"] == index
    assert node.daemon.status()["lease"]["key"] == lease
    assert node.daemon.status()["repaired"] == 0


def test_kill_9_keeps_forwarding_and_the_next_start_converges(lab: Lab) -> None:
    node = lab.nodes[0]
    before = kernel(node)
    with lab.containers[0].ping(lab.containers[1].address()) as ping:
        ping.wait_replies(3)
        node.daemon.kill()
        node.run(["sh", "-ec", "ip route flush proto 241; ip route add 10.244.251.0/24 dev flannel.42 proto 241"])
        node.daemon.start()
        node.daemon.wait_ready(peers=2)
        ping.wait_replies(5)
        ping.stop()
    until(lambda: kernel(node) == before)
    assert lab.reachability().complete


def test_kill_9_again_and_again_while_starting(lab: Lab) -> None:
    node = lab.nodes[0]
    before, lease = kernel(node), node.daemon.status()["lease"]["key"]
    node.daemon.kill()
    for pause in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5):
        node.run(["sh", "-c", "ip link del flannel.42"], check=False)
        node.daemon.start()
        deadline = time.monotonic() + pause
        until(lambda deadline=deadline: time.monotonic() > deadline)  # type: ignore[misc]
        node.daemon.kill()
    node.daemon.start()
    node.daemon.wait_ready(peers=2)
    assert node.daemon.status()["lease"]["key"] == lease
    until(lambda: kernel(node) == before)
    assert lab.reachability().complete


def test_a_departed_peer_is_swept_also_when_it_left_while_we_were_down(lab: Lab) -> None:
    node, _, gone = lab.nodes
    key = gone.daemon.status()["lease"]["key"]
    node.daemon.stop()
    gone.daemon.stop()
    file = lab.outside(gone.directory).parent / "store" / "subnets" / f"{key}.json"
    saved = file.read_bytes()
    file.unlink()
    assert len(kernel(node)["route"]) == 2, "stopping leaves the data plane up"
    node.daemon.start()
    node.daemon.wait_ready(peers=1)
    until(lambda: len(kernel(node)["route"]) == len(kernel(node)["fdb"]) == len(kernel(node)["neighbour"]) == 1)
    gone.daemon.start()
    gone.daemon.wait_ready(peers=2)
    assert gone.daemon.status()["lease"]["key"] == key, "subnet.env remembers"
    node.daemon.wait_ready(peers=2)
    assert json.loads(saved)["PublicIP"] == json.loads(file.read_bytes())["PublicIP"]
    assert lab.reachability().complete


def claim(mac: str, public_ip: str = "192.0.2.77", backend: str = "vxlan") -> dict[str, Any]:
    return {"PublicIP": public_ip, "BackendType": backend, "BackendData": {"VtepMAC": mac}}


HOSTILE: dict[str, Any] = {
    "10.244.240.0-24": claim("ff:ff:ff:ff:ff:ff"),
    "10.244.241.0-24": claim("02:00:00:00:00:41", "0.0.0.0"),
    "10.244.0.0-16": claim("02:00:00:00:00:42"),
    "0.0.0.0-0": claim("02:00:00:00:00:43"),
    "10.99.0.0-24": claim("02:00:00:00:00:44"),
    "10.244.242.0-24": claim("02:00:00:00:00:45", backend="host-gw"),
    "10.244.243.0-24": ["not", "an", "object"],
    "10.244.244.0-24": claim("02:00:00:00:00:46", "198.51.100.9"),
    "nonsense": {},
}


def test_hostile_leases_are_skipped_with_a_reason_and_nothing_is_programmed(lab: Lab) -> None:
    node = lab.nodes[0]
    before = kernel(node)
    directory = lab.outside(node.directory).parent / "store" / "subnets"
    files = [directory / f"{key}.json" for key in HOSTILE]
    try:
        for file, value in zip(files, HOSTILE.values(), strict=True):
            file.write_text(json.dumps(value))
        until(lambda: len(node.daemon.status()["peers"]) == 2 + len(HOSTILE))
        peers = {peer["key"]: peer for peer in node.daemon.status()["peers"]}
        assert all(peers[key]["state"] == "skipped" and peers[key]["reason"] for key in HOSTILE)
        assert node.daemon.status()["state"] == "ready"
        assert kernel(node) == before
    finally:
        for file in files:
            file.unlink()
    until(lambda: len(node.daemon.status()["peers"]) == 2)


def test_a_new_underlay_address_keeps_the_subnet(lab: Lab) -> None:
    node, other = lab.nodes[0], lab.nodes[1]
    lease, old = node.daemon.status()["lease"]["key"], node.ipv4
    for address in (IPv4Interface("192.0.2.100/24"), old):
        node.set_address(address)
        until(lambda address=address: node.daemon.status()["underlay"]["ipv4"] == str(address.ip))  # type: ignore[misc]
        until(lambda address=address: f"'dst': '{address.ip}'" in str(kernel(other)["fdb"]))  # type: ignore[misc]
        until(lambda address=address: kernel(node)["link"][0][3]["local"] == str(address.ip))  # type: ignore[misc]
        assert node.daemon.status()["lease"]["key"] == lease
        until(lambda: lab.reachability().complete)


def test_a_new_underlay_mtu_is_followed(lab: Lab) -> None:
    node = lab.nodes[0]
    for mtu in (1400, 1500):
        node.set_mtu(mtu)
        until(lambda mtu=mtu: kernel(node)["link"][0][2] == mtu - 50)  # type: ignore[misc]
        until(lambda mtu=mtu: f"FLANNEL_MTU={mtu - 50}" in lab.outside(node.subnet_file).read_text())  # type: ignore[misc]


def test_a_missing_store_stops_nothing_and_is_caught_up_with(lab: Lab) -> None:
    node = lab.nodes[0]
    store = lab.outside(node.directory).parent / "store"
    with lab.containers[0].ping(lab.containers[1].address()) as ping:
        ping.wait_replies(3)
        store.rename(store.with_name("elsewhere"))
        until(lambda: node.daemon.status()["state"] == "degraded")
        node.run(["ip", "link", "del", "flannel.42"])
        until(lambda: len(read(node, "ip", "-j", "route", "show", "proto", "241")) == 2, "repairs need no store")
        store.with_name("elsewhere").rename(store)
        until(lambda: node.daemon.status()["state"] == "ready")
        ping.wait_replies(3)
        ping.stop()
    assert lab.reachability().complete


def test_a_subnet_file_that_can_t_be_written_is_named_and_written_when_it_can(lab: Lab) -> None:
    node = lab.nodes[0]
    file = lab.outside(node.subnet_file)
    text = file.read_text()
    file.unlink()
    file.mkdir()
    until(lambda: str(node.subnet_file) in node.daemon.status()["message"])
    file.rmdir()
    until(lambda: node.daemon.status()["state"] == "ready")
    assert file.read_text() == text


def test_an_unplugged_cable_heals(lab: Lab) -> None:
    node = lab.nodes[0]
    before = kernel(node)
    node.unplug()
    until(lambda: not lab.reachability(lab.containers[:2], timeout=0.5).complete)
    node.plug()
    until(lambda: lab.reachability().complete)
    assert kernel(node) == before


def test_what_a_network_config_says_anew_is_followed_from_the_next_start(lab: Lab) -> None:
    """Not before: nodes that read it at different times would be cut off from each other."""
    node = lab.nodes[0]
    config = lab.outside(node.directory).parent / "store" / "config.json"
    old = config.read_text()
    document = json.loads(old)
    document["Backend"]["DirectRouting"] = True
    try:
        config.write_text(json.dumps(document))
        for each in lab.nodes:
            each.daemon.wait_status(lambda status: "DirectRouting" in str(status["message"]), "what differs")
        assert all(route["dev"] == "flannel.42" for route in kernel(node)["route"])
        assert lab.reachability().complete
        restart_all(lab)
        until(lambda: all(route["dev"] == "eth0" for route in kernel(node)["route"]))
        until(lambda: lab.reachability().complete)
        assert kernel(node)["fdb"] == []
    finally:
        config.write_text(old)
        restart_all(lab)
    until(lambda: all(route["dev"] == "flannel.42" for route in kernel(node)["route"]))
    until(lambda: lab.reachability().complete)


def restart_all(lab: Lab) -> None:
    for node in lab.nodes:
        node.daemon.restart()
    for node in lab.nodes:
        node.daemon.wait_ready(peers=len(lab.nodes) - 1)


def test_a_second_daemon_on_one_node_is_refused(lab: Lab) -> None:
    node = lab.nodes[0]
    result = node.run(node.daemon.command, check=False)
    assert result.returncode == 8
    assert "already holds" in result.stderr


def test_cleanup_leaves_nothing(lab: Lab) -> None:
    node = lab.nodes[2]
    command = [*pyflannel_command(), "cleanup", "--run-dir", str(node.daemon.run_directory)]
    refused = node.run(command, check=False)
    assert refused.returncode == 8, "not while the daemon runs"
    node.daemon.stop()
    before = kernel(node)
    dry = node.run([*command, "--dry-run"])
    assert "flannel.42" in dry.stdout
    assert kernel(node) == before
    node.run(command)
    assert read(node, "ip", "-j", "route", "show", "proto", "241") == []
    assert node.run(["ip", "link", "show", "flannel.42"], check=False).returncode != 0
    node.daemon.start()
    node.daemon.wait_ready(peers=2)
    assert lab.reachability().complete
