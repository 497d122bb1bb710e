"""One real etcd for all tests of a module; each test has a place of its own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyflannel.lab.servers.etcd import EtcdCluster, find_etcd


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    if find_etcd() is None:
        pytest.skip("etcd is not installed: apt-get install etcd-server")
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), arguments=["--enable-v2"]) as cluster:
        yield cluster
