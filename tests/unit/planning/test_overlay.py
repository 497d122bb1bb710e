from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.backend import Backend, DesiredState, Lease, Node, NoOptions, Subnets, Underlay, forwarding
from pyflannel.errors import PluginError
from pyflannel.kernel.model import Address, GenericInfo, KernelObject, Key, Link, Neighbour, Route, Sysctl
from pyflannel.network.document import NetworkConfig
from pyflannel.network.underlay import UnderlayRoute
from pyflannel.planning.overlay import Overlay
from pyflannel_backends.host_gw import HostGatewayBackend
from pyflannel_backends.vxlan import VxlanBackend, VxlanOptions

NETWORK = NetworkConfig.from_json('{"Network": "10.5.0.0/16"}')
UNDERLAY = Underlay(
    "eth0",
    1500,
    IPv4Address("192.0.2.1"),
    public_ipv4=IPv4Address("192.0.2.1"),
    routes=(UnderlayRoute(ip_network("192.0.2.0/24")),),
)
NODE = Node("node-1", NETWORK, UNDERLAY, Subnets(IPv4Network("10.5.1.0/24")))


def lease(number: int, subnet: str | None = None, mac: int | None = None, **changes: Any) -> tuple[str, str]:
    data = f'{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac if mac is not None else number:02x}"}}'
    fields = {"PublicIP": f'"192.0.2.{number}"', "BackendType": '"vxlan"', "BackendData": data, **changes}
    text = ",".join(f'"{name}":{value}' for name, value in fields.items() if value is not None)
    return subnet or f"10.5.{number}.0-24", f"{{{text}}}"


def overlay(backend: Backend[Any] | None = None) -> Overlay:
    return Overlay(backend or VxlanBackend(VxlanOptions()), NODE)


def desired(view: Overlay) -> dict[Key, KernelObject]:
    return dict(view.desired)


def test_a_good_lease_becomes_a_peer_with_a_plan() -> None:
    view = overlay()
    before = desired(view)
    view.put(*lease(2))
    assert view.peers["10.5.2.0-24"].reason == ""
    assert len(desired(view)) == len(before) + 3


def test_a_removed_lease_leaves_nothing() -> None:
    view = overlay()
    before = desired(view)
    view.drain_changed()
    view.put(*lease(2))
    added = {key: item for key, item in desired(view).items() if key not in before}
    assert view.drain_changed() == dict.fromkeys(added)
    view.remove("10.5.2.0-24")
    assert desired(view) == before
    assert view.drain_changed() == added
    assert view.peers == {}


def test_our_own_lease_is_no_peer() -> None:
    view = overlay()
    view.put(*lease(1))
    assert view.peers == {}


def test_the_same_lease_again_changes_nothing() -> None:
    view = overlay()
    view.put(*lease(2))
    view.drain_changed()
    view.put(*lease(2))
    assert view.drain_changed() == {}


BAD = {
    "not a subnet": (("10.5.2.0", "{}"), "lease key"),
    "host bits": (("10.5.2.1-24", "{}"), "host bits"),
    "not JSON": (("10.5.2.0-24", "{"), "not JSON"),
    "outside the network": (lease(2, "10.6.2.0-24"), "outside the network"),
    "larger than the network": (lease(2, "10.0.0.0-8"), "outside the network"),
    "everything": (lease(2, "0.0.0.0-1"), "outside the network"),
    "overlaps ours": (lease(2, "10.5.1.128-25"), "this node's own subnet"),
    "contains ours": (lease(2, "10.5.0.0-16"), "this node's own subnet"),
    "no address": (lease(2, PublicIP=None), "has no PublicIP"),
    "our address": (lease(2, PublicIP='"192.0.2.1"'), "this node's own"),
    "loopback": (lease(2, PublicIP='"127.0.0.1"'), "not an address that a node can have"),
    "multicast": (lease(2, PublicIP='"224.0.0.1"'), "not an address that a node can have"),
    "unspecified": (lease(2, PublicIP='"0.0.0.0"'), "not an address that a node can have"),
    "broadcast": (lease(2, PublicIP='"255.255.255.255"'), "not an address that a node can have"),
    "inside the overlay": (lease(2, PublicIP='"10.5.9.9"'), "inside the overlay"),
    "other type": (lease(2, BackendType='"udp"'), "BackendType is 'udp'"),
    "no type": (lease(2, BackendType=None), "BackendType is none"),
    "only IPv6": (lease(2, "fd00::-64"), "no subnet of a family"),
    "rejected by the backend": (lease(2, BackendData="null"), "BackendData"),
}


@pytest.mark.parametrize(("record", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_lease_is_skipped_with_the_reason_and_nothing_is_planned(record: tuple[str, str], reason: str) -> None:
    view = overlay()
    before = desired(view)
    view.put(*record)
    assert reason in view.peers[record[0]].reason
    assert desired(view) == before


@given(st.text(), st.text())
def test_no_record_can_stop_us(key: str, value: str) -> None:
    view = overlay()
    view.put(key, value)
    assert view.peers[key].reason


def test_a_mended_lease_is_used() -> None:
    view = overlay()
    view.put(*lease(2, BackendData="null"))
    view.put(*lease(2))
    assert view.peers["10.5.2.0-24"].reason == ""


def test_a_family_the_network_does_not_use_is_ignored() -> None:
    view = overlay()
    key, value = lease(2, "10.5.2.0-24&fd00::-64")
    view.put(key, value)
    assert view.peers[key].reason == ""
    assert view.lease(key) == replace(Lease.from_record(key, value), subnets=Subnets(IPv4Network("10.5.2.0/24")))


def test_of_two_leases_with_one_mac_the_lower_subnet_wins_in_either_order() -> None:
    records = [lease(2), lease(3, mac=2)]
    views = [overlay(), overlay()]
    for view, order in zip(views, (records, records[::-1]), strict=True):
        for record in order:
            view.put(*record)
        assert view.peers["10.5.2.0-24"].reason == ""
        assert "claims what lease 10.5.2.0-24 has" in view.peers["10.5.3.0-24"].reason
    assert desired(views[0]) == desired(views[1])


def test_the_loser_comes_in_when_the_winner_goes() -> None:
    view = overlay()
    view.put(*lease(2))
    view.put(*lease(3, mac=2))
    view.drain_changed()
    view.remove("10.5.2.0-24")
    assert view.peers["10.5.3.0-24"].reason == ""
    assert any(key in view.desired for key in view.drain_changed())


def test_a_lease_that_covers_others_loses_against_them() -> None:
    view = overlay()
    view.put(*lease(2, "10.5.128.0-17"))
    view.put(*lease(200))
    assert view.peers["10.5.200.0-24"].reason == ""
    assert "claims what" in view.peers["10.5.128.0-17"].reason


DUAL = NetworkConfig.from_json(
    '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "IPv6SubnetLen": 64}'
)
THERE = "10.5.200.0-24&fd00:5:0:200::-64"


@pytest.mark.parametrize("crossing", ["10.5.2.0-24&fd00:5:0:200::-64", "10.5.200.0-24&fd00:5:0:2::-64"])
@pytest.mark.parametrize("order", ["older first", "younger first"])
def test_who_comes_later_takes_no_subnet_of_either_family(crossing: str, order: str) -> None:
    underlay = replace(UNDERLAY, ipv6=IPv6Address("2001:db8::1"), public_ipv6=IPv6Address("2001:db8::1"))
    subnets = Subnets(NODE.subnets.ipv4, IPv6Network("fd00:5:0:1::/64"))
    node = replace(NODE, network=DUAL, underlay=underlay, subnets=subnets)
    data = '{"VNI":1,"VtepMAC":"02:00:00:00:06:02"}'
    older = (*lease(200, THERE, PublicIPv6='"2001:db8::2"', BackendV6Data=data), 7)
    younger = (*lease(2, crossing, PublicIPv6='"2001:db8::3"', BackendV6Data=data), 8)
    view = Overlay(VxlanBackend(VxlanOptions()), node)
    for told in [older, younger] if order == "older first" else [younger, older]:
        view.put(*told)
    assert view.peers[THERE].reason == ""
    assert f"claims what lease {THERE} has" in view.peers[crossing].reason
    view.remove(THERE)
    assert view.peers[crossing].reason == ""
    view.put(*older[:2], 9)  # made anew it is the younger one
    assert f"claims what lease {crossing} has" in view.peers[THERE].reason


def test_the_age_that_a_store_tells_later_counts_as_well() -> None:
    view = overlay()
    view.put(*lease(2), 5)
    view.put(*lease(3, mac=2), 6)
    view.put(*lease(2), 7)
    assert view.peers["10.5.3.0-24"].reason == ""
    assert "claims what lease 10.5.3.0-24 has" in view.peers["10.5.2.0-24"].reason


def test_the_first_subnet_of_the_network_has_its_layout_although_nobody_may_lease_it() -> None:
    """A cluster that assigns subnets gives it all the same."""
    view = overlay()
    view.put(*lease(2, "10.5.0.0-24"))
    view.put(*lease(3, "10.5.0.0-25"))
    assert view.peers["10.5.0.0-24"].reason == ""
    assert "claims what" in view.peers["10.5.0.0-25"].reason


def test_a_lease_within_another_waits_for_it() -> None:
    view = overlay()
    view.put(*lease(2, "10.5.200.128-25"))
    view.put(*lease(200))
    assert view.peers["10.5.200.0-24"].reason == ""
    assert "claims what" in view.peers["10.5.200.128-25"].reason


def test_a_backend_that_raises_costs_one_peer() -> None:
    class Fragile(VxlanBackend):
        def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
            if "10.5.3" in peer.key:
                raise RuntimeError("boom")
            return super().plan_peer(node, peer)

    view = overlay(Fragile(VxlanOptions()))
    view.put(*lease(2))
    view.put(*lease(3))
    assert view.peers["10.5.2.0-24"].reason == ""
    assert "backend 'vxlan' failed in plan_peer: RuntimeError: boom" in view.peers["10.5.3.0-24"].reason


class Neither:
    """Neither true nor false."""

    def __bool__(self) -> bool:
        raise RuntimeError("who knows")


@pytest.mark.parametrize("name", ["tunnelled", "capabilities"])
def test_an_answer_that_is_neither_true_nor_false_is_the_plugin_s_fault(name: str) -> None:
    neither: Any = Neither()
    capabilities = replace(VxlanBackend.capabilities, untyped_leases=neither)
    answer = {"tunnelled": property(lambda self: neither), "capabilities": capabilities}[name]
    backend = type("Undecided", (VxlanBackend,), {name: answer})(VxlanOptions())
    with pytest.raises(PluginError, match=f"^backend 'vxlan' failed in {name}: RuntimeError: who knows$"):
        overlay(backend)


class Elsewhere(VxlanBackend):
    """Peer 3 also wants a neighbour at the address that is peer 2's, or a route within its own subnet."""

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        plan = super().plan_peer(node, peer)
        if not peer.key.startswith("10.5.3."):
            return plan
        subnet = IPv4Network("10.5.3.16/28")
        neighbour = Neighbour("flannel.1", IPv4Address("10.5.2.0"), "02:00:00:00:03:03")
        return DesiredState([*plan, neighbour, Route(subnet, "flannel.1", subnet.network_address, onlink=True)])


@pytest.mark.parametrize("first", [2, 3])
def test_a_key_within_another_s_subnet_is_claimed_from_that_one(first: int) -> None:
    view = overlay(Elsewhere(VxlanOptions()))
    view.put(*lease(first))
    view.put(*lease(5 - first))
    assert view.peers["10.5.2.0-24"].reason == ""
    assert view.peers["10.5.3.0-24"].reason == "claims what lease 10.5.2.0-24 has"
    view.remove("10.5.2.0-24")
    assert view.peers["10.5.3.0-24"].reason == ""
    view.put(*lease(2))
    assert view.peers["10.5.3.0-24"].reason == "claims what lease 10.5.2.0-24 has"
    view.remove("10.5.3.0-24")
    view.remove("10.5.2.0-24")
    assert desired(view) == desired(overlay(Elsewhere(VxlanOptions())))


def test_host_gw_skips_who_is_not_on_the_link() -> None:
    view = overlay(HostGatewayBackend(HostGatewayBackend.Options()))
    view.put(*lease(2, BackendType='"host-gw"', BackendData=None))
    view.put(*lease(3, BackendType='"host-gw"', BackendData=None, PublicIP='"198.51.100.3"'))
    assert view.peers["10.5.2.0-24"].reason == ""
    assert "not on the link" in view.peers["10.5.3.0-24"].reason


@pytest.mark.parametrize(
    ("backend", "devices"),
    [
        (HostGatewayBackend(NoOptions()), {"eth0"}),
        (VxlanBackend(VxlanOptions()), {"flannel.1"}),
        (VxlanBackend(VxlanOptions(direct_routing=True)), {"eth0", "flannel.1"}),
    ],
    ids=["host-gw", "vxlan", "vxlan with DirectRouting"],
)
def test_every_device_forwards_by_which_packets_of_the_overlay_come_in(
    backend: Backend[Any], devices: set[str]
) -> None:
    """A device's own switch may be off although the node's is on."""
    switches = {
        item for item in overlay(backend).own_objects if isinstance(item, Sysctl) and "net/ipv4/conf/" in item.path
    }
    assert switches == {Sysctl(f"net/ipv4/conf/{name}/forwarding", "1", optional=True) for name in devices}


class Apart(Backend[NoOptions]):
    """A device for each peer, with an address of either family."""

    name = "apart"

    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu

    def plan_node(self, node: Node) -> DesiredState:
        return DesiredState([forwarding(4)])

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        assert peer.subnets.ipv4 is not None
        name = f"apart-{int(peer.subnets.ipv4.network_address):08x}"
        return DesiredState(
            [
                Link(name, GenericInfo("ipip"), 1480),
                Sysctl(f"net/ipv4/conf/{name}/forwarding", "0"),
                Address(name, IPv6Interface("fe80::1/64")),
                Route(peer.subnets.ipv4, name),
            ]
        )


APART = '"apart"'


def test_a_peers_own_device_is_one_of_the_overlays_and_switched_on() -> None:
    view = overlay(Apart(NoOptions()))
    for number in (2, 3):
        view.put(*lease(number, BackendType=APART))
    view.put(*lease(4, BackendType=APART, PublicIP='"127.0.0.1"'))
    assert view.peers["10.5.4.0-24"].reason
    assert [link.name for link in view.links] == ["apart-0a050200", "apart-0a050300"]
    switches = {item.path: item.value for item in view.desired.values() if isinstance(item, Sysctl)}
    for link in view.links:
        assert switches[f"net/ipv4/conf/{link.name}/forwarding"] == "1"
        assert switches[f"net/ipv6/conf/{link.name}/disable_ipv6"] == "0"
    view.remove("10.5.3.0-24")
    assert [link.name for link in view.links] == ["apart-0a050200"]
    assert not [key for key in view.desired if "apart-0a050300" in str(key)]


def test_what_links_need_besides_is_a_part_of_their_peers_plan() -> None:
    def loose(links: Collection[str]) -> Iterator[Sysctl]:
        return (Sysctl(f"net/ipv4/conf/{link}/rp_filter", "2") for link in links)

    view = Overlay(Apart(NoOptions()), NODE, of_links=loose)
    for each in (view, view.moved(NODE)):
        each.put(*lease(2, BackendType=APART))
        key = next(iter(loose(["apart-0a050200"]))).key
        assert each.desired.owner(key) == "10.5.2.0-24"


def test_the_nodes_own_devices_are_the_overlays() -> None:
    assert [link.name for link in overlay().links] == ["flannel.1"]


def test_moving_the_node_judges_everybody_again() -> None:
    view = overlay(HostGatewayBackend(HostGatewayBackend.Options()))
    view.put(*lease(2, BackendType='"host-gw"', BackendData=None))
    moved = view.moved(replace(NODE, underlay=replace(UNDERLAY, routes=())))
    assert "not on the link" in moved.peers["10.5.2.0-24"].reason


def verdicts(view: Overlay) -> dict[str, tuple[str, tuple[KernelObject, ...]]]:
    """Who is used, who is skipped and why; of several that a lease lost against, any may be the one that is named."""
    return {
        key: (re.sub("claims what lease .* has", "claims what lease ... has", peer.reason), peer.objects)
        for key, peer in view.peers.items()
    }


NUMBERS = st.integers(2, 9)
STEP = st.tuples(
    NUMBERS, st.sampled_from(["put", "remove", "bad"]), NUMBERS, st.sampled_from([24, 25, 23, 20]), st.integers(0, 3)
)


@given(st.lists(STEP, max_size=30), st.randoms(use_true_random=False))
def test_only_the_leases_count_not_how_they_came(
    steps: list[tuple[int, str, int, int, int]], shuffle: random.Random
) -> None:
    """Whatever happened on the way: the end is what a fresh node would plan, and the changes add up to it."""
    view = overlay()
    followed = desired(view)
    view.drain_changed()
    current: dict[str, tuple[str, int]] = {}
    for number, action, mac, length, created in steps:
        subnet = IPv4Network((f"10.5.{number}.0", length), strict=False)
        key, value = lease(number, Subnets(subnet).key, mac, **({"PublicIP": None} if action == "bad" else {}))
        if action == "remove":
            current.pop(key, None)
            view.remove(key)
        else:
            current[key] = value, created
            view.put(key, value, created)
        for changed, was in view.drain_changed().items():
            assert followed.pop(changed, None) == was
            if changed in view.desired:
                followed[changed] = view.desired[changed]
    fresh = overlay()
    items = list(current.items())
    shuffle.shuffle(items)
    for key, told in items:
        fresh.put(key, *told)
    assert desired(view) == desired(fresh) == followed
    assert len(view.desired) == len(followed)
    assert all(view.desired[key] == item and list(view.desired).count(key) == 1 for key, item in followed.items())
    assert verdicts(view) == verdicts(fresh)
    assert view.skipped == sum(bool(peer.reason) for peer in view.peers.values())
    used = [Subnets.from_key(peer.key) for peer in view.peers.values() if not peer.reason]
    assert not any(a.overlaps(b) for a in used for b in used if a is not b)


ALIASED = NetworkConfig.from_json('{"Network": "10.0.0.0/8", "SubnetLen": 24}')
MANY = 600


def crowd(claim: str) -> list[tuple[str, str]]:
    """Leases of which each claims what all others do, in descending order of what settles it."""
    found = []
    for number in range(MANY, 0, -1):
        key = f"10.{100 + number // 250}.{number % 250}.0-24"
        if claim == "subnet":
            key = f"10.99.0.0-24&fd00:0:0:{number:x}::-64"
        found.append((key, lease(2)[1]))
    return found


@pytest.mark.parametrize("claim", ["MAC", "subnet"])
def test_many_that_claim_one_thing_are_settled_by_looking_at_each_a_few_times(claim: str) -> None:
    class Counting(VxlanBackend):
        plans = 0

        def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
            self.plans += 1
            return super().plan_peer(node, peer)

    backend = Counting(VxlanOptions())
    view = Overlay(backend, replace(NODE, network=ALIASED))
    leases = crowd(claim)
    for record in leases:
        view.put(*record)
    winner = leases[-1][0]
    assert [key for key, peer in view.peers.items() if not peer.reason] == [winner]
    assert {peer.reason for peer in view.peers.values()} == {"", f"claims what lease {winner} has"}
    for key, _ in reversed(leases):
        view.remove(key)
    assert not view.peers
    assert view.skipped == 0
    assert backend.plans <= 3 * MANY


def test_who_waits_for_several_things_waits_for_the_next_when_one_is_free() -> None:
    view = overlay()
    view.put(*lease(2))
    view.put(*lease(3))
    view.put(*lease(4, "10.5.3.128-25", mac=2))
    assert "claims what lease" in view.peers["10.5.3.128-25"].reason
    view.remove("10.5.2.0-24")
    assert view.peers["10.5.3.128-25"].reason == "claims what lease 10.5.3.0-24 has"
    view.remove("10.5.3.0-24")
    assert view.peers["10.5.3.128-25"].reason == ""


def test_subnets_of_a_family_that_is_not_used_are_nobodys() -> None:
    view = overlay()
    view.put(*lease(2, "10.5.2.0-24&fd00::-64"))
    view.put(*lease(3, "10.5.3.0-24&fd00::-64"))
    assert [peer.reason for peer in view.peers.values()] == ["", ""]
