"""The container image: built from its Dockerfile without a network, on a base that is made here, and run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.servers.images import MISSING, built_image

from pyflannel.lab import Lab
from pyflannel.version import VERSION

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if MISSING is not None:
        pytest.skip(MISSING)
    with Lab(nodes=1, containers=0) as lab:
        yield lab


def test_the_image_is_built_and_runs(lab: Lab, tmp_path: Path) -> None:
    with built_image(lab.nodes[0], "pyflannel", tmp_path) as docker:
        assert VERSION in docker("run", "--rm", "--network=none", "pyflannel", "version")
        plugins = docker("run", "--rm", "--network=none", "pyflannel", "plugins")
        assert "kubernetes" in plugins
        assert "vxlan" in plugins
        inside = docker("run", "--rm", "--network=none", "--entrypoint", "ls", "pyflannel", "/", "/opt/pyflannel/bin")
        assert "wheels" not in inside.split()
        assert "pip" not in inside.split()
