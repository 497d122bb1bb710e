"""These tests want a real flanneld; without one each is skipped, and says how to get it."""

from __future__ import annotations

import os

import pytest
from tests.servers.flanneld import MISSING


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = MISSING if os.geteuid() == 0 else "enters the lab's namespaces: needs root"
    if reason is not None:
        for item in items:
            if "tests/flanneld/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=reason))
