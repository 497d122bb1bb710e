"""pyflannel status, asking a real status server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from pyflannel.show.status import (
    BackendStatus,
    DropStatus,
    FailureStatus,
    FirewallStatus,
    LeaseStatus,
    ObjectCounts,
    ObjectsStatus,
    ObjectStatus,
    PeerState,
    PeerStatus,
    State,
    Status,
    StatusServer,
    StoreStatus,
    UnderlayStatus,
)

from .conftest import CommandLine

LONG_AGO = (datetime.now(timezone.utc) - timedelta(hours=30)).strftime("%Y-%m-%dT%H:%M:%SZ")

STARTING = Status(version="1.2", pid=77, started=LONG_AGO, state=State.STARTING, message="", node_id="n1")

DEGRADED = replace(
    STARTING,
    state=State.DEGRADED,
    message="the kernel refused 1 object",
    backend=BackendStatus("vxlan", "pyflannel", "1.2"),
    store=StoreStatus("etcd://192.0.2.9:2379/p", False),
    network="10.1.0.0/16",
    ipv6_network="fd00::/48",
    underlay=UnderlayStatus("eth0", 1500, ipv4="192.0.2.1", public_ipv4="198.51.100.1", ipv6="2001:db8::1"),
    lease=LeaseStatus("10.1.1.0-24", ("10.1.1.0/24",), 4000.0, False, LONG_AGO),
    peers=(
        *(PeerStatus(f"10.1.{n}.0-24", (f"10.1.{n}.0/24",), PeerState.OK, public_ip="192.0.2.3") for n in range(2, 40)),
        PeerStatus("10.1.50.0-24", ("10.1.50.0/24",), PeerState.SKIPPED, "VtepMAC is\x1b multicast", "192.0.2.5"),
        PeerStatus("10.1.51.0-24", ("10.1.51.0/24",), PeerState.FAILED, "no route", "192.0.2.6"),
    ),
    objects=ObjectsStatus(
        {"link": ObjectCounts(1, 0, 0), "route": ObjectCounts(38, 0, 1)},
        (
            ObjectStatus("link", "link flannel.1", "done", LONG_AGO),
            ObjectStatus("route", "route 10.1.51.0/24", "failed", LONG_AGO, "Network is unreachable"),
        ),
    ),
    last_error=FailureStatus(LONG_AGO, "etcd did not answer"),
    repaired=3,
    firewall=FirewallStatus(
        "iptables-nft",
        False,
        ("no way in",),
        (
            DropStatus("nftables", "ip filter", "FORWARD", "policy drop", True),
            DropStatus("nftables", "inet firewalld", "filter_FORWARD", "by its last rule", False),
        ),
        exits="dropped",
    ),
    data_plane={"dropped": 9},
)


class Daemon:
    status = STARTING


@pytest.fixture
def daemon(pyflannel: CommandLine) -> Iterator[Daemon]:
    (pyflannel.directory / "run").mkdir()
    daemon = Daemon()
    server = StatusServer(pyflannel.directory / "run", lambda: daemon.status)
    yield daemon
    server.close()


def test_a_daemon_that_has_only_started(pyflannel: CommandLine, daemon: Daemon) -> None:
    result = pyflannel("status")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "State:     starting",
        "Daemon:    pyflannel 1.2, pid 77, up 1 d 6 h",
        "Node:      n1",
        "Lease:     none",
        "",
        "Peers:     0",
        "",
        "Kernel:    no objects yet",
    ]


def test_trouble_comes_first(pyflannel: CommandLine, daemon: Daemon) -> None:
    daemon.status = DEGRADED
    result = pyflannel("status")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "State:     degraded (the kernel refused 1 object)",
        "Daemon:    pyflannel 1.2, pid 77, up 1 d 6 h",
        "Node:      n1",
        "Network:   10.1.0.0/16 fd00::/48",
        "Backend:   vxlan (pyflannel 1.2)",
        "Store:     etcd://192.0.2.9:2379/p, not connected",
        "Underlay:  eth0, MTU 1500, 192.0.2.1 (public 198.51.100.1), 2001:db8::1",
        "Lease:     10.1.1.0/24, expires in 1 h 6 min, renewed 1 d 6 h ago",
        "Repaired:  3 objects that something else had changed",
        (
            "Firewall:  iptables-nft, rules not in place; ip filter FORWARD (policy drop) lets us pass; "
            "inet firewalld filter_FORWARD (by its last rule) drops the overlay's packets; "
            "packets to the overlay that would leave unencrypted are dropped; no way in"
        ),
        "Data plane: dropped 9",
        "Last error: 1 d 6 h ago: etcd did not answer",
        "",
        "Peers:     40, 2 in trouble",
        "  failed   10.1.51.0/24 via 192.0.2.6: no route",
        "  skipped  10.1.50.0/24 via 192.0.2.5: VtepMAC is\\x1b multicast",
        "",
        "Kernel:    link 1, route 38 (1 failed)",
        "  failed   route 10.1.51.0/24, for 1 d 6 h: Network is unreachable",
    ]


def test_all_shows_every_peer_and_object(pyflannel: CommandLine, daemon: Daemon) -> None:
    daemon.status = DEGRADED
    output = pyflannel("status", "-all").out
    assert output.count(" via 192.0.2.3\n") == 38
    assert "  done     link flannel.1, for 1 d 6 h\n" in output
    assert output.index("failed   10.1.51") < output.index("ok       10.1.2.0/24")


def test_much_trouble_is_cut_short(pyflannel: CommandLine, daemon: Daemon) -> None:
    peers = tuple(replace(peer, state=PeerState.PENDING) for peer in DEGRADED.peers)
    daemon.status = replace(DEGRADED, peers=peers)
    assert "  and 20 more (--all)\n" in pyflannel("status").out


def test_json_is_the_daemons_document(pyflannel: CommandLine, daemon: Daemon) -> None:
    daemon.status = DEGRADED
    assert json.loads(pyflannel("status", "--json").out) == json.loads(DEGRADED.to_json())
    assert pyflannel("--run-dir", str(pyflannel.directory / "run"), "status", bare=True).code == 0
