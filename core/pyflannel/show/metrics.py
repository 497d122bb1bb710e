"""What the daemon counts and times about itself, and how Prometheus reads it.

Counting is separate from telling: :class:`Measures` are a few numbers that the loop and the lease keeper bump, and cost
nothing to have. The text is made when somebody scrapes, with prometheus-client, which is an extra and imported then.
All names and meanings are in ``docs/metrics.md``.
"""

from __future__ import annotations

import platform
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pyflannel.errors import PyflannelError, StoreDeniedError, StoreUnavailableError
from pyflannel.show.standing import backend_details, object_counts, peer_states, readiness, standing
from pyflannel.show.status import PeerState, State
from pyflannel.store import Record, Snapshot, Store, Watch
from pyflannel.version import VERSION

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from pyflannel.daemon.loop import Agent

__all__ = [
    "CONTENT_TYPE",
    "Histogram",
    "Measures",
    "MeteredStore",
    "MissingPackageError",
    "read_device_counters",
    "render",
]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets, in seconds: from one changed lease to a cold start with thousands."""

_CALLS: Final = ("snapshot", "read_config", "write_config", "create", "update", "renew", "delete")

_DEVICE_COLUMNS: Final = {
    first + column: (direction, what)
    for first, direction in ((0, "receive"), (8, "transmit"))
    for column, what in enumerate(("bytes", "packets", "errors", "dropped"))
}

T = TypeVar("T")


class MissingPackageError(PyflannelError):
    """prometheus-client is not installed."""


class Histogram:
    """Durations in buckets. Written by one thread, readable by any."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound, as Prometheus writes it, to how many durations were not longer."""
        result, count = [], 0
        for bound, added in zip((*map(str, _BOUNDS), "+Inf"), list(self._counts), strict=True):
            count += added
            result.append((bound, float(count)))
        return result


@dataclass(slots=True)
class Measures:
    """The daemon's own numbers, since it started."""

    reconcile: Histogram = field(default_factory=Histogram)
    """Reconciliations that had something to write."""
    written: int = 0
    refused: int = 0
    reloads: int = 0
    store_calls: Mapping[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in _CALLS})
    store_failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_CALLS, 0))


class MeteredStore(Store):
    """A store whose calls are timed; otherwise it is the store it wraps."""

    def __init__(self, inner: Store, measures: Measures) -> None:
        self.location = inner.location
        self._inner, self._measures = inner, measures

    def _timed(self, name: str, call: Callable[[], T]) -> T:
        begin = time.monotonic()
        try:
            return call()
        except (StoreUnavailableError, StoreDeniedError):
            self._measures.store_failures[name] += 1
            raise
        finally:
            self._measures.store_calls[name].observe(time.monotonic() - begin)

    def read_config(self) -> Record | None:
        """As the wrapped store's."""
        return self._timed("read_config", self._inner.read_config)

    def write_config(self, value: str, expected: Record | None) -> Record:
        """As the wrapped store's."""
        return self._timed("write_config", lambda: self._inner.write_config(value, expected))

    def snapshot(self) -> Snapshot:
        """As the wrapped store's."""
        return self._timed("snapshot", self._inner.snapshot)

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        """As the wrapped store's."""
        return self._timed("create", lambda: self._inner.create(key, value, ttl))

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        """As the wrapped store's."""
        return self._timed("update", lambda: self._inner.update(record, value, ttl))

    def renew(self, record: Record, ttl: float) -> Record:
        """As the wrapped store's."""
        return self._timed("renew", lambda: self._inner.renew(record, ttl))

    def delete(self, record: Record) -> None:
        """As the wrapped store's."""
        self._timed("delete", lambda: self._inner.delete(record))

    def watch(self, revision: str) -> Watch:
        """As the wrapped store's; a stream has no duration."""
        return self._inner.watch(revision)

    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        """As the wrapped store's."""
        return self._inner.time_to_live(records)

    def close(self) -> None:
        """As the wrapped store's."""
        self._inner.close()


def render(agent: Agent) -> bytes:
    """All metrics in Prometheus' text format.

    :raises MissingPackageError: prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import generate_latest
        from prometheus_client.registry import Collector
    except ImportError:
        raise MissingPackageError(
            "metrics need the package prometheus-client: pip install 'pyflannel[metrics]'"
        ) from None

    class OurCollector(Collector):
        def collect(self) -> Iterator[Metric]:
            return _collect(agent)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(OurCollector())
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _collect(agent: Agent) -> Iterator[Metric]:
    yield from _standing(agent)
    yield from _peers_and_objects(agent)
    yield from _work(agent)
    yield from _data_plane(agent)


def _gauge(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]], kind: str = "gauge") -> Metric:
    from prometheus_client.core import Metric

    metric = Metric(f"pyflannel_{name}", text, kind)
    for labels, value in samples:
        metric.add_sample(f"pyflannel_{name}{'_total' if kind == 'counter' else ''}", dict(labels), value)
    return metric


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


def _standing(agent: Agent) -> Iterator[Metric]:
    ready, state = readiness(agent)[0], standing(agent)[0]
    keeper, member = agent.keeper.state, agent.membership
    build = {
        "version": VERSION,
        "python": platform.python_version(),
        "backend": member.backend.name if member is not None else "",
        "store": agent.store.location.scheme,
    }
    yield _gauge("build_info", "Always 1; the labels tell what runs.", [(build, 1)])
    details = [({"detail": name, "value": text}, 1) for name, text in backend_details(agent).items()]
    if details:
        yield _gauge("backend_info", "Always 1; what the backend tells of itself.", details)
    yield _gauge("ready", "Whether containers can use the overlay (1) or not (0).", [({}, ready)])
    yield _gauge("state", "1 for the daemon's state, else 0.", [({"state": s.value}, s is state) for s in State])
    yield _gauge("start_time_seconds", "When the daemon started, in Unix time.", [({}, agent.started)])
    yield _gauge("loop_age_seconds", "Since the loop's last turn.", [({}, agent.clock() - agent.beat)])
    yield _gauge("store_connected", "Whether the last call of the store went well.", [({}, not keeper.trouble)])
    expires_at = keeper.expires_at
    yield _gauge(
        "lease_expiry_seconds",
        "Until the lease expires; none without a lease, or with a reservation.",
        [({}, expires_at - agent.clock())] if expires_at is not None else [],
    )


def _peers_and_objects(agent: Agent) -> Iterator[Metric]:
    tracked = list(agent.tracker.status())
    states = Counter(peer_states(agent, tracked))
    yield _gauge("peers", "Leases of other nodes, by state.", [({"state": s.value}, states[s]) for s in PeerState])
    yield _gauge(
        "objects",
        "Kernel objects that this node should have, by kind and state.",
        [({"kind": kind, "state": state}, count) for (kind, state), count in object_counts(tracked).items()],
    )


def _work(agent: Agent) -> Iterator[Metric]:
    measures = agent.measures
    yield _histogram(
        "reconcile_duration_seconds", "Reconciliations that had something to write.", [({}, measures.reconcile)]
    )
    calls = [({"call": name}, histogram) for name, histogram in measures.store_calls.items()]
    yield _histogram("store_call_duration_seconds", "Calls of the store, whatever came of them.", calls)
    failures = [({"call": name}, count) for name, count in measures.store_failures.items()]
    yield _counter("store_call_failures", "Calls of the store that got no answer, or were denied.", failures)
    yield _counter("kernel_writes", "Kernel objects written or deleted.", [({}, measures.written)])
    yield _counter("kernel_refusals", "Writes that the kernel refused.", [({}, measures.refused)])
    yield _counter("drift_repaired", "Objects that others had changed and that were put right.", [({}, agent.repaired)])
    firewall = agent.firewall.state
    yield _gauge("firewall_in_place", "Whether our firewall rules are as they should be.", [({}, firewall.in_place)])
    text = "How often firewall rules were written anew after others had changed the firewall."
    yield _counter("firewall_repaired", text, [({}, firewall.repaired)])
    yield _counter("reloads", "Reloads of the settings (SIGHUP).", [({}, measures.reloads)])


def _data_plane(agent: Agent) -> Iterator[Metric]:
    member = agent.membership
    if member is not None and (counters := member.feed.counters()):
        yield _counter(
            "data_plane", "The backend's own counters.", [({"counter": name}, n) for name, n in counters.items()]
        )
    devices = read_device_counters(Path("/proc/net/dev").read_text(encoding="ascii"), agent.tracker.link_names)
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
