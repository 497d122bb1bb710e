"""pyflannel's own kit for stores, on a real etcd."""

from __future__ import annotations

import urllib.parse
import urllib.request
import uuid
from typing import Any

import pytest
from pyflannel_etcd_v2 import EtcdV2Store
from pyflannel_etcd_v2.lab import Etcd

from pyflannel.store import Store, StoreLocation
from pyflannel.testing.stores import StoreConformance


class TestEtcdV2(StoreConformance):
    """The whole contract."""

    store_class = EtcdV2Store
    keeps_history = True
    minimum_ttl = 2.0
    cluster: Etcd

    @pytest.fixture
    def location(self, cluster: Etcd) -> StoreLocation:
        self.cluster = cluster
        return StoreLocation.parse(f"etcd-v2://{cluster.hosts}/test/{uuid.uuid4()}")

    def stop_server(self) -> None:
        self.cluster.members[0].kill()

    def start_server(self) -> None:
        self.cluster.start()

    def lose_history(self, store: Store, revision: str) -> str:
        """Others write a lot, elsewhere."""
        for number in range(1100):
            put(self.cluster, "/elsewhere", value=str(number))
        return revision


def put(cluster: Etcd, path: str, **form: Any) -> None:
    """Write a key past the driver."""
    body = urllib.parse.urlencode(form).encode()
    request = urllib.request.Request(f"{cluster.members[0].client_url}/v2/keys{path}", body, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()
