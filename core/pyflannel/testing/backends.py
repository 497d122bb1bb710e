"""The conformance kit for backends: the contract of :mod:`pyflannel.backend`, checked as properties and in a lab.

Subclass it in a test module of your own distribution and name your backend::

    class TestMyBackend(BackendConformance):
        backend = "my-backend"
        variants = ({}, {"Port": 4790})

:class:`BackendPlanning` asks the planner: hypothesis draws networks, options, nodes and hostile peers. It needs no
rights and no installation. :class:`BackendBehaviour` runs three nodes with real daemons in a lab (root, or user
namespaces), for which the backend must be installed: traffic, repairs, restarts, departures, a change of options and
back, and a cleanup that leaves nothing. :class:`BackendConformance` is both.

A test that asks for what a backend does not claim skips with a reason that begins with ``not applicable:``. No test
hangs with its backend: whatever is waited for has a limit, and is named when it does not come.
"""

# A test's name is its docstring:
# ruff: noqa: D102

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import subprocess
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyflannel.backend import API_VERSION, Backend, Lease, Node, Underlay, parse_options
from pyflannel.errors import ConfigError, KernelError, PluginError
from pyflannel.kernel.model import (
    Address,
    DesiredState,
    FdbEntry,
    IpEncapsulation,
    KernelObject,
    Kind,
    Link,
    Neighbour,
    Route,
    Rule,
    Sysctl,
    WireguardPeer,
    XfrmPolicy,
)
from pyflannel.kernel.packed import unpack
from pyflannel.lab import Lab
from pyflannel.lab import Node as LabNode
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON
from pyflannel.planning.guard import about_the_overlay
from pyflannel.planning.spread import kept
from pyflannel.planning.usual import usual_plans
from pyflannel.small.interpreter import module_command
from pyflannel.testing._calls import once
from pyflannel.testing._planner import Planner
from pyflannel.testing._scenes import (
    Scene,
    accepted_type,
    build,
    document,
    hostile,
    lease_of,
    make_node,
    option_fields,
    scenes,
)
from pyflannel.testing.clauses import Judged, clause, not_applicable
from pyflannel.testing.stores import eventually

__all__ = ["BackendBehaviour", "BackendConformance", "BackendPlanning", "Planner", "Scene", "not_applicable"]

PATIENCE: Final = 60.0
"""Seconds after which the kit takes a thing for not happening at all. Nothing is judged by how long it took."""

ENDING: Final = 20.0
"""Seconds after which what is left of a data plane that was told to end is taken for left behind."""

RESYNC: Final = 5
"""Seconds between the daemons' full comparisons: the kernel tells nobody of most of its parameters."""

IPV6_MINIMUM_MTU: Final = 1280
"""RFC 8200, section 5."""

UNDERLAY_MTU: Final = 1500
"""What the lab's underlay carries, in bytes."""

NODE_WIDE: Final = frozenset({"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"})
"""Kernel parameters of the whole node that every backend may set."""

_PROPERTY = settings(
    report_multiple_bugs=False,
    max_examples=min(40, settings().max_examples),  # a profile that is loaded before may ask for fewer
    deadline=None,
    # One property serves many subclasses, and planning is quick: the fixtures hold nothing that wears out.
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
        HealthCheck.too_slow,
    ],
)


class _Subject(Judged):
    """What a subclass of either kit says about its backend."""

    backend: ClassVar[str | type[Backend[Any]]]
    """The backend: the name it is installed under, or its class."""

    variants: ClassVar[Sequence[Mapping[str, JSON]]] = ({},)
    """``Backend`` dictionaries (without ``Type``) worth trying; the lab runs the first, and changes to the second."""

    carries_traffic: ClassVar[bool] = True
    """Whether containers reach each other; false for a backend that only leases subnets."""

    plans_routes: ClassVar[bool] = True
    """Whether the plan holds the routes to peers; false where commands or somebody else make them."""

    extra_sysctls: ClassVar[frozenset[str]] = frozenset()
    """Kernel parameters beyond :data:`NODE_WIDE` and the own links' that the plan may set."""

    keeps_forwarding: ClassVar[bool] = True
    """Whether packets flow while the daemon is restarted."""

    @property
    def kind(self) -> type[Backend[Any]]:
        """The backend's class."""
        from pyflannel.plugins import load_backend

        return load_backend(self.backend) if isinstance(self.backend, str) else self.backend

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that the backend says it carries."""
        able = self.kind.capabilities
        return tuple(version for version, can in ((4, able.ipv4), (6, able.ipv6)) if can)


class BackendPlanning(_Subject):
    """The planner's promises. Set ``backend`` and, where texts among the options matter, ``variants``."""

    @pytest.fixture(scope="class")
    @classmethod
    def state(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Where drawn nodes keep what must outlive reboots."""
        return tmp_path_factory.mktemp("nodes")

    def scene(self, data: st.DataObject, state: Path) -> Scene:
        """A network to plan for, as hypothesis draws it."""
        return data.draw(scenes(self.kind, self.variants, state), label="scene")

    def example(self, state: Path, versions: Sequence[int], options: Mapping[str, JSON], mtu: int = 1500) -> Scene:
        """A network of three nodes, the same every time."""
        network = NetworkConfig.from_json(json.dumps(document(self.kind, options, versions)))
        backend = build(self.kind, network)
        nodes = tuple(make_node(network, number, state, mtu) for number in (1, 2, 3))
        for node in nodes:
            node.state_dir.mkdir(parents=True, exist_ok=True)
        return Scene(backend, nodes, tuple(lease_of(backend, node) for node in nodes))

    # the face

    @clause(
        "pyflannel.backend.Backend",
        "api_version is the one it was built for, name as in Backend.Type, capabilities name a family",
    )
    def test_it_states_its_api_version_name_and_families(self) -> None:
        kind = self.kind
        assert kind.api_version == API_VERSION, f"api_version is {kind.api_version!r}"
        assert isinstance(kind.name, str), f"name is {kind.name!r}"
        assert kind.name, "name is empty"
        assert self.versions, "capabilities claim no address family"

    @clause("pyflannel.backend.option", "each option has a key, a default, a meaning, and a number has bounds")
    def test_options_are_a_complete_table(self) -> None:
        """Every option has a key, a meaning, a default, and a number also bounds."""
        kind = self.kind
        assert dataclasses.is_dataclass(kind.Options), "Options must be a dataclass"
        assert vars(kind.Options)["__dataclass_params__"].frozen, "Options must be frozen"
        table = option_fields(kind)
        assert {item.name for item in table.values()} == {
            item.name for item in dataclasses.fields(kind.Options) if item.init
        }, "every field of Options must be made with option()"
        assert len({key.lower() for key in table}) == len(table), "keys must differ in more than case"
        for key, item in table.items():
            self._check_option(key, item)

    def _check_option(self, key: str, item: Any) -> None:
        accepted, optional = accepted_type(self.kind, item.name)
        assert accepted in (bool, int, str), f"option {key}: {accepted} is no type that JSON and parse_options know"
        assert item.metadata["doc"].strip(), f"option {key} has no documentation"
        assert item.default is not dataclasses.MISSING, f"option {key} has no default"
        if item.default is None:
            assert optional, f"option {key}: None is not of its type"
            return
        assert type(item.default) is accepted, f"option {key}: the default {item.default!r} is not a {accepted}"
        minimum, maximum = item.metadata["minimum"], item.metadata["maximum"]
        if accepted is int:
            assert minimum is not None, f"option {key}: say how small it may be"
            assert minimum <= item.default, f"option {key}: the default is below its minimum"
            assert maximum is None or item.default <= maximum, f"option {key}: the default is above its maximum"

    @clause(
        "pyflannel.backend.parse_options",
        "keys match without regard to case; a wrong type and what is out of bounds is a ConfigError",
    )
    def test_options_keep_to_their_table(self) -> None:
        """No options give the defaults; case does not matter; wrong types and numbers out of bounds are refused."""
        kind = self.kind
        defaults, _ = parse_options(kind.Options, {})
        for key, item in option_fields(kind).items():
            if item.default is not None:
                assert parse_options(kind.Options, {key.lower(): item.default, key.upper(): item.default}) == (
                    defaults,
                    (),
                )
            wrong: list[JSON] = [["a list"], {}]
            wrong += [bound for bound in (_beyond(item, "minimum", -1), _beyond(item, "maximum", 1)) if bound]
            for value in wrong:
                with pytest.raises(ConfigError, match=key):
                    parse_options(kind.Options, {key: value})

    @clause("pyflannel.backend.Backend", "each of the kit's variants makes a backend")
    def test_all_variants_are_valid(self, state: Path) -> None:
        for options in self.variants:
            self.example(state, self.versions, options)

    # purity

    @clause("pyflannel.backend.Backend", "planning is pure: same arguments, same result, no clock, no socket, no state")
    @_PROPERTY
    @given(data=st.data())
    def test_planning_is_pure(self, state: Path, data: st.DataObject) -> None:
        """Same arguments, same result, however often, in any order, from another object; the world is left alone."""
        scene = self.scene(data, state)
        node, peers = scene.nodes[0], scene.leases[1:]
        before = copy.deepcopy(peers)
        scene.backend.again().watch(
            node, peers
        )  # what Python imports for the first question is not the planner's doing
        planned, done = scene.backend.watch(node, peers)
        assert not done, f"planning must not touch the world, but it did: {done[:5]}"
        for turn, backend in enumerate([scene.backend, scene.backend, scene.backend.again(), scene.backend], 2):
            again, done = backend.watch(node, peers if turn % 2 else peers[::-1])
            assert not done, f"planning must not touch the world, but asked for turn {turn} it did: {done[:5]}"
            assert again == planned, f"asked for turn {turn}, with the same arguments, it plans something else"
        assert peers == before, "planning changed a lease that it was given"
        assert scene.backend.options == scene.backend.again().options, "planning changed its options"

    @clause("pyflannel.backend.Backend.usual", "plans of usual leases differ in nothing but addresses")
    @_PROPERTY
    @given(data=st.data())
    def test_usual_leases_are_planned_alike(self, state: Path, data: st.DataObject) -> None:
        """What the core plans for usual leases by itself is what the backend plans."""
        scene = self.scene(data, state)
        node, backend = scene.nodes[0], scene.backend
        said = backend.usual(node)
        usual = usual_plans(backend.name, node, said, lambda lease: kept(backend.plan_peer(node, lease)))
        if usual is None:
            roomy = all(family.size > len(scene.nodes) + 2 for family in node.network.families)
            alike = roomy and said.keys() >= set(node.network.versions)
            assert not alike, f"of leases with {said}, plans differ in more than addresses, or have unusual objects"
            return
        for peer in (*scene.leases[1:], data.draw(hostile(scene.leases[1]), label="peer")):
            text = peer.attributes.to_json()
            quick = usual.plan(peer.key, text)
            if quick is not None:
                plan = backend.judge(node, Lease.from_record(peer.key, text))
                assert not isinstance(plan, str), f"{text} is usual, but rejected: {plan}"
                assert unpack(quick.plan) == unpack(kept(plan)), f"{text} is usual, but planned otherwise"

    @clause("pyflannel.backend.DesiredState", "a plan is a set of kernel objects")
    @_PROPERTY
    @given(data=st.data())
    def test_a_plan_is_a_desired_state(self, state: Path, data: st.DataObject) -> None:
        scene = self.scene(data, state)
        node = scene.nodes[0]
        plans = [scene.backend.plan_node(node)]
        plans += [plan for peer in scene.leases[1:] if not isinstance(plan := scene.backend.judge(node, peer), str)]
        for plan in plans:
            assert isinstance(plan, DesiredState), f"a plan is a DesiredState, not {type(plan).__name__}"
            for item in plan:
                assert isinstance(item, typing.get_args(KernelObject)), f"{item!r} is no kernel object"

    # good and hostile peers

    @clause("pyflannel.backend.Backend.plan_peer", "what a node publishes is what the others understand")
    @_PROPERTY
    @given(data=st.data())
    def test_good_peers_on_the_link_are_planned(self, state: Path, data: st.DataObject) -> None:
        """What a node publishes is what the others understand."""
        scene = self.scene(data, state)
        for node in scene.nodes:
            for peer in scene.leases:
                if peer.key != node.subnets.key:
                    scene.backend.plan_peer(node, peer)

    @clause(
        "pyflannel.backend.Backend.plan_peer",
        "a lease that is unusable is a PeerRejected with the reason, never another error",
    )
    @_PROPERTY
    @given(data=st.data())
    def test_a_hostile_peer_is_rejected_or_harmless(self, state: Path, data: st.DataObject) -> None:
        """Whatever a lease carries: PeerRejected with a reason, or a plan that touches only what is ours."""
        scene = self.scene(data, state)
        node = scene.nodes[0]
        peer = data.draw(hostile(scene.leases[1]), label="peer")
        before = copy.deepcopy(peer)
        plan = scene.backend.judge(node, peer)
        assert peer == before
        if isinstance(plan, str):
            assert plan.strip(), "PeerRejected needs a reason: it is what `pyflannel status` shows"
        else:
            self.check_ours(scene.backend, node, peer, plan)

    @clause(
        "pyflannel.backend.Backend.plan_peer",
        "a peer that is not on the link is planned, or rejected with the reason",
    )
    def test_a_peer_behind_a_router_is_planned_or_rejected(self, state: Path) -> None:
        from ipaddress import IPv4Address, IPv6Address

        for options in self.variants:
            scene = self.example(state, self.versions, options)
            attributes = dataclasses.replace(
                scene.leases[1].attributes,
                public_ip=IPv4Address("198.51.100.7"),
                public_ipv6=IPv6Address("2001:db8:1::7"),
            )
            peer = scene.leases[1].with_attributes(attributes)
            plan = scene.backend.judge(scene.nodes[0], peer)
            if not isinstance(plan, str):
                self.check_ours(scene.backend, scene.nodes[0], peer, plan)

    @clause("pyflannel.backend.Published", "each part is JSON or None, and the same each time")
    @_PROPERTY
    @given(data=st.data())
    def test_what_is_published_is_json(self, state: Path, data: st.DataObject) -> None:
        """And the same each time, for it is compared with what the store holds."""
        scene = self.scene(data, state)
        for node in scene.nodes:
            published = scene.backend.publish(node)
            for part in (published.data, published.v6_data):
                assert json.loads(json.dumps(part, allow_nan=False)) == part, f"{part!r} changes on its way as JSON"
            assert scene.backend.again().publish(node) == published, "another object publishes something else"

    @clause("pyflannel.backend.Backend.describe", "names to short texts")
    def test_it_describes_itself_in_texts(self, state: Path) -> None:
        scene = self.example(state, self.versions, self.variants[0])
        told = scene.backend.describe(scene.nodes[0])
        assert all(isinstance(part, str) for pair in told.items() for part in pair), f"describe() says {told!r}"

    @clause(
        "pyflannel.backend.Backend.act",
        "what an action changes is found by the next start, and taken back by undo",
    )
    def test_actions_can_be_taken_back(self, state: Path) -> None:
        """An action changes what is said of the node, to be found again by another life; undoing it, nothing stays."""
        if not self.kind.actions:
            not_applicable("the backend has no actions")
        for action, text in self.kind.actions.items():
            assert text.strip(), f"action {action} has no help"
            scene = self.example(state, self.versions, self.variants[0])
            backend, node = scene.backend, scene.nodes[0]
            before = (backend.publish(node), backend.plan_node(node))
            change = backend.act(action, node)
            assert change.done.strip(), f"action {action} does not say what it has done"
            after = (backend.publish(node), backend.plan_node(node))
            other = backend.again()
            assert (other.publish(node), other.plan_node(node)) == after, f"action {action} is forgotten by a restart"
            change.undo()
            assert (backend.publish(node), backend.plan_node(node)) == before, f"action {action} is not taken back"

    # only what is ours

    @clause("pyflannel.backend.Backend", "a plan holds what is the overlay's and nothing else")
    @_PROPERTY
    @given(data=st.data())
    def test_only_own_objects_are_planned(self, state: Path, data: st.DataObject) -> None:
        scene = self.scene(data, state)
        for node in scene.nodes:
            for peer in scene.leases:
                if peer.key != node.subnets.key:
                    self.check_ours(scene.backend, node, peer, scene.backend.plan_peer(node, peer))

    def check_ours(self, backend: Planner, node: Node, peer: Lease, plan: DesiredState) -> None:
        """Fail if a node's plan, or that for one peer, reaches beyond what is the overlay's."""
        own = backend.plan_node(node)
        links = {item.name for item in (*own, *plan) if isinstance(item, Link)}
        for item in own:
            _check_object(item, node, None, links, self.extra_sysctls)
        for item in plan:
            _check_object(item, node, peer, links, self.extra_sysctls)

    @clause("pyflannel.backend.Backend", "no two good peers claim one kernel key")
    @_PROPERTY
    @given(data=st.data())
    def test_good_peers_do_not_get_in_each_others_way(self, state: Path, data: st.DataObject) -> None:
        """No kernel key is claimed by two peers, or by a peer and the node itself."""
        scene = self.scene(data, state)
        node = scene.nodes[0]
        claimed = dict.fromkeys(scene.backend.plan_node(node).keys(), "the node itself")
        for peer in scene.leases[1:]:
            for key in scene.backend.plan_peer(node, peer).keys():  # noqa: SIM118 - no mapping
                assert key not in claimed, f"{key} is claimed by {peer.key} and {claimed[key]}"
                claimed[key] = peer.key

    # families and sizes

    @clause("pyflannel.backend.Capabilities", "a family that it claims is carried, alone and beside the other")
    def test_declared_families_are_served(self, state: Path) -> None:
        """In every mix of them, a packet for a peer's subnet finds a route."""
        if not self.plans_routes:
            not_applicable("plans_routes is false: somebody else makes the routes")
        for options in self.variants:
            for versions in {self.versions, *((version,) for version in self.versions)}:
                scene = self.example(state, versions, options)
                node, peer = scene.nodes[0], scene.leases[1]
                plan = [*scene.backend.plan_node(node), *scene.backend.plan_peer(node, peer)]
                routes = [item.destination for item in plan if isinstance(item, Route)]
                for subnet in peer.subnets.each:
                    covered = [route for route in routes if route.version == subnet.version]
                    assert any(subnet.subnet_of(route) for route in covered), (  # type: ignore[arg-type]
                        f"{options}: no route leads to the peer's subnet {subnet}"
                    )
                wrong = [route for route in routes if route.version not in versions]
                assert not wrong, f"{options}: routes of a family that the network does not use: {wrong}"

    @clause(
        "pyflannel.backend.Backend.mtu",
        "the largest packet that needs no fragmentation: at most the underlay's, at least IPv6's 1280",
    )
    @_PROPERTY
    @given(underlay_mtu=st.integers(1500, 65535))
    def test_the_mtu_fits_the_underlay(self, state: Path, underlay_mtu: int) -> None:
        scene = self.example(state, self.versions, self.variants[0], underlay_mtu)
        mtu = scene.backend.mtu(scene.nodes[0].underlay)
        assert type(mtu) is int, f"mtu() is {mtu!r}"
        assert mtu >= IPV6_MINIMUM_MTU, "IPv6 wants 1280 (RFC 8200, 5)"
        assert mtu <= underlay_mtu, f"mtu() is {mtu}, more than the underlay's {underlay_mtu}"
        smaller = dataclasses.replace(scene.nodes[0].underlay, mtu=underlay_mtu - 100)
        assert scene.backend.mtu(smaller) <= mtu, "a smaller underlay can't carry more"
        for item in scene.backend.plan_node(scene.nodes[0]):
            if isinstance(item, Link):
                assert 0 < item.mtu <= underlay_mtu, f"{item}: larger than the underlay's {underlay_mtu}"


def _beyond(item: Any, bound: str, step: int) -> int | None:
    value = item.metadata[bound]
    return None if value is None else int(value) + step


def _check_object(
    item: KernelObject, node: Node, peer: Lease | None, links: Iterable[str], extra_sysctls: frozenset[str]
) -> None:
    """Fail if ``item`` is not the overlay's: planned for ``peer``, or for the node itself."""
    if isinstance(item, Link):
        _check_link(item, node.underlay)
    elif isinstance(item, Sysctl):
        own = any(item.path.startswith(f"net/{family}/conf/{name}/") for family in ("ipv4", "ipv6") for name in links)
        assert own or item.path in NODE_WIDE | extra_sysctls, f"{item}: not a parameter of a link of ours"
    elif isinstance(item, Route):
        _check_route(item, node, peer, links)
    elif isinstance(item, Rule):
        _check_rule(item, node, peer, links)
    elif isinstance(item, XfrmPolicy):
        _check_policy(item, node, peer)
    else:
        assert item.link in links, f"{item}: {item.link} is not a link of this plan"
    if isinstance(item, Address):
        network = node.network.family(item.interface.version)
        inside = network is not None and item.interface.ip in network.network
        subnet = node.subnets.of(item.interface.version)
        assert not inside or (subnet is not None and item.interface.ip in subnet), f"{item}: in another node's subnet"
    if isinstance(item, FdbEntry) and peer is not None:
        assert item.remote in (peer.attributes.public_ip, peer.attributes.public_ipv6), f"{item}: not the peer"
    if isinstance(item, WireguardPeer):
        _check_wireguard_peer(item, peer)
    if isinstance(item, (FdbEntry, Neighbour)):
        _check_link_layer(item, peer)


def _check_link_layer(item: FdbEntry | Neighbour, peer: Lease | None) -> None:
    if isinstance(item.mac, str):
        assert int(item.mac[:2], 16) & 1 == 0, f"{item}: not a unicast MAC address"
        assert item.mac == item.mac.lower(), f"{item}: the kernel says MAC addresses in lower case"
    else:
        public = () if peer is None else (peer.attributes.public_ip, peer.attributes.public_ipv6)
        assert item.mac in public, f"{item}: not the peer"


def _check_wireguard_peer(item: WireguardPeer, peer: Lease | None) -> None:
    assert peer is not None, f"{item}: whose is it?"
    for network in item.allowed_ips:
        subnet = peer.subnets.of(network.version)
        assert subnet is not None, f"{item}: the peer has no {network}"
        assert network.subnet_of(subnet), f"{item}: the peer may speak for {subnet} only"  # type: ignore[arg-type]
    if item.endpoint is not None:
        public = (peer.attributes.public_ip, peer.attributes.public_ipv6)
        assert item.endpoint.address in public, f"{item}: not the peer"


def _check_policy(item: XfrmPolicy, node: Node, peer: Lease | None) -> None:
    assert item.plain, f"{item}: only the kernel's can be more than we can say"
    assert peer is not None, f"{item}: whose is it?"
    subnet = peer.subnets.of(item.far_end.version)
    assert subnet is not None, f"{item}: the peer has no {item.far_end}"
    assert item.far_end.subnet_of(subnet), f"{item}: the peer may speak for {subnet} only"  # type: ignore[arg-type]
    ends = (item.tunnel_source, item.tunnel_destination)
    there, here = reversed(ends) if item.direction == "out" else ends
    assert there in (peer.attributes.public_ip, peer.attributes.public_ipv6), f"{item}: not the peer"
    assert here in (node.underlay.ipv4, node.underlay.ipv6), f"{item}: not this node"


def _check_link(link: Link, underlay: Underlay) -> None:
    assert link.name != underlay.interface, f"{link}: that is the underlay's interface"
    assert 0 < len(link.name.encode()) < 16, f"{link}: a name has 1 to 15 bytes (IFNAMSIZ)"
    assert link.name not in (".", ".."), f"{link}: no name for a link"
    assert not set(link.name) & set("/: \t\n"), f"{link}: no name for a link"
    assert link.marked, f"{link}: an unmarked link is nobody's"
    assert link.mtu > 0, f"{link}: no MTU"
    if link.mac is not None:
        assert int(link.mac[:2], 16) & 1 == 0, f"{link}: not a unicast MAC address"


def _check_route(route: Route, node: Node, peer: Lease | None, links: Iterable[str]) -> None:
    version = route.destination.version
    network = node.network.family(version)
    assert network is not None, f"{route}: the network has no IPv{version}"
    if peer is not None:
        subnet = peer.subnets.of(version)
        assert subnet is not None, f"{route}: the peer has no IPv{version}"
        assert route.destination.subnet_of(subnet), f"{route}: reaches beyond the peer's {subnet}"  # type: ignore[arg-type]
    else:
        assert route.destination.subnet_of(network.network), f"{route}: reaches beyond the network"  # type: ignore[arg-type]
    if isinstance(route.encapsulation, IpEncapsulation):
        public = () if peer is None else (peer.attributes.public_ip, peer.attributes.public_ipv6)
        assert route.encapsulation.destination in public, f"{route}: not the peer"
    if route.link == node.underlay.interface:
        assert peer is not None, f"{route}: the underlay's link leads to peers only"
        assert route.gateway == peer.attributes.public(version), f"{route}: not through the peer"
        assert route.onlink or node.underlay.is_onlink(route.gateway), f"{route}: the gateway is not on the link"  # type: ignore[arg-type]
    elif route.link is not None:
        assert route.link in links, f"{route}: {route.link} is neither ours nor the underlay's"


def _check_rule(rule: Rule, node: Node, peer: Lease | None, links: Iterable[str]) -> None:
    assert rule.version in node.network.versions, f"{rule}: the network has no IPv{rule.version}"
    ranges = [family.network for version in node.network.versions if (family := node.network.family(version))]
    assert about_the_overlay(rule, ranges if peer is None else peer.subnets.each, set(links)), (
        f"{rule}: selects more than what is the {'overlay' if peer is None else 'peer'}'s; say where from or to, or by "
        "which link of ours, or look up a table of your own"
    )


class _Console:
    """The process of :mod:`pyflannel.testing._kernel_console` in one node."""

    def __init__(self, node: LabNode) -> None:
        words = module_command("pyflannel.testing._kernel_console")
        self.process = node.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process = self.process.proxy

    def ask(self, **request: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        what = f"the answer to {request['do']} {request.get('object', '')}"
        answer = once("the kernel console", what, stdout.readline, PATIENCE, "the kernel shows what the daemon keeps")
        assert answer, "the kernel console ended; see its message above"
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


def is_fragment(frame: bytes) -> bool:
    """Whether an Ethernet frame carries a part of an IP packet (RFC 791, 3.1; RFC 8200, 4.5)."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return int.from_bytes(frame[20:22], "big") & 0x3FFF != 0  # an offset, or more to come
    return kind == b"\x86\xdd" and frame[20] == 44


class LiveOverlay:
    """Three nodes in a lab with daemons, containers and a console each: what the behaviour tests work on."""

    def __init__(
        self, lab: Lab, kind: type[Backend[Any]], versions: Sequence[int], options: Mapping[str, JSON]
    ) -> None:
        self.lab = lab
        self.nodes = lab.nodes
        self.kind = kind
        self.versions = tuple(versions)
        self.options = options
        self.pristine = {node.name: at_rest(node) for node in lab.nodes}
        """What each kernel held before the first daemon."""
        self.any_mac: dict[str, list[str]] = {}
        self.consoles = {node.name: _Console(node) for node in lab.nodes}
        self.configure(options)
        for node in self.nodes:
            node.start_daemon(lab.file_store, None, arguments=["--resync-interval", str(RESYNC)])
        for node in self.nodes:
            node.daemon.wait_ready(peers=2, timeout=PATIENCE)
            node.attach_containers()
        self._note_links()

    def close(self) -> None:
        """End the consoles; the lab ends the rest."""
        for console in self.consoles.values():
            console.close()

    def configure(self, options: Mapping[str, JSON]) -> None:
        """Write the network document with these backend options."""
        text = json.dumps(document(self.kind, options, self.versions))
        self.nodes[0].run(
            pyflannel_command("config", "set", "--force", "-", "--store", self.lab.file_store),
            input=text,
            timeout=PATIENCE,
        )

    def change(self, options: Mapping[str, JSON]) -> None:
        """Change the options of all nodes at once: daemons read a document that was merely written when they start."""
        for node in self.nodes:
            node.daemon.stop()
        self.configure(options)
        for node in self.nodes:
            node.daemon.start()
        for node in self.nodes:
            node.daemon.wait_ready(peers=2, timeout=PATIENCE)
        self._note_links()

    def go_over(self, backend: str, options: Mapping[str, JSON]) -> str:
        """Change the network to another backend while it runs; returns why that is refused, empty if it is done."""
        words = ["network", "change", "--yes", "--backend", backend, "--store", self.lab.file_store]
        for name, value in options.items():
            words += ["--backend-option", f"{name}={json.dumps(value) if not isinstance(value, str) else value}"]
        done = self.nodes[0].run(pyflannel_command(*words), check=False, timeout=2 * PATIENCE)
        return done.stderr if done.returncode else ""

    def sysctls(self, node: LabNode) -> list[str]:
        """The kernel parameters that a node's daemon keeps."""
        items = node.daemon.status()["objects"]["list"]
        return [item["object"].split()[1].partition("=")[0] for item in items if item["kind"] == "sysctl"]

    def _ask(self, node: LabNode, **request: Any) -> Any:
        return self.consoles[node.name].ask(**request, any_mac=self.any_mac.get(node.name, []))

    def _note_links(self) -> None:
        """Note which links of each node have whatever MAC address the kernel gives them."""
        for node in self.nodes:
            items = [
                item["object"].split() for item in node.daemon.status()["objects"]["list"] if item["kind"] == "link"
            ]
            self.any_mac[node.name] = [words[1] for words in items if "address" not in words]

    def dump(self, node: LabNode, sysctls: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Kind and text of every kernel object of ours in a node."""
        found = self._ask(node, do="dump", sysctls=list(sysctls))["objects"]
        return [(kind, text) for kind, text in found]

    def remove(self, node: LabNode, text: str, sysctls: Sequence[str]) -> None:
        """Take one object out of a node's kernel behind its daemon's back."""
        errors = self._ask(node, do="remove", object=text, sysctls=list(sysctls))["errors"]
        assert not errors, f"{text} could not be removed: {errors}"

    def settled(self, node: LabNode, wanted: Callable[[list[tuple[str, str]]], bool], what: str) -> None:
        """Wait until a node's dump is as ``wanted``."""
        try:
            eventually(lambda: wanted(self.dump(node, self.sysctls(node))), what, PATIENCE)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\nkernel: {self.dump(node, self.sysctls(node))}\nlog:\n{node.log_tail()}"
            ) from None

    def reachable(self) -> bool:
        """Whether every container reaches every other one, in every family."""
        matrix = self.lab.reachability()
        return matrix.complete and matrix.versions == self.versions

    def left(self) -> dict[str, list[str]]:
        """What each node holds of a data plane (:func:`data_planes`) that was told to end, and stays all the same."""
        found: dict[str, list[str]] = {}

        def gone() -> bool:
            found.update((node.name, data_planes(node, {self.consoles[node.name].process.pid})) for node in self.nodes)
            return not any(found.values())

        with contextlib.suppress(AssertionError):
            eventually(gone, "all data planes have ended", ENDING)
        return found

    def terms(self, node: LabNode) -> list[str]:
        """The addresses by which a node's objects in other kernels are told: its public ones and its subnets'."""
        subnets = node.daemon.status()["lease"]["subnets"]
        return [str(node.ipv4.ip), str(node.ipv6.ip), *(subnet.partition("/")[0] for subnet in subnets)]

    def forget(self, node: LabNode) -> str:
        """Delete a stopped node's lease from the store; returns its key."""
        subnets = self.lab.outside(node.directory).parent / "store" / "subnets"
        owner = {json.loads(file.read_text()).get("NodeID"): file for file in subnets.glob("*.json")}
        owner[node.name].unlink()
        return owner[node.name].stem


@dataclasses.dataclass(frozen=True)
class Trip:
    """A running network that was changed to another backend and back.

    :param refused: why it was not. ``lost``: the pings that lost packets, with how many.
    :param before: each node's kernel objects before that.
    :param left: what each node held of a data plane when all had gone over.
    """

    refused: str
    lost: tuple[tuple[str, str, int], ...]
    before: Mapping[str, list[tuple[str, str]]]
    left: Mapping[str, list[str]]


def data_planes(node: LabNode, others: Iterable[int]) -> list[str]:
    """What moves packets in a node's namespace besides the kernel, each in words: processes, and what the daemon holds.

    :param others: processes in it that are known, as seen from outside the lab.
    """
    daemon = node.daemon.process.pid
    place = (Path("/proc") / str(daemon) / "ns/net").readlink()
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) in others:
            continue
        with contextlib.suppress(OSError):  # it may end meanwhile
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if (process / "ns/net").readlink() != place or words[0] == "nsenter" or not words[0]:
                continue  # what waits for a process of the lab's, and what is about to be reaped
            if int(process.name) != daemon:
                found.append(f"process {' '.join(words).strip()}")
            found += [f"{held} of {words[0]}" for held in _packet_files(process)]
    return sorted(found)


_PACKETS: Final = ("udp", "udp6", "udplite", "udplite6", "raw", "raw6", "packet")
"""Tables of proc_pid_net(5) with the sockets that a data plane may have; their inode stands in some column."""


def _packet_files(process: Path) -> Iterator[str]:
    """The open files of a process by which packets come and go, in words."""
    sockets = {}
    for table in _PACKETS:
        with contextlib.suppress(FileNotFoundError):
            for line in (process / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
                sockets[line.split()[8 if table == "packet" else 9]] = f"{table} socket {line.split()[1]}"
    for file in (process / "fd").iterdir():
        target = str(file.readlink())
        if target == "/dev/net/tun":
            yield target
        elif target.startswith("socket:[") and target[8:-1] in sockets:
            yield sockets[target[8:-1]]


_STATE: Final = (
    "ip -j -d link show",
    "ip -j address show",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j -4 rule show",
    "ip -j -6 rule show",
    "tc -j qdisc show",
    "ip -j neigh show nud permanent",
    "bridge -j fdb show",
)
_PASSING: Final = frozenset(
    {"linkinfo", "ifindex", "link_index", "stats64", "txqlen", "preferred_life_time", "expires", "refcnt"}
)


def everything(node: LabNode) -> list[str]:
    """A node's whole network configuration as iproute2 shows it, without what passes by itself."""
    script = "\n".join(_STATE)
    lines = node.run(["sh", "-ec", script]).stdout.splitlines()
    documents = json.loads("[" + ",".join(line for line in lines if line.strip()) + "]")
    return sorted(json.dumps(_lasting(item), sort_keys=True) for part in documents for item in part)


def at_rest(node: LabNode) -> list[str]:
    """:func:`everything`, when the node's wire is up and nobody else has its addresses (RFC 4862, 5.4)."""
    passing = ("tentative", "NO-CARRIER")
    eventually(
        lambda: not any(word in item for item in everything(node) for word in passing),
        "its links and addresses are settled",
        PATIENCE,
    )
    return everything(node)


def _lasting(value: JSON) -> JSON:
    if isinstance(value, dict):
        return {name: _lasting(item) for name, item in value.items() if name not in _PASSING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


class BackendBehaviour(_Subject):
    """The backend in a lab of three nodes, which the tests of a class share; each leaves it as it found it."""

    @pytest.fixture(scope="class")
    @classmethod
    def overlay(cls) -> Iterator[LiveOverlay]:
        """Three nodes that run the first of ``variants``, in every family the backend carries."""
        subject = cls()
        kind = subject.kind
        try:
            from pyflannel.plugins import load_backend

            assert load_backend(kind.name) is kind
        except (PluginError, AssertionError):
            pytest.skip(f"{kind.__qualname__} is not installed as {kind.name!r}: the lab's daemons could not load it")
        try:
            lab = Lab(nodes=3, mtu=UNDERLAY_MTU)
        except KernelError as error:
            pytest.skip(f"no lab on this machine: {error}")
        with lab:
            live = LiveOverlay(lab, kind, subject.versions, subject.variants[0])
            try:
                yield live
            finally:
                for node in lab.nodes:
                    print(node.name, node.log_tail(40), sep="\n")
                live.close()

    def _need_traffic(self) -> None:
        if not self.carries_traffic:
            not_applicable("carries_traffic is false: the backend only leases subnets")

    @clause("pyflannel.backend.Backend", "packets of each family that it claims arrive")
    def test_containers_reach_each_other(self, overlay: LiveOverlay) -> None:
        self._need_traffic()
        matrix = overlay.lab.reachability(timeout=PATIENCE)  # handshakes that cross begin anew, seconds later
        assert matrix.complete, f"no answer: {matrix.failed}"
        assert matrix.versions == overlay.versions

    @clause("pyflannel.backend.Backend.mtu", "packets of that size pass without fragmentation, on the underlay, too")
    def test_full_packets_pass_without_fragmentation(self, overlay: LiveOverlay) -> None:
        """The MTU in subnet.env is one that the overlay carries, and the underlay under it."""
        self._need_traffic()
        one, _, three = overlay.lab.containers
        network = overlay.nodes[0].network
        assert network is not None
        version = overlay.versions[0]  # of the device that packets meet first; others learn by path MTU discovery
        size = str(network.mtu - {4: 28, 6: 48}[version])
        words = ["ping", "-M", "do", "-c1", "-W1", "-s", size, three.address(version)]
        with overlay.nodes[0].capture() as capture:
            eventually(
                lambda: one.run(words, check=False).returncode == 0,
                f"a packet of {network.mtu} bytes that must not be fragmented arrives",
            )
        outer = [frame for frame in capture.stop() if is_fragment(frame)]
        assert not outer, (
            f"mtu() says {network.mtu} and the underlay has {UNDERLAY_MTU}: packets of that size leave the node in "
            f"{len(outer)} fragments; leave room for what is put around them"
        )

    @clause("pyflannel.backend.Capabilities", "encrypts: packets on the underlay are unreadable")
    def test_the_underlay_shows_no_plain_text(self, overlay: LiveOverlay) -> None:
        self._need_traffic()
        if not overlay.kind.capabilities.encrypts:
            not_applicable("capabilities.encrypts is false")
        pattern = os.urandom(8)
        one, two = overlay.lab.containers[:2]
        with overlay.nodes[0].capture() as capture:
            for version in overlay.versions:
                one.run(["ping", "-c3", "-W5", "-p", pattern.hex(), two.address(version)])
        frames = capture.stop()
        assert frames, "nothing was seen on the underlay"
        assert not [frame for frame in frames if pattern in frame], "packets are readable on the underlay"

    @clause("pyflannel.backend.Backend", "what somebody takes out of the kernel comes back")
    @pytest.mark.parametrize("kind", [kind.name for kind in Kind])
    def test_what_is_removed_comes_back(self, overlay: LiveOverlay, kind: str) -> None:
        """Each kernel object of a kind, one by one."""
        node = overlay.nodes[0]
        sysctls = overlay.sysctls(node)
        before = overlay.dump(node, sysctls)
        texts = [text for found, text in before if found == kind]
        kept = [item for item in node.daemon.status()["objects"]["list"] if item["kind"] == kind.lower()]
        assert len(texts) >= len(kept), f"the daemon keeps {kept}, of which the kit sees {texts}"
        if not texts:
            not_applicable(f"the plan holds nothing of the kind {kind}")
        for text in texts:
            overlay.remove(node, text, sysctls)
            overlay.settled(node, lambda now: now == before, f"{text} came back")
        if self.carries_traffic:
            eventually(overlay.reachable, "containers reach each other after the repairs", PATIENCE)

    @clause(
        "pyflannel.backend.Backend",
        "a restart of the daemon finds everything as it should be, and loses no packet",
    )
    def test_a_restart_changes_nothing(self, overlay: LiveOverlay) -> None:
        node = overlay.nodes[0]
        sysctls = overlay.sysctls(node)
        before, lease = overlay.dump(node, sysctls), node.daemon.status()["lease"]["key"]
        if self.carries_traffic and self.keeps_forwarding:
            one, two = overlay.lab.containers[:2]
            with one.ping(two.address(overlay.versions[0])) as ping:
                ping.wait_replies(5)
                self._restart(node)
                ping.wait_replies(5)
                assert ping.stop().lost == 0, "packets were lost while the daemon was restarted"
        else:
            self._restart(node)
        overlay.settled(node, lambda now: now == before, "the kernel is as before")
        assert node.daemon.status()["lease"]["key"] == lease
        assert node.daemon.status()["repaired"] == 0, "a restart found something to repair"

    def _restart(self, node: LabNode) -> None:
        node.daemon.restart()
        node.daemon.wait_ready(peers=2, timeout=PATIENCE)

    @clause("pyflannel.backend.Backend", "the next start after kill -9 mends what was broken meanwhile")
    def test_kill_9_is_survived(self, overlay: LiveOverlay) -> None:
        """And what was broken meanwhile is mended by the next start."""
        node = overlay.nodes[0]
        sysctls = overlay.sysctls(node)
        before, lease = overlay.dump(node, sysctls), node.daemon.status()["lease"]["key"]
        node.daemon.kill()
        removed = [text for kind, text in before if kind in (Kind.ROUTE.name, Kind.FDB.name)]
        for text in removed:
            overlay.remove(node, text, sysctls)
        node.daemon.start()
        node.daemon.wait_ready(peers=2, timeout=PATIENCE)
        overlay.settled(node, lambda now: now == before, "the kernel is as before")
        assert node.daemon.status()["lease"]["key"] == lease
        if self.carries_traffic:
            eventually(overlay.reachable, "containers reach each other again", PATIENCE)

    @clause("pyflannel.backend.Backend", "what was for a departed peer goes, and nothing else")
    def test_a_departed_peer_is_swept(self, overlay: LiveOverlay) -> None:
        """While the daemon runs, and while it does not; and comes back with the same subnet."""
        staying, other, gone = overlay.nodes
        sysctls = overlay.sysctls(staying)
        before = overlay.dump(staying, sysctls)
        theirs = [text for text in before if _mentions(text, overlay.terms(other))]
        for running in (True, False):
            terms = overlay.terms(gone)
            gone.daemon.stop()
            if not running:
                staying.daemon.stop()
            key = overlay.forget(gone)
            if not running:
                staying.daemon.start()
            staying.daemon.wait_status(
                lambda status, key=key: status["ready"] and key not in [peer["key"] for peer in status["peers"]],  # type: ignore[misc]
                f"rid of {key}",
                PATIENCE,
            )
            overlay.settled(
                staying,
                lambda now, terms=terms: not any(_mentions(item, terms) for item in now),  # type: ignore[misc]
                f"nothing is left of {key}",
            )
            left = overlay.dump(staying, sysctls)
            assert set(theirs) <= set(left) <= set(before), "only what was for the departed peer goes"
            gone.daemon.start()
            for node in overlay.nodes:
                node.daemon.wait_ready(peers=2, timeout=PATIENCE)
            assert gone.daemon.status()["lease"]["key"] == key, "subnet.env remembers"
            overlay.settled(staying, lambda now: now == before, "the peer is back as it was")
        if self.carries_traffic:
            eventually(overlay.reachable, "containers reach each other again", PATIENCE)

    @clause("pyflannel.backend.Backend", "options changed and changed back leave the kernel as it was")
    def test_options_there_and_back(self, overlay: LiveOverlay) -> None:
        """A, then B, then A again: the kernel is as it was, and packets flow in each."""
        if len(self.variants) < 2:
            not_applicable("variants name no second set of options")
        before = {node.name: overlay.dump(node) for node in overlay.nodes}
        for options in (self.variants[1], self.variants[0]):
            overlay.change(options)
            for node in overlay.nodes:
                node.attach_containers()  # a new MTU is the runtime's business
            if self.carries_traffic:
                eventually(overlay.reachable, f"containers reach each other with {dict(options)}", PATIENCE)
        for node in overlay.nodes:
            overlay.settled(
                node,
                lambda now, node=node: [item for item in now if item[0] != Kind.SYSCTL.name] == before[node.name],  # type: ignore[misc]
                "the kernel is as before the change",
            )

    @pytest.fixture(scope="class")
    @classmethod
    def trip(cls, overlay: LiveOverlay) -> Trip:
        """The running network, changed to an in-tree backend and back, while all containers ping each other."""
        if not cls.carries_traffic:
            not_applicable("carries_traffic is false: the backend only leases subnets")
        partner = "host-gw" if overlay.kind.name == "vxlan" else "vxlan"
        eventually(overlay.reachable, "containers reach each other", PATIENCE)
        before = {node.name: overlay.dump(node) for node in overlay.nodes}
        left: dict[str, list[str]] = {}
        pairs = [(one, two) for one in overlay.lab.containers for two in overlay.lab.containers if one is not two]
        with ExitStack() as stack:
            pings = [
                stack.enter_context(one.ping(two.address(version), 0.02))
                for one, two in pairs
                for version in overlay.versions
            ]
            for ping in pings:
                ping.wait_replies(5)
            refused = overlay.go_over(partner, {})
            if not refused:
                left = overlay.left()
                refused = overlay.go_over(overlay.kind.name, overlay.options)
            for ping in pings:
                ping.wait_replies(5)
            lost = [(ping.source.name, ping.address, ping.stop().lost) for ping in pings]
        return Trip(refused, tuple(each for each in lost if each[2]), before, left)

    def _went(self, trip: Trip) -> None:
        if "plans no routes" in trip.refused:
            not_applicable("the backend leaves its routes to others, so that nothing can be switched over")
        assert not trip.refused, trip.refused

    @clause(
        "pyflannel.backend.Backend", "a network that runs changes to another backend, and back, and loses no packet"
    )
    def test_a_running_network_changes_there_and_back(self, overlay: LiveOverlay, trip: Trip) -> None:
        """With an in-tree backend as the partner; a backend needs no code for it."""
        self._went(trip)
        assert not trip.lost, "packets were lost"
        for node in overlay.nodes:
            overlay.settled(
                node,
                lambda now, node=node: [item for item in now if item[0] != Kind.SYSCTL.name] == trip.before[node.name],  # type: ignore[misc]
                "the kernel is as before the change",
            )

    @clause(
        "pyflannel.backend.DataPlane.end",
        "where the network has gone over to another backend, no process, socket or device of the data plane is left",
    )
    def test_a_data_plane_that_is_left_ends(self, trip: Trip) -> None:
        """While the network runs on another backend, nothing is left of this one but the daemon itself."""
        if self.kind.start is Backend.start:
            not_applicable("the kernel moves the packets: the backend has no data plane of its own")
        self._went(trip)
        left = {node: what for node, what in trip.left.items() if what}
        assert not left, f"left behind by end(): {left}"

    @clause(
        "pyflannel.backend.DataPlane",
        "after cleanup the kernel is as before the first start, and no process is left",
    )
    def test_cleanup_leaves_nothing(self, overlay: LiveOverlay) -> None:
        """The kernel is as it was before the first start, processes and devices included."""
        node = overlay.nodes[2]
        node.daemon.stop()
        node.detach_containers()
        node.run(pyflannel_command("cleanup", "--run-dir", str(node.daemon.run_directory)), timeout=PATIENCE)
        eventually(lambda: everything(node) == overlay.pristine[node.name], lambda: _difference(overlay, node), 10.0)
        node.daemon.start()
        node.daemon.wait_ready(peers=2, timeout=PATIENCE)
        node.attach_containers()
        if self.carries_traffic:
            eventually(overlay.reachable, "containers reach each other again", PATIENCE)


def _mentions(item: tuple[str, str], terms: Iterable[str]) -> bool:
    """Whether an object's text holds one of these addresses, alone or as a network."""
    return any(f"'{term}{end}" in item[1] for term in terms for end in ("'", "/"))


def _difference(overlay: LiveOverlay, node: LabNode) -> str:
    now, before = set(everything(node)), set(overlay.pristine[node.name])
    return f"the kernel is as before the first start; more: {sorted(now - before)}; less: {sorted(before - now)}"


class BackendConformance(BackendPlanning, BackendBehaviour):
    """Both kits. See the module's docstring."""
