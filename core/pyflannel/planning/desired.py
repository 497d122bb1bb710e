"""All that a node's kernel should hold: what the node needs for itself, and one plan for each peer.

Nothing is kept for a single object of a peer's. Who has a kernel key follows from where it lies, for a route or
neighbour within a peer's subnets, and otherwise from a table of the strays, which has one entry for each. The object is
then unpacked from the plan of whoever has the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from pyflannel.kernel.model import KernelObject, Key, Neighbour, Route
from pyflannel.kernel.packed import (
    NEIGHBOUR4,
    NEIGHBOUR6,
    ROUTE4,
    ROUTE6,
    Index,
    Plan,
    Wanted,
    find,
    index,
    is_neighbours,
    part_index,
    parts,
    place_of,
    unpack,
)
from pyflannel.network.lease import Subnets
from pyflannel.network.ranges import Ranges

__all__ = ["NODE", "Desired", "Keys"]

_NEIGHBOURS: Final = (NEIGHBOUR4, NEIGHBOUR6)
_ROUTES: Final = (ROUTE4, ROUTE6)

NODE: Final = ""
"""Who has the kernel keys that the node needs for itself; no lease has this key."""


class Keys(NamedTuple):
    """The keys of a peer's plan: those of which its subnets tell who has them, and the strays."""

    placed: Sequence[Index] = ()
    strays: Sequence[Index] = ()

    @classmethod
    def of(cls, plan: Plan, subnets: Subnets) -> Keys:
        """Sort a plan's keys. Its routes lie within ``subnets``; a neighbour counts as placed at the first address."""
        placed: list[Index] = []
        strays: list[Index] = []
        firsts = [subnet.network_address for subnet in subnets.each]
        if isinstance(plan, bytes):
            own = [first.packed for first in firsts]
            for part in parts(plan):
                form, key = part[0], part_index(part)
                (placed if form in _ROUTES or (form in _NEIGHBOURS and key[2:] in own) else strays).append(key)
        else:
            for item in plan:
                lies = isinstance(item, Route) or (isinstance(item, Neighbour) and item.address in firsts)
                (placed if lies else strays).append(index(item.key))
        return cls(placed, strays)


class Planned(Protocol):
    """A peer, as far as it concerns this module."""

    @property
    def plan(self) -> Plan:
        """What it needs; nothing if it is not used."""


class Desired(Wanted):
    """See the module's docstring.

    :param own: what the node needs for itself.
    :param peers: lease key to peer, live.
    :param ranges: which of them has which addresses, live.
    """

    def __init__(self, own: Iterable[KernelObject], peers: Mapping[str, Planned], ranges: Ranges) -> None:
        self._own = {item.key: item for item in own}
        self._peers, self._ranges = peers, ranges
        self._strays: dict[Index, str] = dict.fromkeys(map(index, self._own), NODE)
        """Who has a key, unless where it lies tells."""
        self._count = len(self._own)
        self._changed: dict[Key, KernelObject | None] | None = None

    def plans(self) -> Iterator[Plan]:
        """The node's own objects, then each peer's as they are kept: packed where they can be."""
        yield tuple(self._own.values())
        for peer in list(self._peers.values()):
            if peer.plan:
                yield peer.plan

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: Key) -> KernelObject:
        if key in self._own:
            return self._own[key]
        holder = self._holder(key)
        item = find(self._peers[holder].plan, key) if holder is not None else None
        if item is None:
            raise KeyError(key)
        return item

    def _holder(self, key: Key) -> str | None:
        """Who has a key, if anybody has."""
        owner = self._strays.get(index(key))
        place = place_of(key) if owner is None else None
        return owner if place is None else self._ranges.at(*place)

    def owner(self, key: Key) -> str | None:
        """Who has a key: a lease's key, :data:`NODE`, or ``None`` for nobody."""
        return self._holder(key) if key in self else None

    def is_free(self, keys: Keys) -> bool:
        """Whether nobody has any key, as far as it does not follow from who has the addresses; may say no if so."""
        taken = self._strays.keys()
        return (
            taken.isdisjoint(keys.placed) and taken.isdisjoint(keys.strays) and not any(map(is_neighbours, keys.strays))
        )

    def rivals(self, plan: Plan, keys: Keys) -> dict[str, Key]:
        """Who has keys of a plan, and which, as far as it does not follow from who has the addresses."""
        if self.is_free(keys):
            return {}  # nearly always
        taken = self._strays.keys()
        held = [item.key for item in unpack(plan)]
        suspects = {each for each in (*keys.placed, *keys.strays) if each in taken or each in keys.strays}
        return {owner: k for k in held if index(k) in suspects and (owner := self.owner(k)) is not None}

    def put(self, holder: str, plan: Plan, keys: Keys) -> None:
        """``holder`` is among the peers now, with a plan."""
        for stray in keys.strays:
            self._strays[stray] = holder
        self._count += len(keys.strays) + len(keys.placed)
        if self._changed is not None:
            for item in unpack(plan):
                self._changed.setdefault(item.key, None)

    def remove(self, plan: Plan, keys: Keys) -> None:
        """Who had this plan is not among the peers any more."""
        for stray in keys.strays:
            del self._strays[stray]
        self._count -= len(keys.strays) + len(keys.placed)
        if self._changed is not None:
            for item in unpack(plan):
                self._changed.setdefault(item.key, item)

    def drain_changed(self) -> dict[Key, KernelObject | None]:
        """The keys under which something changed since the last call, each with what was desired then."""
        changed, self._changed = self._changed, {}
        return changed or {}
