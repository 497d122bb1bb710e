"""The public interface: its modules, and what a plugin's author calls or defines of a class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any

__all__ = ["MODULES", "functions"]

MODULES = (
    "pyflannel.backend",
    "pyflannel.store",
    "pyflannel.errors",
    "pyflannel.testing.backends",
    "pyflannel.testing.stores",
    "pyflannel.testing.assigned",
    "pyflannel.testing.clauses",
    "pyflannel.testing.simulation.agenda",
    "pyflannel.testing.simulation.cluster",
    "pyflannel.testing.simulation.faults",
    "pyflannel.testing.simulation.judge",
    "pyflannel.testing.simulation.plane",
    "pyflannel.testing.simulation.planning",
    "pyflannel.testing.simulation.running",
    "pyflannel.testing.simulation.stores",
    "pyflannel.lab.servers",
)


def functions(value: Any) -> Iterator[tuple[str, Any]]:
    """A function, or the public ones that a class itself defines, or has from parts that nobody else sees."""
    if inspect.isfunction(value):
        yield value.__name__, value
    elif inspect.isclass(value) and not issubclass(value, Enum):
        for name, member in _members(value):
            inner = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)))
            if inspect.isfunction(inner) and (not name.startswith("_") or name == "__init__"):
                yield f"{value.__name__}.{name}", inner


def _members(value: type) -> Iterator[tuple[str, Any]]:
    """What is written in a class, and in those of its bases that are in a private module."""
    for part in value.__mro__:
        if part is value or (part.__module__.startswith("pyflannel.") and "._" in part.__module__):
            yield from vars(part).items()
