"""Store servers inside a lab: ``python -m pyflannel.lab.serve etcd DIRECTORY ADDRESS...``, run in their namespace.

Starts one real server per address, prints the store's URL when all of them are healthy, and ends them when its
standard input ends. It runs where the servers run because a lab's addresses can be reached, and its files are where
they are, only from inside.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Final, TypeAlias

from pyflannel.errors import PluginError, PyflannelError

__all__ = ["GROUP", "SERVERS", "Server", "find", "main", "schemes"]


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


Server: TypeAlias = Callable[[Path, Sequence[str]], AbstractContextManager[str]]
"""Starts a store's servers, one at each address, with their files below a directory; gives the host part of their URL
as long as its context lasts."""

GROUP: Final = "pyflannel.lab.servers"
"""The entry point group by which a third party's store brings its server into the lab, under the store's scheme."""

SERVERS: Final[dict[str, Server]] = {"etcd": _etcd, "consul": _consul}
"""URL scheme to server, of the stores that come with pyflannel."""


def schemes() -> tuple[str, ...]:
    """The schemes of all stores whose servers a lab can start."""
    return tuple(dict.fromkeys([*SERVERS, *sorted(entry.name for entry in metadata.entry_points(group=GROUP))]))


def find(scheme: str) -> Server:
    """The server of a scheme.

    :raises PluginError: there is none, or it does not load.
    """
    if scheme in SERVERS:
        return SERVERS[scheme]
    for entry in metadata.entry_points(group=GROUP, name=scheme):
        try:
            server: Server = entry.load()
        except Exception as error:
            raise PluginError(f"lab server {scheme!r} ({entry.value}) does not load: {error}") from error
        return server
    raise PluginError(f"no server for store {scheme!r} in the lab; there are: {', '.join(schemes())}")


def main(scheme: str, directory: str, addresses: Sequence[str]) -> int:
    """Serve until standard input ends."""
    try:
        with find(scheme)(Path(directory), addresses) as hosts:
            sys.stdout.write(f"{scheme}://{hosts}\n")
            sys.stdout.flush()
            sys.stdin.read()
    except PyflannelError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
