"""What is counted and timed, without a daemon: histograms, the store that is timed, the kernel's device counters."""

from __future__ import annotations

import sys
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import ConflictError, StoreDeniedError, StoreError, StoreUnavailableError
from pyflannel.show import metrics
from pyflannel.show.metrics import Histogram, Measures, MeteredStore, MissingPackageError, read_device_counters, render
from pyflannel.store import Record, Snapshot, Store, StoreLocation, Watch

BOUNDS = metrics._BOUNDS


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_each_duration_in_every_bucket_that_holds_it(durations: list[float]) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    ordered = sorted(durations)
    expected = [(str(bound), float(bisect_left(ordered, bound) + ordered.count(bound))) for bound in BOUNDS]
    assert histogram.buckets == [*expected, ("+Inf", float(len(durations)))]
    assert histogram.total == pytest.approx(sum(durations))


RECORD = Record("10.1.1.0-24", "{}", "1")


class Answering(Store):
    """A store that answers every call with itself as proof of the arguments, or fails with ``error``."""

    scheme = "answering"

    def __init__(self, error: StoreError | None = None) -> None:
        super().__init__(StoreLocation("answering"))
        self.error = error
        self.closed = False

    def _answer(self, *arguments: object) -> Record:
        if self.error is not None:
            raise self.error
        return Record(repr(arguments), "", "1")

    def read_config(self) -> Record | None:
        return self._answer("read_config")

    def write_config(self, value: str, expected: Record | None) -> Record:
        return self._answer("write_config", value, expected)

    def snapshot(self) -> Snapshot:
        return Snapshot("7", self._answer("snapshot"), ())

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        return self._answer("create", key, value, ttl)

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        return self._answer("update", record, value, ttl)

    def renew(self, record: Record, ttl: float) -> Record:
        return self._answer("renew", record, ttl)

    def delete(self, record: Record) -> None:
        self._answer("delete", record)

    def watch(self, revision: str) -> Watch:
        raise NotImplementedError(revision)

    def close(self) -> None:
        self.closed = True


CALLS = {
    "read_config": lambda store: store.read_config(),
    "write_config": lambda store: store.write_config("{}", RECORD),
    "snapshot": lambda store: store.snapshot(),
    "create": lambda store: store.create("k", "v", 5.0),
    "update": lambda store: store.update(RECORD, "v", None),
    "renew": lambda store: store.renew(RECORD, 9.0),
    "delete": lambda store: store.delete(RECORD),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_call_is_passed_on_and_timed(name: str) -> None:
    measures = Measures()
    assert CALLS[name](MeteredStore(Answering(), measures)) == CALLS[name](Answering())
    counts = {call: histogram.buckets[-1][1] for call, histogram in measures.store_calls.items()}
    assert counts == {call: float(call == name) for call in CALLS}
    assert not any(measures.store_failures.values())


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("kind", "counted"), [(StoreUnavailableError, 1), (StoreDeniedError, 1), (ConflictError, 0)])
def test_failures_are_counted_and_passed_on(name: str, kind: type[StoreError], counted: int) -> None:
    measures = Measures()
    with pytest.raises(kind, match="it rains"):
        CALLS[name](MeteredStore(Answering(kind("it rains")), measures))
    assert measures.store_failures[name] == counted
    assert measures.store_calls[name].buckets[-1][1] == 1


def test_the_rest_is_the_wrapped_store_s() -> None:
    inner = Answering()
    store = MeteredStore(inner, Measures())
    assert str(store.location) == "answering://"
    assert store.time_to_live([RECORD]) == {RECORD.key: None}
    with pytest.raises(NotImplementedError, match="7"):
        store.watch("7")
    store.close()
    assert inner.closed


def test_device_counters_are_read_by_name() -> None:
    text = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls\n"
        "    lo:  100       1    0    0    0     0          0         0      100       1    0    0    0     0       0\n"
        "flannel.1:  84  2    3    4    0     0          0         0     168       5    6    7    0     0       0\n"
        "eth0:1:   1       1    1    1    1     1          1         1        1       1    1    1    1     1       1\n"
    )
    assert read_device_counters(text, {"flannel.1", "flannel-v6.1"}) == {
        "flannel.1": [84, 2, 3, 4, 0, 0, 0, 0, 168, 5, 6, 7, 0, 0, 0]
    }
    assert metrics._DEVICE_COLUMNS[0] == ("receive", "bytes")
    assert metrics._DEVICE_COLUMNS[11] == ("transmit", "dropped")


def test_without_prometheus_client_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'pyflannel\[metrics\]'"):
        render(object())  # type: ignore[arg-type]
