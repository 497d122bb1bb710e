"""The lease keeper: gets this node's lease, keeps it, and tells what the store says about everybody else's.

All calls to the store happen in its one thread, so that nothing the store does (hang, fail, come back) delays the
kernel side, and nothing a backend does delays a renewal. It works in *sessions*. A session takes a snapshot, decides
from it what our lease is (:func:`pyflannel.membership.allocation.decide`), makes that so by compare-and-swap, announces
the complete picture, and then follows the watch and the clock. Whatever it can't explain (history gone, our lease gone,
another network document) ends the session, and the next one starts from a snapshot again: there is one path to a
correct state, and start-up, an outage and a day of being cut off all take it.

An outage is not the end of a session. The node goes on forwarding with what it knows; renewals and the watch are
retried with growing, jittered pauses, and the watch resumes where it broke off when the store still knows the place.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from pyflannel.backend import Backend, Node
from pyflannel.daemon import subnet_env as envfile
from pyflannel.errors import (
    ConfigError,
    ConflictError,
    HistoryGoneError,
    LeaseError,
    MalformedError,
    PluginError,
    PyflannelError,
    StoreError,
    StoreUnavailableError,
    UnderlayError,
)
from pyflannel.membership.allocation import Adopt, ConflictPolicy, Contested, Existing, Identity, allocate, decide
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Lease, LeaseAttributes, Subnets
from pyflannel.network.underlay import Underlay
from pyflannel.planning.guard import PUBLISH_TIMEOUT, Bounded, Publisher
from pyflannel.settings.settings import NetworkSeed
from pyflannel.store import CONFIG_KEY, Batch, Change, Record, Snapshot, Store, Watch

__all__ = ["Backoff", "Event", "Fatal", "Joined", "KeeperOptions", "LeaseKeeper", "LeaseState", "Moved", "PeersChanged"]

CREATE_ATTEMPTS: Final = 10
"""How often a session draws another subnet when others were quicker, before it takes a new snapshot."""


CONFIRM_INTERVAL: Final = 2.0
"""Seconds within which the watch should tell of the lease that we created. A store that compares states tells nothing
of one that was created and deleted between two looks, so until it has told we ask."""


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """What the operator decided about this node's lease.

    :param seed: the network document to create if the store has none.
    :param backend: the backend that the network must have, if given.
    :param ttl: a lease's life in seconds; ``margin``: how long before its end it is renewed.
    :param load_timeout: seconds that the backend may take to be loaded and made.
    :param publish_timeout: seconds that it may take to say what the lease should carry.
    """

    node_id: str
    subnet_file: Path
    state_dir: Path
    ttl: float
    margin: float
    policy: ConflictPolicy = ConflictPolicy.REFUSE
    seed: NetworkSeed | None = None
    backend: str | None = None
    load_timeout: float = PUBLISH_TIMEOUT
    publish_timeout: float = PUBLISH_TIMEOUT


@dataclass(frozen=True, slots=True)
class LeaseState:
    """How our lease and our view of the store stand; replaced as a whole, readable from any thread.

    Times are on the keeper's clock. ``trouble`` is empty while all is well; ``conflict`` says that the trouble is
    another node's claim, which nobody but an operator (or time) resolves.
    """

    lease: Lease | None = None
    permanent: bool = False
    expires_at: float | None = None
    renewed_at: float | None = None
    trouble: str = ""
    conflict: bool = False


@dataclass(frozen=True, slots=True)
class Joined:
    """We hold a lease, and this is everything there is: sent at the start of every session."""

    node: Node
    backend: Backend[Any]
    lease: Lease
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """Our underlay changed under a lease that we keep."""

    node: Node


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """Other nodes' leases changed, in this order."""

    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Reported:
    """:attr:`LeaseKeeper.state` has changed."""


@dataclass(frozen=True, slots=True)
class Fatal:
    """Nothing will help but another configuration; only ever before the first :class:`Joined`."""

    error: PyflannelError


Event: TypeAlias = Joined | Moved | PeersChanged | Reported | Fatal


class Backoff:
    """Growing pauses with full jitter, so that a thousand nodes don't come back in one moment."""

    def __init__(self, rng: random.Random, first: float = 0.5, last: float = 15.0) -> None:
        self._rng, self._first, self._last = rng, first, last
        self._attempt = 0

    def reset(self) -> None:
        """All is well: the next pause is a short one again."""
        self._attempt = 0

    def next(self) -> float:
        """The next pause in seconds: at least half of the first, at most the current ceiling."""
        ceiling = min(self._last, self._first * 2.0 ** min(self._attempt, 16))
        self._attempt += 1
        return self._first / 2 + self._rng.random() * (ceiling - self._first / 2)


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


@dataclass(frozen=True, slots=True)
class _Broken:
    watcher: _Watcher
    error: Exception


@dataclass(frozen=True, slots=True)
class _Received:
    watcher: _Watcher
    batch: Batch


@dataclass(frozen=True, slots=True)
class _Republish:
    done: Callable[[PyflannelError | None], None]


_Input: TypeAlias = _Stop | Underlay | _Broken | _Received | _Republish


class _Watcher:
    """A thread that iterates one watch and passes on what it yields, until it breaks or is closed."""

    def __init__(self, watch: Watch, inbox: queue.SimpleQueue[_Input]) -> None:
        self._watch, self._inbox = watch, inbox
        self._closing = False
        threading.Thread(target=self._run, name="pyflannel-watch", daemon=True).start()

    def _run(self) -> None:
        try:
            for batch in self._watch:
                self._inbox.put(_Received(self, batch))
            error: Exception = StoreUnavailableError("the store ended the watch")
        except Exception as raised:  # the keeper, who asked for the watch, decides what it means
            error = raised
        if not self._closing:
            self._inbox.put(_Broken(self, error))

    def close(self) -> None:
        self._closing = True
        self._watch.close()


@dataclass(slots=True)
class _Session:
    """What one session holds; gone when it ends."""

    document: str
    node: Node
    backend: Backend[Any]
    record: Record
    lease: Lease
    revision: str
    watcher: _Watcher | None = None
    watch_at: float = 0.0
    renew_at: float | None = None
    publish_at: float | None = None
    confirm_at: float | None = None
    over: bool = False


class LeaseKeeper:
    """See the module's docstring. ``post`` is called from the keeper's thread and must not block."""

    def __init__(
        self,
        store: Store,
        options: KeeperOptions,
        make_backend: Callable[[NetworkConfig], Backend[Any]],
        post: Callable[[Event], None],
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.state = LeaseState()
        self._store, self._options, self._make_backend = store, options, make_backend
        self._post, self._clock, self._rng = post, clock, rng
        self._inbox: queue.SimpleQueue[_Input] = queue.SimpleQueue()
        self._backoff = Backoff(rng)
        self._underlay: Underlay | None = None
        self._publisher = Publisher(options.publish_timeout)
        self._loading = Bounded(options.load_timeout)
        self._refused_config: PyflannelError | None = None
        self._unpublished: PluginError | None = None
        """Why our lease does not say what it should: the backend does not tell."""
        self._held: Record | None = None
        self._renew_at = 0.0
        self._stopping = False
        self._joined_once = False
        self._thread = threading.Thread(target=self._run, name="pyflannel-lease", daemon=True)

    # The outside, called from other threads

    def start(self, underlay: Underlay) -> None:
        """Begin."""
        self._underlay = underlay
        self._thread.start()

    def move(self, underlay: Underlay) -> None:
        """The underlay is another one now: our lease must say so."""
        self._inbox.put(underlay)

    def republish(self, done: Callable[[PyflannelError | None], None]) -> None:
        """Write into our lease what the backend publishes now.

        :param done: told how it went, in the keeper's thread. After an error the lease may say either.
        """
        self._inbox.put(_Republish(done))

    def stop(self, timeout: float) -> None:
        """End the thread, waiting ``timeout`` seconds at most. The lease stays in the store, for the next start."""
        self._inbox.put(_Stop())
        self._thread.join(timeout)

    # The thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._serve()
                self._backoff.reset()
                continue
            except HistoryGoneError:
                continue
            except PyflannelError as error:
                problem = error
            except Exception as error:  # a driver's or backend's bug must not end renewals for good
                problem = PluginError(f"unexpected {type(error).__name__} in store or backend: {error}")
            if not self._joined_once and isinstance(problem, (ConfigError, PluginError)):
                self._post(Fatal(problem))
                return
            self._report(problem)
            if isinstance(problem, (ConfigError, PluginError)):
                self._renew_held()
            until = self._clock() + self._backoff.next()
            if self._held is not None and self._renew_at > self._clock():
                until = min(until, self._renew_at)
            self._sit_out(until)

    def _serve(self) -> None:
        """One session, from snapshot to whatever ends it."""
        session = self._begin()
        try:
            while not (session.over or self._stopping):
                self._step(session)
        finally:
            if session.watcher is not None:
                session.watcher.close()

    def _begin(self) -> _Session:
        """Take a snapshot, get the lease, and announce both."""
        snapshot = self._store.snapshot()
        if snapshot.config is None:
            snapshot = self._create_config()
        assert snapshot.config is not None
        session = self._join(snapshot, snapshot.config.value)
        self._joined_once = True
        self._refused_config = None
        self._backoff.reset()
        self._report(self._unpublished)
        others = tuple(record for record in snapshot.leases if record.key != session.record.key)
        self._post(Joined(session.node, session.backend, session.lease, others))
        return session

    def _create_config(self) -> Snapshot:
        seed = self._options.seed
        if seed is None:
            raise StoreError(
                f"{self._store.location} has no network config yet; put one there with 'pyflannel config set', "
                "or start a node with --network"
            )
        with suppress(ConflictError):  # another node was first; its document counts
            self._store.write_config(seed.document, None)
        snapshot = self._store.snapshot()
        if snapshot.config is None:
            raise StoreError(f"{self._store.location}: the network config vanished right after it was written")
        return snapshot

    # Getting the lease

    def _join(self, snapshot: Snapshot, document: str) -> _Session:
        network, backend = self._followed(document)
        underlay = self._underlay
        assert underlay is not None
        _check_underlay(network, underlay, backend)
        records = {record.key: record for record in snapshot.leases}
        session_for = _SessionFactory(
            self._options, self._publisher, network, backend, underlay, document, snapshot.revision
        )
        known = set(records)
        record = self._obtain(network, session_for, records)
        session = session_for.session(record)
        self._hold(session, record)
        if record.key not in known:
            session.confirm_at = self._clock() + CONFIRM_INTERVAL
        return session

    def _followed(self, document: str) -> tuple[NetworkConfig, Backend[Any]]:
        """What a network document of the store says, and the backend for it.

        :raises ConfigError: it can't be followed, or this node's settings say otherwise.
        :raises PluginError: its backend is missing or doesn't load.
        """
        network = NetworkConfig.from_json(document, f"network config in {self._store.location}")
        if self._options.backend is not None and self._options.backend != network.backend_type:
            raise ConfigError(
                f"--backend is {self._options.backend!r}, but the network config in {self._store.location} says "
                f"{network.backend_type!r}; start without --backend, or change the config with 'pyflannel config set'"
            )
        seed = self._options.seed
        if seed is not None and seed.binding and NetworkConfig.from_json(seed.document, seed.source) != network:
            raise ConfigError(
                f"the network config in {self._store.location} means something else than {seed.source}; make them "
                "agree with 'pyflannel config set', or start without that file"
            )
        return network, self._backend_for(network)

    def _obtain(self, network: NetworkConfig, factory: _SessionFactory, records: dict[str, Record]) -> Record:
        identity = Identity(
            self._options.node_id,
            factory.underlay.public_ipv4 if network.ipv4 else None,
            factory.underlay.public_ipv6 if network.ipv6 else None,
        )
        leases = [lease for record in self._concerning(identity, records) if (lease := _readable(record)) is not None]
        existing = [Existing(lease, records[lease.key].permanent) for lease in leases if lease.key in records]
        previous = self.state.lease.subnets if self.state.lease else None
        if previous is None:
            previous = envfile.read_previous(self._options.subnet_file).subnets
        decision = decide(network, identity, existing, previous, self._options.policy)
        if isinstance(decision, Contested):
            raise LeaseError(decision.reason)
        for lease in decision.stale:
            self._store.delete(records.pop(lease.key))
        if isinstance(decision, Adopt):
            return self._take(records[decision.lease.key], decision.lease, factory)
        claims = {key: claim for key in records if (claim := _claim(network, key)) is not None}
        self._refuse_to_lose(network, records, claims)
        return self._create(network, factory, list(claims.values()), previous)

    def _concerning(self, identity: Identity, records: dict[str, Record]) -> Iterator[Record]:
        """The records that may be ours or a rival's: those that name us. Reading all takes as long as all the rest."""
        addresses = [str(ip) for ip in (identity.public_ipv4, identity.public_ipv6) if ip is not None]
        names = [f'"{name}"' for name in (identity.node_id, *addresses)]
        for record in records.values():
            # A text with escapes or an IPv6 address may spell one name in several ways.
            if "\\" in record.value or identity.public_ipv6 is not None or any(name in record.value for name in names):
                yield record

    def _refuse_to_lose(
        self, network: NetworkConfig, records: dict[str, Record], claims: Mapping[str, Subnets]
    ) -> None:
        """A node whose subnet is another's now must not quietly get a new one: its containers have addresses of it."""
        held = self.state.lease
        if held is None or not network.fits(held.subnets):
            return
        for key, claim in claims.items():
            if claim.overlaps(held.subnets):
                lease = _readable(records[key])
                holder = lease.attributes if lease is not None else LeaseAttributes()
                raise LeaseError(
                    f"our subnet {held.subnets} was lost and is leased to node {holder.node_id!r} "
                    f"({holder.public_ip or holder.public_ipv6}) now. Delete that lease, "
                    "or restart this daemon and its containers to get another subnet"
                )

    def _take(self, record: Record, lease: Lease, factory: _SessionFactory) -> Record:
        """Make an existing lease say what we are now, and live on; without a change when nothing differs."""
        try:
            attributes = factory.attributes(lease.subnets, lease.attributes)
            self._unpublished = None
        except PluginError as error:
            if not self._joined_once or lease.attributes.node_id != self._options.node_id:
                raise
            self._unpublished = error  # what it says is old, but it must not end for that
            return self._store.renew(record, self._options.ttl)
        if attributes == lease.attributes:
            return self._store.renew(record, self._options.ttl)
        return self._store.update(record, attributes.to_json(), None if record.permanent else self._options.ttl)

    def _create(
        self, network: NetworkConfig, factory: _SessionFactory, held: list[Subnets], previous: Subnets | None
    ) -> Record:
        for _ in range(CREATE_ATTEMPTS):
            subnets = allocate(network, held, previous, self._rng)
            value = factory.attributes(subnets, LeaseAttributes()).to_json()
            try:
                record = self._store.create(subnets.key, value, self._options.ttl)
                rivals = self._crossing(network, record.key)
                if not rivals:
                    return record
                held += rivals
                self._store.delete(record)
            except ConflictError:
                if subnets == previous:  # perhaps it is ours, made by a mirror of two stores: look whose it is
                    raise StoreUnavailableError(
                        f"lease {subnets.key} has just come into being; looking again"
                    ) from None
                held.append(subnets)
        raise StoreUnavailableError("many nodes are leasing subnets right now; trying again")

    def _crossing(self, network: NetworkConfig, key: str) -> list[Subnets]:
        """What others leased meanwhile that overlaps the lease ``key``, which we have just created.

        Creating excludes everybody who wants the same key. With two families, two keys can share a subnet of one of
        them; but then the node that was later sees the other's lease, and gives its own back. Two that see each other
        both do.
        """
        ours = _claim(network, key)
        if ours is None or len(network.versions) < 2:
            return []
        others = [_claim(network, record.key) for record in self._store.snapshot().leases if record.key != key]
        return [claim for claim in others if claim is not None and claim.overlaps(ours)]

    def _hold(self, session: _Session, record: Record) -> None:
        """Note that ``record`` is ours, as just written or renewed."""
        now, ttl, margin = self._clock(), self._options.ttl, self._options.margin
        session.record = record
        session.lease = Lease.from_record(record.key, record.value)
        session.renew_at = None if record.permanent else now + ttl - margin * (1 + 0.1 * self._rng.random())
        self.state = replace(
            self.state,
            lease=session.lease,
            permanent=record.permanent,
            expires_at=None if record.permanent else now + ttl,
            renewed_at=now,
            trouble=str(self._unpublished or self._refused_config or ""),
            conflict=False,
        )
        self._held = None if record.permanent else record
        self._renew_at = session.renew_at or 0.0
        if self._unpublished is not None and session.publish_at is None:
            session.publish_at = now + self._backoff.next()
        self._post(Reported())

    def _renew_held(self) -> None:
        """Put off the lease's end also while a plugin keeps every new session from beginning."""
        now = self._clock()
        if self._held is None or now < self._renew_at:
            return
        try:
            self._held = self._store.renew(self._held, self._options.ttl)
        except ConflictError:
            self._held = None  # it is gone; only a session can get another one
        except StoreUnavailableError:
            return  # the next round tries again
        else:
            self._renew_at = now + self._options.ttl - self._options.margin
            self.state = replace(self.state, expires_at=now + self._options.ttl, renewed_at=now)

    # Keeping it

    def _step(self, session: _Session) -> None:
        """Do what is due, then wait for the next input or the next due time."""
        now = self._clock()
        if session.watcher is None and now >= session.watch_at:
            self._open_watch(session)
        if session.publish_at is not None and now >= session.publish_at:
            self._publish(session)
        if session.confirm_at is not None and now >= session.confirm_at:
            session.confirm_at = now + CONFIRM_INTERVAL
            self._renew(session)
        elif session.renew_at is not None and now >= session.renew_at:
            self._renew(session)
        due = [at for at in (session.renew_at, session.publish_at, session.confirm_at) if at is not None]
        if session.watcher is None:
            due.append(session.watch_at)
        if session.over:
            return
        self._take_in(session, self._next(min(due, default=None)))

    def _take_in(self, session: _Session, received: _Input | None) -> None:
        if isinstance(received, Underlay):
            self._moved(session, received)
        elif isinstance(received, _Broken) and received.watcher is session.watcher:
            self._watch_broke(session, received.error)
        elif isinstance(received, _Received) and received.watcher is session.watcher:
            self._batch(session, received.batch)
        elif isinstance(received, _Republish):
            received.done(self._publish(session))

    def _next(self, until: float | None) -> _Input | None:
        timeout = None if until is None else max(0.0, until - self._clock())
        try:
            received = self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(received, _Stop):
            self._stopping = True
        elif isinstance(received, Underlay):
            self._underlay = received
        return received

    def _sit_out(self, until: float) -> None:
        """Wait between two sessions; ends early when told to stop, or when the underlay changed."""
        while not self._stopping and self._clock() < until:
            received = self._next(until)
            if isinstance(received, Underlay):
                return
            if isinstance(received, _Republish):
                received.done(LeaseError(f"the lease can't be written now: {self.state.trouble}"))

    def _open_watch(self, session: _Session) -> None:
        try:
            if self.state.trouble:
                self._store.read_config()  # is it back? A watch on a dead store may say nothing for a long time
            session.watcher = _Watcher(self._store.watch(session.revision), self._inbox)
        except StoreUnavailableError as error:
            session.watch_at = self._clock() + self._backoff.next()
            self._report(error)
        else:
            self._report(None)

    def _watch_broke(self, session: _Session, error: Exception) -> None:
        if not isinstance(error, StoreUnavailableError):
            raise error
        if session.watcher is not None:
            session.watcher.close()
            session.watcher = None
        session.watch_at = self._clock() + self._backoff.next()
        self._report(error)

    def _renew(self, session: _Session) -> None:
        try:
            self._hold(session, self._store.renew(session.record, self._options.ttl))
        except ConflictError:
            session.over = True
        except StoreUnavailableError as error:
            session.renew_at = self._clock() + self._backoff.next()
            self._report(error)

    def _publish(self, session: _Session) -> PyflannelError | None:
        """Write what we are into our lease; what keeps us from it, if anything does."""
        factory = _SessionFactory(
            self._options,
            self._publisher,
            session.node.network,
            session.backend,
            session.node.underlay,
            session.document,
            "",
        )
        try:
            record = self._take(session.record, session.lease, factory)
        except ConflictError as error:
            session.over = True
            return error
        except StoreUnavailableError as error:
            session.publish_at = self._clock() + self._backoff.next()
            self._report(error)
            return error
        session.publish_at = None
        self._hold(session, record)
        return self._unpublished

    def _moved(self, session: _Session, underlay: Underlay) -> None:
        _check_underlay(session.node.network, underlay, session.backend)
        session.node = replace(session.node, underlay=underlay)
        self._post(Moved(session.node))
        session.publish_at = self._clock()

    def _batch(self, session: _Session, batch: Batch) -> None:
        session.revision = batch.revision
        self._backoff.reset()
        peers = []
        for change in batch.changes:
            if change.key == CONFIG_KEY:
                self._config_changed(session, change.record)
            elif change.key == session.record.key:
                self._own_changed(session, change.record)
            else:
                peers.append(change)
        if peers:
            self._post(PeersChanged(tuple(peers)))

    def _backend_for(self, network: NetworkConfig) -> Backend[Any]:
        """Load and make the backend, which is a plugin's code and may not come back."""
        backend: Backend[Any] = self._loading(network.backend_type, "loading", lambda: self._make_backend(network))
        return backend

    def _config_changed(self, session: _Session, record: Record | None) -> None:
        self._refused_config = None
        if record is None or record.value == session.document:
            self._report(None)
            return
        try:
            self._followed(record.value)
        except (ConfigError, PluginError) as error:
            self._refused_config = error  # go on with the one we have until this one is mended
            self._report(error)
            return
        session.over = True

    def _own_changed(self, session: _Session, record: Record | None) -> None:
        """Our record is not what we wrote last: deleted, expired, or written by somebody else."""
        session.confirm_at = None
        if record is not None and record.version == session.record.version:
            return
        if record is None:
            session.over = True
            return
        lease = _readable(record)
        ours = session.lease.attributes
        if lease is not None and lease.attributes.node_id is not None:
            theirs = lease.attributes
            if (theirs.node_id, theirs.public_ip, theirs.public_ipv6) != (
                ours.node_id,
                ours.public_ip,
                ours.public_ipv6,
            ):
                raise LeaseError(
                    f"our lease {record.key} was overwritten by node {theirs.node_id!r} at "
                    f"{theirs.public_ip or theirs.public_ipv6}; two nodes must not share a node id (is one a clone of "
                    "the other?), an address or a subnet"
                )
        session.record = record
        session.lease = session.lease if lease is None else lease
        session.publish_at = self._clock()

    def _report(self, error: PyflannelError | None) -> None:
        """Say what is wrong; a network document that we can't follow stays wrong whatever else goes well."""
        error = error or self._refused_config
        trouble, conflict = ("", False) if error is None else (str(error), isinstance(error, LeaseError))
        if (trouble, conflict) != (self.state.trouble, self.state.conflict):
            self.state = replace(self.state, trouble=trouble, conflict=conflict)
            self._post(Reported())


@dataclass(frozen=True, slots=True)
class _SessionFactory:
    """What a session knows before it has a lease."""

    options: KeeperOptions
    publish: Publisher
    network: NetworkConfig
    backend: Backend[Any]
    underlay: Underlay
    document: str
    revision: str

    def node(self, subnets: Subnets) -> Node:
        return Node(self.options.node_id, self.network, self.underlay, subnets, self.options.state_dir)

    def attributes(self, subnets: Subnets, before: LeaseAttributes) -> LeaseAttributes:
        """What our lease of ``subnets`` should say; unknown fields of an earlier one are kept.

        :raises PluginError: the backend fails to say.
        """
        published = self.publish(self.backend, self.node(subnets))
        uses = self.network.family
        return LeaseAttributes(
            public_ip=self.underlay.public_ipv4 if uses(4) else None,
            public_ipv6=self.underlay.public_ipv6 if uses(6) else None,
            backend_type=None if self.backend.capabilities.untyped_leases else self.backend.name,
            backend_data=published.data,
            backend_v6_data=published.v6_data,
            node_id=self.options.node_id,
            extra=before.extra,
        )

    def session(self, record: Record) -> _Session:
        lease = Lease.from_record(record.key, record.value)
        return _Session(self.document, self.node(lease.subnets), self.backend, record, lease, self.revision)


def _check_underlay(network: NetworkConfig, underlay: Underlay, backend: Backend[Any]) -> None:
    for version in network.versions:
        public, local = underlay.public(version), underlay.local(version)
        if public is None or local is None:
            raise UnderlayError(
                f"the network uses IPv{version}, but interface {underlay.interface} has no usable IPv{version} "
                f"address; add one, choose another interface with --iface, or set EnableIPv{version} to false"
            )
        if public != local and backend.capabilities.interface_public_ip:
            raise ConfigError(
                f"backend {backend.name} needs the public address on the interface itself, but --public-ip is "
                f"{public} and {underlay.interface} has {local}; drop --public-ip, or use a backend such as vxlan"
            )


def _readable(record: Record) -> Lease | None:
    try:
        return Lease.from_record(record.key, record.value)
    except MalformedError:
        return None


def _claim(network: NetworkConfig, key: str) -> Subnets | None:
    """What a record of this key takes away from others.

    A claim to the whole network or more takes nothing: it is nobody's subnet, and must not shut all other nodes out.
    """
    try:
        subnets = Subnets.from_key(key)
    except MalformedError:
        return None
    families = [(network.family(subnet.version), subnet) for subnet in subnets.each]
    plausible = all(family is None or subnet.prefixlen > family.network.prefixlen for family, subnet in families)
    return subnets if plausible else None
