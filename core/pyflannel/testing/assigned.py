"""The conformance kit for stores that assign subnets themselves (``Store.assigns_subnets``), checked on a live store.

Such a store is shared by nodes, each with a driver of its own that may write one record. Subclass, name the driver, and
say how a node and its subnets come about; the rest is as in :mod:`pyflannel.testing.stores`::

    class TestMyStore(AssigningStoreConformance):
        store_class = MyStore

        def open_for(self, node):
            return MyStore(StoreLocation.parse(f"mystore://127.0.0.1:{port}?node={node}"))

        def write_document(self, text): ...
        def add(self, node): ...
        def assign(self, node, key): ...
        def remove(self, node): ...
"""

# A test's name is its docstring:
# ruff: noqa: D102

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from pyflannel.errors import ConflictError, HistoryGoneError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import API_VERSION, CALL_TIMEOUT, CONFIG_KEY, Record, Store, Unassigned
from pyflannel.testing.stores import CONFIG, OTHER, VALUE, Follower, contents, eventually, same_value

__all__ = ["AssigningStoreConformance"]

V4, SMALL, V6, BOTH = "10.5.0.0-24", "10.5.1.128-25", "fd00:10:5:1::-64", "10.5.2.0-24&fd00:10:5:2::-64"


class AssigningStoreConformance:
    """The tests. Set the class attribute and override the methods; those that only skip may stay."""

    store_class: ClassVar[type[Store]]
    """The driver."""

    # what a subclass provides

    def open_for(self, node: str) -> Store:
        """The driver as ``node`` opens it; on a place that is empty at the beginning of a test."""
        raise NotImplementedError(f"{type(self).__name__} must override open_for(); see {__name__}")

    def write_document(self, text: str) -> None:
        """Make ``text`` the network document, in whatever way an operator does."""
        raise NotImplementedError(f"{type(self).__name__} must override write_document(); see {__name__}")

    def add(self, node: str) -> None:
        """Make a node that has no subnets yet."""
        raise NotImplementedError(f"{type(self).__name__} must override add(); see {__name__}")

    def assign(self, node: str, key: str) -> None:
        """Give a node the subnets that ``key`` names."""
        raise NotImplementedError(f"{type(self).__name__} must override assign(); see {__name__}")

    def remove(self, node: str) -> None:
        """Take a node away, with all that it has."""
        raise NotImplementedError(f"{type(self).__name__} must override remove(); see {__name__}")

    def touch(self, node: str) -> None:
        """Change something of a node that does not concern its lease."""
        pytest.skip(f"{type(self).__name__} has no touch(): changes that are none are not tested")

    def ready(self, node: str) -> bool | None:
        """What is told of a node's readiness; ``None``: nothing."""
        pytest.skip(f"{type(self).__name__} has no ready(): announcements are not tested")

    def stop_server(self) -> None:
        """Make the server unreachable, keeping its data."""
        pytest.skip(f"{type(self).__name__} has no stop_server(): outages are not tested")

    def start_server(self) -> None:
        """Make it reachable again."""
        pytest.skip(f"{type(self).__name__} has no start_server(): outages are not tested")

    # what the tests use

    @pytest.fixture
    def opened(self) -> Iterator[Callable[[str], Store]]:
        """Open the store as a node; closed afterwards."""
        self.write_document(CONFIG)
        stores: list[Store] = []

        def open_one(node: str) -> Store:
            stores.append(self.open_for(node))
            return stores[-1]

        yield open_one
        for store in stores:
            store.close()

    @staticmethod
    def own(store: Store, key: str = V4, families: tuple[int, ...] = (4,)) -> Record:
        """The record that the store has assigned to its node: of the key that is expected."""
        record = store.assigned(families)
        assert isinstance(record, Record), record
        assert record.key == key
        return record

    def joined(self, store: Store, node: str, key: str, value: str = VALUE) -> Record:
        """A node that has subnets and says how it is reached."""
        self.add(node)
        self.assign(node, key)
        return store.update(self.own(store, key, ()), value, None)

    # the driver's face

    def test_the_driver_says_that_it_assigns(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        assert store.api_version == API_VERSION
        assert store.assigns_subnets

    def test_what_only_the_store_decides_is_refused(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        record = self.joined(store, "a", V4)
        with pytest.raises(StoreDeniedError):
            store.create("10.5.9.0-24", VALUE, 3600.0)
        with pytest.raises(StoreDeniedError):
            store.delete(record)

    # the document

    def test_the_document_is_read_and_followed(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        snapshot = store.snapshot()
        assert snapshot.config == store.read_config()
        assert snapshot.config is not None
        assert same_value(snapshot.config.value, CONFIG)
        with Follower(store, snapshot) as follower:
            self.write_document(CONFIG.replace("vxlan", "host-gw"))
            follower.until(lambda: "host-gw" in follower.state[CONFIG_KEY][0], "the changed document")

    # being assigned

    def test_a_node_without_subnets_is_told_why(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        for _ in range(2):  # before there is such a node, and after
            said = store.assigned((4,))
            assert isinstance(said, Unassigned)
            assert said.reason
            assert store.snapshot().leases == ()
            if _ == 0:
                self.add("a")
        self.assign("a", V4)
        assert self.own(store).permanent

    @pytest.mark.parametrize("key", [V4, SMALL, V6, BOTH])
    def test_subnets_of_any_length_and_family_are_told(self, opened: Callable[[str], Store], key: str) -> None:
        store = opened("a")
        self.add("a")
        self.assign("a", key)
        families = (*((4,) if "." in key else ()), *((6,) if ":" in key else ()))
        assert self.own(store, key, families).key == key

    @pytest.mark.parametrize(("key", "missing"), [(V4, 6), (V6, 4)])
    def test_a_family_that_lacks_is_named(self, opened: Callable[[str], Store], key: str, missing: int) -> None:
        store = opened("a")
        self.add("a")
        self.assign("a", key)
        said = store.assigned((4, 6))
        assert isinstance(said, Unassigned)
        assert f"IPv{missing}" in said.reason

    # saying how one is reached

    def test_what_a_node_says_is_there_for_others(self, opened: Callable[[str], Store]) -> None:
        one, other = opened("a"), opened("b")
        record = self.joined(one, "a", V4)
        assert same_value(record.value, VALUE)
        found = contents(other.snapshot())
        assert found.keys() == {V4, CONFIG_KEY}
        assert same_value(found[V4][0], VALUE)
        assert self.own(one) == record
        assert one.renew(record, 60.0) == record

    def test_what_was_not_asked_for_is_not_there(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        self.add("a")
        self.assign("a", V4)
        assert store.snapshot().leases == ()

    def test_a_change_by_another_is_a_conflict(self, opened: Callable[[str], Store]) -> None:
        one, twin = opened("a"), opened("a")
        first = self.joined(one, "a", V4)
        second = twin.update(self.own(twin), OTHER, None)
        assert second.version != first.version
        with pytest.raises(ConflictError):
            one.update(first, VALUE.replace("192.0.2.1", "192.0.2.3"), None)
        assert same_value(self.own(one).value, OTHER)

    def test_writing_what_is_there_already_is_no_conflict(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        first = self.joined(store, "a", V4)
        store.update(first, OTHER, None)
        again = store.update(first, OTHER, None)  # the answer to the first had got lost
        assert same_value(again.value, OTHER)

    def test_a_node_made_anew_is_another_one(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        first = self.joined(store, "a", V4)
        self.remove("a")
        with pytest.raises(ConflictError):
            store.update(first, OTHER, None)
        self.add("a")
        self.assign("a", V4)
        with pytest.raises(ConflictError):
            store.update(first, OTHER, None)
        assert store.snapshot().leases == ()

    def test_another_nodes_record_is_not_ours_to_write(self, opened: Callable[[str], Store]) -> None:
        one, other = opened("a"), opened("b")
        theirs = self.joined(one, "a", V4)
        self.joined(other, "b", SMALL)
        with pytest.raises(StoreDeniedError):
            other.update(theirs, OTHER, None)

    # announcing

    def test_readiness_is_announced_and_seen_to(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        record = self.joined(store, "a", V4)
        for said in (True, True, False, True):
            store.announce(said)
            assert self.ready("a") is said
            assert store.announced() in (said, None), "what is told is what was announced"
        assert same_value(store.renew(record, 60.0).value, VALUE)

    # the watch

    def test_changes_are_seen_and_touches_are_not(self, opened: Callable[[str], Store]) -> None:
        one, other, watcher = opened("a"), opened("b"), opened("c")
        self.joined(one, "a", V4)
        with Follower(watcher, watcher.snapshot()) as follower:
            self.touch("a")
            second = self.joined(other, "b", BOTH)
            follower.until(lambda: BOTH in follower.state, "the new lease")
            assert [change.key for change in follower.changes] == [BOTH]
            second = other.update(second, OTHER, None)
            follower.until(lambda: same_value(follower.state[BOTH][0], OTHER), "the changed lease")
            self.remove("b")
            follower.until(lambda: BOTH not in follower.state, "the deletion")
            assert follower.state == contents(watcher.snapshot())

    def test_subnets_that_come_late_are_seen(self, opened: Callable[[str], Store]) -> None:
        one, watcher = opened("a"), opened("b")
        self.add("a")
        with Follower(watcher, watcher.snapshot()) as follower:
            self.assign("a", V4)
            one.update(self.own(one), VALUE, None)
            follower.until(lambda: V4 in follower.state, "the lease")

    def test_a_watch_resumes_from_a_revision(self, opened: Callable[[str], Store]) -> None:
        one, other, watcher = opened("a"), opened("b"), opened("c")
        first = self.joined(one, "a", V4)
        with Follower(watcher, watcher.snapshot()) as follower:
            self.joined(other, "b", SMALL)
            follower.until(lambda: SMALL in follower.state, "the second lease")
        one.update(first, OTHER, None)
        self.remove("b")
        for _ in range(2):
            with watcher.watch(follower.revision) as watch:
                state = dict(follower.state)
                while V4 not in state or not same_value(state[V4][0], OTHER) or SMALL in state:
                    for change in next(watch).changes:
                        if change.record is None:
                            del state[change.key]
                        else:
                            state[change.key] = (change.record.value, change.record.version, True)

    def test_an_unknown_revision_is_refused(self, opened: Callable[[str], Store]) -> None:
        with opened("a").watch("1") as watch, pytest.raises(HistoryGoneError):
            next(watch)

    def test_two_nodes_with_one_subnet_are_one_lease(self, opened: Callable[[str], Store]) -> None:
        one, other = opened("a"), opened("b")
        ours = self.joined(other, "b", V4, OTHER)
        with Follower(other, other.snapshot()) as follower:
            self.joined(one, "a", V4)
            self.joined(opened("c"), "c", SMALL)
            follower.until(lambda: SMALL in follower.state, "a later lease")
            assert follower.state[V4][0] == ours.value  # a node's own comes before another's
            assert V4 in contents(one.snapshot())
            self.remove("b")
            follower.until(lambda: same_value(follower.state[V4][0], VALUE), "the other's")

    def test_close_ends_a_waiting_watch(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        follower = Follower(store, store.snapshot())
        self.joined(opened("b"), "b", V4)
        follower.until(lambda: V4 in follower.state, "a lease")
        follower.close()
        assert follower.error is None

    # outages

    def test_an_outage_is_said_and_survived(self, opened: Callable[[str], Store]) -> None:
        store = opened("a")
        record = self.joined(store, "a", V4)
        with Follower(store, store.snapshot()) as follower:
            self.stop_server()
            try:
                calls: tuple[Callable[[], object], ...] = (
                    store.read_config,
                    store.snapshot,
                    lambda: store.assigned((4,)),
                    lambda: store.update(record, OTHER, None),
                    lambda: store.announce(True),
                )
                for call in calls:
                    began = time.monotonic()
                    with pytest.raises(StoreUnavailableError):
                        call()
                    assert time.monotonic() - began < 2 * CALL_TIMEOUT, "the contract allows CALL_TIMEOUT"
            finally:
                self.start_server()

            def answers() -> bool:
                try:
                    return V4 in contents(store.snapshot())
                except StoreUnavailableError:
                    return False

            eventually(answers, "the store answers again")
            self.joined(opened("b"), "b", SMALL)
            follower.until(lambda: SMALL in follower.state, "a lease after the outage")
