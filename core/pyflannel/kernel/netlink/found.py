"""What a dump brings together: all that is there, or only what is not as it is wanted.

Nearly everything is as it was written. Whoever asks just for the differences has such entries passed over by their
bytes (:mod:`~pyflannel.kernel.expected`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set

from pyflannel.kernel.expected import Expected
from pyflannel.kernel.model import FdbEntry, KernelObject, Key, Kind, Route
from pyflannel.kernel.packed import PACKED_KINDS, plans_of
from pyflannel.kernel.port import SEVERAL

__all__ = ["Different", "Found"]


class Found:
    """What a dump brings together; values that are known already are not kept twice."""

    def __init__(self, known: Mapping[Key, KernelObject]) -> None:
        self.objects: dict[Key, KernelObject] = {}
        self._known = known

    def add(self, item: KernelObject) -> None:
        """Of several under one key, the first counts."""
        key = item.key
        known = self._known.get(key)
        self.objects.setdefault(key, known if known is not None and known == item else item)

    def update(self, items: Iterable[KernelObject]) -> None:
        """Add each."""
        for item in items:
            self.add(item)

    def add_fdb(self, item: FdbEntry) -> None:
        """Of several under one key, none does."""
        if item.key in self.objects:
            self.objects[item.key] = FdbEntry(item.link, item.mac, SEVERAL)
        else:
            self.add(item)

    def take(self, datagram: bytes, start: int, end: int) -> bool:
        """Whether this message, of the kind that is being read, need not be looked into."""
        return False

    def begin(self, kind: Kind) -> None:
        """What follows, up to :meth:`end`, is of this kind."""

    def end(self) -> None:
        """That was all of a kind."""

    @property
    def links(self) -> Set[int]:
        """The indexes of the links of what was taken, and maybe others."""
        return frozenset()


class Different(Found):
    """What of a dump is not as wanted. What is, is not taken apart."""

    def __init__(self, wanted: Mapping[Key, KernelObject], index: Callable[[str], int | None]) -> None:
        super().__init__(wanted)
        self._index = index
        self._expected: Expected | None = None
        self._unheard: list[Expected] = []
        """The kinds of which the kernel has told of nothing that is wanted."""
        self._missing: list[Key] = []

    def begin(self, kind: Kind) -> None:
        """See :meth:`Found.begin`; from here on, what is expected of this kind is passed over."""
        self._expected = Expected(kind, self._known, self._index)

    def take(self, datagram: bytes, start: int, end: int) -> bool:
        """Whether this message says what is expected."""
        return self._expected is not None and self._expected.take(datagram, start, end)

    def add(self, item: KernelObject) -> None:
        """See :meth:`Found.add`; a second route under a key that was told of as expected does not count."""
        if not (isinstance(item, Route) and self._expected is not None and self._expected.told(item.key)):
            super().add(item)

    def end(self) -> None:
        """What was expected and not told of is missing."""
        assert self._expected is not None
        for key, item in self.objects.items():
            if isinstance(item, FdbEntry) and self._expected.told(key):
                self.objects[key] = FdbEntry(item.link, item.mac, SEVERAL)
        if self._expected.heard:
            self._missing += self._expected.untold()
        else:
            self._unheard.append(self._expected)
        self._expected = None

    @property
    def links(self) -> Set[int]:
        """The indexes of the links of what was passed over, and maybe others."""
        return self._expected.links if self._expected is not None else frozenset()

    def differences(self, lacking: list[bytes] | None) -> dict[Key, KernelObject | None]:
        """Under each key what is there, ``None`` for nothing. See :meth:`KernelPort.differing`."""
        found, wanted = self.objects, self._known
        bare = len(self._unheard) == len(PACKED_KINDS) and not any(key[0] in PACKED_KINDS for key in found)
        if lacking is not None and bare:  # as at a first start
            lacking += (plan for plan in plans_of(wanted) if isinstance(plan, bytes))
        else:
            for expected in self._unheard:
                self._missing += expected.untold()
        others = (item.key for plan in plans_of(wanted) if not isinstance(plan, bytes) for item in plan)
        differing: dict[Key, KernelObject | None] = {key: None for key in (*others, *self._missing) if key not in found}
        differing.update((key, item) for key, item in found.items() if wanted.get(key) != item)
        return differing
