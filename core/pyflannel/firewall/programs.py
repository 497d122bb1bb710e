"""Running nft and iptables: short commands, text in, text out, and one kind of error.

Programs and not libraries, because ``nft`` and ``iptables`` are what every distribution ships in step with its kernel
and what the other firewalls of a host use. A call takes a few milliseconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyflannel.errors import KernelError

__all__ = ["find", "run"]

_TIMEOUT: Final = 30.0
"""Seconds for one command; iptables waits for its lock five seconds at most (``-w 5``)."""


def find(name: str) -> str | None:
    """The path of a program, looked for in the sbin directories too."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    return shutil.which(name, path=path)


def run(words: Sequence[str], text: str = "") -> str:
    """Run a command with ``text`` as its input and return its output.

    :raises KernelError: it can't be started, failed, or took too long; the message has its own first line.
    """
    name = Path(words[0]).name
    try:
        done = subprocess.run(
            words,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # what is not ours may be in any alphabet, such as somebody's comment
            timeout=_TIMEOUT,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise KernelError(f"{name} can't be started: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise KernelError(f"{name} gave no answer within {_TIMEOUT:g} s") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if not line.startswith("#")), f"exit status {done.returncode}")
        raise KernelError(f"{name}: {reason[:300]}")
    return done.stdout
