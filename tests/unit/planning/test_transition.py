"""Two backends planned as one: what is there to receive by, and by which of two ways a peer is sent to."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.unit.membership.modelled import made

from pyflannel.backend import (
    Backend,
    Capabilities,
    DesiredState,
    GenericInfo,
    Lease,
    LeaseAttributes,
    Link,
    Node,
    Route,
    Subnets,
    Underlay,
)
from pyflannel.errors import ConfigError, PeerRejected, PluginError
from pyflannel.network.change import LEASE_KEY, NetworkChange, NodeProgress, Phase, Step
from pyflannel.network.document import NetworkConfig
from pyflannel.network.underlay import UnderlayRoute
from pyflannel.planning.clashes import clash
from pyflannel.planning.overlay import Overlay
from pyflannel.planning.rehearsal import obstacle
from pyflannel.planning.transition import Side, Transition, encrypts, unroutable

ID = "00000000000000a1"
WIREGUARD = {"Type": "wireguard", "Implementation": "userspace"}
RANGES = {
    4: '"Network": "10.5.0.0/16"',
    6: '"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"',
}
UNDERLAY = Underlay(
    "eth0",
    1500,
    IPv4Address("192.0.2.1"),
    IPv6Address("2001:db8::1"),
    public_ipv4=IPv4Address("192.0.2.1"),
    public_ipv6=IPv6Address("2001:db8::1"),
    routes=(UnderlayRoute(ip_network("192.0.2.0/24"), None), UnderlayRoute(ip_network("2001:db8::/64"), None)),
)
MINE = {4: Subnets(IPv4Network("10.5.1.0/24")), 6: Subnets(None, IPv6Network("fd00:5:0:1::/64"))}
THEIRS = {4: Subnets(IPv4Network("10.5.2.0/24")), 6: Subnets(None, IPv6Network("fd00:5:0:2::/64"))}


def side(version: int, kind: str, **options: Any) -> Side:
    import json

    document = json.dumps({"Type": kind, **options})
    network = NetworkConfig.from_json(f'{{{RANGES[version]}, "Backend": {document}}}')
    return Side(made(network), network)


def userspace(version: int, **options: Any) -> Side:
    return side(version, "wireguard", Implementation="userspace", **options)


def place(version: int, former: Side, state: Path) -> Node:
    return Node("me", former.network, UNDERLAY, MINE[version], state)


class World:
    """This node between two settings, and a peer as it is under both."""

    def __init__(self, version: int, former: Side, following: Side, state: Path) -> None:
        self.version, self.former, self.following = version, former, following
        self.node = place(version, former, state / "me")
        self.there = replace(self.node, node_id="you", subnets=THEIRS[version], state_dir=state / "you")
        for where in (self.node, self.there):
            where.state_dir.mkdir(exist_ok=True)
            following.backend.publish(following.node(where))
            former.backend.publish(former.node(where))

    def transition(self, phase: Phase, own: Step | None = None, graced: bool = False) -> Transition:
        return Transition(self.former, self.following, NetworkChange(ID, phase, {}), own, graced)

    def lease(self, step: Step | None = None, told: bool = True, identity: str = ID) -> Lease:
        old = self.former.backend.publish(self.former.node(self.there))
        new = self.following.backend.publish(self.following.node(self.there))
        kind = self.former.backend
        progress = NodeProgress(identity, step, self.following.name if told else None, new.data, new.v6_data)
        return Lease(
            THEIRS[self.version],
            LeaseAttributes(
                IPv4Address("192.0.2.2"),
                IPv6Address("2001:db8::2"),
                None if kind.capabilities.untyped_leases else kind.name,
                old.data,
                old.v6_data,
                "you",
                extra={LEASE_KEY: progress.to_json()},
            ),
        )

    def way(self, transition: Transition, lease: Lease) -> str | None:
        """The link that packets to the peer take, by the peer's own routes or the node's."""
        subnet = THEIRS[self.version].of(self.version)
        objects = [*transition.plan_node(self.node), *transition.plan_peer(self.node, lease)]
        routes = [item for item in objects if isinstance(item, Route) and item.destination == subnet]
        assert len(routes) <= 1
        return routes[0].link if routes else None


PSK = "0123456789abcdef" * 6
PAIRS = [
    (4, ("vxlan", {}), ("host-gw", {}), "flannel.1", "eth0"),
    (6, ("vxlan", {}), ("host-gw", {}), "flannel-v6.1", "eth0"),
    (4, ("udp", {}), ("vxlan", {}), "flannel0", "flannel.1"),
    (4, ("vxlan", {}), ("wireguard", {"Implementation": "userspace"}), "flannel.1", "flannel-wg"),
    (6, ("vxlan", {}), ("wireguard", {"Implementation": "userspace"}), "flannel-v6.1", "flannel-wg-v6"),
    (4, ("udp", {}), ("wireguard", {"Implementation": "userspace"}), "flannel0", "flannel-wg"),
    (4, ("wireguard", {"Implementation": "kernel"}), ("udp", {}), "flannel-wg", "flannel0"),
    (4, ("vxlan", {}), ("ipsec", {"PSK": PSK}), "flannel.1", "flannel-ipsec"),
    (6, ("gre", {}), ("ipsec", {"PSK": PSK}), "flannel-v6.gre", "flannel-ipsec"),
    (4, ("ipsec", {"PSK": PSK}), ("wireguard", {"Implementation": "kernel"}), "flannel-ipsec", "flannel-wg"),
    (4, ("vxlan", {}), ("vxlan", {"VNI": 2}), "flannel.1", "flannel.2"),
    (4, ("vxlan", {}), ("vxlan", {"DirectRouting": True}), "flannel.1", "eth0"),
]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"IPv{pair[0]} {pair[1][0]} {pair[2][0]} {sorted(pair[2][1])}")
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[World, str, str]:
    version, (former, options), (following, others), old, new = request.param
    return World(version, side(version, former, **options), side(version, following, **others), tmp_path), old, new


@pytest.mark.parametrize(
    ("phase", "own", "peer", "by_next"),
    [
        (Phase.PREPARE, Step.PREPARED, Step.PREPARED, False),
        (Phase.SWITCH, Step.PREPARED, None, False),
        (Phase.SWITCH, Step.PREPARED, Step.PREPARED, True),
        (Phase.SWITCH, Step.SWITCHED, None, True),
        (Phase.SWITCH, None, Step.SWITCHED, True),
        (Phase.RETIRE, None, Step.SWITCHED, True),
        (Phase.BACK, Step.SWITCHED, Step.SWITCHED, False),
    ],
)
def test_a_peer_is_sent_to_by_the_side_that_the_rules_name(
    pair: tuple[World, str, str], phase: Phase, own: Step | None, peer: Step | None, by_next: bool
) -> None:
    world, old, new = pair
    assert world.way(world.transition(phase, own), world.lease(peer)) == (new if by_next else old)


def test_what_finds_the_peer_by_the_destination_can_be_tried_before_the_switch(pair: tuple[World, str, str]) -> None:
    """A device with the whole network behind it, but not one that both settings have, nor once it is in use."""
    world, _, new = pair
    ways = world.transition(Phase.PREPARE).standing(world.node, world.lease()).ways
    address = THEIRS[world.version].each[0].network_address
    assert ways == (((address, new),) if new.startswith(("flannel-wg", "flannel-ipsec", "flannel0")) else ())
    assert not world.transition(Phase.SWITCH, Step.PREPARED).standing(world.node, world.lease(Step.PREPARED)).ways
    assert not world.transition(Phase.PREPARE).standing(world.node, world.lease(told=False)).ways


@pytest.mark.parametrize("version", [4, 6])
def test_it_can_be_tried_too_where_both_have_the_whole_network_behind_their_device(
    version: int, tmp_path: Path
) -> None:
    """In IPv6 this takes a route: behind all others, even the one that lets nothing out, and only until the switch."""
    ports = {"ListenPort": 51900, "ListenPortV6": 51901}
    world = World(version, userspace(version), userspace(version, **ports), tmp_path)
    new = {4: "flannel-wg51900", 6: "flannel-w651901"}[version]
    (way,) = world.transition(Phase.PREPARE).standing(world.node, world.lease()).ways
    assert way == (THEIRS[version].each[0].network_address, new)
    routes = [item for item in world.transition(Phase.PREPARE).plan_node(world.node) if isinstance(item, Route)]
    by_new = [item for item in routes if item.link == new]
    assert len(by_new) == (1 if version == 6 else 0)
    assert all(item == max(routes, key=lambda route: route.effective_metric) for item in by_new)
    for phase in (Phase.SWITCH, Phase.RETIRE, Phase.BACK):
        planned = world.transition(phase, Step.SWITCHED).plan_node(world.node)
        assert not {*by_new} & {*planned}


def test_what_is_encrypted_gets_no_way_out_that_does_not(tmp_path: Path) -> None:
    secret = userspace(6)
    for former, route in ((secret, False), (side(6, "gre"), True)):
        world = World(6, former, Side(Plain(), secret.network), tmp_path)
        plan = world.transition(Phase.PREPARE).plan_node(world.node)
        assert any(isinstance(item, Route) and item.link == Plain.name for item in plan) is route


class Plain(Backend[None]):
    """A device for the whole network that encrypts nothing."""

    name = "plain"
    capabilities = Capabilities(ipv6=True)

    def __init__(self) -> None:
        super().__init__(None)

    def mtu(self, underlay: Underlay) -> int:
        return 1400

    def plan_node(self, node: Node) -> DesiredState:
        assert node.network.ipv6 is not None
        return DesiredState([Link(self.name, GenericInfo("xfrm"), 1400), Route(node.network.ipv6.network, self.name)])


def test_nothing_speaks_against_what_can_be_done(pair: tuple[World, str, str], tmp_path: Path) -> None:
    world, _, _ = pair
    assert obstacle(world.former, world.following, tmp_path) == ""
    assert obstacle(world.following, world.former, tmp_path) == ""


def test_what_both_need_to_receive_is_there_until_the_former_one_goes(pair: tuple[World, str, str]) -> None:
    world, _, _ = pair
    plans = [set(each.plan_node(each.node(world.node))) for each in (world.former, world.following)]
    both = world.transition(Phase.SWITCH)
    names = {item.name for plan in plans for item in plan if isinstance(item, Link)}
    assert (
        {item.name for item in both.plan_node(world.node) if isinstance(item, Link)} == names == both.links(world.node)
    )
    after = world.transition(Phase.RETIRE, Step.SWITCHED, graced=True)
    assert set(after.plan_node(world.node)) == plans[1]
    subnet = THEIRS[world.version].of(world.version)
    mine = world.following.plan_peer(world.node, world.lease(Step.SWITCHED).with_attributes(_new(world)))
    assert set(mine) <= set(after.plan_peer(world.node, world.lease(Step.SWITCHED)))
    assert subnet is not None


def _new(world: World) -> LeaseAttributes:
    new = world.following.backend.publish(world.following.node(world.there))
    return replace(
        world.lease().attributes, backend_type=world.following.name, backend_data=new.data, backend_v6_data=new.v6_data
    )


def test_a_peer_that_has_not_told_is_reached_as_before_until_that_goes(pair: tuple[World, str, str]) -> None:
    world, old, _ = pair
    silent = world.lease(told=False)
    for phase, own in ((Phase.PREPARE, None), (Phase.SWITCH, Step.SWITCHED), (Phase.BACK, None)):
        assert world.way(world.transition(phase, own), silent) == old
    retiring = world.transition(Phase.RETIRE, Step.SWITCHED, graced=True)
    with pytest.raises(PeerRejected, match="has not said how it is reached"):
        retiring.plan_peer(world.node, silent)
    standing = world.transition(Phase.PREPARE).standing(world.node, silent)
    assert (standing.told, standing.by_next, standing.step) == (False, False, None)


def test_a_peer_that_is_in_another_change_has_not_told(pair: tuple[World, str, str]) -> None:
    world, old, _ = pair
    other = world.lease(Step.SWITCHED, identity="00000000000000b2")
    transition = world.transition(Phase.SWITCH, Step.PREPARED)
    assert world.way(transition, other) == old
    assert not transition.standing(world.node, other).told


def test_the_overlay_judges_no_type_where_there_are_two(pair: tuple[World, str, str]) -> None:
    world, _, _ = pair
    overlay = Overlay(world.transition(Phase.PREPARE), world.node)
    lease = world.lease()
    overlay.put(lease.key, lease.attributes.to_json())
    assert overlay.peers[lease.key].reason == ""


def test_each_data_plane_is_told_of_peers_as_its_own_side_knows_them(pair: tuple[World, str, str]) -> None:
    world, _, _ = pair
    lease = world.lease(Step.PREPARED)
    parts = world.transition(Phase.SWITCH).parts(world.node)
    assert [part.backend for part in parts] == [world.former.backend, world.following.backend]
    old, new = (part.lease(lease) for part in parts)
    assert old is not None
    assert new is not None
    assert old.attributes.backend_data == lease.attributes.backend_data
    assert new.attributes.backend_data == _new(world).backend_data
    (left,) = world.transition(Phase.RETIRE, Step.SWITCHED, graced=True).parts(world.node)
    assert left.backend is world.following.backend
    needed = [[part.essential for part in world.transition(phase).parts(world.node)] for phase in Phase]
    assert needed == [[True, False], [True, True], [True, True], [True, False]]


def test_the_mtu_is_what_fits_either_way(tmp_path: Path) -> None:
    world = World(4, side(4, "host-gw"), side(4, "wireguard", Implementation="userspace"), tmp_path)
    assert world.transition(Phase.PREPARE).mtu(UNDERLAY) == 1420
    assert world.transition(Phase.RETIRE, graced=True).mtu(UNDERLAY) == 1420


def test_a_device_that_both_have_gets_the_smaller_mtu(tmp_path: Path) -> None:
    world = World(4, side(4, "vxlan", MTU=1400), side(4, "vxlan", DirectRouting=True), tmp_path)
    (link,) = [item for item in world.transition(Phase.PREPARE).plan_node(world.node) if isinstance(item, Link)]
    assert link.mtu == 1350
    assert world.transition(Phase.PREPARE).trouble(world.node) == ""


@pytest.mark.parametrize(
    ("former", "following", "says"),
    [
        (("vxlan", {}), ("vxlan", {"Port": 4789}), "both settings make a device flannel.1"),
        (("vxlan", {}), ("vxlan", {"GBP": True}), "both settings make a device flannel.1"),
        (("udp", {}), ("udp", {"AnySourcePort": True}), "one process"),
        (("wireguard", {"Implementation": "userspace"}), ("wireguard", {"Mode": "ipv4"}), "one process"),
        (("vxlan", {}), ("udp", {"Port": 8472}), "UDP port 8472"),
        (("udp", {"Port": 51820}), ("wireguard", {"Implementation": "userspace"}), "UDP port 51820"),
    ],
)
def test_two_that_need_one_thing_clash_and_the_former_goes_on(
    former: tuple[str, dict[str, Any]], following: tuple[str, dict[str, Any]], says: str, tmp_path: Path
) -> None:
    options = {**following[1], **({"Implementation": "userspace"} if following[0] == "wireguard" else {})}
    world = World(4, side(4, former[0], **former[1]), side(4, following[0], **options), tmp_path)
    transition = world.transition(Phase.PREPARE)
    assert says in obstacle(world.former, world.following, tmp_path)
    assert says in transition.trouble(world.node)
    assert transition.plan_node(world.node) == DesiredState(world.former.plan_node(world.node))
    assert says in transition.standing(world.node, world.lease()).trouble
    assert len(transition.parts(world.node)) == 1
    with pytest.raises(PluginError, match=says.split()[0]):
        world.transition(Phase.RETIRE).plan_node(world.node)


def test_two_vxlans_may_share_a_port(tmp_path: Path) -> None:
    world = World(4, side(4, "vxlan"), side(4, "vxlan", VNI=2), tmp_path)
    plans = [each.plan_node(world.node) for each in (world.former, world.following)]
    assert clash(world.former.backend, world.following.backend, *plans) == ""


@pytest.mark.parametrize("kind", ["extension", "alloc"])
def test_a_backend_that_leaves_routes_to_others_has_nothing_to_switch(kind: str, tmp_path: Path) -> None:
    world = World(4, side(4, "vxlan"), side(4, kind), tmp_path)
    assert world.transition(Phase.PREPARE).standing(world.node, world.lease()).trouble == unroutable(world.following)
    assert obstacle(world.former, world.following, tmp_path) == unroutable(world.following)
    assert obstacle(world.following, world.former, tmp_path) == unroutable(world.following)


class Failing(Backend[None]):
    """A backend that is no good on this node."""

    name = "failing"

    def __init__(self) -> None:
        super().__init__(None)

    def mtu(self, underlay: Underlay) -> int:
        return 1400

    def plan_node(self, node: Node) -> DesiredState:
        raise ConfigError("no good here")


def test_a_new_backend_that_fails_takes_nothing_away(tmp_path: Path) -> None:
    former = side(4, "vxlan")
    world = World(4, former, Side(Failing(), former.network), tmp_path)
    transition = world.transition(Phase.SWITCH, Step.PREPARED)
    assert transition.trouble(world.node) == "no good here"
    assert world.way(transition, world.lease(Step.PREPARED)) == "flannel.1"


class Sizeless(Failing):
    """One that can't even say what fits into its packets."""

    def mtu(self, underlay: Underlay) -> int:
        raise ConfigError("no good here")


def test_containers_get_an_mtu_whatever_the_new_backend_says(tmp_path: Path) -> None:
    """A node that starts in the middle needs one for its containers; it is the new one's where that is sent by."""
    former = side(4, "vxlan")
    world = World(4, former, Side(Sizeless(), former.network), tmp_path)
    for phase in (Phase.PREPARE, Phase.BACK):
        assert world.transition(phase, None).mtu(UNDERLAY) == 1450
    for phase in (Phase.SWITCH, Phase.RETIRE):
        with pytest.raises(ConfigError, match="no good here"):
            world.transition(phase, None).mtu(UNDERLAY)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("former", "following", "phase", "expected"),
    [
        ("vxlan", "wireguard", Phase.PREPARE, False),
        ("vxlan", "wireguard", Phase.SWITCH, False),
        ("vxlan", "wireguard", Phase.BACK, False),
        ("vxlan", "wireguard", Phase.RETIRE, True),
        ("wireguard", "vxlan", Phase.PREPARE, False),
        ("wireguard", "vxlan", Phase.SWITCH, False),
        ("wireguard", "vxlan", Phase.BACK, False),
        ("wireguard", "vxlan", Phase.RETIRE, False),
    ],
)
def test_encrypted_is_what_can_only_be_sent_encrypted(
    former: str, following: str, phase: Phase, expected: bool, version: int, tmp_path: Path
) -> None:
    extra = {"wireguard": {"Implementation": "userspace"}}
    sides = [side(version, kind, **extra.get(kind, {})) for kind in (former, following)]
    transition = Transition(sides[0], sides[1], NetworkChange(ID, phase, {}))
    assert encrypts(transition) is expected
    node = place(version, sides[0], tmp_path)
    for each in sides:
        each.backend.publish(each.node(node))  # which makes a key where there has to be one
    overlay = Overlay(transition, node)
    plain, hidden = ("flannel.1", "flannel-wg") if version == 4 else ("flannel-v6.1", "flannel-wg-v6")
    assert transition.links(node) == {plain, hidden}, "both are there"
    assert overlay.exits == ({hidden} if expected else set()), "and not by the former one's device"


@pytest.mark.parametrize(
    ("phase", "exits"),
    [(Phase.PREPARE, {"flannel-wg", "flannel-wg51900"}), (Phase.RETIRE, {"flannel-wg51900"})],
)
def test_between_two_that_encrypt_nothing_leaves_by_another_device(
    phase: Phase, exits: set[str], tmp_path: Path
) -> None:
    sides = [side(4, "wireguard", Implementation="userspace", **more) for more in ({}, {"ListenPort": 51900})]
    transition = Transition(sides[0], sides[1], NetworkChange(ID, phase, {}))
    node = place(4, sides[0], tmp_path)
    for each in sides:
        each.backend.publish(each.node(node))
    assert Overlay(transition, node).exits == exits
