"""Asking doctor again and again on a lab's node, in one process that lives there.

A command is mostly Python's own start. Here the command line's own function is called for each line of words, so that a
walk through many causes takes a fraction of the time. That ``pyflannel doctor`` works as a process others try.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Final, NamedTuple

from pyflannel.lab import Node

__all__ = ["MANY_AT_ONCE", "NOT_SERVED", "NO_FIREWALL", "PAST_THE_ENCRYPTION", "UNGUARDED", "Answer", "Cause", "Doctor"]

_SERVE = """
import contextlib, io, json, sys
from pyflannel.cli import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print(json.dumps([int(code), out.getvalue(), err.getvalue()]), flush=True)
"""


class Cause(NamedTuple):
    """A row of the table in docs/doctor.md that another module than test_doctor_causes walks."""

    name: str
    check: str
    fix: str


NOT_SERVED: Final = Cause("a peer that the backend can't serve", "data plane", "pyflannel status")
PAST_THE_ENCRYPTION: Final = Cause("a route past the encryption", "routes of others", "ip route delete")
UNGUARDED: Final = Cause(
    "the check of exits is switched off", "exits", "systemctl edit pyflannel   # drop --check-overlay-exits=false"
)
NO_FIREWALL: Final = Cause(
    "no firewall rules where the backend encrypts", "exits", "systemctl edit pyflannel   # drop --firewall none"
)
MANY_AT_ONCE: Final = Cause("tens of thousands of leases at once", "", "")


class Answer(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    stdout: str
    stderr: str


class Doctor:
    """``pyflannel doctor`` on one node. A context manager."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._process = node.start([sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *words: str) -> Answer:
        """What it answers to these words."""
        pipes = self._process.proxy
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        pipes.stdin.write(json.dumps(["doctor", *words]) + "\n")
        pipes.stdin.flush()
        return Answer(*json.loads(pipes.stdout.readline()))

    def findings(self, *words: str) -> list[dict[str, Any]]:
        """All findings of a daemon that is where the lab puts it."""
        where = ["--run-dir", str(self.node.daemon.run_directory)]
        answer = self.ask("--json", *words, *where)
        assert answer.stdout.isascii(), "nothing that a terminal would obey"
        found: list[dict[str, Any]] = json.loads(answer.stdout)["findings"]
        return found

    def trouble(self, *words: str) -> dict[str, list[dict[str, Any]]]:
        """What is not well, by check."""
        told: dict[str, list[dict[str, Any]]] = {}
        for finding in self.findings(*(words or ("--no-probes",))):
            if finding["verdict"] in ("warn", "fail"):
                told.setdefault(finding["check"], []).append(finding)
        return told

    def __enter__(self) -> Doctor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.proxy.communicate()
