"""Store servers inside a lab: ``python -m pyflannel.lab.serve etcd DIRECTORY ADDRESS...``, run in their namespace.

Starts one real server per address, prints the store's URL when all of them are healthy, and ends them when its
standard input ends. Whatever the servers print goes to standard error, so that the URL is found. It runs where the
servers run because a lab's addresses can be reached, and its files are where they are, only from inside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Final

from pyflannel.errors import PluginError, PyflannelError
from pyflannel.lab.servers import GROUP, Serve

__all__ = ["SERVERS", "find", "has_server", "main", "schemes", "serving"]


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


SERVERS: Final[dict[str, Serve]] = {"etcd": _etcd, "consul": _consul}
"""URL scheme to server, of the stores that come with pyflannel."""


def schemes() -> tuple[str, ...]:
    """The schemes of all stores whose servers a lab can start."""
    return tuple(dict.fromkeys([*SERVERS, *sorted(entry.name for entry in metadata.entry_points(group=GROUP))]))


def find(scheme: str) -> Serve:
    """The server of a scheme.

    :raises PluginError: there is none, or it does not load.
    """
    if scheme in SERVERS:
        return SERVERS[scheme]
    for entry in metadata.entry_points(group=GROUP, name=scheme):
        try:
            server: Serve = entry.load()
        except Exception as error:
            raise PluginError(f"lab server {scheme!r} ({entry.value}) does not load: {error}") from error
        return server
    raise PluginError(
        f"store {scheme!r} brings no server for the lab (entry point group {GROUP}); there are: {', '.join(schemes())}"
    )


def has_server(scheme: str) -> bool:
    """Whether there is one for a scheme; it is not loaded."""
    return scheme in schemes()


@contextmanager
def serving(scheme: str, directory: Path, addresses: Sequence[str]) -> Iterator[str]:
    """A store's URL as long as its servers run, with their files in a directory that is made for them.

    :raises PyflannelError: they can't be started.
    """
    directory.mkdir(mode=0o700)
    with find(scheme)(directory, addresses) as place:
        yield place if "://" in place else f"{scheme}://{place}"


def main(scheme: str, directory: str, addresses: Sequence[str]) -> int:
    """Serve until standard input ends."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    owner = os.fdopen(os.dup(0), encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        with serving(scheme, Path(directory), addresses) as url:
            answer.write(f"{url.replace('{}', 'lab')}\n")
            answer.flush()
            owner.read()
    except PyflannelError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
