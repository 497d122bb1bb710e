"""Who takes packets of the overlay away, and what flanneld has left."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.kernel.model import ForeignInfo, KernelObject, Key, Link, Route, Rule
from pyflannel.kernel.port import ForeignLink, ForeignRoute, ForeignRule
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets
from pyflannel.network.underlay import Question, Way
from pyflannel.planning.diversion import SAMPLE, diverting, leftovers, packets, to_blame
from pyflannel.planning.overlay import Peer

OWN = {4: Subnets.from_key("10.5.1.0-24"), 6: Subnets.from_key("fd00:5:0:1::-64")}
SPACE = {4: ip_network("10.5.0.0/16"), 6: ip_network("fd00:5::/48")}
NETWORK = NetworkConfig.from_json('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}')
PEER = {4: ip_network("10.5.2.0/24"), 6: ip_network("fd00:5:0:2::/64")}
OTHER = {4: ip_address("192.0.2.3"), 6: ip_address("2001:db8::3")}
PUBLIC = {4: ip_address("192.0.2.2"), 6: ip_address("2001:db8::2")}


def foreign(destination: str, link: str | None = "eth1", metric: int | None = None, protocol: int = 4) -> ForeignRoute:
    return ForeignRoute(Route(ip_network(destination), link, metric=metric), protocol)


def desired(*routes: Route) -> dict[Key, KernelObject]:
    return {route.key: route for route in routes}


BY_PEER = {version: Route(PEER[version], "flannel.1", metric=50) for version in (4, 6)}
WHOLE = {version: Route(SPACE[version], "flannel-wg") for version in (4, 6)}


@pytest.mark.parametrize(
    ("version", "destination", "metric", "by_peer", "whole"),
    [
        (4, "10.5.2.0/25", None, True, True),
        (4, "10.5.2.9/32", None, True, True),
        (4, "10.5.2.0/24", None, True, True),
        (4, "10.5.2.0/24", 60, False, True),
        (4, "10.5.0.0/20", None, False, True),
        (4, "10.5.0.0/16", 10, False, False),
        (4, "10.5.9.0/24", None, False, True),
        (4, "10.5.1.0/24", None, False, False),
        (4, "10.5.1.7/32", None, False, False),
        (6, "fd00:5:0:2::/65", None, True, True),
        (6, "fd00:5:0:1::/64", None, False, False),
        (6, "fd00:5:0:9::/64", None, False, True),
    ],
)
def test_what_wins_against_a_route_of_ours_is_named(
    version: int, destination: str, metric: int | None, by_peer: bool, whole: bool
) -> None:
    found = foreign(destination, metric=metric)
    own = OWN[version]
    assert diverting([found], desired(BY_PEER[version]), own, NETWORK) == ((found,) if by_peer else ())
    assert diverting([found], desired(WHOLE[version]), own, NETWORK) == ((found,) if whole else ())


COVERING = NetworkConfig.from_json(
    '{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","EnableIPv6":true,'
    '"IPv6Network":"fd00::/16","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00:10::","IPv6SubnetMax":"fd00:99::"}'
)
"""A network that covers the nodes, which have addresses that can't be leased."""
INSIDE = Subnets.from_key("10.10.16.0-20&fd00:10:0:3::-64")


@pytest.mark.parametrize(
    ("version", "destination", "named"),
    [
        (4, "10.0.1.0/24", False),
        (4, "10.99.16.0/20", False),
        (4, "10.10.0.0/24", True),
        (4, "10.0.0.0/9", True),
        (6, "fd00:1::/64", False),
        (6, "fd00:99:0:1::/64", False),
        (6, "fd00:10::/64", True),
    ],
)
def test_where_nodes_are_and_no_subnet_can_be_a_route_is_the_underlay_s_own(
    version: int, destination: str, named: bool
) -> None:
    found = foreign(destination, protocol=2)
    family = COVERING.family(version)
    assert family is not None
    whole = Route(family.network, "flannel-wg")
    assert diverting([found], desired(whole), INSIDE, COVERING) == ((found,) if named else ())
    peer = Route(found.route.destination, "flannel-wg", metric=5000)
    assert diverting([found], desired(whole, peer), INSIDE, COVERING) == (found,), "but a peer's may lie there"


@pytest.mark.parametrize("version", [4, 6])
def test_a_route_of_ours_in_a_table_of_its_own_is_not_won_against(version: int) -> None:
    found = foreign(str(next(PEER[version].subnets())))
    assert diverting([found], desired(BY_PEER[version]), OWN[version], NETWORK) == (found,)
    assert diverting([found], desired(replace(BY_PEER[version], table=4711)), OWN[version], NETWORK) == ()


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(17, 32), st.integers(0, 100)), max_size=8))
def test_a_packet_that_a_foreign_route_gets_is_diverted(rows: list[tuple[int, int, int]]) -> None:
    """Against the kernel's own rule: the longest prefix, then the lowest metric, decides."""
    routes = []
    for third, length, metric in rows:
        net = ip_network(f"10.5.{third}.0/{length}", strict=False)
        routes.append(ForeignRoute(Route(net, "eth1", metric=metric), 4))
    ours = [BY_PEER[4]]
    named = diverting(routes, desired(*ours), OWN[4], NETWORK)
    packet = ip_address("10.5.2.1")
    candidates = [(r.destination.prefixlen, -r.effective_metric, 1) for r in ours if packet in r.destination]
    candidates += [
        (r.route.destination.prefixlen, -r.route.effective_metric, 0)
        for r in routes
        if packet in r.route.destination and r.route.key not in desired(*ours)
    ]
    if max(candidates)[2] == 0:
        assert any(packet in r.route.destination for r in named)


def lease(version: int) -> Peer:
    name = "PublicIP" if version == 4 else "PublicIPv6"
    key = Subnets(PEER[4]).key if version == 4 else Subnets(None, PEER[6]).key  # type: ignore[arg-type]
    return Peer(key, f'{{"{name}":"{PUBLIC[version]}","BackendType":"host-gw"}}')


@pytest.mark.parametrize("version", [4, 6])
def test_flanneld_s_routes_and_devices_are_known(version: int) -> None:
    gone = ForeignRoute(Route(PEER[version], "eth0", PUBLIC[version]), 3)
    static = ForeignRoute(Route(PEER[version], "eth0", PUBLIC[version]), 4)
    elsewhere = ForeignRoute(Route(PEER[version], "eth0", OTHER[version]), 3)
    device = ForeignLink(
        Link("flannel.1", ForeignInfo("vxlan"), 1450),
        (ip_interface(f"{SPACE[version].network_address + 256}/{SPACE[version].max_prefixlen}"),),
    )
    through = foreign(f"{PEER[version]}", "flannel.1")
    stray = (gone, static, elsewhere, through)
    assert set(leftovers(stray, [device], [lease(version)], [SPACE[version]])) == {gone, device}
    assert leftovers((static, elsewhere), [device], [lease(version)], [SPACE[version]]) == (), "nothing is in the way"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("flannel.1", "10.99.0.0/32"),
        ("cni0", "10.5.1.1/24"),
        ("flannelette", "10.5.1.0/32"),
        ("flannel.1x", "10.5.1.0/32"),
    ],
)
def test_what_may_be_somebody_else_s_stays(name: str, address: str) -> None:
    device = ForeignLink(Link(name, ForeignInfo("vxlan"), 1450), (ip_interface(address),))
    assert leftovers([foreign("10.5.2.0/24", name)], [device], [], [SPACE[4]]) == ()


PEERS = [Subnets(PEER[4], PEER[6]), Subnets.from_key("10.5.3.0-24&fd00:5:0:3::-64")]  # type: ignore[arg-type]
BOTH = Subnets.from_key("10.5.1.0-24&fd00:5:0:1::-64")
BRIDGES = {4: "cni0", 6: "cni0"}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, {"own of both", "containers of both"}),
        ({"destination": PEER}, {"own of the first", "containers of the first"}),
        ({"source": {4: OWN[4].each[0], 6: OWN[6].each[0]}}, {"containers of both"}),
        ({"iif": "cni0"}, {"containers of both"}),
        ({"iif": "lo"}, {"own of both"}),
        ({"iif": "eth0"}, set()),
        ({"destination": PEER, "inverted": True}, {"own of the second", "containers of the second"}),
        ({"mark": 5, "inverted": True}, {"own of both", "containers of both"}),
        ({"mark": 5}, set()),
    ],
)
def test_of_the_overlay_s_packets_those_are_tried_that_a_rule_selects(
    version: int, changes: dict[str, object], chosen: set[str]
) -> None:
    said = {name: value[version] if isinstance(value, dict) else value for name, value in changes.items()}
    rule = ForeignRule(Rule(version, 100, action="prohibit", **said))  # type: ignore[arg-type]
    expected = set()
    for name in chosen:
        who, _, which = name.partition(" of ")
        for place, peer in enumerate(PEERS):
            subnet = peer.of(version)
            assert subnet is not None
            if which == "both" or which.endswith(("first", "second")[place]):
                expected.add((who == "containers", subnet.network_address + 1))
    found = packets([rule], PEERS, BOTH, BRIDGES)
    assert {(bool(packet.entrance), packet.address) for packet in found} == expected
    assert all((packet.source in OWN[version].each[0]) for packet in found if packet.source is not None)


@pytest.mark.parametrize("destination", ["10.5.2.77/32", "10.5.2.64/31", "10.5.2.128/26"])
def test_a_rule_for_a_part_of_a_peer_s_subnet_is_tried_there(destination: str) -> None:
    rule = Rule(4, 100, destination=ip_network(destination), action="blackhole")
    (packet,) = packets([ForeignRule(rule)], PEERS, BOTH, {})
    assert packet.address in ip_network(destination)


def test_many_peers_are_tried_by_an_even_sample() -> None:
    peers = [Subnets.from_key(f"10.{6 + number // 256}.{number % 256}.0-24") for number in range(5000)]
    rule = ForeignRule(Rule(4, 100, table=100))
    tried = [packet.address for packet in packets([rule], peers, BOTH, {})]
    assert SAMPLE // 2 < len(tried) <= SAMPLE
    assert peers[0].each[0].network_address + 1 == tried[0]
    assert any(address in subnet for peer in peers[-20:] for subnet in peer.each for address in tried)


@pytest.mark.parametrize(
    ("rule", "answer", "blamed"),
    [
        (Rule(4, 100, action="prohibit"), "prohibit", True),
        (Rule(4, 100, action="unreachable"), "unreachable", True),
        (Rule(4, 100, action="prohibit"), Way("flannel.1", None, 254), False),
        (Rule(4, 100, action="prohibit", destination=ip_network("10.5.3.0/24")), "prohibit", False),
        (Rule(6, 100, action="prohibit"), "prohibit", False),
        (Rule(4, 100, table=100), Way("tun7", None, 100), True),
        (Rule(4, 100, table=100), Way("flannel.1", None, 100), False),
        (Rule(4, 100, table=100), Way("tun7", None, 254), False),
        (Rule(4, 100, table=100), "blackhole", True),
        (Rule(4, 100, table=100), "unreachable", False),
    ],
)
def test_a_rule_is_to_blame_for_what_the_kernel_does_because_of_it(rule: Rule, answer: Way | str, blamed: bool) -> None:
    packet = Question(PEER[4].network_address + 1)
    foreign = ForeignRule(rule)
    assert to_blame([foreign], [(packet, answer)], {"flannel.1", "eth0"}) == ((foreign,) if blamed else ())
