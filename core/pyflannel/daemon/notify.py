"""Tell the service manager how we are: the protocol of ``sd_notify(3)``, which is one datagram per message.

Without ``NOTIFY_SOCKET`` in the environment (no systemd, or ``Type=simple``) every call does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

from pyflannel.small.text import inert

__all__ = ["Notifier"]

log = logging.getLogger(__name__)


class Notifier:
    """The service manager's ear.

    :param environ: where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are looked up.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""
        self.watchdog_interval = _watchdog_interval(environ) if address else None
        """Seconds between two calls of :meth:`alive`, half of what the manager allows; ``None`` if it won't watch."""

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; the same line again is not sent."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={inert(' '.join(text.splitlines()))}")

    def ready(self) -> None:
        """The service is up; may be said again."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The settings are being read anew; :meth:`ready` says when that is done.

        The time tells systemd's ``notify-reload`` services which reload is meant (``sd_notify(3)``).
        """
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The service is going down."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.sendto(message.encode(), self._address)
        except OSError as error:
            # The overlay matters more than its supervisor. If READY got lost, systemd's start timeout tells.
            log.warning("the service manager at NOTIFY_SOCKET does not listen (%s): %s", error.strerror, message)


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdigit() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 2_000_000
