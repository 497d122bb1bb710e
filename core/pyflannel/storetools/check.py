"""What is wrong with a store, found from outside and without harm.

Two halves: :func:`examine` judges what a store holds, with the rules that the daemon applies to its peers and without
any call; :func:`check` asks the servers, each on its own, and measures. Every finding comes with what to do about it.

Nothing is written unless asked for. The record that tries the right to write has a key that is no subnet, so no node
takes it for a lease, and lives for :data:`PROBE_TTL` seconds should we be killed before it is deleted again.
"""

from __future__ import annotations

import secrets
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from pyflannel.backend import parse_options
from pyflannel.errors import ConfigError, HistoryGoneError, MalformedError, PluginError, StoreError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import DEFAULT_MARGIN, JSON, Lease
from pyflannel.network.ranges import Ranges
from pyflannel.planning.guard import not_carried
from pyflannel.planning.judging import backend_types, placement_problem, type_problem
from pyflannel.plugins import load_backend, open_store
from pyflannel.store import Record, Snapshot, Store, StoreLocation, Watch
from pyflannel.storetools.change import renewal_margin

__all__ = ["Inspection", "Problem", "ServerAnswer", "Severity", "check", "examine"]

PROBE_TTL: Final = 10.0
"""Seconds that the record lives which tries the right to write; the least that every store grants."""

SOON: Final = 1 / 4
"""Of the time before its end at which a lease is renewed, an hour as a rule: one that is nearer to its end than this is
probably not."""

_ROUNDS: Final = 5
_WATCH_WAIT: Final = 10.0
_QUIET: Final = 0.5
"""Seconds in which a watch that may not be opened says so."""


class Severity(Enum):
    """``ERROR``: some node can't work as it should. ``WARNING``: somebody should look at it."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what, and what to do. ``key`` is the lease's, if it is about one."""

    severity: Severity
    what: str
    fix: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """One server: ``seconds`` of its answer, or the ``error``."""

    name: str
    seconds: float = 0.0
    error: str = ""


@dataclass(slots=True)
class Inspection:
    """All that was found. ``latencies``: call to least, median and most seconds. ``ends_first`` is in seconds."""

    store: str
    endpoints: list[ServerAnswer] = field(default_factory=list)
    latencies: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    leases: int = 0
    reservations: int = 0
    ends_first: float | None = None
    findings: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    def to_json(self) -> JSON:
        """For ``--json``; times in milliseconds and seconds."""
        names = ("min", "median", "max")
        return {
            "ok": self.ok,
            "store": self.store,
            "endpoints": [
                {
                    "endpoint": each.name,
                    "milliseconds": None if each.error else round(each.seconds * 1000, 3),
                    "error": each.error or None,
                }
                for each in self.endpoints
            ],
            "milliseconds": {
                call: {name: round(1000 * value, 3) for name, value in zip(names, values, strict=True)}
                for call, values in self.latencies.items()
            },
            "leases": self.leases,
            "reservations": self.reservations,
            "first_expires_in": self.ends_first,
            "findings": [
                {"level": each.severity.value, "key": each.key or None, "what": each.what, "fix": each.fix}
                for each in self.findings
            ],
        }


# What a store holds


def examine(
    snapshot: Snapshot, expiries: Mapping[str, float | None] | None = None, assigned: bool = False
) -> Iterator[Problem]:
    """Judge what a store holds.

    :param expiries: the seconds that leases still live, by key, where the store tells exactly.
    """
    network = None
    if snapshot.config is None:
        yield Problem(Severity.ERROR, "there is no network config", "write one: pyflannel config set FILE")
    else:
        network, found = _examine_document(snapshot.config.value, snapshot.leases)
        yield from found
    leases: dict[str, Lease] = {}
    for record in snapshot.leases:
        try:
            leases[record.key] = Lease.from_record(record.key, record.value)
        except MalformedError as error:
            yield Problem(
                Severity.WARNING,
                f"{record.key}: {error}",
                "nodes skip it; delete it, or correct it if it should be a lease",
                record.key,
            )
    if network is not None:
        yield from _examine_leases(network, leases, assigned)
    yield from _overlaps(leases)
    yield from _twins(leases)
    margins = {record.key: renewal_margin(record, DEFAULT_MARGIN) for record in snapshot.leases}
    for key, seconds in sorted((expiries or {}).items()):
        if seconds is not None and seconds < SOON * margins.get(key, DEFAULT_MARGIN):
            yield Problem(
                Severity.WARNING,
                f"{key} ends in {seconds:.0f} s and was not renewed",
                "see whether its node runs and reaches the store; if it is gone for good, nothing is to be done",
                key,
            )


def _examine_document(text: str, leases: Sequence[Record]) -> tuple[NetworkConfig | None, list[Problem]]:
    try:
        network = NetworkConfig.from_json(text)
        if network.assumption:
            network = network.following(backend_types(leases))
    except ConfigError as error:
        return None, [Problem(Severity.ERROR, str(error), "correct the document: pyflannel config set FILE")]
    unknown, found = list(network.unknown_keys), []
    if network.assumption:
        fix = "write it down, with pyflannel config set FILE"
        found.append(Problem(Severity.WARNING, network.assumption, fix))
    try:
        backend = load_backend(network.backend_type)
        unknown += [f"Backend.{key}" for key in parse_options(backend.Options, network.backend_options)[1]]
        reason = not_carried(backend, network)
        if reason:
            found.append(Problem(Severity.ERROR, reason, "correct the document: pyflannel config set FILE"))
    except PluginError as error:
        fix = "install it on every node; its options and leases are not checked here"
        found.append(Problem(Severity.WARNING, f"backend {network.backend_type!r} can't be loaded here: {error}", fix))
    except ConfigError as error:
        found.append(Problem(Severity.ERROR, str(error), "correct the document: pyflannel config set FILE"))
    for key in unknown:
        fix = "see whether it is a typo; a newer flannel may know it"
        found.append(Problem(Severity.WARNING, f"network config: key {key} is not known here and ignored", fix))
    return network, found


def _examine_leases(network: NetworkConfig, leases: Mapping[str, Lease], assigned: bool) -> Iterator[Problem]:
    try:
        untyped: bool | None = load_backend(network.backend_type).capabilities.untyped_leases
    except PluginError:
        untyped = None
    for key, lease in sorted(leases.items()):
        placement = placement_problem(network, lease)
        if placement:
            fix = "nodes skip it; delete it if it is a leftover of an earlier network config, else restart its node"
            yield Problem(Severity.ERROR, f"{key}: {placement}", fix, key)
        elif not assigned and not network.fits(lease.subnets):
            yield Problem(
                Severity.WARNING,
                f"{key}: not a subnet that this network config leases (length, SubnetMin, SubnetMax)",
                "it works; its node gets another subnet when it is restarted",
                key,
            )
        kind = "" if untyped is None else type_problem(lease, network.backend_type, untyped)
        if kind:
            fix = "nodes skip it; restart its node with this network config, or delete it if the node is gone"
            yield Problem(Severity.ERROR, f"{key}: {kind}", fix, key)


def _overlaps(leases: Mapping[str, Lease]) -> Iterator[Problem]:
    ranges = Ranges()
    for key, lease in sorted(leases.items()):
        for other in sorted(ranges.overlapping(lease.subnets)):
            fix = "only one of them is used by nodes; delete the one whose node is gone, or restart its node"
            yield Problem(Severity.ERROR, f"{key} overlaps {other}", fix, key)
        ranges.add(lease.subnets, key)


def _twins(leases: Mapping[str, Lease]) -> Iterator[Problem]:
    """Leases that name one address, or one node."""
    holders: dict[str, list[str]] = defaultdict(list)
    for key, lease in sorted(leases.items()):
        attributes = lease.attributes
        for what, value in (
            ("public address", attributes.public_ip),
            ("public address", attributes.public_ipv6),
            ("node id", attributes.node_id),
        ):
            if value is not None:
                holders[f"{what} {value}"].append(key)
    for what, keys in holders.items():
        if len(keys) > 1:
            yield Problem(
                Severity.ERROR,
                f"{what} is in several leases: {', '.join(keys)}",
                "one node holds one lease: delete those it does not use; two machines must not share an address or a "
                "node id (is one a clone of the other?)",
                keys[0],
            )


# Asking the servers


def check(
    location: StoreLocation, *, write: bool = False, clock: Callable[[], float] = time.perf_counter
) -> Inspection:
    """Ask a store and judge what it holds.

    :param write: also try to create, change and delete a record.
    :raises ConfigError: the location is wrong; no server was asked.
    """
    report = Inspection(str(location))
    with open_store(location, existing=not write) as store:
        report.endpoints = [_ask(replace(location, hosts=hosts), not write, clock) for hosts in _each(location)]
        for endpoint in report.endpoints:
            if endpoint.error and len(report.endpoints) > 1:  # what a single one minds is said below
                fix = "see whether the server runs, is healthy, and lets this node in"
                report.findings.append(Problem(Severity.ERROR, f"{endpoint.name}: {endpoint.error}", fix))
        try:
            snapshot = _look(store, report, clock)
            _try_watch(store, snapshot, report)
            if write and not store.assigns_subnets:  # where nobody can make a lease
                _try_writing(store, report, clock)
        except StoreError as error:
            fix = "without this no node works: mend the servers, the credentials or the rights"
            report.findings.append(Problem(Severity.ERROR, str(error), fix))
    return report


def _each(location: StoreLocation) -> Sequence[tuple[str, ...]]:
    return [(host,) for host in location.hosts] or [()]


def _ask(location: StoreLocation, existing: bool, clock: Callable[[], float]) -> ServerAnswer:
    """One call to one server alone."""
    name = location.hosts[0] if location.hosts else str(location)
    with open_store(location, existing=existing) as store:
        try:
            store.read_config()  # connects, and imports the client
            begin = clock()
            store.read_config()
            return ServerAnswer(name, clock() - begin)
        except StoreError as error:
            return ServerAnswer(name, error=str(error))


def _look(store: Store, report: Inspection, clock: Callable[[], float]) -> Snapshot:
    snapshot = store.snapshot()
    _timed(report, "read the network config", store.read_config, clock)
    _timed(report, "read everything", store.snapshot, clock)
    left = store.time_to_live(snapshot.leases)
    expiries = {record.key: left.get(record.key) for record in snapshot.leases if not record.permanent}
    known = [seconds for seconds in expiries.values() if seconds is not None]
    report.reservations = len(snapshot.leases) - len(expiries)
    report.leases = len(expiries)
    report.ends_first = min(known, default=None) if store.exact_ttl else None
    report.findings += examine(snapshot, expiries if store.exact_ttl else None, store.assigns_subnets)
    return snapshot


def _timed(report: Inspection, name: str, call: Callable[[], object], clock: Callable[[], float]) -> None:
    took = []
    for _ in range(_ROUNDS):
        begin = clock()
        call()
        took.append(clock() - begin)
    report.latencies[name] = (min(took), statistics.median(took), max(took))


class _Listener:
    """A thread that follows a watch, and notes the keys that changed or why it ended."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._news = threading.Condition()
        self._keys: set[str] = set()
        self.error: Exception | None = None
        threading.Thread(target=self._listen, name="pyflannel-watch", daemon=True).start()

    def _listen(self) -> None:
        try:
            for batch in self._watch:
                with self._news:
                    self._keys.update(change.key for change in batch.changes)
                    self._news.notify_all()
        except Exception as error:  # it is what the check is about
            with self._news:
                self.error = error
                self._news.notify_all()

    def hears(self, key: str, seconds: float) -> bool:
        """Whether ``key`` changes within so long; ends early if the watch does."""
        with self._news:
            self._news.wait_for(lambda: key in self._keys or self.error is not None, seconds)
            return key in self._keys


def _try_watch(store: Store, snapshot: Snapshot, report: Inspection) -> None:
    """Open a watch and see that it is not refused."""
    with store.watch(snapshot.revision) as watch:
        listener = _Listener(watch)
        listener.hears("", _QUIET)
        error = listener.error
    if error is not None and not isinstance(error, HistoryGoneError):
        fix = "without it nodes don't hear of each other: grant the right to read all keys below the prefix"
        report.findings.append(Problem(Severity.ERROR, f"changes can't be followed: {error}", fix))


def _try_writing(store: Store, report: Inspection, clock: Callable[[], float]) -> None:
    """Create, change, renew and delete a record that is no lease, and see that the watch tells of it."""
    key = f"pyflannel-check-{secrets.token_hex(8)}"
    with store.watch(store.snapshot().revision) as watch:
        listener = _Listener(watch)
        begin = clock()
        record = store.create(key, "{}", PROBE_TTL)
        created = clock() - begin
        try:
            told = listener.hears(key, _WATCH_WAIT)
            heard = clock() - begin
            record = store.update(record, '{"changed":true}', PROBE_TTL)
            begin = clock()
            record = store.renew(record, PROBE_TTL)
            renewed = clock() - begin
        finally:
            store.delete(record)
    report.latencies |= {
        "create a lease": (created, created, created),
        "renew a lease": (renewed, renewed, renewed),
    }
    if told:
        report.latencies["write to its change in the watch"] = (heard, heard, heard)
    else:
        fix = "nodes would hear of each other late or never; see the health of the servers"
        report.findings.append(Problem(Severity.ERROR, f"a change was not told within {_WATCH_WAIT:g} s", fix))
