"""A file with a key that nobody else may have: how wireguard and ipsec read theirs.

It is looked at through the descriptor that it is read from, so that nobody can put another one in its place between the
two. What is not a regular file is refused unread: a named pipe would keep the daemon waiting for whoever writes to it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyflannel.errors import ConfigError

__all__ = ["pre_shared_key_path", "read_secret"]


def read_secret(path: Path, what: str, longest: int) -> bytes | None:
    """Its first ``longest`` bytes; ``None`` if there is no such file.

    :param what: what kind of file it is, for errors.
    :raises ConfigError: it can't be read, or others may read or replace it. The message never tells what is in it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            _check(f"{what} {path}", path, os.fstat(file.fileno()))
            return file.read(longest)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}") from None


def _check(file: str, path: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise ConfigError(f"{file}: is not a regular file")
    if about.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{file}: belongs to user {about.st_uid}, who must not have the key")
    if about.st_mode & 0o077:
        raise ConfigError(
            f"{file}: mode {stat.S_IMODE(about.st_mode):04o} lets others use the key (others may read the file); "
            f"'chmod 600 {path}', or make a new key if somebody may have read it"
        )


def pre_shared_key_path(psk: str, psk_file: str) -> Path | None:
    """The path that the options ``PSK`` and ``PSKFile`` name; ``None`` if they name none.

    :raises ConfigError: there is a key besides, or the path is a relative one.
    """
    if psk and psk_file:
        raise ConfigError("network config: Backend has a PSK and a PSKFile: remove one")
    if not psk_file:
        return None
    path = Path(psk_file)
    if not path.is_absolute():
        raise ConfigError(f"network config: Backend.PSKFile is {psk_file!r}: must be an absolute path")
    return path
