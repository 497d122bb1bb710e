"""What tests do in a store that a lab's nodes use, behind the daemons' backs.

A store may be in reach of the lab's namespaces only, so code for it runs on a node, in a process of its own.

Nodes draw their subnets at random. What a test plants at a fixed place of the overlay (a lease, a route, an address)
would therefore be some node's once in a hundred runs: :func:`write_document` keeps a part of the network for tests.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.store import StoreLocation

__all__ = ["FREE", "create", "delete", "in_store", "write_document"]

FREE: Final = "10.244.250.0-24"
"""The key of a lease that no node draws, nor any other from 10.244.240.0 on."""

_OPEN = """
import json, sys, time
from pyflannel.plugins import load_store
from pyflannel.store import StoreLocation
where, words = StoreLocation.parse(sys.argv[1]), sys.argv[2:]
with load_store(where.scheme)(where) as store:
"""


def write_document(lab: Lab, backend: str | Mapping[str, Any], store: str | None = None, **more: Any) -> None:
    """Write the network document into the lab's file store, before the first daemon: the end of the network is free.

    :param backend: its type, or the document's ``Backend``.
    :param store: the URL of another file store inside the lab.
    :param more: more keys; those named here are replaced.
    """
    directory = lab.outside(PurePosixPath(StoreLocation.parse(store or lab.file_store).path))
    directory.mkdir(mode=0o700)
    options = {"Type": backend} if isinstance(backend, str) else dict(backend)
    document = {"Network": "10.244.0.0/16", "SubnetMax": "10.244.239.0", **more, "Backend": options}
    (directory / "config.json").write_text(json.dumps(document))


def in_store(node: Node, url: str, code: str, *words: str) -> str:
    """Run ``code`` on ``node``, where ``store`` is the one at ``url`` and ``words`` are these; what it prints."""
    whole = _OPEN + textwrap.indent(textwrap.dedent(code), "    ")
    return str(node.run([pyflannel_command()[0], "-c", whole, url, *words]).stdout)


def create(node: Node, url: str, key: str, value: str, ttl: float) -> None:
    """Write a lease of ``ttl`` seconds that nobody renews."""
    in_store(node, url, "store.create(words[0], words[1], float(words[2]))", key, value, f"{ttl:g}")


def delete(node: Node, url: str, key: str) -> None:
    """Delete a lease, which must be there."""
    in_store(node, url, "store.delete(next(lease for lease in store.snapshot().leases if lease.key == words[0]))", key)
