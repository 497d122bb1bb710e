"""Logging set-up: readable on a terminal, journald's own form below systemd, JSON lines on demand.

All modules log to ``logging.getLogger(__name__)``. Three levels carry meaning: ``warning`` is what an operator should
look at, ``info`` is a change of the daemon's state (a handful in a day), ``debug`` is everything else.

Messages repeat what stores and files hold. So it is here that they become one line of visible characters.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO

from pyflannel.small.shared_log import keep
from pyflannel.small.text import cut, inert

__all__ = ["LONGEST", "JournalFormatter", "JsonFormatter", "TextFormatter", "configure"]

_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Least level to syslog priority (``sd-daemon(3)``); what is below all is 7, debug."""


LONGEST: Final = 1 << 13
"""Characters of a message at most."""


class TextFormatter(logging.Formatter):
    """``14:03:07 warning  message``; the logger's name only at debug level, where one wants to know who speaks."""

    def __init__(self, names: bool = False) -> None:
        super().__init__()
        self._names = names

    def format(self, record: logging.LogRecord) -> str:
        """One record as text, a traceback on lines of its own."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = f"{record.name}: " if self._names else ""
        return f"{clock} {record.levelname.lower():<8} {name}{_message(self, record)}"


class JournalFormatter(logging.Formatter):
    """``<4>message``: the journal keeps time and source itself, and reads the priority of every line from its start."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, every line of it with its priority."""
        prefix = f"<{next((priority for level, priority in _PRIORITIES if record.levelno >= level), 7)}>"
        return "\n".join(prefix + line for line in _message(self, record).splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, ``traceback`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as a line of JSON."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": cut(record.getMessage(), LONGEST),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)  # in ASCII: marks that turn the direction of reading stay escapes


def configure(
    level: str,
    form: str = "text",
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Send our log to ``stream`` (default: stderr), replacing an earlier set-up.

    :param level: ``debug``, ``info``, ``warning`` or ``error``; holds for libraries and plugins too.
    :param form: ``text`` or ``json``. Text takes the journal's form when ``stream`` is connected to the journal.
    """
    target = stream if stream is not None else sys.stderr
    handler = _Handler(target)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    elif _is_journal(target, environ):
        handler.setFormatter(JournalFormatter())
    else:
        handler.setFormatter(TextFormatter(names=level == "debug"))
    keep(handler, logging.getLevelName(level.upper()))


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # can't be subscripted before Python 3.11


class _Handler(_StreamHandler):
    """Costs nobody more than a line that can't be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Tell standard error, unless somebody has closed that, too."""
        with suppress(Exception):
            super().handleError(record)


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The message on one line, whatever the texts in it hold, and a traceback's lines below it."""
    lines = [cut(record.getMessage(), LONGEST)]
    if record.exc_info:
        lines += formatter.formatException(record.exc_info).splitlines()
    return "\n".join(map(inert, lines))


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether ``JOURNAL_STREAM`` (``systemd.exec(5)``: device and inode) names what ``stream`` writes to."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # a stream without a descriptor
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
