"""Calls of a plugin under a time limit: one that does not come back fails its test, and says where it stands.

A thread that hangs can't be ended from outside, so the plugin gets a thread of its own to be called in, and the test
waits for the answer no longer than the contract allows. :class:`Caller` is that thread; it serves one plugin object,
which so sees one thread at a time, as in the daemon. :func:`supervised` makes a driver class whose every call goes
through such a thread. No pytest here: worker processes import it.

What a call is charged for is its own work and its own sleep. The time for which it could have gone on and the machine
had no CPU for it is :class:`Starvation`, and is taken off: so a good plugin passes on a machine that does much else,
and one that takes too long does not pass there either.
"""

from __future__ import annotations

import functools
import inspect
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from pyflannel.store import CALL_TIMEOUT, Record, Snapshot, Store, StoreLocation, StoreTime, Watch

__all__ = ["GRACE", "Caller", "OverdueError", "Starvation", "checked_answer", "close_watch", "once", "supervised"]

T = TypeVar("T")

GRACE = 5.0
"""Seconds that a call may take beyond what its contract allows: a server's part of it may have to wait for a CPU."""

LONGEST = 300.0
"""Seconds after which a call is given up, however little of them it had a CPU for."""

_LOOK: Final = 0.25
"""Seconds between two looks at who waits for a CPU."""

_FRAMES: Final = 6
"""How many lines of a hanging call's stack are shown."""

_TASKS: Final = Path("/proc/self/task")


class Starvation:
    """For how long this process's other threads wanted a CPU and had none, since this was made.

    That of all of them counts: a call may wait for another thread's work, or for the interpreter's lock, which a thread
    without a CPU holds. A call that merely sleeps gains nothing by a busy machine, for nobody works for it. The kernel
    adds a wait up when it ends (``sched_info`` in ``/proc/PID/task/TID/schedstat``), and forgets it with the thread; so
    who wants to know it looks now and then.
    """

    def __init__(self) -> None:
        self._seen = self._waits()
        self.seconds = 0.0
        """As of the last look."""

    def look(self) -> float:
        """Add up what has come since the last look, and return the whole in seconds."""
        now = self._waits()
        self.seconds += sum(max(0, waited - self._seen.get(thread, 0)) for thread, waited in now.items()) / 1e9
        self._seen = now
        return self.seconds

    @staticmethod
    def _waits() -> dict[str, int]:
        """Nanoseconds of each thread; none where the kernel does not tell."""
        found, looking = {}, str(threading.get_native_id())
        for task in _TASKS.iterdir():
            if task.name != looking:
                with suppress(OSError):  # it may end meanwhile
                    found[task.name] = int((task / "schedstat").read_bytes().split()[1])
        return found


class OverdueError(AssertionError):
    """A call did not come back within its limit, or came back too late."""


class Caller:
    """A thread that makes calls for somebody who does not wait for ever.

    :param name: whose calls these are, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"calls of {name}", daemon=True)
        self._thread.start()

    def __call__(self, what: str, call: Callable[[], T], limit: float, clause: str) -> T:
        """What ``call`` returns or raises.

        :param what: the call as a reader knows it: ``create('10.5.34.0-24')``.
        :param limit: seconds that the contract allows.
        :param clause: what the contract says about it.
        :raises OverdueError: it took longer.
        """
        if self.is_current:  # a method that calls another one of the same object
            return call()
        answer: Future[T] = Future()
        began = time.monotonic()
        self._jobs.put((answer, call))
        took, ended = _watched(answer, began, limit + GRACE)
        if not ended:
            where = self._where()
            raise OverdueError(f"{self.name}: {what} has not come back after {took:.1f} s; {clause}\n{where}")
        if took > limit + GRACE:
            raise OverdueError(f"{self.name}: {what} took {took:.1f} s; {clause}")
        error = answer.exception()
        if error is not None and not isinstance(error, Exception):  # which would end the tests
            raise AssertionError(
                f"{self.name}: {what} raised {type(error).__name__}, which ends a program; a plugin raises errors of "
                "pyflannel.errors"
            ) from error
        return answer.result()

    @property
    def is_current(self) -> bool:
        """Whether this is asked from within one of the calls."""
        return threading.current_thread() is self._thread

    def end(self) -> None:
        """Let the thread go when it has done what it was asked. Idempotent."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            answer, call = job
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)
            del answer, call, job

    def _where(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is None:
            return "it stands nowhere: its thread has ended"
        return "it stands here:\n" + "".join(traceback.format_list(traceback.extract_stack(frame)[-_FRAMES:]))


def _watched(answer: Future[Any], began: float, longest: float) -> tuple[float, bool]:
    """Wait for an answer that may take ``longest`` seconds; returns those that it took, and whether it has come.

    Seconds without a CPU are not counted, once a first look has been taken.
    """
    done, ends = threading.Event(), [0.0]

    def note(_: Future[Any]) -> None:
        ends[0] = time.monotonic()
        done.set()

    answer.add_done_callback(note)
    if done.wait(_LOOK):
        return min(_LOOK, ends[0] - began), True
    starved = Starvation()
    while not done.wait(_LOOK):
        passed = time.monotonic() - began
        if passed - starved.look() > longest or passed > LONGEST:
            return passed - starved.seconds, False
    return ends[0] - began - starved.look(), True


def checked_answer(who: str, call: str, answer: T, kinds: tuple[type, ...], contract: str) -> T:
    """What a call has answered, if it is what its contract says."""
    if inspect.iscoroutine(answer):
        answer.close()  # or Python warns of it in some test to come
    wanted = " or ".join("None" if kind is _NONE else kind.__name__ for kind in kinds)
    assert isinstance(answer, kinds), (
        f"{who}: {call}() answered a {type(answer).__name__}, not {wanted}: {contract}.{call}"
    )
    return answer


def once(name: str, what: str, call: Callable[[], T], limit: float, clause: str) -> T:
    """Make a single call from a thread of its own, as :class:`Caller` does."""
    caller = Caller(name)
    try:
        return caller(what, call, limit, clause)
    finally:
        caller.end()


_IN_TIME: Final = (
    f"every call must have an answer or raise StoreUnavailableError within CALL_TIMEOUT ({CALL_TIMEOUT:g} s): "
    "pyflannel.store, 'Threads'"
)
_CONSTRUCTOR: Final = "constructing validates the location and may not touch the network: pyflannel.store.Store"
_CLOSES: Final = "close() may come from any thread, at any time, and ends what waits: pyflannel.store, 'Threads'"

_NONE: Final = type(None)
_ANSWERS: Final[Mapping[str, tuple[type, ...]]] = {
    "read_config": (Record, _NONE),
    "write_config": (Record,),
    "snapshot": (Snapshot,),
    "create": (Record,),
    "update": (Record,),
    "renew": (Record,),
    "delete": (_NONE,),
    "watch": (Watch,),
    "clock": (StoreTime, _NONE),
}
"""The calls of a store, and what they answer."""


class _Supervision:
    """The driver's methods, each one called in the driver's own thread."""

    allowed: ClassVar[float]

    def __init__(self, location: StoreLocation) -> None:
        self.__caller = Caller(type(self).__name__)
        build = functools.partial(super().__init__, location)  # type: ignore[call-arg]
        try:
            self.__caller("the constructor", build, self.allowed, _CONSTRUCTOR)
        except BaseException:
            self.__caller.end()
            raise

    def _supervise(self, name: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        what = f"{name}({', '.join([repr(value)[:60] for value in arguments])})"
        answer = self.__caller(what, lambda: method(*arguments, **named), self.allowed, _IN_TIME)
        return checked_answer(type(self).__name__, name, answer, _ANSWERS[name], "pyflannel.store.Store")

    def time_to_live(self, records: Any) -> Any:
        """May cost a call for each record."""
        records = list(records)
        method = super().time_to_live  # type: ignore[misc]
        limit = self.allowed * max(1, len(records))
        answer = self.__caller("time_to_live()", lambda: method(records), limit, _IN_TIME)
        return checked_answer(type(self).__name__, "time_to_live", answer, (Mapping,), "pyflannel.store.Store")

    def close(self) -> None:
        """From a thread of its own, for a call may be waiting."""
        name, method = type(self).__name__, super().close  # type: ignore[misc]
        if self.__caller.is_current:
            method()
            return
        once(name, "close()", method, self.allowed, _CLOSES)
        self.__caller.end()


def _method(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return self._supervise(name, functools.partial(original, self), *arguments, **named)

    return call


@functools.cache
def supervised(kind: type[Store], allowed: float = CALL_TIMEOUT) -> type[Store]:
    """``kind``, with a time limit on each call.

    :param allowed: seconds that a call may take.
    """
    calls = {name: _method(name, getattr(kind, name)) for name in _ANSWERS}
    return type(kind.__name__, (_Supervision, kind), {**calls, "allowed": allowed, "__module__": kind.__module__})


def close_watch(watch: Watch, allowed: float = CALL_TIMEOUT) -> None:
    """Close a watch, which may be blocked in another thread."""
    once(type(watch).__name__, "close() of a watch", watch.close, allowed, _CLOSES)
