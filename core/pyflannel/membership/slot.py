"""What the lease keeper says, as state: one slot that holds the newest truth, and which of it is still unread.

The keeper writes whenever it knows better; the daemon's loop drains whenever it gets round to it. Between two drains,
many changes of one key are one, and a generation that came and went was never there. Nothing is lost by a reader that
fails: it asks for everything again, and everything is here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pyflannel.backend import Backend, Node
from pyflannel.errors import PyflannelError
from pyflannel.network.lease import IPAddress, Lease

__all__ = ["Drained", "Generation", "LeaseState", "Slot"]


@dataclass(frozen=True, slots=True)
class LeaseState:
    """How our lease and our view of the store stand; replaced as a whole.

    Times are on the keeper's clock. ``trouble`` is empty while all is well, and ``connected`` says whether none of it
    is the store's; ``conflict`` says that the trouble is another node's claim, which nobody but an operator (or time)
    resolves. ``fatal`` is set when nothing will help but another configuration, only ever before the first generation.
    ``published`` is the number of the newest request to publish that was carried out
    (:meth:`pyflannel.membership.keeper.LeaseKeeper.publish`), ``publish_error`` how it failed if it did. ``twin`` says
    that another machine has our node id, and what became of it; empty if none has. ``chosen`` are the addresses that an
    operator wants for this node, as the store had them when we joined last. ``refused`` says why the network document
    that the store holds is not the one in force; empty while it is.
    """

    lease: Lease | None = None
    permanent: bool = False
    expires_at: float | None = None
    renewed_at: float | None = None
    trouble: str = ""
    connected: bool = True
    conflict: bool = False
    fatal: PyflannelError | None = None
    published: int = 0
    publish_error: PyflannelError | None = None
    twin: str = ""
    chosen: tuple[IPAddress, ...] = ()
    refused: str = ""

    def valid(self, now: float) -> bool:
        """Whether we hold a lease that has not expired."""
        return self.lease is not None and (self.expires_at is None or self.expires_at > now)


@dataclass(frozen=True, slots=True)
class Generation:
    """What this node is part of: it holds ``lease``, and ``node`` is its place. A new one replaces it as a whole.

    ``last`` is the network's last change, by whose end others may be late. ``overruled`` names a setting of this node
    that counts less than the network config.
    """

    number: int
    node: Node
    backend: Backend[Any]
    lease: Lease
    last: str = ""
    overruled: str = ""


@dataclass(frozen=True, slots=True)
class Drained:
    """What is new since the last drain.

    ``generation`` is the newest one, read before or not. ``dirty`` has other nodes' leases that changed: key to text,
    ``None`` for one that is gone. With a new generation it is empty: :meth:`Slot.records` has them all.
    """

    generation: Generation | None
    dirty: Mapping[str, str | None] = field(default_factory=dict)


class Slot:
    """See the module's docstring. Every method may be called from any thread.

    :param wake: called after every change, in the writer's thread; must not block.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._state = LeaseState()
        self._generation: Generation | None = None
        self._drained: Generation | None = None
        self._records: dict[str, str] = {}
        self._created: dict[str, int] = {}
        self._dirty: set[str] = set()

    # The keeper's side

    def report(self, state: LeaseState) -> None:
        """Say how our lease stands."""
        if state != self._state:
            self._state = state
            self._wake()

    def begin(
        self,
        generation: Generation,
        records: Mapping[str, str] | None = None,
        created: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """A new generation, with all other nodes' leases; ``None``: with those that are known already.

        :param created: the place of each in the order of creation, as far as the store tells it.
        """
        with self._lock:
            self._generation = generation
            if records is not None:
                self._records, self._created = dict(records), dict(created)
        self._wake()

    def change(
        self, changes: Iterable[tuple[str, str | None]], created: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Other nodes' leases changed: key and text, ``None`` for one that is gone.

        :param created: see :meth:`begin`.
        """
        with self._lock:
            for key, value in changes:
                self._created.pop(key, None)
                if value is None:
                    self._records.pop(key, None)
                else:
                    self._records[key] = value
                    if key in created:
                        self._created[key] = created[key]
                self._dirty.add(key)
        self._wake()

    # The reader's side

    @property
    def state(self) -> LeaseState:
        """How our lease stands."""
        return self._state

    def drain(self) -> Drained:
        """What is new since the last call."""
        with self._lock:
            fresh = self._generation is not self._drained
            dirty = {} if fresh else {key: self._records.get(key) for key in self._dirty}
            self._dirty.clear()
            self._drained = self._generation
            return Drained(self._generation, dirty)

    def created(self, key: str) -> int:
        """A lease's place in the order of creation; 0 if it is not known."""
        return self._created.get(key, 0)

    def records(self) -> dict[str, str]:
        """All other nodes' leases: key to text. What is drained later is newer than this."""
        with self._lock:
            return dict(self._records)
