"""A call into a plugin: whatever it raises ends that call alone, and is named as the plugin's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeVar

from pyflannel.errors import KernelError, PluginError, PyflannelError
from pyflannel.small.scarcity import lacking

__all__ = ["guarded"]

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_REASON: Final = 500
"""Characters of an exception's text that are passed on."""

_traced: dict[tuple[str, str, str], str] = {}
"""Kind and name of a plugin and the call it failed in, to the reason whose traceback was logged last."""


def guarded(name: str, what: str, call: Callable[[], T], kind: str = "backend") -> T:
    """What a call into the plugin ``name`` answers; ``what`` it is doing is for messages, ``kind`` says what it is.

    Errors of :mod:`pyflannel.errors`, a rejected peer among them, pass as they are. The traceback of anything else is
    logged at debug level, and not again while the plugin fails for the same reason.

    :raises PluginError: it raised something that its contract does not know, ``SystemExit`` included.
    :raises KernelError: it had too little memory, or too few descriptors or threads, which is not a plugin's fault.
    :raises KeyboardInterrupt: that alone is not a plugin's.
    """
    try:
        return call()
    except (PyflannelError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a plugin may raise anything
        scarce = lacking(error)
        if scarce is not None:
            raise KernelError(f"{kind} {name!r} could not finish {what}: {scarce}") from error
        reason = f"{type(error).__name__}: {_text(error)}".removesuffix(": ")
        failed = PluginError(f"{kind} {name!r} failed in {what}: {reason}")
        if _traced.get((kind, name, what)) != reason:
            _traced[kind, name, what] = reason
            log.debug("%s", failed, exc_info=error)
        raise failed from error


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # that, too, is a plugin's code
        return "its text can't be made"
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
