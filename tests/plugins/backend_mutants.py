"""Backends that break one clause of their contract each, and which tests of the kit must fail for it.

Not collected as it is: :mod:`test_mutants` runs the kit's planning on all of them. A mutant names first the test that
is about its clause and must fail, then those that may fail, too, because they can't work without it; all others must
pass. ``Sound`` keeps every promise; the others are what becomes of it with one fault.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, ip_network
from pathlib import Path
from random import random
from typing import Any, ClassVar

from hypothesis import Phase, settings

from pyflannel.backend import (
    XFRM_INTERFACES,
    Address,
    Backend,
    Capabilities,
    Change,
    DesiredState,
    FdbEntry,
    Lease,
    Link,
    MplsRoute,
    Neighbour,
    Node,
    PeerRejected,
    Published,
    Qdisc,
    Route,
    Rule,
    Sysctl,
    TunInfo,
    Underlay,
    UsualData,
    WireguardPeer,
    XfrmPolicy,
    forwarding,
    mpls_input,
    option,
    route_via_underlay,
)
from pyflannel.testing import _calls, _planner

# The kit's properties take these when they are imported: the same examples every time, and no search for smaller ones.
settings.register_profile(
    "mutants", max_examples=15, deadline=None, database=None, derandomize=True, phases=[Phase.generate]
)
settings.load_profile("mutants")

from pyflannel.testing.backends import BackendPlanning  # noqa: E402

EVERYWHERE = tuple(name.removeprefix("test_") for name in dir(BackendPlanning) if name.startswith("test_"))
"""For what everything else rests on."""

_calls.GRACE = 0.5
_planner.LIMIT = 1.0

DEVICE = "mutant0"

MUTANTS: dict[str, tuple[type[Backend[Any]], tuple[str, ...]]] = {}

PURE = "planning_is_pure"
OURS = "only_own_objects_are_planned"
HOSTILE = "a_hostile_peer_is_rejected_or_harmless"
ROUTED = "a_peer_behind_a_router_is_planned_or_rejected"
APART = "good_peers_do_not_get_in_each_others_way"
GOOD_PEERS = "good_peers_on_the_link_are_planned"
STATE = "a_plan_is_a_desired_state"
SERVED = "declared_families_are_served"
MTU = "the_mtu_fits_the_underlay"
TABLE = "options_are_a_complete_table"
KEPT = "options_keep_to_their_table"
JSON = "what_is_published_is_json"
ACTIONS = "actions_can_be_taken_back"
USUAL = "usual_leases_are_planned_alike"
FACE = "it_states_its_api_version_name_and_families"
ELSEWHERE = "another_process_plans_the_same"
TUNNELS = "tunnels_end_at_devices_of_the_node"


def breaks(*tests: str) -> Callable[[type[Backend[Any]]], type[Backend[Any]]]:
    """The test that must fail, and those that may; without their ``test_``."""

    def note(kind: type[Backend[Any]]) -> type[Backend[Any]]:
        MUTANTS[kind.__name__] = (kind, tests)
        return kind

    return note


@dataclass(frozen=True)
class Options:
    port: int = option("Port", 4790, "UDP port of all nodes", minimum=1, maximum=65535)


class Sound(Backend[Any]):
    """A device, and through it or past it a route to each peer."""

    api_version = 1
    name = "mutant"
    Options = Options
    capabilities = Capabilities()
    actions: ClassVar[Mapping[str, str]] = {"renew": "Count the life of this node's key on."}

    def mtu(self, underlay: Underlay) -> int:
        return max(1280, underlay.mtu - 40)

    def publish(self, node: Node) -> Published:
        return Published({"Port": self.options.port, "Life": self.life(node)})

    def life(self, node: Node) -> int:
        kept = node.state_dir / "life"
        return len(kept.read_text()) if kept.exists() else 0

    def act(self, action: str, node: Node) -> Change:
        kept = node.state_dir / "life"
        before = kept.read_text() if kept.exists() else ""
        kept.write_text(before + ".")
        return Change("counted", lambda: kept.unlink() if not before else (kept.write_text(before), None)[1])

    def describe(self, node: Node) -> Mapping[str, str]:
        return {"port": str(self.options.port)}

    def plan_node(self, node: Node) -> DesiredState:
        assert node.subnets.ipv4 is not None
        gateway = IPv4Interface((node.subnets.ipv4.network_address, 32))
        return DesiredState([forwarding(4), Link(DEVICE, TunInfo(), self.mtu(node.underlay)), Address(DEVICE, gateway)])

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        subnet, address = peer.subnets.ipv4, peer.attributes.public_ip
        if subnet is None or address is None:
            raise PeerRejected("no IPv4 in the lease")
        port = self.port_of(peer)
        if not node.underlay.is_onlink(address):
            return DesiredState([Route(subnet, DEVICE, metric=port)])
        return DesiredState([route_via_underlay(node, subnet, address)])

    def port_of(self, peer: Lease) -> int:
        data = peer.attributes.backend_data
        port = data.get("Port") if isinstance(data, dict) else None
        if type(port) is not int or not 0 < port < 65536:
            raise PeerRejected(f"BackendData.Port is {port!r}")
        return port


def with_metric(plan: DesiredState, metric: int) -> DesiredState:
    return DesiredState(replace(item, metric=metric) for item in plan if isinstance(item, Route))


def plus(plan: DesiredState, *more: Any) -> DesiredState:
    return DesiredState([*plan, *more])


# the face


@breaks(FACE)
class OldVersion(Sound):
    api_version = 0


@breaks(
    FACE,
    "all_variants_are_valid",
    "it_describes_itself_in_texts",
    ACTIONS,
    MTU,
    SERVED,
    ROUTED,
    PURE,
    STATE,
    OURS,
    HOSTILE,
    APART,
    GOOD_PEERS,
    JSON,
    USUAL,
    ELSEWHERE,
    TUNNELS,
)
class CarriesNothing(Sound):
    """Nor does it come to the other tests: there is no network to try it in."""

    capabilities = Capabilities(ipv4=False)


@breaks(
    "all_variants_are_valid",
    PURE,
    STATE,
    OURS,
    HOSTILE,
    ROUTED,
    APART,
    GOOD_PEERS,
    SERVED,
    MTU,
    JSON,
    ACTIONS,
    "it_describes_itself_in_texts",
    USUAL,
    ELSEWHERE,
    TUNNELS,
)
class RefusesItsDefaults(Sound):
    """And so can't be tried in any other way."""

    def __init__(self, options: Any) -> None:
        raise RuntimeError("no")


@breaks(FACE, *EVERYWHERE)
class ToBeAwaited(Sound):
    async def plan_peer(self, node: Node, peer: Lease) -> DesiredState:  # type: ignore[override]
        return super().plan_peer(node, peer)


@breaks(FACE, *EVERYWHERE)
class NamedByItsObjects(Sound):
    @property
    def name(self) -> str:  # type: ignore[override]
        raise RuntimeError("no name yet")


@breaks(FACE, *EVERYWHERE)
class ClaimsByADict(Sound):
    capabilities = {"ipv4": True}  # type: ignore[assignment] # noqa: RUF012


@breaks(TUNNELS)
class TunnelsToEachPeer(Sound):
    tunnelled = True

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        plan = super().plan_peer(node, peer)
        assert peer.subnets.ipv4 is not None
        device = f"m{int(peer.subnets.ipv4.network_address):08x}"
        routes = (replace(item, link=device, gateway=None) for item in plan if isinstance(item, Route))
        return DesiredState([Link(device, TunInfo(), self.mtu(node.underlay)), *routes])


@breaks("it_describes_itself_in_texts")
class DescribesNothing(Sound):
    def describe(self, node: Node) -> Mapping[str, str]:
        return None  # type: ignore[return-value]


@breaks("it_describes_itself_in_texts")
class DescribesInNumbers(Sound):
    def describe(self, node: Node) -> Mapping[str, str]:
        return {"port": self.options.port}


# options


@breaks(TABLE)
class Undocumented(Sound):
    @dataclass(frozen=True)
    class Options:
        port: int = option("Port", 4790, " ", minimum=1)


@breaks(TABLE, KEPT)
class DefaultOutOfBounds(Sound):
    @dataclass(frozen=True)
    class Options:
        port: int = option("Port", 4790, "a port", minimum=5000)


@breaks(TABLE)
class Bare(Sound):
    @dataclass(frozen=True)
    class Options:
        port: int = 4790


@breaks(TABLE)
class Thawed(Sound):
    @dataclass
    class Options:
        port: int = option("Port", 4790, "a port", minimum=1, maximum=65535)


@breaks(TABLE, KEPT)
class TwoKeysInAll(Sound):
    @dataclass(frozen=True)
    class Options:
        port: int = option("Port", 4790, "a port", minimum=1, maximum=65535)
        other: int = option("PORT", 4791, "another port", minimum=2, maximum=65535)


@breaks(KEPT, PURE)
class NeverTheSame(Sound):
    """Two sets of the same options are two."""

    @dataclass(frozen=True)
    class Options:
        port: int = option("Port", 4790, "a port", minimum=1, maximum=65535)

        def __eq__(self, other: object) -> bool:
            return False


# purity


@breaks(PURE, ACTIONS, ELSEWHERE)
class Counting(Sound):
    calls = 0

    def plan_node(self, node: Node) -> DesiredState:
        type(self).calls += 1
        mtu = self.mtu(node.underlay) - self.calls % 7
        return DesiredState(
            replace(item, mtu=mtu) if isinstance(item, Link) else item for item in super().plan_node(node)
        )


@breaks(PURE, ACTIONS, ELSEWHERE)
class OtherAtTheThirdCall(Sound):
    """The object is asked for this node twice in peace."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.calls = 0

    def plan_node(self, node: Node) -> DesiredState:
        self.calls += 1
        own = super().plan_node(node)
        return own if self.calls < 3 else DesiredState(item for item in own if not isinstance(item, Sysctl))


@breaks(PURE)
class LooksAtTheClock(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        time.time()
        return super().plan_peer(node, peer)


@breaks(PURE)
class ReadsAFile(Sound):
    def plan_node(self, node: Node) -> DesiredState:
        with contextlib.suppress(OSError):
            Path("/proc/self/status").read_text()
        return super().plan_node(node)


@breaks(PURE)
class Prints(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        print("planning", peer.key, file=sys.stderr)
        return super().plan_peer(node, peer)


@breaks(PURE)
class StartsAThread(Sound):
    def plan_node(self, node: Node) -> DesiredState:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        return super().plan_node(node)


@breaks(PURE, ELSEWHERE)
class Rolls(Sound):
    """By a function that was imported before anybody watched."""

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return with_metric(super().plan_peer(node, peer), 1 + int(random() * 9999))


@breaks(ELSEWHERE)
class HashesTexts(Sound):
    """Which gives the same for as long as the process lasts."""

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return with_metric(super().plan_peer(node, peer), 1 + hash(peer.key) % 9999)


@breaks(PURE, HOSTILE)
class RewritesThePeer(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        object.__setattr__(peer.attributes, "node_id", "somebody else")
        return super().plan_peer(node, peer)


@breaks(PURE)
class RewritesTheNode(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        object.__setattr__(node.underlay, "interface", "eth7")
        return super().plan_peer(node, peer)


@breaks(PURE, HOSTILE)
class Scribbles(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        if isinstance(peer.attributes.backend_data, dict):
            peer.attributes.backend_data["seen"] = True
        return super().plan_peer(node, peer)


@breaks(PURE, ELSEWHERE)
class FollowsTheOrder(Sound):
    """Who was asked for first gets the better metric."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.first: str | None = None

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        self.first = self.first or peer.key
        metric = 5 if peer.key == self.first else 6
        plan = super().plan_peer(node, peer)
        return DesiredState(replace(item, metric=metric) for item in plan if isinstance(item, Route))


@breaks(PURE, HOSTILE, ROUTED, OURS, APART, GOOD_PEERS, SERVED, STATE, ELSEWHERE)
class Hangs(Sound):
    """Nothing that asks for a peer can pass."""

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        threading.Event().wait()
        return super().plan_peer(node, peer)


# peers


@breaks(HOSTILE, *EVERYWHERE)
class Exits(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        sys.exit(3)


@breaks(HOSTILE, *EVERYWHERE)
class Interrupts(Sound):
    """Which must not end the tests."""

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        raise KeyboardInterrupt


@breaks(HOSTILE, *EVERYWHERE)
class NeverReturns(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return self.plan_peer(node, peer)


@breaks(STATE, *EVERYWHERE)
class YieldsItsPlan(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:  # type: ignore[misc]
        yield from super().plan_peer(node, peer)


@breaks(HOSTILE)
class Trusts(Sound):
    def port_of(self, peer: Lease) -> int:
        return int(peer.attributes.backend_data["Port"])


@breaks(HOSTILE)
class RejectsWithoutAReason(Sound):
    def port_of(self, peer: Lease) -> int:
        try:
            return super().port_of(peer)
        except PeerRejected:
            raise PeerRejected("") from None


@breaks(GOOD_PEERS, OURS, APART, SERVED)
class RefusesItsOwnKind(Sound):
    def publish(self, node: Node) -> Published:
        return Published({"port": self.options.port})


@breaks(ROUTED)
class FailsBehindARouter(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        plan = super().plan_peer(node, peer)
        (route,) = plan
        if isinstance(route, Route) and route.gateway is None:
            raise LookupError("no gateway")
        return plan


@breaks(ROUTED)
class BelievesThatAllAreOnLink(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        assert peer.subnets.ipv4 is not None
        assert peer.attributes.public_ip is not None
        self.port_of(peer)
        return DesiredState([route_via_underlay(node, peer.subnets.ipv4, peer.attributes.public_ip)])


# what is published, and actions


@breaks(
    JSON,
    GOOD_PEERS,
    OURS,
    APART,
    SERVED,
    PURE,
    STATE,
    HOSTILE,
    ROUTED,
    MTU,
    "all_variants_are_valid",
    ACTIONS,
    "it_describes_itself_in_texts",
    USUAL,
    ELSEWHERE,
    TUNNELS,
)
class Unprintable(Sound):
    """No lease can be written with it, so that there are no peers either."""

    def publish(self, node: Node) -> Published:
        return Published({"Port": self.options.port, "Address": IPv4Address("192.0.2.1")})


@breaks(JSON, *EVERYWHERE)
class PublishesADict(Sound):
    def publish(self, node: Node) -> Published:
        return {"Port": self.options.port}  # type: ignore[return-value]


@breaks(ACTIONS)
class DoesNotSayWhatItDid(Sound):
    def act(self, action: str, node: Node) -> Change:
        super().act(action, node)
        return None  # type: ignore[return-value]


@breaks(JSON, ACTIONS)
class Fickle(Sound):
    def publish(self, node: Node) -> Published:
        return Published({"Port": self.options.port, "Time": time.monotonic_ns()})


@breaks(ACTIONS)
class CanNotUndo(Sound):
    def act(self, action: str, node: Node) -> Change:
        super().act(action, node)
        return Change("counted", lambda: None)


@breaks(ACTIONS)
class Forgetful(Sound):
    """A restart knows nothing of the action."""

    more = 0

    def life(self, node: Node) -> int:
        return self.more

    def act(self, action: str, node: Node) -> Change:
        self.more = 1
        return Change("counted", lambda: setattr(self, "more", 0))


@breaks(ACTIONS)
class ActsInSilence(Sound):
    def act(self, action: str, node: Node) -> Change:
        return replace(super().act(action, node), done=" ")


# only what is ours


@breaks(STATE, *EVERYWHERE)
class PlansAList(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return list(super().plan_peer(node, peer))  # type: ignore[return-value]


@breaks(OURS, HOSTILE, ROUTED, APART)
class RoutesTheWorld(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return plus(super().plan_peer(node, peer), Route(ip_network("10.0.0.0/8"), DEVICE, metric=len(peer.key)))


@breaks(OURS, HOSTILE, ROUTED)
class SetsOthersParameters(Sound):
    def plan_node(self, node: Node) -> DesiredState:
        return plus(super().plan_node(node), Sysctl("net/ipv4/conf/eth0/rp_filter", "0"))


@breaks(OURS, HOSTILE, ROUTED)
class TakesTheUnderlay(Sound):
    def plan_node(self, node: Node) -> DesiredState:
        return plus(super().plan_node(node), Link(node.underlay.interface, TunInfo(), 1280))


@breaks(OURS, HOSTILE, ROUTED)
class MarksNothing(Sound):
    def plan_node(self, node: Node) -> DesiredState:
        return plus(super().plan_node(node), Link("mutant1", TunInfo(), 1280, marked=False))


@breaks(OURS, HOSTILE, ROUTED)
class Multicasts(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        assert peer.subnets.ipv4 is not None
        neighbour = Neighbour(DEVICE, peer.subnets.ipv4.network_address, "01:00:5e:00:00:01")
        return plus(super().plan_peer(node, peer), neighbour)


@breaks(OURS, HOSTILE, ROUTED)
class ForwardsToAnother(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        assert peer.subnets.ipv4 is not None
        mac = f"02:00:00:00:00:{peer.subnets.ipv4.network_address.packed[2]:02x}"
        return plus(super().plan_peer(node, peer), FdbEntry(DEVICE, mac, IPv4Address("203.0.113.9")))


@breaks(OURS, HOSTILE, ROUTED)
class LivesWithAnother(Sound):
    """An address in a subnet that is not this node's."""

    def plan_node(self, node: Node) -> DesiredState:
        return plus(super().plan_node(node), Address(DEVICE, IPv4Interface("10.244.255.1/32")))


@breaks(OURS, HOSTILE, ROUTED)
class LetsPeersSpeakForAll(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        key = f"{peer.key:A<43}"[:43].replace(".", "B").replace("-", "C") + "="
        return plus(super().plan_peer(node, peer), WireguardPeer(DEVICE, key, (ip_network("10.244.0.0/16"),)))


@breaks(OURS, HOSTILE, ROUTED)
class RulesOverAll(Sound):
    """A rule that all of the node's packets follow."""

    def plan_node(self, node: Node) -> DesiredState:
        return plus(super().plan_node(node), Rule(4, 100, action="blackhole"))


@breaks(OURS, HOSTILE, ROUTED, APART)
class RulesForAnother(Sound):
    """A rule, planned for a peer, that is about all of them."""

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return plus(super().plan_peer(node, peer), Rule(4, 100, ip_network("10.244.0.0/16"), action="prohibit"))


@breaks(OURS, HOSTILE, ROUTED)
class QueuesForTheUnderlay(Sound):
    def plan_node(self, node: Node) -> DesiredState:
        return plus(super().plan_node(node), Qdisc(node.underlay.interface, "noqueue"))


@breaks(OURS, APART, HOSTILE, ROUTED)
class TunnelsForAll(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        here, there = node.underlay.ipv4, peer.attributes.public_ip
        if here is None or there is None:
            return super().plan_peer(node, peer)
        ends = ip_network("10.244.1.0/24"), ip_network("10.244.0.0/16")
        return plus(super().plan_peer(node, peer), XfrmPolicy(*ends, "out", XFRM_INTERFACES[0], here, there))


@breaks(OURS, APART, HOSTILE, ROUTED)
class SwitchesToAnother(Sound):
    """Packets with a peer's label go to somebody else."""

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        way = MplsRoute(100, node.underlay.interface, IPv4Address("203.0.113.9"))
        return plus(super().plan_peer(node, peer), way)


@breaks(OURS, HOSTILE, ROUTED)
class LetsLabelsInElsewhere(Sound):
    def plan_node(self, node: Node) -> DesiredState:
        return plus(super().plan_node(node), mpls_input("eth7"))


@breaks(APART)
class Collides(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return plus(super().plan_peer(node, peer), Sysctl(f"net/ipv4/conf/{DEVICE}/rp_filter", "0"))


@breaks(APART)
class ShortensNames(Sound):
    """To the fifteen bytes that a link's name may have, and the peers differ in the sixteenth."""

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return plus(super().plan_peer(node, peer), Link(f"mutant-to-{peer.key}"[:15], TunInfo(), 1280))


@breaks(USUAL)
class SaysUsualInAList(Sound):
    def usual(self, node: Node) -> Mapping[int, UsualData]:
        return [4]  # type: ignore[return-value]


@breaks(USUAL)
class KnowsNoExceptions(Sound):
    """Says that plans differ in addresses alone, and they differ in what peers are behind, too."""

    def usual(self, node: Node) -> Mapping[int, UsualData]:
        return {4: UsualData({"Port": self.options.port, "Life": 0}, "Mac")}


# families and sizes


@breaks(SERVED)
class LeadsNowhere(Sound):
    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        super().plan_peer(node, peer)
        return DesiredState()


@breaks(SERVED, OURS, GOOD_PEERS, APART, "all_variants_are_valid", PURE, STATE, MTU, HOSTILE, ROUTED, JSON, ACTIONS)
class Boasts(Sound):
    """Claims IPv6, and fails in a network that has nothing else."""

    capabilities = Capabilities(ipv4=True, ipv6=True)


@breaks(MTU)
class LargerThanTheUnderlay(Sound):
    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu + 1

    def plan_node(self, node: Node) -> DesiredState:
        return DesiredState(
            replace(item, mtu=1280) if isinstance(item, Link) else item for item in super().plan_node(node)
        )


@breaks(MTU)
class LessThanNothing(Sound):
    def mtu(self, underlay: Underlay) -> int:
        return -1

    def plan_node(self, node: Node) -> DesiredState:
        return Sound(self.options).plan_node(node)


@breaks(MTU)
class TooSmallForIPv6(Sound):
    def mtu(self, underlay: Underlay) -> int:
        return 1000


@breaks(MTU)
class SmallerOnALargerUnderlay(Sound):
    def mtu(self, underlay: Underlay) -> int:
        return max(1280, 3000 - underlay.mtu)


@breaks(MTU)
class DeviceLargerThanTheUnderlay(Sound):
    def plan_node(self, node: Node) -> DesiredState:
        mtu = node.underlay.mtu + 8
        return DesiredState(
            replace(item, mtu=mtu) if isinstance(item, Link) else item for item in super().plan_node(node)
        )


MUTANTS["Sound"] = (Sound, ())


class Planned(BackendPlanning):
    """The kit, as an author has it."""

    __test__ = False


for _name, (_kind, _) in MUTANTS.items():
    globals()[f"Test{_name}"] = type(f"Test{_name}", (Planned,), {"__test__": True, "backend": _kind})
