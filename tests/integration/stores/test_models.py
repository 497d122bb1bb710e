"""The models of stores that simulations use, held against the real servers: one random history on both.

Whatever a real driver answers, the model must answer, too: which calls are refused and how, what a snapshot holds,
which versions are equal, and that what a watch tells is a way from one state to the next that the model knows. Else a
simulation proves something about a store that nobody has.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.servers import consul as consul_servers
from tests.servers import etcd as etcd_servers
from tests.waiting import until

from pyflannel.errors import ConflictError, StoreError
from pyflannel.store import CONFIG_KEY, Change, Record, Store, StoreLocation
from pyflannel.testing.simulation import MODELS, SimulatedStore
from pyflannel_stores.consul import ConsulStore
from pyflannel_stores.etcd import EtcdStore
from pyflannel_stores.file import FileStore

KEYS = ("10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24&fd00:5:0:3::-64", "nonsense")
VALUES = ("{}", '{"PublicIP":"192.0.2.1"}', "not JSON", "")  # as the file store writes JSON: without blanks
LONG = 3600.0
SHORTEST = {"etcd": 2.0, "consul": 10.0, "file": 1.0}
"""Lives of leases in seconds that are worth waiting for."""

Open = Callable[[], Store]


@pytest.fixture(scope="module", params=["etcd", "consul", "file"])
def kind(request: pytest.FixtureRequest) -> Iterator[tuple[str, Callable[[str], Store]]]:
    """The name of a kind of store, and what opens a real one under a name."""
    with ExitStack() as stack:
        if request.param == "etcd":
            if etcd_servers.MISSING:
                pytest.skip(etcd_servers.MISSING)
            etcd = stack.enter_context(etcd_servers.etcd())
            yield "etcd", lambda name: EtcdStore(StoreLocation.parse(f"etcd://{etcd.hosts}/{name}"))
        elif request.param == "consul":
            if consul_servers.MISSING:
                pytest.skip(consul_servers.MISSING)
            consul = stack.enter_context(consul_servers.consul())
            yield "consul", lambda name: ConsulStore(StoreLocation.parse(f"consul://{consul.hosts}/{name}"))
        else:
            folder: Path = request.getfixturevalue("tmp_path_factory").mktemp("file")
            yield "file", lambda name: FileStore(StoreLocation.parse(f"file://{folder}/{name}"))


class Pair:
    """Two drivers of a real store and two of its model, to which the same things are done."""

    def __init__(self, scheme: str, open_real: Callable[[str], Store], seed: int, stack: ExitStack) -> None:
        self.rng = random.Random(seed)
        name = uuid.uuid4().hex
        self.model = MODELS[scheme](random.Random(0))
        self.model.advance(1000.0)
        self.simulated: list[SimulatedStore] = [self.model.open("one"), self.model.open("other")]
        self.real = [stack.enter_context(open_real(name)) for _ in range(2)]
        self.known: dict[str, list[tuple[Record, Record]]] = {}
        self.versions: dict[str, str] = {}
        self.history: list[Change] = []

    def both(self, call: Callable[[Store, int], Any]) -> tuple[Any, Any]:
        """What the model and the real store answer; a driver of each is chosen at random."""
        which = self.rng.randrange(2)
        return _answer(call, self.simulated[which], 0), _answer(call, self.real[which], 1)

    def step(self) -> None:
        """Do one thing to both, and compare."""
        act = self.rng.choice(
            (self.create, self.create, self.update, self.update, self.renew, self.delete, self.config)
        )
        act()

    def create(self) -> None:
        key, value, ttl = self.rng.choice(KEYS), self.rng.choice(VALUES), self.rng.choice((LONG, LONG, None))
        self.written(key, self.both(lambda store, _: store.create(key, value, ttl)))

    def update(self) -> None:
        pair = self.some()
        if pair is not None:
            value = f"{self.rng.choice(VALUES)}#{self.rng.random()}"  # Consul may not tell a write of the same value
            self.written(pair[0].key, self.both(lambda store, side: store.update(pair[side], value, LONG)))

    def renew(self) -> None:
        pair = self.some()
        if pair is not None:
            self.written(pair[0].key, self.both(lambda store, side: store.renew(pair[side], LONG)))

    def delete(self) -> None:
        pair = self.some()
        if pair is not None:
            simulated, real = self.both(lambda store, side: store.delete(pair[side]))
            assert (simulated, real) in ((None, None), (ConflictError, ConflictError))

    def config(self) -> None:
        value = f'{{"Network":"10.5.0.0/16","Comment":"{self.rng.random()}"}}'
        known = self.known.get(CONFIG_KEY)
        pair = None if not known or self.rng.random() < 0.2 else self.rng.choice(known)
        self.written(CONFIG_KEY, self.both(lambda store, side: store.write_config(value, pair and pair[side])))

    def some(self) -> tuple[Record, Record] | None:
        """A record as it was some time: mostly as it is."""
        keys = [key for key in self.known if key != CONFIG_KEY]
        if not keys:
            return None
        known = self.known[self.rng.choice(keys)]
        return known[-1] if self.rng.random() < 0.7 else self.rng.choice(known)

    def written(self, key: str, answers: tuple[Any, Any]) -> None:
        simulated, real = answers
        if not isinstance(simulated, Record) or not isinstance(real, Record):
            assert simulated is real, f"{key}: the model answers {simulated}, the real store {real}"
            return
        self.same(simulated, real)
        self.known.setdefault(key, []).append((simulated, real))

    def same(self, simulated: Record, real: Record) -> None:
        assert (simulated.key, simulated.value, simulated.permanent) == (real.key, real.value, real.permanent)
        version = self.versions.setdefault(f"{real.key} {real.version}", simulated.version)
        assert version == simulated.version, "two states of the model are one of the real store"

    def compare(self) -> None:
        """Both hold the same."""
        simulated, real = self.both(lambda store, _: store.snapshot())
        assert {record.key for record in simulated.leases} == {record.key for record in real.leases}
        other = {record.key: record for record in real.leases}
        for record in simulated.leases:
            self.same(record, other[record.key])
        by_age = sorted(simulated.leases, key=lambda record: record.created)
        assert [record.key for record in by_age] == sorted(other, key=lambda key: other[key].created), "another order"
        assert (simulated.config is None) == (real.config is None)
        if simulated.config is not None:
            self.same(simulated.config, real.config)


def _answer(call: Callable[[Store, int], Any], store: Store, side: int) -> Any:
    try:
        return call(store, side)
    except StoreError as error:
        return type(error)


@pytest.mark.parametrize("seed", range(4))
def test_one_history_has_the_same_answers(kind: tuple[str, Callable[[str], Store]], seed: int) -> None:
    with ExitStack() as stack:
        pair = Pair(*kind, seed, stack)
        for number in range(80):
            pair.step()
            if number % 10 == 0:
                pair.compare()
        pair.compare()
        assert len(pair.versions) > 10


@pytest.mark.parametrize("seed", range(2))
def test_what_a_watch_tells_is_what_the_model_may_tell(kind: tuple[str, Callable[[str], Store]], seed: int) -> None:
    with ExitStack() as stack:
        pair = Pair(*kind, seed, stack)
        pair.create()
        begin, real_begin = pair.simulated[0].snapshot(), pair.real[0].snapshot()
        watch = stack.enter_context(pair.real[0].watch(real_begin.revision))
        known = len(pair.model._history)
        for _ in range(40):
            pair.step()
        end = {record.key: record.value for record in pair.simulated[0].snapshot().leases}
        # What each key went through, as the model has it. A real watch may leave out states, but neither invent any
        # nor tell them in another order, and its last word is how it ends.
        went: dict[str, list[str | None]] = {record.key: [record.value] for record in begin.leases}
        for change in pair.model._history[known:]:
            went.setdefault(change.key, [None]).append(change.record.value if change.record is not None else None)
        told: dict[str, int] = {}
        ages: dict[str, int] = {}
        state: dict[str, str | None] = {record.key: record.value for record in real_begin.leases}
        while {key: value for key, value in state.items() if value is not None and key != CONFIG_KEY} != end:
            for change in next(watch).changes:
                value = change.record.value if change.record is not None else None
                told[change.key] = went[change.key].index(value, told.get(change.key, 0))
                state[change.key] = value
                if change.record is not None:
                    ages[change.key] = change.record.created
        shown = {record.key: record.created for record in pair.real[0].snapshot().leases}
        assert {**shown, **{key: age for key, age in ages.items() if key in shown}} == shown


def test_a_lease_lives_as_long_as_the_model_says_at_least(kind: tuple[str, Callable[[str], Store]]) -> None:
    scheme, open_real = kind
    ttl = SHORTEST[scheme]
    model = MODELS[scheme](random.Random(1))
    with open_real(uuid.uuid4().hex) as store:
        begin = time.monotonic()
        store.create(KEYS[0], "{}", ttl)
        until(lambda: not store.snapshot().leases, "the lease never ends", 60)
        lived = time.monotonic() - begin
    tolerance = 0.5 if scheme == "file" else 0.0
    assert lived >= ttl - tolerance, "it ended earlier than the model has any end"
    assert all(model.lag(ttl) >= 0 for _ in range(100))
