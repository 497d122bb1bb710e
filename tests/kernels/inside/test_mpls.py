"""A backend that puts MPLS labels on and takes them off again: planned, carried, broken and mended by the whole kit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sites import installed

from pyflannel.testing.backends import BackendConformance, LiveOverlay

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    with installed(Path(__file__).parents[1] / "site"):
        yield


class TestSwitched(BackendConformance):
    backend = "switched"
    variants = ({}, {"Label": 16})

    @pytest.mark.parametrize("version", [4, 6])
    def test_packets_carry_the_label(self, overlay: LiveOverlay, version: int) -> None:
        one, two = overlay.lab.containers[:2]
        with overlay.nodes[0].capture() as capture:
            one.run(["ping", "-c1", "-W30", two.address(version)])
        labelled = [frame for frame in capture.stop() if frame[12:14] == b"\x88\x47"]
        assert {int.from_bytes(frame[14:17], "big") >> 4 for frame in labelled} == {4711}
