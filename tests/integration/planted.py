"""Plugins that misbehave, each planted as a distribution of its own into a directory on ``PYTHONPATH``.

They do so while a file, their switch, exists, so that a test says when.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.sites import install
from tests.storing import FREE

from pyflannel.lab import Node

__all__ = ["BACKEND", "STORE", "plant", "put_peer", "switched_on"]

_HEAD = """\
import threading
import time
from pathlib import Path

def hang(name):
    switch = Path(__file__).parent / name
    if switch.exists():
        (Path(__file__).parent / f"{name}-reached").touch()
    while switch.exists():
        time.sleep(0.02)

hang("import")
"""

BACKEND = (
    _HEAD
    + """\
from pyflannel.backend import *

class Planted(Backend):
    name = "planted"
    actions = {"turn": "turn around"}

    def __init__(self, options):
        hang("constructor")
        super().__init__(options)

    def mtu(self, underlay):
        return underlay.mtu

    def publish(self, node):
        hang("publish")
        return Published({"turned": getattr(self, "turned", 0)})

    def plan_peer(self, node, peer):
        hang("plan_peer")
        return DesiredState()

    def plan_node(self, node):
        hang("plan_node")
        threading.Thread(target=hang, args=["thread"], name="of a plugin", daemon=False).start()
        return DesiredState()

    def act(self, action, node):
        hang("act")
        self.turned = 1
        return Outcome("turned", lambda: setattr(self, "turned", 0))

    def start(self, node):
        return Plane()

class Plane(DataPlane):
    def put(self, peer):
        pass

    def remove(self, subnets):
        pass

    def check(self):
        return {}

    def stop(self):
        hang("stop")
"""
)
"""A backend that hangs while it is imported, in its ``constructor``, in ``publish``, ``plan_node``,
``plan_peer`` or ``act``, in ``stop`` of its data plane, or in a ``thread`` that it leaves behind.
"""

STORE = (
    _HEAD
    + """\
from pyflannel_stores.file import FileStore

class Planted(FileStore):
    scheme = "planted"

    def __init__(self, location):
        hang("constructor")
        super().__init__(location)

    def snapshot(self):
        self.serves = True
        hang("snapshot")
        return super().snapshot()

    def close(self):
        if hasattr(self, "serves"):
            hang("close")
        super().close()

    def renew(self, record, ttl):
        hang("renew")
        return super().renew(record, ttl)

    def update(self, record, value, ttl):
        hang("update")
        return super().update(record, value, ttl)
"""
)
"""A file store that hangs while it is imported, in its ``constructor``, in ``snapshot``, ``renew`` or ``update``, or
in ``close`` if it has served.
"""


def plant(path: Path, monkeypatch: pytest.MonkeyPatch, **plugins: str) -> None:
    """Install plugins for processes that are started from now on.

    :param plugins: the texts of a ``backend`` and a ``store``, each with a class ``Planted`` of that name.
    """
    for kind, text in plugins.items():
        (path / f"planted_{kind}.py").write_text(text)
        about = path / f"planted_{kind}-1.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: planted-{kind}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[pyflannel.{kind}s]\nplanted = planted_{kind}:Planted\n")
    install(monkeypatch, path)


@contextmanager
def switched_on(path: Path, name: str) -> Iterator[Callable[[], bool]]:
    """Have a planted plugin hang in a call; whether it does."""
    switch = path / name
    switch.touch()
    try:
        yield (path / f"{name}-reached").exists
    finally:
        switch.unlink()


def put_peer(node: Node, **data: Any) -> None:
    """Put another node's lease into the lab's file store, whose document kept a place for it."""
    directory = node.lab.outside(node.directory).parent / "store" / "subnets"
    content = {"PublicIP": "192.0.2.77", "BackendType": "planted", **data}
    (directory / f"{FREE}.json").write_text(json.dumps(content))
