"""The lease keeper's machine on a model of a store: a clock that the test moves, no thread, no waiting."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations, pairwise, product
from typing import Any

import pytest
from tests.unit.membership.modelled import (
    DOCUMENT,
    HANGS,
    TWO_FAMILIES,
    Node,
    Saying,
    StoreModel,
    agreed,
    foreign,
    once,
    renewals,
    together,
    underlay,
    while_true,
)

from pyflannel.backend import Backend, Link, Published
from pyflannel.errors import (
    ConfigError,
    ConflictError,
    HistoryGoneError,
    KernelError,
    LeaseError,
    PluginError,
    StoreDeniedError,
    StoreUnavailableError,
)
from pyflannel.membership.allocation import ConflictPolicy
from pyflannel.membership.calls import (
    Announce,
    Call,
    Create,
    Delete,
    Load,
    OpenStore,
    OpenWatch,
    Publish,
    ReadConfig,
    Renew,
    TakeSnapshot,
    Update,
    WriteConfig,
)
from pyflannel.membership.keeper import perform
from pyflannel.network.change import LEASE_KEY, NetworkChange, NodeProgress, Phase, Step, read
from pyflannel.network.document import NetworkConfig, NetworkSeed
from pyflannel.network.lease import MARGIN_KEY, Lease, LeaseAttributes, Subnets
from pyflannel.planning.transition import Transition

UNAVAILABLE = StoreUnavailableError("out of reach")


def on_store(document: str = DOCUMENT, **options: Any) -> Node:
    node = Node(**options)
    node.store.config_is(document)
    return node


# What a network runs whose document doesn't say -----------------------------------------------------------------------


def test_a_document_without_a_backend_follows_the_leases_of_others() -> None:
    """flanneld runs udp then, and its leases have no type."""
    node = on_store()
    node.store.put("10.5.9.0-24", LeaseAttributes(IPv4Address("192.0.2.9")).to_json(), 3600.0)
    node.start()
    assert node.joined.backend.name == "udp"
    assert "udp is what the network runs" in node.joined.node.network.assumption
    node.store.config_is(DOCUMENT.replace("}", ', "Comment": "another text"}'))
    node.run(5)
    assert node.joined.backend.name == "udp"
    assert node.joined.number > 1


def test_a_document_without_a_backend_is_vxlan_where_nobody_says_otherwise() -> None:
    node = on_store()
    node.store.put("10.5.9.0-24", LeaseAttributes(IPv4Address("192.0.2.9")).to_json())  # a reservation
    node.start()
    assert node.joined.backend.name == "vxlan"
    assert "vxlan is assumed" in node.joined.node.network.assumption


# A lease is got -------------------------------------------------------------------------------------------------------


def test_the_first_node_creates_network_and_lease() -> None:
    node = Node().start()
    assert node.store.config is not None
    assert json.loads(node.store.config.value) == {**json.loads(DOCUMENT), "Backend": {"Type": "vxlan"}}
    record = node.record
    assert record is not None
    assert not record.permanent
    document = json.loads(record.value)
    assert document["PublicIP"] == "192.0.2.1"
    assert document["BackendType"] == "vxlan"
    assert document["BackendData"]["VNI"] == 1
    assert document["NodeID"] == "node-1"
    assert IPv4Network("10.5.0.0/16").supernet_of(node.joined.node.subnets.ipv4 or IPv4Network("0.0.0.0/0"))
    assert node.joined.number == 1
    assert node.state.trouble == ""


def test_a_restart_keeps_the_lease_and_changes_nothing_for_others() -> None:
    first = Node().start()
    before = first.record
    second = Node(store=first.store).start()
    assert before is not None
    assert second.joined.lease == first.joined.lease
    assert second.record is not None
    assert second.record.version == before.version


def test_nodes_hear_of_each_other() -> None:
    one = Node().start()
    two = Node(store=one.store, host=2).start()
    one.slot.drain()
    assert list(two.slot.records()) == [one.joined.lease.key]
    one.run(0.0)
    assert list(one.slot.drain().dirty) == [two.joined.lease.key]
    assert list(one.slot.records()) == [two.joined.lease.key]


def test_the_lease_of_an_earlier_run_is_asked_for_again() -> None:
    assert Node(previous=Subnets(IPv4Network("10.5.77.0/24"))).start().joined.lease.key == "10.5.77.0-24"


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("node_id", ["a", "N", "Büro 7", 'the "first"', "back\\slash"])
def test_a_lease_is_found_again_however_its_text_spells_our_id(node_id: str, ascii_only: bool) -> None:
    first = Node(node_id=node_id).start()
    record = first.record
    assert record is not None
    document = {**json.loads(record.value), "PublicIP": "192.0.2.77"}
    first.store.update(record, json.dumps(document, ensure_ascii=ascii_only), 60.0)
    assert Node(store=first.store, node_id=node_id).start().joined.lease.subnets == first.joined.lease.subnets


def test_a_reservation_stays_one() -> None:
    node = on_store()
    node.store.put("10.5.9.0-24", LeaseAttributes(IPv4Address("192.0.2.1")).to_json())
    node.start().run(500)
    assert node.joined.lease.key == "10.5.9.0-24"
    assert node.state.expires_at is None
    assert node.state.permanent
    assert node.record is not None
    assert node.record.permanent
    assert json.loads(node.record.value)["NodeID"] == "node-1"


def test_a_lease_of_flanneld_s_with_our_address_is_adopted() -> None:
    node = on_store()
    attributes = LeaseAttributes(IPv4Address("192.0.2.1"), backend_type="vxlan")
    theirs = Lease(Subnets(IPv4Network("10.5.33.0/24")), attributes)
    node.store.put(theirs.key, attributes.to_json(), 60)
    lease = node.start().joined.lease
    assert lease.key == theirs.key
    assert lease.attributes.node_id == "node-1"


@pytest.mark.parametrize("written_by", [None, "node-1"])
def test_what_our_lease_says_already_goes_on(written_by: str | None) -> None:
    """Peers send to the MAC address that flanneld's device had, and after a restart to the same."""
    node = on_store()
    data = {"VNI": 1, "VtepMAC": "86:f1:10:af:f8:a9"}
    attributes = LeaseAttributes(IPv4Address("192.0.2.1"), backend_type="vxlan", backend_data=data, node_id=written_by)
    node.store.put("10.5.33.0-24", attributes.to_json(), 60)
    joined = node.start().joined
    assert joined.lease.attributes.backend_data == data
    (device,) = [item for item in joined.backend.plan_node(joined.node) if isinstance(item, Link)]
    assert device.mac == "86:f1:10:af:f8:a9"


def test_a_second_node_with_our_address_is_refused() -> None:
    one = Node().start()
    two = Node(store=one.store, node_id="impostor").start()
    assert two.state.conflict
    assert "node-1" in two.state.trouble
    assert two.state.lease is None
    assert one.run(0).record is not None


def test_take_over_takes_over() -> None:
    one = Node().start()
    two = Node(store=one.store, node_id="new", given={"policy": ConflictPolicy.TAKE_OVER}).start()
    assert two.joined.lease.key == one.joined.lease.key
    one.run(1)
    assert one.state.conflict, "the one that was replaced says so"
    assert two.run(1).record is not None


@pytest.mark.parametrize("key", ["0.0.0.0-0", "10.0.0.0-8", "10.5.0.0-16", "nonsense"])
def test_a_hostile_lease_does_not_shut_the_others_out(key: str) -> None:
    node = on_store()
    node.store.put(key, foreign(7, "hostile"))
    assert node.start().generation is not None


def test_a_subnet_that_another_was_quicker_to_create_is_passed_over() -> None:
    wanted = Subnets(IPv4Network("10.5.77.0/24"))
    node = Node(previous=wanted)
    node.fault = lambda call: _steal(node, call)
    node.start().until(lambda: node.generation)
    assert node.joined.lease.subnets != wanted


def _steal(node: Node, call: Call) -> None:
    if isinstance(call, Create) and call.key not in node.store.kept and node.count(Create) == 1:
        node.store.put(call.key, foreign(7, "thief"))


def test_two_leases_never_share_a_subnet_of_one_family_alone() -> None:
    node = on_store(TWO_FAMILIES)
    overtaken: list[str] = []

    def overtake(call: Call) -> None:
        if isinstance(call, Create) and not overtaken:
            overtaken.append(f"{call.key.split('&')[0]}&fd00:5:0:7777::-64")
            node.store.put(overtaken[0], foreign(7, "node-7"))

    node.after = overtake
    joined = node.start().joined
    assert overtaken
    assert not joined.lease.subnets.overlaps(Subnets.from_key(overtaken[0]))
    assert set(node.store.kept) == {joined.lease.key, overtaken[0]}


def test_a_crossing_lease_is_also_given_back_when_looking_for_others_failed_at_first() -> None:
    node = on_store(TWO_FAMILIES)
    overtaken: list[str] = []

    def overtake(call: Call) -> None:
        if isinstance(call, Create) and not overtaken:
            overtaken.append(f"{call.key.split('&')[0]}&fd00:5:0:7777::-64")
            node.store.put(overtaken[0], foreign(7, "node-7"))
            node.fault = once(TakeSnapshot, UNAVAILABLE)

    node.after = overtake
    node.start().until(lambda: node.generation)
    assert not node.joined.lease.subnets.overlaps(Subnets.from_key(overtaken[0]))
    assert set(node.store.kept) == {node.joined.lease.key, overtaken[0]}


# It is kept -----------------------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_when_it_is_due_and_not_before() -> None:
    node = Node(given={"ttl": 86400.0, "margin": 3600.0}).start().run(10 * 86400)
    assert node.record is not None
    begun = [at for at in renewals(node) if at > 10]  # the first seconds confirm a new lease
    assert 9 <= len(begun) <= 11
    assert all(86400 - 3960 <= later - at <= 86400 - 3600 for at, later in pairwise(begun))


@pytest.mark.parametrize(("margin", "said"), [(3600.0, None), (300.0, 300.0)])
def test_a_lease_says_when_it_is_renewed_unless_that_is_as_usual(margin: float, said: float | None) -> None:
    node = Node(given={"ttl": 10_000.0, "margin": margin}).start().run(10)
    assert node.record is not None
    lease = Lease.from_record(node.record.key, node.record.value)
    assert lease.attributes.extra.get(MARGIN_KEY) == said


def test_a_margin_as_long_as_the_life_does_not_renew_for_ever() -> None:
    node = Node(given={"ttl": 61.0, "margin": 60.0}).start().run(610)
    assert node.record is not None
    assert len(renewals(node)) < 610 / (61 / 4)


def test_expiry_is_reckoned_from_before_the_call() -> None:
    node = Node().start()
    node.run(10)
    node.fault = once(Renew, HANGS)
    node.until(lambda: node.hanging)
    asked = node.now
    (order,) = node.hanging
    node.store.now += 4
    node.machine.done(order.number, node.store.renew(order.call.record, 60.0), node.now)  # type: ignore[union-attr]
    assert node.state.expires_at == pytest.approx(asked + 60, abs=0.5)
    assert node.state.renewed_at == node.now


@pytest.mark.parametrize("host", range(1, 6))
def test_a_lease_never_ends_while_the_store_fails_now_and_then(host: int) -> None:
    node = Node(host=host).start()
    key = node.joined.lease.key
    tries = iter(range(1_000_000))
    node.fault = lambda call: UNAVAILABLE if next(tries) % 3 else None
    for _ in range(200):
        node.run(5)
        assert node.record is not None
        assert node.record.key == key


def test_a_deleted_lease_is_taken_again() -> None:
    node = Node().start()
    record = node.record
    assert record is not None
    node.store.delete(record)
    node.run(1)
    assert node.joined.number == 2
    assert node.record is not None
    assert node.record.key == record.key


def test_a_lease_that_is_deleted_again_and_again_is_not_taken_again_without_a_pause() -> None:
    node = Node().start()

    def vandal(call: Call) -> None:
        if isinstance(call, OpenWatch) and node.record is not None:
            node.store.delete(node.record)

    node.after = vandal
    assert node.record is not None
    node.store.delete(node.record)
    node.run(120)
    assert 5 < node.count(Create) < 60


def test_a_lease_that_was_put_back_before_we_could_is_ours_all_the_same() -> None:
    node = Node().start()
    lost = node.record
    assert lost is not None

    def mirror(call: Call) -> None:
        if isinstance(call, Create):
            node.fault = None
            node.store.put(lost.key, lost.value, 60)

    node.fault = mirror
    node.store.delete(lost)
    node.until(lambda: node.joined.number == 2)
    assert list(node.store.kept) == [lost.key]
    assert node.state.trouble == ""


def test_a_lease_that_was_deleted_before_the_watch_could_see_it_is_missed() -> None:
    """Created and deleted between two looks: nothing has changed, says a store that compares states."""
    node = Node()

    def fold(call: Call) -> None:
        if isinstance(call, Create):
            node.after = None
            del node.store.kept[call.key]
            node.store.history.pop()

    node.after = fold
    node.start()
    assert not node.store.kept
    node.run(3)
    assert node.record is not None
    assert node.joined.number == 2


def test_a_subnet_that_another_node_got_meanwhile_is_a_loud_conflict() -> None:
    node = Node().start()
    record = node.record
    assert record is not None
    node.store.put(record.key, foreign(7, "thief"), 10_000)
    node.run(200)
    assert node.state.conflict
    assert "thief" in node.state.trouble
    assert not node.state.valid(node.now)
    assert "thief" in node.store.kept[record.key].record.value, "the later one does not fight back"
    node.store.delete(node.store.kept[record.key].record)
    node.until(lambda: not node.state.conflict)
    assert node.joined.lease.key == record.key
    assert node.state.valid(node.now)


def test_our_own_lease_that_an_operator_has_changed_is_put_right() -> None:
    node = Node().start()
    record = node.record
    assert record is not None
    document = {**json.loads(record.value), "BackendType": "udp", "Note": "mine"}
    node.store.put(record.key, json.dumps(document), 60)
    node.run(1)
    assert node.record is not None
    now = json.loads(node.record.value)
    assert (now["BackendType"], now["Note"]) == ("vxlan", "mine")
    assert node.joined.number == 1


# The underlay and the document ----------------------------------------------------------------------------------------


def test_a_new_public_address_keeps_the_subnet() -> None:
    node = Node().start()
    before = node.joined
    node.machine.move(underlay(9), node.now)
    node.run(0)
    after = node.joined
    assert (after.number, after.node.underlay) == (2, underlay(9))
    assert after.lease.subnets == before.lease.subnets
    assert after.backend is before.backend
    assert node.record is not None
    assert "192.0.2.9" in node.record.value


def test_an_underlay_that_comes_later_is_waited_for() -> None:
    node = Node()
    node.machine.start(None, 0.0)
    assert node.run(100).generation is None
    node.machine.move(underlay(), node.now)
    assert node.run(0).generation is not None


def test_a_node_that_loses_an_address_family_keeps_its_lease_and_recovers() -> None:
    node = on_store(TWO_FAMILIES).start()
    before = node.joined
    node.machine.move(underlay(ipv6=False), node.now)
    node.run(500)
    assert "no usable IPv6 address" in node.state.trouble
    assert node.state.valid(node.now)
    assert node.record is not None
    node.store.put("10.5.0.240-28&fd00:5:0:99::-64", foreign(7, "node-7"))
    node.run(1)
    assert len(node.slot.records()) == 1, "peers are still followed"
    node.machine.move(underlay(), node.now)
    node.run(0)
    assert node.state.trouble == ""
    assert node.joined.lease == before.lease


def test_a_lease_of_an_earlier_run_is_renewed_although_an_address_family_is_missing_at_the_start() -> None:
    first = on_store(TWO_FAMILIES).start()
    key = first.joined.lease.key
    second = Node(store=first.store).start(underlay(ipv6=False)).run(500)
    assert second.generation is None
    assert second.record is not None
    second.machine.move(underlay(), second.now)
    assert second.run(1).joined.lease.key == key


def test_a_lost_family_outlives_a_new_session() -> None:
    node = on_store(TWO_FAMILIES).start()
    node.machine.move(underlay(ipv6=False), node.now)
    node.store.compact()
    node.run(300)
    assert "no usable IPv6 address" in node.state.trouble
    assert node.joined.number == 2
    assert node.record is not None


def test_another_network_document_begins_a_new_session() -> None:
    node = Node().start()
    old = node.joined
    node.store.config_is(agreed('{"Network": "10.6.0.0/16"}'))
    new = node.run(0).joined
    assert IPv4Network("10.6.0.0/16").supernet_of(new.node.subnets.ipv4 or IPv4Network("0.0.0.0/0"))
    assert old.lease.key not in node.store.kept, "a lease that no longer fits is given back"
    told = [change.key for change in node.store.history if change.record is None or change.key == new.lease.key]
    assert told == [new.lease.key, old.lease.key], "the new one first: peers never see this node without a lease"
    assert new.backend is not old.backend


APART = [
    ('{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}', "host-gw"),
    ('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}', "VNI"),
    ('{"Network": "10.6.0.0/16"}', "does not contain the present one"),
    ('{"Network": "10.5.0.0/17"}', "does not contain the present one"),
    ('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}', "IPv4 off"),
]


@pytest.mark.parametrize(("document", "named"), APART, ids=[named for _, named in APART])
def test_a_document_that_was_merely_written_keeps_the_one_in_force(document: str, named: str) -> None:
    """What two nodes have to agree on is not followed by each at its own time: they would be cut off in between."""
    node = Node().start().run(10)
    before = node.joined
    node.store.config_is(document)
    node.run(150)
    assert named in node.state.trouble
    assert "network change" in node.state.trouble
    assert node.state.refused == node.state.trouble
    assert node.joined is before
    assert node.state.valid(node.now), "and the lease is renewed"
    node.store.config_is(DOCUMENT)
    assert node.run(1).state.trouble == node.state.refused == ""


def test_a_document_without_the_note_of_the_last_change_is_merely_written_too() -> None:
    node = on_store(agreed(DOCUMENT)).start().run(10)
    node.store.config_is('{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}')
    node.run(5)
    assert "host-gw" in node.state.trouble
    assert node.joined.backend.name == "vxlan"


@pytest.mark.parametrize(
    "document",
    [
        '{"Network": "10.5.0.0/16", "SubnetLen": 26}',
        '{"Network": "10.4.0.0/15"}',
        '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}',
        '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "MTU": 1400}}',
        '{"Network": "10.5.0.0/16", "EnableNFTables": true}',
    ],
    ids=["shorter leases", "larger network", "IPv6 added", "a local option", "the firewall"],
)
def test_what_needs_no_agreement_is_followed_at_once(document: str) -> None:
    node = Node().start().run(10)
    before = node.joined
    node.store.config_is(document)
    after = node.run(5).joined
    assert node.state.trouble == ""
    assert after.number > before.number
    assert after.node.network == NetworkConfig.from_json(document)
    assert after.node.subnets.ipv4 == before.node.subnets.ipv4, "containers keep their addresses"


@pytest.mark.parametrize("again", ["history goes", "lease goes", "nothing more"])
def test_an_invalid_new_document_is_reported_and_the_old_one_kept(again: str) -> None:
    node = Node().start()
    node.store.config_is('{"Network": "10.6.0.0/99"}')
    node.run(1)
    if again == "history goes":
        node.store.compact()
    if again == "lease goes" and node.record is not None:
        node.store.delete(node.record)
    node.run(300)
    assert "Network" in node.state.trouble
    assert node.state.valid(node.now)
    node.store.put("10.5.200.0-24", foreign(7, "node-7"))
    node.run(1)
    assert list(node.slot.records()) == ["10.5.200.0-24"], "peers are still followed"
    node.machine.move(underlay(3), node.now)
    assert node.run(0).joined.node.underlay == underlay(3), "and so is the underlay"
    node.store.config_is(DOCUMENT)
    assert node.run(1).state.trouble == ""


@pytest.mark.parametrize(
    ("given", "document", "named"),
    [
        ({"backend": "vxlan"}, '{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}', "its backend is host-gw"),
        ({"seed": NetworkSeed(DOCUMENT, "f", True)}, '{"Network": "10.7.0.0/16"}', "something else than f"),
    ],
)
def test_what_the_node_insists_on_outlives_another_document(given: dict[str, Any], document: str, named: str) -> None:
    node = Node(given=given).start()
    node.store.config_is(document)
    node.run(300)
    assert named in node.state.trouble
    assert node.record is not None
    assert node.joined.number == 1


def test_without_a_document_we_wait_and_say_so() -> None:
    node = Node(given={"seed": None}).start().run(60)
    assert "no network config" in node.state.trouble
    node.store.config_is(DOCUMENT)
    node.until(lambda: node.generation)
    assert node.state.trouble == ""


@pytest.mark.parametrize(
    ("document", "given", "error"),
    [
        ('{"Network": "10.5.0.0"}', {}, ConfigError),
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "nonsense"}}', {}, PluginError),
        ('{"Network": "10.5.0.0/16", "Backend": {"VNI": "x"}}', {}, ConfigError),
        ('{"Network": "10.5.0.0/16"}', {"backend": "host-gw"}, ConfigError),
        ('{"Network": "10.5.0.0/16"}', {"seed": NetworkSeed('{"Network": "10.7.0.0/16"}', "f", True)}, ConfigError),
    ],
)
def test_what_can_never_work_is_fatal_at_the_start(document: str, given: dict[str, Any], error: type) -> None:
    node = on_store(document, given=given).start()
    assert isinstance(node.state.fatal, error)
    assert node.machine.over
    assert node.machine.due is None


# Outages --------------------------------------------------------------------------------------------------------------


def test_an_outage_at_the_start_is_waited_out() -> None:
    node = Node()
    node.down = True
    node.start().run(100)
    assert node.state.trouble == "out of reach"
    node.down = False
    node.until(lambda: node.generation, 15)
    assert node.state.trouble == ""


def test_an_outage_while_running_resumes_without_a_gap_and_without_a_new_session() -> None:
    node = Node(given={"ttl": 1000.0, "margin": 300.0}).start().run(10)
    node.down = True
    node.run(100)
    assert node.state.trouble == "out of reach"
    assert node.state.valid(node.now)
    node.store.put("10.5.200.0-24", foreign(7, "node-7"))
    node.down = False
    node.run(20)
    assert list(node.slot.records()) == ["10.5.200.0-24"]
    assert node.joined.number == 1
    assert node.state.trouble == ""


def test_a_store_that_is_away_is_asked_ever_more_seldom_however_long_the_watch_had_lasted() -> None:
    node = Node(given={"ttl": 10_000.0, "margin": 300.0})
    node.store.now = 100.0  # no clock says 0
    node.start().run(1000)
    before = node.count(ReadConfig)
    node.down = True
    node.run(120)
    assert 5 < node.count(ReadConfig) - before < 30


def test_a_lease_that_expired_during_an_outage_is_taken_again() -> None:
    node = Node().start()
    key = node.joined.lease.key
    node.run(10)
    node.down = True
    node.run(200)
    assert not node.state.valid(node.now)
    assert node.record is None
    node.down = False
    node.until(lambda: node.state.valid(node.now), 60)
    assert node.joined.lease.key == key


def test_history_that_is_gone_again_and_again_is_not_asked_for_without_a_pause() -> None:
    node = Node().start()
    node.fault = while_true(OpenWatch, HistoryGoneError("forgotten"), [True])
    node.store.compact()
    before = node.count(TakeSnapshot)
    node.run(120)
    assert 5 < node.count(TakeSnapshot) - before < 60
    node.fault = None
    node.store.put("10.5.200.0-24", foreign(7, "node-7"))
    node.run(20)
    assert list(node.slot.records()) == ["10.5.200.0-24"]


def test_history_that_is_gone_once_costs_no_pause() -> None:
    node = Node().start()
    node.store.compact()
    node.run(0)
    assert node.joined.number == 2


# Faults ---------------------------------------------------------------------------------------------------------------

CALLS = [OpenStore, TakeSnapshot, WriteConfig, Create, Renew, OpenWatch, Update, ReadConfig, Publish, Load]
FAULTS: dict[str, Callable[[], Any]] = {
    "out of reach": lambda: StoreUnavailableError("out of reach"),
    "denied": lambda: StoreDeniedError("not allowed"),
    "kernel": lambda: KernelError("no such device"),
    "lease": lambda: LeaseError("nonsense"),
    "a bug": lambda: ZeroDivisionError("oops"),
    "sys.exit": lambda: SystemExit(3),
    "junk": lambda: object(),
}


def _everything(node: Node) -> None:
    """A life in which every call is made."""
    node.start()
    node.run(30)
    node.machine.move(underlay(5), node.now)
    node.run(30)
    node.down = True
    node.run(3)
    node.down = False
    node.run(30)
    node.store.config_is(agreed('{"Network": "10.6.0.0/16"}'))
    node.run(120)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)
def test_a_call_that_fails_once_leaves_no_trace(kind: type, fault: str) -> None:
    failing_at_start = kind in (Publish, Load)
    node = Node()
    if failing_at_start:
        node.start()
    node.fault = once(kind, FAULTS[fault]())
    if failing_at_start:
        node.machine.move(underlay(2), node.now)
        node.run(10)
    _everything(node)
    assert node.state.fatal is None
    assert node.state.trouble == ""
    assert node.state.valid(node.now)
    assert node.record is not None
    assert node.count(kind) > 1
    assert "192.0.2.5" in node.record.value
    assert str(node.joined.node.network.ipv4.network) == "10.6.0.0/16"  # type: ignore[union-attr]
    assert [key for key in node.store.kept if key != node.record.key] == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", [OpenWatch, Update, ReadConfig, Publish, Load], ids=lambda kind: kind.__name__)
def test_a_lease_is_renewed_while_another_call_fails_and_the_trouble_ends_with_its_cause(
    kind: type, fault: str
) -> None:
    node = Node().start().run(10)
    failing = [True]
    node.fault = while_true(kind, FAULTS[fault](), failing)
    node.machine.move(underlay(5), node.now)
    node.store.config_is(agreed('{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}'))
    if kind in (OpenWatch, ReadConfig):
        node.down = True
        node.run(2)
        node.down = False
    for _ in range(100):
        node.run(5)
        assert node.record is not None
        assert node.state.valid(node.now)
    assert node.state.trouble != ""
    failing[0] = False
    node.run(120)
    assert node.state.trouble == ""
    record = node.record
    assert record is not None
    assert "192.0.2.5" in record.value
    assert '"host-gw"' in record.value


@pytest.mark.parametrize("kind", [Update, Publish, Load], ids=lambda kind: kind.__name__)
def test_failing_calls_are_not_made_without_pauses(kind: type) -> None:
    node = Node().start().run(10)
    node.fault = while_true(kind, KernelError("no"), [True])
    node.machine.move(underlay(5), node.now)
    node.store.config_is(agreed('{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}'))
    node.run(600)
    assert 5 < node.count(kind) < 150


def test_a_publish_that_never_answers_does_not_keep_the_lease_from_being_renewed() -> None:
    node = Node().start().run(10)
    node.fault = while_true(Publish, HANGS, [True])
    node.machine.move(underlay(5), node.now)
    node.run(500)
    assert node.record is not None
    assert node.state.valid(node.now)
    assert node.joined.node.underlay == underlay(5)


def test_a_first_publish_that_fails_in_passing_is_no_reason_to_end() -> None:
    first = Node().start()
    second = Node(store=first.store)
    failing = [True]
    second.fault = while_true(Publish, KernelError("no such device"), failing)
    second.start().run(500)
    assert second.state.trouble == "no such device"
    assert second.record is not None, "what an earlier run held is renewed"
    failing[0] = False
    assert second.run(30).generation is not None


# A store that hangs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [OpenStore, TakeSnapshot, Create, Renew, OpenWatch, Update], ids=lambda kind: kind.__name__
)
def test_a_call_that_hangs_is_named_and_the_store_given_up(kind: type) -> None:
    node = Node()
    node.fault = once(kind, HANGS)
    node.start()
    if kind is Update:
        node.machine.move(underlay(5), node.now)
    node.until(lambda: node.hanging)
    node.run(5.5)
    assert node.state.trouble == ""
    node.run(1)
    assert node.state.trouble == f"store model://a/b has not come back from {kind.name} for 6 s"  # type: ignore[attr-defined]
    node.run(20)
    assert node.given_up == 1
    node.run(60)
    assert node.state.trouble == ""
    assert node.state.valid(node.now)
    assert node.record is not None
    assert kind is not Update or "192.0.2.5" in node.record.value
    before = node.state
    node.let_go()
    assert node.run(1).state == before, "what comes back later is nobody's any more"


def test_a_call_that_comes_back_late_but_not_too_late_is_taken() -> None:
    node = Node().start().run(10)
    node.fault = once(Renew, HANGS)
    node.until(lambda: node.hanging)
    node.run(8)
    assert "has not come back from renew" in node.state.trouble
    node.let_go()
    node.run(5)
    assert (node.state.trouble, node.given_up) == ("", 0)


def test_stores_that_all_hang_are_not_given_up_without_end() -> None:
    node = Node()
    hangs = [True]
    node.fault = while_true(TakeSnapshot, HANGS, hangs)
    node.start().run(3600)
    assert node.given_up == 8
    assert "has not come back from snapshot" in node.state.trouble
    hangs[0] = False
    node.let_go()
    node.until(lambda: node.generation)
    assert node.state.trouble == ""


def test_rubbish_written_over_our_lease_is_put_right() -> None:
    """Peers skip a lease that they can't read, so nobody would reach us."""
    node = Node().start().run(10)
    before = node.record
    assert before is not None
    node.store.put(before.key, "{", 60.0)
    node.run(5)
    assert node.record is not None
    assert node.record.value == before.value
    assert node.state.trouble == ""


def test_rubbish_that_was_written_over_our_lease_while_we_were_away_is_put_right() -> None:
    node = Node().start().run(10)
    before = node.record
    assert before is not None
    node.down = True
    node.run(1)
    node.store.put(before.key, "{", 60.0)
    node.store.compact()
    node.down = False
    node.run(45)
    assert node.record is not None
    assert (node.record.key, node.record.value) == (before.key, before.value)
    assert node.state.trouble == ""


@pytest.mark.parametrize("words", ["{", foreign(9, "node-9")], ids=["rubbish", "another's"])
def test_a_renewal_that_knows_more_than_the_watch_hides_nothing(words: str) -> None:
    """Consul renews for whoever has the session, and answers with what is there, heard of or not."""
    node = Node().start()
    ours = node.record
    assert ours is not None
    node.run(10)
    node.fault = once(Renew, HANGS)
    node.until(lambda: node.hanging)
    (order,) = node.hanging
    written = node.store.put(ours.key, words, 60.0)
    node.machine.done(order.number, written, node.now)
    assert node.state.expires_at is not None
    assert node.state.expires_at > node.now + 50, "it is renewed"
    node.run(5)
    if words == "{":
        assert node.record is not None
        assert json.loads(node.record.value) == json.loads(ours.value)
        assert node.state.trouble == ""
    else:
        assert node.state.conflict
        assert "is leased to node 'node-9'" in node.state.trouble


def test_a_node_that_moved_while_rubbish_was_written_over_its_lease_says_where_it_is() -> None:
    """It goes on from what the store holds now, not from what it held before."""
    node = Node(given={"ttl": 86_400.0, "margin": 3600.0}).start().run(10)  # no renewal helps it out
    before = node.record
    assert before is not None
    node.down = True
    node.run(1)
    node.machine.move(underlay(77), node.now)
    node.store.put(before.key, "{", 60.0)
    node.store.compact()
    node.down = False
    node.run(45)
    assert node.record is not None
    assert node.record.key == before.key
    assert json.loads(node.record.value)["PublicIP"] == "192.0.2.77"
    assert node.state.trouble == ""


def test_an_announcement_without_an_answer_is_no_trouble_once_the_next_one_has_one() -> None:
    """Nobody knows what the store was told last, so what holds now is told again."""
    node = Node().start()
    node.machine.announce(True, node.now)
    node.run(1)
    node.fault = once(Announce, UNAVAILABLE)
    node.machine.announce(False, node.now)
    node.run(0)
    node.machine.announce(True, node.now)
    node.run(30)
    assert [call.ready for _, call in node.calls if isinstance(call, Announce)] == [True, False, True]
    assert node.state.trouble == ""


# Requests to publish --------------------------------------------------------------------------------------------------


def test_a_request_to_publish_is_answered_by_its_number() -> None:
    says = ["one"]

    def make(network: NetworkConfig) -> Backend[Any]:
        return Saying(lambda: Published(says[0]))

    node = Node(make=make).start()
    says[0] = "two"
    node.machine.publish(1, node.now)
    node.run(0)
    assert node.record is not None
    assert '"two"' in node.record.value
    assert (node.state.published, node.state.publish_error) == (1, None)


def test_a_request_to_publish_that_fails_says_so_and_is_made_up_for() -> None:
    node = Node(make=lambda network: Saying()).start()
    failing = [True]
    node.fault = while_true(Publish, KernelError("no"), failing)
    node.machine.publish(1, node.now)
    node.run(1)
    assert node.state.published == 1
    assert str(node.state.publish_error) == "no"
    failing[0] = False
    node.run(30)
    assert (node.state.published, node.state.publish_error) == (1, None)


def test_a_request_to_publish_while_there_is_no_session_is_refused_with_the_reason_and_seen_to_later() -> None:
    node = Node()
    node.down = True
    node.start().run(1)
    node.machine.publish(1, node.now)
    node.run(0)
    assert node.state.published == 1
    assert str(node.state.publish_error) == "out of reach"
    node.down = False
    node.run(60)
    assert (node.state.published, node.state.publish_error) == (1, None)


# The end --------------------------------------------------------------------------------------------------------------


def test_a_keeper_that_stops_leaves_its_lease_and_asks_for_nothing_more() -> None:
    node = Node().start()
    node.machine.stop(node.now)
    node.run(10)
    assert node.machine.over
    assert not node.watches
    assert node.record is not None


def test_one_seed_makes_one_history() -> None:
    def life() -> list[tuple[float, str]]:
        node = Node(store=StoreModel())
        tries = iter(range(1_000_000))
        node.fault = lambda call: UNAVAILABLE if next(tries) % 4 == 3 else None
        _everything(node)
        return [(at, type(call).__name__) for at, call in node.calls]

    assert life() == life()


def test_a_backend_that_was_made_once_is_used_again_after_a_break() -> None:
    node = Node().start()
    node.store.compact()
    node.run(5)
    assert node.joined.number == 2
    assert node.count(Load) == 1


# Many nodes, everything at once --------------------------------------------------------------------------------------

CALLS_TO_STORE = (TakeSnapshot, Create, Renew, OpenWatch, Update, ReadConfig, Delete)


def _bad_luck(node: Node, rng: random.Random, bad: list[bool]) -> Callable[[Call], Any]:
    """Calls that fail, hang, or take effect although they fail."""

    def fault(call: Call) -> Any:
        if not bad[0] or rng.random() > 0.3:
            return None
        if isinstance(call, Create | Update | Renew | Delete) and rng.random() < 0.5:
            try:
                perform(node.store, call)
            except ConflictError as error:
                return error
            return StoreUnavailableError("the answer was lost")
        if isinstance(call, CALLS_TO_STORE) and rng.random() < 0.1:
            return HANGS
        return FAULTS[rng.choice(["out of reach", "denied", "a bug", "sys.exit", "junk"])]()

    return fault


@pytest.mark.parametrize("document", [DOCUMENT, TWO_FAMILIES], ids=["one family", "two families"])
@pytest.mark.parametrize("seed", range(8))
def test_a_cluster_with_bad_luck_shares_no_subnet_and_comes_to_rest(seed: int, document: str) -> None:
    rng, bad = random.Random(seed), [True]
    store = StoreModel()
    store.config_is(document)
    nodes = [Node(store=store, host=host) for host in range(1, 7)]
    for node in nodes:
        node.machine.start(underlay(node.host), 0.0)
    together(nodes, 1)
    for node in nodes:
        node.fault = _bad_luck(node, rng, bad)
    for _ in range(60):
        together(nodes, rng.random() * 10)
        kind = rng.randrange(8)
        if kind == 0:
            store.compact()
        elif kind == 1 and store.kept:
            store.delete(rng.choice(list(store.kept.values())).record)
        elif kind == 2:
            victim = rng.choice(nodes)
            victim.machine.move(underlay(victim.host + rng.choice([0, 100]), rng.random() < 0.8), store.now)
        elif kind == 3:
            rng.choice(nodes).let_go()
        leases = [node.state.lease.subnets for node in nodes if node.state.lease and node.state.valid(store.now)]
        assert not any(one.overlaps(other) for one, other in combinations(leases, 2))
    bad[0] = False
    for node in nodes:
        node.machine.move(underlay(node.host), store.now)
    together(nodes, 300)
    for node in nodes:
        assert node.state.trouble == ""
        assert node.record is not None
        assert json.loads(node.record.value)["PublicIP"] == f"192.0.2.{node.host}"
        assert node.joined.node.underlay == underlay(node.host)
        mine = node.record.key
        assert node.slot.records() == {key: kept.record.value for key, kept in store.kept.items() if key != mine}
    assert len(store.kept) == len(nodes), "nothing is left behind"


# A change of the network ----------------------------------------------------------------------------------------------

CHANGE_ID = "00000000000000a1"
HOST_GW: dict[str, Any] = {"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}


def changing(phase: Phase, target: dict[str, Any] | None = None) -> str:
    return read(DOCUMENT).with_change(NetworkChange(CHANGE_ID, phase, HOST_GW if target is None else target))


def said(node: Node) -> NodeProgress | None:
    assert node.record is not None
    return NodeProgress.from_json(Lease.from_record(node.record.key, node.record.value).attributes.extra.get(LEASE_KEY))


def test_a_node_goes_through_a_change_in_one_session() -> None:
    node = Node().start().run(10)
    key, document = node.joined.lease.key, read(DOCUMENT)
    for phase, step in (
        (Phase.PREPARE, Step.PREPARED),
        (Phase.SWITCH, Step.SWITCHED),
        (Phase.RETIRE, Step.RETIRED),
    ):
        node.store.config_is(changing(phase))
        planner = node.run(1).joined.backend
        assert isinstance(planner, Transition)
        assert (planner.former.name, planner.following.name, planner.change.phase) == ("vxlan", "host-gw", phase)
        node.machine.reached(NodeProgress(CHANGE_ID, step), node.now)
        node.run(1)
        assert said(node) == NodeProgress(CHANGE_ID, step, "host-gw")
        record = node.record
        assert record is not None
        assert Lease.from_record(record.key, record.value).attributes.backend_type == "vxlan", "as flanneld reads it"
    node.store.config_is(document.ended(NetworkChange(CHANGE_ID, Phase.RETIRE, HOST_GW), ""))
    after = node.run(1).joined
    assert (after.backend.name, after.last, after.lease.key) == ("host-gw", CHANGE_ID, key)
    assert said(node) == NodeProgress(CHANGE_ID, Step.DONE)
    assert node.state.trouble == ""
    assert node.count(OpenWatch) == 1, "peers and renewals went on in one session"


def test_a_change_that_is_given_up_leaves_what_was() -> None:
    node = on_store().start().run(10)
    before = node.joined.backend
    node.store.config_is(changing(Phase.SWITCH))
    node.run(1)
    node.store.config_is(read(DOCUMENT).ended(NetworkChange(CHANGE_ID, Phase.BACK, HOST_GW), ""))
    assert node.run(1).joined.backend is before, "the backend that ran all along"
    assert said(node) is None
    assert node.joined.last == ""


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "nonsense"}}, "nonsense"),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": "x"}}, "VNI"),
        ({"Network": "10.6.0.0/16", "Backend": {"Type": "host-gw"}}, "other networks"),
        ({"Backend": {"Type": "host-gw"}}, "Network"),
    ],
)
def test_what_a_node_can_not_have_is_said_in_its_lease_and_changes_nothing(target: dict[str, Any], says: str) -> None:
    node = Node().start().run(10)
    node.store.config_is(changing(Phase.PREPARE, target))
    node.run(90)
    told = said(node)
    assert told is not None
    assert says in told.trouble
    assert (told.step, told.backend_type) == (None, None)
    assert node.joined.backend.name == "vxlan"
    assert node.state.valid(node.now)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("flag", ["vxlan", "host-gw", "udp"])
def test_a_node_that_was_started_with_a_backend_takes_part(phase: Phase, flag: str) -> None:
    """Also if it starts in the middle, with the former backend, the new one, or one of long ago."""
    running = Node(given={"backend": "vxlan"}).start().run(10)
    running.store.config_is(changing(phase))
    running.run(5)
    late = Node(store=running.store, host=2, given={"backend": flag}).start().run(5)
    for node in (running, late):
        assert isinstance(node.joined.backend, Transition)
        assert said(node) == NodeProgress(CHANGE_ID, None, "host-gw")
        assert node.state.trouble == ""
    assert ("--backend udp" in late.joined.overruled) == (flag == "udp")
    assert running.joined.overruled == ""


def test_what_a_change_has_led_to_counts_more_than_the_flag_and_what_was_merely_written_does_not() -> None:
    node = Node(given={"backend": "vxlan"}).start().run(10)
    for document in (
        changing(Phase.RETIRE),
        read(DOCUMENT).ended(NetworkChange(CHANGE_ID, Phase.RETIRE, HOST_GW), ""),
    ):
        node.store.config_is(document)
        node.run(5)
    again = Node(store=node.store, given={"backend": "vxlan"}, previous=node.joined.lease.subnets).start().run(1)
    for each in (node, again):
        assert each.joined.backend.name == "host-gw"
        assert "--backend vxlan" in each.joined.overruled
        assert each.state.trouble == ""
    node.store.config_is(json.dumps(HOST_GW))
    assert again.run(5).joined.backend.name == "host-gw", "what is in force stays"
    refused = Node(store=node.store, host=2, given={"backend": "vxlan"}).start().run(1)
    assert refused.generation is None
    assert isinstance(refused.state.fatal, ConfigError)
    assert "--backend is 'vxlan'" in str(refused.state.fatal)


# A document written behind everybody's back, and a node that starts then ----------------------------------------------

VXLAN_2: dict[str, Any] = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}
ELSEWHERE: dict[str, Any] = {"Network": "10.6.0.0/16", "Backend": {"Type": "vxlan"}}
NO_BACKEND: dict[str, Any] = {"Network": "10.5.0.0/16", "Backend": {"Type": "nonsense"}}


def restarted(node: Node, **options: Any) -> Node:
    given = {"followed": node.followed, **options}
    return Node(store=node.store, given=given, previous=node.joined.lease.subnets).start().run(5)


@pytest.mark.parametrize("written", [*map(json.dumps, (HOST_GW, VXLAN_2, ELSEWHERE, NO_BACKEND, {})), "{"])
def test_a_node_that_starts_does_not_cut_itself_off_from_all_others(written: str) -> None:
    one = Node().start().run(5)
    Node(store=one.store, host=2).start().run(5)
    one.store.config_is(written)
    again = restarted(one)
    assert again.joined.backend.name == "vxlan"
    assert again.joined.node.network == one.joined.node.network
    assert again.joined.lease.key == one.joined.lease.key
    assert again.state.trouble != "", "it says so"
    again.store.config_is(read(DOCUMENT).text)
    assert again.run(70).state.trouble == ""


@pytest.mark.parametrize(
    ("written", "why"),
    [*product([HOST_GW, VXLAN_2], ["alone", "forced", "moved", "nobody knows"]), (VXLAN_2, "some are there")],
)
def test_a_node_that_starts_follows_the_document_otherwise(written: dict[str, Any], why: str) -> None:
    one = Node().start().run(5)
    if why != "alone":
        Node(store=one.store, host=2).start().run(5)
    document = read(json.dumps(written))
    if why == "some are there":
        one.store.config_is(document.text)
        Node(store=one.store, host=3).start().run(5)
    elif why == "moved":
        one.store.config_is(document.ended(NetworkChange(CHANGE_ID, Phase.RETIRE, written), ""))
    else:
        one.store.config_is(document.forced(CHANGE_ID, "") if why == "forced" else document.text)
    again = restarted(one, **({"followed": "{"} if why == "nobody knows" else {}))
    assert again.joined.backend.name == written["Backend"]["Type"]
    assert again.state.trouble == ""


def test_what_was_forced_is_followed_at_the_next_start_and_not_before() -> None:
    one = Node().start().run(5)
    two = Node(store=one.store, host=2).start().run(5)
    one.store.config_is(read(json.dumps(HOST_GW)).forced(CHANGE_ID, ""))
    for node in (one, two):
        assert node.run(5).joined.backend.name == "vxlan"
        assert "config set --force" in node.state.trouble
        assert restarted(node).joined.backend.name == "host-gw"


def test_a_node_that_is_bound_to_a_file_says_so_before_the_change() -> None:
    bound = NetworkSeed(json.dumps({**json.loads(DOCUMENT), "Backend": {"Type": "vxlan"}}), "net-conf.json", True)
    node = Node(given={"seed": bound}).start().run(10)
    node.store.config_is(changing(Phase.PREPARE))
    node.run(5)
    told = said(node)
    assert told is not None
    assert "--net-config-path" in told.trouble
    assert node.joined.backend.name == "vxlan"


def test_a_restart_in_the_middle_goes_on_from_what_the_lease_says() -> None:
    node = Node().start().run(10)
    node.store.config_is(changing(Phase.SWITCH))
    node.run(1)
    node.machine.reached(NodeProgress(CHANGE_ID, Step.SWITCHED), node.now)
    node.run(1)
    again = Node(store=node.store, previous=node.joined.lease.subnets).start().run(1)
    assert isinstance(again.joined.backend, Transition)
    assert said(again) == NodeProgress(CHANGE_ID, Step.SWITCHED, "host-gw")


def test_a_new_node_tells_both_sides_in_its_first_lease() -> None:
    """Whoever sees it at all knows how to receive from it."""
    node = on_store(changing(Phase.SWITCH)).start().run(1)
    created = [call for _, call in node.calls if isinstance(call, Create)]
    assert len(created) == 1
    progress = json.loads(created[0].value)[LEASE_KEY]
    assert progress == {"Id": CHANGE_ID, "BackendType": "host-gw"}


def test_a_change_that_somebody_cut_out_of_the_document_is_named() -> None:
    node = Node().start().run(10)
    node.store.config_is(changing(Phase.SWITCH))
    node.run(1)
    node.store.config_is(DOCUMENT)
    node.run(5)
    assert "has been taken out" in node.state.trouble
    assert isinstance(node.joined.backend, Transition)
