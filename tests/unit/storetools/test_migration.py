"""Migration: the rule for one lease, and the mirror over two file stores."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.waiting import until

from pyflannel.errors import ConfigError, ConflictError, PluginError, StoreUnavailableError
from pyflannel.network.change import NetworkChange, Phase, read
from pyflannel.plugins import load_store
from pyflannel.store import Batch, Record, Snapshot, Store, StoreLocation, Watch
from pyflannel.storetools.homes import (
    HANDICAP,
    SOURCE,
    TARGET,
    TOLERANCE,
    Decision,
    Known,
    Move,
    Seen,
    contradictions,
    settle,
)
from pyflannel.storetools.migration import Done, Migration
from pyflannel_stores.file import FileStore

KEY = "10.5.1.0-24"
DAY = 86400.0
DOCUMENT = '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'


def text(node: str, address: str = "", **extra: Any) -> str:
    return json.dumps({"PublicIP": address or f"192.0.2.{len(node)}", "NodeID": node, **extra})


def seen(left: float | None = DAY, node: str = "n", version: str = "1", exact: bool = True, handle: str = "") -> Seen:
    record = Record(KEY, text(node), version, permanent=left is None, handle=handle)
    return Seen(record, left, left or 0.0, exact)


COPY_LEFT = DAY - HANDICAP - 1


# The rule for one lease


@pytest.mark.parametrize("side", [SOURCE, TARGET])
def test_what_one_store_has_is_copied_to_the_other(side: int) -> None:
    both = (seen(), None) if side == SOURCE else (None, seen())
    assert settle(both, None) == Decision(side, True, Move.COPY)


def test_what_neither_has_is_nothing() -> None:
    assert settle((None, None), Known(SOURCE, True, (seen(), None))) is None


def test_the_later_expiry_is_the_home() -> None:
    assert settle((seen(), seen(COPY_LEFT)), None) == Decision(SOURCE, True, Move.NOTHING)
    assert settle((seen(COPY_LEFT), seen()), None) == Decision(TARGET, True, Move.NOTHING)


def test_a_node_that_renews_the_copy_has_moved() -> None:
    known = Known(SOURCE, True, (seen(3600), seen(3600 - HANDICAP - 1)))
    assert settle((seen(3600), seen(DAY)), known) == Decision(TARGET, True, Move.RENEW)


@pytest.mark.parametrize("change", [{"version": "2"}, {"handle": "other"}])
@pytest.mark.parametrize("exact", [True, False])
def test_a_node_that_writes_the_copy_has_moved(change: dict[str, str], exact: bool) -> None:
    known = Known(SOURCE, True, (seen(), seen(COPY_LEFT, exact=exact)))
    verdict = settle((seen(), seen(DAY + 10, exact=exact, **change)), known)
    assert verdict is not None
    assert (verdict.home, verdict.certain) == (TARGET, True)


def test_a_node_that_goes_back_is_at_home_there_again() -> None:
    known = Known(TARGET, True, (seen(COPY_LEFT), seen()))
    assert settle((seen(DAY + 100), seen()), known) == Decision(SOURCE, True, Move.NOTHING)


def test_a_new_text_goes_to_the_other_store() -> None:
    changed = seen(version="2")
    changed = replace(changed, record=replace(changed.record, value=text("n", "192.0.2.77")))
    known = Known(SOURCE, True, (seen(), seen(COPY_LEFT)))
    assert settle((changed, seen(COPY_LEFT)), known) == Decision(SOURCE, True, Move.UPDATE)


def test_what_is_gone_from_its_home_is_deleted_at_the_other_place() -> None:
    known = Known(SOURCE, True, (seen(), seen(COPY_LEFT)))
    assert settle((None, seen(COPY_LEFT)), known) == Decision(SOURCE, True, Move.DELETE)


def test_what_is_gone_from_its_home_but_renewed_at_the_other_place_comes_back() -> None:
    known = Known(SOURCE, True, (seen(), seen(COPY_LEFT)))
    assert settle((None, seen(DAY + 50)), known) == Decision(TARGET, True, Move.COPY)


def test_a_guess_deletes_nothing() -> None:
    known = Known(SOURCE, False, (seen(exact=False), seen(exact=False)))
    assert settle((None, seen(exact=False)), known) == Decision(TARGET, True, Move.COPY)


def test_a_copy_that_is_gone_is_made_again() -> None:
    known = Known(SOURCE, True, (seen(), seen(COPY_LEFT)))
    assert settle((seen(), None), known) == Decision(SOURCE, True, Move.COPY)


def test_two_nodes_on_one_key_are_left_alone() -> None:
    verdict = settle((seen(), seen(COPY_LEFT, node="other")), None)
    assert verdict is not None
    assert verdict.step is Move.CONTRADICTION


def test_a_reservation_makes_its_copy_one() -> None:
    assert settle((seen(None), seen()), Known(SOURCE, True, (seen(None), seen()))) == Decision(
        SOURCE, True, Move.UPDATE
    )
    assert settle((seen(), seen(None)), Known(SOURCE, True, (seen(), seen(None)))) == Decision(
        SOURCE, True, Move.NOTHING
    )


sides = st.none() | st.builds(
    seen,
    left=st.none() | st.floats(1, 2 * DAY),
    node=st.sampled_from(["n", "other"]),
    version=st.sampled_from("12"),
    exact=st.booleans(),
)


@given(
    sides,
    sides,
    st.none() | st.builds(Known, st.sampled_from([SOURCE, TARGET]), st.booleans(), st.tuples(sides, sides)),
)
def test_no_verdict_writes_what_is_not_there_or_deletes_what_a_node_has_touched(
    source: Seen | None, target: Seen | None, known: Known | None
) -> None:
    verdict = settle((source, target), known)
    if verdict is None:
        assert source is None
        assert target is None
        return
    original, copy = (source, target) if verdict.home == SOURCE else (target, source)
    if verdict.step is Move.DELETE:
        assert original is None
        assert copy is not None
        assert known is not None
        assert not copy.touched(known.noted[1 - verdict.home])
    elif verdict.step is Move.COPY:
        assert original is not None
        assert copy is None
    else:
        assert original is not None
        assert copy is not None
    if verdict.step in (Move.UPDATE, Move.RENEW) and source is not None and target is not None:
        assert '"other"' not in source.record.value or source.record.value == target.record.value


# Contradictions


def snapshot(*records: tuple[str, str]) -> Snapshot:
    return Snapshot("0", None, tuple(Record(key, value, "1") for key, value in records))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ([(KEY, text("other"))], "10.5.1.0-24 is node 'other' at 192.0.2.5 there, and node 'n' at 192.0.2.1"),
        ([("10.5.1.128-25", text("other"))], "10.5.1.128-25 of node 'other' at 192.0.2.5 overlaps 10.5.1.0-24"),
        ([("10.5.9.0-24", text("n"))], "node 'n' at 192.0.2.1 has 10.5.9.0-24 there, and 10.5.1.0-24 in the source"),
        ([("10.5.0.0-16", text("other"))], "overlaps"),
        ([(KEY, "no JSON")], "is no lease there"),
        ([(KEY, text("n", "192.0.2.9"))], None),
        ([("10.5.9.0-24", text("other"))], None),
        ([("nonsense", "nonsense")], None),
    ],
)
def test_contradictions_name_both(target: list[tuple[str, str]], reason: str | None) -> None:
    reasons, in_the_way = contradictions(snapshot((KEY, text("n"))), snapshot(*target))
    assert len(reasons) == (reason is not None)
    assert reason is None or reason in reasons[0]
    assert [each.key for each in in_the_way] == ([target[0][0]] if reason else [])


# Over two stores


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    opened = [load_store("file")(StoreLocation.parse(f"file://{tmp_path}/{name}")) for name in ("old", "new")]
    with opened[0], opened[1]:
        opened[0].write_config(DOCUMENT, None)
        yield opened[0], opened[1]


def fill(store: Store) -> None:
    store.create(KEY, text("n"), DAY)
    store.create("10.5.2.0-24", text("nn"), 600)
    store.create("10.5.3.0-24", text("nnn"), None)
    store.create("nonsense", "[]", DAY)


def held(store: Store) -> dict[str, tuple[str, bool]]:
    return {record.key: (record.value, record.permanent) for record in store.snapshot().leases}


def left(store: Store, key: str) -> float:
    seconds = store.time_to_live([record for record in store.snapshot().leases if record.key == key])[key]
    assert seconds is not None
    return seconds


def test_a_copy_is_exact_and_a_second_one_changes_nothing(stores: tuple[Store, Store]) -> None:
    old, new = stores
    fill(old)
    first = Migration(old, new, time.monotonic)
    done = first.copy()
    assert done.document == "copied"
    assert done.copied == [KEY, "10.5.2.0-24", "10.5.3.0-24"]
    assert done.left_behind == ["nonsense"]
    assert held(new) == {key: value for key, value in held(old).items() if key != "nonsense"}
    assert 600 - HANDICAP - TOLERANCE - 2 < left(new, "10.5.2.0-24") <= 600 - HANDICAP
    assert first.verify() == []
    again = Migration(old, new, time.monotonic)
    assert again.copy().changes == 0
    assert again.verify() == []
    assert again.moved == (0, 2)


def test_a_dry_run_says_the_same_and_writes_nothing(stores: tuple[Store, Store]) -> None:
    old, new = stores
    fill(old)
    would = Migration(old, new, time.monotonic).copy(dry=True)
    assert new.read_config() is None
    assert held(new) == {}
    assert would == Migration(old, new, time.monotonic).copy()


def test_an_interrupted_copy_is_taken_up(stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = stores
    fill(old)
    create, calls = new.create, []

    def breaks(key: str, value: str, ttl: float | None) -> Record:
        calls.append(key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return create(key, value, ttl)

    monkeypatch.setattr(new, "create", breaks)
    with pytest.raises(KeyboardInterrupt):
        Migration(old, new, time.monotonic).copy()
    monkeypatch.undo()
    assert len(held(new)) == 1
    again = Migration(old, new, time.monotonic)
    assert again.copy().copied == ["10.5.2.0-24", "10.5.3.0-24"]
    assert again.verify() == []


def test_nothing_is_moved_out_of_an_empty_store(stores: tuple[Store, Store]) -> None:
    with pytest.raises(ConfigError, match="nothing to move"):
        Migration(stores[1], stores[0], time.monotonic).copy()


@pytest.mark.parametrize("force", [False, True])
def test_another_network_is_refused_even_with_force(stores: tuple[Store, Store], force: bool) -> None:
    stores[1].write_config('{"Network": "10.6.0.0/16"}', None)
    with pytest.raises(ConflictError, match=r"10\.6\.0\.0/16, and the source 10\.5\.0\.0/16"):
        Migration(*stores, time.monotonic).copy(force=force)


@pytest.mark.parametrize("found", ['{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}', "no JSON"])
def test_another_document_is_replaced_only_with_force(stores: tuple[Store, Store], found: str) -> None:
    stores[1].write_config(found, None)
    with pytest.raises(ConflictError, match="--force"):
        Migration(*stores, time.monotonic).copy()
    assert Migration(*stores, time.monotonic).copy(force=True).document == "updated"
    config = stores[1].read_config()
    assert config is not None
    assert config.value == stores[0].read_config().value  # type: ignore[union-attr]


def test_the_same_document_in_another_spelling_is_kept(stores: tuple[Store, Store]) -> None:
    stores[1].write_config('{"network":"10.5.0.0/16"}', None)
    assert Migration(*stores, time.monotonic).copy().changes == 0


def test_leases_that_contradict_are_replaced_only_with_force(stores: tuple[Store, Store]) -> None:
    old, new = stores
    fill(old)
    new.create(KEY, text("other"), DAY)
    new.create("10.5.3.128-25", text("another"), DAY)
    before = held(new)
    with pytest.raises(ConflictError, match=r"10\.5\.1\.0-24 is node 'other'.*; 10\.5\.3\.128-25 of node 'another'"):
        Migration(old, new, time.monotonic).copy()
    assert held(new) == before
    would = Migration(old, new, time.monotonic).copy(force=True, dry=True)
    assert held(new) == before
    migration = Migration(old, new, time.monotonic)
    assert migration.copy(force=True) == would
    assert migration.verify() == []


def test_verify_names_what_differs(stores: tuple[Store, Store]) -> None:
    old, new = stores
    fill(old)
    migration = Migration(old, new, time.monotonic)
    migration.copy()
    records = {record.key: record for record in new.snapshot().leases}
    new.delete(records[KEY])
    new.update(records["10.5.2.0-24"], text("nn", "192.0.2.99"), DAY)
    new.delete(records["10.5.3.0-24"])
    new.create("10.5.3.0-24", text("nnn"), DAY)
    assert migration.verify() == [
        f"{KEY} is missing",
        "10.5.2.0-24 has another text",
        "10.5.3.0-24 is a reservation in the source alone",
    ]


# Following


class Following:
    """A migration that follows in a thread."""

    def __init__(self, old: Store, new: Store, until_moved: bool = False) -> None:
        self.said: list[str] = []
        self.migration = Migration(old, new, time.monotonic, self.said.append)
        self.done: Done = self.migration.copy()
        self.thread = threading.Thread(target=self.migration.follow, args=(self.done, until_moved))

    def __enter__(self) -> Following:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.migration.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


def again(store: Store) -> Store:
    """A store object for another thread, or a node."""
    return type(store)(store.location)


def test_both_stores_hear_of_changes_in_the_other(stores: tuple[Store, Store]) -> None:
    fill(stores[0])
    with Following(*stores), again(stores[0]) as old, again(stores[1]) as new:
        late = old.create("10.5.4.0-24", text("late"), DAY)
        until(lambda: "10.5.4.0-24" in held(new))
        old.update(late, text("late", "192.0.2.44"), DAY)
        until(lambda: "192.0.2.44" in held(new)["10.5.4.0-24"][0])
        new.create("10.5.5.0-24", text("newer"), DAY)
        until(lambda: "10.5.5.0-24" in held(old))
        old.delete(next(record for record in old.snapshot().leases if record.key == "10.5.4.0-24"))
        until(lambda: "10.5.4.0-24" not in held(new))
        new.write_config('{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}', new.read_config())
        until(lambda: "host-gw" in old.read_config().value)  # type: ignore[union-attr]


def changing(identity: str, phase: Phase) -> str:
    """The document in the middle of a change."""
    change = NetworkChange(identity, phase, {"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}})
    return read(DOCUMENT).with_change(change)


def document(store: Store) -> Any:
    config = store.read_config()
    assert config is not None
    return json.loads(config.value)


FIRST, SECOND = "0" * 16, "1" * 16
FORMER = read(DOCUMENT).ended(NetworkChange(FIRST, Phase.BACK, {}), "")
BOTH = read(FORMER).ended(NetworkChange(SECOND, Phase.BACK, {}), "")
"""The document after a change that led back, and after two."""


@pytest.mark.parametrize("at", [SOURCE, TARGET])
def test_nodes_of_both_stores_go_through_a_change_of_the_network(stores: tuple[Store, Store], at: int) -> None:
    """Whichever of them it is made in; the settings that hold until its end stay the same."""
    with Following(*stores), again(stores[at]) as here, again(stores[1 - at]) as there:
        for text in (*(changing(FIRST, phase) for phase in (Phase.PREPARE, Phase.BACK)), FORMER):
            here.write_config(text, here.read_config())
            until(lambda text=text: document(there) == json.loads(text))  # type: ignore[misc]


def test_a_change_that_the_target_lacks_is_named_and_copied(stores: tuple[Store, Store]) -> None:
    old, new = stores
    migration = Migration(old, new, time.monotonic)
    migration.copy()
    old.write_config(changing(FIRST, Phase.PREPARE), old.read_config())
    assert migration.verify() == ["the network config is not the same"]
    assert Migration(old, new, time.monotonic).copy().document == "updated"
    assert migration.verify() == []


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (DOCUMENT, changing(FIRST, Phase.SWITCH)),
        (changing(SECOND, Phase.PREPARE), changing(FIRST, Phase.PREPARE)),
        (changing(FIRST, Phase.PREPARE), FORMER),
        (FORMER, BOTH),
    ],
)
def test_a_change_that_the_source_lacks_is_undone_only_with_force(
    stores: tuple[Store, Store], source: str, target: str
) -> None:
    old, new = stores
    old.write_config(source, old.read_config())
    new.write_config(target, None)
    with pytest.raises(ConflictError, match=r"a change of the network that .* does not know of"):
        Migration(old, new, time.monotonic).copy()
    assert document(new) == json.loads(target)
    assert Migration(old, new, time.monotonic).copy(force=True).document == "updated"
    assert document(new) == json.loads(source)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (changing(FIRST, Phase.SWITCH), changing(FIRST, Phase.PREPARE)),
        (FORMER, changing(FIRST, Phase.BACK)),
        (BOTH, changing(FIRST, Phase.BACK)),
        (BOTH, FORMER),
        (FORMER, DOCUMENT),
    ],
)
def test_a_change_goes_on_in_the_target_as_in_the_source(stores: tuple[Store, Store], source: str, target: str) -> None:
    old, new = stores
    old.write_config(source, old.read_config())
    new.write_config(target, None)
    assert Migration(old, new, time.monotonic).copy().document == "updated"
    assert document(new) == json.loads(source)


def test_somebody_who_writes_the_config_first_does_not_end_it(stores: tuple[Store, Store]) -> None:
    """Such as a second migration beside it."""
    fill(stores[0])
    changed = '{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}'
    late: list[str] = []

    class Slower(FileStore):
        def write_config(self, text: str, replacing: Record | None) -> Record:
            if not late:
                late.append(text)
                with again(self) as other:
                    other.write_config(text, replacing)
            return super().write_config(text, replacing)

    with again(stores[0]) as node:
        Migration(*stores, time.monotonic).copy()
        with Slower(stores[1].location) as new, Following(stores[0], new) as following:
            node.write_config(changed, node.read_config())
            until(lambda: late)
            node.create("10.5.4.0-24", text("late"), DAY)
            until(lambda: "10.5.4.0-24" in held(stores[1]) or not following.thread.is_alive())
            assert following.thread.is_alive()


class Broken(Watch):
    """A watch of a driver with a fault, as the daemon's own guard tells of it."""

    def __next__(self) -> Batch:
        raise PluginError("store 'file' failed in watch: NotFound")

    def close(self) -> None:
        pass


def test_a_watch_that_breaks_by_a_driver_s_fault_is_opened_again(stores: tuple[Store, Store]) -> None:
    fill(stores[0])
    opened: list[str] = []

    class Faulty(FileStore):
        def watch(self, revision: str) -> Watch:
            opened.append(revision)
            return Broken() if len(opened) == 1 else super().watch(revision)

    with Faulty(stores[0].location) as old, Following(old, stores[1]), again(stores[0]) as node:
        until(lambda: len(opened) > 1)
        node.create("10.5.4.0-24", text("late"), DAY)
        with again(stores[1]) as new:
            until(lambda: "10.5.4.0-24" in held(new))


def test_a_node_that_moves_keeps_its_lease_in_both(stores: tuple[Store, Store]) -> None:
    old, new = stores
    old.create(KEY, text("n"), 12)
    with Following(old, new, until_moved=True) as following, again(old) as seen_there, again(new) as node:
        (copy,) = node.snapshot().leases
        node.renew(copy, DAY)
        following.thread.join(30)
        assert not following.thread.is_alive(), "it ends by itself when every node has moved"
        assert left(seen_there, KEY) > 3600, "nobody renews it there but the mirror"
        assert held(seen_there) == held(node)
    assert following.migration.moved == (1, 1)
    assert any("works on" in line for line in following.said)


def test_a_lease_that_ends_at_its_home_ends_at_the_other_place(stores: tuple[Store, Store]) -> None:
    old, new = stores
    old.create(KEY, text("n"), DAY)
    with Following(old, new), again(old) as editor, again(new) as other:
        (record,) = editor.snapshot().leases
        editor.update(record, record.value, 1.0)
        until(lambda: held(editor) == held(other) == {})


def test_a_store_that_lost_everything_takes_nothing_with_it(stores: tuple[Store, Store], tmp_path: Path) -> None:
    fill(stores[0])
    with Following(*stores) as following, again(stores[0]) as old, again(stores[1]) as new:
        before = held(new)
        (tmp_path / "old").rename(tmp_path / "away")
        until(lambda: any("trying again" in line for line in following.said))
        (tmp_path / "old").mkdir()
        until(lambda: old.read_config() is not None and held(old) == before)
        assert held(new) == before


def test_two_nodes_on_one_subnet_are_named_and_left_alone(stores: tuple[Store, Store]) -> None:
    said: list[str] = []
    for store, node in zip(stores, ("n", "other"), strict=True):
        store.create(KEY, text(node), DAY)
    before = held(stores[0]), held(stores[1])
    migration = Migration(*stores, time.monotonic, said.append)
    for _ in range(2):
        migration.look(Done())
    assert said == [
        (
            f"{KEY}: node 'n' at 192.0.2.1 and node 'other' at 192.0.2.5 both hold it, one in each store; left alone. "
            "Stop one of them"
        )
    ]
    assert (held(stores[0]), held(stores[1])) == before


def test_a_store_that_is_away_at_the_start_is_an_error(stores: tuple[Store, Store], tmp_path: Path) -> None:
    location = StoreLocation.parse(f"file://{tmp_path}/nowhere?create=no")
    with load_store("file")(location) as absent, pytest.raises(StoreUnavailableError):
        Migration(stores[0], absent, time.monotonic).copy()
