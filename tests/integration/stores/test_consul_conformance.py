"""The conformance kit on a real Consul.

Consul gives no session a TTL below ten seconds, and takes up to twice as long to end one. That the kit waits less, this
server's lower limit is set to a second, and py-consul's own check, which knows the default alone, is gone around.
"""

from __future__ import annotations

import json
import uuid
from base64 import b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ClassVar

import pytest
from tests.servers.consul import MISSING, consul, put

from pyflannel.lab.servers.consul import ConsulCluster
from pyflannel.store import Store, StoreLocation
from pyflannel.testing.stores import KEY, VALUE, Follower, Opening, StoreConformance, contents
from pyflannel_stores import consul as driver
from pyflannel_stores.consul import ConsulStore

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


class TestConsulStore(StoreConformance):
    store_class = ConsulStore
    minimum_ttl = 2.0
    expiry_slack = 10.0
    cluster: ClassVar[ConsulCluster]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls) -> Iterator[None]:
        with consul(config={"session_ttl_min": "1s"}) as cls.cluster:
            yield

    @pytest.fixture(autouse=True)
    def short_ttls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from consul.api.session import Session
        from consul.callback import CB

        def create(self: Any, name: str, node: str, checks: list[str], lock_delay: int, behavior: str, ttl: int) -> Any:
            body = {"Name": name, "Node": node, "Checks": checks, "LockDelay": f"{lock_delay}s", "TTL": f"{ttl}s"}
            data = json.dumps({**body, "Behavior": behavior})
            return self.agent.http.put(CB.json(is_id=True), "/v1/session/create", data=data)

        monkeypatch.setattr(driver, "SHORTEST_TTL", 1)
        monkeypatch.setattr(Session, "create", create)

    @pytest.fixture
    def location(self) -> StoreLocation:
        return StoreLocation.parse(f"consul://{self.cluster.hosts}/{uuid.uuid4()}/network")

    def stop_server(self) -> None:
        self.cluster.servers[0].kill()

    def start_server(self) -> None:
        self.cluster.start()

    def lose_history(self, store: Store, revision: str) -> str:
        for _ in range(driver._REMEMBERED_STATES):
            store.snapshot()
        return revision

    def fill(self, pool: ProcessPoolExecutor, opening: Opening, items: Sequence[tuple[str, str]]) -> None:
        fill(self.cluster, opening.location.path.strip("/"), items)

    def test_a_renewal_with_another_ttl_keeps_the_key(self, store: Store) -> None:
        record = store.create(KEY, VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower:
            longer = store.renew(record, 7200.0)
            shorter = store.update(longer, VALUE, 3600.0)
            follower.until(lambda: follower.state == contents(store.snapshot()), "the same versions")
            assert None not in follower.of(KEY)
        assert len({record.handle, longer.handle, shorter.handle}) == 3
        store.delete(shorter)


def fill(cluster: ConsulCluster, prefix: str, items: Sequence[tuple[str, str]]) -> None:
    """Put reservations into a server, 64 in a transaction."""
    operations = [
        {"KV": {"Verb": "set", "Key": f"{prefix}/subnets/{key}", "Value": b64encode(value.encode()).decode()}}
        for key, value in items
    ]
    for start in range(0, len(operations), 64):
        put(cluster, "/v1/txn", operations[start : start + 64])
