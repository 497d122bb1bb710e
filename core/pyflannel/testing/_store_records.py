"""The stores' kit: the driver's face, the network document, records, contention, expiry, the clock, odd contents."""

# A test's name is its docstring:

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from typing import Final

import pytest

from pyflannel.errors import ConfigError, ConflictError, StoreAbsentError, StoreError
from pyflannel.plugins import unlike
from pyflannel.store import API_VERSION, CONFIG_KEY, Record, Store, StoreLocation, StoreTime
from pyflannel.testing import _store_workers as workers
from pyflannel.testing import _waiting as waiting
from pyflannel.testing._following import Follower, contents, facts, same_value
from pyflannel.testing._purity import connections
from pyflannel.testing._store_subject import CONFIG, KEY, OTHER, VALUE, StoreSubject
from pyflannel.testing._store_workers import Opening
from pyflannel.testing._waiting import check_what_is_left, eventually
from pyflannel.testing.clauses import clause, not_applicable

__all__ = ["StoreRecords", "ask_clock"]

CLOCK_SLACK: Final = 600.0
"""Seconds by which the clocks of a test's server and of this host may differ: less than two time zones do."""


class StoreRecords(StoreSubject):
    """All that can be asked without a watch, and what a watch shows of it."""

    # the driver's face

    @clause(
        "pyflannel.store.Store",
        "api_version is the one it was built for, scheme its URL's, and secret options are among the options",
    )
    def test_the_driver_states_its_api_version_and_scheme(self, store: Store, location: StoreLocation) -> None:
        assert store.api_version == API_VERSION
        assert store.scheme == location.scheme
        assert store.secret_options <= store.options.keys()
        problem = unlike(self.store_class, Store)
        assert not problem, f"{self.store_class.__name__}: {problem}"

    @clause("pyflannel.store.Store", "constructing a driver validates the location and may not touch the network")
    def test_constructing_touches_no_server(self, location: StoreLocation) -> None:
        """Not even one that is there and never answers."""
        with closing(socket.create_server(("127.0.0.1", 0))) as silent:
            host = f"127.0.0.1:{silent.getsockname()[1]}"
            place = dataclasses.replace(location, hosts=tuple(host for _ in location.hosts))
            with connections() as made:
                store = Opening(self.store_class, place, self.call_timeout).open()
            store.close()
            assert not made, f"the constructor of {self.store_class.__name__} did: {made}"
            silent.settimeout(0.05)
            with pytest.raises(TimeoutError):  # else somebody has connected
                silent.accept()

    @clause("pyflannel.store.Store", "an option that the driver does not know is a ConfigError that names it")
    def test_an_unknown_option_is_refused(self, location: StoreLocation) -> None:
        odd = StoreLocation(location.scheme, location.hosts, location.path, {**location.options, "no-such-option": "1"})
        with pytest.raises(ConfigError, match="no-such-option"):
            Opening(self.store_class, odd, self.call_timeout).open()

    @clause("pyflannel.store.Store.close", "may be called again, which does nothing")
    def test_closing_twice_is_harmless(self, opening: Opening) -> None:
        store = opening.open()
        store.snapshot()
        store.close()
        store.close()

    @clause("pyflannel.store.Store.close", "lets go of connections and files")
    def test_a_closed_store_leaves_nothing_behind(self, opening: Opening) -> None:
        """No thread either: a daemon makes a new driver whenever a call does not come back."""
        self._use_once(opening, 0)  # what is made once for all
        check_what_is_left(lambda: [self._use_once(opening, number) for number in range(1, 7)], "six closed stores")

    @staticmethod
    def _use_once(opening: Opening, number: int) -> None:
        with opening.open() as store:
            record = store.create(f"10.5.{number}.0-24", VALUE, 3600.0)
            store.delete(store.update(store.renew(record, 3600.0), OTHER, 3600.0))
            store.read_config()
            store.snapshot()

    # the network document

    @clause("pyflannel.store.Store.read_config", "None if there is no network document; a snapshot of nothing is empty")
    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        assert store.read_config() is None
        snapshot = store.snapshot()
        assert snapshot.config is None
        assert snapshot.leases == ()

    @clause(
        "pyflannel.store.Store.expect_existing",
        "where there is no store none is made, which is a StoreAbsentError; one that is there is read as ever",
    )
    def test_who_only_looks_makes_no_store(self, opening: Opening) -> None:
        with opening.open() as looking:
            looking.expect_existing()
            absent = [_absent(call) for call in (looking.read_config, looking.snapshot, looking.read_config)]
            assert len(set(absent)) == 1, f"of three calls on an empty place these found no store: {absent}"
        with opening.open() as store:
            config, lease = store.write_config(CONFIG, None), store.create(KEY, VALUE, 3600.0)
        with opening.open() as looking:
            looking.expect_existing()
            found = looking.read_config()
            assert found is not None
            assert facts(found) == facts(config)
            assert contents(looking.snapshot()) == {CONFIG_KEY: facts(config), KEY: facts(lease)}

    @clause(
        "pyflannel.store.Store.write_config",
        "written if it is still the expected one (None: absent), else a ConflictError",
    )
    def test_the_config_is_written_only_over_what_is_expected(self, store: Store) -> None:
        first = store.write_config(CONFIG, None)
        assert (first.key, first.permanent) == (CONFIG_KEY, True)
        with pytest.raises(ConflictError):
            store.write_config(CONFIG, None)
        changed = CONFIG.replace("vxlan", "host-gw")
        second = store.write_config(changed, first)
        assert second.version != first.version
        with pytest.raises(ConflictError):
            store.write_config(CONFIG, first)
        found = store.read_config()
        assert found is not None
        assert found.key == CONFIG_KEY
        assert same_value(found.value, changed)
        assert facts(found) == facts(second)
        assert store.snapshot().config == found
        assert store.snapshot().leases == ()

    @clause("pyflannel.store.Record", "value is the text as stored; the driver never parses it")
    def test_the_config_keeps_the_text_a_person_wrote(self, store: Store) -> None:
        text = '{\n  "Network": "10.5.0.0/16",\n  "Expires": "never",\n  "Backend": {"Type": "vxlan"}\n}\n'
        store.write_config(text, None)
        found = store.read_config()
        assert found is not None
        assert same_value(found.value, text)

    @clause("pyflannel.store.Store.watch", "the network document is watched, too")
    def test_a_config_change_is_seen_by_a_watch(self, store: Store, opening: Opening) -> None:
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            first = other.write_config(CONFIG, None)
            follower.until(lambda: CONFIG_KEY in follower.state, "the config")
            self._check_config(store, first)
            second = other.write_config(CONFIG.replace("vxlan", "udp"), first)
            follower.until(lambda: follower.state[CONFIG_KEY] == facts(second), "the changed config")
            self._check_config(store, second)

    @staticmethod
    def _check_config(store: Store, written: Record) -> None:
        found = store.read_config()
        assert found is not None
        assert facts(found) == facts(written), "read_config() tells what somebody else has written"

    # records: create, update, delete

    @clause("pyflannel.store.Store.create", "a record is there for everybody when the call is back")
    def test_a_created_record_is_there(self, store: Store, opening: Opening) -> None:
        created = store.create(KEY, VALUE, 3600.0)
        assert created.key == KEY
        assert same_value(created.value, VALUE)
        assert not created.permanent
        with opening.open() as other:
            assert contents(other.snapshot()) == {KEY: facts(created)}

    @clause("pyflannel.store.Store.create", "a ConflictError if the key exists, which is left alone")
    def test_create_meets_an_existing_key(self, store: Store, opening: Opening) -> None:
        created = store.create(KEY, VALUE, 3600.0)
        with opening.open() as other, pytest.raises(ConflictError):
            other.create(KEY, OTHER, None)
        with pytest.raises(ConflictError):
            store.create(KEY, VALUE, 3600.0)
        assert contents(store.snapshot()) == {KEY: facts(created)}

    @clause(
        "pyflannel.store.Store.update",
        "replaces the record if it is unchanged, else a ConflictError; a version never comes back",
    )
    def test_update_is_a_compare_and_swap(self, store: Store, opening: Opening) -> None:
        first = store.create(KEY, VALUE, 3600.0)
        with opening.open() as other:
            second = other.update(next(iter(other.snapshot().leases)), OTHER, 3600.0)
        assert second.version != first.version
        assert same_value(second.value, OTHER)
        with pytest.raises(ConflictError):
            store.update(first, VALUE, 3600.0)
        third = store.update(second, VALUE, 3600.0)
        with pytest.raises(ConflictError):  # the old value is back, and still somebody has changed it
            store.update(first, OTHER, 3600.0)
        assert contents(store.snapshot()) == {KEY: facts(third)}

    @clause("pyflannel.store.Store.update", "a ConflictError if the record was deleted; renew likewise")
    def test_update_of_a_deleted_record_is_a_conflict(self, store: Store) -> None:
        record = store.create(KEY, VALUE, 3600.0)
        store.delete(record)
        with pytest.raises(ConflictError):
            store.update(record, OTHER, 3600.0)
        with pytest.raises(ConflictError):
            store.renew(record, 3600.0)
        assert contents(store.snapshot()) == {}

    @clause("pyflannel.store.Record", "version differs after every change of the value, deletion and creation included")
    def test_a_record_created_anew_is_another_one(self, store: Store, opening: Opening) -> None:
        old = store.create(KEY, VALUE, 3600.0)
        store.delete(old)
        with opening.open() as other:
            new = other.create(KEY, VALUE, 3600.0)
            for attempt in (
                lambda: store.update(old, OTHER, 3600.0),
                lambda: store.renew(old, 3600.0),
                lambda: store.delete(old),
            ):
                with pytest.raises(ConflictError):
                    attempt()
            assert contents(other.snapshot()) == {KEY: facts(new)}

    @clause("pyflannel.store.Record", "created orders records as they came into being, whatever was changed since")
    def test_an_older_record_stays_older(self, store: Store, opening: Opening) -> None:
        first = store.create(KEY, VALUE, 3600.0)
        if not first.created:
            not_applicable("the driver does not tell which of two records is older")
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            second = store.create("10.5.35.0-24", VALUE, 3600.0)
            assert first.created < second.created
            changed = store.renew(store.update(first, OTHER, 3600.0), 3600.0)
            assert changed.created == first.created
            shown = {record.key: record.created for record in other.snapshot().leases}
            assert shown == {KEY: first.created, second.key: second.created}
            follower.until(lambda: follower.state == contents(store.snapshot()), "the second record and the update")
            told = {change.key: change.record.created for change in follower.changes if change.record is not None}
            assert told == shown, "a watch tells the same of each record as a snapshot"
            store.delete(changed)
            assert other.create(KEY, VALUE, 3600.0).created > second.created

    @clause(
        "pyflannel.store.Store.delete",
        "deletes the record if it is unchanged, else a ConflictError; no error if it is gone",
    )
    def test_delete_is_a_compare_and_swap_and_repeatable(self, store: Store) -> None:
        first = store.create(KEY, VALUE, 3600.0)
        second = store.update(first, OTHER, 3600.0)
        with pytest.raises(ConflictError):
            store.delete(first)
        assert contents(store.snapshot()) == {KEY: facts(second)}
        store.delete(second)
        store.delete(second)
        assert contents(store.snapshot()) == {}

    @clause("pyflannel.store.Store", "a call changes the record it names and no other")
    def test_the_rest_is_untouched(self, store: Store) -> None:
        records = [store.create(f"10.5.{number}.0-24", VALUE, 3600.0) for number in range(5)]
        changed = store.update(records[1], OTHER, 3600.0)
        store.delete(records[3])
        expected = {record.key: facts(record) for record in (records[0], changed, records[2], records[4])}
        assert contents(store.snapshot()) == expected

    # contention

    @clause("pyflannel.store.Store.create", "of all that create a key at the same moment one succeeds")
    def test_exactly_one_of_many_creates_a_key(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        keys = [f"10.5.{number}.0-24" for number in range(5)]
        jobs = [pool.submit(workers.race, opening, keys, number) for number in range(self.racers)]
        won = [record for each in workers.results(pool, jobs, workers.TIMEOUT, "the race is over") for record in each]
        assert sorted(record.key for record in won) == sorted(keys)
        assert contents(store.snapshot()) == {record.key: facts(record) for record in won}

    @clause("pyflannel.store.Store.update", "of all that update one version one succeeds")
    def test_no_update_is_lost(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        store.create(KEY, "{}", None)
        jobs = [pool.submit(workers.count_up, opening, KEY, 10, name) for name in "abcdef"]
        workers.results(pool, jobs, workers.TIMEOUT, "all have counted")
        assert json.loads(store.snapshot().leases[0].value) == dict.fromkeys("abcdef", 10)

    @clause("pyflannel.store.Store.write_config", "of all that write over one version one succeeds")
    def test_no_write_of_the_config_is_lost(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        store.write_config("{}", None)
        jobs = [pool.submit(workers.count_up, opening, CONFIG_KEY, 10, name) for name in "abcdef"]
        workers.results(pool, jobs, workers.TIMEOUT, "all have counted")
        config = store.read_config()
        assert config is not None
        assert json.loads(config.value) == dict.fromkeys("abcdef", 10)

    @clause("pyflannel.store", "a record is changed only if nobody else has: deleting and renewing undo no update")
    def test_who_deletes_or_renews_undoes_no_update(
        self, store: Store, opening: Opening, pool: ProcessPoolExecutor
    ) -> None:
        """Nor does who renews undo a deletion. All of them have one version, and go by it at the same moment."""
        records = [store.create(f"10.5.{number}.0-24", VALUE, workers.CHANGED_TTL) for number in range(30)]
        jobs = [pool.submit(workers.change_each, opening, records, number) for number in range(self.racers)]
        outcomes = workers.results(pool, jobs, workers.TIMEOUT, "all records are changed")
        final = contents(store.snapshot())
        for record, made in zip(records, zip(*outcomes, strict=True), strict=True):
            if any(isinstance(outcome, StoreError) for outcome in made):
                continue  # nobody knows who was first
            updated = [facts(outcome) for outcome in made if isinstance(outcome, Record)]
            found = final.get(record.key)
            if updated:
                assert [found] == updated, (
                    f"{record.key}: an update succeeded, and the store does not hold what it has written: delete() and "
                    "renew() must compare the version and change the record in one step, as update() must"
                )
            else:
                assert found is None, (
                    f"{record.key}: it was deleted, as no update succeeded, and the store holds it: renew() must not "
                    "write a record that is gone, nor may its version differ with the ttl that it had before"
                )

    @clause("pyflannel.store.Store", "nodes that start at once get a subnet each")
    def test_nodes_that_start_at_once_get_a_subnet_each(
        self, store: Store, opening: Opening, pool: ProcessPoolExecutor
    ) -> None:
        network, nodes = '{"Network":"10.5.0.0/16"}', 224 // self.racers
        jobs = [pool.submit(workers.allocate_nodes, opening, network, nodes, number) for number in range(self.racers)]
        keys = [
            key
            for tally in workers.results(pool, jobs, workers.TIMEOUT, "all nodes have subnets")
            for key in tally.keys
        ]
        assert len(set(keys)) == len(keys) == nodes * self.racers
        assert set(contents(store.snapshot())) == set(keys)

    # expiry

    @clause(
        "pyflannel.store.Store.create",
        "a record is gone after its ttl, not earlier, for everybody and in the watch",
    )
    def test_a_record_expires(self, store: Store, opening: Opening) -> None:
        began = time.monotonic()
        record = store.create(KEY, VALUE, self.minimum_ttl)
        kept = store.create("10.5.1.0-24", VALUE, 3600.0)
        before = store.snapshot()
        with Follower(store, before) as follower, opening.open() as other:
            follower.until(
                lambda: KEY not in follower.state, "the expiry", waiting.PATIENCE + self.minimum_ttl + self.expiry_slack
            )
            assert time.monotonic() - began >= self.minimum_ttl, "expired too early"
            for looking in (store, other):
                assert contents(looking.snapshot()) == {kept.key: facts(kept)}
            with Follower(store, before) as resumed:
                resumed.until(lambda: KEY not in resumed.state, "the expiry, which came before this watch was opened")
            with pytest.raises(ConflictError):
                store.update(record, OTHER, 3600.0)
            with pytest.raises(ConflictError):
                store.renew(record, 3600.0)
            store.delete(record)
            again = other.create(KEY, VALUE, 3600.0)
            follower.until(lambda: follower.state.get(KEY) == facts(again), "the new record")
            with pytest.raises(ConflictError):
                store.renew(record, 3600.0)
            assert [found is None for found in follower.of(KEY)] == [True, False]

    @clause(
        "pyflannel.store.Store.renew",
        "puts off the expiry and leaves the value and version alone; a permanent record stays one",
    )
    def test_what_is_renewed_or_reserved_stays_and_nobody_notices(self, store: Store, opening: Opening) -> None:
        patience = waiting.PATIENCE + self.minimum_ttl + self.expiry_slack
        left_alone = store.create("10.5.1.0-24", VALUE, self.minimum_ttl)
        renewed = first = store.create(KEY, VALUE, self.minimum_ttl)
        reserved = store.create("10.5.2.0-24", VALUE, None)
        assert reserved.permanent
        with Follower(store, store.snapshot()) as follower:
            deadline = time.monotonic() + patience
            while left_alone.key in follower.state:
                assert time.monotonic() < deadline, "the record that nobody renews does not expire"
                renewed = store.renew(renewed, self.minimum_ttl)
                assert facts(renewed) == facts(first)
                reserved = store.renew(reserved, self.minimum_ttl)
                assert reserved.permanent
                follower.thread.join(self.minimum_ttl / 5)
            assert follower.of(KEY) == []
            assert follower.of(reserved.key) == []
        expected = {record.key: facts(record) for record in (first, reserved)}
        assert contents(store.snapshot()) == expected
        with opening.open() as other:
            changed = other.update(reserved, OTHER, self.minimum_ttl)
            assert changed.permanent, "a reservation stays one"
            other.delete(first)  # renewing has not changed the version
        assert contents(store.snapshot()) == {reserved.key: facts(changed)}

    @clause("pyflannel.store.Store.create", "of all that want an expired key one gets it")
    def test_exactly_one_gets_an_expired_key(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        store.create(KEY, VALUE, self.minimum_ttl)
        jobs = [pool.submit(workers.win_after_expiry, opening, KEY, number) for number in range(self.racers)]
        found = workers.results(pool, jobs, workers.TIMEOUT, "the expired key has a new owner")
        winners = [record for record in found if record is not None]
        assert len(winners) == 1
        assert contents(store.snapshot()) == {KEY: facts(winners[0])}

    @clause("pyflannel.store.Store.update", "replaces the expiry, too")
    def test_an_update_sets_the_expiry_anew(self, store: Store) -> None:
        short = store.create(KEY, VALUE, self.minimum_ttl)
        longer = store.update(short, OTHER, 3600.0)
        shorter = store.create("10.5.1.0-24", VALUE, 3600.0)
        shorter = store.update(shorter, OTHER, self.minimum_ttl)
        patience = waiting.PATIENCE + self.minimum_ttl + self.expiry_slack
        eventually(lambda: shorter.key not in contents(store.snapshot()), "the shortened life ends", patience)
        assert contents(store.snapshot()) == {KEY: facts(longer)}

    @clause("pyflannel.store.Store.renew", "to ttl seconds from now, also where the record was given fewer before")
    def test_a_renewal_sets_the_expiry_anew(self, store: Store) -> None:
        longer = store.renew(store.create(KEY, VALUE, self.minimum_ttl), 3600.0)
        short = store.create("10.5.1.0-24", VALUE, self.minimum_ttl)
        patience = waiting.PATIENCE + self.minimum_ttl + self.expiry_slack
        eventually(lambda: short.key not in contents(store.snapshot()), "a record that nobody renews expires", patience)
        assert contents(store.snapshot()) == {KEY: facts(longer)}

    @clause("pyflannel.store.Store.time_to_live", "remaining seconds, None where there is no end or none is known")
    def test_time_to_live_of_records(self, store: Store) -> None:
        leased = store.create(KEY, VALUE, 3600.0)
        reserved = store.create("10.5.1.0-24", VALUE, None)
        left = store.time_to_live(store.snapshot().leases)
        assert left[reserved.key] is None
        seconds = left[leased.key]
        assert seconds is None or 0 < seconds <= 3600
        for record in (leased, reserved, *store.snapshot().leases):
            assert record.ttl is None or 0 < record.ttl <= 3600, f"ttl of {record.key}, which has at most an hour"
        if seconds is not None and store.exact_ttl:
            eventually(
                lambda: (store.time_to_live(store.snapshot().leases)[KEY] or seconds) < seconds,
                "the remaining time gets less; a driver that knows only a limit to it says exact_ttl = False",
            )

    # the clock

    @clause(
        "pyflannel.store.Store.clock",
        "seconds since 1970, asked without a trace, or None; an error is a StoreError that says why",
    )
    def test_the_clock_tells_the_time_of_day_or_nothing(self, store: Store) -> None:
        """In seconds since 1970, in time, and without a trace; a driver without one inherits ``None``."""
        assert isinstance(store.node_clocks, bool)
        ask_clock(store)
        record = store.create(KEY, VALUE, 3600.0)
        ask_clock(store)
        assert contents(store.snapshot()) == {KEY: facts(record)}

    # what is stored

    @clause("pyflannel.store.Store", "never drops a record because its key looks odd")
    def test_odd_keys_come_back(self, store: Store, opening: Opening) -> None:
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            records = {key: other.create(key, VALUE, 3600.0) for key in self.odd_keys}
            expected = {key: facts(record) for key, record in records.items()}
            assert contents(store.snapshot()) == expected
            follower.until(lambda: follower.state == expected, "all of them in the watch")
            for key, record in records.items():
                records[key] = other.renew(other.update(record, OTHER, 3600.0), 3600.0)
            assert contents(store.snapshot()) == {key: facts(record) for key, record in records.items()}
            for record in records.values():
                other.delete(record)
            assert contents(store.snapshot()) == {}
            follower.until(lambda: not follower.state, "their deletion in the watch")

    @clause("pyflannel.store.Store", "never drops a record because its text looks odd")
    @pytest.mark.parametrize("ttl", [None, 3600.0], ids=["reserved", "leased"])
    def test_odd_values_come_back(self, store: Store, opening: Opening, ttl: float | None) -> None:
        expected = {}
        with Follower(store, store.snapshot()) as follower, opening.open() as other:
            for number, value in enumerate(self.odd_values):
                record = other.create(f"10.5.{number}.0-24", value, ttl)
                if ttl is not None:
                    record = other.renew(record, 2 * ttl)
                expected[record.key] = facts(record)
                assert same_value(record.value, value), f"{record.value!r} instead of {value!r}"
            assert contents(store.snapshot()) == expected
            follower.until(lambda: follower.state == expected, "all of them in the watch")

    @clause("pyflannel.store.Record", "value is the text as stored, however long")
    def test_a_large_value_comes_back(self, store: Store) -> None:
        value = json.dumps({"BackendData": "x" * (self.largest_value - 100)}, separators=(",", ":"))
        record = store.create(KEY, value, 3600.0)
        assert same_value(record.value, value)
        assert contents(store.snapshot()) == {KEY: facts(record)}

    @clause("pyflannel.store.Store.snapshot", "all records are in it, however many there are")
    def test_a_large_cluster(self, store: Store, opening: Opening, pool: ProcessPoolExecutor) -> None:
        items = [(f"10.{number >> 8}.{number & 255}.0-24", VALUE) for number in range(self.many)]
        self.fill(pool, opening, items)
        snapshot = store.snapshot()
        assert sorted(record.key for record in snapshot.leases) == sorted(key for key, _ in items)
        assert all(same_value(record.value, VALUE) and record.permanent for record in snapshot.leases)
        with Follower(store, snapshot) as follower, opening.open() as other:
            changed = other.update(snapshot.leases[self.many // 2], OTHER, None)
            follower.until(lambda: follower.state[changed.key] == facts(changed), "the one change")
            assert [change.key for change in follower.changes] == [changed.key]


def _absent(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreAbsentError:
        return True
    return False


def ask_clock(store: Store) -> None:
    """See that a clock tells the time, or nothing, or says why not."""
    said, refusal = None, "none"
    try:
        said = store.clock()
    except StoreError as error:
        refusal = str(error)
    assert refusal, "the message says why"
    if said is None:
        return
    assert isinstance(said, StoreTime)
    assert said.source, "nobody is told whose clock it is"
    assert isinstance(said.earliest, float)
    assert said.earliest <= time.time() + CLOCK_SLACK
    if said.latest is not None:
        assert isinstance(said.latest, float)
        assert said.earliest <= said.latest
        assert said.latest >= time.time() - CLOCK_SLACK
