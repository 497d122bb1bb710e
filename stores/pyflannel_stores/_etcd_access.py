"""Where an etcd cluster is and how to get in: a store's location, read and checked once.

Nothing here touches the network. Files are looked at, so that a wrong path is told at once; what is in them is read
when it is needed, because certificates and passwords are replaced while a daemon runs.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pyflannel.errors import ConfigError, StoreDeniedError
from pyflannel.store import StoreLocation
from pyflannel_stores._names import check_host
from pyflannel_stores._options import flag

__all__ = ["OPTIONS", "Access", "MemberAddress"]

DEFAULT_PREFIX: Final = "/coreos.com/network"
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 2379

OPTIONS: Final[Mapping[str, str]] = {
    "prefix": "instead of a path: the prefix to the letter, such as flannel/network without a slash in front, or /",
    "cafile": "the CA that signed etcd's certificate (PEM); switches TLS on",
    "certfile": "our certificate (PEM), if etcd wants one; with keyfile",
    "keyfile": "our certificate's key (PEM)",
    "tls": "true: speak TLS, and without a cafile trust the CAs this system trusts",
    "username": "the user to log in as, if etcd has authentication on",
    "password": "the user's password; not in a URL, which process lists show",
    "password_file": "a file with the user's password; else PYFLANNEL_ETCD_PASSWORD or FLANNELD_ETCD_PASSWORD",
}

_PASSWORD_VARIABLES: Final = ("PYFLANNEL_ETCD_PASSWORD", "FLANNELD_ETCD_PASSWORD")

_HOST: Final = re.compile(r"(?:\[(?P<v6>[^][]+)\]|(?P<host>[^][:/@?#\s]+))(?::(?P<port>[0-9]+))?")

# Where distributions keep the CAs they trust, for those whose OpenSSL has them in a directory only.
_TRUSTED: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")


@dataclass(frozen=True, slots=True)
class MemberAddress:
    """One member's address."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> MemberAddress:
        """Read ``host``, ``host:port``, ``[::1]`` or ``[::1]:port``.

        :raises ConfigError: it is none of these.
        """
        match = _HOST.fullmatch(text)
        port = int(match["port"] or DEFAULT_PORT) if match else 0
        if match is None or not 0 < port < 65536:
            hint = "; an IPv6 address stands in brackets" if text.count(":") > 1 and "[" not in text else ""
            raise ConfigError(
                f"store etcd: {text!r} is not an address such as 192.0.2.1:2379 or [2001:db8::1]:2379{hint}"
            )
        host = match["v6"] or match["host"]
        check_host(host, "store etcd")
        return cls(host, port)

    @property
    def bracketed(self) -> str:
        """The host as it stands before ``:port``."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return f"{self.bracketed}:{self.port}"


@dataclass(frozen=True, slots=True)
class Access:
    """A cluster's members, the keys' prefix, and what opens the door.

    ``prefix`` does not end with a slash; it may be empty, or begin without one. ``cafile`` is set whenever TLS is
    spoken.
    """

    endpoints: tuple[MemberAddress, ...]
    prefix: str
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    username: str | None = None
    password_file: str | None = None
    _password: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, location: StoreLocation, environment: Mapping[str, str] = os.environ) -> Access:
        """Read a store's location.

        :raises ConfigError: an address, an option or a combination of options is wrong, or a file can't be read.
        """
        options = location.options
        username = options.get("username")
        variable = next((name for name in _PASSWORD_VARIABLES if environment.get(name)), None)
        access = cls(
            endpoints=tuple(MemberAddress.parse(host) for host in location.hosts)
            or (MemberAddress(DEFAULT_HOST, DEFAULT_PORT),),
            prefix=_prefix(location),
            cafile=_cafile(location),
            certfile=options.get("certfile"),
            keyfile=options.get("keyfile"),
            username=username,
            password_file=options.get("password_file"),
            _password=options.get("password") or (environment[variable] if username and variable else None),
        )
        access._check()
        return access

    def _check(self) -> None:
        if (self.certfile is None) != (self.keyfile is None):
            given, missing = ("certfile", "keyfile") if self.certfile else ("keyfile", "certfile")
            raise ConfigError(f"store etcd: option {given} without {missing}; a certificate needs its key")
        if self.certfile and not self.cafile:
            raise ConfigError(
                "store etcd: option certfile without cafile, which would mean no TLS at all; add cafile, or tls=true "
                "to trust the CAs this system trusts"
            )
        if (self.password_file or self._password) and not self.username:
            given = "password_file" if self.password_file else "password"
            raise ConfigError(f"store etcd: option {given} without username; add the user the password is for")
        for name in ("cafile", "certfile", "keyfile", "password_file"):
            path = getattr(self, name)
            if path is not None:
                _check_readable(name, path)
        if self.username:
            self.password()

    def password(self) -> str:
        """The user's password, read anew from its file each time.

        :raises ConfigError: there is none.
        """
        if self.password_file is not None:
            try:
                password = Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise ConfigError(
                    f"store etcd: option password_file: can't read {self.password_file}: {reason}"
                ) from None
            if not password:
                raise ConfigError(f"store etcd: option password_file: {self.password_file} is empty")
            return password
        if self._password is None:
            raise ConfigError(
                f"store etcd: no password for {self.username!r}; add password_file, or set {_PASSWORD_VARIABLES[0]}"
            )
        return self._password

    def files_stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Differs when a certificate or key was replaced.

        :raises StoreDeniedError: one is gone, is empty or can't be reached.
        """
        stamps = []
        for path in (self.cafile, self.certfile, self.keyfile):
            if path is not None:
                try:
                    found = Path(path).stat()
                except OSError as error:
                    raise _unreadable(error) from None
                if not found.st_size:
                    raise _empty(path)
                stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(stamps)

    @staticmethod
    def content(path: str) -> bytes:
        """What is in a certificate's or key's file.

        :raises StoreDeniedError: nothing, or it can't be read.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise _unreadable(error) from None
        if not content:
            raise _empty(path)
        return content


def _unreadable(error: OSError) -> StoreDeniedError:
    return StoreDeniedError(f"store etcd: can't read {error.filename}: {error.strerror}")


def _empty(path: str) -> StoreDeniedError:
    return StoreDeniedError(f"store etcd: {path} is empty: must be a certificate or its key (PEM)")


def _prefix(location: StoreLocation) -> str:
    """What stands before ``/config``: flannel's keys, which it makes with Go's path.Join."""
    written = location.options.get("prefix")
    if written is None:
        stripped = location.path.strip("/")
        return posixpath.normpath(f"/{stripped}") if stripped else DEFAULT_PREFIX
    if location.path.strip("/"):
        raise ConfigError(f"store etcd: option prefix={written} beside the path {location.path}; keep one of them")
    prefix = posixpath.normpath(written)
    if not written or prefix.split("/", 1)[0] in {".", ".."}:
        raise ConfigError(f"store etcd: option prefix: {written!r} must be a prefix such as /coreos.com/network")
    return "/" + prefix.strip("/") if prefix.startswith("/") and prefix.strip("/") else prefix.strip("/")


def _cafile(location: StoreLocation) -> str | None:
    cafile = location.options.get("cafile")
    if not flag(location, "tls", cafile is not None):
        if cafile is not None:
            raise ConfigError("store etcd: option cafile with tls=false; drop one of them")
        return None
    return cafile if cafile is not None else _system_cafile()


def _system_cafile() -> str:
    import ssl

    paths = ssl.get_default_verify_paths()
    for path in (paths.cafile or paths.openssl_cafile, *_TRUSTED):
        if Path(path).is_file():
            return path
    raise ConfigError("store etcd: tls=true, but this system has no file of trusted CAs; name one with option cafile")


def _check_readable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"store etcd: option {name}: can't read {path}: {error.strerror}") from None
