"""A call into a plugin: whatever it raises ends that call alone, and is named as the plugin's; and so is one that does
not come back.

A call that takes longer than :data:`PATIENCE` is said to hang, in the same words everywhere: ``status`` and readiness
say them as long as it does, a log has them once, and again when the call has come back after all.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from pyflannel.errors import KernelError, PluginError, PyflannelError
from pyflannel.small.scarcity import lacking

__all__ = ["PATIENCE", "HangingCall", "PluginCall", "answered", "guarded", "is_ctrl_c", "named_if_it_hangs", "reason"]

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE: Final = 5.0
"""Seconds after which a plugin's call is taken for one that hangs."""

LONGEST_REASON: Final = 500
"""Characters of an exception's text that are passed on."""

LONGEST_MESSAGE: Final = 4000
"""Characters of the text of an error that the contract knows: it is meant to be read, and may quote a program."""

_traced: dict[tuple[str, str, str], str] = {}
"""Kind and name of a plugin and the call it failed in, to the failure whose traceback was logged last."""


@dataclass(eq=False, slots=True)
class PluginCall:
    """A plugin's call that is under way, or a row of them.

    :param what: what it is called for. ``kind``: what the plugin is.
    :param since: when it began, on the clock of whoever looks at it; of a row, whoever makes it puts it forward at
        each: thousands of calls may take long, and none of them hangs.
    """

    plugin: str
    what: str
    since: float
    kind: str = "backend"

    @property
    def text(self) -> str:
        """The beginning of a sentence."""
        return f"{self.kind} {self.plugin!r} has not come back from {self.what}"

    def hanging(self, now: float) -> str:
        """The sentence, with how long that has been."""
        return f"{self.text} for {now - self.since:.0f} s"

    def returned(self, since: float, now: float) -> str:
        """What is said when it has come back after all."""
        return f"{self.kind} {self.plugin!r} has come back from {self.what} after {now - since:.0f} s"


def guarded(name: str, what: str, call: Callable[[], T], kind: str = "backend") -> T:
    """What a call into the plugin ``name`` answers; ``what`` it is doing is for messages, ``kind`` says what it is.

    Errors of :mod:`pyflannel.errors`, a rejected peer among them, pass as they are; one whose text can't be made, or is
    endless, as the nearest of them. The traceback of anything else is logged at debug level, and not again while the
    plugin fails for the same reason.

    :raises PluginError: it raised something that its contract does not know, ``SystemExit`` included.
    :raises KernelError: it had too little memory, or too few descriptors or threads, which is not a plugin's fault.
    :raises KeyboardInterrupt: in the main thread, where it is Ctrl-C; in others it is a plugin's, too.
    """
    try:
        return call()
    except PyflannelError as error:
        sound = _sound(error)
        if sound is error:
            raise
        raise sound from error
    except BaseException as error:  # a plugin may raise anything
        if is_ctrl_c(error):
            raise
        scarce = lacking(error)
        if scarce is not None:
            raise KernelError(f"{kind} {name!r} could not finish {what}: {scarce}") from error
        failed = PluginError(f"{kind} {name!r} failed in {what}: {reason(error)}")
        if _traced.get((kind, name, what)) != str(failed):
            _traced[kind, name, what] = str(failed)
            log.debug("%s", failed, exc_info=error)
        raise failed from error


def _sound(error: PyflannelError) -> PyflannelError:
    """An error that may be told as often as anybody likes; a class of a plugin's own can have a text that raises."""
    text = _text(error)
    if text is not None and len(text) <= LONGEST_MESSAGE:
        return error
    kind = next(each for each in type(error).__mro__ if each.__module__ == PyflannelError.__module__)
    nearest: PyflannelError = kind(reason(error) if text is None else f"{text[:LONGEST_MESSAGE]}...")
    return nearest


def _text(error: BaseException) -> str | None:
    """What it says, or nothing where that can't be made."""
    try:
        text = str(error)
    except BaseException:  # that, too, is a plugin's code
        return None
    return text if type(text) is str else None


def is_ctrl_c(error: BaseException) -> bool:
    """Whether a person has interrupted us: Python tells the main thread of that, and no other."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def reason(error: BaseException) -> str:
    """An exception of a plugin's, in one line or as many as its text has."""
    text = _text(error)
    if text is None:
        text = "its text can't be made"
    text = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def answered(value: object) -> str:
    """What a plugin has answered, in a message: its text is the plugin's code, too, and may be endless."""
    try:
        text = repr(value)
    except BaseException:
        text = f"a {type(value).__name__} whose text can't be made"
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


class HangingCall:
    """Says in the log that a call hangs, once, and when it has come back. For one thread at a time, now and then."""

    def __init__(self) -> None:
        self._named: PluginCall | None = None
        self._since = 0.0

    def look(self, call: PluginCall | None, now: float) -> float | None:
        """The call that is under way now, if one is.

        :returns: when it will hang, if it has not been said to; ``None`` if there is nothing to wait for.
        """
        named, since = self._named, call.since if call is not None else now
        if named is not None and (named is not call or since != self._since):
            self._named = None
            log.warning("%s", named.returned(self._since, since if named is call else now))
        if call is None or call is self._named:
            return None
        if now < since + PATIENCE:
            return since + PATIENCE
        self._named, self._since = call, since
        log.warning("%s", call.hanging(now))
        return None


class _Watcher:
    """Looks after all calls of a command with one thread, as a store may be called tens of thousands of times.

    The thread sleeps for :data:`PATIENCE` at most, so whatever begins meanwhile hangs no sooner than it wakes up, and
    nobody has to wake it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[HangingCall, PluginCall] = {}
        self._thread: threading.Thread | None = None

    def begin(self, said: HangingCall, call: PluginCall) -> None:
        """``said`` tells of a call from now on."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="pyflannel-hanging", daemon=True)
                thread.start()
                self._thread = thread
            self._calls[said] = call

    def end(self, said: HangingCall) -> None:
        """That call is over."""
        with self._lock:
            self._calls.pop(said, None)  # a fork has none of the calls that it began in
            said.look(None, time.monotonic())

    def _run(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                due = [at for said, call in self._calls.items() if (at := said.look(call, now)) is not None]
            time.sleep(max(0.0, min(due, default=now + PATIENCE) - time.monotonic()))


_watcher: Final = _Watcher()
os.register_at_fork(after_in_child=_watcher.__init__)  # type: ignore[misc]  # it has neither that thread nor its calls


@contextmanager
def named_if_it_hangs(name: str, what: str, kind: str = "backend") -> Iterator[PluginCall]:
    """For commands, which wait as long as whoever started them: a call that hangs is named in the log by then, and
    again when it has come back."""
    said, call = HangingCall(), PluginCall(name, what, time.monotonic(), kind)
    _watcher.begin(said, call)
    try:
        yield call
    finally:
        _watcher.end(said)
