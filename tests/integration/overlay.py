"""An overlay to be looked at: nodes in a lab whose daemons have found each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.integration.asking import PATIENCE
from tests.storing import write_document

from pyflannel.lab import Lab

__all__ = ["overlay"]


@contextmanager
def overlay(
    backend: str | Mapping[str, Any], *arguments: str, nodes: int = 3, ipv6: str | None = None
) -> Iterator[Lab]:
    """A lab in which every node is ready, knows all others and has its containers.

    What the daemons said is printed at the end; pytest shows it where a test has failed.

    :param backend: its type, or the network document's ``Backend``.
    :param arguments: of the daemons, besides.
    :param ipv6: the IPv6 network, for one that has both families.
    """
    with Lab(nodes=nodes) as lab:
        families: dict[str, Any] = {"EnableIPv6": True, "IPv6Network": ipv6} if ipv6 else {}
        write_document(lab, backend, **families)
        for node in lab.nodes:
            node.start_daemon(lab.file_store, None, None, arguments)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=nodes - 1, timeout=PATIENCE)
            node.attach_containers()
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")
