"""What tells apart two machines that go by one node id, as a cloned image and its original do.

A lease carries the marks of the machine that wrote it, beside flannel's fields. Each mark is a hash, so that a store
that many read has neither serial numbers nor hardware addresses. :meth:`Marks.kinship` is the whole judgement; what it
can't tell, it says is unknown, and never guesses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

__all__ = ["MOST_CARDS", "NO_MARKS", "Kinship", "Marks"]

MOST_CARDS: Final = 64
LONGEST_MARK: Final = 64
"""Of what somebody else wrote, more is not read."""


class Kinship(Enum):
    """How the machine that wrote a lease stands to this one."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Marks:
    """A machine's marks; an empty one is not known.

    :param run: this boot of the kernel, and this network namespace in it: as long as both last, it is one machine.
    :param product: the machine's own number: of its firmware, its board, or what its hypervisor gave it.
    :param cards: the lasting hardware addresses of its network cards.
    """

    run: str = ""
    product: str = ""
    cards: frozenset[str] = frozenset()

    def kinship(self, other: Marks) -> Kinship:
        """Whether both are of one machine.

        No reboot changes a product number, and no new address the cards. A machine that is copied gets other cards at
        least, or it could not be on one link with the original. A card may be replaced or added, so one in common is
        enough.
        """
        if self.product and other.product and self.product != other.product:
            return Kinship.OTHER
        if self.run and self.run == other.run:
            return Kinship.SAME
        if self.cards and other.cards:
            return Kinship.SAME if self.cards & other.cards else Kinship.OTHER
        return Kinship.SAME if self.product and self.product == other.product else Kinship.UNKNOWN

    @classmethod
    def from_document(cls, document: Any) -> Marks:
        """Read what a lease has under ``Machine``. What isn't of the right form is as if it weren't there."""
        if not isinstance(document, Mapping):
            return NO_MARKS
        cards = document.get("Cards")
        texts = cards[:MOST_CARDS] if isinstance(cards, list) else []
        return cls(_mark(document.get("Run")), _mark(document.get("Product")), frozenset(_marks(texts)))

    def to_document(self) -> dict[str, Any]:
        """As :meth:`from_document` reads it; empty if nothing is known."""
        document = {"Run": self.run, "Product": self.product, "Cards": sorted(self.cards)}
        return {name: value for name, value in document.items() if value}


NO_MARKS: Final = Marks()


def _mark(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= LONGEST_MARK else ""


def _marks(values: Iterable[Any]) -> Iterable[str]:
    return filter(None, map(_mark, values))
