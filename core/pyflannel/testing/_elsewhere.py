"""What a backend plans in another process: as after a restart, or on a peer of the same version.

Python gives texts another hash in each process, and objects other places. A plan that depends on them is the same for
as long as a test asks one object or several, and another one after a restart, which then takes the old one out of the
kernel while packets flow. So a process of its own plans the kit's example, and says it as lines.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pyflannel.backend import Backend
from pyflannel.errors import PeerRejected
from pyflannel.network.lease import JSON
from pyflannel.small.interpreter import module_command
from pyflannel.small.streams import answers, apart, keep_apart
from pyflannel.testing._scenes import example

__all__ = ["planned_elsewhere", "planned_here", "reachable_by_name"]

PATIENCE: Final = 120.0
"""Seconds after which the other process is given up."""

_ANOTHER_SEED: Final = {"0": "1"}


def planned_here(
    kind: type[Backend[Any]], versions: Sequence[int], options: Mapping[str, JSON], state: Path
) -> list[str]:
    """All that a backend plans for the first node of the example, a line for each object, sorted."""
    scene = example(kind, state, versions, options)
    node = scene.nodes[0]
    lines = [f"node: {item!r}" for item in scene.backend.plan_node(node)]
    for peer in scene.leases[1:]:
        try:
            lines += [f"{peer.key}: {item!r}" for item in scene.backend.plan_peer(node, peer)]
        except PeerRejected as rejected:
            lines.append(f"{peer.key}: {rejected}")
    return sorted(lines)


def planned_elsewhere(
    kind: type[Backend[Any]], versions: Sequence[int], options: Mapping[str, JSON], state: Path
) -> list[str]:
    """The same of another process, whose texts have other hashes."""
    task = json.dumps([kind.__module__, kind.__qualname__, list(versions), dict(options), str(state)])
    seed = os.environ.get("PYTHONHASHSEED", "0")
    done = subprocess.run(
        module_command("pyflannel.testing._elsewhere", task),
        env={**os.environ, "PYTHONHASHSEED": _ANOTHER_SEED.get(seed, "0"), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert not done.returncode, f"{kind.__qualname__} can't plan in a process of its own:\n{done.stderr[-2000:]}"
    lines: list[str] = json.loads(done.stdout)
    return lines


def reachable_by_name(kind: type[Backend[Any]]) -> bool:
    """Whether another process can import the class."""
    return kind.__module__ != "__main__" and "<" not in kind.__qualname__


def _main(task: str) -> None:
    module, name, versions, options, state = json.loads(task)
    keep_apart()
    with apart(lasting=True):
        kind: Any = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
        answers().write(json.dumps(planned_here(kind, versions, options, Path(state))))


if __name__ == "__main__":
    _main(sys.argv[1])
