"""How a daemon stands, from what its loop has noted."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from pyflannel.membership.slot import LeaseState
from pyflannel.network.lease import Lease, LeaseAttributes, Subnets
from pyflannel.show.readiness import summary
from pyflannel.show.status import State
from pyflannel.show.view import PluginName, View

LEASE = Lease(Subnets(IPv4Network("10.5.1.0/24")), LeaseAttributes(IPv4Address("192.0.2.1")))
JOINED = View(
    node_id="node-1",
    started=0.0,
    store=PluginName("file"),
    store_location="file:///x",
    backend=PluginName("vxlan"),
)


def test_a_backend_that_is_told_of_before_its_lease_is_no_lease_that_has_expired() -> None:
    """The loop learns of both, the one a moment after the other."""
    assert summary(JOINED, 7.0)[0] is State.STARTING


def test_a_lease_that_has_expired_is_named() -> None:
    held = replace(JOINED, lease=LeaseState(LEASE, expires_at=7.0))
    assert summary(held, 6.9)[0] is State.STARTING
    assert summary(held, 7.0) == (State.WAITING, "the lease has expired; renewing it")
