"""By which id this machine goes, where another one may have the same: a pure judgement of the leases in the store.

A machine that was copied has its original's machine id, and so its node id. A lease that lives and was written by
another machine under our node id is that machine's: it is never written to, and this machine takes a lease of its own
under an id derived from the first, which it finds again by its marks. A node that comes back with another address, or
after a reboot, has the marks that its lease has, and goes on with it. Where marks are missing (a lease that an older
pyflannel wrote) the node id alone decides, as it did then.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyflannel.membership.nodeid import APPLICATION_ID, machine_specific
from pyflannel.network.lease import IPAddress, Lease, LeaseAttributes
from pyflannel.network.marks import NO_MARKS, Kinship, Marks

__all__ = ["Myself", "Naming", "state_directory"]


@dataclass(frozen=True, slots=True)
class Naming:
    """The node id to go by, and the lease of another machine that has ours, if there is one."""

    node_id: str
    twin: Lease | None = None


@dataclass(frozen=True, slots=True)
class Myself:
    """This machine: the node id that it has by its machine id or settings, its marks, its addresses on the underlay."""

    node_id: str
    marks: Marks = NO_MARKS
    addresses: frozenset[IPAddress] = frozenset()

    def is_twins(self, attributes: LeaseAttributes, name: str = "") -> bool:
        """Whether another machine wrote a lease under our node id, or under ``name``.

        One with our very addresses is none: it is this node, on other hardware. Two machines with one address would
        be in each other's way without us.
        """
        if attributes.node_id not in (self.node_id, name or self.node_id):
            return False
        return self.marks.kinship(attributes.marks) is Kinship.OTHER and not self._is_here(attributes)

    def _is_here(self, attributes: LeaseAttributes) -> bool:
        theirs = {attributes.public_ip, attributes.public_ipv6} - {None}
        return bool(theirs) and theirs <= self.addresses

    def owns(self, attributes: LeaseAttributes) -> bool:
        """Whether a lease is this machine's, under whichever id it goes."""
        return self._as_twin(attributes) or (attributes.node_id == self.node_id and not self.is_twins(attributes))

    def _as_twin(self, attributes: LeaseAttributes) -> bool:
        """Whether it is the lease that we took because another machine had our id; we may have got a new one since."""
        if attributes.twin_of is None or self.marks.kinship(attributes.marks) is not Kinship.SAME:
            return False
        return attributes.twin_of == self.node_id or bool(self.marks.cards & attributes.marks.cards)

    def is_copys(self, attributes: LeaseAttributes) -> bool:
        """Whether another machine wrote a lease that would go by our id if we didn't."""
        return attributes.twin_of == self.node_id and not self._as_twin(attributes)

    def name(self, leases: Iterable[Lease], present: str = "", held: bool = False) -> Naming:
        """By which id to go.

        :param leases: all that name us.
        :param present: the id that this machine goes by already. It gives up the first one only if it must, and never
            goes back to it while it runs.
        :param held: it has held a lease under that id since it was started, so what a copy may have held isn't its own.
        """
        found = list(leases)
        named = [lease for lease in found if lease.attributes.node_id == self.node_id]
        twin = next((lease for lease in named if self.is_twins(lease.attributes)), None)
        if present and present != self.node_id:
            return Naming(present, twin)
        earlier = next((lease.attributes.node_id for lease in found if self._as_twin(lease.attributes)), None)
        # With a lease under our first id at our address, it is a copy alike in every mark that has taken the other one.
        here = any(
            self._is_here(lease.attributes) and self.marks.kinship(lease.attributes.marks) is not Kinship.OTHER
            for lease in named
        )
        if earlier is not None and not here and not held:
            return Naming(earlier, twin or next(iter(named), None))
        own = any(not self.is_twins(lease.attributes) for lease in named)
        return Naming(self.node_id if own or twin is None else self.derived, twin)

    @property
    def derived(self) -> str:
        """The id that this machine goes by if another one has ours: the same for the same machine."""
        marks = self.marks
        told = [self.node_id, marks.product, *sorted(marks.cards)]
        if not marks.product and not marks.cards:
            told.append(marks.run)
        return str(machine_specific(APPLICATION_ID, uuid.uuid5(APPLICATION_ID, "\n".join(told))))


def state_directory(state_dir: Path, node_id: str, name: str) -> Path:
    """Where a node that goes by ``name`` keeps what must outlive reboots.

    What is in ``state_dir`` itself was copied with the machine: a private key in it is the original's, and a second
    node that shows its public half would take the original's packets.
    """
    return state_dir if name == node_id else state_dir / name
