"""Bugs to plant into a daemon: each is a patch of the real code that makes one mistake which somebody might make.

A simulation is worth what it finds. Every one of these is a small thing, and most do no harm until something else goes
wrong at the same time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pyflannel.errors import ConflictError, HistoryGoneError, PyflannelError
from pyflannel.kernel.model import Key, Kind
from pyflannel.kernel.port import Notice
from pyflannel.kernel.tracker import Tracker
from pyflannel.membership import machine as machines
from pyflannel.membership import obtaining, publishing, renewal, session, watching
from pyflannel.membership.machine import LeaseMachine
from pyflannel.membership.slot import Slot
from pyflannel.membership.state import KeeperState, Pause, StoreSession
from pyflannel.network.change import LEASE_KEY, Phase
from pyflannel.planning import judging
from pyflannel.planning import overlay as overlays
from pyflannel.planning import transition as transitions
from pyflannel.planning.feed import Feed
from pyflannel.planning.overlay import Overlay
from pyflannel.store import Batch, Snapshot
from pyflannel.storetools import change as drives
from pyflannel.testing.simulation import stores as models

Plant = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Plant] = {}
"""What the mistake is, and the patch that makes it."""

KNOWN: dict[str, int] = {
    "doesn't renew while the document can't be followed or the backend says nothing": 10,
    "gives up renewing after a failure": 33,
    "takes a lease that is gone for one that it still holds": 10,
    "ignores that its lease was deleted": 19,
    "takes compacted history for a broken stream": 6,
    "tells nobody that its address has changed": 2,
    "never opens a watch again that was open for long": 2,
    "doesn't wake the loop": 2,
    "takes a changed lease for the one it knows": 2,
    "never sweeps": 10,
    "takes a lost notification for nothing": 2,
    "doesn't try a refused object again": 3,
    "doesn't repair forwarding entries": 6,
    "doesn't tell a new data plane of peers that it has told the former one": 53,
    "programs what leads to its own address": 1,
    "sends by the new settings while others are still preparing": 2,
    "a driver that renews what has gone": 9,
    "a driver whose watch begins one change too late": 9,
}
"""A seed whose history shows it, where the first one does not."""


def bug(what: str) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        BUGS[what] = plant
        return plant

    return note


def swap(patch: pytest.MonkeyPatch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put what ``make`` makes of a method in its place."""
    patch.setattr(owner, name, make(getattr(owner, name)))


# The lease keeper -----------------------------------------------------------------------------------------------------


@bug("doesn't renew while the document can't be followed or the backend says nothing")
def _(patch: pytest.MonkeyPatch) -> None:
    swap(
        patch,
        renewal,
        "due",
        lambda right: lambda state: right(state) if not {"follow", "publish"} & {*state.troubles} else None,
    )


@bug("gives up renewing after a failure")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def renewed(state: KeeperState, result: Any) -> None:
            right(state, result)
            if isinstance(result, PyflannelError) and not isinstance(result, ConflictError):
                state.pauses["renew"].at = None

        return renewed

    swap(patch, renewal, "renewed", make)


@bug("renews only when the lease ends")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def hold(state: KeeperState, record: Any, since: float) -> None:
            right(state, record, since)
            if state.pauses["renew"].at is not None:
                state.pauses["renew"].at = since + state.options.ttl + 2

        return hold

    swap(patch, renewal, "hold", make)


@bug("reckons a lease's life from the answer, and twice as long")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def hold(state: KeeperState, record: Any, since: float) -> None:
            right(state, record, since)
            if state.lease_state.expires_at is not None:
                state.lease_state = replace(state.lease_state, expires_at=state.now + 2 * state.options.ttl)

        return hold

    swap(patch, renewal, "hold", make)


@bug("takes a lease that is gone for one that it still holds")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def renewed(state: KeeperState, result: Any) -> None:
            if isinstance(result, ConflictError) and state.held is not None:
                renewal.hold(state, state.held, state.now)
            else:
                right(state, result)

        return renewed

    swap(patch, renewal, "renewed", make)


@bug("ignores that its lease was deleted")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def changed(state: KeeperState, session: Any, record: Any) -> None:
            if record is not None:
                right(state, session, record)

        return changed

    swap(patch, watching, "own_changed", make)
    patch.setattr(session, "CONFIRM_INTERVAL", 1e9)


@bug("believes the first snapshot it took")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def came_back(self: Any, pending: Any, result: Any) -> None:
            if isinstance(result, Snapshot):
                first = self.__dict__.setdefault("first", result)
                result = replace(first, revision=result.revision)
            right(self, pending, result)

        return came_back

    swap(patch, LeaseMachine, "_came_back", make)


@bug("doesn't look at leases when it allocates")
def _(patch: pytest.MonkeyPatch) -> None:
    swap(
        patch,
        obtaining,
        "allocate",
        lambda right: lambda network, taken, previous, rng, kept: right(network, (), previous, random.Random(0), kept),
    )
    patch.setattr(obtaining, "CREATE_ATTEMPTS", 1)


@bug("takes compacted history for a broken stream")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def failed(state: KeeperState, session: Any, error: Any) -> None:
            if isinstance(error, HistoryGoneError):
                session.watch = None
                state.pauses["watch"].at = None
            else:
                right(state, session, error)

        return failed

    swap(patch, watching, "failed", make)


@bug("tells nobody that its address has changed")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def attributes(state: KeeperState, place: Any, subnets: Any, before: Any) -> Any:
            said = yield from right(state, place, subnets, before)
            return said if before.public_ip is None else replace(said, public_ip=before.public_ip)

        return attributes

    swap(patch, publishing, "our_attributes", make)


@bug("never opens a watch again that was open for long")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def failed(state: KeeperState, session: StoreSession, error: Any) -> None:
            right(state, session, error)
            if state.session is session and state.now - session.watch_opened > 600:
                state.pauses["watch"].at = None

        return failed

    swap(patch, watching, "failed", make)


@bug("asks for a new store without end")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pause, "put_off", lambda self, now: setattr(self, "at", now))


@bug("lets a store that hangs hang for ever")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machines, "GIVEN_UP_AFTER", 1e9)
    patch.setattr("pyflannel.testing.simulation.node.SimulatedNode.let_go", lambda self: None)


# Between keeper and loop ----------------------------------------------------------------------------------------------


@bug("drops one change of a batch")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def take_in(state: KeeperState, session: Any, batch: Batch) -> None:
            right(state, session, replace(batch, changes=batch.changes[:1]))

        return take_in

    swap(patch, watching, "take_in", make)


@bug("keeps leases that are gone")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def change(self: Slot, changes: Iterable[tuple[str, str | None]], created: Mapping[str, int]) -> None:
            right(self, [(key, value) for key, value in changes if value is not None], created)

        return change

    swap(patch, Slot, "change", make)


@bug("doesn't wake the loop")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def change(self: Slot, changes: Iterable[tuple[str, str | None]], created: Mapping[str, int]) -> None:
            wake, self._wake = self._wake, lambda: None
            right(self, changes, created)
            self._wake = wake

        return change

    swap(patch, Slot, "change", make)


# The overlay ----------------------------------------------------------------------------------------------------------


@bug("doesn't look where a lease lies and leads")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(overlays, "placement_problem", lambda network, lease: "")


@bug("programs what leads to its own address")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(judging, "_unusable", lambda address: "")


@bug("takes a changed lease for the one it knows")
def _(patch: pytest.MonkeyPatch) -> None:
    swap(
        patch,
        Overlay,
        "put",
        lambda right: (
            lambda self, key, value, created: None if key in self._peers else right(self, key, value, created)
        ),
    )


# The kernel -----------------------------------------------------------------------------------------------------------


@bug("sweeps before the snapshot")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def init(self: Tracker, *arguments: Any) -> None:
            right(self, *arguments)
            self.sweep = True

        return init

    swap(patch, Tracker, "__init__", make)
    swap(
        patch,
        Slot,
        "begin",
        lambda right: (
            lambda self, generation, *records: right(self, generation, *(({},) if generation.number == 1 else records))
        ),
    )


@bug("never sweeps")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tracker, "sweep", property(lambda self: False, lambda self, value: None), raising=False)


@bug("takes a lost notification for nothing")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def observe(self: Tracker, notice: Notice) -> None:
            right(self, replace(notice, resync=False))

        return observe

    swap(patch, Tracker, "observe", make)
    patch.setattr(Tracker, "request_resync", lambda self: None)


@bug("doesn't try a refused object again")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def fail(self: Tracker, refused: Mapping[Key, Any], now: float) -> None:
            right(self, refused, now)
            for key in refused:
                self._noted.pop(key, None)
                self._failures.pop(key, None)
            self._resync = False

        return fail

    swap(patch, Tracker, "_fail", make)
    patch.setattr(Tracker, "request_resync", lambda self: None)


@bug("doesn't repair forwarding entries")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def see(self: Tracker, key: Key, item: Any) -> None:
            if key[0] is not Kind.FDB or item is not None:
                right(self, key, item)

        return see

    swap(patch, Tracker, "_see", make)


# A change of the network ----------------------------------------------------------------------------------------------


@bug("sends by the new settings while others are still preparing")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(transitions, "sends_new", lambda phase, peer, own: phase is not Phase.BACK)


@bug("stops receiving by the former settings as soon as it may send by the new ones")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(transitions, "receives", lambda phase, graced: (phase in (Phase.PREPARE, Phase.BACK), True))


@bug("moves the change on without waiting for anybody")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(drives, "finished", lambda change, steps, without=(): ())


@bug("doesn't tell which change it has been through")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def attributes(state: KeeperState, place: Any, subnets: Any, before: Any) -> Any:
            said = yield from right(state, place, subnets, before)
            return replace(said, extra={name: value for name, value in said.extra.items() if name != LEASE_KEY})

        return attributes

    swap(patch, publishing, "our_attributes", make)


# The data plane -------------------------------------------------------------------------------------------------------


@bug("doesn't tell a new data plane of peers that it has told the former one")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def check(self: Feed, plane: Any, now: float) -> None:
            told, owners = self._told, self._owners
            right(self, plane, now)
            self._told, self._owners = told, owners

        return check

    swap(patch, Feed, "_check", make)


# The store's driver ---------------------------------------------------------------------------------------------------


@bug("a driver that skips the compare-and-swap of a new lease")
def _(patch: pytest.MonkeyPatch) -> None:
    def create(self: Any, key: str, value: str, ttl: float | None) -> Any:
        return self.model._write(key, value, ttl)

    patch.setattr(models.SimulatedStore, "create", create)
    swap(
        patch,
        obtaining,
        "allocate",
        lambda right: (
            lambda network, taken, previous, rng, kept: right(network, taken, previous, random.Random(0), kept)
        ),
    )


@bug("a driver that renews what has gone")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def renew(self: Any, record: Any, ttl: float) -> Any:
            try:
                return right(self, record, ttl)
            except ConflictError:
                return record

        return renew

    swap(patch, models.SimulatedStore, "renew", make)


@bug("a driver whose watch begins one change too late")
def _(patch: pytest.MonkeyPatch) -> None:
    def make(right: Any) -> Any:
        def told(self: Any, revision: str) -> Batch:
            batch: Batch = right(self, revision)
            return replace(batch, changes=batch.changes[1:]) if len(batch.changes) > 1 else batch

        return told

    for kind in (models._EtcdStore, models._ConsulStore, models._KubernetesStore):
        swap(patch, kind, "told", make)
