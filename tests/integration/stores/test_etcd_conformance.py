"""The conformance kit on a real etcd."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import ClassVar

import pytest
from tests.servers.etcd import MISSING, etcd, etcdctl, fill

from pyflannel.lab.servers.etcd import EtcdCluster
from pyflannel.store import Store, StoreLocation
from pyflannel.testing.stores import Opening, StoreConformance
from pyflannel_stores.etcd import EtcdStore

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


class TestEtcdStore(StoreConformance):
    store_class = EtcdStore
    keeps_history = True
    cluster: ClassVar[EtcdCluster]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls) -> Iterator[None]:
        with etcd() as cls.cluster:
            yield

    @pytest.fixture
    def location(self) -> StoreLocation:
        return StoreLocation.parse(f"etcd://{self.cluster.hosts}/{uuid.uuid4()}/network")

    def stop_server(self) -> None:
        self.cluster.members[0].kill()

    def start_server(self) -> None:
        self.cluster.start()

    def lose_history(self, store: Store, revision: str) -> str:
        etcdctl(self.cluster, "compact", store.snapshot().revision)
        return revision

    def fill(self, pool: ProcessPoolExecutor, opening: Opening, items: Sequence[tuple[str, str]]) -> None:
        fill(self.cluster, opening.location.path, items)
