"""Planning by what is usual comes to what planning each lease by itself comes to, whatever the leases say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.backend import DesiredState, Lease, Node, Route, Subnets, Underlay, UsualData
from pyflannel.network.document import NetworkConfig
from pyflannel.network.underlay import UnderlayRoute
from pyflannel.planning.overlay import Overlay
from pyflannel_backends.vxlan import VxlanBackend, VxlanOptions

UNDERLAY = Underlay(
    "eth0",
    1500,
    IPv4Address("192.0.2.1"),
    IPv6Address("2001:db8::1"),
    IPv4Address("192.0.2.1"),
    IPv6Address("2001:db8::1"),
    routes=(UnderlayRoute(ip_network("192.0.2.0/24")), UnderlayRoute(ip_network("2001:db8::/64"))),
    also_own=frozenset({IPv4Address("198.51.100.9"), IPv6Address("2001:db8:7::9")}),
)
FOUR, SIX = IPv4Network("10.5.1.0/24"), IPv6Network("fd00:5:0:1::/64")
DOCUMENTS = {
    "ipv4": ({"Network": "10.5.0.0/16"}, Subnets(FOUR)),
    "ipv6": ({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:5::/48"}, Subnets(None, SIX)),
    "both": ({"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:5::/48"}, Subnets(FOUR, SIX)),
    "a wide subnet of our own": ({"Network": "10.5.0.0/16"}, Subnets(IPv4Network("10.5.0.0/23"))),
}


def node_in(kind: str) -> Node:
    document, subnets = DOCUMENTS[kind]
    return Node("node-1", NetworkConfig.from_json(json.dumps(document)), UNDERLAY, subnets)


@pytest.fixture(params=DOCUMENTS)
def node(request: pytest.FixtureRequest) -> Node:
    return node_in(request.param)


class Counting(VxlanBackend):
    """vxlan, which counts how often it is asked."""

    asked = 0

    def usual(self, node: Node) -> Mapping[int, UsualData]:
        return super().usual(node)

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        self.asked += 1
        return super().plan_peer(node, peer)


def lease(node: Node, number: int) -> tuple[str, dict[str, Any]]:
    """A usual one, as flanneld or pyflannel writes it."""
    four, six = f"10.5.{number}.0-24", f"fd00:5:0:{number:x}::-64"
    key = {(4,): four, (6,): six, (4, 6): f"{four}&{six}"}[node.network.versions]
    text: dict[str, Any] = {"PublicIP": None, "PublicIPv6": None, "BackendType": "vxlan"}
    if 4 in node.network.versions:
        text |= {"PublicIP": f"192.0.2.{number}", "BackendData": {"VNI": 1, "VtepMAC": f"02:00:00:00:04:{number:02x}"}}
    if 6 in node.network.versions:
        mac = f"02:00:00:00:06:{number:02X}"
        text |= {"PublicIPv6": f"2001:db8::{number:x}", "BackendV6Data": {"VNI": 1, "VtepMAC": mac}}
    if number % 2:
        text |= {"NodeID": f"node-{number}", "Machine": {"Run": "a", "Cards": ["02:00:00:00:00:07"]}}
    return key, text


def without(node: Node, last: str = "") -> Overlay:
    """One that plans each lease by itself."""
    view = Overlay(VxlanBackend(VxlanOptions()), node, last=last)
    view._usual = None
    return view


def told(view: Overlay) -> Any:
    """All that there is to be seen of an overlay."""
    peers = {key: (peer.value, peer.reason, peer.plan, peer.created) for key, peer in view.peers.items()}
    return peers, dict(view.desired), len(view.desired), view.skipped, view.drain_touched(), view.drain_changed()


def test_usual_leases_cost_no_call(node: Node) -> None:
    backend = Counting(VxlanOptions())
    view, other = Overlay(backend, node), without(node)
    examples = backend.asked
    for number in range(2, 40):
        key, text = lease(node, number)
        for each in (view, other):
            each.put(key, json.dumps(text), number)
    assert backend.asked == examples
    assert len(view.peers) == 38
    assert told(view) == told(other)


def test_an_irregular_subnet_does_not_make_the_others_unusual(node: Node) -> None:
    backend = Counting(VxlanOptions())
    view, other = Overlay(backend, node), without(node)
    key, text = lease(node, 240)
    longer = {
        "10.5.240.0-24": "10.5.240.0-25",
        "fd00:5:0:f0::-64": "fd00:5:0:f0::-72",
        "10.5.240.0-24&fd00:5:0:f0::-64": "10.5.240.0-28&fd00:5:0:f0::-80",
    }[key]
    for each in (view, other):
        each.put(longer, json.dumps(text))
    asked = backend.asked
    for number in range(2, 40):
        key, text = lease(node, number)
        for each in (view, other):
            each.put(key, json.dumps(text), number)
    assert backend.asked == asked
    assert told(view) == told(other)
    key, text = lease(node, 240)  # it overlaps that one
    for each in (view, other):
        each.put(key, json.dumps(text), 240)
    assert backend.asked > asked
    assert told(view) == told(other)


@pytest.mark.parametrize("number", [0, 1, 2, 9, 200, 201, 255])
def test_in_a_network_that_covers_the_nodes_no_lease_outside_its_bounds_is_usual(number: int) -> None:
    document = {"Network": "192.0.0.0/16", "SubnetMin": "192.0.10.0", "SubnetMax": "192.0.200.0"}
    here = Node(
        "node-1", NetworkConfig.from_json(json.dumps(document)), UNDERLAY, Subnets(IPv4Network("192.0.20.0/24"))
    )
    view, other = Overlay(VxlanBackend(VxlanOptions()), here), without(here)
    _, text = lease(node_in("ipv4"), 7)
    for each in (view, other):
        each.put(f"192.0.{number}.0-24", json.dumps({**text, "PublicIP": "198.51.100.7"}), 1)
    assert bool(view.skipped) == (number != 200)
    assert told(view) == told(other)


ODD: Mapping[str, list[Any]] = {
    "key": [
        *(
            "10.5.7.0-25",
            "10.5.7.1-24",
            "10.6.7.0-24",
            "10.5.07.0-24",
            "10.5.7.0-024",
            "10.5.7.0",
            "10.5.1.0-24",
            "x",
            "",
        ),
        *("fd00:5:0:7::-64", "fd00:5:0:07::-64", "FD00:5:0:7::-64", "fd00:5:0:7::-65", "fd00:5:0:7::1-64"),
        *("fd00:5:0:7:0:0:0:0-64", "fd00:6:0:7::-64", "fd00:5:0:7::%1-64", "::10.5.7.0-64"),
        *("10.5.1.0-24&fd00:5:0:7::-64", "10.5.7.0-24&fd00:5:0:1::-64", "fd00:5:0:7::-64&10.5.7.0-24"),
        *(
            "10.5.7.0-24&fd00:5:0:7::-64",
            "10.5.7.0-24&fd00:5:0:07::-64",
            "10.5.7.0-24&",
            "10.5.7.0-24&x&fd00:5:0:7::-64",
        ),
    ],
    "PublicIP": [
        *(
            None,
            "",
            7,
            "198.51.100.9",
            "192.0.2.0",
            "192.0.2.1",
            "192.0.2.255",
            "127.0.0.1",
            "10.5.7.1",
            "224.0.0.1",
            "192.0.2.07",
        ),
        *("192.0.2.9\0", "192.0.2.9 ", "2001:db8::9", "\ud800", "198.51.100.9"),
    ],
    "PublicIPv6": [
        *(
            None,
            "",
            7,
            "2001:db8::",
            "2001:db8::1",
            "::1",
            "::ffff:192.0.2.9",
            "2001:DB8::9",
            "2001:db8:0:0::9",
            "fe80::1",
        ),
        *("fd00:5:0:7::1", "ff02::1", "2001:db8::9%eth0", "::192.0.2.9"),
    ],
    "BackendType": [None, "", "VXLAN", "udp", 7, "vxlan "],
    "BackendData": [
        *(None, [], {}, {"VNI": 1}, {"VtepMAC": "02:00:00:00:04:07"}, {"VNI": 2, "VtepMAC": "02:00:00:00:04:07"}),
        *({"VNI": True, "VtepMAC": "02:00:00:00:04:07"}, {"VNI": 1.0, "VtepMAC": "02:00:00:00:04:07"}),
        *({"vni": 1, "vtepmac": "02:00:00:00:04:07"}, {"VNI": 1, "VtepMAC": "02:00:00:00:04:07", "more": 1}),
        *(
            {"VNI": 1, "VtepMAC": mac}
            for mac in ("01:00:00:00:00:07", "00:00:00:00:00:00", "02:00:00:00:04:7", 7, None)
        ),
        *({"VNI": 1, "VtepMAC": mac} for mac in ("02:00:00:00:04:09", "02:00:00:00:04:07\n", "02:00:00:00:04:ZZ")),
    ],
    "NodeID": [None, "", 7, "x" * 257, "node-7"],
    "TwinOf": [None, 7, "x" * 257, "node-7"],
    "Machine": [None, 7, {"Cards": 7}, float("nan"), {"Cards": [float("inf")]}],
    "publicip": ["192.0.2.9"],
    "Change": [
        *({"Id": "change-1", "Step": step} for step in ("switched", "done")),
        {
            "Id": "change-1",
            "Step": "switched",
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:09:09"},
        },
        {"Id": "change-0", "Step": "done"},
        7,
    ],
    "more": [[[]]],
}


def changed(text: dict[str, Any], name: str, said: Any) -> dict[str, Any]:
    """A lease's text that says something else under a name, or, of data, under both names."""
    return {**text, name: said, **({"BackendV6Data": said} if name == "BackendData" else {})}


@pytest.mark.parametrize("last", ["", "change-1"])
def test_each_oddity_comes_to_the_same(node: Node, last: str) -> None:
    view, other = Overlay(VxlanBackend(VxlanOptions()), node, last=last), without(node, last)
    usual, text = lease(node, 7)
    for name, values in ODD.items():
        for said in values:
            key = said if name == "key" else usual
            value = json.dumps(text if name == "key" else changed(text, name, said))
            for end in ("", " ", "}"):
                for each in (view, other):
                    each.put(key, value + end, 1)
                assert told(view) == told(other)
            for each in (view, other):
                each.remove(key)


ODD_LEASES = st.lists(
    st.tuples(
        st.integers(1, 9),
        st.dictionaries(st.sampled_from(sorted(ODD)), st.integers(0, 30), max_size=2),
        st.sampled_from(["", " ", "}", "\n"]),
        st.booleans(),
    ),
    max_size=12,
)


@pytest.mark.parametrize("kind", DOCUMENTS)
@given(steps=ODD_LEASES, last=st.sampled_from(["", "change-1"]))
def test_whatever_leases_say_it_comes_to_the_same(
    kind: str, steps: list[tuple[int, dict[str, int], str, bool]], last: str
) -> None:
    node = node_in(kind)
    view, other = Overlay(VxlanBackend(VxlanOptions()), node, last=last), without(node, last)
    assert view._usual is not None
    assert told(view) == told(other)
    for created, (number, odd, end, leaves) in enumerate(steps):
        key, text = lease(node, number)
        for name, which in odd.items():
            said = ODD[name][which % len(ODD[name])]
            if name == "key":
                key = said
            else:
                text = changed(text, name, said)
        for each in (view, other):
            if leaves:
                each.remove(key)
            else:
                each.put(key, json.dumps(text) + end, created)
        assert told(view) == told(other)


def test_our_own_mac_address_is_not_usual(node: Node) -> None:
    backend = VxlanBackend(VxlanOptions())
    for version in node.network.versions:
        key, text = lease(node, 7)
        text["BackendData" if version == 4 else "BackendV6Data"]["VtepMAC"] = backend.mac(node, version).upper()
        view = Overlay(backend, node)
        view.put(key, json.dumps(text))
        assert "this node's own" in view.peers[key].reason


class Elsewhere(VxlanBackend):
    """Says that its plans differ in addresses alone, and they don't."""

    def usual(self, node: Node) -> Mapping[int, UsualData]:
        return super().usual(node)

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        planned = list(super().plan_peer(node, peer))
        public = peer.attributes.public(node.network.versions[0])
        odd = public is not None and int(public) & 1
        return DesiredState(item for item in planned if not (odd and isinstance(item, Route)))


class Taken(VxlanBackend):
    """Plans in its own way some peer, and says nothing of what is usual."""

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return DesiredState() if peer.key.endswith("8-24") else super().plan_peer(node, peer)


class Failing(VxlanBackend):
    def usual(self, node: Node) -> Mapping[int, UsualData]:
        raise RuntimeError("no idea")


class Nonsense(VxlanBackend):
    def usual(self, node: Node) -> Any:
        return {4: 7, 6: None}


@pytest.mark.parametrize("kind", [Elsewhere, Taken, Failing, Nonsense])
def test_a_backend_that_is_wrong_about_it_plans_each_by_itself(node: Node, kind: type[VxlanBackend]) -> None:
    view, other = Overlay(kind(VxlanOptions()), node), Overlay(kind(VxlanOptions()), node)
    other._usual = None
    for number in range(6, 10):
        key, text = lease(node, number)
        for each in (view, other):
            each.put(key, json.dumps(text))
    assert view._usual is None
    assert told(view) == told(other)
    assert not view.skipped


def test_peers_that_are_reached_without_a_tunnel_are_planned_each_by_itself(node: Node) -> None:
    backend = VxlanBackend(VxlanOptions(direct_routing=True))
    view = Overlay(backend, node)
    key, text = lease(node, 7)
    view.put(key, json.dumps(text))
    assert all(isinstance(item, Route) and item.link == "eth0" for item in view.peers[key].objects)
