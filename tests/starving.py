"""Running out of descriptors, for a moment and in earnest."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_descriptors"]


@contextmanager
def without_descriptors() -> Iterator[None]:
    """Whatever would open something meanwhile gets EMFILE; what is open stays so."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
