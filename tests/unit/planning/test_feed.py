from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import pytest

from pyflannel.backend import (
    Backend,
    DataPlane,
    Lease,
    LeaseAttributes,
    NetworkConfig,
    Node,
    NoOptions,
    Subnets,
    Underlay,
)
from pyflannel.errors import PluginError
from pyflannel.planning.feed import AT_ONCE, CHECK_INTERVAL, Feed
from pyflannel.planning.overlay import Overlay

NODE = Node(
    "node-1",
    NetworkConfig.from_json('{"Network": "10.5.0.0/16", "Backend": {"Type": "own"}}'),
    Underlay("eth0", 1500, IPv4Address("192.0.2.1"), public_ipv4=IPv4Address("192.0.2.1")),
    Subnets(IPv4Network("10.5.1.0/24")),
)


BIG = replace(
    NODE, network=NetworkConfig.from_json('{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "own"}}')
)


class Plane(DataPlane):
    """A table, and calls that fail as the backend says."""

    def __init__(self, backend: Own) -> None:
        self.backend = backend
        self.table: dict[str, str] = {}
        self.removed: list[str] = []
        self.calls = 0
        self.stopped = False
        self.report = {"10.5.9.0-24": "does not answer"}

    def put(self, peer: Lease) -> None:
        self.backend.failing("put")
        if str(peer.subnets) == self.backend.refuses:
            self.backend.refused += 1
            raise RuntimeError("not this one")
        self.calls += 1
        self.table[str(peer.subnets)] = str(peer.attributes.public_ip)
        self.backend.failing("end of put")

    def remove(self, subnets: Subnets) -> None:
        self.backend.failing("remove")
        self.calls += 1
        self.removed.append(str(subnets))
        del self.table[str(subnets)]

    def check(self) -> Mapping[str, str]:
        self.backend.failing("check")
        return self.report

    def renew(self) -> None:
        self.backend.failing("renew")

    def counters(self) -> Mapping[str, int]:
        self.backend.failing("counters")
        return {"calls": self.calls}

    def describe(self) -> Mapping[str, str]:
        self.backend.failing("describe")
        return self.report

    def stop(self) -> None:
        self.stopped = True
        self.backend.failing("stop")


class Own(Backend[NoOptions]):
    name = "own"

    def __init__(self, failures: int = 0) -> None:
        super().__init__(NoOptions())
        self.refuses = ""
        self.refused = 0
        self._faults: dict[str, list[BaseException]] = {}
        self.newest = self.plane = Plane(self)
        self.fail("start", RuntimeError("no such device"), failures)

    def fail(self, call: str, error: BaseException, times: int) -> None:
        """Have the next calls of one kind fail."""
        self._faults.setdefault(call, []).extend([error] * times)

    def failing(self, call: str) -> None:
        """Fail if this call is to."""
        if self._faults.get(call):
            raise self._faults[call].pop()

    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu

    def start(self, node: Node) -> DataPlane | None:
        self.failing("start")
        if self.newest.stopped:
            self.newest = Plane(self)
        return self.newest


ALIAS = "10.5.2.0-24&fd00:99::-64"


def lease(number: int, host: int | None = None) -> tuple[str, str]:
    attributes = LeaseAttributes(IPv4Address(f"192.0.2.{host or number}"), backend_type="own")
    return f"10.5.{number}.0-24", attributes.to_json()


def fed(*leases: tuple[str, str], backend: Own | None = None) -> tuple[Own, Overlay, Feed]:
    backend = backend or Own()
    overlay, feed = Overlay(backend, NODE), Feed(backend, NODE)
    for item in leases:
        overlay.put(*item)
    feed.tend(overlay, 0.0)
    return backend, overlay, feed


def test_the_data_plane_is_told_of_every_usable_peer() -> None:
    backend, _, feed = fed(lease(2), lease(3), ("nonsense", "{}"))
    assert backend.plane.table == {"10.5.2.0/24": "192.0.2.2", "10.5.3.0/24": "192.0.2.3"}
    assert feed.problems == {"10.5.9.0-24": "does not answer"}
    assert feed.counters() == {"calls": 2}


def test_changes_are_passed_on_and_nothing_is_said_twice() -> None:
    backend, overlay, feed = fed(lease(2), lease(3))
    overlay.put(*lease(3, host=33))
    overlay.remove("10.5.2.0-24")
    overlay.put(*lease(4))
    feed.tend(overlay, 0.1)
    feed.tend(overlay, 0.2)
    assert backend.plane.table == {"10.5.3.0/24": "192.0.2.33", "10.5.4.0/24": "192.0.2.4"}
    assert backend.plane.calls == 5


def test_after_a_new_snapshot_who_is_not_in_it_is_gone() -> None:
    backend, _, feed = fed(lease(2), lease(3))
    later = Overlay(backend, NODE)
    later.put(*lease(3))
    later.put(*lease(4))
    feed.tend(later, 1.0)
    assert backend.plane.table == {"10.5.3.0/24": "192.0.2.3", "10.5.4.0/24": "192.0.2.4"}
    assert backend.plane.calls == 4, "who stays is not told again"


def test_a_data_plane_that_does_not_start_is_named_and_tried_again() -> None:
    backend, overlay, feed = fed(lease(2), backend=Own(failures=1))
    assert feed.trouble == "backend 'own' failed in start: RuntimeError: no such device"
    overlay.put(*lease(3))
    feed.tend(overlay, feed.due / 2)
    assert backend.plane.table == {}
    feed.tend(overlay, feed.due)
    assert feed.trouble == ""
    assert len(backend.plane.table) == 2


@pytest.mark.parametrize("answer", [7, "x", object(), DataPlane], ids=lambda answer: type(answer).__name__)
def test_what_is_no_data_plane_is_named_and_never_called(answer: Any) -> None:
    backend = Own()
    backend.newest = answer
    backend.start = lambda node: backend.newest  # type: ignore[method-assign]
    _, overlay, feed = fed(lease(2), backend=backend)
    assert feed.trouble == f"backend 'own' started {answer!r}, which is no DataPlane"
    assert not feed.settled
    feed.stop()
    feed.end()
    backend.newest = backend.plane
    feed.tend(overlay, feed.due)
    assert (feed.trouble, len(backend.plane.table)) == ("", 1)


def settle(feed: Feed, overlay: Overlay, until: float = 100.0) -> None:
    """Tend whenever it is due."""
    now = 0.0
    while now < until:
        feed.tend(overlay, now)
        now = max(now + 0.001, min(feed.due, until))


FAULTS = [RuntimeError("full"), SystemExit(3), PluginError("full")]


@pytest.fixture(params=[1, 3, 10], ids=["once", "thrice", "for a while"])
def times(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["start", "put", "remove", "check", "counters", "describe", "renew", "stop"])
def test_a_call_that_fails_is_made_up_for(call: str, error: BaseException, times: int) -> None:
    backend, overlay, feed = fed(lease(2), lease(3))
    backend.fail(call, error, times)
    if call == "start":
        backend.fail("check", error, 1)
    overlay.put(*lease(3, host=33))
    overlay.remove("10.5.2.0-24")
    overlay.put(*lease(4))
    feed.renew()
    now = 1.0
    while now < 300:
        feed.tend(overlay, now)
        feed.counters()
        feed.descriptions()
        now = max(now + 0.01, feed.due)
    feed.renew()
    assert (backend.newest.table, feed.trouble) == ({"10.5.3.0/24": "192.0.2.33", "10.5.4.0/24": "192.0.2.4"}, "")
    assert feed.problems == {"10.5.9.0-24": "does not answer"}
    feed.stop()


@pytest.mark.parametrize("counted", [{"calls": "many"}, {"calls": None}, {"calls": True}, {"calls": 1.5}, ["calls"]])
def test_what_is_counted_and_is_no_number_is_named_and_left_out(counted: Any) -> None:
    """Status and metrics as a whole would fail for it."""
    backend, overlay, feed = fed(lease(2))
    backend.newest.counters = lambda: counted  # type: ignore[method-assign]
    assert feed.counters() == {}
    assert "backend 'own' failed in counters of its data plane: " in feed.trouble
    del backend.newest.counters
    feed.tend(overlay, 10.0)
    assert (feed.counters(), feed.trouble) == ({"calls": 1}, "")


def test_one_peer_that_the_data_plane_does_not_take_is_one_peer_and_is_tried_ever_less_often() -> None:
    backend = Own()
    backend.refuses = "10.5.3.0/24"
    _, overlay, feed = fed(lease(2), lease(3), lease(4), backend=backend)
    settle(feed, overlay)
    assert backend.plane.table == {"10.5.2.0/24": "192.0.2.2", "10.5.4.0/24": "192.0.2.4"}
    assert feed.trouble == ""
    assert "RuntimeError: not this one" in feed.problems["10.5.3.0-24"]
    assert backend.refused < 40
    overlay.remove("10.5.3.0-24")
    feed.tend(overlay, 100.0)
    assert feed.problems.keys() == {"10.5.9.0-24"}


def test_news_that_failed_and_may_have_been_taken_are_taken_back() -> None:
    backend, overlay, feed = fed(lease(2))
    backend.fail("end of put", TimeoutError("no answer"), 1)
    overlay.put(*lease(2, host=22))
    feed.tend(overlay, 0.5)
    overlay.put(*lease(2))
    feed.tend(overlay, 0.6)
    assert backend.plane.table == {"10.5.2.0/24": "192.0.2.2"}
    assert feed.problems.keys() == {"10.5.9.0-24"}


@pytest.mark.parametrize("heir", [(), (ALIAS, lease(3)[1])], ids=["nobody's", "an heir's"])
def test_a_peer_whose_news_were_refused_and_that_goes_leaves_nothing_to_do(heir: tuple[str, str] | tuple[()]) -> None:
    """Its subnets are nobody's claim any more, or those of a lease that is not taken either until later."""
    backend, overlay, feed = fed(lease(2))
    backend.refuses = "10.5.2.0/24"
    overlay.put(*lease(2, host=22))
    feed.tend(overlay, 0.5)
    assert feed.problems.keys() >= {"10.5.2.0-24"}
    if heir:
        overlay.put(*heir)
    overlay.remove("10.5.2.0-24")
    now = feed.due
    for _ in range(3):
        feed.tend(overlay, now)
        assert feed.due > now, "or the daemon turns without a pause"
    assert (backend.plane.table != {}) is bool(heir)
    backend.refuses = ""
    settle(feed, overlay)
    assert backend.plane.table == ({"10.5.2.0/24": "192.0.2.3"} if heir else {})


def test_a_data_plane_that_serves_nobody_for_one_reason_is_an_outage_once_it_lasts() -> None:
    backend, overlay, feed = fed(lease(2), lease(3))

    def outage(at: float, **report: str) -> str:
        backend.plane.report = {f"10.5.{number[1:]}.0-24": why for number, why in report.items()}
        feed.tend(overlay, at)
        return feed.outage

    assert outage(10.0, _2="it died", _3="it died") == ""
    assert outage(14.0, _2="it died", _3="it died") == ""
    assert outage(15.0, _2="it died again", _3="it died again") == "it died again"
    assert outage(20.0, _3="it died") == ""
    assert outage(30.0, _2="it died", _3="it died") == ""
    assert outage(40.0, _2="no answer from 2", _3="no answer from 3") == ""
    assert outage(50.0, _2="it died", _3="it died") == ""
    backend.fail("check", RuntimeError("dead"), 1)
    assert outage(60.0) == ""


def test_a_data_plane_that_is_dead_is_started_again_and_told_everything() -> None:
    backend, overlay, feed = fed(lease(2), lease(3))
    first = backend.newest
    backend.fail("check", RuntimeError("my thread is dead"), 1)
    feed.tend(overlay, CHECK_INTERVAL)
    assert "my thread is dead" in feed.trouble
    assert first.stopped
    overlay.put(*lease(4))
    feed.tend(overlay, feed.due)
    assert feed.trouble == ""
    assert backend.newest is not first
    assert len(backend.newest.table) == 3


@pytest.mark.parametrize("order", [(ALIAS, "10.5.2.0-24"), ("10.5.2.0-24", ALIAS)], ids=["alias first", "alias last"])
@pytest.mark.parametrize("turns", ["each", "one"])
def test_two_leases_with_the_same_usable_subnets_have_one_owner(order: tuple[str, str], turns: str) -> None:
    """K beside K&fd00:99::-64 in a network without IPv6; then K is broken, and mended."""
    backend, overlay, feed = fed()
    steps = [(order[0], lease(2)[1]), (order[1], lease(2)[1]), ("10.5.2.0-24", "{"), ("10.5.2.0-24", lease(2)[1])]
    for now, step in enumerate(steps):
        overlay.put(*step)
        if turns == "each":
            feed.tend(overlay, float(now))
            assert backend.plane.table == {"10.5.2.0/24": "192.0.2.2"}
    feed.tend(overlay, 9.0)
    assert backend.plane.table == {"10.5.2.0/24": "192.0.2.2"}
    overlay.remove("10.5.2.0-24")
    overlay.remove(ALIAS)
    feed.tend(overlay, 10.0)
    assert backend.plane.table == {}


@pytest.mark.parametrize("keeps", [4, 6])
def test_a_network_that_gives_up_a_family_loses_nobody(keeps: int) -> None:
    """Each node writes its lease anew, without that family, and then deletes the old one."""
    v4, v6 = "10.5.2.0-24", "fd00:5:0:2::-64"
    both, single = f"{v4}&{v6}", v4 if keeps == 4 else v6
    other = "false" if keeps == 4 else "true"
    document = (
        '{"Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48", "Backend": {"Type": "own"}, '
        f'"EnableIPv4": {"true" if keeps == 4 else "false"}, "EnableIPv6": {other}}}'
    )
    public6 = IPv6Address("2001:db8::1")
    node = replace(
        NODE,
        network=NetworkConfig.from_json(document),
        underlay=replace(NODE.underlay, ipv6=public6, public_ipv6=public6),
        subnets=Subnets.from_key("10.5.1.0-24" if keeps == 4 else "fd00:5:0:1::-64"),
    )
    value = LeaseAttributes(IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2"), backend_type="own").to_json()
    backend = Own()
    overlay, feed = Overlay(backend, node), Feed(backend, node)
    overlay.put(both, value)
    feed.tend(overlay, 0.0)
    (subnet,) = backend.plane.table
    overlay.put(single, value)
    feed.tend(overlay, 0.1)
    assert backend.plane.table.keys() == {subnet}
    overlay.remove(both)
    feed.tend(overlay, 0.2)
    assert backend.plane.table.keys() == {subnet}
    assert backend.plane.removed == [], "its sessions would be lost with it"
    overlay.remove(single)
    feed.tend(overlay, 0.3)
    assert backend.plane.table == {}


def test_what_a_data_plane_tells_of_subnets_is_told_of_the_lease() -> None:
    backend, overlay, feed = fed((ALIAS, lease(2)[1]))
    backend.plane.report = {"10.5.2.0-24": "no handshake", "nonsense": "?"}
    feed.tend(overlay, CHECK_INTERVAL)
    assert feed.problems == {ALIAS: "no handshake", "nonsense": "?"}
    assert feed.descriptions() == {ALIAS: "no handshake", "nonsense": "?"}


def test_thousands_of_peers_are_told_in_several_turns_and_checked_after_the_last() -> None:
    backend = Own()
    overlay, feed = Overlay(backend, BIG), Feed(backend, BIG)
    for number in range(AT_ONCE + 10):
        overlay.put(f"10.{6 + number // 250}.{number % 250}.0-24", lease(2)[1])
    feed.tend(overlay, 0.0)
    assert (len(backend.plane.table), feed.problems, feed.due) == (AT_ONCE, {}, 0.0)
    feed.tend(overlay, 0.0)
    assert len(backend.plane.table) == AT_ONCE + 10
    assert feed.problems


def test_a_new_peer_does_not_count_as_served_before_the_data_plane_was_asked() -> None:
    """Its worker may be starting: for a second the node would say that it reaches the peer, and be wrong."""
    backend, overlay, feed = fed(lease(2))
    key, value = lease(3)
    overlay.put(key, value)
    backend.plane.report = {key: "the worker is starting"}
    feed.tend(overlay, feed.due - CHECK_INTERVAL / 2)
    assert feed.problems == {key: "the worker is starting"}


def test_it_goes_on_only_for_the_same_backend_and_node() -> None:
    backend, _, feed = fed()
    assert feed.serves(Own(), NODE)
    assert not feed.serves(Own(), replace(NODE, node_id="node-2"))

    class Other(Own):
        pass

    other: Backend[Any] = Other()
    assert not feed.serves(other, NODE)
    feed.stop()
    assert backend.plane.stopped


def test_a_backend_without_one_costs_nothing() -> None:
    class Kernel(Own):
        def start(self, node: Node) -> DataPlane | None:
            return None

    _, _, feed = fed(lease(2), backend=Kernel())
    assert (feed.plane, feed.trouble, feed.counters()) == (None, "", {})
    assert feed.due == float("inf")
