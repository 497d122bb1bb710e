"""The lab's plan: addresses that can't collide, and batches that name what they should."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import ConfigError
from pyflannel.lab.topology import (
    SEGMENTS,
    ContainerNetwork,
    configure_bridge,
    configure_container,
    configure_host,
    connect_hosts,
    plan_hosts,
    plan_server,
)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    nodes = draw(st.integers(1, 400))
    return nodes, draw(st.integers(0, min(nodes, 200)))


@given(counts())
def test_every_host_has_addresses_of_its_own_in_its_segment(counts: tuple[int, int]) -> None:
    nodes, routed = counts
    hosts = plan_hosts(nodes, routed)
    servers = [plan_server(f"store{index}", index) for index in range(53)]
    everybody = [*hosts, *servers]
    taken = {str(host.ipv4.ip) for host in everybody} | {str(segment.router_ipv4.ip) for segment in SEGMENTS}
    assert len(hosts) == nodes
    assert len(taken) == len(everybody) + len(SEGMENTS)
    assert len({host.ipv6.ip for host in everybody}) == len(everybody)
    for host in everybody:
        assert host.ipv4.network == host.segment.ipv4
        assert host.ipv6.network == host.segment.ipv6
        assert host.router_ipv4 in host.segment.ipv4
    assert sum(host.segment is SEGMENTS[1] for host in hosts) == max(routed, nodes - 200)


def test_nodes_behind_the_router_are_the_last_ones() -> None:
    assert [str(host.ipv4) for host in plan_hosts(3, routed=1)] == ["192.0.2.1/24", "192.0.2.2/24", "198.51.100.3/24"]
    assert [str(host.ipv6) for host in plan_hosts(3, routed=1)] == [
        "2001:db8::1/64",
        "2001:db8::2/64",
        "2001:db8:1::3/64",
    ]


@pytest.mark.parametrize(
    ("nodes", "routed", "mtu", "word"),
    [
        (0, 0, 1500, "nodes"),
        (401, 0, 1500, "nodes"),
        (3, 4, 1500, "router"),
        (3, -1, 1500, "router"),
        (300, 201, 1500, "router"),
        (3, 0, 1000, "MTU"),
    ],
)
def test_impossible_labs_are_refused(nodes: int, routed: int, mtu: int, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        plan_hosts(nodes, routed, mtu)


def test_servers_have_limited_room() -> None:
    with pytest.raises(ConfigError, match="room"):
        plan_server("store54", 53)


def test_cables_are_made_between_namespaces_with_the_underlay_mtu() -> None:
    (line,) = connect_hosts(plan_hosts(1, mtu=9000))
    assert line == "link add n1 netns switch mtu 9000 type veth peer name eth0 netns n1 mtu 9000"


def test_hosts_get_both_families_and_default_routes() -> None:
    lines = list(configure_host(plan_hosts(1)[0]))
    assert "address add 192.0.2.1/24 dev eth0" in lines
    assert "address add 2001:db8::1/64 dev eth0 nodad" in lines
    assert "route add default via 192.0.2.254 dev eth0" in lines
    assert "route add default via 2001:db8::fe dev eth0" in lines


DUAL = ContainerNetwork(1430, IPv4Interface("10.244.7.1/24"), IPv6Interface("fd00:0:0:7::1/64"))


@pytest.mark.parametrize(
    ("network", "gateways"),
    [
        (ContainerNetwork(1450, DUAL.ipv4), ["10.244.7.1/24"]),
        (ContainerNetwork(1430, ipv6=DUAL.ipv6), ["fd00:0:0:7::1/64"]),
        (DUAL, ["10.244.7.1/24", "fd00:0:0:7::1/64"]),
    ],
)
def test_containers_follow_the_gateway_in_every_family(network: ContainerNetwork, gateways: list[str]) -> None:
    assert [str(gateway) for gateway in network.gateways] == gateways
    second = network.container(1)
    assert [int(address) - int(gateway) for address, gateway in zip(second, network.gateways, strict=True)] == [
        2
    ] * len(second)
    bridge = list(configure_bridge(network, ["veth1"]))
    assert bridge[0] == f"link add cni0 mtu {network.mtu} type bridge forward_delay 0 mcast_snooping 0"
    assert bridge[-1] == "link set veth1 master cni0 up"
    container = list(configure_container(network, 1))
    for address, gateway in zip(second, network.gateways, strict=True):
        assert any(line.startswith(f"address add {address} dev eth0") for line in container)
        assert f"route add default via {gateway.ip} dev eth0" in container


@pytest.mark.parametrize(
    ("gateway", "room"),
    [("10.244.7.1/30", 1), ("10.244.7.1/29", 5), ("fd00::1/126", 2)],
)
def test_a_subnet_holds_as_many_containers_as_it_has_addresses(gateway: str, room: int) -> None:
    network = (
        ContainerNetwork(1450, ipv6=IPv6Interface(gateway))
        if ":" in gateway
        else ContainerNetwork(1450, IPv4Interface(gateway))
    )
    addresses = {network.container(index)[0] for index in range(room)}
    assert len(addresses) == room
    assert all(address in network.gateways[0].network for address in addresses)
    with pytest.raises(ConfigError, match="no room"):
        network.container(room)
