"""Running nft and iptables: short commands, text in, text out, and one kind of error.

Programs and not libraries, because ``nft`` and ``iptables`` are what every distribution ships in step with its kernel
and what the other firewalls of a host use. A call takes a few milliseconds. One that hangs is given up, and ended with
all that it has started; a daemon that stops doesn't wait for it (:func:`interrupt`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyflannel.errors import KernelError

__all__ = ["TIMEOUT", "find", "interrupt", "run"]

TIMEOUT: Final = 30.0
"""Seconds for one command; iptables waits for its lock five seconds at most (``-w 5``)."""

_ENDING: Final = 1.0
"""Seconds that a command which was killed may take to end: one that waits in the kernel does not end at all."""

_running: set[subprocess.Popen[str]] = set()
"""What runs now, of all threads."""


def find(name: str) -> str | None:
    """The path of a program, looked for in the sbin directories too."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    return shutil.which(name, path=path)


def run(words: Sequence[str], text: str = "", timeout: float = TIMEOUT) -> str:
    """Run a command with ``text`` as its input and return its output.

    :raises KernelError: it can't be started, failed, or took too long; the message has its own first line.
    """
    name = Path(words[0]).name
    try:
        program = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",  # what is not ours may be in any alphabet, such as somebody's comment
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise KernelError(f"{name} can't be started: {error.strerror}") from error
    _running.add(program)
    try:
        output, complaints = program.communicate(text, timeout)
    except subprocess.TimeoutExpired:
        raise KernelError(f"{name} gave no answer within {timeout:g} s") from None
    finally:
        _running.discard(program)
        _end(program)
    if program.returncode:
        lines = [line.strip() for line in (complaints or output).splitlines() if line.strip()]
        reason = next((line for line in lines if not line.startswith("#")), f"exit status {program.returncode}")
        raise KernelError(f"{name}: {reason[:300]}")
    return output


def interrupt() -> None:
    """End what runs now, in any thread: nobody waits for it any more. It counts as failed."""
    for program in tuple(_running):
        if program.returncode is None:
            _kill(program)


def _end(program: subprocess.Popen[str]) -> None:
    """Leave nothing behind of a program, whether it has ended or not."""
    if program.poll() is None:
        _kill(program)
        with suppress(subprocess.TimeoutExpired):
            program.wait(_ENDING)
    for stream in (program.stdin, program.stdout, program.stderr):
        if stream is not None:
            with suppress(OSError):  # what was not yet written, to a program that has gone
                stream.close()


def _kill(program: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
