"""Asking a running daemon to do something: one action of its backend, over a socket of its own.

The daemon hears one line of JSON, ``{"backend": ..., "action": ...}``, does it, and answers with ``{"done": text}`` or
``{"failed": text, "exit_code": number}``. Only the daemon's own user may connect. What an action is, and how one is
undone, is in :class:`pyflannel.backend.Outcome`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyflannel.errors import DaemonError, ExitCode, PyflannelError
from pyflannel.small.server import LocalServer, ask

__all__ = ["ACTION_TIMEOUT", "ActionFailed", "ControlServer", "request"]

log = logging.getLogger(__name__)

ACTION_TIMEOUT: Final = 60.0
"""Seconds that an action may take, the store's answer included."""

_NAME: Final = "control.sock"
_PATIENCE: Final = 5.0
_LONGEST: Final = 4096


class ActionFailed(PyflannelError):  # noqa: N818 - it reads as what happened
    """What the daemon was asked for did not come about; the message is its reason."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ControlServer(LocalServer):
    """Hears requests for the daemon.

    :param act: does an action of a backend and returns what was done, as a text; raises :class:`PyflannelError`.
        Called in the server's thread.
    """

    def __init__(self, run_dir: Path, act: Callable[[str, str], str]) -> None:
        self._act = act
        super().__init__(run_dir / _NAME, "control", self._hear)

    def _hear(self, received: bytes) -> bytes | None:
        if b"\n" not in received and len(received) < _LONGEST:
            return None
        return json.dumps(self._answer(received.partition(b"\n")[0])).encode() + b"\n"

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            asked = json.loads(line)
            backend, action = asked["backend"], asked["action"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"failed": "that is not a request", "exit_code": ExitCode.USAGE}
        try:
            return {"done": self._act(str(backend), str(action))}
        except PyflannelError as error:
            return {"failed": str(error), "exit_code": error.exit_code}
        except Exception as error:
            log.exception("action %s of backend %s failed", action, backend)
            return {"failed": f"internal error: {type(error).__name__}: {error}", "exit_code": ExitCode.INTERNAL}


def request(run_dir: Path, backend: str, action: str) -> str:
    """Have the daemon of ``run_dir`` do an action of its backend; what was done, as a text.

    :raises DaemonError: no daemon answers.
    :raises ActionFailed: it did not come about.
    """
    path = run_dir / _NAME
    line = json.dumps({"backend": backend, "action": action}).encode() + b"\n"
    raw = ask(path, line, ACTION_TIMEOUT + _PATIENCE)
    try:
        answer = json.loads(raw)
    except ValueError:
        raise DaemonError(f"the daemon at {path} went away before it had answered; see its log and status") from None
    if "done" not in answer:
        raise ActionFailed(str(answer.get("failed")), ExitCode(answer.get("exit_code", ExitCode.INTERNAL)))
    return str(answer["done"])
