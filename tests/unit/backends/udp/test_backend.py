"""The planner, against what flanneld's udp backend left behind."""

from __future__ import annotations

import sys
from dataclasses import replace
from ipaddress import IPv4Address, ip_interface

import pytest
from tests import recordings

from pyflannel.backend import (
    Address,
    DesiredState,
    Lease,
    LeaseAttributes,
    Link,
    Node,
    PeerRejected,
    Published,
    Route,
    Subnets,
    Sysctl,
    TunInfo,
    Underlay,
    parse_options,
)
from pyflannel.errors import ConfigError
from pyflannel_backends.udp import UdpBackend, UdpOptions, _means

UNDERLAY = Underlay("eth0", 1500, ipv4=IPv4Address("192.0.2.1"), public_ipv4=IPv4Address("192.0.2.1"))


def node_and_backend(**options: object) -> tuple[Node, UdpBackend]:
    network = recordings.network("udp")
    parsed, unknown = parse_options(UdpOptions, {**network.backend_options, **options})
    assert not unknown
    own = next(lease for lease in recordings.leases("udp") if str(lease.attributes.public_ip) == "192.0.2.1")
    return Node("node-1", network, UNDERLAY, own.subnets), UdpBackend(parsed)


def test_the_plan_is_what_flanneld_left_in_the_kernel() -> None:
    node, backend = node_and_backend()
    planned = set(backend.plan_node(node))
    assert planned == {
        Link("flannel0", TunInfo(vnet_hdr=True, multi_queue=True, queue_length=1000), 1472),
        Address("flannel0", ip_interface("172.16.45.0/32")),
        Route(node.network.ipv4.network, "flannel0"),  # type: ignore[union-attr]
        Sysctl("net/ipv4/ip_forward", "1"),
        Sysctl("net/ipv4/conf/flannel0/accept_local", "1"),
    }
    assert recordings.routes("udp") <= planned
    assert recordings.addresses("udp") <= planned
    assert backend.mtu(UNDERLAY) == 1472


def test_peers_of_flanneld_are_taken_and_need_nothing_in_the_kernel() -> None:
    node, backend = node_and_backend()
    for lease in recordings.leases("udp"):
        assert backend.plan_peer(node, lease) == DesiredState()
    assert backend.publish(node) == Published()
    assert backend.capabilities.untyped_leases
    assert not backend.capabilities.ipv6


@pytest.mark.parametrize("address", [None, "0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1"])
def test_a_peer_that_cannot_be_sent_to_is_rejected(address: str | None) -> None:
    node, backend = node_and_backend()
    public = IPv4Address(address) if address else None
    with pytest.raises(PeerRejected, match="PublicIP"):
        backend.plan_peer(node, Lease(Subnets.from_key("172.16.9.0-24"), LeaseAttributes(public_ip=public)))


def test_the_worker_is_told_what_the_node_is() -> None:
    node, backend = node_and_backend(port=9000, offload=False, anysourceport=True)
    config = backend.worker_config(node)
    assert (config.device, config.address, config.port, config.mtu) == ("flannel9000", "192.0.2.1", 9000, 1472)
    assert (config.own, config.offload, config.any_source_port) == (["172.16.45.0/24"], False, True)


def test_without_ipv4_there_is_no_data_plane() -> None:
    node, backend = node_and_backend()
    with pytest.raises(ConfigError, match="eth0 has no IPv4 address"):
        backend.worker_config(replace(node, underlay=replace(UNDERLAY, ipv4=None)))
    with pytest.raises(ConfigError, match="no IPv4 subnet"):
        backend.worker_config(replace(node, subnets=Subnets.from_key("fd00::-64")))


@pytest.mark.parametrize("options", [{"Port": 0}, {"Port": 65536}, {"Workers": 0}, {"Offload": 1}, {"KernelPath": 1}])
def test_options_out_of_bounds_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        parse_options(UdpOptions, options)


def test_status_says_what_there_is_to_be_fast_with(monkeypatch: pytest.MonkeyPatch) -> None:
    node, backend = node_and_backend()
    _, plain = node_and_backend(Offload=False)
    assert backend.describe(node)["offload"] == "yes"
    assert plain.describe(node)["offload"] == "off"
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.setenv("PYFLANNEL_NO_EXTENSIONS", "1")
    _means.cache_clear()
    try:
        assert backend.describe(node) == {
            "offload": "no: numpy is not installed",
            "fast_path": "no: switched off by PYFLANNEL_NO_EXTENSIONS",
            "kernel_path": "not known yet",
        }
    finally:
        _means.cache_clear()
