"""What the kernel tells: notifications that concern us and those that don't, and tables that are compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.firewall.conftest import Host

from pyflannel.firewall.legacy import legacy_fingerprint, legacy_tables
from pyflannel.firewall.monitor import Monitor, sees_forward_chains

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

SETUP = """
nft add table ip t
nft add chain ip t watched
nft add chain ip t other
nft add set ip t s '{ type ipv4_addr; }'
"""


@pytest.fixture
def monitor(host: Host) -> Iterator[Monitor]:
    host.sh(SETUP)
    monitor = host.do(Monitor)
    monitor.watch(frozenset({("ip", "t", "watched")}))
    yield monitor
    monitor.close()


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ("nft add rule ip t watched accept", True),
        ("nft add rule ip t other accept", False),
        ("nft add element ip t s '{ 192.0.2.1 }'", False),
        ("nft add chain ip t third", False),
        ("nft add chain ip t base '{ type filter hook forward priority 0; }'", True),
        ("nft add chain ip t FLANNEL-FWD", True),
        ("nft delete chain ip t watched", True),
        ("nft add table ip6 t", True),
        ("nft delete table ip t", True),
        ("nft add table bridge t", False),
        ("iptables-nft -P FORWARD DROP", True),
        ("iptables-nft -t nat -N KUBE-SVC-1", True),  # it makes the table
        ("true", False),
    ],
)
def test_what_counts(host: Host, monitor: Monitor, change: str, counts: bool) -> None:
    host.sh(change)
    assert monitor.changed() is counts
    assert monitor.changed() is False


def test_a_lost_message_counts(host: Host, monitor: Monitor) -> None:
    host.sh("yes 'add rule ip t other ip saddr 192.0.2.1 accept' | head -20000 | nft -f -")
    assert monitor.changed() is True


@pytest.mark.parametrize(("version", "program"), [(4, "iptables-legacy"), (6, "ip6tables-legacy")])
def test_legacy_tables_are_compared_without_their_counters(host: Host, version: int, program: str) -> None:
    def fingerprint() -> bytes:
        return host.do(lambda: legacy_fingerprint(version))

    assert fingerprint() == b""
    assert host.do(lambda: legacy_tables(version)) == (), "asking makes no table"
    host.sh("ip link set lo up")
    seen = [fingerprint()]
    for change in (
        f"{program} -A INPUT -i lo -j ACCEPT",
        f"{program} -P FORWARD DROP",
        f"{program} -N MINE",
        f"{program} -R INPUT 1 -i lo -j DROP",
        f"{program} -t nat -A POSTROUTING -j RETURN",
        f"{program} -R INPUT 1 -i lo -m comment --comment x -j ACCEPT",
    ):
        host.sh(change)
        seen.append(fingerprint())
    assert len(set(seen)) == len(seen)
    before = host.sh(f"{program} -nvxL INPUT")
    host.sh(f"ping -c 1 -W 1 {'127.0.0.1' if version == 4 else '::1'}")
    assert host.sh(f"{program} -nvxL INPUT") != before, "it has counted"
    assert fingerprint() == seen[-1]


@pytest.mark.parametrize(
    ("table", "hook", "found"), [("inet", "forward", True), ("ip6", "forward", True), ("ip", "input", False)]
)
def test_forward_chains_are_seen_without_programs(host: Host, table: str, hook: str, found: bool) -> None:
    assert host.do(sees_forward_chains) is False
    host.sh(f"nft add table {table} t; nft add chain {table} t c '{{ type filter hook {hook} priority 0; }}'")
    assert host.do(sees_forward_chains) is found
