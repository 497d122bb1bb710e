"""pyflannel cleanup in a node's real kernel: all that is ours goes, nothing else does."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

FOREIGN = [
    "ip link add foreign0 type bridge",
    "ip address add 198.51.100.7/32 dev foreign0",
    "ip link set foreign0 up",
    "ip route add 198.51.100.128/25 dev foreign0",
]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab(nodes=1, containers=0) as lab:
        (node,) = lab.nodes
        for line in FOREIGN:
            node.run(line.split())
        yield node


@pytest.fixture
def started(node: Node) -> Iterator[Node]:
    node.start_daemon(node.lab.file_store, "vxlan", "10.244.0.0/16", ["--ip-blackhole-route"])
    node.daemon.wait_ready(peers=0)
    yield node
    node.daemon.kill()


def pyflannel(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    daemon = node.daemon
    flags = {
        "--run-dir": str(daemon.run_directory),
        "--state-dir": str(daemon.state_directory),
        "--store": node.lab.file_store,
        "--node-id": node.name,
    }
    given = [word for flag in flags.items() for word in flag]
    return node.run([*pyflannel_command(), *given, *words], check=False)


def kernel(node: Node) -> list[str]:
    """What a test compares, without what changes by itself (carrier, duplicate address detection)."""
    links = [link["ifname"] for link in json.loads(node.run(["ip", "-j", "link"]).stdout)]
    return [*links, *(node.run(["ip", "-4", "-o", what]).stdout for what in ("address", "route"))]


def leases(node: Node) -> list[str]:
    return [lease["key"] for lease in json.loads(pyflannel(node, "leases", "--json").stdout)["leases"]]


def test_not_while_the_daemon_runs(started: Node) -> None:
    before = kernel(started)
    result = pyflannel(started, "cleanup")
    assert result.returncode == 8
    assert re.search(r"a pyflannel daemon \(pid \d+\) already holds /", result.stderr)
    assert kernel(started) == before


def test_a_dry_run_changes_nothing_and_the_real_one_removes_what_it_said(started: Node) -> None:
    before = kernel(started)
    told = pyflannel(started, "cleanup", "--dry-run", "--lease")
    assert told.returncode == 0, told.stderr
    assert kernel(started) == before
    assert len(leases(started)) == 1
    started.daemon.stop()
    assert "flannel.1" in kernel(started)
    done = pyflannel(started, "cleanup", "--lease")
    assert done.returncode == 0, done.stderr
    assert done.stdout == told.stdout.replace("would remove", "removed")
    after = "".join(kernel(started))
    assert "flannel.1" not in after
    assert "blackhole" not in after
    assert "198.51.100.7/32" in after
    assert "198.51.100.128/25 dev foreign0" in after
    assert leases(started) == []
    assert pyflannel(started, "cleanup").stdout == "nothing of ours is here\n"
    none = f"no lease of node {started.name} is in {started.lab.file_store}\n"
    assert pyflannel(started, "cleanup", "--lease").stdout == f"{none}nothing of ours is here\n"


def test_the_lease_stays_unless_it_is_asked_for(started: Node) -> None:
    started.daemon.stop()
    assert pyflannel(started, "cleanup").returncode == 0
    assert len(leases(started)) == 1
