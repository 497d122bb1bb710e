"""A machine and its copy on one store: the healthy one never suffers, whatever became of it meanwhile.

All that is right of a real cluster is tried here with the keeper's machine on a clock that the test moves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.membership.modelled import Node, StoreModel, together, underlay

from pyflannel.membership.calls import Delete, Renew, Update
from pyflannel.network.marks import NO_MARKS, Marks
from pyflannel.store import Batch, Change

CARD = Marks("run 1", "", frozenset({"card 1"}))
COPY = Marks("run 2", "", frozenset({"card 2"}))
PRODUCT = Marks("run 1", "product 1")
OTHER_PRODUCT = Marks("run 1", "product 2")
BOTH_SAME = Marks("run 2", "", frozenset({"card 1"}))
"""A copy that is like its original in every mark that lasts."""


def original(marks: Marks = CARD, **options: object) -> Node:
    return Node(node_id="n", marks=marks, **options).start()  # type: ignore[arg-type]


def copy(store: StoreModel, host: int = 2, marks: Marks = COPY) -> Node:
    return Node(store=store, host=host, node_id="n", marks=marks)


def wrote(node: Node, key: str) -> list[object]:
    """What a node did to a lease."""
    return [call for _, call in node.calls if isinstance(call, Update | Renew | Delete) and call.record.key == key]


STATES: dict[str, Callable[[Node], None]] = {
    "running": lambda node: None,
    "stopped": lambda node: node.machine.stop(node.now),
    "cut off": lambda node: setattr(node, "down", True),
}


@pytest.mark.parametrize("marks", [(CARD, COPY), (PRODUCT, OTHER_PRODUCT)], ids=["cards", "product"])
@pytest.mark.parametrize("state", STATES)
def test_a_copy_leaves_the_original_s_lease_alone(state: str, marks: tuple[Marks, Marks]) -> None:
    first = original(marks[0])
    before = first.record
    assert before is not None
    STATES[state](first)
    second = copy(first.store, marks=marks[1]).start()
    together([first, second] if state == "running" else [second], 30)
    assert first.store.kept[before.key].record == before
    assert wrote(second, before.key) == []
    assert second.joined.lease.key != before.key
    assert second.joined.node.node_id != "n"
    assert "another machine has this one's node id 'n'" in second.state.twin
    assert before.key in second.state.twin
    assert not second.state.trouble
    assert not second.state.conflict
    assert first.state.twin == ""
    assert first.joined.node.node_id == "n"


def test_a_frozen_original_that_comes_back_late_gets_its_own_subnet_again() -> None:
    first = original()
    key = first.joined.lease.key
    second = copy(first.store).start()
    second.run(200)  # the first one's lease has run out, and nobody took it
    assert key not in first.store.kept
    together([first, second], 30)
    assert first.joined.lease.key == key
    assert first.joined.node.node_id == "n"
    assert second.joined.lease.key != key


def test_a_copy_is_itself_after_a_reboot_and_when_the_original_is_gone() -> None:
    first = original()
    second = copy(first.store).start()
    name, key = second.joined.node.node_id, second.joined.lease.key
    first.machine.stop(first.now)
    second.until(lambda: not second.state.twin, 70)  # the lease of the machine that had our id has run out
    again = copy(first.store, 7, Marks("after a reboot", "", COPY.cards)).start()
    assert (again.joined.node.node_id, again.joined.lease.key) == (name, key)
    record = again.record
    assert record is not None
    assert json.loads(record.value)["TwinOf"] == "n"
    assert json.loads(record.value)["PublicIP"] == "192.0.2.7"


def test_two_copies_of_one_machine_are_three_nodes() -> None:
    first = original()
    others = [copy(first.store, host, Marks(f"run {host}", "", frozenset({f"card {host}"}))).start() for host in (2, 3)]
    together([first, *others], 30)
    assert len({node.joined.lease.key for node in (first, *others)}) == 3
    assert len({node.joined.node.node_id for node in (first, *others)}) == 3


@pytest.mark.parametrize("marks", [CARD, BOTH_SAME, NO_MARKS], ids=["restarted", "rebooted", "nothing known"])
def test_a_node_with_another_address_keeps_its_subnet(marks: Marks) -> None:
    first = original()
    key = first.joined.lease.key
    first.machine.stop(first.now)
    again = copy(first.store, 9, marks).start()
    assert again.joined.lease.key == key
    assert again.joined.node.node_id == "n"
    assert again.state.twin == ""
    record = again.record
    assert record is not None
    assert json.loads(record.value)["PublicIP"] == "192.0.2.9"


def test_an_upgrade_keeps_the_subnet_and_adds_the_marks() -> None:
    old = original(NO_MARKS)
    key = old.joined.lease.key
    old.machine.stop(old.now)
    new = copy(old.store, 1, CARD).start()
    assert new.joined.lease.key == key
    record = new.record
    assert record is not None
    assert json.loads(record.value)["Machine"] == {"Run": "run 1", "Cards": ["card 1"]}


def test_an_older_version_goes_on_after_a_newer_one() -> None:
    new = original()
    new.machine.stop(new.now)
    assert copy(new.store, 4, NO_MARKS).start().joined.lease.key == new.joined.lease.key


def test_replaced_hardware_at_the_same_address_is_the_same_node() -> None:
    first = original()
    first.machine.stop(first.now)
    again = copy(first.store, 1, COPY).start()
    assert again.joined.lease.key == first.joined.lease.key
    assert again.joined.node.node_id == "n"


def test_a_copy_like_its_original_in_every_mark_gives_way_when_that_speaks_up() -> None:
    first = original()
    key = first.joined.lease.key
    second = copy(first.store, 2, BOTH_SAME).start()
    together([first, second], 60)
    assert first.joined.lease.key == key
    assert first.joined.node.node_id == "n"
    record = first.record
    assert record is not None
    assert json.loads(record.value)["PublicIP"] == "192.0.2.1"
    assert second.joined.lease.key != key
    assert "another machine has this one's node id" in second.state.twin
    at_rest = first.now
    together([first, second], 300)
    calls = [*first.calls, *second.calls]
    assert not any(isinstance(call, Update) and at > at_rest for at, call in calls), "no swapping to and fro"
    second.machine.stop(second.now)
    again = copy(first.store, 3, BOTH_SAME).start()
    together([first, again], 60)
    assert again.joined.lease.key == second.joined.lease.key
    assert first.joined.lease.key == key


def test_a_node_that_moved_before_keeps_its_lease_from_a_copy_like_it() -> None:
    first = original()
    key = first.joined.lease.key
    first.machine.stop(first.now)
    moved = copy(first.store, 5, CARD).start()
    second = copy(first.store, 2, BOTH_SAME).start()
    together([moved, second], 60)
    assert (moved.joined.lease.key, moved.joined.node.node_id) == (key, "n")
    assert second.joined.lease.key != key


def test_a_node_that_rebooted_and_moved_knows_its_own_words_when_it_hears_them_late() -> None:
    """They name the address at which it took its lease over from the life before."""
    first = original()
    first.machine.stop(first.now)
    rebooted = copy(first.store, 1, BOTH_SAME).start()
    early = rebooted.record
    assert early is not None
    rebooted.machine.move(underlay(8), rebooted.now)
    together([rebooted], 30)
    assert rebooted.record is not None
    assert json.loads(rebooted.record.value)["PublicIP"] == "192.0.2.8"
    (watch, revision) = next(iter(rebooted.watches.items()))
    rebooted.machine.batch(watch, Batch(revision, (Change(early.key, early),)), rebooted.now)
    together([rebooted], 60)
    assert not rebooted.state.conflict, rebooted.state
    assert (rebooted.joined.lease.key, rebooted.joined.node.node_id) == (early.key, "n")
    assert json.loads(rebooted.record.value)["PublicIP"] == "192.0.2.8"


def test_the_original_moves_while_its_copy_runs() -> None:
    first = original()
    second = copy(first.store).start()
    keys = first.joined.lease.key, second.joined.lease.key
    first.machine.move(underlay(8), first.now)
    together([first, second], 30)
    assert (first.joined.lease.key, second.joined.lease.key) == keys
    record = first.record
    assert record is not None
    assert json.loads(record.value)["PublicIP"] == "192.0.2.8"
    assert "at 192.0.2.8" in second.state.twin


def test_a_copy_does_not_use_the_keys_that_were_copied_with_it() -> None:
    first = original()
    second = copy(first.store).start()
    assert first.joined.node.state_dir == Path("/nonexistent")
    assert second.joined.node.state_dir == Path("/nonexistent", second.joined.node.node_id)


def test_of_two_machines_with_one_address_the_later_one_is_refused() -> None:
    """A copy that has the address as well, which nothing can make work: it is said, and the store is left in peace."""
    first = original()
    key = first.joined.lease.key
    second = copy(first.store, 1, COPY).start()
    together([first, second], 60)
    assert first.joined.lease.key == key
    assert (first.state.trouble, first.state.conflict) == ("", False)
    assert second.state.conflict
    assert "claims our public address" in second.state.trouble
    record = first.record
    assert record is not None
    assert json.loads(record.value)["Machine"] == CARD.to_document()
    at_rest = first.now
    together([first, second], 300)
    calls = [*first.calls, *second.calls]
    assert not any(isinstance(call, Update) and at > at_rest for at, call in calls)


def test_two_that_come_at_once_each_have_a_subnet_and_say_so() -> None:
    first = Node(node_id="n", marks=CARD)
    second = copy(first.store)
    for node in (first, second):
        node.machine.start(underlay(node.host), 0.0, node.marks)
    for _ in range(100):  # in step, call by call
        first.step()
        second.step()
    together([first, second], 10)
    keys = [node.joined.lease.key for node in (first, second)]
    assert len(set(keys)) == 2
    told = [node.state.twin for node in (first, second)]
    if first.joined.node.node_id == second.joined.node.node_id:
        assert [other in text for other, text in zip(reversed(keys), told, strict=True)] == [True, True]
    assert any("another machine has this one's node id" in text for text in told)
    again = copy(first.store).start()
    assert again.joined.lease.key == keys[1]
    second.machine.stop(second.now)
    again.machine.stop(again.now)
    first.until(lambda: not first.state.twin, 70)
    assert first.joined.lease.key == keys[0]


def test_a_twin_that_is_given_an_id_of_its_own_is_none_any_more() -> None:
    """Its lease is then written anew, under the same key."""
    first = original()
    twin = {"PublicIP": "192.0.2.9", "NodeID": "n", "Machine": COPY.to_document()}
    first.store.put("10.5.200.0-24", json.dumps(twin))
    first.run(1)
    assert "10.5.200.0-24" in first.state.twin
    first.store.put("10.5.200.0-24", json.dumps({**twin, "NodeID": "m"}))
    first.run(1)
    assert first.state.twin == ""
