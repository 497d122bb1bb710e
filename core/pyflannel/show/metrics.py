"""How Prometheus reads what the daemon knows of itself.

The text is made from a view when somebody scrapes, with prometheus-client, which is an extra and imported then. All
names and meanings are in ``docs/metrics.md``.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyflannel.errors import PyflannelError
from pyflannel.show.document import object_counts, peer_states
from pyflannel.show.measures import Histogram
from pyflannel.show.readiness import readiness, summary
from pyflannel.show.status import PeerState, State
from pyflannel.show.view import Details, View, Window
from pyflannel.small.text import cut, inert
from pyflannel.version import VERSION

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["CONTENT_TYPE", "MissingPackageError", "read_device_counters", "render"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_DEVICE_COLUMNS: Final = {
    first + column: (direction, what)
    for first, direction in ((0, "receive"), (8, "transmit"))
    for column, what in enumerate(("bytes", "packets", "errors", "dropped"))
}


class MissingPackageError(PyflannelError):
    """prometheus-client is not installed."""


def render(window: Window) -> bytes:
    """All metrics in Prometheus' text format.

    :raises MissingPackageError: prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import generate_latest
        from prometheus_client.registry import Collector
    except ModuleNotFoundError:
        raise MissingPackageError(
            "metrics need the package prometheus-client: pip install 'pyflannel[metrics]'"
        ) from None

    class OurCollector(Collector):
        def collect(self) -> Iterator[Metric]:
            return _collect(window)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(OurCollector())
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _collect(window: Window) -> Iterator[Metric]:
    view = window.detailed()
    now, details = window.clock(), view.details or Details(window.clock())
    yield from _summary(view, details, now, window.beat)
    yield from _peers_and_objects(details)
    yield from _work(view, details)
    yield from _data_plane(details)


def _gauge(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]], kind: str = "gauge") -> Metric:
    from prometheus_client.core import Metric

    metric = Metric(f"pyflannel_{name}", text, kind)
    for labels, value in samples:
        metric.add_sample(f"pyflannel_{name}{'_total' if kind == 'counter' else ''}", _shown(labels), value)
    return metric


def _shown(labels: Mapping[str, str]) -> dict[str, str]:
    """Some of them a plugin has written, and what is no UTF-8 would keep all metrics from being read."""
    return {name: inert(cut(text)) for name, text in labels.items()}


def _counter(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Metric:
    return _gauge(name, text, samples, "counter")


def _histogram(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], Histogram]]) -> Metric:
    from prometheus_client.core import Metric

    metric = Metric(f"pyflannel_{name}", text, "histogram")
    for labels, histogram in samples:
        buckets = histogram.buckets
        for bound, count in buckets:
            metric.add_sample(f"pyflannel_{name}_bucket", {**labels, "le": bound}, count)
        metric.add_sample(f"pyflannel_{name}_count", dict(labels), buckets[-1][1])
        metric.add_sample(f"pyflannel_{name}_sum", dict(labels), histogram.total)
    return metric


def _summary(view: View, details: Details, now: float, beat: float) -> Iterator[Metric]:
    ready, state = readiness(view, now)[0], summary(view, now)[0]
    build = {
        "version": VERSION,
        "python": platform.python_version(),
        "backend": view.backend.name if view.backend is not None else "",
        "store": view.store.name,
    }
    yield _gauge("build_info", "Always 1; the labels tell what runs.", [(build, 1)])
    described = [({"detail": name, "value": text}, 1) for name, text in details.describes.items()]
    if described:
        yield _gauge("backend_info", "Always 1; what the backend tells of itself.", described)
    yield _gauge("ready", "Whether containers can use the overlay (1) or not (0).", [({}, ready)])
    yield _gauge("state", "1 for the daemon's state, else 0.", [({"state": s.value}, s is state) for s in State])
    yield _gauge("start_time_seconds", "When the daemon started, in Unix time.", [({}, view.started)])
    yield _gauge("loop_age_seconds", "Since the loop's last sign of life.", [({}, now - beat)])
    yield _gauge("store_connected", "Whether the last call of the store went well.", [({}, view.lease.connected)])
    text = "Whether another machine has this one's node id, as a copy and its original have."
    yield _gauge("node_id_shared", text, [({}, bool(view.lease.twin))])
    expires_at = view.lease.expires_at
    yield _gauge(
        "lease_expiry_seconds",
        "Until the lease expires; none without a lease, or with a reservation.",
        [({}, expires_at - now)] if expires_at is not None else [],
    )


def _peers_and_objects(details: Details) -> Iterator[Metric]:
    states = Counter(peer_states(details))
    yield _gauge("peers", "Leases of other nodes, by state.", [({"state": s.value}, states[s]) for s in PeerState])
    yield _gauge(
        "objects",
        "Kernel objects that this node should have, by kind and state.",
        [({"kind": kind, "state": state}, count) for (kind, state), count in object_counts(details).items()],
    )


def _work(view: View, details: Details) -> Iterator[Metric]:
    measures = details.measures
    yield _histogram(
        "reconcile_duration_seconds", "Reconciliations that had something to write.", [({}, measures.reconcile)]
    )
    calls = [({"call": name}, histogram) for name, histogram in measures.store_calls.items()]
    yield _histogram("store_call_duration_seconds", "Calls of the store, whatever came of them.", calls)
    failures = [({"call": name}, count) for name, count in measures.store_failures.items()]
    yield _counter("store_call_failures", "Calls of the store that got no answer, or were denied.", failures)
    yield _counter("kernel_writes", "Kernel objects written or deleted.", [({}, measures.written)])
    yield _counter("kernel_refusals", "Writes that the kernel refused.", [({}, measures.refused)])
    yield _counter("drift_repaired", "Objects that others had changed and that were put right.", [({}, view.repaired)])
    text = "Routes, IPsec policies and policy rules of others that divert the overlay's packets."
    yield _gauge("diversions", text, [({}, len(view.diversions))])
    text = "Whether packets to the overlay that would leave unencrypted are dropped; none if nothing is encrypted."
    yield _gauge("exits_guarded", text, [({}, view.guarded)] if view.encrypts else [])
    firewall = view.firewall
    yield _gauge("firewall_in_place", "Whether our firewall rules are as they should be.", [({}, firewall.in_place)])
    text = "How often firewall rules were rewritten after others had changed the firewall."
    yield _counter("firewall_repaired", text, [({}, firewall.repaired)])
    yield _counter("reloads", "Reloads of the settings (SIGHUP).", [({}, measures.reloads)])


def _data_plane(details: Details) -> Iterator[Metric]:
    if details.counters:
        samples = [({"counter": name}, count) for name, count in details.counters.items()]
        yield _counter("data_plane", "The backend's own counters.", samples)
    text = Path("/proc/net/dev").read_text(encoding="utf-8", errors="surrogateescape")  # a name may be any bytes
    devices = read_device_counters(text, details.links)
    for column, (direction, what) in _DEVICE_COLUMNS.items():
        yield _counter(
            f"device_{direction}_{what}",
            f"What the kernel counts for the overlay's device: {direction}, {what}.",
            [({"device": name}, numbers[column]) for name, numbers in sorted(devices.items())],
        )


def read_device_counters(text: str, names: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of ``/proc/net/dev`` (``proc_pid_net(5)``) for the devices ``names``, in the file's order."""
    rows = (line.rpartition(":") for line in text.splitlines()[2:])
    return {name.strip(): [int(word) for word in rest.split()] for name, _, rest in rows if name.strip() in names}
