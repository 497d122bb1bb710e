"""Routes with metrics beside those without: an older version's, flanneld's, somebody's, and no packet lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from tests.integration.asking import PATIENCE, until
from tests.integration.overlay import overlay

from pyflannel.kernel.model import ROUTE_PROTOCOL
from pyflannel.lab import Lab, Node
from pyflannel.lab.topology import UPLINK
from pyflannel.planning.spread import metric_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

BOOT = 3
"""``RTPROT_BOOT``: what flanneld's routes have."""


@pytest.fixture(
    scope="module",
    params=[{"Type": "vxlan"}, {"Type": "vxlan", "DirectRouting": True}, {"Type": "host-gw"}],
    ids=lambda backend: "-".join(str(value) for value in backend.values()),
)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with overlay(request.param, nodes=2) as lab:
        yield lab


def subnet(node: Node) -> str:
    return str(node.daemon.status()["lease"]["subnets"][0])


def routes(node: Node, destination: str) -> list[dict[str, Any]]:
    """All routes to a destination, the one that packets take first."""
    found: list[dict[str, Any]] = json.loads(node.run(["ip", "-4", "-j", "-N", "route", "show", destination]).stdout)
    return found


def marks(node: Node, destination: str) -> list[tuple[int, int]]:
    """Protocol and metric of all routes to a destination."""
    return [(int(route.get("protocol", BOOT)), route.get("metric", 0)) for route in routes(node, destination)]


def has_a_metric(node: Node, destination: str) -> bool:
    """Whether there is just the route that there should be."""
    return marks(node, destination) == [(ROUTE_PROTOCOL, metric_of(ip_network(destination)))]


def strip(node: Node, protocol: int) -> None:
    """Give our routes the form that they have without metrics, and without a gap."""
    for line in node.run(["ip", "-4", "route", "show", "proto", str(ROUTE_PROTOCOL)]).stdout.splitlines():
        words = line.split()
        at = words.index("metric")
        plain = " ".join(words[:at] + words[at + 2 :])
        node.ip([f"route add {plain} proto {protocol}", f"route del {line}"])


@pytest.mark.parametrize("protocol", [ROUTE_PROTOCOL, BOOT], ids=["an older version's", "flanneld's"])
def test_routes_without_metrics_make_room_and_no_packet_is_lost(lab: Lab, protocol: int) -> None:
    node, peer = lab.nodes
    far = subnet(peer)
    until(lambda: lab.reachability().complete, "containers reach each other")
    node.daemon.stop()
    strip(node, protocol)
    assert marks(node, far) == [(protocol, 0)]
    with lab.containers[0].ping(lab.containers[1].address(), interval=0.01) as ping:
        ping.wait_replies(20, PATIENCE)
        node.daemon.start()
        node.daemon.wait_ready(peers=1, timeout=PATIENCE)
        until(lambda: has_a_metric(node, far), lambda: str(routes(node, far)))
        ping.wait_replies(20, PATIENCE)
        assert ping.stop().lost == 0


def test_somebody_s_route_that_comes_before_ours_is_named_and_left_alone(lab: Lab) -> None:
    node, peer = lab.nodes
    far = subnet(peer)
    until(lambda: node.daemon.status()["state"] == "ready", "the node is ready")
    node.ip([f"route add {far} via 192.0.2.99 dev {UPLINK} proto static"])
    try:
        until(lambda: far in str(node.daemon.status()["diversions"]), lambda: str(node.daemon.status()))
        assert "diverts the overlay's packets" in str(node.daemon.status()["message"])
        assert len(routes(node, far)) == 2
    finally:
        node.ip([f"route del {far} via 192.0.2.99"])
    until(lambda: not node.daemon.status()["diversions"], lambda: str(node.daemon.status()))
    assert has_a_metric(node, far)
