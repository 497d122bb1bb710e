"""Real servers of a store in a lab: what a store's distribution brings along to be tried out (public API).

A distribution that has a store says with an entry point, under the store's scheme, how a server of its own is started::

    [project.entry-points."pyflannel.lab.servers"]
    acme = "pyflannel_acme.lab:serve"

``pyflannel lab --store acme`` then runs on it, and so does ``pyflannel plugin-test acme``. What the entry point names
is a :data:`Serve`: it is called with a directory and addresses, and returns a context manager. Entering starts the
servers, waits until they answer, and gives the URL of the store, or its host part alone (``192.0.2.9:5432``, several
joined by commas); after two minutes it is given up. Leaving ends them, and no process of theirs is left.

``plugin-test`` wants another empty place for each test: ``{}`` in the URL becomes its name, and where there is none it
is added to the path.

* The *directory* is there, empty, and nobody else's. It goes away with its owner: nothing in it has to be tidied up.
* The *addresses* are this machine's, one for each server that was asked for (``--store-members``); listen there, not
  on all. In a lab they are on the underlay, in a namespace of the servers' own where every port is free; for
  ``plugin-test`` it is ``127.0.0.1``, where others listen, too (:func:`free_ports`).
* A *Unix socket* below the directory can be reached from every node, since a lab's nodes share their files: give a URL
  without hosts then.
* It has a process of its own, and may *print* whatever it likes: standard output and error go to a log, whose end is
  shown if it fails. Standard input is at its end.
* It runs with the rights of the lab's user, often root in a user namespace. A server that refuses root can be started
  by ``unshare --user --map-user=1 --map-group=1``, as what is then another user to itself alone.
* A :class:`~pyflannel.errors.PyflannelError` says what is missing (a program that is not installed: ``ConfigError``) or
  went wrong (``StoreUnavailableError``).

:class:`Server` and :class:`Cluster` do what every server needs: start a process with a log, tell that it has ended, and
end it; in tests of one's own they also freeze and kill it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TypeAlias

from pyflannel.lab.servers.process import HERE as _HERE
from pyflannel.lab.servers.process import Cluster, Place, Running, Server, free_ports

__all__ = ["GROUP", "HERE", "Cluster", "Place", "Running", "Serve", "Server", "free_ports"]

GROUP: Final = "pyflannel.lab.servers"
"""The entry point group; a name is a URL scheme."""

HERE: Final[Place] = _HERE
"""This system, in the network namespace of the caller: where a server of a :class:`Cluster` is started."""

Serve: TypeAlias = Callable[[Path, Sequence[str]], AbstractContextManager[str]]
"""Starts a store's servers, one at each address, with their files below a directory."""
