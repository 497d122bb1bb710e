"""The twin's switches: what goes wrong when a test asks for it. What goes right is the port's common suite."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from pyflannel.errors import KernelError
from pyflannel.kernel.model import Address, ForeignInfo, Kind, Link, Route, Sysctl
from pyflannel.kernel.port import Scope, Write
from pyflannel.kernel.twin import TwinPort

ROUTES = [Route(ip_network(f"10.{number}.0.0/16"), "eth0", ip_address("192.0.2.2")) for number in range(3)]


@pytest.fixture
def twin() -> Iterator[TwinPort]:
    port = TwinPort(
        [Link("eth0", ForeignInfo("veth"), 1500)],
        [Address("eth0", ip_interface("192.0.2.1/24"))],
        {"net/ipv4/ip_forward": "0"},
    )
    yield port
    port.close()


def test_the_next_write_of_a_kind_fails(twin: TwinPort) -> None:
    twin.fail_next(Kind.ROUTE, errno.ENOBUFS)
    failures = twin.apply([Write(None, route) for route in ROUTES])
    assert failures.keys() == {ROUTES[0].key}
    assert "No buffer space" in str(failures[ROUTES[0].key])
    assert twin.apply([Write(None, ROUTES[0])]) == {}


def test_the_next_writes_under_a_key_fail(twin: TwinPort) -> None:
    twin.fail_next(ROUTES[1].key, errno.EPERM, times=2)
    for _ in range(2):
        failures = twin.apply([Write(None, route) for route in ROUTES])
        assert failures.keys() == {ROUTES[1].key}
        assert "CAP_NET_ADMIN" in str(failures[ROUTES[1].key])
    assert twin.apply([Write(None, ROUTES[1])]) == {}


def test_lost_notifications(twin: TwinPort) -> None:
    twin.dump(Scope(sysctls=frozenset({"net/ipv4/ip_forward"})))
    twin.put(Sysctl("net/ipv4/ip_forward", "1"))
    twin.lose_notifications()
    assert select.select([twin], [], [], 0)[0]
    notice = twin.poll()
    assert (notice.changes, notice.resync) == ({}, True)
    assert not twin.poll().resync


def test_interrupted_dumps(twin: TwinPort) -> None:
    twin.interrupt_dumps(1)
    with pytest.raises(KernelError, match="changed"):
        twin.dump(Scope())
    assert twin.dump(Scope()) == {}


def test_a_dead_kernel(twin: TwinPort) -> None:
    twin.dead = "no netlink here"
    with pytest.raises(KernelError, match="no netlink here"):
        twin.dump(Scope())
    with pytest.raises(KernelError, match="no netlink here"):
        twin.poll()
    assert twin.apply([Write(None, ROUTES[0])]).keys() == {ROUTES[0].key}
    twin.dead = None
    assert twin.apply([Write(None, ROUTES[0])]) == {}


def test_what_was_asked_for_is_recorded(twin: TwinPort) -> None:
    twin.apply([Write(None, ROUTES[0])])
    twin.dump(Scope())
    assert (twin.writes, twin.dumps) == ([Write(None, ROUTES[0])], 1)
