"""A bad backend harms itself alone: its nonsense is kept from the kernel, its slowness from the lease."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_interface, ip_network
from itertools import repeat
from typing import Any

import pytest

from pyflannel.backend import (
    LARGEST_PUBLISHED,
    XFRM_INTERFACES,
    Address,
    Backend,
    DesiredState,
    FdbEntry,
    Lease,
    LeaseAttributes,
    Link,
    MplsRoute,
    Neighbour,
    NetworkConfig,
    Node,
    Published,
    Qdisc,
    Route,
    Rule,
    Subnets,
    Sysctl,
    TunInfo,
    Underlay,
    WireguardPeer,
    XfrmPolicy,
)
from pyflannel.errors import PluginError
from pyflannel.network.change import LEASE_KEY, NodeProgress, Step
from pyflannel.network.lease import MARGIN_KEY, MAX_NODE_ID
from pyflannel.planning.guard import Publisher, checked_mtu, examined
from pyflannel.planning.overlay import Overlay

PATIENCE = 60.0

NODE = Node(
    "node-1",
    NetworkConfig.from_json('{"Network": "10.5.0.0/16", "Backend": {"Type": "bad"}}'),
    Underlay("eth0", 1500, IPv4Address("192.0.2.1"), public_ipv4=IPv4Address("192.0.2.1")),
    Subnets(IPv4Network("10.5.1.0/24")),
)
GATEWAY = IPv4Address("192.0.2.2")
BAD_PEER, GOOD_PEER = "10.5.2.0-24", "10.5.3.0-24"
VALUE = '{"PublicIP":"192.0.2.2","BackendType":"bad"}'


class Bad(Backend[Any]):
    """Whatever a test makes of it; what it plans for the good peer is right."""

    name = "bad"

    def __init__(self, plan: Any = None, publish: Callable[[], Any] = Published) -> None:
        super().__init__(None)
        self.plan = plan
        self.on_publish = publish

    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu

    def publish(self, node: Node) -> Published:
        answer: Published = self.on_publish()
        return answer

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        if peer.key == GOOD_PEER:
            return DesiredState([Route(ip_network("10.5.3.0/24"), "eth0", GATEWAY)])
        plan: DesiredState = self.plan() if callable(self.plan) else self.plan
        return plan


def fails() -> None:
    raise ZeroDivisionError("oops")


def leaves() -> None:
    raise SystemExit(3)


class Unspeakable:
    def __repr__(self) -> str:
        raise SystemExit(3)


NONSENSE: dict[str, tuple[Any, str]] = {
    "nothing": (None, "TypeError"),
    "a number": (7, "TypeError"),
    "texts": (["route"], "is not a kernel object"),
    "a class": ([Route], "is not a kernel object"),
    "no end": (
        lambda: repeat(Route(ip_network("10.5.2.0/24"), "eth0", GATEWAY)),
        "come to an end?",
    ),
    "a state without an end": (lambda: DesiredState(repeat(Sysctl("net/ipv4/ip_forward", "1"))), "come to an end?"),
    "raises": (fails, "ZeroDivisionError: oops"),
    "exits": (leaves, "SystemExit: 3"),
    "a MAC of letters": (
        lambda: [Neighbour("eth0", GATEWAY, "02:zz:00:00:00:01")],
        "ValueError: Neighbour: mac is '02:zz:00:00:00:01'",
    ),
    "no MAC": (lambda: [FdbEntry("eth0", None, GATEWAY)], "FdbEntry: mac is None"),  # type: ignore[arg-type]
    "an address as text": (
        lambda: [Route(ip_network("10.5.2.0/24"), "eth0", "192.0.2.2")],  # type: ignore[arg-type]
        "Route: gateway is '192.0.2.2'",
    ),
    "a huge metric": (
        lambda: [Route(ip_network("10.5.2.0/24"), "eth0", GATEWAY, metric=2**40)],
        "Route: metric is 1099511627776",
    ),
    "a file as a sysctl": (lambda: [Sysctl("net/../../../tmp/x", "1")], "Sysctl: path is 'net/../../../tmp/x'"),
    "what can't even be told": ([Unspeakable()], "a Unspeakable whose text can't be made, which is not a kernel"),
    "the underlay's link": ([Link("eth0", TunInfo(), 1500)], "the underlay's own link eth0"),
    "an address on the underlay": ([Address("eth0", ip_interface("10.5.2.1/24"))], "on a link that is not its own"),
    "an fdb entry of somebody's bridge": (
        [FdbEntry("br0", "02:00:00:00:00:01", GATEWAY)],
        "on a link that is not its own",
    ),
    "a default route": ([Route(ip_network("0.0.0.0/0"), "eth0", GATEWAY)], "leads beyond 10.5.2.0/24"),
    "another peer's subnet": ([Route(ip_network("10.5.3.0/24"), "eth0", GATEWAY)], "leads beyond 10.5.2.0/24"),
    "more than its subnet": ([Route(ip_network("10.5.2.0/23"), "eth0", GATEWAY)], "leads beyond 10.5.2.0/24"),
    "the other family": ([Route(ip_network("::/0"), "eth0")], "leads beyond 10.5.2.0/24"),
    "a rule about everything": ([Rule(4, 100, action="blackhole")], "about more than the overlay"),
    "a rule about the main table": ([Rule(4, 100, table=254)], "about more than the overlay"),
    "a rule about all but its subnet": (
        [Rule(4, 100, ip_network("10.5.2.0/24"), inverted=True, action="prohibit")],
        "about more than the overlay",
    ),
    "a rule about another peer": (
        [Rule(4, 100, ip_network("10.5.3.0/24"), action="prohibit")],
        "about more than the overlay",
    ),
    "a rule about somebody's link": ([Rule(4, 100, iif="eth0", action="prohibit")], "about more than the overlay"),
    "a qdisc of the underlay's": ([Qdisc("eth0", "noqueue")], "on a link that is not its own"),
    "through somebody's link": ([Route(ip_network("10.5.2.0/24"), "tun9")], "on a link that is not its own"),
}


def test_rules_about_the_overlay_are_taken() -> None:
    subnet = ip_network("10.5.2.0/24")
    rules = [
        Rule(4, 100, subnet, table=254),
        Rule(4, 100, None, subnet, action="unreachable"),
        Rule(4, 100, iif="mine0", action="prohibit"),
        Rule(4, 100, table=4711),
        Rule(4, 100, mark=7, inverted=True, table=4711),
    ]
    link = Link("mine0", TunInfo(), 1400)
    assert examined("good", (link, *rules), NODE, [subnet]) == (link, *rules)


@pytest.mark.parametrize(("plan", "reason"), NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_for_one_peer_costs_that_peer(plan: Any, reason: str) -> None:
    overlay = Overlay(Bad(plan), NODE)
    for key in (BAD_PEER, GOOD_PEER):
        overlay.put(key, VALUE)
    assert reason in overlay.peers[BAD_PEER].reason
    assert "backend 'bad'" in overlay.peers[BAD_PEER].reason
    assert overlay.peers[GOOD_PEER].reason == ""
    assert list(overlay.desired.values()) == [Route(ip_network("10.5.3.0/24"), "eth0", GATEWAY, metric=1284)]


@pytest.mark.parametrize(
    ("allowed", "link", "reason"),
    [
        ("10.5.3.0/24", "p2", "may speak for more than 10.5.2.0/24"),
        ("0.0.0.0/0", "p2", "may speak for more than 10.5.2.0/24"),
        ("10.5.2.0/24", "wg0", "on a link that is not its own"),
        ("10.5.2.0/25", "p2", ""),
    ],
)
def test_a_wireguard_peer_may_speak_for_its_subnet_only(allowed: str, link: str, reason: str) -> None:
    plan = [Link("p2", TunInfo(), 1400), WireguardPeer(link, "A" * 43 + "=", (ip_network(allowed),))]
    overlay = Overlay(Bad(plan), NODE)
    overlay.put(BAD_PEER, VALUE)
    assert reason in overlay.peers[BAD_PEER].reason
    assert bool(overlay.peers[BAD_PEER].reason) == bool(reason)


@pytest.mark.parametrize(
    ("far", "direction", "reason"),
    [
        ("10.5.3.0/24", "out", "may speak for more than 10.5.2.0/24"),
        ("10.5.3.0/24", "in", "may speak for more than 10.5.2.0/24"),
        ("0.0.0.0/0", "fwd", "may speak for more than 10.5.2.0/24"),
        ("10.5.2.0/25", "out", ""),
        ("10.5.2.0/24", "fwd", ""),
    ],
)
def test_an_ipsec_policy_reaches_to_the_peers_subnet_only(far: str, direction: str, reason: str) -> None:
    near = ip_network("10.5.1.0/24")
    ends = (near, ip_network(far)) if direction == "out" else (ip_network(far), near)
    plan = [XfrmPolicy(*ends, direction, XFRM_INTERFACES[0], GATEWAY, GATEWAY)]
    overlay = Overlay(Bad(plan), NODE)
    overlay.put(BAD_PEER, VALUE)
    assert reason in overlay.peers[BAD_PEER].reason
    assert bool(overlay.peers[BAD_PEER].reason) == bool(reason)


@pytest.mark.parametrize(
    ("link", "reason"), [("lo", ""), ("eth0", ""), ("eth1", "on a link that is not its own"), ("bad0", "not its own")]
)
def test_labels_lead_to_the_node_itself_or_out_by_the_underlay(link: str, reason: str) -> None:
    overlay = Overlay(Bad([MplsRoute(4711, link, GATEWAY)]), NODE)
    overlay.put(BAD_PEER, VALUE)
    assert reason in overlay.peers[BAD_PEER].reason
    assert bool(overlay.peers[BAD_PEER].reason) == bool(reason)


def test_a_peers_own_link_may_carry_its_objects() -> None:
    plan = [
        Link("p2", TunInfo(), 1400),
        Address("p2", ip_interface("10.5.1.0/32")),
        Route(ip_network("10.5.2.0/25"), "p2"),
    ]
    overlay = Overlay(Bad(plan), NODE)
    overlay.put(BAD_PEER, VALUE)
    assert overlay.peers[BAD_PEER].reason == ""


@pytest.mark.parametrize(("plan", "reason"), NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_for_the_node_is_an_error_and_nothing_is_planned(plan: Any, reason: str) -> None:
    class Worse(Bad):
        def plan_node(self, node: Node) -> DesiredState:
            return self.plan_peer(node, Lease(Subnets(IPv4Network("10.5.2.0/24")), None))  # type: ignore[arg-type]

    inside = "leads beyond 10.5.2.0/24" in reason and plan[0].destination.version == 4 and plan[0].destination.prefixlen
    inside = inside or plan == NONSENSE["a rule about another peer"][0]
    if inside:
        assert Overlay(Worse(plan), NODE).own_objects, "the whole network is the node's to route"
        return
    with pytest.raises(PluginError, match="backend 'bad'") as caught:
        Overlay(Worse(plan), NODE)
    assert reason.replace("leads beyond 10.5.2.0/24", "leads beyond 10.5.0.0/16") in str(caught.value)


@pytest.mark.parametrize("mtu", [None, "1450", 1450.0, True, -1, 0, 67, 65536])
def test_an_mtu_that_is_none_is_named(mtu: Any) -> None:
    with pytest.raises(PluginError, match="backend 'bad' says that the MTU is"):
        checked_mtu("bad", mtu)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds whoever waits for it, until the test ends at the latest."""
    event = threading.Event()
    yield event
    event.set()


def test_a_publish_that_hangs_is_left_behind_and_costs_one_thread(gate: threading.Event) -> None:
    calls = []

    def hang() -> Published:
        calls.append(1)
        gate.wait(PATIENCE)
        return Published("done")

    publisher = Publisher(timeout=0.01)
    for _ in range(3):
        with pytest.raises(PluginError, match="backend 'bad' has not come back from publish for"):
            publisher(Bad(publish=hang), NODE)
    assert len(calls) == 1
    gate.set()
    publisher = Publisher(timeout=PATIENCE)
    assert publisher(Bad(publish=hang), NODE) == Published("done")


def test_a_lease_has_room_for_what_two_backends_may_publish() -> None:
    """Whoever reads a larger one leaves it alone; and of what stands in it beside, takes so much."""
    most = Published("x" * (LARGEST_PUBLISHED - len(json.dumps(["", None]))))
    assert Publisher()(Bad(publish=lambda: most), NODE) == most
    progress = NodeProgress("c" * 36, Step.PREPARED, "t" * 64, most.data, most.v6_data)
    attributes = LeaseAttributes(
        public_ip=IPv4Address("192.0.2.1"),
        public_ipv6=IPv6Address("2001:db8::1"),
        backend_type="t" * 64,
        backend_data=most.data,
        node_id="n" * MAX_NODE_ID,
        twin_of="n" * MAX_NODE_ID,
        extra={MARGIN_KEY: 1234.5, LEASE_KEY: progress.to_json()},
    )
    assert LeaseAttributes.from_json(attributes.to_json()) == attributes


@pytest.mark.parametrize(
    ("publish", "reason"),
    [
        (fails, "failed in publish: ZeroDivisionError: oops"),
        (leaves, "failed in publish: SystemExit: 3"),
        (lambda: None, "published None, which is no Published"),
        (lambda: Published({1, 2}), "published what is not JSON"),
        (lambda: Published(None, float("nan")), "published what is not JSON"),
        (lambda: Published("x" * 3000, "é" * 600), "published 6608 characters of JSON: a lease has room for 6144"),
    ],
)
def test_a_publish_that_fails_is_named(publish: Callable[[], Any], reason: str) -> None:
    with pytest.raises(PluginError, match="backend 'bad'") as caught:
        Publisher()(Bad(publish=publish), NODE)
    assert reason in str(caught.value)
