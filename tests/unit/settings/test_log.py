"""The three forms of the log, each as a process prints it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, sys
from pyflannel.settings import log
log.configure(sys.argv[1], sys.argv[2])
log.configure(sys.argv[1], sys.argv[2])
speaker = logging.getLogger("pyflannel.daemon.loop")
speaker.debug("detail")
speaker.info("ready")
speaker.warning("peer %s", "x\\n\\x1b[2J\\u202ey")
try:
    1 / 0
except ZeroDivisionError:
    speaker.exception("failed")
"""


def spoken(level: str, form: str = "text", journal: Path | None = None) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    command = [sys.executable, "-c", PROGRAM, level, form]
    if journal is None:
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stderr
    with journal.open("w+") as stream:
        status = os.fstat(stream.fileno())
        environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        subprocess.run(command, env=environ, stderr=stream, check=True)
    return journal.read_text()


def test_text_is_short_and_quiet() -> None:
    lines = spoken("info").splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d info     ready", lines[0])
    assert lines[1].endswith(r" warning  peer x\n\x1b[2J\u202ey")
    assert re.fullmatch(r"\d\d:\d\d:\d\d error    failed", lines[2])
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "ready" not in spoken("warning")


def test_debug_says_who_speaks() -> None:
    assert re.match(r"\d\d:\d\d:\d\d debug    pyflannel\.daemon\.loop: detail\n", spoken("debug"))


def test_the_journal_gets_priorities_and_no_time(tmp_path: Path) -> None:
    lines = spoken("debug", journal=tmp_path / "journal").splitlines()
    assert lines[:4] == ["<7>detail", "<6>ready", r"<4>peer x\n\x1b[2J\u202ey", "<3>failed"]
    assert all(line.startswith("<3>") for line in lines[4:])


def test_a_stream_that_is_not_the_journal_gets_text(tmp_path: Path) -> None:
    environ = {**os.environ, "JOURNAL_STREAM": "1:1"}
    command = [sys.executable, "-c", PROGRAM, "info", "text"]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert not result.stderr.startswith("<")


def test_json_is_one_object_a_line() -> None:
    documents = [json.loads(line) for line in spoken("info", "json").splitlines()]
    assert [document["message"] for document in documents] == ["ready", "peer x\n\x1b[2J\u202ey", "failed"]
    assert spoken("info", "json").isascii()
    assert documents[0]["level"] == "info"
    assert documents[0]["logger"] == "pyflannel.daemon.loop"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", documents[0]["time"])
    assert "ZeroDivisionError" in documents[2]["traceback"]


def test_a_message_has_an_end() -> None:
    program = PROGRAM.replace('"x', '100000 * "x')
    command = [sys.executable, "-c", program, "info", "text"]
    assert 8192 < len(subprocess.run(command, capture_output=True, text=True, check=True).stderr) < 80_000


def test_a_log_that_somebody_has_closed_ends_nobody() -> None:
    program = f"{PROGRAM}\nsys.stderr.close()\nspeaker.info('lost')\nprint('alive', flush=True)\n"
    done = subprocess.run([sys.executable, "-c", program, "info", "text"], capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n"
