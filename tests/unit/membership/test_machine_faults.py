"""The lease keeper's machine when calls fail once, for a while or for ever, hang, or come by the dozen."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from tests.unit.membership.modelled import (
    DOCUMENT,
    HANGS,
    TWO_FAMILIES,
    UNAVAILABLE,
    Node,
    StoreModel,
    agreed,
    foreign,
    once,
    together,
    underlay,
    while_true,
)

from pyflannel.errors import (
    ConflictError,
    HistoryGoneError,
    KernelError,
    LeaseError,
    StoreDeniedError,
    StoreUnavailableError,
)
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
    "an interrupt": KeyboardInterrupt,
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


def test_one_seed_makes_one_history() -> None:
    def life() -> list[tuple[float, str]]:
        node = Node(store=StoreModel())
        tries = iter(range(1_000_000))
        node.fault = lambda call: UNAVAILABLE if next(tries) % 4 == 3 else None
        _everything(node)
        return [(at, type(call).__name__) for at, call in node.calls]

    assert life() == life()


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
    assert not node.state.connected
    assert node.state.trouble == f"store 'model' has not come back from {kind.name} for 6 s"  # type: ignore[attr-defined]
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


@pytest.mark.parametrize(("kind", "said"), [(Publish, "publish"), (Load, "loading")], ids=["publish", "load"])
def test_a_backend_that_hangs_is_named_and_is_not_the_store(kind: type, said: str) -> None:
    node = Node()
    node.fault = once(kind, HANGS)
    node.start()
    node.until(lambda: node.hanging)
    node.run(5.5)
    assert node.state.trouble == ""
    node.run(1)
    assert node.state.trouble == f"backend 'vxlan' has not come back from {said} for 6 s"
    node.run(100)
    assert node.state.trouble == f"backend 'vxlan' has not come back from {said} for 106 s"
    assert node.state.connected
    node.come_back()
    node.until(lambda: node.generation)
    assert node.state.trouble == ""


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
        assert "is leased to node 'node-9' at " in node.state.trouble


@pytest.mark.parametrize("words", [foreign(9), foreign(1)], ids=["another address", "our address"])
def test_a_lease_without_an_id_that_is_written_over_ours_is_not_taken_for_what_we_said(words: str) -> None:
    """By what we said the daemon plans, such as a MAC address: saying the other's, it would be reached by nobody."""
    node = Node().start().run(10)
    ours = node.record
    assert ours is not None
    node.store.put(ours.key, words, 60.0)
    node.run(45)
    assert node.record is not None
    assert json.loads(node.record.value) == json.loads(ours.value)
    assert node.state.trouble == ""


def test_what_a_lease_said_when_we_took_it_over_outlives_it() -> None:
    """Peers send to the MAC address that a flanneld gave its device, and still do once the lease is made anew."""
    node = Node()
    node.store.put("10.5.7.0-24", foreign(1), 60.0)
    node.start().run(10)
    taken = node.record
    assert taken is not None
    assert json.loads(taken.value)["BackendData"] == json.loads(foreign(1))["BackendData"]
    node.store.delete(taken)
    node.run(45)
    assert node.record is not None
    assert node.record.key == "10.5.7.0-24"
    assert json.loads(node.record.value)["BackendData"] == json.loads(foreign(1))["BackendData"]


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
