"""Who else diverts the overlay's packets is named, with what mends it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from pyflannel.doctor.membership import diversions
from pyflannel.firewall.state import FirewallState
from pyflannel.kernel.model import Rule
from pyflannel.kernel.port import ForeignPolicy, ForeignRule
from pyflannel.membership.slot import LeaseState
from pyflannel.network.lease import Lease, LeaseAttributes, Subnets
from pyflannel.show.document import document
from pyflannel.show.readiness import diverted, summary
from pyflannel.show.status import State
from pyflannel.show.view import PluginName, View

POLICY = str(ForeignPolicy(ip_network("10.0.0.0/8"), ip_network("10.5.0.0/16")))
DELETE = "ip xfrm policy delete src 10.0.0.0/8 dst 10.5.0.0/16 dir out"
LOST = str(ForeignRule(Rule(4, 100, None, ip_network("10.5.2.0/24"), action="prohibit")))
LED = str(ForeignRule(Rule(6, 100, mark=5, inverted=True, table=100)))


def view(*found: str, encrypts: bool = True) -> View:
    return View(
        node_id="node-1",
        started=0.0,
        store=PluginName("file"),
        store_location="file:///x",
        diversions=found,
        encrypts=encrypts,
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((), ""),
        ((LOST,), f"a policy rule that is not ours diverts the overlay's packets: {LOST}; if nobody needs it, "),
        ((LOST,), "'ip rule delete from all to 10.5.2.0/24 prohibit priority 100'"),
        ((LED,), "a policy rule that is not ours diverts the overlay's packets past the encryption"),
        ((LED,), "'ip -6 rule delete not from all fwmark 0x5 lookup 100 priority 100'"),
        ((LOST, LED), f"past the encryption, in plaintext: {LED} (and 1 more)"),
        (("10.5.2.0/24 dev eth1",), "a route that is not ours diverts the overlay's packets past the encryption"),
        (("10.5.2.0/24 dev eth1",), "'ip route delete 10.5.2.0/24 dev eth1'"),
        ((POLICY,), "an IPsec policy that is not ours diverts the overlay's packets past the encryption"),
        ((POLICY, "10.5.2.0/24 dev eth1"), f"(and 1 more); if nobody needs it, '{DELETE}'"),
    ],
)
def test_status_says_so(found: tuple[str, ...], words: str) -> None:
    said = diverted(view(*found))
    assert words in said
    assert bool(said) == bool(found)


@pytest.mark.parametrize(
    ("changes", "exits", "words"),
    [
        ({"encrypts": False}, "", "packets: 10.5.2.0/24"),
        ({"firewall": FirewallState("nftables", True)}, "dropped", "encryption, where our rules drop them: 10.5"),
        (
            {"firewall": FirewallState("nftables")},
            "not dropped: the rules are not in place",
            "encryption, in plaintext",
        ),
        (
            {"firewall": FirewallState("none", True), "unguarded": "--firewall none"},
            "not dropped: --firewall none",
            "encryption, in plaintext: 10.5",
        ),
    ],
)
def test_whether_they_leave_is_told(changes: dict[str, Any], exits: str, words: str) -> None:
    seen = replace(view("10.5.2.0/24 dev eth1"), **changes)
    assert words in diverted(seen)
    assert document(seen, 0.0, 0.0).firewall.exits == exits


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, State.STARTING),
        ({"firewall": FirewallState("nftables", True)}, State.READY),
        ({"firewall": FirewallState("nftables", errors=("refused",))}, State.DEGRADED),
        ({"unguarded": "--firewall none"}, State.READY),
        ({"encrypts": False}, State.READY),
        ({"unguarded": "--firewall none", "diversions": (LED,)}, State.WAITING),
        ({"unguarded": "--firewall none", "diversions": (LOST,)}, State.DEGRADED),
        ({"encrypts": False, "diversions": (LED,)}, State.DEGRADED),
    ],
)
def test_a_node_that_encrypts_is_ready_when_nothing_can_get_past_it(changes: dict[str, Any], state: State) -> None:
    lease = LeaseState(Lease(Subnets.from_key("10.5.1.0-24"), LeaseAttributes()), expires_at=9.0)
    sound = replace(view(), backend=PluginName("wireguard"), lease=lease, in_place=True, subnet_file=True)
    assert summary(replace(sound, **changes), 1.0)[0] is state


def test_doctor_says_what_mends_it() -> None:
    facts: Any = SimpleNamespace(status={"diversions": [POLICY]}, problems={}, inventory=None)
    (finding,) = diversions(facts)
    assert POLICY in str(finding)
    assert DELETE in str(finding)
