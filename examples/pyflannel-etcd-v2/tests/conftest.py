"""One real etcd for all tests of a module; each test has a place of its own in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from pyflannel_etcd_v2.lab import Etcd, find_etcd


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    binary = find_etcd()
    if binary is None:
        pytest.skip("etcd is not installed: apt-get install etcd-server")
    if "--enable-v2" not in subprocess.run([binary, "--help"], capture_output=True, text=True).stdout:
        pytest.skip("not applicable: this etcd has no v2 API; 3.5 was the last that had it")
    with Etcd(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster
