"""A real etcd for ``pyflannel lab --store etcd-v2``: what the lab asks for when it is to run on this store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyflannel.lab.servers.etcd import EtcdCluster

__all__ = ["serve"]


@contextmanager
def serve(directory: Path, addresses: Sequence[str]) -> Iterator[str]:
    """Members with the v2 API switched on; their hosts, as long as the context lasts."""
    with EtcdCluster(directory, len(addresses), host=addresses[0], arguments=["--enable-v2"]) as cluster:
        yield cluster.hosts
