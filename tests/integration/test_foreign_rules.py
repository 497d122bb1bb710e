"""A policy rule of others that takes packets of the overlay away is told, and left alone; any other one is no matter.

Real daemons on vxlan, for both families, and a node's own word: its status, and doctor's command, which mends it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.integration.asking import until
from tests.integration.examining import Doctor
from tests.integration.overlay import overlay

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

TUN = "ip link add tun7 type veth peer name tun8; ip link set tun7 up; ip link set tun8 up"
"""A device of somebody else's."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with overlay("vxlan", nodes=2, ipv6="fd00:10::/48") as lab:
        yield lab


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@dataclass(frozen=True)
class Case:
    """What somebody sets up. ``{own}`` and ``{peer}`` are the nodes' subnets, ``{v}`` the family's number."""

    do: str
    undo: str = ""


GUILTY = {
    "packets end": Case("ip -{v} rule add to {peer} prohibit priority 100"),
    "those of containers end": Case("ip -{v} rule add from {own} to {peer} blackhole priority 100"),
    "those that come by the bridge end": Case("ip -{v} rule add iif cni0 to {peer} unreachable priority 100"),
    "another table has another way": Case(
        f"{TUN}; ip -{{v}} route add {{peer}} dev tun7 table 100; ip -{{v}} rule add lookup 100 priority 100",
        "ip link delete tun7",
    ),
    "a route comes into a table that is looked up": Case(
        f"{TUN}; ip -{{v}} rule add lookup 100 priority 100; sleep 1.5; ip -{{v}} route add default dev tun7 table 100",
        "ip link delete tun7",
    ),
    "another table ends packets": Case(
        "ip -{v} route add blackhole default table 100; ip -{v} rule add lookup 100 priority 100",
        "ip -{v} route delete blackhole default table 100",
    ),
}
INNOCENT = {
    "as wg-quick(8) has them": Case(
        f"{TUN}; ip -{{v}} route add default dev tun7 table 51820; "
        "ip -{v} rule add not fwmark 51820 table 51820 priority 101; "
        "ip -{v} rule add table main suppress_prefixlength 0 priority 100",
        "ip -{v} rule delete priority 101; ip link delete tun7",
    ),
    "as Cilium has them": Case("ip -{v} rule add fwmark 0x200/0xf00 lookup 2004 priority 100"),
    "of a VRF": Case("ip -{v} rule add l3mdev priority 100"),
    "for what is elsewhere": Case("ip -{v} rule add to {elsewhere} prohibit priority 100"),
    "a table without a way": Case("ip -{v} rule add lookup 100 priority 100"),
    "a table with the overlay's own way": Case(
        "ip -{v} route add {peer} dev {device} table 100; ip -{v} rule add lookup 100 priority 100",
        "ip -{v} route flush table 100",
    ),
    "what nobody comes to": Case("ip -{v} rule add prohibit priority 40000", "ip -{v} rule delete priority 40000"),
}


def words(lab: Lab, version: int) -> dict[str, object]:
    own, peer = (
        next(net for net in map(ip_network, node.daemon.status()["lease"]["subnets"]) if net.version == version)
        for node in lab.nodes
    )
    elsewhere = "203.0.113.0/24" if version == 4 else "2001:db8:7::/48"
    device = "flannel.1" if version == 4 else "flannel-v6.1"
    return {"v": version, "own": own, "peer": peer, "elsewhere": elsewhere, "device": device}


def standing(node: Node) -> tuple[str, str]:
    status = node.daemon.status()
    return status["state"], status["message"]


def undo(node: Node, case: Case, known: dict[str, object]) -> None:
    text = f"ip -{{v}} rule delete priority 100; {case.undo or ':'}"
    node.run(["sh", "-c", text.format(**known)], check=False)


@pytest.mark.parametrize("name", GUILTY)
def test_a_rule_that_takes_packets_away_degrades_the_node_until_it_is_gone(lab: Lab, version: int, name: str) -> None:
    node, case, known = lab.nodes[0], GUILTY[name], words(lab, version)
    until(lambda: standing(node)[0] == "ready", lambda: standing(node))
    try:
        node.run(["sh", "-ec", case.do.format(**known)])
        until(lambda: standing(node)[0] == "degraded", lambda: standing(node))
        message = standing(node)[1]
        assert "a policy rule that is not ours diverts the overlay's packets: rule " in message
        assert f"priority 100 (IPv{version})" in message
        assert (
            "priority 100" in node.run(["ip", f"-{version}", "rule"]).stdout
            or "100:" in node.run(["ip", f"-{version}", "rule"]).stdout
        ), "it is left alone"
        with Doctor(node) as doctor:
            (finding,) = doctor.trouble()["policy rules of others"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        node.run(["sh", "-ec", finding["fix"]], env={"PATH": path})
        until(lambda: standing(node)[0] == "ready", lambda: standing(node))
    finally:
        undo(node, case, known)


@pytest.mark.parametrize("name", INNOCENT)
def test_a_rule_that_takes_nothing_away_is_no_matter(lab: Lab, version: int, name: str) -> None:
    """What has been heard is known by a guilty one that comes after it."""
    node, case, known = lab.nodes[0], INNOCENT[name], words(lab, version)
    guilty = "ip -{v} rule {verb} to {peer} prohibit priority 7"
    try:
        node.run(["sh", "-ec", case.do.format(**known)])
        node.run(["sh", "-ec", guilty.format(verb="add", **known)])
        told = f"rule from all to {known['peer']} prohibit priority 7 (IPv{version})"
        until(lambda: node.daemon.status()["diversions"] == [told], lambda: standing(node))
        assert standing(node)[0] == "degraded"
        node.run(["sh", "-ec", guilty.format(verb="delete", **known)])
        until(lambda: standing(node)[0] == "ready", lambda: standing(node))
        assert node.daemon.status()["diversions"] == []
    finally:
        node.run(["sh", "-c", guilty.format(verb="delete", **known)], check=False)
        undo(node, case, known)
    until(lambda: lab.reachability().complete)
