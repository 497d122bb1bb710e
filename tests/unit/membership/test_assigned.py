"""The lease keeper's machine on a store that assigns subnets itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from tests.unit.membership.modelled import (
    DOCUMENT,
    TWO_FAMILIES,
    Node,
    StoreModel,
    agreed,
    foreign,
    once,
    underlay,
    while_true,
)

from pyflannel.errors import PyflannelError, StoreDeniedError, StoreUnavailableError
from pyflannel.membership.allocation import ConflictPolicy
from pyflannel.membership.calls import Announce, AskAssigned, Create, Delete, Renew, TakeSnapshot, Update
from pyflannel.network.lease import LeaseAttributes
from pyflannel.store import Change, Record, Unassigned

BOTH = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}'
UNAVAILABLE = StoreUnavailableError("out of reach")


class AssigningModel(StoreModel):
    """A store that gives its one node what a test has assigned."""

    assigns_subnets = True

    def __init__(self) -> None:
        super().__init__()
        self.ours: Record | Unassigned = Unassigned("nobody has assigned anything")
        self.told: list[bool] = []
        self.chosen: tuple[str, ...] = ()

    def assign(self, key: str, value: str = "{}") -> None:
        """Ours is this from now on; what it was before is gone."""
        self.withdraw()
        self.ours = replace(self.put(key, value), permanent=True)

    def withdraw(self) -> None:
        if isinstance(self.ours, Record):
            self.kept.pop(self.ours.key, None)
            self.history.append(Change(self.ours.key, None))
        self.ours = Unassigned("it was withdrawn")

    def assigned(self, families: Sequence[int]) -> Record | Unassigned:
        if isinstance(self.ours, Unassigned):
            return self.ours
        missing = [version for version in families if ("." if version == 4 else ":") not in self.ours.key]
        return Unassigned(f"nothing of IPv{missing[0]}") if missing else self.kept[self.ours.key].record

    def chosen_addresses(self) -> Sequence[str]:
        return self.chosen

    def announce(self, ready: bool) -> None:
        self.told.append(ready)


def on_assigning(document: str = DOCUMENT, key: str = "", **options: Any) -> tuple[Node, AssigningModel]:
    store = AssigningModel()
    store.config_is(document)
    if key:
        store.assign(key)
    return Node(store=store, given={"assigned": True, "seed": None}, **options), store


@pytest.mark.parametrize(
    ("document", "key", "used"),
    [
        (DOCUMENT, "10.5.0.0-24", "10.5.0.0/24"),  # the first subnet
        (DOCUMENT, "10.5.3.128-25", "10.5.3.128/25"),
        (DOCUMENT, "10.5.4.0-22", "10.5.4.0/22"),
        (DOCUMENT, "10.5.1.0-24&fd00:5:0:1::-64", "10.5.1.0/24"),
        (BOTH, "10.5.1.0-24&fd00:5:0:1::-72", "10.5.1.0/24 fd00:5:0:1::/72"),
    ],
)
def test_what_is_assigned_is_taken_of_any_place_and_length(document: str, key: str, used: str) -> None:
    node, store = on_assigning(document, key)
    node.start()
    assert str(node.joined.node.subnets) == used
    assert node.joined.lease.key == key
    assert node.state.permanent
    assert json.loads(store.kept[key].record.value)["PublicIP"] == "192.0.2.1"
    assert not node.count(Create)
    node.run(10_000.0)
    assert node.count(Renew) == 0, "there is nothing to renew"
    assert node.state.valid(node.now)


def test_a_node_without_subnets_waits_with_the_reason_and_asks_little() -> None:
    node, store = on_assigning()
    node.start()
    node.run(600.0)
    assert node.generation is None
    assert node.state.trouble == "nobody has assigned anything"
    assert not node.state.conflict
    assert node.count(TakeSnapshot) == 0, "a snapshot costs the store much, and would be in vain"
    assert node.count(AskAssigned) < 150
    store.assign("10.5.9.0-24")
    node.until(lambda: node.generation is not None, 30.0)
    assert node.state.trouble == ""


def test_an_address_that_an_operator_has_chosen_is_waited_for() -> None:
    """Whoever looks after the underlay is told of it, and finds the interface."""
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    store.chosen = ("198.51.100.7",)
    node.start()
    assert node.generation is None
    assert node.state.chosen == (IPv4Address("198.51.100.7"),)
    assert "198.51.100.7" in node.state.trouble
    assert node.count(TakeSnapshot) == 0
    node.machine.move(replace(underlay(), public_ipv4=IPv4Address("198.51.100.7")), node.now)
    node.until(lambda: node.generation is not None, 30.0)
    assert json.loads(store.kept["10.5.1.0-24"].record.value)["PublicIP"] == "198.51.100.7"


def test_a_chosen_address_that_is_none_is_named() -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    store.chosen = ("198.51.100",)
    node.start()
    assert "'198.51.100'" in node.state.trouble
    store.chosen = ()
    node.until(lambda: node.generation is not None, 30.0)


def test_a_family_that_lacks_is_waited_for() -> None:
    node, store = on_assigning(BOTH, "10.5.9.0-24")
    node.start()
    assert node.state.trouble == "nothing of IPv6"
    store.assign("10.5.9.0-24&fd00:5::-64")
    node.until(lambda: node.generation is not None, 30.0)


@pytest.mark.parametrize("document", ["{", BOTH, agreed(BOTH)])
def test_a_document_that_can_t_be_followed_leaves_the_one_in_force(document: str) -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.start().run(60)
    store.config_is(document)
    node.run(60)
    store.compact()  # to go on, a watch needs a snapshot
    store.put("10.5.9.0-24", foreign(9))
    node.run(60)
    assert node.state.valid(node.now)
    assert node.state.trouble != ""
    assert node.state.connected
    assert not node.state.conflict
    assert list(node.slot.records()) == ["10.5.9.0-24"], "peers are still followed"
    store.config_is(DOCUMENT)
    node.run(70)
    assert node.state.trouble == ""


def test_a_family_that_is_added_is_taken_as_soon_as_it_is_assigned() -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.start().run(60)
    store.config_is(agreed(BOTH))
    node.run(60)
    assert "IPv6" in node.state.trouble
    store.assign("10.5.1.0-24&fd00:5:0:1::-64")
    node.run(70)
    assert str(node.joined.node.subnets) == "10.5.1.0/24 fd00:5:0:1::/64"
    assert node.state.trouble == ""


def test_subnets_outside_the_network_are_named() -> None:
    node, _ = on_assigning(TWO_FAMILIES, "10.99.0.0-24&fd00:5::-64")
    node.start()
    assert node.generation is None
    assert "10.99.0.0/24" in node.state.trouble
    assert "10.5.0.0/24" in node.state.trouble


def test_subnets_that_others_would_skip_are_named() -> None:
    """The network covers the nodes, so it is the overlay's within its bounds alone."""
    bounds = '"SubnetLen":24,"SubnetMin":"192.10.0.0","SubnetMax":"192.99.0.0"'
    document = f'{{"Network":"192.0.0.0/8",{bounds},"Backend":{{"Type":"vxlan"}}}}'
    node, store = on_assigning(document, "192.9.0.0-24")
    node.start()
    assert node.generation is None
    assert "192.9.0.0/24 lies outside SubnetMin to SubnetMax" in node.state.trouble
    store.assign("192.10.0.0-24")
    node.until(lambda: node.generation is not None, 60.0)
    assert node.joined.lease.key == "192.10.0.0-24"


def test_what_is_withdrawn_ends_and_what_is_assigned_anew_is_taken() -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.start()
    store.withdraw()
    node.until(lambda: not node.state.valid(node.now), 30.0)
    assert node.state.trouble == "it was withdrawn"
    store.assign("10.5.2.0-25")
    node.until(lambda: node.state.valid(node.now) and node.state.trouble == "", 30.0)
    assert str(node.joined.node.subnets) == "10.5.2.0/25"
    assert node.joined.number > 1
    assert not node.count(Delete)


def test_a_node_made_again_with_the_same_subnets_says_again_what_it_is() -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.start()
    store.assign("10.5.1.0-24")
    node.until(lambda: "192.0.2.1" in store.kept["10.5.1.0-24"].record.value, 60.0)
    node.run(60.0)
    assert node.state.trouble == ""


def test_a_change_that_leaves_our_attributes_alone_is_seen_to_by_a_renewal() -> None:
    """An operator's overwrite, a condition that somebody else has set: the store's own business, done when asked."""
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.start()
    before = node.count(Renew)
    store.put("10.5.1.0-24", store.kept["10.5.1.0-24"].record.value)
    node.run(1.0)
    assert node.count(Renew) == before + 1


@pytest.mark.parametrize("value", ["", '{"PublicIP":"192.0.2.99","BackendType":"vxlan"}'], ids=["version", "content"])
def test_whoever_changes_our_record_as_often_as_we_do_is_not_raced(value: str) -> None:
    """Two who correct each other would ask the store as fast as it answers, and every watch in the cluster be told."""
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.start()

    def change_back(call: object) -> None:
        if isinstance(call, Renew | Update):
            assert node.count(Renew) + node.count(Update) < 100, "as fast as it can"
            store.put("10.5.1.0-24", value or store.kept["10.5.1.0-24"].record.value)

    node.after = change_back
    store.put("10.5.1.0-24", value or store.kept["10.5.1.0-24"].record.value)
    node.run(20.0)
    node.after = None
    node.run(5.0)
    assert json.loads(store.kept["10.5.1.0-24"].record.value)["PublicIP"] == "192.0.2.1"


def test_an_underlay_that_moves_is_written_into_the_same_record() -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.start()
    node.machine.move(underlay(7), node.now)
    node.run(1.0)
    assert json.loads(store.kept["10.5.1.0-24"].record.value)["PublicIP"] == "192.0.2.7"


@pytest.mark.parametrize("policy", list(ConflictPolicy))
def test_of_two_daemons_with_one_record_the_first_yields_unless_it_is_told_not_to(policy: ConflictPolicy) -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.given["policy"] = policy
    node.__post_init__()
    node.start()
    data = {"VNI": 1, "VtepMAC": "02:00:00:00:00:07"}
    theirs = LeaseAttributes(underlay(9).public_ipv4, backend_type="vxlan", backend_data=data, node_id="another")
    store.put("10.5.1.0-24", theirs.to_json())
    node.run(120.0)
    value = json.loads(store.kept["10.5.1.0-24"].record.value)
    if policy is ConflictPolicy.REFUSE:
        assert node.state.conflict
        assert "'another'" in node.state.trouble
        assert value["NodeID"] == "another"
    else:
        assert value["NodeID"] == "node-1"
        assert not node.state.conflict


def test_what_an_earlier_machine_of_this_name_left_is_taken_over_at_the_start() -> None:
    node, store = on_assigning()
    store.assign("10.5.1.0-24", LeaseAttributes(underlay(9).public_ipv4, node_id="before").to_json())
    node.start()
    assert json.loads(store.kept["10.5.1.0-24"].record.value)["NodeID"] == "node-1"


# Announcing -----------------------------------------------------------------------------------------------------------


def test_readiness_is_announced_when_it_changes() -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.start()
    for ready in (True, True, False, True):
        node.machine.announce(ready, node.now)
        node.run(1.0)
    assert store.told == [True, False, True]


@pytest.mark.parametrize("error", [UNAVAILABLE, StoreDeniedError("no right")], ids=lambda error: type(error).__name__)
def test_an_announcement_that_fails_is_named_and_made_again(error: PyflannelError) -> None:
    fails = [True]
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24", fault=while_true(Announce, error, fails))
    node.start()
    node.machine.announce(True, node.now)
    node.run(60.0)
    assert node.state.trouble == str(error)
    assert node.state.valid(node.now), "the lease has nothing to do with it"
    assert node.count(Announce) < 30
    fails[0] = False
    node.until(lambda: store.told == [True], 30.0)
    assert node.state.trouble == ""


def test_a_new_driver_is_told_again() -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24")
    node.start()
    node.machine.announce(True, node.now)
    node.run(1.0)
    node.fault = once(Renew, "hangs")
    store.put("10.5.1.0-24", store.kept["10.5.1.0-24"].record.value)
    node.until(lambda: node.given_up == 1)
    node.until(lambda: store.told == [True, True], 60.0)


@pytest.mark.parametrize("first", [AskAssigned, TakeSnapshot, Announce, Renew])
def test_each_call_may_fail_once(first: type) -> None:
    node, store = on_assigning(DOCUMENT, "10.5.1.0-24", fault=once(first, UNAVAILABLE))
    node.start()
    node.machine.announce(True, node.now)
    node.until(lambda: node.state.valid(node.now) and store.told == [True] and node.state.trouble == "", 60.0)
