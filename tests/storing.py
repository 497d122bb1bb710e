"""What tests do in a store that a lab's nodes use, behind the daemons' backs.

A store may be in reach of the lab's namespaces only, so code for it runs on a node, in a process of its own.
"""

from __future__ import annotations

import textwrap

from pyflannel.lab import Node
from pyflannel.lab.daemon import pyflannel_command

__all__ = ["create", "delete", "in_store"]

_OPEN = """
import json, sys, time
from pyflannel.plugins import load_store
from pyflannel.store import StoreLocation
where, words = StoreLocation.parse(sys.argv[1]), sys.argv[2:]
with load_store(where.scheme)(where) as store:
"""


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
