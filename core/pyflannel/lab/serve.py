"""Store servers inside a lab: ``python -m pyflannel.lab.serve etcd DIRECTORY ADDRESS...``, run in their namespace.

Starts one real server per address, prints the store's URL when all of them are healthy, and ends them when its
standard input ends. It runs where the servers run because a lab's addresses can be reached, and its files are where
they are, only from inside.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from pyflannel.errors import PyflannelError

__all__ = ["SERVERS", "main"]


@contextmanager
def _etcd(directory: Path, addresses: Sequence[str]) -> Iterator[str]:
    from pyflannel.lab.servers.etcd import EtcdCluster

    with EtcdCluster(directory, len(addresses), host=addresses[0]) as cluster:
        yield cluster.hosts


@contextmanager
def _consul(directory: Path, addresses: Sequence[str]) -> Iterator[str]:
    from pyflannel.lab.servers.consul import ConsulCluster

    with ConsulCluster(directory, len(addresses), addresses=addresses) as cluster:
        yield cluster.hosts


SERVERS: Final[dict[str, Callable[[Path, Sequence[str]], AbstractContextManager[str]]]] = {
    "etcd": _etcd,
    "consul": _consul,
}
"""URL scheme to what starts such servers and gives the host part of their URL."""


def main(scheme: str, directory: str, addresses: Sequence[str]) -> int:
    """Serve until standard input ends."""
    try:
        with SERVERS[scheme](Path(directory), addresses) as hosts:
            sys.stdout.write(f"{scheme}://{hosts}\n")
            sys.stdout.flush()
            sys.stdin.read()
    except PyflannelError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
