"""A command's answer, kept apart from what plugins print.

Plugins run in a command's own process, and what they print, at import or from a thread that they leave behind, must not
end up in an answer that a program reads. So from a command line's first word to its last one, standard output is
standard error for everybody, for C code and other processes too, and only :func:`answers` is where the answer goes;
standard input is empty for everybody but :func:`given`. A process that a command starts gets both from it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Final, TextIO

__all__ = ["STDIN", "answers", "apart", "asking", "give_up", "given", "keep_apart"]

STDIN: Final = frozenset({"/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"})
"""Names of standard input as a file; whoever opens one within :func:`apart` finds it empty."""

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2


@dataclass(slots=True)
class _Own:
    """The streams that are ours while others have none."""

    given: TextIO | None = None
    answers: TextIO | None = None
    for_good: bool = False


_own: Final = _Own()


def answers() -> TextIO:
    """Where the answer of the command goes that is run."""
    return _own.answers or sys.stdout


def given() -> TextIO:
    """What the command that is run is given on its standard input."""
    return _own.given or sys.stdin


def keep_apart() -> None:
    """A command is set :func:`apart` for good: who prints when the process ends adds nothing to an answer."""
    _own.for_good = True


@contextmanager
def asking() -> Iterator[None]:
    """Have :func:`given` where libraries look for what a person types. The question goes to standard error."""
    before = sys.stdin
    sys.stdin = given()
    try:
        yield
    finally:
        sys.stdin = before


@contextmanager
def apart(*, lasting: bool = False) -> Iterator[None]:
    """Keep everybody else's output out of :func:`answers`, and everybody else away from :func:`given`.

    Within another use of it, nothing.

    :param lasting: so may :func:`keep_apart` make it.
    :raises OSError: the answer can't be written.
    """
    if _own.answers is not None:
        yield
        return
    before = sys.stdin, sys.stdout
    with ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open(encoding="utf-8"))
        _own.given = _taken(stack, sys.stdin, _STDIN, nowhere.fileno(), "r")
        _own.answers = _taken(stack, sys.stdout, _STDOUT, _STDERR, "w")
        stack.callback(_back, before)
        sys.stdin, sys.stdout = nowhere, sys.stderr
        if lasting and _own.for_good:
            stack.pop_all()
        try:
            yield
        finally:
            _flush(_own.answers)


def _back(before: tuple[TextIO, TextIO]) -> None:
    _own.given = _own.answers = None
    sys.stdin, sys.stdout = before


def _taken(stack: ExitStack, stream: TextIO, number: int, instead: int, mode: str) -> TextIO:
    """A stream of our own in the place of ``stream``, behind whose descriptor others find another file from now on."""
    if _number(stream) != number:  # it is somebody's who runs us in a process of theirs
        return stream
    if mode == "w":
        stream.flush()
    copy = os.dup(number)
    own = os.fdopen(copy, mode, encoding=stream.encoding, errors=stream.errors)
    assert isinstance(own, TextIOWrapper)
    os.dup2(instead, number)

    def back() -> None:
        os.dup2(copy, number)
        own.close()

    stack.callback(back)
    return own


def _number(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError):
        return stream.fileno()
    return None


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        give_up(stream)
        raise


def give_up(stream: TextIO) -> None:
    """Let what can't be written go nowhere, so that nothing is left to fail at exit, with an exit code of Python's."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
