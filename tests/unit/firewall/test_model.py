"""Which rules a network needs, and what they do to a packet."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.firewall.model import NO_RULES, FirewallRule, Match, Verdict, plan
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPAddress, Subnets

DUAL = NetworkConfig.from_json('{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10::/48"}')
ONLY4 = NetworkConfig.from_json('{"Network": "10.244.0.0/16"}')
SUBNETS = Subnets(IPv4Network("10.244.3.0/24"), IPv6Network("fd00:10:0:3::/64"))
PLACES = {
    4: {"own": "10.244.3.7", "overlay": "10.244.9.7", "outside": "192.0.2.1", "multicast": "224.0.0.9"},
    6: {"own": "fd00:10:0:3::7", "overlay": "fd00:10:0:9::7", "outside": "2001:db8::1", "multicast": "ff02::9"},
}


def holds(match: Match | None, address: IPAddress) -> bool:
    return match is None or (address in match.network) != match.negated


def verdict(
    rules: tuple[FirewallRule, ...],
    source: IPAddress,
    destination: IPAddress,
    mark: int = 0,
    leaving: str = "",
    ipsec: bool = False,
) -> Verdict | None:
    """What happens to a packet: the first rule that matches decides."""
    for rule in rules:
        marked = rule.mark is None or mark & rule.mark == rule.mark
        leaves = rule.exit in ("", leaving) and (ipsec or not rule.to_ipsec)
        if marked and leaves and holds(rule.source, source) and holds(rule.destination, destination):
            return rule.verdict
    return None


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("source", "destination", "masqueraded"),
    [
        ("own", "own", False),
        ("own", "overlay", False),
        ("overlay", "own", False),
        ("outside", "own", False),
        ("own", "outside", True),
        ("own", "multicast", False),
        ("overlay", "overlay", True),
        ("overlay", "outside", True),
        ("overlay", "multicast", False),
        ("outside", "overlay", True),
        ("outside", "outside", False),
    ],
)
def test_what_is_masqueraded(version: int, source: str, destination: str, masqueraded: bool) -> None:
    rules = plan(DUAL, SUBNETS, forward=False, masquerade=True).of(version).masquerade
    start, end = (ip_address(PLACES[version][name]) for name in (source, destination))
    assert (verdict(rules, start, end) is Verdict.MASQUERADE) == masqueraded
    assert verdict(rules, start, end, mark=0x4001) is Verdict.RETURN, "kube-proxy's packets are its own"
    assert verdict(rules, start, end, mark=0x8000) == verdict(rules, start, end)


@pytest.mark.parametrize("version", [4, 6])
def test_an_overlay_address_is_believed_by_the_overlay_s_device_or_where_its_route_leads(version: int) -> None:
    planned = plan(DUAL, SUBNETS, forward=False, masquerade=False, entrances={"flannel.1"}, underlay="eth0")
    first, *middle, drop = planned.of(version).arrival
    assert first == FirewallRule(Verdict.RETURN, interface="flannel.1")
    assert middle == [FirewallRule(Verdict.DROP, drop.source, interface="eth0")], (
        "where the default route may lead back"
    )
    assert drop.strayed, "containers of this node are where the route to them leads"
    assert not drop.interface, "by whichever other link"
    believed = {
        name: verdict((drop,), ip_address(address), ip_address(address)) for name, address in PLACES[version].items()
    }
    assert {name for name, fate in believed.items() if fate is Verdict.DROP} == {"own", "overlay"}


def test_what_a_node_sends_to_itself_comes_in_where_its_underlay_s_address_is_on_lo() -> None:
    """As where each node's address is told by BGP. What others send comes in by other interfaces."""
    planned = plan(DUAL, SUBNETS, forward=False, masquerade=False, entrances={"flannel.1"}, underlay="lo")
    for family in planned.each:
        drops = [rule for rule in family.arrival if rule.verdict is Verdict.DROP]
        assert [(rule.interface, rule.strayed) for rule in drops] == [("", True)]


def test_where_peers_may_come_by_any_link_all_may_come_in() -> None:
    rules = plan(DUAL, SUBNETS, forward=True, masquerade=True)
    assert not rules.any_arrival
    assert not rules.any_departure


COVERING = NetworkConfig.from_json(
    '{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","EnableIPv6":true,'
    '"IPv6Network":"fd00::/16","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00:10::","IPv6SubnetMax":"fd00:99::"}'
)
"""A network that covers the nodes, which have addresses that can't be leased."""
INSIDE = Subnets(IPv4Network("10.10.3.0/24"), IPv6Network("fd00:10:0:3::/64"))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("place", "leaving", "dropped"),
    [
        ("overlay", "eth0", True),
        ("overlay", "flannel-wg-v6", True),
        ("overlay", "flannel-wg", False),
        ("overlay", "lo", False),
        ("own", "cni0", False),
        ("outside", "eth0", False),
        ("multicast", "eth0", False),
    ],
)
def test_what_is_encrypted_leaves_by_its_device_or_not_at_all(
    version: int, place: str, leaving: str, dropped: bool
) -> None:
    rules = plan(DUAL, SUBNETS, forward=False, masquerade=False, exits=["flannel-wg"])
    source, destination = (ip_address(PLACES[version][name]) for name in ("own", place))
    fate = verdict(rules.of(version).departure, source, destination, leaving=leaving)
    assert (fate is Verdict.DROP) == dropped
    assert rules.any_departure


@pytest.mark.parametrize(
    ("destination", "dropped"),
    [
        ("10.0.1.2", False),
        ("10.9.255.255", False),
        ("10.10.0.0", True),
        ("10.99.0.255", True),
        ("10.99.1.0", False),
        ("10.255.255.255", False),
        ("fd00:1::2", False),
        ("fd00:10::1", True),
        ("fd00:99::1", True),
        ("fd00:99:0:1::1", False),
        ("fd00:ffff::1", False),
    ],
)
def test_nodes_whose_addresses_lie_in_the_network_are_reached(destination: str, dropped: bool) -> None:
    """Where no subnet may be leased there are no containers, and it may be the encrypted packet itself."""
    address, device = ip_address(destination), ["flannel-wg"]
    nodes = [ip_address("10.0.1.1"), ip_address("fd00:1::1")]
    whole = plan(COVERING, INSIDE, forward=False, masquerade=False, entrances=device, addresses=nodes, exits=device)
    rules = whole.of(address.version)
    assert (verdict(rules.departure, address, address, leaving="eth0") is Verdict.DROP) == dropped
    arrival = tuple(rule for rule in rules.arrival if not rule.interface)
    assert (verdict(arrival, address, address) is Verdict.DROP) == dropped, "and they are heard"


@pytest.mark.parametrize("ipsec", [False, True])
def test_what_ipsec_encrypts_is_let_out_where_an_exit_is_ipsec_s(ipsec: bool) -> None:
    """The firewall sees it once more then, on its way out by the underlay's interface."""
    rules = plan(DUAL, SUBNETS, forward=False, masquerade=False, exits=["flannel-ipsec"], ipsec=ipsec).ipv4.departure
    address = ip_address(PLACES[4]["overlay"])
    assert verdict(rules, address, address, leaving="eth0", ipsec=True) is (Verdict.RETURN if ipsec else Verdict.DROP)
    assert verdict(rules, address, address, leaving="eth0") is Verdict.DROP


@given(st.integers(0, 2**32 - 1).map(ip_address), st.integers(0, 2**32 - 1).map(ip_address))
def test_forward_rules_accept_the_overlay_s_packets_and_no_others(source: IPAddress, destination: IPAddress) -> None:
    rules = plan(ONLY4, SUBNETS, forward=True, masquerade=False).ipv4.forward
    network = IPv4Network("10.244.0.0/16")
    expected = Verdict.ACCEPT if source in network or destination in network else None
    assert verdict(rules, source, destination) is expected


def test_a_family_that_is_off_has_no_rules() -> None:
    rules = plan(ONLY4, SUBNETS, forward=True, masquerade=True, entrances={"flannel.1"})
    assert rules.ipv6 == NO_RULES.ipv6
    assert rules.any_forward
    assert rules.any_masquerade
    assert rules.any_arrival


def test_what_is_switched_off_is_not_there() -> None:
    assert plan(DUAL, SUBNETS, forward=False, masquerade=False) == NO_RULES
    assert not plan(DUAL, SUBNETS, forward=True, masquerade=False).any_masquerade
    assert not plan(DUAL, SUBNETS, forward=False, masquerade=True).any_forward


@pytest.mark.parametrize("fully_random", [True, False])
def test_only_masquerade_has_ports(fully_random: bool) -> None:
    rules = plan(DUAL, SUBNETS, forward=True, masquerade=True, fully_random=fully_random)
    for rule in (*rules.ipv4.masquerade, *rules.ipv6.masquerade, *rules.ipv4.forward):
        assert rule.fully_random == (fully_random and rule.verdict is Verdict.MASQUERADE)
