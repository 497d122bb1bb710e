"""What no in-tree backend says, through the whole of the kit: policy rules, a table of its own, a qdisc; a device of a
kind that the core has no fields for, and routes that name their tunnel. And what the kit's lab catches."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.changing import VXLAN, network, overlay, pinging
from tests.sites import installed
from tests.waiting import PATIENCE, until

from pyflannel.lab import Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.testing.backends import BackendConformance

pytestmark = [pytest.mark.root, pytest.mark.timeout(600), pytest.mark.xdist_group("said")]

SITE = Path(__file__).parent / "site"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    """The backend, for this process and those that it starts."""
    with installed(SITE):
        yield


class TestDetour(BackendConformance):
    backend = "detour"
    variants = ({}, {"Table": 4294967295, "Limit": 7})


class TestTunnels(BackendConformance):
    backend = "tunnels"
    variants = ({}, {"VNI": 9, "Port": 4791})


def test_a_tunnel_for_each_peer_takes_part_in_a_change_and_is_sound() -> None:
    """What comes by it is not filtered strictly as long as it may be answered by another way."""
    with overlay(network(VXLAN), nodes=2) as made, pinging(made.lab):
        node, other = made.nodes
        with made.driven("--backend", "apart"):
            until(lambda: device(node) != "", "it has its device", PATIENCE)
            other.daemon.pause()  # which every phase waits for
            path = f"/proc/sys/net/ipv4/conf/{device(node)}/rp_filter"
            until(lambda: node.run(["cat", path]).stdout.strip() == "2", "its filter is loose", PATIENCE)
            other.daemon.resume()
        made.change()
        made.run_on("apart")
        until(lambda: node.run(["cat", path]).stdout.strip() == "0", "its filter is as it was", PATIENCE)
        words = pyflannel_command("doctor", "--run-dir", str(node.daemon.run_directory))
        done = node.run(words, check=False)
        assert done.returncode == 0, done.stdout


def device(node: Node) -> str:
    """The name of a node's tunnel; empty as long as there is none."""
    names = re.findall(r"apart-[0-9a-f]+", node.run(["ip", "-br", "link", "show"]).stdout)
    return names[0] if names else ""


SNUG = """
from pyflannel.testing.backends import BackendBehaviour

class TestSnug(BackendBehaviour):
    backend = "snug"
"""

ENDING = """
from pyflannel.testing import _live, backends

_live.ENDING = 3.0

class TestCompanion(backends.BackendBehaviour):
    backend = "companion"

class TestLingering(backends.BackendBehaviour):
    backend = "lingering"
"""


def judged(tests: str, chosen: str, folder: Path) -> str:
    """What pytest says of a module of tests."""
    (folder / "test_judged.py").write_text(tests, encoding="utf-8")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, str(folder)]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=folder).stdout


def test_an_mtu_without_room_is_caught_by_the_fragments_on_the_underlay(tmp_path: Path) -> None:
    said = judged(SNUG, "full_packets or reach_each_other", tmp_path)
    assert "1 failed, 1 passed" in said, said
    assert "leave room for what is put around them" in said
    assert "failed: pyflannel.backend.Backend.mtu: packets of that size pass without fragmentation" in said


def test_a_data_plane_that_does_not_end_is_caught_while_the_network_is_elsewhere(tmp_path: Path) -> None:
    said = judged(ENDING, "there_and_back or that_is_left", tmp_path)
    assert "1 failed, 3 passed" in said, said
    assert re.search(r"FAILED .*TestLingering::test_a_data_plane_that_is_left_ends", said), said
    assert "process sleep infinity" in said
    assert "failed: pyflannel.backend.DataPlane.end: where the network has gone over" in said
