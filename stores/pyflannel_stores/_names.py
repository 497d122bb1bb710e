"""Names of hosts, as far as they can be told from others before DNS is asked."""

from __future__ import annotations

from pyflannel.errors import ConfigError

__all__ = ["check_host", "is_host"]


def is_host(text: str) -> bool:
    """Whether it is an address or a name that can be looked up.

    Python raises :class:`UnicodeError` for any other one wherever it is to connect there.
    """
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


def check_host(text: str, source: str) -> None:
    """See whether a host can be looked up.

    :raises ConfigError: it can't; begins with ``source``.
    """
    if not is_host(text):
        raise ConfigError(f"{source}: {text!r} can't be a host's name, whose parts have 1 to 63 characters each")
