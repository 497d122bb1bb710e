"""The store kit finds what it is for: a faulty driver fails its test, and the worker's own error is what it shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from pyflannel.errors import StoreDeniedError, StoreError, StoreUnavailableError
from pyflannel.store import Record, StoreLocation, StoreTime
from pyflannel.testing._store_workers import processes
from pyflannel.testing.stores import Opening, StoreConformance
from pyflannel_stores.file import FileStore


class Kit(StoreConformance):
    """The kit as a subclass has it, to call its tests by hand."""

    __test__ = False
    store_class = FileStore
    racers = 3


def at(seconds: float = 0.0, latest: float | None = 1.0, source: str = "a clock") -> StoreTime:
    """What a clock says that is right, but for what the arguments change."""
    now = time.time()
    return StoreTime(now + seconds, None if latest is None else now + latest, source)


def raising(error: Exception) -> Callable[[FileStore], StoreTime | None]:
    def clock(_: FileStore) -> StoreTime | None:
        raise error

    return clock


def tracing(store: FileStore) -> StoreTime:
    if store.read_config() is None:
        store.write_config("{}", None)
    return at()


def bare(_: FileStore) -> StoreTime | None:
    return time.time()  # type: ignore[return-value]


GOOD: dict[str, Callable[[FileStore], StoreTime | None]] = {
    "none": lambda _: None,
    "right": lambda _: at(),
    "only not earlier": lambda _: at(-1e9, None),
    "not to be had": raising(StoreUnavailableError("HTTP is off")),
    "refused": raising(StoreDeniedError("not for you")),
}

BAD: dict[str, Callable[[FileStore], StoreTime | None]] = {
    "milliseconds": lambda _: StoreTime(time.time() * 1000, None, "a clock"),
    "since boot": lambda _: StoreTime(time.monotonic(), time.monotonic() + 1, "a clock"),
    "a time zone off": lambda _: at(3600.0, 3601.0),
    "a time zone behind": lambda _: at(-3600.0, -3599.0),
    "the end before the begin": lambda _: at(1.0, 0.0),
    "nobody's": lambda _: at(source=""),
    "another type": bare,
    "a text": lambda _: StoreTime("12:00", None, "a clock"),  # type: ignore[arg-type]
    "a foreign error": raising(OSError("connection reset")),
    "an error that says nothing": raising(StoreError("")),
    "leaves a trace": tracing,
}


@pytest.fixture
def location(tmp_path: Path) -> StoreLocation:
    return StoreLocation("file", path=str(tmp_path / "store"))


def try_clock(location: StoreLocation, clock: Callable[[FileStore], StoreTime | None]) -> None:
    kind = type("Faulty", (FileStore,), {"clock": clock})
    with kind(location) as store:
        Kit().test_the_clock_tells_the_time_of_day_or_nothing(store)


@pytest.mark.parametrize("clock", GOOD.values(), ids=GOOD)
def test_a_clock_that_keeps_the_contract_passes(
    location: StoreLocation, clock: Callable[[FileStore], StoreTime | None]
) -> None:
    try_clock(location, clock)


@pytest.mark.parametrize("clock", BAD.values(), ids=BAD)
def test_a_clock_that_breaks_the_contract_fails(
    location: StoreLocation, clock: Callable[[FileStore], StoreTime | None]
) -> None:
    with pytest.raises((AssertionError, OSError, TypeError)):
        try_clock(location, clock)


class Picky(FileStore):
    """Fails in one worker of all, which never comes to the second start."""

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        if value == '{"worker": 1}':
            raise StoreDeniedError("worker 1 may not write")
        return super().create(key, value, ttl)


@pytest.fixture
def pool() -> Iterator[ProcessPoolExecutor]:
    with processes(Kit.racers) as pool:
        yield pool


def test_the_error_of_the_worker_that_failed_is_shown_and_the_next_race_is_on(
    location: StoreLocation, pool: ProcessPoolExecutor
) -> None:
    kit = Kit()
    with Picky(location) as store, pytest.raises(StoreDeniedError, match="worker 1 may not write"):
        kit.test_exactly_one_of_many_creates_a_key(store, Opening(Picky, location), pool)
    with FileStore(StoreLocation("file", path=location.path + "-2")) as again:
        kit.test_exactly_one_of_many_creates_a_key(again, Opening(FileStore, again.location), pool)
