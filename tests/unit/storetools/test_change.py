"""Driving a change from outside: who keeps it in its phase, and what is written when nobody does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from pyflannel.errors import ConfigError, ConflictError, StoreUnavailableError
from pyflannel.network.change import LEASE_KEY, NodeProgress, Phase, Step, read
from pyflannel.network.lease import MARGIN_KEY, LeaseAttributes
from pyflannel.network.parsing import MAX_DOCUMENT
from pyflannel.store import Record, Store, StoreLocation
from pyflannel.storetools.change import Drive, abandon, begin
from pyflannel_stores.file import FileStore

DOCUMENT = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
TARGET = {"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}
KEYS = {"n1": "10.5.1.0-24", "n2": "10.5.2.0-24"}
AT = "2026-01-01T00:00:00Z"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with FileStore(StoreLocation.parse(f"file://{tmp_path}/store")) as made:
        made.write_config(json.dumps(DOCUMENT), None)
        for number, (node, key) in enumerate(KEYS.items(), 1):
            made.create(key, lease(node, number), 3600.0)
        yield made


def lease(node: str | None, number: int, progress: NodeProgress | None = None) -> str:
    extra = {} if progress is None else {LEASE_KEY: progress.to_json()}
    return LeaseAttributes(IPv4Address(f"192.0.2.{number}"), backend_type="vxlan", node_id=node, extra=extra).to_json()


def config(store: Store) -> Record:
    record = store.read_config()
    assert record is not None
    return record


def say(store: Store, identity: str, step: Step | None, *nodes: str, trouble: str = "") -> None:
    for record in store.snapshot().leases:
        name = next((node for node, key in KEYS.items() if key == record.key), None)
        if name in nodes:
            number = list(KEYS).index(name) + 1
            store.update(
                record, lease(name, number, NodeProgress(identity, step, "wireguard", trouble=trouble)), 3600.0
            )


def drive(store: Store, identity: str, *without: str) -> Drive:
    return Drive(store, identity, lambda: datetime(2026, 1, 1, tzinfo=timezone.utc), without)


def begun(store: Store, *without: str, phases: bool = True) -> str:
    return begin(store, config(store), TARGET, phases, without, AT)


def phase(store: Store) -> Phase | None:
    change = read(config(store).value).change
    return change.phase if change is not None else None


def test_a_phase_ends_when_every_node_has_said_so(store: Store) -> None:
    identity = begun(store)
    for now, step, following in (
        (Phase.PREPARE, Step.PREPARED, Phase.SWITCH),
        (Phase.SWITCH, Step.SWITCHED, Phase.RETIRE),
        (Phase.RETIRE, Step.RETIRED, None),
    ):
        assert drive(store, identity).look().waiting == tuple(KEYS.values())
        say(store, identity, step, "n1")
        assert drive(store, identity).look().waiting == (KEYS["n2"],)
        assert phase(store) is now
        say(store, identity, step, "n2")
        assert drive(store, identity).look().waiting == ()
        assert phase(store) is following
    over = drive(store, identity).look()
    assert (over.over, over.phase, over.waiting) == (True, "done", tuple(KEYS.values()))
    assert read(config(store).value).settings == TARGET
    say(store, identity, Step.DONE, *KEYS)
    assert drive(store, identity).look().waiting == ()


def test_a_node_with_trouble_is_not_prepared_whatever_it_has_said(store: Store) -> None:
    identity = begun(store)
    say(store, identity, Step.PREPARED, *KEYS)
    say(store, identity, Step.PREPARED, "n2", trouble="the port is taken")
    progress = drive(store, identity).look()
    assert progress.waiting == (KEYS["n2"],)
    assert [node.trouble for node in progress.nodes] == ["", "the port is taken"]
    assert phase(store) is Phase.PREPARE


def test_who_is_left_behind_is_not_waited_for_by_whoever_goes_on(store: Store) -> None:
    identity = begun(store)
    say(store, identity, Step.PREPARED, "n1")
    drive(store, identity, KEYS["n2"]).look()
    assert phase(store) is Phase.SWITCH
    say(store, identity, Step.SWITCHED, "n1")
    drive(store, identity).look()
    assert phase(store) is Phase.RETIRE, "the document says whom nobody waits for"


def test_whom_nobody_waits_for_is_said_by_the_next_look_if_somebody_else_writes_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often: each look is one, with the pause of whoever looks between two."""
    identity, write = begun(store), FileStore.write_config

    def overtaken(self: FileStore, text: str, expected: Record | None) -> Record:
        raise ConflictError("somebody else was quicker")

    monkeypatch.setattr(FileStore, "write_config", overtaken)
    driving = drive(store, identity, KEYS["n2"])
    for _ in range(3):
        assert driving.look().waiting == (KEYS["n1"],)
    monkeypatch.setattr(FileStore, "write_config", write)
    assert driving.look().waiting == (KEYS["n1"],)
    change = read(config(store).value).change
    assert change is not None
    assert (change.phase, change.without) == (Phase.PREPARE, (KEYS["n2"],))


def test_what_another_change_was_told_does_not_count(store: Store) -> None:
    identity = begun(store)
    say(store, "00000000000000b2", Step.PREPARED, *KEYS)
    assert drive(store, identity).look().waiting == tuple(KEYS.values())
    assert not any(node.answered for node in drive(store, identity).look().nodes)


@pytest.mark.parametrize(
    ("key", "value", "permanent"),
    [
        ("10.9.9.0-24", lease("n9", 9), False),
        ("10.5.9.0-24", "nonsense", False),
        ("10.5.9.0-24", '{"PublicIP": "192.0.2.9"}', True),
    ],
    ids=["outside the network", "unreadable", "a reservation that no node has"],
)
def test_what_is_no_node_is_not_waited_for(store: Store, key: str, value: str, permanent: bool) -> None:
    store.create(key, value, None if permanent else 3600.0)
    assert [node.key for node in drive(store, begun(store)).look().nodes] == list(KEYS.values())


def test_a_reservation_is_waited_for_where_the_leases_of_nodes_say_no_type_either(store: Store) -> None:
    """As with flannel's udp: nodes take it for a peer, and are prepared only when it is, or is left behind."""
    for record in store.snapshot().leases:
        bare = {**json.loads(record.value), "BackendType": None}
        store.update(record, json.dumps(bare), 3600.0)
    store.create("10.5.9.0-24", '{"PublicIP": "192.0.2.9"}', None)
    nodes = drive(store, begun(store)).look().nodes
    assert [node.name for node in nodes] == ["n1", "n2", "192.0.2.9"]


def test_a_node_of_flanneld_is_known_by_what_its_lease_lacks(store: Store) -> None:
    store.create("10.5.9.0-24", lease(None, 9), 3600.0)
    nodes = drive(store, begun(store)).look().nodes
    assert [node.flanneld for node in nodes] == [False, False, True]


def test_going_back_ends_with_the_former_settings(store: Store) -> None:
    identity = begun(store)
    say(store, identity, Step.PREPARED, *KEYS)
    drive(store, identity).look()
    assert abandon(store, config(store), AT) == identity == abandon(store, config(store), AT)
    say(store, identity, Step.REVERTED, *KEYS)
    drive(store, identity).look()
    over = drive(store, identity).look()
    assert (over.over, over.phase, over.waiting) == (True, "back", ())
    assert read(config(store).value).settings == DOCUMENT


def test_there_is_a_time_when_it_is_too_late_to_go_back(store: Store) -> None:
    with pytest.raises(ConfigError, match="no change of the network is under way"):
        abandon(store, config(store), AT)
    identity = begun(store)
    for step in (Step.PREPARED, Step.SWITCHED):
        say(store, identity, step, *KEYS)
        drive(store, identity).look()
    with pytest.raises(ConfigError, match="come to its end"):
        abandon(store, config(store), AT)


def test_what_needs_no_agreement_is_over_at_once(store: Store) -> None:
    progress = drive(store, begun(store, phases=False)).look()
    assert (progress.over, progress.phase, progress.waiting) == (True, "done", tuple(KEYS.values()))


def test_two_that_begin_at_once(store: Store) -> None:
    record = config(store)
    begin(store, record, TARGET, True, (), AT)
    with pytest.raises(ConflictError):
        begin(store, record, DOCUMENT, True, (), AT)


def test_no_change_begins_in_the_middle_of_another(store: Store) -> None:
    identity = begun(store)
    with pytest.raises(ConflictError, match=identity):
        begun(store)
    assert phase(store) is Phase.PREPARE


def test_a_change_that_somebody_cut_out_is_named(store: Store) -> None:
    identity = begun(store)
    store.write_config(json.dumps(DOCUMENT), config(store))
    with pytest.raises(ConfigError, match="taken out of the network config"):
        drive(store, identity).look()


def test_a_change_that_others_have_followed_is_not_taken_for_one_that_was_cut_out(store: Store) -> None:
    identity = begun(store, phases=False)
    begin(store, config(store), DOCUMENT, False, (), AT)
    with pytest.raises(ConfigError, match="has come to its end, and others have been made since"):
        drive(store, identity).look()


def test_no_change_begins_with_which_the_document_would_be_too_long_to_be_read(store: Store) -> None:
    long = {**DOCUMENT, "Comment": "x" * (MAX_DOCUMENT // 2)}
    record = store.write_config(json.dumps(long), config(store))
    with pytest.raises(ConfigError, match="with the change in it: it has more than"):
        begin(store, record, {**TARGET, "Comment": long["Comment"]}, True, (), AT)
    assert phase(store) is None


def test_who_is_gone_is_looked_for_also_when_the_clock_has_been_set_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, looks = begun(store), list[object]()

    def look(self: FileStore, records: object) -> dict[str, float]:
        looks.append(records)
        return {}

    monkeypatch.setattr(FileStore, "away", look)
    start, asked = datetime(2026, 1, 1, tzinfo=timezone.utc), []
    clock = iter([start + timedelta(seconds=each) for each in (0, 19, 20, -3600, -3590, -3580)])
    driving = Drive(store, identity, lambda: next(clock))
    for _ in range(6):
        before = len(looks)
        driving.look()
        asked.append(len(looks) > before)
    assert asked == [True, False, True, True, False, True]


def test_progress_as_a_document(store: Store) -> None:
    identity = begun(store)
    say(store, identity, Step.PREPARED, "n1")
    told: dict[str, Any] = drive(store, identity).look().to_json()
    assert (told["change"], told["phase"], told["since"], told["over"]) == (identity, "prepare", AT, False)
    assert told["waiting"] == ["n2"]
    assert told["nodes"][1]["waited_for_since"] == AT
    assert told["nodes"][0] == {
        "lease": KEYS["n1"],
        "node_id": "n1",
        "address": "192.0.2.1",
        "step": "prepared",
        "answered": True,
        "trouble": None,
        "waited_for_since": None,
        "away_since": None,
    }


def test_who_has_not_answered_and_has_missed_its_renewal_is_gone_since_then(store: Store) -> None:
    """A lease that says when it would have been renewed is believed; and who answers is there."""
    margins = {"10.5.3.0-24": 60, "10.5.4.0-24": 7200, "10.5.5.0-24": "soon"}
    for number, (key, margin) in enumerate(margins.items(), 3):
        value = LeaseAttributes(
            IPv4Address(f"192.0.2.{number}"), backend_type="vxlan", node_id=key, extra={MARGIN_KEY: margin}
        )
        store.create(key, value.to_json(), 3400.0)
    identity = begun(store)
    say(store, identity, None, "n1")
    renewed = next(record for record in store.snapshot().leases if record.key == KEYS["n2"])
    store.renew(renewed, 1800.0)
    driving = drive(store, identity)
    told = {node["node_id"]: node["away_since"] for node in driving.look().to_json()["nodes"]}
    assert {name for name, since in told.items() if since} == {"n2", "10.5.4.0-24"}
    assert "2025-12-31T23:29:5" <= told["n2"] <= "2025-12-31T23:30:05"
    assert told["10.5.4.0-24"].startswith("2025-12-31T22:5")
    say(store, identity, Step.PREPARED, "n2")
    assert set(driving.look().away) == {"10.5.4.0-24"}


def test_what_a_store_knows_of_nodes_comes_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a store that can't be asked for it now keeps nobody from going on."""
    identity = begun(store)
    monkeypatch.setattr(FileStore, "away", lambda self, records: {KEYS["n1"]: 90.0})
    assert drive(store, identity).look().away == {KEYS["n1"]: "2025-12-31T23:58:30Z"}

    def busy(self: FileStore, records: object) -> None:
        raise StoreUnavailableError("busy")

    monkeypatch.setattr(FileStore, "away", busy)
    assert drive(store, identity).look().away == {}
