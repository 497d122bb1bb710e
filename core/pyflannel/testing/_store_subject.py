"""What an author says about a store: its limits, an empty place for each test, what can be done to its server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import ClassVar

import pytest

from pyflannel.store import CALL_TIMEOUT, Store, StoreLocation
from pyflannel.testing import _store_workers as workers
from pyflannel.testing import _waiting as waiting
from pyflannel.testing._store_workers import Opening
from pyflannel.testing.clauses import Judged

__all__ = ["CONFIG", "KEY", "OTHER", "VALUE", "StoreSubject"]

KEY = "10.5.34.0-24"
VALUE = (
    '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"82:97:93:af:72:bf"}}'
)
OTHER = VALUE.replace("192.0.2.1", "192.0.2.2")
CONFIG = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'


class StoreSubject(Judged):
    """What a subclass says and does, and what all tests of the kit use."""

    store_class: ClassVar[type[Store]]
    """The driver."""

    call_timeout: ClassVar[float] = CALL_TIMEOUT
    """Seconds that a call may take; less, if you promise more than the contract."""

    minimum_ttl: ClassVar[float] = 1.0
    """The shortest TTL, in seconds, that the server keeps to."""

    expiry_slack: ClassVar[float] = 5.0
    """Seconds by which the server may be late to let a record expire."""

    keeps_history: ClassVar[bool] = False
    """Whether ``watch`` takes a revision that another object of the driver has handed out; it must refuse it else."""

    largest_value: ClassVar[int] = 256 * 1024
    """Bytes of a value that the server must hold."""

    many: ClassVar[int] = 5000
    """How many records a large cluster has."""

    racers: ClassVar[int] = 32
    """Processes that fight over one key."""

    odd_keys: ClassVar[tuple[str, ...]] = (
        "10.5.34.0-24&fd00:10:5:34::-64",
        "fd00:10:5:34::-64",
        "not a subnet",
        "a/b",
        "100%",
        "%2F",
        "a?b#c",
        "a=b&c+d;e",
        ".hidden",
        "grün-サブネット-🌐",
        "config.json",
        "quote'\"back\\slash",
        "UPPER",
        "upper",
        "x" * 200,
    )
    """Keys that must come back as they are, whoever made them."""

    odd_values: ClassVar[tuple[str, ...]] = (
        "",
        "not json",
        "[1, 2]",
        "null",
        '"text"',
        "{",
        '{"BackendData": "ünïcödé 🌐 \\u0000", "deep": {"a": [1, 2.5, null, true]}}',
        '{"Expires":"2001-01-01T00:00:00Z"}',
        " leading and trailing \n",
        "line\r\nline\n\n\ttab",
    )
    """Values that must come back as they are: a driver does not judge them."""

    # what a subclass provides

    @pytest.fixture
    def location(self) -> StoreLocation:
        """An empty place in the store, for one test."""
        raise NotImplementedError(
            f"{type(self).__name__} must provide a fixture 'location'; see pyflannel.testing.stores"
        )

    def stop_server(self) -> None:
        """Make the server unreachable, keeping its data: end it. A frozen one does later what it was asked."""
        pytest.skip(f"{type(self).__name__} has no stop_server()")

    def start_server(self) -> None:
        """Make it reachable again."""
        pytest.skip(f"{type(self).__name__} has no start_server()")

    def lose_history(self, store: Store, revision: str) -> str:
        """Make the server forget what came after ``revision``; returns the revision to ask for now."""
        pytest.skip(f"{type(self).__name__} has no lose_history()")

    def fill(self, pool: ProcessPoolExecutor, opening: Opening, items: Sequence[tuple[str, str]]) -> None:
        """Put many reservations into the store; override it where the server has a faster way."""
        shares = [items[start::8] for start in range(8)]
        jobs = [pool.submit(workers.create_all, opening, share) for share in shares]
        workers.results(pool, jobs, 300, f"{len(items)} records are created")

    # what the tests use

    @pytest.fixture
    def opening(self, location: StoreLocation) -> Opening:
        """How any process opens the store."""
        return Opening(self.store_class, location, self.call_timeout)

    @pytest.fixture
    def store(self, opening: Opening) -> Iterator[Store]:
        """A store on an empty place."""
        with opening.open() as store:
            yield store

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls) -> Iterator[ProcessPoolExecutor]:
        """Other processes, shared by the tests of a class. As many tasks as ``racers`` start at one line."""
        pool = workers.processes(cls.racers)
        try:
            yield pool
        finally:
            workers.dismiss(pool, waiting.PATIENCE)
