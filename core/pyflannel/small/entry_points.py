"""The entry points of what is installed, whatever one of the installed distributions says of its own.

Python gives up on all of them where one ``entry_points.txt`` can't be read; here that distribution alone is passed
over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import metadata
from typing import Final

__all__ = ["entry_points"]

log = logging.getLogger(__name__)

_told: Final[set[str]] = set()


def entry_points(group: str, name: str | None = None) -> tuple[metadata.EntryPoint, ...]:
    """All of a group, or those of them that have this name, as of a fresh look.

    A distribution that can't be read is named in a warning, once.

    :raises OSError: the system lacks something, such as descriptors.
    """
    try:
        found = tuple(metadata.entry_points(group=group))
    except OSError:
        raise
    except Exception:  # anything that a text may lead to: bytes that are none, lines without a '=', no name
        found = tuple(_one_by_one(group))
    return tuple(entry for entry in found if name in (None, entry.name))


def _one_by_one(group: str) -> Iterator[metadata.EntryPoint]:
    """The same from each distribution by itself; of several of one name, the first in ``sys.path`` counts."""
    seen = set()
    for distribution in metadata.distributions():
        try:
            name, entries = distribution.name.lower(), tuple(distribution.entry_points)
        except OSError:
            raise
        except Exception as error:
            _tell(f"an installed distribution is passed over: {_whose(distribution)}: {type(error).__name__}: {error}")
            continue
        if name not in seen:
            seen.add(name)
            yield from (entry for entry in entries if entry.group == group)


def _whose(distribution: metadata.Distribution) -> str:
    place = distribution.locate_file("")
    try:
        return f"the entry points of {distribution.name} in {place} can't be read; reinstall it, or remove it"
    except Exception:  # that, too, is read from its files
        return f"one in {place} has no readable METADATA or entry_points.txt; remove it"


def _tell(text: str) -> None:
    if text not in _told:
        _told.add(text)
        log.warning("%s", text)
