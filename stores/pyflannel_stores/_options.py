"""Options of a store's URL that are more than a text."""

from __future__ import annotations

from pyflannel.errors import ConfigError
from pyflannel.store import StoreLocation

__all__ = ["flag"]


def flag(location: StoreLocation, name: str, default: bool) -> bool:
    """Whether an option is on; ``default`` if it is not given.

    :raises ConfigError: its text is neither true nor false.
    """
    text = location.options.get(name)
    if text is None:
        return default
    if text.lower() in {"true", "1", "yes", "on"}:
        return True
    if text.lower() in {"false", "0", "no", "off"}:
        return False
    raise ConfigError(f"store {location}: {name}={text}: expected true or false")
