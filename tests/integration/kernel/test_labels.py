"""MPLS labels on every kernel port: the kernel in memory and a real one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from pyflannel.kernel.model import ROUTE_PROTOCOL, Kind, Link, MplsRoute, VxlanInfo
from pyflannel.kernel.port import Write

DEVICE = Link("flannel.1", VxlanInfo(1, 8472, ip_address("192.0.2.1"), "eth0"), 1450, "02:00:00:00:01:01")


def variety() -> list[MplsRoute]:
    """What can become of packets with a label, of either family."""
    one, two = ip_address("192.0.2.2"), ip_address("2001:db8::2")
    return [
        MplsRoute(16, "lo"),
        MplsRoute(17, "eth0", one),
        MplsRoute(18, "eth0", two, (100,)),
        MplsRoute(4711, DEVICE.name, one, (200, 0)),
    ]


@pytest.fixture
def labels(world: Any) -> Any:
    """A kernel that knows labels."""
    route = variety()[0]
    failed = world.write(route)
    if failed and "this kernel routes no MPLS" in str(failed[route.key]):
        pytest.skip("not applicable: this kernel routes no MPLS")
    assert failed == {}
    assert world.become([]) == 1
    world.quiet()
    return world


def found(world: Any) -> dict[Any, Any]:
    return {key: item for key, item in world.dump().items() if key[0] is Kind.MPLS_ROUTE}


def test_what_was_written_is_what_is_dumped(labels: Any) -> None:
    wanted = [DEVICE, *variety()]
    assert labels.become(wanted) == len(wanted)
    assert found(labels) == {item.key: item for item in variety()}
    assert labels.become(wanted) == 0
    assert labels.become([DEVICE]) == len(variety())
    assert found(labels) == {}


def test_a_label_becomes_any_other_way(labels: Any) -> None:
    ways = [replace(item, label=77) for item in variety()]
    for wanted in (*ways, *reversed(ways)):
        labels.become([DEVICE, wanted])
        assert found(labels) == {wanted.key: wanted}


def test_what_somebody_changes_or_deletes_is_told_and_comes_back(labels: Any) -> None:
    wanted = [DEVICE, *variety()]
    labels.become(wanted)
    labels.quiet()
    for item in variety():
        bent = MplsRoute(item.label, "eth0", ip_address("192.0.2.77"))
        labels.put(bent, protocol=ROUTE_PROTOCOL)
        told = labels.until(lambda notice, bent=bent: notice.changes.get(bent.key) == bent)
        assert not told.resync
        assert labels.become(wanted) == 1
        labels.remove(item)
        labels.until(lambda notice, key=item.key: notice.changes.get(key, key) is None)
        assert labels.become(wanted) == 1
    assert found(labels) == {item.key: item for item in variety()}


def test_somebody_s_label_is_neither_seen_nor_touched(labels: Any) -> None:
    ours, theirs = MplsRoute(16, "lo"), MplsRoute(16, "eth0", ip_address("192.0.2.9"))
    labels.become([ours])
    labels.quiet()
    labels.put(theirs)
    labels.until(lambda notice: notice.changes.get(ours.key, ours) is None)
    assert found(labels) == {}
    (error,) = labels.write(ours).values()
    assert "a foreign mpls route 16" in str(error)
    assert labels.port.apply([Write(ours, None)]) == {}, "what is gone is gone"
    assert labels.write(ours) != {}, "theirs is still there"
    labels.remove(theirs)
    assert labels.write(ours) == {}


def test_a_device_takes_its_labels_along(labels: Any) -> None:
    wanted = [DEVICE, *variety()]
    labels.become(wanted)
    labels.quiet()
    labels.remove(DEVICE)
    labels.until(lambda notice: notice.resync)
    assert found(labels).keys() == {item.key for item in variety() if item.link != DEVICE.name}
    assert labels.become(wanted) == 2
    assert found(labels) == {item.key: item for item in variety()}


def test_a_device_that_is_not_there(labels: Any) -> None:
    (error,) = labels.write(MplsRoute(16, "flannel.9")).values()
    assert "flannel.9" in str(error)


@pytest.mark.root
def test_the_table_grows_to_what_is_planned_and_never_shrinks(namespace: Any) -> None:
    route = MplsRoute(20, "lo")
    failed = namespace.write(route)
    if failed:
        assert "this kernel routes no MPLS: load its module" in str(failed[route.key])
        pytest.skip("not applicable: this kernel routes no MPLS")
    size = ["sysctl", "-n", "net.mpls.platform_labels"]
    assert namespace.outside(*size) == "21\n"
    assert namespace.write(MplsRoute(2000, "lo"), MplsRoute(30, "lo")) == {}
    assert namespace.outside(*size) == "2001\n"
    namespace.become([])
    assert namespace.outside(*size) == "2001\n"
    namespace.become([MplsRoute(2000, "lo")])
    namespace.quiet()
    namespace.outside("sysctl", "-w", "net.mpls.platform_labels=100")
    namespace.until(lambda notice: notice.changes.get(MplsRoute(2000, "lo").key, 0) is None)
    assert namespace.become([MplsRoute(2000, "lo")]) == 1


@pytest.mark.root
@pytest.mark.parametrize("more", [["ttl-propagate", "enabled"], ["nexthop", "dev", "eth0"]], ids=["ttl", "second way"])
def test_what_is_more_than_we_say_differs(namespace: Any, more: list[str]) -> None:
    route = MplsRoute(20, "lo")
    if namespace.write(route):
        pytest.skip("not applicable: this kernel routes no MPLS")
    first = ["nexthop", "dev", "lo"] if more[0] == "nexthop" else ["dev", "lo"]
    namespace.ip("-f", "mpls", "route", "replace", "20", "proto", str(ROUTE_PROTOCOL), *first, *more)
    assert found(namespace)[route.key] != route
    assert namespace.become([route]) == 1
    assert found(namespace) == {route.key: route}
