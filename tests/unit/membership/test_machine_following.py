"""The lease keeper's machine and what it follows: the underlay, the document, a change of the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.unit.membership.modelled import (
    DOCUMENT,
    HANGS,
    TWO_FAMILIES,
    UNAVAILABLE,
    Node,
    Saying,
    agreed,
    foreign,
    made,
    on_store,
    together,
    underlay,
)

from pyflannel.backend import Published
from pyflannel.errors import (
    ConfigError,
    KernelError,
    PluginError,
    StoreDeniedError,
)
from pyflannel.membership.calls import (
    Call,
    Create,
    Load,
    OpenWatch,
    Publish,
    Update,
    WriteConfig,
)
from pyflannel.network.change import LEASE_KEY, NetworkChange, NodeProgress, Phase, Step, read
from pyflannel.network.document import NetworkConfig, NetworkSeed
from pyflannel.network.lease import MARGIN_KEY, Lease, LeaseAttributes
from pyflannel.planning.transition import Transition
from pyflannel_backends.vxlan import VxlanOptions

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


def test_a_network_that_covers_another_node_s_address_keeps_the_one_in_force() -> None:
    """Who follows would skip that node's lease; its node itself does not follow."""
    former, larger = ({"Network": each, "Backend": {"Type": "vxlan"}} for each in ("192.0.128.0/17", "192.0.0.0/16"))
    one = on_store(json.dumps(former)).start()
    two = Node(store=one.store, host=2).start()
    two.machine.move(replace(underlay(2), public_ipv4=IPv4Address("198.51.100.2")), two.now)
    together([one, two], 5)
    one.store.config_is(json.dumps(larger))
    together([one, two], 5)
    assert "lies in subnets that the overlay 192.0.0.0/16 may lease" in one.state.trouble
    assert "by it this node would skip the lease of node-1: PublicIP 192.0.2.1 lies inside" in two.state.trouble
    assert two.joined.node.network == NetworkConfig.from_json(json.dumps(former))
    beside = json.dumps({**larger, "SubnetMin": "192.0.3.0"})
    one.store.config_is(beside)
    together([one, two], 5)
    for node in (one, two):
        assert node.state.trouble == ""
        assert node.joined.node.network == NetworkConfig.from_json(beside)


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
        ({"seed": NetworkSeed(DOCUMENT, "f", True)}, '{"Network": "10.7.0.0/16"}', "something other than f"),
    ],
)
def test_what_the_node_insists_on_outlives_another_document(given: dict[str, Any], document: str, named: str) -> None:
    node = Node(given=given).start()
    node.store.config_is(document)
    node.run(300)
    assert named in node.state.trouble
    assert node.record is not None
    assert node.joined.number == 1


@pytest.mark.parametrize("again", ["history goes", "lease goes", "nothing more"])
def test_a_document_that_is_deleted_is_told_of_until_it_is_back(again: str) -> None:
    node = Node(given={"seed": None}, store=on_store().store).start().run(5)
    before = node.joined.node.network
    node.store.config_is_gone()
    if again == "history goes":
        node.store.compact()
    if again == "lease goes" and node.record is not None:
        node.store.delete(node.record)
    node.run(100)
    assert node.joined.node.network == before
    assert node.state.valid(node.now)
    assert "has been deleted from model://a/b" in node.state.trouble
    assert "'pyflannel config set /nonexistent/network.json'" in node.state.trouble
    assert node.state.refused == node.state.trouble
    assert node.state.connected, "it is nothing that passes by itself"
    node.store.config_is(DOCUMENT)
    assert node.run(1).state.trouble == node.state.refused == ""


def test_who_starts_while_the_document_is_gone_keeps_its_lease() -> None:
    first = on_store().start().run(1)
    key = first.joined.lease.key
    first.store.config_is_gone()
    second = Node(store=first.store, given={"seed": None, "followed": first.followed}).start().run(300)
    assert second.generation is None
    assert key in second.store.kept
    assert "no network config" in second.state.trouble
    second.store.config_is(DOCUMENT)
    assert second.until(lambda: second.generation).joined.lease.key == key


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


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "nonsense"}}', PluginError),
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": "x"}}', ConfigError),
    ],
)
def test_a_document_that_its_own_node_cannot_use_is_not_written(document: str, error: type) -> None:
    """It would keep that node from every later start, and others from joining."""
    node = Node(given={"seed": NetworkSeed(document, "--network", False)}).start()
    assert isinstance(node.state.fatal, error)
    assert node.store.read_config() is None


def test_a_network_that_covers_its_own_node_is_not_written() -> None:
    node = Node(given={"seed": NetworkSeed('{"Network": "192.0.0.0/16"}', "--network", False)}).start().run(60)
    assert "--public-ip" in node.state.trouble
    assert node.store.read_config() is None


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


def asks(call: Call) -> bool:
    """Whether it asks the new backend what our lease should carry."""
    return isinstance(call, Publish) and call.backend.name == "host-gw"


@pytest.mark.parametrize("moved", [False, True], ids=["a change", "what one has led to"])
@pytest.mark.parametrize("answer", [HANGS, KernelError("no space for a key")], ids=["it takes its time", "it fails"])
def test_nothing_is_planned_by_a_backend_before_it_has_published(answer: Any, moved: bool) -> None:
    """A plan may follow from what it makes for that, as that of WireGuard in the kernel does from a key."""
    node, document = on_store().start().run(10), read(DOCUMENT)
    wrong = [True]
    node.fault = lambda call: answer if asks(call) and wrong[0] else None
    change = NetworkChange(CHANGE_ID, Phase.PREPARE, HOST_GW)
    node.store.config_is(document.ended(replace(change, phase=Phase.RETIRE), "") if moved else changing(Phase.PREPARE))
    node.run(50)
    assert node.joined.backend.name == "vxlan"
    asked = sum(asks(call) for _, call in node.calls)
    assert asked == 1 if answer == HANGS else asked > 1
    if answer != HANGS:
        told = said(node)
        assert node.state.trouble if moved else told is not None and "no space for a key" in told.trouble
    wrong[0] = False
    node.let_go()
    backend = node.run(90).joined.backend
    assert isinstance(backend, Transition) is not moved
    assert "host-gw" in (backend.name, backend.following.name if isinstance(backend, Transition) else "")
    assert node.state.trouble == ""


@pytest.mark.parametrize("phase", list(Phase))
def test_a_backend_that_fails_to_publish_in_the_middle_is_asked_again(phase: Phase) -> None:
    """Nobody has to ask for it. Until then it is reached as it has said, by which peers may send to it already."""
    node = Node().start().run(10)
    node.store.config_is(changing(phase))
    node.run(1)
    node.machine.reached(NodeProgress(CHANGE_ID, Step.SWITCHED), node.now)
    node.run(1)
    wrong = [True]
    node.fault = lambda call: KernelError("no space") if asks(call) and wrong[0] else None
    node.machine.publish(1, node.now)
    node.run(20)
    assert said(node) == NodeProgress(CHANGE_ID, Step.SWITCHED, "host-gw", trouble="no space")
    failed = [at for at, call in node.calls if asks(call)][-2:]
    assert failed[1] - failed[0] > 1, "with pauses that grow"
    wrong[0] = False
    node.run(20)
    assert said(node) == NodeProgress(CHANGE_ID, Step.SWITCHED, "host-gw")
    asked = node.count(Publish)
    node.run(100)
    assert node.count(Publish) == asked, "and then no more"


def test_who_goes_back_says_so_although_the_new_backend_fails_to_publish() -> None:
    node = Node().start().run(10)
    node.store.config_is(changing(Phase.SWITCH))
    node.run(1)
    node.machine.reached(NodeProgress(CHANGE_ID, Step.SWITCHED), node.now)
    node.fault = lambda call: KernelError("no space") if asks(call) else None
    node.store.config_is(changing(Phase.BACK))
    node.run(5)
    assert said(node) == NodeProgress(CHANGE_ID, Step.SWITCHED, "host-gw", trouble="no space")
    node.machine.reached(NodeProgress(CHANGE_ID, Step.REVERTED), node.now)
    node.run(5)
    assert said(node) == NodeProgress(CHANGE_ID, Step.REVERTED, "host-gw", trouble="no space")


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
    assert node.state.trouble.startswith("the network is being changed, and this node can't have the new settings: ")
    assert says in node.state.trouble
    node.store.config_is(changing(Phase.BACK, target))
    node.run(90)
    told = said(node)
    assert told is not None
    assert told.step is Step.REVERTED, "or the others wait for it for ever"


def test_what_was_wrong_with_an_earlier_document_is_said_no_longer() -> None:
    node = Node().start().run(10)
    node.store.config_is(json.dumps({**read(DOCUMENT).settings, "Change": "none"}))
    assert "must be an object" in node.run(5).state.trouble
    node.store.config_is(changing(Phase.PREPARE, {"Network": "10.6.0.0/16", "Backend": {"Type": "host-gw"}}))
    assert "other networks" in node.run(5).state.trouble
    node.store.config_is(DOCUMENT)
    assert node.run(5).state.trouble != ""  # a change that somebody took out
    node.store.config_is(read(DOCUMENT).ended(NetworkChange(CHANGE_ID, Phase.BACK, HOST_GW), ""))
    assert node.run(5).state.trouble == ""


def test_a_node_that_gets_no_subnet_of_a_family_that_is_added_goes_on_without_and_says_why() -> None:
    one = on_store(TWO_FAMILIES.replace('"EnableIPv6": true, ', "")).start()
    two = Node(store=one.store, host=2).start().run(5)
    before = two.record
    only = {"IPv6SubnetLen": 64, "IPv6SubnetMin": "fd00:5:0:1::", "IPv6SubnetMax": "fd00:5:0:1::"}
    one.store.config_is(agreed(json.dumps({**json.loads(TWO_FAMILIES), **only})))
    together([one, two], 5)
    assert len(one.joined.node.subnets.each) == 2
    assert before is not None
    assert two.joined.lease.key == before.key
    assert "no free subnet: IPv6" in two.state.trouble
    assert two.state.refused == two.state.trouble
    assert not two.state.conflict, "it is ready with what it has"
    told = said(two)
    assert told is not None
    assert (told.id, told.step) == (CHANGE_ID, None)
    assert "no free subnet: IPv6" in told.trouble
    one.store.put("10.5.0.240-28&fd00:5:0:9::-64", foreign(9))
    together([one, two], 100)
    assert two.slot.records().keys() == one.slot.records().keys() - {before.key} | {one.joined.lease.key}
    one.machine.stop(one.now)
    assert one.record is not None
    one.store.delete(one.record)
    assert len(two.run(70).joined.node.subnets.each) == 2
    assert two.state.trouble == ""


def test_a_node_that_does_not_even_follow_the_document_as_it_is_says_why() -> None:
    """Or whoever waits for it takes it for one that is down, and no way leads back."""
    node = on_store(TWO_FAMILIES.replace("alloc", "vxlan").replace('"EnableIPv6": true, ', "")).start().run(10)
    node.machine.move(underlay(ipv6=False), node.now)
    widened = agreed(TWO_FAMILIES.replace("alloc", "vxlan"))
    node.store.config_is(widened)
    node.run(5)
    told = said(node)
    assert told is not None
    assert (told.id, told.step) == (CHANGE_ID, None)
    assert "no usable IPv6 address" in told.trouble
    target = {**read(widened).settings, "Backend": {"Type": "host-gw"}}
    other = "00000000000000b2"
    for phase, step in ((Phase.PREPARE, None), (Phase.SWITCH, None), (Phase.BACK, Step.REVERTED)):
        node.store.config_is(read(widened).with_change(NetworkChange(other, phase, target)))
        node.run(5)
        told = said(node)
        assert told is not None
        assert (told.id, told.step, told.backend_type) == (other, step, None)
        assert "no usable IPv6 address" in told.trouble
        assert node.joined.backend.name == "vxlan"
    node.store.config_is(node.machine._state.in_force.document)
    node.run(5)
    assert said(node) is None, "it follows what there is"


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


@pytest.mark.parametrize("denied", [False, True])
def test_a_document_that_is_gone_leaves_the_one_in_force(denied: bool) -> None:
    """A node that was given the network writes it anew, if it may."""
    node = Node().start().run(5)
    node.fault = lambda call: StoreDeniedError("read only") if denied and isinstance(call, WriteConfig) else None
    node.store.config = None
    node.store.compact()  # to go on, a watch needs a snapshot
    node.store.put("10.5.200.0-24", foreign(9))
    node.run(60)
    assert list(node.slot.records()) == ["10.5.200.0-24"], "peers are still followed"
    assert ("the network config has been deleted" in node.state.trouble) is denied
    assert (node.store.config is None) is denied


@pytest.mark.parametrize("seed", [None, NetworkSeed(DOCUMENT, "the test", False)])
def test_a_node_that_starts_without_a_document_renews_its_lease_while_there_is_none(seed: NetworkSeed | None) -> None:
    one = on_store().start().run(5)
    before, one.store.config = one.record, None
    again = Node(store=one.store, given={"followed": one.followed, "seed": seed})
    again.fault = lambda call: UNAVAILABLE if isinstance(call, WriteConfig) else None
    again.start().run(500)
    assert again.generation is None
    assert again.store.snapshot().leases == (before,)
    again.fault = None
    again.store.config_is(DOCUMENT)
    assert again.run(30).joined.lease == one.joined.lease


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


def test_whom_a_node_reaches_is_found_out_when_it_has_what_its_plans_follow_from(tmp_path: Path) -> None:
    """It has no key for WireGuard yet, without which it could plan for nobody."""
    wireguard = json.dumps({**HOST_GW, "Backend": {"Type": "wireguard", "Implementation": "userspace"}})
    places = [{"state_dir": tmp_path / str(number)} for number in range(3)]
    for place in places:
        place["state_dir"].mkdir()
    one = Node(given=places[0]).start().run(5)
    Node(store=one.store, host=2, given=places[1]).start().run(5)
    one.store.config_is(wireguard)
    Node(store=one.store, host=3, given=places[2]).start().run(5)
    again = restarted(one, **places[0])
    assert again.joined.backend.name == "wireguard"
    assert again.state.trouble == ""


@pytest.mark.parametrize("phase", [None, *Phase], ids=str)
def test_a_store_that_was_restored_from_before_the_last_change_takes_nobody_back(phase: Phase | None) -> None:
    """Neither those that run nor one that starts: the others are not there."""
    noted = read(DOCUMENT).ended(NetworkChange("00000000000000b2", Phase.RETIRE, read(DOCUMENT).settings), "")
    before, change = read(noted), NetworkChange(CHANGE_ID, Phase.RETIRE, VXLAN_2)
    one = on_store(noted).start()
    two = Node(store=one.store, host=2).start()
    for document in (before.with_change(change), before.ended(change, "")):
        one.store.config_is(document)
        together([one, two], 5)
    one.store.config_is(noted if phase is None else before.with_change(change.at(phase)))
    together([one, two], 5)
    for node in (one, two, restarted(one)):
        assert node.joined.backend.options == VxlanOptions(vni=2)
        assert "behind the nodes' back" in node.state.trouble


@pytest.mark.parametrize("written", [DOCUMENT, None], ids=["nothing", "another change"])
def test_what_takes_a_change_s_place_whose_former_settings_go_is_not_followed(written: str | None) -> None:
    """Who went back to its beginning would send by what peers don't receive any more."""
    node = Node().start().run(10)
    node.store.config_is(changing(Phase.RETIRE))
    node.run(1)
    other = NetworkChange("00000000000000b2", Phase.PREPARE, {**HOST_GW, "Backend": {"Type": "udp"}})
    node.store.config_is(written or read(DOCUMENT).with_change(other))
    node.run(5)
    planner = node.joined.backend
    assert isinstance(planner, Transition)
    assert planner.change.id == CHANGE_ID
    assert "has been taken out" in node.state.trouble


def amended(document: str, **settings: object) -> str:
    """A document in which somebody has edited the settings that hold."""
    return json.dumps({**json.loads(document), **settings})


LOCAL = {"Type": "vxlan", "MTU": 1400}
WIDER: dict[str, Any] = {**HOST_GW, "Network": "10.4.0.0/15"}


@pytest.mark.parametrize("phase", [Phase.SWITCH, Phase.BACK])
@pytest.mark.parametrize(
    ("edited", "named"),
    [
        (lambda phase: amended(changing(phase), Backend=LOCAL), "Backend"),  # which was not there
        (lambda phase: amended(changing(phase), SubnetLen=26), "SubnetLen"),
        (lambda phase: changing(phase, {**HOST_GW, "Backend": {"Type": "nonsense"}}), "Change.To.Backend.Type"),
        (lambda phase: changing(phase, {**HOST_GW, "Backend": LOCAL}), "Change.To.Backend.MTU, Change.To.Backend.Type"),
        (lambda phase: changing(phase, WIDER), "Change.To.Network"),
    ],
    ids=["an option", "ranges", "a typo in what is to hold", "another target", "other ranges"],
)
def test_what_somebody_edits_in_the_middle_of_a_change_is_named_and_not_followed(
    edited: Callable[[Phase], str], named: str, phase: Phase
) -> None:
    """Also what concerns a node alone: both settings may have to agree in it, and peers send by both."""
    node = Node().start().run(10)
    node.store.config_is(changing(Phase.PREPARE))
    node.run(1)
    node.machine.reached(NodeProgress(CHANGE_ID, Step.PREPARED), node.now)
    before = node.run(1).joined.backend
    node.store.config_is(edited(phase))
    after = node.run(5).joined.backend
    assert after is before, "with both ways"
    assert f": {named} is not what it was, and nodes are in the middle of a change" in node.state.refused
    told = said(node)
    assert told is not None
    assert (told.step, told.backend_type) == (Step.PREPARED, "host-gw"), "peers may send here by it"
    assert f": {named} is not what it was" in told.trouble, "who waits for this node is told why"
    node.store.config_is(changing(phase))
    node.run(5)
    told = said(node)
    assert told is not None
    assert node.state.refused == told.trouble == ""


@pytest.mark.parametrize("phase", list(Phase))
def test_what_is_forced_in_the_middle_of_a_change_takes_no_node_out_of_it(phase: Phase) -> None:
    """Each would leave it at its own time, and the others send by what it does not receive any more."""
    node = Node().start().run(10)
    node.store.config_is(changing(phase))
    node.run(1)
    node.store.config_is(read(DOCUMENT).forced("00000000000000b2", ""))
    assert isinstance(node.run(5).joined.backend, Transition)
    assert "has been taken out" in node.state.trouble
    assert restarted(node).joined.backend.name == "vxlan"


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


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("first", [True, False], ids=["it is new", "it has a lease"])
def test_who_starts_bound_to_the_former_settings_does_so_while_others_send_by_them(phase: Phase, first: bool) -> None:
    """And is named; when they don't any more, it would be ready and cut off."""
    node = on_store() if first else on_store().start().run(5)
    key = None if first else node.joined.lease.key
    node.store.config_is(changing(phase))
    former = {**json.loads(DOCUMENT), "Backend": {"Type": "vxlan"}}
    bound = {"seed": NetworkSeed(json.dumps(former), "net-conf.json", True)}
    again = Node(store=node.store, given=bound).start().run(5)
    if phase is Phase.RETIRE:
        assert isinstance(again.state.fatal, ConfigError)
        assert "--net-config-path" in str(again.state.fatal)
        assert set(again.store.kept) == {key} - {None}, "an earlier run's data plane is left as it is"
        return
    assert again.joined.backend.name == "vxlan"
    assert "--net-config-path" in again.state.trouble
    told = said(again)
    assert told is not None
    assert "--net-config-path" in told.trouble
    assert told.step is (Step.REVERTED if phase is Phase.BACK else None)


def test_a_restart_in_the_middle_goes_on_from_what_the_lease_says() -> None:
    node = Node().start().run(10)
    node.store.config_is(changing(Phase.SWITCH))
    node.run(1)
    node.machine.reached(NodeProgress(CHANGE_ID, Step.SWITCHED), node.now)
    node.run(1)
    again = Node(store=node.store, previous=node.joined.lease.subnets).start().run(1)
    assert isinstance(again.joined.backend, Transition)
    assert said(again) == NodeProgress(CHANGE_ID, Step.SWITCHED, "host-gw")


@pytest.mark.parametrize("ready", [True, False])
def test_who_starts_and_can_not_have_the_new_settings_has_not_gone_back_yet(ready: bool) -> None:
    """The routes of an earlier run lead by them until this one has planned, or could not for a while."""
    node = Node().start().run(10)
    node.store.config_is(changing(Phase.SWITCH))
    node.run(1)
    node.machine.reached(NodeProgress(CHANGE_ID, Step.SWITCHED), node.now)
    node.run(1)
    node.store.config_is(changing(Phase.BACK))
    again = Node(store=node.store, previous=node.joined.lease.subnets)
    again.fault = lambda call: (
        PluginError("not installed") if isinstance(call, Load) and call.network.backend_type == "host-gw" else None
    )
    again.start().run(20)
    assert said(again) == NodeProgress(CHANGE_ID, Step.SWITCHED, trouble="not installed")
    again.machine.announce(ready, again.now)
    again.run(1)
    assert said(again) == NodeProgress(CHANGE_ID, Step.REVERTED, trouble="not installed")


def test_a_restart_by_an_older_document_than_the_last_run_had() -> None:
    """What the lease says besides is of the former settings then, so ``done`` would be wrong."""
    node = Node().start().run(10)
    change = NetworkChange(CHANGE_ID, Phase.RETIRE, HOST_GW)
    for document in (read(DOCUMENT).with_change(change), read(DOCUMENT).ended(change, "")):
        node.store.config_is(document)
        node.run(1)
    assert said(node) == NodeProgress(CHANGE_ID, Step.DONE)
    node.store.config_is(read(DOCUMENT).with_change(change))
    again = Node(store=node.store, previous=node.joined.lease.subnets).start().run(1)
    assert said(again) == NodeProgress(CHANGE_ID, Step.RETIRED, "host-gw")


def test_how_far_a_node_is_comes_before_what_others_have_put_into_its_lease() -> None:
    """Of what a lease says besides, there is a limit to what is read."""
    node = Node(given={"margin": 10.0}).start().run(10)
    record = node.record
    assert record is not None
    node.store.put(record.key, json.dumps({**json.loads(record.value), "Junk": "x" * 8170}), 60.0)
    node.run(5)
    node.store.config_is(changing(Phase.PREPARE))
    node.run(5)
    node.machine.reached(NodeProgress(CHANGE_ID, Step.PREPARED), node.now)
    node.run(5)
    assert said(node) == NodeProgress(CHANGE_ID, Step.PREPARED, "host-gw")
    assert node.record is not None
    extra = Lease.from_record(node.record.key, node.record.value).attributes.extra
    assert (extra[MARGIN_KEY], "Junk" in extra) == (10.0, False)
    written = node.count(Update)
    node.machine.publish(1, node.now)
    node.run(5)
    assert node.count(Update) == written, "what is said already is not said again"


def test_what_is_too_long_to_stand_beside_the_former_settings_is_named() -> None:
    """Nobody would read it, and the node would be taken for one that is down."""
    long = Saying(lambda: Published({"Certificate": "x" * 9000}))
    node = Node(make=lambda network: long if network.backend_type == "host-gw" else made(network)).start().run(10)
    node.store.config_is(changing(Phase.PREPARE))
    node.run(5)
    told = said(node)
    assert told is not None
    assert told.trouble == "backend 'saying' published more than a lease holds beside another"
    assert isinstance(node.joined.backend, Transition)


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
