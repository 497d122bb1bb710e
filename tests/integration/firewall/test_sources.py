"""Overlay addresses on the wrong link: real daemons, and packets that somebody on the underlay sends in a container's
name. They end at the node's edge; the overlay's own go through; who opens the node gets both.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from tests.waiting import LONG, until

from pyflannel.firewall.sync import find_tools
from pyflannel.lab import Lab, Machine, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

NETWORK = "10.244.0.0/16", "fd00:10::/48"
FORGED = {4: "10.244.250.7", 6: "fd00:10:0:77::7"}
"""Nobody's: an address of the overlay that somebody on the underlay's link gives itself."""

BACKENDS = {
    "vxlan": ({"Type": "vxlan"}, (4, 6)),
    "udp": ({"Type": "udp"}, (4,)),
    "wireguard": ({"Type": "wireguard", "Implementation": "userspace"}, (4, 6)),
}
OPEN = "--check-overlay-sources=false"
RULES = {
    "nftables": "true",
    "iptables-nft": "iptables-nft -A INPUT -s 192.0.2.9 -j DROP",
    "iptables-legacy": "iptables-legacy -A INPUT -s 192.0.2.9 -j DROP",
}
"""Port to what makes the host one that uses it."""


@contextmanager
def cluster(
    backend: dict[str, object], versions: Sequence[int], *arguments: str, script: str = "true"
) -> Iterator[Lab]:
    """Two nodes with two containers each, and ``outside``, which has the forged addresses and routes to both nodes."""
    if find_tools().nft is None or set(find_tools().iptables) != {"nft", "legacy"}:
        pytest.skip("needs nft and both kinds of iptables")
    with Lab(nodes=2, containers=2) as lab:
        document: dict[str, object] = {"Network": NETWORK[0], "SubnetMax": "10.244.239.0", "Backend": backend}
        if 6 in versions:
            document |= {"EnableIPv6": True, "IPv6Network": NETWORK[1]}
        config = lab.new_file("network")
        lab.outside(config).write_text(json.dumps(document))
        outside = lab.add_server("outside")
        for node in lab.nodes:
            node.run(["sh", "-ec", script])
            words = ["--net-config-path", str(config), "--iptables-resync", "1", *arguments]
            node.start_daemon(lab.file_store, str(backend["Type"]), None, words)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1, timeout=LONG)
            node.attach_containers()
            until(lambda node=node: node.daemon.status()["firewall"]["in_place"])  # type: ignore[misc]
        outside.ip([*forging(lab.nodes[0], versions)])
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")


def forging(node: Node, versions: Sequence[int]) -> Iterator[str]:
    """What makes a host on the underlay speak in the overlay's name, to a node and its containers."""
    gateway = {4: node.ipv4.ip, 6: node.ipv6.ip}
    assert node.network is not None
    for version in versions:
        length = 32 if version == 4 else 128
        yield f"address add {FORGED[version]}/{length} dev eth0{' nodad' if version == 6 else ''}"
        for address in (address for address in node.network.gateways if address.version == version):
            yield f"route add {address.network} via {gateway[version]} dev eth0 src {FORGED[version]}"


def echoes(seen: Sequence[bytes], source: str) -> int:
    """How many echo requests among Ethernet frames come from an address."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in source else socket.AF_INET, source)
    if len(packed) == 4:
        return sum(frame[12:14] == b"\x08\x00" and frame[26:30] == packed and frame[34] == 8 for frame in seen)
    return sum(frame[12:14] == b"\x86\xdd" and frame[22:38] == packed and frame[54] == 128 for frame in seen)


def arrives(lab: Lab, version: int) -> tuple[int, int]:
    """How many of three forged pings a container of the first node sees, and how many of three the node itself."""
    one, node = lab.containers[0], lab.nodes[0]
    with one.capture() as capture:
        forge(lab, version, one.address(version))
    before = host_counter(node, version)
    forge(lab, version, str(node.ipv4.ip if version == 4 else node.ipv6.ip))
    return echoes(capture.stop(), FORGED[version]), host_counter(node, version) - before


def forge(lab: Lab, version: int, target: str) -> None:
    words = ["ping", "-c", "3", "-i", "0.1", "-W", "1", "-I", FORGED[version], target]
    lab.servers[0].run(words, check=False)


def answered(source: Machine, target: str, *words: str) -> bool:
    return not source.run(["ping", "-c", "1", "-W", "5", *words, target], check=False).returncode


def host_counter(node: Node, version: int) -> int:
    """How many echo requests the node itself has received."""
    name, key = ("/proc/net/snmp", "InEchos") if version == 4 else ("/proc/net/snmp6", "Icmp6InEchos")
    text = node.run(["cat", name]).stdout
    if version == 6:
        return int(dict(line.split() for line in text.splitlines())[key])
    names, values = (line.split() for line in text.splitlines() if line.startswith("Icmp:"))
    return int(values[names.index(key)])


def check(lab: Lab, versions: Sequence[int], open_: bool) -> None:
    """Forged packets come through or don't, the overlay's and the node's own always do."""
    one, neighbour, two, _ = lab.containers
    node = lab.nodes[0]
    for version in versions:
        if open_:
            until(lambda version=version: arrives(lab, version) == (3, 3))  # type: ignore[misc]
        else:
            assert arrives(lab, version) == (0, 0), f"IPv{version}"
        assert answered(two, one.address(version)), "from container to container"
        assert answered(one, two.address(version))
        assert answered(one, neighbour.address(version)), "within one node"
        assert answered(node, one.address(version)), "from a node to its own container"
        assert answered(lab.nodes[1], one.address(version)), "and to another one's"
        assert node.network is not None
        (gateway,) = (address for address in node.network.gateways if address.version == version)
        assert answered(one, str(gateway.ip)), "from a container to its node"
        assert answered(two, str(gateway.ip))


@pytest.mark.parametrize(("backend", "versions"), BACKENDS.values(), ids=BACKENDS.keys())
def test_what_others_send_in_the_overlay_s_name_is_dropped(backend: dict[str, object], versions: Sequence[int]) -> None:
    with cluster(backend, versions) as lab:
        check(lab, versions, open_=False)
        node = lab.nodes[0]
        node.daemon.pause()
        node.run(["nft", "flush", "ruleset"])
        for version in versions:  # it was our rules, and nothing else
            until(lambda version=version: arrives(lab, version) == (3, 3))  # type: ignore[misc]
        node.daemon.resume()
        until(lambda: [arrives(lab, version) for version in versions] == [(0, 0)] * len(versions))


@pytest.mark.parametrize("port", RULES)
def test_each_port_drops_it_and_the_option_opens_it(port: str) -> None:
    with cluster({"Type": "vxlan"}, (4, 6), script=RULES[port]) as lab:
        node = lab.nodes[0]
        assert node.daemon.status()["firewall"]["port"] == port
        check(lab, (4, 6), open_=False)
        node.daemon.stop()
        check(lab, (4, 6), open_=False)  # the rules stay with the data plane
        words = node.daemon.options.arguments
        node.start_daemon(lab.file_store, "vxlan", None, [*words, OPEN])
        node.daemon.wait_ready(peers=1, timeout=LONG)
        until(lambda: node.daemon.status()["firewall"]["in_place"])
        check(lab, (4, 6), open_=True)


@pytest.mark.parametrize("backend", [{"Type": "host-gw"}, {"Type": "vxlan", "DirectRouting": True}])
def test_where_peers_come_by_the_underlay_s_link_nothing_is_dropped(backend: dict[str, object]) -> None:
    with cluster(backend, (4, 6)) as lab:
        check(lab, (4, 6), open_=True)


def test_frames_that_a_bridge_passes_on_are_not_hindered() -> None:
    """br_netfilter shows the firewall what goes from container to container within one bridge."""
    with cluster({"Type": "vxlan"}, (4, 6)) as lab:
        node = lab.nodes[0]
        switched = [f"net.bridge.bridge-nf-call-ip{'' if version == 4 else '6'}tables=1" for version in (4, 6)]
        if node.run(["sysctl", "-w", *switched], check=False).returncode:
            pytest.skip("this kernel has no br_netfilter")
        check(lab, (4, 6), open_=False)
