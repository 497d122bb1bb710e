"""The half of the backends' kit that asks the planner: hypothesis draws networks, options, nodes and hostile peers."""

# A test's name is its docstring:

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pyflannel.backend import API_VERSION, Backend, Capabilities, DesiredState, Lease, Node, parse_options
from pyflannel.errors import ConfigError
from pyflannel.kernel.model import KernelObject, Link, Route
from pyflannel.kernel.packed import unpack
from pyflannel.network.lease import JSON, lies_in
from pyflannel.planning.spread import kept
from pyflannel.planning.usual import usual_plans
from pyflannel.plugins import unlike
from pyflannel.testing._elsewhere import planned_elsewhere, planned_here, reachable_by_name
from pyflannel.testing._plan_checks import check_object
from pyflannel.testing._planner import Planner, look_at_time
from pyflannel.testing._scenes import (
    Scene,
    accepted_type,
    example,
    hostile,
    option_fields,
    scenes,
)
from pyflannel.testing._subject import Subject
from pyflannel.testing.clauses import clause, not_applicable

__all__ = ["BackendPlanning"]

IPV6_MINIMUM_MTU: Final = 1280
"""RFC 8200, section 5."""

_PROPERTY = settings(
    report_multiple_bugs=False,
    max_examples=min(40, settings().max_examples),  # a profile that is loaded before may ask for fewer
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # to explain takes minutes, and tells little
    # One property serves many subclasses, and planning is quick: the fixtures hold nothing that wears out.
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
        HealthCheck.too_slow,
    ],
)


class BackendPlanning(Subject):
    """The planner's promises. Set ``backend`` and, where texts among the options matter, ``variants``."""

    @pytest.fixture(scope="class")
    @classmethod
    def state(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Where drawn nodes keep what must outlive reboots."""
        return tmp_path_factory.mktemp("nodes")

    def scene(self, data: st.DataObject, state: Path) -> Scene:
        """A network to plan for, as hypothesis draws it."""
        look_at_time(self.kind)
        return data.draw(scenes(self.kind, self.variants, state), label="scene")

    def example(self, state: Path, versions: Sequence[int], options: Mapping[str, JSON], mtu: int = 1500) -> Scene:
        """A network of three nodes, the same every time."""
        return example(self.kind, state, versions, options, mtu)

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
        assert isinstance(kind.capabilities, Capabilities), f"capabilities are {kind.capabilities!r}"
        assert self.versions, "capabilities claim no address family"
        problem = unlike(kind, Backend)
        assert not problem, f"{kind.__name__}: {problem}"

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
        before = copy.deepcopy((node, peers))
        scene.backend.again().watch(
            node, peers
        )  # what Python imports for the first question is not the planner's doing
        planned, done = scene.backend.watch(node, peers)
        assert not done, f"planning must not touch the world, but it did: {done[:5]}"
        for turn, backend in enumerate([scene.backend, scene.backend, scene.backend.again(), scene.backend], 2):
            again, done = backend.watch(node, peers if turn % 2 else peers[::-1])
            assert not done, f"planning must not touch the world, but asked for turn {turn} it did: {done[:5]}"
            assert again == planned, f"asked for turn {turn}, with the same arguments, it plans something else"
        assert (node, peers) == before, "planning changed the node or a lease that it was given"
        assert scene.backend.options == scene.backend.again().options, "planning changed its options"

    @clause("pyflannel.backend.Backend", "a process that starts anew plans the same")
    def test_another_process_plans_the_same(self, state: Path) -> None:
        """Nothing in a plan is by a text's hash, the order of a set, or an object's place in memory."""
        if not reachable_by_name(self.kind):
            pytest.skip(f"{self.kind.__qualname__} is no class of a module, which another process could import")
        options = self.variants[0]
        here = planned_here(self.kind, self.versions, options, state)
        there = planned_elsewhere(self.kind, self.versions, options, state)
        assert there == here, "a restart would take out of the kernel what was there before, while packets flow"

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

    @clause(
        "pyflannel.backend.Backend.tunnelled",
        "if it is true, packets of peers' containers come in by the devices of plan_node and in no other way",
    )
    def test_tunnels_end_at_devices_of_the_node(self, state: Path) -> None:
        """Else they are dropped, at the latest when the network changes to another backend with tunnels."""
        tried = False
        for options in self.variants:
            scene = self.example(state, self.versions, options)
            node, backend = scene.nodes[0], scene.backend
            if not backend.tunnelled:
                continue
            tried = True
            assert any(isinstance(item, Link) for item in backend.plan_node(node)), "plan_node plans no device"
            for plan in (backend.judge(node, peer) for peer in scene.leases[1:]):
                items = () if isinstance(plan, str) else tuple(plan)
                links = {item.name for item in items if isinstance(item, Link)}
                through = [item for item in items if isinstance(item, Route) and item.link in links]
                assert not through, f"plan_peer plans the device of: {through[0]}; plan it in plan_node, or say False"
        if not tried:
            not_applicable("tunnelled is false")

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
                assert isinstance(item, typing.get_args(KernelObject)), f"{item!r} is not a kernel object"

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
            check_object(item, node, None, links, self.extra_sysctls)
        for item in plan:
            check_object(item, node, peer, links, self.extra_sysctls)

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
                    assert any(lies_in(subnet, route) for route in routes), (
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
