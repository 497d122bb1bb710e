"""The lease keeper's machine on a model of a store: a lease that is got, kept and let go.

The clock is one that the test moves; there is no thread, and no waiting.
"""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from typing import Any

import pytest
from tests.unit.membership.modelled import (
    DOCUMENT,
    HANGS,
    TWO_FAMILIES,
    UNAVAILABLE,
    Node,
    Saying,
    StoreModel,
    foreign,
    on_store,
    once,
    renewals,
    while_true,
)

from pyflannel.backend import Backend, Link, Published
from pyflannel.errors import (
    KernelError,
)
from pyflannel.membership.allocation import ConflictPolicy
from pyflannel.membership.calls import (
    Call,
    Create,
    Load,
    OpenWatch,
    Publish,
    Renew,
    TakeSnapshot,
)
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import MARGIN_KEY, Lease, LeaseAttributes, Subnets
from pyflannel.store import Record

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


@pytest.mark.parametrize("looking_fails", [False, True], ids=["at once", "looking for others failed at first"])
def test_two_leases_never_share_a_subnet_of_one_family_alone(looking_fails: bool) -> None:
    node = on_store(TWO_FAMILIES)
    overtaken: list[str] = []

    def overtake(call: Call) -> None:
        if isinstance(call, Create) and not overtaken:
            overtaken.append(f"{call.key.split('&')[0]}&fd00:5:0:7777::-64")
            node.store.put(overtaken[0], foreign(7, "node-7"))
            if looking_fails:
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


class OneDay(StoreModel):
    """A store that lets no lease live longer than a day, and says so, as Consul."""

    def renew(self, record: Record, ttl: float) -> Record:
        return replace(super().renew(record, min(ttl, 86400.0)), ttl=86400.0)

    def _write(self, key: str, value: str, ttl: float | None) -> Record:
        record = super()._write(key, value, None if ttl is None else min(ttl, 86400.0))
        return replace(record, ttl=None if ttl is None else 86400.0)


def test_a_lease_that_the_store_grants_a_shorter_life_is_renewed_in_time() -> None:
    store = OneDay()
    node = Node(store, given={"ttl": 7 * 86400.0, "margin": 3600.0}).start().run(10 * 86400)
    assert all(change.record is not None for change in store.history), "it never ended"
    assert node.state.expires_at is not None
    assert node.now < node.state.expires_at <= node.now + 86400


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


def test_a_backend_that_was_made_once_is_used_again_after_a_break() -> None:
    node = Node().start()
    node.store.compact()
    node.run(5)
    assert node.joined.number == 2
    assert node.count(Load) == 1
