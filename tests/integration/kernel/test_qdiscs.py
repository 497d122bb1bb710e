"""Root queueing disciplines on every kernel port: the kernel in memory and a real one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from pyflannel.kernel.model import KernelObject, Kind, Link, Qdisc, VxlanInfo
from pyflannel.kernel.port import Scope, Write

NAME = "flannel.1"
LINK = Link(NAME, VxlanInfo(1, 8472, ip_address("192.0.2.1"), "eth0"), 1450, "02:00:00:00:01:01")
SHORT = Qdisc(NAME, "pfifo", (("limit", 10),))
LONG = Qdisc(NAME, "pfifo", (("limit", 2000),))
VARIETY = [
    SHORT,
    LONG,
    Qdisc(NAME, "pfifo"),
    Qdisc(NAME, "bfifo", (("limit", 100000),)),
    Qdisc(NAME, "noqueue"),
    Qdisc(NAME, "fq_codel", (("limit", 500), ("flows", 64), ("ecn", 0), ("memory_limit", 1 << 20))),
    Qdisc(NAME, "fq_codel", (("quantum", 9000),)),
    Qdisc(NAME, "fq", (("limit", 5000), ("flow_limit", 50), ("pacing", 0))),
    Qdisc(NAME, "fq"),
]


def wanting(world: Any, *wanted: KernelObject) -> Any:
    """The world, with a tracker that wants just this."""
    world.scope = Scope.of(wanted)
    return world


def become(world: Any, *wanted: KernelObject) -> int:
    return int(wanting(world, LINK, *wanted).become([LINK, *wanted]))


def found(world: Any) -> KernelObject | None:
    there: KernelObject | None = world.dump().get(SHORT.key)
    return there


@pytest.mark.parametrize("wanted", VARIETY, ids=str)
def test_each_comes_and_goes(world: Any, wanted: Qdisc) -> None:
    become(world)
    assert found(world) is None, "the kernel's choice is nobody's"
    failed = wanting(world, LINK, wanted).write(wanted)
    if failed and f"this kernel has no queueing discipline {wanted.kind}" in str(failed[wanted.key]):
        pytest.skip(f"not applicable: this kernel has no {wanted.kind}")
    assert failed == {}
    assert found(world) == wanted
    assert become(world, wanted) == 0
    for other in (SHORT, wanted, LONG, wanted):
        become(world, other)
        assert found(world) == other
    assert become(world) == 1
    assert found(world) is None


def test_what_somebody_deletes_or_replaces_is_told_and_put_right(world: Any) -> None:
    become(world, SHORT)
    world.quiet()
    world.remove(SHORT)
    assert world.until(lambda notice: SHORT.key in notice.changes).changes[SHORT.key] is None
    assert become(world, SHORT) == 1
    for drift in (LONG, SHORT, Qdisc(NAME, "bfifo")):
        world.quiet()
        world.put(drift)
        told = world.until(lambda notice: notice.changes.get(SHORT.key) is not None)
        assert told.changes[SHORT.key] not in (None, SHORT)
        assert become(world, SHORT) == 1
        assert found(world) == SHORT


def test_somebody_s_stays_where_none_is_wanted(world: Any) -> None:
    become(world)
    world.put(SHORT)
    assert found(world) is None
    assert become(world) == 0
    assert world.port.apply([Write(SHORT, None)]) == {}, "ours is gone already"
    wanting(world, LINK, LONG)
    assert found(world) is not None, "somebody's is still there"


def test_one_on_the_underlay_is_not_ours_to_see(world: Any) -> None:
    become(world)
    world.put(replace(SHORT, link="eth0"))
    assert not [key for key in world.dump() if key[0] is Kind.QDISC]


def test_it_goes_with_its_link(world: Any) -> None:
    become(world, SHORT)
    world.remove(LINK)
    assert found(world) is None
    assert world.port.apply([Write(SHORT, None)]) == {}
    assert become(world, SHORT) == 2


def test_a_kind_that_no_kernel_has_is_named(namespace: Any) -> None:
    become(namespace)
    wanted = Qdisc(NAME, "nothing")
    (error,) = namespace.write(wanted).values()
    assert "this kernel has no queueing discipline nothing" in str(error)


def test_a_missing_link_fails_it_alone(world: Any) -> None:
    (error,) = world.write(SHORT).values()
    assert "no interface flannel.1" in str(error)


def test_own_writes_are_not_told(world: Any) -> None:
    become(world, SHORT)
    world.quiet()
    become(world, LONG)
    become(world)
    assert not [key for key in world.quiet().changes if key[0] is Kind.QDISC]
