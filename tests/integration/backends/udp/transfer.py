"""A stream through the overlay, whose bytes are compared at its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.backends.udp.conftest import Overlay
from tests.integration.backends.udp.traffic import digest

__all__ = ["MEBIBYTE", "Transfer"]

TRAFFIC = str(Path(__file__).with_name("traffic.py"))
MEBIBYTE = 1 << 20


def _answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


class Transfer:
    """One TCP connection from node 1 to node 2 that carries ``size`` bytes."""

    def __init__(self, overlay: Overlay, size: int, target: str = "10.5.2.1") -> None:
        first, second = overlay.nodes
        self.size = size
        self._sink = second.start(sys.executable, TRAFFIC, "sink", "5001", stdout=subprocess.PIPE)
        assert _answer(self._sink) == "listening"
        words = (sys.executable, TRAFFIC, "source", target, "5001", str(size))
        self._source = first.start(*words, stdout=subprocess.PIPE)

    @property
    def running(self) -> bool:
        return self._source.poll() is None

    def finish(self) -> None:
        """Wait for the end; the data must have arrived as it was."""
        with self._sink, self._source:
            assert _answer(self._source) == "sent"
            assert _answer(self._sink) == [self.size, digest(self.size)]
