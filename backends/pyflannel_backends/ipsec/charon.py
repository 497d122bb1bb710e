"""strongSwan's charon: how it is run, and how it is spoken to.

It has a mount namespace of its own, in which ``/run`` and ``/etc/strongswan.conf`` are a folder and a file of ours. So
it does not meet another charon's files, finds no configuration but ours, and its paths are those that AppArmor's
profile for it allows. It outlives the daemon, and a later one takes it over; it ends by itself when the interface that
its keys are for has been gone for a while.

vici (:mod:`vici`, strongSwan's own library) carries the messages.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pyflannel.backend import Secret
from pyflannel.errors import ConfigError, PyflannelError

__all__ = ["Charon", "CharonError", "RefusalError", "Session"]

PROGRAMS: Final = (
    "charon",
    "/usr/lib/ipsec/charon",
    "/usr/lib/strongswan/charon",
    "/usr/libexec/ipsec/charon",
    "/usr/libexec/strongswan/charon",
)
"""Where distributions have it; Debian the second."""

PLUGINS: Final = (
    "random nonce drbg aes sha1 sha2 hmac kdf gmp curve25519 openssl gcm ccm ctr cmac chapoly "
    "kernel-netlink! socket-default! vici!"
)
"""Those that we need, and those for further proposals where they are installed. The defaults do more than we want:
``bypass-lan`` writes policies."""

CONFIGURATION: Final = f"""\
charon {{
    load = {PLUGINS}
    install_routes = no
    install_virtual_ip = no
    routing_table = 0
    retransmit_tries = 4
    retransmit_timeout = 2.0
    retransmit_base = 1.5
    filelog {{
        all {{
            path = /run/charon.log
            append = yes
            flush_line = yes
            time_format = %Y-%m-%d %H:%M:%S
            ike_name = yes
            default = 1
            enc = 0
            net = 0
        }}
    }}
}}
"""

SCRIPT: Final = """
mount --bind "$1/strongswan.conf" /etc/strongswan.conf
mount --bind "$1/run" /run
rm -f /run/charon.pid /run/charon.vici
(
    missing=0
    while sleep 2 && read -r _ _ _ parent _ </proc/self/stat && [ "$parent" = $$ ]; do
        if grep -q "$3:" /proc/self/net/dev; then missing=0; else missing=$((missing + 1)); fi
        [ $missing -lt 3 ] || kill $$
    done
) &
exec "$2"
"""
"""What runs in the new mount namespace; ``$$`` is charon in the end, and who looks after it is no child of its any more
when it has ended. ``/run`` comes last, for our files may lie below it. charon is ended when its interface was missing
at three looks in a row."""

LONGEST_LOG: Final = 4 << 20
LONGEST_NEWS: Final = 1 << 16
ANSWER_TIMEOUT: Final = 30.0
START_TIMEOUT: Final = 60.0
PORTS: Final = (500, 4500)
"""Of IKE, and of IKE and ESP in UDP (RFC 7296, 2.23)."""

_END_PATIENCE: Final = 10.0


class CharonError(PyflannelError):
    """charon does not run, does not answer, or refuses something."""


class Session:
    """A connection to charon, which may end at any time.

    :raises CharonError: by every method that asks it something.
    """

    def __init__(self, connection: socket.socket) -> None:
        from vici import Session as Vici

        self._connection = connection
        self._connection.settimeout(ANSWER_TIMEOUT)
        self._vici = Vici(connection)

    def fileno(self) -> int:
        """Readable when charon has ended."""
        return self._connection.fileno()

    def ask(self, command: str, message: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """What charon answers to a command."""
        try:
            answer: Mapping[str, Any] = self._vici.request(command, message)
        except Exception as error:
            raise self._error(command, error) from error
        return answer

    def ask_all(self, command: str, event: str) -> list[Mapping[str, Any]]:
        """All that it answers to a command whose answers come one by one."""
        try:
            return list(self._vici.streamed_request(command, event))
        except Exception as error:
            raise self._error(command, error) from error

    @staticmethod
    def _error(command: str, error: Exception) -> CharonError:
        from vici.exception import CommandException

        if isinstance(error, CommandException):
            return RefusalError(f"charon refuses {command}: {error}")
        return CharonError(f"charon does not answer {command}: {error}")

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._connection.close()


class RefusalError(CharonError):
    """charon is there, and does not do what it was asked."""


class Charon:
    """One charon, whose files are in ``directory``.

    :param device: the interface whose end is its end.
    :param settings: one that was started with others is not taken over.
    :raises ConfigError: it can't be run here.
    """

    def __init__(self, directory: Path, psk: Secret, device: str, settings: tuple[str, ...] = ()) -> None:
        if find_spec("vici") is None:
            raise ConfigError(
                "backend ipsec needs the Python library vici to speak to charon: pip install 'pyflannel[ipsec]'"
            )
        program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
        if program is None:
            raise ConfigError(
                "backend ipsec needs strongSwan's IKE daemon charon and its plugin vici: on Debian, 'apt-get install "
                "strongswan-charon strongswan-swanctl libstrongswan-standard-plugins'"
            )
        self._program, self._directory, self._psk, self._device = program, directory, psk, device
        digest = hashlib.sha256(b"\0".join((psk.reveal(), *(each.encode() for each in settings)))).hexdigest()
        self._configuration = f"# Written by pyflannel at every start of charon; settings {digest}\n{CONFIGURATION}"
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0

    @property
    def awaits(self) -> str:
        """What has to be there before it is started, and is not; empty if all is."""
        try:
            socket.if_nametoindex(self._device)
        except OSError:
            return f"charon waits for the interface {self._device}"
        return ""

    @property
    def log(self) -> Path:
        """Where it writes what it does."""
        return self._directory / "run" / "charon.log"

    def connect(self) -> Session | None:
        """A session with the one that runs; ``None`` if none does, or none with this configuration."""
        connection = self._connect()
        if connection is None:
            return None
        if self._kept("strongswan.conf") == self._configuration.encode():
            return Session(connection)
        connection.close()
        return None

    def start(self, stopping: Any) -> Session:
        """End the one that runs, if any, start another one and wait until it answers.

        :param stopping: an event that ends the waiting.
        :raises CharonError: it ended, or does not answer; says what it said last.
        """
        run = self._directory / "run"
        try:
            self.end()
            self.reap(_END_PATIENCE)
            _find_ports_free()
            for folder in (self._directory, run):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.log.unlink(missing_ok=True)
            self._read = 0
            self._configure(self._directory / "strongswan.conf")
            words = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", SCRIPT, "charon"]
            with (self._directory / "stderr").open("wb") as errors:
                self._process = subprocess.Popen(
                    [*words, str(self._directory.absolute()), self._program, self._device],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
        except OSError as error:
            raise CharonError(f"charon can't be started: {error}") from None
        deadline = time.monotonic() + START_TIMEOUT
        while not stopping.is_set() and time.monotonic() < deadline:
            connection = self._connect()
            if connection is not None:
                return Session(connection)
            if self._process.poll() is not None:
                raise CharonError(f"charon has ended: {self._last_words()}")
            stopping.wait(0.05)
        raise CharonError(f"charon does not answer: {self._last_words()}")

    def _configure(self, file: Path) -> None:
        """Write it, readable by nobody else: by the digest in it a key that somebody has in mind could be tried."""
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as opened:
            opened.write(self._configuration)

    def share(self, session: Session) -> None:
        """Tell it the network's key, which is for every peer."""
        session.ask("load-shared", {"id": "pyflannel", "type": "IKE", "data": self._psk.reveal()})

    def news(self) -> str:
        """What it has written to its log since the last call, or the end of that."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - LONGEST_NEWS, self._read if self._read <= size else 0))
                text = file.read()
                self._read = file.tell()
        except OSError:
            return ""
        return text.decode(errors="replace")

    def trim(self) -> None:
        """Keep the log from growing without end."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > LONGEST_LOG:
                os.truncate(self.log, 0)

    def reap(self, patience: float = 0.0) -> None:
        """Take note of the end of the one that we started, if it has ended or does so within some seconds."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)

    def end(self) -> None:
        """End the one that runs and wait for that: as it goes, it removes its files, which would be its successor's."""
        ours = self._process is not None and self._process.poll() is None
        try:  # one that has only just been started has not written its number yet
            pid = self._process.pid if self._process is not None and ours else int(self._kept("run/charon.pid"))
            process = os.pidfd_open(pid)
        except (ValueError, OSError):
            return
        try:
            its, run = (Path(path).stat() for path in (f"/proc/{pid}/root/run", self._directory / "run"))
            if not ours and (its.st_dev, its.st_ino) != (run.st_dev, run.st_ino):
                return  # it has ended, and another process has its number
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(process, number)
                if select.select([process], [], [], _END_PATIENCE)[0]:
                    break
        except OSError:  # it has ended meanwhile
            return
        finally:
            os.close(process)

    def _connect(self) -> socket.socket | None:
        try:
            directory = os.open(self._directory / "run", os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:  # by the folder: the whole path may be too long for an address
            connection.connect(f"/proc/self/fd/{directory}/charon.vici")
        except OSError:
            connection.close()
            return None
        finally:
            os.close(directory)
        return connection

    def _kept(self, name: str) -> bytes:
        with contextlib.suppress(OSError):
            return (self._directory / name).read_bytes()
        return b""

    def _last_words(self) -> str:
        text = b"\n".join((self._kept("stderr"), self._kept("run/charon.log"))).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "; ".join(lines[-3:]) or "it says nothing"


def _find_ports_free() -> None:
    """charon itself goes on without the ports that it can't have, and says nothing.

    :raises CharonError: another program has one.
    """
    for port in PORTS:
        for family, address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
            try:
                with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                    if family == socket.AF_INET6:
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise CharonError(
                        f"charon can't be started: another program has UDP port {port} ('ss -lunp'); strongSwan's own "
                        "service is ended by 'systemctl disable --now strongswan-starter'"
                    ) from None
