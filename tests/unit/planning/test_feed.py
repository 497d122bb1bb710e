from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

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
from pyflannel.planning.feed import CHECK_INTERVAL, Feed
from pyflannel.planning.overlay import Overlay

NODE = Node(
    "node-1",
    NetworkConfig.from_json('{"Network": "10.5.0.0/16", "Backend": {"Type": "own"}}'),
    Underlay("eth0", 1500, IPv4Address("192.0.2.1"), public_ipv4=IPv4Address("192.0.2.1")),
    Subnets(IPv4Network("10.5.1.0/24")),
)


class Plane(DataPlane):
    def __init__(self) -> None:
        self.table: dict[str, str] = {}
        self.calls = 0
        self.stopped = False
        self.broken = ""

    def put(self, peer: Lease) -> None:
        if self.broken:
            raise RuntimeError(self.broken)
        self.calls += 1
        self.table[str(peer.subnets)] = str(peer.attributes.public_ip)

    def remove(self, subnets: Subnets) -> None:
        self.calls += 1
        del self.table[str(subnets)]

    def check(self) -> Mapping[str, str]:
        return {"10.5.9.0-24": "does not answer"}

    def counters(self) -> Mapping[str, int]:
        return {"calls": self.calls}

    def stop(self) -> None:
        self.stopped = True


class Own(Backend[NoOptions]):
    name = "own"

    def __init__(self, failures: int = 0) -> None:
        super().__init__(NoOptions())
        self.failures = failures
        self.plane = Plane()

    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu

    def start(self, node: Node) -> DataPlane | None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no such device")
        return self.plane


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
    assert "backend 'own' failed: RuntimeError: no such device" in feed.trouble
    overlay.put(*lease(3))
    feed.tend(overlay, CHECK_INTERVAL / 2)
    assert backend.plane.table == {}
    feed.tend(overlay, CHECK_INTERVAL)
    assert feed.trouble == ""
    assert len(backend.plane.table) == 2


def test_one_that_raises_later_is_caught_up_with() -> None:
    backend, overlay, feed = fed(lease(2))
    backend.plane.broken = "full"
    overlay.put(*lease(3))
    feed.tend(overlay, 0.1)
    assert "full" in feed.trouble
    backend.plane.broken = ""
    feed.tend(overlay, 0.1 + CHECK_INTERVAL)
    assert (feed.trouble, len(backend.plane.table)) == ("", 2)


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
