"""What is counted and timed, without a daemon: histograms, calls of the store, the kernel's device counters."""

from __future__ import annotations

import re
import socket
import sys
from bisect import bisect_left
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pyflannel.errors import ConflictError, StoreDeniedError, StoreError, StoreUnavailableError
from pyflannel.membership.slot import LeaseState
from pyflannel.show import measures as measuring
from pyflannel.show import metrics
from pyflannel.show.health import STUCK_AFTER
from pyflannel.show.measures import Histogram, Measures
from pyflannel.show.metrics import MissingPackageError, read_device_counters, render
from pyflannel.show.view import Details, PluginName, View, Window

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
BOUNDS = measuring._BOUNDS


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_each_duration_in_every_bucket_that_holds_it(durations: list[float]) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    ordered = sorted(durations)
    expected = [(str(bound), float(bisect_left(ordered, bound) + ordered.count(bound))) for bound in BOUNDS]
    assert histogram.buckets == [*expected, ("+Inf", float(len(durations)))]
    assert histogram.total == pytest.approx(sum(durations))


CALLS = ("snapshot", "read_config", "write_config", "create", "update", "renew", "delete", "assigned", "announce")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("error", "failed"),
    [(None, 0), (StoreUnavailableError("it rains"), 1), (StoreDeniedError("no"), 1), (ConflictError("late"), 0)],
)
def test_calls_of_the_store_are_timed_and_failures_counted(name: str, error: StoreError | None, failed: int) -> None:
    measures = Measures()
    measures.called(name, 0.5, error)
    counts = {call: histogram.buckets[-1][1] for call, histogram in measures.store_calls.items()}
    assert counts == {call: float(call == name) for call in CALLS}
    assert measures.store_calls[name].total == 0.5
    assert measures.store_failures == {call: failed * (call == name) for call in CALLS}


def test_a_copy_stands_still() -> None:
    measures = Measures()
    copied = measures.copy()
    measures.called("renew", 0.5, StoreUnavailableError("it rains"))
    measures.reconcile.observe(0.1)
    assert copied.store_calls["renew"].buckets[-1][1] == 0
    assert copied.store_failures["renew"] == 0
    assert copied.reconcile.total == 0


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


def test_the_page_has_every_metric_with_its_type_and_labels() -> None:
    links = frozenset(name for _, name in socket.if_nameindex())
    details = Details(0.0, links=links, describes={"key": "x"}, counters={"sent": 1})
    lease = LeaseState(expires_at=7.0)
    view = View(node_id="n", started=0.0, store=PluginName("file"), store_location="x", encrypts=True, details=details)
    window = Window(view, lambda: 1.0, lambda: window.answer(window.wanted, view), lambda: lease)
    families = {each.name: each for each in text_string_to_metric_families(render(window).decode())}
    told: dict[str, tuple[str, set[str]]] = {}
    for name, kind, labels in re.findall(r"^\| `(pyflannel_\w+)`[^|]*\| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE):
        told[name.removesuffix("_total")] = kind, set(re.findall(r"`(\w+)`", labels))
    devices = {name for name in families if name.startswith("pyflannel_device_")}
    assert devices == {
        f"pyflannel_device_{way}_{what}"
        for way in ("receive", "transmit")
        for what in re.findall("packets|bytes|errors|dropped", PAGE.partition("`pyflannel_device_")[2])
    }
    told |= dict.fromkeys(devices, told["pyflannel_device_receive_packets"])
    assert told.keys() == {name for name in families if not name.startswith("process_")}
    for name, (kind, labels) in told.items():
        assert families[name].type == kind, name
        assert {label for each in families[name].samples for label in each.labels} - {"le"} <= labels, name


def test_what_a_plugin_says_is_a_label_s_text_whatever_it_holds() -> None:
    odd = {"\ud800": "\udcff", "long": "x" * 10_000, "lines": "a\nb\x1b"}
    details = Details(0.0, describes=odd, counters={"\ud800": 1})
    view = View(node_id="n", started=0.0, store=PluginName("file"), store_location="x", details=details)
    window = Window(view, lambda: 1.0, lambda: window.answer(window.wanted, view), LeaseState)
    families = {each.name: each for each in text_string_to_metric_families(render(window).decode())}
    labels = {each.labels["detail"]: each.labels["value"] for each in families["pyflannel_backend_info"].samples}
    assert labels == {"\\ud800": "\\udcff", "long": f"{'x' * 200}... (10000 characters)", "lines": "a\\nb\\x1b"}
    assert [each.labels for each in families["pyflannel_data_plane"].samples] == [{"counter": "\\ud800"}]


def test_the_times_of_the_page_are_those_of_the_code() -> None:
    assert f"with buckets from {BOUNDS[0] * 1000:g} ms to {BOUNDS[-1]:g} s" in PAGE
    assert f"`/livez` fails at {STUCK_AFTER:g}" in PAGE


def test_without_prometheus_client_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'pyflannel\[metrics\]'"):
        render(object())  # type: ignore[arg-type]
