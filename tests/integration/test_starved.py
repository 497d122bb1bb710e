"""A daemon that gets too little memory or too few threads to start with says so, and ends with one exit code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.asking import until

from pyflannel.errors import ExitCode
from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab(nodes=1, containers=0) as lab:
        yield lab.nodes[0]


@pytest.mark.parametrize("megabytes", [40, 64, 76])
def test_too_little_memory_to_start_with_is_named(node: Node, megabytes: int) -> None:
    """As little as this ends the start at another place each time; what does not matter."""
    daemon = node.start_daemon(
        node.lab.file_store, "vxlan", "10.244.0.0/16", wrapper=("prlimit", f"--as={megabytes << 20}")
    )
    before = len(daemon.log())
    until(lambda: not daemon.running, daemon.log)
    said = daemon.log()[before:]
    assert daemon.process.returncode == ExitCode.KERNEL, said
    assert "MemoryMax=" in said or "for want of memory" in said
    assert "Traceback" not in said
    assert "internal error" not in said
