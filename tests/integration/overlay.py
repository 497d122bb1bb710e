"""An overlay to be looked at: nodes in a lab whose daemons have found each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.asking import PATIENCE

from pyflannel.lab import Lab

__all__ = ["overlay"]


@contextmanager
def overlay(backend: str, *arguments: str, nodes: int = 3) -> Iterator[Lab]:
    """A lab in which every node is ready, knows all others and has its containers.

    What the daemons said is printed at the end; pytest shows it where a test has failed.

    :param arguments: of the daemons, besides.
    """
    with Lab(nodes=nodes) as lab:
        for node in lab.nodes:
            node.start_daemon(lab.file_store, backend, "10.244.0.0/16", arguments)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=nodes - 1, timeout=PATIENCE)
            node.attach_containers()
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")
