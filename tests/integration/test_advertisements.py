"""A node whose default route comes by a router's advertisement: it begins to forward, and keeps the route."""

from __future__ import annotations

import sys

import pytest
from tests.integration.asking import until

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

ADVERTISE = """
import socket, struct
router = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
# RFC 4861, 4.2: a router for half an hour; the kernel fills the checksum in.
router.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, socket.if_nametoindex("eth0")))
"""

NODE = "net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.eth0.accept_ra={}", "net.ipv6.conf.eth0.forwarding=0"


def advertised(node: Node) -> str:
    return node.run(["ip", "-6", "route", "show", "default", "proto", "ra"]).stdout


def accepted(node: Node) -> str:
    return node.run(["cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"]).stdout.strip()


def test_a_route_by_advertisement_outlives_forwarding() -> None:
    with Lab(nodes=2) as lab:
        node, router = lab.nodes
        node.run(["sysctl", "-qw", *(line.format(1) for line in NODE)])

        def heard() -> bool:
            router.run([sys.executable, "-c", ADVERTISE])
            return bool(advertised(node))

        until(heard, "the advertisement makes a route")
        node.start_daemon(lab.file_store, "vxlan", "10.244.0.0/16", ("--ipv6-network", "fd00:10::/48"))
        node.daemon.wait_ready()
        assert node.run(["cat", "/proc/sys/net/ipv6/conf/all/forwarding"]).stdout.strip() == "1"
        assert accepted(node) == "2"
        assert advertised(node)
        # As somebody might who knows nothing of this.
        node.run(["sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1"])
        until(lambda: accepted(node) == "2", "put right")


@pytest.mark.parametrize("network", [("10.244.0.0/16", ()), (None, ("--ipv6-network", "fd00:10::/48"))])
def test_links_without_such_routes_stay_as_they_are(network: tuple[str | None, tuple[str, ...]]) -> None:
    ipv4, arguments = network
    with Lab(nodes=1) as lab:
        (node,) = lab.nodes
        node.run(["sysctl", "-qw", *(line.format(1) for line in NODE)])
        node.start_daemon(lab.file_store, "vxlan", ipv4, arguments)
        node.daemon.wait_ready()
        assert accepted(node) == "1"


def test_what_somebody_switches_off_on_a_device_is_put_right() -> None:
    """Forwarding; IPv6, and with it all that was on the device; its carrier."""
    with Lab(nodes=1) as lab:
        (node,) = lab.nodes
        node.start_daemon(lab.file_store, "vxlan", "10.244.0.0/16", ["--ipv6-network", "fd00:10::/48"])
        node.daemon.wait_ready()
        for path, off in (("ipv4/conf/flannel.1/forwarding", "0"), ("ipv6/conf/flannel-v6.1/disable_ipv6", "1")):
            switch = f"/proc/sys/net/{path}"
            on = node.run(["cat", switch]).stdout.strip()
            node.run(["sh", "-c", f"echo {off} >{switch}"])
            until(lambda switch=switch, on=on: node.run(["cat", switch]).stdout.strip() == on, f"{path} put right")  # type: ignore[misc]
        until(lambda: "fd00:10:" in node.run(["ip", "address", "show", "flannel-v6.1"]).stdout, "the address is back")
        node.ip(["link set flannel.1 protodown on"])
        until(lambda: "protodown" not in node.run(["ip", "link", "show", "flannel.1"]).stdout, "the carrier is back")
