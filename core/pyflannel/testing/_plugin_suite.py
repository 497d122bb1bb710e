"""The test module of ``pyflannel plugin-test``: the right kit for the plugin that the environment names."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import pytest

from pyflannel.plugins import load_backend, load_store
from pyflannel.store import StoreLocation
from pyflannel.testing.backends import BackendConformance, BackendPlanning
from pyflannel.testing.stores import StoreConformance

_TASK = json.loads(os.environ["PYFLANNEL_PLUGIN_TEST"])


def _with_attributes(kit: type[Any]) -> type[Any]:
    for name, value in _TASK["attributes"].items():
        setattr(kit, name, frozenset(value) if isinstance(getattr(kit, name), frozenset) else value)
    return kit


if _TASK["kind"] == "backend":
    _KIT: type[Any] = BackendConformance if _TASK["lab"] else BackendPlanning
    TestBackend = _with_attributes(
        type("TestBackend", (_KIT,), {"backend": load_backend(_TASK["name"]), "__doc__": "The installed backend."})
    )
    if _TASK["lab"]:
        TestBackend = pytest.mark.root(TestBackend)
else:

    @_with_attributes
    class TestStore(StoreConformance):
        """The installed store, another empty place for each test."""

        store_class = load_store(_TASK["name"])

        @pytest.fixture
        def location(self) -> StoreLocation:
            """A place with a name that nobody has used."""
            return StoreLocation.parse(_TASK["url"].replace("{}", uuid.uuid4().hex))


del BackendConformance, BackendPlanning, StoreConformance  # pytest must not find the kits themselves
