"""The store conformance kit on the file store: with inotify, and polling as on a network file system."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.servers.memory import in_memory

from pyflannel.store import Store, StoreLocation
from pyflannel.testing.stores import Opening, StoreConformance
from pyflannel_stores.file import FileStore


class TestInotify(StoreConformance):
    store_class = FileStore
    minimum_ttl = 0.4
    expiry_slack = 0.5
    options = "watch=inotify"

    @pytest.fixture
    def location(self, tmp_path: Path) -> Iterator[StoreLocation]:
        """In memory where that is possible, as other stores' servers are; ``test_file_disk`` is about disks."""
        with TemporaryDirectory(prefix="pyflannel-file-", dir=in_memory() or tmp_path) as directory:
            self.root = Path(directory, "store")
            yield StoreLocation.parse(f"file://{self.root}?{self.options}")

    def stop_server(self) -> None:
        self.root.rename(self.root.with_name("away"))

    def start_server(self) -> None:
        self.root.with_name("away").rename(self.root)

    def lose_history(self, store: Store, revision: str) -> str:
        with FileStore(store.location) as other:
            return other.snapshot().revision

    def fill(self, pool: ProcessPoolExecutor, opening: Opening, items: Sequence[tuple[str, str]]) -> None:
        with opening.open() as store:
            store.snapshot()  # makes the directory
        for key, value in items:
            descriptor = os.open(self.root / "subnets" / f"{key}.json", os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(descriptor, value.encode())
            os.close(descriptor)


class TestPolling(TestInotify):
    options = "watch=poll&poll=0.02"
    racers = 8
