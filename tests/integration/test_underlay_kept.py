"""Nothing that is added beside it moves a working underlay, as a real daemon without ``--iface`` sees it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.asking import until

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

VPN = """
ip link add tun7 type veth peer name tun8; ip addr add 198.51.100.77/24 dev tun7
ip link set tun7 up; ip link set tun8 up
ip route add 0.0.0.0/1 dev tun7; ip route add 128.0.0.0/1 dev tun7
ip addr add 192.0.2.200/32 dev eth0
ip route add default dev tun7 metric 50
"""
"""A VPN's two halves, a virtual address, and another default route, by which one sees that all of it was looked at."""


def underlay(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.daemon.status()["underlay"]
    return found


def test_an_underlay_that_works_is_kept_and_explained() -> None:
    with Lab(nodes=2) as lab:
        for node in lab.nodes:
            node.start_daemon(lab.file_store, "vxlan", "10.244.0.0/16", interface=None)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
            node.attach_containers()
        node = lab.nodes[0]
        before = underlay(node)
        assert before["why"] == "the default route 0.0.0.0/0 leads through it"
        assert before["others"] == []
        node.run(["sh", "-ec", VPN])
        until(lambda: underlay(node)["others"], "the other default route was seen")
        after = underlay(node)
        assert after["others"] == ["tun7: the default route 0.0.0.0/0 leads through it"]
        assert {**after, "others": []} == before
        # Where the node's own way to its peers is as it was, its containers' is, too: eth0's network is more specific.
        until(lambda: lab.reachability(versions=(4,)).complete, "everybody reaches everybody")
        assert node.daemon.log().count("underlay: ") == 1, "it was chosen once"
