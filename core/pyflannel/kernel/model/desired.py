"""All that a node's kernel should hold, as one value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeAlias

from pyflannel.kernel.model.entries import Address, FdbEntry, Neighbour, Qdisc, Sysctl
from pyflannel.kernel.model.keys import Key
from pyflannel.kernel.model.labels import MplsRoute
from pyflannel.kernel.model.links import Link
from pyflannel.kernel.model.routes import Route, Rule
from pyflannel.kernel.model.tunnels import WireguardDevice, WireguardPeer, XfrmPolicy

__all__ = ["DesiredState", "KernelObject", "listed"]

KernelObject: TypeAlias = (
    Link
    | Sysctl
    | Address
    | Neighbour
    | FdbEntry
    | WireguardDevice
    | WireguardPeer
    | Route
    | Rule
    | Qdisc
    | XfrmPolicy
    | MplsRoute
)
"""Whatever a plan may hold."""


MOST_OBJECTS: Final = 1 << 20
"""More than any node can need: what goes on beyond that has no end."""


def listed(objects: Iterable[KernelObject]) -> tuple[KernelObject, ...]:
    """All of a plan's objects.

    :raises ValueError: there is no end of them.
    """
    found = tuple(islice(objects, MOST_OBJECTS + 1))
    if len(found) > MOST_OBJECTS:
        raise ValueError(f"more than {MOST_OBJECTS} objects: does what yields them come to an end?")
    return found


class DesiredState:
    """A set of kernel objects in which every key occurs once. Immutable; compares by content.

    :raises ValueError: two different objects have one key, or there is no end of them.
    """

    __slots__ = ("_by_key", "_objects")

    def __init__(self, objects: Iterable[KernelObject] = ()) -> None:
        self._objects = listed(objects)
        self._by_key: dict[Key, KernelObject] | None = None
        if len(set(map(type, self._objects))) < len(self._objects):  # or no two can have one key
            self._objects = tuple(self._keyed().values())

    def _keyed(self) -> dict[Key, KernelObject]:
        """The objects by key."""
        if self._by_key is None:
            found: dict[Key, KernelObject] = {}
            for item in self._objects:
                first = found.setdefault(item.key, item)
                if first is not item and first != item:
                    raise ValueError(f"two objects for one key: {first} and {item}")
            self._by_key = found
        return self._by_key

    def __iter__(self) -> Iterator[KernelObject]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DesiredState) and self._keyed() == other._keyed()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DesiredState({list(self._objects)!r})"

    def get(self, key: Key) -> KernelObject | None:
        """The object under ``key``, if any."""
        return self._keyed().get(key)

    def keys(self) -> Iterable[Key]:
        """The keys of all objects."""
        return self._keyed().keys()
