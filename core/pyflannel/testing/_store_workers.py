"""What the store kit's other processes do. They import this module, so it leaves pytest out.

Each function is one node's part: it opens a store of its own, as a daemon on another host would. One that fails lets
nobody wait for it at the line, and :func:`results` tells its error rather than that of those it let down.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from typing import TypeVar

from pyflannel.errors import ConflictError, StoreError, StoreUnavailableError
from pyflannel.membership.allocation import allocate
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets
from pyflannel.store import CALL_TIMEOUT, CONFIG_KEY, Record, Snapshot, Store, StoreLocation
from pyflannel.testing._calls import supervised

__all__ = [
    "CHANGED_TTL",
    "Opening",
    "Tally",
    "allocate_nodes",
    "change_each",
    "count_up",
    "create_all",
    "dismiss",
    "hammer",
    "join",
    "processes",
    "race",
    "results",
    "win_after_expiry",
]

T = TypeVar("T")

TIMEOUT = 600.0
"""Seconds until a worker gives up what never comes. A busy machine takes its time to start 32 of them."""

CHANGED_TTL = 3600.0
"""Of the records that :func:`change_each` changes: with another one, renewing might change the version."""

_barrier: Barrier | None = None


def processes(number: int) -> ProcessPoolExecutor:
    """So many processes, which can start together. They are forks of one that has nothing but this module.

    So they begin without anything of this process, as other nodes would, and cost little where a server and its tests
    share a processor or two.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(number, context, join, (context.Barrier(number),))


def join(barrier: Barrier) -> None:
    """Start of a worker process: keep the line at which all of them can start together."""
    global _barrier  # a process pool hands its processes nothing else
    _barrier = barrier


def _line_up() -> None:
    assert _barrier is not None
    _barrier.wait(TIMEOUT)


@contextmanager
def _one_of_many() -> Iterator[None]:
    """A part in which all workers meet at the line, perhaps again and again."""
    assert _barrier is not None
    try:
        yield
    except BaseException:
        _barrier.abort()
        raise


def _line_up_anew() -> None:
    assert _barrier is not None
    _barrier.reset()


def results(pool: ProcessPoolExecutor, jobs: Sequence[Future[T]], patience: float, what: str) -> list[T]:
    """What each of the workers returned, within ``patience`` seconds; the error of the one that failed by itself."""
    done, late = wait(jobs, patience)
    errors = [error for job in jobs if job in done and (error := job.exception()) is not None]
    if errors:
        pool.submit(_line_up_anew).result(patience)  # the next test has the same workers
        raise next((error for error in errors if not isinstance(error, BrokenBarrierError)), errors[0])
    if late:
        raise AssertionError(
            f"waited {patience:g} s in vain for: {what}; {len(late)} of {len(jobs)} processes are not done"
        )
    return [job.result(0) for job in jobs]


def dismiss(pool: ProcessPoolExecutor, patience: float) -> None:
    """Let the workers go; one that hangs is killed."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()


@dataclass(frozen=True)
class Opening:
    """How to open the store under test in any process.

    :param allowed: seconds that each of its calls may take; the contract's are the most.
    """

    store_class: type[Store]
    location: StoreLocation
    allowed: float = CALL_TIMEOUT

    def open(self) -> Store:
        """A store object of this process's own."""
        return supervised(self.store_class, min(self.allowed, CALL_TIMEOUT))(self.location)


def _create(store: Store, key: str, value: str, ttl: float | None) -> Record:
    """Create a record; where an answer does not come in time, the store says whether the record is ours.

    As many processes as these take a crowded machine longer than a call has. One that never answers ends the test.

    :raises ConflictError: another one's record is there.
    """
    deadline = time.monotonic() + TIMEOUT / 10
    while True:
        try:
            return store.create(key, value, ttl)
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
            found = {record.key: record for record in _snapshot(store, deadline).leases}.get(key)
            if found is not None and json.loads(found.value) == json.loads(value):
                return found


def _snapshot(store: Store, deadline: float) -> Snapshot:
    while True:
        try:
            return store.snapshot()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise


@_one_of_many()
def race(opening: Opening, keys: Sequence[str], number: int) -> list[Record]:
    """Try to create each of ``keys`` at the same moment as every other worker; returns what this one won."""
    won = []
    with opening.open() as store:
        _snapshot(store, time.monotonic() + TIMEOUT / 10)  # connected, so that the race is about the key alone
        for key in keys:
            _line_up()
            try:
                won.append(_create(store, key, json.dumps({"worker": number}), None))
            except ConflictError:
                continue
    return won


@_one_of_many()
def win_after_expiry(opening: Opening, key: str, number: int) -> Record | None:
    """Try to create ``key``, which is about to expire, until this worker or another one has."""
    deadline = time.monotonic() + TIMEOUT
    with opening.open() as store:
        _line_up()
        while time.monotonic() < deadline:
            try:
                return store.create(key, json.dumps({"worker": number}), None)
            except (ConflictError, StoreUnavailableError):  # the latter may have taken effect: read back
                leases = {record.key: record for record in store.snapshot().leases}
                if key in leases and leases[key].permanent:
                    return leases[key] if json.loads(leases[key].value) == {"worker": number} else None
                time.sleep(0.02)
    raise AssertionError(f"{key} neither expired nor was created again within {TIMEOUT} s")


def count_up(opening: Opening, key: str, times: int, name: str) -> None:
    """Add ones by compare-and-swap to the number of ``name`` in ``key`` until it is ``times``."""
    deadline, taken = time.monotonic() + TIMEOUT / 10, 0
    with opening.open() as store:
        while True:
            snapshot = _snapshot(store, deadline)
            records = snapshot.leases if snapshot.config is None else (snapshot.config, *snapshot.leases)
            record = next(record for record in records if record.key == key)
            counts: dict[str, int] = json.loads(record.value)
            count = counts.get(name, 0)
            assert count >= taken, f"the store has taken {taken} updates of one process, and holds {count} of them"
            if count == times:
                return
            value = json.dumps({**counts, name: count + 1})
            try:
                store.write_config(value, record) if key == CONFIG_KEY else store.update(record, value, None)
                taken = count + 1
            except ConflictError:
                continue
            except StoreUnavailableError:  # it may have taken effect: read back
                if time.monotonic() > deadline:
                    raise


@_one_of_many()
def change_each(opening: Opening, records: Sequence[Record], number: int) -> list[Record | StoreError | None]:
    """Change each of ``records`` at the same moment as every other worker: one in three updates it, one deletes it, one
    renews it, in turns. Returns what an update has made, or why nobody can know what was done.
    """
    outcomes: list[Record | StoreError | None] = []
    with opening.open() as store:
        _snapshot(store, time.monotonic() + TIMEOUT / 10)
        for turn, record in enumerate(records, number):
            outcome: Record | StoreError | None = None
            _line_up()
            try:
                if turn % 3 == 0:
                    outcome = store.update(record, json.dumps({"worker": number}), CHANGED_TTL)
                elif turn % 3 == 1:
                    store.delete(record)
                else:
                    store.renew(record, CHANGED_TTL)
            except ConflictError:
                pass
            except StoreUnavailableError as error:
                outcome = error
            outcomes.append(outcome)
    return outcomes


def create_all(opening: Opening, items: Sequence[tuple[str, str]]) -> None:
    """Create all of ``items`` as reservations."""
    with opening.open() as store:
        for key, value in items:
            store.create(key, value, None)


def hammer(opening: Opening, keys: Sequence[str], steps: int, seed: int) -> None:
    """Create, update, renew and delete ``keys``, which are this worker's alone; values count up per key."""
    rng = random.Random(seed)  # noqa: S311 - a repeatable choice, not a secret
    held: dict[str, Record] = {}
    count = dict.fromkeys(keys, 0)
    with opening.open() as store:
        for _ in range(steps):
            key = rng.choice(keys)
            count[key] += 1
            value = json.dumps({"count": count[key]})
            if key not in held:
                held[key] = store.create(key, value, 3600.0)
                continue
            action = rng.choice(("update", "update", "renew", "delete"))
            if action == "update":
                held[key] = store.update(held[key], value, 3600.0)
            elif action == "renew":
                held[key] = store.renew(held[key], 7200.0)
            else:
                store.delete(held.pop(key))


@dataclass(frozen=True)
class Tally:
    """What one worker's nodes got, and how often another node was faster."""

    keys: tuple[str, ...]
    conflicts: int


@_one_of_many()
def allocate_nodes(opening: Opening, network: str, nodes: int, seed: int) -> Tally:
    """Get a subnet for each of ``nodes`` nodes, as a daemon does: look, choose, create only if absent, else again."""
    config = NetworkConfig.from_json(network)
    rng = random.Random(seed)  # noqa: S311 - a repeatable choice, not a secret
    keys: list[str] = []
    conflicts = 0
    with opening.open() as store:
        _line_up()
        while len(keys) < nodes:
            leases = _snapshot(store, time.monotonic() + TIMEOUT / 10).leases
            taken = [Subnets.from_key(record.key) for record in leases]
            key = allocate(config, taken, None, rng).key
            try:
                keys.append(_create(store, key, json.dumps({"node": f"{seed}-{len(keys)}"}), 3600.0).key)
            except ConflictError:
                conflicts += 1
    return Tally(tuple(keys), conflicts)
