"""The node's private key: a file that is made once, kept, and read again at every start.

The file is the truth. What is published and what the kernel or the workers are given follows from it, so a start after
a crash in the middle of anything ends where the file says. It holds one line of base64 as ``wg genkey`` prints it, and
only its owner may read it. It comes into being complete or not at all, also for two that make it in one moment.

A worker, which reads the key by itself, holds a shared lock on the file that it has it from (``flock(2)``), so whoever
puts another one in its place can tell when nobody uses the former key any more.

Planning must not read files: :func:`identity` remembers what :func:`load_or_create` read last.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import BinaryIO, Final

from pyflannel.backend import Secret
from pyflannel.errors import ConfigError
from pyflannel_backends.secret_file import read_secret

__all__ = [
    "FILE_NAME",
    "KeyPair",
    "create",
    "decode",
    "exchange",
    "identity",
    "key_path",
    "load",
    "load_or_create",
    "load_psk",
    "replace",
    "use",
]

FILE_NAME: Final = "wireguard.key"
"""In the state directory, unless ``WIREGUARD_KEY_FILE`` names another file, as with flannel."""

_KEY = re.compile("[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
_LONGEST = 4096
_PATIENCE = 5.0
"""Seconds that workers may take to read another key; they look each second at least."""
_PAUSE = 0.001


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A node's key pair: ``private_key`` is 32 bytes, clamped (RFC 7748, 5); ``public_key`` is base64."""

    private_key: Secret
    public_key: str

    @classmethod
    def of(cls, private_key: bytes) -> KeyPair:
        """The key pair of a private key."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = bytearray(private_key)
        key[0] &= 248
        key[31] = key[31] & 127 | 64
        public = X25519PrivateKey.from_private_bytes(bytes(key)).public_key()
        text = b64encode(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode("ascii")
        return cls(Secret(bytes(key)), text)

    @classmethod
    def new(cls) -> KeyPair:
        """A fresh one."""
        return cls.of(os.urandom(32))


def decode(text: str) -> bytes | None:
    """The 32 bytes of a key as wg(8) writes them; ``None`` if ``text`` is no such key, or the one of zeros."""
    if not _KEY.fullmatch(text):
        return None
    key = b64decode(text)
    return key if any(key) else None


def key_path(state_dir: Path) -> Path:
    """Where the key of the node with this state directory is."""
    named = os.environ.get("WIREGUARD_KEY_FILE")
    return Path(named) if named else state_dir / FILE_NAME


_identities: dict[Path, KeyPair] = {}


def identity(path: Path) -> KeyPair:
    """The key pair of ``path`` as it was read last; reads it if that never was.

    :raises ConfigError: see :func:`load`; or there is none.
    """
    known = _identities.get(path) or load(path)
    if known is None:
        raise ConfigError(
            f"WireGuard key file {path}: there is none yet; the daemon makes it when it joins the network"
        )
    return known


def load_or_create(path: Path) -> KeyPair:
    """Read the key file, or make one with a new key.

    :raises ConfigError: it can't be made, it can't be read, others may read it, or it holds no key.
    """
    found = load(path)
    while found is None:  # made and deleted again by somebody else, at worst
        create(path, KeyPair.new())
        found = load(path)
    _identities[path] = found
    return found


def load(path: Path) -> KeyPair | None:
    """Read the key file; ``None`` if there is none.

    :raises ConfigError: see :func:`load_or_create`. The message never tells what is in the file.
    """
    key = _read(path, "WireGuard key file", "no private key in it", "wg genkey", "delete the file to get a new key")
    return None if key is None else KeyPair.of(key)


def load_psk(path: Path) -> Secret:
    """Read the key that all nodes share.

    :raises ConfigError: there is none, it can't be read, others may read it, or it holds no key. The message never
        tells what is in the file.
    """
    key = _read(path, "WireGuard PSK file", "no key in it", "wg genpsk", "copy another node's")
    if key is None:
        raise ConfigError(
            f"WireGuard PSK file {path}: there is none; Backend.PSKFile says that every node has it there"
        )
    return Secret(key)


def _read(path: Path, what: str, empty: str, command: str, mend: str) -> bytes | None:
    """The one key that a file holds, as ``command`` prints it; ``None`` if there is no such file."""
    content = read_secret(path, what, _LONGEST)
    if content is None:
        return None
    key = decode(content.decode("ascii", errors="replace").strip())
    if key is None:
        raise ConfigError(f"{what} {path}: {empty}, which is a line of 44 characters as '{command}' prints; {mend}")
    return key


def create(path: Path, new: KeyPair) -> None:
    """Make the key file if there is none; leaves alone one that has come into being meanwhile.

    :raises ConfigError: it can't be made.
    """
    with suppress(FileExistsError):
        _write(path, new, lambda temporary: os.link(temporary, path))


def replace(path: Path, new: KeyPair) -> None:
    """Put a key in the place of whatever the file held.

    :raises ConfigError: it can't be written; the file is as it was.
    """
    _write(path, new, lambda temporary: temporary.replace(path))
    _identities[path] = new


def exchange(path: Path, new: KeyPair) -> KeyPair:
    """Replace the key, and wait until every worker uses the new one. Returns the old one.

    :raises ConfigError: it can't be read or written, or a worker does not take it; the file is as it was.
    """
    old = load_or_create(path)
    with path.open("rb") as former:
        replace(path, new)
        deadline = monotonic() + _PATIENCE
        while _is_held(former):
            if monotonic() > deadline:
                replace(path, old)
                raise ConfigError(
                    f"WireGuard key file {path}: a worker still used the former key after {_PATIENCE:g} s, which is "
                    "back; 'pyflannel status' may say what is wrong with it"
                )
            sleep(_PAUSE)
    return old


def use(path: Path) -> tuple[KeyPair, BinaryIO]:
    """Read the key file, and hold its lock until the file that this returns is closed.

    The lock comes first. If the file is replaced in this moment, we may hold the former one's lock and use the new key,
    but never the other way round.

    :raises ConfigError: there is none, or see :func:`load`.
    """
    with ExitStack() as undo:
        try:
            file = undo.enter_context(path.open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            raise ConfigError(f"WireGuard key file {path}: {error.strerror}") from None
        found = load(path)
        if found is None:
            raise ConfigError(f"WireGuard key file {path}: it was deleted")
        undo.pop_all()
    return found, file


def _is_held(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _write(path: Path, new: KeyPair, install: Callable[[Path], object]) -> None:
    """Write a whole file beside ``path``, on disk before ``install`` gives it the name."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(b64encode(new.private_key.reveal()) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            install(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigError(
            f"WireGuard key file {path}: {error.strerror}; choose another --state-dir, or set WIREGUARD_KEY_FILE"
        ) from None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
