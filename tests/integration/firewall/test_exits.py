"""What somebody else's route takes past the encryption: real daemons on wireguard, and captures of the underlay.

The route, or the policy rule, comes while packets flow. From then on they go nowhere, and never out in plaintext: those
that the node forwards and those that it sends itself, of both families, whichever port carries the rules, and while no
daemon is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from tests.integration.examining import NO_FIREWALL, UNGUARDED, Cause, Doctor
from tests.integration.overlay import overlay
from tests.storing import write_document
from tests.waiting import LONG, PATIENCE, until

from pyflannel.firewall.sync import find_tools
from pyflannel.lab import Lab, Node
from pyflannel.lab.topology import UPLINK

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

CLEAR = (
    "for p in iptables ip6tables; do for t in filter nat raw mangle; do "
    "$p-legacy -t $t -F; $p-legacy -t $t -X; done; done; nft flush ruleset"
)
PORTS = {
    "nftables": "true",
    "iptables-nft": "iptables-nft -A INPUT -s 192.0.2.9 -j DROP; ip6tables-nft -A INPUT -s 2001:db8::9 -j DROP",
    "iptables-legacy": "iptables-legacy -A INPUT -s 192.0.2.9 -j DROP",
}
"""Port to what makes the host one that uses it."""


WIREGUARD = {"Type": "wireguard", "Implementation": "userspace"}
NONE = ["--firewall", "none"]

EACH = 2
"""Packets that are sent by each way."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    tools = find_tools()
    if tools.nft is None or set(tools.iptables) != {"nft", "legacy"}:
        pytest.skip("needs nft and both kinds of iptables")
    with overlay(WIREGUARD, "--iptables-resync", "1", nodes=2, ipv6="fd00:10::/48") as lab:
        lab.add_server("elsewhere")
        yield lab


@pytest.fixture(params=PORTS)
def node(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Node]:
    """The first node, whose host uses one port."""
    node = lab.nodes[0]
    node.daemon.kill()
    node.run(["sh", "-ec", f"{CLEAR}; {PORTS[request.param]}"])
    undone = [*restoring(lab, "route"), *restoring(lab, "rule")]
    try:
        start(node)
        assert node.daemon.status()["firewall"]["port"] == request.param
        yield node
    finally:
        for words in undone:
            node.run(["ip", *words.split()], check=False)
        if not node.daemon.running:
            node.daemon.start()


def start(node: Node) -> None:
    node.daemon.start()
    settle(node)


def settle(node: Node) -> None:
    node.daemon.wait_ready(peers=1, timeout=LONG)
    until(lambda: node.daemon.status()["firewall"]["in_place"], lambda: node.daemon.status()["firewall"])


def added(lab: Lab, what: str) -> list[str]:
    """What ``ip`` is given so that packets to the second node's containers go elsewhere as they are."""
    words, elsewhere = [], lab.servers[0]
    for text in lab.nodes[1].daemon.status()["lease"]["subnets"]:
        theirs = ip_network(text)
        way = f"via {elsewhere.ipv4.ip if theirs.version == 4 else elsewhere.ipv6.ip} dev {UPLINK}"
        if what == "route":
            words.append(f"-{theirs.version} route add {next(theirs.subnets())} {way}")
        else:
            words.append(f"-{theirs.version} rule add to {theirs} lookup 100")
            words.append(f"-{theirs.version} route add default {way} table 100")
    return words


def divert(lab: Lab, node: Node, what: str) -> None:
    for words in added(lab, what):
        node.run(["ip", *words.split()])


def restoring(lab: Lab, what: str) -> list[str]:
    return [words.replace(" add ", " del ") for words in added(lab, what)]


def restore(lab: Lab, node: Node, what: str) -> None:
    for words in restoring(lab, what):
        node.run(["ip", *words.split()])


def answered(lab: Lab, node: Node) -> list[bool]:
    """Whether a container on another node answers: a container here, and the node itself, by each family."""
    one, two = lab.containers[0], lab.containers[1]
    pings = [
        machine.start(["ping", "-c", str(EACH), "-i", "0.1", "-W", "0.5", two.address(version)])
        for machine in (one, node)
        for version in (4, 6)
    ]
    return [not ping.wait(PATIENCE) for ping in pings]


def readable(frames: Sequence[bytes], address: str) -> int:
    """How many frames carry a packet to this address that anybody can read."""
    packed = ip_address(address).packed
    kind, at = (b"\x08\x00", 30) if len(packed) == 4 else (b"\x86\xdd", 38)
    return sum(frame[12:14] == kind and frame[at : at + len(packed)] == packed for frame in frames)


@contextmanager
def underlay(lab: Lab, node: Node, plaintext: int) -> Iterator[None]:
    """All that a node sends meanwhile: how many packets to the other container, of each family, anybody can read."""
    elsewhere = str(lab.servers[0].ipv4.ip)
    with node.capture() as capture:
        yield
        node.run(["ping", "-c", "1", "-W", "5", elsewhere])
    frames = capture.stop()
    assert readable(frames, elsewhere), "it is seen what is sent"
    assert [readable(frames, lab.containers[1].address(version)) for version in (4, 6)] == [plaintext] * 2


def test_not_one_packet_leaves_past_the_encryption(lab: Lab, node: Node) -> None:
    """Nor while no daemon is there; and without the rules every packet would."""
    until(lambda: all(answered(lab, node)), "all is well")
    with underlay(lab, node, plaintext=0):
        divert(lab, node, "rule")
        assert not any(answered(lab, node))
        restore(lab, node, "rule")
        divert(lab, node, "route")
        assert not any(answered(lab, node))
        until(lambda: node.daemon.status()["state"] == "waiting", "the node is not ready")
        assert "past the encryption, where our rules drop them" in node.daemon.status()["message"]
        assert node.daemon.status()["firewall"]["exits"] == "dropped"
        restore(lab, node, "route")
        assert all(answered(lab, node))
        node.daemon.kill()
        divert(lab, node, "route")
        assert not any(answered(lab, node))
    node.run(["sh", "-ec", CLEAR])
    with underlay(lab, node, plaintext=2 * EACH):
        answered(lab, node)


@pytest.mark.parametrize(("words", "cause"), [(["--check-overlay-exits=false"], UNGUARDED), (NONE, NO_FIREWALL)])
def test_doctor_names_what_leaves_the_rules_out(lab: Lab, words: list[str], cause: Cause) -> None:
    with Doctor(lab.nodes[1]) as doctor:
        assert cause.check not in doctor.trouble("--no-probes")
        (finding,) = doctor.trouble("--no-probes", *words)[cause.check]
        assert finding["fix"].startswith(cause.fix)
        assert "in plaintext" in finding["meaning"]


def test_a_daemon_that_leaves_the_rules_out_says_so(lab: Lab) -> None:
    """``--firewall none`` removes them, and packets leave: the operator has been told."""
    node = lab.nodes[0]
    words = node.daemon.options.arguments
    node.daemon.stop()
    undone = restoring(lab, "route")
    try:
        node.start_daemon(lab.file_store, None, None, (*words, *NONE))
        node.daemon.wait_ready(peers=1, timeout=LONG)
        until(lambda: "overlay exits" not in node.run(["nft", "list", "ruleset"]).stdout, "the rules are gone")
        assert "takes past the encryption: --firewall none" in node.daemon.log()
        assert node.daemon.status()["firewall"]["exits"] == "not dropped: --firewall none"
        with underlay(lab, node, plaintext=2 * EACH):
            divert(lab, node, "route")
            answered(lab, node)
            until(lambda: "past the encryption, in plaintext" in node.daemon.status()["message"], "it is named")
    finally:
        for each in undone:
            node.run(["ip", *each.split()], check=False)
        if node.daemon.running:
            node.daemon.stop()
        node.start_daemon(lab.file_store, None, None, words)
    settle(node)


COVERING: dict[str, Any] = {
    "Network": "192.0.0.0/16",
    "SubnetMin": "192.0.16.0",
    "SubnetMax": "192.0.99.0",
    "EnableIPv6": True,
    "IPv6Network": "2001:db8::/32",
    "IPv6SubnetMin": "2001:db8:16::",
}
"""A network in whose ranges the nodes are, where no subnet may be leased."""


def test_a_network_that_covers_its_nodes_carries_packets() -> None:
    """The encrypted packets go to addresses of the network, by the underlay's interface."""
    with Lab(nodes=2) as lab:
        write_document(lab, WIREGUARD, **COVERING)
        for node in lab.nodes:
            node.start_daemon(lab.file_store, None)
        for node in lab.nodes:
            settle(node)
            node.attach_containers()
        lab.add_server("elsewhere")
        node = lab.nodes[0]
        with underlay(lab, node, plaintext=0):
            until(lambda: all(answered(lab, node)), lambda: node.daemon.log())
            divert(lab, node, "route")
            assert not any(answered(lab, node))
            restore(lab, node, "route")
        assert node.daemon.status()["firewall"]["exits"] == "dropped"
        until(lambda: node.daemon.status()["diversions"] == [], "the underlay's own routes are none")
        assert node.daemon.status()["state"] == "ready"
