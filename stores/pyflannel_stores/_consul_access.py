"""How Consul is reached: a URL's hosts, prefix and options, and the ACL token; read and checked before all else.

A token that is in a file is read for every request, since tokens are rotated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pyflannel.errors import ConfigError, StoreDeniedError
from pyflannel.store import StoreLocation
from pyflannel_stores._names import check_host
from pyflannel_stores._options import flag

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "TOKEN_VARIABLES", "Access", "parse_access", "parse_host", "parse_prefix"]

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8500
DEFAULT_PREFIX: Final = "coreos.com/network"

TOKEN_VARIABLES: Final = ("PYFLANNEL_CONSUL_TOKEN", "CONSUL_HTTP_TOKEN")


@dataclass(frozen=True, slots=True)
class Access:
    """What every request needs besides its address.

    :param token: gives the ACL token, or ``None``; asked for each request, so that a rotated one is found.
    :param tls: speak HTTPS; ``cafile`` (``None``: the system's authorities), ``certificate``: paths of files.
    :param parameters: added to every query: datacenter, namespace.
    """

    token: Callable[[], str | None]
    tls: bool = False
    cafile: str | None = None
    certificate: tuple[str, str] | None = None
    parameters: Mapping[str, str] | None = None


def parse_host(location: StoreLocation, text: str) -> tuple[str, int]:
    """One of the URL's hosts, with its port.

    :raises ConfigError: it is none.
    """
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif ":" in text:
        host, _, port = text.rpartition(":")
    if (
        not host
        or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)
        or (":" in host and text[0] != "[")
    ):
        raise ConfigError(f"store {location}: {text!r} is not host, host:port or [IPv6]:port")
    check_host(host, f"store {location}")
    return host, int(port)


def parse_prefix(location: StoreLocation) -> str:
    """Below which key everything is kept.

    :raises ConfigError: no key can be below it.
    """
    prefix = location.path.strip("/") or DEFAULT_PREFIX
    # Consul's HTTP server resolves such paths before it looks for the key.
    if any(part in ("", ".", "..") for part in prefix.split("/")):
        raise ConfigError(f"store {location}: the path must not have empty parts, '.' or '..'")
    return prefix


def parse_access(location: StoreLocation) -> Access:
    """What every request needs, from the URL's options and the environment.

    :raises ConfigError: an option is wrong, a file is missing, or they don't go together.
    """
    options = location.options
    files = {name: options.get(name) for name in ("token_file", "cafile", "certfile", "keyfile")}
    for name, path in files.items():
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"store {location}: {name}={path}: there is no such file, or it is not readable")
    if (files["certfile"] is None) != (files["keyfile"] is None):
        raise ConfigError(f"store {location}: certfile and keyfile go together")
    secured = any(files[name] for name in ("cafile", "certfile"))
    tls = flag(location, "tls", secured)
    if secured and not tls:
        raise ConfigError(f"store {location}: tls=false, but cafile or certfile is given; leave one of them out")
    names = {"dc": options.get("datacenter"), "ns": options.get("namespace")}
    if files["token_file"]:
        _read_token(files["token_file"])  # for the error it may raise
    return Access(
        token=partial(_current_token, files["token_file"], _token_from_environment()),
        tls=tls,
        cafile=files["cafile"],
        certificate=(files["certfile"], files["keyfile"]) if files["certfile"] and files["keyfile"] else None,
        parameters={name: value for name, value in names.items() if value},
    )


def _token_from_environment() -> str | None:
    for name in TOKEN_VARIABLES:
        if text := os.environ.get(name):
            return _checked_token(text, name)
    return None


def _current_token(path: str | None, otherwise: str | None) -> str | None:
    """The token for a request; a file is read each time, since tokens are rotated."""
    if path is None:
        return otherwise
    try:
        return _read_token(path)
    except ConfigError as error:
        raise StoreDeniedError(str(error)) from None


def _read_token(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file {path}: {error}") from None
    return _checked_token(text, f"token_file {path}")


def _checked_token(text: str, source: str) -> str:
    token = text.strip()
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(f"{source}: this is not an ACL token: it has to be one word of printable ASCII")
    return token
