"""Store servers as a process: ``python -m pyflannel.lab.serve etcd DIRECTORY ADDRESS...``, run in their namespace.

Starts one real server per address, prints the store's URL when all of them are healthy, and ends them when its
standard input ends. Whatever the servers print goes to standard error, so that the URL is found. It runs where the
servers run because a lab's addresses can be reached, and its files are where they are, only from inside; and for
``plugin-test`` in the same way, so that a third party's code finds the same in both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

from pyflannel.errors import PluginError, PyflannelError
from pyflannel.lab.servers import GROUP, Serve
from pyflannel.small.entry_points import entry_points
from pyflannel.small.guarded import guarded

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


_KIND: Final = "lab server"


def schemes() -> tuple[str, ...]:
    """The schemes of all stores whose servers a lab can start."""
    return tuple(dict.fromkeys([*SERVERS, *sorted(entry.name for entry in entry_points(GROUP))]))


def find(scheme: str) -> Serve:
    """The server of a scheme.

    :raises PluginError: there is none, there are several, or it does not load.
    """
    if scheme in SERVERS:
        return SERVERS[scheme]
    entries = {entry.value: entry for entry in entry_points(GROUP, scheme)}
    if not entries:
        raise PluginError(
            f"store {scheme!r} brings no server for the lab (entry point group {GROUP}); there are: "
            f"{', '.join(schemes())}"
        )
    if len(entries) > 1:
        whose = ", ".join(
            f"{entry.dist.name if entry.dist else '?'} ({value})" for value, entry in sorted(entries.items())
        )
        raise PluginError(f"lab server {scheme!r} is provided more than once, by {whose}; uninstall all but one")
    ((value, entry),) = entries.items()
    try:
        server: Any = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"lab server {scheme!r} ({value}) does not load: {type(error).__name__}: {error}") from error
    if not callable(server):
        raise PluginError(f"lab server {scheme!r} ({value}) is of type {type(server).__name__}, and must be a function")
    found: Serve = server
    return found


def has_server(scheme: str) -> bool:
    """Whether there is one for a scheme; it is not loaded."""
    return scheme in schemes()


@contextmanager
def serving(scheme: str, directory: Path, addresses: Sequence[str]) -> Iterator[str]:
    """A store's URL as long as its servers run, with their files in a directory that is made for them.

    :raises PyflannelError: they can't be started, or ended; whatever a plugin raises is named as its own.
    """
    directory.mkdir(mode=0o700)
    serve = find(scheme)
    servers: Any = guarded(scheme, "starting", lambda: serve(directory, addresses), _KIND)
    if not isinstance(servers, AbstractContextManager):
        raise PluginError(
            f"{_KIND} {scheme!r} answers with an object of type {type(servers).__name__}: must be a context manager, "
            "as contextlib.contextmanager makes them"
        )
    place: Any = guarded(scheme, "starting", servers.__enter__, _KIND)
    try:
        if not isinstance(place, str):
            raise PluginError(f"{_KIND} {scheme!r} gives {place!r}: must be the store's URL, or the host part of it")
        yield place if "://" in place else f"{scheme}://{place}"
    finally:
        guarded(scheme, "ending", lambda: servers.__exit__(None, None, None), _KIND)


def main(scheme: str, directory: str, addresses: Sequence[str]) -> int:
    """Serve until standard input ends."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # which keeps nothing back, so that what was said last comes last
    owner = os.fdopen(os.dup(0), encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        with serving(scheme, Path(directory), addresses) as url:
            answer.write(f"{url}\n")
            answer.flush()
            owner.read()
    except PyflannelError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
