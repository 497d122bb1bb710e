"""Folders of plugins that are installed for a while, for tests that load them by their names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def install(patch: pytest.MonkeyPatch, site: Path) -> None:
    """``site``, a folder with ``*.dist-info``, for processes that are started from now on, besides what they find."""
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@contextmanager
def installed(site: Path) -> Iterator[None]:
    """``site``, a folder with ``*.dist-info``, for this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(site), *sys.path])
        install(patch, site)
        yield
