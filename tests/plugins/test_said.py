"""What no in-tree backend says, through the whole of the kit: policy rules, a table of its own, a qdisc; a device of a
kind that the core has no fields for, and routes that name their tunnel. And what the kit's lab catches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.testing.backends import BackendConformance

pytestmark = [pytest.mark.root, pytest.mark.timeout(600), pytest.mark.xdist_group("said")]

SITE = Path(__file__).parent / "site"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    """The backend, for this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SITE), *sys.path])
        paths = [str(SITE), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield


class TestDetour(BackendConformance):
    backend = "detour"
    variants = ({}, {"Table": 4294967295, "Limit": 7})


class TestTunnels(BackendConformance):
    backend = "tunnels"
    variants = ({}, {"VNI": 9, "Port": 4791})


SNUG = """
from pyflannel.testing.backends import BackendBehaviour

class TestSnug(BackendBehaviour):
    backend = "snug"
"""


def test_an_mtu_without_room_is_caught_by_the_fragments_on_the_underlay(tmp_path: Path) -> None:
    (tmp_path / "test_snug.py").write_text(SNUG, encoding="utf-8")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "full_packets or reach_each_other", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "leave room for what is put around them" in done.stdout
    assert "failed: pyflannel.backend.Backend.mtu: packets of that size pass without fragmentation" in done.stdout
