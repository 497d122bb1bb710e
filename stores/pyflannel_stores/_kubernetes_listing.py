"""A list of all Nodes as it is read: page by page, and each Node by itself.

Read at once, a page would take ten times the memory; and a list of thousands is not begun anew for one page that got
lost.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pyflannel.store import Record
from pyflannel_stores._bounds import parsed

if TYPE_CHECKING:
    from pyflannel_stores._kubernetes_nodes import ClusterNodes, Sieve

__all__ = ["Listing", "split_list"]

_LISTING_LIVES: Final = 60.0
"""Seconds after which a listing that was broken off is begun anew."""

_LIST_HEAD: Final = re.compile(rb'\{"kind":"NodeList","apiVersion":"v1","metadata":(\{[^{}]*\}),"items":\[')


@dataclass(slots=True)
class Listing:
    """A list of all Nodes, as far as it has been read."""

    cluster: ClusterNodes
    sieve: Sieve
    version: str = ""
    rest: str = ""
    complete: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def stale(self) -> bool:
        """Whether it is too old to go on with."""
        return time.monotonic() - self.since > _LISTING_LIVES

    def put(self, name: str, record: Record | None) -> None:
        """Take in a Node."""
        self.cluster.put(name, record)


def split_list(text: bytes, sieve: Sieve) -> tuple[Mapping[str, Any], Iterator[Any]]:
    """Metadata and items of a list. One item after the other: read at once they would take ten times the memory."""
    head = _LIST_HEAD.match(text)
    if head is None:
        answer = parsed(text)
        return answer["metadata"], iter(answer["items"] or ())
    return parsed(head[1]), _items(text, head.end(), sieve)


def _items(text: bytes, at: int, sieve: Sieve) -> Iterator[Any]:
    while (cut := sieve.cut_out(text, at)) is not None:
        part, at = cut
        yield parsed(part.decode())
    yield from parsed(b'{"items":[' + text[at:])["items"]  # the last one; all, of a server that writes otherwise
