"""The backend kit finds what it is for: one backend per fault, and the test that must fail for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pyflannel.backend import (
    Backend,
    Capabilities,
    Change,
    DesiredState,
    Lease,
    Link,
    Node,
    Published,
    Route,
    Sysctl,
    TunInfo,
    Underlay,
    forwarding,
    option,
    route_via_underlay,
)
from pyflannel.testing._purity import watched
from pyflannel.testing.backends import BackendPlanning


class Good(Backend[Any]):
    """Keeps every promise; each fault below breaks one."""

    name = "good"
    capabilities = Capabilities()

    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu

    def publish(self, node: Node) -> Published:
        return Published({"Port": 1})

    def plan_node(self, node: Node) -> DesiredState:
        return DesiredState([forwarding(4)])

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        assert peer.subnets.ipv4 is not None
        assert peer.attributes.public_ip is not None
        if not node.underlay.is_onlink(peer.attributes.public_ip):
            return DesiredState()
        return DesiredState([route_via_underlay(node, peer.subnets.ipv4, peer.attributes.public_ip)])


class Trusting(Good):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        assert peer.attributes.backend_data["Port"] == 1
        return super().plan_peer(node, peer)


class Remembering(Good):
    calls = 0

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        type(self).calls += 1
        plan = super().plan_peer(node, peer)
        return DesiredState(Route(i.destination, i.link, i.gateway, metric=self.calls) for i in plan)  # type: ignore[union-attr]


class Watching(Good):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        time.time()
        return super().plan_peer(node, peer)


class Reading(Good):
    def plan_node(self, node: Node) -> DesiredState:
        with contextlib.suppress(OSError):
            Path("/proc/self/status").read_text()
        return super().plan_node(node)


class Scribbling(Good):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        if isinstance(peer.attributes.backend_data, dict):
            peer.attributes.backend_data["seen"] = True
        return super().plan_peer(node, peer)


class Grasping(Good):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return DesiredState([Route(ip_network("10.0.0.0/8"), node.underlay.interface, peer.attributes.public_ip)])


class Meddling(Good):
    def plan_node(self, node: Node) -> DesiredState:
        return DesiredState([forwarding(4), Sysctl("net/ipv4/conf/eth0/rp_filter", "0")])


class Colliding(Good):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return DesiredState([*super().plan_peer(node, peer), Link("peer0", TunInfo(), 1400)])


class Listing(Good):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return list(super().plan_peer(node, peer))  # type: ignore[return-value]


class Unroutable(Good):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return DesiredState()


class Numeric(Good):
    def describe(self, node: Node) -> Mapping[str, str]:
        return {"peers": 7}  # type: ignore[dict-item]


class Lasting(Good):
    actions: ClassVar[Mapping[str, str]] = {"count": "One more."}
    count = 0

    def publish(self, node: Node) -> Published:
        return Published({"Port": self.count})

    def act(self, action: str, node: Node) -> Change:
        type(self).count += 1
        return Change("counted", lambda: None)


class Forgetful(Lasting):
    def act(self, action: str, node: Node) -> Change:
        self.count = 1
        return Change("counted", lambda: setattr(self, "count", 0))


class Boasting(Good):
    capabilities = Capabilities(ipv4=True, ipv6=True)

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return super().plan_peer(node, peer) if peer.subnets.ipv4 is not None else DesiredState()


class Large(Good):
    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu + 1


class Unprintable(Good):
    def publish(self, node: Node) -> Published:
        return Published(IPv4Address("192.0.2.1"))


class Fickle(Good):
    def publish(self, node: Node) -> Published:
        return Published({"Time": time.monotonic_ns()})


class Old(Good):
    api_version: ClassVar[int] = 0


@dataclass(frozen=True)
class Undocumented:
    port: int = option("Port", 1, "", minimum=0)


@dataclass(frozen=True)
class OutOfBounds:
    port: int = option("Port", 1, "a port", minimum=2)


@dataclass(frozen=True)
class Bare:
    port: int = 1


@dataclass
class Thawed:
    port: int = option("Port", 1, "a port", minimum=0)


def with_options(options: type[Any]) -> type[Backend[Any]]:
    return type(options.__name__, (Good,), {"Options": options})


FAULTS: dict[type[Backend[Any]], str] = {
    Trusting: "test_a_hostile_peer_is_rejected_or_harmless",
    Remembering: "test_planning_is_pure",
    Watching: "test_planning_is_pure",
    Reading: "test_planning_is_pure",
    Scribbling: "test_planning_is_pure",
    Grasping: "test_only_own_objects_are_planned",
    Meddling: "test_only_own_objects_are_planned",
    Colliding: "test_good_peers_do_not_get_in_each_others_way",
    Listing: "test_a_plan_is_a_desired_state",
    Unroutable: "test_declared_families_are_served",
    Boasting: "test_declared_families_are_served",
    Numeric: "test_it_describes_itself_in_texts",
    Lasting: "test_actions_can_be_taken_back",
    Forgetful: "test_actions_can_be_taken_back",
    Large: "test_the_mtu_fits_the_underlay",
    Unprintable: "test_what_is_published_is_json",
    Fickle: "test_what_is_published_is_json",
    Old: "test_it_states_its_api_version_name_and_families",
    with_options(Undocumented): "test_options_are_a_complete_table",
    with_options(OutOfBounds): "test_options_are_a_complete_table",
    with_options(Bare): "test_options_are_a_complete_table",
    with_options(Thawed): "test_options_are_a_complete_table",
}


def verdict(kind: type[Backend[Any]], name: str, state: Path) -> None:
    """Run one test of the kit, as pytest would."""
    kit = type("Kit", (BackendPlanning,), {"backend": kind})()
    test: Callable[..., None] = getattr(kit, name)
    inner = getattr(getattr(BackendPlanning, name), "hypothesis", None)
    needs_state = "state" in (inner.inner_test if inner else test).__code__.co_varnames[:4]
    test(**({"state": state} if needs_state else {}))


@pytest.mark.parametrize(("kind", "name"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_is_found(kind: type[Backend[Any]], name: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, TypeError, LookupError)):  # the kit's verdict, or what the fault led to
        verdict(kind, name, tmp_path)


@pytest.mark.parametrize("name", sorted({*FAULTS.values()} - {"test_actions_can_be_taken_back"}))  # it has none
def test_a_good_backend_passes(name: str, tmp_path: Path) -> None:
    verdict(Good, name, tmp_path)


def test_the_watch_sees_the_world_and_lets_it_be() -> None:
    with watched() as done:
        assert time.time() > 0
        Path("/proc/self/status").read_text()
    assert any(entry == "time.time" for entry in done)
    assert any(entry.startswith("open /proc/self/status") for entry in done)
    seen = len(done)
    time.time()
    Path("/proc/self/status").read_text()
    assert len(done) == seen
