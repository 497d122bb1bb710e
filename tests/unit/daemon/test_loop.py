"""The daemon as a whole, on a kernel twin: whatever one call does, once that is over the node is as it should be."""

from __future__ import annotations

import errno
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.unit.daemon.faulty import Faults, FaultyBackend, FaultyPort, FaultyStore, reading
from tests.unit.daemon.running import INVENTORY, Running, running, settings_in, twin, wanted_and_held
from tests.waiting import until

from pyflannel.daemon.crossing import GRACE, own_progress
from pyflannel.errors import DaemonError, KernelError, PyflannelError, StoreUnavailableError, UnderlayError
from pyflannel.kernel.model import Kind
from pyflannel.membership.slot import Generation
from pyflannel.network.change import NetworkChange, NodeProgress, Phase, Step, read
from pyflannel.network.document import NetworkConfig
from pyflannel.network.underlay import Interface, InterfaceRoute, Inventory
from pyflannel.show.health import STUCK_AFTER, answers
from pyflannel.show.readiness import hanging
from pyflannel.show.status import PeerState, State
from pyflannel.small.guarded import PATIENCE
from pyflannel.store import CALL_TIMEOUT, Store
from pyflannel_stores.file import FileStore

NETWORK = {"Network": "10.5.0.0/16", "Backend": {"Type": "faulty"}}
PEER = "10.5.250.0-24"
OTHER = "10.5.251.0-24"

# Seconds that a lease lives, and before its end it is renewed.
TTL = 6.0
MARGIN = 4.0


def lease(host: int) -> str:
    return json.dumps({"PublicIP": f"192.0.{2 + (host >> 8)}.{host & 0xFF}", "BackendType": "faulty"})


class Clock:
    """Time that passes, and that a test can put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@dataclass
class World:
    """A daemon with faults, and the store as an operator sees it."""

    daemon: Running
    faults: Faults
    backend: FaultyBackend
    outside: Store
    clock: Clock
    said: list[str] = field(default_factory=list)

    def later(self, seconds: float) -> None:
        """Put the clock forward, and have everybody look at it."""
        self.clock.ahead += seconds
        self.daemon.keeper.move(None)
        self.daemon.loop._wake.set()

    def told(self) -> str:
        """All that the daemon says is wrong."""
        window = self.daemon.loop.window
        view = window.view
        status = self.daemon.status()
        details = window.view.details
        assert details is not None
        self.said[:] = [
            status.message,
            view.plane_trouble,
            view.lease.trouble,
            *view.troubles,
            *(peer.reason for peer in status.peers),
            *details.problems.values(),
            *(status.backend.details.values() if status.backend is not None else ()),
        ]
        return "\n".join(self.said)

    def act(self) -> str:
        return self.daemon.loop.actions.ask("faulty", "turn")

    def sound(self) -> bool:
        """Whether everything is as it should be."""
        status = self.daemon.status()
        wanted, held = wanted_and_held(self.daemon)
        peers = {peer.key: peer.state for peer in status.peers}
        leases = {record.key: record.value for record in self.outside.snapshot().leases}
        mine, now = self.daemon.slot.state, self.clock()
        routes = {item.destination for item in wanted.values() if item.key[0] is Kind.ROUTE}
        return (
            status.state is State.READY
            and wanted == held != {}
            and peers == {key: PeerState.OK for key in leases if mine.lease is not None and key != mine.lease.key}
            and routes == {ip_network(key.replace("-", "/")) for key in peers}
            and {subnets.key for subnets in self.backend.told} == (peers.keys() if self.backend.has_plane else set())
            and self.backend.heard == self.backend.turned
            and mine.lease is not None
            and mine.lease.key in leases
            and json.loads(leases[mine.lease.key])["BackendData"] == {"Turned": self.backend.turned}
            and mine.valid(now)
            and not mine.trouble
            and not any(self.daemon.loop.window.view.troubles)
            and not self.daemon.ended
            and "fault" not in (status.backend.details if status.backend is not None else {})
        )

    def recovers(self) -> None:
        """Wait until everything is as it should be, and see that the lease is renewed."""
        self.daemon.until(self.sound)
        before = self.daemon.slot.state.renewed_at
        self.later(TTL - MARGIN)
        self.daemon.until(lambda: self.daemon.slot.state.renewed_at != before)
        self.daemon.until(self.sound)


@contextmanager
def world(path: Path, prepare: Callable[[Faults], None] = lambda faults: None, **given: Any) -> Iterator[World]:
    faults, clock = Faults(), Clock()
    settings = settings_in(path)
    backend = FaultyBackend(faults, given.pop("has_plane", True))
    port = twin(FaultyPort)
    assert isinstance(port, FaultyPort)
    port.faults = faults
    with FileStore(settings.store) as outside:
        outside.write_config(json.dumps(NETWORK), None)
        outside.create(PEER, lease(7), None)
        prepare(faults)
        given = {
            "make": lambda network: backend,
            "read_inventory": reading(faults, INVENTORY),
            "ttl": TTL,
            "margin": MARGIN,
            "publish_timeout": 0.5,
            "clock": clock,
            **given,
        }
        try:
            with running(path, lambda: FaultyStore(settings.store, faults), port=port, **given) as daemon:
                try:
                    yield World(daemon, faults, backend, outside, clock)
                finally:
                    faults.end()
        finally:
            faults.end()


@dataclass(frozen=True)
class Point:
    """A call, what makes the daemon make it (nothing: it does so by itself from the start), and what fails in it."""

    name: str
    trigger: Callable[[World], Any] | None = None
    says: str = ""
    """Said while it fails."""
    hangs: str | None = ""
    """Said while it hangs; ``None``: it has limits of its own, below."""
    after: float = PATIENCE
    error: Callable[[], BaseException] = lambda: ZeroDivisionError("oops")
    others: tuple[Callable[[], BaseException], ...] = (lambda: SystemExit(3), KeyboardInterrupt)


def _remove(world: World) -> None:
    record = next(record for record in world.outside.snapshot().leases if record.key == OTHER)
    world.outside.delete(record)


def _publish(world: World) -> None:
    world.daemon.keeper.publish()


BACKEND = "backend 'faulty' "
STORE = "store 'file' "
GONE = "has not come back from"

POINTS = [
    Point("plan_node", None, f"{BACKEND}failed in plan_node", f"{BACKEND}{GONE} planning"),
    Point("plan_peer", None, f"{BACKEND}failed in plan_peer", f"{BACKEND}{GONE} planning"),
    Point("mtu", None, f"{BACKEND}failed in mtu", f"{BACKEND}{GONE} mtu"),
    Point("publish", _publish, f"{BACKEND}failed in publish", f"{BACKEND}{GONE} publish", CALL_TIMEOUT + 1),
    Point("describe", None, f"{BACKEND}failed in describe", f"{BACKEND}{GONE} describe"),
    Point("start", None, f"{BACKEND}failed in start", f"{BACKEND}{GONE} its data plane"),
    Point("put", None, f"{BACKEND}failed in put", f"{BACKEND}{GONE} its data plane"),
    Point("remove", _remove, f"{BACKEND}failed in remove", f"{BACKEND}{GONE} its data plane"),
    Point("check", None, f"{BACKEND}failed in check", f"{BACKEND}{GONE} its data plane"),
    Point("counters", None, f"{BACKEND}failed in counters", f"{BACKEND}{GONE} describe"),
    Point("plane.describe", None, f"{BACKEND}failed in describe", f"{BACKEND}{GONE} describe"),
    Point("plane.renew", World.act, f"{BACKEND}failed in renew", f"{BACKEND}{GONE} its data plane"),
    Point("renew", None, f"{STORE}failed in renew", f"{STORE}{GONE} renew", CALL_TIMEOUT + 1),
    Point("create", None, f"{STORE}failed in create", f"{STORE}{GONE} create", CALL_TIMEOUT + 1),
    Point("snapshot", None, f"{STORE}failed in snapshot", f"{STORE}{GONE} snapshot", CALL_TIMEOUT + 1),
    Point("watch", None, f"{STORE}failed in watch", f"{STORE}{GONE} watch", CALL_TIMEOUT + 1),
    Point("iterate", None, f"{STORE}failed in watch", None),
    Point("dump", None, "oops", None, error=lambda: KernelError("oops"), others=()),
    Point("apply", None, "oops", None, error=lambda: KernelError("oops"), others=()),
    Point("poll", None, "", None, error=lambda: KernelError("oops"), others=()),
    Point(
        "read_inventory", None, "oops", None, error=lambda: KernelError("oops"), others=(lambda: UnderlayError("oops"),)
    ),
]


def _errors() -> Iterator[Any]:
    for point in POINTS:
        for error in (point.error, *point.others):
            yield pytest.param(point, error, id=f"{point.name}-{type(error()).__name__}")


@contextmanager
def triggered(world: World, point: Point, wrong: Callable[[], None]) -> Iterator[None]:
    """Make it fail, and make the daemon come by there."""
    if point.trigger is None:
        yield
        return
    world.outside.create(OTHER, lease(8), None)
    world.daemon.until(lambda: world.sound() and len(world.backend.told) == 2)
    wrong()
    with ThreadPoolExecutor() as pool:
        done = pool.submit(point.trigger, world)
        world.daemon.until(lambda: world.faults.failed[point.name])
        try:
            yield
        finally:
            world.faults.end()
            done.result()


@pytest.mark.parametrize(("point", "error"), list(_errors()))
def test_a_call_that_fails_once(tmp_path: Path, point: Point, error: Callable[[], BaseException]) -> None:
    def wrong(faults: Faults) -> None:
        faults.once(point.name, error())

    with world(tmp_path, wrong if point.trigger is None else lambda faults: None) as it:
        with triggered(it, point, lambda: wrong(it.faults)):
            it.daemon.until(lambda: it.daemon.status() is not None and it.faults.failed[point.name] == 1)
        it.recovers()


@pytest.mark.parametrize(("point", "error"), list(_errors()))
def test_a_call_that_fails_for_a_while(tmp_path: Path, point: Point, error: Callable[[], BaseException]) -> None:
    def wrong(faults: Faults) -> None:
        faults.always(point.name, error())

    with world(tmp_path, wrong if point.trigger is None else lambda faults: None) as it:
        with triggered(it, point, lambda: wrong(it.faults)):
            it.daemon.until(lambda: it.daemon.status() is not None and it.faults.failed[point.name])
            it.daemon.until(lambda: point.says in it.told())
            it.daemon.until(lambda: point.says in it.told() and it.faults.failed[point.name] > 1)
        it.faults.end()
        it.recovers()
        assert not point.says or point.says not in it.told()


@pytest.mark.parametrize("point", [pytest.param(point, id=point.name) for point in POINTS if point.hangs is not None])
def test_a_call_that_hangs(tmp_path: Path, point: Point) -> None:
    def wrong(faults: Faults) -> None:
        faults.hang(point.name)

    hangs = point.hangs
    assert hangs is not None
    with world(tmp_path, wrong if point.trigger is None else lambda faults: None) as it:
        with triggered(it, point, lambda: wrong(it.faults)), ThreadPoolExecutor() as pool:
            asked = [pool.submit(it.daemon.status)]

            def begun() -> bool:
                if asked[-1].done():  # some are made when somebody asks
                    asked.append(pool.submit(it.daemon.status))
                return it.faults.failed[point.name] > 0

            it.daemon.until(begun)
            it.later(point.after)
            window = it.daemon.loop.window
            it.daemon.until(lambda: hangs in f"{answers(window)('/readyz').body!r} {window.view.lease.trouble}")
            if hangs.startswith(BACKEND):
                renewed = it.daemon.slot.state.renewed_at
                it.daemon.until(lambda: it.daemon.slot.state.renewed_at != renewed)
                assert it.daemon.slot.state.valid(it.clock())
        it.faults.end()
        it.recovers()
        assert GONE not in it.told()


@pytest.mark.parametrize("name", ["dump", "apply"])
def test_a_kernel_that_does_not_answer(tmp_path: Path, name: str) -> None:
    """The loop can't go on without it: a supervisor is told so, the lease is renewed meanwhile."""
    with world(tmp_path, lambda faults: faults.hang(name)) as it:
        it.daemon.until(lambda: it.faults.failed[name])
        it.daemon.until(lambda: it.daemon.slot.state.lease is not None)
        it.later(STUCK_AFTER + 1)
        look = answers(it.daemon.loop.window)
        it.daemon.until(lambda: look("/livez").status == 503)
        renewed = it.daemon.slot.state.renewed_at
        it.daemon.until(lambda: it.daemon.slot.state.renewed_at != renewed)
        it.faults.end()
        it.recovers()
        assert look("/livez").status == 200


def test_an_action_that_fails_is_answered(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        it.daemon.until(it.sound)
        for error in (ZeroDivisionError("oops"), SystemExit(3), KernelError("oops")):
            it.faults.once("act", error)
            with pytest.raises(PyflannelError, match=r"oops|SystemExit"):
                it.act()
        it.recovers()
        assert it.act() == "turned"
        it.recovers()


def test_an_action_that_hangs_is_named(tmp_path: Path) -> None:
    with world(tmp_path) as it, ThreadPoolExecutor() as pool:
        it.daemon.until(it.sound)
        it.faults.hang("act")
        asked = pool.submit(it.act)
        it.daemon.until(lambda: it.faults.failed["act"])
        it.later(PATIENCE)
        assert f"{BACKEND}{GONE} turn" in answers(it.daemon.loop.window)("/readyz").body.decode()
        it.faults.end()
        assert asked.result() == "turned"
        it.recovers()


def test_an_action_that_the_store_does_not_take_is_taken_back_and_answered(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        it.daemon.until(it.sound)
        it.faults.once("publish", KernelError("no key"))
        with pytest.raises(DaemonError, match="no key"):
            it.act()
        it.recovers()


def test_many_updates_of_one_lease_during_a_slow_plan_cost_one_plan(tmp_path: Path) -> None:
    with world(tmp_path, has_plane=False) as it:
        it.daemon.until(it.sound)
        it.faults.hang("plan_peer")
        it.daemon.slot.change([(PEER, lease(1000))])
        it.daemon.until(lambda: it.faults.failed["plan_peer"] == 1)
        before = it.faults.calls["plan_peer"]
        for host in range(20_000):
            it.daemon.slot.change([(PEER, lease(host % 500 + 1001))])
        last = lease(2000)
        it.daemon.slot.change([(PEER, last)])
        it.faults.end()
        member = it.daemon.loop.joined
        assert member is not None
        it.daemon.until(lambda: PEER in member.overlay.peers and member.overlay.peers[PEER].value == last)
        assert it.faults.calls["plan_peer"] == before + 1


V6 = IPv6Address("2001:db8::1")


def both(ipv6: bool) -> Inventory:
    addresses: tuple[Any, ...] = (IPv4Address("192.0.2.1"), *((V6,) if ipv6 else ()))
    return Inventory(
        (Interface("eth0", 1500, True, addresses),),
        (
            InterfaceRoute(ip_network("0.0.0.0/0"), "eth0", IPv4Address("192.0.2.254")),
            *((InterfaceRoute(ip_network("::/0"), "eth0", IPv6Address("2001:db8::fe")),) if ipv6 else ()),
        ),
    )


def test_a_dual_stack_node_that_loses_its_ipv6_address_keeps_its_lease(tmp_path: Path) -> None:
    has = [True]
    settings = settings_in(tmp_path)
    document = {
        **NETWORK,
        "EnableIPv6": True,
        "IPv6Network": "fd00:5::/48",
        "Backend": {"Type": "alloc"},
    }
    with FileStore(settings.store) as outside:
        outside.write_config(json.dumps(document), None)
        with running(
            tmp_path,
            lambda: FileStore(settings.store),
            read_inventory=lambda: both(has[0]),
            ttl=TTL,
            margin=MARGIN,
        ) as daemon:
            daemon.ready()
            mine = daemon.slot.state.lease
            has[0] = False
            daemon.port.lose_notifications()
            daemon.until(lambda: "IPv6" in daemon.status().message)
            for _ in range(3):
                renewed = daemon.slot.state.renewed_at
                daemon.until(lambda: daemon.slot.state.renewed_at != renewed)  # noqa: B023
                assert daemon.slot.state.lease == mine
                assert daemon.state is State.DEGRADED
            has[0] = True
            daemon.port.lose_notifications()
            daemon.ready()


class Work:
    """A clock that only work moves, and how old the loop's last sign of life was at most.

    :ivar look: called after each step with the clock's time.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.oldest = 0.0
        self.look: Callable[[float], None] = lambda now: None
        self.beat: Callable[[], float] = lambda: self.now

    def __call__(self) -> float:
        return self.now

    def do(self, seconds: float) -> None:
        self.now += seconds
        self.oldest = max(self.oldest, self.now - self.beat())
        self.look(self.now)


class Slow(FaultyBackend):
    """Each plan takes its time."""

    work: Work

    def plan_peer(self, node: Any, peer: Any) -> Any:
        self.work.do(0.01)
        return super().plan_peer(node, peer)


class SlowPort(FaultyPort):
    """Each write takes its time."""

    work: Work

    def _write(self, write: Any) -> None:
        self.work.do(0.01)
        super()._write(write)


@pytest.mark.parametrize("arrive", ["in a new generation", "as changes"])
def test_long_work_gives_signs_of_life(tmp_path: Path, arrive: str) -> None:
    """10,000 leases that take 10 ms each to plan and to write: more than three minutes in all."""
    said: set[str] = set()
    work, faults, settings = Work(), Faults(), settings_in(tmp_path)
    backend, port = Slow(faults, has_plane=True), twin(SlowPort)
    assert isinstance(port, SlowPort)
    backend.work = port.work = work
    port.faults = faults
    pairs = itertools.product(range(4, 254), range(0, 250, 2))
    leases = {f"10.{4 + first}.{second}.0-24": lease(7) for first, second in itertools.islice(pairs, 10_000)}
    with FileStore(settings.store) as outside:
        outside.write_config(
            json.dumps({**NETWORK, "Network": "10.0.0.0/8", "SubnetMin": "10.1.0.0", "SubnetMax": "10.3.0.0"}), None
        )
        with running(
            tmp_path, lambda: FileStore(settings.store), port=port, make=lambda network: backend, clock=work
        ) as daemon:
            daemon.ready()
            work.beat = lambda: daemon.loop.window.beat
            work.look = lambda now: said.add(hanging(daemon.loop.window.view, now))
            if arrive == "as changes":
                daemon.slot.change(leases.items())
            else:
                known = daemon.loop.store_side.generation
                assert known is not None
                daemon.slot.begin(Generation(known.number + 1, known.node, known.backend, known.lease), leases)
            until(lambda: len(backend.told) == len(leases), daemon.status)
            assert work.now - 1000 > 200
            assert 0 < work.oldest < STUCK_AFTER / 2
            assert said == {""}, "no call of them hangs"
            until(lambda: daemon.loop.window.view.peers == len(leases), daemon.status)  # the turn ends with its view


class OtherBackend(FaultyBackend):
    name = "other"


@pytest.mark.parametrize(("kind", "ends"), [(FaultyBackend, False), (OtherBackend, True)])
def test_a_data_plane_ends_for_good_when_the_network_has_gone_over_to_another_backend(
    tmp_path: Path, kind: type[FaultyBackend], ends: bool
) -> None:
    """What it has agreed with peers must not outlive it on some nodes. One of the same backend may be taken over."""
    with world(tmp_path) as it:
        it.daemon.until(it.sound)
        known = it.daemon.loop.store_side.generation
        assert known is not None
        following = kind(it.faults)
        following.options = "others"
        it.daemon.slot.begin(Generation(known.number + 1, known.node, following, known.lease), it.daemon.slot.records())
        it.daemon.until(lambda: it.faults.calls["plane.end"] or it.faults.calls["plane.stop"])
        assert (it.faults.calls["plane.end"], it.faults.calls["plane.stop"]) == ((1, 0) if ends else (0, 1))


class NewBackend(FaultyBackend):
    name = "new"
    device = "new0"


@pytest.mark.parametrize("wrong", ["the kernel", "the data plane"])
def test_what_goes_wrong_with_the_new_settings_keeps_nobody_from_going_back(tmp_path: Path, wrong: str) -> None:
    """Who waits for that waits for ever: it does not come about by itself."""
    faults = Faults()
    following = NewBackend(faults)
    if wrong == "the data plane":
        faults.always("start", KernelError("no socket"))
    made: dict[str, FaultyBackend] = {"new": following}
    target = {**NETWORK, "Backend": {"Type": "new"}}
    change = NetworkChange("00000000000000a1", Phase.PREPARE, target)

    def make(network: NetworkConfig) -> FaultyBackend:
        return made.setdefault(network.backend_type, FaultyBackend(Faults()))

    with world(tmp_path, make=make) as it:
        it.daemon.ready()
        if wrong == "the kernel":
            it.daemon.port.fail_next((Kind.LINK, "new0", None), errno.EOPNOTSUPP, times=1000)

        def said() -> NodeProgress:
            return own_progress(it.daemon.slot.state, change.id)

        it.outside.write_config(read(json.dumps(NETWORK)).with_change(change), it.outside.read_config())
        it.daemon.until(lambda: said().trouble)
        assert said().step is None
        back = change.at(Phase.BACK)
        it.outside.write_config(read(json.dumps(NETWORK)).with_change(back), it.outside.read_config())
        it.daemon.until(lambda: "phase='back'" in str(it.daemon.loop.window.view.change))
        it.later(GRACE)
        it.daemon.until(lambda: said().step is Step.REVERTED)


def test_a_store_that_is_away_from_the_start(tmp_path: Path) -> None:
    with world(tmp_path, lambda faults: faults.always("snapshot", StoreUnavailableError("out of reach"))) as it:
        it.daemon.until(lambda: it.daemon.state is State.WAITING and "out of reach" in it.told())
        it.faults.end()
        it.recovers()
