"""What the checks look at, gathered once and without a trace.

The daemon is asked first: what it knows of its underlay and lease is what counts. Where it is silent the same is worked
out from settings, store and kernel, so that a node whose daemon does not start can be examined, too. Each fact that is
missing carries the reason in :attr:`Facts.problems`, under the fact's name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeVar

from pyflannel.backend import Backend, Node, parse_options
from pyflannel.daemon.subnet_env import read_previous
from pyflannel.errors import ConfigError, LeaseError, MalformedError, PyflannelError, StoreError
from pyflannel.kernel.model import KernelObject, Key, Link
from pyflannel.kernel.port import Scope
from pyflannel.membership.naming import Myself, state_directory
from pyflannel.membership.nodeid import known_id, read_marks
from pyflannel.membership.place import check_underlay
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON, Lease
from pyflannel.network.underlay import Inventory, Selection, Underlay, keep_or_choose
from pyflannel.planning.guard import Bounded, checked_mtu
from pyflannel.planning.judging import backend_types, said
from pyflannel.planning.overlay import Overlay
from pyflannel.plugins import load_backend, open_store
from pyflannel.settings.settings import Settings
from pyflannel.show.status import State, query
from pyflannel.small.guarded import named_if_it_hangs
from pyflannel.store import Record, Snapshot, Store, StoreTime, Unassigned

__all__ = ["ClockFacts", "Facts", "StoreFacts", "gather", "told_to_daemon"]

T = TypeVar("T")

PLUGIN_PATIENCE: Final = 20.0
"""Seconds that a plugin may take for one fact."""


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What the store said, and how long it took in seconds.

    :param ttl: of our own lease, where the store tells.
    :param assigned: what it has for this node, where it assigns subnets.
    :param announced: what it tells of this node, to those who would start work here.
    """

    snapshot: Snapshot
    seconds: float
    ttl: Mapping[str, float | None] = field(default_factory=dict)
    assigned: Record | Unassigned | None = None
    announced: bool | None = None


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """What the store's clock said, and this node's right before and after, in Unix time.

    ``said`` is ``None`` if the store has no clock; ``decides`` whether leases end by the nodes' clocks.
    """

    said: StoreTime | None
    before: float
    after: float
    decides: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts; ``None`` where there is none, with the reason in ``problems`` under the field's name."""

    settings: Settings
    problems: Mapping[str, PyflannelError]
    status: Mapping[str, JSON] | None
    inventory: Inventory | None
    underlay: Underlay | None
    store: StoreFacts | None
    clock: ClockFacts | None
    network: NetworkConfig | None
    backend: Backend[Any] | None
    record: Record | None
    lease: Lease | None
    overlay: Overlay | None
    mtu: int | None
    """The largest packet that containers may send, in bytes."""
    kernel: Mapping[Key, KernelObject] | None
    myself: Myself
    """This machine by the id that it has of itself, whatever the daemon goes by."""

    @property
    def given_mtu(self) -> int | None:
        """The underlay MTU that the network config asks for, in bytes, if it does."""
        given = getattr(self.backend.options, "mtu", None) if self.backend is not None else None
        return given if isinstance(given, int) else None

    @property
    def links(self) -> tuple[Link, ...]:
        """The overlay's devices as they should be."""
        return tuple(self.overlay.links) if self.overlay else ()


def told_to_daemon(run_dir: Path) -> Mapping[str, JSON]:
    """What the daemon here was told (:attr:`Settings.told`); nothing if none answers."""
    try:
        return query(run_dir).get("settings") or {}
    except PyflannelError:
        return {}


def gather(settings: Settings) -> Facts:
    """Look at the daemon, the kernel and the store. Never raises a :class:`PyflannelError`: see ``problems``.

    Plugins are given :data:`PLUGIN_PATIENCE` for each fact, and for each peer: one that hangs in the daemon hangs here,
    too.
    """
    problems: dict[str, PyflannelError] = {}

    def attempt(name: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except PyflannelError as error:
            problems[name] = error
            return None

    store_calls, backend_calls = Bounded(PLUGIN_PATIENCE), Bounded(PLUGIN_PATIENCE)

    def of_store(what: str, call: Callable[[], T]) -> T:
        answer: T = store_calls(settings.store.scheme, what, call, kind="store")
        return answer

    def of_backend(what: str, call: Callable[[Callable[[], None]], T]) -> T:
        name = _need(network, problems, "network").backend_type

        def named() -> T:
            with named_if_it_hangs(name, what) as under_way:

                def beat() -> None:
                    backend_calls.beat()
                    under_way.since = time.monotonic()

                return call(beat)

        answer: T = backend_calls(name, what, named)
        return answer

    status = attempt("status", lambda: query(settings.run_dir))
    inventory = attempt("inventory", lambda: _inventory(settings))
    underlay = attempt("underlay", lambda: _underlay(settings, status, _need(inventory, problems, "inventory")))
    asked = attempt("store", lambda: of_store("answering", lambda: _ask(settings, status)))
    clock = attempt("clock", lambda: of_store("clock", lambda: _clock(settings, _need(asked, problems, "store"))))
    network = attempt("network", lambda: _network(settings, status, asked, problems))
    backend = attempt("backend", lambda: of_backend("loading", lambda _: _backend(_need(network, problems, "network"))))
    myself = _myself(settings, underlay, attempt("cards", _cards))
    record = attempt("record", lambda: _own_record(settings, myself, status, _need(asked, problems, "store"), underlay))
    lease = attempt("lease", lambda: _lease(_need(record, problems, "record")))

    def plan(beat: Callable[[], None]) -> Overlay:
        return _overlay(settings, status, network, backend, underlay, lease, asked, problems, beat)

    overlay = attempt("overlay", lambda: of_backend("planning", plan))
    mtu = attempt("mtu", lambda: of_backend("mtu", lambda _: _mtu(backend, underlay, problems)))
    kernel = attempt("kernel", lambda: _kernel(overlay))
    return Facts(
        settings=settings,
        problems=problems,
        status=status,
        inventory=inventory,
        underlay=underlay,
        store=asked,
        clock=clock,
        network=network,
        backend=backend,
        record=record,
        lease=lease,
        overlay=overlay,
        mtu=mtu,
        kernel=kernel,
        myself=myself,
    )


def _need(value: T | None, problems: Mapping[str, PyflannelError], name: str) -> T:
    if value is None:
        raise problems[name]
    return value


def _inventory(settings: Settings) -> Inventory:
    from pyflannel.kernel.inventory import read_inventory

    return read_inventory(towards=filter(None, (settings.iface_can_reach,)))


def _underlay(settings: Settings, status: Mapping[str, JSON] | None, inventory: Inventory) -> Underlay:
    """What the daemon uses, as it is now; where it has none, what it would choose."""
    known = status["underlay"] if status is not None else None
    if known is None:
        selection = Selection(
            settings.iface, settings.iface_regex, settings.iface_can_reach, settings.public_ip, settings.public_ipv6
        )
        previous = read_previous(settings.subnet_file).subnets
        return keep_or_choose(inventory, selection, None, previous.each if previous is not None else ())
    addresses: dict[str, Any] = {
        name: ip_address(known[name]) if known[name] else None
        for name in ("ipv4", "ipv6", "public_ipv4", "public_ipv6")
    }
    selection = Selection((known["interface"],), (), None, addresses["public_ipv4"], addresses["public_ipv6"])
    return keep_or_choose(inventory, selection, Underlay(known["interface"], known["mtu"], **addresses))


def _ask(settings: Settings, status: Mapping[str, JSON] | None) -> StoreFacts:
    with open_store(settings.store, existing=True) as store:
        begin = time.monotonic()
        snapshot = store.snapshot()
        seconds = time.monotonic() - begin
        key = _held_key(status)
        own = [record for record in snapshot.leases if record.key == key]
        assigned = _assigned(store, snapshot)
        announced = store.announced() if isinstance(assigned, Record) else None
        return StoreFacts(snapshot, seconds, store.time_to_live(own), assigned, announced)


def _held_key(status: Mapping[str, JSON] | None) -> str | None:
    """The key of the lease that the daemon holds: not of one that it has lost to another node."""
    if status is None or status["lease"] is None or status["state"] == State.CONFLICT.value:
        return None
    return str(status["lease"]["key"])


def _assigned(store: Store, snapshot: Snapshot) -> Record | Unassigned | None:
    """What the store has for this node, in the families of a document that can be read."""
    if not store.assigns_subnets:
        return None
    try:
        network = NetworkConfig.from_json(snapshot.config.value) if snapshot.config is not None else None
    except PyflannelError:
        network = None
    return store.assigned(network.versions if network is not None else ())


def _clock(settings: Settings, _: StoreFacts) -> ClockFacts:
    """Ask a store that has answered already."""
    with open_store(settings.store, existing=True) as store:
        before = time.time()
        said = store.clock()
        return ClockFacts(said, before, time.time(), store.node_clocks)


def _network(
    settings: Settings,
    status: Mapping[str, JSON] | None,
    asked: StoreFacts | None,
    problems: Mapping[str, PyflannelError],
) -> NetworkConfig:
    config = _need(asked, problems, "store").snapshot.config
    if status is not None and status.get("refused"):
        raise ConfigError(str(status["refused"]))  # to go by it would find fault with all that is well
    if config is None:
        raise StoreError(f"{settings.store} holds no network config")
    network = NetworkConfig.from_json(config.value, f"network config in {settings.store}")
    if not network.assumption:
        return network
    leases = _need(asked, problems, "store").snapshot.leases
    return network.following(backend_types(leases, _node_id(settings, status)))


def _backend(network: NetworkConfig) -> Backend[Any]:
    kind = load_backend(network.backend_type)
    options, _ = parse_options(kind.Options, network.backend_options)
    return kind(options)


def _mtu(backend: Backend[Any] | None, underlay: Underlay | None, problems: Mapping[str, PyflannelError]) -> int:
    using = _need(backend, problems, "backend")
    return checked_mtu(using.name, using.mtu(_need(underlay, problems, "underlay")))


def _node_id(settings: Settings, status: Mapping[str, JSON] | None) -> str:
    return str(status["node_id"]) if status is not None else known_id(settings.state_dir, settings.node_id)


def _cards() -> frozenset[str]:
    from pyflannel.kernel.inventory import read_cards

    return read_cards()


def _myself(settings: Settings, underlay: Underlay | None, cards: frozenset[str] | None) -> Myself:
    addresses = {underlay.public_ipv4, underlay.public_ipv6} if underlay is not None else set()
    return Myself(
        known_id(settings.state_dir, settings.node_id),
        read_marks(cards or ()),
        frozenset(address for address in addresses if address is not None),
    )


def _own_record(
    settings: Settings,
    myself: Myself,
    status: Mapping[str, JSON] | None,
    asked: StoreFacts,
    underlay: Underlay | None,
) -> Record:
    key = _held_key(status)
    publics = {underlay.public_ipv4, underlay.public_ipv6} - {None} if underlay is not None else set()
    found = []
    for record in asked.snapshot.leases:
        try:
            attributes = Lease.from_record(record.key, record.value).attributes
        except MalformedError:
            continue
        by_address = attributes.node_id is None and {attributes.public_ip, attributes.public_ipv6} & publics
        if record.key == key or by_address or (myself.node_id and myself.owns(attributes)):
            found.append(record)
    if not found:
        raise LeaseError(f"{settings.store} holds no lease of this node")
    return next((record for record in found if record.key == key), found[0])


def _lease(record: Record) -> Lease:
    return Lease.from_record(record.key, record.value)


def _overlay(
    settings: Settings,
    status: Mapping[str, JSON] | None,
    network: NetworkConfig | None,
    backend: Backend[Any] | None,
    underlay: Underlay | None,
    lease: Lease | None,
    asked: StoreFacts | None,
    problems: Mapping[str, PyflannelError],
    beat: Callable[[], None],
) -> Overlay:
    """The desired state as the daemon plans it; ``beat`` is called after each peer."""
    ours, given = _need(lease, problems, "lease"), known_id(settings.state_dir, settings.node_id)
    # Planned for what can't carry the network, every peer would look wrong.
    check_underlay(
        _need(network, problems, "network"), _need(underlay, problems, "underlay"), _need(backend, problems, "backend")
    )
    name = str(status["node_id"]) if status is not None else ours.attributes.node_id or given
    node = Node(
        name,
        _need(network, problems, "network"),
        _need(underlay, problems, "underlay"),
        ours.subnets,
        state_directory(settings.state_dir, given or name, name),
        said(ours.attributes, _need(backend, problems, "backend").name),
    )
    overlay = Overlay(_need(backend, problems, "backend"), node)
    for record in _need(asked, problems, "store").snapshot.leases:
        overlay.put(record.key, record.value, record.created)
        beat()
    return overlay


def _kernel(overlay: Overlay | None) -> Mapping[Key, KernelObject]:
    from pyflannel.kernel.netlink import NetlinkPort

    wanted = overlay.desired if overlay is not None else {}
    port = NetlinkPort()
    try:
        return port.dump(Scope.of(wanted.values()), wanted)
    finally:
        port.close()
