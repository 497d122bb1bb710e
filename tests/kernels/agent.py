"""What runs inside a guest: reads commands from its terminal, runs them one at a time, and answers with what they said.

One line of JSON each way, behind a mark, because a kernel may write to the same terminal. A command is
``{"number": its own, "words": [...], "input": text or null, "timeout": seconds, "environment": {...}}``; its answer is
``{"number": the same, "status": exit status or null if time ran out, "output": text, "errors": text}``. Number 0 is for
the first word, that the agent is there. Only the standard library is used: a kernel under
emulation starts this within a second.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tty
from typing import Any, Final

MARK: Final = "@guest "
"""Begins every line that is a message."""


def run(words: list[str], text: str | None, timeout: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command in a session of its own; when its time is up, all of that session is killed."""
    try:
        process = subprocess.Popen(
            words,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
    except OSError as error:
        return {"status": 127, "output": "", "errors": f"{words[0]}: {error.strerror}"}
    try:
        output, errors = process.communicate(text, timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        return {"status": None, "output": output, "errors": errors}
    return {"status": process.returncode, "output": output, "errors": errors}


def main(terminal: str) -> None:
    """Serve until the terminal is closed from outside."""
    channel = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    if os.isatty(channel):
        tty.setraw(channel)
    with open(channel, "w", encoding="ascii", closefd=False) as answers, open(channel, encoding="ascii") as commands:
        print(MARK + json.dumps({"number": 0, "ready": " ".join(os.uname())}), file=answers, flush=True)
        for line in commands:
            command = json.loads(line)
            answer = run(command["words"], command["input"], command["timeout"], command["environment"])
            print(MARK + json.dumps({"number": command["number"], **answer}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
