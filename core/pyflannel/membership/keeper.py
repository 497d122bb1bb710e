"""The lease keeper: the threads around :class:`~pyflannel.membership.machine.LeaseMachine`, which has all the thought.

One thread hands the machine its input and makes nobody wait: what the machine orders is done by others. Calls to the
store have a thread of their own, so that one that hangs is noticed; a store that is given up keeps that thread, and its
successor gets a new one. An open watch has a thread that iterates it, and so has each kind of call into the backend.
Whatever a driver or backend raises, ``SystemExit`` included, is the result of that call and ends no thread.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeAlias

from pyflannel.backend import Backend
from pyflannel.errors import PluginError, PyflannelError, StoreUnavailableError
from pyflannel.membership import followed
from pyflannel.membership.calls import (
    Announce,
    AskAssigned,
    AskChosen,
    Call,
    CloseWatch,
    Create,
    Delete,
    Do,
    GiveUp,
    Keep,
    Load,
    OpenStore,
    OpenWatch,
    Order,
    Publish,
    Reaches,
    ReadConfig,
    Renew,
    TakeSnapshot,
    Update,
    WriteConfig,
)
from pyflannel.membership.intake import bounded_batch, bounded_record, bounded_snapshot
from pyflannel.membership.machine import LeaseMachine
from pyflannel.membership.slot import Slot
from pyflannel.membership.state import KeeperOptions
from pyflannel.network.change import NodeProgress
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets
from pyflannel.network.marks import Marks
from pyflannel.network.underlay import Underlay
from pyflannel.planning.guard import Bounded, Publisher, guarded
from pyflannel.small.scarcity import lacking
from pyflannel.store import Batch, Store, StoreLocation, Watch

__all__ = ["KeeperOptions", "LeaseKeeper", "perform"]

_Input: TypeAlias = Callable[[LeaseMachine, float], None]
log = logging.getLogger(__name__)

AHEAD: Final = 64
"""Batches of a watch that may wait to be taken in."""

STUMBLE_PAUSE: Final = 1.0
"""Seconds until the machine is asked again after an error of its own."""

CLOSING_PATIENCE: Final = 1.0
"""Seconds to wait for the store to close when the keeper ends."""


def perform(store: Store, call: Call) -> Any:
    """Make one of the machine's calls to a store; what opens or closes things is not among them."""
    match call:
        case TakeSnapshot():
            return bounded_snapshot(store.snapshot())
        case ReadConfig():
            document = store.read_config()
            return bounded_record(document) if document is not None else None
        case WriteConfig(value):
            return store.write_config(value, None)
        case Create(key, value, ttl):
            return store.create(key, value, ttl)
        case Update(record, value, limit):
            return store.update(record, value, limit)
        case Renew(record, ttl):
            return store.renew(record, ttl)
        case Delete(record):
            return store.delete(record)
        case AskAssigned() | AskChosen() | Announce():
            return _perform_assigning(store, call)
    raise TypeError(f"{call!r} is not a call to a store")


def _perform_assigning(store: Store, call: AskAssigned | AskChosen | Announce) -> Any:
    """The calls that matter to a store that assigns subnets."""
    match call:
        case AskAssigned(families):
            return store.assigned(families)
        case AskChosen():
            return store.chosen_addresses()
        case Announce(ready):
            return store.announce(ready)


class LeaseKeeper:
    """See the module's docstring. Every method may be called from any thread, and none waits but :meth:`stop`.

    :param location: the store's address; ``open_store`` makes a driver for it, which the keeper closes.
    :param make_backend: the backend that a network document asks for.
    :param slot: where what is known is written.
    :param previous: the subnets that this node held last, as far as it knows.
    :param measure: told of each call of the store: its name, how many seconds it took, what it raised.
    :param read_marks: what tells this machine from others of its node id; asked once, when there is an underlay.
    """

    def __init__(
        self,
        location: StoreLocation,
        open_store: Callable[[], Store],
        options: KeeperOptions,
        make_backend: Callable[[NetworkConfig], Backend[Any]],
        slot: Slot,
        clock: Callable[[], float],
        rng: random.Random,
        previous: Subnets | None = None,
        measure: Callable[[str, float, BaseException | None], None] = lambda name, seconds, error: None,
        read_marks: Callable[[], Marks] = Marks,
    ) -> None:
        self._measure, self._read_marks = measure, read_marks
        self._machine = LeaseMachine(options, str(location), location.scheme, previous, slot, rng)
        self._scheme, self._open_store, self._clock = location.scheme, open_store, clock
        self._make_backend = make_backend
        self._state_dir = options.state_dir
        self._publisher = Publisher(options.publish_timeout)
        self._loading = Bounded(options.load_timeout)
        self._slot = slot
        self._not_before = clock()
        self._inbox: queue.SimpleQueue[_Input] = queue.SimpleQueue()
        self._store: _StoreThread | None = None
        self._watches: dict[int, _Watcher] = {}
        self._asked = 0
        self._asking = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="pyflannel-lease", daemon=True)

    # The outside

    def start(self, underlay: Underlay | None) -> None:
        """Begin; without an underlay, as soon as there is one."""
        marks = self._read_marks()
        self._inbox.put(lambda machine, now: machine.start(underlay, now, marks))
        self._thread.start()

    def move(self, underlay: Underlay | None) -> None:
        """The underlay is another one now: our lease must say so. ``None``: there is none at present."""
        self._inbox.put(lambda machine, now: machine.move(underlay, now))

    def publish(self) -> int:
        """Have our lease say what the backend publishes now.

        :returns: the request's number, which ``LeaseState.published`` has when it has been seen to.
        """
        with self._asking:
            self._asked += 1
            number = self._asked
            self._inbox.put(lambda machine, now: machine.publish(number, now))
        return number

    def reached(self, progress: NodeProgress) -> None:
        """This node is so far in a change of the network: have our lease say so."""
        self._inbox.put(lambda machine, now: machine.reached(progress, now))

    def announce(self, ready: bool) -> None:
        """Our overlay carries packets, or does not: tell the store."""
        self._inbox.put(lambda machine, now: machine.announce(ready, now))

    def stop(self, timeout: float) -> bool:
        """End the threads and close the store, waiting ``timeout`` seconds at most for each thread that must end.

        The lease stays in the store, for the next start. What hangs in a plugin is left behind.

        :returns: whether the keeper's own thread has ended.
        """
        self._inbox.put(LeaseMachine.stop)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the keeper's thread runs."""
        return self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        while not self._machine.over:
            taken = self._next()
            try:
                taken(self._machine, self._clock())
                for order in self._machine.orders():
                    self._carry_out(order)
            except Exception as error:  # our own fault; it must not end renewals for good
                scarce = lacking(error)
                trouble = scarce or f"an error inside the lease keeper: {type(error).__name__}: {error}"
                log.error(
                    "the lease keeper met an error and carries on: %s", trouble, exc_info=None if scarce else error
                )
                self._slot.report(replace(self._slot.state, trouble=trouble))
                self._not_before = self._clock() + STUMBLE_PAUSE
        for watcher in list(self._watches.values()):
            watcher.close()
        left = [self._publisher.hanging, self._loading.hanging]
        if self._store is not None:
            left.append(self._store.finish(CLOSING_PATIENCE))
        for call in filter(None, left):
            log.warning("%s has not come back and is left behind", call)

    def _next(self) -> _Input:
        """What came in, or the passing of time."""
        due = self._machine.due
        timeout = None if due is None else max(0.0, max(due, self._not_before) - self._clock())
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return LeaseMachine.tick

    def _carry_out(self, order: Order) -> None:
        """Obey; or tell the machine that it can't be done, if there is nothing to begin a thread with."""
        try:
            self._obey(order)
        except (RuntimeError, MemoryError) as error:
            log.warning("the lease keeper can't begin a thread: %s", lacking(error) or error)
            if isinstance(order, Do):
                self._answer(order.number, error)

    def _obey(self, order: Order) -> None:
        match order:
            case CloseWatch(watch):
                watcher = self._watches.pop(watch, None)
                if watcher is not None:
                    watcher.close()
            case GiveUp():
                self._close_store()
            case Keep(document):
                self._keep(document)
            case Do(number, Publish() | Load() | Reaches() as call):
                self._ask_backend(number, call)
            case Do(number, OpenStore() as call):
                self._close_store()
                self._store = _StoreThread(self._scheme, self._open_store, self._answer)
                self._store.put(number, lambda _: None, call.name)
            case Do(number, OpenWatch(watch, revision)):
                thread = self._store_thread
                thread.put(number, lambda store: self._open_watch(thread, store, watch, revision), "watch")
            case Do(number, call):
                self._store_thread.put(number, lambda store: self._measured(store, call), call.name)

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _measured(self, store: Store, call: Call) -> Any:
        begin = self._clock()
        raised: BaseException | None = None
        try:
            return perform(store, call)
        except BaseException as error:
            raised = error
            raise
        finally:
            self._measure(call.name, self._clock() - begin, raised)

    @property
    def _store_thread(self) -> _StoreThread:
        assert self._store is not None
        return self._store

    def _answer(self, number: int, result: Any) -> None:
        self._inbox.put(lambda machine, now: machine.done(number, result, now))

    def _open_watch(self, thread: _StoreThread, store: Store, number: int, revision: str) -> None:
        watch: Any = store.watch(revision)
        if not isinstance(watch, Watch):
            kind = type(watch).__name__
            raise PluginError(f"store {self._scheme!r} answered watch with a value of type {kind}: must be a Watch")
        if thread.closed:  # it took so long that nobody waits for it any more
            watch.close()
            return
        watcher = self._watches[number] = _Watcher(number, watch, self._scheme, self._inbox)
        try:
            watcher.start()
        except (RuntimeError, MemoryError):  # there is nothing to begin a thread with
            del self._watches[number]
            watch.close()
            raise

    def _keep(self, document: str) -> None:
        try:
            followed.keep(self._state_dir, document)
        except OSError as error:
            log.warning("%s can't keep the network config for the next start: %s", self._state_dir, error.strerror)

    def _ask_backend(self, number: int, call: Publish | Load | Reaches) -> None:
        def ask() -> None:
            try:
                if isinstance(call, Publish):
                    result: Any = self._publisher(call.backend, call.node)
                elif isinstance(call, Reaches):
                    result = self._loading(call.side.name, call.name, call.ask)
                else:
                    name = call.network.backend_type
                    result = self._loading(name, call.name, lambda: self._make_backend(call.network))
            except BaseException as error:  # passed on to the machine
                result = error
            self._answer(number, result)

        threading.Thread(target=ask, name=f"pyflannel-{call.name}", daemon=True).start()


class _StoreThread:
    """One driver and the thread that calls it, one call after the other."""

    def __init__(self, scheme: str, open_store: Callable[[], Store], answer: Callable[[int, Any], None]) -> None:
        self._scheme, self._open_store, self._answer = scheme, open_store, answer
        self._store: Store | None = None
        self._calls: queue.SimpleQueue[tuple[int, Callable[[Store], Any], str] | None] = queue.SimpleQueue()
        self._making = "close"
        """The call that is under way, or was last."""
        self.closed = False
        """Nobody wants anything of it any more."""
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="pyflannel-store", daemon=True)
        self._thread.start()

    def put(self, number: int, function: Callable[[Store], Any], name: str) -> None:
        """Make a call; the answer goes to ``answer`` under its number."""
        self._calls.put((number, function, name))

    def finish(self, timeout: float) -> str:
        """Let the call that is under way come back, and close the driver then; or after ``timeout`` seconds.

        :returns: the call that has not come back by then, if one has not.
        """
        self.closed = True
        self._calls.put(None)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            return ""
        self.close()
        return f"store {self._scheme!r} in {self._making}"

    def close(self) -> None:
        """Let go of the driver, in a thread of its own, for that may hang as well."""
        self.closed = True
        self._calls.put(None)
        threading.Thread(target=self._close, name="pyflannel-store-close", daemon=True).start()

    def _close(self) -> None:
        with self._closing:
            store, self._store = self._store, None
        if store is not None:
            with suppress(PyflannelError):  # nobody needs it any more
                guarded(self._scheme, "close", store.close, kind="store")

    def _run(self) -> None:
        while (asked := self._calls.get()) is not None:
            number, function, name = asked
            self._making = name
            try:
                result = guarded(self._scheme, name, lambda: function(self._opened()), kind="store")  # noqa: B023
            except BaseException as error:  # passed on to the machine
                result = error
            self._answer(number, result)
        self._making = "close"
        self._close()

    def _opened(self) -> Store:
        store = self._store
        if self.closed:
            raise StoreUnavailableError("the store is closed")
        if store is None:
            store = self._store = self._open_store()
        return store


class _Watcher:
    """A thread that iterates one watch and passes on what it yields, until it breaks or is closed.

    It reads no further than :data:`AHEAD` batches before what has been taken in: a watch without a pause costs a CPU,
    and no memory.
    """

    def __init__(self, number: int, watch: Watch, scheme: str, inbox: queue.SimpleQueue[_Input]) -> None:
        self._number, self._watch, self._scheme, self._inbox = number, watch, scheme, inbox
        self._ahead = threading.Semaphore(AHEAD)
        self._thread = threading.Thread(target=self._run, name="pyflannel-watch", daemon=True)

    def start(self) -> None:
        """Begin to iterate."""
        self._thread.start()

    def _run(self) -> None:
        number = self._number
        try:
            guarded(self._scheme, "watch", self._iterate, kind="store")
            error: PyflannelError = StoreUnavailableError(f"store {self._scheme!r} has ended its watch by itself")
        except PyflannelError as raised:  # the machine, which asked for the watch, decides what it means
            error = raised
        except BaseException as raised:
            error = PluginError(f"store {self._scheme!r} failed in watch: {type(raised).__name__}: {raised}")
        self._inbox.put(lambda machine, now: machine.broke(number, error, now))

    def _iterate(self) -> None:
        for batch in self._watch:
            self._pass_on(bounded_batch(batch))

    def _pass_on(self, batch: Batch) -> None:
        self._ahead.acquire()
        self._inbox.put(lambda machine, now: self._taken_in(machine, batch, now))

    def _taken_in(self, machine: LeaseMachine, batch: Batch, now: float) -> None:
        self._ahead.release()
        machine.batch(self._number, batch, now)

    def close(self) -> None:
        """End the watch, in a thread of its own: it is a plugin's code."""
        threading.Thread(target=self._close, name="pyflannel-watch-close", daemon=True).start()

    def _close(self) -> None:
        with suppress(PyflannelError):  # nobody listens to it any more
            guarded(self._scheme, "close of a watch", lambda: self._watch.close(), kind="store")
